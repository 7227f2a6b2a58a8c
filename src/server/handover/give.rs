//! The process that has the device: answers one that wants it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::unistd::geteuid;

use super::ahead::Told;
use super::describe::Description;
use crate::handover::{Kind, Message};
use crate::memory::{self, Bytes};
use crate::server::context::Phase;
use crate::server::log::log;
use crate::server::quiesce::Pending;
use crate::server::{Context, Device};
use crate::transport::{Handed, Heard, Listener, Peer, Sent};
use crate::wire::{DeviceState, Errno, Result};

/// Where processes come from that want to take over.
#[derive(Debug)]
pub struct Control {
    /// Over the listener, or over the peer while there is one.
    epoll: Epoll,
    listener: Option<Listener>,
    peer: Option<Peer>,
    /// What the peer, of those that may know, has been told that the device is.
    introduced: Option<Description>,
    /// DMA regions that it has been told of.
    told: Option<Told>,
}

impl Control {
    /// One that nobody comes to yet.
    fn new() -> Result<Control> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Control { epoll, listener: None, peer: None, introduced: None, told: None })
    }

    /// Goes on with the listener of a predecessor.
    pub fn over(listener: Listener) -> Result<Control> {
        let mut control = Control::new()?;
        control.listen(listener)?;
        Ok(control)
    }

    fn listen(&mut self, listener: Listener) -> Result<()> {
        self.watch(listener.socket())?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Takes a socket that was handed in, which stays open if this fails.
    fn take(&mut self, handed: Handed) -> Result<()> {
        match handed {
            Handed::Listener(listener) => match self.watch(listener.socket()) {
                Ok(()) => self.listener = Some(listener),
                Err(errno) => {
                    listener.leak();
                    return Err(errno);
                }
            },
            Handed::Client(socket) => {
                let peer = Peer::handed(socket)?;
                if let Err(errno) = self.watch(peer.socket()) {
                    peer.leak();
                    return Err(errno);
                }
                self.peer = Some(peer);
            }
        }
        Ok(())
    }

    /// Whether nobody can come any more: the socket was connected to one process, which has gone.
    fn is_spent(&self) -> bool {
        self.listener.is_none() && self.peer.is_none()
    }

    fn watch(&self, fd: RawFd) -> Result<()> {
        // SAFETY: open, as its owner is here; only used in here.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?)
    }

    fn forget(&self, fd: RawFd) {
        // SAFETY: as in `watch`.
        let _ = self.epoll.delete(unsafe { BorrowedFd::borrow_raw(fd) });
    }

    /// The next thing that a peer says; peers that wait are let in one by one.
    fn hear(&mut self) -> Result<Heard> {
        if self.peer.is_none() {
            let Some(listener) = &self.listener else { return Ok(Heard::Nothing) };
            let socket = match listener.accept() {
                Ok(socket) => socket,
                Err(Errno::EAGAIN) => return Ok(Heard::Nothing),
                Err(errno) => return Err(errno),
            };
            self.watch(socket.as_raw_fd())?;
            let socket = Peer::new(socket)?;
            self.forget(listener.socket());
            self.peer = Some(socket);
        }
        match &mut self.peer {
            Some(peer) => peer.hear(),
            None => Ok(Heard::Nothing),
        }
    }

    /// The peer has gone, or is sent away.
    fn drop_peer(&mut self) {
        self.introduced = None;
        self.told = None;
        let Some(peer) = self.peer.take() else { return };
        self.forget(peer.socket());
        if let Some(listener) = &self.listener
            && self.watch(listener.socket()).is_err()
        {
            // Nobody would be heard any more: better that they see it.
            self.listener = None;
        }
    }

    /// It is the successor's from now on.
    pub fn disown(&mut self) {
        if let Some(listener) = &mut self.listener {
            listener.disown();
        }
    }

    /// It is this process's from now on.
    pub fn own(&mut self) -> Result<()> {
        self.listener.as_mut().map_or(Ok(()), |listener| listener.own(true))
    }
}

/// How the second phase ended, if nothing failed.
enum Answer {
    /// The new process has said that it goes on.
    Taken,
    /// It has been told to, and nothing is known of it.
    Silent,
}

impl<D: Device> Context<D> {
    /// Lets processes take over that connect to a socket at `path`, which is made;
    /// a stale one is replaced. At most 102 bytes.
    ///
    /// # Errors
    /// `EEXIST`: there is such a socket already; others as for
    /// [`create_replacing`](Context::create_replacing).
    pub fn setup_hand_over(&self, path: &Path) -> Result<()> {
        self.set_control(|control| {
            control.listen(Listener::bind_control(path.as_os_str().as_bytes()).map_err(with_path_rule)?)
        })
    }

    /// The same over a UNIX socket of type `SOCK_SEQPACKET` that was handed in: one that
    /// listens, or one that is connected to the process that wants to take over.
    ///
    /// # Errors
    /// `EEXIST`, and see [`Handed::new`].
    ///
    /// # Safety
    ///
    /// If this succeeds, nobody else closes the descriptor. (If it fails, it is open as before.)
    pub unsafe fn setup_hand_over_fd(&self, fd: RawFd) -> Result<()> {
        // SAFETY: the caller's promise.
        self.set_control(|control| control.take(unsafe { Handed::control(fd) }.map_err(with_socket_rule)?))
    }

    /// Has processes come by a socket; if there was one before, it is spent.
    fn set_control(&self, set: impl FnOnce(&mut Control) -> Result<()>) -> Result<()> {
        let mut handover = self.handover.borrow_mut();
        if let Some(control) = &mut handover.control {
            Errno::EEXIST.unless(control.is_spent(), "there is a socket for taking over already")?;
            return set(control);
        }
        let mut control = memory::boxed(Control::new()?)?;
        set(&mut control)?;
        handover.control = Some(control);
        Ok(())
    }

    /// A descriptor that is readable when [`hand_over`](Self::hand_over) has something
    /// to do. It stays the same. `ENOENT` if nothing was set up.
    pub fn hand_over_fd(&self) -> Result<RawFd> {
        let handover = self.handover.borrow();
        handover.control.as_ref().map(|control| control.epoll.0.as_fd().as_raw_fd()).ok_or(Errno::ENOENT)
    }

    /// Hands a descriptor of the device's own over with it, which stays open as long
    /// as the context. `EEXIST` for a name that there is already, `EINVAL` for an
    /// empty one.
    pub fn name_fd(&self, name: &[u8], fd: BorrowedFd<'static>) -> Result<()> {
        let mut handover = self.handover.borrow_mut();
        Errno::EINVAL.unless(!name.is_empty(), "a descriptor without a name")?;
        let is_new = handover.named.iter().all(|(other, _)| other != name);
        Errno::EEXIST.unless(is_new, "there is a descriptor of this name already")?;
        let mut copy = Bytes::default();
        copy.append(name)?;
        memory::push(&mut handover.named, (copy.0, fd.as_raw_fd()))
    }

    /// Answers a process that wants to take over. Waits only when the device has
    /// been made quiet for that: at most `timeout`, and as long once more for the new
    /// process to say that it goes on. True: the device is another process's now.
    ///
    /// # Errors
    /// An attempt has failed, and the device goes on here, as if nothing had happened,
    /// unless it says `EBUSY` and waits for [`device_quiesced`](Self::device_quiesced):
    /// then this is to be called again.
    pub fn hand_over(&self, timeout: Duration) -> Result<bool> {
        if self.busy.get() {
            return Err(Errno::EBUSY.because("not from inside a callback"));
        }
        let _busy = self.mark_busy();
        let outcome = self.hand_over_step(timeout);
        self.update_poller();
        outcome
    }

    fn hand_over_step(&self, timeout: Duration) -> Result<bool> {
        let is_quiet = match &*self.pending.borrow() {
            Some(Pending::HandOver { is_quiet }) => Some(*is_quiet),
            _ => None,
        };
        if let Some(is_quiet) = is_quiet {
            Errno::EBUSY.unless(is_quiet, "the device has not said yet that it is quiet")?;
            self.pending.borrow_mut().take();
            return self.give(timeout);
        }
        loop {
            let heard = match &mut self.handover.borrow_mut().control {
                Some(control) => control.hear(),
                None => return Err(Errno::ENOENT.because("no socket for taking over was set up")),
            };
            let message = match heard {
                Ok(Heard::Nothing) => return Ok(false),
                Ok(Heard::End) => {
                    self.drop_peer();
                    continue;
                }
                Ok(Heard::Message(message, _)) => Ok(message),
                Err(errno) => Err(errno),
            };
            let answered = match message.and_then(|message| Ok((message.kind()?, message.errno()))) {
                Ok((Kind::Hello, _)) => self.introduce(),
                Ok((Kind::Memory, _)) => self.tell_ahead(),
                Ok((Kind::Ready, _)) => match self.make_quiet() {
                    Ok(()) => return self.give(timeout),
                    Err(errno) if self.is_waited_for() => return Err(errno),
                    Err(errno) => Err(errno),
                },
                Ok((Kind::No, errno)) => Err(errno.because("the other process refuses")),
                Ok(_) => Err(Errno::EPROTO.because("a message that does not belong here")),
                Err(errno) => Err(errno),
            };
            if let Err(errno) = answered {
                let rule = self.refuse_peer(errno);
                return Err(errno.because(rule));
            }
        }
    }

    /// Whether the hand-over goes on when the device says that it is quiet.
    fn is_waited_for(&self) -> bool {
        matches!(*self.pending.borrow(), Some(Pending::HandOver { .. }))
    }

    fn drop_peer(&self) {
        if let Some(control) = &mut self.handover.borrow_mut().control {
            control.drop_peer();
        }
    }

    fn with_peer<T>(&self, f: impl FnOnce(&mut Peer) -> Result<T>) -> Result<T> {
        let mut handover = self.handover.borrow_mut();
        match handover.control.as_mut().and_then(|control| control.peer.as_mut()) {
            Some(peer) => f(peer),
            None => Err(Errno::ECONNRESET.because("the other process has gone")),
        }
    }

    /// Sends the peer away. If it cannot be told, it can no longer say that it has
    /// everything either. Returns the rule, for who logs it.
    fn refuse_peer(&self, errno: Errno) -> &'static str {
        let rule = errno.take_rule().unwrap_or_else(|| errno.general_rule());
        let _ = self.with_peer(|peer| {
            if peer.say(&Message::no(errno)).is_err() {
                peer.stop_listening();
            }
            Ok(())
        });
        self.drop_peer();
        rule
    }

    /// The same where no call fails that would log it.
    fn refuse_peer_and_log(&self, errno: Errno) {
        let rule = self.refuse_peer(errno);
        log!(self, LOG_ERR, "not handed over: {rule}: {errno}");
    }

    /// Says what the device is.
    fn introduce(&self) -> Result<()> {
        let uid = self.with_peer(|peer| peer.credentials())?.uid();
        let may = uid == 0 || uid == geteuid().as_raw();
        Errno::EPERM.unless(may, "only the same user, or root, may take over")?;
        Errno::EINVAL.unless(self.realized.get(), "vfu_realize_ctx() has not been called")?;
        let (image, fds) = self.describe()?;
        let set_up = self.describe_set_up()?;
        self.with_peer(|peer| peer.send_image(Kind::Device, &image, &fds))?;
        if let Some(control) = &mut self.handover.borrow_mut().control {
            control.introduced = Some(set_up);
        }
        Ok(())
    }

    fn check_introduced(&self) -> Result<()> {
        let is_introduced = self.handover.borrow().control.as_ref().is_some_and(|c| c.introduced.is_some());
        Errno::EPROTO.unless(is_introduced, "a message that does not belong here")
    }

    /// Says which DMA regions there are at the moment.
    fn tell_ahead(&self) -> Result<()> {
        self.check_introduced()?;
        let (image, fds, told) = self.export_ahead()?;
        self.with_peer(|peer| peer.send_image(Kind::Memory, &image, &fds))?;
        if let Some(control) = &mut self.handover.borrow_mut().control {
            control.told = Some(told);
        }
        Ok(())
    }

    /// Has the device be quiet.
    fn make_quiet(&self) -> Result<()> {
        self.check_introduced()?;
        self.check_may_leave()?;
        match self.device.quiesce(self) {
            Err(Errno::EBUSY) => {
                *self.pending.borrow_mut() = Some(Pending::HandOver { is_quiet: false });
                Err(Errno::EBUSY)
            }
            Err(errno) => Err(errno.because("the device did not quiesce")),
            Ok(()) => Ok(()),
        }
    }

    /// Whether the context is in a state that can be written down.
    fn check_may_leave(&self) -> Result<()> {
        let is_pending = self.pending.borrow().is_some();
        Errno::EBUSY.unless(!is_pending, "something waits for the device to become quiet")?;
        // The client may have been told of it, and the new process has not.
        let set_up = Some(self.describe_set_up()?);
        let is_same = self.handover.borrow().control.as_ref().is_some_and(|c| c.introduced == set_up);
        Errno::EBUSY.unless(is_same, "the device was set up otherwise meanwhile")?;
        self.begin_handed_connection()?;
        self.tell_losses();
        let is_lost = self.flush() == Sent::Lost && self.connection.borrow().is_some();
        Errno::EBUSY
            .unless(!is_lost && !self.is_lost(), "the client is lost, which nobody has been told of yet")?;
        match self.migration.state() {
            DeviceState::Running | DeviceState::Stop => Ok(()),
            DeviceState::PreCopy | DeviceState::Error if self.device.has_own_state() => Ok(()),
            DeviceState::PreCopy if !self.migration.has_said() => Ok(()),
            DeviceState::PreCopy => Err(Errno::EBUSY
                .because("the device is being migrated (PRE_COPY), and has said a part of its state")),
            DeviceState::Error => Err(Errno::EBUSY.because("the device has failed, and is not reset yet")),
            _ => Err(Errno::EBUSY.because("the device is being migrated (STOP_COPY or RESUMING)")),
        }
    }

    /// The device is quiet: the second phase.
    fn give(&self, timeout: Duration) -> Result<bool> {
        let outcome = self.check_may_leave().and_then(|()| self.save_device()).and_then(|data| {
            let (image, fds) = {
                let handover = self.handover.borrow();
                let control = handover.control.as_deref();
                let listener = control.and_then(|control| control.listener.as_ref());
                self.export(&data, listener, control.and_then(|control| control.told.as_ref()))?
            };
            self.with_peer(|peer| {
                peer.send_image(Kind::State, &image, &fds)?;
                ask(peer, timeout)
            })
        });
        match outcome {
            Ok(answer) => {
                let known = if matches!(answer, Answer::Taken) { "" } else { ", which has not said so yet" };
                log!(self, LOG_INFO, "handed over to another process{known}");
                self.leave();
                Ok(true)
            }
            Err(errno) => {
                let rule = self.refuse_peer(errno);
                self.resume_device();
                Err(errno.because(rule))
            }
        }
    }

    /// All that belongs to the client is another process's.
    fn leave(&self) {
        self.is_elsewhere.set(true);
        if let Some(poller) = self.poller.borrow_mut().as_mut() {
            poller.forget_sockets();
        }
        self.phase.set(Phase::Idle);
        self.loss_unreported.set(false);
        if let Some(mut connection) = self.connection.borrow_mut().take() {
            connection.disown();
        }
        if let Some(mut listener) = self.listener.borrow_mut().take() {
            listener.disown();
        }
        if let Some(mut control) = self.handover.borrow_mut().control.take() {
            control.disown();
        }
        self.irqs.close_all();
        self.device.handed_over(self, false);
    }

    /// The device does not quiesce for it.
    pub(in crate::server) fn refuse_hand_over(&self, errno: Errno) {
        self.refuse_peer_and_log(errno.because("the device did not quiesce"));
    }

    /// The context goes while the other process waits for it.
    pub(in crate::server) fn end_hand_over(&self) {
        let has_peer = self.with_peer(|_| Ok(())).is_ok();
        if has_peer {
            self.refuse_peer_and_log(Errno::ECONNRESET.because("the context is destroyed"));
        }
    }
}

/// Says why there can be no socket at a path.
fn with_path_rule(errno: Errno) -> Errno {
    match errno {
        Errno::ENAMETOOLONG => errno.because("the path is too long"),
        Errno::EADDRINUSE => errno.because("something is there that is no stale socket"),
        errno => errno,
    }
}

/// Says why a descriptor cannot be where processes take over.
fn with_socket_rule(errno: Errno) -> Errno {
    match errno {
        Errno::EBADF => errno.because("it is no open descriptor"),
        Errno::ENOTSOCK => errno.because("it is no socket"),
        Errno::ENOTCONN => errno.because("it neither listens nor is it connected"),
        errno => errno,
    }
}

/// Waits for the new process to have everything, tells it that the device is its own,
/// and waits for it to say that it goes on. If this fails, it does not.
fn ask(peer: &mut Peer, timeout: Duration) -> Result<Answer> {
    let deadline = |timeout| Instant::now().checked_add(timeout).ok_or(Errno::EINVAL);
    match peer.expect(Kind::Have, deadline(timeout)?) {
        Ok(_) => {
            peer.say(&Message::plain(Kind::Yours))?;
            hear_taken(peer, deadline(timeout)?)
        }
        Err(Errno::ETIMEDOUT) => {
            // It may be saying so right now.
            peer.stop_listening();
            match peer.hear() {
                Ok(Heard::Message(message, _)) if message.kind() == Ok(Kind::Have) => {
                    peer.say(&Message::plain(Kind::Yours))?;
                    Ok(Answer::Silent)
                }
                _ => Err(Errno::ETIMEDOUT.because("the other process takes too long")),
            }
        }
        Err(errno) => Err(errno),
    }
}

/// The new process has been told that the device is its own. If it goes, or says no,
/// before it has said that it goes on, it has not done anything; otherwise it may have.
fn hear_taken(peer: &mut Peer, deadline: Instant) -> Result<Answer> {
    loop {
        match peer.hear() {
            Ok(Heard::Message(message, _)) => match message.kind() {
                Ok(Kind::Taken) => return Ok(Answer::Taken),
                Ok(Kind::No) => return Err(message.errno().because("the other process refuses")),
                _ => return Ok(Answer::Silent),
            },
            Ok(Heard::End) => return Err(Errno::ECONNRESET.because("the other process has gone")),
            Ok(Heard::Nothing) if peer.wait(deadline).is_ok() => {}
            Ok(Heard::Nothing) | Err(_) => return Ok(Answer::Silent),
        }
    }
}
