//! What apply leaves to be done outside: the machine itself does nothing but change its
//! store, the worker alone acts.

use std::sync::Arc;

use proto::mvccpb::{Event, KeyValue};

/// One revision's events, in the order of the operations, shared by all who watch.
#[derive(Debug)]
pub struct RevisionEvents {
    /// The revision.
    pub revision: i64,
    /// The events.
    pub events: Vec<ChangeEvent>,
}

/// One event and what was there before.
#[derive(Debug)]
pub struct ChangeEvent {
    /// Without the previous value.
    pub event: Arc<Event>,
    /// The value before the revision, if there was one and the event does not create anew.
    pub previous: Option<KeyValue>,
}

impl ChangeEvent {
    /// The event for a watch that asked for previous values.
    pub fn with_previous(&self) -> Arc<Event> {
        match &self.previous {
            Some(previous) => {
                let event = Event { prev_kv: Some(previous.clone()), ..(*self.event).clone() };
                Arc::new(event)
            }
            None => self.event.clone(),
        }
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
}
