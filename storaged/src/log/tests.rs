//! What the log promises, on a disk that forgets and lies.

use proptest::prelude::{Strategy, any, prop, proptest};

use super::{
    Append, Log, LogError, LogOptions, LogPos,
    disk::{Blocks, DirDisk, Disk as _},
    mem::MemDisk,
    segment::segment_name,
};

const OPTIONS: LogOptions = LogOptions { segment_bytes: 4096, free_max: 2 };
const START: LogPos = LogPos { segment: 1, offset: 0 };

fn create(disk: &MemDisk) -> Log<MemDisk> {
    Log::create(disk.clone(), OPTIONS, [7; 16]).expect("created")
}

fn open(disk: &MemDisk) -> Result<Log<MemDisk>, LogError> {
    Log::open(disk.clone(), OPTIONS, START, START)
}

fn append(log: &mut Log<MemDisk>, payloads: &[Vec<u8>]) -> Result<(), LogError> {
    let records: Vec<_> = payloads.iter().map(|payload| Append { kind: 3, version: 1, payload }).collect();
    let mut rest = &records[..];
    while !rest.is_empty() {
        rest = &rest[log.append_group(rest)?.count..];
    }
    Ok(())
}

fn payloads(log: &Log<MemDisk>) -> Vec<Vec<u8>> {
    log.records_from(log.start()).map(|record| record.expect("whole").payload.to_vec()).collect()
}

fn numbered(range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    range.map(|number| format!("record {number}").repeat(1 + number as usize % 7).into_bytes()).collect()
}

#[test]
fn records_come_back_in_order_over_many_segments() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    for part in 0..50 {
        append(&mut log, &numbered(part * 10..part * 10 + 10)).expect("appended");
        log.mark_durable();
    }
    assert!(log.end().segment > 5, "{}", log.end());
    assert_eq!(payloads(&log), numbered(0..500));
    drop(log);
    disk.crash(1);
    assert_eq!(payloads(&open(&disk).expect("opened")), numbered(0..500));
}

#[test]
fn after_large_groups_a_segment_is_not_written_before_it_is_used_and_holds_as_much() {
    let directory = tempfile::tempdir().expect("tempdir");
    let disk = DirDisk::open_or_create(directory.path()).expect("opened");
    let options = LogOptions { segment_bytes: 2 << 20, free_max: 0 };
    let mut log = Log::create(disk.clone(), options, [7; 16]).expect("created");
    let (small, large) = (vec![vec![1; 500]; 3], vec![vec![2; 700 << 10]; 9]);
    for payload in small.iter().chain(&large) {
        let records = [Append { kind: 3, version: 1, payload }];
        log.append_group(&records).expect("appended");
        match (payload.len(), log.current.index) {
            (500, _) => assert_eq!(log.current.blocks_of_next(), Blocks::Written),
            (_, 1) => {}
            _ => assert_eq!(log.current.blocks_of_next(), Blocks::Allocated),
        }
    }
    assert!(log.end().segment > 3, "{}", log.end());
    // What is only allocated is a hole until it is written.
    let first_hole = |index: u64, from: u64| {
        let file = std::fs::File::open(directory.path().join(segment_name(index))).expect("there");
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(from)).expect("sought")
    };
    assert_eq!(first_hole(1, 0), options.segment_bytes, "written when it was made");
    assert!(first_hole(log.current.index, log.current.end) < options.segment_bytes, "not written twice");
    let last = std::fs::metadata(directory.path().join(segment_name(log.current.index))).expect("there");
    assert_eq!(last.len(), options.segment_bytes);
    assert!(
        std::os::unix::fs::MetadataExt::blocks(&last) * 512 >= options.segment_bytes,
        "nothing is left to be allocated"
    );
    drop(log);
    let log = Log::open(disk, options, START, START).expect("opened");
    let found: Vec<_> = log.records_from(log.start()).map(|record| record.expect("whole").payload.to_vec()).collect();
    assert_eq!(found, [small, large].concat());
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_own() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    let large = vec![vec![1; 10], vec![2; 20_000], vec![3; 10]];
    append(&mut log, &large).expect("appended");
    drop(log);
    disk.crash(1);
    assert_eq!(payloads(&open(&disk).expect("opened")), large);
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_at_the_last_whole_record() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    append(&mut log, &numbered(0..3)).expect("appended");
    let acked = log.end();
    append(&mut log, &numbered(3..6)).expect("appended");
    let end = log.end();
    let whole = disk.content(&segment_name(1)).expect("segment");
    for cut in acked.offset..end.offset {
        let torn = MemDisk::default();
        drop(create(&torn));
        torn.damage(&segment_name(1), |bytes| {
            bytes.copy_from_slice(&whole);
            bytes[cut as usize..end.offset as usize].fill(0);
        });
        let mut log = open(&torn).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let found = payloads(&log);
        assert!((3..=6).contains(&found.len()) && found[..] == numbered(0..6)[..found.len()], "cut at {cut}");
        append(&mut log, &numbered(10..12)).expect("goes on");
        let expected = [found, numbered(10..12)].concat();
        drop(log);
        assert_eq!(payloads(&open(&torn).expect("opened again")), expected);
    }
}

#[test]
fn a_flipped_bit_in_acknowledged_records_is_refused() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    append(&mut log, &numbered(0..3)).expect("appended");
    let last_group = log.end();
    append(&mut log, &numbered(3..4)).expect("appended");
    let end = log.end();
    log.mark_durable();
    drop(log);
    let whole = disk.content(&segment_name(1)).expect("segment");
    // The last group as well: the mark behind it proves that it was durable.
    assert!(last_group < end);
    for at in 0..end.offset as usize {
        disk.damage(&segment_name(1), |bytes| {
            bytes.copy_from_slice(&whole);
            bytes[at] ^= 0x10;
        });
        assert!(matches!(open(&disk), Err(LogError::Damaged { .. })), "byte {at}");
    }
}

#[test]
fn the_last_group_is_guarded_by_its_mark_also_through_a_power_loss() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    append(&mut log, &numbered(0..3)).expect("appended");
    let end = log.end();
    log.mark_durable();
    log.sync_mark();
    drop(log);
    disk.crash(3);
    disk.damage(&segment_name(1), |bytes| bytes[end.offset as usize - 1] ^= 1);
    assert!(matches!(open(&disk), Err(LogError::Damaged { .. })), "acknowledged, so it is not taken for a torn tail");
}

#[test]
fn a_log_that_ends_before_what_the_state_knows_is_damaged() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    append(&mut log, &numbered(0..3)).expect("appended");
    let end = log.end();
    drop(log);
    disk.damage(&segment_name(1), |bytes| bytes[end.offset as usize - 1] ^= 1);
    let error = Log::open(disk, OPTIONS, START, end).err().expect("refused");
    assert!(error.to_string().contains("durable up to"), "{error}");
}

#[test]
fn a_missing_segment_is_refused() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    append(&mut log, &numbered(0..300)).expect("appended");
    assert!(log.end().segment >= 3);
    drop(log);
    disk.remove(&segment_name(2)).expect("removed");
    assert!(matches!(open(&disk), Err(LogError::Damaged { .. })));
}

#[test]
fn recycled_segments_never_show_their_old_records() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    for part in 0..60 {
        // Equal lengths, so that old records stand exactly where new ones would begin.
        append(&mut log, &vec![vec![part as u8; 100]; 7]).expect("appended");
        let keep = LogPos { segment: log.end().segment, offset: 0 };
        log.recycle_before(keep).expect("recycled");
    }
    assert!(log.end().segment > 8);
    assert!(disk.list().expect("listed").len() <= 2 + OPTIONS.free_max);
    let (expected, start) = (payloads(&log), log.start());
    drop(log);
    for seed in 0..20 {
        disk.crash(seed);
        let log = Log::open(disk.clone(), OPTIONS, start, start).expect("opened");
        assert_eq!(payloads(&log), expected, "seed {seed}");
    }
}

#[test]
fn a_failed_sync_is_not_followed_by_an_acknowledgement_of_lost_bytes() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    append(&mut log, &numbered(0..3)).expect("appended");
    disk.fail_syncs_after(Some(0));
    assert!(append(&mut log, &numbered(3..6)).is_err());
    assert!(append(&mut log, &numbered(3..6)).is_err());
    disk.fail_syncs_after(None);
    append(&mut log, &numbered(3..5)).expect("room again");
    assert_eq!(payloads(&log), numbered(0..5));
    drop(log);
    for seed in 0..20 {
        disk.crash(seed);
        assert_eq!(payloads(&open(&disk).expect("opened")), numbered(0..5), "seed {seed}");
    }
}

#[test]
fn a_full_disk_stops_appending_until_there_is_room() {
    let disk = MemDisk::default();
    let mut log = create(&disk);
    disk.fail_writes_after(Some(3));
    let mut done = 0;
    while append(&mut log, &numbered(done..done + 1)).is_ok() {
        done += 1;
    }
    disk.fail_writes_after(None);
    append(&mut log, &numbered(done..done + 30)).expect("room again");
    drop(log);
    disk.crash(3);
    assert_eq!(payloads(&open(&disk).expect("opened")), numbered(0..done + 30));
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u16>),
    Mark,
    Crash(u64),
    Kill,
    FailWrite,
    FailSync,
    Recycle,
    Spare,
}

fn step() -> impl Strategy<Value = Step> {
    proptest::prop_oneof![
        8 => prop::collection::vec(0..900u16, 1..6).prop_map(Step::Append),
        3 => proptest::prelude::Just(Step::Mark),
        2 => any::<u64>().prop_map(Step::Crash),
        1 => proptest::prelude::Just(Step::Kill),
        1 => proptest::prelude::Just(Step::FailWrite),
        1 => proptest::prelude::Just(Step::FailSync),
        1 => proptest::prelude::Just(Step::Recycle),
        1 => proptest::prelude::Just(Step::Spare),
    ]
}

proptest! {
    /// Whatever crashes and fails: acknowledged records are read back exactly, in order, followed at most by whole records
    /// of a failed or interrupted append.
    #[test]
    fn acknowledged_records_survive_everything(steps in prop::collection::vec(step(), 1..60)) {
        let disk = MemDisk::default();
        let mut log = create(&disk);
        let (mut acked, mut start, mut number) = (Vec::<Vec<u8>>::new(), LogPos { segment: 1, offset: 0 }, 0u32);
        for step in steps {
            match step {
                Step::Append(lengths) => {
                    let records: Vec<Vec<u8>> = lengths.iter().map(|len| {
                        number += 1;
                        let mut record = number.to_le_bytes().to_vec();
                        record.resize(4 + usize::from(*len), number as u8);
                        record
                    }).collect();
                    append(&mut log, &records).expect("healthy disk");
                    acked.extend(records);
                }
                Step::Mark => log.mark_durable(),
                Step::FailWrite | Step::FailSync => {
                    let lost = vec![vec![0xee; 300]; 3];
                    if matches!(step, Step::FailSync) {
                        disk.fail_syncs_after(Some(0));
                    } else {
                        disk.fail_writes_after(Some(0));
                    }
                    assert!(append(&mut log, &lost).is_err());
                    disk.fail_syncs_after(None);
                    disk.fail_writes_after(None);
                }
                Step::Recycle => {
                    let keep = LogPos { segment: log.end().segment, offset: 0 };
                    let before: usize = log.records_from(log.start()).count();
                    log.recycle_before(keep).expect("recycled");
                    start = log.start();
                    let after: usize = log.records_from(log.start()).count();
                    acked.drain(..before - after);
                }
                Step::Spare => {
                    log.prepare_spare().expect("spare");
                }
                Step::Crash(_) | Step::Kill => {
                    let end = log.end();
                    drop(log);
                    if let Step::Crash(seed) = step { disk.crash(seed) } else { disk.kill() }
                    // A mark behind the last group may be lost, so the state never promises more than the group's end.
                    let _ = end;
                    log = Log::open(disk.clone(), OPTIONS, start, start).expect("nothing acknowledged is damaged");
                    let mut found = payloads(&log);
                    assert!(found.len() >= acked.len());
                    assert!(found[acked.len()..].iter().all(|extra| extra == &vec![0xee; 300]));
                    found.truncate(acked.len());
                    assert_eq!(found, acked);
                    acked = payloads(&log);
                }
            }
        }
        assert_eq!(payloads(&log), acked);
    }
}
