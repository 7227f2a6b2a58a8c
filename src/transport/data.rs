//! Memory of the device's that bytes are moved to or from.

use std::marker::PhantomData;

/// Where the bytes of a transfer go to, or come from: a slice that has forgotten
/// that it is one, since C's memory may be the guest's as well, or not
/// initialised. It is plain data, as is all that lives in the frame of a thread
/// that may be cancelled.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    place: Place,
    len: usize,
    memory: PhantomData<&'a mut [u8]>,
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// From the client to here.
    Read(*mut u8),
    /// To the client from here.
    Write(*const u8),
}

impl Place {
    /// Whether it is no memory at all.
    pub fn is_null(&self) -> bool {
        match self {
            Place::Read(to) => to.is_null(),
            Place::Write(from) => from.is_null(),
        }
    }
}

impl<'a> Data<'a> {
    /// To be read into.
    pub fn read(to: &'a mut [u8]) -> Data<'a> {
        Data { place: Place::Read(to.as_mut_ptr()), len: to.len(), memory: PhantomData }
    }

    /// To be written from.
    pub fn write(from: &'a [u8]) -> Data<'a> {
        Data { place: Place::Write(from.as_ptr()), len: from.len(), memory: PhantomData }
    }

    /// Memory that is no slice.
    ///
    /// # Safety
    ///
    /// It has `len` bytes, which may be written or read, and which nobody else
    /// refers to, as long as this or a copy of it is used.
    pub unsafe fn at(place: Place, len: usize) -> Data<'a> {
        Data { place, len, memory: PhantomData }
    }

    /// Where it is, and which way the bytes go.
    pub fn place(&self) -> Place {
        self.place
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether bytes are read into it.
    pub fn is_read(&self) -> bool {
        matches!(self.place, Place::Read(_))
    }

    /// A part of it, as much of `len` bytes as there is.
    pub fn part(&self, from: usize, len: usize) -> Data<'a> {
        let from = from.min(self.len);
        let place = match self.place {
            Place::Read(to) => Place::Read(to.wrapping_add(from)),
            Place::Write(to) => Place::Write(to.wrapping_add(from)),
        };
        Data { place, len: len.min(self.len.saturating_sub(from)), memory: PhantomData }
    }

    /// The bytes that are written; none if bytes are read into it.
    pub(super) fn written(&self) -> &'a [u8] {
        match self.place {
            Place::Read(_) => &[],
            // SAFETY: what made this promised it.
            Place::Write(from) => unsafe { std::slice::from_raw_parts(from, self.len) },
        }
    }

    /// Where the last `left` bytes are read to, if any are, and how many those are.
    pub(super) fn rest_to_read(&self, left: usize) -> Option<(*mut u8, usize)> {
        match self.place {
            Place::Read(to) => Some((to.wrapping_add(self.len.saturating_sub(left)), left.min(self.len))),
            Place::Write(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_goes_beyond_the_end() {
        let mut memory = [1, 2, 3, 4, 5, 6, 7, 8];
        for (from, len, expected) in [
            (0, 8, &memory[..]),
            (2, 3, &memory[2..5]),
            (6, 9, &memory[6..]),
            (8, 1, &[]),
            (9, usize::MAX, &[]),
        ] {
            let part = Data::write(&memory).part(from, len);
            assert_eq!((part.written(), part.len()), (expected, expected.len()), "{from} {len}");
            assert_eq!((part.is_read(), part.rest_to_read(1)), (false, None));
        }
        let start = memory.as_mut_ptr();
        let data = Data::read(&mut memory);
        assert!(data.is_read() && data.written().is_empty());
        for (left, offset, room) in [(8, 0, 8), (3, 5, 3), (0, 8, 0), (9, 0, 8)] {
            assert_eq!(data.rest_to_read(left), Some((start.wrapping_add(offset), room)), "{left}");
        }
    }
}
