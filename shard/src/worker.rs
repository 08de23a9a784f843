//! The one loop that drives a node: it takes everything that came, steps it in, closes the
//! round, and carries out what the node wants done. It alone acts; the node is pure.
//!
//! Beside it run the log's thread (append and sync, many rounds with one sync when the disk
//! is slower than the rounds) and the checkpoint's thread. A failed write of either ends the
//! process: nothing is retried, peers take over, the restart trusts no cached page.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::RwLock;
use proto::cluster::group::{Charter, GroupRequest};
use proto::cluster::raft::PeerMessage;
use proto::etcd::Member;
use proto::group::GroupError;
use proto::{Error, GroupId, NodeId, limits};
use tokio::sync::oneshot;

use crate::engine::Engine;
use crate::extents::Extents;
use crate::group::{Group, Shared, Ticket};
use crate::log::Log;
use crate::machine::NO_SHELF;
use crate::mailbox::Mailbox;
use crate::node::{Answer, Input, Node, NodeError, Output, Persist, Quarantine};
use crate::room::{self, Room};
use crate::store::Store;
use crate::store::checkpoint::Checkpoint;
use crate::store::layout::Shelf;
use crate::watch::feed::Feed;
use crate::watch::threads::HubThreads;

/// How often the room on the disk is looked at.
const ROOM_WATCH: Duration = Duration::from_millis(500);
/// How long a checkpoint that is written waits until the worker has let go of its table.
const TABLE_PATIENCE: Duration = Duration::from_secs(1);
/// Rest between pieces of a log segment that is prepared.
const SPARE_PAUSE: Duration = Duration::from_millis(5);
/// How often it is looked at whether much was removed or merged. Until then what was merged takes
/// its space twice, and to look costs next to nothing.
const SHRINK_WATCH: Duration = Duration::from_millis(500);
/// How often page files and log segments are looked at without a reason.
const FILES_WATCH: Duration = Duration::from_secs(1);
/// How long leaderships have to move from a node whose disk is critically full.
const CRITICAL_MS: u64 = 5000;

/// Called once when the node cannot go on; it is expected to end the process.
pub type Fatal = Arc<dyn Fn(String) + Send + Sync>;

/// Where a request's answer goes.
pub type AnswerSender = oneshot::Sender<Result<Answer, GroupError>>;

/// Takes messages for other nodes; must not wait.
pub trait Outbox: Send + Sync {
    /// Sends what a round has for a node, in order; may drop it.
    fn send(&self, to: NodeId, messages: Vec<PeerMessage>);
    /// The members of a group and their addresses, now and after each change.
    fn members(&self, group: GroupId, members: &[Member]);
    /// This node was removed as a member: it is to stop.
    fn retired(&self, group: GroupId);
}

/// What everybody may know of one group here.
#[derive(Clone)]
pub struct GroupView {
    /// Role and revision.
    pub shared: Arc<Shared>,
    /// Its watches.
    pub feed: Feed,
}

/// Times of the last writes, for metrics.
#[derive(Default)]
pub struct Durations {
    /// Log syncs: count, and microseconds in all.
    pub syncs: (AtomicU64, AtomicU64),
    /// Log syncs by bucket: below 1, 2, 4, ... milliseconds.
    pub sync_buckets: [AtomicU64; 15],
    /// Checkpoints: count, and microseconds in all.
    pub checkpoints: (AtomicU64, AtomicU64),
    /// Checkpoints by bucket.
    pub checkpoint_buckets: [AtomicU64; 15],
}

impl Durations {
    fn note(pair: &(AtomicU64, AtomicU64), buckets: &[AtomicU64; 15], took: Duration) {
        pair.0.fetch_add(1, Ordering::Relaxed);
        pair.1.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        let ms = took.as_micros() as u64 / 1000;
        // Bucket n holds what took less than 2^n milliseconds; the last holds the rest.
        let bucket = (64 - ms.leading_zeros()) as usize;
        if let Some(bucket) = buckets.get(bucket.min(14)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Parts {
    mailbox: Mailbox<(GroupRequest, AnswerSender), Input>,
    groups: RwLock<BTreeMap<GroupId, GroupView>>,
    /// Why replicas here are out of service, also those that were not opened.
    quarantined: RwLock<BTreeMap<GroupId, Quarantine>>,
    /// Bytes of the disk: all, and free.
    space: (AtomicU64, AtomicU64),
    store: Arc<Store>,
    clock: Instant,
    stopping: AtomicBool,
    closed: AtomicBool,
    durations: Durations,
    /// See [`NodeHandle::news`].
    news: AtomicU64,
}

/// A hand on a running node.
#[derive(Clone)]
pub struct NodeHandle {
    parts: Arc<Parts>,
}

impl NodeHandle {
    /// Hands a request to the worker.
    pub async fn request(&self, request: GroupRequest) -> Result<Answer, GroupError> {
        let (sender, receiver) = oneshot::channel();
        if self.parts.mailbox.request((request, sender)).is_err() {
            return Err(GroupError::not_done(Error::TooManyRequests, None));
        }
        receiver.await.unwrap_or(Err(GroupError::unknown(Error::Stopped)))
    }

    /// Hands a message of a peer to the worker.
    pub fn input(&self, input: Input) {
        self.parts.mailbox.control(input);
    }

    /// What is known of a group here.
    pub fn group(&self, id: GroupId) -> Option<GroupView> {
        self.parts.groups.read().get(&id).cloned()
    }

    /// The groups that have a replica here.
    pub fn group_ids(&self) -> Vec<GroupId> {
        self.parts.groups.read().keys().copied().collect()
    }

    /// Shows all groups that have a replica here.
    pub fn each_group(&self, mut show: impl FnMut(GroupId, &GroupView)) {
        self.parts.groups.read().iter().for_each(|(id, view)| show(*id, view));
    }

    /// The replicas here that are out of service, also those that were not opened, and why.
    pub fn quarantined(&self) -> BTreeMap<GroupId, Quarantine> {
        self.parts.quarantined.read().clone()
    }

    /// Bytes of the disk, all and free, as it was looked at last.
    pub fn space(&self) -> (u64, u64) {
        let (total, free) = &self.parts.space;
        (total.load(Ordering::Relaxed), free.load(Ordering::Relaxed))
    }

    /// The group that has a key whose versions stand on this shelf, the version of its range, and
    /// whose it is.
    pub fn group_of_row(&self, shelf: Shelf, key: &[u8]) -> Option<(GroupId, u64, Charter)> {
        let groups = self.parts.groups.read();
        let found = groups.iter().find(|(_, view)| {
            let published = &view.shared.published;
            let shelves = published.shelves();
            let is_there = published.rows() != NO_SHELF && shelves.range.contains(key);
            is_there && shelves.pieces.shelf_of(key) == shelf
        });
        let (id, view) = found?;
        let published = &view.shared.published;
        Some((*id, published.range_version(), published.charter()))
    }

    /// The rows.
    pub fn store(&self) -> &Arc<Store> {
        &self.parts.store
    }

    /// Milliseconds of the node's clock.
    pub fn now_ms(&self) -> u64 {
        now_ms(self.parts.clock)
    }

    /// Times of writes.
    pub fn durations(&self) -> &Durations {
        &self.parts.durations
    }

    /// Rises when a replica here came or went, changed its members or its leader, or was stopped.
    pub fn news(&self) -> u64 {
        self.parts.news.load(Ordering::Acquire)
    }

    /// Does any replica here lead?
    pub fn leads_any(&self, node: u64) -> bool {
        self.parts.groups.read().values().any(|view| view.shared.leader() == Some(node))
    }

    /// Is the log closed after a [`NodeHandle::stop`]?
    pub fn is_closed(&self) -> bool {
        self.parts.closed.load(Ordering::Acquire)
    }

    /// Stops the worker after its current round.
    pub fn stop(&self) {
        self.parts.stopping.store(true, Ordering::Release);
        for view in self.parts.groups.read().values() {
            view.feed.shut();
        }
    }
}

/// The clock's origin lies a second back, so that 0 is never a time.
fn now_ms(origin: Instant) -> u64 {
    origin.elapsed().as_millis() as u64 + 1000
}

/// What everybody may know of a replica here; its members are made known as well.
fn view_of(id: GroupId, group: &Group, hubs: &Arc<HubThreads>, outbox: &dyn Outbox) -> GroupView {
    outbox.members(id, &group.machine().state().members);
    let shared = group.shared().clone();
    let feed = Feed::start(hubs, shared.published.clone());
    GroupView { shared, feed }
}

/// Starts a node's threads.
///
/// `reserve_bytes` is what must stay free on the disk; by default a share of it (`room.rs`).
pub fn start(
    node: Node,
    log: Arc<Log>,
    outbox: Arc<dyn Outbox>,
    reserve_bytes: Option<u64>,
    fatal: Fatal,
) -> NodeHandle {
    let hubs = HubThreads::start(node.store().clone(), fatal.clone());
    let mut views = BTreeMap::new();
    for (id, group) in node.groups() {
        views.insert(*id, view_of(*id, group, &hubs, outbox.as_ref()));
    }
    let shut = node.shut().filter_map(|id| Some((id, node.quarantined(id)?)));
    let quarantined = RwLock::new(shut.collect());
    let parts = Arc::new(Parts {
        mailbox: Mailbox::new(limits::MAILBOX_DEPTH),
        groups: RwLock::new(views),
        quarantined,
        space: Default::default(),
        store: node.store().clone(),
        clock: Instant::now(),
        stopping: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        durations: Durations::default(),
        news: AtomicU64::new(0),
    });
    let handle = NodeHandle { parts: parts.clone() };
    // Bounded by what Raft takes uncommitted; the worker never waits for the disk.
    let (persist, persists) = unbounded::<Persist>();
    // One checkpoint is on its way at a time.
    let (checkpoint, checkpoints) = bounded::<Arc<Checkpoint>>(1);
    let f = fatal.clone();
    let spawn = move |name: &'static str, run: Box<dyn FnOnce() + Send>| {
        let fatal = f.clone();
        // Without one of its threads a node would only seem to live.
        let run = move || {
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                fatal(format!("the thread \"{name}\" panicked, see above"));
            }
        };
        std::thread::Builder::new().name(name.into()).spawn(run).expect("a thread can be started");
    };
    let (h, f) = (handle.clone(), fatal.clone());
    let writer = log.clone();
    let large_bytes = node.config().large_bytes;
    let (tend, tends) = bounded(1);
    spawn("log", Box::new(move || write_log(&h, &writer, large_bytes, &persists, &tend, &f)));
    let (f, l, extents) = (fatal.clone(), log.clone(), node.store().extents().clone());
    spawn("files", Box::new(move || tend_files(&l, &extents, &tends, &f)));
    let (h, f, engine) = (handle.clone(), fatal.clone(), node.store().engine().clone());
    let spares = log.clone();
    spawn(
        "checkpoint",
        Box::new(move || write_checkpoints(&h, engine.as_ref(), &spares, &checkpoints, &f)),
    );
    let (h, f, engine) = (handle.clone(), fatal.clone(), node.store().engine().clone());
    spawn("shrink", Box::new(move || shrink(&h, engine.as_ref(), &f)));
    let (h, watched) = (handle.clone(), log.clone());
    spawn("room", Box::new(move || watch_room(&h, &watched, reserve_bytes)));
    let h = handle.clone();
    spawn(
        "worker",
        Box::new(move || {
            let worker = Worker {
                node,
                outbox,
                persist,
                checkpoint,
                tickets: HashMap::new(),
                next: 0,
                hubs,
                critical_since_ms: None,
            };
            if let Err(error) = worker.run(&h) {
                fatal(error.to_string());
            }
        }),
    );
    handle
}

fn write_log(
    handle: &NodeHandle,
    log: &Log,
    large_bytes: usize,
    persists: &Receiver<Persist>,
    tend: &Sender<()>,
    fatal: &Fatal,
) {
    let extents = handle.parts.store.extents().clone();
    while let Ok(mut persist) = persists.recv() {
        // Whatever came while the last sync ran goes with one sync.
        while let Ok(next) = persists.try_recv() {
            persist.join(next);
        }
        let begun = Instant::now();
        let appended = match persist.write(log, &extents, large_bytes) {
            Ok(appended) => appended,
            Err(error) => return fatal(error.to_string()),
        };
        if let Err(error) = log.sync() {
            return fatal(format!("write the log: {error}"));
        }
        let took = begun.elapsed();
        if appended.iter().any(|appended| !appended.slots.is_empty()) {
            // Bounded to one: whoever tends the pages looks at all of them.
            let _ = tend.try_send(());
        }
        let d = &handle.parts.durations;
        Durations::note(&d.syncs, &d.sync_buckets, took);
        let sync_ms = took.as_millis() as u64;
        handle.input(Input::Persisted { id: persist.id, sync_ms, appended });
    }
    if let Err(error) = log.close() {
        tracing::warn!(%error, "close the log");
    }
    handle.parts.closed.store(true, Ordering::Release);
}

/// Tells the worker when the room on the disk changes for better or worse.
fn watch_room(handle: &NodeHandle, log: &Log, chosen: Option<u64>) {
    let mut before = Room::Enough;
    while !handle.parts.stopping.load(Ordering::Acquire) {
        match log.space() {
            Ok(space) => {
                let (total, free) = &handle.parts.space;
                total.store(space.total_bytes, Ordering::Relaxed);
                free.store(space.free_bytes, Ordering::Relaxed);
                let reserve = room::reserve_bytes(space.total_bytes, chosen);
                let now = room::judge(space.free_bytes, reserve);
                let free_mib = space.free_bytes >> 20;
                let reserve_mib = reserve >> 20;
                if now != before && now == Room::Enough {
                    tracing::warn!(free_mib, reserve_mib, "the disk has room again");
                } else if now != before {
                    tracing::error!(free_mib, reserve_mib, "the disk is full: no more data");
                }
                if now != before {
                    handle.input(Input::Room(now));
                }
                before = now;
            }
            Err(error) => tracing::warn!(%error, "watch the disk"),
        }
        std::thread::sleep(ROOM_WATCH);
    }
}

/// Waits until a checkpoint can be written without filling the disk: the engine would not
/// survive it. Until then its rows stay in memory and in the log.
fn wait_for_room(handle: &NodeHandle, log: &Log, checkpoint: &Checkpoint) {
    let needed = checkpoint.bytes();
    let is_short = || log.space().is_ok_and(|space| space.free_bytes < needed);
    if is_short() {
        tracing::error!(needed_mib = needed >> 20, "a checkpoint waits for room on the disk");
    }
    while is_short() && !handle.parts.stopping.load(Ordering::Acquire) {
        std::thread::sleep(ROOM_WATCH);
    }
}

fn write_checkpoints(
    handle: &NodeHandle,
    engine: &dyn Engine,
    log: &Log,
    checkpoints: &Receiver<Arc<Checkpoint>>,
    fatal: &Fatal,
) {
    while let Ok(checkpoint) = checkpoints.recv() {
        wait_for_room(handle, log, &checkpoint);
        let begun = Instant::now();
        if let Err(error) = checkpoint.write(engine) {
            return fatal(format!("write a checkpoint: {error}"));
        }
        let d = &handle.parts.durations;
        Durations::note(&d.checkpoints, &d.checkpoint_buckets, begun.elapsed());
        handle.input(Input::CheckpointWritten);
        // To free a table of many rows takes long: whoever lets go of it last, it had better not
        // be the worker.
        let until = Instant::now() + TABLE_PATIENCE;
        while Arc::strong_count(&checkpoint) > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Gives space of removed rows back, apart from who writes checkpoints: it takes long.
fn shrink(handle: &NodeHandle, engine: &dyn Engine, fatal: &Fatal) {
    while !handle.parts.stopping.load(Ordering::Acquire) {
        if let Err(error) = engine.shrink() {
            return fatal(format!("give space back: {error}"));
        }
        std::thread::sleep(SHRINK_WATCH);
    }
}

/// Makes pages for large values and the next log segment before they are needed, off the path of
/// a put, and gives back what is far too much.
fn tend_files(log: &Log, extents: &Extents, tends: &Receiver<()>, fatal: &Fatal) {
    loop {
        match extents.tend() {
            Ok(()) => {}
            Err(error) if extents.is_stopped() => return fatal(error.to_string()),
            Err(error) => tracing::warn!(%error, "tend the page files"),
        }
        if let Err(error) = log.prepare_spare(SPARE_PAUSE) {
            tracing::warn!(%error, "prepare a log segment");
        }
        if tends.recv_timeout(FILES_WATCH) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

struct Worker {
    node: Node,
    outbox: Arc<dyn Outbox>,
    persist: Sender<Persist>,
    checkpoint: Sender<Arc<Checkpoint>>,
    tickets: HashMap<Ticket, AnswerSender>,
    next: Ticket,
    hubs: Arc<HubThreads>,
    /// Since when the disk is critically full, in milliseconds of the node's clock.
    critical_since_ms: Option<u64>,
}

impl Worker {
    fn run(mut self, handle: &NodeHandle) -> Result<(), NodeError> {
        let parts = &handle.parts;
        let tick_ms = self.node.config().tick_ms;
        let (mut requests, mut control) = (Vec::new(), Vec::new());
        let mut next_tick_ms = now_ms(parts.clock) + tick_ms;
        while !parts.stopping.load(Ordering::Acquire) {
            let wait_ms = if self.node.is_busy() {
                0
            } else {
                next_tick_ms.saturating_sub(now_ms(parts.clock))
            };
            parts.mailbox.take(Duration::from_millis(wait_ms), &mut requests, &mut control);
            let now = now_ms(parts.clock);
            for input in control.drain(..) {
                self.node.step(now, input)?;
            }
            for (request, sender) in requests.drain(..) {
                self.next += 1;
                self.tickets.insert(self.next, sender);
                self.node.step(now, Input::Request { ticket: self.next, request })?;
            }
            if now >= next_tick_ms {
                self.node.step(now, Input::Tick)?;
                next_tick_ms = now + tick_ms;
                self.tickets.retain(|_, sender| !sender.is_closed());
                self.check_room(now)?;
            }
            let outputs = self.node.round(now)?;
            self.carry_out(handle, outputs);
            // Behind what it is about.
            parts.news.store(self.node.news(), Ordering::Release);
        }
        Ok(())
    }

    /// Stops a node that others can do without before its disk is full to the brim.
    fn check_room(&mut self, now_ms: u64) -> Result<(), NodeError> {
        if self.node.room() != Room::Critical || self.node.is_alone() {
            self.critical_since_ms = None;
            return Ok(());
        }
        let since = *self.critical_since_ms.get_or_insert(now_ms);
        if now_ms > since + CRITICAL_MS { Err(NodeError::DiskFull) } else { Ok(()) }
    }

    /// Lets everybody know a replica that came.
    fn born(&self, handle: &NodeHandle, id: GroupId) {
        let Some(group) = self.node.group(id) else { return };
        let view = view_of(id, group, &self.hubs, self.outbox.as_ref());
        handle.parts.groups.write().insert(id, view);
    }

    /// Lets everybody know why a replica is out of service, or that it is no more.
    fn note_quarantine(&self, handle: &NodeHandle, id: GroupId) {
        let mut quarantined = handle.parts.quarantined.write();
        match self.node.quarantined(id) {
            Some(found) => drop(quarantined.insert(id, found)),
            None => drop(quarantined.remove(&id)),
        }
    }

    fn carry_out(&mut self, handle: &NodeHandle, outputs: Vec<Output>) {
        let mut batches: BTreeMap<NodeId, Vec<PeerMessage>> = BTreeMap::new();
        let mut rest = Vec::new();
        for output in outputs {
            match output {
                Output::Send { to, message } => batches.entry(to).or_default().push(message),
                other => rest.push(other),
            }
        }
        for (to, messages) in batches {
            self.outbox.send(to, messages);
        }
        for output in rest {
            match output {
                Output::Send { .. } => {}
                Output::Persist(persist) => {
                    // The log's thread only ends when the process does.
                    let _ = self.persist.send(persist);
                }
                Output::Answer { ticket, answer } => {
                    if let Some(sender) = self.tickets.remove(&ticket) {
                        // Who asked may have gone.
                        let _ = sender.send(answer);
                    }
                }
                Output::Events { group, events } => {
                    if let Some(view) = handle.parts.groups.read().get(&group) {
                        view.feed.events(events);
                    }
                }
                Output::Replaced { group } => {
                    if let Some(view) = handle.parts.groups.read().get(&group) {
                        view.feed.behind(view.shared.published.revision());
                    }
                }
                Output::Ranged { group, revision } => {
                    if let Some(view) = handle.parts.groups.read().get(&group) {
                        view.feed.ranged(revision);
                    }
                }
                Output::Checkpoint(checkpoint) => {
                    let _ = self.checkpoint.send(checkpoint);
                }
                Output::Members { group } => {
                    if let Some(found) = self.node.group(group) {
                        self.outbox.members(group, &found.machine().state().members);
                    }
                }
                Output::Born { group } => self.born(handle, group),
                Output::Stopped { group } => {
                    self.note_quarantine(handle, group);
                    if let Some(view) = handle.parts.groups.read().get(&group) {
                        view.feed.shut();
                    }
                }
                Output::Gone { group } => {
                    self.note_quarantine(handle, group);
                    if let Some(view) = handle.parts.groups.write().remove(&group) {
                        view.feed.shut();
                    }
                }
                Output::Retired { group } => self.outbox.retired(group),
            }
        }
    }
}
