//! A whole service in the world: tenants that come, move and go, and a ledger in the system group
//! that says so, planned by placement's own code.
//!
//! Whoever takes part runs *errands*: it reads the ledger, and some time later does one thing about
//! it: changes the ledger, gives its node replicas or takes them, or asks a group for a change of
//! its members. Then the errand is over and all is forgotten, so each lost message and each crash is
//! a crash between two steps. Nobody waits for anybody: several executors are at work at a time,
//! each on a ledger of its own age.
//!
//! ```text
//!   steward    of each node: founds, registers, has what is wanted here, reports what it leads,
//!              or what nobody leads
//!   executor   anywhere: the next step of an operator, or its end
//!   commander  anywhere: creates, deletes, moves, drains, takes back, freezes, balances, cuts
//!   stranger   a client of one tenant at the group of another
//!   caller     leads placement: asks all nodes what they are and have; planners know no more
//! ```
//!
//! What must hold beyond what each tenant's judges say: a group has the same members at a version,
//! whoever tells them; a replica's number is of one node for ever; who is frozen or deleted is
//! answered nothing, and strangers never are; every ledger is sound (`placement/src/check.rs`);
//! what is lost is replaced if it can be; in the end each node has what the ledger wants there and
//! nothing of what is gone, neither replica nor row nor page, and no plan or operator is left.

mod balance;
mod charters;
mod crossings;
mod cutting;
mod rollcall;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use placement::Ledger;
use placement::check::Gravity;
use placement::executor;
use placement::health::Health;
use placement::inventory::{NodeReport, SILENT_MS};
use placement::ledger::Change;
use placement::operators::{self, Step};
use placement::record::{
    END, Node as Place, NodeState, Operator, OperatorState, PREFIX, Replica, repair_after_ms,
};
use placement::splits::Said;
use placement::view::{self, Wanted};
use placement::{merges, nodes, plans, repairs, tenants};
use proto::cluster::group::{DescribeRequest, Description, GroupRequest, refusal};
use proto::etcd::{MoveLeaderRequest, RangeRequest};
use proto::group::{GroupError, Reply, Request, request_to};
use proto::{Error, GroupId, NodeId, id};
use shard::access;
use shard::node::{Answer, Birth, Input, Reading};
use shard::store::layout::{self, Shelf};

use super::routes::Commits;
use super::{Answered, FAULTS_MS, FOUNDERS, Tenant, Waiting, World};
use crate::check;
use crate::check::history::{History, OpId};
use crate::sim::client::Client;
use crate::sim::fault::Fault;
use crate::sim::host::{ELECTION_TICKS, Host, TICK_MS};
use crate::sim::random::Random;

/// Tenants at a time, with the first one.
const TENANTS_MAX: usize = 4;
/// So many of placement's milliseconds pass in one: the grace of what is deleted is a day.
const DAYS: u64 = 20_000;
/// And so many for all else: a node is silent after a second.
const SCALE: u64 = 10;

/// What happens in the service.
#[allow(clippy::large_enum_variant, reason = "few of them are under way")]
pub(super) enum Event {
    /// The steward of a host looks.
    Steward { host: usize },
    /// An executor looks.
    Executor,
    /// An operator thinks of something.
    Commander,
    /// A request is made again.
    Again { asked: Asked },
    /// Somebody comes to do what it read the ledger for.
    Act { errand: Errand, ledger: Arc<Ledger> },
    /// Somebody asks in the name of another tenant.
    Stranger,
    /// A machine is lost for good, with its disk.
    Loss,
    /// A host calls the roll, if it leads placement.
    RollCall { host: usize },
    /// A node is asked.
    Called { by: usize, life: u64, node: u64 },
    /// It has answered.
    Said { by: usize, life: u64, node: u64, report: Box<NodeReport> },
    /// A machine loses its disk, and goes on.
    Empty,
    /// A replica of a host is found damaged at its next start.
    Damage,
}

/// What a ledger is read for.
#[derive(Clone, Debug)]
pub(super) enum Errand {
    /// A node looks what it is to have. Void when its process has died since.
    Look { host: usize, life: u64 },
    /// A leader tells the members of its group.
    Report { group: GroupId, told: Box<Description> },
    /// A group has taken in what it was told of itself.
    Told { group: GroupId, version: u64 },
    /// A node leads that an operator wants to lead.
    Led { operator: u64, step: Step },
    /// A group has said what its keys are.
    Keys { group: GroupId, said: Said },
    /// The same, to an operator that was taken back under a version of its keys.
    Settle { operator: u64, group: GroupId, known: u64, said: Said },
    /// An operator that was taken back has nothing left to hear.
    Settled { operator: u64 },
    /// The next step of an operator.
    Execute,
    /// A command.
    Command,
}

/// A request to a group, which is made again elsewhere while it is certainly not done.
pub(super) struct Asked {
    request: GroupRequest,
    purpose: Purpose,
    tries: u32,
}

/// What something was asked for.
enum Purpose {
    /// The ledger, to do something about it.
    Ledger { errand: Errand, op: OpId },
    /// A change of the ledger.
    Change { op: OpId },
    /// The members of a group that is led here.
    Members,
    /// A group is to know of its charter.
    Charter { version: u64 },
    /// A handover, after which an operator may be at its end.
    Lead { operator: u64, step: Step },
    /// A group's keys, or a change of them.
    Keys,
    /// What became of what an operator asked for.
    Settle { operator: u64, known: u64 },
    /// A word behind which nothing of that is done any more.
    Settled { operator: u64 },
    /// A change of a group's members.
    Step,
}

/// Hosts that are asked before a request is given up.
const TRIES: u32 = 8;

/// Members of a group: node, replica, and whether it is a learner.
type Members = BTreeSet<(u64, u64, bool)>;

/// See the module.
pub(super) struct Service {
    random: Random,
    /// Where a group was said to be led.
    leaders: BTreeMap<GroupId, u64>,
    /// Tenants that were named so far.
    names: u64,
    /// The newest ledger that anybody has read.
    newest: Arc<Ledger>,
    /// When anybody read it last.
    read_ms: u64,
    /// When it last had work in it.
    worked_ms: u64,
    /// The revision at which the steward of a process looked last.
    acted: BTreeMap<(usize, u64), i64>,
    /// Members of a group by version, as a replica told them first.
    epochs: BTreeMap<(GroupId, u64), Members>,
    /// The node of each replica that ever was.
    numbers: BTreeMap<(GroupId, u64), u64>,
    /// Replicas that a group was asked to remove, while it had the members of a version.
    removals: BTreeMap<(GroupId, u64), BTreeSet<u64>>,
    /// Nodes whose machines are lost.
    lost: Vec<u64>,
    /// Nodes that go on with an empty disk.
    emptied: Vec<u64>,
    /// What was asked for last, of each operator.
    steps: BTreeMap<u64, &'static str>,
    told: charters::Told,
    /// Where etcds are cut.
    cutting: Option<cutting::Cutting>,
    /// What those have heard who lead placement.
    calls: BTreeMap<usize, rollcall::Call>,
    /// The newest ledger that a host's process has seen.
    seen: BTreeMap<usize, (u64, Arc<Ledger>)>,
    /// Processes that have said who they are.
    registered: BTreeSet<(usize, u64)>,
    may_lose: bool,
    may_empty: bool,
    may_damage: bool,
    /// Groups at a time that nobody has counted on: of one replica only.
    may_be_single: bool,
}

/// A machine that takes part later: its node's number is none that a replica will ever have, as
/// with nodes that draw theirs from 64 bits.
fn newcomer(index: usize) -> Host {
    let host = Host::spare(index);
    Host { id: 1_000 + host.id, ..host }
}

// === impl Service ===

impl Service {
    /// Gives the first hosts the groups that begin with a service, and adds others.
    pub(super) fn new(seed: u64, cuts: bool, hosts: &mut Vec<Host>) -> Service {
        let mut random = Random::new(seed.rotate_left(48));
        for host in hosts.iter_mut() {
            host.founds = vec![id::SYSTEM_GROUP, id::DEFAULT_GROUP];
        }
        for _ in 0..random.between(1, 2) {
            hosts.push(newcomer(hosts.len()));
        }
        let may_lose = random.permille(300);
        // Two replicas that are lost at a time would be two of three.
        let may_damage = !may_lose && random.permille(300);
        Service {
            leaders: BTreeMap::new(),
            names: 0,
            newest: Arc::new(Ledger::default()),
            read_ms: 0,
            worked_ms: 0,
            acted: BTreeMap::new(),
            epochs: BTreeMap::new(),
            numbers: BTreeMap::new(),
            removals: BTreeMap::new(),
            lost: Vec::new(),
            emptied: Vec::new(),
            steps: BTreeMap::new(),
            told: charters::Told::default(),
            cutting: cuts.then(|| cutting::Cutting::new(seed)),
            calls: BTreeMap::new(),
            seen: BTreeMap::new(),
            registered: BTreeSet::new(),
            may_lose,
            may_empty: !may_lose && !may_damage && random.permille(300),
            may_damage,
            may_be_single: false,
            random,
        }
    }

    /// Is the next crash one in the middle of a round?
    pub(super) fn crashes_in_round(&mut self) -> bool {
        self.random.permille(500)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        self.random.below(n as u64) as usize
    }

    /// Takes in the members of a group as a replica or a leader tells them.
    fn epoch(&mut self, group: GroupId, version: u64, members: Members) -> Option<String> {
        for (node, replica, _) in &members {
            let first = *self.numbers.entry((group, *replica)).or_insert(*node);
            if first != *node {
                return Some(format!(
                    "replica {replica} of {group:?} is on n{node}, and was on n{first}"
                ));
            }
        }
        let known = self.epochs.entry((group, version)).or_insert_with(|| members.clone());
        (*known != members).then(|| {
            format!("{group:?} has other members at version {version}: {known:?} and {members:?}")
        })
    }
}

fn place_of(host: &Host) -> Place {
    Place {
        id: host.id,
        name: format!("n{}", host.id),
        peer_urls: vec![format!("http://n{}", host.id)],
        client_urls: Vec::new(),
        zone: String::new(),
        weight: 1,
        directory: host.directory,
        state: NodeState::Up,
        labels: BTreeMap::new(),
    }
}

fn birth(wanted: Wanted) -> Birth {
    Birth {
        group: wanted.group,
        replica: wanted.replica,
        members: wanted.founders,
        cluster_id: wanted.cluster_id,
        tenant: wanted.tenant,
        namespace: wanted.namespace,
    }
}

// === impl World ===

impl World {
    /// Begins the service, if there is one.
    pub(super) fn begin_service(&mut self) {
        let Some(service) = &mut self.service else { return };
        service.may_empty &= self.weather.forgetful.is_none();
        let (may_lose, may_damage) = (service.may_lose, service.may_damage);
        let may_empty = service.may_empty;
        service.may_be_single =
            !may_lose && !may_damage && !may_empty && self.weather.forgetful.is_none();
        let loss_ms = service.random.between(4000, 14_000);
        self.tenants.push(Tenant {
            id: 0,
            namespace: 0,
            group: id::SYSTEM_GROUP,
            history: History::new(),
            commits: None,
            over: None,
        });
        for host in 0..self.hosts.len() {
            self.schedule_in(100, super::Event::Service(Event::Steward { host }));
            self.schedule_in(100, super::Event::Service(Event::RollCall { host }));
        }
        self.schedule_in(500, super::Event::Service(Event::Executor));
        self.schedule_in(1500, super::Event::Service(Event::Commander));
        self.schedule_in(2000, super::Event::Service(Event::Stranger));
        if may_lose {
            self.schedule(loss_ms, super::Event::Service(Event::Loss));
        }
        if may_empty {
            self.schedule(loss_ms, super::Event::Service(Event::Empty));
        }
        if may_damage {
            self.schedule(loss_ms, super::Event::Service(Event::Damage));
        }
    }

    fn service(&mut self) -> &mut Service {
        self.service.as_mut().expect("there is a service in this world")
    }

    fn chance(&mut self) -> &mut Random {
        &mut self.service().random
    }

    fn schedule_in(&mut self, mean_ms: u64, event: super::Event) {
        let at = self.now + 1 + self.chance().below(2 * mean_ms);
        self.schedule(at, event);
    }

    /// How long a reader comes too late to what it may read, if it does.
    pub(super) fn reads_late(&mut self) -> Option<u64> {
        let service = self.service.as_mut()?;
        service.random.permille(200).then(|| service.random.between(1, 60))
    }

    pub(super) fn serve(&mut self, event: Event) {
        match event {
            Event::Steward { host } => {
                if self.hosts[host].process.is_some() {
                    let life = self.hosts[host].life;
                    self.run(Errand::Look { host, life });
                }
                self.schedule_in(300, super::Event::Service(Event::Steward { host }));
            }
            Event::Executor => {
                self.run(Errand::Execute);
                self.schedule_in(120, super::Event::Service(Event::Executor));
            }
            Event::Commander => {
                self.run(Errand::Command);
                self.schedule_in(700, super::Event::Service(Event::Commander));
            }
            Event::Again { asked } => self.knock(asked),
            Event::Act { errand, ledger } => self.act(errand, &ledger),
            Event::RollCall { host } => self.call_the_roll(host),
            Event::Called { by, life, node } => self.called(by, life, node),
            Event::Said { by, life, node, report } => self.said(by, life, node, *report),
            Event::Empty => self.empty(),
            Event::Stranger => {
                self.intrude();
                self.schedule_in(500, super::Event::Service(Event::Stranger));
            }
            Event::Loss => self.lose(),
            Event::Damage => self.damage(),
        }
    }

    // === errands ===

    /// Where a group may be led: where it was said to be, or anywhere.
    fn guess(&mut self, group: GroupId) -> usize {
        let hosts = self.hosts.len() as u64;
        let service = self.service();
        let said = service.leaders.get(&group).copied();
        let (any, trust) = (service.random.below(hosts) as usize, service.random.permille(800));
        said.filter(|_| trust).and_then(|node| self.host_of(node)).unwrap_or(any)
    }

    fn system(&mut self) -> &mut Tenant {
        &mut self.tenants[1]
    }

    /// Asks the system group, and writes down what was asked.
    fn ask_system(&mut self, body: Request, purpose: impl FnOnce(OpId) -> Purpose) {
        self.connections += 1;
        let (connection, now) = (self.connections, self.now);
        let request = self.system().request(body.clone());
        let op = self.system().history.call(connection, now, body);
        self.knock(Asked { request, purpose: purpose(op), tries: 0 });
    }

    /// Makes a request where its group may be led.
    fn knock(&mut self, asked: Asked) {
        let group = GroupId(asked.request.group);
        let host = self.guess(group);
        if self.hosts[host].process.is_some() {
            let request = asked.request.clone();
            self.request(host, Waiting::Service(asked), request);
        } else {
            self.service().leaders.remove(&group);
            self.knock_later(asked);
        }
    }

    fn knock_later(&mut self, asked: Asked) {
        let tries = asked.tries + 1;
        if tries < TRIES {
            let asked = Asked { tries, ..asked };
            self.schedule_in(20, super::Event::Service(Event::Again { asked }));
        } else if let Purpose::Ledger { op, .. } | Purpose::Change { op } = asked.purpose {
            self.end_system(op, Err(GroupError::refused(Error::NoLeader)));
        }
    }

    fn run(&mut self, errand: Errand) {
        let all = RangeRequest { key: PREFIX.into(), range_end: END.into(), ..Default::default() };
        self.ask_system(Request::Range(all), |op| Purpose::Ledger { errand, op });
    }

    fn write(&mut self, ledger: &Ledger, change: Change, why: &str) {
        if change.is_empty() {
            return;
        }
        let text = format!("placement at {} writes: {why}", ledger.revision);
        self.note(&text);
        let mut txn = ledger.transaction(&change);
        if self.fault == Some(Fault::Unfenced) {
            txn.compare.clear();
        }
        self.ask_system(Request::Txn(txn), |op| Purpose::Change { op });
    }

    pub(super) fn service_hears(
        &mut self,
        host: usize,
        asked: Asked,
        answer: Result<Answer, GroupError>,
    ) {
        let group = GroupId(asked.request.group);
        let answer = match (answer, &asked.purpose) {
            (Ok(Answer::Reply(reply)), _) => Ok(reply),
            (Ok(Answer::Readable(_)), Purpose::Ledger { op, .. } | Purpose::Change { op }) => {
                self.read_system(host, *op)
            }
            (Ok(Answer::Readable(_)), _) => unreachable!("only the ledger is read"),
            (Err(error), _) => Err(error),
        };
        if let Err(error) = &answer {
            match error.leader_node {
                Some(leader) => drop(self.service().leaders.insert(group, leader)),
                None => drop(self.service().leaders.remove(&group)),
            }
            let is_answer =
                matches!(asked.purpose, Purpose::Keys) && error.error == Error::StaleRange;
            if error.outcome == refusal::Outcome::NotDone && !is_answer {
                return self.knock_later(asked);
            }
        }
        match asked.purpose {
            Purpose::Ledger { errand, op } => {
                let ledger = match &answer {
                    Ok(Reply::Range(rows)) => Some(Ledger::read(rows)),
                    _ => None,
                };
                self.end_system(op, answer);
                match ledger {
                    Some(Ok(ledger)) => self.learn(errand, Arc::new(ledger)),
                    Some(Err(error)) => self.broken.push(error.to_string()),
                    None => {}
                }
            }
            Purpose::Change { op } => self.end_system(op, answer),
            Purpose::Members => {
                if let Ok(Reply::Describe(told)) = answer {
                    self.run(Errand::Report { group, told: Box::new(told) });
                }
            }
            Purpose::Charter { version } => match answer {
                Ok(_) => self.has_taken(group, version),
                Err(error) => self.note(&format!("{group:?} has not heard: {error:?}")),
            },
            Purpose::Lead { operator, step } => match answer {
                Ok(_) => self.run(Errand::Led { operator, step }),
                Err(error) => self.note(&format!("{group:?} is not handed over: {error:?}")),
            },
            Purpose::Keys => self.hear_of_keys(group, answer),
            Purpose::Settle { operator, known } => {
                if let Ok(Reply::Describe(told)) = answer
                    && let Some(said) = told.place.map(Said::from)
                {
                    self.run(Errand::Settle { operator, group, known, said });
                }
            }
            Purpose::Settled { operator } => match answer {
                Ok(_) => self.run(Errand::Settled { operator }),
                Err(error) => self.note(&format!("{group:?} has not settled: {error:?}")),
            },
            Purpose::Step => {
                let text = format!("placement hears of n{} about {group:?}: {answer:?}", host + 1);
                self.note(&text);
            }
        }
    }

    fn read_system(&self, host: usize, op: OpId) -> Result<Reply, GroupError> {
        let process = self.hosts[host].process.as_ref().expect("it has just answered");
        let shared = process.node.shared(id::SYSTEM_GROUP);
        let gone = GroupError::not_done(Error::NoLeader, None);
        let shared = shared.ok_or(gone)?;
        let request = &self.tenants[1].history.op(op).request;
        access::read(process.node.store(), &shared, request, 1, Reading::Newest)
    }

    fn end_system(&mut self, op: OpId, answer: Result<Reply, GroupError>) {
        let now = self.now;
        self.system().history.end(op, now, Answered::of(answer));
    }

    /// Somebody has read the ledger; some time later it acts.
    fn learn(&mut self, errand: Errand, ledger: Arc<Ledger>) {
        self.service().read_ms = self.now;
        if ledger.revision > self.service().newest.revision {
            self.follow(&ledger);
        }
        let slow = !self.calm && self.chance().permille(200);
        let late_ms = self.chance().below(if slow { 3000 } else { 40 });
        self.schedule(self.now + late_ms, super::Event::Service(Event::Act { errand, ledger }));
    }

    /// Tenants come and go for their clients.
    fn follow(&mut self, ledger: &Arc<Ledger>) {
        let now = self.now;
        let fresh =
            ledger.groups.values().any(|group| !group.dead && self.tenant_of(group).is_none());
        let findings = placement::check::check(ledger).into_iter();
        let wrong = findings.filter(|finding| finding.gravity == Gravity::Wrong);
        let revision = ledger.revision;
        self.broken.extend(wrong.map(|wrong| format!("the ledger at {revision}: {}", wrong.what)));
        self.count_ends(ledger);
        let service = self.service();
        service.newest = ledger.clone();
        let untold = placement::charters::untold(ledger).next().is_some();
        if fresh || untold || !operators::running(ledger).is_empty() {
            service.worked_ms = now;
        }
        for group in ledger.groups.values() {
            match self.tenant_of(group) {
                None if !group.dead => self.welcome(group.tenant, group.namespace, group.id),
                Some(tenant)
                    if group.dead
                        && self.tenants[tenant].group.0 == group.id
                        && self.tenants[tenant].over.is_none() =>
                {
                    self.tenants[tenant].over = Some(now);
                    let watchers = self.watchers.iter_mut().filter(|w| w.tenant == tenant);
                    watchers.for_each(|watcher| watcher.over = true);
                    self.note(&format!("group {} is dead", group.id));
                }
                _ => {}
            }
        }
        self.expect_children(ledger);
    }

    fn welcome(&mut self, id: u64, namespace: u64, group: u64) {
        let tenant = self.tenants.len();
        let (group, history) = (GroupId(group), History::new());
        let commits = self.may_be_cut().then(Commits::default);
        self.tenants.push(Tenant { id, namespace, group, history, commits, over: None });
        for _ in 0..self.chance().between(1, 3) {
            let client = self.clients.len();
            self.clients.push(Client { tenant, ..Client::default() });
            self.busy.push(None);
            self.reconnect(client);
            self.schedule_in(200, super::Event::Ask { client });
        }
        for number in 0..2 {
            self.add_watcher(tenant, number);
        }
        self.note(&format!("tenant {id} comes, with group {}", group.0));
    }

    fn act(&mut self, errand: Errand, ledger: &Arc<Ledger>) {
        if ledger.revision < self.service().newest.revision {
            self.mark("deeds by an old ledger".to_owned());
        }
        match errand {
            Errand::Look { host, life } => {
                // What a steward knows never gets older.
                let key = (host, life);
                let acted = self.service().acted.get(&key).copied().unwrap_or_default();
                if self.hosts[host].life == life && ledger.revision >= acted {
                    self.service().acted.insert(key, ledger.revision);
                    self.service().seen.insert(host, (life, ledger.clone()));
                    self.look(host, ledger);
                }
            }
            Errand::Report { group, told } => {
                let replicas: Vec<Replica> = told
                    .replicas
                    .iter()
                    .map(|r| Replica { node: r.node, replica: r.replica, learner: r.is_learner })
                    .collect();
                let version = told.membership_version;
                let change = nodes::report(ledger, group.0, version, &replicas, &told.retired);
                self.write(ledger, change.unwrap_or_default(), "members");
            }
            Errand::Told { group, version } => {
                let change = placement::charters::note(ledger, &[(group.0, version)]);
                self.write(ledger, change.unwrap_or_default(), "a charter is known");
            }
            Errand::Led { operator, step } => {
                let found = ledger.operators.get(&operator);
                if found.is_some_and(|found| operators::next_step(ledger, found) == step) {
                    let ended = operators::finish(ledger, operator, false, self.placement_ms());
                    self.write(ledger, ended.unwrap_or_default(), "the right one leads");
                }
            }
            Errand::Keys { group, said } => {
                self.learn_keys(ledger, group, &said);
            }
            Errand::Settle { operator, group, known, said } => {
                self.settled(ledger, operator, group, known, &said);
            }
            Errand::Settled { operator } => self.end_settled(ledger, operator),
            Errand::Execute => self.execute(ledger),
            Errand::Command => self.command(ledger),
        }
    }

    // === stewards ===

    /// What a node does about a ledger.
    fn look(&mut self, host: usize, ledger: &Ledger) {
        let place = place_of(&self.hosts[host]);
        let node = NodeId(place.id);
        if ledger.meta.is_none() {
            if !self.hosts[host].founds.is_empty() {
                // Of the others a founder knows no more than where they are.
                let founder = |host: &Host| Place { directory: 0, ..place_of(host) };
                let founders: Vec<Place> = self.hosts[..FOUNDERS].iter().map(founder).collect();
                let change = nodes::found(ledger, 7, &founders, true).unwrap_or_default();
                self.write(ledger, change, "the beginning");
            }
            return;
        }
        let key = (host, self.hosts[host].life);
        if !self.service().registered.contains(&key) {
            match nodes::register(ledger, place.clone()) {
                Some(change) => return self.write(ledger, change, "a node"),
                None => drop(self.service().registered.insert(key)),
            }
        }
        let directory = ledger.nodes.get(&place.id).map(|known| known.directory);
        let is_another = directory.is_some_and(|directory| directory != place.directory);
        let Some(process) = &self.hosts[host].process else { return };
        // Those that were not opened are here as well.
        let replica = |id: GroupId| {
            let here = process.node.group(id).map(|group| group.shared().replica());
            here.or(process.node.quarantined(id).map(|found| found.replica))
        };
        let duties = view::duties(ledger, node, replica);
        let dead = duties.dead;
        let gone = ledger.groups.values().filter(|group| {
            process.node.group(GroupId(group.id)).is_some_and(|here| {
                let shared = here.shared();
                view::is_gone(group, node, shared.replica(), shared.membership_version())
            })
        });
        // Replicas that were not opened, and that their groups have removed since.
        let shut = process.node.shut().filter(|id| {
            let group = ledger.groups.get(&id.0);
            group.is_some_and(|group| !group.replicas.iter().any(|r| r.node == node.0))
        });
        let gone: Vec<GroupId> =
            gone.map(|group| GroupId(group.id)).chain(dead).chain(shut).collect();
        let mut births: Vec<Birth> = duties.wanted.into_iter().map(birth).collect();
        // What its replicas have promised is forgotten.
        births.retain(|_| !is_another);
        births.retain(|birth| self.may_come(host, ledger, birth.group));
        let news = process.node.groups().filter(|(id, group)| {
            let (known, shared) = (ledger.groups.get(&id.0), group.shared());
            let (leader, version) = (shared.leader().map(NodeId), shared.membership_version());
            known.is_some_and(|known| view::has_news(known, node, leader, version))
        });
        let news: Vec<GroupId> = news.map(|(id, _)| *id).collect();
        if !gone.is_empty() {
            self.step(host, Input::Deaths(gone));
        }
        if !births.is_empty() {
            self.note(&format!("n{} is to have {births:?}", host + 1));
            self.step(host, Input::Births(births));
        }
        for group in news {
            let request = request_to(group, Request::Describe(DescribeRequest {}));
            let asked = Asked { request: request.clone(), purpose: Purpose::Members, tries: TRIES };
            self.request(host, Waiting::Service(asked), request);
        }
        self.look_at_keys(host, ledger);
    }

    // === executors ===

    fn execute(&mut self, ledger: &Ledger) {
        let (now_ms, inventory) = (self.placement_ms(), self.inventory());
        let seen = ledger.with_silent(inventory.unfit(ledger, now_ms));
        let planned = [
            ("repairs", repairs::plan(ledger, &inventory, now_ms)),
            ("drains", operators::plan_drains(&seen, now_ms)),
            ("balance", plans::tend(&seen, &inventory, now_ms)),
            ("a tenant goes for good", tenants::purge(ledger, self.now * DAYS)),
            ("merges go on", merges::go_on(&seen, &inventory, now_ms)),
        ];
        for (why, change) in planned {
            if let Some(change) = change.filter(|_| self.chance().permille(700)) {
                return self.write(ledger, change, why);
            }
        }
        let ledger = &seen;
        if self.chance().permille(500) && self.tell_one(ledger) {
            return;
        }
        let health = Health::of(ledger, &inventory, now_ms);
        let mut running = operators::running(ledger);
        running.retain(|operator| !repairs::is_needless(&health, ledger, operator));
        let Some(operator) = running.get(self.chance().below(running.len() as u64) as usize) else {
            return;
        };
        let step = operators::next_step(ledger, operator);
        if matches!(step, Step::Done | Step::Void) {
            let change = operators::finish(ledger, operator.id, step == Step::Void, now_ms);
            self.write(ledger, change.unwrap_or_default(), "an end");
            return self.stepped(operator, &step);
        }
        if self.change_keys(ledger, operator, &step) {
            return;
        }
        let Some(group) = ledger.groups.get(&operator.group) else { return };
        let heir = group.replicas.iter().find(|r| r.node == operator.leader && !r.learner);
        let handover = match (&step, heir) {
            (Step::Lead(node), _) => {
                Some((*node, Purpose::Lead { operator: operator.id, step: step.clone() }))
            }
            // The one that is to go may lead.
            (Step::Remove(_), Some(heir)) if self.chance().permille(500) => {
                Some((heir.node, Purpose::Step))
            }
            _ => None,
        };
        if let Some((target_id, purpose)) = handover {
            let request = Request::MoveLeader(MoveLeaderRequest { target_id });
            let request = executor::request_of(ledger, group, request);
            self.knock(Asked { request, purpose, tries: 0 });
            return self.stepped(operator, &step);
        }
        let choices = operators::choices(ledger, operator);
        let pick = self.chance().below(choices.len() as u64) as usize;
        let Some(step) = choices.get(pick) else { return };
        if let Step::Remove(replica) = step {
            let at = (GroupId(group.id), group.membership_version);
            self.service().removals.entry(at).or_default().insert(replica.replica);
        }
        let request = executor::change(ledger, group, step);
        self.note(&format!("operator {} asks group {} for {step:?}", operator.id, group.id));
        self.faults += 1;
        let request = executor::request_of(ledger, group, request);
        self.knock(Asked { request, purpose: Purpose::Step, tries: 0 });
        self.stepped(operator, step);
    }

    // === the commander ===

    /// What has to be done is done; otherwise something that comes to mind, while there are faults.
    fn command(&mut self, ledger: &Ledger) {
        let Some(meta) = &ledger.meta else { return };
        let (now_ms, inventory) = (self.placement_ms(), self.inventory());
        let seen = ledger.with_silent(inventory.silent(ledger, now_ms));
        let ledger: &Ledger = &seen;
        if meta.repair_after_ms == repair_after_ms() {
            let patience = SILENT_MS + self.chance().below(40_000);
            let planned = nodes::set_repair_after(ledger, patience);
            let change = planned.map(|(change, _)| change).unwrap_or_default();
            return self.write(ledger, change, "how long is waited");
        }
        if self.give_up(ledger) {
            return;
        }
        if self.now > FAULTS_MS {
            let thawed = charters::thaw(ledger).and_then(Result::ok);
            let rest = || balance::rest(ledger, now_ms).and_then(Result::ok);
            let change = thawed.or_else(rest).map(|(change, _)| change).unwrap_or_default();
            return self.write(ledger, change, "what was frozen or in motion is to rest");
        }
        if let Some(planned) = self.cutting_idea(ledger, &inventory, now_ms) {
            return match planned {
                Ok((change, _)) => self.write(ledger, change, "cuts"),
                Err(refusal) => self.note(&format!("placement refuses: {refusal}")),
            };
        }
        let open: Vec<&str> = ledger.tenants.values().map(|tenant| tenant.name.as_str()).collect();
        let all: Vec<&Place> = ledger.nodes.values().collect();
        let kind = self.chance().below(100);
        let some = |random: &mut Random, count: usize| random.below(count.max(1) as u64) as usize;
        let (one, other) = (some(self.chance(), open.len()), some(self.chance(), all.len()));
        let (Some(tenant), Some(node)) = (open.get(one), all.get(other)) else { return };
        let planned = match kind {
            _ if self.chance().permille(250) => {
                balance::idea(ledger, &inventory, self.chance(), now_ms)
            }
            _ if self.chance().permille(250) => {
                let now = self.now;
                let Some(owner) = ledger.tenant(tenant) else { return };
                charters::idea(ledger, owner, self.chance(), now)
            }
            0..=29 => {
                // The system group is no tenant's, and one that was cut is on several.
                let living = ledger.groups.values().filter(|group| !group.dead);
                let homes = living
                    .filter(|group| ledger.place_of(group.id).is_none_or(|(_, place)| place == 0));
                if homes.count() > TENANTS_MAX {
                    return;
                }
                let single = self.service().may_be_single && self.chance().permille(200);
                let service = self.service();
                service.names += 1;
                let name = format!("t{}", service.names);
                tenants::create(ledger, &name, if single { 1 } else { 3 }, 0)
            }
            30..=59 => {
                let mut to: Vec<String> = Vec::new();
                let mut up: Vec<&Place> =
                    all.iter().copied().filter(|node| node.state == NodeState::Up).collect();
                while to.len() < 3 && !up.is_empty() {
                    let next = some(self.chance(), up.len());
                    to.push(up.remove(next).name.clone());
                }
                operators::move_tenant(ledger, tenant, &to, now_ms)
            }
            60..=69 => {
                let draining = |place: &&&Place| place.state == NodeState::Draining;
                let already = all.iter().filter(draining).count() > 0;
                let state = if already { NodeState::Up } else { NodeState::Draining };
                let lost = self.service().lost.clone();
                let name = match all.iter().find(draining) {
                    Some(place) if already && lost.contains(&place.id) => return,
                    Some(place) if already => place.name.clone(),
                    _ => node.name.clone(),
                };
                nodes::set_state(ledger, &name, state)
            }
            70..=79 => {
                let running = |o: &&Operator| o.state == OperatorState::Running;
                let Some(operator) = ledger.operators.values().find(running) else { return };
                operators::cancel(ledger, operator.id, now_ms)
            }
            80..=92 => tenants::delete(ledger, tenant, self.now * DAYS),
            _ => tenants::undelete(ledger, tenant),
        };
        match planned {
            Ok((change, _)) => self.write(ledger, change, &format!("command {kind}")),
            Err(refusal) => self.note(&format!("placement refuses: {refusal}")),
        }
    }

    /// Somebody may say that a lost machine does not come back: then nobody waits. Says whether
    /// there was something to do about it.
    fn give_up(&mut self, ledger: &Ledger) -> bool {
        for node in self.service().lost.clone() {
            let Some(place) = ledger.nodes.get(&node) else { continue };
            if place.state != NodeState::Lost
                && self.chance().permille(100)
                && let Ok((change, _)) = nodes::give_up(ledger, &place.name)
            {
                self.write(ledger, change, "a node is given up");
                return true;
            }
        }
        false
    }

    // === faults ===

    /// Has each group a majority that has everything without this machine? While a voter that was
    /// lost, or only silent for too long, is not replaced yet, the next loss would be one too many. One
    /// that is down may know of members that nobody else has heard of yet: it cannot be spared. Nor can
    /// one be without which there is no majority once a removal is done that was asked for: it may be
    /// in the log already.
    pub(super) fn can_spare(&self, host: usize) -> bool {
        let Some(service) = &self.service else { return true };
        if self.hosts[host].process.is_none() {
            return false;
        }
        let gone = self.hosts[host].id;
        service.newest.groups.values().filter(|group| !group.dead).all(|group| {
            let id = GroupId(group.id);
            let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
            let replicas = processes.filter_map(|process| process.node.group(id));
            let newest = replicas
                .map(|replica| replica.machine().state())
                .max_by_key(|state| state.membership_version);
            let Some(state) = newest else { return false };
            let voters = state.members.iter().filter(|member| !member.is_learner);
            let voters: Vec<_> = voters.map(|m| (m.id, state.replica_of(m.id))).collect();
            let stays = |(node, replica): &&(u64, u64)| {
                let host = self.host_of(*node).and_then(|host| self.hosts[host].process.as_ref());
                host.and_then(|process| process.node.group(id)).is_some_and(|group| {
                    group.shared().replica() == *replica
                        && !group.is_seeded_anew()
                        && !group.machine().state().members.is_empty()
                })
            };
            let is_spare = |leaving: Option<u64>| {
                let voters = voters.iter().filter(|(_, replica)| Some(*replica) != leaving);
                let has_it = voters.clone().any(|(node, _)| *node == gone);
                let rest = voters.clone().filter(|(node, _)| *node != gone).filter(stays).count();
                !has_it || 2 * rest > voters.count()
            };
            let asked = service.removals.get(&(id, state.membership_version));
            let repaired = operators::ongoing(&service.newest).filter(|o| o.group == group.id);
            let leaving =
                repaired.flat_map(|operator| &operator.lost).chain(asked.into_iter().flatten());
            is_spare(None) && leaving.copied().all(|replica| is_spare(Some(replica)))
        })
    }

    /// A machine is gone, and another one, which is empty, takes part from now on.
    fn lose(&mut self) {
        // Before the service is founded nobody could be told.
        if self.calm || self.service().newest.meta.is_none() {
            return;
        }
        let hosts = self.hosts.len() as u64;
        let host = self.chance().below(hosts) as usize;
        if self.weather.forgetful == Some(host) || !self.can_spare(host) {
            return self.schedule_in(300, super::Event::Service(Event::Loss));
        }
        let node = self.hosts[host].id;
        self.service().lost.push(node);
        self.faults += 1;
        self.mark("machines lost for good".to_owned());
        self.note(&format!("n{node} is lost for good"));
        self.removed(host);
        let index = self.hosts.len();
        self.hosts.push(newcomer(index));
        self.hosts[index].sync_ms = self.weather.sync_ms;
        self.start(index);
        self.schedule_in(300, super::Event::Service(Event::Steward { host: index }));
        self.schedule_in(100, super::Event::Service(Event::RollCall { host: index }));
    }

    /// A host crashes, and one of its replicas does not come back with it.
    fn damage(&mut self) {
        let hosts = self.hosts.len() as u64;
        let host = self.chance().below(hosts) as usize;
        if self.calm {
            return;
        }
        if self.weather.forgetful.is_some_and(|other| other != host) || !self.can_spare(host) {
            return self.schedule_in(300, super::Event::Service(Event::Damage));
        }
        self.crash(host);
        if self.hosts[host].process.is_some() {
            return;
        }
        let choose = self.chance().below(8) as usize;
        match self.hosts[host].damage(choose) {
            Ok(Some(key)) => {
                self.faults += 1;
                self.mark("replicas damaged".to_owned());
                self.note(&format!("n{} has lost {key:?}", host + 1));
            }
            Ok(None) => {}
            Err(error) => self.broken.push(error),
        }
    }

    // === the end ===

    /// A replica's members have changed: they are what they are elsewhere at that version.
    pub(super) fn members_changed(&mut self, host: usize, group: GroupId) {
        let Some(service) = &mut self.service else { return };
        let Some(process) = &self.hosts[host].process else { return };
        let Some(replica) = process.node.group(group) else { return };
        let state = replica.machine().state();
        let member = |m: &proto::etcd::Member| (m.id, state.replica_of(m.id), m.is_learner);
        let members = state.members.iter().map(member).collect();
        let wrong = service.epoch(group, state.membership_version, members);
        self.broken.extend(wrong);
    }

    /// Bounds for a tenant's judges.
    pub(super) fn settings_for(
        &self,
        tenant: &Tenant,
        settings: check::Settings,
    ) -> check::Settings {
        let Some(service) = &self.service else { return settings };
        let mut settings = settings;
        let election = ELECTION_TICKS as u64 * TICK_MS;
        let quiet = service.worked_ms.max(FAULTS_MS) + 6 * election;
        settings.leases.healthy_since = (tenant.over.is_none()).then_some(quiet);
        settings.settled &= tenant.over.is_none();
        settings
    }

    /// In the end every node has what the ledger wants there, and nothing else.
    pub(super) fn judge_service(&self, violations: &mut Vec<String>) {
        let Some(service) = &self.service else { return };
        let ledger = &service.newest;
        if ledger.meta.is_none() {
            violations.push("the service was never founded".to_owned());
            return;
        }
        if service.read_ms + 10_000 < self.now {
            let told = self.hosts.iter().filter_map(|host| {
                let group = host.process.as_ref()?.node.group(id::SYSTEM_GROUP)?;
                let (shared, state) = (group.shared(), group.machine().state());
                let members = state.members.iter().map(|m| (m.id, state.replica_of(m.id)));
                let members: Vec<_> = members.collect();
                let (replica, term, leader) = (shared.replica(), shared.term(), shared.leader());
                let index = state.applied_index;
                Some(format!(
                    "n{}: {replica} at {index}, term {term}, {leader:?} of {members:?}",
                    host.id
                ))
            });
            let told: Vec<String> = told.collect();
            let last = service.read_ms;
            violations.push(format!("nobody could read the ledger since {last}: {told:?}"));
        }
        let gone = |node: &u64| service.lost.contains(node) || service.emptied.contains(node);
        let mut stuck = false;
        for group in ledger.groups.values().filter(|group| !group.dead) {
            let there = group.replicas.iter().find(|replica| gone(&replica.node));
            if there.is_some() && self.is_stuck(ledger, group) {
                stuck = true;
            } else if let Some(replica) = there {
                let id = group.id;
                violations.push(format!("group {id} still has {replica:?}, which is lost"));
            }
        }
        // For want of other nodes: then only what clients see is judged.
        if stuck {
            return;
        }
        if service.cutting.is_some() {
            self.judge_keys(ledger, violations);
        }
        violations.extend(balance::judge(ledger));
        for operator in operators::running(ledger) {
            violations.push(format!("an operator has not come to its end: {operator:?}"));
        }
        for host in self.hosts.iter().filter(|host| !host.removed) {
            let Some(process) = &host.process else { continue };
            let wanted = view::duties(ledger, NodeId(host.id), |_| None).wanted;
            let wanted: BTreeMap<GroupId, u64> =
                wanted.into_iter().map(|wanted| (wanted.group, wanted.replica)).collect();
            let mut has: BTreeMap<GroupId, u64> = BTreeMap::new();
            let mut shelves: BTreeMap<u64, GroupId> = BTreeMap::new();
            let mut used: BTreeSet<u64> =
                process.node.awaited_shelves().map(|shelf| shelf.0).collect();
            for (id, group) in process.node.groups() {
                has.insert(*id, group.shared().replica());
                let shelf = group.machine().shelf().0;
                if let Some(other) = shelves.insert(shelf, *id) {
                    violations.push(format!("n{}: {id:?} and {other:?} share a shelf", host.id));
                }
                used.extend(group.machine().shelves().all().map(|shelf| shelf.0));
            }
            let shut = host.shut.iter().map(|key| (GroupId(key.group), key.replica));
            let shut: BTreeMap<GroupId, u64> =
                shut.filter(|(group, replica)| wanted.get(group) == Some(replica)).collect();
            has.extend(&shut);
            if has != wanted {
                violations.push(format!("n{} has {has:?}, the ledger wants {wanted:?}", host.id));
            }
            if shut.is_empty() {
                self.find_leftovers(host, &used, violations);
            }
        }
    }

    /// Rows of the engine that belong to no replica of the host.
    fn find_leftovers(&self, host: &Host, used: &BTreeSet<u64>, violations: &mut Vec<String>) {
        use shard::engine::Engine as _;
        for kind in layout::SHELF_KINDS {
            let (from, _) = layout::shelf_bounds(kind, Shelf(0));
            let (_, to) = layout::shelf_bounds(kind, Shelf(u64::MAX - 1));
            let keys = host.engine.scan(&from, &to).filter_map(Result::ok).map(|(key, _)| key);
            let shelf = |key: &[u8]| key.get(1..9)?.try_into().ok().map(u64::from_be_bytes);
            let strays: BTreeSet<u64> = keys.filter_map(|key| shelf(&key)).collect();
            for shelf in strays.into_iter().filter(|shelf| !used.contains(shelf)) {
                let id = host.id;
                violations.push(format!("n{id}: rows of kind {kind} are left on shelf {shelf}"));
            }
        }
    }
}
