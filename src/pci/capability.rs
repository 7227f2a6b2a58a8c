//! The capabilities that the library knows: ids, sizes, flags.

use std::ops::Range;

use bitflags::bitflags;

use super::chain::List;
use crate::wire::{Errno, Result};

bitflags! {
    /// Flags of [`Pci::add_capability`](super::Pci::add_capability).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CapFlags: i32 {
        /// `VFU_CAP_FLAG_EXTENDED`: it goes into the extended list.
        const EXTENDED = 1;
        /// `VFU_CAP_FLAG_CALLBACK`: accesses go to the config region's callback.
        const CALLBACK = 1 << 1;
        /// `VFU_CAP_FLAG_READONLY`: the client can't write to it.
        const READONLY = 1 << 2;
    }
}

/// A kind of capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapabilityKind {
    /// `PCI_CAP_ID_PM`
    PowerManagement,
    /// `PCI_CAP_ID_MSI`, always in its largest layout: 64-bit address and masks.
    Msi,
    /// `PCI_CAP_ID_VNDR`
    Vendor,
    /// `PCI_CAP_ID_EXP`
    Express,
    /// `PCI_CAP_ID_MSIX`
    MsiX,
    /// `PCI_EXT_CAP_ID_DSN`
    SerialNumber,
    /// `PCI_EXT_CAP_ID_VNDR`
    ExtendedVendor,
}

impl CapabilityKind {
    /// What the capability in `data` is; `data(i)` gives its byte `i`.
    /// `ENOTSUP` for an id that the library doesn't know.
    pub fn of(list: List, data: &dyn Fn(usize) -> u8) -> Result<CapabilityKind> {
        match (list, list.id(data)) {
            (List::Standard, 0x01) => Ok(CapabilityKind::PowerManagement),
            (List::Standard, 0x05) => Ok(CapabilityKind::Msi),
            (List::Standard, 0x09) => Ok(CapabilityKind::Vendor),
            (List::Standard, 0x10) => Ok(CapabilityKind::Express),
            (List::Standard, 0x11) => Ok(CapabilityKind::MsiX),
            (List::Extended, 0x0003) => Ok(CapabilityKind::SerialNumber),
            (List::Extended, 0x000b) => Ok(CapabilityKind::ExtendedVendor),
            _ => Err(Errno::ENOTSUP.because("a capability with this id is not known")),
        }
    }

    /// Size in bytes. The vendor capabilities say theirs: the standard one in
    /// the byte at 2, the extended one in bits 31:20 of the number at 4.
    /// `EINVAL` if that is less than the header.
    pub fn size(self, data: &dyn Fn(usize) -> u8) -> Result<usize> {
        let size = match self {
            CapabilityKind::PowerManagement => 8,
            CapabilityKind::Msi => 24,
            CapabilityKind::Vendor => usize::from(data(2)),
            CapabilityKind::Express => 60,
            CapabilityKind::MsiX | CapabilityKind::SerialNumber => 12,
            CapabilityKind::ExtendedVendor => usize::from(u16::from_le_bytes([data(6), data(7)]) >> 4),
        };
        let rule = "its size is less than that of its header";
        Errno::EINVAL.unless(size >= self.header_len(), rule).map(|()| size)
    }

    /// Length in bytes of the part that no client can write.
    pub fn header_len(self) -> usize {
        match self {
            CapabilityKind::Vendor => 3,
            CapabilityKind::SerialNumber => 4,
            CapabilityKind::ExtendedVendor => 8,
            _ => 2,
        }
    }
}

/// A capability that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// What it is.
    pub kind: CapabilityKind,
    /// Where it starts.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
    /// How it was added.
    pub flags: CapFlags,
}

impl Capability {
    /// The bytes it takes.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.size
    }

    /// The list it is in.
    pub fn list(&self) -> List {
        if self.flags.contains(CapFlags::EXTENDED) { List::Extended } else { List::Standard }
    }
}
