//! Many tenants at one door: who is let in where, and what they see of each other.

use std::net::{IpAddr, Ipv4Addr};

use proto::{
    GroupId, NamespaceId, NodeId, PlacementMap, TenantId, VirtualEtcd,
    etcd::{auth_client::AuthClient, cluster_client::ClusterClient},
    map::{RouterPlace, Standing, Target},
};

use super::*;

/// Metadata of a request.
pub(super) type Said = &'static [(&'static str, &'static str)];

pub(super) const ACME: Said = &[("atoll-tenant", "acme")];
pub(super) const EVENTS: Said = &[("atoll-tenant", "acme/events")];
pub(super) const BETA: Said = &[("atoll-tenant", "beta")];

/// The etcd `name` with everything in group `10 * tenant + namespace`.
pub(super) fn etcd_of(name: &str, tenant: u64, namespace: u64) -> VirtualEtcd {
    let home = Target {
        tenant: TenantId(tenant),
        namespace: NamespaceId(namespace),
        group: GroupId(10 * tenant + namespace),
        range_version: 1,
    };
    VirtualEtcd::unsplit(name, 0xa000 + home.group.0, home)
}

fn on(port: u16, mut etcd: VirtualEtcd) -> VirtualEtcd {
    etcd.port = port;
    etcd
}

fn acme() -> VirtualEtcd {
    etcd_of("acme", 7, 1)
}

pub(super) fn map() -> PlacementMap {
    PlacementMap::embedded(CLUSTER)
        .with(acme())
        .with(etcd_of("acme/events", 7, 2))
        .with(etcd_of("beta", 8, 1))
}

async fn town() -> House {
    let house = house().await;
    house.router.place(map());
    house
}

/// A channel whose requests have `authority`.
async fn reach(address: SocketAddr, authority: &str) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    let origin = format!("http://{authority}").parse().unwrap();
    endpoint.origin(origin).connect().await.unwrap()
}

async fn put_by(channel: &Channel, metadata: Said) -> Landed {
    let mut kv = KvClient::new(channel.clone());
    let response = kv.put(with(put("k", "v"), metadata)).await;
    response.map(|response| response.into_inner().header.unwrap())
}

type Landed = Result<etcd::ResponseHeader, Status>;

fn cluster(landed: Landed) -> u64 {
    landed.expect("let in").cluster_id
}

const CLUSTER_ACME: u64 = 0xa000 + 71;
const CLUSTER_EVENTS: u64 = 0xa000 + 72;
const CLUSTER_BETA: u64 = 0xa000 + 81;

const NO_SUCH: &str = "atoll: no such tenant";
const MORE_THAN_ONE: &str = "atoll: the request names more than one tenant";

fn denied<T: std::fmt::Debug>(outcome: Result<T, Status>, text: &str) {
    assert_eq!(said(outcome), (Code::PermissionDenied, text.to_owned()));
}

// --- who is let in where

#[tokio::test]
async fn every_way_to_name_an_etcd_leads_to_it() {
    let house = town().await;
    for (authority, expected) in [
        ("acme.localhost:2379", CLUSTER_ACME),
        ("events.acme.localhost", CLUSTER_EVENTS),
        ("BETA.localhost.:1", CLUSTER_BETA),
        ("default.localhost", CLUSTER),
        ("localhost:2379", CLUSTER),
        ("elsewhere.example", CLUSTER),
    ] {
        let channel = reach(house.address, authority).await;
        assert_eq!(cluster(put_by(&channel, &[]).await), expected, "{authority}");
    }
    let ways: [(Said, u64); 7] = [
        (ACME, CLUSTER_ACME),
        (EVENTS, CLUSTER_EVENTS),
        (&[("token", "tenant.beta")], CLUSTER_BETA),
        (&[("authorization", "tenant.acme")], CLUSTER_ACME),
        (&[("authorization", "Bearer tenant.acme")], CLUSTER_ACME),
        (&[("token", "wPzKmrqLkXhJgQvt.12")], CLUSTER),
        (&[], CLUSTER),
    ];
    for (metadata, expected) in ways {
        assert_eq!(cluster(put_by(&house.channel, metadata).await), expected, "{metadata:?}");
    }
}

#[tokio::test]
async fn a_request_must_not_name_two_etcds_or_one_that_is_not_there() {
    let house = town().await;
    let by_host = reach(house.address, "acme.localhost").await;
    for metadata in [BETA, EVENTS, &[("token", "tenant.beta")], &[("host", "beta.localhost")]] {
        denied(put_by(&by_host, metadata).await, MORE_THAN_ONE);
    }
    let twice = &[("atoll-tenant", "acme"), ("atoll-tenant", "beta")];
    denied(put_by(&house.channel, twice).await, MORE_THAN_ONE);
    for metadata in [&[("atoll-tenant", "gamma")], &[("token", "tenant.gamma")]] {
        denied(put_by(&house.channel, metadata).await, NO_SUCH);
    }
    denied(put_by(&reach(house.address, "gamma.localhost").await, &[]).await, NO_SUCH);
    assert!(house.fake.asked().is_empty());
    // A refusal is not remembered, nor is what came before it.
    assert_eq!(cluster(put_by(&by_host, ACME).await), CLUSTER_ACME);
    denied(put_by(&by_host, BETA).await, MORE_THAN_ONE);
    assert_eq!(cluster(put_by(&by_host, &[]).await), CLUSTER_ACME);
}

#[tokio::test]
async fn without_a_default_a_request_must_name_its_etcd() {
    let house = house().await;
    house.router.place(PlacementMap::default().with(acme()));
    denied(put_by(&house.channel, &[]).await, "atoll: the request names no tenant");
    assert_eq!(cluster(put_by(&house.channel, ACME).await), CLUSTER_ACME);
    for path in ["/version", "/health", "/livez", "/readyz", "/metrics"] {
        assert_eq!(house.http("GET", path).await.0, 200, "{path}");
    }
    // gRPC's health service as well; its messages are as simple as these.
    let mut client = tonic::client::Grpc::new(house.channel.clone());
    client.ready().await.unwrap();
    let path = "/grpc.health.v1.Health/Check".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<etcd::StatusRequest, etcd::LeaseRevokeRequest>::default();
    let request = tonic::Request::new(etcd::StatusRequest {});
    let answer = client.unary(request, path, codec).await.unwrap();
    assert_eq!(answer.into_inner().id, 1);
}

#[tokio::test]
async fn a_listener_of_its_own_is_evidence() {
    let house = town().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = house.router.clone();
    let served = tokio::spawn(async move {
        router.serve_etcd(TenantId(7), NamespaceId(2), listener, std::future::pending()).await
    });
    let channel = reach(address, &address.to_string()).await;
    assert_eq!(cluster(put_by(&channel, &[]).await), CLUSTER_EVENTS);
    assert_eq!(cluster(put_by(&channel, EVENTS).await), CLUSTER_EVENTS);
    denied(put_by(&channel, ACME).await, MORE_THAN_ONE);
    denied(put_by(&channel, &[("atoll-tenant", "default")]).await, MORE_THAN_ONE);
    served.abort();
}

#[tokio::test]
async fn a_shared_listener_on_a_tenants_port_is_evidence_too() {
    let house = house().await;
    house.router.place(map().with(on(house.address.port(), acme())));
    assert_eq!(cluster(put_by(&house.channel, &[]).await), CLUSTER_ACME);
    denied(put_by(&house.channel, BETA).await, MORE_THAN_ONE);
}

#[tokio::test]
async fn a_login_with_a_tenant_gets_a_token_that_names_it() {
    let house = town().await;
    let mut auth = AuthClient::new(house.channel.clone());
    let login = |name: &str| etcd::AuthenticateRequest {
        name: name.to_owned(),
        password: "anything".to_owned(),
    };
    let answer = auth.authenticate(login("root@acme/events")).await.unwrap().into_inner();
    assert_eq!(answer.token, "tenant.acme/events");
    assert_eq!(answer.header.unwrap().cluster_id, CLUSTER_EVENTS);
    denied(auth.authenticate(login("root@gamma")).await, NO_SUCH);
    denied(auth.authenticate(login("root@")).await, NO_SUCH);
    denied(auth.authenticate(with(login("root@acme"), BETA)).await, MORE_THAN_ONE);
    let off = (Code::FailedPrecondition, Error::AuthNotEnabled.text().to_owned());
    assert_eq!(said(auth.authenticate(login("root")).await), off);
    assert_eq!(said(auth.authenticate(with(login("root"), ACME)).await), off);
    // The first thing that a client does, and nothing else names its etcd.
    house.router.place(PlacementMap::default().with(acme()));
    let answer = auth.authenticate(login("root@acme")).await.unwrap().into_inner();
    assert_eq!(answer.token, "tenant.acme");
    assert!(house.fake.asked().is_empty());
}

// --- one connection, several etcds

#[tokio::test]
async fn what_a_connection_has_seen_of_one_etcd_says_nothing_of_another() {
    let house = town().await;
    let mut revisions = Vec::new();
    for metadata in [ACME, ACME, BETA, ACME, &[], BETA] {
        let header = put_by(&house.channel, metadata).await.unwrap();
        assert_eq!(header.member_id, MEMBER);
        revisions.push(header.revision);
    }
    assert_eq!(revisions, [2, 3, 2, 4, 2, 3]);
    let asked = house.fake.asked();
    let floors: Vec<_> = asked.iter().map(|asked| (asked.group, asked.floor)).collect();
    assert_eq!(floors, [(71, 0), (71, 2), (81, 0), (71, 3), (2, 0), (81, 2)]);
}

#[tokio::test]
async fn streams_are_of_the_etcd_that_their_request_named() {
    let house = town().await;
    let mut watch = house.watch_with(ACME).await.unwrap();
    let all = etcd::WatchCreateRequest { key: b("\0"), range_end: b("\0"), ..Default::default() };
    let created = watch.create(all).await;
    assert_eq!(header(&created).cluster_id, CLUSTER_ACME);
    for metadata in [BETA, EVENTS, &[], ACME] {
        put_by(&house.channel, metadata).await.unwrap();
    }
    let heard = watch.next().await;
    assert_eq!((heard.events.len(), header(&heard).cluster_id), (1, CLUSTER_ACME));
    assert_eq!(house.fake.watched().last().unwrap().tenant, TenantId(7));
    // A lease of another etcd is not there, whatever its id.
    let mut leases = LeaseClient::new(house.channel.clone());
    let grant = with(etcd::LeaseGrantRequest { ttl: 9, id: 5 }, ACME);
    leases.lease_grant(grant).await.unwrap();
    for (metadata, ttl) in [(ACME, 9), (BETA, 0), (&[][..], 0)] {
        let renew = tokio_stream::iter([etcd::LeaseKeepAliveRequest { id: 5 }]);
        let mut answers =
            leases.lease_keep_alive(with(renew, metadata)).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl, ttl);
    }
    // Nor is a lock.
    let lock = || v3lockpb::LockRequest { name: b("l"), lease: 0 };
    let mut locks = LockClient::new(house.channel.clone());
    for metadata in [ACME, BETA, EVENTS] {
        locks.lock(with(lock(), metadata)).await.unwrap();
    }
}

// --- changes of the map

fn standing(standing: Standing) -> PlacementMap {
    let mut acme = acme();
    acme.standing = standing;
    map().with(acme)
}

#[tokio::test]
async fn a_frozen_etcd_lets_nobody_in_and_only_its_watches_outlive_that() {
    let house = town().await;
    for (taken, text) in [
        (standing(Standing::Frozen), "atoll: the tenant is frozen"),
        (standing(Standing::Deleted), "atoll: the tenant is deleted"),
    ] {
        house.router.place(map());
        let mut watch = house.watch_with(ACME).await.unwrap();
        let mut others = house.watch_with(BETA).await.unwrap();
        watch.create(watch_of("k")).await;
        others.create(watch_of("k")).await;
        let mut leases = LeaseClient::new(house.channel.clone());
        let renew = with(tokio_stream::pending(), ACME);
        let mut renewals = leases.lease_keep_alive(renew).await.unwrap().into_inner();
        let lock = || with(v3lockpb::LockRequest { name: b(text), lease: 0 }, ACME);
        let mut locks = LockClient::new(house.channel.clone());
        locks.lock(lock()).await.unwrap();
        until(|| house.fake.open_watches() == 2).await;
        let waiting = tokio::spawn(async move { locks.lock(lock()).await });
        until(|| house.fake.open_watches() == 3).await;

        let frozen = taken == standing(Standing::Frozen);
        house.router.place(taken);
        let refused = (Code::FailedPrecondition, text.to_owned());
        assert_eq!(said(put_by(&house.channel, ACME).await), refused);
        if !frozen {
            assert_eq!(said(Err::<(), _>(watch.end().await)), refused);
        }
        assert_eq!(said(renewals.message().await), refused);
        assert_eq!(said(waiting.await.unwrap()), (Code::Unknown, text.to_owned()));
        put_by(&house.channel, BETA).await.unwrap();
        assert_eq!(others.next().await.events.len(), 1);
        assert_eq!(house.http_of("acme.localhost", "GET", "/health").await.0, 503);
        if frozen {
            // One that is asked for meanwhile waits.
            watch.send(RequestUnion::CreateRequest(watch_of("j"))).await;
            assert!(watch.is_quiet().await);
            house.router.place(map());
            assert!(watch.next().await.created);
            put_by(&house.channel, ACME).await.unwrap();
            assert_eq!(watch.next().await.events.len(), 1);
        }
    }
    house.router.place(PlacementMap::embedded(CLUSTER));
    denied(put_by(&house.channel, ACME).await, NO_SUCH);
}

/// The map with acme in another group.
fn moved_to(group: u64, range_version: u64) -> PlacementMap {
    let home = Target { group: GroupId(group), range_version, ..acme().home() };
    map().with(VirtualEtcd::unsplit("acme", CLUSTER_ACME, home))
}

#[tokio::test]
async fn a_stream_follows_its_etcd_to_another_group() {
    let house = town().await;
    let mut watch = house.watch_with(ACME).await.unwrap();
    watch.create(watch_of("k")).await;
    let first = put_by(&house.channel, ACME).await.unwrap().revision;
    assert_eq!(revisions(&watch.next().await), [first]);
    house.fake.copy(71, 79);
    house.router.place(moved_to(79, 2));
    for n in 1..4 {
        assert_eq!(put_by(&house.channel, ACME).await.unwrap().revision, first + n);
        assert_eq!(revisions(&watch.next().await), [first + n]);
    }
    let asked = house.fake.asked().pop().unwrap();
    assert_eq!((asked.group, asked.range_version, asked.floor), (79, 2, first + 2));
    until(|| house.fake.open_watches() == 1).await;
}

#[tokio::test]
async fn a_waiting_lock_follows_its_etcd_too() {
    let house = town().await;
    let lock = || with(v3lockpb::LockRequest { name: b("l"), lease: 0 }, ACME);
    let mut locks = LockClient::new(house.channel.clone());
    let first = locks.lock(lock()).await.unwrap().into_inner();
    let mut other = locks.clone();
    let second = tokio::spawn(async move { other.lock(lock()).await });
    until(|| house.fake.open_watches() == 1).await;
    house.fake.copy(71, 79);
    house.router.place(moved_to(79, 2));
    let unlock = v3lockpb::UnlockRequest { key: first.key };
    locks.unlock(with(unlock, ACME)).await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(5), second).await;
    assert!(second.expect("in time").unwrap().is_ok());
}

#[tokio::test]
async fn a_request_refused_as_stale_goes_again_by_the_next_map() {
    let house = town().await;
    house.fake.set_range_version(71, 2);
    let channel = house.channel.clone();
    let waiting = tokio::spawn(async move { put_by(&channel, ACME).await });
    until(|| !house.fake.asked().is_empty()).await;
    assert!(put_by(&house.channel, BETA).await.is_ok());
    assert!(!waiting.is_finished());
    house.router.place(moved_to(71, 2));
    assert_eq!(waiting.await.unwrap().unwrap().revision, 2);
    let asked = house.fake.asked();
    let versions: Vec<_> =
        asked.iter().filter(|it| it.group == 71).map(|it| it.range_version).collect();
    assert_eq!((versions.first(), versions.last()), (Some(&1), Some(&2)));
    assert_eq!(versions.iter().filter(|version| **version == 2).count(), 1);
    assert!(asked.iter().all(|it| it.timeout_ms <= 7000));
}

#[tokio::test]
async fn a_request_ahead_of_its_group_waits_for_it() {
    let house = town().await;
    house.fake.set_range_version(71, 1);
    house.router.place(moved_to(71, 2));
    let channel = house.channel.clone();
    let waiting = tokio::spawn(async move { put_by(&channel, ACME).await });
    until(|| !house.fake.asked().is_empty()).await;
    house.fake.set_range_version(71, 2);
    assert_eq!(waiting.await.unwrap().unwrap().revision, 2);
}

#[tokio::test]
async fn a_stale_request_waits_no_longer_than_its_client() {
    let house = town().await;
    house.fake.set_range_version(71, 2);
    let stale = (Code::Unavailable, "atoll: the range has moved".to_owned());
    let begun = std::time::Instant::now();
    // The client gives up at the same moment: either may be first.
    let short: Said = &[("atoll-tenant", "acme"), ("grpc-timeout", "200m")];
    assert!(put_by(&house.channel, short).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(2));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let left = house.fake.asked().len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(house.fake.asked().len(), left);
    // What may have been done is never repeated.
    house.fake.refuse(GroupError::unknown(Error::StaleRange));
    assert_eq!(said(put_by(&house.channel, ACME).await), stale);
    assert_eq!(house.fake.asked().len(), left + 1);
}

// --- members

#[tokio::test]
async fn members_of_a_tenant_are_the_nodes_that_answer_it() {
    let house = house().await;
    let router = |node: u64| RouterPlace {
        node: NodeId(node),
        name: format!("n{node}"),
        client_urls: vec![format!("http://10.0.0.{node}:2379")],
    };
    house.router.place(map().with(on(4001, acme())).with_routers(vec![router(2), router(1)]));
    let mut members = ClusterClient::new(house.channel.clone());
    let list = async |metadata: Said| {
        let mut members = ClusterClient::new(house.channel.clone());
        let request = with(etcd::MemberListRequest { linearizable: true }, metadata);
        let list = members.member_list(request).await.unwrap().into_inner();
        let urls = list.members.iter().map(|it| (it.id, it.name.clone(), it.client_ur_ls.clone()));
        (list.header.unwrap(), urls.collect::<Vec<_>>())
    };
    let (header, urls) = list(ACME).await;
    assert_eq!((header.cluster_id, header.member_id, header.revision), (CLUSTER_ACME, MEMBER, 0));
    let own =
        |node: u64, port| (node, format!("n{node}"), vec![format!("http://10.0.0.{node}:{port}")]);
    assert_eq!(urls, [own(1, 4001), own(2, 4001)]);
    assert_eq!(list(BETA).await.1, [own(1, 2379), own(2, 2379)]);
    assert!(house.fake.asked().is_empty());
    assert_eq!(list(&[]).await.1[0].1, "fake");

    let text = "atoll: members are nodes of the service; ask its operator";
    let before = house.fake.asked().len();
    denied(members.member_add(with(etcd::MemberAddRequest::default(), ACME)).await, text);
    denied(members.member_remove(with(etcd::MemberRemoveRequest::default(), ACME)).await, text);
    denied(members.member_update(with(etcd::MemberUpdateRequest::default(), ACME)).await, text);
    denied(members.member_promote(with(etcd::MemberPromoteRequest::default(), ACME)).await, text);
    let mut maintenance = MaintenanceClient::new(house.channel.clone());
    let leader = etcd::MoveLeaderRequest { target_id: 3 };
    denied(maintenance.move_leader(with(leader, ACME)).await, text);
    assert_eq!(house.fake.asked().len(), before);
}

#[tokio::test]
async fn without_known_routers_a_tenant_sees_this_node() {
    let house = town().await;
    let mut members = ClusterClient::new(house.channel.clone());
    let request = with(etcd::MemberListRequest::default(), ACME);
    let list = members.member_list(request).await.unwrap().into_inner().members;
    assert_eq!((list.len(), list[0].id), (1, MEMBER));
}

// --- pages

#[tokio::test]
async fn the_pages_of_a_tenant_show_its_own_group_and_nothing_of_others() {
    let house = town().await;
    put_by(&house.channel, ACME).await.unwrap();
    put_by(&house.channel, ACME).await.unwrap();
    put_by(&house.channel, BETA).await.unwrap();
    let (code, _, body) = house.http_of("acme.localhost:2379", "GET", "/metrics").await;
    assert_eq!(code, 200);
    for line in [
        "etcd_server_has_leader 1",
        "etcd_mvcc_db_total_size_in_bytes 2000",
        "etcd_debugging_mvcc_current_revision 3",
        "etcd_debugging_mvcc_keys_total 1",
    ] {
        assert!(body.lines().any(|it| it == line), "{line}");
    }
    for foreign in ["grpc_server", "process_", "os_fd", "atoll_", "fsync", "put_total", "watcher"] {
        assert!(!body.contains(foreign), "{foreign}");
    }
    let default = house.http("GET", "/metrics").await.2;
    assert!(default.contains("grpc_server_started_total"));
    assert!(default.lines().any(|it| it == "etcd_debugging_mvcc_current_revision 1"));
    for path in ["/health", "/livez", "/readyz", "/version"] {
        let before = house.fake.asked().len();
        assert_eq!(house.http_of("beta.localhost", "GET", path).await.0, 200, "{path}");
        assert!(house.fake.asked()[before..].iter().all(|asked| asked.group == 81));
        let (code, _, body) = house.http_of("gamma.localhost", "GET", path).await;
        assert_eq!((code, body.as_str()), (403, "atoll: no such tenant\n"), "{path}");
    }
}

// --- ports

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn dial(port: u16) -> Option<Channel> {
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    for _ in 0..200 {
        if let Ok(channel) = endpoint.connect().await {
            return Some(channel);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}

#[tokio::test]
async fn ports_of_tenants_come_and_go_with_the_map() {
    let house = town().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let router = house.router.clone();
    let serving = tokio::spawn(async move {
        router.serve_ports(vec![LOOPBACK], async { drop(stopped.await) }).await;
    });
    let (one, two) = (free_port().await, free_port().await);
    house.router.place(map().with(on(one, acme())));
    let channel = dial(one).await.expect("the port opens");
    assert_eq!(cluster(put_by(&channel, &[]).await), CLUSTER_ACME);
    let mut watch = {
        let (requests, queue) = mpsc::channel(4);
        let mut client = WatchClient::new(channel.clone());
        let responses = client.watch(ReceiverStream::new(queue)).await.unwrap().into_inner();
        WatchStream { requests, responses }
    };
    watch.create(watch_of("k")).await;
    let mut shared = house.watch_with(ACME).await.unwrap();
    shared.create(watch_of("k")).await;

    // The port goes to another etcd: what came by it ends, the shared listener goes on.
    let beta = on(one, etcd_of("beta", 8, 1));
    house.router.place(map().with(on(two, acme())).with(beta));
    assert_eq!(watch.end().await.message(), "etcdserver: server stopped");
    drop(channel);
    let now = dial(one).await.expect("the port opens again");
    assert_eq!(cluster(put_by(&now, &[]).await), CLUSTER_BETA);
    let acme = dial(two).await.expect("the new port opens");
    assert_eq!(cluster(put_by(&acme, &[]).await), CLUSTER_ACME);
    assert_eq!(shared.next().await.events.len(), 1);

    house.router.place(map());
    drop((now, acme));
    for _ in 0..200 {
        if TcpStream::connect((LOOPBACK, one)).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(TcpStream::connect((LOOPBACK, one)).await.is_err());
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), serving).await.expect("in time").unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_is_tried_again() {
    let house = house().await;
    let router = house.router.clone();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    house.router.place(map().with(on(port, acme())));
    let serving = tokio::spawn(async move {
        router.serve_ports(vec![LOOPBACK], std::future::pending()).await;
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(taken);
    let channel = dial(port).await.expect("the port opens once it is free");
    assert_eq!(cluster(put_by(&channel, &[]).await), CLUSTER_ACME);
    serving.abort();
}
