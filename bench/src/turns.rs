//! Two systems in turns.
//!
//! ```text
//!   per row:   round 1        round 2        ...        ratio of round n = A(n) / B(n)
//!              A      B       A      B                  told: median, least, greatest
//! ```
//!
//! A turn starts a fresh cluster, does the row's trial with it, and kills it. Nothing of the other
//! system runs meanwhile: an idle etcd of three costs up to some per cent of a core (heartbeats,
//! timers) and hundreds of MiB of page cache, a start costs one to three seconds. So every turn also
//! begins with an empty store, and one row cannot burden the next.
//!
//! A row that fails is told and left out; the rest goes on, and the command fails at its end.

use std::path::PathBuf;

use serde::Serialize;

use crate::error::Error;
use crate::load::Overrides;
use crate::report;
use crate::results::Results;
use crate::servers::Cluster;
use crate::sides::Sides;
use crate::trials::{Measured, Row};

/// Where and how turns are done.
pub(crate) struct Stage {
    pub(crate) sides: Sides,
    pub(crate) overrides: Overrides,
    /// Where every turn leaves a line, and the results are rewritten after each row.
    pub(crate) out: Option<PathBuf>,
}

/// A turn as a line of JSON.
#[derive(Serialize)]
struct TurnLine<'a> {
    row: &'a str,
    system: &'a str,
    round: usize,
    nodes: usize,
    #[serde(flatten)]
    measured: &'a Measured,
}

impl Stage {
    /// Does all rounds of a row; a failure is kept in the results.
    pub(crate) async fn rounds(
        &self,
        row: &Row,
        nodes: usize,
        rounds: usize,
        results: &mut Results,
    ) {
        let mut pairs = Vec::with_capacity(rounds);
        for round in 1..=rounds {
            match Box::pin(self.round(row, nodes, round, results)).await {
                Ok(pair) => pairs.push(pair),
                Err(error) => {
                    eprintln!("{}: {error}", row.name);
                    results.note_failure(&row.name, nodes, &error);
                    return;
                }
            }
        }
        results.add(row, nodes, &pairs, self.sides.judged);
    }

    async fn round(
        &self,
        row: &Row,
        nodes: usize,
        round: usize,
        results: &mut Results,
    ) -> Result<[Measured; 2], Error> {
        let first = self.turn(row, 0, nodes, round, results).await?;
        let second = self.turn(row, 1, nodes, round, results).await?;
        Ok([first, second])
    }

    async fn turn(
        &self,
        row: &Row,
        side: usize,
        nodes: usize,
        round: usize,
        results: &mut Results,
    ) -> Result<Measured, Error> {
        let system = &self.sides.systems[side];
        let folder = format!("atoll-bench-{}-{round}", std::process::id());
        let root = self.sides.work_dir.join(folder);
        let mut cluster = Cluster::start(system, row.settings, nodes, &root).await?;
        let measured = row.run(&mut cluster, &self.overrides).await?;
        drop(cluster);
        print!("{}", report::turn_text(&row.name, nodes, round, &system.label, &measured));
        if let Some(folder) = &self.out {
            let (row, system) = (row.name.as_str(), system.label.as_str());
            let line = TurnLine { row, system, round, nodes, measured: &measured };
            report::append_json(&folder.join(report::RUNS_FILE), &line)?;
        }
        for window in &measured.windows {
            results.note_window(nodes, &system.label, window);
        }
        Ok(measured)
    }
}
