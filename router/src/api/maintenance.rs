//! The service Maintenance.
//!
//! * Defragment is accepted and does nothing: there is nothing to defragment here. Its answer,
//!   like MoveLeader's, has no header in etcd.
//! * Leadership is moved by clients of the default etcd only: where a tenant's leader is, is the
//!   service's business.
//! * Snapshot in etcd's file format is not available; it says so instead of sending another.
//! * Downgrade knows one target, the minor version before; it is checked and not carried out.

use proto::{
    Error,
    cluster::group::{DescribeRequest, Description},
    etcd::{
        AlarmMember, AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse,
        DowngradeInfo, DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse,
        HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse, ResponseHeader,
        SnapshotRequest, StatusRequest, StatusResponse, downgrade_request::DowngradeAction,
    },
    group::Request,
    limits,
};
use tonic::Status;

use super::cluster::check_members_are_own;
use crate::{
    caller::{Caller, answer},
    grpc::live::Outlet,
};

/// Asks the nearest replica of the home group what it knows of itself.
pub(crate) async fn describe(caller: &Caller) -> Result<Description, Status> {
    Ok(answer!(caller.ask(Request::Describe(DescribeRequest {})).await?, Describe))
}

pub(super) async fn status(
    caller: Caller,
    _request: StatusRequest,
) -> Result<StatusResponse, Status> {
    let described = describe(&caller).await?;
    let config = &caller.door().config;
    let mut errors = Vec::new();
    if described.leader == 0 {
        errors.push(Error::NoLeader.text().to_owned());
    }
    errors.extend(described.alarms.iter().map(alarm_text));
    let quota = described.quota;
    // What this node knows of: of an etcd on several groups each has its own part of the revisions.
    let groups = &caller.door().groups;
    let known = caller.now(|etcd| {
        etcd.ranges().iter().map(|range| groups.revision(range.target.group)).max().unwrap_or(0)
    })?;
    let header = described
        .header
        .map(|header| ResponseHeader { revision: header.revision.max(known), ..header });
    Ok(StatusResponse {
        header: caller.fill(header),
        version: config.server_version.clone(),
        db_size: described.size,
        leader: described.leader,
        raft_index: described.raft_committed_index.max(described.raft_index),
        raft_term: described.header.map_or(0, |header| header.raft_term),
        raft_applied_index: described.raft_applied_index,
        errors,
        db_size_in_use: described.size_in_use,
        is_learner: described.is_learner,
        storage_version: config.storage_version.clone(),
        db_size_quota: if quota == 0 { limits::DEFAULT_QUOTA_BYTES } else { quota },
        downgrade_info: Some(DowngradeInfo::default()),
    })
}

/// An alarm as Status names it.
fn alarm_text(alarm: &AlarmMember) -> String {
    // Protobuf's text format: what has its default value is left out.
    let member = Some(alarm.member_id).filter(|id| *id != 0).map(|id| format!("memberID:{id}"));
    let kind = Some(alarm.alarm().as_str_name()).filter(|_| alarm.alarm != 0);
    let parts: Vec<String> =
        member.into_iter().chain(kind.map(|kind| format!("alarm:{kind}"))).collect();
    parts.join(" ")
}

pub(super) async fn alarm(caller: Caller, request: AlarmRequest) -> Result<AlarmResponse, Status> {
    let mut response = answer!(caller.ask(Request::Alarm(request)).await?, Alarm);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn defragment(
    _caller: Caller,
    _request: DefragmentRequest,
) -> Result<DefragmentResponse, Status> {
    Ok(DefragmentResponse { header: None })
}

pub(super) async fn hash_kv(
    caller: Caller,
    request: HashKvRequest,
) -> Result<HashKvResponse, Status> {
    let mut response = answer!(caller.ask(Request::HashKv(request)).await?, HashKv);
    response.header = caller.fill(response.header);
    Ok(response)
}

pub(super) async fn hash(caller: Caller, _request: HashRequest) -> Result<HashResponse, Status> {
    let response = hash_kv(caller, HashKvRequest { revision: 0 }).await?;
    Ok(HashResponse { header: response.header, hash: response.hash })
}

pub(super) fn check_snapshot(_caller: &Caller, _request: &SnapshotRequest) -> Result<(), Status> {
    Err(Error::SnapshotUnavailable.into())
}

pub(super) async fn snapshot(
    _caller: Caller,
    _request: SnapshotRequest,
    _outlet: Outlet,
) -> Result<(), Status> {
    Err(Error::SnapshotUnavailable.into())
}

pub(super) async fn move_leader(
    caller: Caller,
    request: MoveLeaderRequest,
) -> Result<MoveLeaderResponse, Status> {
    check_members_are_own(&caller)?;
    let _done = answer!(caller.ask(Request::MoveLeader(request)).await?, Done);
    Ok(MoveLeaderResponse { header: None })
}

pub(super) async fn downgrade(
    caller: Caller,
    request: DowngradeRequest,
) -> Result<DowngradeResponse, Status> {
    let config = &caller.door().config;
    let version = match DowngradeAction::try_from(request.action) {
        Ok(DowngradeAction::Validate | DowngradeAction::Enable) => {
            check_downgrade(&request.version, &config.cluster_version)?;
            &config.cluster_version
        }
        Ok(DowngradeAction::Cancel) => &config.cluster_version,
        Err(_) => return Err(Status::unknown("etcdserver: unknown method")),
    };
    // etcd names the cluster version by major and minor.
    let version = minor_version(version).map(|(major, minor)| format!("{major}.{minor}"));
    let header = caller.fill(describe(&caller).await?.header);
    Ok(DowngradeResponse { header, version: version.unwrap_or_default() })
}

/// Is `target` the minor version before `cluster`?
fn check_downgrade(target: &str, cluster: &str) -> Result<(), Error> {
    let (major, minor) = minor_version(target).ok_or(Error::DowngradeBadFormat)?;
    match minor_version(cluster) {
        Some((now, before)) if now == major && before == minor + 1 => Ok(()),
        _ => Err(Error::DowngradeBadTarget),
    }
}

/// Reads `major.minor` or `major.minor.patch`, where a patch may carry a pre-release or build
/// part (as in semantic versions).
fn minor_version(text: &str) -> Option<(u64, u64)> {
    let number = |part: &str| {
        let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| part.parse().ok()).flatten()
    };
    let core = text.split(['-', '+']).next()?;
    let parts: Vec<&str> = core.split('.').collect();
    match parts.as_slice() {
        [major, minor] if core == text => Some((number(major)?, number(minor)?)),
        [major, minor, patch] => {
            number(patch)?;
            Some((number(major)?, number(minor)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_minor_version_before_is_a_target() {
        assert_eq!(check_downgrade("3.6", "3.7.0"), Ok(()));
        assert_eq!(check_downgrade("3.6.0", "3.7.0"), Ok(()));
        for target in ["3.7", "3.5.0", "3.8", "2.6", "4.6.0"] {
            assert_eq!(
                check_downgrade(target, "3.7.0"),
                Err(Error::DowngradeBadTarget),
                "{target}"
            );
        }
    }

    #[test]
    fn what_is_no_version_is_told_apart() {
        for target in ["", "3", "three", "3.x", "3.6.0.0", "v3.6", "3..6", "-3.6"] {
            assert_eq!(
                check_downgrade(target, "3.7.0"),
                Err(Error::DowngradeBadFormat),
                "{target}"
            );
        }
    }

    #[test]
    fn an_alarm_is_named_with_its_member() {
        let alarm = AlarmMember { member_id: 77, alarm: 1 };
        assert_eq!(alarm_text(&alarm), "memberID:77 alarm:NOSPACE");
    }
}
