//! What a request can be held to without knowing the device.

use zerocopy::FromBytes;

use super::{Errno, Result, take};

/// The rule that most requests have: `argsz` says how much room there is.
pub(super) const SMALL_ARGSZ: &str = "argsz is too small";

/// The structure that the payload of a request begins with, and the rules that it
/// has by itself: flags that exist and go together, sizes, counts, addresses that
/// do not wrap. Each stands beside its structure. What depends on the device, or
/// on what was agreed with the client, is for who executes the request.
pub trait Request: FromBytes + Sized {
    /// Holds it to its rules; `data` is what follows it in the message.
    ///
    /// # Errors
    /// The errno that the client is sent, which knows the rule that was broken.
    fn check(&self, data: &[u8]) -> Result<()>;

    /// Whether it keeps all of its rules.
    fn is_valid(&self, data: &[u8]) -> bool {
        self.check(data).is_ok()
    }

    /// Takes it from the front of a payload, and holds it to its rules: the
    /// structure and what follows it.
    ///
    /// # Errors
    /// `EINVAL` for a payload that is too short, else as [`check`](Request::check).
    #[inline(always)]
    fn parse(payload: &[u8]) -> Result<(Self, &[u8])> {
        let (request, data) = take::<Self>(payload)?;
        request.check(data)?;
        Ok((request, data))
    }
}

/// Refuses an `argsz` below the `least` that a request needs.
pub(super) fn check_argsz(argsz: u32, least: usize) -> Result<()> {
    Errno::EINVAL.unless(argsz as usize >= least, SMALL_ARGSZ)
}
