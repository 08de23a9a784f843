//! The frame of a segment file: names, header, batches and seeded checksums.
//!
//! ```text
//!   0      segment header (64 bytes, rest of the page zero), written last, see below
//!   4096   directory batch: state of all replicas when the segment was begun
//!          batch, batch, ...
//!          zeros, or what an earlier life of the file left behind
//!
//!   batch = header (64 bytes) | one record header (80 bytes) per record | bodies | padding to 8
//! ```
//!
//! Invariants:
//!
//! * A segment number is used once. Every checksum covers the salt of the node, the segment number
//!   and the offset, so that bytes from an earlier life of the file, and bytes that a tenant put
//!   into a value, do not pass for ours.
//! * No offset of a segment is written twice, the header and what recovery discards excepted.
//! * The header is written after all that lies before its `established` offset is durable. A
//!   segment without a valid header that nothing newer speaks of was never finished and counts for
//!   nothing.
//! * The record headers of a batch lie in one table, so that a damaged one does not hide the next.

use bytes::BufMut;

use super::{LogError, Position};

/// Number of this layout. It rises when a program that knows only the old one would misread.
pub(super) const FORMAT: u32 = 1;
/// Offset of the first batch in every segment.
pub(super) const FIRST_BATCH: u64 = 4096;
/// Length of the segment header and of a batch header.
pub(super) const HEADER_BYTES: usize = 64;
/// Length of a record header.
pub(super) const RECORD_HEADER_BYTES: usize = 80;
/// Offsets and lengths inside a segment are stored in 32 bits; this leaves room for sums.
pub(super) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

const SEGMENT_MAGIC: u32 = 0x4c6f_7441;
const BATCH_MAGIC: u32 = 0x4274_6f6c;

/// Seed of all checksums of one node; see `LogConfig::salt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Salt(pub(super) u64);

impl Salt {
    /// Checksum of bytes that belong to `at`.
    pub(super) fn checksum(self, at: Position, bytes: &[u8]) -> u32 {
        let mut seed = [0; 24];
        for (target, source) in seed.chunks_exact_mut(8).zip([self.0, at.segment, at.offset]) {
            target.copy_from_slice(&source.to_le_bytes());
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&seed);
        hasher.update(bytes);
        hasher.finalize()
    }

    /// Puts the checksum of what follows into the first four bytes of a header.
    pub(super) fn seal(self, at: Position, header: &mut [u8]) -> u32 {
        let (sum, covered) = header.split_at_mut(4);
        let checksum = self.checksum(at, covered);
        sum.copy_from_slice(&checksum.to_le_bytes());
        checksum
    }

    /// The fields behind a valid checksum, and the checksum.
    pub(super) fn unseal(self, at: Position, header: &[u8]) -> Option<(Fields<'_>, u32)> {
        let (sum, covered) = header.split_at_checked(4)?;
        let stored = Fields(sum).u32()?;
        (stored == self.checksum(at, covered)).then_some((Fields(covered), stored))
    }
}

// === impl Fields ===

/// Reads little-endian fields one after the other; `None` when the bytes end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn position(&mut self) -> Option<Position> {
        Some(Position { segment: self.u64()?, offset: self.u64()? })
    }

    /// A byte string behind its length.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.bytes(len as usize)
    }
}

// === impl names ===

/// Name of a segment that holds, or may hold, log.
pub(super) fn segment_name(number: u64) -> String {
    format!("seg-{number:016x}")
}

/// Name of a file that waits to become a segment.
pub(super) fn spare_name(number: u64) -> String {
    format!("spare-{number:016x}")
}

/// What a file name says; `None` for files that are not segments.
pub(super) fn parse_name(name: &str) -> Option<(SegmentRole, u64)> {
    let (role, digits) = if let Some(digits) = name.strip_prefix("seg-") {
        (SegmentRole::Log, digits)
    } else {
        (SegmentRole::Spare, name.strip_prefix("spare-")?)
    };
    let number = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16).then_some((role, number))
}

/// Whether a segment file is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentRole {
    Log,
    Spare,
}

// === impl SegmentHeader ===

/// The first 64 bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) node_id: u64,
    /// Everything before this offset was durable before the header was written.
    pub(super) established: u64,
}

impl SegmentHeader {
    pub(super) fn encode(self, salt: Salt, number: u64) -> Vec<u8> {
        self.encode_format(salt, number, FORMAT)
    }

    fn encode_format(self, salt: Salt, number: u64, format: u32) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.put_u32_le(0);
        header.put_u32_le(SEGMENT_MAGIC);
        header.put_u32_le(format);
        header.put_u32_le(0);
        header.put_u64_le(number);
        header.put_u64_le(self.node_id);
        header.put_u64_le(self.established);
        header.resize(HEADER_BYTES, 0);
        salt.seal(Position { segment: number, offset: 0 }, &mut header);
        header
    }

    /// Whether a header of segment `number` was written here, valid or not under our salt.
    pub(super) fn was_written(number: u64, segment: &[u8]) -> bool {
        let mut fields = Fields(segment.get(4..).unwrap_or_default());
        let magic = fields.u32();
        magic == Some(SEGMENT_MAGIC) && fields.u64().is_some() && fields.u64() == Some(number)
    }

    /// Reads the header of segment `number`; `Ok(None)` when it is not a valid one. The place and
    /// the seed of the checksum, the magic and the format stay the same in all formats.
    pub(super) fn decode(
        salt: Salt,
        number: u64,
        node_id: u64,
        segment: &[u8],
    ) -> Result<Option<Self>, LogError> {
        let Some(header) = segment.get(..HEADER_BYTES) else {
            return Ok(None);
        };
        let at = Position { segment: number, offset: 0 };
        let Some((mut fields, _)) = salt.unseal(at, header) else {
            return Ok(None);
        };
        let (Some(SEGMENT_MAGIC), Some(found)) = (fields.u32(), fields.u32()) else {
            return Ok(None);
        };
        if found > FORMAT {
            return Err(LogError::Format { segment: number, found, supported: FORMAT });
        }
        let (Some(_), Some(stored)) = (fields.u32(), fields.u64()) else {
            return Ok(None);
        };
        let (Some(found), Some(established)) = (fields.u64(), fields.u64()) else {
            return Ok(None);
        };
        if stored != number {
            return Ok(None);
        }
        if found != node_id {
            return Err(LogError::WrongNode { expected: node_id, found });
        }
        Ok(Some(Self { node_id, established }))
    }
}

// === impl BatchHeader ===

/// The first 64 bytes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// Length of the batch with this header and the padding.
    pub(super) length: u32,
    pub(super) records: u32,
    /// Checksum of the header of the batch before, across segments.
    pub(super) previous: u32,
    /// Everything before this position was durable when the batch was written.
    pub(super) synced: Position,
}

impl BatchHeader {
    /// Writes the header to the front of `batch` and returns its checksum.
    pub(super) fn encode(self, salt: Salt, at: Position, batch: &mut [u8]) -> u32 {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.put_u32_le(0);
        header.put_u32_le(BATCH_MAGIC);
        header.put_u64_le(at.segment);
        header.put_u64_le(at.offset);
        header.put_u32_le(self.previous);
        header.put_u32_le(self.records);
        header.put_u64_le(self.synced.segment);
        header.put_u64_le(self.synced.offset);
        header.put_u32_le(self.length);
        header.resize(HEADER_BYTES, 0);
        let checksum = salt.seal(at, &mut header);
        for (target, source) in batch.iter_mut().zip(header) {
            *target = source;
        }
        checksum
    }

    /// Reads the header at `at` of a segment and returns it with its checksum; `None` when there is
    /// no valid one.
    pub(super) fn decode(salt: Salt, at: Position, segment: &[u8]) -> Option<(Self, u32)> {
        let start = usize::try_from(at.offset).ok()?;
        let header = segment.get(start..start.checked_add(HEADER_BYTES)?)?;
        // The magic and the position come first: they spare the checksum where a search runs over
        // megabytes of other things.
        let mut plain = Fields(header.get(4..)?);
        if plain.u32()? != BATCH_MAGIC || plain.position()? != at {
            return None;
        }
        let (_, checksum) = salt.unseal(at, header)?;
        let previous = plain.u32()?;
        let records = plain.u32()?;
        let synced = plain.position()?;
        let length = plain.u32()?;
        let least = HEADER_BYTES as u64 + u64::from(records) * RECORD_HEADER_BYTES as u64;
        let fits = u64::from(length) >= least && length.is_multiple_of(8);
        fits.then_some((Self { length, records, previous, synced }, checksum))
    }
}

/// Rounds up to the alignment of batches.
pub(super) fn padded(len: u64) -> u64 {
    len.next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: Salt = Salt(7);

    #[test]
    fn a_newer_format_is_refused_with_a_plain_message() {
        let header = SegmentHeader { node_id: 1, established: 5000 };
        let bytes = header.encode_format(SALT, 3, FORMAT + 1);
        let error = SegmentHeader::decode(SALT, 3, 1, &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "log segment 3 has format 2, this program knows formats up to 1: run a newer program"
        );
    }

    #[test]
    fn a_segment_header_is_read_back_only_under_its_number_and_node() {
        let header = SegmentHeader { node_id: 1, established: 5000 };
        let bytes = header.encode(SALT, 3);
        assert_eq!(SegmentHeader::decode(SALT, 3, 1, &bytes).unwrap(), Some(header));
        assert_eq!(SegmentHeader::decode(SALT, 4, 1, &bytes).unwrap(), None);
        assert_eq!(SegmentHeader::decode(Salt(8), 3, 1, &bytes).unwrap(), None);
        let wrong = SegmentHeader::decode(SALT, 3, 2, &bytes);
        assert!(matches!(wrong, Err(LogError::WrongNode { expected: 2, found: 1 })));
    }

    #[test]
    fn a_batch_header_is_valid_only_in_its_place() {
        let synced = Position { segment: 1, offset: 99 };
        let header = BatchHeader { length: 144, records: 1, previous: 5, synced };
        let mut segment = vec![0; 400];
        let at = Position { segment: 2, offset: 80 };
        let checksum = header.encode(SALT, at, &mut segment[80..]);
        assert_eq!(BatchHeader::decode(SALT, at, &segment), Some((header, checksum)));
        let other = Position { segment: 3, ..at };
        assert_eq!(BatchHeader::decode(SALT, other, &segment), None);
        segment.copy_within(80..144, 160);
        let moved = Position { offset: 160, ..at };
        assert_eq!(BatchHeader::decode(SALT, moved, &segment), None);
    }

    #[test]
    fn names_say_role_and_number() {
        assert_eq!(parse_name(&segment_name(255)), Some((SegmentRole::Log, 255)));
        assert_eq!(parse_name(&spare_name(1)), Some((SegmentRole::Spare, 1)));
        assert_eq!(parse_name("seg-1"), None);
        assert_eq!(parse_name("mark"), None);
    }
}
