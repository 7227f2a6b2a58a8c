//! The interrupts of a device that goes on in another process.

use std::os::fd::{OwnedFd, RawFd};

use super::vector::Mask;
use super::{IrqType, Irqs};
use crate::memory;
use crate::wire::{Errno, Result};

/// Every type.
const TYPES: [IrqType; IrqType::COUNT] =
    [IrqType::Intx, IrqType::Msi, IrqType::Msix, IrqType::Err, IrqType::Req];

/// What there is of a vector that is not as it is at first.
#[derive(Clone, Copy, Debug)]
pub struct VectorParts {
    /// Its type.
    pub kind: IrqType,
    /// Its number.
    pub number: u32,
    /// Its eventfd, which stays its own.
    pub fd: Option<RawFd>,
    /// The client masked it.
    pub masked: bool,
    /// An interrupt waits.
    pub pending: bool,
}

impl Irqs {
    /// Goes through the vectors that are not as they are at first, until `visit` fails.
    /// On the thread that assigns eventfds.
    pub fn visit(&self, mut visit: impl FnMut(VectorParts) -> Result<()>) -> Result<()> {
        for kind in TYPES {
            for (number, vector) in self.of(kind).range(0..u32::MAX) {
                // SAFETY: this is the thread that takes eventfds away.
                let fd = unsafe { vector.descriptor() };
                let (masked, pending) = (vector.is_masked(), vector.is_pending());
                if fd.is_some() || masked || pending {
                    visit(VectorParts { kind, number, fd, masked, pending })?;
                }
            }
        }
        Ok(())
    }

    /// Makes a vector what one of another process was. Nothing is delivered before
    /// [`deliver_all`](Self::deliver_all). `EPROTO` if there is no such vector.
    pub fn restore(
        &self,
        kind: IrqType,
        number: u32,
        fd: Option<OwnedFd>,
        (masked, pending): (bool, bool),
    ) -> Result<()> {
        let is_there = number < self.count(kind) && (self.is_latching() || !masked && !pending);
        Errno::EPROTO.unless(is_there, "an interrupt that the device does not have")?;
        if let Some(fd) = fd {
            let mut fds = Vec::new();
            memory::push(&mut fds, fd)?;
            self.assign(kind, number, fds)?;
        }
        let vector = self.of(kind).make(number)?;
        if masked {
            vector.mask(Mask::Vector);
        }
        if pending {
            vector.set_pending();
        }
        Ok(())
    }

    /// Signals what waits and is held back by nothing.
    pub fn deliver_all(&self) {
        for kind in TYPES {
            self.of(kind).all().for_each(|vector| self.deliver(kind, vector));
        }
    }
}
