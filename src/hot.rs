//! `atoll policy`: when etcds are split without being asked. And how `atoll tenant explain` prints why
//! one is split or is not.

use clap::{Args, Subcommand, ValueEnum};
use placement::Command;
use placement::command::{CutView, ExplanationView, GroupExplained};
use placement::policy::{Bar, BarWish, PolicyView, PolicyWish, SplitMode};

use crate::commands::{self, Way, amount, keys, size, time};
use crate::table::Table;

/// What to do about policies.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Show what is set, and what would be if nothing had been.
    Show,
    /// Set when tenants are split without being asked. What is not named stays; 0 is a bar that
    /// nothing reaches.
    Split(Box<SplitOptions>),
}

/// What is to be changed.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub(crate) struct SplitOptions {
    /// Are tenants split without being asked?
    #[arg(long, value_enum, group = "what")]
    mode: Option<Mode>,
    /// Only this tenant is meant; with --mode alone.
    #[arg(long, value_name = "NAME", requires = "mode")]
    tenant: Option<String>,
    /// One that is on one group is split when it has so many requests a second,
    #[arg(long, value_name = "N", group = "what")]
    first_requests: Option<u64>,
    /// or so many bytes a second are written,
    #[arg(long, value_name = "SIZE", value_parser = bytes, group = "what")]
    first_written: Option<u64>,
    /// for so long;
    #[arg(long, value_name = "TIME", value_parser = milliseconds, group = "what")]
    first_for: Option<u64>,
    /// or is so large.
    #[arg(long, value_name = "SIZE", value_parser = bytes, group = "what")]
    first_size: Option<u64>,
    /// A group of one that is split already is split when it has so many requests a second,
    #[arg(long, value_name = "N", group = "what")]
    later_requests: Option<u64>,
    /// or so many bytes a second are written,
    #[arg(long, value_name = "SIZE", value_parser = bytes, group = "what")]
    later_written: Option<u64>,
    /// for so long;
    #[arg(long, value_name = "TIME", value_parser = milliseconds, group = "what")]
    later_for: Option<u64>,
    /// or is so large.
    #[arg(long, value_name = "SIZE", value_parser = bytes, group = "what")]
    later_size: Option<u64>,
    /// Groups that one comes to be on by itself, at most.
    #[arg(long, value_name = "N", group = "what")]
    groups_max: Option<usize>,
    /// How long both sides are left alone after a split.
    #[arg(long, value_name = "TIME", value_parser = milliseconds, group = "what")]
    rest: Option<u64>,
}

/// Are tenants split without being asked?
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// They are.
    On,
    /// They are not.
    Off,
    /// As if nothing had been said: a tenant as all others, all of them not.
    Default,
}

fn bytes(text: &str) -> Result<u64, String> {
    amount(text).ok_or_else(|| format!("{text} is no size: say 30MiB, or a number of bytes"))
}

fn milliseconds(text: &str) -> Result<u64, String> {
    time(text).map(|time| time.as_millis() as u64)
}

impl From<PolicyVerb> for Command {
    fn from(verb: PolicyVerb) -> Command {
        let options = match verb {
            PolicyVerb::Show => return Command::PolicyShow,
            PolicyVerb::Split(options) => *options,
        };
        let mode = options.mode.map(|mode| match mode {
            Mode::On => SplitMode::On,
            Mode::Off => SplitMode::Off,
            Mode::Default => SplitMode::Default,
        });
        let first = BarWish {
            requests_per_s: options.first_requests,
            write_bytes_per_s: options.first_written,
            hold_ms: options.first_for,
            size_bytes: options.first_size,
        };
        let later = BarWish {
            requests_per_s: options.later_requests,
            write_bytes_per_s: options.later_written,
            hold_ms: options.later_for,
            size_bytes: options.later_size,
        };
        let tenant = options.tenant.unwrap_or_default();
        let (groups_max, rest_ms) = (options.groups_max, options.rest);
        let wish = PolicyWish { mode, tenant, first, later, groups_max, rest_ms };
        Command::PolicySet(Box::new(wish))
    }
}

/// Carries a command out and prints what comes back.
pub(crate) fn run(way: &Way, verb: PolicyVerb) -> Result<(), String> {
    commands::run(way, verb.into())
}

fn seconds(ms: u64) -> String {
    match ms.is_multiple_of(1000) {
        true => format!("{}s", ms / 1000),
        false => format!("{ms}ms"),
    }
}

fn word(mode: SplitMode) -> &'static str {
    match mode {
        SplitMode::Default => "default",
        SplitMode::On => "on",
        SplitMode::Off => "off",
    }
}

/// What is set.
pub(crate) fn policy(view: &PolicyView) -> Vec<String> {
    let bar = |name: &str, bar: &Bar| {
        [
            (format!("{name}-requests"), bar.requests_per_s.to_string()),
            (format!("{name}-written"), size(bar.write_bytes_per_s)),
            (format!("{name}-for"), seconds(bar.hold_ms)),
            (format!("{name}-size"), size(bar.size_bytes)),
        ]
    };
    let all = |split: &placement::policy::SplitPolicy| {
        let mode = if split.on { SplitMode::On } else { SplitMode::Off };
        let mut all = vec![("mode".to_owned(), word(mode).to_owned())];
        all.extend(bar("first", &split.first));
        all.extend(bar("later", &split.later));
        all.push(("groups-max".to_owned(), split.groups_max.to_string()));
        all.push(("rest".to_owned(), seconds(split.rest_ms)));
        all
    };
    let mut table = Table::new(&["SPLIT", "IS", "BY DEFAULT"]);
    for ((name, is), (_, default)) in all(&view.split).into_iter().zip(all(&view.default)) {
        table.row(vec![name, is, default]);
    }
    let mut lines = table.lines();
    let own = view.tenants.iter();
    lines.extend(own.map(|(tenant, mode)| format!("mode of tenant {tenant}: {}", word(*mode))));
    lines
}

/// Why an etcd is split or is not.
pub(crate) fn explained(view: &ExplanationView) -> Vec<String> {
    let mut lines = vec![view.verdict.clone()];
    lines.push(match view.is_on {
        true => {
            "It is split and merged without being asked: atoll policy show says when.".to_owned()
        }
        false => "It is not split or merged without being asked: see atoll policy show.".to_owned(),
    });
    for group in &view.groups {
        lines.push(String::new());
        lines.push(head(group));
        lines.extend(group.said.iter().map(|said| format!("  {said}")));
        lines.extend(group.cut.as_ref().map(|cut| format!("  by hand: {}", by_hand(view, cut))));
    }
    lines
}

fn head(group: &GroupExplained) -> String {
    let leader = group.leader.as_ref().map(|node| format!(", led by {node}")).unwrap_or_default();
    let why = match group.why.as_str() {
        "" => "home".to_owned(),
        why => why.to_owned(),
    };
    format!("group {}, keys {} ({why}){leader}:", group.group, keys(&group.keys))
}

fn by_hand(view: &ExplanationView, cut: &CutView) -> String {
    format!("atoll tenant split {} --at '{}'", view.name, cut.at.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use placement::command::{KeysView, Verdict};
    use placement::policy::SplitPolicy;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        verb: PolicyVerb,
    }

    fn read(words: &str) -> Option<Command> {
        Line::try_parse_from(words.split(' ')).ok().map(|line| line.verb.into())
    }

    #[test]
    fn only_what_is_named_is_set() {
        let first = BarWish { requests_per_s: Some(100), ..BarWish::default() };
        let later = BarWish {
            write_bytes_per_s: Some(30 << 20),
            hold_ms: Some(1_500),
            ..BarWish::default()
        };
        let wish = PolicyWish { mode: Some(SplitMode::On), first, later, ..PolicyWish::default() };
        let said = "policy split --mode on --first-requests 100 --later-written 30MiB --later-for \
                    1.5s";
        assert_eq!(read(said), Some(Command::PolicySet(Box::new(wish))));
        let tenant = "acme".to_owned();
        let wish = PolicyWish { mode: Some(SplitMode::Off), tenant, ..PolicyWish::default() };
        let said = "policy split --tenant acme --mode off";
        assert_eq!(read(said), Some(Command::PolicySet(Box::new(wish))));
        for wrong in ["", " --tenant acme", " --first-size 1GB", " --rest soon", " --mode maybe"] {
            assert_eq!(read(&format!("policy split{wrong}")), None, "{wrong}");
        }
        assert_eq!(read("policy show"), Some(Command::PolicyShow));
    }

    #[test]
    fn what_is_set_stands_beside_what_would_be() {
        let default = SplitPolicy::default();
        let split = SplitPolicy { on: false, rest_ms: 1_500, ..default };
        let tenants = [("acme".to_owned(), SplitMode::Off)].into();
        let shown = policy(&PolicyView { split, default, tenants });
        let said: Vec<String> = shown
            .iter()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for line in [
            "mode off on",
            "first-requests 15000 15000",
            "later-written 30MiB 30MiB",
            "first-for 60s 60s",
            "first-size 8GiB 8GiB",
            "rest 1500ms 60s",
            "mode of tenant acme: off",
        ] {
            assert!(said.iter().any(|said| said == line), "{line}: {said:?}");
        }
    }

    #[test]
    fn an_explanation_is_read_from_top_to_bottom() {
        let group = GroupExplained {
            group: 3,
            keys: KeysView { start: "/e/".to_owned(), end: None },
            why: "load: by operator 4".to_owned(),
            leader: Some("n1".to_owned()),
            requests_per_s: 9,
            write_bytes_per_s: 9,
            size: 9,
            verdict: Verdict::Cool,
            said: vec!["it is not hot".to_owned()],
            cut: Some(CutView {
                at: "/it's".to_owned(),
                below: 500,
                above: 500,
                across: 0,
                watches: 0,
            }),
        };
        let view = ExplanationView {
            name: "acme".to_owned(),
            verdict: "acme is split over 2 groups.".to_owned(),
            is_on: true,
            bar: Bar::default(),
            groups: vec![group],
        };
        let shown = explained(&view);
        assert_eq!(shown[3], "group 3, keys from /e/ (load: by operator 4), led by n1:");
        assert_eq!(shown[4], "  it is not hot");
        assert_eq!(shown[5], r"  by hand: atoll tenant split acme --at '/it'\''s'");
    }
}
