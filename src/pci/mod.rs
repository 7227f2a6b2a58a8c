//! Configuration space: header, base address registers, capability lists, and
//! what a client's write to each of them may change.
//!
//! [`ConfigSpace`] is the live buffer, which the device reads and writes behind
//! the library's back; everything here looks at it anew each time. [`Pci`] holds
//! it together with what was set up: the kind of device and the capabilities.
//! `header` and `bar` are the standard header; `capability`, `chain` and
//! `placement` say what capabilities there are, how they are linked and where a
//! new one goes; `caps` has a file for the writes to each kind; `access` cuts an
//! access into pieces that each belong to one of these, or to the device's
//! callback.
//!
//! No callback is ever called from here: the server executes an access as a
//! loop over [`Pci::piece`], so that nothing is borrowed while a callback runs.

mod access;
mod bar;
mod capability;
mod caps;
mod chain;
mod header;
mod placement;
mod space;
#[cfg(test)]
mod tests;

pub use access::{Access, Piece, PieceKind};
pub use bar::{BARS, Bar};
pub use capability::{CapFlags, Capability, CapabilityKind};
pub use chain::List;
pub use space::ConfigSpace;

use chain::Chain;

use crate::irq::IrqType;
use crate::memory;
use crate::wire::{Errno, Result};

/// `PCI_CAP_ID_MSI`, and the enable bit of its message control.
const CAP_ID_MSI: i32 = 0x05;
const MSI_ENABLE: u16 = 1;
/// `PCI_CAP_ID_MSIX`, and the bits of its message control.
const CAP_ID_MSIX: i32 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;

/// Size in bytes of a conventional configuration space.
pub const CONFIG_SIZE: usize = 256;
/// Size in bytes of a configuration space with extended capabilities.
pub const EXTENDED_CONFIG_SIZE: usize = 4096;

/// Capabilities in each list at the most.
const MAX_CAPABILITIES: usize = 128;
const NO_SPACE: &str = "there is no configuration space yet";

/// The bus a device is made for: `vfu_pci_type_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PciType {
    /// `VFU_PCI_TYPE_CONVENTIONAL`
    #[default]
    Conventional,
    /// `VFU_PCI_TYPE_PCI_X_1`
    PciX1,
    /// `VFU_PCI_TYPE_PCI_X_2`
    PciX2,
    /// `VFU_PCI_TYPE_EXPRESS`
    Express,
}

impl PciType {
    /// The type with this number in the C API.
    pub fn from_number(number: u32) -> Option<PciType> {
        match number {
            0 => Some(PciType::Conventional),
            1 => Some(PciType::PciX1),
            2 => Some(PciType::PciX2),
            3 => Some(PciType::Express),
            _ => None,
        }
    }

    /// Size of its configuration space in bytes.
    pub fn config_size(self) -> usize {
        if self.has_extended() { EXTENDED_CONFIG_SIZE } else { CONFIG_SIZE }
    }

    fn has_extended(self) -> bool {
        matches!(self, PciType::PciX2 | PciType::Express)
    }
}

/// What a write leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// The device's reset callback is to be called: the client initiated a
    /// function level reset. If it fails, the write fails with its errno.
    FunctionLevelReset,
}

/// The PCI side of a device. Used by one thread at a time.
#[derive(Debug, Default)]
pub struct Pci {
    pci_type: PciType,
    space: Option<ConfigSpace>,
    /// In the order in which they were added; none overlap.
    capabilities: Vec<Capability>,
    realized: bool,
}

impl Pci {
    /// A conventional device without a configuration space.
    pub fn new() -> Pci {
        Pci::default()
    }

    /// Makes the device one of this type, with a zeroed space of its size. The
    /// only header type is 0; the revision is ignored, as the original does.
    ///
    /// `EINVAL` for another header type, `EEXIST` if there is a space already,
    /// `ENOMEM`.
    pub fn init(&mut self, pci_type: PciType, hdr_type: i32, _revision: i32) -> Result<()> {
        Errno::EINVAL.unless(hdr_type == 0, "the type of the header is not 0")?;
        Errno::EEXIST.unless(self.space.is_none(), "there is a configuration space already")?;
        self.space = Some(ConfigSpace::new(pci_type.config_size())?);
        self.pci_type = pci_type;
        Ok(())
    }

    /// The live buffer, if there is one by now. Its address doesn't change any
    /// more.
    pub fn space(&self) -> Option<&ConfigSpace> {
        self.space.as_ref()
    }

    /// The capabilities that were added, in that order.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// Writes the ids into the header. `EINVAL` without a space.
    pub fn set_id(&self, vid: u16, did: u16, ssvid: u16, ssid: u16) -> Result<()> {
        let space = self.space().ok_or(Errno::EINVAL)?;
        space.write_u16(header::VENDOR_ID, vid)?;
        space.write_u16(header::DEVICE_ID, did)?;
        space.write_u16(header::SUBSYSTEM_VENDOR_ID, ssvid)?;
        space.write_u16(header::SUBSYSTEM_ID, ssid)
    }

    /// Writes the class code into the header: base class, sub-class,
    /// programming interface. `EINVAL` without a space.
    pub fn set_class(&self, base: u8, sub: u8, pi: u8) -> Result<()> {
        let space = self.space().ok_or(Errno::EINVAL)?;
        space.write_u8(header::CLASS_BASE, base)?;
        space.write_u8(header::CLASS_SUB, sub)?;
        space.write_u8(header::CLASS_PROG, pi)
    }

    /// Makes a zeroed space if there is none: of 4096 bytes if the config
    /// region was set up with a `size` above 256, else of 256. Returns the size
    /// of the space, which is what the config region's has to be. `ENOMEM`.
    pub fn ensure_space(&mut self, size: usize) -> Result<usize> {
        if let Some(space) = &self.space {
            return Ok(space.len());
        }
        let size = if size > CONFIG_SIZE { EXTENDED_CONFIG_SIZE } else { CONFIG_SIZE };
        self.space = Some(ConfigSpace::new(size)?);
        Ok(size)
    }

    /// The 16-bit register `at` bytes from the start of the first capability of
    /// a kind, if there is one.
    pub fn capability_word(&self, kind: CapabilityKind, at: usize) -> Option<u16> {
        let capability = self.capabilities.iter().find(|capability| capability.kind == kind)?;
        self.space()?.read_u16(capability.offset.checked_add(at)?).ok()
    }

    /// Finishes the header: type bits of the BARs, interrupt pin, and the bit
    /// that says that there are capabilities. `EINVAL` without a space. To be
    /// called once.
    pub fn realize(&mut self, bars: &[Bar; BARS], intx_count: u32) -> Result<()> {
        let space = self.space.as_ref().ok_or(Errno::EINVAL)?;
        for n in 0..BARS {
            let at = header::bar_offset(n);
            space.write_u32(at, space.read_u32(at)? | bar::type_bits(bars, n))?;
        }
        if intx_count != 0 {
            self.set_interrupt_pin(true)?;
        }
        if self.capabilities.iter().any(|c| c.list() == List::Standard) {
            set_status_cap_list(space)?;
        }
        self.realized = true;
        Ok(())
    }

    /// Whether the header was finished.
    pub fn is_realized(&self) -> bool {
        self.realized
    }

    /// A region was set up, once the header was finished: adapts the registers.
    /// `before` and `now` are the BARs and the size of the ROM.
    pub fn adapt(&self, before: (&[Bar; BARS], u64), now: (&[Bar; BARS], u64)) -> Result<()> {
        match &self.space {
            Some(space) if self.realized => header::adapt(space, before, now),
            _ => Ok(()),
        }
    }

    /// The type of interrupt that the capabilities of MSI-X and MSI enable, and
    /// whether the function mask of MSI-X is set.
    pub fn interrupt_state(&self) -> (Option<IrqType>, bool) {
        let control = |id: i32| {
            let at = self.find_capability(false, id).ok()?;
            self.space.as_ref()?.read_u16(at.checked_add(2)?).ok()
        };
        let msix = control(CAP_ID_MSIX).unwrap_or(0);
        let msi = control(CAP_ID_MSI).unwrap_or(0);
        let enabled = match (msix & MSIX_ENABLE != 0, msi & MSI_ENABLE != 0) {
            (true, _) => Some(IrqType::Msix),
            (false, true) => Some(IrqType::Msi),
            (false, false) => None,
        };
        (enabled, msix & MSIX_FUNCTION_MASK != 0)
    }

    /// Says whether the device has an interrupt line: INTA#, or none.
    pub fn set_interrupt_pin(&self, has_line: bool) -> Result<()> {
        self.space.as_ref().ok_or(Errno::EINVAL)?.write_u8(header::INTERRUPT_PIN, has_line.into())
    }

    /// Adds a capability at `pos`, or at a place of the library's choice if
    /// that is 0, and returns its offset. It is linked at the end of its list.
    ///
    /// `flags` are [`CapFlags`]; `config_has_callback` says whether the config
    /// region has a callback. `data(i)` is byte `i` of what to copy, header
    /// first; no byte beyond the capability's size is asked for.
    ///
    /// In this order: `EINVAL` for unknown flags, a callback flag without a
    /// callback, an extended capability on a device that can't have one;
    /// `ENOSPC` if the list has 128 already; `ENOTSUP` for an unknown id;
    /// `EINVAL` if it says a size below that of its header or doesn't end
    /// inside the space, if there is no space, or if `pos` is taken,
    /// misaligned or outside the list's room; `ENOSPC` if no place is found.
    pub fn add_capability(
        &mut self,
        pos: usize,
        flags: i32,
        config_has_callback: bool,
        data: &dyn Fn(usize) -> u8,
    ) -> Result<usize> {
        let flags = CapFlags::from_bits(flags).ok_or_else(|| Errno::EINVAL.because("an unknown flag"))?;
        Errno::EINVAL.unless(
            config_has_callback || !flags.contains(CapFlags::CALLBACK),
            "VFU_CAP_FLAG_CALLBACK, and configuration space has no callback",
        )?;
        let list = if flags.contains(CapFlags::EXTENDED) { List::Extended } else { List::Standard };
        Errno::EINVAL.unless(
            list != List::Extended || self.pci_type.has_extended(),
            "an extended capability, and configuration space has 256 bytes",
        )?;
        let count = self.capabilities.iter().filter(|c| c.list() == list).count();
        Errno::ENOSPC.unless(count < MAX_CAPABILITIES, "there are 128 capabilities already")?;
        let kind = CapabilityKind::of(list, data)?;
        let size = kind.size(data)?;
        let space = self.space.as_ref().ok_or_else(|| Errno::EINVAL.because(NO_SPACE))?;
        Errno::EINVAL.unless(
            pos.checked_add(size).is_some_and(|end| end <= space.len()),
            "it does not end within configuration space",
        )?;
        let place = placement::place(space, &self.capabilities, list, pos, size)?;
        let bytes = memory::collect((0..size).map(data))?;
        memory::reserve(&mut self.capabilities, 1)?;
        space.write(place.offset, &bytes)?;
        list.set_link(space, Some(place.offset), 0)?;
        list.set_link(space, place.previous, place.offset)?;
        if self.realized && list == List::Standard {
            set_status_cap_list(space)?;
        }
        self.capabilities.push(Capability { kind, offset: place.offset, size, flags });
        Ok(place.offset)
    }

    /// The first capability with this id: see
    /// [`find_next_capability`](Pci::find_next_capability).
    pub fn find_capability(&self, extended: bool, id: i32) -> Result<usize> {
        self.find_next_capability(extended, 0, id)
    }

    /// Offset of the next capability with this id behind the one at `pos`, or
    /// of the first one if `pos` is 0, in the list as it stands in the buffer.
    ///
    /// `EINVAL` if `pos`, or a link on the way, leads out of the space, or if
    /// there is no space; `ENOENT` if there is none, also if no capability of
    /// the list starts at `pos`.
    pub fn find_next_capability(&self, extended: bool, pos: usize, id: i32) -> Result<usize> {
        let list = if extended { List::Extended } else { List::Standard };
        let space = self.space().ok_or_else(|| Errno::EINVAL.because(NO_SPACE))?;
        Errno::EINVAL
            .unless(!list.is_outside(space, pos), "the position is outside of configuration space")?;
        let mut behind_pos = pos == 0;
        for at in Chain::new(space, list)? {
            let at = at?;
            let byte = |i| space.read_u8(at + i).unwrap_or(0);
            if behind_pos && i32::from(list.id(&byte)) == id {
                return Ok(at);
            }
            behind_pos |= at == pos;
        }
        Err(Errno::ENOENT)
    }
}

fn set_status_cap_list(space: &ConfigSpace) -> Result<()> {
    space.write_u16(header::STATUS, space.read_u16(header::STATUS)? | header::STATUS_CAP_LIST)
}
