//! The door of the house: speaks etcd's API to clients and asks groups for answers.
//!
//! One port answers gRPC (HTTP/2 with prior knowledge) and plain HTTP/1.1. A request goes
//! once through the files below and nowhere twice:
//!
//! ```text
//! server.rs      a socket becomes HTTP exchanges, all run by its one task; gRPC or a page
//! grpc.rs        bytes become messages, answers become bytes, errors become trailers
//! metadata.rs    what a request says beside its message
//! identify.rs    whose etcd it is for (pure): port, host, header, token must agree
//! connection.rs  what the client's socket has seen of that etcd
//! api/*.rs       one file per etcd service: message -> Request -> group -> message
//! validate.rs    what etcd refuses before it asks anybody (pure)
//! aim.rs         which of the etcd's groups has the keys (pure, by an immutable map)
//! caller.rs      the one place that asks groups
//! gather.rs      reads over several groups of an etcd, at one revision; lists.rs puts them
//!                together (pure)
//! ```
//!
//! Many tenants are served by one router, on the same port or on their own. The map says what
//! there is ([`proto::map`]); it is replaced as a whole ([`Router::place`]), the next request
//! goes by it, and `course.rs` tells the streams that it concerns. `ports.rs` opens and closes
//! the tenants' own ports.
//!
//! The router holds no state that a crash could lose: what it keeps per client connection
//! (the highest revision shown) and per stream (watches) dies with the connection.
//!
//! Invariants:
//! * nothing here names a shard: groups are reached through [`proto::group::Groups`] only;
//! * a request that etcd would refuse is refused here with etcd's text, and asks nobody;
//! * a request reaches the groups of one etcd, the one that it names, and no others;
//! * no answer shows a client connection a lower revision of an etcd than it has seen (the
//!   group is told the floor with each request).

mod aim;
mod config;
mod identify;
mod lists;
mod metadata;
mod metrics;
mod validate;

mod connection;
mod course;
mod door;
mod leadership;
mod lease_ids;

mod caller;
mod gather;
mod grpc;

mod api;
mod http;
mod ports;
mod server;

#[cfg(test)]
mod trials;

pub use config::RouterConfig;
pub use metrics::{HistogramReading, NoStatus, NodeReport, StatusSource};
pub use server::Router;
