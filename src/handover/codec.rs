//! The format: a head, and records one behind the other, each with type, length and
//! whether it has to be understood.
//!
//! All numbers are little-endian. The payload of a record is fields of 8 bytes and
//! byte strings, which have their length before them and are filled up to a multiple
//! of 8. What a later version adds stands behind what there was.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::record::Record;
use crate::memory::{self, Bytes};
use crate::wire::{Errno, Result, take};

/// What every image begins with.
const MAGIC: [u8; 8] = *b"vfu-hand";
/// The version that is written, and the latest that is read.
pub const VERSION: u32 = 1;

/// Flag of a record: who does not know it cannot go on.
const MUST_UNDERSTAND: u16 = 1;
/// The type of the last record.
const END: u16 = 0xffff;

const NO_IMAGE: &str = "it is no image of a context, or not all of one";
const LATER: &str = "it is of a later version, or has what only a later version knows";

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ImageHead {
    magic: [u8; 8],
    version: u32,
    reserved: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RecordHead {
    kind: u16,
    flags: u16,
    reserved: u32,
    length: u64,
}

/// Fields being written.
pub struct Writer<'a>(&'a mut Bytes);

/// Fields being read: what is left of a record.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

/// What a record can consist of.
pub trait Field: Sized {
    fn put(&self, out: &mut Writer<'_>) -> Result<()>;
    fn take(from: &mut Reader<'_>) -> Result<Self>;
}

impl Writer<'_> {
    fn number(&mut self, value: u64) -> Result<()> {
        self.0.append(&value.to_le_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.number(bytes.len() as u64)?;
        self.0.append(bytes)?;
        let padding = bytes.len().next_multiple_of(8).saturating_sub(bytes.len());
        self.0.append([0; 8].get(..padding).unwrap_or_default())
    }
}

impl<'a> Reader<'a> {
    fn number(&mut self) -> Result<u64> {
        let (number, rest) = self.0.split_first_chunk().ok_or_else(no_image)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = usize::try_from(self.number()?).map_err(|_| no_image())?;
        let bytes = self.0.get(..length).ok_or_else(no_image)?;
        let filled = length.checked_next_multiple_of(8).ok_or_else(no_image)?;
        self.0 = self.0.get(filled..).ok_or_else(no_image)?;
        Ok(bytes)
    }
}

fn no_image() -> Errno {
    Errno::EPROTO.because(NO_IMAGE)
}

macro_rules! number_fields {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn put(&self, out: &mut Writer<'_>) -> Result<()> {
                out.number(u64::from(*self))
            }

            fn take(from: &mut Reader<'_>) -> Result<$type> {
                <$type>::try_from(from.number()?).map_err(|_| no_image())
            }
        }
    )*};
}

number_fields!(u8, u16, u32, u64);

impl Field for bool {
    fn put(&self, out: &mut Writer<'_>) -> Result<()> {
        out.number(u64::from(*self))
    }

    fn take(from: &mut Reader<'_>) -> Result<bool> {
        match from.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(no_image()),
        }
    }
}

impl Field for Vec<u8> {
    fn put(&self, out: &mut Writer<'_>) -> Result<()> {
        out.bytes(self)
    }

    fn take(from: &mut Reader<'_>) -> Result<Vec<u8>> {
        let mut copy = Bytes::default();
        copy.append(from.bytes()?)?;
        Ok(copy.0)
    }
}

macro_rules! list_fields {
    ($($type:ty),*) => {$(
        impl Field for Vec<$type> {
            fn put(&self, out: &mut Writer<'_>) -> Result<()> {
                out.number(self.len() as u64)?;
                self.iter().try_for_each(|value| value.put(out))
            }

            fn take(from: &mut Reader<'_>) -> Result<Vec<$type>> {
                let count = usize::try_from(from.number()?).map_err(|_| no_image())?;
                // Nothing is made for a number that is not borne out.
                if count > from.0.len() / 8 {
                    return Err(no_image());
                }
                let mut list = Vec::new();
                memory::reserve(&mut list, count)?;
                for _ in 0..count {
                    list.push(<$type as Field>::take(from)?);
                }
                Ok(list)
            }
        }
    )*};
}

list_fields!(u16, u32, u64);

impl<T: Field + Default> Field for Option<T> {
    fn put(&self, out: &mut Writer<'_>) -> Result<()> {
        match self {
            Some(value) => {
                true.put(out)?;
                value.put(out)
            }
            None => {
                false.put(out)?;
                T::default().put(out)
            }
        }
    }

    fn take(from: &mut Reader<'_>) -> Result<Option<T>> {
        let is_some = bool::take(from)?;
        let value = T::take(from)?;
        Ok(is_some.then_some(value))
    }
}

/// An image being written.
#[derive(Debug, Default)]
pub struct Image {
    bytes: Bytes,
    records: u64,
}

impl Image {
    /// One without records.
    pub fn new() -> Result<Image> {
        let mut image = Image::default();
        image.bytes.append(ImageHead { magic: MAGIC, version: VERSION, reserved: 0 }.as_bytes())?;
        Ok(image)
    }

    /// Appends a record.
    pub fn put(&mut self, record: &Record) -> Result<()> {
        let (kind, must) = record.kind();
        self.put_raw(kind, must, |out| record.put_fields(out))
    }

    fn put_raw(
        &mut self,
        kind: u16,
        must: bool,
        fields: impl FnOnce(&mut Writer<'_>) -> Result<()>,
    ) -> Result<()> {
        let flags = if must { MUST_UNDERSTAND } else { 0 };
        let at = self.bytes.0.len();
        let mut head = RecordHead { kind, flags, reserved: 0, length: 0 };
        self.bytes.append(head.as_bytes())?;
        let start = self.bytes.0.len();
        fields(&mut Writer(&mut self.bytes))?;
        head.length = self.bytes.0.len().saturating_sub(start) as u64;
        let place = self.bytes.0.get_mut(at..start).ok_or(Errno::EINVAL)?;
        place.copy_from_slice(head.as_bytes());
        self.records = self.records.saturating_add(1);
        Ok(())
    }

    /// The whole of it: nothing comes behind.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let records = self.records;
        self.put_raw(END, true, |out| records.put(out))?;
        Ok(self.bytes.0)
    }
}

/// The records of an image, one by one. An error is the last thing that comes.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    seen: u64,
    ended: bool,
}

impl<'a> Records<'a> {
    /// `EPROTO` for what is no image; `EPROTONOSUPPORT` for one of a later version.
    pub fn of(image: &'a [u8]) -> Result<Records<'a>> {
        let (head, rest) = take::<ImageHead>(image).map_err(|_| no_image())?;
        Errno::EPROTO.unless(head.magic == MAGIC, NO_IMAGE)?;
        Errno::EPROTONOSUPPORT.unless((1..=VERSION).contains(&head.version), LATER)?;
        Ok(Records { rest, seen: 0, ended: false })
    }

    /// The next record that is known; `None` at the end, which has to be there.
    fn read(&mut self) -> Result<Option<Record>> {
        loop {
            let (head, rest) = take::<RecordHead>(self.rest).map_err(|_| no_image())?;
            let length = usize::try_from(head.length).map_err(|_| no_image())?;
            let payload = rest.get(..length).ok_or_else(no_image)?;
            self.rest = rest.get(length..).unwrap_or_default();
            let mut fields = Reader(payload);
            if head.kind == END {
                let is_all = fields.number()? == self.seen && self.rest.is_empty();
                return Errno::EPROTO.unless(is_all, NO_IMAGE).map(|()| None);
            }
            self.seen = self.seen.saturating_add(1);
            if let Some(record) = Record::take_fields(head.kind, &mut fields)? {
                return Ok(Some(record));
            }
            Errno::EPROTONOSUPPORT.unless(head.flags & MUST_UNDERSTAND == 0, LATER)?;
        }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
