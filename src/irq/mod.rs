//! Interrupts: the eventfds that a client assigned to each type's vectors.
//!
//! Assigning and closing happens on the thread that runs the context;
//! triggering, on any thread and in signal handlers, where it takes no lock,
//! allocates nothing and never waits. [`vector`] is what both meet at.

mod aio;
mod eventfd;
mod handover;
mod sync;
mod table;
#[cfg(test)]
mod tests;
mod vector;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use crate::memory;
use crate::wire::{Errno, Result};
pub use handover::VectorParts;

use aio::Aio;
use eventfd::Eventfd;
use table::Table;
use vector::{Graveyard, Mask, Node, Policy, Vector};

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
        IrqType::known(index).ok_or_else(|| Errno::EINVAL.because("there is no such interrupt type"))
    }

    /// The same, also in a signal handler.
    pub fn known(index: u32) -> Option<IrqType> {
        match index {
            0 => Some(IrqType::Intx),
            1 => Some(IrqType::Msi),
            2 => Some(IrqType::Msix),
            3 => Some(IrqType::Err),
            4 => Some(IrqType::Req),
            _ => None,
        }
    }

    /// Whether it is one of those that [`Irqs::trigger`] chooses from. ERR and REQ
    /// concern the VMM, not the guest.
    fn is_guests(self) -> bool {
        matches!(self, IrqType::Intx | IrqType::Msi | IrqType::Msix)
    }
}

/// In the order in which one is looked for that is in use.
const GUESTS: [IrqType; 3] = [IrqType::Msix, IrqType::Msi, IrqType::Intx];
/// No type.
const NONE: u8 = IrqType::COUNT as u8;
/// Whatever type it is, interrupts are kept.
const LATCHING: u8 = NONE + 1;

/// All interrupts of a device.
#[derive(Debug)]
pub struct Irqs {
    types: [Table; IrqType::COUNT],
    /// The largest count of any type; 0 until the device is ready.
    limit: AtomicU32,
    ready: AtomicBool,
    /// Where triggers go: the type that is in use, [`NONE`] or [`LATCHING`].
    route: AtomicU8,
    /// Interrupts that cannot be signalled are kept.
    latching: AtomicBool,
    /// The type that configuration space enables, or [`NONE`].
    enabled: AtomicU8,
    function_masked: AtomicBool,
    graveyard: Graveyard,
    aio: Aio,
}

impl Default for Irqs {
    /// One ERR and one REQ vector, and none of the others.
    fn default() -> Irqs {
        let irqs = Irqs {
            types: Default::default(),
            limit: AtomicU32::new(0),
            ready: AtomicBool::new(false),
            route: AtomicU8::new(NONE),
            latching: AtomicBool::new(false),
            enabled: AtomicU8::new(NONE),
            function_masked: AtomicBool::new(false),
            graveyard: Graveyard::default(),
            aio: Aio::default(),
        };
        irqs.of(IrqType::Err).set_count(1);
        irqs.of(IrqType::Req).set_count(1);
        irqs
    }
}

/// The vectors from `start` on.
fn range(start: u32, count: u32) -> std::ops::Range<u32> {
    start..start.saturating_add(count)
}

impl Irqs {
    #[inline(always)]
    fn of(&self, kind: IrqType) -> &Table {
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
    pub fn make_ready(&self) -> Result<()> {
        for kind in GUESTS {
            self.make_latches(kind, self.count(kind))?;
        }
        self.ready.store(true, Ordering::Relaxed);
        self.update_limit();
        Ok(())
    }

    /// Sets how many vectors a type has; those that are no longer there lose their
    /// eventfds, and what waited. `ENOMEM`: as before.
    pub fn set_count(&self, kind: IrqType, count: u32) -> Result<()> {
        if self.ready.load(Ordering::Relaxed) {
            self.make_latches(kind, count)?;
        }
        let table = self.of(kind);
        if kind == IrqType::Msix && self.function_masked.load(Ordering::Relaxed) {
            table.all().for_each(|vector| vector.mask(Mask::Function));
        }
        table.set_count(count);
        self.update_limit();
        for (_, vector) in table.range(count..u32::MAX) {
            self.take_away(table, vector);
            vector.clear_flags();
        }
        self.update_route();
        self.graveyard.clear();
        Ok(())
    }

    fn update_limit(&self) {
        if self.ready.load(Ordering::Relaxed) {
            let most = self.types.iter().map(Table::count).max();
            self.limit.store(most.unwrap_or(0), Ordering::Release);
        }
    }

    /// The first of MSI-X, MSI and INTx that has any eventfd.
    fn in_use(&self) -> Option<IrqType> {
        GUESTS.into_iter().find(|kind| self.of(*kind).assigned.load(Ordering::Acquire) != 0)
    }

    fn update_route(&self) {
        let route = if self.is_latching() { LATCHING } else { self.in_use().map_or(NONE, |kind| kind as u8) };
        self.route.store(route, Ordering::Release);
    }

    /// How many vectors a type has.
    pub fn count(&self, kind: IrqType) -> u32 {
        self.of(kind).count()
    }

    /// Assigns eventfds to the vectors from `start` on, in place of those they
    /// had. `EINVAL` if one of the descriptors is no eventfd; then none is
    /// assigned and all are closed. What waits for them is signalled.
    pub fn assign(&self, kind: IrqType, start: u32, fds: Vec<OwnedFd>) -> Result<()> {
        self.graveyard.clear();
        let table = self.of(kind);
        let mut new = Vec::new();
        memory::reserve(&mut new, fds.len())?;
        for (number, fd) in (start..=u32::MAX).zip(fds) {
            let node = memory::boxed(Node::new(Eventfd::new(fd, &self.aio)?))?;
            new.push((table.make(number)?, node));
        }
        for (vector, node) in new {
            if !vector.replace(Some(node)) {
                table.assigned.fetch_add(1, Ordering::Release);
            }
            self.deliver(kind, vector);
        }
        self.update_route();
        Ok(())
    }

    fn take_away(&self, table: &Table, vector: &Vector) {
        if vector.replace(None) {
            table.assigned.fetch_sub(1, Ordering::Release);
        }
    }

    /// Closes the eventfds of `count` vectors from `start` on.
    pub fn close_range(&self, kind: IrqType, start: u32, count: u32) {
        let table = self.of(kind);
        table.range(range(start, count)).for_each(|(_, vector)| self.take_away(table, vector));
        self.update_route();
        self.graveyard.clear();
    }

    /// Closes all eventfds of a type, and forgets the masks of its vectors.
    pub fn close(&self, kind: IrqType) {
        let table = self.of(kind);
        for vector in table.all() {
            self.take_away(table, vector);
            vector.unmask(Mask::Vector);
        }
        self.update_route();
        self.graveyard.clear();
    }

    /// Closes all eventfds, and forgets all that a client has brought about.
    pub fn close_all(&self) {
        for table in &self.types {
            if table.assigned.load(Ordering::Relaxed) != 0 || self.is_latching() {
                table.all().for_each(|vector| {
                    self.take_away(table, vector);
                    vector.clear_flags();
                });
            }
        }
        self.function_masked.store(false, Ordering::Relaxed);
        self.update_route();
        self.graveyard.clear();
    }

    /// Triggers those of `count` vectors from `start` on that have an eventfd
    /// and for which `wanted` (given the position in the range) is true. The
    /// client asks for it, so masks don't count.
    pub fn trigger_range(
        &self,
        kind: IrqType,
        start: u32,
        count: u32,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<()> {
        for (number, vector) in self.of(kind).range(range(start, count)) {
            if vector.is_assigned() && wanted(number.saturating_sub(start) as usize) {
                self.signal(vector, Policy::Signal)?;
            }
        }
        Ok(())
    }

    /// Triggers a vector of the type that is in use: the first of MSI-X, MSI
    /// and INTx that has any eventfd assigned. Any thread may call this, and a
    /// signal handler.
    ///
    /// `EINVAL` if no type has so many vectors, or before [`make_ready`](Self::make_ready);
    /// `ENOENT` if the vector has no eventfd; `EAGAIN` if its counter is full.
    pub fn trigger(&self, vector: u32) -> Result<()> {
        if vector >= self.limit.load(Ordering::Acquire) {
            return Err(Errno::EINVAL);
        }
        match self.types.get(usize::from(self.route.load(Ordering::Acquire))) {
            Some(table) => self.signal(table.get(vector).ok_or(Errno::ENOENT)?, Policy::Signal),
            None => self.trigger_latched(vector),
        }
    }

    /// [`trigger`](Self::trigger) where it is a matter of one write. `None`: nothing
    /// was done.
    #[inline(always)]
    pub fn trigger_usual(&self, vector: u32) -> Option<Result<()>> {
        if vector >= self.limit.load(Ordering::Acquire) {
            return None;
        }
        let table = self.types.get(usize::from(self.route.load(Ordering::Acquire)))?;
        table.get_first(vector)?.trigger_usual(&self.graveyard)
    }

    /// Triggers a vector of a type, whether it is in use or not.
    pub fn trigger_type(&self, kind: IrqType, vector: u32) -> Result<()> {
        if self.limit.load(Ordering::Acquire) == 0 || vector >= self.count(kind) {
            return Err(Errno::EINVAL);
        }
        self.signal(self.of(kind).get(vector).ok_or(Errno::ENOENT)?, self.policy(kind))
    }

    #[inline(always)]
    fn signal(&self, vector: &Vector, policy: Policy) -> Result<()> {
        vector.trigger(policy, &self.graveyard, |eventfd| eventfd.signal(&self.aio))
    }
}

/// Interrupts that are kept until they can be delivered.
impl Irqs {
    /// From now on interrupts are kept while their vector has no eventfd or is
    /// masked. Too late once the device is ready: `EINVAL`.
    pub fn latch(&self) -> Result<()> {
        let is_early = !self.ready.load(Ordering::Relaxed);
        Errno::EINVAL.unless(is_early, "vfu_realize_ctx() has been called")?;
        self.latching.store(true, Ordering::Release);
        self.update_route();
        Ok(())
    }

    /// Whether they are kept.
    #[inline(always)]
    pub fn is_latching(&self) -> bool {
        self.latching.load(Ordering::Relaxed)
    }

    /// So that a trigger finds the place to keep an interrupt at.
    fn make_latches(&self, kind: IrqType, count: u32) -> Result<()> {
        let mut missing = 0;
        while self.is_latching() && missing < count {
            self.of(kind).make(missing)?;
            missing = self.of(kind).end_of_block(missing);
        }
        Ok(())
    }

    fn policy(&self, kind: IrqType) -> Policy {
        match kind {
            _ if !self.is_latching() || !kind.is_guests() => Policy::Signal,
            IrqType::Intx => Policy::LatchAndMask,
            _ => Policy::Latch,
        }
    }

    /// If interrupts are not kept, the vector has no eventfd: `ENOENT`.
    ///
    /// With no eventfd anywhere, the type is the one that configuration space
    /// enables, or else the first of INTx, MSI-X and MSI with that vector.
    #[cold]
    #[inline(never)]
    fn trigger_latched(&self, vector: u32) -> Result<()> {
        if !self.is_latching() {
            return Err(Errno::ENOENT);
        }
        let enabled = || IrqType::known(self.enabled.load(Ordering::Acquire).into());
        let first = || {
            let kinds = [IrqType::Intx, IrqType::Msix, IrqType::Msi];
            kinds.into_iter().find(|kind| vector < self.count(*kind))
        };
        let kind = self.in_use().or_else(enabled).or_else(first).ok_or(Errno::ENOENT)?;
        if vector >= self.count(kind) {
            return Err(Errno::ENOENT);
        }
        self.signal(self.of(kind).get(vector).ok_or(Errno::ENOENT)?, self.policy(kind))
    }

    fn deliver(&self, kind: IrqType, vector: &Vector) {
        if vector.is_pending() {
            vector.deliver(self.policy(kind), &self.graveyard, |eventfd| eventfd.signal(&self.aio));
        }
    }

    /// Masks or unmasks vectors; those that are unmasked deliver what waits.
    /// Nothing happens where interrupts are not kept: masks are the device's
    /// business then.
    pub fn set_masked(&self, kind: IrqType, start: u32, count: u32, masked: bool) {
        if !self.is_latching() || !kind.is_guests() {
            return;
        }
        for (_, vector) in self.of(kind).range(range(start, count)) {
            match masked {
                true => vector.mask(Mask::Vector),
                false => {
                    vector.unmask(Mask::Vector);
                    self.deliver(kind, vector);
                }
            }
        }
    }

    /// What configuration space says: the type that is enabled, and whether all
    /// of MSI-X is masked.
    pub fn set_function_state(&self, enabled: Option<IrqType>, masked: bool) {
        self.enabled.store(enabled.map_or(NONE, |kind| kind as u8), Ordering::Release);
        if !self.is_latching() || self.function_masked.swap(masked, Ordering::Relaxed) == masked {
            return;
        }
        for vector in self.of(IrqType::Msix).all() {
            match masked {
                true => vector.mask(Mask::Function),
                false => {
                    vector.unmask(Mask::Function);
                    self.deliver(IrqType::Msix, vector);
                }
            }
        }
    }

    /// Whether an interrupt waits. `EINVAL` if the type has no such vector.
    pub fn is_pending(&self, kind: IrqType, vector: u32) -> Result<bool> {
        match vector < self.count(kind) {
            true => Ok(self.of(kind).get(vector).is_some_and(Vector::is_pending)),
            false => Err(Errno::EINVAL),
        }
    }

    /// Forgets an interrupt that waits. `EINVAL` if the type has no such vector.
    pub fn clear_pending(&self, kind: IrqType, vector: u32) -> Result<()> {
        if vector >= self.count(kind) {
            return Err(Errno::EINVAL);
        }
        if let Some(vector) = self.of(kind).get(vector) {
            vector.clear_pending();
        }
        Ok(())
    }

    /// Bytes of the pending bit array of MSI-X. `EINVAL` beyond its end, which is
    /// that of a quadword.
    pub fn read_pba(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let end = u64::from(self.count(IrqType::Msix)).div_ceil(64) * 8;
        if offset.checked_add(bytes.len() as u64).is_none_or(|behind| behind > end) {
            return Err(Errno::EINVAL);
        }
        for (byte, at) in bytes.iter_mut().zip(offset..) {
            let first = u32::try_from(at * 8).unwrap_or(u32::MAX);
            let pending = (first..first.saturating_add(8))
                .zip(0..8)
                .filter(|(vector, _)| self.is_pending(IrqType::Msix, *vector) == Ok(true));
            *byte = pending.fold(0, |bits, (_, bit)| bits | 1 << bit);
        }
        Ok(())
    }

    /// Forgets all interrupts that wait: the device has been reset.
    pub fn clear_all_pending(&self) {
        if self.is_latching() {
            self.types.iter().flat_map(Table::all).for_each(Vector::clear_pending);
        }
    }
}
