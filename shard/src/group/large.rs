//! Large values of log entries: each is cut out before the entry goes into the log and stands
//! in an extent instead; who reads the entry back gets it whole.
//!
//! ```text
//!   entry   | batch ... value (large) ... value ... |      as Raft and peers know it
//!   in log  | slots: (offset, pointer) | batch ... ... value ... |      marked `CUT`
//!                         |
//!   extent                +--> value; apply puts the pointer into the row
//! ```
//!
//! So a large value is written once on each node, and neither log nor engine carries it.
//!
//! Invariants:
//! - An extent is synced before the record that points to it is appended.
//! - Which values are cut out is every node's own matter: entries are whole again when they are
//!   sent, and apply does the same to rows wherever a value stands.
//! - What is put together from a pointer is what was cut out, or an error.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use proto::cluster::group::{Batch, command};
use proto::cluster::split::entry;
use proto::etcd::TxnRequest;
use proto::etcd::request_op::Request as Op;

use crate::extents::{ExtentError, Extents, POINTER_BYTES, Pointer};
use crate::log::{Entry, Record, ReplicaKey};
use crate::store::layout::{Shelf, Value};
use crate::store::shelves::Pieces;

/// Marks the type of an entry in the log whose large values were cut out.
const CUT: u8 = 0x80;

/// Values from this length on leave their rows (docs/measurements.md).
pub const LARGE_BYTES: usize = 8 * 1024;

/// A value that was cut out of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Where it begins in the whole entry.
    pub offset: u32,
    /// Where it stands.
    pub pointer: Pointer,
}

/// Entries of a replica that were appended: those from an index on are new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The replica.
    pub key: ReplicaKey,
    /// What the log had from this index on is gone.
    pub first_index: u64,
    /// Values of the new entries, by index.
    pub slots: Vec<(u64, Vec<Slot>)>,
}

/// The slots of the entry that is being applied, found by where a decoded value lies in it: the
/// values of a decoded batch share the memory of its entry.
#[derive(Debug, Default)]
pub struct Placed {
    base: usize,
    slots: Vec<Slot>,
}

impl Placed {
    /// The slots of an entry whose bytes are `data`.
    pub fn new(data: &Bytes, slots: Vec<Slot>) -> Placed {
        Placed { base: data.as_ptr() as usize, slots }
    }

    /// What a row says for this value of a command.
    pub fn value(&self, value: &Bytes) -> Value {
        let offset = (value.as_ptr() as usize).checked_sub(self.base);
        let slot = self.slots.iter().find(|slot| {
            offset == Some(slot.offset as usize) && slot.pointer.length as usize == value.len()
        });
        slot.map_or_else(|| Value::Here(value.clone()), |slot| Value::There(slot.pointer))
    }
}

/// Cuts the large values out of `records`, writes them into extents and syncs those. To be called
/// by who appends the records, before that. `shelves` says where the replicas' rows stand.
///
/// A value for which there is no room stays in its entry; an error is final.
pub fn cut_out(
    extents: &Extents,
    records: &mut [Record],
    shelves: &BTreeMap<ReplicaKey, Pieces>,
    least: usize,
) -> Result<Vec<Appended>, ExtentError> {
    let mut appended = Vec::new();
    let mut any = false;
    for record in records {
        match record {
            Record::Entries { key, first_index, entries } => {
                let nowhere = Pieces::from(Shelf::default());
                let pieces = shelves.get(key).unwrap_or(&nowhere);
                let mut slots = Vec::new();
                for (at, entry) in entries.iter_mut().enumerate() {
                    if let Some(cut) = cut_entry(extents, pieces, entry, least)? {
                        slots.push((*first_index + at as u64, cut));
                    }
                }
                any |= !slots.is_empty();
                appended.push(Appended { key: *key, first_index: *first_index, slots });
            }
            Record::Restore { key, .. } => {
                appended.push(Appended { key: *key, first_index: 0, slots: Vec::new() });
            }
            _ => {}
        }
    }
    if any {
        extents.sync()?;
    }
    Ok(appended)
}

fn cut_entry(
    extents: &Extents,
    pieces: &Pieces,
    entry: &mut Entry,
    least: usize,
) -> Result<Option<Vec<Slot>>, ExtentError> {
    if entry.entry_type != 0 || entry.data.len() < least {
        return Ok(None);
    }
    // What cannot be read is refused when it is applied.
    let Ok(batch) = Batch::decode(entry.data.clone()) else { return Ok(None) };
    let mut slots = Vec::new();
    for (key, value) in large_values(&batch, least) {
        let offset = value.as_ptr() as usize - entry.data.as_ptr() as usize;
        match extents.write(pieces.shelf_of(key), key, value) {
            Ok(pointer) => slots.push(Slot { offset: offset as u32, pointer }),
            Err(error) if extents.is_stopped() => return Err(error),
            Err(error) => tracing::warn!(%error, "a large value stays in its entry"),
        }
    }
    if slots.is_empty() {
        return Ok(None);
    }
    slots.sort_by_key(|slot| slot.offset);
    entry.data = encode(&slots, &entry.data);
    entry.entry_type |= CUT;
    Ok(Some(slots))
}

/// Keys and large values that a batch puts, also inside transactions and in a split tenant's entries.
fn large_values(batch: &Batch, least: usize) -> Vec<(&Bytes, &Bytes)> {
    let mut found: Vec<(&Bytes, &Bytes)> = Vec::new();
    let mut txns: Vec<&TxnRequest> = Vec::new();
    for command in &batch.commands {
        match &command.body {
            Some(command::Body::Put(put)) => found.push((&put.key, &put.value)),
            Some(command::Body::Txn(txn)) => txns.push(txn),
            Some(command::Body::Split(entry)) => match &entry.body {
                Some(entry::Body::Write(write)) => txns.extend(&write.txn),
                Some(entry::Body::Branch(branch)) => {
                    let changes = branch.branch.iter().flat_map(|branch| &branch.changes);
                    found.extend(changes.map(|change| (&change.key, &change.value)));
                }
                _ => {}
            },
            _ => {}
        }
    }
    while let Some(txn) = txns.pop() {
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(Op::RequestPut(put)) => found.push((&put.key, &put.value)),
                Some(Op::RequestTxn(txn)) => txns.push(txn),
                _ => {}
            }
        }
    }
    found.retain(|(_, value)| value.len() >= least && !value.is_empty());
    found
}

/// The body of a cut entry: how many slots, the slots, and the bytes around the values.
fn encode(slots: &[Slot], data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len().min(4096));
    out.put_u32(slots.len() as u32);
    for slot in slots {
        out.put_u32(slot.offset);
        out.put_slice(&slot.pointer.encode());
    }
    let mut at = 0;
    for slot in slots {
        let start = slot.offset as usize;
        out.put_slice(data.get(at..start).unwrap_or_default());
        at = start + slot.pointer.length as usize;
    }
    out.put_slice(data.get(at..).unwrap_or_default());
    out.freeze()
}

/// Takes the body of a cut entry apart; `None` if it has another form.
fn decode(mut body: Bytes) -> Option<(Vec<Slot>, Bytes)> {
    let count = body.try_get_u32().ok()? as usize;
    let mut slots = Vec::new();
    let mut end = 0u64;
    for _ in 0..count {
        let offset = body.try_get_u32().ok()?;
        let pointer = Pointer::decode(body.get(..POINTER_BYTES)?)?;
        body.advance(POINTER_BYTES);
        if u64::from(offset) < end {
            return None;
        }
        end = u64::from(offset) + u64::from(pointer.length);
        slots.push(Slot { offset, pointer });
    }
    Some((slots, body))
}

/// The slots of an entry that was read from the log; none if nothing was cut out of it.
pub fn slots(entry_type: u8, body: &Bytes) -> Option<Vec<Slot>> {
    if entry_type & CUT == 0 {
        return Some(Vec::new());
    }
    decode(body.clone()).map(|(slots, _)| slots)
}

/// Type and bytes of an entry that was read from the log, whole again. `None` if a value cannot
/// be read any more.
pub fn whole(extents: &Extents, entry_type: u8, body: Bytes) -> Option<(u8, Bytes)> {
    if entry_type & CUT == 0 {
        return Some((entry_type, body));
    }
    let (slots, rest) = decode(body)?;
    let large: usize = slots.iter().map(|slot| slot.pointer.length as usize).sum();
    let mut out = BytesMut::with_capacity(rest.len() + large);
    let mut rest = rest.as_ref();
    for slot in &slots {
        let between = (slot.offset as usize).checked_sub(out.len())?;
        let (before, behind) = rest.split_at_checked(between)?;
        out.put_slice(before);
        rest = behind;
        out.put_slice(&extents.read(&slot.pointer).ok()?);
    }
    out.put_slice(rest);
    Some((entry_type & !CUT, out.freeze()))
}

/// Bytes of an entry that was read from the log, once it is whole.
pub fn whole_len(entry_type: u8, body: &Bytes) -> usize {
    let slots = slots(entry_type, body).unwrap_or_default();
    body.len() + slots.iter().map(|slot| slot.pointer.length as usize).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use proto::cluster::group::Command;
    use proto::cluster::split::{Branch, Change, Entry as SplitEntry, LogBranch, Write};
    use proto::etcd::{PutRequest, RequestOp};

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::extents::{ExtentsConfig, Named};

    const LEAST: usize = 10;

    fn extents() -> Extents {
        let config = ExtentsConfig { file_pages: 64, grow_pages: 64, ..ExtentsConfig::default() };
        Extents::open(Arc::new(SimDisk::new()), config, Named::default()).unwrap().extents
    }

    fn put(value: &[u8]) -> PutRequest {
        let value = Bytes::copy_from_slice(value);
        PutRequest { key: Bytes::from_static(b"key"), value, ..Default::default() }
    }

    fn entry(values: &[Vec<u8>]) -> Entry {
        let mut commands = Vec::new();
        for (at, value) in values.iter().enumerate() {
            let op = RequestOp { request: Some(Op::RequestPut(put(value))) };
            let inner = TxnRequest { failure: vec![op.clone()], ..Default::default() };
            let nested = RequestOp { request: Some(Op::RequestTxn(inner)) };
            let txn = TxnRequest { success: vec![op, nested], ..Default::default() };
            let (key, value) = (Bytes::from_static(b"key"), put(value).value);
            let changes = vec![Change { key, put: true, value, ..Default::default() }];
            let split = |body| command::Body::Split(SplitEntry { body: Some(body) });
            let body = match at % 4 {
                0 => command::Body::Put(put(&changes[0].value)),
                1 => split(entry::Body::Write(Write { txn: Some(txn), ..Default::default() })),
                2 => {
                    let branch = Some(Branch { changes, ..Default::default() });
                    split(entry::Body::Branch(LogBranch { branch, ..Default::default() }))
                }
                _ => command::Body::Txn(txn),
            };
            commands.push(Command { body: Some(body) });
        }
        let batch = Batch { format: 1, range_version: 1, commands };
        Entry { term: 1, entry_type: 0, data: batch.encode_to_vec().into() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn entries_are_whole_again(
            values in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..3 * LEAST), 0..6),
        ) {
            let (extents, key) = (extents(), ReplicaKey { group: 1, replica: 1 });
            let original = entry(&values);
            let mut records =
                [Record::Entries { key, first_index: 7, entries: vec![original.clone()] }];
            let appended = cut_out(&extents, &mut records, &BTreeMap::new(), LEAST).unwrap();
            let Record::Entries { entries, .. } = &records[0] else { unreachable!() };
            let cut = &entries[0];
            let body = cut.data.clone();
            prop_assert_eq!(whole_len(cut.entry_type, &body) >= original.data.len(), true);
            let (kind, data) = whole(&extents, cut.entry_type, body.clone()).unwrap();
            prop_assert_eq!((kind, &data), (0, &original.data));

            let count = |value: &Vec<u8>, at: usize| match value.len() {
                0..LEAST => 0,
                _ => 1 + at % 2,
            };
            let expected: usize = values.iter().enumerate().map(|(at, v)| count(v, at)).sum();
            let found = slots(cut.entry_type, &body).unwrap();
            prop_assert_eq!(found.len(), expected);
            let told = appended[0].slots.first().map_or(Vec::new(), |(_, slots)| slots.clone());
            prop_assert_eq!(&found, &told);

            // A decoded value is found by where it lies.
            let batch = Batch::decode(data.clone()).unwrap();
            let placed = Placed::new(&data, found);
            for (_, whole) in large_values(&batch, 1) {
                match placed.value(whole) {
                    Value::There(pointer) => {
                        prop_assert!(whole.len() >= LEAST);
                        prop_assert_eq!(&extents.read(&pointer).unwrap(), whole);
                    }
                    Value::Here(value) => prop_assert!(value.len() < LEAST && value == whole),
                }
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>) {
            let body = Bytes::from(bytes);
            prop_assert!(slots(CUT, &body).is_none_or(|slots| slots.len() <= body.len() / 28));
            prop_assert!(whole(&extents(), CUT, body.clone()).is_none_or(|(kind, _)| kind == 0));
        }
    }

    #[test]
    fn a_value_for_which_there_is_no_room_stays() {
        let disk = SimDisk::new();
        let config = ExtentsConfig { file_pages: 64, grow_pages: 64, ..ExtentsConfig::default() };
        let opened = Extents::open(Arc::new(disk.clone()), config, Named::default()).unwrap();
        disk.set_capacity(Some(0));
        let original = entry(&[vec![7; 100]]);
        let key = ReplicaKey { group: 1, replica: 1 };
        let mut records =
            [Record::Entries { key, first_index: 7, entries: vec![original.clone()] }];
        let appended = cut_out(&opened.extents, &mut records, &BTreeMap::new(), LEAST).unwrap();
        assert_eq!(appended[0].slots, []);
        assert!(matches!(&records[0], Record::Entries { entries, .. } if entries[0] == original));
    }
}
