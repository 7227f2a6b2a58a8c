//! A grammar of messages: most make sense.

use arbitrary::{Arbitrary, Result, Unstructured};

use crate::peer::{message, words};

/// Which descriptor goes with a message, if any: numbers in the pool.
pub struct Message {
    pub bytes: Vec<u8>,
    pub fds: Vec<u8>,
}

/// A small number, most of the time.
fn small(u: &mut Unstructured) -> Result<u32> {
    Ok(match u8::arbitrary(u)? {
        255 => u32::arbitrary(u)?,
        other => u32::from(other % 16),
    })
}

fn long(value: u64) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

/// Addresses and sizes that meet each other often.
fn address(u: &mut Unstructured) -> Result<u64> {
    Ok(match u8::arbitrary(u)? {
        0 => u64::arbitrary(u)?,
        1 => 0_u64.wrapping_sub(0x1000),
        other => u64::from(other % 16) * 0x1000,
    })
}

fn size(u: &mut Unstructured) -> Result<u64> {
    Ok(match u8::arbitrary(u)? {
        0 => u64::arbitrary(u)?,
        1 => u64::from(u8::arbitrary(u)?),
        2 => 8 << 40,
        3 => 1 << 24,
        other => u64::from(other % 8) * 0x1000,
    })
}

pub fn any(u: &mut Unstructured) -> Result<Message> {
    let cmd = match u8::arbitrary(u)? {
        0 => u16::arbitrary(u)?,
        1 => 1,
        other => [2, 2, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 10, 10, 13, 15, 16, 16, 16, 17, 18]
            [usize::from(other) % 22],
    };
    let mut fds = Vec::new();
    let mut payload = match cmd {
        2 => {
            if u8::arbitrary(u)? % 8 != 0 {
                fds.push(u8::arbitrary(u)?);
            }
            let mode = if fds.is_empty() { 0 } else { *u.choose(&[0, 4, 8])? };
            let flags = mode | u32::from(u8::arbitrary(u)? % 4);
            let offset =
                if u8::arbitrary(u)? == 0 { u64::arbitrary(u)? } else { u64::from(small(u)?) * 0x800 };
            [words(&[32, flags]), long(offset), long(address(u)?), long(size(u)?)].concat()
        }
        3 => match u8::arbitrary(u)? % 8 {
            0 => [words(&[24, 2]), long(0), long(0)].concat(),
            1 => {
                let bitmap = [words(&[48, 1]), long(address(u)?), long(size(u)?)].concat();
                [bitmap, long(0x1000), long(8)].concat()
            }
            _ => [words(&[24, 0]), long(address(u)?), long(size(u)?)].concat(),
        },
        4 => words(&[16, 0, 0, 0]),
        5 => words(&[*u.choose(&[32, 64, 80, 255])?, 0, small(u)? % 10, 0, 0, 0, 0, 0]),
        6 => words(&[*u.choose(&[16, 64, 4096])?, 0, small(u)? % 10, 0]),
        7 => words(&[16, 0, small(u)? % 6, 0]),
        8 => irqs(u, &mut fds)?,
        9 | 10 => {
            let (offset, region, count) = access(u)?;
            let mut payload = [long(offset), words(&[region, count])].concat();
            if cmd == 10 {
                payload.resize(16 + count.min(1 << 18) as usize, u8::arbitrary(u)?);
            }
            payload
        }
        15 => {
            let count = u8::arbitrary(u)? % 4;
            let mut payload = long(count.into());
            for _ in 0..count {
                let (offset, region, count) = access(u)?;
                payload
                    .extend([long(offset), words(&[region, count % 9]), long(u64::arbitrary(u)?)].concat());
            }
            payload
        }
        16 => feature(u)?,
        17 | 18 => {
            let size = if u8::arbitrary(u)? < 8 { u32::arbitrary(u)? % (1 << 21) } else { small(u)? };
            let mut payload = words(&[size.saturating_add(8), size]);
            if cmd == 18 {
                payload.resize(8 + size.min(1 << 17) as usize, 0);
            }
            payload
        }
        _ => words(&[small(u)?, small(u)?]),
    };
    if cmd == 13 {
        payload.clear();
    }
    let flags = if u8::arbitrary(u)? % 8 == 0 { 0x10 } else { 0 };
    let bytes = message(0, cmd, flags, &payload);
    mutate(u, Message { bytes, fds })
}

fn access(u: &mut Unstructured) -> Result<(u64, u32, u32)> {
    let region = u32::from(u8::arbitrary(u)? % 10);
    let region = if u8::arbitrary(u)? % 2 == 0 { 7 } else { region };
    Ok(match u8::arbitrary(u)? {
        0 => (u64::arbitrary(u)?, region, u32::arbitrary(u)?),
        1 => (0, region, (1 << 20) - u32::from(u8::arbitrary(u)? % 2)),
        2 => (0, region, u32::arbitrary(u)? % 0x8_0000),
        // Device control, which starts a function level reset.
        3 => (0x84, 7, 4),
        other => (u64::from(u16::arbitrary(u)? % 0x130), region, [1, 2, 4, 8, 17, 0][usize::from(other % 6)]),
    })
}

fn irqs(u: &mut Unstructured, fds: &mut Vec<u8>) -> Result<Vec<u8>> {
    let (index, start, count) = (small(u)? % 6, small(u)? % 4, small(u)? % 5);
    let data = u32::from(u8::arbitrary(u)? % 4);
    let action = *u.choose(&[32, 32, 32, 8, 16])?;
    let mut payload = words(&[20, action | 1 << data, index, start, count]);
    match data {
        1 => payload.resize(20 + count as usize, u8::arbitrary(u)?),
        2 => {
            for _ in 0..count.min(200) {
                // Eventfds, most of them.
                fds.push(if u8::arbitrary(u)? < 16 { u8::arbitrary(u)? } else { 2 });
            }
        }
        _ => {}
    }
    Ok(payload)
}

fn feature(u: &mut Unstructured) -> Result<Vec<u8>> {
    let number = *u.choose(&[1, 2, 2, 2, 6, 6, 7, 8, 8])?;
    let operation = match (u8::arbitrary(u)?, number) {
        (0, _) => u32::from(u8::arbitrary(u)?),
        (1..8, _) => 4,
        (_, 1 | 8) => 1,
        (other, 2) => 1 + u32::from(other % 4 != 0),
        _ => 2,
    };
    let rest = match number {
        2 => words(&[u32::from(u8::arbitrary(u)? % 9), 0]),
        6 => {
            let count = u32::from(u8::arbitrary(u)? % 3);
            let mut rest = [long(0x1000 << (u8::arbitrary(u)? % 3)), words(&[count, 0])].concat();
            for _ in 0..count {
                rest.extend([long(address(u)?), long(size(u)?)].concat());
            }
            rest
        }
        8 => [long(address(u)?), long(size(u)?), long(0x200 << (u8::arbitrary(u)? % 8))].concat(),
        _ => Vec::new(),
    };
    Ok([words(&[0x1000, operation << 16 | number]), rest].concat())
}

/// Makes one of a few messages wrong.
fn mutate(u: &mut Unstructured, mut message: Message) -> Result<Message> {
    let length = message.bytes.len();
    match u8::arbitrary(u)? {
        0..12 => {
            let at = u.choose_index(length.min(64))?;
            // Sizes beyond the limit end the connection: those have their own case.
            if !(4..8).contains(&at) {
                message.bytes[at] = u8::arbitrary(u)?;
            }
        }
        12 => {
            let size = match u8::arbitrary(u)? % 4 {
                0 => 15,
                1 => (1 << 20) + 33,
                2 => u32::arbitrary(u)?,
                _ => 16,
            };
            message.bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        }
        13..16 => {
            message.bytes.truncate(16 + u.int_in_range(0..=length - 16)?);
            let size = message.bytes.len() as u32;
            message.bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        }
        16..20 => {
            message.bytes.resize(length + usize::from(u8::arbitrary(u)?), 0);
            let size = message.bytes.len() as u32;
            message.bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        }
        20..24 => message.bytes[8] = u8::arbitrary(u)?,
        24..28 => {
            for _ in 0..u8::arbitrary(u)? % 9 {
                message.fds.push(u8::arbitrary(u)?);
            }
        }
        28 => message.fds = vec![u8::arbitrary(u)?; 200],
        _ => {}
    }
    Ok(message)
}

/// The text of a version message.
pub fn version(u: &mut Unstructured) -> Result<(Vec<u8>, usize)> {
    let max_fds = [1_usize, 0, 8, 64][usize::from(u8::arbitrary(u)? % 4)];
    let max_data = match u8::arbitrary(u)? {
        0 => 1,
        1 => 5000,
        2 => 100,
        _ => 1 << 20,
    };
    let is_twin = u8::arbitrary(u)? % 3 == 0;
    let text = format!(
        "{{\"capabilities\":{{\"max_msg_fds\":{max_fds},\"max_data_xfer_size\":{max_data},\
         \"twin_socket\":{{\"supported\":{is_twin}}},\"pgsizes\":4096,\"max_dma_maps\":100,\
         \"write_multiple\":{}}}}}",
        u8::arbitrary(u)? % 4 != 0
    );
    Ok((crate::peer::version(&text), max_fds))
}
