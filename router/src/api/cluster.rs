//! The service Cluster: asked of the home group, which knows the members that the tenant is
//! to see. Answers about members carry no revision.

use proto::{
    etcd::{
        Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
        MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
        MemberUpdateRequest, MemberUpdateResponse, ResponseHeader,
    },
    group::{Reply, Request},
};
use tonic::Status;

use crate::caller::{Caller, answer, misplaced};

pub(super) async fn list(
    caller: Caller,
    request: MemberListRequest,
) -> Result<MemberListResponse, Status> {
    let (header, members) = members(&caller, Request::MemberList(request)).await?;
    Ok(MemberListResponse { header, members })
}

pub(super) async fn add(
    caller: Caller,
    request: MemberAddRequest,
) -> Result<MemberAddResponse, Status> {
    let mut response = answer!(caller.ask_home(Request::MemberAdd(request)).await?, MemberAdd);
    response.header = caller.fill_member(response.header);
    Ok(response)
}

pub(super) async fn remove(
    caller: Caller,
    request: MemberRemoveRequest,
) -> Result<MemberRemoveResponse, Status> {
    let (header, members) = members(&caller, Request::MemberRemove(request)).await?;
    Ok(MemberRemoveResponse { header, members })
}

pub(super) async fn update(
    caller: Caller,
    request: MemberUpdateRequest,
) -> Result<MemberUpdateResponse, Status> {
    let (header, members) = members(&caller, Request::MemberUpdate(request)).await?;
    Ok(MemberUpdateResponse { header, members })
}

pub(super) async fn promote(
    caller: Caller,
    request: MemberPromoteRequest,
) -> Result<MemberPromoteResponse, Status> {
    let (header, members) = members(&caller, Request::MemberPromote(request)).await?;
    Ok(MemberPromoteResponse { header, members })
}

/// Asks, and takes a list of members out of the reply. A group that says only "done" is asked
/// for the list.
async fn members(
    caller: &Caller,
    request: Request,
) -> Result<(Option<ResponseHeader>, Vec<Member>), Status> {
    let reply = match caller.ask_home(request).await? {
        Reply::Done(_) => {
            let list = Request::MemberList(MemberListRequest { linearizable: true });
            caller.ask_home(list).await?
        }
        reply => reply,
    };
    match reply {
        Reply::Members(list) => Ok((caller.fill_member(list.header), list.members)),
        _ => Err(misplaced()),
    }
}
