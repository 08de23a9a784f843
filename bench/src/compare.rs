//! Two systems in turns.
//!
//! ```text
//!   per mix:   round 1        round 2        ...        ratio of round n = A(n) / B(n)
//!              A      B       A      B                  told: median, least, greatest
//! ```
//!
//! A turn starts a fresh cluster, prepares, warms up, measures, and kills it. Nothing of the other
//! system runs meanwhile: an idle etcd of three costs up to some per cent of a core (heartbeats,
//! timers) and hundreds of MiB of page cache, a start costs one to three seconds. So every turn also
//! begins with an empty store, and one mix cannot burden the next.

use std::path::{Path, PathBuf};

use crate::cpu;
use crate::error::Error;
use crate::footprint::{self, Footprint};
use crate::load::{self, Figures, Overrides, Shape, Target};
use crate::mixes::{self, Metric, Mix};
use crate::report::{self, Comparison, RunLine, Surroundings};
use crate::servers::{Cluster, Kind, System};

/// Arguments of `bench compare`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Mixes, separated by commas, or `all`; `footprint` weighs a filled, idle server.
    #[arg(long, value_delimiter = ',', default_value = "put,get,get-serializable,range,cas,txn")]
    mixes: Vec<String>,
    /// Turns of each system.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Nodes of each cluster.
    #[arg(long, default_value_t = 3, value_parser = parse_nodes)]
    nodes: usize,
    /// Atoll's program [default: `atoll` beside this program].
    #[arg(long)]
    atoll_bin: Option<PathBuf>,
    /// etcd's program [default: ${ATOLL_PEERS:-$HOME/.cache/atoll-peers}/bin/etcd].
    #[arg(long)]
    etcd_bin: Option<PathBuf>,
    /// Compares with another build of Atoll instead of etcd.
    #[arg(long, conflicts_with = "control")]
    peer_atoll_bin: Option<PathBuf>,
    /// Runs etcd on both sides: the ratios then show what noise alone does.
    #[arg(long)]
    control: bool,
    /// Writes compare.md, compare.jsonl and runs.jsonl into this folder.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where data folders are made; must be on a real disk.
    #[arg(long, default_value = "/var/tmp")]
    work_dir: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
}

fn parse_nodes(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3".to_owned()),
    }
}

/// Runs `bench compare`. A mix that fails is told and left out; the command then fails at its end.
pub(crate) async fn command(args: Args) -> Result<(), Error> {
    let subjects = subjects(&args)?;
    let systems = args.systems()?;
    let surroundings = args.surroundings(&systems)?;
    if let Some(folder) = &args.out {
        report::clear(folder)?;
    }
    let mut results = Results::new(surroundings);
    for subject in &subjects {
        match Box::pin(rounds(&args, subject, &systems, &mut results)).await {
            Ok(mut comparisons) => {
                // The yardstick's goals are for Atoll against etcd.
                if args.control || args.peer_atoll_bin.is_some() {
                    comparisons.iter_mut().for_each(Comparison::clear_goal);
                }
                results.comparisons.extend(comparisons);
            }
            Err(error) => {
                eprintln!("{}: {error}", subject.name());
                results.failures.push((subject.name().to_owned(), error.to_string()));
            }
        }
        results.write(args.out.as_deref())?;
    }
    println!("\n{}", results.markdown());
    match results.failures.len() {
        0 => Ok(()),
        failed => Err(Error::Usage(format!("{failed} mixes failed"))),
    }
}

// === Subject ===

/// What is compared: a mix under load, or the footprint.
enum Subject {
    Load(Box<Mix>, Shape),
    Footprint(Shape),
}

impl Subject {
    fn name(&self) -> &'static str {
        match self {
            Subject::Load(mix, _) => mix.name,
            Subject::Footprint(_) => footprint::NAME,
        }
    }
}

fn subjects(args: &Args) -> Result<Vec<Subject>, Error> {
    let load = |mix: Mix| {
        let shape = args.overrides.shape(&mix.shape)?;
        Ok(Subject::Load(Box::new(mix), shape))
    };
    let mut subjects = Vec::new();
    for name in &args.mixes {
        match name.as_str() {
            "all" => {
                for mix in mixes::all() {
                    subjects.push(load(mix)?);
                }
            }
            footprint::NAME => {
                let mut shape = args.overrides.shape(&mixes::find("put")?.shape)?;
                shape.keys = args.overrides.keys().unwrap_or(footprint::KEYS);
                subjects.push(Subject::Footprint(shape));
            }
            name => subjects.push(load(mixes::find(name)?)?),
        }
    }
    Ok(subjects)
}

// === Systems ===

impl Args {
    fn systems(&self) -> Result<[System; 2], Error> {
        let etcd = || System {
            label: "etcd".to_owned(),
            kind: Kind::Etcd,
            program: self.etcd_bin.clone().unwrap_or_else(default_etcd),
        };
        let atoll =
            |label: &str, program| System { label: label.to_owned(), kind: Kind::Atoll, program };
        let ours = || atoll("atoll", self.atoll_bin.clone().unwrap_or_else(default_atoll));
        let systems = match &self.peer_atoll_bin {
            _ if self.control => [System { label: "etcd (control)".to_owned(), ..etcd() }, etcd()],
            Some(program) => [ours(), atoll("other atoll", program.clone())],
            None => [ours(), etcd()],
        };
        for system in &systems {
            if !system.program.is_file() {
                let missing = system.program.display();
                return Err(Error::Usage(format!("{}: there is no {missing}", system.label)));
            }
        }
        Ok(systems)
    }

    fn surroundings(&self, systems: &[System; 2]) -> Result<Surroundings, Error> {
        let work_dir =
            self.work_dir.canonicalize().map_err(Error::file("find folder", &self.work_dir))?;
        let file_system = cpu::file_system(&work_dir);
        if ["tmpfs", "ramfs"].contains(&file_system.as_str()) {
            let place = work_dir.display();
            return Err(Error::Usage(format!(
                "{place} is {file_system}: choose a real --work-dir"
            )));
        }
        let timing = self.overrides.timing();
        Ok(Surroundings {
            labels: systems.each_ref().map(|system| system.label.clone()),
            programs: systems.each_ref().map(|system| system.program.display().to_string()),
            nodes: self.nodes,
            rounds: self.rounds,
            seconds: timing.measured.as_secs_f64(),
            file_system,
            cores: cpu::cores(),
        })
    }
}

fn default_atoll() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("atoll")
}

fn default_etcd() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let cache = std::env::var_os("ATOLL_PEERS").filter(|folder| !folder.is_empty());
    cache.map_or_else(|| home().join(".cache/atoll-peers"), PathBuf::from).join("bin/etcd")
}

// === Turns ===

/// What one turn yields.
enum Outcome {
    Load(Box<Figures>, f64),
    Footprint(Footprint),
}

async fn rounds(
    args: &Args,
    subject: &Subject,
    systems: &[System; 2],
    results: &mut Results,
) -> Result<Vec<Comparison>, Error> {
    let mut pairs = Vec::with_capacity(args.rounds);
    for round in 1..=args.rounds {
        let first = turn(args, subject, &systems[0], round, results).await?;
        let second = turn(args, subject, &systems[1], round, results).await?;
        pairs.push((first, second));
    }
    Ok(comparisons(subject, args.nodes, &pairs))
}

async fn turn(
    args: &Args,
    subject: &Subject,
    system: &System,
    round: usize,
    results: &mut Results,
) -> Result<Vec<Value>, Error> {
    let root = args.work_dir.join(format!("atoll-bench-{}-{round}", std::process::id()));
    let mut cluster = Cluster::start(system, args.nodes, &root).await?;
    let outcome = match subject {
        Subject::Load(mix, shape) => {
            let target = Target { endpoints: cluster.endpoints(), pids: cluster.pids() };
            let figures = load::measure(mix, shape, &args.overrides, target).await?;
            Outcome::Load(Box::new(figures), cluster.disk_mib())
        }
        Subject::Footprint(shape) => {
            Outcome::Footprint(footprint::weigh(&mut cluster, shape).await?)
        }
    };
    drop(cluster);
    let line = RunLine {
        mix: subject.name(),
        system: Some(&system.label),
        round: Some(round),
        nodes: Some(args.nodes),
        shape: match subject {
            Subject::Load(_, shape) | Subject::Footprint(shape) => shape,
        },
        figures: match &outcome {
            Outcome::Load(figures, _) => Some(figures),
            Outcome::Footprint(_) => None,
        },
        footprint: match &outcome {
            Outcome::Load(..) => None,
            Outcome::Footprint(footprint) => Some(footprint),
        },
    };
    println!("{}", line.short_text());
    if let Some(folder) = &args.out {
        report::append_json(&folder.join(report::RUNS_FILE), &line)?;
    }
    if let Outcome::Load(figures, _) = &outcome {
        results.note_run(subject.name(), &system.label, figures);
    }
    Ok(values(&outcome))
}

// === Values ===

/// One figure of a turn that is compared.
struct Value {
    name: &'static str,
    metric: Option<Metric>,
    goal: Option<f64>,
    value: f64,
}

fn values(outcome: &Outcome) -> Vec<Value> {
    match outcome {
        Outcome::Footprint(footprint) => footprint
            .figures()
            .map(|(name, value, goal)| Value { name, metric: None, goal, value })
            .into(),
        Outcome::Load(figures, disk_mib) => {
            let memory = figures.memory.unwrap_or_default();
            let cpu = figures.server_cpu_us_per_op.unwrap_or(0.0);
            [
                ("cpu_us_per_op", Some(Metric::Cpu), cpu),
                ("ops_per_s", Some(Metric::Rate), figures.ops_per_s),
                ("p50_ms", Some(Metric::P50), figures.p50_ms),
                ("p99_ms", Some(Metric::P99), figures.p99_ms),
                ("max_ms", None, figures.max_ms),
                ("memory_mib", None, memory.resident_mib),
                ("peak_memory_mib", Some(Metric::PeakMemory), memory.peak_mib),
                ("disk_mib", None, *disk_mib),
                ("client_cpu_us_per_op", None, figures.client_cpu_us_per_op),
            ]
            .map(|(name, metric, value)| Value { name, metric, goal: None, value })
            .into()
        }
    }
}

fn comparisons(
    subject: &Subject,
    nodes: usize,
    pairs: &[(Vec<Value>, Vec<Value>)],
) -> Vec<Comparison> {
    let Some((model, _)) = pairs.first() else { return Vec::new() };
    let compared = model.iter().enumerate().map(|(at, value)| {
        let column = pairs.iter().map(|(first, second)| (first[at].value, second[at].value));
        let mut comparison = Comparison::new(subject.name(), value.name, nodes, column);
        match subject {
            Subject::Footprint(_) => {
                if let Some(ratio) = value.goal {
                    comparison.set_goal(ratio, comparison.ratio <= ratio, "<=");
                }
            }
            Subject::Load(mix, _) => {
                let wanted =
                    |goal: &&mixes::Goal| goal.nodes == nodes && Some(goal.metric) == value.metric;
                if let Some(goal) = mix.goals.iter().find(wanted) {
                    let sign = if goal.is_floor() { ">=" } else { "<=" };
                    comparison.set_goal(goal.ratio, goal.met(comparison.ratio), sign);
                }
            }
        }
        comparison
    });
    compared.collect()
}

// === Results ===

/// All that was found so far.
struct Results {
    surroundings: Surroundings,
    comparisons: Vec<Comparison>,
    failures: Vec<(String, String)>,
    /// Runs with failed requests: mix, system, how many, the first one's text.
    errors: Vec<String>,
    load_averages: Vec<f64>,
    other_cores: Vec<f64>,
}

impl Results {
    fn new(surroundings: Surroundings) -> Results {
        Results {
            surroundings,
            comparisons: Vec::new(),
            failures: Vec::new(),
            errors: Vec::new(),
            load_averages: Vec::new(),
            other_cores: Vec::new(),
        }
    }

    fn note_run(&mut self, mix: &str, label: &str, figures: &Figures) {
        self.load_averages.push(figures.load_average);
        self.other_cores.push(figures.other_cores);
        if figures.errors > 0 {
            let first = figures.first_error.as_deref().unwrap_or_default();
            self.errors.push(format!("{mix}, {label}: {} errors, first: {first}", figures.errors));
        }
    }

    fn markdown(&self) -> String {
        let noise = [
            ("load average before a turn", &self.load_averages),
            ("cores used by others", &self.other_cores),
        ];
        let mut text = report::markdown(&self.surroundings, &noise, &self.comparisons);
        for (mix, reason) in &self.failures {
            text.push_str(&format!("\n* {mix} **failed**: {reason}\n"));
        }
        for error in &self.errors {
            text.push_str(&format!("\n* {error}\n"));
        }
        text
    }

    /// Rewrites the files, so that what is done survives whatever comes next.
    fn write(&self, folder: Option<&Path>) -> Result<(), Error> {
        folder.map_or(Ok(()), |folder| {
            report::write_results(folder, &self.markdown(), &self.comparisons)
        })
    }
}
