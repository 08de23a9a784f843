//! The service Auth, as far as it is true without users: authentication is off, was never on,
//! and can be switched off again without effect. Everything else says that it is not there.

use proto::{
    Error,
    cluster::group::LinearizeRequest,
    etcd::{
        AuthDisableRequest, AuthDisableResponse, AuthStatusRequest, AuthStatusResponse,
        AuthenticateRequest, AuthenticateResponse,
    },
    group::Request,
};
use tonic::Status;

use crate::caller::{Caller, answer};

/// Revision of an auth store in which nothing was ever changed.
const FIRST_AUTH_REVISION: u64 = 1;

pub(super) async fn status(
    caller: Caller,
    _request: AuthStatusRequest,
) -> Result<AuthStatusResponse, Status> {
    let header = answer!(caller.ask_home(linearize()).await?, Linearize);
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
    let header = answer!(caller.ask_home(linearize()).await?, Linearize);
    Ok(AuthDisableResponse { header: caller.fill(Some(header)) })
}

pub(super) async fn authenticate(
    _caller: Caller,
    _request: AuthenticateRequest,
) -> Result<AuthenticateResponse, Status> {
    Err(Error::AuthNotEnabled.into())
}

/// Any call about users and roles. The request is read (as bytes of no meaning) and refused.
pub(super) async fn unavailable(_caller: Caller, _request: ()) -> Result<(), Status> {
    Err(Error::AuthUnavailable.into())
}

fn linearize() -> Request {
    Request::Linearize(LinearizeRequest {})
}
