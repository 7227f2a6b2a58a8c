//! The guest's address space: which of the client's memory is mapped where, how
//! the device gets at it, and which pages it wrote.
//!
//! [`AddressSpace`] is the whole of it. Its regions live in slots that are
//! never freed while it lives (`slots`, `region`), found through a sorted
//! index that readers search without a lock (`index`, `shift`), after a look at the
//! region their thread used last (`hint`). C code holds scatter-gather entries,
//! which name a slot and its generation (`sgl`) or copy by address (`copy`). Dirty pages are bits in
//! bitmaps of the regions (`bitmap`, `dirty`), reported at any page size
//! (`logging`, `report`). Descriptors are shared by all address spaces of the
//! process (`file`, `mapping`); what is asked of them does not wait (`facts`). Memory that
//! its client takes away is replaced, if the program asked for that (`guard`). What
//! threads share is made of `sync`, in numbers of `sizes` and memory of `zeroed`,
//! from the first region on: a space without any is small. When the last of many
//! goes, so does this memory; its addresses stay, and read as zero.
//!
//! Nothing here knows of sockets: what is reached by messages is told apart
//! ([`SgRange::access`]) and left to the caller.

mod bitmap;
mod chunked;
mod copy;
mod dirty;
mod facts;
mod file;
mod guard;
mod handover;
mod hint;
mod index;
mod logging;
mod mapping;
mod region;
mod report;
mod sgl;
mod shift;
mod sizes;
mod slots;
mod space;
mod sync;
mod zeroed;

#[cfg(test)]
mod tests;

pub use copy::DmaRegion;
pub use guard::install as install_guard;
pub use handover::{KnownFile, RegionParts};
pub use region::{Access, DmaInfo, Prot, RegionId};
pub use sgl::{SgEntry, SgRange, Translation};
pub use space::{AddressSpace, Loss, MAX_REGION_SIZE, MapRequest, Mapped};
