//! Whose a group is, and what it answers to whom. Pure.
//!
//! The router knows by its map whose request goes where. A group does not rest on that: it knows
//! its own tenant, from its birth or from placement, and refuses everybody else's requests before
//! anything has happened. So a wrong map costs another try, and never shows one tenant another's
//! keys.
//!
//! | who asks | is answered |
//! |---|---|
//! | its tenant | everything while the group is open; nothing about keys and leases otherwise |
//! | nobody's router (tenant 0) | what is not about keys and leases: members, descriptions |
//! | another tenant | nothing |
//!
//! A group whose rows were written before groups knew this, and that placement has not told yet
//! (version 0), takes everybody for its tenant.

use proto::cluster::group::charter::Standing;
use proto::cluster::group::{Charter, GroupRequest};
use proto::group::Request;
use proto::{Error, GroupId, NamespaceId, TenantId, id};

/// The charter that a group is born with.
pub fn first(group: GroupId, tenant: TenantId, namespace: NamespaceId) -> Charter {
    let told = tenant.0 != 0 || group == id::SYSTEM_GROUP;
    let version = u64::from(told);
    Charter { tenant: tenant.0, namespace: namespace.0, version, ..Default::default() }
}

/// Why clients hear nothing of keys and leases now, if they do not.
pub fn check_standing(standing: Standing) -> Result<(), Error> {
    match standing {
        Standing::Open => Ok(()),
        Standing::Frozen => Err(Error::TenantFrozen),
        Standing::Deleted => Err(Error::TenantDeleted),
    }
}

/// May `tenant` have keys of the group?
pub fn check_owner(
    charter: &Charter,
    group: GroupId,
    tenant: TenantId,
    namespace: NamespaceId,
) -> Result<(), Error> {
    let is_told = charter.version != 0 || group == id::SYSTEM_GROUP;
    let is_owner = (tenant.0, namespace.0) == (charter.tenant, charter.namespace);
    if is_owner || !is_told { Ok(()) } else { Err(Error::ForeignGroup) }
}

/// Is the request answered by a group with this charter?
pub fn admit(charter: &Charter, request: &GroupRequest) -> Result<(), Error> {
    let Some(body) = &request.body else { return Ok(()) };
    let (tenant, namespace) = (TenantId(request.tenant), NamespaceId(request.namespace));
    let is_placement = tenant.0 == 0;
    if !is_placement || is_about_data(body) {
        check_owner(charter, GroupId(request.group), tenant, namespace)?;
    }
    if is_about_keys(body) { check_standing(charter.standing()) } else { Ok(()) }
}

/// Does it show or change keys or leases?
pub fn is_about_keys(body: &Request) -> bool {
    match body {
        Request::Range(_)
        | Request::Put(_)
        | Request::DeleteRange(_)
        | Request::Txn(_)
        | Request::Compact(_)
        | Request::LeaseGrant(_)
        | Request::LeaseRevoke(_)
        | Request::LeaseKeepAlive(_)
        | Request::LeaseTimeToLive(_)
        | Request::LeaseLeases(_)
        | Request::HashKv(_) => true,
        Request::Alarm(_)
        | Request::Linearize(_)
        | Request::Describe(_)
        | Request::MemberList(_)
        | Request::MemberAdd(_)
        | Request::MemberRemove(_)
        | Request::MemberUpdate(_)
        | Request::MemberPromote(_)
        | Request::MoveLeader(_)
        | Request::Publish(_)
        | Request::ChangeReplica(_)
        | Request::Span(_)
        | Request::SplitRange(_)
        | Request::MergeRange(_)
        | Request::SetCharter(_) => false,
    }
}

/// Is it only for who has the keys?
fn is_about_data(body: &Request) -> bool {
    is_about_keys(body) || matches!(body, Request::Alarm(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::cluster::group::{DescribeRequest, LinearizeRequest};
    use proto::etcd::{PutRequest, RangeRequest};
    use proto::group::request_to;

    const GROUP: GroupId = GroupId(7);

    fn charter(standing: Standing) -> Charter {
        let charter = first(GROUP, TenantId(3), NamespaceId(2));
        Charter { standing: standing as i32, ..charter }
    }

    fn asks(tenant: u64, namespace: u64, body: Request) -> GroupRequest {
        GroupRequest { tenant, namespace, ..request_to(GROUP, body) }
    }

    fn put() -> Request {
        Request::Put(PutRequest::default())
    }

    fn range() -> Request {
        Request::Range(RangeRequest { serializable: true, ..Default::default() })
    }

    #[test]
    fn a_group_answers_its_tenant_and_nobody_else() {
        let open = charter(Standing::Open);
        for body in [put, range] {
            assert_eq!(admit(&open, &asks(3, 2, body())), Ok(()));
            for (tenant, namespace) in [(3, 1), (4, 2), (0, 0), (0, 2)] {
                let admitted = admit(&open, &asks(tenant, namespace, body()));
                assert_eq!(admitted, Err(Error::ForeignGroup), "{tenant}/{namespace}");
            }
        }
    }

    #[test]
    fn the_service_may_ask_what_is_not_about_keys() {
        let frozen = charter(Standing::Frozen);
        let describe = || Request::Describe(DescribeRequest {});
        assert_eq!(admit(&frozen, &request_to(GROUP, describe())), Ok(()));
        let linearize = Request::Linearize(LinearizeRequest {});
        assert_eq!(admit(&frozen, &request_to(GROUP, linearize)), Ok(()));
        assert_eq!(admit(&frozen, &asks(4, 1, describe())), Err(Error::ForeignGroup));
    }

    #[test]
    fn who_is_frozen_or_deleted_is_told_so() {
        assert_eq!(admit(&charter(Standing::Frozen), &asks(3, 2, put())), Err(Error::TenantFrozen));
        let deleted = charter(Standing::Deleted);
        assert_eq!(admit(&deleted, &asks(3, 2, range())), Err(Error::TenantDeleted));
        assert_eq!(admit(&deleted, &asks(4, 2, range())), Err(Error::ForeignGroup));
    }

    #[test]
    fn the_system_group_is_placements_own_from_the_first() {
        let of_system = |tenant| GroupRequest { tenant, ..request_to(id::SYSTEM_GROUP, put()) };
        for charter in [Charter::default(), first(id::SYSTEM_GROUP, TenantId(0), NamespaceId(0))] {
            assert_eq!(admit(&charter, &of_system(0)), Ok(()));
            assert_eq!(admit(&charter, &of_system(1)), Err(Error::ForeignGroup));
        }
    }

    #[test]
    fn a_group_that_was_told_nothing_takes_everybody() {
        assert_eq!(admit(&Charter::default(), &asks(3, 2, put())), Ok(()));
        assert_eq!(first(GROUP, TenantId(0), NamespaceId(0)).version, 0);
    }
}
