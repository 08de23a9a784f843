//! The world: virtual time, the network, the faults, and the run itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use proto::cluster::group::{DescribeRequest, GroupRequest, LinearizeRequest, refusal};
use proto::cluster::raft::PeerMessage;
use proto::etcd::{
    HashKvRequest, Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest,
};
use proto::group::{GroupError, Reply, Request, WatchOutput, WatchSpec as HubSpec, request_to};
use proto::{GroupId, KeyRange, NamespaceId, NodeId, TenantId, id, mvccpb};
use shard::access;
use shard::engine::Engine as _;
use shard::group::Shared;
use shard::log::Record;
use shard::node::{Answer, Input, Output, Persist, Reading};
use shard::store::checkpoint::NodeRow;
use shard::store::layout;

mod routes;
mod service;
mod splits;

use self::routes::Route;
use super::client::Client;
use super::fault::Fault;
use super::host::{self, ELECTION_TICKS, Host, Sink, TICK_MS};
use super::moves::Moves;
use super::random::Random;
use crate::check::history::{Heard, History, OpId, Outcome as Answered, WatchId, WatchSpec};
use crate::check::{self, leases, linear};

/// How long the faults last.
const FAULTS_MS: u64 = 20_000;
/// How long the world then gets to recover.
const QUIET_MS: u64 = 25_000;
/// A client gives up on a request after so long.
const PATIENCE_MS: u64 = 3_000;

/// Nodes that begin together where there is a service.
const FOUNDERS: usize = 3;

/// What a seed's world is like.
#[derive(Clone, Debug)]
struct Weather {
    hosts: usize,
    clients: usize,
    keys: u64,
    drop_permille: u64,
    double_permille: u64,
    delay_ms: u64,
    ordered: bool,
    /// Mean milliseconds between faults of each kind; 0 for never.
    crash_ms: u64,
    cut_ms: u64,
    pause_ms: u64,
    jump_ms: u64,
    sync_ms: u64,
    /// Commands between checkpoints.
    commands: u64,
    /// Crashes of this host may set its engine back.
    forgetful: Option<usize>,
    /// An operator adds a fourth member, learner first, and removes one of the others.
    grows: bool,
    /// Placement moves the group between the nodes and a fourth one, to and fro.
    moves: bool,
    /// Values from this length on stand in extents.
    large_bytes: usize,
}

/// What stands in a world, and who moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scene {
    /// One group, where it began.
    Still,
    /// One group, which placement may move.
    Moved,
    /// Several tenants that come, move and go, by a ledger in the system group.
    Service,
    /// One tenant that is split over more and more groups.
    Split,
}

impl Scene {
    /// A seed's own.
    pub fn of(seed: u64) -> Scene {
        let service = Random::new(seed.rotate_left(16)).permille(400);
        if service { Scene::Service } else { Scene::Moved }
    }
}

impl Weather {
    fn of(random: &mut Random, spice: &mut Random) -> Weather {
        let calm = random.permille(100);
        let mut maybe = |permille: u64, low: u64, high: u64| {
            let yes = random.permille(permille);
            let drawn = random.between(low, high);
            if yes && !calm { drawn } else { 0 }
        };
        let drop_permille = maybe(500, 1, 150);
        let double_permille = maybe(400, 1, 100);
        let crash_ms = maybe(700, 1500, 9000);
        let cut_ms = maybe(500, 1500, 8000);
        let pause_ms = maybe(300, 2000, 9000);
        let jump_ms = maybe(200, 3000, 9000);
        let slow_disk = maybe(300, 20, 400);
        let delay_ms = maybe(700, 2, 60).max(1);
        let ordered = random.permille(600);
        let forgets = spice.permille(500).then(|| spice.below(3) as usize);
        let hosts = if random.permille(200) { 1 } else { 3 };
        let forgetful = forgets.filter(|_| crash_ms > 0 && hosts > 1);
        Weather {
            hosts,
            clients: random.between(2, 5) as usize,
            keys: random.between(2, 8),
            drop_permille,
            double_permille,
            delay_ms,
            ordered,
            crash_ms,
            cut_ms,
            pause_ms,
            jump_ms,
            sync_ms: slow_disk.max(3),
            commands: random.between(10, 400),
            forgetful,
            grows: hosts == 3 && spice.permille(250),
            moves: false,
            large_bytes: usize::MAX,
        }
    }
}

impl Weather {
    fn is_peaceful(&self) -> bool {
        let faults = [self.crash_ms, self.cut_ms, self.pause_ms, self.jump_ms];
        faults.iter().all(|mean_ms| *mean_ms == 0) && self.drop_permille == 0
    }
}

#[allow(clippy::large_enum_variant, reason = "most are messages")]
enum Event {
    Tick { host: usize, life: u64 },
    Deliver { from: u64, host: usize, message: PeerMessage },
    Synced { host: usize, life: u64, sync_ms: u64 },
    Written { host: usize, life: u64 },
    Resume { host: usize },
    Ask { client: usize },
    GiveUp { client: usize, op: OpId },
    Retry { client: usize, op: OpId, host: usize },
    Crash,
    Start { host: usize },
    Cut,
    Heal,
    Pause,
    Jump,
    Watchers,
    Operator,
    Placement,
    Split,
    Read { host: usize, life: u64, late: Late },
    Service(service::Event),
}

/// A read that comes to its rows some time after it was allowed to.
struct Late {
    client: usize,
    op: OpId,
    request: GroupRequest,
    reading: Reading,
    shared: Arc<Shared>,
}

/// What a ticket was for.
#[allow(clippy::large_enum_variant, reason = "few of them live at a time")]
enum Waiting {
    Client {
        client: usize,
        op: OpId,
        request: GroupRequest,
        /// The replica as the asker found it.
        shared: Option<Arc<Shared>>,
    },
    /// A watcher that asks what "now" is.
    Watcher {
        watcher: usize,
    },
    /// The operator.
    Operator,
    /// Placement, which looks at the group's leader.
    Placement,
    /// Placement, which asked for a change of the members.
    Step,
    /// Somebody of the service.
    Service(service::Asked),
    /// Placement, which asked for a split.
    Split {
        group: GroupId,
    },
    Merge {
        group: GroupId,
    },
    /// Placement, which asked for another leader.
    Handed {
        group: GroupId,
    },
    /// A client's router, which asked home where the revisions stand.
    Span {
        client: usize,
        op: OpId,
        number: u64,
    },
    /// A client's router, which asked for a part of a list.
    Part {
        client: usize,
        op: OpId,
        number: u64,
        request: GroupRequest,
        shared: Option<Arc<Shared>>,
    },
    /// Somebody who is no client of the tenant.
    Stranger,
}

/// A tenant, as its clients see it: one history. It begins with one group.
struct Tenant {
    id: u64,
    namespace: u64,
    group: GroupId,
    history: History,
    /// What its groups have committed, if it may be on several.
    commits: Option<routes::Commits>,
    /// Since when it is deleted for good.
    over: Option<u64>,
}

struct Watcher {
    tenant: usize,
    watch: WatchId,
    spec: HubSpec,
    /// Host and life of the hub it is at.
    at: Option<(usize, u64)>,
    sink: Arc<Sink>,
    /// Next revision it needs; 0 before it was created.
    next: i64,
    over: bool,
}

struct World {
    random: Random,
    spice: Random,
    /// Placement's.
    placer: Random,
    weather: Weather,
    fault: Option<Fault>,
    seed: u64,
    now: u64,
    order: u64,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    bodies: BTreeMap<usize, Event>,
    next_body: usize,
    hosts: Vec<Host>,
    clients: Vec<Client>,
    busy: Vec<Option<OpId>>,
    connections: u64,
    tickets: BTreeMap<(usize, u64, u64), Waiting>,
    next_ticket: u64,
    cuts: Vec<(u64, u64)>,
    tenants: Vec<Tenant>,
    watchers: Vec<Watcher>,
    moves: Moves,
    service: Option<service::Service>,
    splits: Option<splits::Splits>,
    gathers: routes::Gathers,
    /// Nothing fails in this world.
    peaceful: bool,
    faults: u64,
    /// See [`Outcome::marks`].
    marks: BTreeMap<String, u64>,
    ops: u64,
    trace: u64,
    text: Option<String>,
    last_delivery: BTreeMap<(u64, usize), u64>,
    calm: bool,
    broken: Vec<String>,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Faults that were injected.
    pub faults: u64,
    /// How often came what the run is to come by, in words.
    pub marks: BTreeMap<String, u64>,
    /// Operations of clients.
    pub ops: u64,
    /// A digest of everything that happened, in order.
    pub trace: u64,
    /// What happened, line by line, if it was asked for.
    pub text: Option<String>,
    /// What is wrong, in sentences.
    pub violations: Vec<String>,
}

/// Length from which on a seed's values stand in extents: clients' have five bytes and more, so
/// all of them, some, or none.
fn large_bytes(seed: u64) -> usize {
    [1, 6, 6, usize::MAX][(seed % 4) as usize]
}

/// What is chosen about a run beside its seed.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// What stands in the world.
    pub scene: Scene,
    /// Values from this length on stand in extents.
    pub large_bytes: usize,
    /// A fault to be found.
    pub fault: Option<Fault>,
    /// In a scene with splits: watches, and planned changes of leaders. They came later: without
    /// them kept seeds tell their old story.
    pub crowded: bool,
    /// In a scene with splits: neighbours become one again. They came later still.
    pub merges: bool,
    /// In a scene with a service: tenants are cut over groups, and merged. That came last.
    pub cuts: bool,
}

impl Trial {
    /// A seed's own.
    pub fn of(seed: u64) -> Trial {
        let (scene, large_bytes) = (Scene::of(seed), large_bytes(seed));
        Trial { scene, large_bytes, fault: None, crowded: true, merges: true, cuts: true }
    }
}

/// Runs one seed. With `tell` the outcome has the run's text.
pub fn run(seed: u64, tell: bool) -> Outcome {
    run_trial(seed, tell, &Trial::of(seed))
}

/// Runs one seed in another way than its own.
pub fn run_trial(seed: u64, tell: bool, trial: &Trial) -> Outcome {
    let Trial { scene, large_bytes, fault, crowded, merges, cuts } = *trial;
    let mut random = Random::new(seed);
    // What was added later is drawn apart, so that kept seeds still tell their old story.
    let mut spice = Random::new(!seed);
    let mut placer = Random::new(seed.rotate_left(32));
    let mut weather = Weather { large_bytes, ..Weather::of(&mut random, &mut spice) };
    if scene == Scene::Service {
        weather.hosts = FOUNDERS;
        weather.grows = false;
    }
    let cuts = cuts && scene == Scene::Service;
    if scene == Scene::Split || cuts {
        weather.grows = false;
        weather.forgetful = None;
        weather.ordered = true;
        weather.keys = 8;
    }
    let movable = weather.hosts == 3 && !weather.grows;
    weather.moves = scene == Scene::Moved && movable && placer.permille(500);
    let mut hosts: Vec<Host> = (0..weather.hosts).map(Host::new).collect();
    if weather.moves {
        hosts.push(Host::spare(hosts.len()));
    }
    let service = (scene == Scene::Service).then(|| service::Service::new(seed, cuts, &mut hosts));
    let clients = weather.clients;
    let mut world = World {
        random,
        spice,
        placer,
        fault,
        seed,
        now: 0,
        order: 0,
        events: BinaryHeap::new(),
        bodies: BTreeMap::new(),
        next_body: 0,
        hosts,
        clients: (0..clients).map(|_| Client::default()).collect(),
        busy: vec![None; clients],
        connections: 0,
        tickets: BTreeMap::new(),
        next_ticket: 0,
        cuts: Vec::new(),
        tenants: vec![Tenant::first(scene == Scene::Split || cuts)],
        watchers: Vec::new(),
        moves: Moves::new(weather.hosts as u64),
        service,
        peaceful: weather.is_peaceful(),
        gathers: routes::Gathers::default(),
        splits: (scene == Scene::Split).then(|| splits::Splits::new(seed, crowded, merges)),
        faults: 0,
        marks: BTreeMap::new(),
        ops: 0,
        trace: 0,
        text: tell.then(String::new),
        last_delivery: BTreeMap::new(),
        calm: false,
        broken: Vec::new(),
        weather,
    };
    world.note(&format!("{:?}", world.weather.clone()));
    world.go();
    world.judge()
}

impl Tenant {
    /// The one that every service begins with.
    fn first(is_wide: bool) -> Tenant {
        Tenant {
            id: id::DEFAULT_TENANT.0,
            namespace: id::DEFAULT_NAMESPACE.0,
            group: id::DEFAULT_GROUP,
            history: History::new(),
            commits: is_wide.then(routes::Commits::default),
            over: None,
        }
    }

    /// A request, as its router makes it.
    fn request(&self, body: Request) -> GroupRequest {
        let (tenant, namespace) = (self.id, self.namespace);
        GroupRequest { tenant, namespace, ..request_to(self.group, body) }
    }
}

impl World {
    fn note(&mut self, line: &str) {
        for byte in line.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if let Some(text) = &mut self.text {
            let _ = writeln!(text, "{:>6} {line}", self.now);
        }
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.next_body += 1;
        self.bodies.insert(self.next_body, event);
        self.events.push(Reverse((at.max(self.now), self.order, self.next_body)));
    }

    fn soon(&mut self, mean_ms: u64) -> u64 {
        self.now + 1 + self.random.below(2 * mean_ms)
    }

    fn go(&mut self) {
        for host in 0..self.hosts.len() {
            self.start(host);
            self.hosts[host].sync_ms = self.weather.sync_ms;
        }
        for client in 0..self.clients.len() {
            self.reconnect(client);
            let at = self.now + self.random.below(500);
            self.schedule(at, Event::Ask { client });
        }
        let watched = self.splits.as_ref().is_none_or(splits::Splits::is_crowded);
        if self.splits.is_some() {
            self.schedule(500, Event::Split);
        }
        if watched {
            for number in 0..4 {
                self.add_watcher(0, number);
            }
            self.schedule(50, Event::Watchers);
        }
        if self.weather.grows {
            let at = self.spice.between(500, 8000);
            self.schedule(at, Event::Operator);
        }
        if self.weather.moves {
            let at = self.placer.between(300, 3000);
            self.schedule(at, Event::Placement);
        }
        self.begin_service();
        let kinds = [
            (self.weather.crash_ms, Event::Crash),
            (self.weather.cut_ms, Event::Cut),
            (self.weather.pause_ms, Event::Pause),
            (self.weather.jump_ms, Event::Jump),
        ];
        for (mean, event) in kinds {
            if mean > 0 {
                let at = self.soon(mean);
                self.schedule(at, event);
            }
        }
        while let Some(Reverse((at, _, body))) = self.events.pop() {
            if at > FAULTS_MS + QUIET_MS || !self.broken.is_empty() {
                break;
            }
            self.now = at;
            if at > FAULTS_MS && !self.calm {
                self.calm_down();
            }
            if let Some(event) = self.bodies.remove(&body) {
                self.happen(event);
            }
        }
        self.now = FAULTS_MS + QUIET_MS;
    }

    /// From here on nothing fails any more.
    fn calm_down(&mut self) {
        self.calm = true;
        self.cuts.clear();
        self.weather.drop_permille = 0;
        self.weather.double_permille = 0;
        self.weather.delay_ms = 2;
        for host in 0..self.hosts.len() {
            self.hosts[host].paused_until = self.now;
            self.hosts[host].sync_ms = 2;
            self.schedule(self.now, Event::Resume { host });
            self.hosts[host].dies_in_round = false;
            if self.hosts[host].process.is_none() {
                self.schedule(self.now, Event::Start { host });
            }
        }
        self.note("calm");
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { host, life } => {
                if self.hosts[host].life == life && self.hosts[host].process.is_some() {
                    self.schedule(self.now + TICK_MS, Event::Tick { host, life });
                    self.step(host, Input::Tick);
                }
            }
            Event::Deliver { from, host, message } => {
                if !self.is_cut(from, self.hosts[host].id) {
                    self.step(host, Input::Peer { from: NodeId(from), message });
                }
            }
            Event::Synced { host, life, sync_ms } => self.synced(host, life, sync_ms),
            Event::Written { host, life } => self.written(host, life),
            Event::Resume { host } => self.round(host),
            Event::Ask { client } => self.ask(client),
            Event::GiveUp { client, op } => {
                if self.busy[client] == Some(op) {
                    self.finish(client, op, Answered::Unknown);
                    self.reconnect(client);
                }
            }
            Event::Retry { client, op, host } => {
                if self.busy[client] == Some(op) {
                    self.clients[client].host = host;
                    self.send(client, op);
                }
            }
            Event::Start { host } => {
                if self.hosts[host].process.is_none() && !self.hosts[host].removed {
                    self.start(host);
                }
            }
            Event::Heal => {
                if !self.cuts.is_empty() {
                    self.cuts.clear();
                    self.note("heal");
                }
            }
            Event::Watchers => {
                self.tend_watchers();
                let at = self.now + 10 + self.random.below(120);
                self.schedule(at, Event::Watchers);
            }
            Event::Operator => {
                let host = self.spice.below(self.hosts.len() as u64) as usize;
                let list = Request::MemberList(MemberListRequest { linearizable: true });
                if self.hosts[host].process.is_some() {
                    self.request_first(host, Waiting::Operator, list);
                }
                let at = self.now + self.spice.between(100, 1200);
                self.schedule(at, Event::Operator);
            }
            Event::Placement => {
                self.place();
                let at = self.now + self.placer.between(50, 600);
                self.schedule(at, Event::Placement);
            }
            Event::Split => self.tend_splits(),
            Event::Read { host, life, late } => self.read_late(host, life, late),
            Event::Service(event) => self.serve(event),
            _ if self.calm => {}
            Event::Crash => {
                let host = self.random.below(self.hosts.len() as u64) as usize;
                match self.service.as_mut().is_some_and(service::Service::crashes_in_round) {
                    true => self.hosts[host].dies_in_round = true,
                    false => self.crash(host),
                }
                let at = self.soon(self.weather.crash_ms);
                self.schedule(at, Event::Crash);
            }
            Event::Cut => {
                self.cut();
                let at = self.soon(self.weather.cut_ms);
                self.schedule(at, Event::Cut);
            }
            Event::Pause => {
                let host = self.random.below(self.hosts.len() as u64) as usize;
                let until = self.now + self.random.between(50, 3000);
                self.hosts[host].paused_until = until;
                self.faults += 1;
                self.note(&format!("pause n{} until {until}", host + 1));
                self.schedule(until, Event::Resume { host });
                let at = self.soon(self.weather.pause_ms);
                self.schedule(at, Event::Pause);
            }
            Event::Jump => {
                let host = self.random.below(self.hosts.len() as u64) as usize;
                // A monotonic clock only ever jumps ahead. More than this would be early
                // expiry by the world's time, which no clockless system can exclude.
                self.hosts[host].ahead_ms += self.random.between(20, 150);
                self.faults += 1;
                self.note(&format!("jump n{}", host + 1));
                let at = self.soon(self.weather.jump_ms);
                self.schedule(at, Event::Jump);
            }
        }
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cuts.contains(&(from, to))
    }

    fn cut(&mut self) {
        let victim = self.random.between(1, self.hosts.len() as u64);
        let one_way = self.random.permille(300);
        let victim = self.hosts[victim as usize - 1].id;
        let others: Vec<u64> = self.hosts.iter().map(|host| host.id).collect();
        for other in others.into_iter().filter(|other| *other != victim) {
            self.cuts.push((victim, other));
            if !one_way {
                self.cuts.push((other, victim));
            }
        }
        self.faults += 1;
        self.note(&format!("cut n{victim} one way: {one_way}"));
        let at = self.now + self.random.between(100, 5000);
        self.schedule(at, Event::Heal);
    }

    fn crash(&mut self, host: usize) {
        if self.hosts[host].process.is_none() {
            return;
        }
        self.faults += 1;
        self.crossed(host);
        let can_forget = self.can_spare(host);
        self.hosts[host].process = None;
        let mut random = self.random.clone();
        self.hosts[host].disk.crash(&mut |n| random.below(n));
        self.random = random;
        // Drawn apart, so that a run is the same wherever its values stand.
        let mut random = Random::new(self.seed ^ self.faults << 32);
        self.hosts[host].pages.crash(&mut |n| random.below(n));
        self.note(&format!("crash n{}", host + 1));
        self.harm(host);
        // Two at a time would be two lost replicas of three.
        let forgets = self.weather.forgetful == Some(host) && self.spice.permille(500);
        if forgets && can_forget {
            let all = self.spice.permille(300);
            let engine = &self.hosts[host].engine;
            if all {
                engine.lose()
            } else {
                engine.roll_back()
            }
            self.faults += 1;
            self.note(&format!("the engine of n{} goes back, lost: {all}", host + 1));
        }
        self.end(host);
        let at = self.now + self.random.between(10, 3000);
        self.schedule(at, Event::Start { host });
    }

    /// What a planted fault makes of a crash.
    fn harm(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        match self.fault {
            Some(Fault::BornTwice) => {
                let (id, life) = (host.id, host.life);
                *host = Host { id, life, founds: host.founds.clone(), ..Host::new(host.index) };
            }
            Some(Fault::SharedShelf) => {
                let row = host.engine.get(layout::NODE_KEY).ok().flatten();
                let Some(Ok(mut row)) = row.map(NodeRow::decode) else { return };
                row.next_shelf = row.next_shelf.saturating_sub(1).max(1);
                let row = Bytes::from(row.encode_to_vec());
                let mut rows = [(Bytes::from_static(layout::NODE_KEY), Some(row))].into_iter();
                let written = host.engine.ingest(&mut rows);
                self.broken.extend(written.err().map(|error| error.to_string()));
            }
            _ => {}
        }
    }

    /// The process is gone: who waits for it does not know what became of the request.
    fn end(&mut self, host: usize) {
        self.hosts[host].process = None;
        self.hosts[host].life += 1;
        let lost: Vec<_> = self.tickets.keys().filter(|key| key.0 == host).copied().collect();
        for key in lost {
            let waiting = self.tickets.remove(&key);
            if let Some(Waiting::Client { client, op, .. }) = waiting
                && self.busy[client] == Some(op)
            {
                self.finish(client, op, Answered::Unknown);
                self.reconnect(client);
            }
        }
    }

    fn start(&mut self, host: usize) {
        let (seed, hosts, commands) = (self.seed, self.weather.hosts, self.weather.commands);
        let large_bytes = self.weather.large_bytes;
        let started = self.hosts[host].start(self.now, seed, hosts, commands, large_bytes);
        if let Err(error) = started {
            self.broken.push(format!("n{} does not start at {}: {error}", host + 1, self.now));
            return;
        }
        let life = self.hosts[host].life;
        self.note(&format!("start n{}", host + 1));
        let process = self.hosts[host].process.as_ref();
        let replica = process.and_then(|process| process.node.group(id::DEFAULT_GROUP));
        if replica.is_some_and(|replica| replica.is_seeded_anew()) {
            self.note(&format!("n{} is seeded anew", host + 1));
        }
        let at = self.now + self.random.below(TICK_MS);
        self.schedule(at, Event::Tick { host, life });
        self.tell_whereabouts(host);
        self.round(host);
    }

    fn step(&mut self, host: usize, input: Input) {
        let clock = self.hosts[host].clock(self.now);
        let Some(process) = &mut self.hosts[host].process else { return };
        if let Err(error) = process.node.step(clock, input) {
            self.broken.push(format!("n{} stops: {error}", host + 1));
        }
        self.round(host);
    }

    fn round(&mut self, host: usize) {
        for _ in 0..4 {
            if self.hosts[host].paused_until > self.now {
                return;
            }
            let clock = self.hosts[host].clock(self.now);
            let Some(process) = &mut self.hosts[host].process else { return };
            match process.node.round(clock) {
                Ok(outputs) => self.close(host, outputs),
                Err(error) => self.broken.push(format!("n{} stops: {error}", host + 1)),
            }
            let busy = self.hosts[host].process.as_ref().is_some_and(|p| p.node.is_busy());
            if !busy {
                return;
            }
        }
        self.schedule(self.now + 1, Event::Resume { host });
    }

    /// Carries out what came of a round, as the worker does: messages first, then the rest in its
    /// order. Who asked hears of it only then, and may ask again.
    fn close(&mut self, host: usize, outputs: Vec<Output>) {
        let (sent, rest): (Vec<Output>, Vec<Output>) =
            outputs.into_iter().partition(|output| matches!(output, Output::Send { .. }));
        let life = self.hosts[host].life;
        let done = self.dies_after(host, sent.len() + rest.len());
        let mut answers = Vec::new();
        rest.iter().for_each(|output| self.committed(host, output));
        for output in sent.into_iter().chain(rest).take(done.unwrap_or(usize::MAX)) {
            match output {
                Output::Answer { ticket, answer } => answers.push((ticket, answer)),
                output => self.carry_out(host, output),
            }
        }
        // One that dies still answers, and closes no round any more.
        let paused = self.hosts[host].paused_until;
        if done.is_some() {
            self.hosts[host].paused_until = u64::MAX;
        }
        for (ticket, answer) in answers {
            self.answered(host, life, ticket, answer);
        }
        if done.is_some() {
            self.hosts[host].paused_until = paused;
            self.crash(host);
        }
    }

    /// What a replica has applied is committed, also if it dies before it tells anybody.
    fn committed(&mut self, host: usize, output: &Output) {
        let Output::Events { group, events } = output else { return };
        let Some(tenant) = self.owner_of(*group) else { return };
        let tenant = &mut self.tenants[tenant];
        if let Some(commits) = &mut tenant.commits {
            commits.committed(self.now, events);
        } else {
            let told: Vec<_> =
                events.events.iter().map(|e| mvccpb::Event::clone(&e.event)).collect();
            tenant.history.committed(self.hosts[host].id, self.now, events.revision, &told);
        }
    }

    /// The tenant that has a group.
    fn owner_of(&self, group: GroupId) -> Option<usize> {
        match (&self.splits, &self.service) {
            (Some(_), _) => Some(0),
            (None, Some(service)) if service.parent_of(group).is_some() => service.parent_of(group),
            _ => self.tenants.iter().position(|tenant| tenant.group == group),
        }
    }

    /// How many outputs of its round a host carries out that is to die in it.
    fn dies_after(&mut self, host: usize, outputs: usize) -> Option<usize> {
        if outputs == 0 || !std::mem::take(&mut self.hosts[host].dies_in_round) {
            return None;
        }
        self.service.as_mut().map(|service| service.below(outputs))
    }

    fn carry_out(&mut self, host: usize, output: Output) {
        let from = self.hosts[host].id;
        match output {
            Output::Send { to, message } => {
                if let Some(to) = self.host_of(to.0) {
                    self.post(from, to, message);
                }
            }
            Output::Persist(persist) => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.queue.push_back(persist);
                }
                self.sync(host);
            }
            Output::Answer { .. } => unreachable!("answers are heard when the round is closed"),
            Output::Events { group, events } => {
                if let Some(process) = &mut self.hosts[host].process {
                    process.hubs.get_mut(&group).into_iter().for_each(|hub| hub.feed(&events));
                }
                let (revision, count) = (events.revision, events.events.len());
                self.note(&format!("n{from} applies {revision} ({count})"));
                self.has_applied(group, revision);
            }
            Output::Replaced { group } => {
                if let Some(process) = &mut self.hosts[host].process {
                    let shared = process.node.shared(group);
                    let revision = shared.map_or(0, |shared| shared.published.revision());
                    process.hubs.get_mut(&group).into_iter().for_each(|hub| hub.behind(revision));
                }
                self.note(&format!("n{from} restored from a snapshot"));
            }
            Output::Ranged { group, .. } => {
                let process = self.hosts[host].process.as_mut();
                let hub = process.and_then(|process| process.hubs.get_mut(&group));
                hub.into_iter().for_each(|hub| hub.ranged());
            }
            Output::Checkpoint(checkpoint) => {
                let life = self.hosts[host].life;
                if let Some(process) = &mut self.hosts[host].process {
                    process.checkpoint = Some(checkpoint);
                }
                let at = self.now + self.random.between(1, 200);
                self.schedule(at, Event::Written { host, life });
            }
            Output::Members { group } => self.members_changed(host, group),
            Output::Born { group } => {
                if let Some(process) = &mut self.hosts[host].process
                    && let Some(hub) = host::hub_of(&process.node, group)
                {
                    process.hubs.insert(group, hub);
                }
                self.note(&format!("the group comes to n{from}"));
            }
            Output::Stopped { .. } => {}
            Output::Gone { group } => {
                let process = self.hosts[host].process.as_mut();
                if let Some(mut hub) = process.and_then(|process| process.hubs.remove(&group)) {
                    hub.shut();
                }
                self.hosts[host].shut.retain(|key| key.group != group.0);
                self.note(&format!("the group leaves n{from}"));
                self.leave_watches(host, group);
            }
            Output::Retired { .. } => self.removed(host),
        }
    }

    fn host_of(&self, id: u64) -> Option<usize> {
        self.hosts.iter().position(|host| host.id == id)
    }

    // === placement ===

    /// Looks at the group's leader, brings replicas to nodes, and takes the next step.
    fn place(&mut self) {
        let host = self.placer.below(self.hosts.len() as u64) as usize;
        let Some(process) = &self.hosts[host].process else { return };
        let group = process.node.group(id::DEFAULT_GROUP);
        let leads = group.is_some_and(|group| group.is_leader());
        if group.is_none()
            && let Some(replica) = self.moves.replica_on(self.hosts[host].id)
        {
            let first = self.weather.hosts as u64;
            let is_first = replica == self.hosts[host].id && replica <= first;
            let founders = if is_first { first } else { 0 };
            let birth = host::birth(id::DEFAULT_GROUP, replica, founders);
            self.note(&format!("placement wants replica {replica} on n{}", host + 1));
            return self.step(host, Input::Births(vec![birth]));
        }
        if leads {
            self.request_first(host, Waiting::Placement, Request::Describe(DescribeRequest {}));
        }
        let end = self.now > FAULTS_MS;
        if let Some(request) = self.moves.next(&mut self.placer, end) {
            let text = format!("placement asks: {request:?}");
            self.note(&text);
            self.faults += 1;
            let any = self.placer.below(self.hosts.len() as u64) as usize;
            let hinted = self.host_of(self.moves.leader).filter(|_| self.placer.permille(700));
            let host = hinted.unwrap_or(any);
            if self.hosts[host].process.is_some() {
                self.request_first(host, Waiting::Step, request);
            }
        }
    }

    /// Watches at a host whose replica left are to be made anew elsewhere.
    fn leave_watches(&mut self, host: usize, group: GroupId) {
        for watcher in self.watchers.iter_mut().filter(|w| w.spec.group == group) {
            if watcher.at.is_some_and(|(at, _)| at == host) {
                watcher.at = None;
            }
        }
    }

    // === the operator ===

    /// What the members are decides what is to be done next.
    fn operate(&mut self, members: &[Member]) {
        let url = "http://n4".to_owned();
        let fourth = members.iter().find(|member| member.peer_ur_ls.contains(&url));
        let Some(fourth) = fourth else {
            let add = MemberAddRequest { peer_ur_ls: vec![url], is_learner: true };
            return self.order(Request::MemberAdd(add));
        };
        if self.host_of(fourth.id).is_none() {
            let index = self.hosts.len();
            self.hosts.push(Host::joining(index, fourth.id));
            self.note(&format!("n4 joins as {:x}", fourth.id));
            self.faults += 1;
            self.start(index);
        }
        if fourth.is_learner {
            return self.order(Request::MemberPromote(MemberPromoteRequest { id: fourth.id }));
        }
        if members.len() == 4 {
            let victim = members[self.spice.below(4) as usize].id;
            if victim != fourth.id {
                self.order(Request::MemberRemove(MemberRemoveRequest { id: victim }));
            }
        }
    }

    /// Gives an order to whoever leads, or to anybody; the next look shows what came of it.
    fn order(&mut self, request: Request) {
        let leads = |host: &Host| {
            let process = host.process.as_ref();
            let group = process.and_then(|process| process.node.group(id::DEFAULT_GROUP));
            group.is_some_and(|group| group.is_leader())
        };
        if let Some(host) = self.hosts.iter().position(leads) {
            self.note(&format!("operator asks n{}: {request:?}", host + 1));
            self.request_first(host, Waiting::Operator, request);
        }
    }

    /// A host learnt that it is no member any more: its process ends for good.
    fn removed(&mut self, host: usize) {
        self.note(&format!("n{} was removed", host + 1));
        self.hosts[host].removed = true;
        self.end(host);
    }

    fn post(&mut self, from: u64, host: usize, message: PeerMessage) {
        if self.is_cut(from, self.hosts[host].id)
            || self.random.permille(self.weather.drop_permille)
        {
            return;
        }
        let copies = 1 + u64::from(self.random.permille(self.weather.double_permille));
        for _ in 0..copies {
            let mut at = self.now + 1 + self.random.below(self.weather.delay_ms);
            if self.weather.ordered {
                let last = self.last_delivery.entry((from, host)).or_default();
                at = at.max(*last);
                *last = at;
            }
            self.schedule(at, Event::Deliver { from, host, message: message.clone() });
        }
    }

    /// Gives the disk what waits, unless it is syncing.
    fn sync(&mut self, host: usize) {
        let life = self.hosts[host].life;
        let slow = self.hosts[host].sync_ms;
        let Some(process) = &mut self.hosts[host].process else { return };
        if process.syncing.is_some() || process.queue.is_empty() {
            return;
        }
        let mut all = Persist::default();
        for persist in process.queue.drain(..) {
            all.join(persist);
        }
        all.records.retain(|record| match self.fault {
            Some(Fault::LostVote) => !matches!(record, Record::HardState { .. }),
            Some(Fault::LostTombstone) => !matches!(record, Record::Tombstone { .. }),
            _ => true,
        });
        let extents = process.node.store().extents();
        match all.write(&process.log, extents, self.weather.large_bytes) {
            Ok(appended) => process.syncing = Some((all.id, appended)),
            Err(error) => self.broken.push(format!("n{} cannot write: {error}", host + 1)),
        }
        let sync_ms = 1 + self.random.below(slow);
        self.schedule(self.now + sync_ms, Event::Synced { host, life, sync_ms });
    }

    fn synced(&mut self, host: usize, life: u64, sync_ms: u64) {
        if self.hosts[host].life != life {
            return;
        }
        let Some(process) = &mut self.hosts[host].process else { return };
        let Some((id, appended)) = process.syncing.take() else { return };
        if self.fault != Some(Fault::AckBeforeSync)
            && let Err(error) = process.log.sync()
        {
            self.broken.push(format!("n{} cannot sync its log: {error}", host + 1));
        }
        self.step(host, Input::Persisted { id, sync_ms, appended });
        self.sync(host);
    }

    fn written(&mut self, host: usize, life: u64) {
        if self.hosts[host].life != life {
            return;
        }
        let Some(process) = &mut self.hosts[host].process else { return };
        let Some(checkpoint) = process.checkpoint.take() else { return };
        let engine = process.node.store().engine().clone();
        if let Err(error) = checkpoint.write(engine.as_ref()) {
            self.broken.push(format!("n{} cannot write a checkpoint: {error}", host + 1));
        }
        if let Err(error) = process.node.store().extents().tend() {
            self.broken.push(format!("n{} cannot tend its pages: {error}", host + 1));
        }
        let usage = process.node.store().extents().usage();
        self.note(&format!("n{} wrote a checkpoint, {usage:?}", host + 1));
        self.step(host, Input::CheckpointWritten);
    }

    // === clients ===

    fn reconnect(&mut self, client: usize) {
        self.connections += 1;
        let hosts = self.hosts.len() as u64;
        let state = &mut self.clients[client];
        state.connection = self.connections;
        state.floor = 0;
        state.host = self.random.below(hosts) as usize;
    }

    fn ask(&mut self, client: usize) {
        let at = self.now + 20 + self.random.below(180);
        self.schedule(at, Event::Ask { client });
        let over = self.tenants[self.clients[client].tenant].over.is_some();
        if over || self.busy[client].is_some() || self.now > FAULTS_MS + QUIET_MS - 8_000 {
            return;
        }
        let (random, spice) = (&mut self.random, &mut self.spice);
        let request = self.clients[client].next(random, spice, self.weather.keys);
        let connection = self.clients[client].connection;
        let tenant = self.clients[client].tenant;
        let request = self.tenants[tenant].adapt(request);
        let op = self.tenants[tenant].history.call(connection, self.now, request);
        self.busy[client] = Some(op);
        self.ops += 1;
        self.schedule(self.now + PATIENCE_MS, Event::GiveUp { client, op });
        self.send(client, op);
    }

    fn send(&mut self, client: usize, op: OpId) {
        let host = self.clients[client].host;
        let floor = self.clients[client].floor;
        let tenant = self.clients[client].tenant;
        let body = self.tenants[tenant].history.op(op).request.clone();
        let map = self.map_at(host, tenant);
        let route = match self.tenants[tenant].is_wide() {
            true => map.route(body),
            false => Route::One(map.at_home(body)),
        };
        let Some(process) = &self.hosts[host].process else {
            return self.try_elsewhere(client, op, None);
        };
        let request = match route {
            Route::One(request) => request,
            Route::Over(range) => return self.begin_gather((client, op), host, range, &map),
        };
        let Some(body) = request.body.clone() else { return };
        let group = GroupId(request.group);
        let unasked = self.fault == Some(Fault::UnaskedRead) && matches!(body, Request::Range(_));
        if (unasked || access::is_serializable(&body))
            && self.hosts[host].paused_until <= self.now
            && let Some(shared) = process.node.shared(group)
            && shared.published.revision() >= floor
        {
            let (version, newest) = (request.range_version, Reading::Newest);
            let answer = access::read(process.node.store(), &shared, &body, version, newest);
            return self.heard(client, op, answer);
        }
        let shared = process.node.shared(group);
        self.note(&format!("c{client} asks n{} for {group:?}: {op}", host + 1));
        let waiting = Waiting::Client { client, op, request: request.clone(), shared };
        self.request(host, waiting, request);
    }

    /// The same of the group that the world began with.
    fn request_first(&mut self, host: usize, waiting: Waiting, body: Request) {
        let request = self.tenants[0].request(body);
        self.request(host, waiting, request);
    }

    fn request(&mut self, host: usize, waiting: Waiting, request: GroupRequest) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.tickets.insert((host, self.hosts[host].life, ticket), waiting);
        self.step(host, Input::Request { ticket, request });
    }

    fn answered(
        &mut self,
        host: usize,
        life: u64,
        ticket: u64,
        answer: Result<Answer, GroupError>,
    ) {
        let Some(waiting) = self.tickets.remove(&(host, life, ticket)) else { return };
        match waiting {
            Waiting::Client { client, op, request, shared } => {
                let answer = match (answer, shared) {
                    (Ok(Answer::Reply(reply)), _) => Ok(reply),
                    (Ok(Answer::Readable(reading)), Some(shared)) => {
                        if let Some(late_ms) = self.reads_late() {
                            let late = Late { client, op, request, reading, shared };
                            let event = Event::Read { host, life, late };
                            return self.schedule(self.now + late_ms, event);
                        }
                        self.read(host, &shared, &request, reading)
                    }
                    (Ok(Answer::Readable(_)), None) => unreachable!("a replica answered"),
                    (Err(error), _) => Err(error),
                };
                if let Err(GroupError { leader_node: Some(leader), .. }) = &answer {
                    self.led(GroupId(request.group), *leader);
                }
                if self.busy[client] == Some(op) {
                    self.heard(client, op, answer);
                }
            }
            Waiting::Split { group } => self.split_heard(group, answer),
            Waiting::Merge { group } => self.merge_heard(group, &answer),
            Waiting::Span { client, op, number } => match answer {
                Ok(Answer::Reply(Reply::Span(span))) => self.gather((client, op), number, span),
                Ok(_) => unreachable!("a span is told or refused"),
                Err(error) => {
                    let hint = error.leader_node.and_then(|node| self.host_of(node));
                    self.lose_gather((client, op), number, hint);
                }
            },
            Waiting::Part { client, op, number, request, shared } => {
                self.part(host, (client, op), number, &request, answer, shared);
            }
            Waiting::Operator => match answer {
                Ok(Answer::Reply(Reply::Members(list))) => self.operate(&list.members),
                Ok(Answer::Reply(Reply::MemberAdd(added))) => self.operate(&added.members),
                _ => {}
            },
            Waiting::Placement => {
                if let Ok(Answer::Reply(Reply::Describe(told))) = answer {
                    self.moves.hear(&told);
                }
            }
            Waiting::Handed { group } => {
                self.note(&format!("the leader of {group:?} was to change: {answer:?}"));
                if let Err(GroupError { leader_node: Some(leader), .. }) = answer {
                    self.led(group, leader);
                }
            }
            Waiting::Step => {
                let text = format!("placement hears of n{}: {answer:?}", host + 1);
                self.note(&text);
                if let Err(GroupError { leader_node: Some(leader), .. }) = answer {
                    self.moves.leader = leader;
                }
            }
            Waiting::Service(asked) => self.service_hears(host, asked, answer),
            Waiting::Stranger => {
                if let Ok(answer) = answer {
                    self.broken.push(format!("n{} answers a stranger: {answer:?}", host + 1));
                }
            }
            Waiting::Watcher { watcher } => {
                if let Ok(Answer::Reply(Reply::Linearize(header))) = answer {
                    self.create_watch(watcher, host, header.revision);
                }
            }
        }
    }

    /// A reader's own thread comes to it only now.
    fn read_late(&mut self, host: usize, life: u64, late: Late) {
        let Late { client, op, request, reading, shared } = late;
        let is_here = self.hosts[host].life == life && self.busy[client] == Some(op);
        if is_here && self.hosts[host].process.is_some() {
            let answer = self.read(host, &shared, &request, reading);
            self.heard(client, op, answer);
        }
    }

    /// A read that a replica has allowed.
    fn read(
        &self,
        host: usize,
        shared: &Shared,
        request: &GroupRequest,
        reading: Reading,
    ) -> Result<Reply, GroupError> {
        let process = self.hosts[host].process.as_ref().expect("it has just answered");
        let body = request.body.as_ref().expect("it was asked for something");
        access::read(process.node.store(), shared, body, request.range_version, reading)
    }

    fn heard(&mut self, client: usize, op: OpId, answer: Result<Reply, GroupError>) {
        match answer {
            Err(error)
                if error.outcome == refusal::Outcome::NotDone
                    || self.fault == Some(Fault::Repeated)
                        && error.outcome == refusal::Outcome::Unknown =>
            {
                let hint = error.leader_node.and_then(|node| self.host_of(node));
                self.note(&format!("c{client} {op} not done: {error:?}"));
                self.try_elsewhere(client, op, hint);
            }
            Err(error) if error.outcome == refusal::Outcome::Unknown => {
                self.finish(client, op, Answered::Unknown);
                self.reconnect(client);
            }
            Err(error) => self.finish(client, op, Answered::Refused(error.error)),
            Ok(reply) => self.finish(client, op, Answered::Done(reply)),
        }
    }

    /// What was certainly not done is tried again until the client gives up.
    fn try_elsewhere(&mut self, client: usize, op: OpId, hint: Option<usize>) {
        let hosts = self.hosts.len() as u64;
        let host = hint.unwrap_or(self.random.below(hosts) as usize);
        let at = self.now + 10 + self.random.below(60);
        // A reply of another host may be older than what this connection was shown.
        self.schedule(at, Event::Retry { client, op, host });
    }

    fn finish(&mut self, client: usize, op: OpId, outcome: Answered) {
        self.busy[client] = None;
        if let Answered::Done(reply) = &outcome
            && let Some(header) = check::reply::reply_header(reply)
        {
            let state = &mut self.clients[client];
            state.floor = state.floor.max(header.revision);
            // A revision at which nothing happened has no number of its own later on.
            let is_wide = self.tenants[self.clients[client].tenant].is_wide();
            let is_written = !is_wide || matches!(reply, Reply::Put(_));
            if self.random.permille(400) && is_written {
                self.clients[client].known = header.revision;
            }
        }
        let history = &mut self.tenants[self.clients[client].tenant].history;
        let is_done = matches!(outcome, Answered::Done(_));
        history.end(op, self.now, outcome);
        if is_done {
            self.judge_answer(self.clients[client].tenant, op);
        }
        let history = &self.tenants[self.clients[client].tenant].history;
        let line = format!("c{client} {}", history.tell(op));
        self.note(&line);
    }

    // === watchers ===

    fn add_watcher(&mut self, tenant: usize, number: u64) {
        let (key, end): (&[u8], &[u8]) =
            [(&b"k"[..], &b"l"[..]), (b"k1", b""), (b"\0", b"\0"), (b"k2", b"k4")][number as usize];
        let (key, end) = match self.tenants[tenant].is_wide() {
            // Over several groups routers put them together: not simulated here.
            true => ([&b"k1"[..], b"k3", b"k5", b"k7"][number as usize], &b""[..]),
            false => (key, end),
        };
        let start = if number == 0 { 2 } else { 0 };
        let spec = WatchSpec::new(key, end, start);
        self.connections += 1;
        let Tenant { id, namespace, group, ref mut history, .. } = self.tenants[tenant];
        let watch = history.watch(self.connections, self.connections, self.now, spec);
        let range = KeyRange::parse(&Bytes::copy_from_slice(key), &Bytes::copy_from_slice(end));
        let spec = HubSpec {
            tenant: TenantId(id),
            namespace: NamespaceId(namespace),
            group,
            key: number,
            range,
            start_revision: 0,
            prev_kv: true,
            no_put: false,
            no_delete: false,
        };
        let sink = Arc::new(Sink::default());
        let (at, next, over) = (None, 0, false);
        self.watchers.push(Watcher { tenant, watch, spec, at, sink, next, over });
    }

    fn create_watch(&mut self, number: usize, host: usize, now_is: i64) {
        let tenant = self.watchers[number].tenant;
        let map = self.tenants[tenant].is_wide().then(|| self.map_at(host, tenant));
        // Where a service moves groups its home and the group of its keys may have no node in common.
        let host = match self.service.is_some() && map.is_some() {
            true => self.part_at(),
            false => host,
        };
        let life = self.hosts[host].life;
        let watcher = &mut self.watchers[number];
        if watcher.at.is_some() || watcher.over {
            return;
        }
        if let Some(map) = map {
            watcher.spec.group = map.group_of(&watcher.spec.range);
            let process = self.hosts[host].process.as_ref();
            if process.is_none_or(|process| !process.hubs.contains_key(&watcher.spec.group)) {
                // Not here yet.
                return;
            }
        }
        let history = &mut self.tenants[watcher.tenant].history;
        let asked = history.watches[watcher.watch.0].spec.start_revision;
        let start = match (watcher.next, asked) {
            (0, 0) => now_is + 1,
            (0, asked) => asked,
            (next, _) => next,
        };
        let heard =
            if watcher.next == 0 { Heard::Created(now_is) } else { Heard::Restarted(start) };
        let skips = self.fault == Some(Fault::SkippingWatch) && watcher.next != 0;
        watcher.next = start;
        watcher.spec.start_revision = if skips { now_is + 1 } else { start };
        watcher.sink = Arc::new(Sink::default());
        watcher.at = Some((host, life));
        let (watch, spec, sink) = (watcher.watch, watcher.spec.clone(), watcher.sink.clone());
        history.hear(watch, self.now, heard);
        if let Some(process) = &mut self.hosts[host].process {
            let id = number as u64 + 1;
            if let Some(hub) = process.hubs.get_mut(&spec.group) {
                hub.open(id, sink.clone());
                hub.create(id, spec);
            }
        }
        self.note(&format!("w{number} at n{} from {start}", host + 1));
    }

    fn tend_watchers(&mut self) {
        for number in 0..self.watchers.len() {
            if self.watchers[number].over {
                continue;
            }
            match self.watchers[number].at {
                Some((host, life)) if self.hosts[host].life == life => {
                    self.hear_watch(number, host)
                }
                Some(_) => self.watchers[number].at = None,
                None => {
                    let host = self.random.below(self.hosts.len() as u64) as usize;
                    if self.hosts[host].process.is_some() {
                        let waiting = Waiting::Watcher { watcher: number };
                        let ask = Request::Linearize(LinearizeRequest {});
                        let ask = self.map_at(host, self.watchers[number].tenant).at_home(ask);
                        self.request(host, waiting, ask);
                    }
                }
            }
        }
    }

    fn hear_watch(&mut self, number: usize, host: usize) {
        if self.hosts[host].paused_until > self.now {
            return;
        }
        let id = number as u64 + 1;
        let ask = self.random.permille(300);
        // A client that does not read for a while fills its sink.
        let lazy = !self.calm && self.random.permille(400);
        let Some(process) = &mut self.hosts[host].process else { return };
        let group = self.watchers[number].spec.group;
        let Some(hub) = process.hubs.get_mut(&group) else { return };
        hub.flush();
        if let Err(error) = hub.catch_up(&mut || true) {
            self.broken.push(error.to_string());
            return;
        }
        if ask {
            hub.progress(id);
        }
        if lazy {
            return;
        }
        let outputs = self.watchers[number].sink.drain();
        // A hub that has to close a watch whose sink is full lets go of it.
        let is_let_go = Arc::strong_count(&self.watchers[number].sink) == 1;
        for output in outputs {
            let watch = self.watchers[number].watch;
            match &output {
                WatchOutput::Events { revision, events, .. } => {
                    let last = events.last().and_then(|e| e.kv.as_ref()).map(|kv| kv.mod_revision);
                    let next = last.unwrap_or(*revision) + 1;
                    let watcher = &mut self.watchers[number];
                    watcher.next = watcher.next.max(next);
                }
                WatchOutput::Progress { revision, .. } => {
                    let watcher = &mut self.watchers[number];
                    // The router keeps back progress below a watch's start, and on a stream
                    // whose watch was cancelled by a compaction.
                    if watcher.over || revision + 1 < watcher.spec.start_revision {
                        continue;
                    }
                    watcher.next = watcher.next.max(revision + 1);
                }
                WatchOutput::Compacted { .. } => self.watchers[number].over = true,
                // What follows in the sink is not about this watch.
                WatchOutput::Closed { .. } => {
                    self.watchers[number].at = None;
                    return;
                }
                _ => {}
            }
            if let Some((_, heard)) = Heard::of_output(&output) {
                self.note(&format!("w{number} {heard:?}"));
                let tenant = self.watchers[number].tenant;
                self.tenants[tenant].history.hear(watch, self.now, heard);
            }
        }
        if is_let_go {
            self.watchers[number].at = None;
        }
    }

    // === the end ===

    fn judge(mut self) -> Outcome {
        let mut violations = std::mem::take(&mut self.broken);
        if violations.is_empty() {
            for number in 0..self.watchers.len() {
                for _ in 0..50 {
                    if let Some((host, life)) = self.watchers[number].at
                        && self.hosts[host].life == life
                        && !self.watchers[number].over
                    {
                        self.calm = true;
                        self.hear_watch(number, host);
                    }
                }
            }
            self.compare_replicas(&mut violations);
            let settled = self.watchers.iter().all(|watcher| watcher.over || watcher.at.is_some());
            self.judge_service(&mut violations);
            if !settled {
                violations.push("a watch did not stand again after the world calmed down".into());
            }
            if self.busy.iter().any(Option::is_some) {
                violations.push("a request did not end after the world calmed down".into());
            }
            let election = ELECTION_TICKS as u64 * TICK_MS;
            let settings = check::Settings {
                leases: leases::Bounds {
                    second: 1000,
                    // Clock jumps and what passes between the answer and its arrival.
                    early: 1500,
                    late: 4 * election,
                    healthy_since: Some(FAULTS_MS + 6 * election),
                    ended: self.now,
                },
                settled,
                linear: Some(linear::Limits { steps: 50_000, ..Default::default() }),
            };
            self.judge_splits(&mut violations);
            if self.service.is_some() {
                self.tenants.iter_mut().for_each(|tenant| tenant.rename(false, &mut violations));
            }
            for number in 0..self.tenants.len() {
                let stills = self.stills(self.tenants[number].group);
                let tenant = &mut self.tenants[number];
                stills.into_iter().for_each(|(from, to)| tenant.history.stand_still(from, to));
                let tenant = &self.tenants[number];
                let leases = tenant.lease_bounds(settings.leases);
                let settings = check::Settings { leases, ..settings };
                let settings = self.settings_for(tenant, settings);
                let report = check::run(&tenant.history, &settings);
                let told = |v: &check::Violation| format!("{:?}: {v}", tenant.group);
                violations.extend(report.violations.iter().map(told));
            }
        }
        Outcome {
            faults: self.faults,
            marks: self.marks,
            ops: self.ops,
            trace: self.trace,
            text: self.text,
            violations,
        }
    }

    /// After the world calmed down all replicas of a group must be equal.
    fn compare_replicas(&self, violations: &mut Vec<String>) {
        let mut seen: BTreeMap<GroupId, (u64, i64, u64, u32)> = BTreeMap::new();
        for host in &self.hosts {
            let Some(process) = &host.process else {
                if !host.removed {
                    violations.push(format!("n{} is down at the end", host.id));
                }
                continue;
            };
            if self.weather.moves && !self.moves.is_settled_on(host.id, &process.node) {
                violations.push(format!("n{} does not have what placement wants", host.id));
            }
            if let Err(wrong) = process.node.store().audit() {
                violations.push(format!("n{}: {wrong}", host.id));
            }
            for (id, group) in process.node.groups() {
                let state = group.machine().state();
                let shared = group.shared();
                let ask = Request::HashKv(HashKvRequest { revision: 0 });
                let (store, version) = (process.node.store(), state.range_version);
                let hash = match access::read(store, shared, &ask, version, Reading::Newest) {
                    Ok(Reply::HashKv(reply)) => reply.hash,
                    _ => 0,
                };
                let ours = (state.applied_index, state.revision, state.digest, hash);
                let first = *seen.entry(*id).or_insert(ours);
                if first != ours {
                    violations.push(format!(
                        "replicas of {id:?} differ: (index, revision, digest, hash) {first:?} and {ours:?}"
                    ));
                }
            }
        }
    }
}
