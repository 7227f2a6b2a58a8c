//! Whose sockets they are, in a program that forks.

/// The process that made something. A child has descriptors of the same sockets,
/// and may do nothing to these but close its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(u32);

impl Process {
    /// The process that this runs in.
    pub fn current() -> Process {
        Process(std::process::id())
    }

    pub fn is_current(self) -> bool {
        self == Process::current()
    }
}
