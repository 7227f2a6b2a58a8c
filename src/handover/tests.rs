//! Images, whole and spoilt.

use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::*;
use crate::wire::{Errno, Result};

fn written(records: &[Record]) -> Vec<u8> {
    let mut image = Image::new().unwrap();
    records.iter().for_each(|record| image.put(record).unwrap());
    image.finish().unwrap()
}

fn read(image: &[u8]) -> Result<Vec<Record>> {
    Records::of(image)?.collect()
}

fn list<T: std::fmt::Debug + Clone>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    proptest::collection::vec(of, 0..20)
}

fn record() -> impl Strategy<Value = Record> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let device = (any::<u64>(), list(any::<u32>()), flags, any::<u64>()).prop_map(
        |(config_size, irq_counts, (keeps_irqs, does_dma, can_migrate), max_dma_regions)| {
            let has_own_state = !can_migrate;
            Device {
                config_size,
                irq_counts,
                keeps_irqs,
                does_dma,
                max_dma_regions,
                can_migrate,
                has_own_state,
            }
            .into()
        },
    );
    let region = (any::<(u32, u64, u32, u32, u64)>(), list(any::<u64>())).prop_map(
        |((index, size, flags, fd, offset), areas)| Region { index, size, flags, fd, offset, areas }.into(),
    );
    let client = (flags_and_numbers(), any::<Option<u64>>(), any::<Option<u64>>()).prop_map(
        |(mut client, migration_pgsize, max_dma_maps)| {
            client.migration_pgsize = migration_pgsize;
            client.max_dma_maps = max_dma_maps;
            client.into()
        },
    );
    let channel = (any::<(u32, u64, u64, bool)>(), list(any::<u8>()), list(any::<u8>())).prop_map(
        |((fd, skip, used, ended), bytes, large)| Channel { fd, bytes, skip, used, ended, large }.into(),
    );
    let parcel = (any::<u64>(), list(any::<u32>()), any::<Option<u32>>(), list(any::<u64>()))
        .prop_map(|(owner, fds, missing, open)| Parcel { owner, fds, missing, open }.into());
    let unsent = (any::<bool>(), list(any::<u8>()), list(any::<u32>()), list(any::<u8>()))
        .prop_map(|(is_twin, bytes, fds, request)| Unsent { is_twin, bytes, fds, request }.into());
    let unanswered = list(any::<u16>()).prop_map(|ids| Unanswered { ids }.into());
    let dirty = (any::<u64>(), any::<u64>(), list(any::<u64>()))
        .prop_map(|(iova, first, words)| Dirty { iova, first, words }.into());
    prop_oneof![device, region, client, channel, parcel, unsent, unanswered, dirty]
}

fn flags_and_numbers() -> impl Strategy<Value = Client> {
    any::<(bool, bool, bool, u32, u32, u64, bool, bool)>().prop_map(
        |(
            is_attached,
            loss_unreported,
            memory_disregarded,
            max_msg_fds,
            max_io_fds,
            size,
            twin_socket,
            pgsizes,
        )| {
            let max_data_xfer_size = size;
            Client {
                is_attached,
                loss_unreported,
                memory_disregarded,
                max_msg_fds,
                max_io_fds,
                max_data_xfer_size,
                twin_socket,
                pgsizes,
                ..Client::default()
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(records in list(record())) {
        prop_assert_eq!(read(&written(&records)), Ok(records));
    }

    #[test]
    fn an_image_that_is_cut_is_none(records in list(record()), cut in any::<prop::sample::Index>()) {
        let image = written(&records);
        let cut = cut.index(image.len());
        prop_assert_eq!(read(&image[..cut]).err(), Some(Errno::EPROTO));
    }

    #[test]
    fn a_spoilt_byte_is_seen_or_makes_another_image(
        records in list(record()), at in any::<prop::sample::Index>(), by in 1..=255_u8,
    ) {
        let mut image = written(&records);
        let at = at.index(image.len());
        image[at] ^= by;
        // Whatever it is read as, nothing is read beyond it, and no more is made than it has bytes.
        if let Ok(found) = read(&image) {
            prop_assert!(found.len() <= records.len());
        }
    }

    #[test]
    fn any_bytes_are_no_image_or_one(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut image = written(&[])[..16].to_vec();
        image.extend(&bytes);
        let _ = read(&image);
        prop_assert_eq!(read(&bytes).err(), Some(Errno::EPROTO));
    }
}

#[test]
fn records_with_nothing_in_them() {
    assert_eq!(read(&written(&Record::all())), Ok(Record::all()));
}

#[test]
fn types_are_unique_and_for_ever() {
    let mut kinds: Vec<u16> = Record::all().iter().map(|record| record.kind().0).collect();
    assert_eq!(kinds, (1..=6).chain(16..=31).collect::<Vec<u16>>());
    kinds.dedup();
    assert_eq!(kinds.len(), Record::all().len());
    assert!(Record::all().iter().all(|record| record.kind().1), "all of version 1 has to be understood");
}

/// A record as no version has it, in front of what there is.
fn with_unknown(must: u16, image: &[u8], records: u64) -> Vec<u8> {
    let (head, rest) = image.split_at(16);
    let mut unknown = Vec::new();
    unknown.extend(1000_u16.to_le_bytes());
    unknown.extend(must.to_le_bytes());
    unknown.extend([0; 4]);
    unknown.extend(24_u64.to_le_bytes());
    unknown.extend([7; 24]);
    let mut all = [head, &unknown, rest].concat();
    let end = all.len() - 8;
    all[end..].copy_from_slice(&(records + 1).to_le_bytes());
    all
}

#[test]
fn what_a_later_version_adds_is_skipped_unless_it_has_to_be_understood() {
    let records = vec![Migration { state: 2 }.into(), Unanswered { ids: vec![1, 2] }.into()];
    let image = written(&records);
    assert_eq!(read(&with_unknown(0, &image, 2)), Ok(records));
    assert_eq!(read(&with_unknown(1, &image, 2)).err(), Some(Errno::EPROTONOSUPPORT));
}

#[test]
fn fields_that_a_later_version_adds_are_skipped() {
    let image = written(&[Migration { state: 2 }.into()]);
    let mut longer = image[..16 + 16].to_vec();
    longer[24..32].copy_from_slice(&16_u64.to_le_bytes());
    longer.extend(2_u64.to_le_bytes());
    longer.extend(99_u64.to_le_bytes());
    longer.extend(&image[16 + 16 + 8..]);
    assert_eq!(read(&longer), Ok(vec![Migration { state: 2 }.into()]));
}

#[test]
fn versions() {
    let mut image = written(&[]);
    assert_eq!(read(&image), Ok(vec![]));
    for (version, errno) in
        [(0, Some(Errno::EPROTONOSUPPORT)), (VERSION, None), (VERSION + 1, Some(Errno::EPROTONOSUPPORT))]
    {
        image[8..12].copy_from_slice(&version.to_le_bytes());
        assert_eq!(read(&image).err(), errno, "version {version}");
    }
}

#[test]
fn numbers_that_are_not_borne_out_take_no_memory() {
    let mut image = written(&[Unanswered { ids: vec![1] }.into()]);
    image[32..40].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    assert_eq!(read(&image).err(), Some(Errno::EPROTO));
}

#[test]
fn a_descriptor_is_taken_once_by_its_name() {
    let pipe = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let mut incoming = Incoming::new(written(&[]), vec![pipe(), pipe(), pipe()]).unwrap();
    assert!(incoming.fd(2).is_some() && incoming.fd(3).is_none() && incoming.fd(NO_FD).is_none());
    let (_, mut fds) = incoming.parts().unwrap();
    assert!(fds.take(1).is_ok());
    assert_eq!(fds.take(1).err(), Some(Errno::EPROTO));
    assert!(fds.take_optional(NO_FD).unwrap().is_none());
    assert_eq!(fds.take_all(&[0, 2]).unwrap().len(), 2);
    assert_eq!(fds.take_all(&[0]).err(), Some(Errno::EPROTO));
}

#[test]
fn descriptors_are_named_in_the_order_in_which_they_go() {
    let mut out = Outgoing::new().unwrap();
    assert_eq!(out.fd(7), Ok(0));
    assert_eq!(out.fds([9, 7]), Ok(vec![1, 2]));
    out.put(Migration { state: 1 }).unwrap();
    let (image, fds) = out.finish().unwrap();
    assert_eq!(fds, [7, 9, 7]);
    assert_eq!(read(&image), Ok(vec![Migration { state: 1 }.into()]));
}

/// Images of each version, as a process of that version wrote them. Never changed.
#[test]
fn images_of_every_version_so_far_are_read() {
    let device = read(include_bytes!("../../tests/hand-over/device-1.image")).unwrap();
    assert!(matches!(device.first(), Some(Record::Device(_))));
    let state = read(include_bytes!("../../tests/hand-over/state-1.image")).unwrap();
    for is_there in [
        |record: &Record| matches!(record, Record::Listener(Listener { is_control: false, .. })),
        |record: &Record| matches!(record, Record::Client(Client { is_attached: true, .. })),
        |record: &Record| matches!(record, Record::Channel(_)),
        |record: &Record| matches!(record, Record::Unsent(_)),
        |record: &Record| matches!(record, Record::DmaRegion(DmaRegion { size: 0x8000, .. })),
        |record: &Record| matches!(record, Record::Logging(Logging { page_size: 4096, .. })),
        |record: &Record| matches!(record, Record::Dirty(_)),
        |record: &Record| matches!(record, Record::Vector(Vector { masked: true, pending: true, .. })),
        |record: &Record| matches!(record, Record::Migration(Migration { state: 2 })),
        |record: &Record| matches!(record, Record::DeviceData(_)),
    ] {
        assert!(state.iter().any(is_there));
    }
    let memory = read(include_bytes!("../../tests/hand-over/memory-1.image")).unwrap();
    assert!(matches!(memory.as_slice(), [Record::Logging(_), Record::DmaRegion(_), ..]));
    let state = read(include_bytes!("../../tests/hand-over/state-1-kept.image")).unwrap();
    assert!(state.contains(&Kept { regions: vec![0, 1, 2, 1] }.into()));
}
