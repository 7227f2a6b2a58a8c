//! `vfu check`

use crate::args::Check;
use crate::check::{self, Plan};
use crate::client::Options;
use crate::error::{Error, Result};
use crate::output::Format;

/// Checks a server, or lists what there is to check.
pub fn run(args: &Check, options: Options, format: Format) -> Result<()> {
    let Some(socket) = args.socket.as_ref().filter(|_| !args.list) else {
        let list = check::list(&args.group, &args.only)?;
        return match format.is_json() {
            true => format.json(&list),
            false => list.print(),
        };
    };
    let plan = Plan {
        socket: socket.clone(),
        timeout: options.timeout,
        destructive: args.destructive,
        restart: args.restart.clone(),
        groups: args.group.clone(),
        only: args.only.clone(),
    };
    let report = check::run(&plan)?;
    if let Some(path) = &args.junit {
        report.junit(path)?;
    }
    match format.is_json() {
        true => format.json(&report)?,
        false => report.print()?,
    }
    match report.failures() {
        0 => Ok(()),
        1 => Err(Error::Unfit("1 check failed".into())),
        n => Err(Error::Unfit(format!("{n} checks failed"))),
    }
}
