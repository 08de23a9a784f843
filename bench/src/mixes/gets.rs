//! Reads of one random key, or of many neighbouring ones, out of filled keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proto::etcd;
use proto::etcd::kv_client::KvClient;
use tokio::time::Instant;
use tonic::Status;

use super::content::{self, Dice};
use crate::connection::Connection;
use crate::error::Error;
use crate::load::{self, Client, Session, Tally};

/// How long a follower may take to see what was filled in.
const FILL_LAG_MAX: Duration = Duration::from_secs(30);

/// Where a read begins.
enum Start {
    Random(Dice),
    /// Behind the read before, of all clients together; from the beginning after the end.
    Next(Arc<AtomicU64>),
}

/// Reads `span` keys from somewhere on and insists on getting all of them.
struct Reader {
    kv: KvClient<Connection>,
    start: Start,
    keys: u64,
    span: u64,
    serializable: bool,
}

impl Client for Reader {
    async fn call(&mut self) -> Result<Option<Instant>, Status> {
        let start = match &mut self.start {
            Start::Random(dice) => dice.below(self.keys - self.span + 1),
            Start::Next(lists) => {
                lists.fetch_add(1, Ordering::Relaxed) % (self.keys / self.span) * self.span
            }
        };
        let range_end = if self.span == 1 { Bytes::new() } else { content::key(start + self.span) };
        let request = etcd::RangeRequest {
            key: content::key(start),
            range_end,
            serializable: self.serializable,
            ..Default::default()
        };
        let found = self.kv.range(request).await?.into_inner().kvs.len();
        if found as u64 == self.span {
            Ok(None)
        } else {
            Err(Status::data_loss(format!("{found} keys of {} found", self.span)))
        }
    }
}

pub(super) async fn run_get(session: &Session, serializable: bool) -> Result<Tally, Error> {
    if serializable && session.shape.fill {
        wait_filled(session).await?;
    }
    drive(session, 1, serializable, random).await
}

/// Waits until each member has the last key by itself: a follower that lags would rightly answer that
/// a key is not there.
async fn wait_filled(session: &Session) -> Result<(), Error> {
    let last = content::key(session.shape.keys - 1);
    let asked = Instant::now();
    for connection in &session.connections {
        loop {
            let request =
                etcd::RangeRequest { key: last.clone(), serializable: true, ..Default::default() };
            let found = connection.kv().range(request).await.map_err(Error::request("look"))?;
            if found.into_inner().count == 1 {
                break;
            }
            if asked.elapsed() > FILL_LAG_MAX {
                return Err(Error::Usage("a member lags behind the filling".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

pub(super) async fn run_range(session: &Session) -> Result<Tally, Error> {
    drive(session, session.shape.span, false, random).await
}

pub(super) async fn run_walk(session: &Session) -> Result<Tally, Error> {
    let lists = Arc::new(AtomicU64::new(0));
    drive(session, session.shape.span, false, |_| Start::Next(lists.clone())).await
}

/// The nth client reads at random places of its own.
fn random(n: usize) -> Start {
    Start::Random(Dice::new(n as u64 + 1))
}

async fn drive(
    session: &Session,
    span: u64,
    serializable: bool,
    start: impl Fn(usize) -> Start,
) -> Result<Tally, Error> {
    let keys = session.shape.keys;
    if span == 0 || span > keys {
        return Err(Error::Usage(format!("a range of {span} keys out of {keys}")));
    }
    let reader =
        |n| Reader { kv: session.connection(n).kv(), start: start(n), keys, span, serializable };
    Ok(load::drive(session, (0..session.shape.clients).map(reader).collect()).await)
}
