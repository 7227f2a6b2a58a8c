//! One slot, in which one region follows another.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};

use loom::sync::atomic::AtomicBool;

use super::{explore, spawn};
use crate::dma::bitmap::Name;
use crate::dma::file::{Recent, SharedFile};
use crate::dma::region::{Access, Attributes, Backing, DmaInfo, Prot, Snapshot};
use crate::dma::sizes::HANDLE_BASE;
use crate::dma::slots::{Slot, Slots, Vacant, tag};

const HANDLE: u32 = 1 << HANDLE_BASE;
/// In both regions, where nothing else is the same.
const IOVA: u64 = 0x2800;
const LENGTH: u64 = 0x80;

fn old() -> Snapshot {
    Snapshot {
        tag: tag(1),
        handle: HANDLE,
        attributes: Attributes::new(Prot::WRITE, Access::Mmap),
        start: 0x2000,
        size: 0x1000,
        vaddr: 0xa_0000,
        bitmap: Name(1 << 12),
    }
}

fn new() -> Snapshot {
    Snapshot {
        tag: tag(2),
        handle: HANDLE,
        attributes: Attributes::new(Prot::READ | Prot::WRITE, Access::Mmap),
        start: 0x1000,
        size: 0x4000,
        vaddr: 0xb_0000,
        bitmap: Name(2 << 12),
    }
}

/// Puts a region there, which starts in its file where its tag says.
fn publish(slots: &Slots, region: &Snapshot) {
    let fd = OwnedFd::from(File::open("/dev/null").unwrap());
    let file = Some(SharedFile::acquire(fd, &mut Recent::default()).unwrap().0);
    let backing = Backing { file, offset: region.tag, ..Backing::default() };
    slots.publish(region, DmaInfo::EMPTY, backing).unwrap();
}

/// The old region is there.
fn slots() -> Arc<Slots> {
    let slots = Slots::new();
    publish(&slots, &old());
    Arc::new(slots)
}

fn slot(slots: &Slots) -> &Slot {
    slots.get(HANDLE.into()).unwrap()
}

/// Which of the regions has this tag. None has that of a slot that is being
/// emptied or filled, nor has any entry.
fn of(tag: u64) -> Option<Snapshot> {
    let found = [old(), new()].into_iter().find(|region| region.tag == tag);
    assert!(found.is_some() || tag & 0xff == 0);
    found
}

fn assert_same(a: &Snapshot, b: &Snapshot) {
    assert_eq!(
        (a.tag, a.handle, a.attributes, a.start, a.size, a.vaddr, a.bitmap),
        (b.tag, b.handle, b.attributes, b.start, b.size, b.vaddr, b.bitmap)
    );
}

/// Removes the old region on another thread, says so, does what there is to do
/// between, and puts the new one in its place.
fn replace(slots: &Arc<Slots>, is_gone: &AtomicBool, between: fn(&Slots)) {
    let remover = {
        let slots = Arc::clone(slots);
        spawn(move || drop(slots.retire(HANDLE)))
    };
    remover.join().unwrap();
    is_gone.store(true, Release);
    between(slots);
    publish(slots, &new());
}

/// Address of the old region's first byte by an entry of it.
fn stale(slots: &Slots) -> Option<usize> {
    slot(slots).address(old().tag, 0, 1)
}

/// Runs `read` beside `replace`.
fn beside_replace(preemptions: usize, read: fn(&Slots, &AtomicBool)) {
    beside(preemptions, |_| (), read);
}

/// Runs `read` beside `replace` in which the memory of all slots goes.
fn beside_discard(preemptions: usize, read: fn(&Slots, &AtomicBool)) {
    beside(preemptions, |slots| slots.discard(&mut Vacant::new()), read);
}

fn beside(preemptions: usize, between: fn(&Slots), read: fn(&Slots, &AtomicBool)) {
    explore(preemptions, move || {
        let (slots, is_gone) = (slots(), Arc::new(AtomicBool::new(false)));
        let writer = {
            let (slots, is_gone) = (Arc::clone(&slots), Arc::clone(&is_gone));
            spawn(move || replace(&slots, &is_gone, between))
        };
        read(&slots, &is_gone);
        writer.join().unwrap();
        assert_eq!(stale(&slots), None);
        assert_same(&slot(&slots).snapshot().unwrap(), &new());
    });
}

/// An entry is of one region, never of none, and once it is of the new one, the old
/// one's are stale.
#[test]
fn what_covers_belongs_together() {
    beside_replace(3, |slots, _| {
        let Some((tag, handle, start, offset)) = slot(slots).covers(IOVA, LENGTH, Prot::WRITE) else {
            return;
        };
        let region = of(tag).expect("a region's tag, or nothing");
        assert_eq!((handle, start, offset), (HANDLE, region.start, IOVA - region.start));
        let address = slot(slots).address(tag, offset, LENGTH);
        assert!(address.is_none_or(|address| address == region.vaddr + offset as usize));
        if tag == new().tag {
            assert!(address.is_some());
            assert_eq!(stale(slots), None);
        }
    });
}

/// Bytes and rights that only one of the regions has.
#[test]
fn what_one_region_lacks_it_never_covers() {
    beside_replace(2, |slots, _| {
        for (iova, prot) in [(0x1000, Prot::WRITE), (IOVA, Prot::READ)] {
            if let Some((tag, ..)) = slot(slots).covers(iova, LENGTH, prot) {
                assert_ne!(tag, old().tag);
            }
        }
    });
}

/// An address is that of the region whose tag the entry has.
#[test]
fn an_address_is_of_the_region_asked_for() {
    beside_replace(3, |slots, _| {
        let offset = IOVA - old().start;
        if let Some(address) = slot(slots).address(old().tag, offset, LENGTH) {
            assert_eq!(address, old().vaddr + offset as usize);
        }
    });
}

/// Who knows that a region was removed finds its entries stale.
#[test]
fn an_entry_is_stale_for_who_knows_of_the_remove() {
    beside_replace(3, |slots, is_gone| {
        if is_gone.load(Acquire) {
            assert_eq!(stale(slots), None);
            assert!(slot(slots).region(old().tag).is_none());
        }
    });
}

#[test]
fn a_snapshot_belongs_together() {
    beside_replace(2, |slots, _| {
        if let Some(region) = slot(slots).snapshot() {
            assert_same(&region, &of(region.tag).unwrap());
        }
    });
}

#[test]
fn the_region_of_a_tag_is_that_region() {
    beside_replace(3, |slots, _| {
        if let Some(found) = slot(slots).region(old().tag) {
            assert_same(&found, &old());
        }
    });
}

/// For a tag there is the file of that region or none.
#[test]
fn a_file_is_of_the_region_asked_for() {
    beside_replace(3, |slots, is_gone| {
        let was_gone = is_gone.load(Acquire);
        if let Some((_, offset)) = slots.open_file(HANDLE, old().tag) {
            assert!(offset == old().tag && !was_gone);
        }
    });
}

/// The same while memory goes.
#[test]
fn what_covers_while_memory_goes() {
    beside_discard(2, |slots, _| {
        let Some((tag, handle, start, offset)) = slot(slots).covers(IOVA, LENGTH, Prot::WRITE) else {
            return;
        };
        let region = of(tag).expect("a region's tag, or nothing");
        assert_eq!((start, offset), (region.start, IOVA - region.start));
        assert!(handle == HANDLE || handle == 0 && tag == old().tag);
        if tag == new().tag {
            assert_eq!(stale(slots), None);
        }
    });
}

#[test]
fn an_address_while_memory_goes() {
    beside_discard(2, |slots, is_gone| {
        let was_gone = is_gone.load(Acquire);
        let offset = IOVA - old().start;
        if let Some(address) = slot(slots).address(old().tag, offset, LENGTH) {
            assert!(address == old().vaddr + offset as usize && !was_gone);
        }
    });
}

/// What a slot holds goes when nobody is at it.
#[test]
fn a_file_while_memory_goes() {
    beside_discard(2, |slots, is_gone| {
        let was_gone = is_gone.load(Acquire);
        if let Some((_, offset)) = slots.open_file(HANDLE, old().tag) {
            assert!(offset == old().tag && !was_gone);
        }
    });
}
