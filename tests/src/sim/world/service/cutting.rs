//! Etcds that are cut over groups, and their groups merged again, by placement's own code: what
//! somebody asks for, what executors ask of groups, and what is learned of their logs. Who is asked
//! and answers may be slow, dead or lost at each step, and each step is begun anew from the ledger.
//!
//! Clients of these etcds are sent by the map that the node of their router knows (`../routes.rs`),
//! and judged as if there were one group. Not all are cut: compactions, watches of many keys and
//! freezing are judged with those that never are.

use std::collections::BTreeMap;

use placement::Ledger;
use placement::executor::request_of;
use placement::inventory::Inventory;
use placement::operators::{self, Step};
use placement::record::{Group, Merge, Operator, OperatorState, keys_of};
use placement::splits::{self, Said};
use placement::tenants::Planned;
use placement::{charters, merges, view};
use proto::cluster::group::{DescribeRequest, MergeRange, SetCharter, SplitRange};
use proto::group::{GroupError, Reply, Request};
use proto::{Error, GroupId, NodeId};
use shard::node::Input;

use super::super::routes::{Map, Placed};
use super::super::{Tenant, World};
use super::{Asked, Errand, Purpose, Service};
use crate::sim::random::Random;

/// Groups that an etcd is cut over at most.
const GROUPS_MAX: usize = 4;

/// What is known of cuts, beside the ledgers.
pub(super) struct Cutting {
    /// Drawn apart: what has no cuts tells its old story.
    pub(super) random: Random,
    /// The tenants, by place, of groups that were born of others, or may be.
    children: BTreeMap<GroupId, usize>,
    /// Where the groups of split etcds are, as the process of a host was told.
    whereabouts: BTreeMap<usize, (u64, BTreeMap<GroupId, Vec<NodeId>>)>,
}

// === impl Cutting ===

impl Cutting {
    pub(super) fn new(seed: u64) -> Cutting {
        let random = Random::new(!seed.rotate_left(24));
        Cutting { random, children: BTreeMap::new(), whereabouts: BTreeMap::new() }
    }
}

// === impl Service ===

impl Service {
    /// The map of a tenant at a host, as its process, or the one before it, has read it.
    pub(in super::super) fn map_at(&self, host: usize, tenant: &Tenant) -> Option<Map> {
        let (_, ledger) = self.seen.get(&host)?;
        let known = ledger.tenants.get(&tenant.id)?;
        let etcd = known.namespaces.iter().find(|etcd| etcd.id == tenant.namespace)?;
        let placed = |place: &placement::record::Place| Placed {
            start: place.start.clone(),
            group: GroupId(place.group),
            version: place.version,
        };
        let places = etcd.places().iter().map(placed).collect();
        Some(Map { tenant: tenant.id, namespace: tenant.namespace, places })
    }

    /// The tenant of a group that was born of another one.
    pub(in super::super) fn parent_of(&self, group: GroupId) -> Option<usize> {
        self.cutting.as_ref()?.children.get(&group).copied()
    }

    pub(in super::super) fn random_of_places(&mut self) -> &mut Random {
        match &mut self.cutting {
            Some(cutting) => &mut cutting.random,
            None => &mut self.random,
        }
    }
}

// === impl World ===

impl World {
    fn cutting(&mut self) -> Option<&mut Cutting> {
        self.service.as_mut()?.cutting.as_mut()
    }

    /// Whether clients of a new tenant are to expect that it is cut.
    pub(super) fn may_be_cut(&mut self) -> bool {
        self.cutting().is_some_and(|cutting| cutting.random.permille(600))
    }

    /// The tenant that a group of the ledger is of.
    pub(super) fn tenant_of(&self, group: &Group) -> Option<usize> {
        let home = self.tenants.iter().position(|tenant| tenant.group.0 == group.id);
        let is_its = |tenant: &Tenant| {
            tenant.is_wide() && (tenant.id, tenant.namespace) == (group.tenant, group.namespace)
        };
        home.or_else(|| self.tenants.iter().position(is_its))
    }

    /// Groups that may be born: who asks for them has read of them before.
    pub(super) fn expect_children(&mut self, ledger: &Ledger) {
        for operator in ledger.operators.values().filter(|operator| operator.is_split()) {
            let group = ledger.groups.get(&operator.group);
            let Some(tenant) = group.and_then(|group| self.tenant_of(group)) else { continue };
            let Some(cutting) = self.cutting() else { return };
            let children = operator.cuts.iter().map(|cut| (GroupId(cut.child), tenant));
            cutting.children.extend(children);
        }
    }

    /// A tenant that may be cut and still is, with its name.
    fn some_etcd(&mut self, ledger: &Ledger) -> Option<(String, Vec<String>)> {
        let living = self.tenants.iter().filter(|tenant| tenant.is_wide() && tenant.over.is_none());
        let etcds = living.filter_map(|tenant| {
            let owner = ledger.tenants.get(&tenant.id)?;
            let etcd = owner.namespaces.iter().find(|etcd| etcd.id == tenant.namespace)?;
            let places = etcd.places();
            let cuts = places.iter().skip(1);
            let cuts = cuts.map(|place| placement::record::text::of(&place.start)).collect();
            Some((owner.full_name(etcd), cuts))
        });
        let mut etcds: Vec<_> = etcds.collect();
        let cutting = self.service.as_mut()?.cutting.as_mut()?;
        let pick = cutting.random.below(etcds.len().max(1) as u64) as usize;
        (pick < etcds.len()).then(|| etcds.swap_remove(pick))
    }

    /// What somebody thinks of: cuts of an etcd, or that there are fewer.
    pub(super) fn cutting_idea(
        &mut self,
        ledger: &Ledger,
        inventory: &Inventory,
        now_ms: u64,
    ) -> Option<Planned> {
        if !self.cutting()?.random.permille(350) {
            return None;
        }
        let (name, cuts) = self.some_etcd(ledger)?;
        let random = &mut self.cutting()?.random;
        if !cuts.is_empty() && random.permille(450) {
            let pick = random.below(cuts.len() as u64) as usize;
            let all = random.permille(300);
            let at = cuts.get(pick).map(String::as_str).filter(|_| !all);
            let wish = merges::Wish { name: &name, at, all };
            return Some(merges::merge(ledger, inventory, &wish, now_ms));
        }
        if cuts.len() + 1 >= GROUPS_MAX {
            return None;
        }
        let count = 1 + usize::from(random.permille(200));
        let at: Vec<String> = (0..count).map(|_| format!("k{}", random.below(8))).collect();
        let wish = splits::Wish { name: &name, at: &at, prefixes: &[] };
        Some(splits::split(ledger, inventory, &wish, now_ms))
    }

    // === executors ===

    /// The next step of an operator that changes keys. Says whether it was one.
    pub(super) fn change_keys(
        &mut self,
        ledger: &Ledger,
        operator: &Operator,
        step: &Step,
    ) -> bool {
        let now_ms = self.placement_ms();
        if let Some(change) = merges::give_up(ledger, operator.id, now_ms) {
            self.write(ledger, change, "a merge is given up");
            return true;
        }
        match (step, ledger.groups.get(&operator.group)) {
            (Step::Cut(cut), Some(group)) => {
                let late = splits::give_up(ledger, operator.id, now_ms);
                if let Some(change) = late.filter(|_| self.chance().permille(300)) {
                    self.write(ledger, change, "a split is given up");
                    return true;
                }
                let ask = SplitRange { at: cut.at.clone(), child: cut.child };
                self.ask_for_keys(ledger, group, Request::SplitRange(ask), Purpose::Keys);
            }
            (Step::Merge(merge), _) => self.ask_to_merge(ledger, operator, merge),
            (Step::Settle(_), Some(group)) => self.settle(ledger, operator, group),
            (Step::SettleMerge(merge), _) => match ledger.groups.get(&merge.left) {
                _ if merges::is_forlorn(operator, now_ms) => {
                    let ended = operators::finish(ledger, operator.id, false, now_ms);
                    self.write(ledger, ended.unwrap_or_default(), "a merge is forlorn");
                }
                Some(left) => self.settle(ledger, operator, left),
                None => {}
            },
            _ => return false,
        }
        self.stepped(operator, step);
        true
    }

    fn ask_to_merge(&mut self, ledger: &Ledger, operator: &Operator, merge: &Merge) {
        if let Some(change) = merges::note_asked(ledger, operator.id, self.placement_ms()) {
            return self.write(ledger, change, "a merge is asked for");
        }
        let Some(left) = ledger.groups.get(&merge.left) else { return };
        let ask = MergeRange { right: operator.group, at: merge.at.clone() };
        self.ask_for_keys(ledger, left, Request::MergeRange(ask), Purpose::Keys);
    }

    fn settle(&mut self, ledger: &Ledger, operator: &Operator, group: &Group) {
        let known = ledger.range_version(group.id);
        let purpose = Purpose::Settle { operator: operator.id, known };
        self.ask_for_keys(ledger, group, Request::Describe(DescribeRequest {}), purpose);
    }

    fn ask_for_keys(&mut self, ledger: &Ledger, group: &Group, body: Request, purpose: Purpose) {
        self.note(&format!("placement asks group {}: {body:?}", group.id));
        self.faults += 1;
        let request = request_of(ledger, group, body);
        self.knock(Asked { request, purpose, tries: 0 });
    }

    /// A group has said what its keys are, or that they are others than placement knows.
    pub(super) fn hear_of_keys(&mut self, group: GroupId, answer: Result<Reply, GroupError>) {
        self.note(&format!("placement hears of the keys of {group:?}: {answer:?}"));
        let place = match answer {
            Ok(Reply::Ranges(said)) => said.places.into_iter().find(|it| it.group == group.0),
            Ok(Reply::Describe(told)) => told.place,
            Err(error) if error.error == Error::StaleRange => {
                let ledger = self.service().newest.clone();
                let Some(known) = ledger.groups.get(&group.0) else { return };
                let ask = Request::Describe(DescribeRequest {});
                return self.ask_for_keys(&ledger, known, ask, Purpose::Keys);
            }
            _ => None,
        };
        if let Some(said) = place.map(Said::from) {
            self.run(Errand::Keys { group, said });
        }
    }

    /// What a group says of its keys is written down, if it is news.
    pub(super) fn learn_keys(&mut self, ledger: &Ledger, group: GroupId, said: &Said) -> bool {
        let learned = splits::learn(ledger, group.0, said, self.placement_ms());
        let is_news = learned.is_some();
        self.write(ledger, learned.unwrap_or_default(), "keys are others now");
        is_news
    }

    /// A group has said what its keys are, to an operator that wants to end.
    pub(super) fn settled(
        &mut self,
        ledger: &Ledger,
        operator: u64,
        group: GroupId,
        known: u64,
        said: &Said,
    ) {
        if self.learn_keys(ledger, group, said) {
            return;
        }
        let now_ms = self.placement_ms();
        let Some(found) = ledger.operators.get(&operator) else { return };
        let is_settled = match found.is_split() {
            true => splits::is_settled(found, now_ms),
            false => merges::is_settled(found, now_ms),
        };
        if !is_settled {
            return;
        }
        if said.version > known {
            return self.end_settled(ledger, operator);
        }
        // Under the same version what was asked for would be done before this word is taken in.
        let word = ledger.groups.get(&group.0).and_then(|group| charters::of(ledger, group));
        if let (Some(charter), Some(of)) = (word, ledger.groups.get(&group.0)) {
            let word = Request::SetCharter(SetCharter { charter: Some(charter) });
            self.ask_for_keys(ledger, of, word, Purpose::Settled { operator });
        }
    }

    /// Ends an operator, if that is what is next.
    pub(super) fn end_settled(&mut self, ledger: &Ledger, operator: u64) {
        let found = ledger.operators.get(&operator);
        let found = found.filter(|found| found.state == OperatorState::Running);
        let next = found.map(|found| operators::next_step(ledger, found));
        if matches!(next, Some(Step::Settle(_) | Step::SettleMerge(_))) {
            let ended = operators::finish(ledger, operator, false, self.placement_ms());
            self.write(ledger, ended.unwrap_or_default(), "an end that was settled");
        }
    }

    // === stewards ===

    /// A node is told where the groups of split etcds are, and reports the keys of those that it leads.
    pub(super) fn look_at_keys(&mut self, host: usize, ledger: &Ledger) {
        let life = self.hosts[host].life;
        let Some(cutting) = self.cutting() else { return };
        let now = view::whereabouts(ledger);
        let told = cutting.whereabouts.get(&host);
        if told.is_none_or(|(of, told)| *of != life || *told != now) {
            cutting.whereabouts.insert(host, (life, now.clone()));
            self.step(host, Input::Whereabouts(now));
        }
        let Some(process) = &self.hosts[host].process else { return };
        let is_other = |group: &GroupId| {
            let here = process.node.group(*group).filter(|here| here.is_leader());
            let version = here.map_or(0, |here| here.machine().state().range_version);
            version > ledger.range_version(group.0)
        };
        let living = ledger.groups.values().filter(|group| !group.dead);
        let others: Vec<GroupId> = living.map(|group| GroupId(group.id)).filter(is_other).collect();
        for group in others {
            let request = proto::group::request_to(group, Request::Describe(DescribeRequest {}));
            let asked =
                Asked { request: request.clone(), purpose: Purpose::Keys, tries: super::TRIES };
            self.request(host, super::Waiting::Service(asked), request);
        }
    }

    /// May a replica of a group come to a host? Not one that a group there brings with it.
    pub(super) fn may_come(&self, host: usize, ledger: &Ledger, group: GroupId) -> bool {
        let has_cuts = self.service.as_ref().is_some_and(|service| service.cutting.is_some());
        let process = self.hosts[host].process.as_ref();
        let keys = |id| Some(process?.node.group(id)?.machine().state().range());
        !has_cuts || view::may_come(ledger, group, keys)
    }

    // === the end ===

    /// Ledger and nodes agree on the keys of groups.
    pub(super) fn judge_keys(&self, ledger: &Ledger, violations: &mut Vec<String>) {
        for host in self.hosts.iter().filter(|host| !host.removed) {
            let groups = host.process.iter().flat_map(|process| process.node.groups());
            for (id, group) in groups {
                let Some((etcd, at)) = ledger.place_of(id.0) else { continue };
                let state = group.machine().state();
                let said = (state.range(), state.range_version);
                let wanted = (keys_of(&etcd.places(), at), ledger.range_version(id.0));
                if said != wanted {
                    let host = host.id;
                    let wrong = format!("n{host} has {said:?} for {id:?}, the ledger {wanted:?}");
                    violations.push(wrong);
                }
            }
        }
    }
}

/// An operator's change, if it is one of an etcd that is on several groups.
pub(super) fn is_of_split(ledger: &Ledger, operator: &Operator) -> bool {
    ledger.place_of(operator.group).is_some_and(|(etcd, _)| etcd.is_split())
}
