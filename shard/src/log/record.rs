//! Records: what a batch is made of, and their bytes.
//!
//! A record is a fixed header in the table of its batch and a body behind the table. What is short
//! and important (hard state, indexes, shelves) lies in the header, so that a damaged body says
//! what it would have changed.
//!
//! ```text
//!   kind        words                     body
//!   entries     last term, first index    per entry: term u64, length u32, type u8, 3 zeros, data
//!   hard state  term, vote, commit
//!   restore     term, index, shelf        conf state
//!   born        parent, index, shelf      start, end (each behind its length)
//!   tombstone   lowest allowed replica
//!   quarantine                            reason
//!   install     shelf
//!   checkpoint  n, start of replay (2)
//!   state       term, vote, commit        directory only: see `index.rs`
//!   node                                  directory only: see `index.rs`
//! ```

use bytes::{BufMut, Bytes};

use super::segment::{BatchHeader, Fields, HEADER_BYTES, RECORD_HEADER_BYTES, Salt, padded};
use super::{Entry, HardState, Position, Record, ReplicaKey};

const ENTRY_HEADER_BYTES: usize = 16;

/// What a record says. The numbers are on disk and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Entries = 1,
    HardState = 2,
    Restore = 3,
    Born = 4,
    Tombstone = 5,
    Quarantine = 6,
    Install = 7,
    Checkpoint = 8,
    State = 9,
    Node = 10,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Entries,
            2 => Self::HardState,
            3 => Self::Restore,
            4 => Self::Born,
            5 => Self::Tombstone,
            6 => Self::Quarantine,
            7 => Self::Install,
            8 => Self::Checkpoint,
            9 => Self::State,
            10 => Self::Node,
            _ => return None,
        })
    }
}

/// Flag bits of a record header that this program understands. Bit 0 is reserved for entry bodies
/// that hold pointers into extents; a record with a bit that is not in this mask is not read.
pub(super) const FLAGS_KNOWN: u8 = 0;

// === impl RecordHeader ===

/// The part of a record that lies in the table of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) key: ReplicaKey,
    /// Counts the records of one replica from 1; 0 for records of the whole node.
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    /// Number of entries.
    pub(super) count: u32,
    pub(super) words: [u64; 3],
    pub(super) body_checksum: u32,
    /// Offset of the body in the segment.
    pub(super) body_offset: u32,
    pub(super) body_length: u32,
    /// Offset of the header of this replica's previous entries record in this segment, 0 if none.
    pub(super) back: u32,
    /// Records that follow in the same batch.
    pub(super) after: u32,
}

impl RecordHeader {
    fn encode(&self, salt: Salt, at: Position, target: &mut [u8]) {
        let mut header = Vec::with_capacity(RECORD_HEADER_BYTES);
        header.put_u32_le(0);
        header.put_u32_le(self.body_checksum);
        header.put_u64_le(self.key.group);
        header.put_u64_le(self.key.replica);
        header.put_u64_le(self.number);
        for word in self.words {
            header.put_u64_le(word);
        }
        header.put_u8(self.kind as u8);
        header.put_u8(self.flags);
        header.put_u16_le(0);
        header.put_u32_le(self.count);
        header.put_u32_le(self.body_offset);
        header.put_u32_le(self.body_length);
        header.put_u32_le(self.back);
        header.put_u32_le(self.after);
        assert_eq!(header.len(), RECORD_HEADER_BYTES, "the layout has a fixed length");
        salt.seal(at, &mut header);
        target.copy_from_slice(&header);
    }

    /// Reads the header that starts at `at`. `Err` holds the number of a kind or the flags that a
    /// newer program wrote.
    pub(super) fn decode(salt: Salt, at: Position, header: &[u8]) -> Option<Result<Self, Unknown>> {
        let (mut fields, _) = salt.unseal(at, header)?;
        let body_checksum = fields.u32()?;
        let key = ReplicaKey { group: fields.u64()?, replica: fields.u64()? };
        let number = fields.u64()?;
        let words = [fields.u64()?, fields.u64()?, fields.u64()?];
        let kind = fields.u8()?;
        let flags = fields.u8()?;
        fields.bytes(2)?;
        let count = fields.u32()?;
        let body_offset = fields.u32()?;
        let body_length = fields.u32()?;
        let back = fields.u32()?;
        let after = fields.u32()?;
        let Some(known) = Kind::from_number(kind).filter(|_| flags & !FLAGS_KNOWN == 0) else {
            return Some(Err(Unknown { kind, flags }));
        };
        Some(Ok(Self {
            key,
            number,
            kind: known,
            flags,
            count,
            words,
            body_checksum,
            body_offset,
            body_length,
            back,
            after,
        }))
    }

    /// First and last index of an entries record.
    pub(super) fn span(&self) -> (u64, u64) {
        let [_, first, _] = self.words;
        (first, first.saturating_add(u64::from(self.count)).saturating_sub(1))
    }

    /// Whether `body` is what was written behind the header at `at`.
    pub(super) fn body_is_intact(&self, salt: Salt, at: Position, body: &[u8]) -> bool {
        body.len() == self.body_length as usize && salt.checksum(at, body) == self.body_checksum
    }
}

/// A valid record of a kind or with flags that this program does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unknown {
    pub(super) kind: u8,
    pub(super) flags: u8,
}

// === impl Draft ===

/// A record before it has a place.
#[derive(Debug, Clone)]
pub(super) struct Draft<'a> {
    pub(super) key: ReplicaKey,
    pub(super) number: u64,
    pub(super) back: u32,
    pub(super) kind: Kind,
    pub(super) count: u32,
    pub(super) words: [u64; 3],
    pub(super) body: Body<'a>,
}

/// Where the bytes of a body come from.
#[derive(Debug, Clone)]
pub(super) enum Body<'a> {
    Record(&'a Record),
    Bytes(Vec<u8>),
}

impl Body<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Record(record) => body_len(record),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    fn write(&self, target: &mut Vec<u8>) {
        match self {
            Self::Record(record) => write_body(record, target),
            Self::Bytes(bytes) => target.put_slice(bytes),
        }
    }
}

impl<'a> Draft<'a> {
    pub(super) fn new(record: &'a Record, number: u64, back: u32) -> Self {
        let (kind, count, words) = parts(record);
        let body = Body::Record(record);
        Self { key: record.key(), number, back, kind, count, words, body }
    }
}

/// Length in bytes of the batch that `drafts` make.
pub(super) fn batch_len(drafts: &[Draft<'_>]) -> u64 {
    let bodies: u64 = drafts.iter().map(|draft| draft.body.len() as u64).sum();
    padded(HEADER_BYTES as u64 + drafts.len() as u64 * RECORD_HEADER_BYTES as u64 + bodies)
}

/// Length in bytes of the batch that `records` make.
pub(super) fn records_len(records: &[Record]) -> u64 {
    let bodies: u64 = records.iter().map(|record| body_len(record) as u64).sum();
    padded(HEADER_BYTES as u64 + records.len() as u64 * RECORD_HEADER_BYTES as u64 + bodies)
}

/// Offset of record header `number` in the batch at `at`.
pub(super) fn record_position(at: Position, number: usize) -> Position {
    let offset = at.offset + HEADER_BYTES as u64 + number as u64 * RECORD_HEADER_BYTES as u64;
    Position { offset, ..at }
}

/// What a batch says besides its records.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchFrame {
    pub(super) at: Position,
    pub(super) previous: u32,
    pub(super) synced: Position,
}

/// Writes a whole batch into `buffer`, which is cleared first, and returns the checksum of its
/// header. The caller has made sure that the batch ends below `SEGMENT_BYTES_MAX`.
pub(super) fn encode_batch(
    salt: Salt,
    frame: BatchFrame,
    drafts: &[Draft<'_>],
    buffer: &mut Vec<u8>,
) -> u32 {
    buffer.clear();
    buffer.resize(HEADER_BYTES + drafts.len() * RECORD_HEADER_BYTES, 0);
    for (number, draft) in drafts.iter().enumerate() {
        let at = record_position(frame.at, number);
        let start = buffer.len();
        draft.body.write(buffer);
        let body = buffer.get(start..).unwrap_or_default();
        let header = RecordHeader {
            key: draft.key,
            number: draft.number,
            kind: draft.kind,
            flags: 0,
            count: draft.count,
            words: draft.words,
            body_checksum: salt.checksum(at, body),
            body_offset: small(frame.at.offset + start as u64),
            body_length: small(body.len() as u64),
            back: draft.back,
            after: small((drafts.len() - number - 1) as u64),
        };
        let place = (at.offset - frame.at.offset) as usize;
        let target = buffer.get_mut(place..place + RECORD_HEADER_BYTES);
        header.encode(salt, at, target.expect("the table was made above"));
    }
    buffer.resize(padded(buffer.len() as u64) as usize, 0);
    let header = BatchHeader {
        length: small(buffer.len() as u64),
        records: small(drafts.len() as u64),
        previous: frame.previous,
        synced: frame.synced,
    };
    header.encode(salt, frame.at, buffer)
}

fn small(number: u64) -> u32 {
    u32::try_from(number).expect("segments are shorter than 4 GiB")
}

// === impl Record ===

fn parts(record: &Record) -> (Kind, u32, [u64; 3]) {
    match record {
        Record::Entries { first_index, entries, .. } => {
            let term = entries.last().map_or(0, |entry| entry.term);
            (Kind::Entries, small(entries.len() as u64), [term, *first_index, 0])
        }
        Record::HardState { state, .. } => {
            (Kind::HardState, 0, [state.term, state.vote, state.commit])
        }
        Record::Restore { index, term, shelf, .. } => (Kind::Restore, 0, [*term, *index, *shelf]),
        Record::Born { parent, index, shelf, .. } => (Kind::Born, 0, [*parent, *index, *shelf]),
        Record::Tombstone { lowest_replica, .. } => (Kind::Tombstone, 0, [*lowest_replica, 0, 0]),
        Record::Quarantine { .. } => (Kind::Quarantine, 0, [0; 3]),
        Record::Install { shelf, .. } => (Kind::Install, 0, [*shelf, 0, 0]),
        Record::Checkpoint { n, start } => (Kind::Checkpoint, 0, [*n, start.segment, start.offset]),
    }
}

fn body_len(record: &Record) -> usize {
    match record {
        Record::Entries { entries, .. } => {
            entries.iter().map(|entry| ENTRY_HEADER_BYTES + entry.data.len()).sum()
        }
        Record::Restore { conf_state, .. } => conf_state.len(),
        Record::Born { start, end, .. } => 8 + start.len() + end.len(),
        Record::Quarantine { reason, .. } => reason.len(),
        Record::HardState { .. }
        | Record::Tombstone { .. }
        | Record::Install { .. }
        | Record::Checkpoint { .. } => 0,
    }
}

fn write_body(record: &Record, target: &mut Vec<u8>) {
    match record {
        Record::Entries { entries, .. } => {
            for entry in entries {
                target.put_u64_le(entry.term);
                target.put_u32_le(small(entry.data.len() as u64));
                target.put_u8(entry.entry_type);
                target.put_bytes(0, 3);
                target.put_slice(&entry.data);
            }
        }
        Record::Restore { conf_state, .. } => target.put_slice(conf_state),
        Record::Born { start, end, .. } => {
            put_string(target, start);
            put_string(target, end);
        }
        Record::Quarantine { reason, .. } => target.put_slice(reason.as_bytes()),
        Record::HardState { .. }
        | Record::Tombstone { .. }
        | Record::Install { .. }
        | Record::Checkpoint { .. } => {}
    }
}

/// Writes a byte string behind its length.
pub(super) fn put_string(target: &mut Vec<u8>, bytes: &[u8]) {
    target.put_u32_le(small(bytes.len() as u64));
    target.put_slice(bytes);
}

/// Rebuilds a record from its header and an intact body. The data of entries shares `body`. `None`
/// for the kinds of a directory, and for a body that does not have the form of its kind.
pub(super) fn decode_record(header: &RecordHeader, body: &Bytes) -> Option<Record> {
    let key = header.key;
    let [a, b, c] = header.words;
    Some(match header.kind {
        Kind::Entries => {
            Record::Entries { key, first_index: b, entries: decode_entries(header, body)? }
        }
        Kind::HardState => {
            Record::HardState { key, state: HardState { term: a, vote: b, commit: c } }
        }
        Kind::Restore => {
            let conf_state = Bytes::copy_from_slice(body);
            Record::Restore { key, index: b, term: a, conf_state, shelf: c }
        }
        Kind::Born => {
            let mut fields = Fields(body);
            let start = Bytes::copy_from_slice(fields.string()?);
            let end = Bytes::copy_from_slice(fields.string()?);
            Record::Born { key, parent: a, index: b, start, end, shelf: c }
        }
        Kind::Tombstone => Record::Tombstone { group: key.group, lowest_replica: a },
        Kind::Quarantine => {
            Record::Quarantine { key, reason: String::from_utf8_lossy(body).into_owned() }
        }
        Kind::Install => Record::Install { key, shelf: a },
        Kind::Checkpoint => Record::Checkpoint { n: a, start: Position { segment: b, offset: c } },
        Kind::State | Kind::Node => return None,
    })
}

fn decode_entries(header: &RecordHeader, body: &Bytes) -> Option<Vec<Entry>> {
    let mut entries = Vec::with_capacity((header.count as usize).min(body.len()));
    let mut fields = Fields(body);
    for _ in 0..header.count {
        let term = fields.u64()?;
        let len = fields.u32()?;
        let entry_type = fields.u8()?;
        fields.bytes(3)?;
        let data = body.slice_ref(fields.bytes(len as usize)?);
        entries.push(Entry { term, entry_type, data });
    }
    fields.0.is_empty().then_some(entries)
}

/// Appends `record` in the form in which a directory carries it.
pub(super) fn put_carried(target: &mut Vec<u8>, number: u64, record: &Record) {
    let (kind, _, words) = parts(record);
    target.put_u8(kind as u8);
    target.put_u64_le(number);
    for word in words {
        target.put_u64_le(word);
    }
    let mut body = Vec::with_capacity(body_len(record));
    write_body(record, &mut body);
    put_string(target, &body);
}

/// Reads what [`put_carried`] wrote for `key`: the record and its number.
pub(super) fn take_carried(fields: &mut Fields<'_>, key: ReplicaKey) -> Option<(u64, Record)> {
    let kind = Kind::from_number(fields.u8()?)?;
    let number = fields.u64()?;
    let words = [fields.u64()?, fields.u64()?, fields.u64()?];
    let body = Bytes::copy_from_slice(fields.string()?);
    let header = RecordHeader {
        key,
        number,
        kind,
        flags: 0,
        count: 0,
        words,
        body_checksum: 0,
        body_offset: 0,
        body_length: 0,
        back: 0,
        after: 0,
    };
    Some((number, decode_record(&header, &body)?))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SALT: Salt = Salt(11);

    fn bytes() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..50).prop_map(Bytes::from)
    }

    fn key() -> impl Strategy<Value = ReplicaKey> {
        any::<(u64, u64)>().prop_map(|(group, replica)| ReplicaKey { group, replica })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        (any::<u64>(), any::<u8>(), bytes()).prop_map(|(term, entry_type, data)| Entry {
            term,
            entry_type,
            data,
        })
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            (key(), 1..u64::MAX / 2, vec(entry(), 1..5)).prop_map(|(key, first_index, entries)| {
                Record::Entries { key, first_index, entries }
            }),
            (key(), any::<(u64, u64, u64)>()).prop_map(|(key, (term, vote, commit))| {
                Record::HardState { key, state: HardState { term, vote, commit } }
            }),
            (key(), any::<(u64, u64, u64)>(), bytes()).prop_map(
                |(key, (index, term, shelf), conf_state)| {
                    Record::Restore { key, index, term, conf_state, shelf }
                }
            ),
            (key(), any::<(u64, u64, u64)>(), bytes(), bytes()).prop_map(
                |(key, (parent, index, shelf), start, end)| {
                    Record::Born { key, parent, index, start, end, shelf }
                }
            ),
            any::<(u64, u64)>()
                .prop_map(|(group, lowest_replica)| Record::Tombstone { group, lowest_replica }),
            (key(), ".{0,20}").prop_map(|(key, reason)| Record::Quarantine { key, reason }),
            (key(), any::<u64>()).prop_map(|(key, shelf)| Record::Install { key, shelf }),
            any::<(u64, u64, u64)>().prop_map(|(n, segment, offset)| {
                Record::Checkpoint { n, start: Position { segment, offset } }
            }),
        ]
    }

    fn decode_all(segment: &[u8], at: Position) -> Vec<(RecordHeader, Record)> {
        let (batch, _) = BatchHeader::decode(SALT, at, segment).unwrap();
        (0..batch.records as usize)
            .map(|number| {
                let at = record_position(at, number);
                let start = at.offset as usize;
                let header = &segment[start..start + RECORD_HEADER_BYTES];
                let header = RecordHeader::decode(SALT, at, header).unwrap().unwrap();
                let start = header.body_offset as usize;
                let body = &segment[start..start + header.body_length as usize];
                assert!(header.body_is_intact(SALT, at, body));
                (header, decode_record(&header, &Bytes::copy_from_slice(body)).unwrap())
            })
            .collect()
    }

    proptest! {
        #[test]
        fn a_batch_is_read_back_as_it_was_written(
            records in vec(record(), 0..8), numbers in vec(any::<u64>(), 8), pages in 0..9_u64,
        ) {
            let at = Position { segment: 5, offset: pages * 8 };
            let drafts: Vec<_> = records.iter().zip(&numbers)
                .map(|(record, number)| Draft::new(record, *number, 77)).collect();
            let frame = BatchFrame { at, previous: 3, synced: at };
            let mut buffer = Vec::new();
            encode_batch(SALT, frame, &drafts, &mut buffer);
            prop_assert_eq!(buffer.len() as u64, batch_len(&drafts));
            prop_assert_eq!(buffer.len() as u64, records_len(&records));
            let mut segment = vec![0; at.offset as usize];
            segment.extend(buffer);
            let found = decode_all(&segment, at);
            prop_assert_eq!(found.len(), records.len());
            for (((header, found), record), number) in found.iter().zip(&records).zip(&numbers) {
                prop_assert_eq!(found, record);
                prop_assert_eq!(header.number, *number);
                prop_assert_eq!(header.back, 77);
            }
        }

        #[test]
        fn a_carried_record_is_read_back_as_it_was_written(
            record in record().prop_filter("no entries", |r| !matches!(r, Record::Entries { .. })),
            number in any::<u64>(),
        ) {
            let mut bytes = Vec::new();
            put_carried(&mut bytes, number, &record);
            let mut fields = Fields(&bytes);
            prop_assert_eq!(take_carried(&mut fields, record.key()), Some((number, record)));
            prop_assert!(fields.0.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_pass_for_a_record(bytes in vec(any::<u8>(), 0..200)) {
            let at = Position { segment: 5, offset: 0 };
            prop_assert!(BatchHeader::decode(SALT, at, &bytes).is_none());
            if let Some(header) = bytes.get(..RECORD_HEADER_BYTES) {
                prop_assert!(RecordHeader::decode(SALT, at, header).is_none());
            }
        }
    }

    #[test]
    fn a_record_with_an_unknown_flag_is_not_mistaken_for_damage() {
        let record = Record::Install { key: ReplicaKey { group: 1, replica: 2 }, shelf: 3 };
        let at = Position { segment: 5, offset: 0 };
        let mut buffer = Vec::new();
        let frame = BatchFrame { at, previous: 0, synced: at };
        encode_batch(SALT, frame, &[Draft::new(&record, 1, 0)], &mut buffer);
        let at = record_position(at, 0);
        let header = &mut buffer[HEADER_BYTES..HEADER_BYTES + RECORD_HEADER_BYTES];
        header[57] = 1;
        SALT.seal(at, header);
        let found = RecordHeader::decode(SALT, at, header).unwrap();
        assert_eq!(found, Err(Unknown { kind: Kind::Install as u8, flags: 1 }));
    }
}
