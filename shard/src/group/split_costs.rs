//! What it costs a group that its tenant is split, for whoever looks at it: counted by the leader's
//! part in it (`node/split.rs`), since the replica was opened, and read on any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::cluster::group::SplitStatus;

/// See the module.
#[derive(Debug, Default)]
pub struct SplitCosts {
    /// Does this replica's leader take part?
    is_on: AtomicU64,
    grants: AtomicU64,
    holes: AtomicU64,
    transactions: AtomicU64,
    transaction_ms: AtomicU64,
    given_up: AtomicU64,
    waits_for: AtomicU64,
    waits_since_ms: AtomicU64,
}

impl SplitCosts {
    /// The leader begins, or ends, its part.
    pub(crate) fn set_on(&self, is_on: bool) {
        self.is_on.store(u64::from(is_on), Relaxed);
        self.waits_for.store(0, Relaxed);
    }

    /// Home has granted so many revisions more.
    pub(crate) fn granted(&self, revisions: u64) {
        self.grants.fetch_add(revisions, Relaxed);
    }

    /// So many revisions more will never be used.
    pub(crate) fn skipped(&self, revisions: u64) {
        self.holes.fetch_add(revisions, Relaxed);
    }

    /// A transaction over several groups was answered.
    pub(crate) fn transacted(&self, took_ms: u64) {
        self.transactions.fetch_add(1, Relaxed);
        self.transaction_ms.fetch_add(took_ms, Relaxed);
    }

    /// A transaction over several groups was given up: it goes again.
    pub(crate) fn gave_up(&self) {
        self.given_up.fetch_add(1, Relaxed);
    }

    /// Requests wait for `group`, 0 for none, now that it is `now_ms`.
    pub(crate) fn waits(&self, group: u64, now_ms: u64) {
        if self.waits_for.swap(group, Relaxed) != group {
            self.waits_since_ms.store(now_ms, Relaxed);
        }
    }

    /// All of it, now that it is `now_ms`; nothing where no leader takes part.
    pub fn status(&self, now_ms: u64) -> Option<SplitStatus> {
        if self.is_on.load(Relaxed) == 0 {
            return None;
        }
        let waits_for = self.waits_for.load(Relaxed);
        let since = self.waits_since_ms.load(Relaxed);
        Some(SplitStatus {
            grants: self.grants.load(Relaxed),
            holes: self.holes.load(Relaxed),
            transactions: self.transactions.load(Relaxed),
            transaction_ms: self.transaction_ms.load(Relaxed),
            given_up: self.given_up.load(Relaxed),
            waits_for,
            waits_ms: if waits_for == 0 { 0 } else { now_ms.saturating_sub(since) },
        })
    }
}
