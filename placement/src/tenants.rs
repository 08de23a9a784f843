//! Commands about tenants and namespaces: what each would change in the ledger. Pure.
//!
//! A tenant's id, cluster id and groups never change; its name does. An id is never given twice,
//! so what was said about a tenant that is gone can never be taken for another of its name.

use std::sync::Arc;

use proto::KeyRange;

use crate::command::{Answer, GroupView, KeysView, PlaceView, Refusal, TenantView, refused};
use crate::ledger::{Change, Ledger};
use crate::policy::SplitMode;
use crate::record::{
    Cause, FIRST_VERSION, Founder, Group, Meta, Namespace, NamespaceKind, Operator, OperatorState,
    Place, Record, Reserved, Tenant, TenantState, keys_of, text,
};
use crate::{operators, ring, splits};

/// How long a deleted tenant can be undeleted.
pub const GRACE_MS: u64 = 24 * 3600 * 1000;
/// How long the name of a tenant that is gone stays nobody's.
pub const RESERVED_MS: u64 = 30 * 24 * 3600 * 1000;
/// Smallest quota: less would be full with the first values.
const QUOTA_MIN: u64 = 1 << 20;
/// Longest name: a DNS label.
const NAME_BYTES: usize = 63;

/// A change, and what the operator hears when it is made.
pub type Planned = Result<(Change, Answer), Refusal>;

/// Id of a tenant's default namespace.
const DEFAULT_NAMESPACE: u64 = 1;

fn meta(ledger: &Ledger) -> Result<Meta, Refusal> {
    ledger.meta.clone().ok_or(refused("the service is not set up yet: try again in a moment"))
}

fn tenant(ledger: &Ledger, name: &str) -> Result<Tenant, Refusal> {
    let found = ledger.tenant(name).cloned();
    found.ok_or_else(|| refused(format!("there is no tenant \"{name}\"")))
}

/// Is this a name that can stand in host names?
fn check_name(name: &str) -> Result<(), Refusal> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let good = !name.is_empty()
        && name.len() <= NAME_BYTES
        && name.bytes().all(|byte| inner(byte) || byte == b'-')
        && name.bytes().next().is_some_and(inner)
        && name.bytes().last().is_some_and(inner);
    let rule = "names have 1 to 63 of a-z, 0-9 and -, and begin and end without -";
    if good { Ok(()) } else { Err(refused(format!("\"{name}\" is no name: {rule}"))) }
}

fn check_port(ledger: &Ledger, port: u16) -> Result<(), Refusal> {
    for tenant in ledger.tenants.values().filter(|_| port != 0) {
        for namespace in &tenant.namespaces {
            if matches!(namespace.kind, NamespaceKind::Separate { port: taken, .. } if taken == port)
            {
                let whose = tenant.full_name(namespace);
                return Err(refused(format!("port {port} belongs to \"{whose}\"")));
            }
        }
    }
    Ok(())
}

/// A new group for a namespace, on nodes that the ring proposes.
fn new_group(
    ledger: &Ledger,
    meta: &mut Meta,
    owner: (u64, u64),
    replicas: usize,
) -> Result<Group, Refusal> {
    let id = meta.next_group;
    let count = if replicas == 0 { meta.replicas } else { replicas };
    if count.is_multiple_of(2) || count > 7 {
        return Err(refused(format!("{count} replicas: say 1, 3, 5 or 7")));
    }
    let fit = ledger.answering().filter(|node| ledger.fits(owner.0, node));
    let homes = ring::propose(fit, id, count);
    if homes.len() < count {
        let usable = homes.len();
        return Err(refused(format!(
            "{count} replicas are asked for, {usable} nodes can take one"
        )));
    }
    meta.next_group += 1;
    let mut founders: Vec<Founder> = homes.into_iter().map(Founder::of).collect();
    founders.sort_by_key(|founder| founder.node);
    Ok(Group {
        id,
        tenant: owner.0,
        namespace: owner.1,
        // Drawn once and stored; 0 means none.
        cluster_id: ring::stable(&(meta.cluster, owner.0, owner.1, id)).max(1),
        replicas: founders.iter().map(Founder::replica).collect(),
        founders,
        membership_version: 1,
        // It is born with what a new tenant is; what an older one was made since it must be told.
        told: FIRST_VERSION,
        dead: false,
        wanted: 0,
        recovery: None,
    })
}

fn separate(group: &Group, name: &str, port: u16) -> Namespace {
    let (cluster_id, group_id) = (group.cluster_id, group.id);
    let kind = NamespaceKind::Separate { cluster_id, port, group: group_id, places: Vec::new() };
    Namespace { id: group.namespace, name: name.to_owned(), deleted_ms: 0, kind }
}

/// Refuses a name that somebody had not long ago.
fn check_reserved(ledger: &Ledger, name: &str) -> Result<(), Refusal> {
    let Some(reserved) = ledger.reserved.get(name) else { return Ok(()) };
    let days = RESERVED_MS / (24 * 3600 * 1000);
    Err(refused(format!(
        "the name \"{name}\" was tenant {}'s, which was purged less than {days} days ago: its \
         clients may still be about (--reuse-name takes it all the same)",
        reserved.tenant
    )))
}

/// A new tenant, whose name nobody had lately.
pub fn create(ledger: &Ledger, name: &str, replicas: usize, port: u16) -> Planned {
    check_reserved(ledger, name)?;
    create_reusing(ledger, name, replicas, port)
}

/// A new tenant; its name may be one that is reserved. Its ids are new in any case.
pub fn create_reusing(ledger: &Ledger, name: &str, replicas: usize, port: u16) -> Planned {
    let mut meta = meta(ledger)?;
    check_name(name)?;
    if ledger.tenant(name).is_some() {
        return Err(refused(format!("there is a tenant \"{name}\" already")));
    }
    check_port(ledger, port)?;
    let id = meta.next_tenant;
    meta.next_tenant += 1;
    let group = new_group(ledger, &mut meta, (id, DEFAULT_NAMESPACE), replicas)?;
    let tenant = Tenant {
        id,
        name: name.to_owned(),
        state: TenantState::Open,
        deleted_ms: 0,
        quota: 0,
        version: FIRST_VERSION,
        next_namespace: 0,
        namespaces: vec![separate(&group, "", port)],
        pin: None,
        splits: SplitMode::Default,
    };
    let change = Change::default()
        .put(Record::Meta(meta))
        .put(Record::Tenant(tenant.clone()))
        .put(Record::Group(group.clone()));
    // Of the ledger as it will be the answer needs only this: all of it would be copied for each
    // of many tenants.
    let groups = [(group.id, group.into())].into();
    let after = Ledger { groups, nodes: ledger.nodes.clone(), ..Ledger::default() };
    let answer = Answer::Tenants(views(&after, &tenant));
    Ok((change, answer))
}

/// A new part of a tenant.
pub fn create_namespace(
    ledger: &Ledger,
    of: &str,
    name: &str,
    prefix: Option<&str>,
    port: u16,
) -> Planned {
    let mut meta = meta(ledger)?;
    let mut tenant = tenant(ledger, of)?;
    check_name(name)?;
    if tenant.state == TenantState::Deleted {
        return Err(refused(format!("tenant \"{of}\" is deleted")));
    }
    if tenant.namespaces.iter().any(|namespace| namespace.name == name) {
        return Err(refused(format!("tenant \"{of}\" has a namespace \"{name}\" already")));
    }
    let highest = tenant.namespaces.iter().map(|namespace| namespace.id).max().unwrap_or(0);
    let id = tenant.next_namespace.max(highest + 1);
    tenant.next_namespace = id + 1;
    let mut change = Change::default();
    match prefix {
        Some(prefix) => {
            check_prefix(&tenant, prefix, port)?;
            let kind = NamespaceKind::Shared { prefix: prefix.to_owned() };
            let name = name.to_owned();
            tenant.namespaces.push(Namespace { id, name, deleted_ms: 0, kind });
        }
        None => {
            check_port(ledger, port)?;
            // As many replicas as the tenant has.
            let was_founded = |g: &&Arc<Group>| g.tenant == tenant.id && !g.founders.is_empty();
            let like = ledger.groups.values().filter(was_founded).find(|group| !group.dead);
            let replicas = like.map_or(0, |group| group.founders.len());
            let group = new_group(ledger, &mut meta, (tenant.id, id), replicas)?;
            tenant.namespaces.push(separate(&group, name, port));
            change = change.put(Record::Group(group));
        }
    }
    let change = change.put(Record::Meta(meta)).put(Record::Tenant(tenant.clone()));
    let answer = Answer::Tenants(views(&change.applied_to(ledger), &tenant));
    Ok((change, answer))
}

fn check_prefix(tenant: &Tenant, prefix: &str, port: u16) -> Result<(), Refusal> {
    if prefix.is_empty() {
        return Err(refused("an empty prefix is the whole tenant"));
    }
    if port != 0 {
        return Err(refused("a stretch of the tenant's keys has the tenant's port"));
    }
    for namespace in &tenant.namespaces {
        if let NamespaceKind::Shared { prefix: other } = &namespace.kind
            && (other.starts_with(prefix) || prefix.starts_with(other.as_str()))
        {
            let name = &namespace.name;
            return Err(refused(format!("the prefix overlaps with \"{other}\" of \"{name}\"")));
        }
    }
    Ok(())
}

fn changed(ledger: &Ledger, tenant: Tenant) -> Planned {
    let change = Change::default().put(Record::Tenant(tenant.clone()));
    let answer = Answer::Tenants(views(&change.applied_to(ledger), &tenant));
    Ok((change, answer))
}

/// Refuses the clients of a tenant, or takes them again.
pub fn set_frozen(ledger: &Ledger, name: &str, frozen: bool) -> Planned {
    let mut tenant = tenant(ledger, name)?;
    let state = if frozen { TenantState::Frozen } else { TenantState::Open };
    if tenant.state == TenantState::Deleted {
        return Err(refused(format!("tenant \"{name}\" is deleted")));
    }
    if tenant.state != state {
        tenant.state = state;
        tenant.version += 1;
    }
    changed(ledger, tenant)
}

/// Bytes from which on each of the tenant's etcds is refused more; 0 for the nodes' own setting.
pub fn set_quota(ledger: &Ledger, name: &str, bytes: u64) -> Planned {
    let mut tenant = tenant(ledger, name)?;
    if bytes != 0 && (bytes < QUOTA_MIN || i64::try_from(bytes).is_err()) {
        return Err(refused(format!("a quota of {bytes} bytes: say at least {QUOTA_MIN}")));
    }
    if tenant.quota != bytes {
        tenant.quota = bytes;
        tenant.version += 1;
    }
    changed(ledger, tenant)
}

/// Deletes a tenant: its data goes when the grace is over.
pub fn delete(ledger: &Ledger, name: &str, now_ms: u64) -> Planned {
    let mut tenant = tenant(ledger, name)?;
    if tenant.state == TenantState::Deleted {
        return Err(refused(format!("tenant \"{name}\" is deleted already")));
    }
    if meta(ledger)?.default_tenant == tenant.id {
        return Err(refused(format!(
            "tenant \"{name}\" is what clients get who name none: choose another one first"
        )));
    }
    tenant.state = TenantState::Deleted;
    tenant.deleted_ms = now_ms.max(1);
    tenant.version += 1;
    changed(ledger, tenant)
}

/// Takes a deletion back.
pub fn undelete(ledger: &Ledger, name: &str) -> Planned {
    let mut tenant = tenant(ledger, name)?;
    if tenant.state != TenantState::Deleted {
        return Err(refused(format!("tenant \"{name}\" is not deleted")));
    }
    tenant.state = TenantState::Open;
    tenant.deleted_ms = 0;
    tenant.version += 1;
    changed(ledger, tenant)
}

/// The tenant `of` and where its namespace `name` stands in it.
fn namespace(ledger: &Ledger, of: &str, name: &str) -> Result<(Tenant, usize), Refusal> {
    let tenant = tenant(ledger, of)?;
    if tenant.state == TenantState::Deleted {
        return Err(refused(format!("tenant \"{of}\" is deleted")));
    }
    let named = |namespace: &Namespace| !name.is_empty() && namespace.name == name;
    match tenant.namespaces.iter().position(named) {
        Some(place) => Ok((tenant, place)),
        None => Err(refused(format!("tenant \"{of}\" has no namespace \"{name}\""))),
    }
}

/// Deletes a namespace. The data of a separate one goes when the grace is over; of a stretch of the
/// tenant's keys only the rule goes, at once, and the keys stay.
pub fn delete_namespace(ledger: &Ledger, of: &str, name: &str, now_ms: u64) -> Planned {
    let (mut tenant, place) = namespace(ledger, of, name)?;
    match tenant.namespaces.get_mut(place) {
        Some(Namespace { kind: NamespaceKind::Separate { .. }, deleted_ms, .. }) => {
            if *deleted_ms > 0 {
                return Err(refused(format!("namespace \"{of}/{name}\" is deleted already")));
            }
            *deleted_ms = now_ms.max(1);
            tenant.version += 1;
        }
        _ => {
            // Its number is not given again.
            let highest = tenant.namespaces.iter().map(|namespace| namespace.id).max();
            tenant.next_namespace = tenant.next_namespace.max(highest.unwrap_or(0) + 1);
            tenant.namespaces.remove(place);
        }
    }
    changed(ledger, tenant)
}

/// Takes the deletion of a separate namespace back.
pub fn undelete_namespace(ledger: &Ledger, of: &str, name: &str) -> Planned {
    let (mut tenant, place) = namespace(ledger, of, name)?;
    match tenant.namespaces.get_mut(place) {
        Some(namespace) if namespace.deleted_ms > 0 => namespace.deleted_ms = 0,
        _ => return Err(refused(format!("namespace \"{of}/{name}\" is not deleted"))),
    }
    tenant.version += 1;
    changed(ledger, tenant)
}

/// Changes a tenant's name.
pub fn rename(ledger: &Ledger, name: &str, to: &str) -> Planned {
    let mut tenant = tenant(ledger, name)?;
    check_name(to)?;
    if ledger.tenant(to).is_some() {
        return Err(refused(format!("there is a tenant \"{to}\" already")));
    }
    check_reserved(ledger, to)?;
    tenant.name = to.to_owned();
    changed(ledger, tenant)
}

/// Chooses the tenant of clients who name none.
pub fn set_default(ledger: &Ledger, name: &str) -> Planned {
    let mut meta = meta(ledger)?;
    let said = match name {
        "" => {
            meta.default_tenant = 0;
            "clients who name no tenant are refused".to_owned()
        }
        name => {
            let tenant = tenant(ledger, name)?;
            if tenant.state == TenantState::Deleted {
                return Err(refused(format!("tenant \"{name}\" is deleted")));
            }
            meta.default_tenant = tenant.id;
            format!("clients who name no tenant get \"{name}\"")
        }
    };
    Ok((Change::default().put(Record::Meta(meta)), Answer::Done(said)))
}

/// What is to go for good because its time is over; `None` if nothing is.
pub fn purge(ledger: &Ledger, now_ms: u64) -> Option<Change> {
    let over = |deleted_ms: u64| deleted_ms > 0 && now_ms >= deleted_ms + GRACE_MS;
    let mut change = Change::default();
    for tenant in ledger.tenants.values() {
        let groups = ledger.groups.values().filter(|group| group.tenant == tenant.id);
        if tenant.state == TenantState::Deleted && over(tenant.deleted_ms) {
            let until_ms = now_ms + RESERVED_MS;
            let reserved = Reserved { name: tenant.name.clone(), tenant: tenant.id, until_ms };
            change = change.remove(crate::record::tenant_key(tenant.id));
            change = change.put(Record::Reserved(reserved));
            change = groups.fold(change, |change, group| bury(change, ledger, group, now_ms));
            continue;
        }
        let gone = tenant.namespaces.iter().filter(|namespace| over(namespace.deleted_ms));
        let gone: Vec<u64> = gone.map(|namespace| namespace.id).collect();
        if gone.is_empty() {
            continue;
        }
        let mut tenant = Tenant::clone(tenant);
        let highest = tenant.namespaces.iter().map(|namespace| namespace.id).max();
        tenant.next_namespace = tenant.next_namespace.max(highest.unwrap_or(0) + 1);
        tenant.namespaces.retain(|namespace| !gone.contains(&namespace.id));
        let groups = groups.filter(|group| gone.contains(&group.namespace));
        change = groups.fold(change, |change, group| bury(change, ledger, group, now_ms));
        change = change.put(Record::Tenant(tenant));
    }
    for reserved in ledger.reserved.values().filter(|reserved| now_ms >= reserved.until_ms) {
        change = change.remove(crate::record::reserved_key(&reserved.name));
    }
    (!change.is_empty()).then_some(change)
}

/// A group goes, with what works on it.
fn bury(change: Change, ledger: &Ledger, group: &Group, now_ms: u64) -> Change {
    let all = splits::unborn(ledger, group).into_values().chain([group.clone()]);
    let change =
        all.fold(change, |change, group| change.put(Record::Group(Group { dead: true, ..group })));
    let Some(holder) = operators::holder(ledger, group.id) else { return change };
    let state = OperatorState::Void;
    change.put(Record::Operator(Operator { state, ended_ms: now_ms, ..holder.clone() }))
}

/// One tenant, or all.
pub fn show(ledger: &Ledger, name: Option<&str>) -> Result<Answer, Refusal> {
    let brief = |view| TenantView { places: Vec::new(), ..view };
    let views = match name {
        Some(name) => views(ledger, &tenant(ledger, name)?),
        None => {
            let all = ledger.tenants.values().flat_map(|tenant| views(ledger, tenant));
            all.map(brief).collect()
        }
    };
    Ok(Answer::Tenants(views))
}

fn views(ledger: &Ledger, tenant: &Tenant) -> Vec<TenantView> {
    let view = |namespace: &Namespace| {
        let (cluster_id, port, group, prefix) = match &namespace.kind {
            NamespaceKind::Separate { cluster_id, port, group, .. } => {
                (*cluster_id, *port, *group, None)
            }
            NamespaceKind::Shared { prefix } => (0, 0, 0, Some(prefix.clone())),
        };
        let deleted_ms = match tenant.state {
            TenantState::Deleted => tenant.deleted_ms,
            _ => namespace.deleted_ms,
        };
        let places = place_views(ledger, tenant, namespace);
        let stored = || places.iter().filter_map(|place| ledger.groups.get(&place.group));
        let mut nodes: Vec<String> = Vec::new();
        for node in places.iter().flat_map(|place| &place.nodes) {
            if !nodes.contains(node) {
                nodes.push(node.clone());
            }
        }
        TenantView {
            id: tenant.id,
            name: tenant.full_name(namespace),
            state: tenant.state_of(namespace),
            heard: stored().all(|group| group.told >= tenant.version),
            port,
            cluster_id,
            prefix,
            group,
            nodes,
            purge_ms: if deleted_ms > 0 { deleted_ms + GRACE_MS } else { 0 },
            quota: tenant.quota,
            size: None,
            groups: places.len(),
            places,
        }
    };
    tenant.namespaces.iter().map(view).collect()
}

/// The groups of an etcd as people see them.
pub(crate) fn place_views(
    ledger: &Ledger,
    tenant: &Tenant,
    namespace: &Namespace,
) -> Vec<PlaceView> {
    let places = namespace.places();
    let cause = |at: usize, place: &Place| match place.cause {
        _ if at == 0 => (String::new(), String::new()),
        Cause::Load => ("load".to_owned(), String::new()),
        Cause::Size => ("size".to_owned(), String::new()),
        Cause::User => match splits::rule_at(tenant, namespace, &place.start) {
            Some(rule) => ("rule".to_owned(), format!(" {}", rule.name)),
            None => ("user".to_owned(), String::new()),
        },
    };
    let why = |at: usize, place: &Place| match cause(at, place) {
        (cause, _) if cause.is_empty() => String::new(),
        (cause, of) => format!("{cause}{of}: {}", place.why),
    };
    let view = |(at, place): (usize, &Place)| PlaceView {
        group: place.group,
        home: at == 0,
        keys: keys_view(&keys_of(&places, at)),
        version: place.version,
        why: why(at, place),
        cause: cause(at, place).0,
        leader: None,
        nodes: ledger.groups.get(&place.group).map_or_else(Vec::new, |g| node_names(ledger, g)),
        size: None,
    };
    places.iter().enumerate().map(view).collect()
}

fn keys_view(keys: &KeyRange) -> KeysView {
    KeysView { start: text::of(&keys.start), end: keys.end.as_ref().map(|end| text::of(end)) }
}

/// The keys of a group.
pub(crate) fn keys(ledger: &Ledger, group: u64) -> KeysView {
    let keys = ledger.place_of(group).map(|(namespace, at)| keys_of(&namespace.places(), at));
    keys_view(&keys.unwrap_or_else(KeyRange::all))
}

fn node_names(ledger: &Ledger, group: &Group) -> Vec<String> {
    group.replicas.iter().map(|replica| ledger.node_name(replica.node)).collect()
}

/// All groups.
pub fn groups(ledger: &Ledger) -> Answer {
    let view = |group: &Arc<Group>| {
        let of = owner(ledger, group);
        let keys = keys(ledger, group.id);
        GroupView { id: group.id, of, nodes: node_names(ledger, group), keys, dead: group.dead }
    };
    Answer::Groups(ledger.groups.values().map(view).collect())
}

/// Whose keys a group has.
pub(crate) fn owner(ledger: &Ledger, group: &Group) -> String {
    let tenant = ledger.tenants.get(&group.tenant);
    let namespace = tenant.and_then(|t| t.namespaces.iter().find(|n| n.id == group.namespace));
    match (tenant, namespace) {
        (Some(tenant), Some(namespace)) => tenant.full_name(namespace),
        _ if group.tenant == 0 => "(placement)".to_owned(),
        _ => "(gone)".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::nodes;
    use crate::record::Node;

    /// Four nodes, of which three began together.
    pub(crate) fn founded() -> Ledger {
        let node = |id: u64| Node {
            id,
            name: format!("n{id}"),
            peer_urls: vec![format!("http://n{id}:2380")],
            client_urls: vec![format!("http://n{id}:2379")],
            zone: String::new(),
            weight: 1,
            directory: 0,
            state: Default::default(),
            labels: Default::default(),
        };
        let nodes: Vec<Node> = (1..=4).map(node).collect();
        let founders: Vec<Node> = nodes.iter().take(3).cloned().collect();
        let change = nodes::found(&Ledger::default(), 9, &founders, true);
        let ledger = change.expect("nothing is there yet").applied_to(&Ledger::default());
        nodes::register(&ledger, nodes[3].clone()).expect("it is new").applied_to(&ledger)
    }

    fn done(ledger: &Ledger, planned: Planned) -> Ledger {
        planned.expect("it is allowed").0.applied_to(ledger)
    }

    fn why(planned: Planned) -> String {
        planned.expect_err("it is refused").to_string()
    }

    #[test]
    fn every_tenant_has_ids_of_its_own() {
        let ledger = founded();
        let ledger = done(&ledger, create(&ledger, "acme", 0, 4001));
        let ledger = done(&ledger, create(&ledger, "beta", 1, 0));
        let (acme, beta) = (ledger.tenant("acme").unwrap(), ledger.tenant("beta").unwrap());
        assert_ne!(acme.id, beta.id);
        let groups: Vec<_> = ledger.groups.values().filter(|g| g.tenant > 1).collect();
        assert_eq!(groups.len(), 2);
        assert_ne!(groups[0].cluster_id, groups[1].cluster_id);
        assert_eq!((groups[0].replicas.len(), groups[1].replicas.len()), (3, 1));
    }

    #[test]
    fn a_copy_of_the_ledger_says_the_same() {
        let ledger = founded();
        let ledger = done(&ledger, create(&ledger, "acme", 0, 4001));
        assert_eq!(Ledger::load(&ledger.save()).expect("it can be read"), ledger);
        assert!(Ledger::load(b"").is_err() && Ledger::load(b"1 1\natoll/node/1\n").is_err());
    }

    #[test]
    fn what_cannot_be_is_refused_in_words() {
        let ledger = founded();
        let ledger = done(&ledger, create(&ledger, "acme", 0, 4001));
        assert!(why(create(&ledger, "acme", 0, 0)).contains("already"));
        assert!(why(create(&ledger, "beta", 0, 4001)).contains("port 4001 belongs to \"acme\""));
        assert!(why(create(&ledger, "beta", 5, 0)).contains("4 nodes can take one"));
        assert!(why(create(&ledger, "beta", 2, 0)).contains("say 1, 3, 5 or 7"));
        for name in ["", "-a", "a-", "A", "a.b", "a/b", &"a".repeat(64)] {
            assert!(why(create(&ledger, name, 0, 0)).contains("is no name"), "{name}");
        }
        assert!(why(delete(&ledger, "default", 5)).contains("choose another one first"));
        assert!(why(set_frozen(&ledger, "nobody", true)).contains("no tenant \"nobody\""));
    }

    #[test]
    fn a_deleted_tenant_comes_back_until_its_grace_is_over() {
        let ledger = founded();
        let ledger = done(&ledger, create(&ledger, "acme", 0, 0));
        let deleted = done(&ledger, delete(&ledger, "acme", 1000));
        assert!(purge(&deleted, 1000 + GRACE_MS - 1).is_none());
        let back = done(&deleted, undelete(&deleted, "acme"));
        let version = back.tenant("acme").unwrap().version;
        let before = ledger.tenant("acme").cloned();
        assert_eq!(back.tenant("acme").cloned(), before.map(|acme| Tenant { version, ..acme }));
        let purged = purge(&deleted, 1000 + GRACE_MS).expect("it is time").applied_to(&deleted);
        assert!(purged.tenant("acme").is_none());
        assert!(purged.groups.values().any(|group| group.dead));
    }

    #[test]
    fn what_works_on_a_group_is_over_when_its_tenant_goes() {
        let ledger = founded();
        let ledger = done(&ledger, create(&ledger, "acme", 0, 0));
        let target = ["n1".to_owned()];
        let moved = done(&ledger, operators::move_tenant(&ledger, "acme", &target, 5));
        let deleted = done(&moved, delete(&moved, "acme", 1000));
        let purged = purge(&deleted, 1000 + GRACE_MS).expect("it is time").applied_to(&deleted);
        let states: Vec<_> = purged.operators.values().map(|operator| operator.state).collect();
        assert_eq!(states, [OperatorState::Void]);
        let wrong =
            |finding: &crate::check::Finding| finding.gravity == crate::check::Gravity::Wrong;
        assert_eq!(crate::check::check(&purged).into_iter().find(wrong), None);
    }

    #[test]
    fn the_name_of_who_is_gone_is_nobodys_for_thirty_days() {
        let ledger = founded();
        let ledger = done(&ledger, create(&ledger, "acme", 0, 0));
        let ledger = done(&ledger, create(&ledger, "beta", 0, 0));
        let deleted = done(&ledger, delete(&ledger, "acme", 1000));
        let gone_ms = 1000 + GRACE_MS;
        let purged = purge(&deleted, gone_ms).expect("it is time").applied_to(&deleted);
        assert!(why(create(&purged, "acme", 0, 0)).contains("--reuse-name"));
        assert!(why(rename(&purged, "beta", "acme")).contains("--reuse-name"));
        assert_eq!(Ledger::load(&purged.save()).expect("it can be read"), purged);
        // Whoever takes it all the same is somebody else.
        let anew = done(&purged, create_reusing(&purged, "acme", 0, 0));
        let (old, new) = (ledger.tenant("acme").unwrap(), anew.tenant("acme").unwrap());
        assert_ne!(old.id, new.id);
        let home = |tenant: &Tenant| match tenant.namespaces[0].kind {
            NamespaceKind::Separate { cluster_id, group, .. } => (cluster_id, group),
            NamespaceKind::Shared { .. } => panic!("the default namespace is separate"),
        };
        assert_ne!(home(old).0, home(new).0);
        assert_ne!(home(old).1, home(new).1);
        assert!(purge(&purged, gone_ms + RESERVED_MS - 1).is_none());
        let free = purge(&purged, gone_ms + RESERVED_MS).expect("it is time").applied_to(&purged);
        assert!(free.reserved.is_empty());
        done(&free, create(&free, "acme", 0, 0));
    }

    #[test]
    fn a_deleted_namespace_comes_back_until_its_grace_is_over() {
        let ledger = founded();
        let ledger = done(&ledger, create(&ledger, "acme", 0, 0));
        let ledger = done(&ledger, create_namespace(&ledger, "acme", "events", None, 4002));
        let shared = create_namespace(&ledger, "acme", "leases", Some("/leases/"), 0);
        let ledger = done(&ledger, shared);
        for name in ["", "nothing"] {
            assert!(why(delete_namespace(&ledger, "acme", name, 5)).contains("no namespace"));
        }
        let only_rule = done(&ledger, delete_namespace(&ledger, "acme", "leases", 5));
        assert_eq!(only_rule.tenant("acme").unwrap().namespaces.len(), 2);
        assert!(why(undelete_namespace(&ledger, "acme", "events")).contains("is not deleted"));
        let deleted = done(&only_rule, delete_namespace(&only_rule, "acme", "events", 5));
        assert!(why(delete_namespace(&deleted, "acme", "events", 5)).contains("already"));
        let taken = create_namespace(&deleted, "acme", "events", None, 0);
        assert!(why(taken).contains("already"));
        let Ok(Answer::Tenants(shown)) = show(&deleted, Some("acme")) else { panic!("tenants") };
        let states: Vec<_> = shown.iter().map(|view| (view.state, view.purge_ms)).collect();
        let gone = (TenantState::Deleted, 5 + GRACE_MS);
        assert_eq!(states, [(TenantState::Open, 0), gone]);
        let back = done(&deleted, undelete_namespace(&deleted, "acme", "events"));
        assert!(purge(&back, 5 + GRACE_MS).is_none());
        let purged = purge(&deleted, 5 + GRACE_MS).expect("it is time").applied_to(&deleted);
        let dead: Vec<_> = purged.groups.values().filter(|group| group.dead).collect();
        assert_eq!((dead.len(), dead[0].namespace), (1, 2));
        // Neither its number nor that of the rule is given again.
        let anew = done(&purged, create_namespace(&purged, "acme", "events", None, 0));
        assert_eq!(anew.tenant("acme").unwrap().namespaces[1].id, 4);
    }

    #[test]
    fn a_quota_that_makes_no_sense_is_refused() {
        let ledger = founded();
        for bytes in [1, QUOTA_MIN - 1, u64::MAX] {
            assert!(why(set_quota(&ledger, "default", bytes)).contains("say at least"));
        }
        let small = done(&ledger, set_quota(&ledger, "default", QUOTA_MIN));
        assert_eq!(small.tenant("default").unwrap().quota, QUOTA_MIN);
        let usual = done(&small, set_quota(&small, "default", 0));
        assert_eq!(usual.tenant("default").unwrap().quota, 0);
    }

    #[test]
    fn namespaces_are_stretches_or_etcds_of_their_own() {
        let ledger = founded();
        let ledger = done(&ledger, create(&ledger, "acme", 0, 0));
        let events = create_namespace(&ledger, "acme", "events", None, 4002);
        let ledger = done(&ledger, events);
        let shared = create_namespace(&ledger, "acme", "leases", Some("/registry/leases/"), 0);
        let ledger = done(&ledger, shared);
        let overlap = create_namespace(&ledger, "acme", "more", Some("/registry/leases/x"), 0);
        assert!(why(overlap).contains("overlaps"));
        let Ok(Answer::Tenants(shown)) = show(&ledger, Some("acme")) else { panic!("tenants") };
        let names: Vec<_> = shown.iter().map(|view| view.name.as_str()).collect();
        assert_eq!(names, ["acme", "acme/events", "acme/leases"]);
        assert_ne!(shown[0].cluster_id, shown[1].cluster_id);
        assert_eq!(shown[2].prefix.as_deref(), Some("/registry/leases/"));
    }
}
