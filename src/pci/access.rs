//! An access by the client, cut into pieces at the borders of what it touches.

use super::bar::{BARS, Bar};
use super::capability::{CapFlags, Capability, CapabilityKind};
use super::caps::{self, express};
use super::header;
use super::{Effect, Pci};
use crate::wire::{Errno, Result};

/// What a client does to configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes.
    Write,
}

/// What a piece of an access belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// The standard header.
    Header,
    /// A capability that the library handles.
    Capability(Capability),
    /// The callback of the config region; without one by now, `EINVAL`.
    Callback,
    /// Nothing: reads copy the buffer, writes fail.
    Plain,
}

/// The part of an access that lies in one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Who handles it.
    pub kind: PieceKind,
    /// Where it starts in configuration space.
    pub offset: usize,
    /// Its length in bytes; not 0 unless the access has no bytes.
    pub len: usize,
}

impl Pci {
    /// The piece at the start of an access of `len` bytes at `offset`. It ends
    /// where the header, the capability or the gap ends, and never behind the
    /// access. `has_callback` says whether the config region has a callback.
    ///
    /// A read-only capability refuses a write itself, before its callback.
    pub fn piece(&self, offset: usize, len: usize, access: Access, has_callback: bool) -> Piece {
        let (kind, end) = if offset < header::SIZE {
            (PieceKind::Header, Some(header::SIZE))
        } else if let Some(capability) = self.capability_at(offset) {
            (capability_piece(capability, access), Some(capability.range().end))
        } else {
            let gap = if has_callback { PieceKind::Callback } else { PieceKind::Plain };
            (gap, self.gap_end(offset))
        };
        Piece {
            kind,
            offset,
            len: end.and_then(|end| end.checked_sub(offset)).map_or(len, |rest| rest.min(len)),
        }
    }

    /// Copies what the client reads in `piece` out of the buffer; `into` has
    /// the piece's length. `EINVAL` for a piece that belongs to the callback.
    pub fn read_piece(&self, piece: &Piece, into: &mut [u8]) -> Result<()> {
        if into.len() != piece.len || piece.kind == PieceKind::Callback {
            return Err(Errno::EINVAL);
        }
        self.space().ok_or(Errno::EINVAL)?.read(piece.offset, into)
    }

    /// Does what the client's write of `data`, of the piece's length, does to
    /// `piece`. `bars` and `rom_size` are the regions of now (0 without a ROM).
    ///
    /// `EPERM` for a read-only capability or the header of one, `EINVAL` where
    /// there is nothing or the callback has to be asked; a capability's own
    /// errors are those of its file. The effect is left to the caller to carry
    /// out, after the bytes have changed.
    pub fn write_piece(
        &self,
        piece: &Piece,
        data: &[u8],
        bars: &[Bar; BARS],
        rom_size: u64,
    ) -> Result<Effect> {
        if data.len() != piece.len {
            return Err(Errno::EINVAL);
        }
        let space = self.space().ok_or(Errno::EINVAL)?;
        match piece.kind {
            PieceKind::Header => {
                header::write(space, piece.offset, data, bars, rom_size).map(|()| Effect::None)
            }
            PieceKind::Capability(capability) => caps::write(space, &capability, piece.offset, data),
            PieceKind::Callback | PieceKind::Plain => {
                Err(Errno::EINVAL.because("nothing is there that can be written"))
            }
        }
    }

    /// Whether a write of `data` at `offset` has to wait until the device is
    /// quiesced: it sets the bit that initiates a function level reset.
    pub fn asks_quiesce(&self, offset: usize, data: &[u8]) -> bool {
        self.capabilities()
            .iter()
            .filter(|c| c.kind == CapabilityKind::Express)
            .any(|c| express::initiates_reset(c.offset, offset, data))
    }

    fn capability_at(&self, offset: usize) -> Option<&Capability> {
        self.capabilities().iter().find(|c| c.range().contains(&offset))
    }

    /// Where the gap around `offset` ends, if something follows it.
    fn gap_end(&self, offset: usize) -> Option<usize> {
        let starts = self.capabilities().iter().map(|c| c.offset);
        starts.filter(|start| *start > offset).min()
    }
}

fn capability_piece(capability: &Capability, access: Access) -> PieceKind {
    let refused = access == Access::Write && capability.flags.contains(CapFlags::READONLY);
    if capability.flags.contains(CapFlags::CALLBACK) && !refused {
        PieceKind::Callback
    } else {
        PieceKind::Capability(*capability)
    }
}
