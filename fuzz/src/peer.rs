//! Both ends of a connection in one process: a context, made and destroyed by
//! the C functions, and the client's socket.

use std::cell::RefCell;
use std::ffi::{CString, c_int, c_void};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use vfio_user::capi;
use vfio_user::wire::Header;
use zerocopy::{FromBytes, IntoBytes};

pub type Handle = *mut capi::vfu_ctx_t;

/// Size of a header in bytes.
pub const HEADER: usize = 16;

thread_local! {
    /// Where the sockets are; one folder for the process.
    static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

/// Where the context of this name listens.
fn path(name: &str) -> PathBuf {
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| tempfile::tempdir().expect("a folder for the socket"));
        folder.path().join(name)
    })
}

/// A context, destroyed with this.
pub struct Context(pub Handle);

impl Context {
    /// A context that never waits, whose callbacks get `private`.
    pub fn new(private: *mut c_void) -> Context {
        Context::named("s", private, capi::LIBVFIO_USER_FLAG_ATTACH_NB)
    }

    /// A context that waits for its client.
    pub fn blocking(private: *mut c_void) -> Context {
        Context::named("s", private, 0)
    }

    /// A context that can be told from others.
    pub fn named(name: &str, private: *mut c_void, flags: c_int) -> Context {
        let path = path(name);
        let name = CString::new(path.as_os_str().as_bytes()).expect("no NUL in there");
        // SAFETY: a string that ends in NUL, and whatever private is.
        let handle = unsafe { capi::vfu_create_ctx(0, name.as_ptr(), flags, private, 0) };
        assert!(!handle.is_null(), "{}", std::io::Error::last_os_error());
        Context(handle)
    }

    /// Connects a client, which the context has yet to attach.
    pub fn connect() -> std::io::Result<UnixStream> {
        Context::connect_to("s")
    }

    /// The same for the context of this name.
    pub fn connect_to(name: &str) -> std::io::Result<UnixStream> {
        let socket = UnixStream::connect(path(name))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Destroys it now.
    pub fn destroy(&mut self) {
        let handle = std::mem::replace(&mut self.0, std::ptr::null_mut());
        // SAFETY: the last use; NULL, if there was one before, is ignored.
        unsafe { capi::vfu_destroy_ctx(handle) };
    }

    /// No panic was caught.
    pub fn assert_whole(&self) {
        // SAFETY: the context is there.
        assert!(!unsafe { &*self.0 }.is_broken(), "a panic was caught");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// The calling thread's errno.
pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Sets it.
pub fn set_errno(number: i32) {
    // SAFETY: the thread's own errno.
    unsafe { *libc::__errno_location() = number };
}

/// A message of these parts.
pub fn message(msg_id: u16, cmd: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let msg_size = (HEADER + payload.len()) as u32;
    let header = Header { msg_id, cmd, msg_size, flags, error_no: 0 };
    [header.as_bytes(), payload].concat()
}

/// The fields of a structure on the wire, one behind the other.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Reads what there is; whether that was all, ever.
pub fn drain(mut socket: &UnixStream, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 0x4000];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return true,
            Ok(count) => into.extend_from_slice(&buffer[..count]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return e.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// Takes one whole message off the front.
pub fn take_message(bytes: &mut Vec<u8>) -> Option<(Header, Vec<u8>)> {
    let header = Header::read_from_prefix(bytes).ok()?.0;
    let size = header.msg_size as usize;
    assert!(size >= HEADER, "a message of {size} bytes");
    if bytes.len() < size {
        return None;
    }
    let rest = bytes.split_off(size);
    let payload = std::mem::replace(bytes, rest).split_off(HEADER);
    Some((header, payload))
}

/// Sends a small message whole.
pub fn send(mut socket: &UnixStream, bytes: &[u8]) {
    socket.write_all(bytes).expect("room in the socket");
}

/// A version message with this text.
pub fn version(json: &str) -> Vec<u8> {
    let mut payload = words(&[2 << 16]);
    if !json.is_empty() {
        payload.extend_from_slice(json.as_bytes());
        payload.push(0);
    }
    message(0xfeed, 1, 0, &payload)
}
