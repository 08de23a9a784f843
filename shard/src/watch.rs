//! Watches: who is told what happened to which keys, in order, without gap or double.
//!
//! ```text
//!   apply ── effects ──> hub: synced watchers ────────────┐
//!                         │  (slow or behind)             ├──> sink of a client stream
//!                         └> unsynced ── history (store) ─┘
//! ```
//!
//! Writers never wait for watchers: the hub is fed from behind apply. A watcher is *synced*
//! when it has been given everything up to the hub's revision; then it is fed from effects.
//! One that joins in the past, or whose sink was full, is *unsynced* and catches up from the
//! store's history in slices; when it has reached the hub's revision it is synced again.
//!
//! Invariants:
//! - A watcher is offered the revisions from its start on in ascending order, each once and
//!   whole.
//! - Progress R is offered only behind everything up to R.

pub mod feed;
pub mod hub;
#[cfg(test)]
mod tests;
pub mod threads;
