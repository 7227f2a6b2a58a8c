//! The server under examination: connections to it, what is known of it, and what becomes of it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use vfio_user::wire::{Command, MigrationFlags};

use super::facts::Facts;
use super::link::{Link, Trouble};
use super::{Check, On, Outcome, Plan, Stop};
use crate::client::{Client, Deadline, Negotiated, Options, open, parse_version, proposal};
use crate::error::{Error, Result};

/// Between two looks whether a server is there again.
const MOMENT: Duration = Duration::from_millis(10);

/// How long a server may take to begin to listen.
const STARTING: Duration = Duration::from_secs(60);

/// What became of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server does what it must.
    Pass,
    /// It does, yet there is something to say.
    Warn(String),
    /// The server does not do what it must.
    Fail(String),
    /// The check did not apply, or could not be made.
    Skip(String),
}

/// The end of a server.
struct Death {
    /// For people.
    how: String,
    by_signal: bool,
}

/// What checks work with.
pub struct Bench {
    path: PathBuf,
    timeout: Duration,
    destructive: bool,
    restart: Option<String>,
    child: Option<Child>,
    /// A connection on which nothing was sent yet.
    pending: Option<UnixStream>,
    /// The connection that checks share.
    link: Option<Link>,
    facts: Facts,
    /// Whether the device migrates, once somebody has asked.
    pub migration: Option<Option<MigrationFlags>>,
    negotiated: Option<Negotiated>,
    warnings: Vec<String>,
    /// Why the server cannot be reached any more.
    lost: Option<String>,
    /// Whether the server ends when its client does.
    ends_with_client: bool,
}

impl Bench {
    /// Connects to the server, starting it if nobody listens and there is a way to.
    pub fn new(plan: &Plan) -> Result<Bench> {
        let mut bench = Bench {
            path: plan.socket.clone(),
            timeout: plan.timeout,
            destructive: plan.destructive,
            restart: plan.restart.clone(),
            child: None,
            pending: None,
            link: None,
            facts: Facts::default(),
            migration: None,
            negotiated: None,
            warnings: Vec::new(),
            lost: None,
            ends_with_client: false,
        };
        match open(&bench.path, bench.timeout) {
            Ok(socket) => bench.pending = Some(socket),
            Err(Error::Connect { .. }) if bench.restart.is_some() => bench.start()?,
            Err(e) => return Err(e),
        }
        if bench.pending.is_none() {
            // It was started, but does not listen.
            bench.pending = Some(open(&bench.path, bench.timeout)?);
        }
        // Of a server that does not answer less is known, or nothing. The checks will say why.
        if let Err(Stop::Local(e)) = bench.meet() {
            return Err(e);
        }
        if bench.restart.is_some() {
            bench.part()?;
        }
        Ok(bench)
    }

    /// Asks the server what it is.
    fn meet(&mut self) -> Outcome {
        let mut link = self.connect()?;
        self.facts = Facts::gather(&mut link)?;
        // What it does not know may have put it out of step, which is for a check to say.
        if link.in_step("what the device is").is_ok() {
            self.link = Some(link);
        }
        Ok(())
    }

    /// Closes the connection, and looks whether the server takes another.
    fn part(&mut self) -> Result<()> {
        self.hang_up();
        match self.connect() {
            Err(Stop::Local(e)) => Err(e),
            Err(Stop::Trouble(Trouble::Absent(_))) => {
                self.ends_with_client = true;
                self.recover()
            }
            // That is for the checks to find.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// What was negotiated with the server, if it was.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    /// What the device says of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Has something to say of a server that does what it must.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// Whether the server ends when its client does.
    pub fn ends_with_client(&self) -> bool {
        self.ends_with_client
    }

    /// Whether the device may lose data.
    pub fn may_destroy(&self) -> bool {
        self.destructive
    }

    /// Closes the connection that checks share.
    pub fn hang_up(&mut self) {
        self.link = None;
    }

    /// The connection that checks share.
    pub fn link(&mut self) -> Outcome<&mut Link> {
        let link = match self.link.take() {
            Some(link) => link,
            None => self.connect()?,
        };
        Ok(self.link.insert(link))
    }

    /// A connection of its own on which nothing was said yet.
    pub fn fresh(&mut self) -> Outcome<Link> {
        self.link = None;
        if self.pending.is_none() && self.ends_with_client {
            match self.obituary(true)? {
                Some(Death { how, by_signal: true }) => return Err(Trouble::Broken(how).into()),
                Some(Death { how, .. }) if !self.warnings.contains(&how) => self.warn(how),
                _ => {}
            }
            self.recover()?;
        }
        let socket = match (self.pending.take(), &self.lost) {
            (Some(socket), _) => socket,
            (None, Some(why)) => return Err(Stop::skip(why)),
            (None, None) => open(&self.path, self.timeout)?,
        };
        Link::new(socket, self.timeout)
    }

    /// A connection of its own on which the version is negotiated. One that has just been closed may
    /// take a server down a moment later, or keep it busy until then.
    pub fn connect(&mut self) -> Outcome<Link> {
        let deadline = Deadline::after(self.timeout);
        loop {
            let mut link = self.fresh()?;
            match self.negotiate(&mut link) {
                Ok(()) => return Ok(link),
                Err(Stop::Trouble(Trouble::Gone(_))) if !deadline.is_over() => std::thread::sleep(MOMENT),
                Err(stop) => return Err(stop),
            }
        }
    }

    /// A client that does things in order, on a connection of its own.
    pub fn client(&mut self) -> Outcome<Client> {
        self.hang_up();
        let options = Options { timeout: self.timeout, twin_socket: false };
        Ok(Client::connect(&self.path, options)?)
    }

    fn negotiate(&mut self, link: &mut Link) -> Outcome {
        let proposal = proposal(false)?;
        let answer = link.request(Command::Version, &proposal, "VERSION")?.done()?;
        self.negotiated = Some(parse_version(&answer.body)?);
        Ok(())
    }

    /// Goes on to the checks that share a connection, or to the others.
    pub fn turn_to(&mut self, on: On) -> Result<()> {
        match on == On::Own && self.link.is_some() && !self.ends_with_client {
            true => self.part(),
            false => Ok(()),
        }
    }

    /// Makes a check.
    pub fn examine(&mut self, check: &Check) -> Result<Verdict> {
        if check.destructive && !self.destructive {
            return Ok(Verdict::Skip("the device may lose data by it: needs --destructive".into()));
        }
        if let Some(why) = &self.lost {
            return Ok(Verdict::Skip(why.clone()));
        }
        self.warnings.clear();
        let mut verdict = match (check.run)(self) {
            Ok(()) if self.warnings.is_empty() => Verdict::Pass,
            Ok(()) => Verdict::Warn(self.warnings.join("; ")),
            Err(Stop::Skip(why)) => Verdict::Skip(why),
            Err(Stop::Fail(why)) => Verdict::Fail(why),
            Err(Stop::Trouble(trouble)) => Verdict::Fail(trouble.to_string()),
            Err(Stop::Local(e)) => return Err(e),
        };
        let goes_on = check.on != On::Own && !matches!(verdict, Verdict::Fail(_)) && self.is_in_step();
        if !goes_on {
            self.hang_up();
        }
        if let Some(Death { how, by_signal }) = self.aftermath(check.on)? {
            // Where a server ends with its client in any case, how it does is worth a word.
            let in_any_case = self.ends_with_client && !by_signal;
            verdict = match verdict {
                Verdict::Fail(why) => Verdict::Fail(format!("{why}; {how}")),
                Verdict::Skip(why) if in_any_case => Verdict::Skip(why),
                Verdict::Warn(why) if in_any_case => Verdict::Warn(format!("{why}; {how}")),
                Verdict::Pass if in_any_case => Verdict::Warn(how),
                _ => Verdict::Fail(how),
            };
        }
        Ok(verdict)
    }

    /// Whether the connection that checks share can serve another: a server that does not know a
    /// command may leave its payload in the stream.
    fn is_in_step(&mut self) -> bool {
        self.link.as_mut().is_none_or(|link| link.in_step("a check").is_ok())
    }

    /// Sees to it that the server can be reached for the next check; what has become of it, if that
    /// is this check's doing.
    fn aftermath(&mut self, on: On) -> Result<Option<Death>> {
        if self.link.is_some() || self.pending.is_some() {
            return Ok(None);
        }
        if self.ends_with_client {
            let how = self.obituary(true)?;
            self.recover()?;
            return Ok(how);
        }
        let trouble = match self.connect() {
            Ok(link) => {
                self.link = (on != On::Own).then_some(link);
                return Ok(None);
            }
            Err(Stop::Local(e)) => return Err(e),
            Err(Stop::Trouble(trouble)) => trouble,
            Err(Stop::Fail(why) | Stop::Skip(why)) => Trouble::Broken(why),
        };
        // A process that does not listen any more may take a moment to end.
        let how = self.obituary(matches!(trouble, Trouble::Absent(_)))?;
        self.recover()?;
        Ok(Some(how.unwrap_or_else(|| {
            let how = format!("afterwards the server cannot be reached: {trouble}");
            Death { how, by_signal: false }
        })))
    }

    /// How the server that was started here has failed, if it has. With `wait` it is given time to end.
    fn obituary(&mut self, wait: bool) -> Result<Option<Death>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let deadline = Deadline::after(self.timeout);
        let status = loop {
            let status = child.try_wait().map_err(|e| Error::local("the server's process", e))?;
            match status {
                None if wait && !deadline.is_over() => std::thread::sleep(MOMENT),
                status => break status,
            }
        };
        Ok(status.filter(|s| !s.success()).map(|status| match status.signal() {
            Some(signal) => {
                Death { how: format!("the server was ended by signal {signal}"), by_signal: true }
            }
            None => Death { how: format!("the server ended with {status}"), by_signal: false },
        }))
    }

    /// Starts the server anew, if there is a way to.
    fn recover(&mut self) -> Result<()> {
        if self.restart.is_some() {
            return self.start();
        }
        let how =
            if self.ends_with_client { "has ended with its client" } else { "cannot be reached any more" };
        self.lost = Some(format!("the server {how}; --restart tells how to start it again"));
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        self.end();
        self.clear_stale();
        let Some(command) = &self.restart else { return Ok(()) };
        let mut process = Process::new("/bin/sh");
        process.arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        let child = process.spawn().map_err(|e| Error::local("/bin/sh", e))?;
        let child = self.child.insert(child);
        // What goes on in the background is not seen from here, and has as long as an answer may take.
        let (patience, mut deadline) = (Deadline::after(STARTING), None);
        loop {
            let e = match open(&self.path, self.timeout) {
                Ok(socket) => {
                    self.pending = Some(socket);
                    return Ok(());
                }
                Err(e) => e,
            };
            let status = child.try_wait().map_err(|e| Error::local("the server's process", e))?;
            if status.is_some() && deadline.is_none() {
                deadline = Some(Deadline::after(self.timeout));
            }
            let has_failed = status.is_some_and(|status| !status.success());
            if has_failed || deadline.unwrap_or(patience).is_over() {
                self.lost = Some(format!("the server was started again, but: {e}"));
                return Ok(());
            }
            std::thread::sleep(MOMENT);
        }
    }

    /// Removes the socket of a server that has died, which keeps many from listening there again.
    fn clear_stale(&self) {
        let is_socket = fs::symlink_metadata(&self.path).is_ok_and(|m| m.file_type().is_socket());
        if is_socket && matches!(open(&self.path, self.timeout), Err(Error::Connect { .. })) {
            // If that fails, so does the start of the server, which says why.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Ends what was started here: in order, if it can.
    fn end(&mut self) {
        self.link = None;
        self.pending = None;
        let Some(mut child) = self.child.take() else { return };
        let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else { return };
        let deadline = Deadline::after(self.timeout);
        // It may have ended already.
        let _ = kill_process_group(group, Signal::TERM);
        while child.try_wait().is_ok_and(|status| status.is_none()) {
            if deadline.is_over() {
                let _ = kill_process_group(group, Signal::KILL);
                let _ = child.wait();
                return;
            }
            std::thread::sleep(MOMENT);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.end();
    }
}
