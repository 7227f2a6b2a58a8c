//! Interrupts.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::request::check_argsz;
use super::{Errno, Request, Result, take};

bitflags! {
    /// Flags of [`IrqInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqInfoFlags: u32 {
        /// `VFIO_IRQ_INFO_EVENTFD`
        const EVENTFD = 1;
        /// `VFIO_IRQ_INFO_MASKABLE`
        const MASKABLE = 1 << 1;
        /// `VFIO_IRQ_INFO_AUTOMASKED`
        const AUTOMASKED = 1 << 2;
    }

    /// Flags of [`IrqSet`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqSetFlags: u32 {
        /// `VFIO_IRQ_SET_DATA_NONE`
        const DATA_NONE = 1;
        /// `VFIO_IRQ_SET_DATA_BOOL`
        const DATA_BOOL = 1 << 1;
        /// `VFIO_IRQ_SET_DATA_EVENTFD`
        const DATA_EVENTFD = 1 << 2;
        /// `VFIO_IRQ_SET_ACTION_MASK`
        const ACTION_MASK = 1 << 3;
        /// `VFIO_IRQ_SET_ACTION_UNMASK`
        const ACTION_UNMASK = 1 << 4;
        /// `VFIO_IRQ_SET_ACTION_TRIGGER`
        const ACTION_TRIGGER = 1 << 5;
        const _ = !0;
    }
}

/// `struct vfio_irq_info`: request and reply of `VFIO_USER_DEVICE_GET_IRQ_INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IrqInfo {
    /// Room for the reply, in the reply its size, in bytes.
    pub argsz: u32,
    /// [`IrqInfoFlags`].
    pub flags: u32,
    /// The interrupt type.
    pub index: u32,
    /// How many vectors it has.
    pub count: u32,
}

impl Request for IrqInfo {
    fn check(&self, _data: &[u8]) -> Result<()> {
        check_argsz(self.argsz, size_of::<Self>())
    }
}

/// `struct vfio_irq_set` without its data: request of
/// `VFIO_USER_DEVICE_SET_IRQS`. Booleans follow it; eventfds come as descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IrqSet {
    /// Size of the request.
    pub argsz: u32,
    /// [`IrqSetFlags`].
    pub flags: u32,
    /// The interrupt type.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
}

/// What [`IrqSet`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Mask the vectors.
    Mask,
    /// Unmask them.
    Unmask,
    /// Trigger them, or assign their eventfds.
    Trigger,
}

/// What data comes with [`IrqSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqData {
    /// None: all vectors of the range are meant.
    None,
    /// A byte a vector; those that are not zero are meant.
    Bool,
    /// An eventfd a vector.
    Eventfd,
}

impl Request for IrqSet {
    /// An eventfd that masks or unmasks, which the server would have to watch, is
    /// not supported.
    fn check(&self, data: &[u8]) -> Result<()> {
        let IrqSet { argsz, start, count, .. } = *self;
        check_argsz(argsz, size_of::<Self>())?;
        let (action, kind) = (self.action()?, self.data()?);
        let is_trigger = action == IrqAction::Trigger;
        Errno::EINVAL
            .unless(kind != IrqData::Bool || data.len() == count as usize, "not a byte for each vector")?;
        let can_be_none = start == 0 && is_trigger && kind == IrqData::None;
        Errno::EINVAL.unless(count != 0 || can_be_none, "count is 0")?;
        Errno::EINVAL.unless(start.checked_add(count).is_some(), "there are not so many vectors")?;
        Errno::EINVAL.unless(
            is_trigger || kind != IrqData::Eventfd,
            "an eventfd that masks or unmasks is not supported",
        )
    }
}

impl IrqSet {
    /// Whether as many descriptors came along as the request is about: one for
    /// each vector, or none.
    ///
    /// # Errors
    /// `EINVAL`: other ones came.
    pub fn check_fds(&self, count: usize) -> Result<()> {
        let has_eventfds = self.data() == Ok(IrqData::Eventfd);
        Errno::EINVAL.unless(count == 0 || has_eventfds, "descriptors without DATA_EVENTFD")?;
        Errno::EINVAL.unless(count == 0 || count == self.count as usize, "not a descriptor for each vector")
    }

    /// Whether a request whose payload begins with `start` comes with
    /// descriptors. None: too little of it is there to tell.
    pub fn may_carry_fds(start: &[u8]) -> Option<bool> {
        let ([_argsz, flags], _) = take::<[u32; 2]>(start).ok()?;
        Some(data_of(flags) == Ok(IrqData::Eventfd))
    }

    /// The one action asked for; `EINVAL` for none or several.
    pub fn action(&self) -> Result<IrqAction> {
        let flags = IrqSetFlags::from_bits_retain(self.flags);
        let actions = IrqSetFlags::ACTION_MASK | IrqSetFlags::ACTION_UNMASK | IrqSetFlags::ACTION_TRIGGER;
        match flags & actions {
            IrqSetFlags::ACTION_MASK => Ok(IrqAction::Mask),
            IrqSetFlags::ACTION_UNMASK => Ok(IrqAction::Unmask),
            IrqSetFlags::ACTION_TRIGGER => Ok(IrqAction::Trigger),
            _ => Err(Errno::EINVAL.because("not one of MASK, UNMASK and TRIGGER")),
        }
    }

    /// The one kind of data; `EINVAL` for none or several.
    pub fn data(&self) -> Result<IrqData> {
        data_of(self.flags)
    }
}

fn data_of(flags: u32) -> Result<IrqData> {
    let kinds = IrqSetFlags::DATA_NONE | IrqSetFlags::DATA_BOOL | IrqSetFlags::DATA_EVENTFD;
    match IrqSetFlags::from_bits_retain(flags) & kinds {
        IrqSetFlags::DATA_NONE => Ok(IrqData::None),
        IrqSetFlags::DATA_BOOL => Ok(IrqData::Bool),
        IrqSetFlags::DATA_EVENTFD => Ok(IrqData::Eventfd),
        _ => Err(Errno::EINVAL.because("not one of DATA_NONE, DATA_BOOL and DATA_EVENTFD")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn descriptors_come_with_eventfd_data_alone() {
        for flags in 0..64_u32 {
            let request = IrqSet { argsz: 20, flags, index: 0, start: 0, count: 1 };
            let expected = request.data() == Ok(IrqData::Eventfd);
            assert_eq!(IrqSet::may_carry_fds(request.as_bytes()), Some(expected));
            assert_eq!(
                IrqSet::may_carry_fds(&request.as_bytes()[..8]),
                Some(expected),
                "the flags are enough"
            );
            assert_eq!(IrqSet::may_carry_fds(&request.as_bytes()[..7]), None);
        }
    }
}
