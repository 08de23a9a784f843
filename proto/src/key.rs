//! Key intervals and etcd's three spellings of them.
//!
//! etcd names an interval by `key` and `range_end`: an empty end means the one key, an end of
//! a single zero byte means everything at or above `key`, any other end is exclusive. The
//! spelling is parsed once, at the door; behind it only [`KeyRange`] exists, so that the
//! special ends cannot be forgotten in a check (GHSA-xg4h-6gfc-h4m8 was such a slip).

use bytes::Bytes;

/// A half-open interval of keys, `[start, end)`; without an end it is unbounded above.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    /// First key that may be inside.
    pub start: Bytes,
    /// First key above the interval; `None` is above every key.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Every key there is.
    pub fn all() -> KeyRange {
        KeyRange { start: Bytes::new(), end: None }
    }

    /// Reads etcd's spelling. An end at or below `key` gives an empty interval.
    pub fn parse(key: &Bytes, range_end: &Bytes) -> KeyRange {
        if range_end.is_empty() {
            return KeyRange::single(key);
        }
        let end = if range_end.as_ref() == [0] { None } else { Some(range_end.clone()) };
        KeyRange { start: key.clone(), end }
    }

    /// The interval that holds exactly `key`.
    pub fn single(key: &Bytes) -> KeyRange {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(key);
        end.push(0);
        KeyRange { start: key.clone(), end: Some(end.into()) }
    }

    /// Is `key` inside?
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_ref() && self.end.as_ref().is_none_or(|end| key < end.as_ref())
    }

    /// Does no key fit inside?
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end <= &self.start)
    }

    /// Does some key fit inside both?
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        let below = |a: &KeyRange, b: &KeyRange| b.end.as_ref().is_none_or(|end| a.start < *end);
        !self.is_empty() && !other.is_empty() && below(self, other) && below(other, self)
    }

    /// The keys that fit inside both, if there are any.
    pub fn common(&self, other: &KeyRange) -> Option<KeyRange> {
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.as_ref().or(b.as_ref()),
        };
        let start = (&self.start).max(&other.start).clone();
        self.overlaps(other).then(|| KeyRange { start, end: end.cloned() })
    }

    /// Does every key that fits inside fit inside `outer` as well?
    pub fn is_within(&self, outer: &KeyRange) -> bool {
        let ends = match (&self.end, &outer.end) {
            (Some(end), Some(outer)) => end <= outer,
            (_, outer) => outer.is_none(),
        };
        self.is_empty() || (outer.start <= self.start && ends)
    }

    /// etcd's spelling, as [`KeyRange::parse`] reads it. An interval that begins with the empty key
    /// has none: no request may name that key.
    pub fn spell(self) -> (Bytes, Bytes) {
        let end = self.end.unwrap_or(Bytes::from_static(&[0]));
        (self.start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::parse(&Bytes::from_static(key.as_bytes()), &Bytes::from_static(end.as_bytes()))
    }

    #[test]
    fn an_empty_end_is_one_key() {
        let r = range("a", "");
        assert!(r.contains(b"a") && !r.contains(b"a\0") && !r.contains(b"b"));
    }

    #[test]
    fn a_zero_end_is_everything_above() {
        let r = range("b", "\0");
        assert!(r.contains(b"b") && r.contains(b"\xff\xff") && !r.contains(b"a"));
        assert!(!r.is_empty());
    }

    #[test]
    fn an_end_below_the_start_holds_nothing() {
        let r = range("b", "a");
        assert!(r.is_empty() && !r.contains(b"b") && !r.overlaps(&KeyRange::all()));
    }

    #[test]
    fn what_two_intervals_share_is_within_both() {
        let (low, high, all) = (range("a", "m"), range("k", "\0"), KeyRange::all());
        assert_eq!(low.common(&high), Some(range("k", "m")));
        assert_eq!(high.common(&low), Some(range("k", "m")));
        assert_eq!((all.common(&high), all.common(&all)), (Some(high.clone()), Some(all.clone())));
        assert_eq!((low.common(&range("m", "n")), low.common(&range("c", "b"))), (None, None));
        assert!(low.is_within(&all) && low.is_within(&low) && range("c", "").is_within(&low));
        assert!(!all.is_within(&low) && !high.is_within(&low) && !low.is_within(&high));
        assert!(range("z", "y").is_within(&low), "nothing is everywhere");
    }

    #[test]
    fn a_spelled_interval_reads_as_itself() {
        for range in [range("a", "m"), range("k", "\0"), range("c", "")] {
            let (key, range_end) = range.clone().spell();
            assert_eq!(KeyRange::parse(&key, &range_end), range);
        }
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(!range("a", "b").overlaps(&range("b", "c")));
        assert!(range("a", "c").overlaps(&range("b", "")));
        assert!(range("a", "\0").overlaps(&range("z", "")));
    }
}
