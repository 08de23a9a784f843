//! What groups are told of their tenants, as whoever tells them knows it.
//!
//! A group that has said that it is frozen or deleted, and that nobody has begun to open again,
//! answers nothing about keys and leases, commits no revision, and its leases' clocks stand still.
//! Beside that a stranger asks groups in the name of other tenants, and must hear nothing.

use std::collections::BTreeMap;

use placement::record::{NamespaceKind, Tenant as Owner, TenantState};
use placement::tenants::{self, Planned};
use placement::{Ledger, charters};
use proto::GroupId;
use proto::cluster::group::{Charter, GroupRequest, SetCharter, charter::Standing};
use proto::etcd::PutRequest;
use proto::group::{Request, request_to};

use super::super::{Waiting, World};
use super::{Asked, DAYS, Errand, Purpose};
use crate::check::history::{OpId, Time};
use crate::sim::fault::Fault;
use crate::sim::random::Random;

/// Smallest quota that can be set: far more than a world's tenants write.
const QUOTA: u64 = 1 << 20;

/// What a group was told under one version.
#[derive(Clone, Copy)]
struct Word {
    is_open: bool,
    /// When it was told so first.
    asked: Time,
    /// When it is known to have taken it in, and the newest revision until then.
    taken: Option<(Time, i64)>,
}

/// What all groups were told.
#[derive(Default)]
pub(super) struct Told {
    words: BTreeMap<GroupId, BTreeMap<u64, Word>>,
    /// Newest revision of a group that any replica has applied.
    newest: BTreeMap<GroupId, i64>,
}

// === impl Told ===

impl Told {
    fn ask(&mut self, charter: &Charter, group: GroupId, now: Time) {
        let is_open = charter.standing() == Standing::Open;
        let word = Word { is_open, asked: now, taken: None };
        self.words.entry(group).or_default().entry(charter.version).or_insert(word);
    }

    fn take(&mut self, group: GroupId, version: u64, now: Time) {
        let newest = self.newest.get(&group).copied().unwrap_or_default();
        let word = self.words.get_mut(&group).and_then(|words| words.get_mut(&version));
        if let Some(word) = word {
            word.taken.get_or_insert((now, newest));
        }
    }

    /// When each stretch began in which the group is known to be closed, the newest revision then,
    /// and when somebody began to open it.
    fn closed(&self, group: GroupId) -> impl Iterator<Item = (Time, i64, Time)> {
        let words = self.words.get(&group).into_iter().flatten();
        words.filter(|(_, word)| !word.is_open).filter_map(move |(version, word)| {
            let (since, newest) = word.taken?;
            let later = self.words.get(&group)?.range(version + 1..);
            let opened = later.filter(|(_, word)| word.is_open).map(|(_, word)| word.asked).min();
            Some((since, newest, opened.unwrap_or(Time::MAX)))
        })
    }

    /// A replica has applied a revision.
    pub(super) fn applied(&mut self, group: GroupId, revision: i64, now: Time) -> Option<String> {
        let newest = self.newest.entry(group).or_default();
        *newest = revision.max(*newest);
        let mut closed = self.closed(group);
        let (since, ..) = closed.find(|(_, newest, until)| revision > *newest && now < *until)?;
        Some(format!("{group:?} is closed since {since} and has come to revision {revision}"))
    }
}

/// What an operator thinks of: another standing or quota of a tenant, or of a part of it.
pub(super) fn idea(ledger: &Ledger, tenant: &Owner, random: &mut Random, now: Time) -> Planned {
    let name = &tenant.name;
    let parts = tenant.namespaces.iter().filter(|part| {
        matches!(part.kind, NamespaceKind::Separate { .. }) && !part.name.is_empty()
    });
    let part = parts.map(|part| (part.name.clone(), part.deleted_ms)).next();
    match (random.below(10), part) {
        (0..=3, _) => tenants::set_frozen(ledger, name, tenant.state == TenantState::Open),
        (4..=5, _) => tenants::set_quota(ledger, name, QUOTA * random.below(3)),
        (_, None) => tenants::create_namespace(ledger, name, "part", None, 0),
        (_, Some((part, 0))) => tenants::delete_namespace(ledger, name, &part, now * DAYS),
        (_, Some((part, _))) => tenants::undelete_namespace(ledger, name, &part),
    }
}

/// What is left to be opened when the faults are over.
pub(super) fn thaw(ledger: &Ledger) -> Option<Planned> {
    let frozen = ledger.tenants.values().find(|tenant| tenant.state == TenantState::Frozen)?;
    Some(tenants::set_frozen(ledger, &frozen.name, false))
}

// === impl World ===

impl World {
    /// Tells a group that may not know of its charter. Says whether there was one.
    pub(super) fn tell_one(&mut self, ledger: &Ledger) -> bool {
        let untold: Vec<_> = charters::untold(ledger).collect();
        let pick = self.chance().below(untold.len() as u64) as usize;
        let Some((group, charter)) = untold.get(pick) else { return false };
        let (id, version) = (GroupId(group.id), charter.version);
        self.note(&format!("placement tells {id:?} {charter:?}"));
        let now = self.now;
        self.service().told.ask(charter, id, now);
        self.faults += 1;
        if self.fault == Some(Fault::Untold) {
            self.has_taken(id, version);
            return true;
        }
        let set = Request::SetCharter(SetCharter { charter: Some(*charter) });
        let request = GroupRequest {
            tenant: group.tenant,
            namespace: group.namespace,
            range_version: ledger.range_version(group.id),
            ..request_to(id, set)
        };
        self.knock(Asked { request, purpose: Purpose::Charter { version }, tries: 0 });
        true
    }

    /// A group says that it has taken in what it was told.
    pub(super) fn has_taken(&mut self, group: GroupId, version: u64) {
        let now = self.now;
        self.service().told.take(group, version, now);
        self.run(Errand::Told { group, version });
    }

    /// A replica has applied a revision.
    pub(in super::super) fn has_applied(&mut self, group: GroupId, revision: i64) {
        // What its other groups had begun before is brought to its end.
        if self.owner_of(group).is_some_and(|tenant| self.tenants[tenant].is_wide()) {
            return;
        }
        let now = self.now;
        let wrong = self.service.as_mut().and_then(|s| s.told.applied(group, revision, now));
        self.broken.extend(wrong);
    }

    /// A client was answered something that is more than an error.
    pub(in super::super) fn judge_answer(&mut self, tenant: usize, op: OpId) {
        let Some(service) = &self.service else { return };
        let Some(tenant) = self.tenants.get(tenant) else { return };
        let operation = tenant.history.op(op);
        if shard::access::is_serializable(&operation.request) {
            return;
        }
        // Another of its groups may not have heard yet.
        if tenant.is_wide() {
            return;
        }
        let mut closed = service.told.closed(tenant.group);
        let since = closed.find(|(since, _, until)| *since <= operation.call && self.now < *until);
        if let Some((since, ..)) = since {
            let told = tenant.history.tell(op);
            let group = tenant.group;
            self.broken.push(format!("{group:?} is closed since {since} and answers: {told}"));
        }
    }

    /// The clocks of a group's leases stood still while it was closed.
    pub(in super::super) fn stills(&self, group: GroupId) -> Vec<(Time, Time)> {
        let Some(service) = &self.service else { return Vec::new() };
        let closed = service.told.closed(group).map(|(since, _, until)| (since, until));
        let mut stills: Vec<_> = closed.filter(|(since, until)| since < until).collect();
        stills.sort_unstable();
        stills
    }

    /// Somebody takes a group for another tenant's.
    pub(super) fn intrude(&mut self) {
        let count = self.tenants.len() as u64;
        let (one, other) = (self.chance().below(count), self.chance().below(count));
        let (one, other) = (&self.tenants[one as usize], &self.tenants[other as usize]);
        if one.group == other.group {
            return;
        }
        let put = Request::Put(PutRequest {
            key: "k1".into(),
            value: format!("a stranger's at {}", self.now).into(),
            ..Default::default()
        });
        let as_whom = if self.fault == Some(Fault::Disguised) { other } else { one };
        let (tenant, namespace) = (as_whom.id, as_whom.namespace);
        let request = GroupRequest { tenant, namespace, ..request_to(other.group, put) };
        let host = self.guess(GroupId(request.group));
        self.faults += 1;
        self.request(host, Waiting::Stranger, request);
    }
}
