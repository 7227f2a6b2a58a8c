//! What a descriptor is of, for people.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{FileType, fstat};
use serde::Serialize;

/// The kinds that are told apart, with their numbers in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something else.
    Other = 0,
    /// Anonymous memory, as `memfd_create()` makes it.
    Memfd = 1,
    /// A file, also one in a file system of memory.
    File = 2,
    /// An eventfd.
    Eventfd = 3,
    /// A socket.
    Socket = 4,
    /// An end of a pipe.
    Pipe = 5,
    /// A device.
    Device = 6,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::Other, Kind::Memfd, Kind::File, Kind::Eventfd, Kind::Socket, Kind::Pipe, Kind::Device];

    /// The kind with this number; those of newer files than this program are `Other`.
    pub fn from_number(number: u8) -> Kind {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number).unwrap_or(Kind::Other)
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Other => "other",
            Kind::Memfd => "memfd",
            Kind::File => "file",
            Kind::Eventfd => "eventfd",
            Kind::Socket => "socket",
            Kind::Pipe => "pipe",
            Kind::Device => "device",
        }
    }
}

/// A descriptor that came with a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// What it is of.
    pub kind: Kind,
    /// Its name or path; empty for what has none. 255 bytes at the most.
    pub name: String,
    /// Bytes, of a file or of memory; else 0.
    pub size: u64,
}

impl Descriptor {
    /// Looks at a descriptor.
    pub fn of(fd: BorrowedFd<'_>) -> Descriptor {
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
        let link = link.map(|link| link.to_string_lossy().into_owned()).unwrap_or_default();
        let status = fstat(fd.as_fd()).ok();
        let size = status.map_or(0, |status| u64::try_from(status.st_size).unwrap_or(0));
        let (kind, name) = match status.map(|status| FileType::from_raw_mode(status.st_mode)) {
            Some(FileType::Socket) => (Kind::Socket, ""),
            Some(FileType::Fifo) => (Kind::Pipe, ""),
            Some(FileType::CharacterDevice | FileType::BlockDevice) => (Kind::Device, link.as_str()),
            Some(FileType::RegularFile) => match link.strip_prefix("/memfd:") {
                Some(name) => (Kind::Memfd, name.strip_suffix(" (deleted)").unwrap_or(name)),
                None => (Kind::File, link.as_str()),
            },
            _ if link.starts_with("anon_inode:[eventfd") => (Kind::Eventfd, ""),
            _ => (Kind::Other, link.as_str()),
        };
        let size = if matches!(kind, Kind::Memfd | Kind::File) { size } else { 0 };
        Descriptor { kind, name: bounded(name), size }
    }
}

/// As much of a name as a file has room for.
fn bounded(name: &str) -> String {
    const LONGEST: usize = u8::MAX as usize;
    let end = (0..=LONGEST.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    name.get(..end.unwrap_or(0)).unwrap_or_default().to_string()
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if !self.name.is_empty() {
            write!(f, " {:?}", self.name)?;
        }
        match self.kind {
            Kind::Memfd | Kind::File => write!(f, " of {:#x} bytes", self.size),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_told_apart() {
        let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, 0x3000).unwrap();
        let shown = |fd: BorrowedFd<'_>| Descriptor::of(fd).to_string();
        assert_eq!(shown(memory.as_fd()), "memfd \"guest\" of 0x3000 bytes");
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(shown(event.as_fd()), "eventfd");
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(shown(socket.as_fd()), "socket");
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(shown(null.as_fd()), "device \"/dev/null\"");
        let (pipe, _other) = std::io::pipe().unwrap();
        assert_eq!(shown(pipe.as_fd()), "pipe");
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(5).unwrap();
        assert_eq!(shown(file.as_fd()), format!("file {:?} of 0x5 bytes", file.path().to_str().unwrap()));
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(bounded("name"), "name");
        assert_eq!(bounded(&"ä".repeat(200)), "ä".repeat(127));
    }
}
