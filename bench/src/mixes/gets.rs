//! Reads of one random key, or of many neighbouring ones, out of filled keys.

use bytes::Bytes;
use proto::etcd;
use proto::etcd::kv_client::KvClient;
use tokio::time::Instant;
use tonic::Status;

use super::content::{self, Dice};
use crate::connection::Connection;
use crate::error::Error;
use crate::load::{self, Client, Session, Tally};

/// Reads `span` keys from a random one on and insists on getting all of them.
struct Reader {
    kv: KvClient<Connection>,
    dice: Dice,
    keys: u64,
    span: u64,
    serializable: bool,
}

impl Client for Reader {
    async fn call(&mut self) -> Result<Option<Instant>, Status> {
        let start = self.dice.below(self.keys - self.span + 1);
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
    drive(session, 1, serializable).await
}

pub(super) async fn run_range(session: &Session) -> Result<Tally, Error> {
    drive(session, session.shape.span, false).await
}

async fn drive(session: &Session, span: u64, serializable: bool) -> Result<Tally, Error> {
    let keys = session.shape.keys;
    if span == 0 || span > keys {
        return Err(Error::Usage(format!("a range of {span} keys out of {keys}")));
    }
    let reader = |n| Reader {
        kv: session.connection(n).kv(),
        dice: Dice::new(n as u64 + 1),
        keys,
        span,
        serializable,
    };
    Ok(load::drive(session, (0..session.shape.clients).map(reader).collect()).await)
}
