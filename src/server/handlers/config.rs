//! Accesses to configuration space, piece by piece.

use super::region::NOTHING;
use crate::pci::{Access, Effect, Piece, PieceKind};
use crate::server::log::log;
use crate::server::regions::CONFIG;
use crate::server::{Context, Device, ResetType};
use crate::wire::{Errno, Result};

const NO_CALLBACK: &str = "the device's callback is to do it, and there is none any more";

impl<D: Device> Context<D> {
    /// Reads into, or writes from, the whole of `buffer`. The first piece that
    /// fails ends the access; those before it have taken effect.
    #[inline(never)]
    pub(super) fn access_config(
        &self,
        has_callback: bool,
        buffer: &mut [u8],
        offset: usize,
        is_write: bool,
    ) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.saturating_add(done);
            let rest = buffer.len().saturating_sub(done);
            let access = if is_write { Access::Write } else { Access::Read };
            let piece = self.pci.borrow().piece(at, rest, access, has_callback);
            let part = buffer.get_mut(done..done.saturating_add(piece.len.min(rest)));
            let part = part.filter(|part| !part.is_empty()).ok_or(Errno::EINVAL)?;
            let moved = match piece.kind {
                // A short piece goes on where it stopped.
                PieceKind::Callback if has_callback => {
                    self.call_region(CONFIG as u32, at as u64, part, is_write)?
                }
                PieceKind::Callback => return Err(Errno::EINVAL.because(NO_CALLBACK)),
                _ if is_write => {
                    self.write_config(&piece, part)?;
                    part.len()
                }
                _ => {
                    self.pci.borrow().read_piece(&piece, part)?;
                    part.len()
                }
            };
            Errno::EINVAL.unless(moved != 0, NOTHING)?;
            done = done.saturating_add(moved);
        }
        Ok(())
    }

    fn write_config(&self, piece: &Piece, part: &[u8]) -> Result<()> {
        let effect = {
            let regions = self.regions.borrow();
            self.pci.borrow().write_piece(piece, part, &regions.bars(), regions.rom_size())?
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
