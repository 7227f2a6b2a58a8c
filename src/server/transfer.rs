//! Moving bytes from and to guest memory: `vfu_sgl_read` and `vfu_sgl_write`.
//!
//! Where that takes messages, the transfer is cut into as few as the client's
//! limit allows. On a twin socket one is asked for after the other. On the main
//! socket a long transfer is cut into smaller ones, of which several are on the
//! way at once: both sides work then, and the answers still fit into a socket's
//! buffer, as a client that never waits (QEMU) needs them to. Short transfers stay
//! one message at a time, so that a client that takes what one `recv` brings for
//! one message is never brought two.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use zerocopy::{FromBytes, IntoBytes};

use super::log::log;
use super::step::{Event, Step};
use super::{Context, Device};
use crate::dma::{Access, Prot, SgEntry};
use crate::transport::{Answer, Awaited, Connection, Data, Outcome, Outstanding, Place, Sent, Wait};
use crate::wire::limits::{MAX_DATA_XFER_SIZE, MAX_DMA_CHUNK};
use crate::wire::{Command, DmaAccess, Errno, Result};

/// `VFU_SGL_DIRECT_ACCESS`: without messages, where the region allows.
const DIRECT_ACCESS: i32 = 1;

/// How many messages of a long transfer are on the way at once over a client's
/// only socket. Their answers come to [`MAX_DMA_CHUNK`] at the most.
const WINDOW: usize = 2;

/// Ids of the commands that this process sends, whatever the context.
static NEXT_MSG_ID: AtomicU16 = AtomicU16::new(1);

/// A command has been sent over a client's only socket.
static WARNED: AtomicBool = AtomicBool::new(false);

/// One call of `vfu_sgl_read` or `vfu_sgl_write`: plain data, which lives in the
/// frame of the call, and goes with it if the thread is cancelled.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    data: Data<'a>,
    iova: u64,
    length: u64,
    /// Bytes that messages have been sent for.
    asked: u64,
    /// Most bytes of one message.
    chunk: u64,
    /// How many messages may be on the way at once.
    window: usize,
    /// Those that are, the oldest first.
    awaited: [Outstanding<'a>; WINDOW],
    count: usize,
    /// The answer has not come in time: every socket is watched.
    is_late: bool,
}

/// What came of a wait.
#[derive(Clone, Copy, Debug)]
enum News {
    /// What the sockets are ready for.
    Ready([i16; 2]),
    /// Bytes of an answer.
    Received(Result<usize>),
}

/// What a device wants moved.
#[derive(Clone, Copy, Debug)]
pub struct SglAccess<'a> {
    /// The entries, or the first of them.
    pub sgl: &'a [SgEntry],
    /// How many the caller says there are.
    pub cnt: usize,
    /// Where to, or where from: as many bytes as the entry is long.
    pub data: Data<'a>,
    /// `VFU_SGL_DIRECT_ACCESS` or 0.
    pub flags: i32,
}

impl<D: Device> Context<D> {
    /// See `vfu_sgl_read` and `vfu_sgl_write`. `transfer` is `None` at first, and
    /// is for the steps alone.
    pub(crate) fn sgl_step<'a>(
        &self,
        access: SglAccess<'a>,
        transfer: &mut Option<Transfer<'a>>,
        event: Event,
    ) -> Step {
        let outcome = match (event, transfer) {
            (Event::Waited(Outcome::Ready(outcome)), Some(transfer)) => {
                outcome.and_then(|ready| self.go_on_with_transfer(transfer, Some(News::Ready(ready))))
            }
            (Event::Waited(Outcome::Moved(Err(Errno::EINTR))), Some(_)) => Err(Errno::EINTR),
            (Event::Waited(Outcome::Moved(outcome)), Some(transfer)) => {
                self.go_on_with_transfer(transfer, Some(News::Received(outcome)))
            }
            (_, transfer) => match self.start_access(access) {
                // No message, and so nothing that belongs to the context's own thread.
                Ok(None) => return Step::Return { value: 0, errno: None },
                Err(errno) => return Step::Fail(errno),
                Ok(Some(started)) => self.go_on_with_transfer(transfer.insert(started), None),
            },
        };
        if let Ok(Some(wait)) = outcome {
            return Step::Wait(wait);
        }
        self.with_connection(Connection::abandon_answers);
        if !self.busy.get() {
            // Commands may have been queued, answers be late, or the connection
            // found lost, with no request in progress that would see to it.
            self.update_poller();
        }
        match outcome {
            Ok(_) => Step::Return { value: 0, errno: None },
            Err(errno) => Step::Fail(errno),
        }
    }

    /// Checks, and does what takes no message: then there is no transfer left.
    fn start_access<'a>(&self, access: SglAccess<'a>) -> Result<Option<Transfer<'a>>> {
        let SglAccess { sgl, cnt, data, flags } = access;
        Errno::EINVAL.unless(flags & !DIRECT_ACCESS == 0, "an unknown flag")?;
        let ([entry], 1) = (sgl, cnt) else {
            return Err(Errno::ENOTSUP.because("sg_cnt is not 1"));
        };
        let is_write = !data.is_read();
        Errno::EPERM
            .unless(!is_write || entry.is_writeable(), "the entry was not translated with PROT_WRITE")?;
        let target = self.dma.range_of(entry)?;
        Errno::EPERM.unless(
            is_write || target.prot.contains(Prot::READ),
            "the client does not allow to read the region",
        )?;
        Errno::EINVAL.unless(data.len() as u64 == entry.length(), "not as many bytes as the entry has")?;
        if flags & DIRECT_ACCESS != 0 && target.access != Access::Message {
            return match data.place() {
                // SAFETY: the data are as long as the entry, and regions are removed
                // on this thread only, which calls nothing back meanwhile.
                Place::Read(to) => unsafe { self.dma.read(entry, to) },
                // SAFETY: the same.
                Place::Write(from) => unsafe { self.dma.write(entry, from) },
            }
            .map(|()| None);
        }
        self.start_transfer(target.iova, data).map(Some)
    }

    fn start_transfer<'a>(&self, iova: u64, data: Data<'a>) -> Result<Transfer<'a>> {
        let length = data.len() as u64;
        Errno::ENOTCONN.unless(self.attached(), "no client is attached")?;
        // What is read from its socket would be missing there if the device stays there.
        let is_ours = !self.is_elsewhere.get();
        Errno::ENOTCONN.unless(is_ours, "the client is another process's as yet")?;
        if self.is_lost() {
            return Err(Errno::ENOTCONN);
        }
        let has_twin = self.with_connection(|connection| {
            // Another call may have been cut short.
            connection.abandon_answers();
            connection.open_twin().map(|()| connection.has_twin())
        });
        let has_twin = has_twin.unwrap_or(Ok(false))?;
        if !has_twin && !WARNED.swap(true, Ordering::Relaxed) {
            log!(
                self,
                LOG_WARNING,
                "the client has one socket only: what it sends while it is asked for memory waits"
            );
        }
        let limit = self.client.get().max_data_xfer_size.clamp(1, MAX_DATA_XFER_SIZE);
        let small = MAX_DMA_CHUNK / WINDOW;
        let (chunk, window) = match has_twin {
            true => (limit, 1),
            false if limit >= MAX_DMA_CHUNK && length > MAX_DMA_CHUNK as u64 => (small, WINDOW),
            false => (limit.min(MAX_DMA_CHUNK), 1),
        };
        Ok(Transfer {
            data,
            iova,
            length,
            asked: 0,
            chunk: chunk as u64,
            window,
            awaited: [Outstanding { msg_id: 0, cmd: 0, head: [0; 16], data }; WINDOW],
            count: 0,
            is_late: false,
        })
    }

    /// Goes on with a transfer, as far as that goes without waiting: what to
    /// wait for, or `None` when it is done. `news` is what came of the last wait.
    fn go_on_with_transfer(&self, transfer: &mut Transfer<'_>, news: Option<News>) -> Result<Option<Wait>> {
        let outcome = self.with_connection(|connection| transfer.advance(self, connection, news));
        match outcome.unwrap_or(Err(Awaited::Failed(Errno::ENOTCONN))) {
            Ok(wait) => Ok(wait),
            Err(Awaited::Failed(errno)) => {
                Err(errno.because("the client refuses it, or its answer makes no sense"))
            }
            // The loss itself is logged when the client's resources are released.
            Err(Awaited::Lost(Errno::ENOTCONN)) => Err(Errno::ENOTCONN),
            Err(Awaited::Lost(errno)) => Err(errno.because("what the client sends cannot be followed")),
        }
    }
}

impl<'a> Transfer<'a> {
    fn advance<D: Device>(
        &mut self,
        context: &Context<D>,
        connection: &mut Connection,
        news: Option<News>,
    ) -> Result<Option<Wait>, Awaited> {
        let [first, main] = match news {
            Some(News::Ready(ready)) => ready,
            Some(News::Received(outcome)) => {
                self.is_late = !connection.finish_answer(self.awaited(), outcome)?;
                [0, 0]
            }
            None => [0, 0],
        };
        if first & !libc::POLLOUT != 0 {
            connection.receive_answer(self.awaited())?;
            self.is_late = false;
        }
        if main & libc::POLLIN != 0 {
            connection.queue_commands()?;
        }
        loop {
            let blocked = self.send_commands(context, connection)?;
            while let Some(answer) = connection.take_answer(self.awaited())? {
                self.take_answer(answer, connection)?;
            }
            if self.asked == self.length && self.count == 0 {
                return Ok(None);
            }
            if blocked || !self.wants_to_ask(connection) {
                if main & (libc::POLLHUP | libc::POLLERR) != 0 {
                    connection.set_lost();
                    return Err(Awaited::Lost(Errno::ENOTCONN));
                }
                let receipt = match blocked || self.is_late {
                    true => None,
                    false => connection.wait_answer(self.awaited()),
                };
                return Ok(Some(receipt.unwrap_or_else(|| connection.answer_interest(blocked))));
            }
        }
    }

    fn wants_to_ask(&self, connection: &Connection) -> bool {
        self.asked < self.length && self.count < self.window && connection.may_ask()
    }

    /// Sends as many commands as may be on the way; whether a socket has no room
    /// for what is to be sent.
    fn send_commands<D: Device>(
        &mut self,
        context: &Context<D>,
        connection: &mut Connection,
    ) -> Result<bool, Awaited> {
        loop {
            let sent = match context.flush_connection(connection) {
                Sent::All => connection.flush_twin(),
                sent => sent,
            };
            match sent {
                Sent::All if !self.wants_to_ask(connection) => return Ok(false),
                Sent::All => {}
                Sent::Stuck | Sent::More => return Ok(true),
                Sent::Lost => return Err(Awaited::Lost(Errno::ENOTCONN)),
            }
            let command = self.next_command(connection);
            if !connection.send_command(&command)? {
                return Ok(true);
            }
            self.asked = self.asked.saturating_add(command.data.len() as u64);
            if let Some(place) = self.awaited.get_mut(self.count) {
                *place = command;
                self.count = self.count.saturating_add(1);
            }
        }
    }

    fn next_command(&self, connection: &Connection) -> Outstanding<'a> {
        let count = self.chunk.min(self.length.saturating_sub(self.asked));
        let access = DmaAccess { addr: self.iova.saturating_add(self.asked), count };
        let mut head = [0; 16];
        head.copy_from_slice(access.as_bytes());
        let skip = usize::try_from(self.asked).unwrap_or(usize::MAX);
        let data = self.data.part(skip, usize::try_from(count).unwrap_or(usize::MAX));
        let cmd = if data.is_read() { Command::DmaRead } else { Command::DmaWrite };
        let msg_id = loop {
            let msg_id = NEXT_MSG_ID.fetch_add(1, Ordering::Relaxed);
            if !connection.is_unanswered(msg_id) {
                break msg_id;
            }
        };
        Outstanding { msg_id, cmd: cmd as u16, head, data }
    }

    fn awaited(&self) -> &[Outstanding<'a>] {
        self.awaited.get(..self.count).unwrap_or_default()
    }

    /// Takes an answer; which of the commands it is the answer to is sure.
    fn take_answer(&mut self, answer: Answer, connection: &mut Connection) -> Result<(), Awaited> {
        let msg_id = match &answer {
            Answer::Data(msg_id) => *msg_id,
            Answer::Message(message) => message.header.msg_id,
        };
        let Some(at) = self.awaited().iter().position(|one| one.msg_id == msg_id) else {
            return Ok(());
        };
        let command = self.awaited.get(at).copied();
        if at.saturating_add(1) < self.count {
            self.awaited.copy_within(at.saturating_add(1)..self.count, at);
        }
        self.count = self.count.saturating_sub(1);
        if let (Answer::Message(message), Some(command)) = (answer, command) {
            let good = !command.data.is_read()
                && DmaAccess::read_from_bytes(&command.head)
                    .is_ok_and(|access| access.is_echoed(message.payload()));
            connection.recycle(message);
            if !good {
                return Err(Awaited::Failed(Errno::EINVAL));
            }
        }
        Ok(())
    }
}
