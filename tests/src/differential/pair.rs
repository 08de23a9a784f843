//! Two servers in lock-step: each step goes to both at once, and the next one follows when
//! both have answered alike.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::answer::{Answer, reconcile, show, side_by_side};
use super::names::{Mask, Names};
use super::op::{Numbers, Op};
use super::side::Side;
use super::watching::{DoubleWatch, Wrong};
use crate::process::{Process, Program};

/// Watch streams that may still be catching up while later scripts run.
const PENDING_MAX: usize = 128;
/// How long a server may take to notice that a client gave up waiting.
const AFTERMATH: Duration = Duration::from_millis(200);

/// Where a server comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Started by this program, and again whenever an empty one is wanted.
    Start(Program),
    /// Runs already.
    Url(String),
}

/// Two answers that should have been the same.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Script it belongs to.
    pub script: u64,
    /// The step, or what else was compared.
    pub step: String,
    /// What differs.
    pub text: String,
}

/// Two servers with equal histories.
#[derive(Debug)]
pub struct Pair {
    sides: [Side; 2],
    processes: [Option<Process>; 2],
    watches: BTreeMap<usize, DoubleWatch>,
    pending: JoinSet<Result<(), Difference>>,
    /// Steps taken so far.
    pub requests: u64,
    /// How often each kind of step was taken and how long that took.
    pub timings: Timings,
}

/// Number and duration of steps, by kind.
pub type Timings = BTreeMap<String, (u64, Duration)>;

impl Pair {
    /// Starts or connects to the candidate and the reference.
    pub async fn start(sources: &[Source; 2], work_dir: &Path) -> Result<Self, String> {
        let start = |source: &Source, name| match source {
            Source::Url(url) => Ok((None, url.clone())),
            Source::Start(program) => {
                let process = Process::start(program, work_dir, name).map_err(|e| e.to_string())?;
                let url = process.url().to_owned();
                Ok::<_, String>((Some(process), url))
            }
        };
        let (first, first_url) = start(&sources[0], "candidate")?;
        let (second, second_url) = start(&sources[1], "reference")?;
        let sides = [Side::connect(&first_url).await?, Side::connect(&second_url).await?];
        let revisions = sides.each_ref().map(|side| side.numbers.revision);
        if revisions[0] != revisions[1] {
            return Err(format!("the servers must start at one revision, not {revisions:?}"));
        }
        Ok(Self {
            sides,
            processes: [first, second],
            watches: BTreeMap::new(),
            pending: JoinSet::new(),
            requests: 0,
            timings: Timings::new(),
        })
    }

    /// Plays a script; returns the first difference, also of an earlier script's watches.
    pub async fn play(&mut self, script: u64, ops: &[Op]) -> Result<(), Difference> {
        self.sides.iter_mut().for_each(Side::begin_script);
        for (at, op) in ops.iter().enumerate() {
            self.requests += 1;
            let begun = Instant::now();
            let taken = self.step(op).await?;
            let timing = self.timings.entry(op.kind()).or_default();
            *timing = (timing.0 + 1, timing.1 + begun.elapsed());
            if let Err(wrong) = taken {
                let step = format!("step {at}: {}", show(op));
                return Err(Difference { script, step, text: wrong });
            }
        }
        let revision = self.numbers().revision;
        for (slot, watch) in std::mem::take(&mut self.watches) {
            let names = self.sides.each_ref().map(|side| side.names.clone());
            self.pending.spawn(async move {
                watch.finish(revision, names).await.map_err(|text| Difference {
                    script,
                    step: format!("events of watch stream {slot}"),
                    text,
                })
            });
        }
        while let Some(finished) = self.pending.try_join_next() {
            finished.unwrap_or_else(|e| panic!("comparison failed: {e}"))?;
        }
        while self.pending.len() > PENDING_MAX {
            self.join_one().await?;
        }
        Ok(())
    }

    /// Waits for all watches of earlier scripts.
    pub async fn join_pending(&mut self) -> Result<(), Difference> {
        while !self.pending.is_empty() {
            self.join_one().await?;
        }
        Ok(())
    }

    async fn join_one(&mut self) -> Result<(), Difference> {
        match self.pending.join_next().await {
            Some(finished) => finished.unwrap_or_else(|e| panic!("comparison failed: {e}")),
            None => Ok(()),
        }
    }

    fn numbers(&self) -> &Numbers {
        &self.sides[1].numbers
    }

    /// Takes one step. The outer error is one of an earlier script.
    async fn step(&mut self, op: &Op) -> Result<Result<(), Wrong>, Difference> {
        let Numbers { revision, compacted, .. } = *self.numbers();
        let names = self.sides.each_ref().map(|side| side.names.clone());
        let names = [names[0].as_ref(), names[1].as_ref()];
        let wrong = match op {
            Op::Watch { slot, create } => {
                let mut create = create.clone();
                create.start_revision = self.numbers().rev(create.start_revision);
                let channels = self.sides.each_ref().map(Side::watch_channel);
                let watch = self.watches.entry(*slot);
                let watch = watch.or_insert_with(|| DoubleWatch::open(channels));
                watch.create(&create, revision, compacted, names).await
            }
            Op::CancelWatch { slot, watch_id } => match self.watches.get_mut(slot) {
                Some(watch) => watch.cancel(*watch_id, revision, names).await,
                None => Ok(()),
            },
            Op::WatchProgress { slot } => match self.watches.get_mut(slot) {
                Some(watch) => watch.progress(revision).await,
                None => Ok(()),
            },
            Op::SyncWatch { slot } => match self.watches.get_mut(slot) {
                Some(watch) => watch.settle(revision, names).await,
                None => Ok(()),
            },
            _ => {
                if self.will_compact(op) {
                    if let Err(wrong) = self.settle_watches().await {
                        return Ok(Err(wrong));
                    }
                    self.join_pending().await?;
                }
                let [one, other] = &mut self.sides;
                let answers = tokio::join!(one.answer(op), other.answer(op));
                if matches!(answers, (Answer::Silent, _) | (_, Answer::Silent)) {
                    // What a server undoes for a client that gave up it undoes later.
                    tokio::time::sleep(AFTERMATH).await;
                }
                return Ok(self.judge(op, answers.into()));
            }
        };
        Ok(wrong.map_err(|wrong| self.obituary().unwrap_or_default() + &wrong))
    }

    /// Compares two answers, and takes over the numbers that they tell.
    fn judge(&mut self, op: &Op, mut answers: [Answer; 2]) -> Result<(), Wrong> {
        for (side, answer) in self.sides.iter_mut().zip(&answers) {
            if let Some(header) = answer.header()
                && header.revision > 0
            {
                side.numbers.revision = header.revision;
            }
            if let (Op::Compact(request), Answer::Compact(_)) = (op, answer) {
                side.numbers.compacted = side.numbers.rev(request.revision);
            }
        }
        for (answer, side) in answers.iter_mut().zip(&self.sides) {
            answer.mask(&side.names);
        }
        let [one, other] = &mut answers;
        reconcile(op, one, other);
        if answers.iter().any(Answer::is_unavailable)
            && let Some(obituary) = self.obituary()
        {
            return Err(obituary);
        }
        if answers[0] == answers[1] {
            return Ok(());
        }
        Err(side_by_side(&show(&answers[0]), &show(&answers[1])))
    }

    /// Says whether a step will drop history that a watch may still have to read.
    fn will_compact(&self, op: &Op) -> bool {
        match op {
            Op::Compact(request) => {
                let numbers = self.numbers();
                let revision = numbers.rev(request.revision);
                revision > numbers.compacted && revision <= numbers.revision
            }
            Op::Raw { method, .. } => method.ends_with("/Compact"),
            _ => false,
        }
    }

    /// Waits until the script's watches have read all history that they need.
    async fn settle_watches(&mut self) -> Result<(), Wrong> {
        let revision = self.numbers().revision;
        let names = self.sides.each_ref().map(|side| side.names.clone());
        for (slot, mut watch) in std::mem::take(&mut self.watches) {
            if watch.can_settle(revision) {
                watch.settle(revision, [&names[0], &names[1]] as [&Names; 2]).await?;
                self.watches.insert(slot, watch);
            } else {
                watch.finish(revision, [Arc::clone(&names[0]), Arc::clone(&names[1])]).await?;
            }
        }
        Ok(())
    }

    /// Returns what became of a server that has died.
    fn obituary(&mut self) -> Option<String> {
        let mut text = String::new();
        for (process, name) in self.processes.iter_mut().zip(["candidate", "reference"]) {
            if let Some(process) = process
                && process.has_ended()
            {
                text.push_str(&format!("the {name} has died:\n{}\n", process.last_words()));
            }
        }
        (!text.is_empty()).then_some(text)
    }
}
