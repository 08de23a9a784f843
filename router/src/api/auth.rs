//! The service Auth, as far as it is true without users: authentication is off, was never on,
//! and can be switched off again without effect. Everything else says that it is not there.
//!
//! One login is answered all the same: `root@acme`. Its token names the etcd of that name and is
//! sent along by clients from then on ([`crate::identify`]). It proves nothing, the password is
//! not looked at. A login without a tenant hears that authentication is off, and Go's client
//! then goes on without a token; so a tenant's login must never hear that.

use std::sync::Arc;

use proto::{
    Error,
    cluster::group::LinearizeRequest,
    etcd::{
        AuthDisableRequest, AuthDisableResponse, AuthStatusRequest, AuthStatusResponse,
        AuthenticateRequest, AuthenticateResponse, ResponseHeader,
    },
    group::Request,
};
use tonic::Status;

use crate::{
    caller::{Caller, answer},
    connection::Connection,
    identify::{Kind, admit, identify, tenant_of_user, token},
    metadata::Metadata,
};

/// Revision of an auth store in which nothing was ever changed.
const FIRST_AUTH_REVISION: u64 = 1;

pub(super) async fn status(
    caller: Caller,
    _request: AuthStatusRequest,
) -> Result<AuthStatusResponse, Status> {
    let header = answer!(caller.ask(linearize()).await?, Linearize);
    Ok(AuthStatusResponse {
        header: caller.fill(Some(header)),
        enabled: false,
        auth_revision: FIRST_AUTH_REVISION,
    })
}

pub(super) async fn disable(
    caller: Caller,
    _request: AuthDisableRequest,
) -> Result<AuthDisableResponse, Status> {
    let header = answer!(caller.ask(linearize()).await?, Linearize);
    Ok(AuthDisableResponse { header: caller.fill(Some(header)) })
}

/// Answers a login. The name of the user is evidence like any other: it may be the first that
/// names an etcd, and must not contradict what came with the request. No group is asked, so
/// that a client can connect while its group has no leader.
pub(super) fn authenticate(
    connection: Arc<Connection>,
    metadata: &Metadata<'_>,
    request: &AuthenticateRequest,
) -> Result<AuthenticateResponse, Status> {
    let Some(tenant) = tenant_of_user(&request.name) else {
        let caller = Caller::new(connection, metadata)?;
        let learner = caller.is_learner();
        let error = if learner { Error::NotSupportedForLearner } else { Error::AuthNotEnabled };
        return Err(error.into());
    };
    let mut evidence = metadata.evidence;
    evidence.add(Kind::Name, tenant.as_bytes());
    let (door, map) = (&connection.door, connection.door.map());
    let found = identify(&map, &door.config.tenant_domains, connection.entrance(), &evidence)?;
    let etcd = found.ok_or(Error::UnknownTenant)?;
    admit(etcd)?;
    let visit = connection.visit(etcd);
    let header = ResponseHeader { revision: visit.floor(), ..Default::default() };
    Ok(AuthenticateResponse { header: Some(visit.sign(header)), token: token(&etcd.name) })
}

/// Any call about users and roles. The request is read (as bytes of no meaning) and refused.
pub(super) async fn unavailable(_caller: Caller, _request: ()) -> Result<(), Status> {
    Err(Error::AuthUnavailable.into())
}

fn linearize() -> Request {
    Request::Linearize(LinearizeRequest {})
}
