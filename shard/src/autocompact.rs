//! Automatic compaction as etcd does it: which revision to compact to, and when. Pure.
//!
//! - *periodic*: the revision is sampled ten times a period (at most hourly); each sample
//!   compacts to what was current one period ago.
//! - *revision*: every five minutes, all but the newest so many revisions.

use std::collections::VecDeque;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Everything: no automatic compaction.
    All,
    /// What was current within so many milliseconds.
    PeriodMs(u64),
    /// So many revisions.
    Revisions(i64),
}

/// How often the revision mode compacts (etcd's revInterval).
const REVISION_INTERVAL_MS: u64 = 5 * 60 * 1000;
/// Longest pause between samples of the periodic mode.
const SAMPLE_MS_MAX: u64 = 60 * 60 * 1000;
/// Samples in a period.
const SAMPLES: u64 = 10;

/// See the module.
pub struct AutoCompactor {
    retention: Retention,
    samples: VecDeque<(u64, i64)>,
    next_ms: u64,
    last: i64,
}

impl AutoCompactor {
    /// One that begins to count at `now_ms`.
    pub fn new(retention: Retention, now_ms: u64) -> AutoCompactor {
        let mut compactor =
            AutoCompactor { retention, samples: VecDeque::new(), next_ms: now_ms, last: 0 };
        if let Retention::Revisions(_) = retention {
            compactor.next_ms = now_ms + REVISION_INTERVAL_MS;
        }
        compactor
    }

    /// The current revision at `now_ms`: to be called about once a second. Gives the revision
    /// to compact to when it is time.
    pub fn sample(&mut self, now_ms: u64, revision: i64) -> Option<i64> {
        if now_ms < self.next_ms {
            return None;
        }
        let target = match self.retention {
            Retention::All => return None,
            Retention::PeriodMs(period_ms) => {
                self.next_ms = now_ms + (period_ms / SAMPLES).clamp(1, SAMPLE_MS_MAX);
                self.samples.push_back((now_ms, revision));
                let mut target = 0;
                while let Some((at_ms, sampled)) = self.samples.front().copied() {
                    if at_ms + period_ms > now_ms {
                        break;
                    }
                    target = sampled;
                    self.samples.pop_front();
                }
                target
            }
            Retention::Revisions(keep) => {
                self.next_ms = now_ms + REVISION_INTERVAL_MS;
                revision - keep
            }
        };
        (target > self.last).then(|| {
            self.last = target;
            target
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_keeps_what_was_current_within_it() {
        let mut compactor = AutoCompactor::new(Retention::PeriodMs(10_000), 0);
        let targets: Vec<_> =
            (0..=20).filter_map(|s| compactor.sample(s * 1000, 100 + s as i64)).collect();
        assert_eq!(targets, (100..=110).collect::<Vec<_>>());
    }

    #[test]
    fn a_number_of_revisions_is_kept() {
        let mut compactor = AutoCompactor::new(Retention::Revisions(1000), 0);
        assert_eq!(compactor.sample(1000, 5000), None, "not before five minutes");
        assert_eq!(compactor.sample(300_000, 5000), Some(4000));
        assert_eq!(compactor.sample(600_000, 5000), None, "nothing new");
    }
}
