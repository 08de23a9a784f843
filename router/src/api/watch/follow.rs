//! A watch for our own use: waiting lockers and observers of elections.
//!
//! It has the client's tenant and goes through the same seam as a client's watch; lost hubs
//! are replaced from behind the last event.

use std::{sync::Arc, time::Duration};

use proto::{
    Error, KeyRange,
    group::{WatchControl, WatchEvent, WatchOutput, WatchSpec},
};
use tokio::sync::mpsc;
use tonic::Status;

use super::{RETRY, Sink};
use crate::caller::{Caller, Moved};

/// The only watch of its sink.
const KEY: u64 = 1;

/// Follows one range of keys.
pub(in crate::api) struct Follow {
    caller: Caller,
    range: KeyRange,
    /// First revision that was not delivered yet.
    next: i64,
    hub: Option<Hub>,
    pause: Duration,
}

// === impl Follow ===

impl Follow {
    pub(in crate::api) fn new(caller: Caller, range: KeyRange, start_revision: i64) -> Follow {
        Follow { caller, range, next: start_revision.max(1), hub: None, pause: RETRY.0 }
    }

    /// The next events, with the header revision they came with.
    pub(in crate::api) async fn next(&mut self) -> Result<(i64, Vec<Arc<WatchEvent>>), Status> {
        loop {
            let hub = match &mut self.hub {
                Some(hub) => hub,
                hub => hub.insert(open(&self.caller, self.range.clone(), self.next)?),
            };
            let output = tokio::select! {
                output = hub.queue.recv() => output,
                () = &mut hub.moved => {
                    self.hub = None;
                    continue;
                }
            };
            match output {
                Some(WatchOutput::Events { revision, events, .. }) => {
                    self.pause = RETRY.0;
                    if let Some(kv) = events.last().and_then(|event| event.kv.as_ref()) {
                        self.next = kv.mod_revision + 1;
                        return Ok((revision, events));
                    }
                }
                Some(WatchOutput::Progress { .. } | WatchOutput::WatchProgress { .. }) => {}
                Some(WatchOutput::Compacted { .. }) => return Err(Error::Compacted.into()),
                Some(WatchOutput::Closed { .. }) | None => {
                    self.hub = None;
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(RETRY.1);
                }
            }
        }
    }
}

/// Where it listens.
struct Hub {
    /// Cancels when it is dropped.
    _control: Box<dyn WatchControl>,
    queue: mpsc::Receiver<WatchOutput>,
    moved: Moved,
}

fn open(caller: &Caller, range: KeyRange, start_revision: i64) -> Result<Hub, Status> {
    let target = caller.place(&range.start)?;
    let (sink, queue) = Sink::new();
    let control = caller.door().groups.watch(target.group, sink);
    control.create(WatchSpec {
        tenant: target.tenant,
        namespace: target.namespace,
        group: target.group,
        key: KEY,
        range,
        start_revision,
        prev_kv: false,
        no_put: false,
        no_delete: false,
    });
    let home = caller.home()?;
    Ok(Hub { _control: control, queue, moved: caller.moved(home.group) })
}
