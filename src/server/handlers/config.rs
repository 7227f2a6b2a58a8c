//! Accesses to configuration space, piece by piece.

use crate::pci::{Effect, PieceKind};
use crate::server::Context;
use crate::server::callbacks::{RawBytes, RegionAccessFn, ResetType};
use crate::server::log::log;
use crate::wire::{Errno, Result};

impl Context {
    /// Reads into, or writes from, the whole of `buffer`. The first piece that
    /// fails ends the access; those before it have taken effect.
    pub(super) fn access_config(
        &self,
        callback: Option<RegionAccessFn>,
        buffer: RawBytes,
        offset: usize,
        is_write: bool,
    ) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.saturating_add(done);
            let rest = buffer.len().saturating_sub(done);
            let piece = self.pci.borrow().piece(at, rest, callback.is_some(), is_write)?;
            let part = buffer.part(done, piece.len);
            if part.len() == 0 {
                return Err(Errno::EINVAL);
            }
            let moved = match (piece.kind, callback) {
                // A short piece goes on where it stopped.
                (PieceKind::Callback, Some(callback)) => {
                    self.call_region(callback, part, at as u64, is_write)?
                }
                _ if is_write => {
                    self.write_config(piece, at, part)?;
                    part.len()
                }
                _ => {
                    // SAFETY: no callback runs while the bytes are borrowed.
                    let bytes = unsafe { part.as_slice() };
                    self.pci.borrow().read_piece(at, bytes)?;
                    part.len()
                }
            };
            if moved == 0 {
                return Err(Errno::EINVAL);
            }
            done = done.saturating_add(moved);
        }
        Ok(())
    }

    fn write_config(&self, piece: crate::pci::Piece, at: usize, part: RawBytes) -> Result<()> {
        let effect = {
            let regions = self.regions.borrow();
            // SAFETY: no callback runs while the bytes are borrowed.
            let bytes = unsafe { part.as_slice() };
            self.pci.borrow_mut().write_piece(piece, at, bytes, &regions.bars(), regions.rom_size())?
        };
        match effect {
            Effect::None => Ok(()),
            Effect::FunctionLevelReset => {
                log!(self, LOG_DEBUG, "function level reset");
                self.reset_device(ResetType::PciFlr)
            }
        }
    }
}
