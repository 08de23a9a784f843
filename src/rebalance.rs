//! `atoll rebalance`: how even the load is, plans to even it out, and what came of them.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Subcommand;
use placement::balance::bytes;
use placement::check::{Finding, Gravity};
use placement::command::{BalanceView, MoveView, PlanState, PlanView};
use placement::record::{Fate, NodeLoad};
use placement::{Answer, Command};

use crate::admin;
use crate::commands::{self, Way};
use crate::table::Table;

/// Pause between two looks at a plan that is carried out.
const LOOK: Duration = Duration::from_millis(500);
/// Exit code of a check that has found something.
const FOUND: i32 = 2;

/// What to do about the balance.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RebalanceVerb {
    /// Show what each node has to do, against the mean of all.
    Show,
    /// Make a plan that evens the load out: what would move, and what that would lead to.
    Plan,
    /// Say for each move of a plan why.
    Explain {
        /// The plan [default: the newest].
        version: Option<u64>,
    },
    /// Carry a plan out: the newest, within ten minutes.
    Apply {
        /// The plan, as it was shown.
        #[arg(long)]
        version: u64,
        /// Wait for its end and tell how far it is.
        #[arg(long)]
        wait: bool,
    },
    /// Stop what is being balanced at its next safe point, and balance nothing by itself.
    Pause,
    /// End a pause.
    Resume,
    /// Make a plan that takes back what another has moved; apply it like any other.
    Revert {
        /// That other.
        version: u64,
    },
    /// Plans that were applied, and what they led to against what was predicted.
    History,
    /// Check placement's records; ends with 2 when something is found.
    Check,
}

/// Who gives commands here.
pub(crate) fn who() -> String {
    std::env::var("USER").unwrap_or_default()
}

/// Carries a command out and prints what comes back.
pub(crate) fn run(way: &Way, verb: RebalanceVerb) -> Result<(), String> {
    let command = match verb {
        RebalanceVerb::Show => Command::RebalanceShow,
        RebalanceVerb::Plan => Command::RebalancePlan,
        RebalanceVerb::Explain { version } => Command::RebalanceExplain { version },
        RebalanceVerb::Apply { version, .. } => Command::RebalanceApply { version, by: who() },
        RebalanceVerb::Pause => Command::RebalancePause,
        RebalanceVerb::Resume => Command::RebalanceResume,
        RebalanceVerb::Revert { version } => Command::RebalanceRevert { version },
        RebalanceVerb::History => Command::RebalanceHistory,
        RebalanceVerb::Check => Command::RebalanceCheck,
    };
    let answer = commands::ask(way, &command)?;
    if let RebalanceVerb::Apply { version, wait: true } = verb {
        return await_end(way, version);
    }
    commands::print(way, &answer)?;
    if matches!(&answer, Answer::Findings(findings) if !findings.is_empty()) {
        std::process::exit(FOUND);
    }
    Ok(())
}

/// Tells how far a plan is until it is over.
pub(crate) fn await_end(way: &Way, version: u64) -> Result<(), String> {
    let people = way.is_for_people();
    let mut told = String::new();
    loop {
        let answer = commands::ask(way, &Command::RebalanceExplain { version: Some(version) })?;
        let Answer::Explained(plan) = answer else {
            return Err("the answer is of another kind".to_owned());
        };
        let line = progress(&plan);
        if people && line != told {
            // On a terminal the line is written over.
            let (begin, end) =
                if std::io::stdout().is_terminal() { ("\r\x1b[K", "") } else { ("", "\n") };
            print!("{begin}{line}{end}");
            let _ = std::io::stdout().flush();
            told = line;
        }
        if plan.state != PlanState::Running {
            if people && std::io::stdout().is_terminal() {
                println!();
            }
            return commands::print(way, &Answer::Plan(plan));
        }
        std::thread::sleep(LOOK);
    }
}

fn progress(plan: &PlanView) -> String {
    let (version, over, all) = (plan.version, plan.over, plan.moves.len());
    let left = match plan.left_ms {
        _ if plan.state != PlanState::Running => String::new(),
        Some(left_ms) => format!(", about {} left", span(left_ms)),
        None => ", no telling yet how long".to_owned(),
    };
    let running = plan.moves.iter().filter(|it| matches!(it.fate, Fate::Begun(_))).count();
    format!("plan {version}: {over} of {all} moves over, {running} under way{left}")
}

/// A stretch of time for people.
fn span(ms: u64) -> String {
    match ms.div_ceil(1000) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

fn percent(thousandths: i64) -> String {
    format!("{:+.0}%", thousandths as f64 / 10.0)
}

/// How even the load is.
pub(crate) fn balance(view: &BalanceView) -> Vec<String> {
    let mut lines = vec![view.verdict.clone()];
    lines.push(match view.paused {
        true => "Balancing by itself is paused: atoll rebalance resume.".to_owned(),
        false => "Balancing by itself is on.".to_owned(),
    });
    if let Some(plan) = &view.plan {
        lines.push(format!("{}.", progress(plan)));
    }
    if !view.nodes.is_empty() {
        lines.push(String::new());
        let head =
            ["NODE", "CPU", "WRITES", "LEADERS", "REPLICAS", "SIZE", "WORST", "AGAINST MEAN"];
        let mut table = Table::new(&head);
        for node in &view.nodes {
            let mut row = vec![node.name.clone()];
            row.extend(load(&node.now));
            row.push(node.now.most.clone());
            row.push(percent(node.now.over));
            table.row(row);
        }
        lines.extend(table.lines());
    }
    if !view.heaviest.is_empty() {
        lines.push(String::new());
        lines.extend(view.heaviest.iter().cloned());
    }
    lines
}

fn load(standing: &NodeLoad) -> [String; 5] {
    [
        format!("{:.2}", standing.cpu_us_per_s as f64 / 1e6),
        format!("{}/s", bytes(standing.write_bytes_per_s as f64)),
        standing.leaders.to_string(),
        standing.replicas.to_string(),
        bytes(standing.size_bytes as f64),
    ]
}

fn head(plan: &PlanView) -> Vec<String> {
    let ago = |ms: u64| format!("{} ago", span(admin::now_ms().saturating_sub(ms)));
    let (version, by) = (plan.version, &plan.by);
    let state = match plan.state {
        PlanState::Made => format!("made {}, not applied", ago(plan.made_ms)),
        PlanState::Expired => format!("made {}, too old to be applied", ago(plan.made_ms)),
        PlanState::Running => format!("applied by {by} {}", ago(plan.applied_ms)),
        PlanState::Over => format!("applied by {by} {}, over", ago(plan.applied_ms)),
    };
    let mut lines = vec![format!("Plan {version} ({state}): {}.", plan.why)];
    if plan.state == PlanState::Running {
        lines.push(format!("{}.", progress(plan)));
    }
    if let (Some(predicted), Some(measured)) = (plan.spread_predicted, plan.spread_measured) {
        let (predicted, measured) = (percent(predicted), percent(measured));
        lines.push(format!("Worst node afterwards: {measured}; {predicted} was predicted."));
    }
    lines
}

fn fate(planned: &MoveView) -> String {
    match &planned.fate {
        Fate::Waiting => "waits".to_owned(),
        Fate::Begun(operator) => format!("operator {operator}"),
        Fate::Done => "done".to_owned(),
        Fate::Dropped(why) => format!("dropped: {why}"),
    }
}

fn what(planned: &MoveView) -> String {
    match planned.lead_only {
        true => "lead".to_owned(),
        false => format!("replica, {}", bytes(planned.bytes as f64)),
    }
}

fn end(plan: &PlanView) -> Vec<String> {
    let mut lines: Vec<String> = plan.stays.clone();
    match plan.state {
        PlanState::Made => {
            let version = plan.version;
            lines.push(format!(
                "atoll rebalance explain {version} says why; atoll rebalance apply --version \
                 {version} does it, within ten minutes"
            ));
        }
        PlanState::Running => {
            lines.push("atoll rebalance show tells how far it is; pause stops it".to_owned());
        }
        PlanState::Expired | PlanState::Over => {}
    }
    if !lines.is_empty() {
        lines.insert(0, String::new());
    }
    lines
}

/// A plan: what moves, and the nodes before and after.
pub(crate) fn plan(plan: &PlanView) -> Vec<String> {
    let mut lines = head(plan);
    lines.push(String::new());
    let mut table = Table::new(&["GROUP", "OF", "WHAT", "FROM", "TO", "STATE"]);
    for planned in &plan.moves {
        table.row(vec![
            planned.group.to_string(),
            planned.of.clone(),
            what(planned),
            planned.from.clone(),
            planned.to.clone(),
            fate(planned),
        ]);
    }
    lines.extend(table.lines());
    if !plan.nodes.is_empty() {
        lines.push(String::new());
        let head = ["NODE", "", "CPU", "WRITES", "LEADERS", "REPLICAS", "SIZE", "AGAINST MEAN"];
        let mut table = Table::new(&head);
        for node in &plan.nodes {
            let times = [
                ("before", Some(&node.now)),
                ("predicted", node.predicted.as_ref()),
                ("measured", node.measured.as_ref()),
            ];
            for (time, standing) in times {
                let Some(standing) = standing else { continue };
                let mut row = vec![node.name.clone(), time.to_owned()];
                row.extend(load(standing));
                row.push(percent(standing.over));
                table.row(row);
            }
        }
        lines.extend(table.lines());
    }
    lines.extend(end(plan));
    lines
}

/// Why each move of a plan.
pub(crate) fn explained(plan: &PlanView) -> Vec<String> {
    let mut lines = head(plan);
    for (number, planned) in plan.moves.iter().enumerate() {
        let (number, of, group) = (number + 1, &planned.of, planned.group);
        let (what, from, to) = (what(planned), &planned.from, &planned.to);
        lines.push(String::new());
        lines.push(format!(
            "{number}. {of} (group {group}), {what}: {from} -> {to} [{}]",
            fate(planned)
        ));
        lines.push(format!("   {}", planned.why));
    }
    lines.extend(end(plan));
    lines
}

/// Plans that were applied.
pub(crate) fn history(plans: &[PlanView]) -> Vec<String> {
    let head =
        ["PLAN", "APPLIED", "BY", "MOVES", "DONE", "TOOK", "BEFORE", "PREDICTED", "MEASURED"];
    let mut table = Table::new(&head);
    let known = |spread: Option<i64>| spread.map_or_else(|| "-".to_owned(), percent);
    for plan in plans {
        let until_ms = if plan.ended_ms == 0 { admin::now_ms() } else { plan.ended_ms };
        table.row(vec![
            plan.version.to_string(),
            format!("{} ago", span(admin::now_ms().saturating_sub(plan.applied_ms))),
            plan.by.clone(),
            plan.moves.len().to_string(),
            plan.done.to_string(),
            span(until_ms.saturating_sub(plan.applied_ms)),
            known(plan.spread_before),
            known(plan.spread_predicted),
            known(plan.spread_measured),
        ]);
    }
    table.lines()
}

/// What is not sound.
pub(crate) fn findings(findings: &[Finding]) -> Vec<String> {
    if findings.is_empty() {
        return vec!["Placement's records are sound.".to_owned()];
    }
    let line = |finding: &Finding| match finding.gravity {
        Gravity::Wrong => format!("wrong: {}", finding.what),
        Gravity::Weak => format!("weak: {}", finding.what),
    };
    findings.iter().map(line).collect()
}
