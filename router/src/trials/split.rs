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
fn over(places: &[(&str, u64, u64)]) -> PlacementMap {
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
