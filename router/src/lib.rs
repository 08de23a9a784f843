//! The door of the house: speaks etcd's API to clients and asks groups for answers.
//!
//! One port answers gRPC (HTTP/2 with prior knowledge) and plain HTTP/1.1. A request goes
//! once through the files below and nowhere twice:
//!
//! ```text
//! server.rs    a socket becomes HTTP exchanges, all run by its one task; gRPC is told from pages
//! grpc.rs      bytes become messages, answers become bytes, errors become trailers
//! api/*.rs     one file per etcd service: message -> Request -> group -> message
//! validate.rs  what etcd refuses before it asks anybody (pure)
//! route.rs     which group has the key (pure, an immutable map)
//! caller.rs    the one place that asks groups; knows the client's connection
//! ```
//!
//! The router holds no state that a crash could lose: what it keeps per client connection
//! (the highest revision shown) and per stream (watches) dies with the connection.
//!
//! Invariants:
//! * nothing here names a shard: groups are reached through [`proto::group::Groups`] only;
//! * a request that etcd would refuse is refused here with etcd's text, and asks nobody;
//! * no answer shows a client connection a lower revision than it has seen (the group is told
//!   the floor with each request).

mod config;
mod metrics;
mod route;
mod validate;

mod door;
mod leadership;

mod caller;
mod grpc;

mod api;
mod http;
mod server;

#[cfg(test)]
mod trials;

pub use config::RouterConfig;
pub use metrics::{HistogramReading, NoStatus, NodeReport, StatusSource};
pub use route::{PlacementMap, RangePlacement, Target, TenantPlacement};
pub use server::Router;
