//! Leases: grants, and keepalives on streams.
//!
//! Leases live an hour, so that none runs out during a run. A client is a stream that has `pipeline`
//! leases in flight and is answered in order. One stream with 100 in flight and 100 streams with one
//! in flight keep the same number of leases alive.

use std::collections::VecDeque;

use proto::etcd;
use proto::etcd::lease_client::LeaseClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::connection::Connection;
use crate::error::Error;
use crate::load::{self, Client, Session, Tally};

const TTL_SECONDS: i64 = 3_600;

// === LeaseGrant ===

struct Granter(LeaseClient<Connection>);

impl Client for Granter {
    async fn call(&mut self) -> Result<Option<Instant>, Status> {
        grant(&mut self.0).await?;
        Ok(None)
    }
}

async fn grant(lease: &mut LeaseClient<Connection>) -> Result<i64, Status> {
    // 0 lets the server choose the id.
    let request = etcd::LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 };
    Ok(lease.lease_grant(request).await?.into_inner().id)
}

pub(super) async fn run_grant(session: &Session) -> Result<Tally, Error> {
    let granter = |n| Granter(session.connection(n).lease());
    Ok(load::drive(session, (0..session.shape.clients).map(granter).collect()).await)
}

// === KeepAlive ===

struct Keeper {
    requests: mpsc::Sender<etcd::LeaseKeepAliveRequest>,
    answers: Streaming<etcd::LeaseKeepAliveResponse>,
    /// Leases and when their keepalive was sent, the oldest first.
    in_flight: VecDeque<(i64, Instant)>,
}

impl Keeper {
    /// Grants the leases and opens the stream. A server may send its headers only with the first
    /// answer, so one keepalive goes out before the stream is awaited.
    async fn open(mut lease: LeaseClient<Connection>, leases: usize) -> Result<Keeper, Status> {
        let (requests, outgoing) = mpsc::channel(leases.max(1));
        let mut in_flight = VecDeque::with_capacity(leases);
        for _ in 0..leases {
            let id = grant(&mut lease).await?;
            let request = etcd::LeaseKeepAliveRequest { id };
            requests.try_send(request).map_err(|e| Status::internal(e.to_string()))?;
            in_flight.push_back((id, Instant::now()));
        }
        let answers = lease.lease_keep_alive(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Keeper { requests, answers, in_flight })
    }

    /// Takes the oldest answer and sends that lease's next keepalive.
    async fn turn(&mut self) -> Result<Instant, Status> {
        let answer = self.answers.message().await?;
        let answer = answer.ok_or_else(|| Status::unavailable("keepalive stream ended"))?;
        let (id, sent) = self.in_flight.pop_front().expect("a lease per answer");
        let again = etcd::LeaseKeepAliveRequest { id };
        let now = Instant::now();
        self.requests.send(again).await.map_err(|e| Status::unavailable(e.to_string()))?;
        self.in_flight.push_back((id, now));
        if answer.id == id && answer.ttl > 0 {
            Ok(sent)
        } else {
            Err(Status::data_loss(format!(
                "lease {id}: answer of {} ttl {}",
                answer.id, answer.ttl
            )))
        }
    }
}

impl Client for Keeper {
    async fn call(&mut self) -> Result<Option<Instant>, Status> {
        self.turn().await.map(Some)
    }
}

pub(super) async fn run_keepalive(session: &Session) -> Result<Tally, Error> {
    let mut keepers = Vec::with_capacity(session.shape.clients);
    for n in 0..session.shape.clients {
        let keeper = Keeper::open(session.connection(n).lease(), session.shape.pipeline).await;
        keepers.push(keeper.map_err(Error::request("open a keepalive stream"))?);
    }
    Ok(load::drive(session, keepers).await)
}
