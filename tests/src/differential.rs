//! The differential test: random scripts of gRPC requests are played against Atoll and against
//! etcd in lock-step, and every answer, error and watch event must be the same, but for the
//! differences named in [`exception::EXCEPTIONS`].
//!
//! - [`script`] writes the scripts: script `index` of a seed is always the same;
//! - [`op`] is one step, with stand-ins for numbers that only the run knows;
//! - [`side`] carries a step out against one server, [`pair`] against both, comparing;
//! - [`watching`] does so for watch streams, whose events come when they come;
//! - [`answer`], [`names`] and [`exception`] say what being the same means;
//! - [`shrink`] makes a script that shows a difference short.
//!
//! Both servers begin empty and see the same requests, so their revisions are equal all the
//! time. The control run, etcd against etcd, must find nothing: whatever it finds is a
//! dependency on timing, to be named as an exception or taken out of the scripts.

pub mod answer;
pub mod dice;
pub mod exception;
pub mod names;
pub mod op;
pub mod pair;
pub mod raw;
pub mod script;
pub mod shrink;
pub mod side;
pub mod watching;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use op::Op;
use pair::{Difference, Pair, Source, Timings};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many scripts.
    pub scripts: u64,
    /// Index of the first one.
    pub first: u64,
    /// What the scripts are drawn from.
    pub seed: u64,
    /// The candidate and the reference.
    pub sources: [Source; 2],
    /// Both servers begin anew after so many scripts.
    pub fresh_every: u64,
    /// Ends the run when so many differences were found.
    pub differences_max: u64,
    /// Ends the run when the time is over.
    pub budget: Option<Duration>,
    /// How long a difference may be shrunk; zero: not at all.
    pub shrink_for: Duration,
    /// Where data directories go.
    pub work_dir: PathBuf,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Scripts played to their end, or to a difference.
    pub scripts: u64,
    /// Steps taken.
    pub requests: u64,
    /// Differences found.
    pub differences: u64,
    /// What the steps cost, by kind.
    pub timings: Timings,
}

impl Summary {
    fn add(&mut self, pair: &Pair) {
        self.requests += pair.requests;
        for (kind, (count, spent)) in &pair.timings {
            let timing = self.timings.entry(kind.clone()).or_default();
            *timing = (timing.0 + count, timing.1 + *spent);
        }
    }
}

impl Options {
    async fn pair(&self) -> Result<Pair, String> {
        Pair::start(&self.sources, &self.work_dir).await
    }

    /// Says whether empty servers can be had.
    fn can_restart(&self) -> bool {
        self.sources.iter().all(|source| matches!(source, Source::Start(_)))
    }
}

/// Plays scripts, printing differences as they are found.
pub async fn run(options: &Options) -> Result<Summary, String> {
    let begun = Instant::now();
    let mut summary = Summary::default();
    let mut pair = options.pair().await?;
    let mut fresh_at = options.first;
    for index in options.first..options.first + options.scripts {
        if options.budget.is_some_and(|budget| begun.elapsed() >= budget) {
            break;
        }
        let last = index + 1 == options.first + options.scripts;
        let renew = options.can_restart() && index + 1 - fresh_at >= options.fresh_every;
        let mut played = pair.play(index, &script::write(options.seed, index)).await;
        if played.is_ok() && (last || renew) {
            played = pair.join_pending().await;
        }
        summary.scripts += 1;
        let found = played.is_err();
        if let Err(difference) = played {
            summary.differences += 1;
            report(options, &difference, fresh_at).await;
            if summary.differences >= options.differences_max || !options.can_restart() {
                break;
            }
        }
        if !last && (found || renew) {
            summary.add(&pair);
            drop(pair);
            pair = options.pair().await?;
            fresh_at = index + 1;
        }
    }
    // The budget may have ended the run before the last watches were compared.
    if summary.differences == 0
        && let Err(difference) = pair.join_pending().await
    {
        summary.differences += 1;
        report(options, &difference, fresh_at).await;
    }
    summary.add(&pair);
    Ok(summary)
}

/// Prints a difference and the shortest script found that shows one.
async fn report(options: &Options, difference: &Difference, fresh_at: u64) {
    let Difference { script, step, text } = difference;
    println!("DIFFERENCE in script {script} of seed {}, {step}{text}", options.seed);
    println!("again with: --seed {} --first {script} --scripts 1", options.seed);
    if options.shrink_for.is_zero() || !options.can_restart() {
        return;
    }
    let deadline = Instant::now() + options.shrink_for;
    let mut window = 1;
    loop {
        let first = script.saturating_sub(window - 1).max(fresh_at);
        let ops: Vec<Op> =
            (first..=*script).flat_map(|index| script::write(options.seed, index)).collect();
        if differs(options, &ops).await.is_some() {
            let ops =
                shrink::shrink(ops, deadline, async |ops| differs(options, &ops).await.is_some())
                    .await;
            print_shrunk(options, &ops).await;
            return;
        }
        if first == fresh_at || Instant::now() >= deadline {
            println!("does not show again on empty servers with scripts {first} to {script}");
            return;
        }
        window *= 8;
    }
}

async fn print_shrunk(options: &Options, ops: &[Op]) {
    println!("shortest script found, on empty servers:");
    for (at, op) in ops.iter().enumerate() {
        let line = format!("{op:?}");
        let short: String = line.chars().take(2000).collect();
        println!("  {at}: {short}");
    }
    if let Some(difference) = differs(options, ops).await {
        println!("which gives, at {}{}", difference.step, difference.text);
    }
}

/// Plays steps on empty servers; returns the difference that they show.
async fn differs(options: &Options, ops: &[Op]) -> Option<Difference> {
    let mut pair = match options.pair().await {
        Ok(pair) => pair,
        Err(error) => {
            println!("while shrinking: {error}");
            return None;
        }
    };
    match pair.play(0, ops).await {
        Err(difference) => Some(difference),
        Ok(()) => pair.join_pending().await.err(),
    }
}
