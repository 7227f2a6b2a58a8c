//! The device's regions.

use std::os::fd::{BorrowedFd, OwnedFd};

use bitflags::bitflags;

use crate::memory;
use crate::pci::Bar;
use crate::wire::{Errno, Result, SparseArea};

/// How many regions a PCI device has.
pub const COUNT: usize = 9;
/// What is wrong with another index.
const NO_REGION: &str = "there is no such region";
/// The last of the regions that are BARs.
const LAST_BAR: usize = 5;
/// Index of the expansion ROM.
pub const ROM: usize = 6;
/// Index of configuration space.
pub const CONFIG: usize = 7;

bitflags! {
    /// `VFU_REGION_FLAG_*`
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// The client may read.
        const READ = 1;
        /// The client may write.
        const WRITE = 1 << 1;
        /// Memory, not I/O ports.
        const MEM = 1 << 2;
        /// The callback gets every access to configuration space.
        const ALWAYS_CB = 1 << 3;
        /// The BAR above holds the upper half of the address.
        const IS_64_BITS = 1 << 4;
        /// Prefetchable.
        const PREFETCH = 1 << 5;
    }
}

/// What a client may map of a region.
#[derive(Debug)]
pub enum Memory {
    /// A descriptor that the context closes when it, or the region, goes.
    Owned(OwnedFd),
    /// One that stays open longer than the context.
    Borrowed(BorrowedFd<'static>),
}

/// What a region is to be, see [`Context::setup_region`](super::Context::setup_region).
#[derive(Debug, Default)]
pub struct RegionConfig<'a> {
    /// Bytes; 0 clears the region.
    pub size: u64,
    /// Of configuration space: the device is called for what is neither in the
    /// header nor in a capability that the context knows. (For accesses to the
    /// other regions it is called in any case.)
    pub has_callback: bool,
    /// What the client may do, and what kind of BAR it is.
    pub flags: RegionFlags,
    /// What a client may map; without, it can't map anything.
    pub memory: Option<Memory>,
    /// The parts of the region that may be mapped, if not all of it.
    pub areas: &'a [SparseArea],
    /// Where the region starts in its memory, in bytes.
    pub offset: u64,
}

/// A region.
#[derive(Debug, Default)]
pub struct Region {
    /// Bytes; 0 for one that is not set up.
    pub size: u64,
    /// See [`RegionConfig::has_callback`].
    pub has_callback: bool,
    /// Empty for one that was never set up.
    pub flags: RegionFlags,
    /// Parts that may be mapped.
    pub areas: Vec<SparseArea>,
    /// What is to be mapped.
    pub memory: Option<Memory>,
    /// Where the region starts in it.
    pub offset: u64,
}

impl Region {
    /// What an access needs to know of it.
    #[inline(always)]
    pub fn access(&self) -> Access {
        Access { size: self.size, has_callback: self.has_callback, flags: self.flags }
    }
}

/// What an access needs to know of a region, copied so that nothing stays
/// borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Bytes.
    pub size: u64,
    /// See [`RegionConfig::has_callback`].
    pub has_callback: bool,
    /// Flags.
    pub flags: RegionFlags,
}

/// All regions.
#[derive(Debug, Default)]
pub struct Regions {
    regions: [Region; COUNT],
}

impl Regions {
    /// The region with this index, or `EINVAL`.
    pub fn get(&self, index: u32) -> Result<&Region> {
        self.regions.get(index as usize).ok_or_else(|| Errno::EINVAL.because(NO_REGION))
    }

    /// What an access needs to know of a region.
    pub fn access(&self, index: u32) -> Result<Access> {
        self.get(index).map(Region::access)
    }

    /// Sets up, replaces or clears a region; see `vfu_setup_region`.
    /// `config_size` is the size of configuration space if that is settled.
    pub fn setup(&mut self, index: u32, config: RegionConfig, config_size: Option<usize>) -> Result<()> {
        let mut new = self.checked(index, config, config_size)?;
        if new.size == 0 {
            new.areas.clear();
        } else if new.memory.is_some() && new.areas.is_empty() {
            new.areas.push(SparseArea { offset: 0, size: new.size });
        }
        let region = self.regions.get_mut(index as usize);
        *region.ok_or(Errno::EINVAL)? = new;
        Ok(())
    }

    fn checked(&self, index: u32, config: RegionConfig, config_size: Option<usize>) -> Result<Region> {
        let flags = config.flags;
        let rules = [
            (flags.intersects(RegionFlags::READ | RegionFlags::WRITE), "neither READ nor WRITE"),
            (config.has_callback || !flags.contains(RegionFlags::ALWAYS_CB), "ALWAYS_CB without a callback"),
            (config.areas.is_empty() || config.memory.is_some(), "parts to be mapped without a descriptor"),
        ];
        rules.into_iter().try_for_each(|(holds, rule)| Errno::EINVAL.unless(holds, rule))?;
        let index = index as usize;
        Errno::EINVAL.unless(index < COUNT, NO_REGION)?;
        let mut size = config.size;
        if index <= LAST_BAR {
            self.check_bar(index, size, flags)?;
        } else if index == CONFIG {
            size = check_config(size, flags, config_size)?;
        }
        let mut areas = Vec::new();
        memory::reserve(&mut areas, config.areas.len())?;
        areas.extend_from_slice(config.areas);
        let fits = |area: &SparseArea| area.offset.checked_add(area.size).is_some_and(|end| end <= size);
        Errno::EINVAL.unless(areas.iter().all(fits), "a part to be mapped ends beyond the region")?;
        Ok(Region {
            size,
            has_callback: config.has_callback,
            flags,
            areas,
            memory: config.memory,
            offset: config.offset,
        })
    }

    fn check_bar(&self, index: usize, size: u64, flags: RegionFlags) -> Result<()> {
        let least = if flags.contains(RegionFlags::MEM) { 16 } else { 4 };
        let is_64 = flags.contains(RegionFlags::IS_64_BITS);
        let neighbour = self.regions.get(index ^ 1).ok_or(Errno::EINVAL)?;
        Errno::EINVAL.unless(size == 0 || size.is_power_of_two(), "the size of a BAR is a power of two")?;
        Errno::EINVAL.unless(size == 0 || size >= least, "a BAR has 16 bytes at least, or 4 of I/O ports")?;
        match index % 2 {
            0 => Errno::EINVAL
                .unless(!is_64 || neighbour.size == 0, "the upper half of the 64-bit BAR is in use"),
            _ if is_64 => Err(Errno::EINVAL.because("a 64-bit BAR has an even number")),
            _ => {
                let free = !neighbour.flags.contains(RegionFlags::IS_64_BITS);
                Errno::EINVAL.unless(free, "it is the upper half of a 64-bit BAR")
            }
        }
    }

    /// Makes sure that configuration space is set up and returns its size.
    pub fn realize_config(&mut self) -> usize {
        let [.., config, _vga] = &mut self.regions;
        if config.size == 0 {
            config.size = 256;
            config.flags |= RegionFlags::READ | RegionFlags::WRITE;
        }
        config.size as usize
    }

    /// Configuration space has been made, with this size.
    pub fn set_config_size(&mut self, size: usize) {
        let [.., config, _vga] = &mut self.regions;
        config.size = size as u64;
        config.flags |= RegionFlags::READ | RegionFlags::WRITE;
    }

    /// The BARs, as configuration space sees them.
    pub fn bars(&self) -> [Bar; 6] {
        let [b0, b1, b2, b3, b4, b5, ..] = &self.regions;
        [b0, b1, b2, b3, b4, b5].map(|region| Bar {
            size: region.size,
            mem: region.flags.contains(RegionFlags::MEM),
            is_64: region.flags.contains(RegionFlags::IS_64_BITS),
            prefetch: region.flags.contains(RegionFlags::PREFETCH),
        })
    }

    /// Size of the expansion ROM.
    pub fn rom_size(&self) -> u64 {
        let [.., rom, _config, _vga] = &self.regions;
        rom.size
    }
}

/// Configuration space is read and written, and is no memory. Its size is not
/// the caller's to say once it is settled; before, it is one of the two that
/// there are, or 0 for the default.
fn check_config(size: u64, flags: RegionFlags, settled: Option<usize>) -> Result<u64> {
    let both = RegionFlags::READ | RegionFlags::WRITE;
    let plain = flags.contains(both) && !flags.contains(RegionFlags::MEM);
    Errno::EINVAL.unless(plain, "configuration space is READ and WRITE, and not MEM")?;
    match (settled, size) {
        (Some(settled), _) => Ok(settled as u64),
        (None, 0 | 256 | 4096) => Ok(size),
        _ => Err(Errno::EINVAL.because("configuration space has 256 or 4096 bytes")),
    }
}
