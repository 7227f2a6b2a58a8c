//! What is unsent, for another process.

use zerocopy::IntoBytes;

use super::{GATHER_MAX, Gathered, Segment, Sender};
use crate::handover::{Descriptors, Outgoing, Unsent};
use crate::memory::{self, Bytes};
use crate::transport::pool::Pool;
use crate::transport::reply::Reply;
use crate::wire::{Errno, Header, Result, take};

impl Sender {
    /// Writes all of it down, but for what is still to be [added](Sender::more).
    pub fn export(&self, is_twin: bool, out: &mut Outgoing) -> Result<()> {
        let mut sent = self.sent;
        let unsent = |bytes: &[u8], sent: usize| -> Result<Unsent> {
            let mut copy = Bytes::default();
            copy.append(bytes.get(sent..).unwrap_or_default())?;
            Ok(Unsent { is_twin, bytes: copy.0, ..Unsent::default() })
        };
        for segment in &self.segments {
            let mut record = unsent(segment.bytes(), sent)?;
            if let Segment::Single { reply, request, .. } = segment
                && sent == 0
            {
                record.fds = out.fds(reply.fds()?)?;
                let mut header = Bytes::default();
                header.append(request.as_bytes())?;
                record.request = header.0;
            }
            out.put(record)?;
            sent = 0;
        }
        match self.last.bytes() {
            [] => Ok(()),
            bytes => out.put(unsent(bytes, sent)?),
        }
    }

    /// Adds what was written down. `more` bytes of the last reply are still to be
    /// added then.
    pub fn import(&mut self, unsent: &Unsent, fds: &mut Descriptors<'_>, pool: &mut Pool) -> Result<()> {
        let len = unsent.bytes.len();
        let own = fds.take_all(&unsent.fds)?;
        let segment = match take::<Header>(&unsent.request) {
            Ok((request, _)) => {
                let reply = Reply::sealed_already(&unsent.bytes, own, pool)?;
                Segment::Single { reply, request, len }
            }
            Err(_) if !own.is_empty() => return Err(Errno::EPROTO.because("descriptors without a reply")),
            Err(_) => {
                let mut buffer = pool.take(len)?;
                buffer.range_mut(0, len).copy_from_slice(&unsent.bytes);
                Segment::Gathered(Gathered { buffer, len })
            }
        };
        self.full |= segment.has_fds();
        memory::push_back(&mut self.segments, segment)?;
        self.waiting = self.waiting.saturating_add(len);
        self.full |= self.waiting >= GATHER_MAX;
        Ok(())
    }

    /// So many bytes of the last reply are still to be added.
    pub fn expect_more(&mut self, more: usize) {
        self.more = more;
        self.full |= more > 0;
    }
}
