//! Page files in ordinary life: what is written is read back, freed and used again, and damage is
//! told. Crashes are tried in `crash.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::disk::sim::SimDisk;

const CONFIG: ExtentsConfig =
    ExtentsConfig { file_pages: 64, grow_pages: 64, cut_pages_min: 8, ahead_pages: 8, salt: 77 };
const SHELF: Shelf = Shelf(1);

fn open(disk: &SimDisk, named: Named) -> Opened {
    Extents::open(Arc::new(disk.clone()), CONFIG, named).unwrap()
}

fn fresh() -> (SimDisk, Extents) {
    let disk = SimDisk::new();
    let extents = open(&disk, Named::default()).extents;
    (disk, extents)
}

fn held(pointers: &[Pointer]) -> Named {
    Named { held: pointers.to_vec(), ..Named::default() }
}

#[test]
fn values_are_read_back_and_say_whose_they_are() {
    let (disk, extents) = fresh();
    let values: Vec<_> = (1..20u8).map(|seed| vec![seed; usize::from(seed) * 1500]).collect();
    let pointers: Vec<_> =
        values.iter().map(|value| extents.write(SHELF, b"key", value).unwrap()).collect();
    extents.sync().unwrap();
    disk.crash(&mut |_| 0);
    let extents = open(&disk, held(&pointers)).extents;
    for (pointer, value) in pointers.iter().zip(&values) {
        let extent = extents.read_extent(pointer).unwrap();
        assert_eq!((extent.shelf, &extent.key[..]), (SHELF, &b"key"[..]));
        assert_eq!(extent.value, value);
        extents.keep(pointer);
    }
    assert_eq!(extents.usage().held_pages, extents.usage().row_pages);
}

#[test]
fn extents_move_to_the_front_until_the_last_file_can_go() {
    let (_, extents) = fresh();
    let write = |byte: u8| extents.write(SHELF, &[byte], &vec![byte; 60_000]).unwrap();
    let mut rows: Vec<_> = (0..16).map(write).collect();
    rows.iter().for_each(|pointer| {
        extents.keep(pointer);
        extents.let_go(pointer);
    });
    assert_eq!(extents.usage().files, 4);
    rows.drain(2..13).for_each(|pointer| extents.release(&pointer));
    let checkpoint = |n| {
        extents.freeze(n);
        extents.checkpointed(n, n);
    };
    checkpoint(1);
    while let Some((from, extent)) = extents.to_move((u32::MAX, 0)).unwrap() {
        let Some(to) = extents.write_before(&from, &extent).unwrap() else { break };
        assert!(to.file < from.file);
        *rows.iter_mut().find(|row| **row == from).unwrap() = to;
        extents.keep(&to);
        extents.release(&from);
        extents.let_go(&to);
        extents.audit();
    }
    checkpoint(2);
    extents.tend().unwrap();
    assert_eq!(extents.usage().files, 2);
    for (row, byte) in rows.iter().zip([0, 1, 13, 14, 15]) {
        assert_eq!(extents.read(row).unwrap(), vec![byte; 60_000]);
    }
}

#[test]
fn a_sync_touches_only_what_was_written_to() {
    let (disk, extents) = fresh();
    extents.sync().unwrap();
    extents.grow_ahead(3 * 64).unwrap();
    assert_eq!(extents.usage().files, 3);
    extents.sync().unwrap();
    let before = disk.syncs();
    extents.sync().unwrap();
    assert_eq!(disk.syncs(), before);
    extents.write(SHELF, b"key", &[1; 9000]).unwrap();
    extents.write(SHELF, b"key", &[2; 9000]).unwrap();
    extents.sync().unwrap();
    assert_eq!(disk.syncs(), before + 1);
}

#[test]
fn a_full_disk_refuses_new_files_and_harms_nothing() {
    let (disk, extents) = fresh();
    let first = extents.write(SHELF, b"key", &[1; 200_000]).unwrap();
    disk.set_capacity(Some(64 * PAGE_BYTES as u64));
    let refused = extents.write(SHELF, b"key", &[2; 200_000]).unwrap_err();
    assert!(matches!(refused, ExtentError::Io { action: "make a page file", .. }));
    let small = extents.write(SHELF, b"key", &[3; 10_000]).unwrap();
    disk.set_capacity(None);
    let second = extents.write(SHELF, b"key", &[4; 200_000]).unwrap();
    extents.sync().unwrap();
    for (pointer, byte) in [(first, 1), (small, 3), (second, 4)] {
        assert!(extents.read(&pointer).unwrap().iter().all(|found| *found == byte));
    }
    extents.audit();
    let large = extents.write(SHELF, b"key", &[0; 64 * PAGE_BYTES]).unwrap_err();
    assert!(matches!(large, ExtentError::TooLarge { len_bytes: 262_144 }));
}

#[test]
fn a_file_made_by_a_process_that_ended_is_durable_after_the_next_sync() {
    let (disk, extents) = fresh();
    extents.grow_ahead(1).unwrap();
    drop(extents);
    let extents = open(&disk, Named::default()).extents;
    let pointer = extents.write(SHELF, b"key", &[7; 9000]).unwrap();
    extents.sync().unwrap();
    disk.crash(&mut |_| 0);
    let extents = open(&disk, held(&[pointer])).extents;
    assert_eq!(extents.read(&pointer).unwrap(), [7; 9000][..]);
}

#[test]
fn a_failed_sync_is_final() {
    let (disk, extents) = fresh();
    extents.write(SHELF, b"key", &[1; 9000]).unwrap();
    disk.fail_next_sync();
    assert!(matches!(extents.sync(), Err(ExtentError::Io { .. })));
    assert!(matches!(extents.sync(), Err(ExtentError::Poisoned { .. })));
    let refused = extents.write(SHELF, b"key", b"").unwrap_err().to_string();
    assert!(refused.starts_with("the page files are stopped: sync"), "{refused}");
}

#[test]
fn a_flipped_bit_harms_one_extent() {
    let (disk, extents) = fresh();
    let pointers = [1, 2, 3].map(|byte| extents.write(SHELF, b"key", &[byte; 9000]).unwrap());
    extents.sync().unwrap();
    let at = u64::from(pointers[1].page) * PAGE_BYTES as u64 + 5000;
    disk.flip_bit("pages-00000000", at, 3).unwrap();
    assert_eq!(extents.read(&pointers[0]).unwrap(), [1; 9000][..]);
    assert_eq!(
        extents.read(&pointers[1]).unwrap_err().to_string(),
        "the extent at page 3 of page file 0 is damaged: its checksum is wrong"
    );
    assert_eq!(extents.read(&pointers[2]).unwrap(), [3; 9000][..]);
    for (shelf, key, value, healed) in [
        (SHELF, b"key", [7; 9000], false),
        (SHELF, b"yek", [2; 9000], false),
        (Shelf(9), b"key", [2; 9000], false),
        (SHELF, b"key", [2; 9000], true),
    ] {
        assert_eq!(extents.heal(&pointers[1], shelf, key, &value).unwrap(), healed);
        assert_eq!(extents.read(&pointers[1]).is_ok(), healed);
    }
    disk.crash(&mut |_| 0);
    let extents = open(&disk, held(&pointers)).extents;
    assert_eq!(extents.read(&pointers[1]).unwrap(), [2; 9000][..]);
}

#[test]
fn a_lost_file_is_reported_and_its_extents_are_damaged() {
    let (disk, extents) = fresh();
    let lost = extents.write(SHELF, b"key", &[1; 200_000]).unwrap();
    let kept = extents.write(SHELF, b"key", &[2; 200_000]).unwrap();
    extents.sync().unwrap();
    drop(extents);
    disk.remove("pages-00000000").unwrap();
    let opened = open(&disk, held(&[lost, kept]));
    let repaired = Repaired { file: 0, pages_found: 0, pages_named: 49 };
    assert_eq!(opened.repaired, [repaired]);
    assert!(matches!(opened.extents.read(&lost), Err(ExtentError::Damaged { .. })));
    assert_eq!(opened.extents.read(&kept).unwrap().len(), 200_000);
    [lost, kept].iter().for_each(|pointer| opened.extents.let_go(pointer));
    opened.extents.trim(0).unwrap();
    assert_eq!(disk.list().unwrap(), Vec::<String>::new());
}

#[test]
fn impossible_names_are_refused_at_open() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let pointer = Pointer { file: 0, page: 60, pages: 4, length: 16_000, checksum: 0 };
    let twice = held(&[pointer, Pointer { page: 63, pages: 1, length: 9, ..pointer }]);
    let outside = held(&[Pointer { page: 61, ..pointer }]);
    let far = held(&[Pointer { page: u32::MAX, ..pointer }]);
    let short = Named { bitmaps: BTreeMap::from([(3, Bitmap::new(128))]), ..Named::default() };
    for (named, expected) in [
        (twice, "page 63 of page file 0 is named twice"),
        (outside, "page file 0 cannot have the pages that are named in it"),
        (far, "page file 0 cannot have the pages that are named in it"),
        (short, "page file 3 cannot have the pages that are named in it"),
    ] {
        let refused = Extents::open(disk.clone(), CONFIG, named).err().unwrap();
        assert_eq!(refused.to_string(), expected);
    }
}

#[test]
fn many_threads_write_read_and_sync_at_the_same_time() {
    let (disk, extents) = fresh();
    let pointers = std::thread::scope(|scope| {
        let work = |thread: u8| {
            let mut mine = Vec::new();
            for turn in 0..40u8 {
                let value = vec![thread * 40 + turn; 3000 * usize::from(turn % 7) + 1];
                let pointer = extents.write(SHELF, &[thread], &value).unwrap();
                if turn % 3 == 0 {
                    extents.let_go(&pointer);
                } else {
                    mine.push((pointer, value));
                }
                if turn % 8 == thread {
                    extents.sync().unwrap();
                    extents.trim(64).unwrap();
                }
                for (pointer, value) in &mine {
                    assert_eq!(extents.read(pointer).unwrap(), value);
                }
            }
            extents.sync().unwrap();
            mine
        };
        let threads = [0, 1, 2].map(|thread| scope.spawn(move || work(thread)));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    extents.audit();
    drop(extents);
    disk.crash(&mut |_| 0);
    let names: Vec<_> = pointers.iter().map(|(pointer, _)| *pointer).collect();
    let extents = open(&disk, held(&names)).extents;
    for (pointer, value) in &pointers {
        assert_eq!(extents.read(pointer).unwrap(), value);
    }
}
