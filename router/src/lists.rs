//! Lists over several groups, put together from what each group says of its part. Pure.
//!
//! The parts were read at one revision and stand in the order of their keys. What comes out is what
//! etcd answers for the whole interval, to the last field:
//!
//! * `count` is the number of keys in the interval, whatever limit and filters say;
//! * among equals of a sort order the lower key stands first, also when descending;
//! * keys without values have no lease either, unless their values were read to sort by them.
//!
//! A *page* is a list in the order of its keys with a limit and nothing else: the first part is
//! asked for all of it and the others for their counts, which tell exactly who has the rest of it.

use bytes::Bytes;
use proto::{
    KeyRange,
    etcd::{RangeRequest, RangeResponse, range_request::SortTarget},
    list,
    mvccpb::KeyValue,
};

/// Is it a page?
pub(crate) fn is_page(request: &RangeRequest) -> bool {
    list::is_natural(request) && request.limit > 0 && !request.count_only
}

/// What the group is asked that has the keys of `range`.
pub(crate) fn part(request: &RangeRequest, range: KeyRange) -> RangeRequest {
    let (key, range_end) = range.spell();
    // Who sorts by values needs them here as well.
    let keys_only = request.keys_only && request.sort_target() != SortTarget::Value;
    RangeRequest { key, range_end, keys_only, ..request.clone() }
}

/// How many keys of each part stand on a page of `limit` keys.
pub(crate) fn shares(limit: i64, counts: impl Iterator<Item = i64>) -> Vec<i64> {
    let mut left = limit;
    let share = |count: i64| {
        let share = count.min(left);
        left -= share;
        share
    };
    counts.map(share).collect()
}

/// The answer to `request`, without a header, from those of its parts.
pub(crate) fn merge(request: &RangeRequest, parts: Vec<RangeResponse>) -> RangeResponse {
    let count = parts.iter().map(|part| part.count).sum();
    if request.count_only {
        return RangeResponse { count, ..Default::default() };
    }
    let cut = parts.iter().any(|part| part.more)
        || (!list::has_filters(request) && count > request.limit);
    let mut kvs: Vec<KeyValue> = parts.into_iter().flat_map(|part| part.kvs).collect();
    list::sort(request, &mut kvs);
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let more = limit > 0 && (cut || kvs.len() > limit);
    if limit > 0 {
        kvs.truncate(limit);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { header: None, kvs, more, count }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::etcd::range_request::SortOrder;

    /// A whole etcd's answer, the plain way: filter, sort, cut.
    fn model(request: &RangeRequest, rows: &[KeyValue]) -> RangeResponse {
        let range = KeyRange::parse(&request.key, &request.range_end);
        let mut kvs: Vec<_> = rows.iter().filter(|kv| range.contains(&kv.key)).cloned().collect();
        let count = kvs.len() as i64;
        if request.count_only {
            return RangeResponse { count, ..Default::default() };
        }
        let inside = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
        kvs.retain(|kv| {
            inside(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
                && inside(
                    kv.create_revision,
                    request.min_create_revision,
                    request.max_create_revision,
                )
        });
        let descend = request.sort_order() == SortOrder::Descend;
        let by = |number: fn(&KeyValue) -> i64| move |kv: &KeyValue| (number(kv), Bytes::new());
        type Place = Box<dyn Fn(&KeyValue) -> (i64, Bytes)>;
        let place: Place = match request.sort_target() {
            SortTarget::Key => Box::new(|kv| (0, kv.key.clone())),
            SortTarget::Value => Box::new(|kv| (0, kv.value.clone())),
            SortTarget::Version => Box::new(by(|kv| kv.version)),
            SortTarget::Create => Box::new(by(|kv| kv.create_revision)),
            SortTarget::Mod => Box::new(by(|kv| kv.mod_revision)),
        };
        // Insertion, so that nothing hangs on what a library calls stable.
        let mut sorted: Vec<KeyValue> = Vec::new();
        for kv in kvs {
            let is_behind = |other: &KeyValue| match descend {
                true => place(other) < place(&kv),
                false => place(other) > place(&kv),
            };
            let at = sorted.iter().position(is_behind).unwrap_or(sorted.len());
            sorted.insert(at, kv);
        }
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let more = limit > 0 && sorted.len() > limit;
        if more {
            sorted.truncate(limit);
        }
        if request.keys_only {
            for kv in &mut sorted {
                kv.value = Bytes::new();
                if request.sort_target() != SortTarget::Value {
                    kv.lease = 0;
                }
            }
        }
        RangeResponse { header: None, kvs: sorted, more, count }
    }

    /// The same over groups that each answer like an etcd.
    fn gathered(request: &RangeRequest, rows: &[KeyValue], cuts: &[Bytes]) -> RangeResponse {
        let range = KeyRange::parse(&request.key, &request.range_end);
        let mut starts = vec![Bytes::new()];
        starts.extend_from_slice(cuts);
        let ends = starts.iter().skip(1).cloned().map(Some).chain([None]);
        let places = starts.iter().cloned().zip(ends).map(|(start, end)| KeyRange { start, end });
        let ranges: Vec<_> = places.filter_map(|place| place.common(&range)).collect();
        let ask = |at: usize, change: &dyn Fn(&mut RangeRequest)| {
            let mut part = part(request, ranges[at].clone());
            change(&mut part);
            model(&part, rows)
        };
        if !is_page(request) {
            return merge(request, (0..ranges.len()).map(|at| ask(at, &|_| {})).collect());
        }
        let mut parts: Vec<_> =
            (0..ranges.len()).map(|at| ask(at, &|part| part.count_only = at > 0)).collect();
        let shares = shares(request.limit, parts.iter().map(|part| part.count));
        for (at, share) in shares.into_iter().enumerate().skip(1).filter(|(_, share)| *share > 0) {
            parts[at].kvs = ask(at, &|part| part.limit = share).kvs;
        }
        merge(request, parts)
    }

    fn key(number: u8) -> Bytes {
        vec![b'a' + number % 16].into()
    }

    proptest! {
        #[test]
        fn a_list_over_groups_is_the_list(
            rows in prop::collection::btree_map(0..16u8, (1..6i64, 1..6i64, 1..4i64, 0..4u8), 0..16),
            cuts in prop::collection::btree_set(0..16u8, 0..5),
            interval in (0..16u8, 0..18u8),
            limit in -1..8i64,
            order in 0..3i32,
            target in 0..5i32,
            flags in (any::<bool>(), any::<bool>(), any::<bool>()),
            filters in (0..5i64, 0..5i64, 0..5i64, 0..5i64),
        ) {
            let row = |(at, (create, more, version, value)): (u8, (i64, i64, i64, u8))| KeyValue {
                key: key(at),
                create_revision: create,
                mod_revision: create + more,
                version,
                value: vec![value].into(),
                lease: i64::from(value),
            };
            let rows: Vec<_> = rows.into_iter().map(row).collect();
            let cuts: Vec<_> = cuts.into_iter().map(key).collect();
            let range_end = match interval.1 {
                16 => Bytes::new(),
                17 => Bytes::from_static(&[0]),
                number => key(number),
            };
            let (keys_only, count_only, filtered) = flags;
            let filter = |value| if filtered { value } else { 0 };
            let request = RangeRequest {
                key: key(interval.0),
                range_end,
                limit,
                sort_order: order,
                sort_target: target,
                keys_only,
                count_only: count_only && keys_only,
                min_mod_revision: filter(filters.0),
                max_mod_revision: filter(filters.1),
                min_create_revision: filter(filters.2),
                max_create_revision: filter(filters.3),
                ..Default::default()
            };
            prop_assert_eq!(gathered(&request, &rows, &cuts), model(&request, &rows));
        }
    }

    #[test]
    fn a_page_is_shared_in_order() {
        let shares = |limit, counts: &[i64]| shares(limit, counts.iter().copied());
        assert_eq!(shares(5, &[3, 0, 4, 9]), [3, 0, 2, 0]);
        assert_eq!(shares(2, &[3, 4]), [2, 0]);
        assert_eq!(shares(9, &[3, 4]), [3, 4]);
    }
}
