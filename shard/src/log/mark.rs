//! The mark: how far the log was certainly synced.
//!
//! A file of two 4 KiB slots, written in turn after each sync of the log. The slots are themselves
//! synced only now and then, so the mark may be behind after a power cut, but never ahead: it tells
//! damage (before the mark) from a torn tail (behind it).

use std::io;
use std::sync::Arc;

use bytes::BufMut;

use super::Position;
use super::segment::Salt;
use crate::disk::{Disk, DiskFile};

const NAME: &str = "mark";
const SLOT_BYTES: u64 = 4096;
const USED_BYTES: usize = 32;

/// The open mark file and what was last written to it.
pub(super) struct Mark {
    file: Arc<dyn DiskFile>,
    salt: Salt,
    sequence: u64,
}

impl Mark {
    /// Opens or creates the file and returns the newest valid position. The caller syncs the
    /// directory. A slot that does not validate is as if it had never been written.
    pub(super) fn open(disk: &dyn Disk, salt: Salt) -> io::Result<(Self, Option<Position>)> {
        let file = if disk.list()?.iter().any(|name| name == NAME) {
            disk.open(NAME)?
        } else {
            disk.create(NAME, 2 * SLOT_BYTES)?
        };
        if file.len()? < 2 * SLOT_BYTES {
            // The crash came between the creation and its first sync.
            file.set_len(2 * SLOT_BYTES)?;
        }
        let mut mark = Self { file, salt, sequence: 0 };
        let mut newest = None;
        for slot in 0..2 {
            let mut bytes = [0; USED_BYTES];
            mark.file.read_at(slot * SLOT_BYTES, &mut bytes)?;
            let Some((mut fields, _)) = salt.unseal(slot_position(slot), &bytes) else {
                continue;
            };
            let (Some(_), Some(sequence), Some(position)) =
                (fields.u32(), fields.u64(), fields.position())
            else {
                continue;
            };
            if sequence > mark.sequence {
                mark.sequence = sequence;
                newest = Some(position);
            }
        }
        Ok((mark, newest))
    }

    /// Writes `position` into the older slot. Not durable before [`Mark::sync`].
    pub(super) fn write(&mut self, position: Position) -> io::Result<()> {
        self.sequence += 1;
        let slot = self.sequence % 2;
        let mut bytes = Vec::with_capacity(USED_BYTES);
        bytes.put_u32_le(0);
        bytes.put_u32_le(0);
        bytes.put_u64_le(self.sequence);
        bytes.put_u64_le(position.segment);
        bytes.put_u64_le(position.offset);
        self.salt.seal(slot_position(slot), &mut bytes);
        self.file.write_at(slot * SLOT_BYTES, &bytes)
    }

    /// Makes the mark durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Segment 0 does not exist, so the slots share no seed with anything else.
fn slot_position(slot: u64) -> Position {
    Position { segment: 0, offset: slot * SLOT_BYTES }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;

    #[test]
    fn the_newest_valid_slot_counts() {
        let disk = SimDisk::new();
        let (mut mark, none) = Mark::open(&disk, Salt(1)).unwrap();
        assert_eq!(none, None);
        for offset in 1..=5 {
            mark.write(Position { segment: 1, offset }).unwrap();
            let (_, found) = Mark::open(&disk, Salt(1)).unwrap();
            assert_eq!(found, Some(Position { segment: 1, offset }));
        }
        disk.flip_bit(NAME, SLOT_BYTES + 20, 0).unwrap();
        let (_, found) = Mark::open(&disk, Salt(1)).unwrap();
        assert_eq!(found, Some(Position { segment: 1, offset: 4 }));
    }
}
