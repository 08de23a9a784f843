//! The answering side of watches between nodes: hubs here, client streams at another node.
//!
//! ```text
//!   asks ──> listen() ──> WatchControl ──> hub ──> TellSink ──> queue ──> messages
//! ```
//!
//! A stream carries all sinks of a node. What is not sent yet waits in one queue, which has no
//! bound of its own: each sink may put in what its credit allows, and credit comes back when the
//! client has taken what was told. A sink without credit is full, its watches fall back to
//! history; the others go on.
//!
//! Invariants:
//! - A sink is told that it is gone when the hub lets go of it, behind all that it was told
//!   before, whatever its credit.
//! - When the stream ends, so do its watches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures::Stream;
use proto::cluster::group::sink_ask::Body;
use proto::cluster::group::{SinkAsk, WatchAsk, WatchCreate, WatchTell};
use proto::group::{Groups, WatchControl, WatchOutput, WatchSink, WatchSpec};
use proto::{GroupId, KeyRange, NamespaceId, TenantId};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::packing::{Packer, SinkNumber, cost};

/// Outputs packed at a time.
const PACK: usize = 1024;

type Queue = mpsc::UnboundedSender<(SinkNumber, Option<WatchOutput>)>;

/// Where a hub here puts what it has for a client stream elsewhere.
struct TellSink {
    number: SinkNumber,
    credit: Arc<AtomicI64>,
    queue: Queue,
}

// === impl TellSink ===

impl WatchSink for TellSink {
    fn offer(&self, output: WatchOutput) -> Result<(), WatchOutput> {
        // Only the hub's thread takes credit, so it cannot be spent twice. The last output may
        // take more than there is, or a large one would never go.
        if self.credit.load(Ordering::Acquire) <= 0 {
            return Err(output);
        }
        self.credit.fetch_sub(cost(&output), Ordering::AcqRel);
        self.queue
            .send((self.number, Some(output)))
            .map_err(|mpsc::error::SendError((_, output))| output.unwrap_or(CLOSED))
    }

    fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

/// Stands for an output that was given back; there always is one.
const CLOSED: WatchOutput = WatchOutput::Closed { key: 0 };

impl Drop for TellSink {
    fn drop(&mut self) {
        // Who asked may have gone first.
        let _ = self.queue.send((self.number, None));
    }
}

/// One client stream of the other node.
struct Asked {
    group: GroupId,
    control: Box<dyn WatchControl>,
    credit: Arc<AtomicI64>,
}

/// Serves the watches that are asked for at `groups`, until the asks end.
pub(super) fn serve(
    groups: Arc<dyn Groups>,
    asks: Streaming<WatchAsk>,
) -> impl Stream<Item = Result<WatchTell, Status>> + Send {
    let (queue, outputs) = mpsc::unbounded_channel();
    tokio::spawn(listen(groups, asks, queue));
    futures::stream::unfold((outputs, Packer::default()), |(mut outputs, mut packer)| async move {
        loop {
            if let Some(tell) = packer.take() {
                return Some((Ok(tell), (outputs, packer)));
            }
            let mut some = Vec::new();
            if outputs.recv_many(&mut some, PACK).await == 0 {
                return None;
            }
            for (sink, output) in some {
                packer.add(sink, output);
            }
        }
    })
}

async fn listen(groups: Arc<dyn Groups>, mut asks: Streaming<WatchAsk>, queue: Queue) {
    let mut sinks: HashMap<SinkNumber, Asked> = HashMap::new();
    while let Ok(Some(ask)) = asks.message().await {
        for SinkAsk { sink, body } in ask.asks {
            match body {
                Some(Body::Open(open)) => {
                    let group = GroupId(open.group);
                    let credit = Arc::new(AtomicI64::new(open.credit));
                    let queue = queue.clone();
                    let tells = TellSink { number: sink, credit: credit.clone(), queue };
                    let control = groups.watch(group, Arc::new(tells));
                    sinks.insert(sink, Asked { group, control, credit });
                }
                Some(Body::Close(_)) => {
                    sinks.remove(&sink);
                }
                Some(body) => {
                    if let Some(asked) = sinks.get(&sink) {
                        asked.ask(body);
                    }
                }
                // A wish of a newer program.
                None => {}
            }
        }
    }
}

// === impl Asked ===

impl Asked {
    fn ask(&self, body: Body) {
        match body {
            Body::Create(create) => self.control.create(spec(self.group, create)),
            Body::Cancel(key) => self.control.cancel(key),
            Body::Progress(_) => self.control.progress(),
            Body::ProgressAt(revision) => self.control.progress_at(revision),
            Body::WatchProgress(key) => self.control.watch_progress(key),
            Body::Credit(bytes) => {
                self.credit.fetch_add(bytes, Ordering::AcqRel);
            }
            Body::Open(_) | Body::Close(_) => {}
        }
    }
}

fn spec(group: GroupId, create: WatchCreate) -> WatchSpec {
    WatchSpec {
        tenant: TenantId(create.tenant),
        namespace: NamespaceId(create.namespace),
        group,
        key: create.key,
        range: KeyRange { start: create.start, end: create.end },
        start_revision: create.start_revision,
        prev_kv: create.prev_kv,
        no_put: create.no_put,
        no_delete: create.no_delete,
    }
}
