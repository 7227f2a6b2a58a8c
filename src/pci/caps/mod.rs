//! What a client's write to each kind of capability does.
//!
//! Every handler gets the offset of its capability (`base`), the offset in it
//! at which the write starts (`at`) and the bytes, which end inside it.

pub(super) mod express;
mod msi;
mod msix;
mod pm;
mod vendor;

use super::Effect;
use super::capability::{CapFlags, Capability, CapabilityKind};
use super::space::ConfigSpace;
use crate::wire::{Errno, Result};

/// The longest capability that has rules for its bytes.
const MAX_RULES: usize = 60;

/// What a write does to one byte of a capability.
#[derive(Clone, Copy)]
struct ByteRule {
    /// The bits that are stored.
    stored: u8,
    /// The bits that writing 1 clears.
    clear: u8,
}

impl ByteRule {
    /// The byte doesn't change.
    const READ_ONLY: ByteRule = ByteRule::stored(0);

    const fn stored(bits: u8) -> ByteRule {
        ByteRule { stored: bits, clear: 0 }
    }

    const fn write_one_to_clear(bits: u8) -> ByteRule {
        ByteRule { stored: 0, clear: bits }
    }

    fn apply(self, old: u8, written: u8) -> u8 {
        (old & !self.stored | written & self.stored) & !(written & self.clear)
    }
}

/// Why a write is refused.
const READ_ONLY: &str = "that part of the capability cannot be written";

/// Writes `data` at `offset`, an offset in configuration space, of
/// `capability`.
pub fn write(space: &ConfigSpace, capability: &Capability, offset: usize, data: &[u8]) -> Result<Effect> {
    let base = capability.offset;
    let at = offset.checked_sub(base).ok_or(Errno::EINVAL)?;
    if at.checked_add(data.len()).is_none_or(|end| end > capability.size) {
        return Err(Errno::EINVAL);
    }
    if capability.flags.contains(CapFlags::READONLY) || at < capability.kind.header_len() {
        return Err(Errno::EPERM.because(READ_ONLY));
    }
    let written = match capability.kind {
        CapabilityKind::Express => return express::write(space, base, at, data),
        CapabilityKind::PowerManagement => pm::write(space, base, at, data),
        CapabilityKind::Msi => msi::write(space, base, at, data),
        CapabilityKind::MsiX => msix::write(space, base, at, data),
        CapabilityKind::Vendor | CapabilityKind::ExtendedVendor => vendor::write(space, base, at, data),
        CapabilityKind::SerialNumber => Err(Errno::EPERM.because(READ_ONLY)),
    };
    written.map(|()| Effect::None)
}

/// Merges `data` into the bytes from `at` on, each by its rule in `rules`.
fn write_by_rules(
    space: &ConfigSpace,
    base: usize,
    at: usize,
    data: &[u8],
    rules: &[ByteRule],
) -> Result<()> {
    let rules = rules.get(at..).filter(|r| r.len() >= data.len()).ok_or(Errno::EINVAL)?;
    let (mut old, mut new) = ([0; MAX_RULES], [0; MAX_RULES]);
    let old = old.get_mut(..data.len()).ok_or(Errno::EINVAL)?;
    let new = new.get_mut(..data.len()).ok_or(Errno::EINVAL)?;
    space.read(base + at, old)?;
    for (((new, old), written), rule) in new.iter_mut().zip(&*old).zip(data).zip(rules) {
        *new = rule.apply(*old, *written);
    }
    if new != old { space.write(base + at, new) } else { Ok(()) }
}

/// The byte which `data`, written at `at`, brings to `register`; none if it
/// doesn't reach it.
fn byte_for(register: usize, at: usize, data: &[u8]) -> Option<u8> {
    register.checked_sub(at).and_then(|i| data.get(i)).copied()
}
