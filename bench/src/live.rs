//! `bench live`: what clients feel while their etcd is split over groups and merged again, like a
//! cluster of Kubernetes would use it.
//!
//! ```text
//!   fill | before | atoll tenant split --at-prefix /registry/events/ | after | atoll tenant merge --all | again
//!   pods:    get, then put if nobody has written since, each worker its own pods
//!   events:  new keys, as fast as they are taken
//!   lists:   pages of one namespace's pods, whose count is known
//!   watcher: /registry/, at another node than the writers
//! ```
//!
//! At the end the watcher must have heard every write that was acknowledged, each once, in the order of
//! revisions, and every answer must have been the right one: an error of any kind fails the command.
//! Servers and clients share the machine, so more groups cannot be faster here by more than it has
//! cores to spare; latencies during the split and the merge are what this is for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use hdrhistogram::Histogram;
use proto::KeyRange;
use proto::cluster::admin::Ask;
use proto::etcd;
use proto::etcd::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcd::request_op::Request as Op;
use proto::etcd::response_op::Response as OpAnswer;
use proto::etcd::watch_request::RequestUnion;
use tokio::task::{JoinHandle, JoinSet};
use tonic::Status;

use crate::connection::{self, Connection};
use crate::error::Error;
use crate::mixes::content::{Dice, Values};
use crate::servers::{Cluster, Kind, Settings, System};

const NODES: usize = 3;
const PODS: &str = "/registry/pods/";
const EVENTS: &str = "/registry/events/";
const NAMESPACES: u64 = 10;
/// Resources that nobody touches, one in front of the events and one behind.
const BALLAST: [&str; 2] = ["/registry/configmaps/", "/registry/secrets/"];
/// Requests of what is there before that are under way at a time.
const LOADERS: usize = 64;
/// Events of a lease, and its time in seconds.
const LEASE: (u64, i64) = (1000, 3600);
const POD_BYTES: usize = 1024;
const EVENT_BYTES: usize = 512;
/// Keys of a page.
const PAGE: i64 = 50;
/// Between two pages of the lister.
const LIST_EVERY: Duration = Duration::from_millis(50);
/// How long a split, a merge, or the watcher's way to the end, may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time of a change counts for at least so long: what it has stirred up is to be in it.
const CHANGE_AT_LEAST: Duration = Duration::from_secs(2);
/// The least and the greatest latency that can be told apart, in microseconds.
const LATENCY_US: (u64, u64) = (1, 60_000_000);

/// Arguments of `bench live`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program.
    #[arg(long, default_value = "target/release/atoll")]
    atoll: PathBuf,
    /// Folder for the nodes' data, which must not exist yet; it goes away at the end.
    #[arg(long)]
    data: PathBuf,
    /// Seconds before, between and after the split and the merge.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Workers that change pods.
    #[arg(long, default_value_t = 16)]
    pod_workers: u64,
    /// Workers that write events.
    #[arg(long, default_value_t = 16)]
    event_workers: u64,
    /// Pods of each worker.
    #[arg(long, default_value_t = 50)]
    pods: u64,
    /// MiB of values that are there before, half of them on either side of the events.
    #[arg(long, default_value_t = 0)]
    ballast: u64,
    /// Events that are there before, with leases, as those of Kubernetes have them.
    #[arg(long, default_value_t = 0)]
    leased: u64,
}

/// The time that a latency counts for.
#[derive(Clone, Copy)]
enum Phase {
    Before,
    Split,
    After,
    Merge,
    Again,
    Over,
}

const PHASES: [(&str, Phase); 5] = [
    ("before", Phase::Before),
    ("split", Phase::Split),
    ("after", Phase::After),
    ("merge", Phase::Merge),
    ("again", Phase::Again),
];

/// What all workers share.
struct Stage {
    phase: AtomicUsize,
    stopped: AtomicBool,
}

impl Stage {
    fn set(&self, phase: Phase) {
        self.phase.store(phase as usize, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// What a worker did.
struct Log {
    latencies: Vec<Histogram<u64>>,
    /// What was written, by revision.
    written: BTreeMap<i64, Bytes>,
    errors: Vec<String>,
}

impl Log {
    fn new() -> Log {
        let (low, high) = LATENCY_US;
        let one = || Histogram::new_with_bounds(low, high, 3).expect("the bounds are in order");
        let latencies = (0..=PHASES.len()).map(|_| one()).collect();
        Log { latencies, written: BTreeMap::new(), errors: Vec::new() }
    }

    /// An operation that was begun in the phase of then is over.
    fn took(&mut self, phase: usize, began: Instant) {
        let us = began.elapsed().as_micros().min(u128::from(LATENCY_US.1)) as u64;
        self.latencies[phase].saturating_record(us.max(LATENCY_US.0));
    }

    fn wrong(&mut self, what: &str, why: impl std::fmt::Display) {
        self.errors.push(format!("{what}: {why}"));
    }

    fn add(&mut self, other: Log) {
        for (own, other) in self.latencies.iter_mut().zip(&other.latencies) {
            own.add(other).expect("the bounds are alike");
        }
        self.written.extend(other.written);
        self.errors.extend(other.errors);
    }
}

fn pod(worker: u64, number: u64) -> Bytes {
    format!("{PODS}ns{}/p{worker}-{number}", (worker + number) % NAMESPACES).into()
}

fn put(key: Bytes, value: Bytes) -> etcd::PutRequest {
    etcd::PutRequest { key, value, ..Default::default() }
}

fn revision(header: Option<etcd::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

/// A worker with pods of its own.
struct PodWorker {
    number: u64,
    pods: u64,
    connection: Connection,
    stage: Arc<Stage>,
    values: Values,
    dice: Dice,
    log: Log,
}

impl PodWorker {
    async fn run(mut self) -> Log {
        while !self.stage.is_over() {
            let key = pod(self.number, self.dice.below(self.pods));
            let (phase, began) = (self.stage.phase.load(Ordering::Relaxed), Instant::now());
            match self.change(key.clone()).await {
                Ok(Some(revision)) => {
                    self.log.took(phase, began);
                    self.log.written.insert(revision, key);
                }
                Ok(None) => self.log.wrong("a pod", "somebody else has changed it"),
                Err(status) => self.log.wrong("a pod", status),
            }
        }
        self.log
    }

    /// As an apiserver does: what was read must still be so.
    async fn change(&mut self, key: Bytes) -> Result<Option<i64>, Status> {
        let get = etcd::RangeRequest { key: key.clone(), ..Default::default() };
        let found = self.connection.kv().range(get).await?.into_inner();
        let seen = found.kvs.first().map_or(0, |kv| kv.mod_revision);
        let compare = etcd::Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(seen)),
            ..Default::default()
        };
        let operation = |op| etcd::RequestOp { request: Some(op) };
        let value = self.values.any(&mut self.dice);
        let again = etcd::RangeRequest { key: key.clone(), ..Default::default() };
        let txn = etcd::TxnRequest {
            compare: vec![compare],
            success: vec![operation(Op::RequestPut(put(key, value)))],
            failure: vec![operation(Op::RequestRange(again))],
        };
        let answer = self.connection.kv().txn(txn).await?.into_inner();
        let is_put = matches!(
            answer.responses.first().and_then(|op| op.response.as_ref()),
            Some(OpAnswer::ResponsePut(_))
        );
        Ok((answer.succeeded && is_put).then(|| revision(answer.header)))
    }
}

/// Writes events, as fast as they are taken.
async fn events(connection: Connection, worker: u64, stage: Arc<Stage>, values: Values) -> Log {
    let (mut log, mut dice) = (Log::new(), Dice::new(1000 + worker));
    for number in 0u64.. {
        if stage.is_over() {
            break;
        }
        let key: Bytes = format!("{EVENTS}ns{}/e{worker}-{number}", number % NAMESPACES).into();
        let (phase, began) = (stage.phase.load(Ordering::Relaxed), Instant::now());
        match connection.kv().put(put(key.clone(), values.any(&mut dice))).await {
            Ok(answer) => {
                log.took(phase, began);
                log.written.insert(revision(answer.into_inner().header), key);
            }
            Err(status) => log.wrong("an event", status),
        }
    }
    log
}

/// Lists pages of pods, of which it is known how many there are.
async fn lists(connection: Connection, all: i64, stage: Arc<Stage>) -> Log {
    let mut log = Log::new();
    while !stage.is_over() {
        let keys = prefix(PODS);
        let page = etcd::RangeRequest { limit: PAGE, ..range(&keys) };
        let (phase, began) = (stage.phase.load(Ordering::Relaxed), Instant::now());
        match connection.kv().range(page).await.map(tonic::Response::into_inner) {
            Ok(page) if page.count == all && page.kvs.len() as i64 == PAGE.min(all) => {
                log.took(phase, began);
            }
            Ok(page) => log.wrong("a list", format!("{} keys, not {all}", page.count)),
            Err(status) => log.wrong("a list", status),
        }
        tokio::time::sleep(LIST_EVERY).await;
    }
    log
}

fn prefix(text: &str) -> KeyRange {
    let mut end = text.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    KeyRange { start: Bytes::copy_from_slice(text.as_bytes()), end: Some(end.into()) }
}

fn range(keys: &KeyRange) -> etcd::RangeRequest {
    let (key, range_end) = keys.clone().spell();
    etcd::RangeRequest { key, range_end, ..Default::default() }
}

/// Hears everything below `/registry/` from revision `from` on, until it has heard of `until`.
fn watch(
    connection: &Connection,
    from: i64,
    until: tokio::sync::watch::Receiver<i64>,
) -> JoinHandle<Result<Vec<(i64, Bytes)>, Status>> {
    let mut client = connection.watch();
    tokio::spawn(async move {
        let (key, range_end) = prefix("/registry/").spell();
        let create =
            etcd::WatchCreateRequest { key, range_end, start_revision: from, ..Default::default() };
        let create =
            etcd::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = stream::iter([create]).chain(stream::pending());
        let mut answers = client.watch(requests).await?.into_inner();
        let mut heard: Vec<(i64, Bytes)> = Vec::new();
        // 0 while nobody knows how far it will go.
        let is_done = |heard: &[(i64, Bytes)]| {
            let last = *until.borrow();
            last != 0 && heard.last().is_some_and(|(at, _)| *at >= last)
        };
        while !is_done(&heard) {
            let next = tokio::time::timeout(Duration::from_millis(200), answers.message()).await;
            let Ok(answer) = next else { continue };
            let answer = answer?.ok_or_else(|| Status::aborted("the watch has ended"))?;
            if answer.canceled {
                return Err(Status::aborted(answer.cancel_reason));
            }
            let kvs = answer.events.into_iter().filter_map(|event| event.kv);
            heard.extend(kvs.map(|kv| (kv.mod_revision, kv.key)));
        }
        Ok(heard)
    })
}

/// Puts what nobody touches afterwards, many at a time.
async fn load(
    doors: &[Connection],
    puts: impl Iterator<Item = etcd::PutRequest>,
) -> Result<(), Error> {
    let puts = puts.zip(doors.iter().cycle()).map(|(put, door)| {
        let mut client = door.kv();
        async move { client.put(put).await }
    });
    let mut puts = stream::iter(puts).buffer_unordered(LOADERS);
    while let Some(told) = puts.next().await {
        told.map_err(Error::request("fill"))?;
    }
    Ok(())
}

/// What is there before anybody works.
async fn furnish(args: &Args, doors: &[Connection], values: &Values) -> Result<(), Error> {
    let mut dice = Dice::new(8);
    let ballast = (0..(args.ballast << 20) / POD_BYTES as u64).map(|number| {
        let resource = BALLAST[(number % 2) as usize];
        let key = format!("{resource}ns{}/b{number}", number % NAMESPACES);
        put(key.into(), values.any(&mut dice))
    });
    load(doors, ballast).await?;
    let mut leases = Vec::new();
    for _ in 0..args.leased.div_ceil(LEASE.0) {
        let grant = etcd::LeaseGrantRequest { ttl: LEASE.1, id: 0 };
        let told = doors[0].lease().lease_grant(grant).await;
        leases.push(told.map_err(Error::request("fill"))?.into_inner().id);
    }
    let mut dice = Dice::new(9);
    let leased = (0..args.leased).map(|number| {
        let key = format!("{EVENTS}ns{}/old{number}", number % NAMESPACES);
        let lease = leases[(number / LEASE.0) as usize];
        etcd::PutRequest { lease, ..put(key.into(), values.any(&mut dice)) }
    });
    load(doors, leased).await
}

/// Runs `bench live`.
pub(crate) async fn command(args: Args) -> Result<(), Error> {
    let system =
        System { label: "Atoll".to_owned(), kind: Kind::Atoll, program: args.atoll.clone() };
    let settings = Settings { operators: true, ..Default::default() };
    let cluster = Cluster::start(&system, settings, NODES, &args.data).await?;
    let endpoints = cluster.endpoints();
    let doors = connection::open_all(&endpoints, 2 * NODES).await?;
    let pods = args.pod_workers * args.pods;
    let (pod_values, event_values) = (Values::new(POD_BYTES), Values::new(EVENT_BYTES));
    let (mut all, mut first) = (Log::new(), 0);
    furnish(&args, &doors, &pod_values).await?;
    let mut dice = Dice::new(7);
    for worker in 0..args.pod_workers {
        for number in 0..args.pods {
            let key = pod(worker, number);
            let told = doors[0].kv().put(put(key.clone(), pod_values.any(&mut dice))).await;
            let at = revision(told.map_err(Error::request("fill"))?.into_inner().header);
            first = if first == 0 { at } else { first };
            all.written.insert(at, key);
        }
    }
    let (goal, until) = tokio::sync::watch::channel(0);
    let watcher = watch(&doors[NODES - 1], first, until);
    let stage = Arc::new(Stage { phase: AtomicUsize::new(0), stopped: AtomicBool::new(false) });
    stage.set(Phase::Over);
    let mut workers: JoinSet<(&str, Log)> = JoinSet::new();
    for number in 0..args.pod_workers {
        let worker = PodWorker {
            number,
            pods: args.pods,
            connection: doors[number as usize % doors.len()].clone(),
            stage: stage.clone(),
            values: pod_values.clone(),
            dice: Dice::new(number),
            log: Log::new(),
        };
        workers.spawn(async move { ("pods", worker.run().await) });
    }
    for number in 0..args.event_workers {
        let connection = doors[number as usize % doors.len()].clone();
        let (stage, values) = (stage.clone(), event_values.clone());
        workers.spawn(async move { ("events", events(connection, number, stage, values).await) });
    }
    let (connection, over) = (doors[1].clone(), stage.clone());
    workers.spawn(async move { ("lists", lists(connection, pods as i64, over).await) });
    tokio::time::sleep(Duration::from_secs(2)).await;

    let (mut lengths, mut took) = (Vec::new(), Vec::new());
    for (name, phase) in PHASES {
        stage.set(phase);
        let began = Instant::now();
        match phase {
            Phase::Split | Phase::Merge => {
                change(&cluster, matches!(phase, Phase::Split)).await?;
                took.push((name, began.elapsed()));
                tokio::time::sleep(CHANGE_AT_LEAST.saturating_sub(began.elapsed())).await;
            }
            _ => tokio::time::sleep(Duration::from_secs(args.seconds)).await,
        }
        lengths.push(began.elapsed());
    }
    stage.set(Phase::Over);
    stage.stopped.store(true, Ordering::Relaxed);

    for (name, took) in took {
        println!("{name} at {EVENTS}: {:.2} s from the command to its end", took.as_secs_f64());
    }
    let mut by_kind: BTreeMap<&str, Log> = BTreeMap::new();
    while let Some(done) = workers.join_next().await {
        let (kind, log) = done.expect("workers do not panic");
        by_kind.entry(kind).or_insert_with(Log::new).add(log);
    }
    println!("{:<8}{:<9}{:>9}{:>10}{:>10}{:>10}", "", "", "a second", "p50 ms", "p99 ms", "worst");
    for (kind, log) in by_kind {
        for (((name, _), length), latencies) in PHASES.iter().zip(&lengths).zip(&log.latencies) {
            let ms = |us: u64| us as f64 / 1e3;
            println!(
                "{kind:<8}{name:<9}{:>9.0}{:>10.1}{:>10.1}{:>10.1}",
                latencies.len() as f64 / length.as_secs_f64(),
                ms(latencies.value_at_quantile(0.5)),
                ms(latencies.value_at_quantile(0.99)),
                ms(latencies.max()),
            );
        }
        all.add(log);
    }
    let last = all.written.keys().next_back().copied().unwrap_or(0);
    let _ = goal.send(last);
    let heard = tokio::time::timeout(PATIENCE, watcher).await;
    let heard = heard.map_err(|_| Error::Usage("the watch does not come to its end".to_owned()))?;
    let heard = heard.expect("the watcher does not panic").map_err(Error::request("watch"))?;
    judge(&all, &heard)
}

/// Every write once and in order, and no error.
fn judge(all: &Log, heard: &[(i64, Bytes)]) -> Result<(), Error> {
    let mut wrong = all.errors.clone();
    if let Some(two) = heard.windows(2).find(|two| two[0].0 >= two[1].0) {
        wrong.push(format!("the watch heard of revision {} after {}", two[1].0, two[0].0));
    }
    let told: BTreeMap<i64, &Bytes> = heard.iter().map(|(at, key)| (*at, key)).collect();
    for (at, key) in &all.written {
        if told.get(at) != Some(&key) {
            wrong.push(format!("the watch did not hear of revision {at}"));
        }
    }
    if told.len() != all.written.len() {
        let (told, written) = (told.len(), all.written.len());
        wrong.push(format!("the watch heard of {told} writes, {written} were acknowledged"));
    }
    let (low, high) = (all.written.keys().next(), all.written.keys().next_back());
    let span = low.zip(high).map_or(0, |(low, high)| high - low + 1);
    println!(
        "{} writes, {} revisions without a write between them; a watch at another node heard each once, in \
         order: {}; errors: {}",
        all.written.len(),
        span - all.written.len() as i64,
        if wrong.len() == all.errors.len() { "yes" } else { "NO" },
        all.errors.len()
    );
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::Usage(wrong.into_iter().take(5).collect::<Vec<_>>().join("; "))),
    }
}

/// Splits the default tenant, or merges it, and waits until that is done.
async fn change(cluster: &Cluster, splits: bool) -> Result<(), Error> {
    let admin = Connection::open(&cluster.admins()[0]).await?;
    let run = |command: String| {
        let mut client = admin.admin();
        async move {
            let told = client.run(Ask { command }).await.map_err(Error::request("change"))?;
            Ok::<String, Error>(told.into_inner().answer)
        }
    };
    let until = Instant::now() + PATIENCE;
    let wish = match splits {
        true => format!(r#"{{"command":"tenant-split","name":"default","prefixes":["{EVENTS}"]}}"#),
        false => r#"{"command":"tenant-merge","name":"default","all":true}"#.to_owned(),
    };
    let (list, done) = (r#"{"command":"tenant-list"}"#, if splits { 3 } else { 1 });
    let done = format!(r#""groups":{done}"#);
    // Right after its start placement has not heard of all nodes.
    while run(wish.clone()).await?.to_lowercase().contains("refused") {
        if Instant::now() > until {
            return Err(Error::Usage("the change is refused".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    while !run(list.to_owned()).await?.contains(&done) {
        if Instant::now() > until {
            return Err(Error::Usage("the change does not end".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
