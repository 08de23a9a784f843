//! The crate etcd-client at work: `interop http://HOST:PORT`.
//!
//! It shows the watch stream as it is on the wire, so created and cancelled answers,
//! watch ids and progress are checked here closest to the protocol.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use etcd_client::*;

type Result<T> = std::result::Result<T, Error>;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(45);

static CHECKS: AtomicU64 = AtomicU64::new(0);

fn fail(what: &str, facts: String) -> ! {
    eprintln!("FAIL: {what}\n  {facts}");
    std::process::exit(1);
}

#[track_caller]
fn check(condition: bool, what: &str) {
    if !condition {
        fail(what, format!("at {}", std::panic::Location::caller()));
    }
    CHECKS.fetch_add(1, Ordering::Relaxed);
}

#[track_caller]
fn same<A: PartialEq<B> + Debug, B: Debug>(what: &str, wanted: A, got: B) {
    if wanted != got {
        let place = std::panic::Location::caller();
        fail(what, format!("wanted: {wanted:?}\n  got:    {got:?}\n  at {place}"));
    }
    CHECKS.fetch_add(1, Ordering::Relaxed);
}

/// The refusal's code and text, as one line.
#[track_caller]
fn refused<T>(what: &str, wanted: &str, got: Result<T>) {
    match got {
        Ok(_) => fail(what, "wanted a refusal, got none".into()),
        Err(Error::GRpcStatus(status)) => {
            same(what, wanted, format!("{:?} {}", status.code(), status.message()))
        }
        Err(error) => fail(what, format!("wanted: {wanted}\n  got:    {error:?}")),
    }
}

/// The next answer of a watch stream, or a failure after 45 s.
async fn next(what: &str, stream: &mut WatchStream) -> WatchResponse {
    match tokio::time::timeout(PATIENCE, stream.message()).await {
        Ok(Ok(Some(answer))) => answer,
        other => fail(what, format!("{other:?}")),
    }
}

fn story(answer: &WatchResponse) -> String {
    let word = |event: &Event| {
        let kv = event.kv().unwrap();
        let previous =
            event.prev_kv().map_or(String::new(), |old| format!("<{}", old.value_str().unwrap()));
        let key = kv.key_str().unwrap().rsplit('/').next().unwrap();
        format!("{:?} {key}={}{previous}", event.event_type(), kv.value_str().unwrap())
    };
    answer.events().iter().map(word).collect::<Vec<_>>().join(", ")
}

struct Run {
    client: Client,
    prefix: String,
}

impl Run {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn put(&mut self, name: &str, value: &str) -> Result<i64> {
        let answer = self.client.put(self.key(name), value, None).await?;
        Ok(answer.header().unwrap().revision())
    }

    async fn value(&mut self, name: &str) -> Result<Option<String>> {
        let answer = self.client.get(self.key(name), None).await?;
        Ok(answer.kvs().first().map(|kv| kv.value_str().unwrap().to_string()))
    }

    async fn revision(&mut self) -> Result<i64> {
        Ok(self.client.get(self.key("none"), None).await?.header().unwrap().revision())
    }

    async fn kv(&mut self) -> Result<()> {
        let first = self.put("kv/a", "1").await?;
        let answer =
            self.client.put(self.key("kv/a"), "2", Some(PutOptions::new().with_prev_key())).await?;
        same("put", first + 1, answer.header().unwrap().revision());
        same("with the previous value", "1", answer.prev_key().unwrap().value_str()?);
        let header = answer.header().unwrap();
        check(
            header.cluster_id() != 0 && header.member_id() != 0 && header.raft_term() != 0,
            "the header is filled",
        );
        let answer = self.client.get(self.key("kv/a"), None).await?;
        let kv = &answer.kvs()[0];
        same(
            "get",
            (first, first + 1, 2, 0),
            (kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease()),
        );
        for i in 0..30 {
            self.put(&format!("kv/r/{i:02}"), &i.to_string()).await?;
        }
        let range = self.key("kv/r/");
        let options = GetOptions::new().with_prefix().with_limit(10);
        let answer = self.client.get(range.clone(), Some(options)).await?;
        same(
            "limit, more, count",
            (10, true, 30),
            (answer.kvs().len(), answer.more(), answer.count()),
        );
        let options = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Mod, SortOrder::Descend)
            .with_limit(1);
        let answer = self.client.get(range.clone(), Some(options)).await?;
        same("the newest", "29", answer.kvs()[0].value_str()?);
        let options = GetOptions::new().with_prefix().with_count_only();
        let answer = self.client.get(range.clone(), Some(options)).await?;
        same("count only", (0, 30), (answer.kvs().len(), answer.count()));
        let options = GetOptions::new().with_revision(first).with_serializable();
        let answer = self.client.get(self.key("kv/a"), Some(options)).await?;
        same("an old version", "1", answer.kvs()[0].value_str()?);

        let mut stream = self
            .client
            .kv_client()
            .get_stream(range.clone(), Some(GetOptions::new().with_prefix()))
            .await?;
        let (mut streamed, mut last) = (Vec::new(), None);
        while let Some(piece) = stream.message().await? {
            streamed.extend(piece.kvs().iter().map(|kv| kv.value_str().unwrap().to_string()));
            check(last.is_none(), "the header comes with the last piece alone");
            last = piece.header().map(|header| (header.revision(), piece.count(), piece.more()));
        }
        same("a stream of all", (0..30).map(|i| i.to_string()).collect::<Vec<_>>(), streamed);
        same("its end", Some((first + 31, 30, false)), last);

        let answer = self
            .client
            .delete(range, Some(DeleteOptions::new().with_prefix().with_prev_key()))
            .await?;
        same("delete", (30, 30), (answer.deleted(), answer.prev_kvs().len()));
        let large = vec![b'x'; 1_400_000];
        self.client.put(self.key("kv/large"), large.clone(), None).await?;
        let answer = self.client.get(self.key("kv/large"), None).await?;
        check(answer.kvs()[0].value() == large, "1.4 MB");
        let refusal = self.client.put(self.key("kv/large"), vec![b'x'; 1_700_000], None).await;
        refused("too much", "InvalidArgument etcdserver: request is too large", refusal);
        refused(
            "an empty key",
            "InvalidArgument etcdserver: key is not provided",
            self.client.put("", "x", None).await,
        );
        let future = GetOptions::new().with_revision(first + 100_000);
        let refusal = self.client.get("x", Some(future)).await;
        refused(
            "the future",
            "OutOfRange etcdserver: mvcc: required revision is a future revision",
            refusal,
        );
        self.client.delete(self.key("kv/large"), None).await?;
        Ok(())
    }

    async fn txn(&mut self) -> Result<()> {
        self.put("txn/a", "1").await?;
        let (a, b) = (self.key("txn/a"), self.key("txn/b"));
        let inner = Txn::new()
            .when([Compare::version(b.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(self.key("txn/c"), "nested", None)]);
        let txn = Txn::new()
            .when([
                Compare::value(a.clone(), CompareOp::Equal, "1"),
                Compare::lease(a.clone(), CompareOp::Equal, 0),
            ])
            .and_then([
                TxnOp::put(b.clone(), "2", None),
                TxnOp::get(b.clone(), None),
                TxnOp::txn(inner),
                TxnOp::delete(a.clone(), None),
            ])
            .or_else([TxnOp::get(a.clone(), None)]);
        let answer = self.client.txn(txn.clone()).await?;
        check(answer.succeeded(), "txn");
        let parts = answer.op_responses();
        check(
            matches!(&parts[1], TxnOpResponse::Get(got) if got.kvs()[0].value() == b"2"),
            "it reads its own write",
        );
        check(
            matches!(&parts[2], TxnOpResponse::Txn(inner) if inner.succeeded()),
            "nested, it compares the state before",
        );
        check(
            matches!(&parts[3], TxnOpResponse::Delete(gone) if gone.deleted() == 1),
            "it deletes",
        );
        let again = self.client.txn(txn).await?;
        check(!again.succeeded() && again.op_responses().len() == 1, "its other branch");
        same(
            "which adds no revision",
            answer.header().unwrap().revision(),
            again.header().unwrap().revision(),
        );
        let twice = Txn::new()
            .and_then([TxnOp::put(a.clone(), "1", None), TxnOp::put(a.clone(), "2", None)]);
        let refusal = self.client.txn(twice).await;
        refused(
            "a key twice",
            "InvalidArgument etcdserver: duplicate key given in txn request",
            refusal,
        );
        let many: Vec<_> = (0..129).map(|i| TxnOp::put(format!("{a}{i}"), "x", None)).collect();
        let refusal = self.client.txn(Txn::new().and_then(many)).await;
        refused(
            "129 operations",
            "InvalidArgument etcdserver: too many operations in txn request",
            refusal,
        );

        // Many tasks on one key, by compare-and-put.
        self.put("txn/count", "0").await?;
        let tasks: Vec<_> = (0..8)
            .map(|_| tokio::spawn(increment(self.client.clone(), self.key("txn/count"))))
            .collect();
        for task in tasks {
            task.await.unwrap()?;
        }
        same("eight times ten increments", Some("80".into()), self.value("txn/count").await?);
        Ok(())
    }

    async fn watch(&mut self) -> Result<()> {
        let start = self.put("watch/a", "1").await?;
        self.put("watch/a", "2").await?;
        self.client.delete(self.key("watch/a"), None).await?;
        let all = WatchOptions::new().with_prefix().with_start_revision(start).with_prev_key();
        let mut stream = self.client.watch(self.key("watch/"), Some(all)).await?;
        let created = next("created", &mut stream).await;
        check(
            created.created() && !created.canceled() && created.events().is_empty(),
            "the first answer says created",
        );
        same("the first id", 0, created.watch_id());
        same("at the current revision", start + 2, created.header().unwrap().revision());
        let (mut words, mut events) = (Vec::new(), 0);
        while events < 3 {
            let answer = next("history", &mut stream).await;
            events += answer.events().len();
            words.push(story(&answer));
        }
        same("history", "Put a=1, Put a=2<1, Delete a=<2", words.join(", "));
        self.put("watch/b", "live").await?;
        let answer = next("live", &mut stream).await;
        same("a live event", "Put b=live", story(&answer));
        same("its header", start + 3, answer.header().unwrap().revision());

        // More watches on the same stream: ids count up, a chosen one is taken, a used
        // one is refused and the stream goes on.
        stream.watch(self.key("watch/c"), None).await?;
        same("the next id", (true, 1), {
            let it = next("second", &mut stream).await;
            (it.created(), it.watch_id())
        });
        stream.watch(self.key("watch/d"), Some(WatchOptions::new().with_watch_id(7))).await?;
        same("a chosen id", (true, 7), {
            let it = next("third", &mut stream).await;
            (it.created(), it.watch_id())
        });
        stream.watch(self.key("watch/e"), Some(WatchOptions::new().with_watch_id(7))).await?;
        let refusal = next("a used id", &mut stream).await;
        same(
            "a used id",
            (true, true, -1),
            (refusal.created(), refusal.canceled(), refusal.watch_id()),
        );
        same(
            "says why",
            "mvcc: duplicate watch ID provided on the WatchStream",
            refusal.cancel_reason(),
        );
        stream
            .watch(self.key("watch/z"), Some(WatchOptions::new().with_range(self.key("watch/a"))))
            .await?;
        let refusal = next("an empty range", &mut stream).await;
        same(
            "an empty range",
            (true, true, -1),
            (refusal.created(), refusal.canceled(), refusal.watch_id()),
        );
        same("says why", "mvcc: watcher range is empty", refusal.cancel_reason());
        self.put("watch/d", "1").await?;
        let mut ids = Vec::new();
        for _ in 0..2 {
            let answer = next("both watches", &mut stream).await;
            same("the same event", "Put d=1", story(&answer));
            ids.push(answer.watch_id());
        }
        ids.sort();
        same("by both watches", vec![0, 7], ids);

        // Progress, asked for until all watches are in step.
        let here = self.put("elsewhere", "1").await?;
        let end = Instant::now() + PATIENCE;
        loop {
            check(Instant::now() < end, "progress in time");
            stream.request_progress().await?;
            let Ok(Ok(Some(answer))) =
                tokio::time::timeout(Duration::from_millis(200), stream.message()).await
            else {
                continue;
            };
            same("progress is of the stream", (-1, 0), (answer.watch_id(), answer.events().len()));
            if answer.header().unwrap().revision() >= here {
                break;
            }
        }
        stream.cancel(7).await?;
        let cancelled = loop {
            let answer = next("cancelled", &mut stream).await;
            if answer.watch_id() != -1 {
                break answer; // what else comes are answers to earlier progress requests
            }
        };
        same(
            "cancelled",
            (7, true, false, 0),
            (
                cancelled.watch_id(),
                cancelled.canceled(),
                cancelled.created(),
                cancelled.compact_revision(),
            ),
        );
        self.put("watch/d", "2").await?;
        same("only one is left", 0, next("one left", &mut stream).await.watch_id());

        let only =
            WatchOptions::new().with_start_revision(start).with_filters([WatchFilterType::NoPut]);
        let mut filtered = self.client.watch(self.key("watch/a"), Some(only)).await?;
        check(next("created", &mut filtered).await.created(), "a filtered watch");
        same("has deletes alone", "Delete a=", story(&next("filtered", &mut filtered).await));

        // Below a compaction: created, then cancelled with the revision to go on from.
        let here = self.revision().await?;
        self.client.compact(here, Some(CompactionOptions::new().with_physical())).await?;
        let old = WatchOptions::new().with_start_revision(start);
        let mut below = self.client.watch(self.key("watch/a"), Some(old)).await?;
        check(
            next("created", &mut below).await.created(),
            "a watch below the compaction is created",
        );
        let cancelled = next("compacted", &mut below).await;
        same("and cancelled", (true, here), (cancelled.canceled(), cancelled.compact_revision()));
        let refusal = self.client.compact(here, None).await;
        refused(
            "compact again",
            "OutOfRange etcdserver: mvcc: required revision has been compacted",
            refusal,
        );
        Ok(())
    }

    async fn lease(&mut self) -> Result<()> {
        let id = self.client.lease_grant(600, None).await?.id();
        let key = self.key("lease/a");
        self.client.put(key.clone(), "1", Some(PutOptions::new().with_lease(id))).await?;
        let (mut keeper, mut beats) = self.client.lease_keep_alive(id).await?;
        for _ in 0..3 {
            keeper.keep_alive().await?;
            let beat = beats.message().await?.unwrap();
            same("keep alive", (id, 600), (beat.id(), beat.ttl()));
        }
        let info = self
            .client
            .lease_time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys()))
            .await?;
        same(
            "time to live",
            (600, vec![key.clone().into_bytes()]),
            (info.granted_ttl(), info.keys().to_vec()),
        );
        check(self.client.leases().await?.leases().iter().any(|lease| lease.id() == id), "leases");
        let chosen = i64::from(std::process::id()) + 0x5000_0000;
        same(
            "a chosen id",
            chosen,
            self.client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(chosen))).await?.id(),
        );
        let again =
            self.client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(chosen))).await;
        refused("the same id again", "FailedPrecondition etcdserver: lease already exists", again);
        self.client.lease_revoke(chosen).await?;
        self.client.lease_revoke(id).await?;
        same("revoke deletes the key", None, self.value("lease/a").await?);
        keeper.keep_alive().await?;
        same(
            "keep alive of none answers 0",
            Some(0),
            beats.message().await?.map(|beat| beat.ttl()),
        );
        same("time to live of none", -1, self.client.lease_time_to_live(id, None).await?.ttl());
        refused(
            "revoke again",
            "NotFound etcdserver: requested lease not found",
            self.client.lease_revoke(id).await,
        );
        let unknown = self.client.put(key, "1", Some(PutOptions::new().with_lease(id))).await;
        refused("a put with it", "NotFound etcdserver: requested lease not found", unknown);
        Ok(())
    }

    async fn lock(&mut self) -> Result<()> {
        let name = self.key("lock");
        let held = self.client.lock(name.clone(), None).await?;
        check(held.key().starts_with(name.as_bytes()), "lock");
        let mut other = self.client.clone();
        let queued = name.clone();
        let second = tokio::spawn(async move { other.lock(queued, None).await });
        let end = Instant::now() + PATIENCE;
        while self
            .client
            .get(format!("{name}/"), Some(GetOptions::new().with_prefix()))
            .await?
            .count()
            < 2
        {
            check(Instant::now() < end, "a second one queues in time");
        }
        check(!second.is_finished(), "a second one waits");
        self.client.unlock(held.key()).await?;
        let second =
            tokio::time::timeout(PATIENCE, second).await.expect("the lock in time").unwrap()?;
        check(second.key() != held.key(), "then it gets the lock");
        self.client.unlock(second.key()).await?;

        let name = self.key("election");
        let lease = self.client.lease_grant(60, None).await?.id();
        let leader =
            self.client.campaign(name.clone(), "one", lease).await?.leader().unwrap().clone();
        let mut observed = self.client.observe(name.clone()).await?;
        same("observed", "one", observed.message().await?.unwrap().kv().unwrap().value_str()?);
        self.client
            .proclaim("two", Some(ProclaimOptions::new().with_leader(leader.clone())))
            .await?;
        same(
            "observed again",
            "two",
            observed.message().await?.unwrap().kv().unwrap().value_str()?,
        );
        same("leader", "two", self.client.leader(name.clone()).await?.kv().unwrap().value_str()?);
        self.client.resign(Some(ResignOptions::new().with_leader(leader))).await?;
        refused(
            "no leader any more",
            "Unknown election: no leader",
            self.client.leader(name).await,
        );
        self.client.lease_revoke(lease).await?;
        Ok(())
    }

    async fn cluster(&mut self) -> Result<()> {
        let members = self.client.member_list().await?;
        let ids: Vec<_> = members.members().iter().map(|member| member.id()).collect();
        let status = self.client.status().await?;
        check(
            ids.contains(&status.leader()) && status.version().starts_with("3."),
            "members and status",
        );
        check(
            members.members().iter().all(|member| !member.client_urls().is_empty()),
            "client URLs",
        );
        let hash = self.client.hash_kv(0).await?.hash();
        same("a hash again", hash, self.client.hash_kv(0).await?.hash());
        let alarms = self.client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
        same("alarms", 0, alarms.alarms().len());
        self.client.defragment().await?;
        Ok(())
    }
}

async fn increment(mut client: Client, key: String) -> Result<()> {
    for _ in 0..10 {
        loop {
            let answer = client.get(key.clone(), None).await?;
            let kv = &answer.kvs()[0];
            let count: u32 = kv.value_str()?.parse().unwrap();
            let txn = Txn::new()
                .when([Compare::mod_revision(key.clone(), CompareOp::Equal, kv.mod_revision())])
                .and_then([TxnOp::put(key.clone(), (count + 1).to_string(), None)]);
            if client.txn(txn).await?.succeeded() {
                break;
            }
        }
    }
    Ok(())
}

async fn all(endpoint: &str) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let prefix = format!("~rust/{}-{now}/", std::process::id());
    let client =
        Client::connect([endpoint], Some(ConnectOptions::new().with_require_leader(true))).await?;
    let mut run = Run { client, prefix };
    run.kv().await?;
    run.txn().await?;
    run.watch().await?;
    run.lease().await?;
    run.lock().await?;
    run.cluster().await?;
    run.client.delete(run.prefix.clone(), Some(DeleteOptions::new().with_prefix())).await?;
    Ok(())
}

#[tokio::main]
async fn main() {
    let Some(endpoint) = std::env::args().nth(1) else {
        eprintln!("usage: interop http://HOST:PORT");
        std::process::exit(2);
    };
    match tokio::time::timeout(Duration::from_secs(240), all(&endpoint)).await {
        Ok(Ok(())) => println!("ok {} checks", CHECKS.load(Ordering::Relaxed)),
        Ok(Err(error)) => fail("an unforeseen error", format!("{error:?}")),
        Err(_) => fail("not done within 240 s", String::new()),
    }
}
