//! Accepting a client and agreeing on how to talk: `vfu_attach_ctx`.

use std::os::fd::OwnedFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{SysconfVar, sysconf};

use super::context::Phase;
use super::log::log;
use super::step::{Event, Step};
use super::{Context, Device};
use crate::memory;
use crate::transport::{Connection, Message, Next, Outcome, Received, Reply, Sent};
use crate::wire::capabilities::{ClientCapabilities, ServerCapabilities};
use crate::wire::limits::{HEADER_SIZE, MAX_DMA_MAPS};
use crate::wire::{self, Command, Errno, MessageType, Request, Result, Version};

const NO_VERSION: &str = "the first message is no VERSION that can be read";

impl<D: Device> Context<D> {
    /// See `vfu_attach_ctx`.
    pub(crate) fn attach_step(&self, event: Event) -> Step {
        if self.busy.get() || self.attached() {
            return Step::Fail(Errno::EINVAL.because("there is a client already, or a callback runs"));
        }
        let _busy = self.mark_busy();
        let step = match event {
            Event::Start if self.phase.get() == Phase::Idle => self.accept(),
            Event::Start => self.negotiate_further(),
            Event::Received(Ok(())) => self.negotiate(),
            Event::Received(Err(errno)) => Step::Fail(errno),
            Event::Waited(Outcome::Accepted(Ok(accepted))) => self.begin_negotiation(accepted.into_socket()),
            Event::Waited(Outcome::Accepted(Err(errno)) | Outcome::Ready(Err(errno))) => Step::Fail(errno),
            Event::Waited(Outcome::Ready(Ok(_))) => self.negotiate(),
            Event::Waited(Outcome::Moved(outcome)) => {
                match self.with_connection(|connection| connection.finish_receive(outcome)) {
                    Some(Ok(())) => self.negotiate(),
                    Some(Err(Errno::EINTR)) => Step::Fail(Errno::EINTR),
                    Some(Err(errno)) => self.end_negotiation(errno),
                    None => Step::Fail(Errno::ENOTCONN),
                }
            }
        };
        if !matches!(step, Step::Wait(_)) {
            self.update_poller();
        }
        step
    }

    fn accept(&self) -> Step {
        if let Some(socket) = self.handed_client.take() {
            return self.begin_negotiation(socket);
        }
        let accepted = match &*self.listener.borrow() {
            Some(listener) if !self.nonblocking => return Step::Wait(listener.wait_accept()),
            Some(listener) => listener.accept(),
            None => Err(Errno::ENOTCONN.because("no more clients can come")),
        };
        match accepted {
            Ok(socket) => self.begin_negotiation(socket),
            Err(errno) => Step::Fail(errno),
        }
    }

    fn begin_negotiation(&self, socket: OwnedFd) -> Step {
        match self.begin_connection(socket) {
            Ok(()) => self.negotiate(),
            Err(errno) => Step::Fail(errno),
        }
    }

    fn begin_connection(&self, socket: OwnedFd) -> Result<()> {
        let connection = Connection::new(socket, wire::may_carry_fds).and_then(memory::boxed)?;
        *self.connection.borrow_mut() = Some(connection);
        self.phase.set(Phase::Negotiating);
        self.loss_unreported.set(false);
        Ok(())
    }

    /// A client that was handed in is one that negotiates, though nobody has attached it yet.
    pub(super) fn begin_handed_connection(&self) -> Result<()> {
        self.handed_client.take().map_or(Ok(()), |socket| self.begin_connection(socket))
    }

    /// Goes on where the call before ended.
    fn negotiate_further(&self) -> Step {
        self.with_connection(Connection::check_receipt);
        if self.is_lost() { self.end_negotiation(Errno::ECONNRESET) } else { self.negotiate() }
    }

    /// Goes on until the version message is there, answered or refused.
    fn negotiate(&self) -> Step {
        loop {
            match self.version_message() {
                Ok(Some(message)) => return self.agree(message),
                Ok(None) => {}
                Err(errno) => return self.end_negotiation(errno),
            }
            if !self.nonblocking {
                let wait = self.with_connection(Connection::wait_receive);
                return wait.map_or(Step::Fail(Errno::ENOTCONN), Step::Wait);
            }
            match self.with_connection(|connection| connection.receive()) {
                Some(Ok(Received::Something)) => {}
                Some(Ok(Received::Nothing)) => return Step::Fail(Errno::EAGAIN),
                Some(Err(Errno::EINTR)) => return Step::Fail(Errno::EINTR),
                Some(Err(errno)) => return self.end_negotiation(errno),
                None => return Step::Fail(Errno::ENOTCONN),
            }
        }
    }

    fn end_negotiation(&self, errno: Errno) -> Step {
        let rule = errno.take_rule().unwrap_or("the client left, or the system failed");
        self.close_connection();
        Step::Fail(errno.because(rule))
    }

    /// The first message, once it is complete, if it is a version message.
    fn version_message(&self) -> Result<Option<Box<Message>>> {
        let next = self.with_connection(|connection| {
            let is_version = |header: &wire::Header| {
                header.message_type() == Some(MessageType::Command) && header.cmd == Command::Version as u16
            };
            let next = connection.next(is_version)?;
            if let (Next::Nothing, true) = (&next, connection.ended()) {
                return Err(match connection.partial().0 {
                    0 | HEADER_SIZE => Errno::ENOMSG,
                    _ => Errno::ECONNRESET,
                });
            }
            Ok(next)
        });
        match next.ok_or(Errno::ENOTCONN)?? {
            Next::Nothing => Ok(None),
            Next::Message(message) => Ok(Some(message)),
            Next::Unfollowable(_) => Err(Errno::EINVAL.because(NO_VERSION)),
            Next::Refused(header) => {
                self.probe_received(&header);
                if header.message_type() == Some(MessageType::Command) {
                    self.answer_version(&header, Err(Errno::EINVAL));
                }
                Err(Errno::EINVAL.because(NO_VERSION))
            }
        }
    }

    /// Judges the version message, answers it, and lets the client in.
    fn agree(&self, mut message: Box<Message>) -> Step {
        self.probe_received(&message.header);
        let with_fds = !message.fds.is_empty() || message.missing_fds.is_some();
        message.fds.clear();
        let mut reply = Reply::empty();
        let outcome = match with_fds {
            true => Err(Errno::EINVAL.because("VERSION with descriptors")),
            false => self.version_reply(message.payload(), &mut reply),
        };
        let header = message.header;
        self.with_connection(|connection| connection.recycle(message));
        match (self.answer_version(&header, outcome.map(|()| &mut reply)), outcome) {
            (_, Err(errno)) => self.end_negotiation(errno),
            (Sent::Lost, Ok(())) => self.end_negotiation(Errno::ECONNRESET),
            (Sent::All | Sent::More | Sent::Stuck, Ok(())) => {
                if let Some(errno) = self.with_connection(|c| c.take_replaced()).flatten() {
                    // That is what the client was told.
                    return self.end_negotiation(errno);
                }
                self.phase.set(Phase::Attached);
                log!(self, LOG_DEBUG, "client attached");
                Step::Return { value: 0, errno: None }
            }
        }
    }

    /// Sends the answer to a version message; it is answered even if it says
    /// that it need not be.
    fn answer_version(&self, header: &wire::Header, answer: Result<&mut Reply>) -> Sent {
        let outcome = answer.as_ref().map(|_| ()).map_err(|errno| *errno);
        self.probe_executed(header, &outcome);
        let sent = self.with_connection(|connection| {
            let queued = match answer {
                Ok(reply) => connection.reply(header, reply),
                Err(errno) => connection.reply_error(header, errno),
            };
            match queued {
                Ok(()) => connection.flush(),
                Err(_) => Sent::Lost,
            }
        });
        self.probe_replied(header, &outcome);
        sent.unwrap_or(Sent::Lost)
    }

    fn version_reply(&self, payload: &[u8], reply: &mut Reply) -> Result<()> {
        let (version, text) = Version::parse(payload)?;
        let client = ClientCapabilities::parse(text)
            .map_err(|errno| errno.because("its capabilities make no sense"))?;
        let page_size = page_size();
        let migratable = self.device.can_migrate();
        let other_pages = client.migration_pgsize.is_some_and(|size| u64::try_from(size) != Ok(page_size));
        Errno::EINVAL
            .unless(!migratable || !other_pages, "migration.pgsize is not the page size of this host")?;
        let twin_socket = client.twin_socket && client.max_msg_fds >= 1;
        let server = ServerCapabilities {
            migration_pgsize: migratable.then_some(page_size),
            twin_socket,
            pgsizes: client.pgsizes.then_some(page_size),
            max_dma_maps: client.max_dma_maps.map(|asked| self.max_dma_maps(asked)),
            write_multiple: client.write_multiple,
        };
        let text = server.to_text()?;
        let minor = version.minor.min(wire::VERSION_MINOR);
        self.make_room(reply, size_of::<Version>() + text.len())?;
        reply.put(&Version { major: wire::VERSION_MAJOR, minor })?;
        reply.put_bytes(&text)?;
        if twin_socket {
            let (ours, theirs) =
                socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
            self.with_connection(|connection| connection.set_twin(ours)).ok_or(Errno::ENOTCONN)?;
            reply.give_fd(theirs)?;
        }
        self.client.set(client);
        Ok(())
    }

    /// What is said of the number of DMA regions: the smallest of the device's
    /// limit, the client's, and the most that clients accept.
    fn max_dma_maps(&self, asked: i64) -> u64 {
        let limit = if self.dma_is_ready() { self.dma.limit() } else { u64::MAX };
        limit.min(u64::try_from(asked).unwrap_or(0)).min(MAX_DMA_MAPS)
    }
}

/// The host's page size in bytes.
pub(super) fn page_size() -> u64 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
    size.unwrap_or(4096)
}
