//! What has arrived and is not used, for another process.

use std::os::fd::RawFd;

use super::super::buffer::{FIRST, MARGIN, STANDARD};
use super::super::control::Header as SocketHeader;
use super::super::pool::Pool;
use super::super::waiting::Waiting;
use super::{Large, MayCarryFds, Receiver, copy};
use crate::handover::{Channel, Descriptors, Outgoing, Parcel};
use crate::memory::Bytes;
use crate::wire::{Errno, Header, Result, take};

const NO_STREAM: &str = "what has arrived on a socket cannot be that";

impl Receiver {
    /// Writes all of it down, with the descriptors that wait and the socket.
    pub fn export(&self, socket: RawFd, out: &mut Outgoing) -> Result<()> {
        let (mut bytes, mut large) = (Bytes::default(), Bytes::default());
        bytes.append(self.buffer.range(self.head, self.tail))?;
        if let Some(message) = &self.large {
            large.append(message.buffer.range(0, message.have))?;
        }
        let fd = out.fd(socket)?;
        out.put(Channel {
            fd,
            bytes: bytes.0,
            skip: self.skip as u64,
            used: self.used,
            ended: self.ended,
            large: large.0,
        })?;
        self.waiting.export(out)
    }

    /// The same as what was written down, in this process. `EPROTO` if it can't be
    /// that.
    pub fn import(
        channel: &Channel,
        parcels: &[Parcel],
        fds: &mut Descriptors<'_>,
        pool: &mut Pool,
        may_carry_fds: MayCarryFds,
    ) -> Result<Receiver> {
        let tail = channel.bytes.len();
        let mut buffer = pool.take(if tail <= FIRST - MARGIN { FIRST } else { STANDARD })?;
        Errno::EPROTO.unless(tail <= buffer.len(), NO_STREAM)?;
        copy(&mut buffer, &channel.bytes);
        let large = match &channel.large[..] {
            [] => None,
            message => Some(Large::import(message, pool)?),
        };
        Ok(Receiver {
            buffer,
            head: 0,
            tail,
            large,
            skip: usize::try_from(channel.skip).map_err(|_| Errno::EPROTO.because(NO_STREAM))?,
            offered: 0,
            used: channel.used,
            waiting: Waiting::import(parcels, fds)?,
            ended: channel.ended,
            may_carry_fds,
            socket_header: SocketHeader::new()?,
        })
    }
}

impl Large {
    fn import(message: &[u8], pool: &mut Pool) -> Result<Large> {
        let no_stream = || Errno::EPROTO.because(NO_STREAM);
        let (header, _) = take::<Header>(message).map_err(|_| no_stream())?;
        let size = header.size().map_err(|_| no_stream())?;
        Errno::EPROTO.unless(message.len() <= size, NO_STREAM)?;
        let mut buffer = pool.take(size)?;
        copy(&mut buffer, message);
        Ok(Large { header, have: message.len(), buffer })
    }
}
