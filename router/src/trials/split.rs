//! One etcd over several groups: what its clients see must be what one group would show them.

use proto::{
    GroupId, KeyRange, PlacementMap, VirtualEtcd,
    map::{RangePlacement, Target},
};

use super::{
    tenants::{ACME, etcd_of, map},
    *,
};

/// acme's home; its other groups have higher numbers.
const HOME: u64 = 71;

/// The map with acme's ranges, by (start, group, version).
pub(super) fn over(places: &[(&str, u64, u64)]) -> PlacementMap {
    let home = etcd_of("acme", 7, 1).home();
    let ends = places.iter().skip(1).map(|(start, ..)| Some(b(start))).chain([None]);
    let place = |((start, group, version), end): (&(&str, u64, u64), Option<Bytes>)| {
        let target = Target { group: GroupId(*group), range_version: *version, ..home };
        RangePlacement { range: KeyRange { start: b(start), end }, target }
    };
    let ranges = places.iter().zip(ends).map(place).collect();
    let etcd = VirtualEtcd::unsplit("acme", 0xa047, home).with_ranges(ranges);
    map().with(etcd.expect("tiles all keys"))
}

const WHOLE: &[(&str, u64, u64)] = &[("", HOME, 1)];
const TWO: &[(&str, u64, u64)] = &[("", HOME, 2), ("m", 75, 2)];
const THREE: &[(&str, u64, u64)] = &[("", HOME, 2), ("m", 75, 3), ("t", 76, 3)];

/// A house whose acme is on three groups.
async fn split() -> House {
    let house = house().await;
    house.fake.split(HOME, "m", 75);
    house.fake.split(75, "t", 76);
    house.router.place(over(THREE));
    house
}

async fn put_in(house: &House, key: &str, value: &str) -> i64 {
    let response = house.kv().put(with(put(key, value), ACME)).await.unwrap().into_inner();
    response.header.unwrap().revision
}

async fn list(house: &House, request: etcd::RangeRequest) -> etcd::RangeResponse {
    house.kv().range(with(request, ACME)).await.unwrap().into_inner()
}

async fn refused(house: &House, request: etcd::RangeRequest) -> (Code, String) {
    said(house.kv().range(with(request, ACME)).await)
}

fn keys(response: &etcd::RangeResponse) -> Vec<String> {
    let key = |kv: &proto::mvccpb::KeyValue| String::from_utf8(kv.key.to_vec()).unwrap();
    response.kvs.iter().map(key).collect()
}

/// Groups that were asked since `before`, and how.
fn asked(house: &House, before: usize) -> Vec<(u64, &'static str)> {
    use proto::group::Request;
    let name = |request: &proto::cluster::group::GroupRequest| match &request.body {
        Some(Request::Span(ask)) if ask.weak => "weak span",
        Some(Request::Span(_)) => "span",
        Some(Request::Range(range)) if range.count_only => "count",
        Some(Request::Range(_)) => "range",
        Some(Request::Put(_)) => "put",
        Some(Request::DeleteRange(_)) => "delete",
        Some(Request::Txn(_)) => "txn",
        _ => "other",
    };
    house.fake.asked()[before..].iter().map(|it| (it.group, name(it))).collect()
}

// --- lists

#[tokio::test]
async fn a_list_over_groups_is_one_list_at_one_revision() {
    let house = split().await;
    for key in ["a", "c", "n", "q", "u", "z"] {
        put_in(&house, key, key).await;
    }
    let before = house.fake.asked().len();
    let all = list(&house, get("b", "\0")).await;
    assert_eq!(keys(&all), ["c", "n", "q", "u", "z"]);
    assert_eq!((all.count, all.more, all.header.unwrap().revision), (5, false, 7));
    assert_eq!(all.header.unwrap().cluster_id, 0xa047);
    let mut now = asked(&house, before);
    now.sort_unstable();
    assert_eq!(now, [(71, "range"), (71, "span"), (75, "range"), (76, "range")]);
    // Only whom it concerns is asked, and of one group nobody but it.
    let before = house.fake.asked().len();
    assert_eq!(keys(&list(&house, get("q", "v")).await), ["q", "u"]);
    assert_eq!(keys(&list(&house, get("m", "t")).await), ["n", "q"]);
    let mut now = asked(&house, before);
    now.sort_unstable();
    assert_eq!(now, [(71, "span"), (75, "range"), (75, "range"), (76, "range")]);
}

#[tokio::test]
async fn a_page_over_groups_has_the_first_keys_and_the_count_of_all() {
    let house = split().await;
    for key in ["a", "c", "n", "q", "u", "z"] {
        put_in(&house, key, key).await;
    }
    for limit in 1..8 {
        let page = list(&house, etcd::RangeRequest { limit, ..get("a", "\0") }).await;
        let expected = ["a", "c", "n", "q", "u", "z"].into_iter().take(limit as usize);
        assert_eq!(keys(&page), expected.collect::<Vec<_>>());
        assert_eq!((page.count, page.more), (6, limit < 6), "{limit}");
    }
    let before = house.fake.asked().len();
    list(&house, etcd::RangeRequest { limit: 2, ..get("a", "\0") }).await;
    let now = asked(&house, before);
    assert_eq!(now, [(71, "span"), (71, "range"), (75, "count"), (76, "count")]);
}

#[tokio::test]
async fn a_streamed_range_over_groups_adds_up_to_the_range() {
    let house = split().await;
    for n in 0..60 {
        let first = ["a", "n", "u"][n % 3];
        put_in(&house, &format!("{first}{n:03}"), "v").await;
    }
    for limit in [0, 5, 37, 1000] {
        let request = etcd::RangeRequest { limit, ..get("a", "\0") };
        let whole = list(&house, request.clone()).await;
        let mut stream = house.kv().range_stream(with(request, ACME)).await.unwrap().into_inner();
        let (mut kvs, mut last) = (Vec::new(), None);
        while let Some(chunk) = stream.message().await.unwrap() {
            let mut chunk = chunk.range_response.unwrap();
            kvs.append(&mut chunk.kvs);
            // Behind the first chunk nothing that happens is seen.
            put_in(&house, "b", "later").await;
            last = Some(chunk);
        }
        let last = last.unwrap();
        assert_eq!(kvs, whole.kvs, "{limit}");
        assert_eq!((last.header, last.more, last.count), (whole.header, whole.more, whole.count));
        let delete = etcd::DeleteRangeRequest { key: b("b"), ..Default::default() };
        house.kv().delete_range(with(delete, ACME)).await.unwrap();
    }
}

#[tokio::test]
async fn revisions_of_a_list_over_groups_are_judged_by_home() {
    let house = split().await;
    let first = put_in(&house, "a", "1").await;
    let last = put_in(&house, "z", "2").await;
    let at = |revision| etcd::RangeRequest { revision, ..get("a", "\0") };
    let old = list(&house, at(first)).await;
    assert_eq!((keys(&old), old.header.unwrap().revision), (vec!["a".to_owned()], last));
    let future = "etcdserver: mvcc: required revision is a future revision".to_owned();
    assert_eq!(refused(&house, at(last + 1)).await, (Code::OutOfRange, future));
    let compact = etcd::CompactionRequest { revision: last, physical: false };
    house.kv().compact(with(compact, ACME)).await.unwrap();
    let compacted = "etcdserver: mvcc: required revision has been compacted".to_owned();
    assert_eq!(refused(&house, at(first)).await, (Code::OutOfRange, compacted));
    assert_eq!(list(&house, at(last)).await.count, 2);
}

#[tokio::test]
async fn what_was_compacted_after_home_answered_is_asked_for_anew() {
    let house = split().await;
    put_in(&house, "a", "1").await;
    let before = house.fake.span(HOME);
    let last = put_in(&house, "z", "2").await;
    let compact = etcd::CompactionRequest { revision: last, physical: false };
    house.kv().compact(with(compact, ACME)).await.unwrap();
    house.fake.tell(HOME, before);
    let all = list(&house, get("a", "\0")).await;
    assert_eq!((all.count, all.header.unwrap().revision), (2, last));
}

#[tokio::test]
async fn a_serializable_list_asks_home_without_a_round_but_not_for_less_than_was_seen() {
    let house = split().await;
    put_in(&house, "a", "1").await;
    let old = house.fake.span(HOME);
    let request = etcd::RangeRequest { serializable: true, ..get("a", "\0") };
    let before = house.fake.asked().len();
    assert_eq!(list(&house, request.clone()).await.count, 1);
    assert_eq!(asked(&house, before)[0], (71, "weak span"));
    let last = put_in(&house, "z", "2").await;
    house.fake.tell(HOME, old);
    let all = list(&house, request).await;
    assert_eq!((all.count, all.header.unwrap().revision), (2, last));
}

#[tokio::test]
async fn a_list_waits_for_a_group_that_lags() {
    let house = split().await;
    put_in(&house, "a", "1").await;
    house.fake.hold(76, true);
    put_in(&house, "z", "2").await;
    let channel = house.kv();
    let waiting = tokio::spawn(async move {
        let mut kv = channel;
        kv.range(with(get("a", "\0"), ACME)).await.unwrap().into_inner()
    });
    let before = 2;
    until(|| house.fake.asked().len() >= before + 4).await;
    assert!(!waiting.is_finished());
    // Nobody who does not need it waits.
    assert_eq!(list(&house, get("a", "s")).await.count, 1);
    house.fake.hold(76, false);
    assert_eq!(keys(&waiting.await.unwrap()), ["a", "z"]);
}

#[tokio::test]
async fn a_list_goes_by_homes_places_and_not_by_a_stale_map() {
    let house = split().await;
    for key in ["a", "n", "u"] {
        put_in(&house, key, key).await;
    }
    // The map does not know of the third group, nor that the second has another version.
    house.router.place(over(TWO));
    house.fake.set_range_version(HOME, 2);
    assert_eq!(keys(&list(&house, get("a", "\0")).await), ["a", "n", "u"]);
    // Inside one group the map decides, and the request waits for another.
    let channel = house.kv();
    let waiting = tokio::spawn(async move {
        let mut kv = channel;
        kv.range(with(get("n", ""), ACME)).await.unwrap().into_inner()
    });
    until(|| house.fake.asked().iter().any(|it| it.group == 75 && it.range_version == 2)).await;
    house.router.place(over(THREE));
    assert_eq!(waiting.await.unwrap().count, 1);
}

#[tokio::test]
async fn a_part_that_is_refused_as_stale_begins_the_list_anew() {
    let house = split().await;
    for key in ["a", "n", "u"] {
        put_in(&house, key, key).await;
    }
    let old = house.fake.span(HOME);
    house.fake.split(75, "p", 77);
    house.fake.tell(HOME, old);
    assert_eq!(keys(&list(&house, get("a", "\0")).await), ["a", "n", "u"]);
    let spans = asked(&house, 3).into_iter().filter(|(_, what)| *what == "span").count();
    assert_eq!(spans, 2);
}

#[tokio::test]
async fn keys_that_home_knows_no_group_of_are_waited_for() {
    let house = split().await;
    put_in(&house, "u", "1").await;
    let mut gap = house.fake.span(HOME);
    gap.parts.remove(1);
    house.fake.tell(HOME, gap);
    assert_eq!(list(&house, get("n", "\0")).await.count, 1);
}

#[tokio::test]
async fn changes_over_groups_go_home_and_others_to_their_group() {
    let house = split().await;
    for key in ["a", "n", "u"] {
        put_in(&house, key, key).await;
    }
    let before = house.fake.asked().len();
    let delete = |key: &str, end: &str| etcd::DeleteRangeRequest {
        key: b(key),
        range_end: b(end),
        ..Default::default()
    };
    house.kv().delete_range(with(delete("a", "o"), ACME)).await.unwrap();
    house.kv().delete_range(with(delete("u", "\0"), ACME)).await.unwrap();
    let op = |key: &str| etcd::RequestOp {
        request: Some(etcd::request_op::Request::RequestPut(put(key, "2"))),
    };
    let txn = |keys: &[&str]| etcd::TxnRequest {
        success: keys.iter().map(|key| op(key)).collect(),
        ..Default::default()
    };
    house.kv().txn(with(txn(&["n", "o"]), ACME)).await.unwrap();
    house.kv().txn(with(txn(&["n", "u"]), ACME)).await.unwrap();
    let now = asked(&house, before);
    assert_eq!(now, [(71, "delete"), (76, "delete"), (75, "txn"), (71, "txn")]);
    assert_eq!(keys(&list(&house, get("a", "\0")).await), ["n", "o", "u"]);
}

#[tokio::test]
async fn hashes_are_added_and_a_lease_has_the_keys_of_all_groups() {
    let house = split().await;
    let mut leases = LeaseClient::new(house.channel.clone());
    leases.lease_grant(with(etcd::LeaseGrantRequest { ttl: 9, id: 5 }, ACME)).await.unwrap();
    for key in ["u", "n", "a"] {
        let put = etcd::PutRequest { lease: 5, ..put(key, "1") };
        house.kv().put(with(put, ACME)).await.unwrap();
    }
    let mut ask = async |id, keys| {
        let request = with(etcd::LeaseTimeToLiveRequest { id, keys }, ACME);
        let answer = leases.lease_time_to_live(request).await.unwrap().into_inner();
        (answer.ttl, answer.keys.len(), answer.keys.first().cloned())
    };
    assert_eq!(ask(5, true).await, (9, 3, Some(b("a"))));
    assert_eq!(ask(5, false).await, (9, 0, None));
    assert_eq!(ask(6, true).await, (-1, 0, None));
    let mut maintenance = MaintenanceClient::new(house.channel.clone());
    let hash = with(etcd::HashKvRequest { revision: 0 }, ACME);
    let hash = maintenance.hash_kv(hash).await.unwrap().into_inner();
    assert_eq!((hash.hash, hash.hash_revision), (3 * 77, 4));
}

// --- watches

fn all() -> etcd::WatchCreateRequest {
    etcd::WatchCreateRequest { key: b("\0"), range_end: b("\0"), ..Default::default() }
}

fn range_of(key: &str, end: &str) -> etcd::WatchCreateRequest {
    etcd::WatchCreateRequest { key: b(key), range_end: b(end), ..Default::default() }
}

const PROGRESS: RequestUnion = RequestUnion::ProgressRequest(etcd::WatchProgressRequest {});

impl WatchStream {
    /// The revisions of the next events, up to `last`.
    async fn hears(&mut self, last: i64) -> Vec<i64> {
        let mut heard = Vec::new();
        while heard.last() != Some(&last) {
            heard.extend(revisions(&self.next().await));
        }
        heard
    }
}

async fn delete_all(house: &House) -> i64 {
    let request =
        etcd::DeleteRangeRequest { key: b("\0"), range_end: b("\0"), ..Default::default() };
    let response = house.kv().delete_range(with(request, ACME)).await.unwrap().into_inner();
    response.header.unwrap().revision
}

#[tokio::test]
async fn a_watch_over_groups_hears_whole_revisions_in_order() {
    let house = split().await;
    let mut watch = house.watch_with(ACME).await.unwrap();
    let created = watch.create(all()).await;
    assert_eq!(header(&created).revision, 1);
    let mut last = 1;
    for key in ["z", "a", "n", "b", "u"] {
        last = put_in(&house, key, "1").await;
    }
    assert_eq!(watch.hears(last).await, [2, 3, 4, 5, 6]);
    let last = delete_all(&house).await;
    let response = watch.next().await;
    assert_eq!((revisions(&response), header(&response).revision), (vec![last; 5], last));
    let keys: Vec<_> = response.events.iter().map(|it| it.kv.clone().unwrap().key).collect();
    assert_eq!(keys, ["a", "b", "n", "u", "z"], "in the order of the groups");
}

#[tokio::test]
async fn history_over_groups_is_merged_too() {
    let house = split().await;
    for key in ["z", "a", "n", "b", "u"] {
        put_in(&house, key, "1").await;
    }
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(etcd::WatchCreateRequest { start_revision: 3, ..range_of("a", "v") }).await;
    assert_eq!(watch.hears(6).await, [3, 4, 5, 6]);
    let none = etcd::watch_create_request::FilterType::Noput as i32;
    let deletes = etcd::WatchCreateRequest { filters: vec![none], ..range_of("a", "\0") };
    watch.create(deletes).await;
    let cancel = RequestUnion::CancelRequest(etcd::WatchCancelRequest { watch_id: 0 });
    watch.send(cancel).await;
    assert!(watch.next().await.canceled);
    put_in(&house, "a", "2").await;
    let last = delete_all(&house).await;
    let response = watch.next().await;
    assert_eq!((response.watch_id, revisions(&response)), (1, vec![last; 5]));
}

#[tokio::test]
async fn events_wait_for_a_group_that_lags_and_those_of_other_watches_do_not() {
    let house = split().await;
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(all()).await;
    watch.create(range_of("a", "m")).await;
    house.fake.hold(76, true);
    let first = put_in(&house, "z", "1").await;
    let second = put_in(&house, "a", "2").await;
    let alone = watch.next().await;
    assert_eq!((alone.watch_id, revisions(&alone)), (1, vec![second]));
    assert!(watch.is_quiet().await, "the last group may have something earlier");
    house.fake.hold(76, false);
    assert_eq!(watch.hears(second).await, [first, second]);
}

#[tokio::test]
async fn what_waits_waits_for_home_as_well() {
    let house = split().await;
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(all()).await;
    house.fake.mute(HOME, true);
    let last = put_in(&house, "a", "1").await;
    assert!(watch.is_quiet().await);
    house.fake.mute(HOME, false);
    assert_eq!(watch.hears(last).await, [last]);
}

#[tokio::test]
async fn progress_over_groups_is_behind_all_events() {
    let house = split().await;
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(range_of("u", "v")).await;
    watch.create(range_of("a", "z")).await;
    // Of a key that nobody here watches, and a group that has no watch.
    let last = put_in(&house, "z", "1").await;
    watch.send(PROGRESS).await;
    let progress = watch.next().await;
    assert_eq!((progress.watch_id, header(&progress).revision), (-1, last));
    house.fake.hold(76, true);
    let first = put_in(&house, "u", "2").await;
    let last = put_in(&house, "n", "3").await;
    watch.send(PROGRESS).await;
    assert!(watch.is_quiet().await);
    house.fake.hold(76, false);
    let mut heard = [Vec::new(), Vec::new()];
    let progress = loop {
        let response = watch.next().await;
        match usize::try_from(response.watch_id) {
            Ok(id) => heard[id].extend(revisions(&response)),
            Err(_) => break response,
        }
    };
    assert_eq!((heard, header(&progress).revision), ([vec![first], vec![first, last]], last));
}

#[tokio::test]
async fn progress_of_a_watch_in_one_group_follows_the_others_revisions() {
    let interval = Duration::from_millis(100);
    let config = RouterConfig { watch_progress_interval: interval, ..Default::default() };
    let house = house_with(config).await;
    house.fake.split(HOME, "m", 75);
    house.router.place(over(TWO));
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(etcd::WatchCreateRequest { progress_notify: true, ..watch_of("a") }).await;
    let last = put_in(&house, "z", "1").await;
    loop {
        let progress = watch.next().await;
        assert_eq!((progress.watch_id, progress.events.len()), (0, 0));
        if header(&progress).revision == last {
            break;
        }
    }
    watch.send(PROGRESS).await;
    while watch.next().await.watch_id != -1 {}
}

#[tokio::test]
async fn a_watch_goes_on_over_splits_and_merges() {
    let house = house().await;
    house.router.place(over(WHOLE));
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(all()).await;
    watch.create(range_of("n", "z")).await;
    let (mut expected, mut whole, mut part) = (Vec::new(), Vec::new(), Vec::new());
    let mut version = 1;
    for step in 0..9 {
        // Some things happen before the router hears of it, some after.
        match step % 3 {
            1 => {
                house.fake.split(HOME, "m", 75);
                house.fake.split(75, "t", 76);
                version += 2;
            }
            2 => {
                house.fake.absorb(75, 76);
                house.fake.absorb(HOME, 75);
                version += 2;
            }
            _ => {}
        }
        let places: &[(&str, u64, u64)] = match step % 3 {
            1 => &[("", HOME, version - 1), ("m", 75, version), ("t", 76, version)],
            _ => &[("", HOME, version)],
        };
        if step % 2 == 0 {
            house.router.place(over(places));
        }
        let channel = house.kv();
        let puts = tokio::spawn(async move {
            let mut kv = channel;
            let mut last = 0;
            for key in ["u", "a", "n", "v"] {
                let response = kv.put(with(put(key, "1"), ACME)).await.unwrap().into_inner();
                last = response.header.unwrap().revision;
            }
            last
        });
        if step % 2 == 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            house.router.place(over(places));
        }
        let last = puts.await.unwrap();
        expected.extend(last - 3..=last);
        while whole.last() != Some(&last) || part.last() != Some(&last) {
            let response = watch.next().await;
            let heard = if response.watch_id == 0 { &mut whole } else { &mut part };
            heard.extend(revisions(&response));
        }
    }
    assert_eq!(whole, expected);
    let others = expected.iter().copied().filter(|revision| (revision - 2) % 4 != 1);
    assert_eq!(part, others.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_split_that_only_home_tells_of_is_followed() {
    let house = split().await;
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(all()).await;
    let first = put_in(&house, "p", "1").await;
    assert_eq!(watch.hears(first).await, [first]);
    house.fake.split(75, "p", 77);
    // The map stays as it was: what goes by it waits, what goes by home does not.
    let last = put_in(&house, "a", "2").await;
    assert_eq!(watch.hears(last).await, [last]);
    let watched = house.fake.watched();
    assert!(watched.iter().any(|spec| spec.group == GroupId(77)));
}

#[tokio::test]
async fn a_closed_hub_of_one_group_goes_unnoticed() {
    let house = split().await;
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(all()).await;
    let mut heard = Vec::new();
    let mut last = 1;
    for round in 0..4 {
        put_in(&house, "a", "1").await;
        house.fake.close_hubs();
        put_in(&house, "n", "2").await;
        last = put_in(&house, "u", "3").await;
        if round % 2 == 0 {
            heard.extend(watch.hears(last).await);
        }
    }
    heard.extend(watch.hears(last).await);
    assert_eq!(heard, (2..=last).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_is_compacted_at_one_group_ends_the_watch() {
    let house = split().await;
    let first = put_in(&house, "a", "1").await;
    let last = put_in(&house, "z", "2").await;
    let compact = etcd::CompactionRequest { revision: last, physical: false };
    house.kv().compact(with(compact, ACME)).await.unwrap();
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(etcd::WatchCreateRequest { start_revision: first, ..all() }).await;
    let canceled = watch.next().await;
    assert!(canceled.canceled && canceled.events.is_empty());
    assert_eq!((canceled.compact_revision, header(&canceled).revision), (last, 0));
    assert!(watch.is_quiet().await);
    until(|| house.fake.open_watches() == 0).await;
}

#[tokio::test]
async fn locks_and_elections_work_over_groups() {
    let house = house().await;
    // Between the contenders for one name.
    house.fake.split(HOME, "e/4", 75);
    house.fake.split(75, "l/4", 76);
    house.router.place(over(&[("", HOME, 2), ("e/4", 75, 3), ("l/4", 76, 3)]));
    let mut leases = LeaseClient::new(house.channel.clone());
    for id in [0x11, 0x77] {
        leases.lease_grant(with(etcd::LeaseGrantRequest { ttl: 60, id }, ACME)).await.unwrap();
    }
    let lock = |lease| with(v3lockpb::LockRequest { name: b("l"), lease }, ACME);
    let mut locks = LockClient::new(house.channel.clone());
    let first = locks.lock(lock(0x77)).await.unwrap().into_inner();
    let mut other = locks.clone();
    let second = tokio::spawn(async move { other.lock(lock(0x11)).await });
    until(|| house.fake.open_watches() == 1).await;
    locks.unlock(with(v3lockpb::UnlockRequest { key: first.key }, ACME)).await.unwrap();
    assert_eq!(second.await.unwrap().unwrap().into_inner().key, "l/11");

    let mut elections = ElectionClient::new(house.channel.clone());
    let name = || with(v3electionpb::LeaderRequest { name: b("e") }, ACME);
    let run = |lease: i64| {
        with(v3electionpb::CampaignRequest { name: b("e"), lease, value: b("v") }, ACME)
    };
    let mut observed = elections.observe(name()).await.unwrap().into_inner();
    until(|| house.fake.open_watches() == 2).await;
    let won = elections.campaign(run(0x77)).await.unwrap().into_inner().leader.unwrap();
    assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().key, "e/77");
    let mut other = elections.clone();
    let second = tokio::spawn(async move { other.campaign(run(0x11)).await });
    until(|| house.fake.open_watches() == 2).await;
    let resign = with(v3electionpb::ResignRequest { leader: Some(won) }, ACME);
    elections.resign(resign).await.unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().key, "e/11");
}

#[tokio::test]
async fn a_watch_that_minds_is_ended_when_one_of_its_groups_has_no_leader() {
    let house = split().await;
    let mut minding = ACME.to_vec();
    minding.push(("hasleader", "true"));
    let mut left = house.watch_with(&minding).await.unwrap();
    left.create(range_of("a", "t")).await;
    let mut right = house.watch_with(&minding).await.unwrap();
    right.create(range_of("t", "z")).await;
    let mut careless = house.watch_with(ACME).await.unwrap();
    careless.create(all()).await;
    house.fake.lose_leader(GroupId(76));
    let status = right.end().await;
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    // Those that have nothing to do with it, and those that do not mind, go on.
    let last = put_in(&house, "a", "1").await;
    assert_eq!(left.hears(last).await, [last]);
    assert_eq!(careless.hears(last).await, [last]);
    // A watch that comes later is told as well.
    assert!(left.create(range_of("u", "v")).await.created);
    assert_eq!(left.end().await.code(), Code::Unavailable);
    let put_at = async |key: &str| house.kv().put(with(put(key, "2"), &minding)).await;
    assert!(put_at("a").await.is_ok());
    assert_eq!(put_at("z").await.unwrap_err().code(), Code::Unavailable);
    house.fake.lose_leader(GroupId(HOME));
    let refused = house.watch_with(&minding).await.map(|_| ());
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
}
