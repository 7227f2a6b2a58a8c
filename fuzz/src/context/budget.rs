//! What one input may cost, and what it may leave behind.
//!
//! The bounds are those of the threat page, taken widely: a sanitizer makes all
//! slower, and processors are shared. They tell apart what is bounded and what
//! is not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};

use crate::ledger;

/// Bytes that a client which has gone, and a context that has, may leave.
const LEFT: isize = 64 << 10;
/// Bytes at any time, with those of the fuzzer's client: half of what a single
/// reply of the largest kind would take if it were made whole.
const AT_ONCE: isize = 128 << 20;

/// Processor time of the thread that serves, with the device's callbacks: for
/// the context itself, for each message, for each byte either way.
const WHOLE: Duration = Duration::from_secs(2);
const MESSAGE: Duration = Duration::from_millis(10);
const BYTE: Duration = Duration::from_micros(1);
/// Processor time of a single call that does not wait: many times of what the
/// library grants it.
pub const CALL: Duration = Duration::from_secs(1);

/// Descriptors that the process may have. Of these clients must leave an eighth,
/// and half of that even with all that stays.
const DESCRIPTORS: u64 = 512;

/// What went through the sockets of the client that is fuzzed.
static MESSAGES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// A client sent or received so much.
pub fn note_bytes(count: usize) {
    BYTES.fetch_add(count as u64, Ordering::Relaxed);
}

/// A client began a message.
pub fn note_message() {
    MESSAGES.fetch_add(1, Ordering::Relaxed);
}

/// Processor time of this thread.
pub fn time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

/// Memory that is there.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    allocated: isize,
    resident: isize,
}

impl Memory {
    pub fn now() -> Memory {
        Memory { allocated: ledger::allocated(), resident: ledger::resident() }
    }

    /// What is there now is no more than this was.
    pub fn assert_back(self, when: &str) {
        let now = Memory::now();
        let more = now.allocated - self.allocated + now.resident - self.resident;
        assert!(more <= LEFT, "{more} bytes more {when}: {now:?}, {self:?} before");
    }
}

pub struct Budget {
    time: Duration,
    memory: Memory,
    descriptors: usize,
    shared: usize,
}

impl Budget {
    /// Of an input that begins now.
    pub fn new() -> Budget {
        static LIMIT: OnceLock<()> = OnceLock::new();
        LIMIT.get_or_init(|| {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
            setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS.min(hard), hard).expect("a lower limit");
        });
        MESSAGES.store(0, Ordering::Relaxed);
        BYTES.store(0, Ordering::Relaxed);
        ledger::reset_peak();
        Budget {
            descriptors: open_descriptors(),
            shared: ledger::shared(),
            memory: Memory::now(),
            time: time(),
        }
    }

    /// All of the input is done, and nothing of it is used any more.
    pub fn assert_kept(self) {
        let took = time() - self.time;
        let messages = u32::try_from(MESSAGES.load(Ordering::Relaxed)).expect("some");
        let bytes = u32::try_from(BYTES.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let most = WHOLE + MESSAGE * messages + BYTE * bytes;
        assert!(took <= most, "{took:?} for {messages} messages with {bytes} bytes");
        assert_eq!(open_descriptors(), self.descriptors, "descriptors");
        assert_eq!(ledger::shared(), self.shared, "mappings");
        let at_once = ledger::peak() - self.memory.allocated;
        assert!(at_once <= AT_ONCE, "{at_once} bytes at once");
        self.memory.assert_back("after an input");
        // Nor do many inputs leave little each. (The first makes what is made once.)
        static FIRST: OnceLock<Memory> = OnceLock::new();
        FIRST.get_or_init(Memory::now).assert_back("after many inputs");
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}
