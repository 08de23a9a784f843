//! Placement as the simulator plays it: its own planners, over what leaders report.
//!
//! It wants the group on three of four nodes, and on others as soon as it is there. What it knows
//! is as old as the last report; a step that was made for other members is refused by the group.

use placement::ledger::{Change, Ledger};
use placement::operators::{self, Step};
use placement::record::{
    Group, Node as Place, NodeState, Operator, OperatorState, Priority, Record, Replica,
};
use placement::{executor, nodes};
use proto::cluster::group::Description;
use proto::group::Request;
use proto::id;
use shard::node::Node;

use super::random::Random;

/// The ledger, and the operator under way.
pub struct Moves {
    ledger: Ledger,
    operators: u64,
    /// Node that was said to lead, 0 for none.
    pub leader: u64,
}

impl Moves {
    /// The group is on `founders` nodes; there is one more.
    pub fn new(founders: u64) -> Moves {
        let node = |id: u64| Place {
            id,
            name: format!("n{id}"),
            peer_urls: vec![format!("http://n{id}")],
            client_urls: Vec::new(),
            zone: String::new(),
            weight: 1,
            directory: 0,
            state: NodeState::Up,
            labels: Default::default(),
        };
        let first: Vec<Place> = (1..=founders).map(node).collect();
        let empty = Ledger::default();
        let ledger = nodes::found(&empty, 7, &first, true).expect("it is new").applied_to(&empty);
        let spare = nodes::register(&ledger, node(founders + 1)).expect("it is new");
        Moves { ledger: spare.applied_to(&ledger), operators: 0, leader: 0 }
    }

    fn group(&self) -> &Group {
        &self.ledger.groups[&id::DEFAULT_GROUP.0]
    }

    /// The replica that a node is to have.
    pub fn replica_on(&self, node: u64) -> Option<u64> {
        let replicas = &self.group().replicas;
        replicas.iter().find(|replica| replica.node == node).map(|replica| replica.replica)
    }

    /// A leader reports.
    pub fn hear(&mut self, told: &Description) {
        let replicas: Vec<Replica> = told
            .replicas
            .iter()
            .map(|r| Replica { node: r.node, replica: r.replica, learner: r.is_learner })
            .collect();
        let (group, version) = (id::DEFAULT_GROUP.0, told.membership_version);
        if let Some(change) = nodes::report(&self.ledger, group, version, &replicas, &[]) {
            self.ledger = change.applied_to(&self.ledger);
        }
    }

    /// The next step, as the group is asked for it. At the `end` nothing new is begun.
    pub fn next(&mut self, random: &mut Random, end: bool) -> Option<Request> {
        let Some(operator) = operators::running(&self.ledger).first().map(|o| (*o).clone()) else {
            if !end {
                self.begin(random);
            }
            return None;
        };
        let step = operators::next_step(&self.ledger, &operator);
        if step == Step::Done {
            let change = operators::finish(&self.ledger, operator.id, false, 1)?;
            self.ledger = change.applied_to(&self.ledger);
            return None;
        }
        let steps = operators::choices(&self.ledger, &operator);
        let step = steps.get(random.below(steps.len() as u64) as usize)?;
        Some(executor::change(&self.ledger, self.group(), step))
    }

    fn begin(&mut self, random: &mut Random) {
        let nodes: Vec<u64> = self.ledger.nodes.keys().copied().collect();
        let stays_out = random.below(nodes.len() as u64) as usize;
        let target = nodes.iter().enumerate().filter(|(n, _)| *n != stays_out);
        self.operators += 1;
        let operator = Operator {
            lost: Vec::new(),
            id: self.operators,
            group: id::DEFAULT_GROUP.0,
            target: target.map(|(_, node)| *node).collect(),
            leader: 0,
            priority: Priority::User,
            why: "move".to_owned(),
            cuts: Vec::new(),
            merge: None,
            given_up_ms: 0,
            state: OperatorState::Running,
            begun_ms: 1,
            ended_ms: 0,
        };
        let change = Change::default().put(Record::Operator(operator));
        self.ledger = change.applied_to(&self.ledger);
    }

    /// Has a node what it is to have, and nothing else?
    pub fn is_settled_on(&self, id: u64, node: &Node) -> bool {
        let over = operators::running(&self.ledger).is_empty();
        let has = node.group(id::DEFAULT_GROUP).is_some();
        over && has == self.replica_on(id).is_some()
    }
}
