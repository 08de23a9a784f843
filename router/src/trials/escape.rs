//! Attempts to reach another tenant's data: random requests with awkward keys and ends, from
//! several etcds over one connection. Whatever is asked, it reaches groups of the etcd that the
//! request names, and each etcd ends up with exactly what was written to it.

use std::collections::{BTreeMap, BTreeSet};

use proto::{GroupId, KeyRange, etcd::request_op::Request as Op, id};

use super::{
    split::over,
    tenants::{ACME, BETA, EVENTS, Said, etcd_of},
    *,
};

/// Steps of one run.
const STEPS: usize = 300;

/// Keys and ends that mean something special somewhere: to etcd, to a store that puts tenants
/// into one key space, to a path.
const KEYS: &[&[u8]] = &[
    b"\0",
    b"\0\0",
    b"\0\x01",
    b"a",
    b"a\0",
    b"b",
    b"\x7f",
    b"\xff",
    b"\xff\xff",
    b"\0\0\0\0\0\0\0\x07",
    b"\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x01",
    b"g81/",
    b"../beta/",
    b"t8",
    b"acme/events/k",
];

/// Numbers that look random and are the same for a seed.
struct Dice(u64);

// === impl Dice ===

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn key(&mut self) -> Bytes {
        Bytes::from_static(KEYS[self.below(KEYS.len())])
    }

    /// Nothing, everything above, or some key.
    fn end(&mut self) -> Bytes {
        match self.below(4) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            _ => self.key(),
        }
    }
}

/// One etcd as its own clients know it.
struct Known {
    said: Said,
    name: &'static str,
    groups: Vec<GroupId>,
    tenant: u64,
    namespace: u64,
    keys: BTreeMap<Bytes, Bytes>,
    leases: BTreeSet<i64>,
}

fn known() -> Vec<Known> {
    let of = |name, said, tenant, namespace| Known {
        said,
        name,
        groups: vec![etcd_of(name, tenant, namespace).home().group],
        tenant,
        namespace,
        keys: BTreeMap::new(),
        leases: BTreeSet::new(),
    };
    let default = Known { groups: vec![id::DEFAULT_GROUP], ..of("default", &[], 1, 1) };
    let acme =
        Known { groups: vec![GroupId(71), GroupId(75), GroupId(76)], ..of("acme", ACME, 7, 1) };
    vec![default, acme, of("acme/events", EVENTS, 7, 2), of("beta", BETA, 8, 1)]
}

/// What one step asks; errors are as good as answers, they only must not come from elsewhere.
async fn step(house: &House, dice: &mut Dice, etcd: &mut Known) {
    let (mut kv, said) = (house.kv(), etcd.said);
    let mut leases = LeaseClient::new(house.channel.clone());
    let mut maintenance = MaintenanceClient::new(house.channel.clone());
    let (key, range_end) = (dice.key(), dice.end());
    let value = Bytes::from(format!("{} {}", etcd.name, dice.next()));
    match dice.below(12) {
        0..=2 => {
            let put = etcd::PutRequest { key: key.clone(), value: value.clone(), ..put("", "") };
            kv.put(with(put, said)).await.unwrap();
            etcd.keys.insert(key, value);
        }
        3 => {
            let range = KeyRange::parse(&key, &range_end);
            let delete = etcd::DeleteRangeRequest { key, range_end, ..Default::default() };
            let deleted = kv.delete_range(with(delete, said)).await.unwrap().into_inner().deleted;
            let before = etcd.keys.len();
            etcd.keys.retain(|key, _| !range.contains(key));
            assert_eq!(deleted as usize, before - etcd.keys.len(), "{}", etcd.name);
        }
        4..=5 => {
            let range = KeyRange::parse(&key, &range_end);
            let get = etcd::RangeRequest { key, range_end, ..Default::default() };
            let found = kv.range(with(get, said)).await.unwrap().into_inner().kvs;
            let found: Vec<_> = found.into_iter().map(|kv| (kv.key, kv.value)).collect();
            let own = etcd.keys.iter().filter(|(key, _)| range.contains(key));
            let own: Vec<_> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
            assert_eq!(found, own, "{}", etcd.name);
        }
        6 => {
            let put = etcd::PutRequest { key: key.clone(), value: value.clone(), ..put("", "") };
            let get = etcd::RangeRequest { key: key.clone(), range_end, ..Default::default() };
            let op = |request| etcd::RequestOp { request: Some(request) };
            let success = vec![op(Op::RequestPut(put)), op(Op::RequestRange(get))];
            let txn = etcd::TxnRequest { success, ..Default::default() };
            kv.txn(with(txn, said)).await.unwrap();
            etcd.keys.insert(key, value);
        }
        7 => {
            let grant = etcd::LeaseGrantRequest { ttl: 60, id: dice.below(3) as i64 };
            let granted = leases.lease_grant(with(grant, said)).await.unwrap().into_inner();
            etcd.leases.insert(granted.id);
        }
        8 => {
            let id = 1 + dice.below(2) as i64;
            let revoked = leases.lease_revoke(with(etcd::LeaseRevokeRequest { id }, said)).await;
            assert_eq!(revoked.is_ok(), etcd.leases.remove(&id), "{}", etcd.name);
        }
        9 => {
            let compact = etcd::CompactionRequest { revision: 1, physical: false };
            kv.compact(with(compact, said)).await.unwrap();
            maintenance.hash(with(etcd::HashRequest {}, said)).await.unwrap();
        }
        10 => {
            maintenance.alarm(with(etcd::AlarmRequest::default(), said)).await.unwrap();
            maintenance.status(with(etcd::StatusRequest {}, said)).await.unwrap();
        }
        _ => {
            let mut watch = house.watch_with(said).await.unwrap();
            let create = etcd::WatchCreateRequest { key, range_end, ..Default::default() };
            assert!(watch.create(create).await.created);
        }
    }
}

#[tokio::test]
async fn no_request_leaves_its_etcd() {
    for seed in [1, 2, 3] {
        let house = house().await;
        house.fake.split(71, "a\0", 75);
        house.fake.split(75, "b", 76);
        house.router.place(over(&[("", 71, 2), ("a\0", 75, 3), ("b", 76, 3)]));
        let (mut dice, mut etcds) = (Dice(seed), known());
        let (mut asked, mut watched) = (0, 0);
        for _ in 0..STEPS {
            let at = dice.below(etcds.len());
            let etcd = &mut etcds[at];
            step(&house, &mut dice, etcd).await;
            let (now, watches) = (house.fake.asked(), house.fake.watched());
            for request in &now[asked..] {
                let (tenant, namespace) = (request.tenant, request.namespace);
                assert_eq!((tenant, namespace), (etcd.tenant, etcd.namespace), "{}", etcd.name);
                assert!(etcd.groups.contains(&GroupId(request.group)), "{}", etcd.name);
            }
            for spec in &watches[watched..] {
                assert_eq!(spec.tenant.0, etcd.tenant);
                assert!(etcd.groups.contains(&spec.group), "{}", etcd.name);
            }
            (asked, watched) = (now.len(), watches.len());
        }
        for etcd in &etcds {
            let all = with(etcd::RangeRequest { ..get("\0", "\0") }, etcd.said);
            let found = house.kv().range(all).await.unwrap().into_inner();
            let found = found.kvs.into_iter().map(|kv| (kv.key, kv.value));
            assert_eq!(found.collect::<BTreeMap<_, _>>(), etcd.keys, "{}", etcd.name);
            let mut leases = LeaseClient::new(house.channel.clone());
            let list = with(etcd::LeaseLeasesRequest {}, etcd.said);
            let list = leases.lease_leases(list).await.unwrap().into_inner().leases;
            let list: BTreeSet<_> = list.into_iter().map(|lease| lease.id).collect();
            assert_eq!(list, etcd.leases, "{}", etcd.name);
        }
    }
}
