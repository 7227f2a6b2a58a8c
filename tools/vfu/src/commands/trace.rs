//! `vfu trace`

use std::sync::mpsc::sync_channel;

use crate::error::{Error, Result};
use crate::output::Format;
use crate::trace::{Arguments, Options, Reader, Relay, Report, Writer};

/// Pieces that the report may be behind: with those of the largest size, 64 MiB. A trace is whole,
/// so that from there on the relay waits for it.
const BEHIND: usize = 256;

/// Stands between a client and a server, or reads what was written then.
pub fn run(args: &Arguments, format: Format) -> Result<()> {
    let options = Options { json: format.is_json(), quiet: args.quiet, filters: args.filter.clone() };
    if let Some(path) = &args.read {
        let mut reader = Reader::open(path)?;
        let mut report = Report::new(options, None);
        let whole = loop {
            match reader.next() {
                Ok(Some(record)) => report.record(&record),
                Ok(None) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        return report.finish().and(whole);
    }
    let (Some(listen), Some(connect)) = (&args.listen, &args.connect) else {
        return Err(Error::Usage("trace needs LISTEN and CONNECT, or --read".into()));
    };
    let file = args.write.as_deref().map(Writer::create).transpose()?;
    let mut report = Report::new(options, file);
    let (events, received) = sync_channel(BEHIND);
    let relay = Relay::new(listen, connect, events)?;
    let reporter = std::thread::Builder::new().name("report".into()).spawn(move || {
        report.follow(&received);
        report
    });
    let reporter = reporter.map_err(|e| Error::local("thread", e))?;
    let relayed = relay.run(args.once);
    let report = reporter.join().map_err(|_| Error::local("report", std::io::Error::other("panicked")))?;
    relayed.and(report.finish())
}
