//! Where a group had best be cut in two, and why it cannot be. Pure: what was touched lately
//! (`touched.rs`), or where the keys lie, in; a key out.
//!
//! ```text
//!   touched    /registry/events/a/1 ... /registry/events/b/7   /registry/pods/a/1 ...
//!                         ^            ^           ^           ^        ^
//!   cuts               namespace      key      namespace    resource   key
//! ```
//!
//! A cut is as good as the larger side is small; what reaches over it (lists, transactions) is work
//! on both sides, and makes it worse. A watch that reaches over a cut has its events merged from both
//! sides, so of the cuts that are `GOOD` those come first that the fewest stretches of watched
//! keys reach over; then those in front of a shallow prefix: what belongs together in Kubernetes, a
//! resource, then a namespace of it, is watched and listed together. A deeper one is taken only where
//! no shallower one is good. Where watched keys begin and end is as good a place as a prefix.
//!
//! Not everything can be cut. A key that has most of the load has it on either side of any cut. Keys
//! that are only ever added behind (or in front of) all others are hot where they are added, and whoever
//! cuts there has cut the past: so each cut is tried on the newest touches as well, which are a
//! fifth, less than the smaller side of a cut may have.
//!
//! Invariants:
//! * a cut lies inside the group's keys: both sides have some;
//! * neither side has more than [`SIDE_MAX`] of the load, what reaches over included.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::KeyRange;

use crate::touched::Touch;

/// Touches without which nothing is said.
const TOUCHES_MIN: usize = 64;
/// Newest touches without which they prove nothing.
const RECENT_MIN: usize = 8;
/// Of a thousand parts of the load, those that one side may have at most.
pub const SIDE_MAX: u64 = 800;
/// A cut whose larger side has no more is not improved by a deeper one.
const GOOD: u64 = 700;
/// A key with more has most of the load.
const KEY_MAX: u64 = 500;
/// How many ends of prefixes of a key are looked at, from the front.
const DEPTH_MAX: usize = 8;
/// Longest key that placement takes for a cut.
const CUT_BYTES: usize = 1024;

/// What would become of the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The first key of the new group.
    pub at: Bytes,
    /// Of a thousand parts of the load, those below the cut.
    pub below: u64,
    /// Those above it.
    pub above: u64,
    /// Those that reach over it.
    pub across: u64,
    /// Stretches of watched keys that reach over it.
    pub watches: u64,
}

/// Why a group cannot be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uncut {
    /// Too little was touched to say.
    TooLittle,
    /// This key has so many of a thousand parts of the load.
    SingleKey(Bytes, u64),
    /// Of what came last, so many of a thousand parts are on one side of every cut.
    AppendFront(u64),
    /// So many of a thousand parts, at least, reach over every cut, or lie on one side of it.
    WideRanges(u64),
}

/// Amounts of load on the sides of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sides {
    below: u64,
    above: u64,
    across: u64,
}

/// Touches in the order of their beginnings and in that of their ends, for fast sums.
struct Sums {
    all: u64,
    /// Beginning, and the weight of all that begin at it or above.
    starts: Vec<(Bytes, u64)>,
    /// End, and the weight of all that end at it or below.
    ends: Vec<(Bytes, u64)>,
}

// === impl Sides ===

impl Sides {
    fn thousandths(part: u64, all: u64) -> u64 {
        (u128::from(part) * 1000 / u128::from(all.max(1))) as u64
    }

    /// What the busier side has of all.
    fn worse(self, all: u64) -> u64 {
        Sides::thousandths(self.below.max(self.above) + self.across, all)
    }

    /// How bad a cut is: what reaches over it counts twice, being work for the router as well.
    fn badness(self, all: u64) -> u64 {
        self.worse(all) + Sides::thousandths(self.across, all)
    }
}

// === impl Sums ===

impl Sums {
    fn of<'t>(touches: impl Iterator<Item = &'t Touch>) -> Sums {
        let (mut starts, mut ends, mut all) = (Vec::new(), Vec::new(), 0);
        for touch in touches {
            starts.push((touch.keys.start.clone(), touch.weight));
            ends.extend(touch.keys.end.clone().map(|end| (end, touch.weight)));
            all += touch.weight;
        }
        starts.sort_unstable();
        ends.sort_unstable();
        let (mut from, mut to) = (0, 0);
        for (_, weight) in starts.iter_mut().rev() {
            from += *weight;
            *weight = from;
        }
        for (_, weight) in &mut ends {
            to += *weight;
            *weight = to;
        }
        Sums { all, starts, ends }
    }

    fn cut(&self, at: &Bytes) -> Sides {
        let first = self.starts.partition_point(|(start, _)| start < at);
        let above = self.starts.get(first).map_or(0, |(_, sum)| *sum);
        let last = self.ends.partition_point(|(end, _)| end <= at);
        let below = last.checked_sub(1).and_then(|last| self.ends.get(last));
        let below = below.map_or(0, |(_, sum)| *sum);
        Sides { below, above, across: self.all.saturating_sub(below + above) }
    }
}

/// The keys where a group may be cut, with how deep each is: prefixes that end with a slash by their
/// number of parts, the ends of what is watched behind these, whole keys behind all of them.
fn candidates(
    touches: &[Touch],
    watched: &[KeyRange],
    range: &KeyRange,
) -> BTreeSet<(usize, Bytes)> {
    let mut found = BTreeSet::new();
    for keys in watched {
        let ends = keys.end.iter().chain([&keys.start]);
        found.extend(ends.map(|end| (usize::MAX - 1, end.clone())));
    }
    for Touch { keys, .. } in touches {
        let key = &keys.start;
        let slashes = key.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for (depth, (place, _)) in slashes.enumerate().take(DEPTH_MAX) {
            found.insert((depth, key.slice(..=place)));
        }
        found.insert((usize::MAX, key.clone()));
    }
    found.retain(|(_, at)| *at > range.start && range.contains(at) && at.len() <= CUT_BYTES);
    found
}

/// Where a group with these keys had best be cut for the sake of its load. `watched` are stretches of
/// keys that somebody watches.
pub fn by_load(touches: &[Touch], watched: &[KeyRange], range: &KeyRange) -> Result<Cut, Uncut> {
    // What came for other keys came before the group was cut last.
    let inside = |touch: &Touch| {
        let keys = touch.keys.common(range)?;
        Some(Touch { keys, ..touch.clone() })
    };
    let touches: Vec<Touch> = touches.iter().filter_map(inside).collect();
    if touches.len() < TOUCHES_MIN {
        return Err(Uncut::TooLittle);
    }
    let all = touches.iter().map(|touch| touch.weight).sum();
    if let Some((key, share)) = hottest(&touches, all)
        && share > KEY_MAX
    {
        return Err(Uncut::SingleKey(key, share));
    }
    best(&touches, watched, range)
}

/// Where it had best be cut for the sake of its size: `blocks` of keys, by their first ones, have
/// about so much each. Where in a block its keys are is not known: a cut inside has it on both sides.
pub fn by_size(
    blocks: &[(Bytes, u64)],
    watched: &[KeyRange],
    range: &KeyRange,
) -> Result<Cut, Uncut> {
    let ends = blocks.iter().skip(1).map(|(first, _)| Some(first.clone()));
    let ends = ends.chain([range.end.clone()]);
    let block = |((first, weight), end): (&(Bytes, u64), Option<Bytes>)| {
        let keys = KeyRange { start: first.max(&range.start).clone(), end };
        Touch { keys, weight: *weight, is_recent: false }
    };
    let touches: Vec<Touch> = blocks.iter().zip(ends).map(block).collect();
    match touches.len() {
        0 | 1 => Err(Uncut::TooLittle),
        _ => best(&touches, watched, range),
    }
}

/// Which of two cuts comes first.
type Rank = (bool, u64, usize, u64);

fn best(touches: &[Touch], watched: &[KeyRange], range: &KeyRange) -> Result<Cut, Uncut> {
    let sums = Sums::of(touches.iter());
    let stretch = |keys: &KeyRange| Touch { keys: keys.clone(), weight: 1, is_recent: false };
    let stretches: Vec<Touch> = watched.iter().map(stretch).collect();
    let watches = Sums::of(stretches.iter());
    let recent = Sums::of(touches.iter().filter(|touch| touch.is_recent));
    let proves = recent.starts.len() >= RECENT_MIN && recent.all > 0;
    let mut found: Option<(Rank, Bytes, Sides)> = None;
    let (mut front, mut wide) = (None::<u64>, 1000);
    for (depth, at) in candidates(touches, watched, range) {
        let sides = sums.cut(&at);
        let worse = sides.worse(sums.all);
        wide = wide.min(worse);
        if worse > SIDE_MAX {
            continue;
        }
        let lately = recent.cut(&at);
        let lately = Sides::thousandths(lately.below.max(lately.above), recent.all);
        if proves && lately > SIDE_MAX {
            front = Some(front.map_or(lately, |least| least.min(lately)));
            continue;
        }
        let badness = sides.badness(sums.all);
        // Among the good ones that with the fewest watches, then the shallowest; among others the best.
        let rank = match badness <= GOOD {
            true => (false, watches.cut(&at).across, depth, badness),
            false => (true, 0, 0, badness),
        };
        if found.as_ref().is_none_or(|(least, ..)| rank < *least) {
            found = Some((rank, at, sides));
        }
    }
    let Some((_, at, sides)) = found else {
        return Err(front.map_or(Uncut::WideRanges(wide), Uncut::AppendFront));
    };
    let part = |part| Sides::thousandths(part, sums.all);
    let (below, above, across) = (part(sides.below), part(sides.above), part(sides.across));
    let watches = watches.cut(&at).across;
    Ok(Cut { at, below, above, across, watches })
}

/// The single key with the most load, and its part of a thousand.
fn hottest(touches: &[Touch], all: u64) -> Option<(Bytes, u64)> {
    let mut keys: BTreeMap<&Bytes, u64> = BTreeMap::new();
    for touch in touches.iter().filter(|touch| touch.keys.is_single()) {
        *keys.entry(&touch.keys.start).or_default() += touch.weight;
    }
    let hottest = keys.into_iter().max_by_key(|(key, weight)| (*weight, Reverse(*key)))?;
    Some((hottest.0.clone(), Sides::thousandths(hottest.1, all)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn touch(start: &str, end: Option<&str>, weight: u64) -> Touch {
        let bytes = |key: &str| Bytes::copy_from_slice(key.as_bytes());
        let keys = match end {
            None => KeyRange::single(&bytes(start)),
            Some(end) => KeyRange { start: bytes(start), end: Some(bytes(end)) },
        };
        Touch { keys, weight, is_recent: false }
    }

    /// The same touches over and over, the newest fifth as well.
    fn steady(once: &[Touch]) -> Vec<Touch> {
        let times = 5 * TOUCHES_MIN.div_ceil(once.len().max(1));
        let all = (0..times).flat_map(|time| {
            once.iter().map(move |touch| Touch { is_recent: time % 5 == 4, ..touch.clone() })
        });
        all.collect()
    }

    fn points(keys: &[(&str, u64)]) -> Vec<Touch> {
        keys.iter().map(|(key, weight)| touch(key, None, *weight)).collect()
    }

    fn at(touches: &[Touch]) -> String {
        let cut = by_load(&steady(touches), &[], &KeyRange::all()).expect("it can be cut");
        String::from_utf8(cut.at.to_vec()).expect("text")
    }

    #[test]
    fn a_resource_comes_before_a_namespace_before_a_key() {
        let spread = points(&[
            ("/registry/events/a/1", 10),
            ("/registry/events/b/1", 25),
            ("/registry/events/b/2", 25),
            ("/registry/pods/a/1", 40),
        ]);
        assert_eq!(at(&spread), "/registry/pods/", "60 : 40, though 35 : 65 is there as well");
        let events = points(&[
            ("/registry/events/a/1", 40),
            ("/registry/events/b/1", 30),
            ("/registry/events/b/2", 20),
            ("/registry/pods/a/1", 10),
        ]);
        assert_eq!(at(&events), "/registry/events/b/");
        let one = points(&[
            ("/registry/events/a/1", 5),
            ("/registry/events/b/1", 45),
            ("/registry/events/b/2", 45),
            ("/registry/pods/a/1", 5),
        ]);
        assert_eq!(at(&one), "/registry/events/b/2");
        assert_eq!(at(&points(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)])), "c");
    }

    #[test]
    fn what_is_listed_together_stays_together() {
        let lists = [
            touch("/registry/pods/", Some("/registry/pods0"), 20),
            touch("/registry/pods/a/1", None, 10),
            touch("/registry/pods/b/1", None, 10),
            touch("/registry/pods/c/1", None, 10),
            touch("/registry/secrets/a/1", None, 25),
        ];
        assert_eq!(at(&lists), "/registry/secrets/");
        let over_all = [touch("a", Some("z"), 90), touch("b", None, 5), touch("c", None, 5)];
        let refused = by_load(&steady(&over_all), &[], &KeyRange::all());
        assert!(matches!(refused, Err(Uncut::WideRanges(950..))), "{refused:?}");
    }

    #[test]
    fn what_is_watched_together_stays_together() {
        let keys = points(&[
            ("user:1:a", 26),
            ("user:1:b", 24),
            ("user:1:c", 16),
            ("user:2:a", 17),
            ("user:2:b", 17),
        ]);
        assert_eq!(at(&keys), "user:1:c", "half of the load");
        let watched = |stretches: &[(&'static str, &'static str)]| -> Vec<KeyRange> {
            let range = |(from, to): &(&'static str, &'static str)| {
                KeyRange::parse(
                    &Bytes::from_static(from.as_bytes()),
                    &Bytes::from_static(to.as_bytes()),
                )
            };
            stretches.iter().map(range).collect()
        };
        let cut = |stretches: &[(&'static str, &'static str)]| {
            let cut = by_load(&steady(&keys), &watched(stretches), &KeyRange::all());
            let Cut { at, watches, .. } = cut.expect("it can be cut");
            (String::from_utf8(at.to_vec()).expect("text"), watches)
        };
        assert_eq!(cut(&[("user:1:", "user:1;"), ("user:2:", "user:2;")]), ("user:1;".into(), 0));
        // Somebody who watches everything is merged in any case.
        let all = [("user:1:", "user:1;"), ("a", "z"), ("user:2:", "user:2;")];
        assert_eq!(cut(&all), ("user:1;".into(), 1));
        // No cut is worse for the sake of a watch.
        assert_eq!(cut(&[("user:1:a", "user:2:b")]), ("user:1:c".into(), 1));
    }

    #[test]
    fn a_key_with_more_than_half_of_the_load_is_named() {
        let hot = points(&[("a", 20), ("hot", 51), ("z", 29)]);
        let refused = by_load(&steady(&hot), &[], &KeyRange::all());
        assert_eq!(refused, Err(Uncut::SingleKey(Bytes::from_static(b"hot"), 510)));
        assert_eq!(at(&points(&[("a", 20), ("hot", 50), ("z", 30)])), "z");
    }

    #[test]
    fn keys_that_are_added_behind_all_others_are_an_append_front() {
        for is_front in [false, true] {
            let key = |n: usize| format!("log/{:05}", if is_front { 99_999 - n } else { n });
            let touches: Vec<Touch> = (0..320)
                .map(|n| Touch { is_recent: n >= 256, ..touch(&key(n), None, 1) })
                .collect();
            let refused = by_load(&touches, &[], &KeyRange::all());
            assert!(matches!(refused, Err(Uncut::AppendFront(801..))), "{refused:?}");
            // The same keys, but in no order.
            let touches: Vec<Touch> = (0..320)
                .map(|n| Touch { is_recent: n >= 256, ..touch(&key(n * 7 % 320), None, 1) })
                .collect();
            assert!(by_load(&touches, &[], &KeyRange::all()).is_ok());
        }
    }

    #[test]
    fn a_cut_lies_inside_the_groups_own_keys() {
        let all = points(&[("a/1", 1), ("a/2", 1), ("b/1", 1), ("b/2", 1)]);
        let range = KeyRange { start: Bytes::from_static(b"b/"), end: None };
        let cut = by_load(&steady(&all), &[], &range).expect("it can be cut");
        assert_eq!((cut.at.as_ref(), cut.below, cut.above), (&b"b/2"[..], 500, 500));
        let few = &steady(&all)[..TOUCHES_MIN];
        assert_eq!(by_load(few, &[], &range), Err(Uncut::TooLittle));
    }

    #[test]
    fn what_is_too_large_is_cut_where_the_keys_are() {
        let blocks = |firsts: &[(&str, u64)]| -> Vec<(Bytes, u64)> {
            let block =
                |(first, live): &(&str, u64)| (Bytes::copy_from_slice(first.as_bytes()), *live);
            firsts.iter().map(block).collect()
        };
        let three = blocks(&[("", 250), ("/registry/pods/a/1", 250), ("/registry/pods/x/1", 256)]);
        let cut = by_size(&three, &[], &KeyRange::all()).expect("it can be cut");
        assert_eq!((cut.at.as_ref(), cut.below), (&b"/registry/pods/x/1"[..], 661));
        let many: Vec<String> = (0..256)
            .map(|n| match n {
                0..100 => format!("/registry/events/e{n:03}"),
                _ => format!("/registry/pods/p{n:03}"),
            })
            .collect();
        let many: Vec<(&str, u64)> = many.iter().map(|first| (first.as_str(), 200)).collect();
        let cut = by_size(&blocks(&many), &[], &KeyRange::all()).expect("it can be cut");
        assert_eq!((cut.at.as_ref(), cut.above), (&b"/registry/pods/"[..], 609));
        let range = KeyRange { start: Bytes::from_static(b"/registry/pods/"), end: None };
        let cut = by_size(&three[1..], &[], &range).expect("it can be cut");
        assert_eq!(cut.at.as_ref(), b"/registry/pods/x/1");
        assert_eq!(by_size(&three[..1], &[], &KeyRange::all()), Err(Uncut::TooLittle));
    }

    fn any_touch() -> impl Strategy<Value = Touch> {
        let key = prop::collection::vec(prop::sample::select(&b"/abc\xff"[..]), 1..7);
        let end = prop::option::weighted(0.1, key.clone());
        (key, end, 1..200u64, any::<bool>()).prop_map(|(key, end, weight, is_recent)| {
            let key = Bytes::from(key);
            let keys = match end.map(Bytes::from) {
                Some(end) if end > key => KeyRange { start: key, end: Some(end) },
                _ => KeyRange::single(&key),
            };
            Touch { keys, weight, is_recent }
        })
    }

    proptest! {
        /// Whatever is cut is cut as was promised, in whatever order the touches come; what is not,
        /// for the reason that is named.
        #[test]
        fn a_cut_keeps_its_promise(
            touches in prop::collection::vec(any_touch(), 1..200),
            start in prop::option::of(prop::sample::select(vec!["/", "a", "b/"])),
        ) {
            let start = start.map_or_else(Bytes::new, |start| Bytes::from_static(start.as_bytes()));
            let range = KeyRange { start, end: Some(Bytes::from_static(b"\xff\xff\xff")) };
            let chosen = by_load(&touches, &[], &range);
            let mut turned = touches.clone();
            turned.reverse();
            prop_assert_eq!(&chosen, &by_load(&turned, &[], &range));
            let inside: Vec<(KeyRange, u64)> = touches
                .iter()
                .filter_map(|touch| Some((touch.keys.common(&range)?, touch.weight)))
                .collect();
            let all: u64 = inside.iter().map(|(_, weight)| weight).sum();
            match chosen {
                Ok(cut) => {
                    prop_assert!(cut.at > range.start && range.contains(&cut.at));
                    let below = |keys: &KeyRange| keys.end.as_ref().is_some_and(|e| *e <= cut.at);
                    let above = |keys: &KeyRange| keys.start >= cut.at;
                    let sum = |of: &dyn Fn(&KeyRange) -> bool| -> u64 {
                        inside.iter().filter(|(keys, _)| of(keys)).map(|(_, weight)| weight).sum()
                    };
                    prop_assert_eq!(cut.below, sum(&below) * 1000 / all);
                    prop_assert_eq!(cut.above, sum(&above) * 1000 / all);
                    prop_assert!(cut.below.max(cut.above) + cut.across <= SIDE_MAX);
                }
                Err(Uncut::TooLittle) => prop_assert!(inside.len() < TOUCHES_MIN),
                Err(Uncut::SingleKey(key, share)) => {
                    let single = KeyRange::single(&key);
                    let of_key = inside.iter().filter(|(keys, _)| *keys == single);
                    let sum: u64 = of_key.map(|(_, weight)| weight).sum();
                    prop_assert_eq!(share, sum * 1000 / all);
                    prop_assert!(share > KEY_MAX);
                }
                Err(Uncut::AppendFront(share)) => prop_assert!(share > SIDE_MAX),
                Err(Uncut::WideRanges(share)) => prop_assert!(share > SIDE_MAX),
            }
        }
    }
}
