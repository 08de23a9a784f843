//! The whole door over a real socket: the generated client on one side, a group in memory on
//! the other. Named by what a client sees.

mod escape;
mod fake;
mod split;
mod tenants;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use proto::{
    Error,
    etcd::{
        self, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    group::GroupError,
    v3electionpb::{self, election_client::ElectionClient},
    v3lockpb::{self, lock_client::LockClient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use crate::{NoStatus, Router, RouterConfig};
use fake::{CLUSTER, Fake, MEMBER};

/// A router that serves, and what is behind it.
struct House {
    fake: Arc<Fake>,
    router: Router,
    address: SocketAddr,
    channel: Channel,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn house_with(config: RouterConfig) -> House {
    let fake = Fake::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new(config, fake.clone(), Arc::new(NoStatus));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = router.clone();
    let served = tokio::spawn(async move {
        let shutdown = async { drop(stopped.await) };
        serving.serve(vec![listener], shutdown).await
    });
    let channel =
        Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    House { fake, router, address, channel, stop: Some(stop), served }
}

async fn house() -> House {
    house_with(RouterConfig::default()).await
}

impl House {
    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        let response = self.kv().put(put(key, value)).await.unwrap().into_inner();
        response.header.unwrap().revision
    }

    async fn delete(&self, key: &str) {
        let request = etcd::DeleteRangeRequest { key: b(key), ..Default::default() };
        self.kv().delete_range(request).await.unwrap();
    }

    async fn watch(&self) -> WatchStream {
        self.watch_with(&[]).await.unwrap()
    }

    async fn watch_with(
        &self,
        metadata: &[(&'static str, &'static str)],
    ) -> Result<WatchStream, Status> {
        let (requests, queue) = mpsc::channel(64);
        let request = with(ReceiverStream::new(queue), metadata);
        let responses = WatchClient::new(self.channel.clone()).watch(request).await?.into_inner();
        Ok(WatchStream { requests, responses })
    }

    /// Sends one HTTP/1.1 request; status line, headers and body as text.
    async fn http(&self, method: &str, path: &str) -> (u16, String, String) {
        self.http_of("h", method, path).await
    }

    async fn http_of(&self, host: &str, method: &str, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        (code, head.to_lowercase(), body.to_owned())
    }
}

struct WatchStream {
    requests: mpsc::Sender<etcd::WatchRequest>,
    responses: tonic::Streaming<etcd::WatchResponse>,
}

impl WatchStream {
    async fn send(&self, request: RequestUnion) {
        self.requests.send(etcd::WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    async fn create(&mut self, create: etcd::WatchCreateRequest) -> etcd::WatchResponse {
        self.send(RequestUnion::CreateRequest(create)).await;
        self.next().await
    }

    async fn next(&mut self) -> etcd::WatchResponse {
        let next = tokio::time::timeout(Duration::from_secs(5), self.responses.message());
        next.await.expect("a response in time").unwrap().expect("the stream goes on")
    }

    /// Is nothing said for some time? (Too little time finds no defect, and never one too many.)
    async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(50), self.responses.message()).await.is_err()
    }

    async fn end(&mut self) -> Status {
        let next = tokio::time::timeout(Duration::from_secs(5), self.responses.message());
        next.await.expect("an end in time").expect_err("the stream ends")
    }
}

/// A request with metadata.
fn with<T>(message: T, metadata: &[(&'static str, &'static str)]) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for (name, value) in metadata {
        request.metadata_mut().append(*name, value.parse().unwrap());
    }
    request
}

fn b(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> etcd::PutRequest {
    etcd::PutRequest { key: b(key), value: b(value), ..Default::default() }
}

fn get(key: &str, end: &str) -> etcd::RangeRequest {
    etcd::RangeRequest { key: b(key), range_end: b(end), ..Default::default() }
}

fn watch_of(key: &str) -> etcd::WatchCreateRequest {
    etcd::WatchCreateRequest { key: b(key), ..Default::default() }
}

fn said<T: std::fmt::Debug>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.expect_err("refused");
    (status.code(), status.message().to_owned())
}

fn revisions(response: &etcd::WatchResponse) -> Vec<i64> {
    response.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect()
}

fn header(response: &etcd::WatchResponse) -> etcd::ResponseHeader {
    response.header.unwrap()
}

// --- KV

#[tokio::test]
async fn answers_carry_the_ids_of_cluster_and_member() {
    let house = house().await;
    let response = house.kv().put(put("a", "1")).await.unwrap().into_inner();
    let header = response.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id), (CLUSTER, MEMBER));
    assert_eq!((header.revision, header.raft_term), (2, 5));
    let response = house.kv().range(get("a", "")).await.unwrap().into_inner();
    assert_eq!(response.kvs[0].value, "1");
    assert_eq!(response.header.unwrap().member_id, MEMBER);
}

#[tokio::test]
async fn bad_requests_get_etcds_words_and_ask_nobody() {
    let house = house().await;
    let mut kv = house.kv();
    let empty = "etcdserver: key is not provided".to_owned();
    assert_eq!(said(kv.put(put("", "1")).await), (Code::InvalidArgument, empty.clone()));
    assert_eq!(said(kv.range(get("", "b")).await), (Code::InvalidArgument, empty));
    let twice = etcd::TxnRequest {
        success: vec![
            etcd::RequestOp {
                request: Some(etcd::request_op::Request::RequestPut(put("a", "")))
            };
            2
        ],
        ..Default::default()
    };
    let text = "etcdserver: duplicate key given in txn request".to_owned();
    assert_eq!(said(kv.txn(twice).await), (Code::InvalidArgument, text));
    assert!(house.fake.asked().is_empty());
}

#[tokio::test]
async fn refusals_of_the_group_become_rows_of_the_table() {
    let house = house().await;
    house.fake.refuse(GroupError::unknown(Error::Timeout));
    let text = "etcdserver: request timed out".to_owned();
    assert_eq!(said(house.kv().put(put("a", "1")).await), (Code::Unavailable, text));
    let compact = etcd::CompactionRequest { revision: 99, physical: false };
    let text = "etcdserver: mvcc: required revision is a future revision".to_owned();
    assert_eq!(said(house.kv().compact(compact).await), (Code::OutOfRange, text));
}

#[tokio::test]
async fn a_large_request_is_too_large_and_a_huge_one_is_not_even_read() {
    let house = house().await;
    let large = "x".repeat(1_572_864);
    let text = "etcdserver: request is too large".to_owned();
    assert_eq!(said(house.kv().put(put("a", &large)).await), (Code::InvalidArgument, text));
    let huge = "x".repeat(2_097_152);
    let (code, text) = said(house.kv().put(put("a", &huge)).await);
    assert_eq!(code, Code::ResourceExhausted);
    assert_eq!(text, "grpc: received message larger than max (2097160 vs. 2097152)");
    let fitting = "x".repeat(1_500_000);
    assert!(house.kv().put(put("a", &fitting)).await.is_ok());
    let value = house.kv().range(get("a", "")).await.unwrap().into_inner().kvs.remove(0).value;
    assert_eq!(value.len(), fitting.len());
}

#[tokio::test]
async fn a_connection_never_asks_below_what_it_has_seen() {
    let house = house().await;
    let revision = house.put("a", "1").await;
    house.kv().range(get("a", "")).await.unwrap();
    let floors: Vec<_> = house.fake.asked().iter().map(|request| request.floor).collect();
    assert_eq!(floors, [0, revision]);
    let routed = house.fake.asked().remove(0);
    assert_eq!((routed.tenant, routed.namespace, routed.group, routed.range_version), (1, 1, 2, 1));
    assert_eq!(routed.timeout_ms, 7000);
}

#[tokio::test]
async fn a_shorter_deadline_of_the_client_is_passed_on() {
    let house = house().await;
    let mut request = tonic::Request::new(get("a", ""));
    request.set_timeout(Duration::from_millis(1500));
    house.kv().range(request).await.unwrap();
    assert!(house.fake.asked()[0].timeout_ms <= 1500);
}

#[tokio::test]
async fn unknown_calls_and_services_are_unimplemented() {
    let house = house().await;
    let mut client = tonic::client::Grpc::new(house.channel.clone());
    client.ready().await.unwrap();
    let path = "/etcdserverpb.KV/Nope".parse().unwrap();
    // Any codec will do: the body is not looked at.
    let codec = tonic_codec();
    let outcome = client.unary(tonic::Request::new(get("a", "")), path, codec).await;
    let text = "unknown method Nope for service etcdserverpb.KV".to_owned();
    assert_eq!(said(outcome), (Code::Unimplemented, text));
}

fn tonic_codec()
-> impl tonic::codec::Codec<Encode = etcd::RangeRequest, Decode = etcd::RangeResponse> {
    tonic_prost::ProstCodec::<etcd::RangeRequest, etcd::RangeResponse>::default()
}

// --- RangeStream

async fn stream(
    house: &House,
    request: etcd::RangeRequest,
) -> Result<Vec<etcd::RangeResponse>, Status> {
    let mut stream = house.kv().range_stream(request).await?.into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.message().await? {
        chunks.push(chunk.range_response.unwrap());
    }
    Ok(chunks)
}

#[tokio::test]
async fn a_streamed_range_adds_up_to_the_range() {
    let house = house().await;
    for n in 0..100 {
        house.put(&format!("k{n:03}"), "v").await;
    }
    for limit in [0, 5, 10, 37, 100, 1000] {
        let request = etcd::RangeRequest { limit, ..get("k", "l") };
        let whole = house.kv().range(request.clone()).await.unwrap().into_inner();
        let chunks = stream(&house, request).await.unwrap();
        let (last, others) = chunks.split_last().unwrap();
        assert!(
            others.iter().all(|chunk| chunk.header.is_none() && chunk.count == 0 && !chunk.more)
        );
        assert_eq!(
            (last.header, last.more, last.count),
            (whole.header, whole.more, whole.count),
            "{limit}"
        );
        let kvs: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.kvs).collect();
        assert_eq!(kvs, whole.kvs, "{limit}");
    }
}

#[tokio::test]
async fn a_streamed_range_at_a_revision_shows_the_revision_of_now() {
    let house = house().await;
    let first = house.put("k1", "v").await;
    let last = house.put("k2", "v").await;
    let chunks =
        stream(&house, etcd::RangeRequest { revision: first, ..get("k", "l") }).await.unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!((chunks[0].kvs.len(), chunks[0].count), (1, 1));
    assert_eq!(chunks[0].header.unwrap().revision, last);
}

#[tokio::test]
async fn a_streamed_count_is_one_message() {
    let house = house().await;
    house.put("k1", "v").await;
    let chunks =
        stream(&house, etcd::RangeRequest { count_only: true, ..get("k", "l") }).await.unwrap();
    assert_eq!((chunks.len(), chunks[0].count, chunks[0].kvs.len()), (1, 1, 0));
    assert!(chunks[0].header.is_some());
}

#[tokio::test]
async fn a_streamed_range_of_the_future_is_an_error() {
    let house = house().await;
    let outcome = stream(&house, etcd::RangeRequest { revision: 50, ..get("k", "l") }).await;
    let text = "etcdserver: mvcc: required revision is a future revision".to_owned();
    assert_eq!(said(outcome), (Code::OutOfRange, text));
    let outcome = stream(&house, etcd::RangeRequest { sort_order: 2, ..get("k", "l") }).await;
    let text = "RangeStream does not support custom sort orders".to_owned();
    assert_eq!(said(outcome), (Code::Unimplemented, text));
}

// --- requiring a leader

#[tokio::test]
async fn who_requires_a_leader_is_refused_without_one() {
    let house = house().await;
    house.fake.lose_leader(proto::id::DEFAULT_GROUP);
    let mut request = tonic::Request::new(get("a", ""));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let text = "etcdserver: no leader".to_owned();
    assert_eq!(said(house.kv().range(request).await), (Code::Unavailable, text.clone()));
    assert!(house.kv().range(get("a", "")).await.is_ok());
    let outcome = house.watch_with(&[("hasleader", "true")]).await.map(|_| ());
    assert_eq!(said(outcome), (Code::Unavailable, text));
}

#[tokio::test]
async fn a_stream_that_requires_a_leader_ends_when_it_is_lost() {
    let config = RouterConfig { election_timeout: Duration::from_millis(20), ..Default::default() };
    let house = house_with(config).await;
    let mut minds = house.watch_with(&[("hasleader", "true")]).await.unwrap();
    let mut does_not = house.watch().await;
    minds.create(watch_of("a")).await;
    does_not.create(watch_of("a")).await;
    house.fake.lose_leader(proto::id::DEFAULT_GROUP);
    let status = minds.end().await;
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    house.put("a", "1").await;
    assert_eq!(does_not.next().await.events.len(), 1);
}

// --- Watch

#[tokio::test]
async fn a_watch_is_created_then_hears_events() {
    let house = house().await;
    let before = house.put("a", "0").await;
    let mut watch = house.watch().await;
    let created = watch.create(watch_of("a")).await;
    assert!(created.created && !created.canceled);
    assert_eq!((created.watch_id, header(&created).revision), (0, before));
    assert_eq!(header(&created).cluster_id, CLUSTER);
    let revision = house.put("a", "1").await;
    let response = watch.next().await;
    assert_eq!((revisions(&response), header(&response).revision), (vec![revision], revision));
    house.put("b", "1").await;
    house.delete("a").await;
    let response = watch.next().await;
    assert_eq!(revisions(&response), [revision + 2]);
    assert_eq!(response.events[0].r#type, 1);
}

#[tokio::test]
async fn creates_are_answered_in_order() {
    let house = house().await;
    let mut watch = house.watch().await;
    for n in 0..20 {
        let bad = n % 3 == 1;
        let range_end = if bad { b("a") } else { Bytes::new() };
        let create = etcd::WatchCreateRequest { range_end, ..watch_of("b") };
        watch.send(RequestUnion::CreateRequest(create)).await;
    }
    let mut ids = Vec::new();
    for n in 0..20 {
        let response = watch.next().await;
        assert_eq!((response.created, response.canceled), (true, n % 3 == 1));
        ids.push(response.watch_id);
    }
    ids.retain(|id| *id >= 0);
    assert_eq!(ids, (0..13).collect::<Vec<_>>());
    assert_eq!(house.fake.open_watches(), 13);
}

#[tokio::test]
async fn history_is_replayed_from_the_start_revision() {
    let house = house().await;
    let first = house.put("a", "1").await;
    house.put("a", "2").await;
    let mut watch = house.watch().await;
    let create = etcd::WatchCreateRequest { start_revision: first, ..watch_of("a") };
    let created = watch.create(create).await;
    assert_eq!(header(&created).revision, first + 1);
    assert_eq!(revisions(&watch.next().await), [first, first + 1]);
}

#[tokio::test]
async fn compacted_history_cancels_behind_the_created_message() {
    let house = house().await;
    let first = house.put("a", "1").await;
    let last = house.put("a", "2").await;
    house.kv().compact(etcd::CompactionRequest { revision: last, physical: false }).await.unwrap();
    let mut watch = house.watch().await;
    let create = etcd::WatchCreateRequest { start_revision: first, ..watch_of("a") };
    assert!(watch.create(create).await.created);
    let canceled = watch.next().await;
    assert!(canceled.canceled && !canceled.created && canceled.cancel_reason.is_empty());
    assert_eq!((canceled.compact_revision, header(&canceled).revision), (last, 0));
}

#[tokio::test]
async fn a_cancelled_watch_says_so_and_hears_no_more() {
    let house = house().await;
    let mut watch = house.watch().await;
    watch.create(watch_of("a")).await;
    watch.create(watch_of("a")).await;
    let cancel = |watch_id| RequestUnion::CancelRequest(etcd::WatchCancelRequest { watch_id });
    watch.send(cancel(7)).await;
    watch.send(cancel(0)).await;
    let canceled = watch.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled), (0, true));
    house.put("a", "1").await;
    assert_eq!(watch.next().await.watch_id, 1);
    assert_eq!(house.fake.open_watches(), 1);
}

#[tokio::test]
async fn progress_on_request_follows_the_events() {
    let house = house().await;
    let mut watch = house.watch().await;
    watch.create(watch_of("a")).await;
    let revision = house.put("a", "1").await;
    watch.send(RequestUnion::ProgressRequest(etcd::WatchProgressRequest {})).await;
    assert_eq!(revisions(&watch.next().await), [revision]);
    let progress = watch.next().await;
    assert_eq!((progress.watch_id, header(&progress).revision), (-1, revision));
    assert!(progress.events.is_empty() && !progress.created && !progress.canceled);
}

#[tokio::test]
async fn progress_comes_by_itself_to_those_who_asked() {
    let interval = Duration::from_millis(100);
    let config = RouterConfig { watch_progress_interval: interval, ..Default::default() };
    let house = house_with(config).await;
    let mut watch = house.watch().await;
    watch.create(watch_of("a")).await;
    watch.create(etcd::WatchCreateRequest { progress_notify: true, ..watch_of("b") }).await;
    let progress = watch.next().await;
    assert_eq!((progress.watch_id, header(&progress).revision), (1, 1));
    assert_eq!(watch.next().await.watch_id, 1);
}

#[tokio::test]
async fn a_closed_hub_goes_unnoticed() {
    let house = house().await;
    let mut watch = house.watch().await;
    watch.create(watch_of("a")).await;
    watch.create(watch_of("b")).await;
    let first = house.put("a", "1").await;
    assert_eq!(revisions(&watch.next().await), [first]);
    house.fake.close_hubs();
    house.put("a", "2").await;
    house.put("b", "3").await;
    let (a, b) = (watch.next().await, watch.next().await);
    assert_eq!((a.watch_id, revisions(&a)), (0, vec![first + 1]));
    assert_eq!((b.watch_id, revisions(&b)), (1, vec![first + 2]));
}

#[tokio::test]
async fn a_half_closed_stream_still_hears_events() {
    let house = house().await;
    let mut watch = house.watch().await;
    watch.create(watch_of("a")).await;
    let (requests, _queue) = mpsc::channel(1);
    watch.requests = requests;
    tokio::time::sleep(Duration::from_millis(20)).await;
    house.put("a", "1").await;
    assert_eq!(watch.next().await.events.len(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_watches_along() {
    let house = house().await;
    let mut watch = house.watch().await;
    watch.create(watch_of("a")).await;
    assert_eq!(house.fake.open_watches(), 1);
    drop(watch);
    until(|| house.fake.open_watches() == 0).await;
}

async fn until(reached: impl Fn() -> bool) {
    for _ in 0..500 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not reached in five seconds");
}

// --- Lease

#[tokio::test]
async fn a_lease_without_id_gets_a_positive_one_and_keepalives_come_in_order() {
    let house = house().await;
    let mut leases = LeaseClient::new(house.channel.clone());
    let grant = etcd::LeaseGrantRequest { ttl: 9, id: 0 };
    let granted = leases.lease_grant(grant).await.unwrap().into_inner();
    assert!(granted.id > 0);
    let ids = [granted.id, 12345, granted.id];
    let requests = ids.map(|id| etcd::LeaseKeepAliveRequest { id });
    let mut answers =
        leases.lease_keep_alive(tokio_stream::iter(requests)).await.unwrap().into_inner();
    for (id, ttl) in ids.into_iter().zip([9, 0, 9]) {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.id, answer.ttl), (id, ttl));
        assert_eq!(answer.header.unwrap().member_id, MEMBER);
    }
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_grant_in_doubt_is_made_once() {
    let house = house().await;
    let mut leases = LeaseClient::new(house.channel.clone());
    let changed = GroupError::unknown(Error::LeaderChanged);
    let mut ids = Vec::new();
    for in_doubt in [Fake::refuse, Fake::doubt] {
        in_doubt(&house.fake, changed);
        let grant = etcd::LeaseGrantRequest { ttl: 9, id: 0 };
        let granted = leases.lease_grant(grant).await.unwrap().into_inner();
        assert_eq!(granted.ttl, 9);
        ids.push(granted.id);
        let found = leases.lease_leases(etcd::LeaseLeasesRequest {}).await.unwrap().into_inner();
        let mut found: Vec<i64> = found.leases.into_iter().map(|lease| lease.id).collect();
        found.sort_by_key(|id| ids.iter().position(|known| known == id));
        assert_eq!(found, ids);
    }
    // Whoever chooses the id must find out alone.
    house.fake.doubt(changed);
    let chosen = etcd::LeaseGrantRequest { ttl: 9, id: 5 };
    let text = "etcdserver: leader changed".to_owned();
    assert_eq!(said(leases.lease_grant(chosen).await), (Code::Unavailable, text));
}

// --- Maintenance, Auth, Cluster

#[tokio::test]
async fn status_tells_the_version_and_what_is_wrong() {
    let house = house().await;
    house.fake.raise(etcd::AlarmType::Nospace);
    let mut maintenance = MaintenanceClient::new(house.channel.clone());
    let status = maintenance.status(etcd::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.version.as_str(), status.storage_version.as_str()), ("3.7.1", "3.7.0"));
    assert_eq!(status.errors, [format!("memberID:{MEMBER} alarm:NOSPACE")]);
    assert_eq!(
        (status.db_size, status.db_size_in_use, status.db_size_quota),
        (2000, 1000, 2_147_483_648)
    );
    assert_eq!(
        (status.leader, status.raft_index, status.raft_applied_index, status.raft_term),
        (MEMBER, 40, 39, 5)
    );
}

#[tokio::test]
async fn maintenance_answers_as_etcd_does() {
    let house = house().await;
    let mut maintenance = MaintenanceClient::new(house.channel.clone());
    assert!(
        maintenance
            .defragment(etcd::DefragmentRequest {})
            .await
            .unwrap()
            .into_inner()
            .header
            .is_none()
    );
    assert_eq!(maintenance.hash(etcd::HashRequest {}).await.unwrap().into_inner().hash, 77);
    let down =
        |action, version: &str| etcd::DowngradeRequest { action, version: version.to_owned() };
    let answer = maintenance.downgrade(down(0, "3.6")).await.unwrap().into_inner();
    assert_eq!(answer.version, "3.7");
    assert!(maintenance.downgrade(down(2, "")).await.is_ok());
    let text = "etcdserver: invalid downgrade target version".to_owned();
    assert_eq!(said(maintenance.downgrade(down(1, "3.5")).await), (Code::InvalidArgument, text));
    let moved = maintenance.move_leader(etcd::MoveLeaderRequest { target_id: 3 }).await;
    let text = "etcdserver: bad leader transferee".to_owned();
    assert_eq!(said(moved), (Code::FailedPrecondition, text));
    let (code, _) = said(maintenance.snapshot(etcd::SnapshotRequest {}).await);
    assert_eq!(code, Code::Unimplemented);
}

#[tokio::test]
async fn members_are_listed_without_a_revision() {
    let house = house().await;
    let mut cluster = etcd::cluster_client::ClusterClient::new(house.channel.clone());
    let list = cluster.member_list(etcd::MemberListRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.members[0].id, MEMBER);
    let header = list.header.unwrap();
    assert_eq!((header.revision, header.cluster_id), (0, CLUSTER));
}

#[tokio::test]
async fn authentication_is_off_and_says_so() {
    let house = house().await;
    let mut auth = etcd::auth_client::AuthClient::new(house.channel.clone());
    let status = auth.auth_status(etcd::AuthStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.enabled, status.auth_revision), (false, 1));
    let text = "etcdserver: authentication is not enabled".to_owned();
    let login = etcd::AuthenticateRequest::default();
    assert_eq!(said(auth.authenticate(login).await), (Code::FailedPrecondition, text));
    let user = etcd::AuthUserAddRequest { name: "root".into(), ..Default::default() };
    assert_eq!(said(auth.user_add(user).await).0, Code::Unimplemented);
}

// --- Lock and Election

#[tokio::test]
async fn a_lock_waits_until_those_before_it_are_gone() {
    let house = house().await;
    let lock = |lease| v3lockpb::LockRequest { name: b("l"), lease };
    let mut locks = LockClient::new(house.channel.clone());
    let first = locks.lock(lock(0)).await.unwrap().into_inner();
    let key = std::str::from_utf8(&first.key).unwrap();
    let lease = i64::from_str_radix(key.strip_prefix("l/").unwrap(), 16).unwrap();
    assert!(lease > 0);
    // The owner of a lease has the lock already.
    assert_eq!(locks.lock(lock(lease)).await.unwrap().into_inner().key, first.key);
    let mut other = locks.clone();
    let second = tokio::spawn(async move { other.lock(lock(0)).await });
    until(|| house.fake.open_watches() == 1).await;
    assert!(!second.is_finished());
    let unlock = v3lockpb::UnlockRequest { key: first.key.clone() };
    locks.unlock(unlock).await.unwrap();
    let second = second.await.unwrap().unwrap().into_inner();
    assert_ne!(second.key, first.key);
}

#[tokio::test]
async fn a_waiting_locker_that_leaves_removes_its_key() {
    let house = house().await;
    let lock = || v3lockpb::LockRequest { name: b("l"), lease: 0 };
    let mut locks = LockClient::new(house.channel.clone());
    locks.lock(lock()).await.unwrap();
    let mut other = locks.clone();
    let waiting = tokio::spawn(async move { other.lock(lock()).await });
    until(|| house.fake.open_watches() == 1).await;
    waiting.abort();
    until(|| house.fake.open_watches() == 0).await;
    let request = || etcd::RangeRequest { count_only: true, ..get("l/", "l0") };
    for _ in 0..100 {
        if house.kv().range(request()).await.unwrap().into_inner().count == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the key of the waiting locker stays");
}

#[tokio::test]
async fn errors_of_locks_are_unknown_with_etcds_text() {
    let house = house().await;
    let mut locks = LockClient::new(house.channel.clone());
    let outcome = locks.lock(v3lockpb::LockRequest { name: b("l"), lease: 77 }).await;
    assert_eq!(said(outcome), (Code::Unknown, "etcdserver: requested lease not found".to_owned()));
    let outcome = locks.unlock(v3lockpb::UnlockRequest { key: Bytes::new() }).await;
    assert_eq!(said(outcome), (Code::Unknown, "etcdserver: key is not provided".to_owned()));
}

#[tokio::test]
async fn an_election_is_won_observed_proclaimed_and_resigned() {
    let house = house().await;
    let mut elections = ElectionClient::new(house.channel.clone());
    let name = || v3electionpb::LeaderRequest { name: b("e") };
    let no_leader = (Code::Unknown, "election: no leader".to_owned());
    assert_eq!(said(elections.leader(name()).await), no_leader);
    let mut observed = elections.observe(name()).await.unwrap().into_inner();
    let run =
        |value: &str| v3electionpb::CampaignRequest { name: b("e"), lease: 0, value: b(value) };
    let won = elections.campaign(run("one")).await.unwrap().into_inner();
    let leader = won.leader.unwrap();
    assert_eq!(leader.rev, won.header.unwrap().revision);
    let seen = observed.message().await.unwrap().unwrap();
    assert_eq!(
        (seen.kv.as_ref().unwrap().value.clone(), seen.kv.unwrap().key),
        (b("one"), leader.key.clone())
    );
    let proclaim = |leader, value: &str| v3electionpb::ProclaimRequest { leader, value: b(value) };
    elections.proclaim(proclaim(Some(leader.clone()), "two")).await.unwrap();
    assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().value, "two");
    let mut other = elections.clone();
    let second = tokio::spawn(async move { other.campaign(run("three")).await });
    until(|| house.fake.open_watches() == 2).await;
    let resign = v3electionpb::ResignRequest { leader: Some(leader.clone()) };
    elections.resign(resign).await.unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(observed.message().await.unwrap().unwrap().kv.unwrap().value, "three");
    assert_eq!(elections.leader(name()).await.unwrap().into_inner().kv.unwrap().value, "three");
    let late = elections.proclaim(proclaim(Some(leader), "late")).await;
    assert_eq!(said(late), (Code::Unknown, "election: not leader".to_owned()));
    let missing = elections.proclaim(proclaim(None, "x")).await;
    assert_eq!(said(missing), (Code::Unknown, "\"leader\" field must be provided".to_owned()));
}

// --- pages

#[tokio::test]
async fn the_version_page_is_etcds() {
    let house = house().await;
    let (code, head, body) = house.http("GET", "/version").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: application/json"));
    assert_eq!(body, r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}"#);
}

#[tokio::test]
async fn health_is_true_or_says_why_not() {
    let house = house().await;
    let healthy = r#"{"health":"true","reason":""}"#;
    let (code, _, body) = house.http("GET", "/health").await;
    assert_eq!((code, body.as_str()), (200, healthy));
    house.fake.raise(etcd::AlarmType::Nospace);
    let (code, _, body) = house.http("GET", "/health").await;
    assert_eq!((code, body.trim_end()), (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#));
    let (code, _, body) = house.http("GET", "/health?exclude=NOSPACE&serializable=true").await;
    assert_eq!((code, body.as_str()), (200, healthy));
    let (code, head, _) = house.http("POST", "/health").await;
    assert_eq!(code, 405);
    assert!(head.contains("allow: get"));
}

#[tokio::test]
async fn probes_list_their_checks_when_asked_or_failing() {
    let house = house().await;
    assert_eq!(house.http("GET", "/livez").await.2, "ok\n");
    let all = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
    assert_eq!(house.http("GET", "/readyz?verbose").await.2, all);
    house.fake.raise(etcd::AlarmType::Corrupt);
    let (code, _, body) = house.http("GET", "/readyz").await;
    assert_eq!(code, 503);
    assert!(body.contains("[-]data_corruption failed: alarm activated: CORRUPT\n"));
    assert_eq!(house.http("GET", "/readyz?exclude=data_corruption").await.0, 200);
    assert_eq!(house.http("GET", "/readyz/linearizable_read").await.0, 200);
    assert_eq!(house.http("GET", "/nowhere").await.0, 404);
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_ask_for() {
    let house = house().await;
    house.put("a", "1").await;
    let _ = house.kv().put(put("", "")).await;
    let (code, _, body) = house.http("GET", "/metrics").await;
    assert_eq!(code, 200);
    let put = r#"grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary""#;
    for line in [
        format!("grpc_server_started_total{{{put}}} 2"),
        format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}}} 1"),
        format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{put}}} 1"),
        format!("grpc_server_msg_received_total{{{put}}} 2"),
        format!("grpc_server_msg_sent_total{{{put}}} 1"),
        "etcd_server_has_leader 1".to_owned(),
        "etcd_server_is_leader 1".to_owned(),
        "etcd_mvcc_db_total_size_in_bytes 2000".to_owned(),
        "etcd_disk_wal_fsync_duration_seconds_count 0".to_owned(),
        "etcd_server_proposals_applied_total 39".to_owned(),
    ] {
        assert!(body.lines().any(|it| it == line), "{line}");
    }
    assert!(body.contains("\nprocess_resident_memory_bytes "));
}

// --- ending

#[tokio::test]
async fn streams_end_and_the_server_returns_when_it_is_told_to_stop() {
    let mut house = house().await;
    let mut watch = house.watch().await;
    watch.create(watch_of("a")).await;
    house.stop.take().unwrap().send(()).unwrap();
    let status = watch.end().await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "etcdserver: server stopped")
    );
    drop((watch, house.channel));
    let served = tokio::time::timeout(Duration::from_secs(5), house.served).await;
    served.expect("in time").unwrap().unwrap();
}
