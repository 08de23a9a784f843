//! A group's charter in the machine: what placement has said of it last. It is an entry like any
//! other, so that every replica refuses the same commands from the same place in the log on.

use proto::Error;
use proto::cluster::group::Charter;
use proto::group::Reply;

use super::effect::Effect;
use super::{Answer, Machine};

fn owner(charter: &Charter) -> (u64, u64) {
    (charter.tenant, charter.namespace)
}

impl Machine {
    /// Takes what placement says, unless that is known, or older than what is known.
    pub(super) fn apply_charter(&mut self, charter: &Charter, effects: &mut Vec<Effect>) -> Answer {
        let known = self.state.charter;
        if known.version != 0 && owner(&known) != owner(charter) {
            return Err(Error::ForeignGroup);
        }
        if charter.version > known.version {
            effects.push(Effect::Charter { before: known.standing() });
            self.state.charter = *charter;
            self.published.set_charter(charter);
        }
        Ok(Reply::Done(self.header().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::cluster::group::charter::Standing;
    use proto::cluster::group::{Batch, Command, command::Body};
    use proto::etcd::{LeaseRevokeRequest, PutRequest};
    use proto::{GroupId, NamespaceId, TenantId};

    use super::*;
    use crate::charter;
    use crate::disk::sim::SimDisk;
    use crate::engine::memory::MemoryEngine;
    use crate::extents::{Extents, ExtentsConfig, Named};
    use crate::group::large::Placed;
    use crate::machine::Settled;
    use crate::machine::state::State;
    use crate::store::Store;
    use crate::store::layout::Shelf;

    const GROUP: GroupId = GroupId(7);

    fn machine(charter: Charter) -> Machine {
        let config =
            ExtentsConfig { file_pages: 64, grow_pages: 64, ahead_pages: 0, ..Default::default() };
        let extents = Extents::open(Arc::new(SimDisk::new()), config, Named::default()).unwrap();
        let store = Store::new(Arc::new(MemoryEngine::default()), Arc::new(extents.extents));
        let state = State { charter, ..Machine::first_state(Shelf(1), Vec::new(), 1) };
        Machine::open(GROUP, Arc::new(store), state, 1000).unwrap()
    }

    fn apply(machine: &mut Machine, body: Body) -> (Answer, Vec<Effect>) {
        let commands = vec![Command { body: Some(body) }];
        let batch = Batch { format: 2, range_version: 1, commands };
        let index = machine.state().applied_index + 1;
        let applied = machine.apply(index, 1, &batch, Placed::default()).unwrap().unwrap();
        let Some(Settled::Answer(answer)) = applied.answers.into_iter().next() else { panic!() };
        (answer, applied.effects)
    }

    fn tell(machine: &mut Machine, charter: Charter) {
        assert!(apply(machine, Body::Charter(charter)).0.is_ok());
    }

    fn born() -> Machine {
        machine(charter::first(GROUP, TenantId(3), NamespaceId(1)))
    }

    fn says(standing: Standing, version: u64) -> Charter {
        let standing = standing as i32;
        Charter { tenant: 3, namespace: 1, standing, quota: 9, version }
    }

    #[test]
    fn a_late_word_of_placement_does_not_win() {
        let mut machine = born();
        let (_, effects) = apply(&mut machine, Body::Charter(says(Standing::Frozen, 5)));
        assert!(matches!(effects[..], [Effect::Charter { before: Standing::Open }]));
        for version in [5, 4, 0] {
            let (answer, effects) =
                apply(&mut machine, Body::Charter(says(Standing::Open, version)));
            assert!(answer.is_ok() && effects.is_empty(), "it was said before");
        }
        assert_eq!(machine.state().charter, says(Standing::Frozen, 5));
        let published = machine.published().charter();
        assert_eq!((published.standing(), published.tenant), (Standing::Frozen, 3));
    }

    #[test]
    fn behind_a_freeze_in_the_log_nothing_of_clients_is_done() {
        let mut machine = born();
        let put = || Body::Put(PutRequest { key: "k".into(), ..Default::default() });
        let revoke = || Body::LeaseRevoke(LeaseRevokeRequest { id: 8 });
        assert!(apply(&mut machine, put()).0.is_ok());
        let revision = machine.state().revision;
        tell(&mut machine, says(Standing::Frozen, 2));
        for body in [put(), revoke()] {
            assert_eq!(apply(&mut machine, body).0.err(), Some(Error::TenantFrozen));
        }
        tell(&mut machine, says(Standing::Deleted, 3));
        assert_eq!(apply(&mut machine, put()).0.err(), Some(Error::TenantDeleted));
        assert_eq!(machine.state().revision, revision);
        tell(&mut machine, says(Standing::Open, 4));
        assert!(apply(&mut machine, put()).0.is_ok());
    }

    #[test]
    fn a_group_changes_its_tenant_only_from_nobody() {
        let mut old = machine(Charter::default());
        assert!(apply(&mut old, Body::Charter(says(Standing::Open, 1))).0.is_ok());
        let foreign = Charter { tenant: 4, ..says(Standing::Open, 9) };
        let refused = apply(&mut old, Body::Charter(foreign)).0;
        assert_eq!(refused.err(), Some(Error::ForeignGroup));
        assert_eq!(old.state().charter, says(Standing::Open, 1));
    }

    #[test]
    fn a_state_that_was_written_before_groups_had_charters_is_read() {
        use prost::Message;
        // Tag 24 is left out by hand: revision 7, range version 1.
        let old = [0x1a, 0, 0x20, 7, 0x40, 1];
        let state = State::decode(&old[..]).expect("it is read");
        assert_eq!((state.revision, state.charter), (7, Charter::default()));
    }

    #[test]
    fn a_snapshot_carries_the_charter() {
        let mut sender = born();
        tell(&mut sender, says(Standing::Frozen, 2));
        let mut receiver = machine(Charter::default());
        receiver.restore(sender.snapshot_state().unwrap().state).unwrap();
        assert_eq!(receiver.published().charter().standing(), Standing::Frozen);
        assert_eq!(receiver.state().charter.quota, 9);
    }
}
