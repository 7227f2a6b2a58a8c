//! The migration itself, step by step.

use std::time::{Duration, Instant};

use vfio_user::wire::DeviceState;

use super::guest::{self, Guest};
use super::history::{Round, Stretch};
use super::load::{self, Load, Summary};
use super::progress::{Moved, Progress};
use super::report::Report;
use super::side::{Fault, On, Side};
use super::verify::{self, LeftOut};
use crate::args;
use crate::client::{Client, state_name};
use crate::commands::saved::restore_config;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::interrupts::Vectors;

/// Device data taken in one round before memory has its turn, in bytes: a
/// device may change faster than it can be read.
const ROUND_DATA: u64 = 256 << 20;
/// Device data that is read before a reset in the middle of a round, in bytes:
/// it hardly ends where a record does.
const BEFORE_RESET: usize = 1001;
/// Pieces of work that a load is given on the destination.
const MORE_WORK: u64 = 256;

/// One of the two servers.
pub struct End {
    /// The connection.
    pub client: Client,
    /// Where its interrupts arrive.
    pub vectors: Option<Vectors>,
    /// The state it was found in.
    pub state: DeviceState,
    /// Its state can be read while it runs.
    pub pre_copy: bool,
}

/// A migration under way.
pub struct Mover<'a> {
    /// The device that moves away.
    pub src: End,
    /// The device that it becomes.
    pub dst: End,
    /// The memory of the guest.
    pub guest: Guest,
    /// What kind of device it is.
    pub identity: Identity,
    /// What keeps the device busy.
    pub load: Option<Box<dyn Load>>,
    /// Who wants to know.
    pub progress: Progress,
    /// Something was asked of the devices that has to be undone.
    pub touched: bool,
    args: &'a args::Migrate,
    start: Instant,
    rounds: u32,
    resets: u32,
    /// What the loads came to that ended with a reset.
    before_reset: Summary,
    moved: Moved,
    history: Vec<Round>,
    /// When the round that is under way began, and what had been moved by then.
    round: Option<(Instant, Moved)>,
    stop: Option<Stop>,
    /// The destination runs.
    switched: bool,
}

/// How long the guest stands still, and what was found out in the meantime.
struct Stop {
    /// When it began.
    start: Instant,
    /// When the destination ran.
    end: Option<Instant>,
    /// What had been moved before.
    before: Moved,
    /// What the comparison took, which is in none of the other times.
    comparison: Duration,
    not_compared: Vec<LeftOut>,
}

impl<'a> Mover<'a> {
    /// A migration that hasn't begun.
    pub fn new(
        src: End,
        dst: End,
        guest: Guest,
        identity: Identity,
        progress: Progress,
        args: &'a args::Migrate,
    ) -> Mover<'a> {
        Mover {
            src,
            dst,
            guest,
            identity,
            load: None,
            progress,
            touched: false,
            args,
            start: Instant::now(),
            rounds: 0,
            resets: 0,
            before_reset: Summary::default(),
            moved: Moved::default(),
            history: Vec::new(),
            round: None,
            stop: None,
            switched: false,
        }
    }

    /// All of it.
    pub fn run(&mut self) -> Result<Report, Fault> {
        self.start = Instant::now();
        self.progress.begin();
        self.guest.start_logging(&mut self.src.client).on(Side::Source)?;
        self.pump()?;
        self.dst.client.set_device_state(DeviceState::Resuming).on(Side::Destination)?;
        if self.src.pre_copy {
            self.src.client.set_device_state(DeviceState::PreCopy).on(Side::Source)?;
        }
        let converged = self.rounds()?;
        self.switch_over()?;
        self.go_on()?;
        self.give_source_up()?;
        Ok(Report { converged, verified: self.args.verify, ..self.report() })
    }

    /// How it went until it failed.
    pub fn failed(&self, fault: &Fault) -> Report {
        let broken_off = self.round.map(|(start, before)| self.stretch(start, start.elapsed(), before));
        Report { failure: Some(fault.to_string()), broken_off, ..self.report() }
    }

    /// How it has gone so far.
    fn report(&self) -> Report {
        let (stop, comparison, end, not_compared) = match &self.stop {
            Some(Stop { start, end, before, comparison, not_compared }) => {
                let end = end.unwrap_or_else(Instant::now);
                let stop =
                    self.stretch(*start, end.duration_since(*start).saturating_sub(*comparison), *before);
                (Some(stop), *comparison, end, not_compared.clone())
            }
            None => (None, Duration::ZERO, Instant::now(), Vec::new()),
        };
        Report {
            total_seconds: end.duration_since(self.start).saturating_sub(comparison).as_secs_f64(),
            downtime_seconds: stop.map(|stop| stop.seconds),
            rounds: self.rounds,
            resets: self.resets,
            converged: false,
            page_size: self.guest.page_size(),
            moved: self.moved,
            load: self.load.as_ref().map(|load| load.summary().after(self.before_reset)),
            verified: false,
            not_compared,
            history: self.history.clone(),
            broken_off: None,
            stop,
            failure: None,
        }
    }

    /// What was moved from a time on, for so long.
    fn stretch(&self, start: Instant, time: Duration, before: Moved) -> Stretch {
        Stretch {
            start_seconds: start.duration_since(self.start).as_secs_f64(),
            seconds: time.as_secs_f64(),
            moved: self.moved.since(before),
        }
    }

    /// Gives the source something to do.
    pub fn start_load(&mut self) -> Result<()> {
        let Some(vectors) = &self.src.vectors else { return Ok(()) };
        let (ranges, verify) = (self.guest.ranges(), self.args.verify);
        let client = &mut self.src.client;
        self.load = Some(load::start(client, &self.identity, ranges, vectors, verify, self.resets)?);
        Ok(())
    }

    /// Resets the source, whatever it is doing, and has it go on as after a
    /// reboot of the guest.
    fn reset(&mut self) -> Result<()> {
        let before = self.src.client.device_state()?;
        self.src.client.reset()?;
        self.resets = self.resets.saturating_add(1);
        match self.src.client.device_state()? {
            after if after == before => {}
            after => {
                let text = format!("a reset led from {} to {}", state_name(before), state_name(after));
                return Err(Error::Unfit(text));
            }
        }
        let Some(load) = self.load.take() else { return Ok(()) };
        self.before_reset = load.summary().after(self.before_reset);
        drop(load);
        if let Some(vectors) = &self.src.vectors {
            vectors.rearm(&mut self.src.client)?;
        }
        self.start_load()
    }

    /// Resets the source, if this is a round for it, while the stream is in the
    /// middle of something.
    fn reset_in_round(&mut self) -> Result<(), Fault> {
        if self.resets >= self.args.reset_during {
            return Ok(());
        }
        if self.src.pre_copy {
            self.move_some_device_data(BEFORE_RESET)?;
        }
        self.reset().on(Side::Source)
    }

    /// Sees to the work that the source does in the meantime.
    fn pump(&mut self) -> Result<(), Fault> {
        match (&mut self.load, &self.src.vectors) {
            (Some(load), Some(vectors)) => load.pump(&mut self.src.client, vectors).on(Side::Source),
            _ => Ok(()),
        }
    }

    /// Rounds while the device runs, until what is left can be moved within
    /// the downtime allowed, or there were enough: whether it can.
    fn rounds(&mut self) -> Result<bool, Fault> {
        while self.rounds < self.args.rounds {
            let number = self.rounds.saturating_add(1);
            self.progress.phase(format!("round {number}"));
            let (start, before) = (Instant::now(), self.moved);
            self.round = Some((start, before));
            self.copy_pending(true)?;
            self.reset_in_round()?;
            let all = !self.src.pre_copy || self.move_device_data(true)?;
            self.guest.fetch_dirty(&mut self.src.client).on(Side::Source)?;
            let time = start.elapsed();
            let moved = self.moved.since(before);
            (self.round, self.rounds) = (None, number);
            self.progress.round(number, moved, time, self.guest.pending());
            let (left_bytes, fitting_bytes) = (self.left(moved), self.fitting());
            self.history.push(Round {
                start_seconds: start.duration_since(self.start).as_secs_f64(),
                seconds: time.as_secs_f64(),
                moved,
                dirty_pages: self.guest.pending(),
                left_bytes,
                fitting_bytes,
            });
            if all && self.resets >= self.args.reset_during && left_bytes <= fitting_bytes {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Bytes that are left: the dirty pages, and as much device data as the last round brought.
    fn left(&self, last_round: Moved) -> u64 {
        self.guest.pending().saturating_mul(self.guest.page_size()).saturating_add(last_round.device)
    }

    /// Bytes that can be moved within the downtime allowed.
    fn fitting(&self) -> u64 {
        (self.moved.rate(self.start.elapsed()) * self.args.max_downtime.as_secs_f64()) as u64
    }

    /// Copies the pages that are due.
    fn copy_pending(&mut self, running: bool) -> Result<(), Fault> {
        let ranges = self.guest.take_pending();
        let page_size = self.guest.page_size();
        let mut left: u64 = ranges.iter().map(|(_, len)| (*len as u64).div_ceil(page_size)).sum();
        for (addr, len) in ranges {
            guest::copy(&mut self.src.client, &mut self.dst.client, addr, len)?;
            self.moved.memory = self.moved.memory.saturating_add(len as u64);
            left = left.saturating_sub((len as u64).div_ceil(page_size));
            self.progress.moved(self.moved, left);
            if running {
                self.pump()?;
            }
        }
        Ok(())
    }

    /// Moves device data until there is no more; of a device that runs, no
    /// more than a round allows. Whether that was all.
    fn move_device_data(&mut self, running: bool) -> Result<bool, Fault> {
        let size = self.src.client.max_data_xfer_size();
        let mut total: u64 = 0;
        while !running || total < ROUND_DATA {
            let moved = self.move_some_device_data(size)?;
            total = total.saturating_add(moved as u64);
            if moved < size {
                return Ok(true);
            }
            if running {
                self.pump()?;
            }
        }
        Ok(false)
    }

    /// Moves at most `size` bytes of device data: how many there were.
    fn move_some_device_data(&mut self, size: usize) -> Result<usize, Fault> {
        let data = self.src.client.mig_data_read(size).on(Side::Source)?;
        self.dst.client.mig_data_write(&data).on(Side::Destination)?;
        self.moved.device = self.moved.device.saturating_add(data.len() as u64);
        self.progress.moved(self.moved, self.guest.pending());
        Ok(data.len())
    }

    /// Stops the source, moves the rest, and starts the destination. What a
    /// comparison takes is no downtime: who doesn't want it doesn't wait.
    fn switch_over(&mut self) -> Result<(), Fault> {
        self.progress.phase("stopped");
        if let (Some(load), Some(vectors)) = (&mut self.load, &self.src.vectors) {
            load.before_stop(&mut self.src.client, vectors).on(Side::Source)?;
        }
        self.stop = Some(Stop {
            start: Instant::now(),
            end: None,
            before: self.moved,
            comparison: Duration::ZERO,
            not_compared: Vec::new(),
        });
        let load = &mut self.load;
        let mut at_stop = || load.as_mut().map_or(Ok(()), |load| load.at_stop());
        self.src.client.set_device_state_and(DeviceState::StopCopy, &mut at_stop).on(Side::Source)?;
        self.collect_interrupts()?;
        self.guest.fetch_dirty(&mut self.src.client).on(Side::Source)?;
        self.copy_pending(false)?;
        self.move_device_data(false)?;
        let config = self.src.client.config_space().on(Side::Source)?;
        restore_config(&mut self.dst.client, &config).on(Side::Destination)?;
        self.dst.client.set_device_state(DeviceState::Stop).on(Side::Destination)?;
        self.src.client.set_device_state(DeviceState::Stop).on(Side::Source)?;
        if self.args.verify {
            self.progress.phase("comparing");
            let begin = Instant::now();
            let (src, dst) = (&mut self.src.client, &mut self.dst.client);
            let compared = self.guest.compare(src, dst);
            let compared = compared.and_then(|()| verify::compare_regions(src, dst, &self.identity));
            if let Some(stop) = &mut self.stop {
                stop.comparison = begin.elapsed();
            }
            let left_out = compared?;
            if let Some(stop) = &mut self.stop {
                stop.not_compared = left_out;
            }
        }
        self.dst.client.set_device_state(DeviceState::Running).on(Side::Destination)?;
        if let Some(stop) = &mut self.stop {
            stop.end = Some(Instant::now());
        }
        self.switched = true;
        Ok(())
    }

    /// Takes in the interrupts that the source has sent until it stopped.
    fn collect_interrupts(&mut self) -> Result<(), Fault> {
        let (Some(load), Some(vectors)) = (&mut self.load, &self.src.vectors) else { return Ok(()) };
        load.stopped(&mut self.src.client, vectors).on(Side::Source)
    }

    /// Has the destination do what was left to do, and checks what all of it
    /// comes to before more work hides it; then that.
    fn go_on(&mut self) -> Result<(), Fault> {
        let (Some(load), Some(vectors)) = (&mut self.load, &self.dst.vectors) else { return Ok(()) };
        self.progress.phase("working on");
        let client = &mut self.dst.client;
        load.moved(client)
            .and_then(|()| load.settle(client, vectors))
            .and_then(|()| load.check(client, vectors))
            .and_then(|()| load.work_on(client, vectors, MORE_WORK))
            .and_then(|()| load.check(client, vectors))
            .on(Side::Destination)
    }

    /// Takes the memory from the source, which must not have written to it
    /// since it stopped, and leaves it stopped.
    fn give_source_up(&mut self) -> Result<(), Fault> {
        let src = &mut self.src.client;
        for (addr, size) in self.guest.ranges() {
            match src.dma_unmap_dirty(addr, size, self.guest.page_size()).on(Side::Source)? {
                Some(pages) if pages.count() > 0 => {
                    let text = format!("{} pages were written to after the stop", pages.count());
                    return Err(Error::Unfit(text)).on(Side::Source);
                }
                Some(_) => {}
                None => src.dma_unmap(addr).on(Side::Source)?,
            }
        }
        src.logging_stop().on(Side::Source)
    }

    /// After a failure: lets the source run again and resets the destination.
    /// What has become of them.
    pub fn recover(&mut self) -> String {
        if !self.touched {
            return "nothing was done".into();
        }
        let src = match self.resume_source() {
            Ok(()) => "the source runs".into(),
            Err(e) => format!("the source does not run ({e})"),
        };
        let dst = match self.dst.client.reset() {
            Ok(()) => "the destination was reset".into(),
            Err(e) => format!("the destination could not be reset ({e})"),
        };
        format!("{src}, {dst}")
    }

    /// Lets the source run, and do all the work that it has.
    fn resume_source(&mut self) -> Result<()> {
        self.src.client.set_device_state(DeviceState::Running)?;
        self.src.client.logging_stop()?;
        match (&mut self.load, &self.src.vectors) {
            (Some(load), Some(vectors)) if !self.switched => {
                load.settle(&mut self.src.client, vectors)?;
                load.check(&mut self.src.client, vectors)
            }
            _ => Ok(()),
        }
    }
}
