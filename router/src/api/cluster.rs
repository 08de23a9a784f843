//! The service Cluster. Answers about members carry no revision.
//!
//! Clients of the default etcd run the service: they see the home group's members and may
//! change them, as with etcd. To everybody else a member is a node that answers them, with
//! URLs that reach their own etcd there ([`addresses`]): Go's client with autosync, `etcdctl
//! --cluster` and Patroni go on with these. Such members are not theirs to change, and what is
//! told of them says nothing of groups or of other tenants.

mod addresses;

use proto::{
    Error, NodeId,
    etcd::{
        Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
        MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
        MemberUpdateRequest, MemberUpdateResponse, ResponseHeader,
    },
    group::{Reply, Request},
    map::RouterPlace,
};
use tonic::Status;

use crate::caller::{Caller, answer, misplaced};

pub(super) async fn list(
    caller: Caller,
    request: MemberListRequest,
) -> Result<MemberListResponse, Status> {
    if caller.is_default() {
        let (header, members) = members(&caller, Request::MemberList(request)).await?;
        return Ok(MemberListResponse { header, members });
    }
    Ok(MemberListResponse { header: caller.fill_member(None), members: routers(&caller) })
}

/// The nodes that answer this client, as members.
fn routers(caller: &Caller) -> Vec<Member> {
    let door = caller.door();
    let map = door.map();
    let member = |router: &RouterPlace| Member {
        id: router.node.0,
        name: router.name.clone(),
        client_ur_ls: addresses::of(router, caller.etcd(), &door.config.tenant_domains),
        ..Default::default()
    };
    let mut members: Vec<Member> = map.routers().iter().map(member).collect();
    if members.is_empty() {
        // Nobody has said where nodes are reached; this one is there.
        members.push(Member { id: door.member_id, ..Default::default() });
    }
    members.sort_by_key(|member| member.id);
    members
}

/// Refuses those to whom members are nodes of the service.
pub(super) fn check_members_are_own(caller: &Caller) -> Result<(), Error> {
    if caller.is_default() { Ok(()) } else { Err(Error::MembersFixed) }
}

pub(super) async fn add(
    caller: Caller,
    request: MemberAddRequest,
) -> Result<MemberAddResponse, Status> {
    check_members_are_own(&caller)?;
    let mut response = answer!(caller.ask(Request::MemberAdd(request)).await?, MemberAdd);
    response.header = caller.fill_member(response.header);
    Ok(response)
}

pub(super) async fn remove(
    caller: Caller,
    request: MemberRemoveRequest,
) -> Result<MemberRemoveResponse, Status> {
    check_members_are_own(&caller)?;
    // A member that is removed stops, with all that it has.
    if caller.door().map().is_used(NodeId(request.id)) {
        return Err(Error::NodeInUse.into());
    }
    let (header, members) = members(&caller, Request::MemberRemove(request)).await?;
    Ok(MemberRemoveResponse { header, members })
}

pub(super) async fn update(
    caller: Caller,
    request: MemberUpdateRequest,
) -> Result<MemberUpdateResponse, Status> {
    check_members_are_own(&caller)?;
    let (header, members) = members(&caller, Request::MemberUpdate(request)).await?;
    Ok(MemberUpdateResponse { header, members })
}

pub(super) async fn promote(
    caller: Caller,
    request: MemberPromoteRequest,
) -> Result<MemberPromoteResponse, Status> {
    check_members_are_own(&caller)?;
    let (header, members) = members(&caller, Request::MemberPromote(request)).await?;
    Ok(MemberPromoteResponse { header, members })
}

/// Asks, and takes a list of members out of the reply. A group that says only "done" is asked
/// for the list.
async fn members(
    caller: &Caller,
    request: Request,
) -> Result<(Option<ResponseHeader>, Vec<Member>), Status> {
    let reply = match caller.ask(request).await? {
        Reply::Done(_) => {
            let list = Request::MemberList(MemberListRequest { linearizable: true });
            caller.ask(list).await?
        }
        reply => reply,
    };
    match reply {
        Reply::Members(list) => Ok((caller.fill_member(list.header), list.members)),
        _ => Err(misplaced()),
    }
}
