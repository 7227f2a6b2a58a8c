//! A grammar of images: most make sense.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use arbitrary::{Arbitrary, Result, Unstructured};
use vfio_user::handover::{Kind, Record, Records};

use super::Others;
use super::draft::{device, memory, state};

/// Numbers of descriptors: the sockets, and from [`POOL`] on all kinds.
pub const CLIENT: u8 = 0;
pub const TWIN: u8 = 1;
pub const LISTENER: u8 = 2;
pub const CONTROL: u8 = 3;
pub const POOL: u8 = 4;
pub const MEMORY: u8 = POOL + 1;
pub const EVENT: u8 = POOL + 3;

/// An input that begins with this is images as they are; others are made.
const AS_IT_IS: u8 = 0xff;

enum Fd {
    Number(u8),
    Own(OwnedFd),
}

/// An image, and what is said of it.
pub struct Image {
    pub kind: Kind,
    pub bytes: Vec<u8>,
    fds: Vec<Fd>,
    /// How many descriptors are said to come with it, if not as many as do.
    pub says: Option<usize>,
    /// How many of them come with the image itself.
    pub split: usize,
    pub is_sealed: bool,
}

impl Image {
    pub fn received(kind: Kind, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Image {
        let fds = fds.into_iter().map(Fd::Own).collect();
        Image { kind, bytes, fds, says: None, split: usize::MAX, is_sealed: true }
    }

    pub fn made(kind: Kind, bytes: Vec<u8>, fds: Vec<u8>) -> Image {
        let fds = fds.into_iter().map(Fd::Number).collect();
        Image { kind, bytes, fds, says: None, split: usize::MAX, is_sealed: true }
    }

    pub fn fds(&self, others: &Others) -> Vec<RawFd> {
        let number = |fd: &Fd| match fd {
            Fd::Number(number) => others.get(*number),
            Fd::Own(fd) => fd.as_raw_fd(),
        };
        self.fds.iter().map(number).collect()
    }

    /// All records, as far as they can be read.
    pub fn records(&self) -> Vec<Record> {
        Records::of(&self.bytes).map(|records| records.flatten().collect()).unwrap_or_default()
    }
}

/// Whether the device of an image does DMA.
fn does_dma(image: &Image) -> bool {
    image.records().iter().any(|record| matches!(record, Record::Device(device) if device.does_dma))
}

/// All that one process says to another, that wants to take over.
pub struct Offer {
    pub images: Vec<Image>,
    /// It says "yours" in the end.
    pub is_given: bool,
}

impl Offer {
    /// The input is images as they are, each with its length before it; or it says what is in them.
    pub fn new(u: &mut Unstructured) -> Result<Offer> {
        if u8::arbitrary(u)? == AS_IT_IS {
            return Offer::as_it_is(u);
        }
        let device = device(u)?;
        let memory = memory(u)?;
        let state = state(u, &memory, device.config_size())?;
        let mut images: Vec<Image> = Vec::new();
        for (kind, draft) in [(Kind::Device, device), (Kind::Memory, memory), (Kind::State, state)] {
            let image = draft.spoilt(u)?.image(kind, u)?;
            // Of memory nobody asks who does no DMA.
            if kind != Kind::Memory || does_dma(&images[0]) {
                images.push(image);
            }
        }
        Ok(Offer { images, is_given: u8::arbitrary(u)? < 250 })
    }

    /// Whether the device that is offered does DMA.
    pub fn does_dma(&self) -> bool {
        does_dma(&self.images[0])
    }

    fn as_it_is(u: &mut Unstructured) -> Result<Offer> {
        let piece = |u: &mut Unstructured| -> Result<Vec<u8>> {
            let length = usize::from(u16::arbitrary(u)?).min(u.len());
            Ok(u.bytes(length)?.to_vec())
        };
        // In the order in which a context names them.
        let all = vec![LISTENER, CONTROL, CLIENT, TWIN, MEMORY, EVENT, EVENT, MEMORY];
        let device = Image::made(Kind::Device, piece(u)?, vec![MEMORY, EVENT]);
        let memory = Image::made(Kind::Memory, piece(u)?, vec![MEMORY, MEMORY]);
        let state = Image::made(Kind::State, piece(u)?, all);
        Ok(Offer { images: vec![device, memory, state], is_given: true })
    }
}
