//! Real processes under real faults: nodes that are killed with SIGKILL again and again while
//! clients ask, and a history that is judged at the end.
//!
//! ```text
//!   storm ── kill -9, SIGSTOP/SIGCONT, SIGTERM, start ──> n1  n2  n3     one down at a time
//!   clients ── put, get, delete, compare-and-swap over gRPC ─┘   │
//!   watches from revision 1 and from now, resumed; etcdctl ──────┘
//!      └────────────> Record (one History, one clock) ──> judge: check::run and more
//! ```
//!
//! What is checked beyond the judges of [`crate::check`]:
//!
//! - at the end every node shows, in a watch from revision 1, every acknowledged write once;
//! - all nodes hash the last revision to the same value;
//! - `etcdctl watch` printed every event once, in order (its output goes to the judges);
//! - no node ends by itself, panics, refuses a valid request, or fails to start again;
//! - in health every node answers, and every watch hears of everything, within a time limit.
//!
//! With cuts an operator splits the tenant and merges it all the while. Revisions may have holes
//! then, where a leader died, so the history is numbered anew before it is judged.
//!
//! A run is not repeatable: the seed fixes what clients ask and which faults are tried, not when
//! things happen. So a run that found something keeps its directory: data, logs, and the history
//! as text. Reads are linearizable; what serializable reads promise one connection is the
//! simulator's to check, since a connection here mends itself unseen. How long a cluster takes
//! to answer after its leader was killed is reported, not judged.

mod client;
mod cluster;
mod cuts;
mod etcdctl;
mod judge;
mod record;
mod watcher;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::etcd::maintenance_client::MaintenanceClient;
use proto::etcd::{HashKvRequest, RangeRequest};
use proto::group::{Reply, Request};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::check::history::{Outcome, WatchId, WatchSpec};
use crate::process::Program;
use crate::sim::random::Random;
use crate::split::names::Names;
use client::{Client, ask};
use cluster::{Cluster, Signal};
use cuts::{Cuts, Operator};
use etcdctl::Etcdctl;
use record::{Record, outcome};
use watcher::Watcher;

/// Clients that ask all the time.
const CLIENTS: u64 = 32;
/// Watches of everything from revision 1.
const FULL_WATCHES: u64 = 2;
/// How long the cluster gets in health before the clients stop.
const CALM: Duration = Duration::from_secs(1);
/// How long a healthy cluster may take for anything.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the revision must stand still to be the last.
const STILL: Duration = Duration::from_secs(1);
/// How soon something is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// Milliseconds between two faults.
const BETWEEN_MS: (u64, u64) = (50, 600);
/// The same where there are cuts: a merge needs all replicas of two groups for some tenths of a second.
const BETWEEN_WITH_CUTS_MS: (u64, u64) = (50, 2_500);
/// Milliseconds that a killed or stopped node stays down.
const DOWN_MS: (u64, u64) = (20, 600);
/// Milliseconds that a node is frozen: over several elections at most.
const FROZEN_MS: (u64, u64) = (200, 3_000);
/// Under these sources and above nodes' final watches tell the committed history.
const FINAL_SOURCES: u64 = 100;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes.
    pub nodes: usize,
    /// Ends the faults after so many kills.
    pub kills: Option<u64>,
    /// Ends the faults when the time is over.
    pub time: Option<Duration>,
    /// What faults and requests are drawn from.
    pub seed: u64,
    /// The program under test; etcd as a control, in which nothing may be found.
    pub program: Program,
    /// Split and merge the tenant meanwhile.
    pub cuts: bool,
    /// A real `etcdctl`, if there is one.
    pub etcdctl: Option<PathBuf>,
    /// Where data and logs go.
    pub work_dir: PathBuf,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Nodes killed with SIGKILL.
    pub kills: u64,
    /// Nodes frozen for a while.
    pub pauses: u64,
    /// Nodes ended with SIGTERM.
    pub stops: u64,
    /// Requests that were answered.
    pub acknowledged: usize,
    /// Requests whose outcome nobody knows.
    pub unknown: usize,
    /// Revisions that were committed.
    pub revisions: usize,
    /// For each kill of a leader: how long until a write was acknowledged, ascending.
    pub gaps: Vec<Duration>,
    /// How long each start of a node took until it served, ascending.
    pub starts: Vec<Duration>,
    /// How long the faults lasted.
    pub stormed: Duration,
    /// How long the judges took.
    pub judged: Duration,
    /// How often `etcdctl watch` was started; 0: none was judged.
    pub etcdctl_lives: u64,
    /// Splits and merges that were seen to their end, where somebody asked for any.
    pub cuts: Option<(u64, u64)>,
    /// Revisions that nothing happened at: of a tenant that is split while a leader dies.
    pub holes: u64,
    /// What is wrong, in sentences.
    pub violations: Vec<String>,
}

/// Starts a cluster, treats it badly, and judges what it showed.
pub async fn run(options: &Options) -> io::Result<Summary> {
    std::fs::create_dir_all(&options.work_dir)?;
    let mut random = Random::new(options.seed);
    let program = &options.program;
    let mut cluster =
        Cluster::start(program, options.nodes, &options.work_dir, &mut random).await?;
    let record = Arc::new(Record::new());
    let urls = Arc::new(cluster.urls());
    let admin_urls = cluster.admin_urls();
    let crowd = Crowd::start(&record, &urls, admin_urls, options, &mut random)?;
    let mut summary = Summary::default();
    let begun = Instant::now();
    let stormed = storm(&mut cluster, &record, options, &mut random, &mut summary).await;
    summary.stormed = begun.elapsed();
    tokio::time::sleep(CALM).await;
    let mut finals = Vec::new();
    let mut settled = false;
    match stormed {
        Ok(()) => {
            let (watches, lives, cuts) = crowd.settle(&record, &urls, &mut random).await;
            settled = watches.is_some();
            finals = watches.unwrap_or_default();
            summary.etcdctl_lives = lives;
            summary.cuts = cuts.map(|cuts| (cuts.splits, cuts.merges));
        }
        Err(error) => record.complain(error.to_string()),
    }
    for (_, words) in cluster.ended() {
        record.complain(words);
    }
    let panics = cluster.panics();
    let end = record.now();
    drop(cluster);

    let begun = Instant::now();
    let mut account = record.close();
    if options.cuts {
        summary.holes = Names::new(&account.history.changes.keys().copied().collect()).holes();
        Names::rename_all(&mut account.history);
    }
    let history = &account.history;
    summary.violations = account.complaints;
    summary.violations.extend(panics);
    if let Some((splits, merges)) = summary.cuts
        && (splits == 0 || merges == 0)
    {
        summary.violations.push(format!("{splits} splits and {merges} merges: try longer"));
    }
    if settled {
        summary.violations.extend(judge::judge(history, &finals, end));
    } else {
        // Answers may have come that no watch lived to confirm.
        summary.violations.push("the history was not judged, as the run was cut short".into());
    }
    let count = |pick: fn(&Outcome) -> bool| {
        history.operations.iter().filter(|operation| pick(&operation.outcome)).count()
    };
    summary.acknowledged = count(|outcome| matches!(outcome, Outcome::Done(_)));
    summary.unknown = count(|outcome| matches!(outcome, Outcome::Unknown));
    summary.revisions = history.changes.len();
    let gaps = judge::gaps(history, &account.leader_kills);
    summary.gaps = gaps.into_iter().map(Duration::from_micros).collect();
    summary.starts.sort_unstable();
    summary.judged = begun.elapsed();
    if !summary.violations.is_empty() {
        std::fs::write(options.work_dir.join("history"), judge::text_of(history))?;
    }
    Ok(summary)
}

/// Breaks one node at a time until the options say that it is enough. Ends early, with what is
/// wrong, when a node does not come back.
async fn storm(
    cluster: &mut Cluster,
    record: &Record,
    options: &Options,
    random: &mut Random,
    summary: &mut Summary,
) -> io::Result<()> {
    let begun = Instant::now();
    let pause = |random: &mut Random, (low, high): (u64, u64)| {
        tokio::time::sleep(Duration::from_millis(random.between(low, high)))
    };
    loop {
        let enough = options.kills.is_some_and(|kills| summary.kills >= kills);
        if enough || options.time.is_some_and(|time| begun.elapsed() >= time) {
            return Ok(());
        }
        pause(random, if options.cuts { BETWEEN_WITH_CUTS_MS } else { BETWEEN_MS }).await;
        for (node, words) in cluster.ended() {
            record.complain(words);
            cluster.kill(node)?;
            summary.starts.push(cluster.restart(node).await?);
        }
        let leader = cluster.leader().await;
        let drawn = random.below(options.nodes as u64) as usize;
        // Half of the time at least it is the leader's turn: it has most to lose.
        let victim = leader.filter(|_| random.permille(400)).unwrap_or(drawn);
        match random.below(10) {
            0..=6 => {
                if leader == Some(victim) {
                    record.leader_dies();
                }
                cluster.kill(victim)?;
                summary.kills += 1;
                pause(random, DOWN_MS).await;
                summary.starts.push(cluster.restart(victim).await?);
            }
            7..=8 => {
                cluster.signal(victim, Signal::Stop)?;
                summary.pauses += 1;
                pause(random, FROZEN_MS).await;
                cluster.signal(victim, Signal::Continue)?;
            }
            _ => {
                summary.stops += 1;
                if let Some(wrong) = cluster.stop(victim).await? {
                    record.complain(wrong);
                }
                pause(random, DOWN_MS).await;
                summary.starts.push(cluster.restart(victim).await?);
            }
        }
    }
}

/// Everyone who talks to the cluster.
struct Crowd {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    operator: Option<JoinHandle<Cuts>>,
    watchers: JoinSet<()>,
    /// The last revision, once it is known.
    last: watch::Sender<i64>,
    etcdctl: Option<Etcdctl>,
}

// === impl Crowd ===

impl Crowd {
    fn start(
        record: &Arc<Record>,
        urls: &Arc<Vec<String>>,
        admin_urls: Vec<String>,
        options: &Options,
        random: &mut Random,
    ) -> io::Result<Crowd> {
        let mut fresh = || Random::new(random.draw());
        let (last, heard_last) = watch::channel(0);
        let mut watchers = JoinSet::new();
        for source in 0..FULL_WATCHES {
            let watcher = Watcher::full(record.clone(), urls.clone(), fresh(), source);
            watchers.spawn(watcher.run(heard_last.clone()));
        }
        let some = [
            WatchSpec { no_delete: true, ..WatchSpec::new(b"k2", b"k6", 1) },
            WatchSpec { no_put: true, prev_kv: false, ..WatchSpec::new(b"k", b"l", 1) },
            WatchSpec::new(b"k5", b"", 0),
            WatchSpec { prev_kv: false, ..WatchSpec::new(b"k", b"\0", 0) },
        ];
        for spec in some {
            let watcher = Watcher::new(record.clone(), urls.clone(), fresh(), spec);
            watchers.spawn(watcher.run(heard_last.clone()));
        }
        let start = |binary| Etcdctl::start(binary, urls, &options.work_dir, record.clone());
        let etcdctl = options.etcdctl.as_deref().map(start).transpose()?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for number in 1..=CLIENTS {
            let client = Client::new(record.clone(), urls.clone(), number, fresh());
            clients.spawn(client.run(stop.clone()));
        }
        let operator = options.cuts.then(|| {
            let program = options.program.binary().to_owned();
            let operator = Operator { program, admin_urls, random: fresh() };
            tokio::spawn(operator.run(stop.clone()))
        });
        Ok(Crowd { clients, stop, operator, watchers, last, etcdctl })
    }

    /// Stops the clients, waits until every watch has heard of everything, and lets each node
    /// tell its own account. Returns these accounts, if the cluster is in health, how often etcdctl
    /// was started, and what the operator did.
    async fn settle(
        mut self,
        record: &Arc<Record>,
        urls: &Arc<Vec<String>>,
        random: &mut Random,
    ) -> (Option<Vec<WatchId>>, u64, Option<Cuts>) {
        self.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        let cuts = match self.operator.take() {
            Some(operator) => Some(operator.await.expect("an operator does not panic")),
            None => None,
        };
        let lives = self.etcdctl.as_ref().map_or(0, Etcdctl::lives);
        let Some(last) = last_revision(record, urls).await else { return (None, lives, cuts) };
        let mut finals = Vec::new();
        for node in 0..urls.len() {
            let fresh = Random::new(random.draw());
            let source = FINAL_SOURCES + node as u64;
            let watcher = Watcher::full(record.clone(), urls.clone(), fresh, source).at(node);
            finals.push(watcher.id());
            self.watchers.spawn(watcher.run(self.last.subscribe()));
        }
        self.last.send_replace(last);
        let wait = async { while self.watchers.join_next().await.is_some() {} };
        if timeout(HEALTH_TIMEOUT, wait).await.is_err() {
            let left = self.watchers.len();
            record.complain(format!("{left} watches did not hear of revision {last} in health"));
        }
        let lives = match self.etcdctl {
            Some(etcdctl) => etcdctl.finish(last).await,
            None => 0,
        };
        for url in urls.iter() {
            hash(record, url, last).await;
        }
        (Some(finals), lives, cuts)
    }
}

/// The revision at which the cluster stands still, by a linearizable read at every node; after
/// it every node has applied it.
async fn last_revision(record: &Record, urls: &[String]) -> Option<i64> {
    let mut before = 0;
    loop {
        let mut last = before;
        for url in urls {
            last = last.max(read(record, url).await?);
        }
        if last == before {
            return Some(last);
        }
        before = last;
        tokio::time::sleep(STILL).await;
    }
}

/// Reads at a node until it answers, and returns the revision.
async fn read(record: &Record, url: &str) -> Option<i64> {
    let begun = Instant::now();
    while begun.elapsed() < HEALTH_TIMEOUT {
        if let Some(channel) = cluster::connect(url).await {
            let key = Bytes::from_static(b"k");
            let request = Request::Range(RangeRequest { key, ..Default::default() });
            let op = record.call(record.connection(), request.clone());
            let outcome = outcome(ask(channel, request).await);
            let revision = match &outcome {
                Outcome::Done(Reply::Range(range)) => range.header.as_ref().map(|h| h.revision),
                _ => None,
            };
            record.end(op, outcome);
            if revision.is_some() {
                return revision;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
    record.complain(format!("the node at {url} does not answer in health"));
    None
}

/// Asks a node for its hash of a revision; the judges compare.
async fn hash(record: &Record, url: &str, revision: i64) {
    let asked = HashKvRequest { revision };
    let answer = async {
        let channel = cluster::connect(url).await.ok_or("no connection".to_owned())?;
        let op = record.call(record.connection(), Request::HashKv(asked));
        let answer = MaintenanceClient::new(channel).hash_kv(asked).await;
        let answer = answer.map(|answer| answer.into_inner());
        let told = answer.as_ref().map(|hash| hash.hash_revision).map_err(ToString::to_string);
        record.end(op, outcome(answer.map(Reply::HashKv)));
        told
    };
    let told = timeout(HEALTH_TIMEOUT, answer).await.unwrap_or_else(|_| Err("no answer".into()));
    if told != Ok(revision) {
        record.complain(format!("asked for the hash of {revision}, {url} says {told:?}"));
    }
}
