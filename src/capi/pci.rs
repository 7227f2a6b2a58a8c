//! PCI configuration space and capabilities.

use std::ffi::{c_int, c_void};

use libc::{size_t, ssize_t};

use super::guard::Answer;
use super::{PciConfigSpace, RawPciType, cast, guard, vfu_ctx_t};
use crate::pci::PciType;
use crate::wire::{Errno, Result};

/// Makes the configuration space of a PCI device, all zero.
///
/// @vfu_ctx: the context
/// @pci_type: decides the size: 256 or 4096 bytes
/// @hdr_type: 0 (PCI_HEADER_TYPE_NORMAL)
/// @revision: not used; write the revision into the configuration space
///
/// To be called before vfu_realize_ctx().
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns 0, or -1 and sets errno:
///
///   EINVAL   no such type, another type of header
///   EEXIST   there is a configuration space already
///   ENOMEM   no memory
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_pci_init(
    vfu_ctx: *mut vfu_ctx_t,
    pci_type: RawPciType,
    hdr_type: c_int,
    revision: c_int,
) -> c_int {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfu_pci_init", |ctx| {
            let kind = PciType::from_number(pci_type);
            let kind = kind.ok_or_else(|| Errno::EINVAL.because("there is no such type of device"))?;
            ctx.pci_init(kind, hdr_type, revision).map(|()| 0)
        })
    }
}

/// Sets the identification of the device. Ignored before vfu_pci_init().
///
/// @vfu_ctx: the context
/// @vid: vendor
/// @did: device
/// @ssvid: subsystem vendor
/// @ssid: subsystem
///
/// Threads: on the thread that uses the context, see the top of this file.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_pci_set_id(
    vfu_ctx: *mut vfu_ctx_t,
    vid: u16,
    did: u16,
    ssvid: u16,
    ssid: u16,
) {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfu_pci_set_id", |ctx| {
            ctx.pci_set_id(vid, did, ssvid, ssid);
            Ok(())
        })
    }
}

/// Sets the class code of the device. Ignored before vfu_pci_init().
///
/// @vfu_ctx: the context
/// @base: base class
/// @sub: sub-class
/// @pi: programming interface
///
/// Threads: on the thread that uses the context, see the top of this file.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_pci_set_class(vfu_ctx: *mut vfu_ctx_t, base: u8, sub: u8, pi: u8) {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter(vfu_ctx, "vfu_pci_set_class", |ctx| {
            ctx.pci_set_class(base, sub, pi);
            Ok(())
        })
    }
}

/// Returns the configuration space itself, not a copy: what the client reads and
/// writes. The device may read and write it at any time on the thread that runs
/// the context. NULL before vfu_pci_init() or vfu_realize_ctx() has made it.
///
/// @vfu_ctx: the context
///
/// The memory is the library's and goes with the context.
///
/// Threads: on the thread that uses the context, see the top of this file.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_pci_get_config_space(vfu_ctx: *mut vfu_ctx_t) -> *mut PciConfigSpace {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        guard::enter_silent(vfu_ctx, "vfu_pci_get_config_space", |ctx| {
            let space = ctx.with_config_space(|space| space.as_ptr());
            Ok(space.unwrap_or(std::ptr::null_mut()))
        })
    }
}

/// Adds a capability to the configuration space.
///
/// @vfu_ctx: the context
/// @pos: where to put it, a multiple of 4: from 0x40 to 0xff, an extended one
///       from 0x100 on, where the first must be; 0: where there is room
/// @flags: VFU_CAP_FLAG_*
/// @data: the capability, from its header on; copied. Its size is that of the
///        structure in <pci_caps/...>, or for a vendor-specific one what its
///        size field says. The pointer to the next capability is set by the
///        library.
///
/// These are known: power management, MSI, MSI-X, PCI Express and
/// vendor-specific; extended: device serial number and vendor-specific. Writes of
/// the client to them do what the PCI specifications say, to vendor-specific ones
/// they change the bytes.
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns the offset of the capability, or -1 and sets errno:
///
///   EINVAL    an unknown flag; VFU_CAP_FLAG_CALLBACK, but the configuration
///             space region has no callback; VFU_CAP_FLAG_EXTENDED, but the
///             configuration space has 256 bytes; a position that is wrong or
///             taken; a vendor-specific capability that is smaller than its
///             header; data is NULL
///   ENOTSUP   an unknown capability
///   ENOSPC    no room; there are 128 capabilities of this kind already
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_pci_add_capability(
    vfu_ctx: *mut vfu_ctx_t,
    pos: size_t,
    flags: c_int,
    data: *mut c_void,
) -> ssize_t {
    // SAFETY: C's promises: the handle is NULL or a live context, data NULL or as
    // long as the capability in it says.
    unsafe {
        let call = format_args!("vfu_pci_add_capability: position {pos:#x}, flags {flags:#x}");
        guard::enter_saying(vfu_ctx, "vfu_pci_add_capability", call, |ctx| {
            let bytes = cast::bytes(data)?;
            let offset = ctx.pci_add_capability(pos, flags, &bytes)?;
            Ok(offset as ssize_t)
        })
    }
}

/// Finds the first capability of a kind.
///
/// @vfu_ctx: the context
/// @extended: look among the extended ones
/// @cap_id: PCI_CAP_ID_* or PCI_EXT_CAP_ID_*
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns its offset, or 0 and sets errno:
///
///   ENOENT   there is none
///   EINVAL   there is no configuration space
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_pci_find_capability(
    vfu_ctx: *mut vfu_ctx_t,
    extended: bool,
    cap_id: c_int,
) -> size_t {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        let call = format_args!("vfu_pci_find_capability: id {cap_id:#x}");
        guard::enter_saying(vfu_ctx, "vfu_pci_find_capability", call, |ctx| {
            found(ctx.pci_find_capability(extended, cap_id))
        })
    }
}

/// Finds the next capability of a kind.
///
/// @vfu_ctx: the context
/// @extended: look among the extended ones
/// @pos: offset of the capability to start behind; 0: from the first on
/// @cap_id: PCI_CAP_ID_* or PCI_EXT_CAP_ID_*
///
/// Threads: on the thread that uses the context, see the top of this file.
///
/// Returns its offset, or 0 and sets errno:
///
///   ENOENT   there is none
///   EINVAL   pos is outside of the configuration space, or there is none
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vfu_pci_find_next_capability(
    vfu_ctx: *mut vfu_ctx_t,
    extended: bool,
    pos: size_t,
    cap_id: c_int,
) -> size_t {
    // SAFETY: C's promise for every handle: NULL or a live context.
    unsafe {
        let call = format_args!("vfu_pci_find_next_capability: id {cap_id:#x}, behind {pos:#x}");
        guard::enter_saying(vfu_ctx, "vfu_pci_find_next_capability", call, |ctx| {
            found(ctx.pci_find_next_capability(extended, pos, cap_id))
        })
    }
}

/// That there is none is an answer.
fn found(offset: Result<usize>) -> Result<Answer<usize>> {
    match offset {
        Ok(offset) => Ok(offset.into()),
        Err(Errno::ENOENT) => Ok(Answer::no(Errno::ENOENT)),
        Err(errno) => Err(errno),
    }
}
