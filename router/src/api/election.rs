//! The service Election: the oldest key under a name leads, its value is the proclamation.

use std::pin::pin;

use proto::{
    Error, KeyRange,
    etcd::{ResponseHeader, TxnRequest},
    mvccpb::{KeyValue, event::EventType},
    v3electionpb::{
        CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse,
        ProclaimRequest, ProclaimResponse, ResignRequest, ResignResponse,
    },
};
use tonic::Status;

use super::{
    session::{self, OwnKey, Session, plain},
    watch::follow::Follow,
};
use crate::{
    caller::Caller,
    grpc::{self, live::Outlet},
};

const NOT_LEADER: &str = "election: not leader";

/// Waits until the client leads.
pub(super) async fn campaign(
    caller: Caller,
    request: CampaignRequest,
) -> Result<CampaignResponse, Status> {
    run_for(caller.unhurried(), request).await.map_err(plain)
}

async fn run_for(caller: Caller, request: CampaignRequest) -> Result<CampaignResponse, Status> {
    let session = Session::open(caller.clone(), request.lease).await?;
    let prefix = session::prefix(&request.name);
    let key = session.key(&prefix);
    let enter = TxnRequest {
        compare: vec![session::created_at(&key, 0)],
        success: vec![session::put_op(&key, request.value.clone(), session.lease)],
        failure: vec![session::get_op(session::get_key(&key))],
    };
    let response = session::txn(&caller, enter).await?;
    let mut leader = LeaderKey { name: request.name, key, rev: 0, lease: session.lease };
    leader.rev = session::revision(response.header);
    let mut outdated = false;
    if !response.succeeded {
        let standing = session::found(&response, 0)?.first();
        leader.rev = standing.map_or(0, |kv| kv.create_revision);
        outdated = standing.is_some_and(|kv| kv.value != request.value);
    }
    let own = OwnKey::created_at(caller.clone(), leader.key.clone(), leader.rev);
    if outdated {
        announce(&caller, &leader, request.value).await?;
    }
    let wait = session::wait_for_older(&caller, &prefix, leader.rev - 1);
    session.alive_during(wait).await?;
    own.keep();
    Ok(CampaignResponse { header: response.header, leader: Some(leader) })
}

/// Sets the leader's value, if it still leads.
async fn announce(
    caller: &Caller,
    leader: &LeaderKey,
    value: bytes::Bytes,
) -> Result<Option<ResponseHeader>, Status> {
    let request = TxnRequest {
        compare: vec![session::created_at(&leader.key, leader.rev)],
        success: vec![session::put_op(&leader.key, value, leader.lease)],
        failure: vec![],
    };
    let response = session::txn(caller, request).await?;
    if response.succeeded { Ok(response.header) } else { Err(Status::unknown(NOT_LEADER)) }
}

/// The leader that a request must name, with a key.
fn named(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    let leader = leader.ok_or(Error::LeaderFieldMissing)?;
    if leader.key.is_empty() {
        return Err(plain(Error::EmptyKey.into()));
    }
    Ok(leader)
}

pub(super) async fn proclaim(
    caller: Caller,
    request: ProclaimRequest,
) -> Result<ProclaimResponse, Status> {
    let leader = named(request.leader)?;
    let header = announce(&caller, &leader, request.value).await.map_err(plain)?;
    Ok(ProclaimResponse { header })
}

/// Gives leadership up; no error if it was lost already.
pub(super) async fn resign(
    caller: Caller,
    request: ResignRequest,
) -> Result<ResignResponse, Status> {
    let leader = named(request.leader)?;
    let request = TxnRequest {
        compare: vec![session::created_at(&leader.key, leader.rev)],
        success: vec![session::delete_op(&leader.key)],
        failure: vec![],
    };
    let response = session::txn(&caller, request).await.map_err(plain)?;
    Ok(ResignResponse { header: response.header })
}

pub(super) async fn leader(
    caller: Caller,
    request: LeaderRequest,
) -> Result<LeaderResponse, Status> {
    let prefix = session::prefix(&request.name);
    let response = session::range(&caller, session::oldest(&prefix)).await.map_err(plain)?;
    match response.kvs.into_iter().next() {
        Some(kv) => Ok(LeaderResponse { header: response.header, kv: Some(kv) }),
        None => Err(Error::ElectionNoLeader.into()),
    }
}

/// Sends the leader's key whenever leader or value change.
pub(super) async fn observe(
    caller: Caller,
    request: LeaderRequest,
    outlet: Outlet,
) -> Result<(), Status> {
    let mut interruption = pin!(caller.interruption(&[caller.home()?.group]).wait());
    let visitor = caller.clone();
    let prefix = session::prefix(&request.name);
    let mut observer = Observer { caller, prefix, leading: None };
    loop {
        let (header, kv) = tokio::select! {
            seen = observer.next() => match seen {
                Ok(seen) => seen,
                // etcd ends the stream without an error when its own watch ends. An etcd that was
                // taken away is another matter.
                Err(_) => return visitor.home().map(drop).map_err(Status::from),
            },
            status = &mut interruption => return Err(status),
        };
        let response = LeaderResponse { header: Some(header), kv: Some(kv) };
        outlet.send(grpc::frame(&response), 1).await;
    }
}

/// Follows who leads.
struct Observer {
    caller: Caller,
    prefix: bytes::Bytes,
    /// The leader's key and what has come about it but was not shown yet.
    leading: Option<Leading>,
}

struct Leading {
    follow: Follow,
    waiting: std::collections::VecDeque<(ResponseHeader, KeyValue)>,
    gone: bool,
}

// === impl Observer ===

impl Observer {
    /// The next leader or value. Dropped only together with the stream.
    async fn next(&mut self) -> Result<(ResponseHeader, KeyValue), Status> {
        loop {
            let Some(leading) = &mut self.leading else { return self.find().await };
            if let Some(seen) = leading.waiting.pop_front() {
                return Ok(seen);
            }
            if leading.gone {
                self.leading = None;
                continue;
            }
            let (revision, events) = leading.follow.next().await?;
            let header = ResponseHeader { revision, ..Default::default() };
            let header = self.caller.fill(Some(header)).unwrap_or_default();
            for event in &events {
                if event.r#type() == EventType::Delete {
                    leading.gone = true;
                    break;
                }
                if let Some(kv) = &event.kv {
                    leading.waiting.push_back((header, kv.clone()));
                }
            }
        }
    }

    /// The leader of now, or the first to come.
    async fn find(&mut self) -> Result<(ResponseHeader, KeyValue), Status> {
        let mut response = session::range(&self.caller, session::oldest(&self.prefix)).await?;
        let mut header = response.header.unwrap_or_default();
        let kv = match response.kvs.pop() {
            Some(kv) => kv,
            None => {
                let kv = self.first_put(header.revision).await?;
                header.revision = kv.mod_revision;
                kv
            }
        };
        let range = KeyRange::single(&kv.key);
        let follow = Follow::new(self.caller.clone(), range, header.revision + 1);
        let waiting = std::collections::VecDeque::new();
        self.leading = Some(Leading { follow, waiting, gone: false });
        Ok((header, kv))
    }

    async fn first_put(&mut self, start: i64) -> Result<KeyValue, Status> {
        let range = session::prefix_range(&self.prefix);
        let mut follow = Follow::new(self.caller.clone(), range, start);
        loop {
            for event in follow.next().await?.1 {
                if event.r#type() == EventType::Put
                    && let Some(kv) = &event.kv
                {
                    return Ok(kv.clone());
                }
            }
        }
    }
}
