//! The two lists of capabilities as they are linked in configuration space.
//!
//! The links are read from the live buffer each time: a device may have put
//! capabilities there itself, and may have got them wrong.

use super::header;
use super::space::ConfigSpace;
use crate::wire::{Errno, Result};

/// Where the extended list starts, and the standard one's room ends.
const EXTENDED_START: usize = 0x100;

/// A list of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// In the first 256 bytes; it starts with the pointer in the header.
    Standard,
    /// From 0x100 on; its first capability stands there, an all-zero header
    /// if the list is empty.
    Extended,
}

impl List {
    /// The lowest offset of a capability.
    pub fn start(self) -> usize {
        match self {
            List::Standard => header::SIZE,
            List::Extended => EXTENDED_START,
        }
    }

    /// Where the room for capabilities ends.
    pub fn end(self, space: &ConfigSpace) -> usize {
        match self {
            List::Standard => EXTENDED_START.min(space.len()),
            List::Extended => space.len(),
        }
    }

    /// Whether `offset` is too high for the header of a capability.
    pub fn is_outside(self, space: &ConfigSpace, offset: usize) -> bool {
        let header = match self {
            List::Standard => 1,
            List::Extended => 4,
        };
        offset.checked_add(header).is_none_or(|end| end >= space.len())
    }

    /// The id in the header whose byte `i` is `data(i)`.
    pub fn id(self, data: &dyn Fn(usize) -> u8) -> u16 {
        match self {
            List::Standard => u16::from(data(0)),
            List::Extended => u16::from_le_bytes([data(0), data(1)]),
        }
    }

    /// Offset of the first capability; below [`start`](List::start) if there
    /// is none.
    fn head(self, space: &ConfigSpace) -> Result<usize> {
        match self {
            List::Standard => space.read_u8(header::CAPABILITY_LIST).map(usize::from),
            List::Extended if space.len() <= EXTENDED_START => Ok(0),
            List::Extended if space.read_u32(EXTENDED_START)? == 0 => Ok(0),
            List::Extended => Ok(EXTENDED_START),
        }
    }

    /// What the capability at `at` links to.
    fn link(self, space: &ConfigSpace, at: usize) -> Result<usize> {
        match self {
            List::Standard => space.read_u8(at + 1).map(usize::from),
            List::Extended => space.read_u16(at + 2).map(|next| usize::from(next >> 4)),
        }
    }

    /// Makes the capability at `at`, or without one the head of the list, link
    /// to `next`.
    pub fn set_link(self, space: &ConfigSpace, at: Option<usize>, next: usize) -> Result<()> {
        match (self, at) {
            (List::Standard, at) => {
                let next = u8::try_from(next).map_err(|_| Errno::EINVAL)?;
                space.write_u8(at.map_or(header::CAPABILITY_LIST, |at| at + 1), next)
            }
            (List::Extended, Some(at)) => {
                let next = u16::try_from(next).ok().filter(|n| *n < 1 << 12).ok_or(Errno::EINVAL)?;
                let version = space.read_u16(at + 2)? & 0xf;
                space.write_u16(at + 2, next << 4 | version)
            }
            // The head stands at a fixed place.
            (List::Extended, None) => Ok(()),
        }
    }
}

/// Walks a list in the live buffer: the offset of each capability, or `EINVAL`
/// for a link that leads out of the space. Ends at a link into the header and
/// before it would give an offset twice, so it always ends.
pub struct Chain<'a> {
    space: &'a ConfigSpace,
    list: List,
    next: usize,
    seen: [u64; 64],
}

impl<'a> Chain<'a> {
    /// A walk from the head of `list`.
    pub fn new(space: &'a ConfigSpace, list: List) -> Result<Chain<'a>> {
        Ok(Chain { space, list, next: list.head(space)?, seen: [0; 64] })
    }

    /// Notes that the walk is at `at`; whether it was there before. Links have
    /// 12 bits at most, so there is a bit for each.
    fn revisits(&mut self, at: usize) -> bool {
        let bit = 1 << (at % 64);
        self.seen.get_mut(at / 64).is_none_or(|word| {
            let seen = *word & bit != 0;
            *word |= bit;
            seen
        })
    }
}

impl Iterator for Chain<'_> {
    type Item = Result<usize>;

    fn next(&mut self) -> Option<Result<usize>> {
        let at = std::mem::take(&mut self.next);
        if at < self.list.start() {
            return None;
        }
        if self.list.is_outside(self.space, at) {
            return Some(Err(
                Errno::EINVAL.because("the list of capabilities leads out of configuration space")
            ));
        }
        if self.revisits(at) {
            return None;
        }
        Some(self.list.link(self.space, at).map(|next| {
            self.next = next;
            at
        }))
    }
}
