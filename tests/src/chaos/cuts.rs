//! An operator who splits the tenant and brings it together again, over and over, through all faults.
//!
//! The commands are those that an operator types, sent to a node drawn anew each time. It may be down,
//! or another operator may be under way: what is refused is tried later, in another way. Only what a
//! command has seen come to its end is counted.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::process::Command;

use super::client::KEYS;
use crate::sim::random::Random;

/// The tenant that clients without a name are served as.
const TENANT: &str = "default";
/// How long a command may take; its operator goes on all the same.
const PATIENCE: Duration = Duration::from_secs(15);
/// Milliseconds between two commands.
const BETWEEN_MS: (u64, u64) = (50, 700);

/// See the module.
pub(super) struct Operator {
    pub(super) program: PathBuf,
    /// Where nodes take commands.
    pub(super) admin_urls: Vec<String>,
    pub(super) random: Random,
}

/// What an operator saw come to its end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cuts {
    pub(super) splits: u64,
    pub(super) merges: u64,
}

// === impl Operator ===

impl Operator {
    /// Gives commands until it is told to stop.
    pub(super) async fn run(mut self, stop: Arc<AtomicBool>) -> Cuts {
        let mut cuts = Cuts::default();
        while !stop.load(Ordering::Relaxed) {
            let pause = self.random.between(BETWEEN_MS.0, BETWEEN_MS.1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let at = format!("k{}", self.random.below(KEYS));
            let (done, words) = match self.random.below(9) {
                0..=4 => (&mut cuts.splits, vec!["split", TENANT, "--at", &at]),
                5..=6 => (&mut cuts.merges, vec!["merge", TENANT, "--at", &at]),
                _ => (&mut cuts.merges, vec!["merge", TENANT, "--all"]),
            };
            let drawn = self.random.below(self.admin_urls.len() as u64) as usize;
            let command = Command::new(&self.program)
                .arg("tenant")
                .args(words)
                .args(["--wait", "--admin", &self.admin_urls[drawn]])
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output();
            // A command that finds nothing to do is well, too, but lists no operators.
            let ended = tokio::time::timeout(PATIENCE, command).await;
            let has_done = |ended: &Output| {
                let words = String::from_utf8_lossy(&ended.stdout);
                ended.status.success() && words.contains("OPERATOR")
            };
            if ended.is_ok_and(|ended| ended.is_ok_and(|ended| has_done(&ended))) {
                *done += 1;
            }
        }
        cuts
    }
}
