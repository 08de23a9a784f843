//! Where executors were lost: what was under way when the node died that led placement, counted by
//! what was asked for last and what was to come next, so that a run shows which pairs of steps it
//! has cut apart. Some of these deaths are aimed: a node may die right behind a question.

use placement::Ledger;
use placement::operators::{self, Step};
use placement::record::{NodeState, Operator, OperatorState, Priority};
use proto::id;

use super::super::World;
use super::cutting::is_of_split;

/// A step's kind, in a word.
fn word(step: &Step) -> &'static str {
    match step {
        Step::Add(_) => "add",
        Step::Promote(_) => "promote",
        Step::Remove(_) => "remove",
        Step::Lead(_) => "lead",
        Step::Recover(_) => "recover",
        Step::Cut(_) => "cut",
        Step::Settle(_) => "settle",
        Step::Merge(_) => "merge",
        Step::SettleMerge(_) => "settle merge",
        Step::Withdraw => "withdraw",
        Step::Done => "done",
        Step::Void => "void",
    }
}

/// What an operator is for, in a word.
fn errand_of(operator: &Operator) -> &'static str {
    match operator.priority {
        _ if operator.is_split() => "split",
        _ if operator.merge.is_some() => "merge",
        Priority::Repair => "repair",
        Priority::Drain => "drain",
        Priority::User => "move",
        Priority::Balance => "balance",
    }
}

// === impl World ===

impl World {
    /// Something has happened that is counted.
    pub(super) fn mark(&mut self, what: String) {
        *self.marks.entry(what).or_default() += 1;
    }

    /// A step of an operator was asked for, and whoever did may not live to hear of it.
    pub(super) fn stepped(&mut self, operator: &Operator, step: &Step) {
        self.service().steps.insert(operator.id, word(step));
        self.mark(format!("steps asked for: {}", word(step)));
        let may_crash = !self.calm && self.weather.crash_ms > 0;
        if may_crash
            && self.chance().permille(40)
            && let Some(host) = self.leads_placement()
        {
            match self.chance().permille(500) {
                true => self.hosts[host].dies_in_round = true,
                false => self.crash(host),
            }
        }
    }

    /// A newer ledger was read: counts what came to its end since the last one.
    pub(super) fn count_ends(&mut self, ledger: &Ledger) {
        let before = self.service().newest.clone();
        for operator in ledger.operators.values() {
            let known = before.operators.get(&operator.id);
            let was_over = known.is_some_and(|known| known.state != OperatorState::Running);
            if operator.state != OperatorState::Running && !was_over {
                let how = match operator.state {
                    OperatorState::Done => "done",
                    _ => "given up",
                };
                self.mark(format!("{how}: {}", errand_of(operator)));
                let keeps_keys = !operator.is_split() && operator.merge.is_none();
                if keeps_keys && is_of_split(ledger, operator) {
                    self.mark(format!("{how}, of a split etcd: {}", errand_of(operator)));
                }
            }
        }
        for node in ledger.nodes.values().filter(|node| node.state == NodeState::Draining) {
            let known = before.nodes.get(&node.id);
            if known.is_some_and(|known| known.state != NodeState::Draining) {
                self.mark("nodes drained".to_owned());
            }
        }
    }

    /// The host that leads placement, as one of them believes.
    fn leads_placement(&self) -> Option<usize> {
        (0..self.hosts.len()).find(|host| self.is_leader_of_placement(*host))
    }

    fn is_leader_of_placement(&self, host: usize) -> bool {
        let process = self.hosts[host].process.as_ref();
        let system = process.and_then(|process| process.node.group(id::SYSTEM_GROUP));
        system.is_some_and(|group| group.is_leader())
    }

    /// A host is about to die: counts what it leaves unfinished, if it leads placement.
    pub(in super::super) fn crossed(&mut self, host: usize) {
        if self.service.is_none() || !self.is_leader_of_placement(host) {
            return;
        }
        let ledger = self.service().newest.clone();
        for operator in operators::ongoing(&ledger) {
            let last = self.service().steps.get(&operator.id).copied().unwrap_or("nothing");
            let next = word(&operators::next_step(&ledger, operator));
            let errand = errand_of(operator);
            self.mark(format!("placement's leader lost, {errand}: after {last}, before {next}"));
        }
    }
}
