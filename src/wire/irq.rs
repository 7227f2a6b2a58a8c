//! Interrupts.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Errno, Result};

bitflags! {
    /// Flags of [`IrqInfo`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqInfoFlags: u32 {
        /// `VFIO_IRQ_INFO_EVENTFD`
        const EVENTFD = 1;
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

impl IrqSet {
    /// The one action asked for; `EINVAL` for none or several.
    pub fn action(&self) -> Result<IrqAction> {
        let flags = IrqSetFlags::from_bits_retain(self.flags);
        let actions = IrqSetFlags::ACTION_MASK | IrqSetFlags::ACTION_UNMASK | IrqSetFlags::ACTION_TRIGGER;
        match flags & actions {
            IrqSetFlags::ACTION_MASK => Ok(IrqAction::Mask),
            IrqSetFlags::ACTION_UNMASK => Ok(IrqAction::Unmask),
            IrqSetFlags::ACTION_TRIGGER => Ok(IrqAction::Trigger),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The one kind of data; `EINVAL` for none or several.
    pub fn data(&self) -> Result<IrqData> {
        let flags = IrqSetFlags::from_bits_retain(self.flags);
        let kinds = IrqSetFlags::DATA_NONE | IrqSetFlags::DATA_BOOL | IrqSetFlags::DATA_EVENTFD;
        match flags & kinds {
            IrqSetFlags::DATA_NONE => Ok(IrqData::None),
            IrqSetFlags::DATA_BOOL => Ok(IrqData::Bool),
            IrqSetFlags::DATA_EVENTFD => Ok(IrqData::Eventfd),
            _ => Err(Errno::EINVAL),
        }
    }
}
