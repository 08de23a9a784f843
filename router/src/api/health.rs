//! gRPC's own health service, as Go's library serves it for etcd: the whole server (the empty
//! name) is serving, other names are not known.

use std::sync::Arc;

use proto::Error;
use tonic::Status;

use crate::{
    caller::Caller,
    connection::Connection,
    grpc::{self, live::Outlet},
    metadata::Metadata,
};

const SERVING: i32 = 1;
const SERVICE_UNKNOWN: i32 = 3;

/// grpc.health.v1.HealthCheckRequest.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// grpc.health.v1.HealthCheckResponse.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Answers probes of the server as well, who name no etcd.
pub(super) fn check(
    connection: Arc<Connection>,
    metadata: &Metadata<'_>,
    request: &HealthRequest,
) -> Result<HealthResponse, Status> {
    match Caller::new(connection, metadata) {
        Ok(_) | Err(Error::NoTenant) => {}
        Err(error) => return Err(error.into()),
    }
    if request.service.is_empty() {
        Ok(HealthResponse { status: SERVING })
    } else {
        Err(Status::not_found("unknown service"))
    }
}

/// Sends the state once and then stays: it does not change while the server runs.
pub(super) async fn watch(
    caller: Caller,
    request: HealthRequest,
    outlet: Outlet,
) -> Result<(), Status> {
    let status = if request.service.is_empty() { SERVING } else { SERVICE_UNKNOWN };
    outlet.send(grpc::frame(&HealthResponse { status }), 1).await;
    Err(caller.interruption(&[caller.home()?.group]).wait().await)
}
