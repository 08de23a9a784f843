//! What groups are told of themselves: whose they are, what their clients may do, how much they may
//! hold. Pure.
//!
//! The ledger is the intent: it says for each tenant what is so now, and under which version. A
//! group takes it in as an entry of its own log, and refuses by it whatever a router believes. That
//! it has is noted in the group's record (`told`); whose record is behind is told again. So a crash
//! between any two steps costs a repetition, which changes nothing, and a late word has a lower
//! version and changes nothing either.

use proto::cluster::group::{Charter, charter::Standing};

use crate::ledger::{Change, Ledger};
use crate::record::{Group, Namespace, Record, Tenant, TenantState};

/// Groups that may not know yet what the ledger says of them, each with that.
pub fn untold(ledger: &Ledger) -> impl Iterator<Item = (&Group, Charter)> {
    let living = ledger.groups.values().filter(|group| !group.dead);
    living.filter_map(|group| {
        let charter = of(ledger, group)?;
        (group.told < charter.version).then_some((&**group, charter))
    })
}

/// What the ledger says of a group; `None` for one that is nobody's.
pub fn of(ledger: &Ledger, group: &Group) -> Option<Charter> {
    let tenant = ledger.tenants.get(&group.tenant)?;
    let namespace = tenant.namespaces.iter().find(|found| found.id == group.namespace)?;
    Some(charter(tenant, namespace))
}

fn charter(tenant: &Tenant, namespace: &Namespace) -> Charter {
    let standing = match tenant.state_of(namespace) {
        TenantState::Open => Standing::Open,
        TenantState::Frozen => Standing::Frozen,
        TenantState::Deleted => Standing::Deleted,
    };
    Charter {
        tenant: tenant.id,
        namespace: namespace.id,
        standing: standing as i32,
        quota: i64::try_from(tenant.quota).unwrap_or(i64::MAX),
        version: tenant.version,
    }
}

/// Notes that groups have taken in these versions; `None` when that is known.
pub fn note(ledger: &Ledger, taken: &[(u64, u64)]) -> Option<Change> {
    let mut change = Change::default();
    for (id, version) in taken {
        if let Some(group) = ledger.groups.get(id).filter(|group| group.told < *version) {
            change = change.put(Record::Group(Group { told: *version, ..Group::clone(group) }));
        }
    }
    (!change.is_empty()).then_some(change)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tenants::tests::founded;
    use crate::tenants::{self, Planned};

    fn done(ledger: &Ledger, planned: Planned) -> Ledger {
        planned.expect("it is allowed").0.applied_to(ledger)
    }

    fn told(ledger: &Ledger) -> Vec<Charter> {
        untold(ledger).map(|(_, charter)| charter).collect()
    }

    /// All groups have taken what they were to be told.
    fn heard(ledger: &Ledger) -> Ledger {
        let taken: Vec<_> = untold(ledger).map(|(group, word)| (group.id, word.version)).collect();
        note(ledger, &taken).expect("there was something to be told").applied_to(ledger)
    }

    #[test]
    fn new_tenants_are_born_with_what_they_are() {
        let ledger = founded();
        let ledger = done(&ledger, tenants::create(&ledger, "acme", 0, 0));
        assert_eq!(told(&ledger), []);
    }

    #[test]
    fn each_group_of_the_tenant_is_told_until_it_has_heard() {
        let ledger = founded();
        let ledger = done(&ledger, tenants::create(&ledger, "acme", 0, 0));
        let ledger = done(&ledger, tenants::create(&ledger, "beta", 0, 0));
        let ledger = done(&ledger, tenants::create_namespace(&ledger, "acme", "events", None, 0));
        let frozen = done(&ledger, tenants::set_frozen(&ledger, "acme", true));
        let words = told(&frozen);
        let said: Vec<_> = words.iter().map(|word| (word.namespace, word.standing())).collect();
        assert_eq!(said, [(1, Standing::Frozen), (2, Standing::Frozen)]);
        let first = untold(&frozen).next().map(|(group, word)| (group.id, word.version)).unwrap();
        let half = note(&frozen, &[first]).unwrap().applied_to(&frozen);
        assert_eq!(told(&half), words[1..]);
        assert!(note(&half, &[first]).is_none(), "it is known");
        assert_eq!(told(&heard(&half)), []);
    }

    #[test]
    fn a_newer_word_has_a_higher_version_and_an_older_note_does_not_hide_it() {
        let ledger = founded();
        let ledger = done(&ledger, tenants::create(&ledger, "acme", 0, 0));
        let frozen = done(&ledger, tenants::set_frozen(&ledger, "acme", true));
        let taken = untold(&frozen).map(|(group, word)| (group.id, word.version));
        let taken: Vec<_> = taken.collect();
        let thawed = done(&frozen, tenants::set_frozen(&frozen, "acme", false));
        assert!(told(&thawed)[0].version > told(&frozen)[0].version);
        let noted = note(&thawed, &taken).expect("it has heard that").applied_to(&thawed);
        assert_eq!(told(&noted)[0].standing(), Standing::Open);
        let again = done(&noted, tenants::set_frozen(&noted, "acme", false));
        assert_eq!(told(&again), told(&noted), "nothing new was said");
    }

    #[test]
    fn quotas_and_deletions_are_told() {
        let ledger = founded();
        let ledger = done(&ledger, tenants::create(&ledger, "acme", 0, 0));
        let ledger = done(&ledger, tenants::create_namespace(&ledger, "acme", "events", None, 0));
        let ledger = heard(&done(&ledger, tenants::set_quota(&ledger, "acme", 1 << 30)));
        let deleted = tenants::delete_namespace(&ledger, "acme", "events", 5);
        let deleted = done(&ledger, deleted);
        let said: Vec<_> =
            told(&deleted).iter().map(|word| (word.standing(), word.quota)).collect();
        assert_eq!(said, [(Standing::Open, 1 << 30), (Standing::Deleted, 1 << 30)]);
        let deleted = done(&deleted, tenants::delete(&deleted, "acme", 5));
        assert!(told(&deleted).iter().all(|word| word.standing() == Standing::Deleted));
        let purged = tenants::purge(&deleted, 5 + tenants::GRACE_MS).unwrap();
        assert_eq!(told(&purged.applied_to(&deleted)), [], "the dead hear nothing");
    }

    #[test]
    fn what_was_made_before_groups_knew_their_tenant_is_told_all() {
        let mut ledger = founded();
        for group in ledger.groups.values_mut() {
            Arc::make_mut(group).told = 0;
        }
        let words = told(&ledger);
        assert_eq!(words.len(), 1, "the system group has no tenant");
        assert_eq!((words[0].tenant, words[0].namespace, words[0].version), (1, 1, 1));
    }
}
