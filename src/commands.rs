//! `atoll tenant | namespace | node | group | op | env`: from words to commands, from answers to
//! tables. Whatever was refused ends the program with 1 and one line that says why.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use placement::command::{
    GroupDetail, GroupLoad, GroupView, KeysView, NodeView, OperatorView, RecoveryView, ReplicaView,
    ShortView, Standing, StatusView, TenantView,
};
use placement::inventory::SplitLoad;
use placement::record::{NodeState, OperatorState, TenantState};
use placement::{Answer, Command};

use crate::config::parse_duration;
use crate::table::Table;
use crate::{admin, hot, rebalance};

/// Whom to ask, and how to print.
#[derive(Args, Clone, Debug)]
pub(crate) struct Way {
    /// Admin URL of any node.
    #[arg(long, global = true, env = "ATOLL_ADMIN", default_value = "http://localhost:2381")]
    admin: String,
    /// How to print.
    #[arg(long, short = 'w', global = true, value_enum, default_value = "table")]
    write_out: Form,
}

impl Way {
    /// Do people read it?
    pub(crate) fn is_for_people(&self) -> bool {
        self.write_out == Form::Table
    }
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

/// What to do about tenants.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TenantVerb {
    /// Create a tenant.
    Create {
        /// Its name: a DNS label.
        name: String,
        /// Replicas of its groups [default: the service's].
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        replicas: usize,
        /// Port of its own at every router [default: none].
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        port: u16,
        /// Take the name though a tenant had it that was purged less than 30 days ago.
        #[arg(long)]
        reuse_name: bool,
    },
    /// List all tenants and their namespaces.
    List,
    /// Show one tenant.
    Show {
        /// Its name.
        name: String,
    },
    /// Refuse its clients until it is thawed.
    Freeze {
        /// Its name.
        name: String,
    },
    /// End a freeze.
    Thaw {
        /// Its name.
        name: String,
    },
    /// Say how much each of its etcds may hold.
    Quota {
        /// Its name.
        name: String,
        /// As in 4GiB, 500MiB, 1000000; default for the nodes' own setting.
        #[arg(value_parser = quota)]
        bytes: u64,
    },
    /// Refuse its clients, and remove its data after 24 hours.
    Delete {
        /// Its name.
        name: String,
    },
    /// Take a deletion back.
    Undelete {
        /// Its name.
        name: String,
    },
    /// Change its name, and nothing else.
    Rename {
        /// Its name.
        name: String,
        /// The new one.
        to: String,
    },
    /// Move it to other nodes while it runs: 1, 3, 5 or 7 of them.
    Move {
        /// Its name.
        name: String,
        /// Names or ids of the nodes, separated by commas.
        #[arg(long, value_delimiter = ',', required = true)]
        to: Vec<String>,
    },
    /// Cut its keys over more groups while it runs: each has its own leader, and clients see one etcd
    /// as before. Keys are written as they are, with \\ for a backslash and \xNN for any byte.
    #[command(group = clap::ArgGroup::new("cuts").required(true).multiple(true))]
    Split {
        /// Its name, or TENANT/NAMESPACE.
        name: String,
        /// The first key of a new group.
        #[arg(long, value_name = "KEY", group = "cuts")]
        at: Vec<String>,
        /// All keys that begin so get a group of their own.
        #[arg(long, value_name = "PREFIX", group = "cuts")]
        at_prefix: Vec<String>,
        /// Wait for its end and tell how far it is.
        #[arg(long)]
        wait: bool,
    },
    /// Take cuts away while it runs, so that it is on fewer groups: a group goes into its left neighbour.
    /// With neither --at nor --all it shows the cuts, and ends with 1.
    #[command(group = clap::ArgGroup::new("gone"))]
    Merge {
        /// Its name, or TENANT/NAMESPACE.
        name: String,
        /// The first key of the group that goes, as tenant show has it.
        #[arg(long, value_name = "KEY", group = "gone")]
        at: Option<String>,
        /// Every cut that no rule of a namespace asks for, one after the other.
        #[arg(long, group = "gone")]
        all: bool,
        /// Wait for its end and tell how far it is.
        #[arg(long, requires = "gone")]
        wait: bool,
    },
    /// Say why it is split or is not, how hot its groups are, and what a split would change.
    Explain {
        /// Its name, or TENANT/NAMESPACE.
        name: String,
    },
    /// Put the groups of one that is split on different nodes.
    Spread {
        /// Its name, or TENANT/NAMESPACE.
        name: String,
        /// Wait for its end and tell how far it is.
        #[arg(long)]
        wait: bool,
    },
    /// Say where it may be; what is elsewhere moves there.
    #[command(group = clap::ArgGroup::new("where").required(true))]
    Pin {
        /// Its name.
        name: String,
        /// Names or ids of nodes, separated by commas.
        #[arg(long, value_delimiter = ',', group = "where")]
        to: Vec<String>,
        /// A zone.
        #[arg(long, group = "where")]
        zone: Option<String>,
        /// Anywhere.
        #[arg(long, group = "where")]
        none: bool,
    },
    /// Choose the tenant of clients who name none.
    Default {
        /// Its name; without one such clients are refused.
        name: Option<String>,
    },
}

/// What to do about namespaces.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NamespaceVerb {
    /// Create a namespace: a second etcd of the tenant, or, with --prefix, a stretch of its keys.
    Create {
        /// The tenant.
        tenant: String,
        /// The namespace: a DNS label.
        name: String,
        /// Keys that begin so.
        #[arg(long)]
        prefix: Option<String>,
        /// Port of its own at every router [default: none].
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        port: u16,
    },
    /// Refuse its clients, and remove its data after 24 hours; of a stretch of keys only the rule.
    Delete {
        /// The tenant.
        tenant: String,
        /// The namespace.
        name: String,
    },
    /// Take a deletion back.
    Undelete {
        /// The tenant.
        tenant: String,
        /// The namespace.
        name: String,
    },
    /// List a tenant's namespaces.
    List {
        /// The tenant.
        tenant: String,
    },
}

/// What to do about nodes.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// List all nodes.
    List,
    /// Put nothing new on it.
    Cordon {
        /// Its name or id.
        name: String,
    },
    /// End a cordon or a drain.
    Uncordon {
        /// Its name or id.
        name: String,
    },
    /// Move everything away from it, and put nothing there.
    Drain {
        /// Its name or id.
        name: String,
    },
    /// Forget a node that is empty; its id is never used again.
    Remove {
        /// Its name or id.
        name: String,
        /// It is lost for good: replace what was there at once, then forget it.
        #[arg(long)]
        force: bool,
    },
    /// Set how long a node may be silent before what is on it is replaced (at least 10s).
    RepairAfter {
        /// For example 10m.
        #[arg(value_parser = time)]
        time: Duration,
    },
    /// Set its share of new groups.
    Weight {
        /// Its name or id.
        name: String,
        /// Against other nodes; 0 for none.
        weight: u32,
    },
    /// Say what zone it is in.
    Zone {
        /// Its name or id.
        name: String,
        /// The zone.
        zone: String,
    },
    /// Remember something of it.
    Label {
        /// Its name or id.
        name: String,
        /// What, as KEY=VALUE; KEY= forgets it.
        label: String,
    },
}

/// What to do about groups.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum GroupVerb {
    /// List all groups.
    List,
    /// Show all that is known of one: its replicas, how far each is, what works on it.
    Show {
        /// Its id.
        group: u64,
    },
    /// Show the groups that make the most work.
    Top {
        /// So many of them, 0 for all.
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// Show them anew every so often, for example 2s, until interrupted.
        #[arg(long, value_parser = time, value_name = "TIME")]
        watch: Option<Duration>,
    },
    /// Have a group that lost most of its replicas for good go on with one that is left. Without
    /// --accept-loss it only says which one that is and what is lost, and ends with 1.
    Recover {
        /// Its id.
        group: u64,
        /// Name or id of the node whose replica goes on [default: the one with the newest log].
        #[arg(long, value_name = "NODE")]
        choose: Option<String>,
        /// Do it: what only the others had is lost.
        #[arg(long)]
        accept_loss: bool,
    },
}

/// What to do about operators.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum OperatorVerb {
    /// List all, newest first.
    List,
    /// Show one.
    Show {
        /// Its id.
        id: u64,
    },
    /// Take one back at its next safe point.
    Cancel {
        /// Its id.
        id: u64,
    },
}

impl From<OperatorVerb> for Command {
    fn from(verb: OperatorVerb) -> Command {
        match verb {
            OperatorVerb::List => Command::OperatorList,
            OperatorVerb::Show { id } => Command::OperatorShow { id },
            OperatorVerb::Cancel { id } => Command::OperatorCancel { id },
        }
    }
}

impl From<TenantVerb> for Command {
    fn from(verb: TenantVerb) -> Command {
        match verb {
            TenantVerb::Create { name, replicas, port, reuse_name } => {
                Command::TenantCreate { name, replicas, port, reuse_name }
            }
            TenantVerb::Quota { name, bytes } => Command::TenantQuota { name, bytes },
            TenantVerb::List => Command::TenantList,
            TenantVerb::Show { name } => Command::TenantShow { name },
            TenantVerb::Freeze { name } => Command::TenantFreeze { name },
            TenantVerb::Thaw { name } => Command::TenantThaw { name },
            TenantVerb::Delete { name } => Command::TenantDelete { name },
            TenantVerb::Undelete { name } => Command::TenantUndelete { name },
            TenantVerb::Rename { name, to } => Command::TenantRename { name, to },
            TenantVerb::Move { name, to } => Command::TenantMove { name, to },
            TenantVerb::Split { name, at, at_prefix, wait: _ } => {
                Command::TenantSplit { name, at, prefixes: at_prefix }
            }
            TenantVerb::Merge { name, at, all, wait: _ } => Command::TenantMerge { name, at, all },
            TenantVerb::Explain { name } => Command::TenantExplain { name },
            TenantVerb::Spread { name, wait: _ } => {
                Command::TenantSpread { name, by: rebalance::who() }
            }
            TenantVerb::Pin { name, to, zone, none: _ } => {
                Command::TenantPin { name, to, zone: zone.unwrap_or_default() }
            }
            TenantVerb::Default { name } => {
                Command::TenantDefault { name: name.unwrap_or_default() }
            }
        }
    }
}

impl From<NamespaceVerb> for Command {
    fn from(verb: NamespaceVerb) -> Command {
        match verb {
            NamespaceVerb::Create { tenant, name, prefix, port } => {
                Command::NamespaceCreate { tenant, name, prefix, port }
            }
            NamespaceVerb::Delete { tenant, name } => Command::NamespaceDelete { tenant, name },
            NamespaceVerb::Undelete { tenant, name } => Command::NamespaceUndelete { tenant, name },
            NamespaceVerb::List { tenant } => Command::NamespaceList { tenant },
        }
    }
}

impl From<NodeVerb> for Command {
    fn from(verb: NodeVerb) -> Command {
        match verb {
            NodeVerb::List => Command::NodeList,
            NodeVerb::Cordon { name } => Command::NodeCordon { name },
            NodeVerb::Uncordon { name } => Command::NodeUncordon { name },
            NodeVerb::Drain { name } => Command::NodeDrain { name },
            NodeVerb::Remove { name, force } => Command::NodeRemove { name, force },
            NodeVerb::RepairAfter { time } => {
                Command::NodeRepairAfter { ms: time.as_millis() as u64 }
            }
            NodeVerb::Weight { name, weight } => Command::NodeWeight { name, weight },
            NodeVerb::Zone { name, zone } => Command::NodeZone { name, zone },
            NodeVerb::Label { name, label } => {
                let (key, value) = label.split_once('=').unwrap_or(("", ""));
                Command::NodeLabel { name, key: key.to_owned(), value: value.to_owned() }
            }
        }
    }
}

impl From<GroupVerb> for Command {
    fn from(verb: GroupVerb) -> Command {
        match verb {
            GroupVerb::List => Command::GroupList,
            GroupVerb::Show { group } => Command::GroupShow { group },
            GroupVerb::Top { limit, watch: _ } => Command::GroupTop { limit },
            GroupVerb::Recover { group, choose, accept_loss } => {
                let choose = choose.unwrap_or_default();
                Command::GroupRecover { group, choose, accept_loss }
            }
        }
    }
}

/// Pause between two looks at operators.
const LOOK: Duration = Duration::from_millis(300);

pub(crate) fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "give a time such as 30s or 10m".to_owned())
}

/// Asks a node.
pub(crate) fn ask(way: &Way, command: &Command) -> Result<Answer, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start the runtime: {error}"))?;
    match runtime.block_on(admin::ask(&way.admin, command))? {
        Answer::Refused(why) => Err(why),
        answer => Ok(answer),
    }
}

/// Carries a command out and prints what comes back.
pub(crate) fn run(way: &Way, command: Command) -> Result<(), String> {
    print(way, &ask(way, &command)?)
}

/// Carries a command about a tenant out and prints what comes back.
pub(crate) fn tenant(way: &Way, verb: TenantVerb) -> Result<(), String> {
    let waits = matches!(
        &verb,
        TenantVerb::Split { wait: true, .. }
            | TenantVerb::Spread { wait: true, .. }
            | TenantVerb::Merge { wait: true, .. }
    );
    let command = verb.into();
    let answer = ask(way, &command)?;
    match answer {
        Answer::Tenants(_) if matches!(command, Command::TenantMerge { .. }) => {
            print(way, &answer)?;
            Err("nothing was changed: --at KEY takes one cut away, --all every one that no rule asks \
                 for"
            .to_owned())
        }
        Answer::Operators(begun) if waits => await_operators(way, begun),
        Answer::Plan(plan) if waits => rebalance::await_end(way, plan.version),
        answer => print(way, &answer),
    }
}

/// Tells what operators do until they are over; one that was not carried out is an error.
fn await_operators(way: &Way, mut views: Vec<OperatorView>) -> Result<(), String> {
    let mut told = Vec::new();
    while views.iter().any(is_under_way) {
        let now: Vec<String> = views.iter().filter_map(progress).collect();
        if way.is_for_people() && now != told {
            now.iter().for_each(|line| println!("{line}"));
            told = now;
        }
        std::thread::sleep(LOOK);
        let mut newer = Vec::new();
        for view in views {
            if !is_under_way(&view) {
                newer.push(view);
                continue;
            }
            let view = operator(way, view.id)?;
            // One that another went on for is waited for no more, but that one is.
            let next = (view.next != 0).then_some(view.next);
            newer.push(view);
            if let Some(next) = next {
                newer.push(operator(way, next)?);
            }
        }
        views = newer;
    }
    let left = views.iter().find(|view| view.state != OperatorState::Done).map(|view| view.id);
    print(way, &Answer::Operators(views))?;
    left.map_or(Ok(()), |id| Err(format!("operator {id} was not carried out")))
}

/// Does it run, or is there more to follow?
fn is_under_way(view: &OperatorView) -> bool {
    view.state == OperatorState::Running
        || (view.state == OperatorState::Done && !view.rest.is_empty())
}

fn operator(way: &Way, id: u64) -> Result<OperatorView, String> {
    match ask(way, &Command::OperatorShow { id })? {
        Answer::Operators(found) => {
            found.into_iter().next().ok_or_else(|| format!("there is no operator {id}"))
        }
        _ => Err("the answer is of another kind".to_owned()),
    }
}

/// What an operator is about to do; `None` for one that is over.
fn progress(view: &OperatorView) -> Option<String> {
    let is_running = view.state == OperatorState::Running;
    is_running.then(|| format!("operator {} on group {}: {}", view.id, view.group, view.step))
}

/// Carries a command about groups out; one that only says what it would do ends with 1.
pub(crate) fn group(way: &Way, verb: GroupVerb) -> Result<(), String> {
    let watch = match &verb {
        GroupVerb::Top { watch, .. } => *watch,
        _ => None,
    };
    let command = verb.into();
    loop {
        let answer = ask(way, &command)?;
        if watch.is_some() && way.is_for_people() && std::io::stdout().is_terminal() {
            // On a terminal each list takes the place of the one before.
            print!("\x1b[H\x1b[2J");
        }
        print(way, &answer)?;
        if let Answer::Recovery(view) = &answer {
            let id = view.group;
            return Err(format!(
                "nothing was changed: atoll group recover {id} --accept-loss does it"
            ));
        }
        let Some(pause) = watch else { return Ok(()) };
        std::thread::sleep(pause);
    }
}

/// Prints how everything is; the exit code says it to scripts.
pub(crate) fn status(way: &Way) -> Result<ExitCode, String> {
    let answer = ask(way, &Command::Status).map_err(|why| format!("cannot tell: {why}"))?;
    print(way, &answer)?;
    let Answer::Status(status) = answer else {
        return Err("the answer is of another kind".to_owned());
    };
    Ok(match status.standing {
        Standing::Well => ExitCode::SUCCESS,
        Standing::Unknown => ExitCode::FAILURE,
        Standing::Degraded => ExitCode::from(2),
    })
}

/// Prints an answer.
pub(crate) fn print(way: &Way, answer: &Answer) -> Result<(), String> {
    if way.write_out == Form::Json {
        let text = serde_json::to_string_pretty(answer).map_err(|error| error.to_string())?;
        println!("{text}");
        return Ok(());
    }
    for line in lines(answer) {
        println!("{line}");
    }
    Ok(())
}

/// What people read.
fn lines(answer: &Answer) -> Vec<String> {
    match answer {
        Answer::Done(what) | Answer::Refused(what) => vec![what.clone()],
        Answer::Tenants(views) => tenants(views),
        Answer::Nodes(views) => nodes(views),
        Answer::Groups(views) => groups(views),
        Answer::Group(view) => group_lines(view),
        Answer::Loads(views) => loads(views),
        Answer::Recovery(view) => recovery(view),
        Answer::Explanation(view) => hot::explained(view),
        Answer::Policy(view) => hot::policy(view),
        Answer::Operators(views) => operators(views),
        Answer::Status(view) => whole(view),
        Answer::Balance(view) => rebalance::balance(view),
        Answer::Plan(view) => rebalance::plan(view),
        Answer::Explained(view) => rebalance::explained(view),
        Answer::Plans(views) => rebalance::history(views),
        Answer::Findings(findings) => rebalance::findings(findings),
    }
}

/// Rows of a list that people are shown.
const SHOWN: usize = 20;

fn whole(view: &StatusView) -> Vec<String> {
    let mut lines = vec![view.verdict.clone(), String::new()];
    lines.extend(nodes(&view.nodes));
    lines.push(String::new());
    let running = match view.operators.first() {
        None => "none".to_owned(),
        Some(oldest) => {
            let count = view.operators.len();
            let (age, why) = (since(oldest.begun_ms), &oldest.why);
            format!("{count}, the oldest for {age}: {why}")
        }
    };
    for (what, count) in [
        ("tenants", view.tenants.to_string()),
        ("groups", view.groups.to_string()),
        ("groups without quorum", view.without_quorum.len().to_string()),
        ("groups with too few replicas", view.short.len().to_string()),
        ("quarantined replicas", view.quarantined.len().to_string()),
        ("operators", running),
    ] {
        lines.push(format!("{what:<30}{count}"));
    }
    let short = |view: &ShortView, what: &str| {
        format!("group {} of {} {what}: {} of {}", view.group, view.of, view.well, view.wanted)
    };
    let mut listed: Vec<String> =
        view.without_quorum.iter().map(|view| short(view, "has no quorum")).collect();
    if let Some(first) = view.without_quorum.first() {
        listed.push(format!("atoll group recover {} says what is left of it", first.group));
    }
    listed.extend(view.quarantined.iter().map(|view| {
        format!("group {} of {} on {}: {}", view.group, view.of, view.node, view.reason)
    }));
    listed.extend(view.short.iter().map(|view| short(view, "has too few replicas")));
    if !listed.is_empty() {
        lines.push(String::new());
    }
    let more = listed.len().saturating_sub(SHOWN);
    lines.extend(listed.into_iter().take(SHOWN));
    if more > 0 {
        lines.push(format!("and {more} more: -w json has all"));
    }
    lines
}

/// Time since a moment, to the second.
fn since(begun_ms: u64) -> String {
    format!("{} s", admin::now_ms().saturating_sub(begun_ms) / 1000)
}

fn tenants(views: &[TenantView]) -> Vec<String> {
    let head =
        ["NAME", "ID", "STATE", "PORT", "CLUSTER", "GROUP", "GROUPS", "NODES", "QUOTA", "SIZE"];
    let mut table = Table::new(&head);
    for view in views {
        let mut state = match view.state {
            TenantState::Open => "open".to_owned(),
            TenantState::Frozen => "frozen".to_owned(),
            TenantState::Deleted => format!("deleted, purged in {}", left(view.purge_ms)),
        };
        if !view.heard {
            state.push_str(" (its group has not heard)");
        }
        let dash = |is_there: bool, text: String| if is_there { text } else { "-".to_owned() };
        let home = match &view.prefix {
            Some(prefix) => format!("keys {prefix}"),
            None => view.group.to_string(),
        };
        table.row(vec![
            view.name.clone(),
            view.id.to_string(),
            state,
            dash(view.port != 0, view.port.to_string()),
            dash(view.cluster_id != 0, format!("{:x}", view.cluster_id)),
            home,
            dash(view.groups != 0, view.groups.to_string()),
            dash(!view.nodes.is_empty(), view.nodes.join(",")),
            if view.quota == 0 { "default".to_owned() } else { size(view.quota) },
            view.size.map_or("-".to_owned(), size),
        ]);
    }
    let mut lines = table.lines();
    for view in views.iter().filter(|view| view.places.len() > 1) {
        lines.extend(places(view));
    }
    lines
}

/// The groups of an etcd that is split.
fn places(view: &TenantView) -> Vec<String> {
    let head = ["GROUP", "KEYS", "WHY", "LEADER", "NODES", "VERSION", "SIZE"];
    let mut table = Table::new(&head);
    for place in &view.places {
        table.row(vec![
            place.group.to_string(),
            keys(&place.keys),
            if place.home { "home".to_owned() } else { place.why.clone() },
            place.leader.clone().unwrap_or("-".to_owned()),
            place.nodes.join(","),
            place.version.to_string(),
            place.size.map_or("-".to_owned(), size),
        ]);
    }
    let (name, count) = (&view.name, view.places.len());
    let mut lines = vec![String::new(), format!("{name} is split over {count} groups:")];
    lines.extend(table.lines());
    lines
}

/// Keys in words.
pub(crate) fn keys(view: &KeysView) -> String {
    match (view.start.as_str(), &view.end) {
        ("", None) => "all".to_owned(),
        ("", Some(end)) => format!("below {end}"),
        (start, None) => format!("from {start}"),
        (start, Some(end)) => format!("from {start} to below {end}"),
    }
}

/// What sizes are counted in.
const UNITS: [(&str, u64); 4] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A size for people; a whole number of a unit is told exactly.
pub(crate) fn size(bytes: u64) -> String {
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{}{name}", bytes / unit),
        Some((name, unit)) => format!("{:.1}{name}", bytes as f64 / *unit as f64),
        None => format!("{bytes}B"),
    }
}

/// Bytes as an operator writes them; 0 for `default`.
fn quota(text: &str) -> Result<u64, String> {
    let bytes = if text == "default" { Some(0) } else { amount(text).filter(|bytes| *bytes > 0) };
    bytes.ok_or(format!("{text} is no size: say 4GiB, 500MiB, a number of bytes, or default"))
}

/// Bytes as they are shown.
pub(crate) fn amount(text: &str) -> Option<u64> {
    let unit = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)));
    let (number, unit) = unit.unwrap_or((text, 1));
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit))
}

/// Time until a moment, to the minute.
fn left(until_ms: u64) -> String {
    let minutes = until_ms.saturating_sub(admin::now_ms()) / 60_000;
    format!("{}h{:02}m", minutes / 60, minutes % 60)
}

fn nodes(views: &[NodeView]) -> Vec<String> {
    let head = [
        "NAME", "ID", "STATE", "ZONE", "WEIGHT", "REPLICAS", "LEADERS", "FREE", "LABELS", "PEERS",
        "CLIENTS", "NOTE",
    ];
    let mut table = Table::new(&head);
    for view in views {
        let state = match view.state {
            NodeState::Up => "up",
            NodeState::Cordoned => "cordoned",
            NodeState::Draining => "draining",
            NodeState::Lost => "lost",
        };
        let state = match view.silent_ms {
            0 => state.to_owned(),
            ms => format!("{state}, silent {} s", ms / 1000),
        };
        let free = match view.disk_total {
            0 => "-".to_owned(),
            total => {
                format!(
                    "{} GiB ({}%)",
                    view.disk_free >> 30,
                    view.disk_free.saturating_mul(100) / total
                )
            }
        };
        let zone = if view.zone.is_empty() { "-" } else { &view.zone };
        let labels = view.labels.iter().map(|(key, value)| format!("{key}={value}"));
        let labels: Vec<String> = labels.collect();
        table.row(vec![
            view.name.clone(),
            format!("{:x}", view.id),
            state,
            zone.to_owned(),
            view.weight.to_string(),
            view.replicas.to_string(),
            view.leaders.to_string(),
            free,
            if labels.is_empty() { "-".to_owned() } else { labels.join(",") },
            view.peer_urls.join(","),
            view.client_urls.join(","),
            view.note.clone(),
        ]);
    }
    table.lines()
}

fn groups(views: &[GroupView]) -> Vec<String> {
    let mut table = Table::new(&["GROUP", "OF", "KEYS", "NODES"]);
    for view in views {
        let nodes = if view.dead { "(being removed)".into() } else { view.nodes.join(",") };
        table.row(vec![view.id.to_string(), view.of.clone(), keys(&view.keys), nodes]);
    }
    table.lines()
}

fn group_lines(view: &GroupDetail) -> Vec<String> {
    let load = view.load.as_ref();
    let keys = keys(&view.range);
    let load = load.map_or("-".to_owned(), |load| {
        let (requests, cpu) = (load.requests_per_s, percent(load.cpu_us_per_s));
        format!("{requests} requests/s, {}/s written, {cpu} CPU", size(load.write_bytes_per_s))
    });
    let mut lines = Vec::new();
    for (what, value) in [
        ("group", view.id.to_string()),
        ("of", format!("{} (tenant {}, namespace {})", view.of, view.tenant, view.namespace)),
        ("cluster", format!("{:x}", view.cluster_id)),
        ("keys", format!("{keys}: {} live", view.keys)),
        ("keys' version", view.range_version.to_string()),
        ("leader", view.leader.clone().unwrap_or("nobody".to_owned())),
        ("term", view.term.to_string()),
        ("revision", format!("{}, compacted up to {}", view.revision, view.compacted)),
        ("members' version", view.membership_version.to_string()),
        ("load", load),
        ("waiting commands", view.pending.to_string()),
    ] {
        lines.push(format!("{what:<18}{value}"));
    }
    if let Some(split) = view.load.as_ref().and_then(|load| load.split) {
        let [grants, over, took, holes, waits] = split_costs(Some(split));
        for (what, value) in [
            ("revisions given", format!("{grants}/s, {holes} never used")),
            ("over groups", format!("{over} transactions/s, one takes {took}")),
            ("waits for group", waits),
        ] {
            lines.push(format!("{what:<18}{value}"));
        }
    }
    for prefix in &view.stretches {
        lines.push(format!("{:<18}keys {prefix}", "rule for"));
    }
    if view.dead {
        lines.push("Its rows are being removed.".to_owned());
    }
    if view.wanted > 0 {
        lines.push(format!("It is to have {} voters again.", view.wanted));
    }
    if let Some(recovery) = &view.recovery {
        let survivor = view.replicas.iter().find(|known| known.replica == recovery.replica);
        let node = survivor.map_or(format!("node {:x}", recovery.node), |known| known.node.clone());
        let ago = since(recovery.at_ms);
        lines.push(match view.membership_version < recovery.version {
            true => format!(
                "{node} was told {ago} ago to go on alone, and has not said yet that it has."
            ),
            false => format!("It was recovered {ago} ago: {node} went on alone."),
        });
    }
    lines.push(String::new());
    lines.extend(replicas(&view.replicas));
    if !view.operators.is_empty() {
        lines.push(String::new());
        lines.extend(operators(&view.operators));
    }
    lines
}

fn replicas(views: &[ReplicaView]) -> Vec<String> {
    let head = [
        "NODE",
        "REPLICA",
        "ROLE",
        "TERM",
        "LOG",
        "OF TERM",
        "COMMITTED",
        "APPLIED",
        "REVISION",
        "SIZE",
        "VERSION",
        "STANDS",
    ];
    let mut table = Table::new(&head);
    for view in views {
        let role = match (view.leads, view.learner) {
            (true, _) => "leader",
            (_, true) => "learner",
            _ => "voter",
        };
        let known = view.membership_version > 0 || view.last_index > 0;
        let told = |number: String| if known { number } else { "-".to_owned() };
        table.row(vec![
            view.node.clone(),
            format!("{:x}", view.replica),
            role.to_owned(),
            told(view.term.to_string()),
            told(view.last_index.to_string()),
            told(view.last_term.to_string()),
            told(view.committed.to_string()),
            told(view.applied.to_string()),
            told(view.revision.to_string()),
            told(size(view.size)),
            told(view.membership_version.to_string()),
            if view.trouble.is_empty() { "well".to_owned() } else { view.trouble.clone() },
        ]);
    }
    table.lines()
}

/// Share of a core.
fn percent(us_per_s: u64) -> String {
    format!("{}.{}%", us_per_s / 10_000, us_per_s / 1_000 % 10)
}

fn loads(views: &[GroupLoad]) -> Vec<String> {
    let mut head =
        vec!["GROUP", "OF", "KEYS", "LEADER", "CPU", "REQUESTS/S", "WRITTEN/S", "SIZE", "NODES"];
    // Nothing of it where nobody is split.
    let splits = views.iter().any(|view| view.split.is_some());
    if splits {
        head.extend(["GRANTS/S", "OVER GROUPS/S", "TOOK", "HOLES", "WAITS FOR"]);
    }
    let mut table = Table::new(&head);
    for view in views {
        let mut row = vec![
            view.group.to_string(),
            view.of.clone(),
            keys(&view.keys),
            view.leader.clone().unwrap_or("-".to_owned()),
            percent(view.cpu_us_per_s),
            view.requests_per_s.to_string(),
            size(view.write_bytes_per_s),
            size(view.size),
            view.nodes.join(","),
        ];
        if splits {
            row.extend(split_costs(view.split));
        }
        table.row(row);
    }
    table.lines()
}

/// What being split costs a group: what `group top` says of it.
fn split_costs(load: Option<SplitLoad>) -> [String; 5] {
    let Some(load) = load else { return std::array::from_fn(|_| "-".to_owned()) };
    let took = match load.transactions_per_s {
        0 if load.transaction_ms == 0 => "-".to_owned(),
        _ => format!("{} ms", load.transaction_ms),
    };
    let waits = match load.waits_for {
        0 => "-".to_owned(),
        group => format!("{group} since {} s", load.waits_ms / 1000),
    };
    [
        load.grants_per_s.to_string(),
        load.transactions_per_s.to_string(),
        took,
        load.holes.to_string(),
        waits,
    ]
}

fn recovery(view: &RecoveryView) -> Vec<String> {
    let (id, of) = (view.group, &view.of);
    let mut lines = vec![
        format!("Group {id} of {of}: {} of {} voters are well.", view.well, view.all),
        String::new(),
    ];
    lines.extend(replicas(&view.replicas));
    lines.extend([
        String::new(),
        format!("{} would go on: {}.", view.chosen, view.why),
        view.loss.clone(),
        format!(
            "The revision would be {} or more, and all history before it compacted, so that every \
             watch and every list begins anew.",
            view.revision
        ),
        "The others would be left behind for good, also if they come back. A node that is only \
         away: start it instead. One that still runs where this one cannot see it: stop it first."
            .to_owned(),
    ]);
    lines
}

fn operators(views: &[OperatorView]) -> Vec<String> {
    let mut table = Table::new(&["OPERATOR", "GROUP", "STATE", "TOOK", "WHY", "TO", "NEXT"]);
    for view in views {
        let state = match view.state {
            OperatorState::Running => "running",
            OperatorState::Done => "done",
            OperatorState::Cancelled => "cancelled",
            OperatorState::Void => "void",
        };
        let until_ms = if view.ended_ms == 0 { admin::now_ms() } else { view.ended_ms };
        let took_ms = until_ms.saturating_sub(view.begun_ms);
        table.row(vec![
            view.id.to_string(),
            view.group.to_string(),
            state.to_owned(),
            format!("{}.{}s", took_ms / 1000, took_ms % 1000 / 100),
            view.why.clone(),
            view.target.join(","),
            view.step.clone(),
        ]);
    }
    table.lines()
}

/// Prints the variables that set etcdctl up for a tenant.
pub(crate) fn env(way: &Way, name: &str) -> Result<(), String> {
    let tenant = name.split('/').next().unwrap_or_default().to_owned();
    let Answer::Tenants(tenants) = ask(way, &Command::TenantShow { name: tenant })? else {
        return Err("the answer is of another kind".to_owned());
    };
    let view = tenants.into_iter().find(|view| view.name == name && view.cluster_id != 0);
    let view = view.ok_or(format!("there is no etcd \"{name}\""))?;
    let Answer::Nodes(nodes) = ask(way, &Command::NodeList)? else {
        return Err("the answer is of another kind".to_owned());
    };
    let urls = nodes.iter().flat_map(|node| &node.client_urls);
    let urls: Vec<String> = urls.filter_map(|url| with_port(url, view.port)).collect();
    println!("export ETCDCTL_ENDPOINTS={}", urls.join(","));
    if view.port == 0 {
        println!("export ETCDCTL_USER=root@{name}:none");
    } else {
        println!("unset ETCDCTL_USER");
    }
    Ok(())
}

/// The URL with another port, unless that is 0.
fn with_port(url: &str, port: u16) -> Option<String> {
    if port == 0 {
        return Some(url.to_owned());
    }
    let (host, _) = url.trim_end_matches('/').rsplit_once(':')?;
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use placement::command::PlaceView;

    fn range(start: &str, end: Option<&str>) -> KeysView {
        KeysView { start: start.to_owned(), end: end.map(str::to_owned) }
    }

    fn tenant_on(places: Vec<PlaceView>) -> TenantView {
        TenantView {
            id: 2,
            name: "acme".to_owned(),
            state: TenantState::Open,
            heard: true,
            port: 0,
            cluster_id: 0xabc,
            prefix: None,
            group: 3,
            nodes: vec!["n1".to_owned()],
            purge_ms: 0,
            quota: 0,
            size: Some(1 << 20),
            groups: places.len(),
            places,
        }
    }

    #[test]
    fn a_tenant_says_where_it_is_cut_and_why() {
        let place = |group, home, keys, why: &str| PlaceView {
            group,
            home,
            keys,
            version: 2,
            why: why.to_owned(),
            cause: String::new(),
            leader: Some("n1".to_owned()),
            nodes: vec!["n1".to_owned()],
            size: Some(1 << 19),
        };
        let home = || place(3, true, range("", Some("/e/")), "");
        let view = tenant_on(vec![home(), place(9, false, range("/e/", None), "by operator 4")]);
        let shown = lines(&Answer::Tenants(vec![view]));
        let said = |line: usize| shown[line].split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(said(1), "acme 2 open - abc 3 2 n1 default 1MiB");
        assert_eq!(said(3), "acme is split over 2 groups:");
        assert_eq!(said(5), "3 below /e/ home n1 n1 2 512KiB");
        assert_eq!(said(6), "9 from /e/ by operator 4 n1 n1 2 512KiB");
        let whole = tenant_on(vec![home()]);
        assert_eq!(lines(&Answer::Tenants(vec![whole])).len(), 2, "it is not split");
    }

    #[test]
    fn an_operator_that_waits_says_what_is_next() {
        let mut view = OperatorView {
            id: 4,
            group: 3,
            target: Vec::new(),
            why: "split acme at /e/".to_owned(),
            state: OperatorState::Running,
            step: "group 9 begins at /e/".to_owned(),
            begun_ms: 1,
            ended_ms: 0,
            rest: Vec::new(),
            next: 0,
        };
        let said = progress(&view);
        assert_eq!(said.as_deref(), Some("operator 4 on group 3: group 9 begins at /e/"));
        view.state = OperatorState::Done;
        assert_eq!(progress(&view), None);
        assert!(!is_under_way(&view));
        view.rest = vec!["/m".to_owned()];
        assert!(is_under_way(&view), "another one follows");
        view.state = OperatorState::Cancelled;
        assert!(!is_under_way(&view));
    }

    #[test]
    fn a_split_says_where() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(subcommand)]
            verb: TenantVerb,
        }
        let read =
            |words: &str| Line::try_parse_from(words.split(' ')).map(|line| line.verb.into());
        let split = read("atoll split acme --at /m --at-prefix /e/ --at-prefix /l/ --wait");
        let list = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let (name, at, prefixes) = ("acme".to_owned(), list(&["/m"]), list(&["/e/", "/l/"]));
        assert_eq!(split.ok(), Some(Command::TenantSplit { name, at, prefixes }));
        assert!(read("atoll split acme").is_err());
        let merge = |at: Option<&str>, all| {
            let at = at.map(str::to_owned);
            Some(Command::TenantMerge { name: "acme".to_owned(), at, all })
        };
        assert_eq!(read("atoll merge acme --at /m --wait").ok(), merge(Some("/m"), false));
        assert_eq!(read("atoll merge acme --all").ok(), merge(None, true));
        assert_eq!(read("atoll merge acme").ok(), merge(None, false));
        assert!(read("atoll merge acme --all --at /m").is_err());
        assert!(read("atoll merge acme --wait").is_err());
    }

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [("4GiB", 4 << 30), ("500MiB", 500 << 20), ("1KiB", 1 << 10)] {
            assert_eq!((quota(text), size(bytes)), (Ok(bytes), text.to_owned()));
        }
        assert_eq!((quota("12"), quota("default")), (Ok(12), Ok(0)));
        assert_eq!((size(12), size(1536)), ("12B".to_owned(), "1.5KiB".to_owned()));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "0", "0GiB", "GiB", "-1", "4 GiB", "4GB", "1.5GiB", "99999999TiB"] {
            assert!(quota(text).is_err(), "{text}");
        }
    }
}
