//! `VFIO_USER_DEVICE_SET_IRQS`

use crate::descriptors::may_stay;
use crate::irq::IrqType;
use crate::server::{Context, Device};
use crate::transport::Message;
use crate::wire::{Errno, IrqAction, IrqData, IrqSet, Request, Result};

impl<D: Device> Context<D> {
    /// `VFIO_USER_DEVICE_SET_IRQS`
    pub(in crate::server) fn device_set_irqs(&self, message: &mut Message) -> Result<()> {
        let (request, _) = IrqSet::parse(message.payload())?;
        request.check_fds(message.fds.len())?;
        let kind = self.check_vectors(&request)?;
        let IrqSet { start, count, .. } = request;
        match (request.action()?, request.data()?) {
            (action @ (IrqAction::Mask | IrqAction::Unmask), data) => {
                let mask = action == IrqAction::Mask;
                match data {
                    IrqData::Bool => self.mask_runs(kind, message, start, mask),
                    _ => self.mask(kind, start, count, mask),
                }
            }
            (IrqAction::Trigger, IrqData::None) if count == 0 => self.irqs.close(kind),
            (IrqAction::Trigger, IrqData::None) => self.trigger(kind, start, count, |_| true)?,
            (IrqAction::Trigger, IrqData::Bool) => {
                let wanted = booleans(message);
                let is_wanted = |i: usize| wanted.get(i).is_some_and(|byte| *byte != 0);
                self.trigger(kind, start, count, is_wanted)?;
            }
            (IrqAction::Trigger, IrqData::Eventfd) if message.fds.is_empty() => {
                self.irqs.close_range(kind, start, count);
            }
            (IrqAction::Trigger, IrqData::Eventfd) => {
                Errno::EMFILE.unless(may_stay(&message.fds), "the process has few descriptors left")?;
                self.irqs.assign(kind, start, std::mem::take(&mut message.fds))?;
            }
        }
        Ok(())
    }

    fn trigger(&self, kind: IrqType, start: u32, count: u32, wanted: impl Fn(usize) -> bool) -> Result<()> {
        let triggered = self.irqs.trigger_range(kind, start, count, wanted);
        triggered.map_err(|errno| errno.because("an eventfd takes no more, or cannot be signalled"))
    }

    /// The device is told before what waited is delivered.
    fn mask(&self, kind: IrqType, start: u32, count: u32, mask: bool) {
        self.device.irq_state(self, kind, start, count, mask);
        self.irqs.set_masked(kind, start, count, mask);
    }

    /// One call of the device for each run of bytes that are not zero.
    fn mask_runs(&self, kind: IrqType, message: &Message, start: u32, mask: bool) {
        let mut vector = start;
        for run in booleans(message).chunk_by(|a, b| (*a != 0) == (*b != 0)) {
            let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
            if run.first().is_some_and(|byte| *byte != 0) {
                self.mask(kind, vector, count, mask);
            }
            vector = vector.saturating_add(count);
        }
    }

    /// Whether the device has the vectors, and they are ones that can be treated
    /// like that.
    fn check_vectors(&self, request: &IrqSet) -> Result<IrqType> {
        let IrqSet { index, start, count, .. } = *request;
        let kind = IrqType::from_index(index)?;
        let available = self.irqs.count(kind);
        let are_there = start < available && start.saturating_add(count) <= available;
        Errno::EINVAL.unless(are_there, "there are not so many vectors")?;
        if matches!(kind, IrqType::Err | IrqType::Req) {
            let is_one_trigger = request.action()? == IrqAction::Trigger && count <= 1;
            Errno::EINVAL.unless(is_one_trigger, "these are triggered only, and one at a time")?;
        }
        Ok(kind)
    }
}

/// The bytes behind the request, one a vector.
fn booleans(message: &Message) -> &[u8] {
    message.payload().get(size_of::<IrqSet>()..).unwrap_or_default()
}
