//! `vfu check`: whether a server keeps to the protocol.
//!
//! Each check is a function that talks to the server by a [`Bench`] and says what it found. It judges
//! by the vfio-user specification: what that leaves open is at the most worth a warning. Whatever a
//! check changes in the device it changes back; those that can't have to be asked for.

mod access;
mod bench;
mod disconnect;
mod dma;
mod facts;
mod features;
mod framing;
mod info;
mod irqs;
mod link;
mod logging;
mod report;
mod state;
mod version;

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use crate::error::{Error, Result};
use bench::Bench;
use link::Trouble;
pub use report::Report;

/// What a check's functions return.
pub type Outcome<T = ()> = std::result::Result<T, Stop>;

/// Why a check ends early.
#[derive(Debug)]
pub enum Stop {
    /// The server does not do what it must.
    Fail(String),
    /// The check does not apply.
    Skip(String),
    /// There was no going on with the server, which is a failure, too.
    Trouble(Trouble),
    /// Something failed on this side.
    Local(Error),
}

impl Stop {
    /// A failed check.
    pub fn fail(reason: impl Into<String>) -> Stop {
        Stop::Fail(reason.into())
    }

    /// A check that does not apply.
    pub fn skip(reason: impl Into<String>) -> Stop {
        Stop::Skip(reason.into())
    }
}

/// What checks are about, in the order in which they are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// Pieces, gathered messages, sizes, ids, types, unknown commands, NO_REPLY
    Framing,
    /// Versions, and each capability
    Version,
    /// Information on the device, its regions and its interrupts
    Info,
    /// Reads and writes of regions
    Access,
    /// Interrupts: each action and type of data
    Irqs,
    /// Memory for the device: what is mapped and unmapped
    Dma,
    /// Reset
    Reset,
    /// Device features as such
    Features,
    /// The states of migration
    State,
    /// The data of migration
    Data,
    /// Dirty logging
    Logging,
    /// Clients that go, at any time and in any state
    Disconnect,
}

impl Group {
    /// Its checks.
    fn checks(self) -> &'static [Check] {
        match self {
            Group::Framing => framing::CHECKS,
            Group::Version => version::CHECKS,
            Group::Info => info::CHECKS,
            Group::Access => access::CHECKS,
            Group::Irqs => irqs::CHECKS,
            Group::Dma => dma::CHECKS,
            Group::Reset => features::RESET,
            Group::Features => features::CHECKS,
            Group::State => state::STATE,
            Group::Data => state::DATA,
            Group::Logging => logging::CHECKS,
            Group::Disconnect => disconnect::CHECKS,
        }
    }
}

/// On what connection a check runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// On the one that other checks have used, and will use.
    Shared,
    /// On that, too, but after them: a server that does not know the command loses step by it.
    Late,
    /// On connections that it makes.
    Own,
}

/// A check.
#[derive(Debug)]
pub struct Check {
    /// Its name, after that of its group.
    pub name: &'static str,
    /// What a server does that passes.
    pub what: &'static str,
    /// The section of the specification that says so, or [`ROBUSTNESS`].
    pub section: &'static str,
    /// Which connection it takes.
    pub on: On,
    /// Whether the device may lose data by it.
    pub destructive: bool,
    /// What it does.
    pub run: fn(&mut Bench) -> Outcome,
}

impl Check {
    const fn new(
        name: &'static str,
        section: &'static str,
        what: &'static str,
        run: fn(&mut Bench) -> Outcome,
    ) -> Check {
        Check { name, what, section, on: On::Shared, destructive: false, run }
    }

    /// The same, after those that every server has to know the commands of.
    const fn late(self) -> Check {
        Check { on: On::Late, ..self }
    }

    /// The same, on connections of its own.
    const fn own(self) -> Check {
        Check { on: On::Own, ..self }
    }

    /// The same, only with `--destructive`.
    const fn destructive(self) -> Check {
        Check { destructive: true, ..self }
    }
}

/// In place of a section, where the specification does not say it, but a server that others reach
/// should do it all the same.
const ROBUSTNESS: &str = "robustness";

/// What to do.
pub struct Plan {
    /// The server's socket.
    pub socket: PathBuf,
    /// How long each answer may take.
    pub timeout: Duration,
    /// Also checks by which the device may lose data.
    pub destructive: bool,
    /// A shell command that starts the server.
    pub restart: Option<String>,
    /// The groups; none for all.
    pub groups: Vec<Group>,
    /// The checks, by group and name; none for all of the groups.
    pub only: Vec<String>,
}

/// A check and its place in the report.
struct Chosen {
    group: String,
    check: &'static Check,
}

/// All checks of the groups, or those named.
fn choose(groups: &[Group], only: &[String]) -> Result<Vec<Chosen>> {
    let wanted = |group: &&Group| groups.is_empty() || groups.contains(group);
    let all = Group::value_variants().iter().filter(wanted).flat_map(|group| {
        let name = group.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default();
        group.checks().iter().map(move |check| Chosen { group: name.clone(), check })
    });
    let mut all: Vec<Chosen> = all.collect();
    if let Some(unknown) = only.iter().find(|name| !all.iter().any(|c| c.is_called(name))) {
        return Err(Error::Usage(format!("there is no check called '{unknown}'; --list names them")));
    }
    all.retain(|c| only.is_empty() || only.iter().any(|name| c.is_called(name)));
    Ok(all)
}

impl Chosen {
    fn is_called(&self, name: &str) -> bool {
        name.split_once('/') == Some((self.group.as_str(), self.check.name))
    }
}

/// What there is to check.
pub fn list(groups: &[Group], only: &[String]) -> Result<report::List> {
    Ok(report::List::new(&choose(groups, only)?))
}

/// Executes the plan.
pub fn run(plan: &Plan) -> Result<Report> {
    let chosen = choose(&plan.groups, &plan.only)?;
    let mut bench = Bench::new(plan)?;
    let mut verdicts: Vec<Option<bench::Verdict>> = chosen.iter().map(|_| None).collect();
    // Those that share a connection come first: there are servers that end with their first client.
    for on in [On::Shared, On::Late, On::Own] {
        bench.turn_to(on)?;
        for (place, chosen) in verdicts.iter_mut().zip(&chosen).filter(|(_, c)| c.check.on == on) {
            *place = Some(bench.examine(chosen.check)?);
        }
    }
    Ok(Report::new(plan, &bench, &chosen, verdicts))
}

/// The numbers one after the other, as 32 bits each.
fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}
