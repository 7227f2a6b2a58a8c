//! The modules of the library's `src/dma`, but `guard`, `sizes`, `sync` and
//! `zeroed`,
//! which are here.

#[path = "../../../src/dma/bitmap.rs"]
mod bitmap;
#[path = "../../../src/dma/chunked.rs"]
mod chunked;
#[path = "../../../src/dma/dirty.rs"]
mod dirty;
#[path = "../../../src/dma/facts.rs"]
mod facts;
#[path = "../../../src/dma/file.rs"]
mod file;
mod guard;
#[path = "../../../src/dma/hint.rs"]
mod hint;
#[path = "../../../src/dma/index.rs"]
mod index;
#[path = "../../../src/dma/logging.rs"]
mod logging;
#[path = "../../../src/dma/mapping.rs"]
mod mapping;
#[path = "../../../src/dma/region.rs"]
mod region;
#[path = "../../../src/dma/report.rs"]
mod report;
#[path = "../../../src/dma/sgl.rs"]
mod sgl;
#[path = "../../../src/dma/shift.rs"]
mod shift;
mod sizes;
#[path = "../../../src/dma/slots.rs"]
mod slots;
#[path = "../../../src/dma/space.rs"]
mod space;
mod sync;
mod zeroed;

#[cfg(test)]
mod models;
