//! A group that lost most of its voters goes on with one of its replicas.
//!
//! ```text
//!   the replica's log   1 .. applied .. committed .. last | recovery
//!                                       '--- committed from now on ---'
//! ```
//!
//! All that stands in the log counts: what its end holds may have been acknowledged by those who
//! are lost. Behind it stands the recovery (`machine/recovery.rs`), an entry in a term that is above
//! all others, and it is committed by being written: entry and hard state go into the log
//! together. *Crash before: nothing has happened; after: the next start applies it.* From its apply
//! on the replica is the only member, and elects itself.
//!
//! Until that apply nobody is heard. Who is lost and comes back is no member: it hears so, or its node
//! reads it in the ledger. Nothing it says is stepped. Those who are lost may have had members of whom
//! this replica knows nothing: whoever speaks in a term before the recovery's is one of them. Two of
//! them could still elect each other before they hear it: therefore a replica that was on disk at
//! the start takes no part before its node has looked into the ledger
//! ([`NodeConfig::withhold`](super::NodeConfig::withhold)).

use prost::Message as _;
use proto::GroupId;
use proto::cluster::group::{Batch, Command, Recovery, command};
use raft::eraftpb::EntryType;

use super::rounds::read_change;
use super::{Node, Output};
use crate::group::{Eager, Group};
use crate::machine::RECOVERY_FORMAT;

/// Ticks for which the replica stands for election at once.
const EAGER_TICKS: usize = 50;

/// A replica that is to go on without the others.
#[derive(Clone, Debug)]
pub struct Recover {
    /// The group.
    pub group: GroupId,
    /// Which replica here; another one is left as it is.
    pub replica: u64,
    /// Version of its members from then on. One that has it, or a later one, has done this.
    pub membership_version: u64,
    /// Its revision from then on, at least.
    pub revision: i64,
}

impl Node {
    /// Has a replica here go on alone.
    pub(super) fn recover(&mut self, wish: &Recover) {
        let id = wish.group;
        self.wake(id);
        let Some(group) = self.groups.get_mut(&id) else { return };
        let is_done = wish.membership_version
            <= group.recovering.max(group.machine.state().membership_version);
        if is_done || group.core.key().replica != wish.replica {
            return;
        }
        if let Some(why) = unfit(group) {
            tracing::error!(group = id.0, why, "the replica cannot go on alone");
            return;
        }
        let recovery = Recovery {
            replica: wish.replica,
            membership_version: wish.membership_version,
            revision: wish.revision,
        };
        let commands = vec![Command { body: Some(command::Body::Recovery(recovery)) }];
        let range_version = group.machine.state().range_version;
        let batch = Batch { format: RECOVERY_FORMAT, range_version, commands };
        if !group.core.force(super::encode(&batch)) {
            tracing::warn!(group = id.0, "a snapshot is on its way: the replica goes on later");
            return;
        }
        tracing::warn!(group = id.0, index = group.core.last_index(), "this replica goes on alone");
        group.recovering = wish.membership_version;
        self.abandon(id);
        self.touched.insert(id);
    }

    /// A replica that was withheld may take part.
    pub(super) fn release(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !group.shared.is_withheld() {
            return;
        }
        group.withhold(false);
        if group.machine.state().conf_state.voters == [group.core.key().replica] {
            // There is nobody to wait for.
            group.core.campaign();
        }
        self.touched.insert(id);
        self.news += 1;
    }

    /// A recovery was applied.
    pub(super) fn go_alone(&mut self, id: GroupId) {
        self.transfers.forget(id);
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (own, voters) = (group.core.key().replica, &group.machine.state().conf_state.voters);
        assert_eq!(*voters, [own], "others come after a recovery, by a snapshot that has it");
        group.core.go_alone();
        group.heard.clear();
        let term = group.core.term();
        group.eager = Some(Eager { wait: 0, every: 1, tries: EAGER_TICKS, term });
        // What is watched here may have been read elsewhere, further on.
        self.outputs.push(Output::Replaced { group: id });
    }
}

/// Version of the members in a recovery that a log holds and that is not applied yet, 0 without one.
pub(super) fn recovering(group: &Group) -> u64 {
    let unapplied = group.core.unapplied().unwrap_or_default();
    let batches = unapplied.into_iter().filter_map(|entry| Batch::decode(entry.data).ok());
    let version = |command: Command| match command.body {
        Some(command::Body::Recovery(recovery)) => Some(recovery.membership_version),
        _ => None,
    };
    batches.flat_map(|batch| batch.commands).filter_map(version).max().unwrap_or(0)
}

/// Why a replica cannot go on alone, if it cannot.
fn unfit(group: &Group) -> Option<&'static str> {
    let Some(unapplied) = group.core.unapplied() else {
        return Some("its log cannot be read");
    };
    let own = group.core.key().replica;
    let changes = unapplied.iter().filter(|e| e.get_entry_type() != EntryType::EntryNormal);
    let leaves = changes.filter_map(|entry| read_change(entry).ok());
    if group.stopped.is_some() {
        Some("it is quarantined")
    } else if group.shared.is_withheld() {
        Some("it was not released yet")
    } else if group.seed_anew || group.machine.state().applied_index == 0 {
        Some("it has no rows")
    } else if group.machine.state().member_of(own).is_none() {
        Some("it is no member")
    } else if leaves.into_iter().any(|change| change.removes(own)) {
        Some("it was being removed")
    } else {
        None
    }
}
