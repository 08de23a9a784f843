//! `atoll tenant | namespace | node | group | op | env`: from words to commands, from answers to
//! tables. Whatever was refused ends the program with 1 and one line that says why.

use clap::{Args, Subcommand, ValueEnum};
use placement::command::{GroupView, NodeView, OperatorView, TenantView};
use placement::record::{NodeState, OperatorState, TenantState};
use placement::{Answer, Command};

use crate::table::Table;
use crate::{admin, rebalance};

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
            TenantVerb::Create { name, replicas, port } => {
                Command::TenantCreate { name, replicas, port }
            }
            TenantVerb::List => Command::TenantList,
            TenantVerb::Show { name } => Command::TenantShow { name },
            TenantVerb::Freeze { name } => Command::TenantFreeze { name },
            TenantVerb::Thaw { name } => Command::TenantThaw { name },
            TenantVerb::Delete { name } => Command::TenantDelete { name },
            TenantVerb::Undelete { name } => Command::TenantUndelete { name },
            TenantVerb::Rename { name, to } => Command::TenantRename { name, to },
            TenantVerb::Move { name, to } => Command::TenantMove { name, to },
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
            NodeVerb::Remove { name } => Command::NodeRemove { name },
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
        }
    }
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
        Answer::Operators(views) => operators(views),
        Answer::Balance(view) => rebalance::balance(view),
        Answer::Plan(view) => rebalance::plan(view),
        Answer::Explained(view) => rebalance::explained(view),
        Answer::Plans(views) => rebalance::history(views),
        Answer::Findings(findings) => rebalance::findings(findings),
    }
}

fn tenants(views: &[TenantView]) -> Vec<String> {
    let mut table = Table::new(&["NAME", "ID", "STATE", "PORT", "CLUSTER", "GROUP", "NODES"]);
    for view in views {
        let state = match view.state {
            TenantState::Open => "open".to_owned(),
            TenantState::Frozen => "frozen".to_owned(),
            TenantState::Deleted => format!("deleted, purged in {}", left(view.purge_ms)),
        };
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
            dash(!view.nodes.is_empty(), view.nodes.join(",")),
        ]);
    }
    table.lines()
}

/// Time until a moment, to the minute.
fn left(until_ms: u64) -> String {
    let minutes = until_ms.saturating_sub(admin::now_ms()) / 60_000;
    format!("{}h{:02}m", minutes / 60, minutes % 60)
}

fn nodes(views: &[NodeView]) -> Vec<String> {
    let head = ["NAME", "ID", "STATE", "ZONE", "WEIGHT", "REPLICAS", "LABELS", "PEERS", "CLIENTS"];
    let mut table = Table::new(&head);
    for view in views {
        let state = match view.state {
            NodeState::Up => "up",
            NodeState::Cordoned => "cordoned",
            NodeState::Draining => "draining",
        };
        let zone = if view.zone.is_empty() { "-" } else { &view.zone };
        let labels = view.labels.iter().map(|(key, value)| format!("{key}={value}"));
        let labels: Vec<String> = labels.collect();
        table.row(vec![
            view.name.clone(),
            format!("{:x}", view.id),
            state.to_owned(),
            zone.to_owned(),
            view.weight.to_string(),
            view.replicas.to_string(),
            if labels.is_empty() { "-".to_owned() } else { labels.join(",") },
            view.peer_urls.join(","),
            view.client_urls.join(","),
        ]);
    }
    table.lines()
}

fn groups(views: &[GroupView]) -> Vec<String> {
    let mut table = Table::new(&["GROUP", "OF", "NODES"]);
    for view in views {
        let nodes = if view.dead { "(being removed)".into() } else { view.nodes.join(",") };
        table.row(vec![view.id.to_string(), view.of.clone(), nodes]);
    }
    table.lines()
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
