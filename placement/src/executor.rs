//! Takes the next step of every operator: asks the group's leader to change its members or its keys,
//! and writes down what has come to its end. Tells groups their charters in the same way.
//!
//! It runs where the system group is led, and keeps nothing: the step is read off the ledger each
//! time, and the group refuses a step that was made for other members than it has. Two executors
//! at a time, or one that was stopped in the middle, do no harm.
//!
//! A merge may take its groups some seconds. Nothing else waits for it: it is asked for beside the
//! rounds, and it is noted who is being asked, so that nobody is twice.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use proto::cluster::group::{
    ChangeReplica, DescribeRequest, GroupRequest, MergeRange, SetCharter, SplitRange,
    change_replica::Kind,
};
use proto::etcd::{Member, MoveLeaderRequest};
use proto::group::{GroupError, Reply, Request, request_to};
use proto::{Error, GroupId};
use tokio::task::JoinSet;

use crate::automerge;
use crate::autosplit;
use crate::charters;
use crate::health::Health;
use crate::inventory::Inventory;
use crate::ledger::{Change, Ledger};
use crate::merges;
use crate::office::Office;
use crate::operators::{self, Step};
use crate::plans;
use crate::record::{Cut, Group, Merge, Operator, text};
use crate::repairs;
use crate::splits::{self, Said};

/// How long a group may take for one step, in milliseconds.
const STEP_MS: u64 = 2000;
/// How long a group may take for a merge, in milliseconds.
const MERGE_MS: u64 = 6000;
/// Leaderships that are moved at a time.
const HANDOVERS_MAX: usize = 4;
/// Groups that are told of their charter at a time.
const TELL_MAX: usize = 128;

impl Office {
    /// New operators for what is lost, for nodes that are drained and for balance, and one step of
    /// each that has its turn. Says whether there was anything to do but to plan: then there may be
    /// more, also if neither the ledger nor the inventory changes.
    pub async fn execute(&self, ledger: &Arc<Ledger>, inventory: &Inventory, now_ms: u64) -> bool {
        let unfit = inventory.unfit(ledger, now_ms);
        let repairs = |l: &Ledger| repairs::plan(l, inventory, now_ms);
        let drains = |l: &Ledger| operators::plan_drains(&l.with_silent(unfit.clone()), now_ms);
        if repairs(ledger).is_some()
            && let Err(error) = self.insist(repairs).await
        {
            tracing::debug!(%error, "repairs cannot be planned now");
        }
        if drains(ledger).is_some()
            && let Err(error) = self.insist(drains).await
        {
            tracing::debug!(%error, "drains cannot be planned now");
        }
        let balance = |l: &Ledger| plans::tend(&l.with_silent(unfit.clone()), inventory, now_ms);
        if balance(ledger).is_some()
            && let Err(error) = self.insist(balance).await
        {
            tracing::debug!(%error, "balance cannot be planned now");
        }
        let rules =
            |l: &Ledger| splits::follow_rules(&l.with_silent(unfit.clone()), inventory, now_ms);
        if rules(ledger).is_some()
            && let Err(error) = self.insist(rules).await
        {
            tracing::debug!(%error, "rules cannot be followed now");
        }
        let hot = |l: &Ledger| autosplit::plan(&l.with_silent(unfit.clone()), inventory, now_ms);
        if hot(ledger).is_some()
            && let Err(error) = self.insist(hot).await
        {
            tracing::debug!(%error, "splits cannot be planned now");
        }
        let quiet = |l: &Ledger| automerge::plan(&l.with_silent(unfit.clone()), inventory, now_ms);
        if quiet(ledger).is_some()
            && let Err(error) = self.insist(quiet).await
        {
            tracing::debug!(%error, "merges cannot be planned now");
        }
        let rest = |l: &Ledger| merges::go_on(&l.with_silent(unfit.clone()), inventory, now_ms);
        if rest(ledger).is_some()
            && let Err(error) = self.insist(rest).await
        {
            tracing::debug!(%error, "merges cannot be gone on with now");
        }
        let ledger = match ledger.with_silent(unfit.clone()) {
            Cow::Borrowed(_) => ledger.clone(),
            Cow::Owned(seen) => Arc::new(seen),
        };
        let telling = self.tell(&ledger, now_ms, |_| true);
        let (told, stepped) = tokio::join!(telling, self.take_steps(&ledger, inventory, now_ms));
        told || stepped
    }

    /// Tells groups what the ledger says of them, those of some tenants, and notes who has heard. Says
    /// whether there was any to be told.
    pub(crate) async fn tell(
        &self,
        ledger: &Ledger,
        now_ms: u64,
        whose: impl Fn(u64) -> bool,
    ) -> bool {
        let mut untold: Vec<_> =
            charters::untold(ledger).filter(|(group, _)| whose(group.tenant)).collect();
        if untold.is_empty() {
            return false;
        }
        // Others each time, so that groups that do not answer hold up nobody.
        let first = now_ms as usize % untold.len();
        untold.rotate_left(first);
        let mut asked = JoinSet::new();
        let ledger = Arc::new(ledger.clone());
        for (group, charter) in untold.into_iter().take(TELL_MAX) {
            let (office, ledger, group) = (self.clone(), ledger.clone(), group.clone());
            asked.spawn(async move {
                let set = Request::SetCharter(SetCharter { charter: Some(charter) });
                let told = office.ask(&ledger, &group, set).await;
                if let Err(error) = &told {
                    tracing::debug!(group = group.id, %error, "it has not heard of its charter");
                }
                told.is_ok().then_some((group.id, charter.version))
            });
        }
        let mut taken = Vec::new();
        while let Some(told) = asked.join_next().await {
            taken.extend(told.ok().flatten());
        }
        if let Err(error) = self.insist(|ledger| charters::note(ledger, &taken)).await {
            tracing::debug!(%error, "what groups have heard cannot be noted now");
        }
        true
    }

    /// Says whether there was any.
    async fn take_steps(&self, ledger: &Arc<Ledger>, inventory: &Inventory, now_ms: u64) -> bool {
        let mut steps = JoinSet::new();
        for (group, to) in handovers(ledger, inventory, now_ms) {
            let (office, ledger, group) = (self.clone(), ledger.clone(), group.clone());
            steps.spawn(async move {
                let body = Request::MoveLeader(MoveLeaderRequest { target_id: to });
                if let Err(error) = office.ask(&ledger, &group, body).await {
                    tracing::debug!(group = group.id, %error, "its leader stays for now");
                }
            });
        }
        let health = Health::of(ledger, inventory, now_ms);
        let due = |operator: &&Operator| !repairs::is_needless(&health, ledger, operator);
        for operator in operators::running(ledger).into_iter().filter(due) {
            let (office, ledger, operator) = (self.clone(), ledger.clone(), operator.clone());
            steps.spawn(async move { office.step(&ledger, &operator, now_ms).await });
        }
        let any = !steps.is_empty();
        while steps.join_next().await.is_some() {}
        any
    }

    async fn step(&self, ledger: &Arc<Ledger>, operator: &Operator, now_ms: u64) {
        let late = |l: &Ledger| merges::give_up(l, operator.id, now_ms);
        if late(ledger).is_some() {
            return self.alter(operator, late).await;
        }
        let step = operators::next_step(ledger, operator);
        if let Step::Recover(node) = step {
            tracing::debug!(operator = operator.id, group = operator.group, node, "waits");
            return;
        }
        let group = ledger.groups.get(&operator.group);
        match (group, &step) {
            (Some(group), Step::Cut(cut)) => {
                return self.cut(ledger, operator, group, cut, now_ms).await;
            }
            (Some(group), Step::Settle(_)) => {
                return self.settle(ledger, operator, group, now_ms).await;
            }
            (_, Step::Merge(merge)) => return self.merge(ledger, operator, merge, now_ms).await,
            (_, Step::SettleMerge(merge)) => {
                if merges::is_forlorn(operator, now_ms) {
                    return self.end(operator, &step, now_ms).await;
                }
                let Some(left) = ledger.groups.get(&merge.left) else { return };
                return self.settle(ledger, operator, left, now_ms).await;
            }
            _ => {}
        }
        let (Some(group), Step::Add(_) | Step::Promote(_) | Step::Remove(_)) = (group, &step)
        else {
            if let (Some(group), Step::Lead(node)) = (group, &step)
                && let Err(error) = self.ask(ledger, group, hand_over(*node)).await
            {
                tracing::debug!(operator = operator.id, group = group.id, %error, "waits");
                return;
            }
            return self.end(operator, &step, now_ms).await;
        };
        // The one that is to go may lead: it is to hand over to the right one.
        let heir = group.replicas.iter().find(|r| r.node == operator.leader && !r.learner);
        if let (Step::Remove(_), Some(heir)) = (&step, heir)
            && let Err(error) = self.ask(ledger, group, hand_over(heir.node)).await
        {
            tracing::debug!(operator = operator.id, group = group.id, %error, "no handover");
        }
        for step in operators::choices(ledger, operator) {
            match self.ask(ledger, group, change(ledger, group, &step)).await {
                Ok(_) => {
                    tracing::info!(operator = operator.id, group = group.id, ?step, "done");
                    return;
                }
                Err(error) if error.error == Error::MemberNotEnoughStarted => {}
                // It has not caught up; the members have changed and will be reported; or the
                // leader was to go and hands over.
                Err(error) => {
                    tracing::debug!(operator = operator.id, group = group.id, ?step, %error, "waits");
                    return;
                }
            }
        }
    }

    /// Writes down that an operator is over, if its last step still is what it was.
    async fn end(&self, operator: &Operator, step: &Step, now_ms: u64) {
        let (id, void) = (operator.id, *step == Step::Void);
        let is_over = |l: &Ledger| {
            let operator = l.operators.get(&id)?;
            let over = operators::next_step(l, operator) == *step;
            over.then(|| operators::finish(l, id, void, now_ms)).flatten()
        };
        if let Err(error) = self.insist(is_over).await {
            tracing::debug!(%error, operator = id, "its end cannot be written now");
        }
    }

    /// Asks a group's leader to cut its keys. Says it that they are others than the ledger knows,
    /// then that is what there is to be learned.
    async fn cut(
        &self,
        ledger: &Ledger,
        operator: &Operator,
        group: &Group,
        cut: &Cut,
        now_ms: u64,
    ) {
        let ask = SplitRange { at: cut.at.clone(), child: cut.child };
        let answer = self.ask(ledger, group, Request::SplitRange(ask)).await;
        let said = match answer {
            Ok(Reply::Ranges(ranges)) => {
                ranges.places.into_iter().find(|place| place.group == group.id).map(Said::from)
            }
            Err(error) if error.error == Error::StaleRange => self.described(ledger, group).await,
            answer => {
                let (operator, group, cut) = (operator.id, group.id, text::of(&cut.at));
                tracing::debug!(operator, group, cut, ?answer, "it is not cut yet");
                None
            }
        };
        if let Some(said) =
            said.filter(|said| splits::learn(ledger, group.id, said, now_ms).is_some())
        {
            tracing::info!(operator = operator.id, group = group.id, ?said, "keys of others now");
            return self.learned(group, &said, now_ms).await;
        }
        let late = |l: &Ledger| splits::give_up(l, operator.id, now_ms);
        if late(ledger).is_some() {
            self.alter(operator, late).await;
        }
    }

    /// Has the left neighbour of an operator's group asked to take its keys, beside the rounds.
    async fn merge(&self, ledger: &Arc<Ledger>, operator: &Operator, merge: &Merge, now_ms: u64) {
        let asked = |l: &Ledger| merges::note_asked(l, operator.id, now_ms);
        if asked(ledger).is_some() {
            // It is asked when that is written, in the next round.
            return self.alter(operator, asked).await;
        }
        let Some(asking) = self.asking.begin(operator.id) else { return };
        let (office, ledger) = (self.clone(), ledger.clone());
        let (operator, merge) = (operator.clone(), merge.clone());
        tokio::spawn(async move {
            office.ask_to_merge(&ledger, &operator, &merge, now_ms).await;
            drop(asking);
        });
    }

    async fn ask_to_merge(&self, ledger: &Ledger, operator: &Operator, merge: &Merge, now_ms: u64) {
        let Some(left) = ledger.groups.get(&merge.left) else { return };
        let right = operator.group;
        let ask = MergeRange { right, at: merge.at.clone() };
        let request = GroupRequest {
            timeout_ms: MERGE_MS,
            ..request_of(ledger, left, Request::MergeRange(ask))
        };
        let said = match self.groups.call(request).await {
            Ok(Reply::Ranges(ranges)) => {
                ranges.places.into_iter().find(|place| place.group == left.id).map(Said::from)
            }
            Err(error) if error.error == Error::StaleRange => self.described(ledger, left).await,
            answer => {
                let (operator, left) = (operator.id, left.id);
                tracing::debug!(operator, left, right, ?answer, "they are not merged yet");
                None
            }
        };
        let is_news = |said: &Said| splits::learn(ledger, left.id, said, now_ms).is_some();
        if let Some(said) = said.filter(is_news) {
            tracing::info!(operator = operator.id, left = left.id, right, ?said, "keys of others");
            self.learned(left, &said, now_ms).await;
        }
    }

    /// Finds out what has become of what a group is not asked for any more, and ends the operator.
    async fn settle(&self, ledger: &Ledger, operator: &Operator, group: &Group, now_ms: u64) {
        let Some(said) = self.described(ledger, group).await else { return };
        if splits::learn(ledger, group.id, &said, now_ms).is_some() {
            return self.learned(group, &said, now_ms).await;
        }
        let is_settled = match operator.is_split() {
            true => splits::is_settled(operator, now_ms),
            false => merges::is_settled(operator, now_ms),
        };
        if !is_settled {
            return;
        }
        // Under another version nothing that was asked for is done any more. Under the same one, what
        // was done would have been done before this word, which changes nothing, is taken in.
        let is_over = said.version > ledger.range_version(group.id) || {
            let Some(charter) = charters::of(ledger, group) else { return };
            let word = Request::SetCharter(SetCharter { charter: Some(charter) });
            self.ask(ledger, group, word).await.is_ok()
        };
        let id = operator.id;
        let is_next = |l: &Ledger| {
            let operator = l.operators.get(&id)?;
            let next = operators::next_step(l, operator);
            let is_next = matches!(next, Step::Settle(_) | Step::SettleMerge(_));
            is_next.then(|| operators::finish(l, id, false, now_ms)).flatten()
        };
        if is_over && let Err(error) = self.insist(is_next).await {
            tracing::debug!(%error, operator = id, "its end cannot be written now");
        }
    }

    /// Changes an operator, if that still is what is to be done.
    async fn alter(&self, operator: &Operator, change: impl Fn(&Ledger) -> Option<Change>) {
        if let Err(error) = self.insist(change).await {
            tracing::debug!(%error, operator = operator.id, "it cannot be changed now");
        }
    }

    async fn learned(&self, group: &Group, said: &Said, now_ms: u64) {
        if let Err(error) = self.report_keys(GroupId(group.id), said, now_ms).await {
            tracing::debug!(%error, group = group.id, "its keys cannot be written down now");
        }
    }

    /// A group's keys, as some replica of it has applied them.
    async fn described(&self, ledger: &Ledger, group: &Group) -> Option<Said> {
        let answer = self.ask(ledger, group, Request::Describe(DescribeRequest {})).await;
        match answer {
            Ok(Reply::Describe(told)) => told.place.map(Said::from),
            _ => None,
        }
    }

    async fn ask(
        &self,
        ledger: &Ledger,
        group: &Group,
        body: Request,
    ) -> Result<Reply, GroupError> {
        self.groups.call(request_of(ledger, group, body)).await
    }
}

/// A question to a group, as the ledger knows it.
pub fn request_of(ledger: &Ledger, group: &Group, body: Request) -> GroupRequest {
    GroupRequest {
        tenant: group.tenant,
        namespace: group.namespace,
        range_version: ledger.range_version(group.id),
        timeout_ms: STEP_MS,
        ..request_to(GroupId(group.id), body)
    }
}

/// Operators for which somebody is being asked.
#[derive(Clone, Default)]
pub(crate) struct Asking(Arc<Mutex<BTreeSet<u64>>>);

/// One of them, as long as this lives.
struct Asked {
    asking: Asking,
    operator: u64,
}

impl Asking {
    /// `None` while somebody is being asked for the operator.
    fn begin(&self, operator: u64) -> Option<Asked> {
        let is_new = self.0.lock().insert(operator);
        is_new.then(|| Asked { asking: self.clone(), operator })
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.asking.0.lock().remove(&self.operator);
    }
}

/// Groups that fit nowhere but on a drained node and are led there, and who is to lead them.
fn handovers<'a>(ledger: &'a Ledger, inventory: &Inventory, now_ms: u64) -> Vec<(&'a Group, u64)> {
    let health = Health::of(ledger, inventory, now_ms);
    let handover = |(group, node, others): (&'a Group, u64, Vec<u64>)| {
        let (leader, _) = inventory.leader_of(group.id, now_ms)?;
        let to = others.into_iter().find(|other| health.is_node_well(*other))?;
        (leader == node).then_some((group, to))
    };
    operators::stranded(ledger).into_iter().filter_map(handover).take(HANDOVERS_MAX).collect()
}

fn hand_over(node: u64) -> Request {
    Request::MoveLeader(MoveLeaderRequest { target_id: node })
}

/// A step as the group's leader is asked for it. Panics for what is no change of the
/// members: a handover, the end of an operator.
pub fn change(ledger: &Ledger, group: &Group, step: &Step) -> Request {
    let (kind, node, replica) = match step {
        Step::Add(node) => (Kind::Add, *node, 0),
        Step::Promote(which) => (Kind::Promote, which.node, which.replica),
        Step::Remove(which) => (Kind::Remove, which.node, which.replica),
        Step::Lead(_)
        | Step::Recover(_)
        | Step::Cut(_)
        | Step::Settle(_)
        | Step::Merge(_)
        | Step::SettleMerge(_)
        | Step::Withdraw
        | Step::Done
        | Step::Void => {
            unreachable!("the members stay as they are")
        }
    };
    let known = ledger.nodes.get(&node);
    let member = Member {
        id: node,
        name: known.map(|node| node.name.clone()).unwrap_or_default(),
        peer_ur_ls: known.map(|node| node.peer_urls.clone()).unwrap_or_default(),
        ..Default::default()
    };
    Request::ChangeReplica(ChangeReplica {
        kind: kind as i32,
        membership_version: group.membership_version,
        replica,
        member: Some(member),
    })
}
