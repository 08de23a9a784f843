//! Ids of everything that is addressed. Each is a newtype, so that no two can be mixed up;
//! all come from placement and are never used twice (design: names and versions).

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// One customer, who sees one whole etcd.
    TenantId,
    "t"
);
id!(
    /// A named part of a tenant's keys with its own placement rule.
    NamespaceId,
    "ns"
);
id!(
    /// One Raft group; serves exactly one range.
    GroupId,
    "g"
);
id!(
    /// One server process with its data directory.
    NodeId,
    "n"
);
id!(
    /// A group's copy on a node; a wiped or re-added copy gets a new id.
    ReplicaId,
    "r"
);

/// The tenant of the embedded default: what a client gets that names no tenant.
pub const DEFAULT_TENANT: TenantId = TenantId(1);
/// The only namespace of a tenant that has no rules.
pub const DEFAULT_NAMESPACE: NamespaceId = NamespaceId(1);
/// The group that holds placement's ledger: every cluster has it.
pub const SYSTEM_GROUP: GroupId = GroupId(1);
/// The home group of the default tenant.
pub const DEFAULT_GROUP: GroupId = GroupId(2);
