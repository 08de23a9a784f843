//! Marks in any order, rule by rule; and whole etcds that split, merge, lag and lose their hubs at
//! random, whose watches must hear everything, each revision once, whole and in order.

use std::collections::VecDeque;

use proto::{
    cluster::group::{RangePlace, SpanPart},
    mvccpb::{Event, KeyValue},
};

use super::*;

const TENANT: (TenantId, NamespaceId) = (TenantId(7), NamespaceId(1));
const LOW: GroupId = GroupId(10);
const HIGH: GroupId = GroupId(11);

fn event(key: &str, revision: i64) -> Arc<WatchEvent> {
    let key = key.to_owned().into();
    let kv = KeyValue { key, mod_revision: revision, ..Default::default() };
    WatchEvent::new(Event { kv: Some(kv), ..Default::default() })
}

fn wish(start: &str, end: Option<&str>, start_revision: i64) -> Wish {
    let range =
        KeyRange { start: start.to_owned().into(), end: end.map(|it| it.to_owned().into()) };
    Wish { range, start_revision, prev_kv: false, no_put: false, no_delete: false }
}

fn two() -> Places {
    Places::test(&[("", 10, 2), ("m", 11, 2)])
}

/// A merge over two groups, and what it has asked and told in few words.
struct Bench {
    merge: Merge,
    out: Vec<Output>,
}

impl Bench {
    /// With one watch over everything, whose parts have the keys 1 and 2, from revision 10 on.
    fn new() -> Bench {
        let mut bench = Bench { merge: Merge::new(TENANT.0, TENANT.1, two()), out: Vec::new() };
        bench.merge.create(1, wish("a", None, 10), &mut bench.out);
        assert_eq!(bench.asked(), ["create 1 at g10 from 10", "create 2 at g11 from 10"]);
        bench
    }

    fn asked(&mut self) -> Vec<String> {
        let word = |ask: Ask| match ask {
            Ask::Create(spec) => {
                format!("create {} at {} from {}", spec.key, spec.group, spec.start_revision)
            }
            Ask::Cancel(group, key) => format!("cancel {key} at {group}"),
            Ask::ProgressAt(group, revision) => format!("{revision} at {group}"),
            Ask::Span { weak, later } => format!("span weak {weak} later {later}"),
            ask => format!("{ask:?}").to_lowercase(),
        };
        self.merge.take_asks().into_iter().map(word).collect()
    }

    fn told(&mut self) -> Vec<String> {
        let word = |output| match output {
            Output::Watch(WatchOutput::Events { key, revision, events }) => {
                let revisions: Vec<_> = events.iter().map(revision_of).collect();
                format!("{key}: {revisions:?} at {revision}")
            }
            Output::Watch(WatchOutput::WatchProgress { key, revision }) => {
                format!("{key} has {revision}")
            }
            Output::Watch(other) => format!("{other:?}"),
            Output::AllHave(revision) => format!("all have {revision}"),
        };
        self.out.drain(..).map(word).collect()
    }

    fn events(&mut self, group: GroupId, key: u64, revisions: &[i64]) {
        let name = if group == LOW { "a" } else { "z" };
        let events: Vec<_> = revisions.iter().map(|revision| event(name, *revision)).collect();
        let revision = revisions.last().copied().unwrap_or(0);
        self.merge.heard(group, WatchOutput::Events { key, revision, events }, &mut self.out);
    }

    fn reached(&mut self, group: GroupId, revision: i64) {
        let output = WatchOutput::Progress { revision, newest: self.merge.next_key - 1 };
        self.merge.heard(group, output, &mut self.out);
    }

    fn span(&mut self, places: &Places, revision: i64, lasts: &[i64]) {
        self.merge.span(&places.span(revision, lasts), &mut self.out);
    }
}

#[test]
fn a_revision_waits_until_every_group_is_complete_up_to_it() {
    let mut bench = Bench::new();
    bench.events(LOW, 1, &[12]);
    assert_eq!(bench.asked(), ["span weak true later false"]);
    bench.span(&two(), 14, &[12, 13]);
    assert_eq!((bench.told(), bench.asked()), (vec![], vec!["13 at g11".to_owned()]));
    // It has reached less than home has promised.
    bench.reached(HIGH, 11);
    assert_eq!(bench.told(), [""; 0]);
    bench.events(HIGH, 2, &[11, 13]);
    // The low group has had everything up to 14: its last is 12.
    assert_eq!(bench.told(), ["1: [11, 12, 13] at 13"]);
    bench.reached(HIGH, 13);
    assert_eq!((bench.told(), bench.asked()), (vec![], Vec::<String>::new()));
}

#[test]
fn the_parts_of_a_revision_leave_together() {
    let mut bench = Bench::new();
    bench.events(HIGH, 2, &[12, 12]);
    bench.asked();
    bench.span(&two(), 12, &[12, 12]);
    assert_eq!(bench.told(), [""; 0], "the low group has a part of it");
    bench.events(LOW, 1, &[12]);
    assert_eq!(bench.told(), ["1: [12, 12, 12] at 12"]);
}

#[test]
fn a_group_that_has_nothing_new_is_not_asked() {
    let mut bench = Bench::new();
    bench.events(LOW, 1, &[12]);
    bench.asked();
    // What the high group has had last is older than the watch.
    bench.span(&two(), 12, &[12, 9]);
    assert_eq!((bench.told(), bench.asked()), (vec!["1: [12] at 12".to_owned()], vec![]));
}

#[test]
fn an_answer_of_home_that_is_older_than_what_is_known_is_asked_for_again() {
    let mut bench = Bench::new();
    bench.events(LOW, 1, &[12]);
    bench.asked();
    bench.span(&two(), 11, &[9, 9]);
    assert_eq!(bench.asked(), ["span weak false later true"]);
    bench.span(&two(), 12, &[12, 9]);
    assert_eq!(bench.told(), ["1: [12] at 12"]);
}

#[test]
fn one_answer_at_a_time_is_asked_for_and_serves_all_watches() {
    let mut bench = Bench::new();
    bench.merge.create(2, wish("k", Some("p"), 10), &mut bench.out);
    bench.asked();
    bench.events(LOW, 1, &[12]);
    bench.events(LOW, 3, &[12]);
    bench.events(LOW, 1, &[14]);
    bench.merge.progress(&mut bench.out);
    assert_eq!(bench.asked(), ["span weak true later false"]);
    // It may have been given before progress was asked for.
    bench.span(&two(), 12, &[12, 9]);
    assert_eq!(bench.told(), ["1: [12] at 12", "2: [12] at 12"]);
    assert_eq!(bench.asked(), ["span weak true later false"]);
    bench.span(&two(), 15, &[14, 9]);
    assert_eq!(
        (bench.told(), bench.asked()),
        (vec!["1: [14] at 14".into()], vec!["14 at g10".into()])
    );
    bench.reached(LOW, 14);
    assert_eq!(bench.told(), ["all have 15"]);
}

#[test]
fn progress_says_nothing_of_watches_created_behind_it() {
    let mut bench = Bench::new();
    bench.merge.progress(&mut bench.out);
    bench.asked();
    bench.span(&two(), 20, &[20, 9]);
    assert_eq!(bench.asked(), ["20 at g10"]);
    bench.merge.create(2, wish("a", Some("b"), 5), &mut bench.out);
    let covered = WatchOutput::Progress { revision: 20, newest: 1 };
    bench.merge.heard(LOW, covered, &mut bench.out);
    assert_eq!(bench.told(), [""; 0]);
    assert!(bench.asked().contains(&"20 at g10".to_owned()), "it is asked again");
    bench.reached(LOW, 20);
    assert_eq!(bench.told(), ["all have 20"]);
}

#[test]
fn a_tick_tells_the_idle_ones() {
    let mut bench = Bench::new();
    bench.merge.create(2, wish("a", Some("b"), 10), &mut bench.out);
    bench.asked();
    bench.events(LOW, 3, &[12]);
    bench.merge.tick([1, 2].into_iter(), &mut bench.out);
    bench.span(&two(), 12, &[9, 9]);
    assert_eq!(bench.told(), ["2: [12] at 12", "1 has 12"]);
    bench.merge.tick([1, 2].into_iter(), &mut bench.out);
    bench.span(&two(), 13, &[9, 9]);
    assert_eq!(bench.told(), ["1 has 13", "2 has 13"]);
}

/// Rule 1: what is said of a group that was split says nothing of the keys that went.
#[test]
fn an_answer_with_other_places_is_not_used_but_followed() {
    let mut bench = Bench::new();
    bench.events(LOW, 1, &[12]);
    bench.asked();
    // Of the high group's keys some went, and 11 happened there.
    let three = Places::test(&[("", 10, 2), ("m", 11, 3), ("t", 12, 3)]);
    bench.span(&three, 12, &[12, 9, 11]);
    assert_eq!(bench.told(), [""; 0]);
    let asked = bench.asked();
    let anew = ["create 3 at g10 from 10", "create 4 at g11 from 10", "create 5 at g12 from 10"];
    assert_eq!((asked[0].as_str(), &asked[1..4]), ("reset", &anew.map(String::from)[..]));
    bench.events(LOW, 3, &[12]);
    bench.span(&three, 12, &[12, 9, 11]);
    assert_eq!(bench.told(), [""; 0]);
    bench.events(GroupId(12), 5, &[11]);
    assert_eq!(bench.told(), ["1: [11, 12] at 12"]);
}

/// Rule 2: with other places older promises are void.
#[test]
fn a_promise_ends_with_the_places_that_it_was_made_for() {
    let mut bench = Bench::new();
    bench.events(LOW, 1, &[20]);
    bench.asked();
    bench.span(&two(), 20, &[20, 15]);
    assert_eq!(bench.asked(), ["15 at g11"]);
    let three = Places::test(&[("", 10, 2), ("m", 11, 3), ("t", 12, 3)]);
    bench.merge.follow(three.clone(), &mut bench.out);
    bench.asked();
    bench.events(LOW, 3, &[20]);
    assert_eq!(bench.asked(), ["span weak true later false"]);
    // Under the promise of before both would be complete up to 20.
    bench.reached(HIGH, 15);
    bench.reached(GroupId(12), 15);
    assert_eq!(bench.told(), [""; 0]);
    // And an answer that was given under the places of before is not used, nor followed.
    bench.span(&two(), 20, &[20, 15]);
    assert_eq!(bench.told(), [""; 0]);
    assert_eq!(bench.asked(), ["span weak false later true"]);
    bench.span(&three, 21, &[20, 15, 15]);
    assert_eq!(bench.told(), ["1: [20] at 20"]);
}

/// Rule 3: what an absorbed group has had comes before anything later.
#[test]
fn what_an_absorbed_group_had_is_heard_from_who_absorbed_it() {
    let mut bench = Bench::new();
    bench.events(HIGH, 2, &[12, 14]);
    bench.asked();
    bench.span(&two(), 12, &[9, 12]);
    assert_eq!(bench.told(), ["1: [12] at 12"]);
    bench.asked();
    // 13 has happened there too, as far as the high group's hub had not come.
    bench.merge.follow(Places::test(&[("", 10, 3)]), &mut bench.out);
    assert_eq!(bench.asked(), ["reset", "create 3 at g10 from 13"]);
    bench.events(HIGH, 2, &[15]);
    assert_eq!(bench.told(), [""; 0], "the old part finds nobody");
    bench.events(LOW, 3, &[13, 14, 16]);
    assert_eq!(bench.told(), ["1: [13, 14, 16] at 16"]);
}

#[test]
fn a_lost_hub_is_asked_anew_and_the_others_go_on() {
    let mut bench = Bench::new();
    bench.events(LOW, 1, &[12]);
    bench.asked();
    bench.span(&two(), 12, &[12, 11]);
    assert_eq!(bench.asked(), ["11 at g11"]);
    bench.merge.lost(HIGH, &mut bench.out);
    assert_eq!(bench.asked(), ["span weak true later false"], "are the places still these?");
    bench.span(&two(), 12, &[12, 11]);
    bench.events(LOW, 1, &[13]);
    bench.reached(HIGH, 20);
    assert_eq!(bench.told(), [""; 0], "nobody is there");
    bench.asked();
    bench.merge.found(HIGH, &mut bench.out);
    assert_eq!(bench.asked(), ["create 3 at g11 from 10", "11 at g11"]);
    bench.events(HIGH, 3, &[11]);
    assert_eq!(bench.told(), ["1: [11, 12] at 12"]);
}

#[test]
fn a_part_that_runs_ahead_is_stopped_and_goes_on_where_it_was() {
    let mut bench = Bench::new();
    let large = |revision: i64| {
        let value = vec![7; limits::WATCH_HELD_BYTES / 2 + 1].into();
        let kv = KeyValue { key: "z".into(), value, mod_revision: revision, ..Default::default() };
        let events = vec![WatchEvent::new(Event { kv: Some(kv), ..Default::default() })];
        WatchOutput::Events { key: 2, revision, events }
    };
    (11..14).for_each(|revision| bench.merge.heard(HIGH, large(revision), &mut bench.out));
    let asked = bench.asked();
    assert_eq!(asked, ["span weak true later false", "cancel 2 at g11"]);
    bench.span(&two(), 13, &[12, 13]);
    // The other one is never stopped.
    bench.events(LOW, 1, &[12]);
    assert_eq!(bench.told(), ["1: [11, 12, 12] at 12"]);
    assert!(bench.asked().contains(&"create 3 at g11 from 13".to_owned()));
    bench.events(HIGH, 3, &[13]);
    assert_eq!(bench.told(), ["1: [13] at 13"]);
}

#[test]
fn on_one_group_nothing_is_held_and_home_is_not_asked() {
    let mut out = Vec::new();
    let one = Places::test(&[("", 10, 1)]);
    let mut merge = Merge::new(TENANT.0, TENANT.1, one);
    merge.create(1, wish("a", None, 10), &mut out);
    merge.create(2, wish("a", None, 10), &mut out);
    merge.progress(&mut out);
    merge.tick([1].into_iter(), &mut out);
    let mut bench = Bench { merge, out };
    let created = ["create 1 at g10 from 10", "create 2 at g10 from 10"];
    let asked = [created[0], created[1], "progress(groupid(10))", "watchprogress(groupid(10), 1)"];
    assert_eq!(bench.asked(), asked);
    bench.events(LOW, 1, &[12]);
    let progress = WatchOutput::Progress { revision: 12, newest: 1 };
    bench.merge.heard(LOW, progress, &mut bench.out);
    let told = ["1: [12] at 12", "Progress { revision: 12, newest: 1 }"];
    assert_eq!(bench.told(), told);
    // A version alone changes nothing; the points from which watches go on have moved.
    bench.merge.follow(Places::test(&[("", 10, 2)]), &mut bench.out);
    assert_eq!(bench.asked(), [""; 0]);
    bench.merge.lost(LOW, &mut bench.out);
    bench.events(LOW, 1, &[13]);
    bench.merge.found(LOW, &mut bench.out);
    assert_eq!(bench.asked(), ["create 3 at g10 from 13", "create 4 at g10 from 10"]);
    assert_eq!(bench.told(), [""; 0], "the old key finds nobody");
}

// === whole etcds ===

struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn key(&mut self) -> String {
        char::from(b'a' + self.below(26) as u8).to_string()
    }
}

/// A group: its log, as what its last revision and its range are behind each entry.
#[derive(Clone)]
struct Log {
    states: Vec<(i64, KeyRange, u64)>,
}

impl Log {
    fn now(&self) -> &(i64, KeyRange, u64) {
        self.states.last().expect("never empty")
    }
}

/// One replica's hub, which has come to some place of the log.
#[derive(Default)]
struct Hub {
    at: usize,
    watches: BTreeMap<u64, (KeyRange, i64)>,
    asked: Vec<i64>,
    newest: u64,
    queue: VecDeque<WatchOutput>,
}

struct World {
    dice: Dice,
    revision: i64,
    /// (revision, key), ascending.
    events: Vec<(i64, String)>,
    logs: BTreeMap<GroupId, Log>,
    next_group: u64,
    hubs: BTreeMap<GroupId, Hub>,
    lost: BTreeSet<GroupId>,
    merge: Merge,
    out: Vec<Output>,
    /// Home was asked.
    asked: bool,
    /// Its answer under way.
    answer: Option<Span>,
    told: Vec<Span>,
    wishes: BTreeMap<u64, Wish>,
    heard: BTreeMap<u64, Vec<(i64, String)>>,
    progress: i64,
}

impl World {
    fn new(seed: u64) -> World {
        let whole = Log { states: vec![(1, KeyRange::all(), 1)] };
        let places = Places::test(&[("", 1, 1)]);
        World {
            dice: Dice(seed),
            revision: 1,
            events: Vec::new(),
            logs: BTreeMap::from([(GroupId(1), whole)]),
            next_group: 2,
            hubs: BTreeMap::new(),
            lost: BTreeSet::new(),
            merge: Merge::new(TENANT.0, TENANT.1, places),
            out: Vec::new(),
            asked: false,
            answer: None,
            told: Vec::new(),
            wishes: BTreeMap::new(),
            heard: BTreeMap::new(),
            progress: 0,
        }
    }

    fn span(&self) -> Span {
        let part = |(group, log): (&GroupId, &Log)| {
            let (last, range, version) = log.now().clone();
            let (start, end) = (range.start, range.end);
            SpanPart { place: Some(RangePlace { group: group.0, start, end, version }), last }
        };
        let parts = self.logs.iter().map(part).collect();
        Span { revision: self.revision, parts, ..Default::default() }
    }

    /// A change of one key or a few.
    fn write(&mut self) {
        self.revision += 1 + self.dice.below(2) as i64;
        let mut keys: Vec<String> = (0..1 + self.dice.below(3)).map(|_| self.dice.key()).collect();
        keys.sort();
        keys.dedup();
        for log in self.logs.values_mut() {
            let (_, range, version) = log.now().clone();
            if keys.iter().any(|key| range.contains(key.as_bytes())) {
                log.states.push((self.revision, range, version));
            }
        }
        self.events.extend(keys.into_iter().map(|key| (self.revision, key)));
    }

    fn split(&mut self) {
        let at = bytes::Bytes::from(self.dice.key());
        let found = self.logs.values_mut().find(|log| log.now().1.contains(&at));
        let log = found.expect("the groups tile all keys");
        let (last, range, version) = log.now().clone();
        if range.start == at {
            return;
        }
        let low = KeyRange { start: range.start, end: Some(at.clone()) };
        log.states.push((last, low, version + 1));
        let high = KeyRange { start: at, end: range.end };
        let child = Log { states: vec![(last, high, version + 1)] };
        self.logs.insert(GroupId(self.next_group), child);
        self.next_group += 1;
    }

    fn absorb(&mut self) {
        let mut groups: Vec<_> =
            self.logs.iter().map(|(id, log)| (log.now().1.start.clone(), *id)).collect();
        groups.sort();
        if groups.len() < 2 {
            return;
        }
        let at = self.dice.below(groups.len() - 1);
        let (left, right) = (groups[at].1, groups[at + 1].1);
        let gone = self.logs.remove(&right).expect("it is there");
        let (last, range, version) = gone.now().clone();
        let log = self.logs.get_mut(&left).expect("it is there");
        let (own, low, older) = log.now().clone();
        let joined = KeyRange { start: low.start, end: range.end };
        log.states.push((own.max(last), joined, older.max(version) + 1));
    }

    /// A hub goes on by an entry.
    fn step(&mut self, group: GroupId) {
        let (Some(hub), Some(log)) = (self.hubs.get_mut(&group), self.logs.get(&group)) else {
            return;
        };
        if hub.at + 1 >= log.states.len() {
            return;
        }
        let before = log.states[hub.at].0;
        hub.at += 1;
        let (now, range, _) = &log.states[hub.at];
        let (watches, queue) = (&mut hub.watches, &mut hub.queue);
        watches.retain(|key, (watched, _)| {
            let inside = watched.is_within(range);
            if !inside {
                queue.push_back(WatchOutput::Closed { key: *key });
            }
            inside
        });
        for (key, (watched, start)) in watches.iter() {
            let seen = self.events.iter().filter(|(revision, name)| {
                (before + 1..=*now).contains(revision)
                    && revision >= start
                    && watched.contains(name.as_bytes())
            });
            let events: Vec<_> = seen.map(|(revision, name)| event(name, *revision)).collect();
            if !events.is_empty() {
                queue.push_back(WatchOutput::Events { key: *key, revision: *now, events });
            }
        }
        Self::answer(hub, *now);
    }

    fn answer(hub: &mut Hub, revision: i64) {
        let before = hub.asked.len();
        hub.asked.retain(|asked| *asked > revision);
        if hub.asked.len() < before {
            hub.queue.push_back(WatchOutput::Progress { revision, newest: hub.newest });
        }
    }

    fn create(&mut self, spec: WatchSpec) {
        let World { hubs, logs, dice, events, .. } = self;
        let fresh = || {
            // Any replica may be asked, one that lags as well.
            let places = logs.get(&spec.group).map_or(1, |log| log.states.len());
            Hub { at: places - 1 - dice.below(places.min(3)), ..Hub::default() }
        };
        let hub = hubs.entry(spec.group).or_insert_with(fresh);
        let state = logs.get(&spec.group).map(|log| &log.states[hub.at]);
        let Some((last, range, _)) = state.filter(|(_, range, _)| spec.range.is_within(range))
        else {
            return hub.queue.push_back(WatchOutput::Closed { key: spec.key });
        };
        let seen = events.iter().filter(|(revision, name)| {
            (spec.start_revision..=*last).contains(revision) && spec.range.contains(name.as_bytes())
        });
        let events: Vec<_> = seen.map(|(revision, name)| event(name, *revision)).collect();
        assert!(range.contains(&spec.range.start));
        if !events.is_empty() {
            hub.queue.push_back(WatchOutput::Events { key: spec.key, revision: *last, events });
        }
        hub.newest = spec.key;
        hub.watches.insert(spec.key, (spec.range, spec.start_revision));
    }

    fn carry_out(&mut self) {
        for ask in self.merge.take_asks() {
            match ask {
                Ask::Reset => {
                    self.hubs.clear();
                    self.lost.clear();
                }
                Ask::Create(spec) => self.create(spec),
                Ask::Cancel(group, key) => {
                    if let Some(hub) = self.hubs.get_mut(&group) {
                        hub.watches.remove(&key);
                    }
                }
                Ask::ProgressAt(group, at) => {
                    if let Some(hub) = self.hubs.get_mut(&group) {
                        hub.asked.push(at);
                        // One that is gone says nothing any more.
                        let log = self.logs.get(&group);
                        let now = log.map_or(0, |log| log.states[hub.at].0);
                        Self::answer(hub, now);
                    }
                }
                Ask::Progress(group) => {
                    if let (Some(hub), Some(log)) =
                        (self.hubs.get_mut(&group), self.logs.get(&group))
                    {
                        let (revision, newest) = (log.states[hub.at].0, hub.newest);
                        hub.queue.push_back(WatchOutput::Progress { revision, newest });
                    }
                }
                Ask::WatchProgress(..) => {}
                Ask::Span { .. } => {
                    assert!(!self.asked && self.answer.is_none(), "one at a time");
                    self.asked = true;
                }
            }
        }
        self.take_out();
    }

    /// What is told must be true.
    fn take_out(&mut self) {
        for output in std::mem::take(&mut self.out) {
            match output {
                Output::Watch(WatchOutput::Events { key, events, .. }) => {
                    let wish = &self.wishes[&key];
                    let all = self.events.iter().filter(|(revision, name)| {
                        *revision >= wish.start_revision && wish.range.contains(name.as_bytes())
                    });
                    let all: Vec<_> = all.cloned().collect();
                    let heard = self.heard.entry(key).or_default();
                    let name = |event: &WatchEvent| {
                        let kv = event.kv.clone().expect("events have keys");
                        (kv.mod_revision, String::from_utf8(kv.key.to_vec()).expect("text"))
                    };
                    heard.extend(events.iter().map(|event| name(event)));
                    assert!(all.starts_with(heard), "{key} heard {heard:?} of {all:?}");
                    let whole =
                        all.get(heard.len()).map(|next| next.0) != heard.last().map(|last| last.0);
                    assert!(whole, "{key} heard half a revision");
                }
                Output::AllHave(revision) => {
                    self.progress = self.progress.max(revision);
                    for key in self.wishes.keys() {
                        self.check_has(*key, revision);
                    }
                }
                Output::Watch(WatchOutput::Progress { revision, newest }) => {
                    let all_known = self.wishes.keys().all(|key| *key <= newest);
                    if all_known {
                        self.progress = self.progress.max(revision);
                        for key in self.wishes.keys() {
                            self.check_has(*key, revision);
                        }
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn check_has(&self, key: u64, revision: i64) {
        let wish = &self.wishes[&key];
        let wanted = self.events.iter().filter(|(at, name)| {
            (wish.start_revision..=revision).contains(at) && wish.range.contains(name.as_bytes())
        });
        let heard = self.heard.get(&key).map_or(0, Vec::len);
        assert!(heard >= wanted.count(), "{key} has not heard everything up to {revision}");
    }

    /// The router hears something.
    fn hear(&mut self, group: GroupId) {
        let Some(output) = self.hubs.get_mut(&group).and_then(|hub| hub.queue.pop_front()) else {
            return;
        };
        match output {
            WatchOutput::Closed { key } if self.merge.knows(key) => self.lose(group),
            WatchOutput::Closed { .. } => {}
            output => self.merge.heard(group, output, &mut self.out),
        }
        self.carry_out();
    }

    fn lose(&mut self, group: GroupId) {
        self.hubs.remove(&group);
        self.lost.insert(group);
        self.merge.lost(group, &mut self.out);
    }

    fn pick(&mut self, groups: Vec<GroupId>) -> Option<GroupId> {
        let at = self.dice.below(groups.len().max(1));
        groups.get(at).copied()
    }

    fn turn(&mut self, calm: bool) {
        let hubs: Vec<GroupId> = self.hubs.keys().copied().collect();
        match self.dice.below(if calm { 60 } else { 100 }) {
            0..20 => {
                if let Some(group) = self.pick(hubs) {
                    self.step(group);
                }
            }
            20..40 => {
                if let Some(group) = self.pick(hubs) {
                    self.hear(group);
                }
            }
            40..45 => {
                if let Some(group) = self.pick(self.lost.iter().copied().collect()) {
                    self.lost.remove(&group);
                    self.merge.found(group, &mut self.out);
                    self.carry_out();
                }
            }
            45..50 if self.asked => {
                self.asked = false;
                let span = self.span();
                self.told.push(span.clone());
                // By a leader that is none any more, perhaps.
                let old = self.told.len() - 1 - self.dice.below(self.told.len().min(3));
                self.answer = Some(if calm { span } else { self.told[old].clone() });
            }
            50..58 => {
                if let Some(span) = self.answer.take() {
                    self.merge.span(&span, &mut self.out);
                    self.carry_out();
                }
            }
            58..60 => {
                if let Some(places) = Places::told(&self.span()) {
                    self.merge.follow(places, &mut self.out);
                    self.carry_out();
                }
            }
            60..80 => self.write(),
            80..84 => self.split(),
            84..88 => self.absorb(),
            88..90 => {
                if let Some(group) = self.pick(hubs) {
                    self.lose(group);
                    self.carry_out();
                }
            }
            90..94 => {
                self.merge.progress(&mut self.out);
                self.carry_out();
            }
            94..96 if self.wishes.len() < 4 => {
                let key = self.wishes.len() as u64 + 1;
                let (start, end) = (self.dice.key(), self.dice.key());
                let end = Some(end.as_str()).filter(|end| *end > start.as_str());
                let since = 2 + self.dice.below(self.revision as usize) as i64;
                let wish = wish(&start, end, since);
                self.wishes.insert(key, wish.clone());
                self.merge.create(key, wish, &mut self.out);
                self.carry_out();
            }
            _ => {}
        }
    }
}

#[test]
fn watches_of_an_etcd_that_splits_and_merges_hear_everything_once_and_in_order() {
    let (mut events, mut groups, mut asked) = (0, 0, 0);
    for seed in 0..60 {
        let mut world = World::new(seed);
        (0..800).for_each(|_| world.turn(false));
        // Then nothing happens any more but what was begun, and progress is asked for.
        let last = world.revision;
        let mut turns = 0;
        while world.progress < last || world.wishes.is_empty() {
            if world.wishes.is_empty() {
                break;
            }
            if turns % 500 == 0 {
                world.merge.progress(&mut world.out);
                world.carry_out();
            }
            world.turn(true);
            turns += 1;
            assert!(turns < 50_000, "seed {seed}: nobody tells of {last}");
        }
        events += world.heard.values().map(Vec::len).sum::<usize>();
        (groups, asked) = (groups.max(world.logs.len()), asked + world.told.len());
    }
    assert!(events > 1000 && groups > 3 && asked > 100, "{events} {groups} {asked}");
}
