//! Takes the next step of every operator: asks the group's leader to change its members, and
//! writes down what has come to its end.
//!
//! It runs where the system group is led, and keeps nothing: the step is read off the ledger each
//! time, and the group refuses a step that was made for other members than it has. Two executors
//! at a time, or one that was stopped in the middle, do no harm.

use std::sync::Arc;

use proto::cluster::group::{ChangeReplica, GroupRequest, change_replica::Kind};
use proto::etcd::Member;
use proto::group::{GroupError, Request, request_to};
use proto::{Error, GroupId};
use tokio::task::JoinSet;

use crate::ledger::Ledger;
use crate::office::Office;
use crate::operators::{self, Step};
use crate::record::{Group, Operator};

/// How long a group may take for one step, in milliseconds.
const STEP_MS: u64 = 2000;

impl Office {
    /// One step of each running operator, and new operators for nodes that are drained.
    pub async fn execute(&self, ledger: &Arc<Ledger>, now_ms: u64) {
        if operators::plan_drains(ledger, now_ms).is_some()
            && let Err(error) = self.insist(|l| operators::plan_drains(l, now_ms)).await
        {
            tracing::debug!(%error, "drains cannot be planned now");
        }
        let mut steps = JoinSet::new();
        for operator in operators::running(ledger) {
            let (office, ledger, operator) = (self.clone(), ledger.clone(), operator.clone());
            steps.spawn(async move { office.step(&ledger, &operator, now_ms).await });
        }
        while steps.join_next().await.is_some() {}
    }

    async fn step(&self, ledger: &Ledger, operator: &Operator, now_ms: u64) {
        let step = operators::next_step(ledger, operator);
        let (Step::Add(_) | Step::Promote(_) | Step::Remove(_)) = step else {
            let (id, void) = (operator.id, step == Step::Void);
            let is_over = |l: &Ledger| {
                let operator = l.operators.get(&id)?;
                let still = operators::next_step(l, operator);
                let over = still == if void { Step::Void } else { Step::Done };
                over.then(|| operators::finish(l, id, void, now_ms)).flatten()
            };
            if let Err(error) = self.insist(is_over).await {
                tracing::debug!(%error, operator = id, "its end cannot be written now");
            }
            return;
        };
        let Some(group) = ledger.groups.get(&operator.group) else { return };
        for step in operators::choices(ledger, operator) {
            match self.ask(group, change(ledger, group, &step)).await {
                Ok(()) => {
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

    async fn ask(&self, group: &Group, body: Request) -> Result<(), GroupError> {
        let request = GroupRequest {
            tenant: group.tenant,
            namespace: group.namespace,
            timeout_ms: STEP_MS,
            ..request_to(GroupId(group.id), body)
        };
        self.groups.call(request).await.map(drop)
    }
}

/// A step as the group's leader is asked for it. Panics for the end of an operator, which is no
/// change of the members.
pub fn change(ledger: &Ledger, group: &Group, step: &Step) -> Request {
    let (kind, node, replica) = match step {
        Step::Add(node) => (Kind::Add, *node, 0),
        Step::Promote(which) => (Kind::Promote, which.node, which.replica),
        Step::Remove(which) => (Kind::Remove, which.node, which.replica),
        Step::Done | Step::Void => unreachable!("nothing is asked of the group then"),
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
