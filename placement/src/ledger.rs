//! All records at one revision of the system group, and changes of them. Pure.
//!
//! A change is planned on a ledger and written as one transaction that compares `atoll/meta`'s
//! revision with the ledger's: every change writes that row, so a change that was planned on an
//! older ledger is refused as a whole, whoever planned it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proto::etcd::{
    Compare, DeleteRangeRequest, PutRequest, RangeResponse, RequestOp, TxnRequest, compare,
    request_op,
};
use proto::mvccpb::{Event, event::EventType};

use crate::record::{
    FIRST_RANGE, Group, META_KEY, Meta, Namespace, Node, Operator, Plan, Record, Reserved, Tenant,
    Unreadable,
};

/// See the module. What there are many of is shared by all copies of a ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Revision of the system group that this is.
    pub revision: i64,
    /// When `meta` was written last; 0 if never: nobody has founded the service yet.
    pub meta_revision: i64,
    /// Counters and settings.
    pub meta: Option<Meta>,
    /// Nodes by id.
    pub nodes: BTreeMap<u64, Node>,
    /// Tenants by id.
    pub tenants: BTreeMap<u64, Arc<Tenant>>,
    /// Groups by id.
    pub groups: BTreeMap<u64, Arc<Group>>,
    /// Operators by id.
    pub operators: BTreeMap<u64, Operator>,
    /// Nodes that do not answer now, or would take nothing: they get nothing new. Nobody writes it
    /// down: whoever plans puts it here from the inventory.
    pub silent: BTreeSet<u64>,
    /// Names that are not given again yet.
    pub reserved: BTreeMap<String, Reserved>,
    /// Plans by version.
    pub plans: BTreeMap<u64, Plan>,
}

/// Rows to be written or removed together.
#[derive(Clone, Debug, Default)]
pub struct Change {
    records: Vec<Record>,
    removed: Vec<String>,
}

// === impl Ledger ===

impl Ledger {
    /// Reads all rows of an answer that covers the whole ledger.
    pub fn read(answer: &RangeResponse) -> Result<Ledger, Unreadable> {
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let mut ledger = Ledger { revision, ..Default::default() };
        for kv in &answer.kvs {
            ledger.put(&kv.key, &kv.value, kv.mod_revision)?;
        }
        Ok(ledger)
    }

    /// Takes in what happened since; what it has already is passed over.
    pub fn follow(&mut self, revision: i64, events: &[&Event]) -> Result<(), Unreadable> {
        let known = self.revision;
        for event in events {
            let Some(kv) = event.kv.as_ref().filter(|kv| kv.mod_revision > known) else { continue };
            match event.r#type() {
                EventType::Put => self.put(&kv.key, &kv.value, kv.mod_revision)?,
                EventType::Delete => self.remove(&kv.key),
            }
        }
        self.revision = self.revision.max(revision);
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8], revision: i64) -> Result<(), Unreadable> {
        let key = String::from_utf8_lossy(key);
        match Record::decode(&key, value)? {
            Some(Record::Meta(meta)) => {
                self.meta = Some(meta);
                self.meta_revision = revision;
            }
            Some(Record::Node(node)) => {
                self.nodes.insert(node.id, node);
            }
            Some(Record::Tenant(mut tenant)) => {
                tenant.slim();
                self.tenants.insert(tenant.id, Arc::new(tenant));
            }
            Some(Record::Group(mut group)) => {
                group.slim();
                self.groups.insert(group.id, Arc::new(group));
            }
            Some(Record::Operator(operator)) => {
                self.operators.insert(operator.id, operator);
            }
            Some(Record::Reserved(reserved)) => {
                self.reserved.insert(reserved.name.clone(), reserved);
            }
            Some(Record::Plan(plan)) => {
                self.plans.insert(plan.version, plan);
            }
            None => {}
        }
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) {
        let key = String::from_utf8_lossy(key);
        let Some((kind, id)) =
            key.strip_prefix(crate::record::PREFIX).and_then(|k| k.split_once('/'))
        else {
            return;
        };
        if kind == "reserved" {
            self.reserved.remove(id);
            return;
        }
        let Ok(id) = u64::from_str_radix(id, 16) else { return };
        match kind {
            "node" => drop(self.nodes.remove(&id)),
            "tenant" => drop(self.tenants.remove(&id)),
            "group" => drop(self.groups.remove(&id)),
            "operator" => drop(self.operators.remove(&id)),
            "plan" => drop(self.plans.remove(&id)),
            _ => {}
        }
    }

    /// The ledger as bytes, for the time when placement cannot be reached: a line that says as of
    /// which revision, then a key and a value a line.
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = format!("{} {}\n", self.revision, self.meta_revision).into_bytes();
        let records = self.meta.iter().cloned().map(Record::Meta);
        let records = records.chain(self.nodes.values().cloned().map(Record::Node));
        let records = records.chain(self.tenants.values().map(|t| Record::Tenant((**t).clone())));
        let records = records.chain(self.groups.values().map(|g| Record::Group((**g).clone())));
        let reserved = self.reserved.values().cloned().map(Record::Reserved);
        for record in records.chain(reserved) {
            bytes.extend(record.key().into_bytes());
            bytes.push(b' ');
            bytes.extend(record.encode());
            bytes.push(b'\n');
        }
        bytes
    }

    /// Reads what [`Ledger::save`] wrote: without operators and plans, which are not
    /// needed there.
    pub fn load(bytes: &[u8]) -> Result<Ledger, Unreadable> {
        let bad = |why: &str| Unreadable { key: "of the copy".into(), why: why.into() };
        let text = std::str::from_utf8(bytes).map_err(|_| bad("it is no text"))?;
        let mut lines = text.lines();
        let head = lines.next().and_then(|line| line.split_once(' '));
        let (revision, meta) = head.ok_or_else(|| bad("it does not begin with a revision"))?;
        let number = |text: &str| text.parse::<i64>().map_err(|_| bad("no number"));
        let mut ledger = Ledger { revision: number(revision)?, ..Default::default() };
        let meta_revision = number(meta)?;
        for line in lines {
            let (key, value) = line.split_once(' ').ok_or_else(|| bad("a line without a value"))?;
            ledger.put(key.as_bytes(), value.as_bytes(), meta_revision)?;
        }
        Ok(ledger)
    }

    /// The same ledger, with what is known of nodes that do not answer.
    pub fn with_silent(&self, silent: BTreeSet<u64>) -> Cow<'_, Ledger> {
        if silent == self.silent {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Ledger { silent, ..self.clone() })
    }

    /// The nodes that something may be put on, but for what an operator has said.
    pub fn answering(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| !self.silent.contains(&node.id))
    }

    /// A tenant by its name.
    pub fn tenant(&self, name: &str) -> Option<&Tenant> {
        self.tenants.values().find(|tenant| tenant.name == name).map(Arc::as_ref)
    }

    /// A node by its name, or by its id in hexadecimal.
    pub fn node(&self, name: &str) -> Option<&Node> {
        let by_name = self.nodes.values().find(|node| node.name == name);
        by_name.or_else(|| self.nodes.get(&u64::from_str_radix(name, 16).ok()?))
    }

    /// May groups of the tenant be on the node? Those of nobody may be anywhere.
    pub fn fits(&self, tenant: u64, node: &Node) -> bool {
        self.tenants.get(&tenant).is_none_or(|tenant| tenant.fits(node))
    }

    /// What people call a node.
    pub fn node_name(&self, node: u64) -> String {
        self.nodes.get(&node).map_or_else(|| format!("{node:016x}"), |node| node.name.clone())
    }

    /// What people call a group: by whose keys it has.
    pub fn group_name(&self, group: &Group) -> String {
        let tenant = self.tenants.get(&group.tenant);
        let namespace = tenant.and_then(|t| t.namespaces.iter().find(|n| n.id == group.namespace));
        match (tenant, namespace) {
            (Some(tenant), Some(namespace)) => tenant.full_name(namespace),
            _ if group.tenant == 0 => "(placement)".to_owned(),
            _ => "(gone)".to_owned(),
        }
    }

    /// The etcd that a group is of, and which of its places it is.
    pub fn place_of(&self, group: u64) -> Option<(&Namespace, usize)> {
        let tenant = self.groups.get(&group)?.tenant;
        self.tenants.get(&tenant)?.place_of(group)
    }

    /// The version of a group's keys; it answers requests of no other.
    pub fn range_version(&self, group: u64) -> u64 {
        let version = |(namespace, at): (&Namespace, usize)| {
            namespace.places().get(at).map(|place| place.version)
        };
        self.place_of(group).and_then(version).unwrap_or(FIRST_RANGE)
    }

    /// The transaction that makes `change` if this is still the ledger.
    pub fn transaction(&self, change: &Change) -> TxnRequest {
        let mut change = change.clone();
        if !change.records.iter().any(|record| matches!(record, Record::Meta(_)))
            && let Some(meta) = &self.meta
        {
            change.records.push(Record::Meta(meta.clone()));
        }
        let unchanged = Compare {
            result: compare::CompareResult::Equal as i32,
            target: compare::CompareTarget::Mod as i32,
            key: Bytes::from_static(META_KEY.as_bytes()),
            target_union: Some(compare::TargetUnion::ModRevision(self.meta_revision)),
            ..Default::default()
        };
        let put = |record: &Record| {
            request_op::Request::RequestPut(PutRequest {
                key: record.key().into(),
                value: record.encode().into(),
                ..Default::default()
            })
        };
        let delete = |key: &String| {
            request_op::Request::RequestDeleteRange(DeleteRangeRequest {
                key: key.clone().into(),
                ..Default::default()
            })
        };
        let puts = change.records.iter().map(put);
        let ops = puts.chain(change.removed.iter().map(delete));
        TxnRequest {
            compare: vec![unchanged],
            success: ops.map(|request| RequestOp { request: Some(request) }).collect(),
            failure: Vec::new(),
        }
    }
}

// === impl Change ===

impl Change {
    /// Writes a record, over the one with its key.
    #[must_use]
    pub fn put(mut self, record: Record) -> Change {
        self.records.push(record);
        self
    }

    /// Removes a row.
    #[must_use]
    pub fn remove(mut self, key: String) -> Change {
        self.removed.push(key);
        self
    }

    /// Is there nothing to be changed?
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.removed.is_empty()
    }

    /// The ledger as it would be, for tests and previews.
    pub fn applied_to(&self, ledger: &Ledger) -> Ledger {
        let mut after = ledger.clone();
        self.apply(&mut after, ledger.revision + 1);
        after
    }

    /// Brings the ledger that the change was planned on to the revision that it was made at.
    pub fn apply(&self, ledger: &mut Ledger, revision: i64) {
        ledger.revision = revision;
        // Every change writes that row.
        ledger.meta_revision = revision;
        for record in &self.records {
            let put = ledger.put(record.key().as_bytes(), &record.encode(), revision);
            put.expect("what was just written can be read");
        }
        for key in &self.removed {
            ledger.remove(key.as_bytes());
        }
    }
}
