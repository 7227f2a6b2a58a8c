//! The records there are. Numbers and fields are for ever: what is added stands at
//! the end, as an optional field or as another record.
//!
//! Where a record names a descriptor, that is its position among those that came
//! with the image; [`NO_FD`] is none.

use super::codec::{Field, Reader, Writer};
use crate::wire::Result;

/// No descriptor.
pub const NO_FD: u32 = u32::MAX;

macro_rules! records {
    ($(
        $(#[$about:meta])*
        $name:ident = $kind:literal $must:ident {
            $( $(#[$says:meta])* $field:ident: $type:ty, )*
        }
    )*) => {
        $(
            $(#[$about])*
            #[derive(Clone, Debug, Default, PartialEq, Eq)]
            pub struct $name {
                $( $(#[$says])* pub $field: $type, )*
            }
        )*

        /// Any record.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each is a structure of its name")]
        pub enum Record {
            $( $name($name), )*
        }

        $(
            impl From<$name> for Record {
                fn from(record: $name) -> Record {
                    Record::$name(record)
                }
            }
        )*

        impl Record {
            /// Its type, and whether who reads it has to understand it.
            pub(super) fn kind(&self) -> (u16, bool) {
                match self {
                    $( Record::$name(_) => ($kind, stringify!($must).len() == "must".len()), )*
                }
            }

            pub(super) fn put_fields(&self, out: &mut Writer<'_>) -> Result<()> {
                match self {
                    $( Record::$name(record) => { $( record.$field.put(out)?; )* } )*
                }
                Ok(())
            }

            /// The record of this type; `None` if there is no such type.
            pub(super) fn take_fields(kind: u16, from: &mut Reader<'_>) -> Result<Option<Record>> {
                Ok(match kind {
                    $( $kind => Some(Record::$name($name { $( $field: <$type as Field>::take(from)?, )* })), )*
                    _ => None,
                })
            }

            /// One of each type, with nothing in it.
            #[cfg(test)]
            pub(super) fn all() -> Vec<Record> {
                vec![ $( $name::default().into(), )* ]
            }
        }
    };
}

records! {
    /// What the device is as a whole.
    Device = 1 must {
        /// Bytes of configuration space.
        config_size: u64,
        /// How many interrupts of each type it has, by the type's index.
        irq_counts: Vec<u32>,
        /// Interrupts that cannot be delivered are kept.
        keeps_irqs: bool,
        /// It does DMA.
        does_dma: bool,
        /// With so many regions at the most.
        max_dma_regions: u64,
        /// It can migrate.
        can_migrate: bool,
        /// What it says of its state is not what it says when it migrates.
        has_own_state: bool,
    }

    /// A region that is set up.
    Region = 2 must {
        /// `VFIO_PCI_*_REGION_INDEX`
        index: u32,
        /// Bytes.
        size: u64,
        /// `VFU_REGION_FLAG_*`
        flags: u32,
        /// What the client may map.
        fd: u32,
        /// Where the region starts in it, in bytes.
        offset: u64,
        /// The parts that may be mapped: offset and size of one after the other.
        areas: Vec<u64>,
    }

    /// A capability that was added.
    Capability = 3 must {
        /// Where it stands in configuration space.
        offset: u64,
        /// Bytes.
        size: u64,
        /// Its id.
        id: u32,
        /// `VFU_CAP_FLAG_*`
        flags: u32,
    }

    /// All of configuration space.
    Config = 4 must {
        /// Its bytes.
        bytes: Vec<u8>,
    }

    /// An eventfd for writes to a region.
    IoEventfd = 5 must {
        /// The region's index.
        region: u32,
        /// The eventfd.
        fd: u32,
        /// Where in the region.
        gpa_offset: u64,
        /// Bytes.
        size: u32,
        /// As the device gave it.
        flags: u32,
        /// As the device gave it.
        datamatch: u64,
    }

    /// A descriptor of the device's own.
    NamedFd = 6 must {
        /// The descriptor.
        fd: u32,
        /// The device's name for it.
        name: Vec<u8>,
    }

    /// A socket that listens.
    Listener = 16 must {
        /// Not for clients, but for processes that want to take over.
        is_control: bool,
        /// The socket.
        fd: u32,
        /// Its path, which is removed with it; empty if that is not ours to do.
        path: Vec<u8>,
        /// What was bound there, as stat(2) has it: device and inode.
        bound: Vec<u64>,
    }

    /// What is known of the client.
    Client = 17 must {
        /// Its version message has been agreed to.
        is_attached: bool,
        /// Nobody has been told yet that the one before was lost.
        loss_unreported: bool,
        /// It has offered memory before DMA was set up.
        memory_disregarded: bool,
        /// `max_msg_fds`
        max_msg_fds: u32,
        /// The same for eventfds of regions.
        max_io_fds: u32,
        /// `max_data_xfer_size`
        max_data_xfer_size: u64,
        /// `migration.pgsize`, as the bits of a number with a sign.
        migration_pgsize: Option<u64>,
        /// `twin_socket.supported`
        twin_socket: bool,
        /// It proposed `pgsizes`.
        pgsizes: bool,
        /// `max_dma_maps`, as the bits of a number with a sign.
        max_dma_maps: Option<u64>,
        /// `write_multiple`
        write_multiple: bool,
    }

    /// A socket of the connection, and what came in on it and is not used. The first
    /// is the main one, the second its twin.
    Channel = 18 must {
        /// The socket.
        fd: u32,
        /// Bytes that arrived and are not used, of what is not large.
        bytes: Vec<u8>,
        /// Bytes still to come that are to be dropped.
        skip: u64,
        /// Position in the stream of the next byte to be used.
        used: u64,
        /// The peer will send no more.
        ended: bool,
        /// A message that is too large for the buffer and comes before what is in it:
        /// header and what has arrived of its payload.
        large: Vec<u8>,
    }

    /// Descriptors that came in on the socket whose record stands before, and wait for
    /// their message.
    Parcel = 19 must {
        /// Where the message starts in the stream that they belong to.
        owner: u64,
        /// The descriptors.
        fds: Vec<u32>,
        /// Some are missing: the errno that the message is refused with.
        missing: Option<u32>,
        /// It is not known yet whose they are: the bounds of what they came with, and
        /// the message that has them if the owner cannot.
        open: Vec<u64>,
    }

    /// A command that arrived while an answer was awaited.
    Queued = 20 must {
        /// The message.
        message: Vec<u8>,
        /// Its descriptors.
        fds: Vec<u32>,
        /// As in [`Parcel`].
        missing: Option<u32>,
    }

    /// What is unsent, in order.
    Unsent = 21 must {
        /// For the twin socket.
        is_twin: bool,
        /// Its bytes.
        bytes: Vec<u8>,
        /// Descriptors that go with the first of them.
        fds: Vec<u32>,
        /// The header of the request that it is the whole reply to, if it can still be
        /// replaced by another.
        request: Vec<u8>,
    }

    /// The rest of a reply that is made as it is sent: a report of dirty pages.
    Report = 22 must {
        /// Bytes that are still to be added.
        more: u64,
        /// The first address of what is not reported yet.
        iova: u64,
        /// Bytes from there.
        length: u64,
        /// The page size of the report.
        page_size: u64,
    }

    /// Commands of ours that are not answered yet.
    Unanswered = 23 must {
        /// Their ids.
        ids: Vec<u16>,
    }

    /// A DMA region.
    DmaRegion = 24 must {
        /// First address.
        iova: u64,
        /// Bytes.
        size: u64,
        /// `PROT_READ`, `PROT_WRITE`
        prot: u32,
        /// By messages (0), mapped (1), by file I/O (2).
        access: u32,
        /// The descriptor; the same for regions of the same open file.
        fd: u32,
        /// Where the region starts in it, in bytes.
        offset: u64,
    }

    /// Writes are logged.
    Logging = 25 must {
        /// Bytes.
        page_size: u64,
        /// First and last address of one range after the other; none if everything is
        /// logged.
        ranges: Vec<u64>,
    }

    /// Pages of a DMA region that were written to and are not reported yet.
    Dirty = 26 must {
        /// The region's first address.
        iova: u64,
        /// The first page of these, a multiple of 64.
        first: u64,
        /// A bit for each from there on.
        words: Vec<u64>,
    }

    /// A vector that is not as it is at first.
    Vector = 27 must {
        /// The interrupt type's index.
        kind: u32,
        /// Its number.
        number: u32,
        /// Its eventfd.
        fd: u32,
        /// The client masked it.
        masked: bool,
        /// An interrupt waits.
        pending: bool,
    }

    /// The state of migration that the client sees.
    Migration = 28 must {
        /// `VFIO_DEVICE_STATE_*`
        state: u32,
    }

    /// What the device itself has to say; one after the other makes up the whole.
    DeviceData = 29 must {
        /// Its bytes.
        bytes: Vec<u8>,
    }

    /// Which DMA regions of the image that went ahead are still there. In front of all
    /// others, which are new.
    Kept = 30 must {
        /// The place of a region in that image, and how many from there on, one after the
        /// other, in ascending order.
        regions: Vec<u64>,
    }

    /// A DMA region that has lost memory.
    Lost = 31 must {
        /// The region's first address.
        iova: u64,
        /// Bytes from there to where that was noticed first.
        offset: u64,
    }
}
