//! The words that Atoll's parts speak to each other: etcd's API, messages between nodes,
//! ids, key ranges, the error table, limits. No I/O, no clock, no runtime.

/// etcd's public API (`etcdserverpb`): what clients send and hear.
pub mod etcdserverpb {
    #![allow(missing_docs, clippy::all, clippy::pedantic)]
    tonic::include_proto!("etcdserverpb");
}
pub use etcdserverpb as etcd;

/// Keys, values and events (`mvccpb`).
pub mod mvccpb {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("mvccpb");
}
/// Users and permissions (`authpb`).
pub mod authpb {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("authpb");
}
/// etcd's lock service (`v3lockpb`).
pub mod v3lockpb {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("v3lockpb");
}
/// etcd's election service (`v3electionpb`).
pub mod v3electionpb {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("v3electionpb");
}
/// What travels between our own parts.
pub mod cluster {
    /// Raft messages and snapshots between nodes.
    pub mod raft {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("cluster.raft");
    }
    /// What nodes say of themselves.
    pub mod node {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("cluster.node");
    }
    /// Operators' commands.
    pub mod admin {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("cluster.admin");
    }
    /// A split tenant's groups among themselves.
    pub mod split {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("cluster.split");
    }
    /// Requests to groups and their replies; what a log entry says.
    pub mod group {
        #![allow(missing_docs, clippy::all)]
        tonic::include_proto!("cluster.group");
    }
}

pub mod error;
pub mod group;
pub mod id;
pub mod key;
pub mod limits;
pub mod list;
pub mod map;

pub use error::{Code, Error};
pub use id::{GroupId, NamespaceId, NodeId, ReplicaId, TenantId};
pub use key::KeyRange;
pub use map::{PlacementMap, VirtualEtcd};
