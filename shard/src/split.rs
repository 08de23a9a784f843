//! A split tenant: one revision sequence over many groups.
//!
//! The leader of the tenant's *home* group is the [`sequencer::Sequencer`]: it alone gives out
//! revisions. The leader of every group of the tenant, home's too, is a
//! [`participant::Participant`]: it takes the requests for its range, asks for revisions, and
//! proposes what was granted. One ordered stream joins each participant with the sequencer
//! ([`stream`]); what lasts is in the groups' logs ([`entry`]).
//!
//! ```text
//!   put ──> participant ── Want ──> sequencer          one batched trip,
//!             │  <── Granted(R) ──    │                one commit
//!             └─ propose Write(R)     │
//!   get ──> participant ── Ask ───> sequencer ── read round of home
//!             │  <── Answer(R, last) ─┘                waits for `last`, reads at R
//!   txn over shards ──> sequencer ── Latch ──> participants ── Vote ──> sequencer
//!                         └─ propose Decision(R) in home's log = commit point ── Branch ──> ...
//! ```
//!
//! Both sides are pure: messages, applied entries and finished read rounds in; messages,
//! proposals and answers out. No clock, no I/O, no randomness. The protocol and why each rule is
//! needed: design, "A split tenant"; each rule can be switched off ([`faults`]) so that the
//! simulator shows that its checkers would see the rule missing.
//!
//! Invariants:
//! - a revision is granted once; nothing above the committed limit is granted or shown;
//! - the revisions in a group's log strictly increase: "at or below my last" means "applied";
//! - after `(R, last)` was told of a group nothing between them takes effect there;
//! - nothing that overlaps a transaction takes effect between its vote and its branch;
//! - a decision is kept until every participant has applied its branch.

pub mod entry;
pub mod evaluate;
pub mod faults;
pub mod footprint;
pub mod participant;
pub mod sequencer;
pub mod stream;
pub mod wire;
