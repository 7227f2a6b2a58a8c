//! The types and constants of the C interface, under their C names.
//!
//! The doc comments here and on the functions are the comments of the header:
//! they speak to the C programmer. cbindgen reads this file as text, so values
//! that C code uses in `#if` are written out, not computed.
//!
//! An enumeration is only for the header. A function takes it as the integer
//! that it is in C (`Raw...`), because a caller may pass any number.

#![allow(non_camel_case_types, reason = "these are the names of the C interface")]

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;

use libc::{loff_t, size_t, ssize_t};

use super::callbacks::Callbacks;
use crate::dma::{DmaInfo, SgEntry};
use crate::server::Context;

/// Major version of this interface.
pub const LIB_VFIO_USER_MAJOR: c_int = 0;
/// Minor version of this interface.
pub const LIB_VFIO_USER_MINOR: c_int = 2;

/// A device and its connection. Made by vfu_create_ctx(), released by
/// vfu_destroy_ctx().
pub type vfu_ctx_t = Context<Callbacks>;

/// An IO virtual address: an address as the client (the guest) knows it. Not to
/// be dereferenced; vfu_addr_to_sgl() and vfu_sgl_get() turn it into memory.
pub type vfu_dma_addr_t = *mut c_void;

/// Part of a DMA region of the client, filled in by vfu_addr_to_sgl().
///
/// Only the library knows what is inside. Allocate dma_sg_size() bytes for each
/// entry, aligned as malloc() does; entries may be copied.
pub type dma_sg_t = SgEntry;

/// How a client reaches the device: argument of vfu_create_ctx().
#[repr(C)]
pub enum vfu_trans_t {
    /// A UNIX stream socket.
    VFU_TRANS_SOCK = 0,
    /// Not supported.
    VFU_TRANS_PIPE = 1,
    /// Number of transports.
    VFU_TRANS_MAX = 2,
}

/// What kind of device it is: argument of vfu_create_ctx().
#[repr(C)]
pub enum vfu_dev_type_t {
    /// A PCI device.
    VFU_DEV_TYPE_PCI = 0,
}

/// Flag of vfu_create_ctx(): vfu_attach_ctx() and vfu_run_ctx() never wait.
pub const LIBVFIO_USER_FLAG_ATTACH_NB: c_int = 1 << 0;

/// Takes a log message.
///
/// @vfu_ctx: the context that the message is about
/// @level: how important it is: LOG_ERR to LOG_DEBUG of <syslog.h>
/// @msg: the text: UTF-8, at most 8191 bytes, NUL-terminated, without a newline
///       at the end; the library's, valid until the function returns
///
/// Runs on the thread that called the library, in the middle of that call: it
/// may be a thread that translates addresses or triggers interrupts. errno is
/// put back afterwards. The only functions of this library that it should call
/// are vfu_get_private() and vfu_pci_get_config_space().
pub type vfu_log_fn_t =
    Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, level: c_int, msg: *const c_char)>;

/// Reads or writes a region of the device.
///
/// @vfu_ctx: the context
/// @buf: where to put what is read, or what is to be written; the library's,
///       valid until the function returns, aligned to 8 bytes. For a read it
///       holds leftovers of this client's earlier traffic: fill all of it
/// @count: number of bytes, at least 1 and at most 1 MiB
/// @offset: where in the region; offset + count is within the region's size
/// @is_write: true for a write, false for a read
///
/// Returns the number of bytes read or written, which may be less than count,
/// or -1 and sets errno, which is sent to the client. 0 and every other value
/// is answered EINVAL. For an access to configuration space that returned
/// fewer bytes than count, the function is called again for the rest.
///
/// The client waits, often with all of its virtual CPUs: be quick. The function
/// may call vfu_log(), vfu_irq_trigger(), vfu_create_ioeventfd(), the
/// vfu_pci_find_*() functions, vfu_addr_to_sgl() and all vfu_sgl_*() functions.
/// Beware of vfu_sgl_read() and vfu_sgl_write() by messages here: a client such
/// as QEMU serves them only after it has got the reply to its own request, so
/// they wait out its timeout (5 seconds) and break the connection. Do such DMA
/// after the reply, that is, after vfu_run_ctx() has returned. Memory that
/// vfu_sgl_get() made accessible can be used here without fear.
pub type vfu_region_access_cb_t = Option<
    unsafe extern "C" fn(
        vfu_ctx: *mut vfu_ctx_t,
        buf: *mut c_char,
        count: size_t,
        offset: loff_t,
        is_write: bool,
    ) -> ssize_t,
>;

/// Why the device is reset.
#[repr(C)]
pub enum vfu_reset_type {
    /// The client asked for it, or the device failed to quiesce.
    VFU_RESET_DEVICE = 0,
    /// The client has gone, or the context is being destroyed.
    VFU_RESET_LOST_CONN = 1,
    /// Function level reset, by the PCI Express capability.
    VFU_RESET_PCI_FLR = 2,
}

/// Resets the device.
///
/// @vfu_ctx: the context
/// @type: why
///
/// Returns 0, or -1 and sets errno, which is sent to the client; every positive
/// number counts as 0, every negative one as -1; the result for
/// VFU_RESET_LOST_CONN is not looked at. The device is quiesced. The library
/// resets nothing itself: configuration space, DMA regions and interrupts stay.
/// After a VFU_RESET_DEVICE that succeeded, the migration state is RUNNING, but
/// in PRE_COPY it stays that: guests reset their devices also while they are
/// being migrated, and the client goes on with the stream. So the session goes
/// on, too: what was read before the reset and what is read after it have to be,
/// together, the state after it.
///
/// The function may call what a region access callback may call; for
/// VFU_RESET_LOST_CONN the DMA regions have gone already.
pub type vfu_reset_cb_t =
    Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, r#type: RawResetType) -> c_int>;

/// Asks the device to quiesce: to stop all that relies on what is about to
/// change, DMA above all, on every thread.
///
/// @vfu_ctx: the context
///
/// Called before a DMA region is added or removed, before the device is reset,
/// before its migration state is set, before dirty page logging starts or
/// stops, and after the client has gone. Until the API call that runs the
/// operation returns, the device must not use DMA memory from other threads.
///
/// Returns 0: the device is quiesced; or -1 and sets errno (every positive number
/// counts as 0, every negative one as -1):
///
///   EBUSY    The device needs time, and goes on working meanwhile. It calls
///            vfu_device_quiesced() when it is done; until then vfu_run_ctx()
///            fails with EBUSY. Must not be used for anything else.
///   others   The operation is refused and the client gets this errno. If the
///            client has gone, it is logged and disregarded.
///
/// The function must not call vfu_device_quiesced() itself. It may call what a
/// region access callback may call.
pub type vfu_device_quiesce_cb_t = Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t) -> c_int>;

/// The client can read the region.
pub const VFU_REGION_FLAG_READ: c_int = 1 << 0;
/// The client can write the region.
pub const VFU_REGION_FLAG_WRITE: c_int = 1 << 1;
/// Both.
pub const VFU_REGION_FLAG_RW: c_int = VFU_REGION_FLAG_READ | VFU_REGION_FLAG_WRITE;
/// A memory BAR; without this flag, a BAR of I/O ports.
pub const VFU_REGION_FLAG_MEM: c_int = 1 << 2;
/// Every access to configuration space goes to the callback, the header and the
/// capabilities included, which the library otherwise handles itself.
pub const VFU_REGION_FLAG_ALWAYS_CB: c_int = 1 << 3;
/// A 64-bit memory BAR: an even one, which takes the next BAR for its upper half.
pub const VFU_REGION_FLAG_64_BITS: c_int = 1 << 4;
/// A prefetchable memory BAR.
pub const VFU_REGION_FLAG_PREFETCH: c_int = 1 << 5;
/// All flags of a region.
pub const VFU_REGION_FLAG_MASK: c_int = VFU_REGION_FLAG_READ
    | VFU_REGION_FLAG_WRITE
    | VFU_REGION_FLAG_MEM
    | VFU_REGION_FLAG_ALWAYS_CB
    | VFU_REGION_FLAG_64_BITS
    | VFU_REGION_FLAG_PREFETCH;

/// Regions of a PCI device, the same as VFIO_PCI_*_REGION_INDEX.
#[repr(C)]
#[allow(missing_docs, reason = "the names say it")]
pub enum vfu_pci_dev_region {
    VFU_PCI_DEV_BAR0_REGION_IDX = 0,
    VFU_PCI_DEV_BAR1_REGION_IDX = 1,
    VFU_PCI_DEV_BAR2_REGION_IDX = 2,
    VFU_PCI_DEV_BAR3_REGION_IDX = 3,
    VFU_PCI_DEV_BAR4_REGION_IDX = 4,
    VFU_PCI_DEV_BAR5_REGION_IDX = 5,
    /// Expansion ROM.
    VFU_PCI_DEV_ROM_REGION_IDX = 6,
    /// Configuration space.
    VFU_PCI_DEV_CFG_REGION_IDX = 7,
    VFU_PCI_DEV_VGA_REGION_IDX = 8,
    VFU_PCI_DEV_NUM_REGIONS = 9,
}

/// Regions of a device that is no PCI device. There is no such device today.
#[repr(C)]
#[allow(missing_docs, reason = "the names say it")]
pub enum vfu_generic_dev_region {
    VFU_GENERIC_DEV_MIGR_REGION_IDX = 0,
    VFU_GENERIC_DEV_NUM_REGIONS = 1,
}

/// Types of interrupts, the same as VFIO_PCI_*_IRQ_INDEX.
#[repr(C)]
#[allow(missing_docs, reason = "the names say it")]
pub enum vfu_dev_irq_type {
    /// Legacy interrupt line.
    VFU_DEV_INTX_IRQ = 0,
    VFU_DEV_MSI_IRQ = 1,
    VFU_DEV_MSIX_IRQ = 2,
    /// The device failed for good.
    VFU_DEV_ERR_IRQ = 3,
    /// The device is asked back from the client.
    VFU_DEV_REQ_IRQ = 4,
    VFU_DEV_NUM_IRQS = 5,
}

/// The client masked or unmasked interrupts.
///
/// @vfu_ctx: the context
/// @start: first vector
/// @count: number of vectors
/// @mask: true: masked, false: unmasked
///
/// The library does not hold masked interrupts back: that is up to the device.
/// The function may call what a region access callback may call.
pub type vfu_dev_irq_state_cb_t =
    Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, start: u32, count: u32, mask: bool)>;

/// Suggested max_regions of vfu_setup_device_dma().
pub const LIBVFIO_USER_MAX_DMA_REGIONS: c_int = 1000000;

/// A DMA region, as the header's template declares it.
pub type vfu_dma_info_t = DmaInfo;

/// The client added a DMA region.
///
/// @vfu_ctx: the context
/// @info: the region; the library's, valid until the unregister callback for it
///        returns
///
/// The device is quiesced. The region can be translated and used already. The
/// function may call what a region access callback may call.
pub type vfu_dma_register_cb_t =
    Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, info: *mut vfu_dma_info_t)>;

/// A DMA region goes: the client removed it, or has gone itself.
///
/// @vfu_ctx: the context
/// @info: the region, at the same address as in the register callback
///
/// The device is quiesced. The device must drop every pointer into the region:
/// the region can be translated and used until the function returns, and is
/// unmapped then. The function may call what a region access callback may call.
///
/// One request of the client may remove several regions, in ascending order.
pub type vfu_dma_unregister_cb_t =
    Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, info: *mut vfu_dma_info_t)>;

/// Flag of vfu_sgl_read() and vfu_sgl_write(): use the client's file directly
/// where the region has one, instead of messages.
pub const VFU_SGL_DIRECT_ACCESS: c_int = 1 << 0;

/// State of the device during migration: argument of the transition callback.
///
/// These are not the numbers of the protocol (enum vfio_user_device_mig_state).
#[repr(C)]
pub enum vfu_migr_state_t {
    /// The device is stopped: it changes neither its state nor guest memory.
    VFU_MIGR_STATE_STOP = 0,
    /// The device runs. Every device starts here.
    VFU_MIGR_STATE_RUNNING = 1,
    /// The device is stopped and its state can be read.
    VFU_MIGR_STATE_STOP_AND_COPY = 2,
    /// The device runs and its state can be read.
    VFU_MIGR_STATE_PRE_COPY = 3,
    /// The device is stopped and takes the state of another device.
    VFU_MIGR_STATE_RESUME = 4,
}

/// Value of vfu_migration_callbacks_t.version.
pub const VFU_MIGR_CALLBACKS_VERS: c_int = 2;

/// How a device takes part in live migration.
#[repr(C)]
pub struct vfu_migration_callbacks_t {
    /// VFU_MIGR_CALLBACKS_VERS.
    pub version: c_int,
    /// Brings the device into a state. The library calls this once for each
    /// step of the path from the present state to the one that the client
    /// asked for; the device is quiesced.
    ///
    /// Returns 0, or -1 and sets errno, which is sent to the client. The state
    /// is then that of the last step that succeeded. ENOTRECOVERABLE says that
    /// the device cannot get back into any valid state: its migration state
    /// becomes ERROR, which only a reset of the device ends. Any other value
    /// counts as a failure with EINVAL.
    pub transition: Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, state: RawMigrState) -> c_int>,
    /// Puts the next part of the device's state, at most count bytes, into buf,
    /// in PRE_COPY and STOP_AND_COPY. buf is the library's, valid until the
    /// function returns.
    ///
    /// Returns the number of bytes, 0 if there is no more for now, or -1 and
    /// sets errno, which is sent to the client. More than count is answered
    /// EINVAL.
    pub read_data:
        Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, buf: *mut c_void, count: u64) -> ssize_t>,
    /// Takes the next part of the device's state, count bytes at buf, in
    /// RESUME. buf is the library's, valid until the function returns.
    ///
    /// Returns count, or -1 and sets errno, which is sent to the client. Any
    /// other value is answered EINVAL.
    pub write_data:
        Option<unsafe extern "C" fn(vfu_ctx: *mut vfu_ctx_t, buf: *mut c_void, count: u64) -> ssize_t>,
}

/// Kinds of PCI devices, which differ in the size of configuration space.
#[repr(C)]
pub enum vfu_pci_type_t {
    /// 256 bytes.
    VFU_PCI_TYPE_CONVENTIONAL = 0,
    /// PCI-X mode 1: 256 bytes.
    VFU_PCI_TYPE_PCI_X_1 = 1,
    /// PCI-X mode 2: 4096 bytes.
    VFU_PCI_TYPE_PCI_X_2 = 2,
    /// PCI Express: 4096 bytes.
    VFU_PCI_TYPE_EXPRESS = 3,
}

/// An extended capability, PCI_EXT_CAP_ID_*, at offset 0x100 or above.
pub const VFU_CAP_FLAG_EXTENDED: c_int = 1 << 0;
/// Accesses to the capability go to the callback of the configuration space
/// region, with the offset in configuration space.
pub const VFU_CAP_FLAG_CALLBACK: c_int = 1 << 1;
/// The client cannot write the capability.
pub const VFU_CAP_FLAG_READONLY: c_int = 1 << 2;

/// A `vfu_trans_t` as C passes it.
pub type RawTrans = u32;
/// A `vfu_dev_type_t` as C passes it.
pub type RawDevType = u32;
/// A `vfu_reset_type_t` as C takes it.
pub type RawResetType = u32;
/// An `enum vfu_dev_irq_type` as C passes it.
pub type RawIrqType = u32;
/// A `vfu_migr_state_t` as C takes it.
pub type RawMigrState = u32;
/// A `vfu_pci_type_t` as C passes it.
pub type RawPciType = u32;

/// The bytes of configuration space, a `vfu_pci_config_space_t` of <pci_defs.h>.
pub type PciConfigSpace = u8;

// The structure in the header's template is the one of the DMA room.
const _: () = assert!(
    size_of::<DmaInfo>() == 7 * size_of::<usize>()
        && offset_of!(DmaInfo, iova) == 0
        && offset_of!(DmaInfo, vaddr) == 2 * size_of::<usize>()
        && offset_of!(DmaInfo, mapping) == 3 * size_of::<usize>()
        && offset_of!(DmaInfo, page_size) == 5 * size_of::<usize>()
        && offset_of!(DmaInfo, prot) == 6 * size_of::<usize>()
);

// Callers know the size of an entry by dma_sg_size(), and compile it in.
const _: () = assert!(size_of::<SgEntry>() == 40);
