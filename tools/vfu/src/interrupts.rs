//! Interrupts as a driver takes them: eventfds for the server, and the switch
//! in the configuration space for the device.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, getrlimit, setrlimit};
use vfio_user::wire::IrqSetFlags;

use crate::client::{Client, Deadline};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::region::{Irq, Region};

/// The register of MSI or MSI-X that switches it on, as it was before.
struct Switch {
    offset: u64,
    before: [u8; 2],
}

impl Switch {
    /// Switches `irq` on. Not all types have a switch, nor all devices that
    /// have vectors a capability.
    fn on(client: &mut Client, irq: Irq) -> Result<Option<Switch>> {
        const MSI: u8 = 0x05;
        const MSIX: u8 = 0x11;
        const CONTROL: usize = 2;
        let id = match irq {
            Irq::MSI => MSI,
            Irq::MSIX => MSIX,
            _ => return Ok(None),
        };
        let space = client.config_space()?;
        let capabilities = Config::decode(&space, &[0; 7]).map_or_else(Vec::new, |c| c.capabilities);
        let Some(capability) = capabilities.iter().find(|c| c.id == id) else { return Ok(None) };
        let at = capability.offset.saturating_add(CONTROL);
        let Some(before) = space.get(at..).and_then(<[u8]>::first_chunk).copied() else { return Ok(None) };
        let control = switched_on(irq, u16::from_le_bytes(before));
        let offset = at as u64;
        client.region_write(Region::CONFIG, offset, &control.to_le_bytes())?;
        Ok(Some(Switch { offset, before }))
    }
}

/// Lets this process have `more` open files, if it may.
fn make_room_for_files(more: u32) {
    const OTHERS: u64 = 64;
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = u64::from(more).saturating_add(OTHERS);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = limit.maximum.map_or(Some(wanted), |maximum| Some(maximum.min(wanted)));
        // Where this fails, opening the files says what is wrong.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Message Control of MSI-X or MSI, switched on.
fn switched_on(irq: Irq, control: u16) -> u16 {
    match irq {
        // Enable on, Function Mask off.
        Irq::MSIX => control & !(1 << 14) | 1 << 15,
        // Enable on, and as many vectors as the device can use.
        _ => control & !(7 << 4) | (control >> 1 & 7) << 4 | 1,
    }
}

/// Vectors of one type that interrupts arrive on.
pub struct Vectors {
    irq: Irq,
    eventfds: Vec<OwnedFd>,
    switch: Option<Switch>,
}

/// The type to use, `wanted` or the best there is, and how many vectors it has.
pub fn choose(client: &mut Client, wanted: Option<Irq>) -> Result<(Irq, u32)> {
    let candidates = wanted.map_or_else(|| vec![Irq::MSIX, Irq::MSI, Irq::INTX], |irq| vec![irq]);
    for irq in candidates {
        let count = client.irq_info(irq)?.count;
        if count > 0 {
            return Ok((irq, count));
        }
    }
    let what = wanted.map_or_else(|| "MSI-X, MSI or INTx".into(), |irq| irq.to_string());
    Err(Error::Unfit(format!("the device has no {what} interrupts")))
}

impl Vectors {
    /// Gives the first `count` vectors an eventfd each and switches the type
    /// on.
    pub fn arm(client: &mut Client, irq: Irq, count: u32) -> Result<Vectors> {
        let mut vectors = Vectors::give(client, irq, count)?;
        vectors.switch = Switch::on(client, irq)?;
        Ok(vectors)
    }

    /// Gives the first `count` vectors an eventfd each, as many in a request
    /// as the server takes.
    pub fn give(client: &mut Client, irq: Irq, count: u32) -> Result<Vectors> {
        let batch = client.max_msg_fds();
        if batch == 0 {
            return Err(Error::Unfit("the server takes no descriptors: interrupts cannot come".into()));
        }
        make_room_for_files(count);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let eventfds = (0..count).map(|_| eventfd(0, flags).map_err(|e| Error::local("eventfd", e)));
        let eventfds: Vec<OwnedFd> = eventfds.collect::<Result<_>>()?;
        let mut start: u32 = 0;
        for part in eventfds.chunks(batch) {
            let borrowed: Vec<_> = part.iter().map(AsFd::as_fd).collect();
            let flags = IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER;
            let number = part.len() as u32;
            client.set_irqs(irq, flags, start, number, &borrowed)?;
            start = start.saturating_add(number);
        }
        Ok(Vectors { irq, eventfds, switch: None })
    }

    /// Switches the type on again after a reset of the device, which the
    /// eventfds outlast, and forgets what has come before it.
    pub fn rearm(&self, client: &mut Client) -> Result<()> {
        if self.switch.is_some() {
            Switch::on(client, self.irq)?;
        }
        self.wait(client, Deadline::after(Duration::ZERO)).map(|_| ())
    }

    /// The type.
    pub fn irq(&self) -> Irq {
        self.irq
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.eventfds.len() as u32
    }

    /// Waits for interrupts: each vector that fired with how often; none if
    /// the deadline comes first.
    pub fn wait(&self, client: &mut Client, deadline: Deadline) -> Result<Vec<(usize, u64)>> {
        let borrowed: Vec<_> = self.eventfds.iter().map(AsFd::as_fd).collect();
        let ready = client.wait_readable(&borrowed, deadline)?;
        let mut fired = Vec::new();
        for vector in ready {
            let Some(fd) = self.eventfds.get(vector) else { continue };
            let mut counter = [0; 8];
            match rustix::io::read(fd, &mut counter) {
                Ok(_) => fired.push((vector, u64::from_ne_bytes(counter))),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::local("eventfd", e)),
            }
        }
        Ok(fired)
    }

    /// Switches the type back and takes the eventfds from the server.
    pub fn disarm(self, client: &mut Client) -> Result<()> {
        if let Some(Switch { offset, before }) = &self.switch {
            client.region_write(Region::CONFIG, *offset, before)?;
        }
        client.set_irqs(self.irq, IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER, 0, 0, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switching_on_keeps_what_the_device_says_of_itself() {
        assert_eq!(switched_on(Irq::MSIX, 0x4007), 0x8007);
        assert_eq!(switched_on(Irq::MSI, 0x0186), 0x01b7);
        assert_eq!(switched_on(Irq::MSI, 0x01b7), 0x01b7);
    }
}
