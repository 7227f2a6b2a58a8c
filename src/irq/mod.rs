//! Interrupts: the eventfds that a client assigned to each type's vectors.
//!
//! Assigning and closing happens on the thread that runs the context;
//! triggering, on any thread.

mod eventfd;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::RwLock;

use crate::memory;
use crate::wire::{Errno, Result};
pub use eventfd::Eventfd;

/// Interrupt types of a PCI device, by their index on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of the PCI specification
pub enum IrqType {
    Intx = 0,
    Msi = 1,
    Msix = 2,
    Err = 3,
    Req = 4,
}

impl IrqType {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// The type with this index, or `EINVAL`.
    pub fn from_index(index: u32) -> Result<IrqType> {
        match index {
            0 => Ok(IrqType::Intx),
            1 => Ok(IrqType::Msi),
            2 => Ok(IrqType::Msix),
            3 => Ok(IrqType::Err),
            4 => Ok(IrqType::Req),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// A type's vectors.
#[derive(Debug, Default)]
struct Vectors {
    count: AtomicU32,
    /// Only vectors with an eventfd are in it, in ascending order: what a client
    /// can make the server store is bounded by the descriptors that it sends.
    assigned: RwLock<Vec<(u32, Eventfd)>>,
}

/// Where a vector is in the list, or where it belongs.
fn place_of(assigned: &[(u32, Eventfd)], vector: u32) -> std::result::Result<usize, usize> {
    assigned.binary_search_by_key(&vector, |(vector, _)| *vector)
}

/// All interrupts of a device.
#[derive(Debug)]
pub struct Irqs {
    types: [Vectors; IrqType::COUNT],
    ready: AtomicBool,
}

impl Default for Irqs {
    /// One ERR and one REQ vector, and none of the others.
    fn default() -> Irqs {
        let irqs = Irqs { types: Default::default(), ready: AtomicBool::new(false) };
        irqs.set_count(IrqType::Err, 1);
        irqs.set_count(IrqType::Req, 1);
        irqs
    }
}

impl Irqs {
    fn of(&self, kind: IrqType) -> &Vectors {
        let [intx, msi, msix, err, req] = &self.types;
        match kind {
            IrqType::Intx => intx,
            IrqType::Msi => msi,
            IrqType::Msix => msix,
            IrqType::Err => err,
            IrqType::Req => req,
        }
    }

    /// From now on, vectors can be triggered.
    pub fn make_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Sets how many vectors a type has.
    pub fn set_count(&self, kind: IrqType, count: u32) {
        self.of(kind).count.store(count, Ordering::Relaxed);
    }

    /// How many vectors a type has.
    pub fn count(&self, kind: IrqType) -> u32 {
        self.of(kind).count.load(Ordering::Relaxed)
    }

    /// Assigns eventfds to the vectors from `start` on, in place of those they
    /// had. `EINVAL` if one of the descriptors is no eventfd; then none is
    /// assigned and all are closed.
    pub fn assign(&self, kind: IrqType, start: u32, fds: Vec<OwnedFd>) -> Result<()> {
        let mut new = Vec::new();
        memory::reserve(&mut new, fds.len())?;
        for (vector, fd) in (start..=u32::MAX).zip(fds) {
            new.push((vector, Eventfd::new(fd)?));
        }
        let (mut replaced, mut assigned) = (Vec::new(), self.of(kind).assigned.write());
        memory::reserve(&mut replaced, new.len())?;
        memory::reserve(&mut assigned, new.len())?;
        for (vector, eventfd) in new {
            match place_of(&assigned, vector) {
                Ok(place) => {
                    let slot = assigned.get_mut(place);
                    replaced.extend(slot.map(|slot| std::mem::replace(slot, (vector, eventfd))));
                }
                Err(place) => assigned.insert(place, (vector, eventfd)),
            }
        }
        // Closed when nobody has to wait for it.
        drop(assigned);
        drop(replaced);
        Ok(())
    }

    /// Closes the eventfds of `count` vectors from `start` on.
    pub fn close_range(&self, kind: IrqType, start: u32, count: u32) {
        let mut assigned = self.of(kind).assigned.write();
        assigned.retain(|(vector, _)| !(start..start.saturating_add(count)).contains(vector));
    }

    /// Closes all eventfds of a type.
    pub fn close(&self, kind: IrqType) {
        let closed = std::mem::take(&mut *self.of(kind).assigned.write());
        drop(closed);
    }

    /// Closes all eventfds.
    pub fn close_all(&self) {
        for vectors in &self.types {
            let closed = std::mem::take(&mut *vectors.assigned.write());
            drop(closed);
        }
    }

    /// Triggers those of `count` vectors from `start` on that have an eventfd
    /// and for which `wanted` (given the position in the range) is true.
    pub fn trigger_range(
        &self,
        kind: IrqType,
        start: u32,
        count: u32,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let assigned = self.of(kind).assigned.read();
        let range = start..start.saturating_add(count);
        for (vector, eventfd) in assigned.iter().filter(|(vector, _)| range.contains(vector)) {
            if wanted(vector.saturating_sub(start) as usize) {
                eventfd.trigger()?;
            }
        }
        Ok(())
    }

    /// Triggers a vector of the type that is in use: the first of MSI-X, MSI
    /// and INTx that has any eventfd assigned. Any thread may call this.
    ///
    /// `EINVAL` if no type has so many vectors, or before [`make_ready`](Self::make_ready);
    /// `ENOENT` if the vector has no eventfd; `EAGAIN` if its counter is full.
    pub fn trigger(&self, vector: u32) -> Result<()> {
        let most = self.types.iter().map(|t| t.count.load(Ordering::Relaxed)).max();
        if !self.ready.load(Ordering::Acquire) || most.is_none_or(|most| vector >= most) {
            return Err(Errno::EINVAL);
        }
        for kind in [IrqType::Msix, IrqType::Msi, IrqType::Intx] {
            let assigned = self.of(kind).assigned.read();
            if !assigned.is_empty() {
                let place = place_of(&assigned, vector).map_err(|_| Errno::ENOENT)?;
                let (_, eventfd) = assigned.get(place).ok_or(Errno::ENOENT)?;
                return eventfd.trigger();
            }
        }
        Err(Errno::ENOENT)
    }
}
