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
    group::Request,
};
use tonic::Status;

use crate::{
    caller::{Caller, answer},
    grpc::{self, inbound::Inbound, live::Outlet},
    metrics::Rpc,
};

/// Keepalives of one stream that may wait for their groups.
const KEEP_ALIVES_IN_FLIGHT: usize = 256;

pub(super) async fn grant(
    caller: Caller,
    mut request: LeaseGrantRequest,
) -> Result<LeaseGrantResponse, Status> {
    if request.id == 0 {
        request.id = caller.door().new_lease_id();
    }
    let mut response = answer!(caller.ask(Request::LeaseGrant(request)).await?, LeaseGrant);
    response.header = caller.fill(response.header);
    Ok(response)
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
    let mut interruption = pin!(caller.interruption(caller.home()?.group).wait());
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
