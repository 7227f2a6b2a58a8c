//! What stands in the queues. Numbers are little-endian.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Opcodes of admin commands.
mod admin {
    pub const CREATE_IO_SQ: u8 = 0x01;
    pub const CREATE_IO_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const SET_FEATURES: u8 = 0x09;
}

/// Opcodes of I/O commands.
mod io {
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
}

/// The feature that says how many I/O queues there are.
const NUMBER_OF_QUEUES: u32 = 0x07;
/// The pages of a queue follow each other.
const PHYSICALLY_CONTIGUOUS: u32 = 1;
/// A completion queue interrupts.
const INTERRUPTS_ENABLED: u32 = 2;

/// A submission queue entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Command {
    opcode: u8,
    flags: u8,
    /// Command identifier, which the completion repeats.
    cid: u16,
    nsid: u32,
    reserved: u64,
    mptr: u64,
    prp1: u64,
    prp2: u64,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
}

/// Where the data of a command are: the two PRP entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prp(pub u64, pub u64);

/// What Identify tells about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identify {
    /// A namespace.
    Namespace(u32),
    /// The controller.
    Controller,
}

impl Command {
    /// The same command under an identifier.
    pub fn with_cid(self, cid: u16) -> Command {
        Command { cid, ..self }
    }

    /// Identify, into a page.
    pub fn identify(what: Identify, page: u64) -> Command {
        let (nsid, cns) = match what {
            Identify::Namespace(nsid) => (nsid, 0),
            Identify::Controller => (0, 1),
        };
        Command { opcode: admin::IDENTIFY, nsid, prp1: page, cdw10: cns, ..Command::default() }
    }

    /// Set Features: asks for `pairs` I/O queue pairs.
    pub fn number_of_queues(pairs: u16) -> Command {
        let count = u32::from(pairs.saturating_sub(1));
        let cdw11 = count << 16 | count;
        Command { opcode: admin::SET_FEATURES, cdw10: NUMBER_OF_QUEUES, cdw11, ..Command::default() }
    }

    /// Create I/O Completion Queue.
    pub fn create_completion_queue(id: u16, addr: u64, entries: u16, vector: u16) -> Command {
        let cdw11 = u32::from(vector) << 16 | INTERRUPTS_ENABLED | PHYSICALLY_CONTIGUOUS;
        let cdw10 = queue(id, entries);
        Command { opcode: admin::CREATE_IO_CQ, prp1: addr, cdw10, cdw11, ..Command::default() }
    }

    /// Create I/O Submission Queue, whose completions go to the completion
    /// queue of the same number.
    pub fn create_submission_queue(id: u16, addr: u64, entries: u16) -> Command {
        let cdw11 = u32::from(id) << 16 | PHYSICALLY_CONTIGUOUS;
        let cdw10 = queue(id, entries);
        Command { opcode: admin::CREATE_IO_SQ, prp1: addr, cdw10, cdw11, ..Command::default() }
    }

    /// Write of `blocks` blocks from `slba` on.
    pub fn write(nsid: u32, slba: u64, blocks: u64, data: Prp) -> Command {
        Command { opcode: io::WRITE, ..Command::transfer(nsid, slba, blocks, data) }
    }

    /// Read of as many.
    pub fn read(nsid: u32, slba: u64, blocks: u64, data: Prp) -> Command {
        Command { opcode: io::READ, ..Command::transfer(nsid, slba, blocks, data) }
    }

    fn transfer(nsid: u32, slba: u64, blocks: u64, Prp(prp1, prp2): Prp) -> Command {
        let (cdw10, cdw11) = (slba as u32, (slba >> 32) as u32);
        // The number of blocks is told less one, in 16 bits.
        let cdw12 = u32::from(blocks.saturating_sub(1) as u16);
        Command { nsid, prp1, prp2, cdw10, cdw11, cdw12, ..Command::default() }
    }
}

/// Number and size of a queue; the size is told less one.
fn queue(id: u16, entries: u16) -> u32 {
    u32::from(entries.saturating_sub(1)) << 16 | u32::from(id)
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Completion {
    /// What the command has to tell.
    pub result: u32,
    reserved: u32,
    /// How far the controller has read the submission queue.
    pub sq_head: u16,
    /// The submission queue.
    pub sq_id: u16,
    /// Command identifier.
    pub cid: u16,
    status: u16,
}

impl Completion {
    /// Which turn of the ring the entry was written in.
    pub fn phase(&self) -> bool {
        self.status & 1 != 0
    }

    /// Status code type and status code, 0 for success.
    pub fn status(&self) -> u16 {
        self.status >> 1 & 0x7ff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets and bits from the specification.
    #[test]
    fn fields_are_where_the_controller_looks() {
        let command = Command::write(1, 0x5_0000_0003, 8, Prp(0xa000, 0xb000)).with_cid(0x1234);
        let bytes = command.as_bytes();
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[..8], [1, 0, 0x34, 0x12, 1, 0, 0, 0]);
        assert_eq!(bytes[24..40], [0, 0xa0, 0, 0, 0, 0, 0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[40..52], [3, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0]);
        let create = Command::create_completion_queue(2, 0xc000, 64, 3);
        assert_eq!((create.opcode, create.cdw10, create.cdw11), (5, 0x003f_0002, 0x0003_0003));
        let create = Command::create_submission_queue(2, 0xc000, 64);
        assert_eq!((create.opcode, create.cdw10, create.cdw11), (1, 0x003f_0002, 0x0002_0001));
        assert_eq!(Command::number_of_queues(2).cdw11, 0x0001_0001);
    }

    #[test]
    fn a_completion_is_taken_apart() {
        let bytes = [9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 2, 0, 0x34, 0x12, 0x05, 0x81];
        let completion = Completion::read_from_bytes(&bytes).unwrap();
        assert_eq!((completion.result, completion.sq_head, completion.sq_id), (9, 5, 2));
        assert_eq!((completion.cid, completion.phase(), completion.status()), (0x1234, true, 0x082));
    }
}
