//! Where a new capability goes.

use std::ops::Range;

use super::capability::{Capability, CapabilityKind};
use super::chain::{Chain, List};
use super::space::ConfigSpace;
use crate::memory;
use crate::wire::{Errno, Result};

/// Capabilities start at multiples of this.
const ALIGN: usize = 4;

/// What a capability of unknown size that the device itself put into the
/// buffer is taken to occupy: its header, up to the next place.
const UNKNOWN_SIZE: usize = ALIGN;

/// A place for a new capability.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it goes.
    pub offset: usize,
    /// The last capability of the list, which has to link to it; none if the
    /// list is empty.
    pub previous: Option<usize>,
}

const NO_ROOM: &str = "there is no room for it";

/// A place in `list` for `size` bytes, besides what stands in the live buffer
/// and what was `added` before: at `pos`, or found if that is 0.
///
/// A found place is behind the last capability of the list, or else the lowest
/// that is free. `EINVAL` if `pos` is misaligned, outside the list's room or
/// taken, or isn't the start of the extended list when that is empty; `ENOSPC`
/// if no place is found.
pub fn place(
    space: &ConfigSpace,
    added: &[Capability],
    list: List,
    pos: usize,
    size: usize,
) -> Result<Place> {
    let mut taken = Vec::new();
    for at in Chain::new(space, list)? {
        memory::push(&mut taken, occupied(space, added, list, at?))?;
    }
    let last = taken.last().cloned();
    for known in added {
        memory::push(&mut taken, known.range())?;
    }
    let fits = |at: usize| {
        let end = at.checked_add(size).filter(|end| *end <= list.end(space));
        let in_room = at >= list.start() && at.is_multiple_of(ALIGN);
        in_room && end.is_some_and(|end| taken.iter().all(|t| end <= t.start || t.end <= at))
    };
    let must_start = list == List::Extended && last.is_none();
    let offset = if pos != 0 {
        let may_stand = !must_start || pos == list.start();
        Errno::EINVAL.unless(may_stand, "the first extended capability has to be at 0x100")?;
        let rule =
            "the position is misaligned, taken, or outside of 0x40 to 0xff, or of 0x100 on if extended";
        Errno::EINVAL.unless(fits(pos), rule).map(|()| pos)
    } else if must_start {
        Errno::ENOSPC.unless(fits(list.start()), NO_ROOM).map(|()| list.start())
    } else {
        let behind_last = last.as_ref().map_or(list.start(), next_place);
        let others = taken.iter().map(next_place).chain([list.start()]).filter(|at| fits(*at));
        let found = if fits(behind_last) { Some(behind_last) } else { others.min() };
        found.ok_or_else(|| Errno::ENOSPC.because(NO_ROOM))
    }?;
    Ok(Place { offset, previous: last.map(|last| last.start) })
}

/// The bytes of the capability that is linked at `at`.
fn occupied(space: &ConfigSpace, added: &[Capability], list: List, at: usize) -> Range<usize> {
    if let Some(known) = added.iter().find(|c| c.offset == at) {
        return known.range();
    }
    let byte = |i| at.checked_add(i).and_then(|at| space.read_u8(at).ok()).unwrap_or(0);
    let size = CapabilityKind::of(list, &byte).and_then(|kind| kind.size(&byte));
    at..at + size.unwrap_or(UNKNOWN_SIZE)
}

fn next_place(taken: &Range<usize>) -> usize {
    taken.end.next_multiple_of(ALIGN)
}
