//! A watch for our own use: waiting lockers and observers of elections.
//!
//! It has the client's tenant and goes through the same seam as a client's watch; lost hubs
//! are replaced from behind the last event.

use std::{collections::VecDeque, sync::Arc};

use proto::{
    Error, KeyRange,
    group::{WatchEvent, WatchOutput},
};
use tonic::Status;

use super::{
    merge::{Output, Wish},
    upstream::Upstream,
};
use crate::caller::Caller;

/// The only watch.
const KEY: u64 = 1;

/// Follows one range of keys.
pub(in crate::api) struct Follow {
    caller: Caller,
    wish: Wish,
    upstream: Option<Upstream>,
    outputs: VecDeque<Output>,
}

// === impl Follow ===

impl Follow {
    pub(in crate::api) fn new(caller: Caller, range: KeyRange, start_revision: i64) -> Follow {
        let start_revision = start_revision.max(1);
        let (prev_kv, no_put, no_delete) = (false, false, false);
        let wish = Wish { range, start_revision, prev_kv, no_put, no_delete };
        Follow { caller, wish, upstream: None, outputs: VecDeque::new() }
    }

    /// The next events, with the header revision they came with.
    pub(in crate::api) async fn next(&mut self) -> Result<(i64, Vec<Arc<WatchEvent>>), Status> {
        loop {
            match self.outputs.pop_front() {
                Some(Output::Watch(WatchOutput::Events { revision, events, .. })) => {
                    return Ok((revision, events));
                }
                Some(Output::Watch(WatchOutput::Compacted { .. })) => {
                    return Err(Error::Compacted.into());
                }
                Some(_) => continue,
                None => {}
            }
            let upstream = match &mut self.upstream {
                Some(upstream) => upstream,
                none => {
                    let mut upstream = Upstream::new(self.caller.clone())?;
                    upstream.create(KEY, self.wish.clone());
                    none.insert(upstream)
                }
            };
            upstream.hear().await;
            self.outputs.extend(upstream.take());
        }
    }
}
