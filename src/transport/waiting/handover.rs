//! Descriptors that wait, for another process.

use std::os::fd::AsRawFd;

use super::{Open, Parcel, Waiting};
use crate::handover::{self, Descriptors, Outgoing};
use crate::memory;
use crate::wire::{Errno, Result};

impl Waiting {
    /// Writes all of it down.
    pub fn export(&self, out: &mut Outgoing) -> Result<()> {
        for parcel in &self.parcels {
            parcel.export(out, &[])?;
        }
        if let Some(Open { read: (start, end), fallback, parcel, later }) = &self.open {
            parcel.export(out, &[*start, *end, *fallback])?;
            later.export(out, &[*start, *end, *fallback])?;
        }
        Ok(())
    }

    /// The same as what was written down.
    pub fn import(parcels: &[handover::Parcel], fds: &mut Descriptors<'_>) -> Result<Waiting> {
        let mut waiting = Waiting::default();
        let mut open = Vec::new();
        for parcel in parcels {
            let imported = Parcel {
                owner: parcel.owner,
                fds: fds.take_all(&parcel.fds)?,
                missing: parcel.missing.map(errno),
            };
            match &parcel.open[..] {
                [] => memory::push_back(&mut waiting.parcels, imported)?,
                [start, end, fallback] => memory::push(&mut open, (imported, (*start, *end), *fallback))?,
                _ => return Err(Errno::EPROTO),
            }
        }
        let mut open = open.into_iter();
        match (open.next(), open.next(), open.next()) {
            (None, None, None) => {}
            (Some((parcel, read, fallback)), Some((later, _, _)), None) => {
                waiting.open = Some(Open { read, fallback, parcel, later });
            }
            _ => return Err(Errno::EPROTO),
        }
        Ok(waiting)
    }
}

impl Parcel {
    fn export(&self, out: &mut Outgoing, open: &[u64]) -> Result<()> {
        let fds = out.fds(self.fds.iter().map(AsRawFd::as_raw_fd))?;
        let mut bounds = Vec::new();
        memory::reserve(&mut bounds, open.len())?;
        bounds.extend_from_slice(open);
        let missing = self.missing.map(|errno| errno.number().unsigned_abs());
        out.put(handover::Parcel { owner: self.owner, fds, missing, open: bounds })
    }
}

/// An errno from its number.
pub fn errno(number: u32) -> Errno {
    Errno::new(i32::try_from(number).unwrap_or(0))
}
