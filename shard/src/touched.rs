//! Which keys requests have touched lately: a small sample of each group, for whoever is to say
//! where the group had best be cut (`cut.rs`). Pure: time is told, chance comes from counting.
//!
//! ```text
//!   every request ── one in 16, drawn by its number ──> the slot of its two seconds: 32 of them,
//!                                                       each stands for as many as were left out
//!   sixteen slots ── the oldest goes ──> what was touched in the last half minute
//! ```
//!
//! A request that is not drawn costs one multiplication beside the counter that is there anyway. Which
//! ones are drawn must not follow any rhythm of clients, or one key of many would seem to have all
//! the load; so it is a hash of the number, and every run of the simulator draws the same.
//!
//! Invariants:
//! * at most `SLOTS` times `SLOT_TOUCHES` touches are kept, with at most `KEY_BYTES` of each key;
//! * nothing of a request is held, only copies: a key must not keep a value in memory;
//! * a group that nobody asks for anything keeps nothing once it was looked at.

use std::collections::VecDeque;

use bytes::Bytes;
use proto::KeyRange;
use proto::group::{Request, cost};

use crate::group::core::mix;
use crate::split::footprint::Footprint;

/// One request in so many is looked at: a power of two.
const ONE_IN: u64 = 16;
/// Time that a slot stands for, in milliseconds.
const SLOT_MS: u64 = 2_000;
/// Slots that are kept.
const SLOTS: usize = 16;
/// Touches that a slot keeps.
const SLOT_TOUCHES: usize = 32;
/// Bytes of a key that are kept. Longer ones with the same beginning look alike.
const KEY_BYTES: usize = 512;
/// Bytes that make as much work as a request by itself.
const REQUEST_BYTES: u64 = 512;

/// Keys that were touched together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// From the lowest key to the highest.
    pub keys: KeyRange,
    /// How much work it stands for.
    pub weight: u64,
    /// Is it one of the newest fifth? Cuts are tried on these.
    pub is_recent: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Touched {
    slots: VecDeque<Slot>,
}

#[derive(Debug)]
struct Slot {
    number: u64,
    /// Touches that came, of which the first or a random choice is kept.
    came: u64,
    /// The keys, and the work that the request itself makes.
    kept: Vec<(KeyRange, u64)>,
}

/// Is the request with this number one that is looked at?
pub(crate) fn is_drawn(number: u64) -> bool {
    // The upper bits of a product with an odd constant (Fibonacci hashing) have no short rhythm.
    let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 60 < 16 / ONE_IN
}

fn is_about_keys(request: &Request) -> bool {
    matches!(
        request,
        Request::Put(_) | Request::Range(_) | Request::DeleteRange(_) | Request::Txn(_)
    )
}

/// The keys that a request reads or writes, from the first to the last; `None` for one that is not
/// about keys.
fn keys_of(request: &Request) -> Option<KeyRange> {
    let range = match request {
        Request::Put(put) => KeyRange::single(&put.key),
        Request::Range(range) => KeyRange::parse(&range.key, &range.range_end),
        Request::DeleteRange(delete) => KeyRange::parse(&delete.key, &delete.range_end),
        Request::Txn(txn) => {
            let Footprint { reads, writes, past, .. } = Footprint::of(txn);
            let past = past.into_iter().map(|(keys, _)| keys);
            let all = reads.into_iter().chain(writes).chain(past);
            all.filter(|keys| !keys.is_empty()).reduce(both)?
        }
        _ => return None,
    };
    (!range.is_empty()).then_some(range)
}

/// The keys from the lower beginning to the higher end.
fn both(a: KeyRange, b: KeyRange) -> KeyRange {
    let end = a.end.zip(b.end).map(|(a, b)| a.max(b));
    KeyRange { start: a.start.min(b.start), end }
}

/// The same keys in memory of their own, shortened.
fn copied(keys: &KeyRange) -> KeyRange {
    let short = |key: &Bytes| Bytes::copy_from_slice(key.get(..KEY_BYTES).unwrap_or(key));
    let start = short(&keys.start);
    match keys.end.as_ref().map(short) {
        Some(end) if end <= start => KeyRange::single(&start),
        end => KeyRange { start, end },
    }
}

// === impl Touched ===

impl Touched {
    /// Takes in a request that was drawn.
    pub(crate) fn note(&mut self, request: &Request, now_ms: u64) {
        if !is_about_keys(request) {
            return;
        }
        let number = now_ms / SLOT_MS;
        self.age(now_ms);
        if self.slots.back().is_none_or(|slot| slot.number < number) {
            self.slots.push_back(Slot { number, came: 0, kept: Vec::new() });
        }
        let Some(slot) = self.slots.back_mut() else { return };
        let place = match slot.kept.len() {
            free if free < SLOT_TOUCHES => free,
            // Each of those that came has the same chance to be among those that are kept.
            _ => (mix(&[number, slot.came]) % (slot.came + 1)) as usize,
        };
        if place >= SLOT_TOUCHES {
            slot.came += 1;
            return;
        }
        let Some(keys) = keys_of(request) else { return };
        slot.came += 1;
        let touch = (copied(&keys), 1 + cost(request).max(0) as u64 / REQUEST_BYTES);
        match slot.kept.get_mut(place) {
            Some(kept) => *kept = touch,
            None => slot.kept.push(touch),
        }
    }

    /// Drops what is too old.
    fn age(&mut self, now_ms: u64) {
        let oldest = (now_ms / SLOT_MS).saturating_sub(SLOTS as u64 - 1);
        while self.slots.front().is_some_and(|slot| slot.number < oldest) {
            self.slots.pop_front();
        }
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }

    /// What was touched lately. Empty as long as the newest fifth of it would be all.
    pub fn touches(&mut self, now_ms: u64) -> Vec<Touch> {
        self.age(now_ms);
        let fifth = self.slots.len() / 5;
        if fifth == 0 {
            return Vec::new();
        }
        let older = self.slots.len() - fifth;
        let mut touches = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            let kept = slot.kept.len().max(1) as u64;
            touches.extend(slot.kept.iter().map(|(keys, work)| Touch {
                keys: keys.clone(),
                weight: work * ONE_IN * slot.came / kept,
                is_recent: at >= older,
            }));
        }
        touches
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proto::etcd::{
        Compare, DeleteRangeRequest, LeaseLeasesRequest, PutRequest, RangeRequest, RequestOp,
        TxnRequest, request_op,
    };

    use super::*;

    fn put(key: &str, bytes: usize) -> Request {
        let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), vec![7; bytes].into());
        Request::Put(PutRequest { key, value, ..Default::default() })
    }

    fn touch_of(request: &Request) -> Option<KeyRange> {
        let mut touched = Touched::default();
        for slot in 0..5 {
            touched.note(request, slot * SLOT_MS);
        }
        touched.touches(4 * SLOT_MS).first().map(|touch| touch.keys.clone())
    }

    fn keys(start: &str, end: &str) -> Option<KeyRange> {
        let bytes = |key: &str| Bytes::copy_from_slice(key.as_bytes());
        Some(KeyRange { start: bytes(start), end: Some(bytes(end)) })
    }

    #[test]
    fn each_kind_of_request_touches_its_keys() {
        let bytes = |key: &'static str| Bytes::from_static(key.as_bytes());
        assert_eq!(touch_of(&put("a", 1)), keys("a", "a\0"));
        let range = RangeRequest { key: bytes("a"), range_end: bytes("b"), ..Default::default() };
        assert_eq!(touch_of(&Request::Range(range)), keys("a", "b"));
        let delete = DeleteRangeRequest { key: bytes("a"), range_end: bytes("b"), prev_kv: false };
        assert_eq!(touch_of(&Request::DeleteRange(delete)), keys("a", "b"));
        let compare = Compare { key: bytes("c"), ..Default::default() };
        let put = PutRequest { key: bytes("d"), ..Default::default() };
        let op = RequestOp { request: Some(request_op::Request::RequestPut(put)) };
        let txn = TxnRequest { compare: vec![compare], success: vec![op], failure: Vec::new() };
        assert_eq!(touch_of(&Request::Txn(txn)), keys("c", "d\0"));
        assert_eq!(touch_of(&Request::Txn(TxnRequest::default())), None);
        assert_eq!(touch_of(&Request::LeaseLeases(LeaseLeasesRequest {})), None);
    }

    #[test]
    fn what_is_kept_is_bounded_and_stands_for_all_that_came() {
        let mut touched = Touched::default();
        let long = "k".repeat(4 * KEY_BYTES);
        for number in 0..40_000u64 {
            touched.note(&put(&format!("{long}{number}"), 10), number);
        }
        let touches = touched.touches(39_999);
        assert_eq!(touches.len(), SLOTS * SLOT_TOUCHES);
        assert!(touches.iter().all(|touch| touch.keys.start.len() == KEY_BYTES));
        let weight: u64 = touches.iter().map(|touch| touch.weight).sum();
        // Each is as long as four times the work of a short one, and is one itself.
        assert_eq!(weight, 5 * ONE_IN * SLOTS as u64 * SLOT_MS);
        let recent = touches.iter().filter(|touch| touch.is_recent).count();
        assert_eq!(recent, SLOTS / 5 * SLOT_TOUCHES);
    }

    #[test]
    fn work_counts_by_requests_and_bytes() {
        let mut touched = Touched::default();
        for slot in 0..5 {
            touched.note(&put("small", 10), slot * SLOT_MS);
            touched.note(&put("large", 100 * 512), slot * SLOT_MS);
        }
        let mut weights = BTreeMap::new();
        for touch in touched.touches(4 * SLOT_MS) {
            *weights.entry(touch.keys.start).or_insert(0) += touch.weight;
        }
        let of = |key: &'static str| weights[&Bytes::from_static(key.as_bytes())];
        assert_eq!((of("small"), of("large")), (5 * ONE_IN, 5 * 101 * ONE_IN));
    }

    #[test]
    fn old_touches_go_and_leave_nothing_behind() {
        let mut touched = Touched::default();
        for slot in 0..20 {
            touched.note(&put("a", 1), slot * SLOT_MS);
        }
        assert_eq!(touched.touches(19 * SLOT_MS).len(), SLOTS);
        assert_eq!(touched.touches(30 * SLOT_MS).len(), 5);
        assert_eq!(touched.touches(31 * SLOT_MS), [], "too few to try a cut on");
        touched.touches(60 * SLOT_MS);
        assert_eq!(touched.slots.capacity(), 0);
    }

    /// Clients that go round and round in keys must not be seen as clients of one.
    #[test]
    fn no_rhythm_of_clients_decides_who_is_drawn() {
        for round in [2u64, 3, 5, 7, 16, 32, 48, 100, 128, 255, 256] {
            let drawn = (0..round * 16_000).filter(|number| is_drawn(*number));
            let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
            drawn.for_each(|number| *counts.entry(number % round).or_default() += 1);
            assert_eq!(counts.len() as u64, round);
            let even = |count: &u64| (700..1300).contains(count);
            assert!(counts.values().all(even), "{round}: {counts:?}");
        }
    }

    #[test]
    fn the_same_requests_leave_the_same_sample() {
        let sample = || {
            let mut touched = Touched::default();
            for number in (0..30_000u64).filter(|number| is_drawn(*number)) {
                touched.note(&put(&format!("k{}", number % 97), 10), number);
            }
            touched.touches(29_999)
        };
        assert_eq!(sample(), sample());
    }
}
