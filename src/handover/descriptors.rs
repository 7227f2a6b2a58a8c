//! Images with the descriptors that they name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use super::codec::{Image, Records};
use super::record::{NO_FD, Record};
use crate::memory;
use crate::wire::{Errno, Result};

/// An image being written, and its descriptors, which others own.
#[derive(Debug)]
pub struct Outgoing {
    image: Image,
    fds: Vec<RawFd>,
}

impl Outgoing {
    /// One with nothing in it.
    pub fn new() -> Result<Outgoing> {
        Ok(Outgoing { image: Image::new()?, fds: Vec::new() })
    }

    /// Appends a record.
    pub fn put(&mut self, record: impl Into<Record>) -> Result<()> {
        self.image.put(&record.into())
    }

    /// Sends a descriptor along, under the name that is returned.
    pub fn fd(&mut self, fd: RawFd) -> Result<u32> {
        let name = u32::try_from(self.fds.len()).map_err(|_| Errno::EMFILE)?;
        memory::push(&mut self.fds, fd)?;
        Ok(name)
    }

    /// The same for several.
    pub fn fds(&mut self, fds: impl IntoIterator<Item = RawFd>) -> Result<Vec<u32>> {
        let mut names = Vec::new();
        for fd in fds {
            let name = self.fd(fd)?;
            memory::push(&mut names, name)?;
        }
        Ok(names)
    }

    /// The whole image, and its descriptors by their names.
    pub fn finish(self) -> Result<(Vec<u8>, Vec<RawFd>)> {
        Ok((self.image.finish()?, self.fds))
    }
}

/// An image that was received, and its descriptors.
#[derive(Debug)]
pub struct Incoming {
    image: Vec<u8>,
    fds: Vec<Option<OwnedFd>>,
}

impl Incoming {
    /// Of an image and the descriptors that it names.
    pub fn new(image: Vec<u8>, fds: Vec<OwnedFd>) -> Result<Incoming> {
        let mut kept = Vec::new();
        memory::reserve(&mut kept, fds.len())?;
        kept.extend(fds.into_iter().map(Some));
        Ok(Incoming { image, fds: kept })
    }

    /// Its records and its descriptors, to be looked at together.
    pub fn parts(&mut self) -> Result<(Records<'_>, Descriptors<'_>)> {
        Ok((Records::of(&self.image)?, Descriptors(&mut self.fds)))
    }

    /// The descriptor of a name, if it is still here.
    pub fn fd(&self, name: u32) -> Option<BorrowedFd<'_>> {
        self.fds.get(name as usize)?.as_ref().map(AsFd::as_fd)
    }
}

/// Descriptors by their names, each to be taken once.
#[derive(Debug)]
pub struct Descriptors<'a>(&'a mut [Option<OwnedFd>]);

impl Descriptors<'_> {
    /// `EPROTO` if there is none of this name, or none any more.
    pub fn take(&mut self, name: u32) -> Result<OwnedFd> {
        let found = self.0.get_mut(name as usize).and_then(Option::take);
        found.ok_or_else(|| Errno::EPROTO.because("a descriptor that it names is missing"))
    }

    /// The same; none for [`NO_FD`].
    pub fn take_optional(&mut self, name: u32) -> Result<Option<OwnedFd>> {
        if name == NO_FD { Ok(None) } else { self.take(name).map(Some) }
    }

    /// The same for several.
    pub fn take_all(&mut self, names: &[u32]) -> Result<Vec<OwnedFd>> {
        let mut fds = Vec::new();
        memory::reserve(&mut fds, names.len())?;
        for name in names {
            fds.push(self.take(*name)?);
        }
        Ok(fds)
    }
}
