//! Sizes and counts that bound what is sent and accepted.

/// Largest data transfer that the server accepts, in bytes; advertised as
/// `max_data_xfer_size`. Also what a client that doesn't say is taken to accept.
pub const MAX_DATA_XFER_SIZE: usize = 1 << 20;

/// Size of a message header in bytes.
pub const HEADER_SIZE: usize = 16;

/// Largest message that the server accepts, in bytes: a transfer of the
/// largest size with its header and its region access structure.
pub const MAX_MESSAGE_SIZE: usize = MAX_DATA_XFER_SIZE + HEADER_SIZE + 16;

/// Descriptors that the server says it takes with one message.
pub const SERVER_MAX_MSG_FDS: u32 = 8;

/// Largest `max_msg_fds` accepted from a client.
pub const CLIENT_MAX_MSG_FDS: i64 = 1024;

/// Descriptors a client takes with one message if it doesn't say.
pub const DEFAULT_MAX_MSG_FDS: u32 = 1;

/// Descriptors of ioeventfds that a client is sent with one message if it doesn't
/// say.
pub const DEFAULT_MAX_IO_FDS: u32 = 8;

/// Largest `max_dma_maps` that is ever advertised: QEMU refuses more.
pub const MAX_DMA_MAPS: u64 = 65535;

/// Largest part of a message-mode DMA transfer, in bytes: QEMU never finishes
/// larger replies.
pub const MAX_DMA_CHUNK: usize = 128 << 10;

/// Largest errno believed in a client's reply.
pub const MAX_ERRNO: u32 = 4096;

/// Largest dirty bitmap in one reply, in bytes (the limit of VFIO).
pub const MAX_BITMAP_SIZE: u64 = 256 << 20;

/// Descriptors the kernel passes with one send at the most.
pub const SCM_MAX_FD: usize = 253;
