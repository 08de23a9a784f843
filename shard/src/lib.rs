//! The rooms: Raft groups, each a full MVCC store. In reading order.

pub mod access;
pub mod autocompact;
pub mod charter;
pub mod cut;
pub mod disk;
pub mod engine;
pub mod extents;
pub mod group;
pub mod heal;
pub mod lease;
pub mod local;
pub mod log;
pub mod machine;
pub mod mailbox;
pub mod node;
pub mod read;
pub mod room;
pub mod split;
pub mod store;
pub mod touched;
pub mod transport;
pub mod watch;
pub mod worker;
