//! The steward: who lives where. Keeps the ledger of tenants, groups and nodes, carries out the
//! operator's commands, and tells everybody the map.
//!
//! Its memory is an ordinary group, the *system group*: a key-value store with revisions, compares
//! and watches, replicated and recovered like every other. So a change of the ledger is one
//! transaction that compares what it was planned on, and "the map changed" is a watch. Nothing
//! here is on the path of a client's request.
//!
//! ```text
//!   record.rs    what the ledger holds, and the bytes of it
//!   ledger.rs    all records at one revision; a change of it as one transaction (pure)
//!   inventory.rs what nodes say of themselves: load, room, damage (pure)
//!   balance.rs   which moves would even the load out (pure)
//!   plans.rs     plans of such moves: made, applied, taken back, judged (pure)
//!   pins.rs      where a tenant may be (pure)
//!   policy.rs    when etcds are split without being asked (pure)
//!   heat.rs      how hot groups are, over time (pure)
//!   splits.rs    cutting an etcd's keys over several groups (pure)
//!   merges.rs    bringing them together again (pure)
//!   autosplit.rs which groups are to be split, and why or why not (pure)
//!   automerge.rs which of them are to be merged again, and why or why not (pure)
//!   spread.rs    puts the groups of an etcd on different nodes (pure)
//!   check.rs     is the ledger sound? (pure)
//!   ring.rs      which nodes a new group is proposed to (pure)
//!   command.rs   what an operator may ask and hears back
//!   tenants.rs   commands about tenants and namespaces (pure)
//!   nodes.rs     commands about nodes (pure)
//!   operators.rs where a group is to be, step by step: move, drain (pure)
//!   health.rs    what has become of nodes and replicas (pure)
//!   repairs.rs   replaces what is lost (pure)
//!   recovery.rs  which replica goes on when most are lost (pure)
//!   groups.rs    what is known of a group, and how much work each makes (pure)
//!   status.rs    how everything is, in words and numbers (pure)
//!   charters.rs  what groups are told of themselves (pure)
//!   view.rs      what routers and nodes are told: map, replicas to have (pure)
//!   office.rs    reads the ledger, runs a command on it, writes it; follows its changes
//!   executor.rs  takes the next step of every operator
//! ```
//!
//! Invariants:
//! * a change is written only on the very ledger that it was planned on;
//! * an id that was given is never given again;
//! * nothing here names a shard or a router: groups are reached through [`proto::group::Groups`].

pub mod automerge;
pub mod autosplit;
pub mod balance;
pub mod charters;
pub mod check;
pub mod command;
pub mod executor;
pub mod groups;
pub mod health;
pub mod heat;
pub mod inventory;
pub mod ledger;
pub mod merges;
pub mod nodes;
pub mod office;
pub mod operators;
pub mod pins;
pub mod plans;
pub mod policy;
pub mod record;
pub mod recovery;
pub mod repairs;
pub mod ring;
pub mod splits;
pub mod spread;
pub mod status;
pub mod tenants;
pub mod view;
#[cfg(test)]
mod world;

pub use command::{Answer, Command, Refusal};
pub use ledger::Ledger;
pub use office::Office;
