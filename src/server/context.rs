//! A context: one emulated device, served to one client at a time.
//!
//! A context is used by one thread at a time, except for what looks up guest
//! memory, triggers interrupts or logs: those parts (`dma`, `irqs`, `log` and
//! the atomics) may be used by any thread, the rest stands in cells. Nothing
//! in a cell stays borrowed where a callback is called, since callbacks call
//! back into the library.

use std::cell::{Cell, RefCell};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::Device;
use super::handover::HandOver;
use super::io_fds::IoEventfds;
use super::log::{Log, log};
use super::quiesce::Pending;
use super::refusals::Refusals;
use super::regions::Regions;
use crate::dma::AddressSpace;
use crate::irq::Irqs;
use crate::migration::Session;
use crate::pci::Pci;
use crate::transport::{Connection, Handed, Listener, Poller};
use crate::wire::capabilities::ClientCapabilities;
use crate::wire::{Errno, LoggingReport, Result};

/// `vfu_sgl_get` has nothing to say before it gives memory: the device is told
/// when regions go, or its author that it isn't.
const GETTABLE: u8 = 1;
/// A bug of ours has hit the context.
const BROKEN: u8 = 2;

/// What stands between the listening socket and a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// No client.
    #[default]
    Idle,
    /// A client is connected, whose version message is not complete.
    Negotiating,
    /// A client is attached.
    Attached,
}

/// What is still to be reported of a report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReportRest {
    /// Where it begins, and how long it is.
    pub report: LoggingReport,
    /// The page that it begins in the middle of, if it does, was told of.
    pub told: bool,
}

/// One emulated device. C knows it as `vfu_ctx_t`.
pub struct Context<D> {
    // For any thread.
    pub(super) log: Log,
    pub(super) refusals: Refusals,
    /// [`Context::poll`] can do something: nonblocking and realized, and no refusal is noted.
    pub(super) polls: AtomicBool,
    pub(super) irqs: Irqs,
    pub(super) dma: AddressSpace,
    /// `vfu_setup_device_dma` was called.
    pub(super) dma_ready: AtomicBool,
    /// [`Context::warn_of_unmaps`] has been here.
    unmaps_warned: AtomicBool,
    /// [`GETTABLE`] and [`BROKEN`], in one byte because `vfu_sgl_get` looks at both.
    condition: AtomicU8,

    // For the context's own thread.
    pub(super) device: D,
    pub(super) nonblocking: bool,
    pub(super) regions: RefCell<Regions>,
    pub(super) io_eventfds: RefCell<IoEventfds>,
    pub(super) pci: RefCell<Pci>,
    pub(super) migration: Session,
    pub(super) realized: Cell<bool>,
    /// The client has offered memory before DMA was set up.
    pub(super) memory_disregarded: Cell<bool>,

    // The client.
    /// Where clients come from, if more than one can.
    pub(super) listener: RefCell<Option<Listener>>,
    /// A connection that was handed in, until it is taken on.
    pub(super) handed_client: Cell<Option<OwnedFd>>,
    pub(super) handover: RefCell<HandOver>,
    /// Client and device belong to another process, still or by now.
    pub(super) is_elsewhere: Cell<bool>,
    pub(super) phase: Cell<Phase>,
    pub(super) connection: RefCell<Option<Box<Connection>>>,
    pub(super) client: Cell<ClientCapabilities>,
    pub(super) poller: RefCell<Option<Poller>>,
    /// [`Context::warn_of_messages`] has been here.
    pub(super) messages_warned: Cell<bool>,
    /// What waits for the device to become quiet.
    pub(super) pending: RefCell<Option<Pending>>,
    /// A request, or the loss of a connection, is being worked on.
    pub(super) busy: Cell<bool>,
    /// The client was lost, and no call has said so yet.
    pub(super) loss_unreported: Cell<bool>,
    /// What is still to be reported of a report whose reply is being sent.
    pub(super) report_rest: Cell<ReportRest>,
    /// The errno sent last by the call in progress.
    pub(super) last_errno: Cell<Option<Errno>>,
}

impl<D: Device> Context<D> {
    /// Makes a context that listens at `path`, where nothing may be; an empty
    /// path makes a socket without a place in the file system.
    ///
    /// With `nonblocking`, [`attach`](Context::attach) and [`run`](Context::run)
    /// never wait, and [`poll_fd`](Context::poll_fd) says when to call them.
    ///
    /// # Errors
    /// `ENAMETOOLONG` above 107 bytes; `EADDRINUSE` if something is there; others
    /// as socket(2), bind(2) and listen(2).
    pub fn create(path: &Path, nonblocking: bool, device: D) -> Result<Box<Context<D>>> {
        let listener = Listener::bind(path.as_os_str().as_bytes(), nonblocking)?;
        Ok(Context::make(Handed::Listener(listener), nonblocking, device))
    }

    /// The same; but the socket file of a process that is no more, if that is what is
    /// there, is replaced, in one step.
    ///
    /// # Errors
    /// `ENAMETOOLONG` above 102 bytes; `EADDRINUSE` if something else is there, or
    /// another process is about to do the same; others as open(2), connect(2) and
    /// rename(2) besides.
    pub fn create_replacing(path: &Path, nonblocking: bool, device: D) -> Result<Box<Context<D>>> {
        let listener = Listener::bind_replacing(path.as_os_str().as_bytes(), nonblocking)?;
        Ok(Context::make(Handed::Listener(listener), nonblocking, device))
    }

    /// Makes a context that serves clients of a UNIX stream socket which was handed
    /// in: one that listens, or one that is connected. To the latter's client there is
    /// never another: [`attach`](Context::attach) fails with `ENOTCONN` then.
    ///
    /// # Errors
    /// See [`Handed::new`]. The descriptor is the context's if this succeeds.
    ///
    /// # Safety
    ///
    /// If this succeeds, nobody else closes the descriptor.
    pub unsafe fn create_over(fd: RawFd, nonblocking: bool, device: D) -> Result<Box<Context<D>>> {
        // SAFETY: the caller's promise.
        let handed = unsafe { Handed::new(fd, nonblocking) }?;
        Ok(Context::make(handed, nonblocking, device))
    }

    /// Whether [`attach`](Context::attach) and [`run`](Context::run) do not wait for the client.
    #[inline(always)]
    pub(crate) fn is_nonblocking(&self) -> bool {
        self.nonblocking
    }

    fn make(handed: Handed, nonblocking: bool, device: D) -> Box<Context<D>> {
        let context = Context::bare(nonblocking, device);
        match handed {
            Handed::Listener(listener) => *context.listener.borrow_mut() = Some(listener),
            Handed::Client(client) => context.handed_client.set(Some(client)),
        }
        context
    }

    /// A context to which no clients can come (yet).
    pub(super) fn bare(nonblocking: bool, device: D) -> Box<Context<D>> {
        Box::new(Context {
            log: Log::default(),
            refusals: Refusals::default(),
            irqs: Irqs::default(),
            dma: AddressSpace::new(),
            dma_ready: AtomicBool::new(false),
            unmaps_warned: AtomicBool::new(false),
            condition: AtomicU8::new(0),
            device,
            nonblocking,
            regions: RefCell::default(),
            io_eventfds: RefCell::default(),
            pci: RefCell::new(Pci::new()),
            migration: Session::default(),
            realized: Cell::new(false),
            polls: AtomicBool::new(false),
            memory_disregarded: Cell::new(false),
            listener: RefCell::default(),
            handed_client: Cell::default(),
            handover: RefCell::default(),
            is_elsewhere: Cell::default(),
            phase: Cell::default(),
            connection: RefCell::new(None),
            client: Cell::default(),
            poller: RefCell::new(None),
            messages_warned: Cell::new(false),
            pending: RefCell::new(None),
            busy: Cell::new(false),
            loss_unreported: Cell::new(false),
            report_rest: Cell::default(),
            last_errno: Cell::new(None),
        })
    }

    /// The device.
    #[inline(always)]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Whether a bug of ours has hit this context: its functions fail.
    #[inline(always)]
    pub fn is_broken(&self) -> bool {
        self.condition.load(Ordering::Relaxed) & BROKEN != 0
    }

    /// A bug of ours has hit this context.
    pub(crate) fn mark_broken(&self) {
        self.condition.fetch_or(BROKEN, Ordering::Relaxed);
        // So that the shortest ways needn't look whether it has.
        self.dma.close();
    }

    /// Whether the device may get memory without a word: see [`GETTABLE`]. Not
    /// if the context is broken.
    #[inline(always)]
    pub(super) fn is_gettable(&self) -> bool {
        self.condition.load(Ordering::Acquire) == GETTABLE
    }

    /// Says whether the device is told when regions go.
    pub(super) fn set_told_of_unmaps(&self, told: bool) {
        match told || self.unmaps_warned.load(Ordering::Relaxed) {
            true => self.condition.fetch_or(GETTABLE, Ordering::Release),
            false => self.condition.fetch_and(!GETTABLE, Ordering::Release),
        };
    }

    /// Warns of a device that gets memory and is not told when it goes, the
    /// first time. Any thread may call this.
    #[cold]
    pub(super) fn warn_of_unmaps(&self) {
        if !self.unmaps_warned.swap(true, Ordering::Relaxed) {
            log!(
                self,
                LOG_WARNING,
                "vfu_sgl_get without an unregister callback: the device is not told when the memory goes"
            );
        }
        self.set_told_of_unmaps(false);
    }

    /// Does something with the connection, if there is one. Nothing that `f`
    /// does may call the device.
    pub(super) fn with_connection<T>(&self, f: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        self.connection.borrow_mut().as_deref_mut().map(f)
    }

    /// Whether a client is attached.
    pub(super) fn attached(&self) -> bool {
        self.phase.get() == Phase::Attached
    }
}
