//! What a virtual machine monitor writes back to the configuration space of a
//! device that has moved, since migration data needn't hold it.

use super::capability;
use super::space::Space;

/// A write to the configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Where.
    pub offset: usize,
    /// What, the register's full width.
    pub data: Vec<u8>,
    /// A device may refuse it: only it knows whether the bytes can be written.
    pub optional: bool,
}

/// Registers of the header, as offset and width: base addresses and ROM
/// before what depends on them.
const HEADER: [(usize, usize); 10] = [
    (0x10, 4),
    (0x14, 4),
    (0x18, 4),
    (0x1c, 4),
    (0x20, 4),
    (0x24, 4),
    (0x30, 4),
    // Cache line size, latency timer, interrupt line.
    (0x0c, 1),
    (0x0d, 1),
    (0x3c, 1),
];

/// The command register, which comes last: it lets the device act.
const COMMAND: (usize, usize) = (0x04, 2);

const POWER_MANAGEMENT: u8 = 0x01;
const MSI: u8 = 0x05;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;

/// Where Device Control of PCI Express is in the capability.
const DEVICE_CONTROL: usize = 0x08;
/// The upper byte's bit that resets the function when it is written.
const INITIATE_FLR: u8 = 0x80;

/// The writes that make `now`, a device's configuration space, what `saved`
/// is, in the order that they are safe in. Registers that are equal are left
/// alone.
pub fn plan(saved: &[u8], now: &[u8]) -> Vec<Restore> {
    let mut writes = Vec::new();
    let mut add = |(offset, width): (usize, usize), optional: bool| {
        let range = offset..offset.saturating_add(width);
        let (Some(old), Some(current)) = (saved.get(range.clone()), now.get(range)) else { return };
        if old != current {
            writes.push(Restore { offset, data: old.to_vec(), optional });
        }
    };
    HEADER.into_iter().for_each(|register| add(register, false));
    let capabilities = capability::decode(Space(saved));
    // Interrupts are switched on when everything that they need is there.
    let mut switches = Vec::new();
    for capability in &capabilities {
        let at = |(offset, width): (usize, usize)| (capability.offset.saturating_add(offset), width);
        match capability.id {
            POWER_MANAGEMENT => add(at((4, 2)), false),
            EXPRESS => {
                let registers = [(DEVICE_CONTROL, 2), (0x10, 2), (0x28, 2), (0x30, 2)];
                let size = express_size(saved, capability.offset);
                registers.into_iter().filter(|(o, _)| *o < size).for_each(|r| add(at(r), false));
            }
            MSI => {
                msi_registers(saved, capability.offset).into_iter().for_each(|r| add(at(r), false));
                switches.push(at((2, 2)));
            }
            MSIX => switches.push(at((2, 2))),
            VENDOR => {
                let size = saved.get(capability.offset.saturating_add(2)).copied().unwrap_or(0);
                (3..usize::from(size)).for_each(|offset| add(at((offset, 1)), true));
            }
            _ => {}
        }
    }
    switches.into_iter().for_each(|register| add(register, false));
    add(COMMAND, false);
    without_flr(&mut writes, &capabilities);
    writes
}

/// Bytes of a PCI Express capability: version 1 ends before the second set of
/// control registers.
fn express_size(space: &[u8], at: usize) -> usize {
    let version = space.get(at.saturating_add(2)).copied().unwrap_or(0) & 0xf;
    if version < 2 { 0x14 } else { 0x3c }
}

/// Address, data and mask of MSI, whose places depend on its control register.
fn msi_registers(space: &[u8], at: usize) -> Vec<(usize, usize)> {
    const ADDRESS_64: u8 = 0x80;
    const MASKABLE: u8 = 1;
    let byte = |n: usize| space.get(at.saturating_add(n)).copied().unwrap_or(0);
    let wide = byte(2) & ADDRESS_64 != 0;
    let mut registers = vec![(4, 4)];
    registers.extend(wide.then_some((8, 4)));
    registers.push((if wide { 12 } else { 8 }, 2));
    if byte(3) & MASKABLE != 0 {
        registers.push((if wide { 16 } else { 12 }, 4));
    }
    registers
}

/// Makes sure that no write resets the function.
fn without_flr(writes: &mut [Restore], capabilities: &[capability::Capability]) {
    let express = |offset: usize| {
        capabilities.iter().any(|c| c.id == EXPRESS && c.offset.saturating_add(DEVICE_CONTROL) == offset)
    };
    for write in writes.iter_mut().filter(|w| express(w.offset)) {
        if let Some(upper) = write.data.get_mut(1) {
            *upper &= !INITIATE_FLR;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PM at 0x40, Express at 0x48, MSI at 0x84, MSI-X at 0xa0, a vendor's of
    /// 6 bytes at 0xb0.
    fn space() -> Vec<u8> {
        let mut space = vec![0; 256];
        space[0x06] = 0x10;
        space[0x34] = 0x40;
        for (at, id, next) in
            [(0x40, 0x01, 0x48), (0x48, 0x10, 0x84), (0x84, 0x05, 0xa0), (0xa0, 0x11, 0xb0), (0xb0, 0x09, 0)]
        {
            space[at] = id;
            space[at + 1] = next;
        }
        space[0x4a] = 2;
        space[0x86] = 0x80;
        space[0x87] = 1;
        space[0xb2] = 6;
        space
    }

    #[test]
    fn equal_spaces_need_no_write() {
        assert_eq!(plan(&space(), &space()), []);
        assert_eq!(plan(&[], &[]), []);
    }

    #[test]
    fn every_writable_register_is_written_and_the_switches_last() {
        let now = space();
        let mut saved = space();
        let all = [
            0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x0c, 0x0d, 0x3c, 0x44, 0x50, 0x58, 0x70, 0x78, 0x88,
            0x8c, 0x90, 0x94, 0xb3, 0xb5, 0x86, 0xa2, 0x04,
        ];
        all.iter().for_each(|at| saved[*at] ^= 1);
        let writes = plan(&saved, &now);
        assert_eq!(writes.iter().map(|w| w.offset).collect::<Vec<_>>(), all);
        assert!(writes.iter().all(|w| w.optional == (0xb3..0xb6).contains(&w.offset)));
        // Carried out, they make the space what was saved.
        let mut written = now;
        for Restore { offset, data, .. } in &writes {
            written[*offset..offset + data.len()].copy_from_slice(data);
        }
        assert_eq!(written, saved);
    }

    #[test]
    fn registers_that_do_not_exist_are_not_written() {
        let mut now = space();
        now[0x4a] = 1;
        now[0x86] = 0;
        now[0x87] = 0;
        let mut saved = now.clone();
        [0x50, 0x58, 0x70, 0x78, 0x88, 0x8c, 0x90, 0x94].iter().for_each(|at| saved[*at] ^= 1);
        let offsets: Vec<_> = plan(&saved, &now).iter().map(|w| w.offset).collect();
        assert_eq!(offsets, [0x50, 0x58, 0x88, 0x8c]);
    }

    #[test]
    fn what_a_client_cannot_write_is_left_alone() {
        let now = space();
        let mut saved = space();
        // Ids, status, class; a link, and sizes.
        [0x00, 0x02, 0x08, 0x0b, 0x0e, 0x2c, 0x3d, 0x07, 0xb1, 0xa5].iter().for_each(|at| saved[*at] ^= 0x20);
        assert_eq!(plan(&saved, &now), []);
    }

    #[test]
    fn a_reset_is_never_written() {
        let mut saved = space();
        saved[0x51] = 0xa5;
        let writes = plan(&saved, &space());
        assert_eq!(writes, [Restore { offset: 0x50, data: vec![0, 0x25], optional: false }]);
    }
}
