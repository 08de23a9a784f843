//! The service Lease.
//!
//! Keepalives of one stream are asked for as they come and answered in their order; a client
//! that keeps many leases alive need not wait a round for each.

use std::pin::pin;

use futures::{StreamExt, stream::FuturesOrdered};
use proto::{
    Error,
    etcd::{
        LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
        LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
        LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, ResponseHeader,
    },
    group::{GroupError, Reply, Request},
};
use tonic::Status;

use crate::{
    caller::{Caller, answer},
    grpc::{self, inbound::Inbound, live::Outlet},
    metrics::Rpc,
};

/// Keepalives of one stream that may wait for their groups.
const KEEP_ALIVES_IN_FLIGHT: usize = 256;
/// How often it is looked whether a lease was granted.
const LOOKS: usize = 3;
/// What is heard of a grant while the leader changes.
const IN_DOUBT: GroupError = GroupError::unknown(Error::LeaderChanged);

pub(super) async fn grant(
    caller: Caller,
    mut request: LeaseGrantRequest,
) -> Result<LeaseGrantResponse, Status> {
    let is_chosen_here = request.id == 0;
    if is_chosen_here {
        request.id = caller.door().new_lease_id();
    }
    let mut answer = caller.try_ask(Request::LeaseGrant(request)).await;
    if is_chosen_here && answer.as_ref().is_err_and(|error| *error == IN_DOUBT) {
        answer = granted_or_not(&caller, request).await;
    }
    let answer = answer.map_err(|error| Status::from(error.error))?;
    let mut response = answer!(answer, LeaseGrant);
    response.header = caller.fill(response.header);
    Ok(response)
}

/// The leader changed, and whether it has granted is not known. Nobody else has this id: a lease
/// that is there was granted then, and where there is none it may be asked for again.
async fn granted_or_not(caller: &Caller, request: LeaseGrantRequest) -> Result<Reply, GroupError> {
    for _ in 0..LOOKS {
        let look = LeaseTimeToLiveRequest { id: request.id, keys: false };
        match caller.try_ask(Request::LeaseTimeToLive(look)).await? {
            Reply::LeaseTimeToLive(found) if found.granted_ttl > 0 => {
                let (header, id, ttl) = (found.header, found.id, found.granted_ttl);
                let granted = LeaseGrantResponse { header, id, ttl, error: String::new() };
                return Ok(Reply::LeaseGrant(granted));
            }
            _ => {}
        }
        match caller.try_ask(Request::LeaseGrant(request)).await {
            // It was on its way when somebody looked.
            Err(error) if error.error == Error::LeaseExists || error == IN_DOUBT => {}
            answer => return answer,
        }
    }
    Err(IN_DOUBT)
}

pub(super) async fn revoke(
    caller: Caller,
    request: LeaseRevokeRequest,
) -> Result<LeaseRevokeResponse, Status> {
    let mut response = answer!(caller.ask(Request::LeaseRevoke(request)).await?, LeaseRevoke);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn time_to_live(
    caller: Caller,
    request: LeaseTimeToLiveRequest,
) -> Result<LeaseTimeToLiveResponse, Status> {
    let reply = caller.ask(Request::LeaseTimeToLive(request)).await?;
    let mut response = answer!(reply, LeaseTimeToLive);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn leases(
    caller: Caller,
    request: LeaseLeasesRequest,
) -> Result<LeaseLeasesResponse, Status> {
    let mut response = answer!(caller.ask(Request::LeaseLeases(request)).await?, LeaseLeases);
    response.header = caller.fill(response.header);
    Ok(response)
}

/// Renews one lease. A lease that is not there is no error: its TTL is zero.
pub(super) async fn renew(caller: &Caller, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
    let request = Request::LeaseKeepAlive(LeaseKeepAliveRequest { id });
    let mut response = match caller.try_ask(request).await {
        Ok(reply) => answer!(reply, LeaseKeepAlive),
        Err(error) if error.error == Error::LeaseNotFound => LeaseKeepAliveResponse {
            header: Some(ResponseHeader { revision: caller.visit().floor(), ..Default::default() }),
            id,
            ttl: 0,
        },
        Err(error) => return Err(error.error.into()),
    };
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn keep_alive(
    caller: Caller,
    mut inbound: Inbound<LeaseKeepAliveRequest>,
    outlet: Outlet,
) -> Result<(), Status> {
    let mut interruption = pin!(caller.interruption(&[caller.home()?.group]).wait());
    let mut waiting = FuturesOrdered::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        let answer = tokio::select! {
            request = inbound.next(), if open && waiting.len() < KEEP_ALIVES_IN_FLIGHT => {
                match request? {
                    Some(request) => {
                        caller.door().metrics.received(Rpc::LeaseKeepAlive);
                        let caller = caller.clone();
                        waiting.push_back(async move { renew(&caller, request.id).await });
                    }
                    None => open = false,
                }
                continue;
            }
            Some(answer) = waiting.next(), if !waiting.is_empty() => answer?,
            status = &mut interruption => return Err(status),
        };
        outlet.send(grpc::frame(&answer), 1).await;
    }
    Ok(())
}
