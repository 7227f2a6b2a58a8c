//! Images in the making.

use arbitrary::{Arbitrary, Result, Unstructured};
use vfio_user::handover::{self as records, Image as Writer, Kind, NO_FD, Record};

use super::images::{CLIENT, CONTROL, EVENT, Image, LISTENER, MEMORY, POOL, TWIN};
use crate::context::messages;

/// DMA regions lie at multiples of this.
const SLOT: u64 = 0x1_0000;

/// Records, and the descriptors that they name.
#[derive(Default)]
pub struct Draft {
    records: Vec<Record>,
    fds: Vec<u8>,
}

impl Draft {
    fn put(&mut self, record: impl Into<Record>) {
        self.records.push(record.into());
    }

    /// Bytes of configuration space.
    pub fn config_size(&self) -> usize {
        let size = |record: &Record| match record {
            Record::Config(config) => Some(config.bytes.len()),
            _ => None,
        };
        self.records.iter().find_map(size).unwrap_or(0)
    }

    /// A name for the descriptor with this number.
    fn name(&mut self, fd: u8) -> u32 {
        self.fds.push(fd);
        self.fds.len() as u32 - 1
    }

    /// A name, of `usual` nearly always; else of any, or nobody's.
    fn any_name(&mut self, u: &mut Unstructured, usual: u8) -> Result<u32> {
        Ok(match u8::arbitrary(u)? {
            250 => NO_FD,
            251 => u32::from(u8::arbitrary(u)? % 8),
            252..=254 => {
                let other = u8::arbitrary(u)? % (POOL + 20);
                self.name(other)
            }
            _ => self.name(usual),
        })
    }

    fn any_names(&mut self, u: &mut Unstructured) -> Result<Vec<u32>> {
        let count = small(u)? % 4;
        (0..count).map(|n| self.any_name(u, if n % 2 == 0 { MEMORY } else { EVENT })).collect()
    }

    /// With a record too many or too few, or in another order, every now and then.
    pub fn spoilt(mut self, u: &mut Unstructured) -> Result<Draft> {
        if self.records.is_empty() {
            return Ok(self);
        }
        let count = self.records.len();
        let at = |u: &mut Unstructured| -> Result<usize> { Ok(usize::from(u8::arbitrary(u)?) % count) };
        match u8::arbitrary(u)? {
            240..244 => {
                let at = at(u)?;
                self.records.remove(at);
            }
            244..248 => {
                let again = self.records[at(u)?].clone();
                self.records.push(again);
            }
            248..252 => {
                let (one, other) = (at(u)?, at(u)?);
                self.records.swap(one, other);
            }
            _ => {}
        }
        Ok(self)
    }

    /// Written, and a few bytes of that are wrong every now and then.
    pub fn image(self, kind: Kind, u: &mut Unstructured) -> Result<Image> {
        let mut writer = Writer::new().expect("memory");
        self.records.iter().for_each(|record| writer.put(record).expect("memory"));
        let mut bytes = writer.finish().expect("memory");
        let how = u8::arbitrary(u)?;
        if how >= 224 {
            for _ in 0..=how % 4 {
                let at = usize::from(u16::arbitrary(u)?) % bytes.len();
                bytes[at] ^= u8::arbitrary(u)?;
            }
        }
        let mut image = Image::made(kind, bytes, self.fds);
        match u8::arbitrary(u)? {
            248 => image.is_sealed = false,
            249 => image.says = Some(usize::from(u8::arbitrary(u)?)),
            250 => image.says = Some(usize::MAX),
            251 => image.bytes.truncate(usize::from(u16::arbitrary(u)?)),
            252.. => image.split = usize::from(u8::arbitrary(u)? % 4),
            _ => {}
        }
        Ok(image)
    }
}

/// A small number, most of the time.
fn small(u: &mut Unstructured) -> Result<u64> {
    Ok(match u8::arbitrary(u)? {
        255 => u64::arbitrary(u)?,
        other => u64::from(other % 16),
    })
}

/// A number of no interest, most of the time.
fn rare(u: &mut Unstructured, usual: u64) -> Result<u64> {
    Ok(match u8::arbitrary(u)? {
        0..=247 => usual,
        248..=251 => u64::from(u16::arbitrary(u)?),
        252 => u64::MAX,
        253 => u64::MAX - 63,
        _ => u64::arbitrary(u)?,
    })
}

fn bytes(u: &mut Unstructured) -> Result<Vec<u8>> {
    let length = usize::from(u8::arbitrary(u)? % 64);
    Ok(u.bytes(length.min(u.len()))?.to_vec())
}

/// What the device is.
pub fn device(u: &mut Unstructured) -> Result<Draft> {
    let kind = u8::arbitrary(u)?;
    let config_size = if kind & 1 == 0 { 256 } else { 4096 };
    let mut draft = Draft::default();
    draft.put(records::Device {
        config_size: rare(u, config_size)?,
        irq_counts: vec![1, 4, rare(u, 8)? as u32, 0, 1],
        keeps_irqs: kind & 2 == 0,
        does_dma: kind & 12 != 12,
        max_dma_regions: rare(u, 16)?,
        can_migrate: kind & 16 == 0,
        has_own_state: kind & 32 == 0,
    });
    let plain = records::Region { index: 0, size: 0x1_0000, flags: 7, fd: NO_FD, ..Default::default() };
    draft.put(records::Region { size: rare(u, plain.size)?, ..plain });
    if kind & 64 != 0 {
        let fd = draft.any_name(u, MEMORY)?;
        let (offset, areas) = (rare(u, 0)?, vec![0, 0x1000, rare(u, 0x2000)?, 0x1000]);
        draft.put(records::Region { index: 1, size: 0x8000, flags: 7, fd, offset, areas });
        let fd = draft.any_name(u, EVENT)?;
        let gpa_offset = rare(u, 8)?;
        draft.put(records::IoEventfd { region: 0, fd, gpa_offset, size: 4, ..Default::default() });
    }
    draft.put(records::Config { bytes: vec![0; config_size as usize] });
    if kind & 128 != 0 {
        let fd = draft.any_name(u, MEMORY)?;
        draft.put(records::NamedFd { fd, name: b"disk".to_vec() });
    }
    Ok(draft)
}

fn logging(u: &mut Unstructured) -> Result<records::Logging> {
    let mut ranges = Vec::new();
    for n in 0..small(u)? % 4 {
        ranges.extend([n * 4 * SLOT, rare(u, n * 4 * SLOT + SLOT - 1)?]);
    }
    let page_size = 0x1000 << (u8::arbitrary(u)? % 3);
    Ok(records::Logging { page_size: rare(u, page_size)?, ranges })
}

fn regions(u: &mut Unstructured, first: u64, draft: &mut Draft) -> Result<()> {
    let mut file = NO_FD;
    for n in 0..small(u)? % 8 {
        let access = u32::from(u8::arbitrary(u)? % 4);
        if file == NO_FD || u8::arbitrary(u)? % 4 == 0 {
            file = draft.any_name(u, MEMORY)?;
        }
        let pages = u8::arbitrary(u)?;
        let (size, offset) = (u64::from(1 + pages % 16) * 0x1000, u64::from(pages / 64) * 0x1000);
        draft.put(records::DmaRegion {
            iova: rare(u, (first + n) * SLOT)?,
            size: rare(u, size)?,
            prot: rare(u, 3)? as u32,
            access,
            fd: if access == 0 { NO_FD } else { file },
            offset: rare(u, offset)?,
        });
    }
    Ok(())
}

/// The DMA regions that go ahead.
pub fn memory(u: &mut Unstructured) -> Result<Draft> {
    let mut draft = Draft::default();
    if u8::arbitrary(u)? % 2 == 0 {
        draft.put(logging(u)?);
    }
    regions(u, 0, &mut draft)?;
    Ok(draft)
}

/// All the rest.
pub fn state(u: &mut Unstructured, memory: &Draft, config_size: usize) -> Result<Draft> {
    let mut draft = Draft::default();
    draft.put(records::Config { bytes: vec![u8::arbitrary(u)?; config_size] });
    let what = u8::arbitrary(u)?;
    for (is_control, usual) in [(false, LISTENER), (true, CONTROL)] {
        if what & (1 << u8::from(is_control)) != 0 {
            let fd = draft.any_name(u, usual)?;
            // A path that nobody has, so that nothing is removed.
            let mut path = Vec::new();
            if u8::arbitrary(u)? < 32 {
                path.extend(b"/nowhere/");
                path.extend(bytes(u)?);
            }
            let bound = if path.is_empty() { Vec::new() } else { vec![1, small(u)?] };
            draft.put(records::Listener { is_control, fd, path, bound });
        }
    }
    let has_connection = what & 4 == 0;
    draft.put(records::Client {
        is_attached: has_connection && what & 8 == 0,
        loss_unreported: u8::arbitrary(u)? == 1,
        memory_disregarded: u8::arbitrary(u)? == 1,
        max_msg_fds: rare(u, 8)? as u32,
        max_io_fds: rare(u, 8)? as u32,
        max_data_xfer_size: rare(u, 1 << 20)?,
        migration_pgsize: (what & 16 != 0).then_some(rare(u, 4096)?),
        twin_socket: what & 32 != 0,
        pgsizes: what & 64 != 0,
        max_dma_maps: (what & 16 != 0).then_some(rare(u, 100)?),
        write_multiple: what & 64 != 0,
    });
    if has_connection {
        connection(u, what & 32 != 0, &mut draft)?;
    }
    let logged = memory.records.iter().find(|record| matches!(record, Record::Logging(_)));
    if let (Some(record), 0..=250) = (logged, u8::arbitrary(u)?) {
        draft.put(record.clone());
    }
    known_memory(u, memory, &mut draft)?;
    for _ in 0..small(u)? % 6 {
        let fd = draft.any_name(u, EVENT)?;
        let (kind, number) = (rare(u, 2)? as u32, small(u)? as u32 % 9);
        let (masked, pending) = (u8::arbitrary(u)? % 4 == 1, u8::arbitrary(u)? % 4 == 1);
        draft.put(records::Vector { kind, number, fd, masked, pending });
    }
    let state = match u8::arbitrary(u)? {
        0..=127 => 2,
        other => u32::from(other % 9),
    };
    draft.put(records::Migration { state });
    draft.put(records::DeviceData { bytes: bytes(u)? });
    Ok(draft)
}

/// What has become of the regions that went ahead, new ones, and what was written to.
fn known_memory(u: &mut Unstructured, memory: &Draft, draft: &mut Draft) -> Result<()> {
    let count = memory.records.iter().filter(|record| matches!(record, Record::DmaRegion(_))).count() as u64;
    let regions_kept = match u8::arbitrary(u)? {
        0..=199 => vec![0, count],
        200..=239 => vec![small(u)? % 8, small(u)? % 8],
        240..=250 => vec![0, 1, 2, rare(u, 1)?],
        _ => vec![rare(u, 0)?],
    };
    if count > 0 {
        draft.put(records::Kept { regions: regions_kept });
    }
    regions(u, 16, draft)?;
    for _ in 0..small(u)? % 4 {
        let mut words = Vec::new();
        for _ in 0..=u8::arbitrary(u)? % 4 {
            words.push(u64::from(u8::arbitrary(u)?));
        }
        let (slot, first) = (small(u)? % 24, small(u)? % 4 * 64);
        draft.put(records::Dirty { iova: slot * SLOT, first: rare(u, first)?, words });
    }
    Ok(())
}

fn connection(u: &mut Unstructured, has_twin: bool, draft: &mut Draft) -> Result<()> {
    channel(u, CLIENT, draft)?;
    if has_twin {
        channel(u, TWIN, draft)?;
    }
    for _ in 0..small(u)? % 3 {
        let message = messages::any(u)?.bytes;
        let (fds, missing) = (draft.any_names(u)?, missing(u)?);
        draft.put(records::Queued { message, fds, missing });
    }
    for n in 0..small(u)? % 4 {
        let is_twin = u8::arbitrary(u)? % 8 == 1;
        // A reply that can be replaced has its request, and perhaps descriptors.
        let request = if n == 0 { messages::any(u)?.bytes[..16].to_vec() } else { Vec::new() };
        let fds = if request.is_empty() { Vec::new() } else { draft.any_names(u)? };
        let bytes = if request.is_empty() { bytes(u)? } else { [&request[..], &bytes(u)?].concat() };
        draft.put(records::Unsent { is_twin, bytes, fds, request });
    }
    let ids = (0..small(u)? % 4).map(|_| u16::arbitrary(u)).collect::<Result<_>>()?;
    draft.put(records::Unanswered { ids });
    let (iova, length) = (rare(u, 0)?, rare(u, SLOT)?);
    draft.put(records::Report { more: rare(u, 0)?, iova, length, page_size: rare(u, 0x1000)? });
    Ok(())
}

fn missing(u: &mut Unstructured) -> Result<Option<u32>> {
    Ok(if u8::arbitrary(u)? % 8 == 1 { Some(rare(u, 24)? as u32) } else { None })
}

fn channel(u: &mut Unstructured, socket: u8, draft: &mut Draft) -> Result<()> {
    let fd = draft.any_name(u, socket)?;
    let mut arrived = Vec::new();
    for _ in 0..small(u)? % 4 {
        arrived.extend(messages::any(u)?.bytes);
    }
    let cut = usize::from(u8::arbitrary(u)?);
    if cut >= 128 {
        arrived.truncate(arrived.len().saturating_sub(cut - 128));
    }
    // The header of a message that is too large for the buffer, and a part of the rest.
    let large = match u8::arbitrary(u)? {
        0..=15 => {
            let size = rare(u, 0x2_0000)? as u32;
            let header = [&[1, 0, 10, 0][..], &size.to_ne_bytes(), &[0; 8]].concat();
            [header, bytes(u)?].concat()
        }
        16 => bytes(u)?,
        _ => Vec::new(),
    };
    let used = rare(u, 100)?;
    let skip = rare(u, 0)?;
    draft.put(records::Channel { fd, bytes: arrived, skip, used, ended: u8::arbitrary(u)? == 1, large });
    for _ in 0..small(u)? % 3 {
        let owner = used.wrapping_add(small(u)?);
        let (fds, missing) = (draft.any_names(u)?, missing(u)?);
        let open = match u8::arbitrary(u)? {
            0..=31 => vec![used, used.wrapping_add(small(u)?.wrapping_mul(16)), owner],
            32 => vec![rare(u, 0)?; usize::from(u8::arbitrary(u)? % 5)],
            _ => Vec::new(),
        };
        draft.put(records::Parcel { owner, fds, missing, open });
    }
    Ok(())
}
