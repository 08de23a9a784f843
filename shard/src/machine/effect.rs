//! What apply leaves to be done outside: the machine itself does nothing but change its
//! store, the worker alone acts.

use std::sync::Arc;

use bytes::Bytes;
use proto::GroupId;
use proto::cluster::group::charter::Standing;
use proto::group::WatchEvent;
use proto::mvccpb::Event;

use crate::engine::EngineError;
use crate::extents::Extents;
use crate::split::entry::Kept;
use crate::store::view::{self, Found};

/// One revision's events, in the order of the operations, shared by all who watch.
#[derive(Debug)]
pub struct RevisionEvents {
    /// The revision.
    pub revision: i64,
    /// The group's revision before it: where a tenant is on several groups others have some of
    /// those between.
    pub after: i64,
    /// The events; none if it passed without a change here.
    pub events: Vec<ChangeEvent>,
}

/// One event and what was there before.
#[derive(Debug)]
pub struct ChangeEvent {
    /// Without the previous value.
    pub event: Arc<WatchEvent>,
    /// The version before the revision, if there was one and the event does not create anew.
    pub previous: Option<Found>,
}

impl ChangeEvent {
    /// The event for a watch that asked for previous values. An error says that the previous
    /// value stood in an extent that is gone by now, or damaged: history tells.
    pub fn with_previous(&self, extents: &Extents) -> Result<Arc<WatchEvent>, EngineError> {
        let Some(previous) = &self.previous else { return Ok(self.event.clone()) };
        let value = view::read_value(extents, &previous.row.value)?;
        let key = self.event.kv.as_ref().map_or_else(Default::default, |kv| kv.key.clone());
        let prev_kv = Some(previous.with(key, value));
        let event = Event { prev_kv, ..Event::clone(&self.event) };
        Ok(WatchEvent::new(event, self.event.place()))
    }

    /// Key that changed.
    pub fn key(&self) -> &[u8] {
        self.event.kv.as_ref().map_or(&[], |kv| kv.key.as_ref())
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A revision happened.
    Events(Arc<RevisionEvents>),
    /// A lease exists now, with this TTL in seconds.
    LeaseGranted {
        /// Its id.
        lease: i64,
        /// Granted TTL.
        ttl_s: i64,
    },
    /// A lease is gone.
    LeaseRevoked {
        /// Its id.
        lease: i64,
    },
    /// History below this revision is gone for readers.
    Compacted {
        /// The compacted revision.
        revision: i64,
    },
    /// Names, addresses or roles of members changed.
    Members,
    /// This replica is the only member from here on.
    Alone,
    /// The keys from `at` on go to a new group, which begins with this.
    Split {
        /// Its first key.
        at: Bytes,
        /// What it keeps.
        kept: Box<Kept>,
    },
    /// The right neighbour's keys are this group's.
    Absorb {
        /// The neighbour.
        right: GroupId,
        /// The last revision in its log.
        revision: i64,
    },
    /// Revisions have passed of which nobody here knows: who watches is to read what history tells.
    Passed,
    /// Placement has said something else of the group than before.
    Charter {
        /// What clients could do before.
        before: Standing,
    },
}
