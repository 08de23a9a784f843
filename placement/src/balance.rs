//! Which moves would even the load of the nodes out. Pure: ledger, inventory and time in, moves
//! with a prediction out; the same for the same.
//!
//! A node is as loaded as what it has most of, against the mean of all nodes that take part: CPU,
//! bytes written, groups led, replicas, bytes stored. Below a floor a measure counts for little: a
//! node that does three times next to nothing is not loaded.
//!
//! ```text
//!   over(node)  = max over measures of (load - mean) / max(mean, floor)
//!   begin       when the worst node is 10 % over the mean
//!   a move      from the worst node that a move can help: it lowers that node, and its other
//!               end stays clearly below where that node was; a new leader before a new replica,
//!               and to a node that is not over the mean itself before any other
//!   stop        when no node is 5 % over, or no move helps
//! ```
//!
//! "Clearly below" is a share of the mean, not of the gap: with thousands of small groups no move
//! closes a gap by much, with a few large ones almost every move would only turn it around.
//!
//! Invariants:
//! * every move lowers the worse of its two ends, so a plan comes to an end;
//! * a group moves once in a plan, and rests for [`REST_MS`] after an operator;
//! * where a group is to be counts, not where it is: operators under way are over already, and a
//!   leader that was chosen after the last report leads already;
//! * nodes without fresh numbers, and nodes that take nothing new, neither give nor get;
//! * a move leaves a group's zones as many and its tenant's pin as it was.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::inventory::{GroupReport, Inventory, NodeReport, STALE_MS};
use crate::ledger::Ledger;
use crate::record::{Fate, Group, Move, NodeLoad, NodeState, Operator, OperatorState, TenantState};

/// A node that is this far over the mean begins it, in thousandths.
pub const BEGIN: i64 = 100;
/// It ends when no node is this far over the mean, in thousandths.
pub const STOP: i64 = 50;
/// How long a group is left alone after an operator, in milliseconds.
pub const REST_MS: u64 = 60_000;
/// How far below the worst node the other end of a move stays, as a share of the mean.
const BELOW: f64 = 0.02;
/// Nodes that a group is tried on: the least loaded that help.
const CHOICES: usize = 3;
/// Of so many groups on a node one is moved between two looks at all of them.
const MANY: usize = 64;
/// Share of a disk that moves leave free.
pub(crate) const DISK_FREE: f64 = 0.1;

/// What is measured.
const MEASURES: usize = 5;
const CPU: usize = 0;
const WRITES: usize = 1;
const LEADERS: usize = 2;
const REPLICAS: usize = 3;
const SIZE: usize = 4;
const ALL: [usize; MEASURES] = [CPU, WRITES, LEADERS, REPLICAS, SIZE];
/// What a node has more of when it takes a lead.
const LED: [usize; 2] = [CPU, LEADERS];
/// A mean below this counts as this: CPU in microseconds a second, bytes a second, groups,
/// replicas, bytes.
const FLOORS: [f64; MEASURES] = [200_000.0, 4_194_304.0, 20.0, 20.0, 1_073_741_824.0];
const NAMES: [&str; MEASURES] = ["CPU", "writes", "leaders", "replicas", "size"];

type Load = [f64; MEASURES];

/// Moves, and what they would lead to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proposal {
    /// The moves, in order.
    pub moves: Vec<Move>,
    /// The nodes as they are.
    pub before: Vec<NodeLoad>,
    /// The nodes after all moves.
    pub after: Vec<NodeLoad>,
    /// What stays uneven, and why.
    pub stays: Vec<String>,
}

/// Why nothing can be decided now, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unknown(pub String);

/// A node that takes part.
struct Place {
    id: u64,
    name: String,
    zone: String,
    load: Load,
    /// Against the mean of all: what is fair is more on a larger one.
    share: Load,
    /// Bytes that may still come.
    room: f64,
    /// Groups with a replica here.
    groups: BTreeSet<usize>,
}

/// A group as it will be when the operators under way are over.
struct Held {
    id: u64,
    name: String,
    version: u64,
    tenant: u64,
    nodes: Vec<u64>,
    leader: u64,
    /// It may be moved now.
    free: bool,
    /// CPU time of the leader, and of a follower.
    cpu: (f64, f64),
    writes: f64,
    size: f64,
    requests: u64,
}

/// The nodes that take part and all groups, as planners play with them.
pub struct Cluster<'a> {
    ledger: &'a Ledger,
    places: Vec<Place>,
    groups: Vec<Held>,
    means: Load,
    view: View<'a>,
}

/// What of the cluster is looked at, and how closely.
#[derive(Clone, Copy)]
struct View<'a> {
    /// These groups, as if there were no others; all without.
    only: Option<&'a BTreeSet<u64>>,
    /// See [`FLOORS`].
    floors: Load,
    /// See [`REST_MS`].
    rest_ms: u64,
}

const EVERYTHING: View<'static> = View { only: None, floors: FLOORS, rest_ms: REST_MS };

/// A move that could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Idea {
    group: usize,
    from: usize,
    to: usize,
    lead_only: bool,
}

// === impl Cluster ===

impl<'a> Cluster<'a> {
    /// What is known, if it is enough to decide on.
    pub fn new(
        ledger: &'a Ledger,
        inventory: &Inventory,
        now_ms: u64,
    ) -> Result<Cluster<'a>, Unknown> {
        Cluster::seen(ledger, inventory, now_ms, EVERYTHING)
    }

    fn seen(
        ledger: &'a Ledger,
        inventory: &Inventory,
        now_ms: u64,
        view: View<'a>,
    ) -> Result<Cluster<'a>, Unknown> {
        let up = ledger.nodes.values().filter(|n| n.state == NodeState::Up && n.weight > 0);
        let (fresh, old): (Vec<_>, Vec<_>) =
            up.partition(|node| inventory.fresh(node.id, now_ms).is_some());
        if inventory.since_ms == 0 || now_ms < inventory.since_ms + STALE_MS {
            return Err(Unknown("the nodes are being asked: try again in 15 seconds".to_owned()));
        }
        if 3 * old.len() > old.len() + fresh.len() {
            let names: Vec<&str> = old.iter().map(|node| node.name.as_str()).collect();
            let names = names.join(", ");
            return Err(Unknown(format!("too many nodes have no fresh numbers: {names}")));
        }
        let count = fresh.len().max(1) as f64;
        let weight = fresh.iter().map(|n| f64::from(n.weight)).sum::<f64>() / count;
        let disk = |id: u64| inventory.nodes.get(&id).map_or(0, |r| r.disk_total) as f64;
        let disks_known = fresh.iter().all(|node| disk(node.id) > 0.0);
        let disk_mean = fresh.iter().map(|node| disk(node.id)).sum::<f64>() / count;
        let place = |node: &&crate::record::Node| {
            let by_weight = f64::from(node.weight) / weight;
            let by_disk = if disks_known { disk(node.id) / disk_mean } else { by_weight };
            let report = inventory.nodes.get(&node.id);
            let free = report.map_or(0, |report| report.disk_free) as f64;
            Place {
                id: node.id,
                name: node.name.clone(),
                zone: node.zone.clone(),
                load: Load::default(),
                share: [by_weight, by_weight, by_weight, by_weight, by_disk],
                room: if disks_known { free - DISK_FREE * disk(node.id) } else { f64::MAX },
                groups: BTreeSet::new(),
            }
        };
        let places = fresh.iter().map(place).collect();
        let means = Load::default();
        let mut cluster = Cluster { ledger, places, groups: Vec::new(), means, view };
        cluster.fill(inventory, now_ms);
        Ok(cluster)
    }

    fn fill(&mut self, inventory: &Inventory, now_ms: u64) {
        // One look at all reports: who leads what, and what followers spend.
        let mut leaders: BTreeMap<u64, (u64, &GroupReport, u64)> = BTreeMap::new();
        let mut following: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut harmed: BTreeSet<u64> = BTreeSet::new();
        for node in inventory.nodes.keys() {
            let Some(report) = inventory.fresh(*node, now_ms) else { continue };
            let share = CpuShare::of(report);
            for (id, group) in &report.groups {
                if group.quarantined.is_some() {
                    harmed.insert(*id);
                }
                let cpu = share.cpu(group);
                if group.leads {
                    leaders.insert(*id, (*node, group, cpu));
                } else {
                    let (count, sum) = following.entry(*id).or_default();
                    *count += 1;
                    *sum += cpu;
                }
            }
        }
        let mut running: BTreeMap<u64, &Operator> = BTreeMap::new();
        let mut last: BTreeMap<u64, &Operator> = BTreeMap::new();
        // A merge also has the group that takes the other's keys. That one stays where it is.
        let mut kept: BTreeSet<u64> = BTreeSet::new();
        for operator in self.ledger.operators.values() {
            let left = operator.merge.as_ref().map(|merge| merge.left);
            match operator.state {
                OperatorState::Running => {
                    running.insert(operator.group, operator);
                    let left = left.filter(|left| operator.holds(*left));
                    kept.extend(left);
                }
                _ => {
                    last.insert(operator.group, operator);
                    last.extend(left.map(|left| (left, operator)));
                }
            }
        }
        let places = &self.places;
        let index: BTreeMap<u64, usize> =
            places.iter().enumerate().map(|(at, place)| (place.id, at)).collect();
        let is_seen = |id: u64| self.view.only.is_none_or(|only| only.contains(&id));
        let groups = self.ledger.groups.values();
        for group in groups.filter(|group| !group.dead && is_seen(group.id)) {
            let held = self.hold(
                group,
                leaders.get(&group.id).copied(),
                following.get(&group.id).copied(),
                running.get(&group.id).copied(),
                last.get(&group.id).copied(),
                inventory,
                now_ms,
            );
            let is_kept = kept.contains(&group.id);
            let free = held.free && !harmed.contains(&group.id) && !is_kept;
            self.groups.push(Held { free, ..held });
        }
        for (at, group) in self.groups.iter().enumerate() {
            for node in &group.nodes {
                let Some(place) = index.get(node).and_then(|p| self.places.get_mut(*p)) else {
                    continue;
                };
                add(&mut place.load, &group.load(group.leader == *node), 1.0);
                place.groups.insert(at);
            }
        }
        let count = self.places.len().max(1) as f64;
        for (measure, mean) in self.means.iter_mut().enumerate() {
            *mean = self.places.iter().map(|place| place.load[measure]).sum::<f64>() / count;
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that is known of one group, once")]
    fn hold(
        &self,
        group: &Group,
        led: Option<(u64, &GroupReport, u64)>,
        following: Option<(u64, u64)>,
        running: Option<&Operator>,
        last: Option<&Operator>,
        inventory: &Inventory,
        now_ms: u64,
    ) -> Held {
        let voters = || group.replicas.iter().filter(|replica| !replica.learner);
        let nodes: Vec<u64> = match running {
            Some(operator) => operator.target.clone(),
            None => voters().map(|replica| replica.node).collect(),
        };
        let mut leader = led.map_or(0, |(node, ..)| node);
        let heard_ms = inventory.nodes.get(&leader).map_or(0, |report| report.heard_ms);
        if let Some(operator) = running.or(last.filter(|o| o.ended_ms >= heard_ms))
            && operator.leader != 0
        {
            leader = operator.leader;
        }
        // A leader that is to go hands over to somebody.
        if leader != 0 && !nodes.contains(&leader) {
            leader = nodes.first().copied().unwrap_or(0);
        }
        let rested = last.is_none_or(|operator| now_ms >= operator.ended_ms + self.view.rest_ms);
        let whole = voters().count() == group.replicas.len();
        let tenant = self.ledger.tenants.get(&group.tenant);
        let alive = tenant.is_some_and(|tenant| tenant.state != TenantState::Deleted);
        let takes_part = |node: &u64| self.places.iter().any(|place| place.id == *node);
        let report = led.map(|(_, report, _)| report);
        let cpu = led.map_or(0, |(.., cpu)| cpu) as f64;
        let (count, following) = following.unwrap_or((0, 0));
        Held {
            id: group.id,
            name: self.ledger.group_name(group),
            version: group.membership_version,
            tenant: group.tenant,
            free: running.is_none()
                && led.is_some()
                && rested
                && whole
                && alive
                && nodes.iter().all(takes_part),
            nodes,
            leader,
            cpu: (cpu, if count == 0 { 0.0 } else { following as f64 / count as f64 }),
            writes: report.map_or(0, |report| report.write_bytes_per_s) as f64,
            size: report.map_or(0, |report| report.size_bytes) as f64,
            requests: report.map_or(0, |report| report.requests_per_s),
        }
    }

    /// How far a load is over the mean, and in what.
    fn worst(&self, place: &Place, load: &Load) -> (f64, usize) {
        self.worst_of(place, load, &ALL)
    }

    /// The same, of some measures.
    fn worst_of(&self, place: &Place, load: &Load, measures: &[usize]) -> (f64, usize) {
        let mut worst = (f64::NEG_INFINITY, 0);
        for measure in measures.iter().copied() {
            let mean = self.means[measure];
            let share = place.share[measure].max(f64::MIN_POSITIVE);
            let over = (load[measure] / share - mean) / mean.max(self.view.floors[measure]);
            if over > worst.0 {
                worst = (over, measure);
            }
        }
        worst
    }

    fn over(&self, at: usize) -> f64 {
        let place = &self.places[at];
        self.worst(place, &place.load).0
    }

    /// The nodes against the mean, in order of their ids.
    pub fn standings(&self) -> Vec<NodeLoad> {
        let standing = |place: &Place| {
            let (over, measure) = self.worst(place, &place.load);
            NodeLoad {
                node: place.id,
                cpu_us_per_s: place.load[CPU].round() as u64,
                write_bytes_per_s: place.load[WRITES].round() as u64,
                leaders: place.load[LEADERS] as u64,
                replicas: place.load[REPLICAS] as u64,
                size_bytes: place.load[SIZE].round() as u64,
                over: thousandths(over),
                most: NAMES[measure].to_owned(),
            }
        };
        self.places.iter().map(standing).collect()
    }

    /// What makes each node's load that is over the mean: the heaviest groups there, in words.
    pub fn heaviest(&self) -> Vec<String> {
        let mut said = Vec::new();
        for place in &self.places {
            let (over, measure) = self.worst(place, &place.load);
            if thousandths(over) < STOP {
                continue;
            }
            let mut groups: Vec<&Held> = place.groups.iter().map(|at| &self.groups[*at]).collect();
            let of = |group: &Held| group.load(group.leader == place.id)[measure];
            groups.sort_by(|a, b| of(b).total_cmp(&of(a)).then(a.id.cmp(&b.id)));
            let share = |group: &&&Held| of(group) / place.load[measure].max(1.0);
            let heavy = groups.iter().take(3).filter(|group| share(group) >= 0.1);
            let heavy = heavy.map(|group| {
                let (name, requests) = (&group.name, group.requests);
                let share = 100.0 * share(&group);
                format!("{name} makes {share:.0} % of it ({requests} requests/s)")
            });
            let heavy: Vec<String> = heavy.collect();
            let heavy = match heavy.as_slice() {
                [] => "many groups make a little of it each".to_owned(),
                heavy => heavy.join(", "),
            };
            said.push(format!("{}; {heavy}", self.says(place)));
        }
        said
    }

    /// How loaded a node is, in words.
    fn says(&self, place: &Place) -> String {
        let (over, measure) = self.worst(place, &place.load);
        let (name, mean) = (&place.name, self.means[measure] * place.share[measure]);
        let (has, fair) = (amount(measure, place.load[measure]), amount(measure, mean));
        let over = 100.0 * over;
        match measure {
            LEADERS | REPLICAS => format!("{name} has {has}, {over:.0} % over the mean of {fair}"),
            _ => format!(
                "{name} has {has} of {}, {over:.0} % over the mean of {fair}",
                NAMES[measure]
            ),
        }
    }

    fn may_move(&self, idea: Idea) -> bool {
        let (group, from, to) =
            (&self.groups[idea.group], &self.places[idea.from], &self.places[idea.to]);
        if idea.lead_only {
            return group.nodes.contains(&to.id);
        }
        let Some(node) = self.ledger.nodes.get(&to.id) else { return false };
        if group.nodes.contains(&to.id)
            || group.size > to.room
            || !self.ledger.fits(group.tenant, node)
        {
            return false;
        }
        let zone = |id: &u64| self.ledger.nodes.get(id).map_or("", |node| node.zone.as_str());
        let others = || group.nodes.iter().filter(|node| **node != from.id).map(zone);
        let same = |with: &str| others().filter(|zone| !zone.is_empty() && *zone == with).count();
        same(&to.zone) <= same(&from.zone)
    }

    /// What the two ends of a move lose and get.
    fn loads(&self, idea: Idea) -> (Load, Load) {
        let group = &self.groups[idea.group];
        let leads = group.leader == self.places[idea.from].id;
        let (mut from, mut to) = (self.places[idea.from].load, self.places[idea.to].load);
        let gone = group.load(leads);
        add(&mut from, &gone, -1.0);
        add(&mut to, &gone, 1.0);
        if idea.lead_only {
            add(&mut from, &group.load(false), 1.0);
            add(&mut to, &group.load(false), -1.0);
        }
        (from, to)
    }

    /// The worse end after a move that helps: it lowers the node that is this far over the mean,
    /// and its other end stays below that and below `bound`.
    fn outcome(&self, idea: Idea, worst: f64, bound: f64) -> Option<f64> {
        let (from, to) = self.loads(idea);
        let from = self.worst(&self.places[idea.from], &from).0;
        let to = self.worst_of(&self.places[idea.to], &to, raised(idea.lead_only)).0;
        (thousandths(10.0 * from) < thousandths(10.0 * worst) && to + BELOW <= worst && to <= bound)
            .then_some(from.max(to))
    }

    /// Moves away from a node that help, the best first, and how far over the mean their other ends
    /// may be. First come new leaders on nodes that have room, then new replicas on such nodes, and
    /// only then what makes another node uneven.
    fn ideas(&self, from: usize) -> (Vec<Idea>, f64) {
        let worst = self.over(from);
        let room = STOP as f64 / 1000.0;
        for (bound, lead_only) in [(room, true), (room, false), (worst, true), (worst, false)] {
            // The least loaded first; those that are as loaded as this one cannot help.
            let over = |to: usize| {
                let place = &self.places[to];
                thousandths(10.0 * self.worst_of(place, &place.load, raised(lead_only)).0)
            };
            let others = (0..self.places.len()).filter(|to| *to != from);
            let mut others: Vec<(i64, usize)> = others.map(|to| (over(to), to)).collect();
            others.sort_unstable();
            others.retain(|(over, _)| *over < thousandths(10.0 * worst));
            let mut ideas: Vec<((i64, i64, usize, usize), Idea)> = Vec::new();
            for group in &self.places[from].groups {
                let held = &self.groups[*group];
                if !held.free || (lead_only && held.leader != self.places[from].id) {
                    continue;
                }
                let all =
                    others.iter().map(|(_, to)| Idea { group: *group, from, to: *to, lead_only });
                let possible = all.filter(|idea| self.may_move(*idea));
                let helping = possible.filter_map(|i| Some((self.outcome(i, worst, bound)?, i)));
                let size = thousandths(held.size / 1e6);
                let ranked = helping.take(CHOICES).map(|(outcome, idea)| {
                    ((thousandths(10.0 * outcome), size, *group, idea.to), idea)
                });
                ideas.extend(ranked.min());
            }
            if !ideas.is_empty() {
                ideas.sort_unstable();
                return (ideas.into_iter().map(|(_, idea)| idea).collect(), bound);
            }
        }
        (Vec::new(), worst)
    }

    fn make(&mut self, idea: Idea) -> Move {
        let why = self.explain(idea);
        let (from_load, to_load) = self.loads(idea);
        let (from, to) = (self.places[idea.from].id, self.places[idea.to].id);
        self.places[idea.from].load = from_load;
        self.places[idea.to].load = to_load;
        let group = &mut self.groups[idea.group];
        let led = group.leader == from;
        if led {
            group.leader = to;
        }
        if !idea.lead_only {
            for node in group.nodes.iter_mut().filter(|node| **node == from) {
                *node = to;
            }
            self.places[idea.from].groups.remove(&idea.group);
            self.places[idea.to].groups.insert(idea.group);
            self.places[idea.from].room += group.size;
            self.places[idea.to].room -= group.size;
        }
        group.free = false;
        Move {
            group: group.id,
            membership_version: group.version,
            from,
            to,
            target: group.nodes.clone(),
            leader: if led { to } else { 0 },
            bytes: if idea.lead_only { 0 } else { group.size as u64 },
            why,
            fate: Fate::Waiting,
        }
    }

    fn explain(&self, idea: Idea) -> String {
        let (group, from, to) =
            (&self.groups[idea.group], &self.places[idea.from], &self.places[idea.to]);
        let (_, measure) = self.worst(from, &from.load);
        let led = group.leader == from.id;
        let mut part = group.load(led)[measure];
        if idea.lead_only {
            part -= group.load(false)[measure];
        }
        let (name, there) = (&group.name, &to.name);
        let what = match measure {
            LEADERS => format!("{name} is one of the groups that it leads"),
            REPLICAS => format!("{name} is one of them"),
            _ => format!("{name} makes {} of it", amount(measure, part)),
        };
        let fair = self.means[measure] * to.share[measure];
        let has = amount(measure, to.load[measure]);
        let below = if to.load[measure] < fair { "less than its share" } else { "less" };
        let how = match (idea.lead_only, led) {
            (true, _) => "has a copy already and takes the lead".to_owned(),
            (false, true) => format!("takes the replica ({}) and leads", bytes(group.size)),
            (false, false) => format!("takes the replica ({})", bytes(group.size)),
        };
        format!("{}; {what}; {there} has {has}, {below}: it {how}", self.says(from))
    }

    /// Why a node stays over the mean.
    fn stays(&self, at: usize) -> String {
        let place = &self.places[at];
        let (_, measure) = self.worst(place, &place.load);
        let groups = place.groups.iter().map(|group| &self.groups[*group]);
        let heavy = groups.clone().max_by(|a, b| {
            let of = |group: &Held| group.load(group.leader == place.id)[measure];
            of(a).total_cmp(&of(b)).then(b.id.cmp(&a.id))
        });
        let others = || self.places.iter().filter(|other| other.id != place.id);
        let full: Vec<&str> =
            others().filter(|other| other.room <= 0.0).map(|other| other.name.as_str()).collect();
        let free = format!("less than {:.0} % of its disk free", 100.0 * DISK_FREE);
        let why = match heavy {
            _ if self.places.len() < 2 => "there is no other node".to_owned(),
            _ if full.len() == others().count() => {
                format!("no other node takes a replica, each has {free}: {}", full.join(", "))
            }
            Some(group)
                if group.load(group.leader == place.id)[measure] > place.load[measure] / 2.0 =>
            {
                let name = &group.name;
                format!(
                    "{name} alone makes most of it, and would be too much for any other node: \
                     atoll tenant explain {name} says whether it can be split"
                )
            }
            _ if !groups.clone().any(|group| group.free) => {
                "its groups have just been moved, are being moved, or are pinned".to_owned()
            }
            _ if !full.is_empty() => {
                let full = full.join(", ");
                format!("no move to a node that has room makes it better; with {free}: {full}")
            }
            _ => "no move makes it better without making another node as bad".to_owned(),
        };
        format!("{}: {why}", self.says(place))
    }

    /// Plays moves that were planned before; those that do not fit what is are left out.
    pub fn play(&mut self, moves: &[Move]) {
        for planned in moves {
            let at = |id: u64| self.places.iter().position(|place| place.id == id);
            let group = self.groups.iter().position(|group| group.id == planned.group);
            let (Some(group), Some(from), Some(to)) = (group, at(planned.from), at(planned.to))
            else {
                continue;
            };
            let lead_only = self.groups[group].nodes.contains(&planned.to);
            let idea = Idea { group, from, to, lead_only };
            if self.may_move(idea) && self.groups[group].nodes.contains(&planned.from) {
                self.make(idea);
            }
        }
    }
}

// === impl Held ===

impl Held {
    /// What a replica makes a node do.
    fn load(&self, leads: bool) -> Load {
        let (lead, follow) = self.cpu;
        let cpu = if leads { lead } else { follow };
        [cpu, self.writes, if leads { 1.0 } else { 0.0 }, 1.0, self.size]
    }
}

/// How a node's CPU time is shared out to its groups.
pub(crate) enum CpuShare {
    /// The node tells what it spends for each.
    Told,
    /// It tells what the process spends, in microseconds a second: each group has a share by its
    /// part of all the work.
    ByWork { cpu: u64, all: u64 },
}

// === impl CpuShare ===

impl CpuShare {
    /// By what a node tells.
    pub(crate) fn of(node: &NodeReport) -> CpuShare {
        match node.groups.values().any(|group| group.cpu_us_per_s > 0) {
            true => CpuShare::Told,
            false => CpuShare::ByWork {
                cpu: node.cpu_us_per_s,
                all: node.groups.values().map(work).sum(),
            },
        }
    }

    /// Microseconds a second of a group there.
    pub(crate) fn cpu(&self, group: &GroupReport) -> u64 {
        match self {
            CpuShare::Told => group.cpu_us_per_s,
            CpuShare::ByWork { cpu, all } => {
                (u128::from(*cpu) * u128::from(work(group)) / u128::from((*all).max(1))) as u64
            }
        }
    }
}

/// What a group gives a node to do: a request costs about as much as some hundred bytes of a log.
fn work(group: &GroupReport) -> u64 {
    group.requests_per_s + group.write_bytes_per_s / 512
}

/// What a node has more of after a move.
fn raised(lead_only: bool) -> &'static [usize] {
    if lead_only { &LED } else { &ALL }
}

fn add(load: &mut Load, other: &Load, times: f64) {
    for (sum, part) in load.iter_mut().zip(other) {
        *sum += times * part;
    }
}

/// A share as a whole number, so that what is next to equal is equal everywhere.
fn thousandths(share: f64) -> i64 {
    (share * 1000.0).round().clamp(-1e15, 1e15) as i64
}

fn amount(measure: usize, of: f64) -> String {
    match measure {
        CPU => format!("{:.2} cores", of / 1e6),
        WRITES => format!("{}/s", bytes(of)),
        LEADERS => format!("{of:.0} leaders"),
        REPLICAS => format!("{of:.0} replicas"),
        _ => bytes(of),
    }
}

/// Bytes for people.
pub fn bytes(count: f64) -> String {
    const UNITS: [(f64, &str); 3] =
        [(1_073_741_824.0, "GiB"), (1_048_576.0, "MiB"), (1024.0, "KiB")];
    match UNITS.iter().find(|(unit, _)| count >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", count / unit),
        None => format!("{count:.0} B"),
    }
}

/// How far the worst node is over the mean, in thousandths of it.
pub fn spread(standings: &[NodeLoad]) -> i64 {
    standings.iter().map(|standing| standing.over).max().unwrap_or(0)
}

/// At most `most` moves that even the load out; none if it is even enough.
pub fn propose(
    ledger: &Ledger,
    inventory: &Inventory,
    now_ms: u64,
    most: usize,
) -> Result<Proposal, Unknown> {
    Ok(even_out(&mut Cluster::new(ledger, inventory, now_ms)?, most))
}

/// Moves that spread some groups evenly, as if there were no others, and had not just been moved.
pub fn spread_out(
    ledger: &Ledger,
    inventory: &Inventory,
    now_ms: u64,
    groups: &BTreeSet<u64>,
) -> Result<Proposal, Unknown> {
    let mut floors = FLOORS;
    (floors[LEADERS], floors[REPLICAS]) = (1.0, 1.0);
    let view = View { only: Some(groups), floors, rest_ms: 0 };
    Ok(even_out(&mut Cluster::seen(ledger, inventory, now_ms, view)?, groups.len()))
}

fn even_out(cluster: &mut Cluster<'_>, most: usize) -> Proposal {
    let before = cluster.standings();
    let mut proposal = Proposal { before: before.clone(), after: before, ..Proposal::default() };
    if spread(&proposal.before) < BEGIN {
        return proposal;
    }
    // Nodes that no move has helped: they are not asked again.
    let mut stuck: BTreeSet<usize> = BTreeSet::new();
    while proposal.moves.len() < most {
        let open = (0..cluster.places.len()).filter(|at| !stuck.contains(at));
        let over = |at: &usize| (thousandths(cluster.over(*at)), Reverse(*at));
        let Some(worst) = open.max_by_key(over) else { break };
        if thousandths(cluster.over(worst)) < STOP {
            break;
        }
        let (ideas, bound) = cluster.ideas(worst);
        if ideas.is_empty() {
            stuck.insert(worst);
        }
        // Among many small groups the next best are about as good, and need not be sought again.
        let batch = (cluster.places[worst].groups.len() / MANY).max(1);
        for (number, idea) in
            ideas.into_iter().take(batch.min(most - proposal.moves.len())).enumerate()
        {
            let over = cluster.over(worst);
            let helps = thousandths(over) >= STOP && cluster.outcome(idea, over, bound).is_some();
            if number == 0 || helps {
                proposal.moves.push(cluster.make(idea));
            }
        }
    }
    proposal.stays = stuck.into_iter().map(|at| cluster.stays(at)).collect();
    proposal.after = cluster.standings();
    proposal
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ledger::Change;
    use crate::record::{Pin, Record, Replica};
    use crate::world::{Truth, World};

    const MIB: f64 = 1_048_576.0;

    fn truth(cpu: f64) -> Truth {
        Truth { lead_cpu: cpu, follow_cpu: cpu / 3.0, writes: 10.0 * cpu, size: MIB, leader: 0 }
    }

    /// Three different nodes of the first `of`, at random, in different zones if there are some.
    fn homes(world: &mut World, of: u64) -> Vec<u64> {
        let zone = |world: &World, node: u64| world.ledger.nodes[&node].zone.clone();
        let mut homes: Vec<u64> = Vec::new();
        while homes.len() < 3 {
            let node = 1 + world.random(of);
            let same = |home: &u64| {
                let its = zone(world, node);
                *home == node || (!its.is_empty() && zone(world, *home) == its)
            };
            if !homes.iter().any(same) {
                homes.push(node);
            }
        }
        homes
    }

    /// All groups on the first `of` nodes, with loads from 1 to `spread` times `cpu`.
    fn lopsided(world: &mut World, groups: usize, of: u64, cpu: f64, spread: u64) {
        for _ in 0..groups {
            let homes = homes(world, of);
            let times = 1 + world.random(spread);
            world.tenant(&homes, truth(cpu * times as f64));
        }
    }

    #[test]
    fn an_even_cluster_is_left_alone() {
        let mut world = World::new(1, 3, 0);
        for group in 0..60 {
            let first = 1 + group % 3;
            world.tenant(&[first, 1 + first % 3, 1 + (first + 1) % 3], truth(30_000.0));
        }
        let inventory = world.inventory();
        let proposal = propose(&world.ledger, &inventory, world.now_ms, 100).expect("known");
        assert_eq!((proposal.moves.len(), spread(&proposal.before)), (0, 0));
    }

    #[test]
    fn what_does_next_to_nothing_is_left_alone() {
        let mut world = World::new(1, 3, 0);
        world.tenant(&[1, 2, 3], truth(9_000.0));
        world.tenant(&[1, 2, 3], truth(5_000.0));
        let inventory = world.inventory();
        let proposal = propose(&world.ledger, &inventory, world.now_ms, 100).expect("known");
        assert_eq!(proposal.moves, []);
    }

    #[test]
    fn a_new_leader_is_tried_before_a_new_replica() {
        let mut world = World::new(1, 3, 0);
        for _ in 0..30 {
            world.tenant(&[1, 2, 3], truth(30_000.0));
        }
        let inventory = world.inventory();
        let proposal = propose(&world.ledger, &inventory, world.now_ms, 10).expect("known");
        let moved = &proposal.moves;
        assert_eq!(moved.len(), 10);
        let leads = moved.iter().filter(|it| it.target == [1, 2, 3] && it.leader == it.to);
        assert_eq!(leads.count(), 10, "{moved:?}");
        assert!(moved[0].why.contains("takes the lead"), "{}", moved[0].why);
        assert!(spread(&proposal.after) < spread(&proposal.before));
    }

    #[test]
    fn a_single_hot_group_stays_and_it_is_said_why() {
        let mut world = World::new(1, 3, 0);
        world.tenant(&[1], truth(900_000.0));
        let inventory = world.inventory();
        let proposal = propose(&world.ledger, &inventory, world.now_ms, 10).expect("known");
        assert_eq!(proposal.moves, []);
        assert!(proposal.stays[0].contains("t2 alone makes most of it"), "{:?}", proposal.stays);
    }

    #[test]
    fn nodes_with_full_disks_are_named_as_the_reason() {
        let mut world = World::new(1, 5, 0);
        for _ in 0..30 {
            world.tenant(&[1, 2, 3], truth(1_000.0));
        }
        let mut inventory = world.inventory();
        let mut stays = |full: &[u64]| {
            for node in full {
                let report = inventory.nodes.get_mut(node).expect("it answers");
                report.disk_free = report.disk_total / 10;
            }
            let proposal = propose(&world.ledger, &inventory, world.now_ms, 500);
            proposal.expect("known").stays
        };
        assert!(!stays(&[]).iter().any(|why| why.contains("disk")));
        let some = stays(&[4, 5]);
        assert!(some[0].contains("with less than 10 % of its disk free: n4, n5"), "{some:?}");
        let all = stays(&[1, 2, 3, 4, 5]);
        let said =
            "no other node takes a replica, each has less than 10 % of its disk free: n2, n3";
        assert!(all[0].contains(said), "{all:?}");
    }

    #[test]
    fn what_is_predicted_is_what_comes() {
        for seed in 0..10 {
            let mut world = World::new(seed, 6, 3);
            lopsided(&mut world, 80, 4, 10_000.0, 5);
            // A group moves once in a plan: what needs two moves of it takes two plans.
            for _ in 0..3 {
                let inventory = world.inventory();
                let propose = || propose(&world.ledger, &inventory, world.now_ms, 500);
                let proposal = propose().expect("known");
                assert_eq!(Ok(&proposal), propose().as_ref(), "the same for the same");
                carry_out(&mut world, &proposal.moves);
                assert_eq!(world.spread(), spread(&proposal.after), "seed {seed}");
            }
            let worst = world.spread();
            assert!(worst <= BEGIN, "seed {seed}: {worst}");
        }
    }

    fn carry_out(world: &mut World, moves: &[Move]) {
        for planned in moves {
            let mut group = Group::clone(&world.ledger.groups[&planned.group]);
            let replica = |node: &u64| Replica { node: *node, replica: *node, learner: false };
            group.replicas = planned.target.iter().map(replica).collect();
            world.apply(&Change::default().put(Record::Group(group)));
            let truth = world.groups.get_mut(&planned.group).expect("it is a group");
            truth.leader = if planned.leader == 0 { truth.leader } else { planned.leader };
        }
    }

    /// Lets it balance itself until it is quiet; gives the number of moves.
    fn settle(world: &mut World, rounds: usize) -> usize {
        let before = world.moves;
        for _ in 0..rounds {
            world.round(2_000);
        }
        world.moves - before
    }

    #[test]
    fn clusters_of_all_sizes_become_even_and_stay_so() {
        for (seed, nodes, zones, groups) in
            [(1, 3, 0, 40), (2, 4, 0, 60), (3, 6, 3, 120), (4, 12, 4, 150), (5, 50, 5, 200)]
        {
            let mut world = World::new(seed, nodes, zones);
            lopsided(&mut world, groups, (nodes * 2 / 3).max(3), 20_000.0, 4);
            world.noise = 5.0;
            let before = world.spread();
            let moves = settle(&mut world, 250);
            let after = world.spread();
            assert!(after <= BEGIN.min(before), "seed {seed}: {before} -> {after}, {moves} moves");
            assert!(moves <= 2 * groups, "seed {seed}: {moves} moves of {groups} groups");
            let more = settle(&mut world, 120);
            assert!(more <= groups / 20, "seed {seed}: {more} moves of an even cluster");
        }
    }

    /// Where "the gap must shrink by a twentieth" did nothing, no move being as large as that.
    #[test]
    fn three_thousand_small_groups_on_a_node_that_has_three_times_the_mean() {
        let mut world = World::new(7, 10, 0);
        for group in 0..3000u64 {
            // A third of all are led by the first node, which has a copy of almost all.
            let first = if group % 100 < 34 { 1 } else { 2 + group % 9 };
            let second = if first == 1 { 2 + group % 9 } else { 1 };
            let third = if first == 1 { 2 + (group + 1) % 9 } else { 2 + (group + 4) % 9 };
            world.tenant(&[first, second, third], truth(900.0));
        }
        let before = world.spread();
        assert!(before >= 2_000, "{before}");
        let inventory = world.inventory();
        let proposal = propose(&world.ledger, &inventory, world.now_ms, 2200).expect("known");
        let (moves, after) = (proposal.moves.len(), spread(&proposal.after));
        assert!(after <= STOP, "{before} -> {after} with {moves} moves");
        assert!(moves < 2200, "{moves}");
    }

    /// Where moves back and forth were made for ever: few groups, numbers that are never the same.
    #[test]
    fn sixty_groups_do_not_dance() {
        for seed in 1..4 {
            let mut world = World::new(seed, 5, 0);
            lopsided(&mut world, 60, 5, 60_000.0, 3);
            world.noise = 6.0;
            let moves = settle(&mut world, 450);
            assert!(moves <= 60, "seed {seed}: {moves} moves in a quarter of an hour");
            assert!(world.spread() <= BEGIN, "seed {seed}: {}", world.spread());
        }
    }

    #[test]
    fn pinned_tenants_stay_where_they_are_pinned_to() {
        let mut world = World::new(3, 6, 0);
        lopsided(&mut world, 60, 4, 30_000.0, 3);
        for tenant in world.ledger.tenants.values_mut() {
            Arc::make_mut(tenant).pin = Some(Pin::Nodes(vec![1, 2, 3, 4]));
        }
        // The world checks that none leaves.
        settle(&mut world, 300);
        let there = |group: &Arc<Group>| group.replicas.iter().any(|replica| replica.node > 4);
        assert!(!world.ledger.groups.values().any(there));
    }

    #[test]
    fn nodes_that_take_nothing_or_are_silent_get_nothing() {
        let mut world = World::new(3, 7, 0);
        lopsided(&mut world, 60, 3, 30_000.0, 3);
        world.ledger.nodes.get_mut(&5).expect("it is there").state = NodeState::Cordoned;
        world.ledger.nodes.get_mut(&6).expect("it is there").state = NodeState::Draining;
        let mut inventory = world.inventory();
        inventory.nodes.remove(&7);
        let proposal = propose(&world.ledger, &inventory, world.now_ms, 500).expect("known");
        assert!(!proposal.moves.is_empty());
        assert!(proposal.moves.iter().all(|it| it.to <= 4), "{:?}", proposal.moves);
        inventory.nodes.remove(&4);
        let unknown = propose(&world.ledger, &inventory, world.now_ms, 500);
        assert!(unknown.expect_err("two of five are silent").0.contains("n4, n7"));
    }

    #[test]
    fn old_numbers_decide_nothing() {
        let mut world = World::new(3, 4, 0);
        lopsided(&mut world, 60, 3, 30_000.0, 3);
        let inventory = world.inventory();
        assert!(propose(&world.ledger, &inventory, world.now_ms + STALE_MS, 5).is_err());
        assert!(propose(&world.ledger, &Inventory::default(), world.now_ms, 5).is_err());
    }

    #[test]
    fn cpu_is_shared_out_by_work_where_groups_are_not_told_apart() {
        let group = |requests_per_s| GroupReport { requests_per_s, ..GroupReport::default() };
        let groups = BTreeMap::from([(2, group(300)), (3, group(100)), (4, group(0))]);
        let mut node = NodeReport { cpu_us_per_s: 800_000, groups, ..NodeReport::default() };
        let cpu = |node: &NodeReport| [2, 3, 4].map(|id| CpuShare::of(node).cpu(&node.groups[&id]));
        assert_eq!(cpu(&node), [600_000, 200_000, 0]);
        node.groups.get_mut(&4).expect("it is there").cpu_us_per_s = 7;
        assert_eq!(cpu(&node), [0, 0, 7]);
    }

    #[test]
    fn a_group_rests_after_an_operator() {
        let mut world = World::new(3, 4, 0);
        lopsided(&mut world, 40, 3, 30_000.0, 3);
        for _ in 0..3 {
            world.round(1000);
        }
        let moved: BTreeSet<u64> = world.ledger.operators.values().map(|o| o.group).collect();
        assert!(!moved.is_empty());
        let inventory = world.inventory();
        let next = propose(&world.ledger, &inventory, world.now_ms, 500).expect("known");
        assert!(next.moves.iter().all(|it| !moved.contains(&it.group)));
        world.now_ms += 2 * REST_MS;
        let inventory = world.inventory();
        let all = Cluster::new(&world.ledger, &inventory, world.now_ms).expect("known");
        assert!(all.groups.iter().filter(|it| moved.contains(&it.id)).all(|it| it.free));
    }
}
