//! A PCI device in Rust: memory in BAR 0, and a doorbell in BAR 2 that copies it
//! to the guest.
//!
//!     cargo run --example ram -- /tmp/ram.sock
//!
//! A client may map nothing here: each of its accesses becomes a call. Writing an
//! address to the doorbell has BAR 0 written to guest memory there, and vector 0
//! triggered.

use std::cell::RefCell;
use std::path::Path;

use vfio_user::irq::IrqType;
use vfio_user::pci::PciType;
use vfio_user::server::{Context, Device, RegionConfig, RegionFlags, ResetType};
use vfio_user::wire::{Errno, Result};

const MEMORY: u32 = 0;
const DOORBELL: u32 = 2;
const SIZE: usize = 4096;

struct Ram(RefCell<[u8; SIZE]>);

impl Device for Ram {
    fn region_read(&self, _: &Context<Self>, region: u32, offset: u64, data: &mut [u8]) -> Result<usize> {
        match (region, self.0.borrow().get(offset as usize..).and_then(|from| from.get(..data.len()))) {
            (MEMORY, Some(bytes)) => data.copy_from_slice(bytes),
            _ => data.fill(0),
        }
        Ok(data.len())
    }

    fn region_write(&self, context: &Context<Self>, region: u32, at: u64, data: &mut [u8]) -> Result<usize> {
        if region == MEMORY {
            let mut memory = self.0.borrow_mut();
            let to = memory.get_mut(at as usize..).and_then(|to| to.get_mut(..data.len()));
            to.ok_or(Errno::EINVAL)?.copy_from_slice(data);
        } else {
            let address = u64::from_le_bytes((&*data).try_into().map_err(|_| Errno::EINVAL)?);
            context.guest().write_memory(address, &*self.0.borrow())?;
            context.guest().trigger(0)?;
        }
        Ok(data.len())
    }

    fn reset(&self, _: &Context<Self>, _: ResetType) -> Result<()> {
        self.0.borrow_mut().fill(0);
        Ok(())
    }
}

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).ok_or(Errno::EINVAL)?;
    let context = Context::create(Path::new(&path), false, Ram(RefCell::new([0; SIZE])))?;
    context.pci_init(PciType::Express, 0, 0)?;
    context.pci_set_id(0x1b36, 0x0010, 0, 0);
    context.pci_set_class(5, 0, 0);
    let flags = RegionFlags::READ | RegionFlags::WRITE | RegionFlags::MEM;
    for (region, size) in [(MEMORY, SIZE as u64), (DOORBELL, 16)] {
        context.setup_region(region, RegionConfig { size, flags, ..Default::default() })?;
    }
    context.setup_irqs(IrqType::Intx, 1)?;
    context.setup_dma(1024, true)?;
    context.realize()?;
    loop {
        context.attach()?;
        match context.run() {
            Err(Errno::ENOTCONN) => {}
            other => return other.map(drop),
        }
    }
}
