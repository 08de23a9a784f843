//! One client's socket, and what it has seen of each etcd.
//!
//! Whom a request is for is decided for each request, but nearly all requests of a connection
//! say the same. So the last answer is kept with what was said, and the usual request compares
//! a few short strings and hashes nothing. What is kept is as good as the map that it was found
//! in: with another map it is found anew.
//!
//! Invariant: an etcd's floor on a connection never sinks, and says nothing of other etcds.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use parking_lot::Mutex;
use proto::{Error, VirtualEtcd, etcd::ResponseHeader};
use tokio::sync::watch;

use crate::{
    door::Door,
    identify::{self, Entrance, EtcdId, Evidence, KeptEvidence},
};

/// What one connection has to do with one etcd, for as long as both last.
pub(crate) struct Visit {
    pub(crate) etcd: EtcdId,
    cluster_id: u64,
    member_id: u64,
    /// Highest revision of the etcd that any answer on this connection has shown.
    floor: AtomicI64,
}

// === impl Visit ===

impl Visit {
    pub(crate) fn floor(&self) -> i64 {
        self.floor.load(Ordering::Relaxed)
    }

    /// Notes that the client is about to see `revision`.
    pub(crate) fn show(&self, revision: i64) {
        if revision > self.floor.load(Ordering::Relaxed) {
            self.floor.fetch_max(revision, Ordering::Relaxed);
        }
    }

    /// Puts the ids of cluster and member into `header`.
    pub(crate) fn sign(&self, header: ResponseHeader) -> ResponseHeader {
        ResponseHeader { cluster_id: self.cluster_id, member_id: self.member_id, ..header }
    }
}

/// A request's leave to enter an etcd, as one map has it.
pub(crate) struct Admission {
    pub(crate) visit: Arc<Visit>,
    pub(crate) etcd: Arc<VirtualEtcd>,
    /// The map's number ([`crate::door::Placed`]).
    pub(crate) number: u64,
}

/// What a connection remembers.
#[derive(Default)]
struct Memory {
    last: Option<(KeptEvidence, Arc<Admission>)>,
    visits: HashMap<EtcdId, Arc<Visit>>,
    /// Number of the map that the visits were last held against.
    swept: u64,
}

/// One client's socket.
pub(crate) struct Connection {
    pub(crate) door: Arc<Door>,
    entrance: Entrance,
    /// Becomes true once, when the listener that took it stops: streams end then.
    closing: watch::Receiver<bool>,
    memory: Mutex<Memory>,
}

// === impl Connection ===

impl Connection {
    pub(crate) fn new(
        door: Arc<Door>,
        entrance: Entrance,
        closing: watch::Receiver<bool>,
    ) -> Arc<Connection> {
        Arc::new(Connection { door, entrance, closing, memory: Mutex::default() })
    }

    pub(crate) fn entrance(&self) -> Entrance {
        self.entrance
    }

    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.clone()
    }

    /// Lets a request in to the etcd that it is for.
    pub(crate) fn admit(&self, evidence: &Evidence<'_>) -> Result<Arc<Admission>, Error> {
        let placed = self.door.placed.load();
        let mut memory = self.memory.lock();
        if let Some((said, admission)) = &memory.last
            && admission.number == placed.number
            && said.is(evidence)
        {
            return Ok(admission.clone());
        }
        let etcd = self.door.whose(&placed.map, self.entrance, evidence)?;
        if memory.swept != placed.number {
            memory.swept = placed.number;
            memory
                .visits
                .retain(|(tenant, namespace), _| placed.map.etcd(*tenant, *namespace).is_some());
        }
        let visit = self.visit_of(&mut memory, etcd);
        let admission = Arc::new(Admission { visit, etcd: etcd.clone(), number: placed.number });
        memory.last = KeptEvidence::of(evidence).map(|said| (said, admission.clone()));
        Ok(admission)
    }

    /// What this connection has to do with `etcd`.
    pub(crate) fn visit(&self, etcd: &VirtualEtcd) -> Arc<Visit> {
        self.visit_of(&mut self.memory.lock(), etcd)
    }

    fn visit_of(&self, memory: &mut Memory, etcd: &VirtualEtcd) -> Arc<Visit> {
        let id = identify::id(etcd);
        let visit = memory.visits.entry(id).or_insert_with(|| {
            Arc::new(Visit {
                etcd: id,
                cluster_id: etcd.cluster_id,
                member_id: self.door.member_id,
                floor: AtomicI64::new(0),
            })
        });
        visit.clone()
    }
}
