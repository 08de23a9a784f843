//! Transactions: the compare-and-put that kube-apiserver lives on, and mixed ones.
//!
//! Kubernetes updates an object by "put it if its mod_revision is still the one I saw, else show me
//! what is there". Each client owns one key, so that the comparison always holds and the mix costs
//! the same on every system.

use bytes::Bytes;
use proto::etcd;
use proto::etcd::kv_client::KvClient;
use tokio::time::Instant;
use tonic::Status;

use super::content::{self, Dice, Values, get_op, put_op};
use crate::connection::Connection;
use crate::error::Error;
use crate::load::{self, Client, Session, Tally};

// === CompareAndPut ===

struct Updater {
    kv: KvClient<Connection>,
    key: Bytes,
    mod_revision: i64,
    dice: Dice,
    values: Values,
    reads_first: bool,
}

impl Updater {
    async fn read_revision(&mut self) -> Result<i64, Status> {
        let request = etcd::RangeRequest { key: self.key.clone(), ..Default::default() };
        let found = self.kv.range(request).await?.into_inner().kvs;
        // A key that does not exist has revision 0, for reads and comparisons alike.
        Ok(found.first().map_or(0, |kv| kv.mod_revision))
    }
}

impl Client for Updater {
    async fn call(&mut self) -> Result<Option<Instant>, Status> {
        if self.reads_first {
            self.mod_revision = self.read_revision().await?;
        }
        let request = etcd::TxnRequest {
            compare: vec![etcd::Compare {
                result: etcd::compare::CompareResult::Equal.into(),
                target: etcd::compare::CompareTarget::Mod.into(),
                key: self.key.clone(),
                target_union: Some(etcd::compare::TargetUnion::ModRevision(self.mod_revision)),
                ..Default::default()
            }],
            success: vec![put_op(self.key.clone(), self.values.any(&mut self.dice))],
            failure: vec![get_op(self.key.clone())],
        };
        let answer = self.kv.txn(request).await?.into_inner();
        if answer.succeeded {
            self.mod_revision = answer.header.map_or(0, |header| header.revision);
            Ok(None)
        } else {
            self.mod_revision = self.read_revision().await?;
            Err(Status::aborted("a key that only one client writes had another revision"))
        }
    }
}

pub(super) async fn run_cas(session: &Session, reads_first: bool) -> Result<Tally, Error> {
    let values = Values::new(session.shape.value_bytes);
    let mut updaters = Vec::with_capacity(session.shape.clients);
    for n in 0..session.shape.clients {
        let mut updater = Updater {
            kv: session.connection(n).kv(),
            key: content::key(n as u64),
            mod_revision: 0,
            dice: Dice::new(n as u64 + 1),
            values: values.clone(),
            reads_first,
        };
        updater.mod_revision =
            updater.read_revision().await.map_err(Error::request("read a key's revision"))?;
        updaters.push(updater);
    }
    Ok(load::drive(session, updaters).await)
}

// === MixedTxn ===

/// Each transaction compares a key's version, puts that key and gets another one.
struct Mixer {
    kv: KvClient<Connection>,
    dice: Dice,
    values: Values,
    keys: u64,
}

impl Client for Mixer {
    async fn call(&mut self) -> Result<Option<Instant>, Status> {
        let written = content::key(self.dice.below(self.keys));
        let read = content::key(self.dice.below(self.keys));
        let put = put_op(written.clone(), self.values.any(&mut self.dice));
        let request = etcd::TxnRequest {
            compare: vec![etcd::Compare {
                result: etcd::compare::CompareResult::Greater.into(),
                target: etcd::compare::CompareTarget::Version.into(),
                key: written,
                target_union: Some(etcd::compare::TargetUnion::Version(0)),
                ..Default::default()
            }],
            success: vec![put, get_op(read)],
            failure: Vec::new(),
        };
        match self.kv.txn(request).await?.into_inner().succeeded {
            true => Ok(None),
            false => Err(Status::data_loss("a key that was filled in does not exist")),
        }
    }
}

pub(super) async fn run_mixed(session: &Session) -> Result<Tally, Error> {
    let values = Values::new(session.shape.value_bytes);
    let mixer = |n| Mixer {
        kv: session.connection(n).kv(),
        dice: Dice::new(n as u64 + 1),
        values: values.clone(),
        keys: session.shape.keys,
    };
    Ok(load::drive(session, (0..session.shape.clients).map(mixer).collect()).await)
}

// === HalfTxn ===

/// Half of the transactions only get a key, the other half only put one.
struct Halver(Mixer);

impl Client for Halver {
    async fn call(&mut self) -> Result<Option<Instant>, Status> {
        let Mixer { kv, dice, values, keys } = &mut self.0;
        let key = content::key(dice.below(*keys));
        let op = if dice.below(2) == 0 { get_op(key) } else { put_op(key, values.any(dice)) };
        kv.txn(etcd::TxnRequest { success: vec![op], ..Default::default() }).await?;
        Ok(None)
    }
}

pub(super) async fn run_half(session: &Session) -> Result<Tally, Error> {
    let values = Values::new(session.shape.value_bytes);
    let halver = |n| {
        Halver(Mixer {
            kv: session.connection(n).kv(),
            dice: Dice::new(n as u64 + 1),
            values: values.clone(),
            keys: session.shape.keys,
        })
    };
    Ok(load::drive(session, (0..session.shape.clients).map(halver).collect()).await)
}
