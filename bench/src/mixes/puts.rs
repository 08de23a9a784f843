//! Puts of random keys with values of one length.

use proto::etcd;
use proto::etcd::kv_client::KvClient;
use tokio::time::Instant;
use tonic::Status;

use super::content::{self, Dice, Values};
use crate::connection::Connection;
use crate::error::Error;
use crate::load::{self, Client, Session, Tally};

struct Putter {
    kv: KvClient<Connection>,
    dice: Dice,
    values: Values,
    keys: u64,
}

impl Client for Putter {
    async fn call(&mut self) -> Result<Option<Instant>, Status> {
        let key = content::key(self.dice.below(self.keys));
        let value = self.values.any(&mut self.dice);
        self.kv.put(etcd::PutRequest { key, value, ..Default::default() }).await?;
        Ok(None)
    }
}

pub(super) async fn run(session: &Session) -> Result<Tally, Error> {
    let values = Values::new(session.shape.value_bytes);
    let putter = |n| Putter {
        kv: session.connection(n).kv(),
        dice: Dice::new(n as u64 + 1),
        values: values.clone(),
        keys: session.shape.keys,
    };
    Ok(load::drive(session, (0..session.shape.clients).map(putter).collect()).await)
}
