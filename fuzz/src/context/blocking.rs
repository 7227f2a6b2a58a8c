//! A context that waits for its client, which acts on a thread of its own. What
//! the client does is settled before it starts, and always ends: so does every
//! call that waits for it.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Mutex, Once, PoisonError};

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use vfio_user::capi::{self, dma_sg_t};

use super::client::Client;
use super::{Pool, Session, messages, neighbour};
use crate::peer::{self, Context, Handle};

/// What interrupts a thread that waits. Nobody else uses it.
const SIGNAL: Signal = Signal::SIGWINCH;
/// A server that takes so long to answer waits for something that it must not
/// wait for.
const PATIENCE_MS: u16 = 10_000;
const MOST_ACTS: usize = 48;
const MOST_CLIENTS: usize = 6;

/// Something that a client does.
enum Act {
    /// Sends bytes, with descriptors of the pool.
    Send {
        bytes: Vec<u8>,
        fds: Vec<u8>,
        /// They start a message, which gets an id like no other's.
        is_new: bool,
    },
    /// Reads what there is.
    Receive,
    /// Reads until everything is answered.
    Wait,
    /// Sends a signal to the thread that serves.
    Interrupt,
    /// Calls what any thread may call.
    Call(u8),
    /// Hangs up, one way or both.
    End(Shutdown),
}

/// A client: how it answers the server's commands is not in here.
struct Plan {
    acts: Vec<Act>,
    max_fds: usize,
}

impl Plan {
    /// One more client. Input that is too short makes one that does less.
    fn new(u: &mut Unstructured) -> Plan {
        let mut plan = Plan { acts: Vec::new(), max_fds: 1 };
        let _ = plan.greet(u);
        while !u.is_empty() && plan.acts.len() < MOST_ACTS && plan.add(u) == Ok(true) {}
        plan
    }

    /// The version message, or what comes in its place.
    fn greet(&mut self, u: &mut Unstructured) -> Result<()> {
        match u8::arbitrary(u)? {
            0..4 => {}
            4..8 => self.message(u)?,
            kind => {
                let (bytes, max_fds) = messages::version(u)?;
                self.max_fds = max_fds;
                let split = if kind < 24 { usize::from(kind) } else { 0 };
                let fds = if kind == 255 { vec![kind] } else { Vec::new() };
                self.split(bytes, fds, split, kind % 2 == 0, false);
            }
        }
        Ok(())
    }

    /// One act more, or the end.
    fn add(&mut self, u: &mut Unstructured) -> Result<bool> {
        match u8::arbitrary(u)? % 64 {
            0..40 => self.message(u)?,
            40..46 => self.acts.push(Act::Wait),
            46 | 47 => self.acts.push(Act::Receive),
            48 => {
                let length = usize::from(u8::arbitrary(u)?);
                let bytes = u.bytes(length.min(u.len()))?.to_vec();
                self.acts.push(Act::Send { bytes, fds: Vec::new(), is_new: false });
            }
            49..52 => self.acts.push(Act::Interrupt),
            52..56 => self.acts.push(Act::Call(u8::arbitrary(u)?)),
            56 => self.acts.push(Act::End(Shutdown::Write)),
            57 => {
                self.acts.push(Act::End(Shutdown::Both));
                return Ok(false);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn message(&mut self, u: &mut Unstructured) -> Result<()> {
        let messages::Message { bytes, fds } = messages::any(u)?;
        let how = u8::arbitrary(u)?;
        let split = if how < 32 { u.choose_index(bytes.len())? } else { 0 };
        self.split(bytes, fds, if split < 2 { 0 } else { split }, how % 2 == 0, true);
        if how >= 192 {
            self.acts.push(Act::Wait);
        }
        Ok(())
    }

    /// A message in two pieces, or in one; the descriptors go with one of them.
    fn split(&mut self, bytes: Vec<u8>, fds: Vec<u8>, at: usize, is_early: bool, is_new: bool) {
        if at == 0 {
            return self.acts.push(Act::Send { bytes, fds, is_new });
        }
        let (early, late) = if is_early { (fds, Vec::new()) } else { (Vec::new(), fds) };
        let (first, second) = bytes.split_at(at);
        self.acts.push(Act::Send { bytes: first.to_vec(), fds: early, is_new });
        self.acts.push(if at.is_multiple_of(4) { Act::Interrupt } else { Act::Receive });
        self.acts.push(Act::Send { bytes: second.to_vec(), fds: late, is_new: false });
    }
}

/// The context, for the client's thread; NULL once it goes.
struct Gate(Mutex<Handle>);

// SAFETY: only functions that any thread may call are called through it.
unsafe impl Sync for Gate {}

impl Gate {
    /// Calls what any thread may call.
    fn call(&self, number: u8) {
        let handle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if handle.is_null() {
            return;
        }
        let mut entry = std::mem::MaybeUninit::<dma_sg_t>::zeroed();
        let mut iov = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let address = (usize::from(number / 2) % 16 * 0x1000) as *mut _;
        // SAFETY: the context is there, and room for one entry. What is found is
        // not touched: it may be unmapped meanwhile.
        unsafe {
            if number.is_multiple_of(2) {
                capi::vfu_irq_trigger(*handle, u32::from(number / 16));
            } else if capi::vfu_addr_to_sgl(*handle, address, 0x800, entry.as_mut_ptr(), 1, 3) == 1 {
                let mappable = capi::vfu_sg_is_mappable(*handle, entry.as_mut_ptr());
                let outcome = capi::vfu_sgl_get(*handle, entry.as_mut_ptr(), &mut iov, 1, 0);
                assert!(mappable || outcome == -1);
                capi::vfu_sgl_mark_dirty(*handle, entry.as_mut_ptr(), 1);
                if outcome == 0 {
                    capi::vfu_sgl_put(*handle, entry.as_mut_ptr(), &mut iov, 1);
                }
            }
        }
    }

    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = std::ptr::null_mut();
    }
}

/// Does what was planned, and ends the connection.
fn act(mut client: Client, plan: Plan, pool: &Pool, server: Pthread, gate: &Gate) -> Client {
    let own = client.socket.as_raw_fd();
    for act in plan.acts {
        match act {
            Act::Send { bytes, fds, is_new } => {
                let fds: Vec<RawFd> = fds.iter().map(|number| pool.get(*number, own)).collect();
                if is_new {
                    client.send_new(bytes, &fds);
                } else {
                    client.send(&bytes, &fds);
                }
            }
            Act::Receive => drop(client.receive()),
            Act::Wait => wait(&mut client, Client::expects),
            Act::Interrupt => pthread_kill(server, SIGNAL).expect("it serves"),
            Act::Call(number) => gate.call(number),
            Act::End(how) => client.end(how),
        }
    }
    client.end(Shutdown::Write);
    // The server has to hang up, unless it is kept waiting.
    wait(&mut client, |client| !client.is_over && !client.keeps_waiting());
    client.end(Shutdown::Both);
    client
}

/// Reads, and answers the server's commands, while there is something to wait for.
fn wait(client: &mut Client, expects: impl Fn(&Client) -> bool) {
    loop {
        while client.receive() {}
        if !expects(client) {
            return;
        }
        let sockets = client.open_sockets();
        let mut fds: Vec<_> =
            sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        assert_ne!(poll(&mut fds, PollTimeout::from(PATIENCE_MS)), Ok(0), "no answer");
    }
}

/// How serving a client ended.
#[derive(PartialEq)]
enum Served {
    /// It has gone, or was not let in.
    Gone,
    /// The context was destroyed with the client still there.
    Left,
}

impl Session<'_> {
    /// Client after client.
    pub fn run_blocking(&mut self, u: &mut Unstructured) {
        take_signals();
        for _ in 0..MOST_CLIENTS {
            // Nobody is there: nothing is waited for.
            self.expect_failure(capi::vfu_run_ctx, &[libc::ENOTCONN]);
            if self.serve(Plan::new(u)) == Served::Left || u.is_empty() {
                return;
            }
            if u8::arbitrary(u).is_ok_and(|how| how % 4 == 0) && self.call(u).is_err() {
                return;
            }
        }
    }

    /// Serves one client to its end.
    fn serve(&mut self, plan: Plan) -> Served {
        let socket = Context::connect().expect("a context that listens");
        let mut client = Client::new(socket, self.answers.to_vec().into());
        client.max_fds = plan.max_fds;
        let (gate, server, pool) = (Gate(Mutex::new(self.handle())), pthread_self(), self.pool);
        self.device.is_answered.set(true);
        let (served, client) = std::thread::scope(|scope| {
            let gate = &gate;
            let thread = scope.spawn(move || act(client, plan, pool, server, gate));
            let served = match self.attach_blocking() {
                true => self.run_until_gone(),
                false => Served::Gone,
            };
            if served == Served::Left {
                gate.close();
                self.destroy();
            }
            match thread.join() {
                Ok(client) => (served, client),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
        self.device.is_answered.set(false);
        if served == Served::Gone {
            client.assert_served();
        }
        drop(client);
        if served == Served::Gone && std::mem::take(&mut self.is_attached) {
            self.fresh.assert_back("after a client");
        }
        self.is_attached = false;
        served
    }

    fn attach_blocking(&mut self) -> bool {
        let failures = [libc::EINTR, libc::EINVAL, libc::ENOMSG, libc::ECONNRESET];
        loop {
            // SAFETY: the context is there.
            if unsafe { capi::vfu_attach_ctx(self.handle()) } == 0 {
                self.connections += 1;
                self.is_attached = true;
                return true;
            }
            let errno = peer::errno();
            assert!(failures.contains(&errno), "{errno}");
            self.context.assert_whole();
            if errno != libc::EINTR {
                return false;
            }
        }
    }

    /// Calls until the connection is lost; in between, the device does something.
    fn run_until_gone(&mut self) -> Served {
        loop {
            let resets = self.device.lost_resets.get();
            let errno = self.expect_failure(capi::vfu_run_ctx, &[libc::ENOTCONN, libc::EBUSY, libc::EINTR]);
            let lost = self.device.lost_resets.get() - resets;
            assert!(lost <= usize::from(errno == libc::ENOTCONN));
            assert_eq!(errno == libc::EBUSY, self.device.is_quiescing.get());
            if errno == libc::ENOTCONN {
                assert_eq!(self.device.lost_resets.get(), self.connections);
                return Served::Gone;
            }
            let what = self.device.decide();
            match what % 16 {
                1 => return Served::Left,
                2 => self.device.use_memory(self.handle()),
                3 => self.device.use_old_entry(self.handle()),
                // SAFETY: the context is there.
                4 => drop(unsafe { capi::vfu_irq_trigger(self.handle(), u32::from(what / 16)) }),
                // SAFETY: the context is there.
                5 => assert!(unsafe { capi::vfu_get_poll_fd(self.handle()) } >= 0),
                7 => neighbour::ask(),
                6 if errno == libc::EBUSY => {
                    // It is asked for nothing more before it has quiesced.
                    self.expect_failure(capi::vfu_run_ctx, &[libc::EBUSY]);
                }
                _ => {}
            }
            if errno == libc::EBUSY {
                self.quiesced(if what >= 192 { libc::ENOTTY } else { 0 });
            }
        }
    }

    /// Calls a function that fails, with one of these; which one.
    fn expect_failure(&self, function: unsafe extern "C-unwind" fn(Handle) -> i32, errnos: &[i32]) -> i32 {
        // SAFETY: the context is there.
        let outcome = unsafe { function(self.handle()) };
        let errno = peer::errno();
        assert!(outcome == -1 && errnos.contains(&errno), "{outcome} {errno}");
        self.context.assert_whole();
        errno
    }
}

/// A signal that only interrupts.
fn take_signals() {
    static ONCE: Once = Once::new();
    extern "C" fn nothing(_: libc::c_int) {}
    ONCE.call_once(|| {
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(SIGNAL, &action) }.expect("a signal");
    });
}
