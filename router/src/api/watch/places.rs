//! Which group has which keys of an etcd, as a map says it or its home. Pure.
//!
//! The two differ for a while whenever a range changes, and either may be ahead. Of ranges that
//! overlap the one with the higher version is newer, so nobody ever has to go back.

use proto::{GroupId, KeyRange, VirtualEtcd, cluster::group::Span};

/// One group's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) range: KeyRange,
    pub(super) group: GroupId,
    pub(super) version: u64,
}

/// The groups of an etcd in the order of their keys; they tile all keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    places: Vec<Place>,
}

// === impl Places ===

impl Places {
    /// As the map says.
    pub(super) fn of(etcd: &VirtualEtcd) -> Places {
        let place = |it: &proto::map::RangePlacement| Place {
            range: it.range.clone(),
            group: it.target.group,
            version: it.target.range_version,
        };
        Places { places: etcd.ranges().iter().map(place).collect() }
    }

    /// As home says; `None` while some keys are nobody's, because their group has just come and
    /// home does not know it yet.
    pub(super) fn told(span: &Span) -> Option<Places> {
        let place = |part: &proto::cluster::group::SpanPart| {
            let place = part.place.as_ref()?;
            let range = KeyRange { start: place.start.clone(), end: place.end.clone() };
            Some(Place { range, group: GroupId(place.group), version: place.version })
        };
        let mut places: Vec<Place> = span.parts.iter().map(place).collect::<Option<_>>()?;
        places.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        let begins = places.first()?.range.start.is_empty();
        let ends = places.last()?.range.end.is_none();
        let joined = |two: &[Place]| match two {
            [a, b] => a.range.end.as_ref() == Some(&b.range.start),
            _ => true,
        };
        (begins && ends && places.windows(2).all(joined)).then_some(Places { places })
    }

    /// Are these others than `before`, and none of them older?
    pub(super) fn replace(&self, before: &Places) -> bool {
        let is_older = |place: &Place| {
            let others = before.places.iter().filter(|it| it.range.overlaps(&place.range));
            others.into_iter().any(|other| other.version > place.version)
        };
        let has = |group| before.places.iter().any(|it| it.group == group);
        // Groups that share nothing with those before count by themselves.
        let elsewhere = !self.places.iter().any(|place| has(place.group));
        self != before && (elsewhere || !self.places.iter().any(is_older))
    }

    /// The only group, if there is one only.
    pub(super) fn only(&self) -> Option<GroupId> {
        match self.places.as_slice() {
            [place] => Some(place.group),
            _ => None,
        }
    }

    /// The groups that have keys of `range`, each with those that it has.
    pub(super) fn within(&self, range: &KeyRange) -> impl Iterator<Item = (GroupId, KeyRange)> {
        self.places.iter().filter_map(|it| Some((it.group, it.range.common(range)?)))
    }
}

#[cfg(test)]
impl Places {
    /// Places by their starts; the last one has everything above.
    pub(super) fn test(places: &[(&'static str, u64, u64)]) -> Places {
        let ends = places.iter().skip(1).map(|(start, ..)| Some((*start).into())).chain([None]);
        let place = |((start, group, version), end): (&(&'static str, u64, u64), _)| Place {
            range: KeyRange { start: (*start).into(), end },
            group: GroupId(*group),
            version: *version,
        };
        Places { places: places.iter().zip(ends).map(place).collect() }
    }

    /// What home says that sees them, with the last revision of each group.
    pub(super) fn span(&self, revision: i64, lasts: &[i64]) -> Span {
        use proto::cluster::group::{RangePlace, SpanPart};
        let part = |(place, last): (&Place, &i64)| SpanPart {
            place: Some(RangePlace {
                group: place.group.0,
                start: place.range.start.clone(),
                end: place.range.end.clone(),
                version: place.version,
            }),
            last: *last,
        };
        let parts = self.places.iter().zip(lasts).map(part).collect();
        Span { revision, parts, ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_places_that_differ_the_newer_ones_win() {
        let whole = Places::test(&[("", 10, 1)]);
        let split = Places::test(&[("", 10, 2), ("m", 11, 2)]);
        let more = Places::test(&[("", 10, 2), ("m", 11, 3), ("t", 12, 3)]);
        let merged = Places::test(&[("", 10, 4)]);
        let all = [whole, split, more, merged];
        for (at, places) in all.iter().enumerate() {
            for (before, others) in all.iter().enumerate() {
                assert_eq!(places.replace(others), at > before, "{at} {before}");
            }
        }
        // One side newer, the other older: home and the map have each missed something.
        let mixed = Places::test(&[("", 10, 3), ("d", 13, 3), ("m", 11, 2)]);
        assert!(!mixed.replace(&all[2]) && !all[2].replace(&mixed));
        assert!(Places::test(&[("", 99, 1)]).replace(&all[3]));
    }

    #[test]
    fn keys_that_are_nobodys_yet_make_no_places() {
        let split = Places::test(&[("", 10, 2), ("m", 11, 2)]);
        let span = split.span(9, &[1, 2]);
        assert_eq!(Places::told(&span), Some(split));
        for missing in [0, 1] {
            let mut span = span.clone();
            span.parts.remove(missing);
            assert_eq!(Places::told(&span), None);
        }
    }
}
