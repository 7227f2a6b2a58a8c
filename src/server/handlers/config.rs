//! Accesses to configuration space, piece by piece.

use crate::pci::{Access, Effect, Piece, PieceKind};
use crate::server::Context;
use crate::server::callbacks::{RawBytes, RegionAccessFn, ResetType};
use crate::server::log::log;
use crate::wire::{Errno, Result};

impl Context {
    /// Reads into, or writes from, the whole of `buffer`. The first piece that
    /// fails ends the access; those before it have taken effect.
    #[inline(never)]
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
            let access = if is_write { Access::Write } else { Access::Read };
            let piece = self.pci.borrow().piece(at, rest, access, callback.is_some());
            let part = buffer.part(done, piece.len);
            if part.is_empty() {
                return Err(Errno::EINVAL);
            }
            let moved = match (piece.kind, callback) {
                // A short piece goes on where it stopped.
                (PieceKind::Callback, Some(callback)) => {
                    self.call_region(callback, part, at as u64, is_write)?
                }
                (PieceKind::Callback, None) => return Err(Errno::EINVAL),
                _ if is_write => {
                    self.write_config(&piece, part)?;
                    part.len()
                }
                _ => {
                    // SAFETY: no callback runs while the bytes are borrowed.
                    let bytes = unsafe { part.as_slice() };
                    self.pci.borrow().read_piece(&piece, bytes)?;
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

    fn write_config(&self, piece: &Piece, part: RawBytes) -> Result<()> {
        let effect = {
            let regions = self.regions.borrow();
            // SAFETY: no callback runs while the bytes are borrowed.
            let bytes = unsafe { part.as_slice() };
            self.pci.borrow().write_piece(piece, bytes, &regions.bars(), regions.rom_size())?
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
