//! Bytes of every row in the engine. One keyspace holds all groups of a node:
//!
//! ```text
//! 01 00                                   node: checkpoint number, next shelf
//! 01 01 | group | replica                 group: state of the machine at the checkpoint
//! 01 02 | shelf                           state that came with a snapshot, until adopted
//! 01 03 | page file                       its pages that rows use (`extents.rs`)
//! 02 | shelf | key* | !revision           version of a key
//! 03 | shelf | last revision              packed changes of some revisions
//! 04 | shelf | first key                  live keys of a block of keys
//! 05 | shelf | lease                      a lease and its granted TTL
//! 06 | shelf | lease | key                a key attached to a lease
//! 07 | shelf | revision                   a revision that changed a key more than once
//! ```
//!
//! Numbers are big endian, so that bytes sort as numbers do. `key*` is the key with every
//! zero byte doubled to `00 ff` and `00 00` behind it: it sorts as the key does, and no
//! key's rows lie between another's. `!revision` is the complement, so that a key's newest
//! version comes first. Rows begin with a shelf, never with a group: a split moves no row.
//!
//! Invariants: encodings are stable (one golden test); a newer format gets a new kind byte.

use bytes::{BufMut, Bytes};
use proto::KeyRange;

use crate::extents::Pointer;

/// Key of the node's own row.
pub const NODE_KEY: &[u8] = &[1, 0];

const KIND_META: u8 = 1;
const META_GROUP: u8 = 1;
const META_STAGED: u8 = 2;
const META_PAGES: u8 = 3;
const KIND_VERSION: u8 = 2;
const KIND_CHANGES: u8 = 3;
const KIND_COUNTS: u8 = 4;
const KIND_LEASE: u8 = 5;
const KIND_LEASE_KEY: u8 = 6;
const KIND_TWICE: u8 = 7;

/// All kinds whose keys go on with a shelf.
pub const SHELF_KINDS: [u8; 6] =
    [KIND_VERSION, KIND_CHANGES, KIND_COUNTS, KIND_LEASE, KIND_LEASE_KEY, KIND_TWICE];
/// Those of them that groups do not share. Keys of leases stand where their versions stand.
pub const OWN_KINDS: [u8; 4] = [KIND_CHANGES, KIND_COUNTS, KIND_LEASE, KIND_TWICE];

/// Where rows of one replica's life stand; a number of this node, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Shelf(pub u64);

/// A version's value, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// In the row itself.
    Here(Bytes),
    /// In an extent of this node.
    There(Pointer),
}

impl Default for Value {
    fn default() -> Value {
        Value::Here(Bytes::new())
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Value {
        Value::Here(bytes)
    }
}

impl Value {
    /// Length in bytes, wherever it stands.
    pub fn len(&self) -> usize {
        match self {
            Value::Here(bytes) => bytes.len(),
            Value::There(pointer) => pointer.length as usize,
        }
    }

    /// Is it the empty value?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The extent that it takes, if it takes one.
    pub fn extent(&self) -> Option<&Pointer> {
        match self {
            Value::Here(_) => None,
            Value::There(pointer) => Some(pointer),
        }
    }

    /// Bytes in the row.
    pub fn row_bytes(&self) -> usize {
        match self {
            Value::Here(bytes) => bytes.len(),
            Value::There(_) => crate::extents::POINTER_BYTES,
        }
    }
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Row {
    /// The version is a delete.
    pub deleted: bool,
    /// Place of the operation within its revision.
    pub place: u32,
    /// Revision of the first put of this life of the key.
    pub create_revision: i64,
    /// Puts since then; 0 for a delete.
    pub version: i64,
    /// Attached lease, 0 for none.
    pub lease: i64,
    /// The value.
    pub value: Value,
}

/// Row bits: the version is a delete.
const FLAG_DELETED: u8 = 1;
/// Row bits: a pointer stands in place of the value.
const FLAG_EXTENT: u8 = 2;

impl Row {
    /// Bytes in the engine.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(24 + self.value.row_bytes());
        let deleted = if self.deleted { FLAG_DELETED } else { 0 };
        out.push(deleted | if self.value.extent().is_some() { FLAG_EXTENT } else { 0 });
        put_varint(&mut out, u64::from(self.place));
        put_varint(&mut out, self.create_revision as u64);
        put_varint(&mut out, self.version as u64);
        put_varint(&mut out, self.lease as u64);
        match &self.value {
            Value::Here(bytes) => out.extend_from_slice(bytes),
            Value::There(pointer) => out.extend_from_slice(&pointer.encode()),
        }
        out.into()
    }

    /// Reads what [`Row::encode`] wrote; `None` for anything else.
    pub fn decode(bytes: &Bytes) -> Option<Row> {
        let mut at = 1;
        let flags = *bytes.first()?;
        if flags & !(FLAG_DELETED | FLAG_EXTENT) != 0 {
            return None;
        }
        let place = take_varint(bytes, &mut at)?;
        let create_revision = take_varint(bytes, &mut at)? as i64;
        let version = take_varint(bytes, &mut at)? as i64;
        let lease = take_varint(bytes, &mut at)? as i64;
        Some(Row {
            deleted: flags & FLAG_DELETED != 0,
            place: u32::try_from(place).ok()?,
            create_revision,
            version,
            lease,
            value: match flags & FLAG_EXTENT {
                0 => Value::Here(bytes.slice(at..)),
                _ => Value::There(Pointer::decode(bytes.get(at..)?)?),
            },
        })
    }

    /// What the row adds to the size that the quota is judged by.
    pub fn cost(&self, key_len: usize) -> i64 {
        // 40: numbers and index of a row, about what they take in the engine.
        (key_len + self.value.len() + 40) as i64
    }
}

/// Appends an LEB128 number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes an LEB128 number at `at` and moves it on.
pub fn take_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn escape(out: &mut Vec<u8>, key: &[u8]) {
    for byte in key {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
}

/// Everything of `shelf` of one kind lies in `[from, to)` of these two.
pub fn shelf_bounds(kind: u8, shelf: Shelf) -> (Vec<u8>, Vec<u8>) {
    let bound = |number: u64| {
        let mut out = Vec::with_capacity(9);
        out.push(kind);
        out.put_u64(number);
        out
    };
    (bound(shelf.0), bound(shelf.0 + 1))
}

/// First possible row of `key` or a later key: for the lower end of an interval.
pub fn version_bound(shelf: Shelf, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 19);
    out.push(KIND_VERSION);
    out.put_u64(shelf.0);
    escape(&mut out, key);
    out.extend_from_slice(&[0, 0]);
    out
}

/// Above every row of `shelf`.
pub fn version_end(shelf: Shelf) -> Vec<u8> {
    shelf_bounds(KIND_VERSION, shelf).1
}

/// A version's row key without the part that is its node's alone: kind and shelf.
pub fn version_place(row_key: &Bytes) -> Bytes {
    row_key.slice(9.min(row_key.len())..)
}

/// The least row key behind the one that stands there on a shelf.
pub fn version_behind(shelf: Shelf, place: &[u8]) -> Vec<u8> {
    let (mut row_key, _) = versions_bounds(shelf);
    row_key.extend_from_slice(place);
    row_key.push(0);
    row_key
}

/// Key of the version of `key` at `revision`.
pub fn version_key(shelf: Shelf, key: &[u8], revision: i64) -> Vec<u8> {
    let mut out = version_bound(shelf, key);
    out.put_u64(!(revision as u64));
    out
}

/// Writes the row key of another version of the same key: of the one at `revision`, whether it is
/// there or not.
pub fn version_beside(out: &mut Vec<u8>, row_key: &[u8], revision: i64) {
    out.clear();
    out.extend_from_slice(row_key.split_last_chunk::<8>().map_or(row_key, |(head, _)| head));
    out.put_u64(!(revision as u64));
}

/// Splits a version's row key into (key in escaped form, revision).
pub fn split_version(row_key: &[u8]) -> Option<(&[u8], i64)> {
    let (head, revision) = row_key.split_last_chunk::<8>()?;
    Some((head.get(9..head.len().checked_sub(2)?)?, !u64::from_be_bytes(*revision) as i64))
}

/// The client's key of a version's row key; shares its bytes if nothing was escaped.
pub fn version_user_key(row_key: &Bytes) -> Option<Bytes> {
    let (escaped, _) = split_version(row_key)?;
    if escaped.contains(&0) {
        return Some(unescape(escaped));
    }
    Some(row_key.slice(9..9 + escaped.len()))
}

/// The key that was escaped.
pub fn unescape(escaped: &[u8]) -> Bytes {
    if !escaped.contains(&0) {
        return Bytes::copy_from_slice(escaped);
    }
    let mut out = Vec::with_capacity(escaped.len());
    let mut skip = false;
    for byte in escaped {
        if skip {
            skip = false;
            continue;
        }
        out.push(*byte);
        skip = *byte == 0;
    }
    out.into()
}

/// Key of the packed changes that end with `revision`.
pub fn changes_key(shelf: Shelf, revision: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(17);
    out.push(KIND_CHANGES);
    out.put_u64(shelf.0);
    out.put_u64(revision as u64);
    out
}

/// Last revision of a packed row, from its key.
pub fn split_changes(row_key: &[u8]) -> Option<i64> {
    row_key.split_last_chunk::<8>().map(|(_, revision)| u64::from_be_bytes(*revision) as i64)
}

/// Key of the row that says that `revision` changed a key more than once.
pub fn twice_key(shelf: Shelf, revision: i64) -> Vec<u8> {
    let (mut out, _) = shelf_bounds(KIND_TWICE, shelf);
    out.put_u64(revision as u64);
    out
}

/// The revision of such a row, from its key.
pub fn split_twice(row_key: &[u8]) -> Option<i64> {
    split_changes(row_key)
}

/// Key of the block of live keys that begins with `first`.
pub fn counts_key(shelf: Shelf, first: &[u8]) -> Vec<u8> {
    let (mut out, _) = counts_bounds(shelf);
    out.extend_from_slice(first);
    out
}

/// All counts of `shelf` lie in `[from, to)` of these; the block's first key follows `from`.
pub fn counts_bounds(shelf: Shelf) -> (Vec<u8>, Vec<u8>) {
    shelf_bounds(KIND_COUNTS, shelf)
}

/// Key of a lease. The sign bit is flipped, so that ids sort as signed numbers.
pub fn lease_key(shelf: Shelf, lease: i64) -> Vec<u8> {
    lease_prefix(KIND_LEASE, shelf, lease)
}

/// Key that says that `key` is attached to `lease`.
pub fn lease_key_key(shelf: Shelf, lease: i64, key: &[u8]) -> Vec<u8> {
    let mut out = lease_prefix(KIND_LEASE_KEY, shelf, lease);
    out.extend_from_slice(key);
    out
}

/// The keys of a range that are attached to `lease` lie in `[from, to)` of these.
pub fn lease_keys_bounds(shelf: Shelf, lease: i64, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let to = match (&range.end, lease.checked_add(1)) {
        (Some(end), _) => lease_key_key(shelf, lease, end),
        (None, Some(next)) => lease_prefix(KIND_LEASE_KEY, shelf, next),
        (None, None) => shelf_bounds(KIND_LEASE_KEY, shelf).1,
    };
    (lease_key_key(shelf, lease, &range.start), to)
}

/// Bounds of all leases of a shelf.
pub fn leases_bounds(shelf: Shelf) -> (Vec<u8>, Vec<u8>) {
    shelf_bounds(KIND_LEASE, shelf)
}

/// Bounds of all versions of a shelf.
pub fn versions_bounds(shelf: Shelf) -> (Vec<u8>, Vec<u8>) {
    shelf_bounds(KIND_VERSION, shelf)
}

/// Bounds of the versions of a range of keys.
pub fn versions_of(shelf: Shelf, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
    let to = match &range.end {
        Some(end) => version_bound(shelf, end),
        None => version_end(shelf),
    };
    (version_bound(shelf, &range.start), to)
}

/// Bounds of all keys that are attached to leases of a shelf.
pub fn all_lease_keys_bounds(shelf: Shelf) -> (Vec<u8>, Vec<u8>) {
    shelf_bounds(KIND_LEASE_KEY, shelf)
}

/// Bounds of all packed changes of a shelf.
pub fn changes_bounds(shelf: Shelf) -> (Vec<u8>, Vec<u8>) {
    shelf_bounds(KIND_CHANGES, shelf)
}

/// The lease and the key of the row of a key that is attached to it; shares its bytes.
pub fn split_lease_key(row_key: &Bytes) -> Option<(i64, Bytes)> {
    Some((split_lease(row_key)?, row_key.slice(17..)))
}

/// The lease of a lease row's key.
pub fn split_lease(row_key: &[u8]) -> Option<i64> {
    let raw = u64::from_be_bytes(*row_key.get(9..)?.first_chunk::<8>()?);
    Some((raw ^ (1 << 63)) as i64)
}

fn lease_prefix(kind: u8, shelf: Shelf, lease: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(17);
    out.push(kind);
    out.put_u64(shelf.0);
    out.put_u64(lease as u64 ^ (1 << 63));
    out
}

/// Key of a group's state.
pub fn group_key(group: u64, replica: u64) -> Vec<u8> {
    let mut out = vec![KIND_META, META_GROUP];
    out.put_u64(group);
    out.put_u64(replica);
    out
}

/// Bounds of all groups' states.
pub fn groups_bounds() -> (Vec<u8>, Vec<u8>) {
    (vec![KIND_META, META_GROUP], vec![KIND_META, META_STAGED])
}

/// Group and replica of a group row's key.
pub fn split_group(row_key: &[u8]) -> Option<(u64, u64)> {
    let group = u64::from_be_bytes(*row_key.get(2..)?.first_chunk::<8>()?);
    let replica = u64::from_be_bytes(*row_key.get(10..)?.first_chunk::<8>()?);
    Some((group, replica))
}

/// Key of the bitmap of a page file.
pub fn pages_key(file: u32) -> Vec<u8> {
    let mut out = vec![KIND_META, META_PAGES];
    out.put_u32(file);
    out
}

/// Bounds of all bitmaps.
pub fn pages_bounds() -> (Vec<u8>, Vec<u8>) {
    (vec![KIND_META, META_PAGES], vec![KIND_META, META_PAGES + 1])
}

/// Page file of a bitmap's key.
pub fn split_pages(row_key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(row_key.get(2..)?.try_into().ok()?))
}

/// The extent of a row, given its key and bytes; none for rows other than versions.
pub fn extent_of(row_key: &[u8], row: &Bytes) -> Option<Pointer> {
    let version = row_key.first() == Some(&KIND_VERSION);
    Row::decode(row).filter(|_| version)?.value.extent().copied()
}

/// Key of the state that came with a snapshot onto `shelf`.
pub fn staged_key(shelf: Shelf) -> Vec<u8> {
    let mut out = vec![KIND_META, META_STAGED];
    out.put_u64(shelf.0);
    out
}

/// Bounds of all states that came with snapshots.
pub fn staged_bounds() -> (Vec<u8>, Vec<u8>) {
    (vec![KIND_META, META_STAGED], vec![KIND_META, META_STAGED + 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_on_disk_do_not_change() {
        assert_eq!(
            version_key(Shelf(7), b"a\0b", 5),
            [
                2, 0, 0, 0, 0, 0, 0, 0, 7, b'a', 0, 255, b'b', 0, 0, 255, 255, 255, 255, 255, 255,
                255, 250
            ]
        );
        let row = Row {
            deleted: false,
            place: 1,
            create_revision: 300,
            version: 2,
            lease: 0,
            value: Bytes::from_static(b"v").into(),
        };
        assert_eq!(row.encode().as_ref(), [0, 1, 0xac, 2, 2, 0, b'v']);
        let pointer = Pointer { file: 1, page: 2, pages: 3, length: 9000, checksum: 4 };
        let row = Row { value: Value::There(pointer), ..row };
        assert_eq!(row.encode()[..6], [2, 1, 0xac, 2, 2, 0]);
        assert_eq!(row.encode()[6..], pointer.encode());
        assert_eq!(pages_key(258), [1, 3, 0, 0, 1, 2]);
        assert_eq!(lease_key(Shelf(1), -1)[9..], [0x7f, 255, 255, 255, 255, 255, 255, 255]);
    }

    proptest! {
        #[test]
        fn rows_come_back(
            deleted: bool, place: u32, create: i64, version: i64, lease: i64, value: Vec<u8>,
            outside: bool,
        ) {
            let pointer = Pointer { file: 3, page: 5, pages: 2, length: 5000, checksum: place };
            let value = match outside {
                true => Value::There(pointer),
                false => Value::Here(value.into()),
            };
            let row = Row { deleted, place, create_revision: create, version, lease, value };
            prop_assert_eq!(Row::decode(&row.encode()), Some(row));
        }

        #[test]
        fn row_keys_sort_by_key_then_newest(
            a in proptest::collection::vec(0u8..3, 0..5),
            b in proptest::collection::vec(0u8..3, 0..5),
            x in 1i64..9, y in 1i64..9,
        ) {
            let (ka, kb) = (version_key(Shelf(1), &a, x), version_key(Shelf(1), &b, y));
            prop_assert_eq!(ka.cmp(&kb), a.cmp(&b).then(y.cmp(&x)));
            let (escaped, revision) = split_version(&ka).unwrap();
            prop_assert_eq!(unescape(escaped), Bytes::from(a));
            prop_assert_eq!(revision, x);
        }
    }
}
