//! A slow disk: when a node should not lead.
//!
//! raft-rs 0.7.0 hands out committed entries only once they are synced here, so a leader
//! with a slow disk stalls its groups though its followers have stored everything. A node
//! whose syncs are late hands its leaderships away and *rests*: for a while it waits longer
//! than others before it campaigns. It does campaign in the end: if every disk is slow, a
//! slow leader is better than none.
//!
//! Invariants: a node hands over at most once a rest, so that equally slow nodes do not pass
//! leaderships round.

use std::collections::VecDeque;

/// A sync that takes longer is late.
const LATE_MS: u64 = 200;
/// So many late ones ...
const LATE_COUNT: usize = 3;
/// ... within so long are too many.
const WINDOW_MS: u64 = 10_000;
/// One that takes longer is enough.
const STALL_MS: u64 = 2_000;
/// How long a node rests.
const REST_MS: u64 = 60_000;

/// See the module.
#[derive(Default)]
pub(super) struct SlowDisk {
    late: VecDeque<u64>,
    resting_until_ms: u64,
}

impl SlowDisk {
    /// A sync ended. Says whether a rest begins.
    pub(super) fn synced(&mut self, now_ms: u64, took_ms: u64) -> bool {
        if took_ms < LATE_MS || self.is_resting(now_ms) {
            return false;
        }
        self.late.push_back(now_ms);
        while self.late.front().is_some_and(|at| at + WINDOW_MS < now_ms) {
            self.late.pop_front();
        }
        let begins = took_ms >= STALL_MS || self.late.len() >= LATE_COUNT;
        if begins {
            self.late.clear();
            self.resting_until_ms = now_ms + REST_MS;
        }
        begins
    }

    /// Does the node rest?
    pub(super) fn is_resting(&self, now_ms: u64) -> bool {
        now_ms < self.resting_until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_late_syncs_in_ten_seconds_are_too_many() {
        let mut disk = SlowDisk::default();
        assert!(!disk.synced(1_000, 250));
        assert!(!disk.synced(5_000, 250));
        // The first is forgotten by now.
        assert!(!disk.synced(12_000, 250));
        assert!(!disk.synced(12_500, 100));
        assert!(disk.synced(13_000, 250));
        assert!(disk.is_resting(72_999) && !disk.is_resting(73_000));
    }

    #[test]
    fn one_stall_is_enough_and_a_rest_is_not_prolonged() {
        let mut disk = SlowDisk::default();
        assert!(disk.synced(5_000, 2_000));
        assert!(!disk.synced(20_000, 9_000));
        assert!(!disk.is_resting(65_000));
    }
}
