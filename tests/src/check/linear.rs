//! Linearizability of single keys by search, without trusting a single revision.
//!
//! The witness believes the revisions in the answers; this checker does not: it looks at them
//! only to guess what to try first, which makes right histories quick and none right. For each
//! key it projects every operation onto that key (a range is a read of the key, a
//! transaction keeps its guards and operations on the key) and searches an order of the
//! operations that fits real time and every answer: Wing and Gong's search as Lowe improved it,
//! with an undo list and a memo of (operations done, state) that need not be tried again.
//! A history of many objects is linearizable only if each object's part is, so a projection
//! that fails proves a violation; what spans keys is the witness's to find.
//!
//! ```text
//!   c1  |--- put 1 ---|        |-- read 2 --|        order found: put 1, put 2, read 2,
//!   c2       |------ put 2 ------|    |- del -|                   del; put 3 never happened
//!   c3          |-- put 3 ............ (unknown)
//! ```
//!
//! What an answer does not tell is left open: a state knows its value and version or does not.
//! Compares by revision or lease are not understood; then either branch may have been taken,
//! unless the answer says which. Keys that ever hung on a lease are left out (they vanish by
//! themselves), so are serializable reads and reads at a given revision.
//!
//! The search is exponential in what overlaps, so it works on windows. A window after the first
//! starts in any state, and what reaches over its edges may or may not be part of it. Operations
//! of unknown outcome stay open for ever and are tried only when nothing else fits; the
//! witness's account of them, if given, settles them beforehand. A window that takes too many
//! steps is given up and counted.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::{
    etcd::{
        Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RequestOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request as Op,
        response_op::Response as Answer,
    },
    group::{Reply, Request},
};

use super::{
    history::{History, OpId, Outcome, Time},
    model::covers,
    witness::{Standing, Witnessed, for_puts, standing},
    words::text,
};

/// How far the search goes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Operations in a window.
    pub window: usize,
    /// Steps before a window is given up.
    pub steps: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { window: 10_000, steps: 2_000_000 }
    }
}

/// A key whose operations no order explains.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no order of {operations} operations on key {key} explains {stuck}; best: {state}")]
pub struct Violation {
    /// Which key.
    pub key: String,
    /// How many operations were in the window.
    pub operations: usize,
    /// The operation that could not be placed where the search came furthest.
    pub stuck: String,
    /// State of the key there.
    pub state: String,
}

/// What was found, and how much was looked at.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// Keys searched.
    pub keys: usize,
    /// Operations searched, each once per key it touches.
    pub operations: usize,
    /// Windows searched.
    pub windows: usize,
    /// Windows given up.
    pub given_up: usize,
}

/// Checks every key of a history. With the witness's account, operations of unknown outcome
/// are settled by it: absent, or over when their revision was first seen.
pub fn check(history: &History, limits: &Limits, account: Option<&Witnessed>) -> Report {
    let mut report = Report::default();
    let placed = account.map(Witnessed::placed);
    let over = |id: OpId| -> Option<Time> {
        let op = history.op(id);
        match (&op.outcome, account, &placed) {
            (Outcome::Refused(_), ..) => None,
            (Outcome::Unknown, Some(account), Some(placed)) => {
                Some(account.sightings.first_seen(*placed.get(&id)?))
            }
            _ => Some(op.over()),
        }
    };
    let (keys, leased) = keys(history);
    for key in keys.difference(&leased) {
        let mut ops: Vec<Projected> = history
            .ops()
            .filter(|(_, op)| standing(&op.request) == Standing::Linearizable)
            .filter_map(|(id, op)| {
                let over = over(id)?.max(op.call);
                let action = project(key, &op.request, op.reply())?;
                let placed = placed.as_ref().and_then(|placed| placed.get(&id).copied());
                let hint = op.revision().or(placed).unwrap_or(i64::MAX);
                Some(Projected { id, call: op.call, over, action, hint })
            })
            .collect();
        ops.sort_by_key(|op| (op.call, op.id));
        report.keys += 1;
        report.operations += ops.len();
        search_key(history, key, &ops, limits, &mut report);
    }
    report
}

/// All keys that are named alone, and those that ever hung on a lease.
fn keys(history: &History) -> (BTreeSet<Bytes>, BTreeSet<Bytes>) {
    let (mut all, mut leased) = (BTreeSet::new(), BTreeSet::new());
    for op in &history.operations {
        match &op.request {
            Request::Range(range) if range.range_end.is_empty() => {
                all.insert(range.key.clone());
            }
            Request::DeleteRange(delete) if delete.range_end.is_empty() => {
                all.insert(delete.key.clone());
            }
            _ => {}
        }
        for_puts(&op.request, &mut |put| {
            all.insert(put.key.clone());
            if put.lease != 0 {
                leased.insert(put.key.clone());
            }
        });
    }
    (all, leased)
}

fn search_key(
    history: &History,
    key: &Bytes,
    ops: &[Projected],
    limits: &Limits,
    report: &mut Report,
) {
    let window = limits.window.max(1);
    for first in (0..ops.len()).step_by(window) {
        let start = if first == 0 { 0 } else { ops[first].call };
        let end = ops.get(first + window).map_or(Time::MAX, |op| op.call);
        let inside = |op: &&Projected| op.call < end && op.over >= start;
        let part: Vec<&Projected> = ops.iter().filter(inside).collect();
        let must = |op: &Projected| op.call >= start && op.over < end;
        let state = if first == 0 { State::Absent } else { State::Any };
        report.windows += 1;
        match Search::new(&part, must).run(state, limits.steps) {
            Verdict::Found => {}
            Verdict::GaveUp => report.given_up += 1,
            Verdict::Stuck { op, state } => report.violations.push(Violation {
                key: text(key),
                operations: part.len(),
                stuck: history.tell(part[op].id),
                state: format!("{state:?}"),
            }),
        }
    }
}

/// What is known of a key: as a state, and as what an answer says of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Any,
    Absent,
    Present { value: Option<Bytes>, version: Option<i64> },
}

/// What an operation does to one key, with what was answered.
#[derive(Clone, Debug)]
enum Action {
    Read(State),
    /// Without a value it keeps the one there is.
    Put {
        value: Option<Bytes>,
        previous: State,
    },
    Delete {
        previous: State,
    },
    Txn(Branches),
}

#[derive(Clone, Debug)]
struct Branches {
    guards: Vec<Guard>,
    /// Are there guards that cannot be judged here?
    opaque: bool,
    succeeded: Option<bool>,
    then: Vec<Action>,
    otherwise: Vec<Action>,
}

#[derive(Clone, Debug)]
enum Guard {
    Exists(bool),
    Value(CompareResult, Bytes),
    Version(CompareResult, i64),
}

struct Projected {
    id: OpId,
    call: Time,
    over: Time,
    action: Action,
    /// A guess at its place.
    hint: i64,
}

// === projection ===

/// What a request does to one key; `None` if nothing.
fn project(key: &Bytes, request: &Request, reply: Option<&Reply>) -> Option<Action> {
    let found = match (request, reply) {
        (Request::Range(ask), Some(Reply::Range(reply))) => read(key, ask, Some(reply)),
        (Request::Put(ask), Some(Reply::Put(reply))) => put(key, ask, Some(reply)),
        (Request::Put(ask), None) => put(key, ask, None),
        (Request::DeleteRange(ask), Some(Reply::DeleteRange(reply))) => {
            delete(key, ask, Some(reply))
        }
        (Request::DeleteRange(ask), None) => delete(key, ask, None),
        (Request::Txn(ask), Some(Reply::Txn(reply))) => txn(key, ask, Some(reply)),
        (Request::Txn(ask), None) => txn(key, ask, None),
        _ => None,
    };
    found.filter(|action| !matches!(action, Action::Read(State::Any)))
}

fn present(kv: &proto::mvccpb::KeyValue, with_value: bool) -> State {
    let value = with_value.then(|| kv.value.clone());
    State::Present { value, version: Some(kv.version) }
}

fn read(key: &Bytes, ask: &RangeRequest, reply: Option<&RangeResponse>) -> Option<Action> {
    let filtered = ask.min_mod_revision != 0
        || ask.max_mod_revision != 0
        || ask.min_create_revision != 0
        || ask.max_create_revision != 0;
    if !covers(&ask.key, &ask.range_end, key) {
        return None;
    }
    let Some(reply) = reply.filter(|_| ask.revision <= 0) else {
        return Some(Action::Read(State::Any));
    };
    let seen = match reply.kvs.iter().find(|kv| kv.key == *key) {
        Some(kv) => present(kv, !ask.keys_only),
        None if reply.count == 0 => State::Absent,
        None if ask.count_only && ask.range_end.is_empty() => {
            State::Present { value: None, version: None }
        }
        None if ask.count_only || reply.more || filtered => State::Any,
        None => State::Absent,
    };
    Some(Action::Read(seen))
}

fn put(key: &Bytes, ask: &PutRequest, reply: Option<&PutResponse>) -> Option<Action> {
    let previous = match reply.filter(|_| ask.prev_kv) {
        Some(PutResponse { prev_kv: Some(kv), .. }) => present(kv, true),
        Some(_) => State::Absent,
        None => State::Any,
    };
    let value = (!ask.ignore_value).then(|| ask.value.clone());
    (ask.key == *key).then_some(Action::Put { value, previous })
}

fn delete(
    key: &Bytes,
    ask: &DeleteRangeRequest,
    reply: Option<&DeleteRangeResponse>,
) -> Option<Action> {
    if !covers(&ask.key, &ask.range_end, key) {
        return None;
    }
    let previous = match reply {
        None => State::Any,
        Some(reply) if reply.deleted == 0 => State::Absent,
        Some(reply) if ask.prev_kv => {
            let kv = reply.prev_kvs.iter().find(|kv| kv.key == *key);
            kv.map_or(State::Absent, |kv| present(kv, true))
        }
        Some(_) if ask.range_end.is_empty() => State::Present { value: None, version: None },
        Some(_) => State::Any,
    };
    Some(Action::Delete { previous })
}

fn txn(key: &Bytes, ask: &TxnRequest, reply: Option<&TxnResponse>) -> Option<Action> {
    let mut branches = Branches {
        guards: Vec::new(),
        opaque: false,
        succeeded: reply.map(|reply| reply.succeeded),
        then: list(key, &ask.success, reply.filter(|reply| reply.succeeded)),
        otherwise: list(key, &ask.failure, reply.filter(|reply| !reply.succeeded)),
    };
    for compare in &ask.compare {
        match guard(key, compare) {
            Some(guard) => branches.guards.push(guard),
            None => branches.opaque = true,
        }
    }
    let nothing =
        branches.guards.is_empty() && branches.then.is_empty() && branches.otherwise.is_empty();
    (!nothing).then_some(Action::Txn(branches))
}

/// Operations of a branch, with their answers if it was taken.
fn list(key: &Bytes, ops: &[RequestOp], reply: Option<&TxnResponse>) -> Vec<Action> {
    let answer = |at: usize| reply.and_then(|reply| reply.responses.get(at)?.response.as_ref());
    let project = |(at, op): (usize, &RequestOp)| match (op.request.as_ref()?, answer(at)) {
        (Op::RequestRange(ask), Some(Answer::ResponseRange(reply))) => read(key, ask, Some(reply)),
        (Op::RequestPut(ask), Some(Answer::ResponsePut(reply))) => put(key, ask, Some(reply)),
        (Op::RequestDeleteRange(ask), Some(Answer::ResponseDeleteRange(reply))) => {
            delete(key, ask, Some(reply))
        }
        (Op::RequestTxn(ask), Some(Answer::ResponseTxn(reply))) => txn(key, ask, Some(reply)),
        (Op::RequestRange(ask), _) => read(key, ask, None),
        (Op::RequestPut(ask), _) => put(key, ask, None),
        (Op::RequestDeleteRange(ask), _) => delete(key, ask, None),
        (Op::RequestTxn(ask), _) => txn(key, ask, None),
    };
    ops.iter().enumerate().filter_map(project).collect()
}

/// A compare that can be judged by this key's state alone.
fn guard(key: &Bytes, compare: &Compare) -> Option<Guard> {
    if compare.key != *key || !compare.range_end.is_empty() {
        return None;
    }
    let result = CompareResult::try_from(compare.result).ok()?;
    let zero = |number: i64| match result {
        CompareResult::Equal if number == 0 => Some(Guard::Exists(false)),
        CompareResult::NotEqual | CompareResult::Greater if number == 0 => {
            Some(Guard::Exists(true))
        }
        _ => None,
    };
    match (CompareTarget::try_from(compare.target).ok()?, compare.target_union.as_ref()) {
        (CompareTarget::Value, Some(TargetUnion::Value(value))) => {
            Some(Guard::Value(result, value.clone()))
        }
        (CompareTarget::Version, Some(TargetUnion::Version(version))) => {
            Some(Guard::Version(result, *version))
        }
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(number)))
        | (CompareTarget::Mod, Some(TargetUnion::ModRevision(number))) => zero(*number),
        (CompareTarget::Create | CompareTarget::Mod, None) => zero(0),
        _ => None,
    }
}

// === impl Action ===

impl Action {
    /// Does it leave every state as it is, wherever its answer fits?
    fn only_reads(&self) -> bool {
        match self {
            Action::Read(_) | Action::Delete { previous: State::Absent } => true,
            Action::Put { .. } | Action::Delete { .. } => false,
            Action::Txn(branches) => match branches.succeeded {
                Some(true) => branches.then.iter().all(Action::only_reads),
                Some(false) => branches.otherwise.iter().all(Action::only_reads),
                None => false,
            },
        }
    }
}

// === impl State ===

impl State {
    /// What is known if both are true; `None` if they cannot be.
    fn and(&self, other: &State) -> Option<State> {
        fn one<T: Clone + PartialEq>(a: &Option<T>, b: &Option<T>) -> Option<Option<T>> {
            match (a, b) {
                (Some(a), Some(b)) if a != b => None,
                _ => Some(a.clone().or_else(|| b.clone())),
            }
        }
        match (self, other) {
            (State::Any, known) | (known, State::Any) => Some(known.clone()),
            (State::Absent, State::Absent) => Some(State::Absent),
            (State::Present { value: a, version: c }, State::Present { value: b, version: d }) => {
                Some(State::Present { value: one(a, b)?, version: one(c, d)? })
            }
            _ => None,
        }
    }

    /// Does a guard hold? `None` if too little is known.
    fn satisfies(&self, guard: &Guard) -> Option<bool> {
        let by = |result: &CompareResult, order: std::cmp::Ordering| match result {
            CompareResult::Equal => order.is_eq(),
            CompareResult::NotEqual => order.is_ne(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
        };
        match (self, guard) {
            (State::Any, _) => None,
            (State::Absent, Guard::Exists(exists)) => Some(!exists),
            (State::Present { .. }, Guard::Exists(exists)) => Some(*exists),
            (State::Absent, Guard::Value(..)) => Some(false),
            (State::Absent, Guard::Version(result, version)) => Some(by(result, 0.cmp(version))),
            (State::Present { value, .. }, Guard::Value(result, operand)) => {
                value.as_ref().map(|value| by(result, value.cmp(operand)))
            }
            (State::Present { version, .. }, Guard::Version(result, operand)) => {
                version.map(|version| by(result, version.cmp(operand)))
            }
        }
    }

    /// States that an action may leave behind, given its answer; none if it does not fit.
    /// `before` is what compares look at.
    fn after(&self, action: &Action, before: &State) -> Vec<State> {
        match action {
            Action::Read(seen) => self.and(seen).into_iter().collect(),
            Action::Delete { previous } => {
                self.and(previous).map(|_| State::Absent).into_iter().collect()
            }
            Action::Put { value, previous } => {
                let there = match value {
                    Some(_) => State::Any,
                    None => State::Present { value: None, version: None },
                };
                let old = self.and(previous).and_then(|old| old.and(&there));
                old.map(|old| old.put(value.clone())).into_iter().collect()
            }
            Action::Txn(branches) => {
                let judged = branches.guards.iter().map(|guard| before.satisfies(guard));
                let judged = judged.fold(
                    if branches.opaque { None } else { Some(true) },
                    |all, one| match (all, one) {
                        (Some(false), _) | (_, Some(false)) => Some(false),
                        (Some(true), Some(true)) => Some(true),
                        _ => None,
                    },
                );
                let mut states = Vec::new();
                for (branch, actions) in [(true, &branches.then), (false, &branches.otherwise)] {
                    let not = Some(!branch);
                    if judged != not && branches.succeeded != not {
                        states.extend(self.after_all(actions, before));
                    }
                }
                states
            }
        }
    }

    fn after_all(&self, actions: &[Action], before: &State) -> Vec<State> {
        actions.iter().fold(vec![self.clone()], |states, action| {
            states.iter().flat_map(|state| state.after(action, before)).collect()
        })
    }

    fn put(self, value: Option<Bytes>) -> State {
        match self {
            State::Any => State::Present { value, version: None },
            State::Absent => State::Present { value, version: Some(1) },
            State::Present { value: old, version } => {
                let version = version.map(|version| version + 1);
                State::Present { value: value.or(old), version }
            }
        }
    }
}

// === impl Search ===

enum Verdict {
    Found,
    Stuck { op: usize, state: State },
    GaveUp,
}

/// Calls and returns in order of time, as a ring of links from which placed operations are
/// lifted. Node 0 closes the ring. What stands before the first return may come next.
/// Operations that need not happen are not in the ring: they are tried after those that must.
struct Search<'o> {
    ops: &'o [&'o Projected],
    /// Operation of each node, and whether it is the call.
    nodes: Vec<(usize, bool)>,
    next: Vec<usize>,
    prev: Vec<usize>,
    /// Nodes of call and return of each operation; `None` if it need not happen.
    places: Vec<Option<[usize; 2]>>,
    /// Operations that need not happen, by call.
    optional: Vec<usize>,
    used: Vec<bool>,
    state: State,
    /// Which operations are placed, as the sum of their random names.
    done: u128,
    names: Vec<u128>,
    states: BTreeMap<State, u32>,
    tried: BTreeSet<(u128, u32)>,
    stack: Vec<Frame>,
}

/// A placed operation and what else could have been placed instead.
struct Frame {
    op: usize,
    state: State,
    /// Candidates after it, the next one last, each with its states not tried yet.
    others: Vec<usize>,
    choices: Vec<State>,
}

impl<'o> Search<'o> {
    fn new(ops: &'o [&'o Projected], must: impl Fn(&Projected) -> bool) -> Search<'o> {
        // (time, is it the return, operation): at equal times calls come first.
        let mut moments: Vec<(Time, bool, usize)> = Vec::new();
        let mut optional = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            if must(op) {
                moments.push((op.call, false, index));
                moments.push((op.over, true, index));
            } else {
                optional.push(index);
            }
        }
        moments.sort_unstable();
        let count = moments.len() + 1;
        let mut nodes = vec![(usize::MAX, false)];
        let mut places: Vec<Option<[usize; 2]>> = vec![None; ops.len()];
        for (at, (_, is_return, op)) in moments.iter().enumerate() {
            nodes.push((*op, !is_return));
            places[*op].get_or_insert([0, 0])[usize::from(*is_return)] = at + 1;
        }
        Search {
            ops,
            nodes,
            next: (0..count).map(|node| (node + 1) % count).collect(),
            prev: (0..count).map(|node| (node + count - 1) % count).collect(),
            places,
            optional,
            used: vec![false; ops.len()],
            state: State::Any,
            done: 0,
            names: (0..ops.len()).map(name).collect(),
            states: BTreeMap::new(),
            tried: BTreeSet::new(),
            stack: Vec::new(),
        }
    }

    fn run(mut self, state: State, steps_max: usize) -> Verdict {
        self.state = state;
        let mut furthest = 0;
        let mut stuck = (0, self.state.clone());
        for _ in 0..steps_max {
            let Some((candidates, blocked)) = self.candidates() else { return Verdict::Found };
            if self.place_one_of(candidates) {
                continue;
            }
            if self.stack.len() >= furthest {
                furthest = self.stack.len();
                stuck = (blocked, self.state.clone());
            }
            if !self.step_back() {
                return Verdict::Stuck { op: stuck.0, state: stuck.1 };
            }
        }
        Verdict::GaveUp
    }

    /// What may come next, the best guess last, and the operation whose return waits for it;
    /// `None` if nothing must come any more.
    fn candidates(&self) -> Option<(Vec<usize>, usize)> {
        let mut found = Vec::new();
        let mut node = self.next[0];
        while node != 0 && self.nodes[node].1 {
            found.push(self.nodes[node].0);
            node = self.next[node];
        }
        if node == 0 {
            return None;
        }
        let blocked = self.nodes[node].0;
        let unused = |op: &usize| !self.used[*op];
        // What never changes anything and fits may as well come now: it is in nobody's way.
        let idle = |op: &usize| {
            let action = &self.ops[*op].action;
            let fits = || self.state.after(action, &self.state) == [self.state.clone()];
            action.only_reads() && fits()
        };
        if let Some(op) = found.iter().copied().find(idle) {
            return Some((vec![op], blocked));
        }
        found.sort_by_key(|op| (self.ops[*op].hint, *op));
        let until = self.ops[blocked].over;
        let called = self.optional.iter().take_while(|op| self.ops[**op].call <= until);
        found.extend(called.copied().filter(unused));
        found.reverse();
        Some((found, blocked))
    }

    /// Places the last candidate that fits in a way not tried yet.
    fn place_one_of(&mut self, mut others: Vec<usize>) -> bool {
        while let Some(op) = others.pop() {
            let mut choices = self.state.after(&self.ops[op].action, &self.state);
            choices.reverse();
            if self.place(op, &mut choices) {
                // `place` pushed the frame without knowing what else there was.
                if let Some(frame) = self.stack.last_mut() {
                    (frame.others, frame.choices) = (others, choices);
                }
                return true;
            }
        }
        false
    }

    fn place(&mut self, op: usize, choices: &mut Vec<State>) -> bool {
        while let Some(state) = choices.pop() {
            let fresh = u32::try_from(self.states.len()).unwrap_or(u32::MAX);
            let number = *self.states.entry(state.clone()).or_insert(fresh);
            if !self.tried.insert((self.done ^ self.names[op], number)) {
                continue;
            }
            let state = std::mem::replace(&mut self.state, state);
            self.stack.push(Frame { op, state, others: Vec::new(), choices: Vec::new() });
            self.done ^= self.names[op];
            self.used[op] = true;
            for node in self.places[op].into_iter().flatten() {
                let (prev, next) = (self.prev[node], self.next[node]);
                self.next[prev] = next;
                self.prev[next] = prev;
            }
            return true;
        }
        false
    }

    /// Takes operations back until something else can be placed; `false` if nothing can.
    fn step_back(&mut self) -> bool {
        while let Some(mut frame) = self.stack.pop() {
            self.done ^= self.names[frame.op];
            self.state = frame.state;
            self.used[frame.op] = false;
            // In the reverse order of lifting.
            for node in self.places[frame.op].into_iter().flatten().rev() {
                let (prev, next) = (self.prev[node], self.next[node]);
                self.next[prev] = node;
                self.prev[next] = node;
            }
            if self.place(frame.op, &mut frame.choices) {
                if let Some(top) = self.stack.last_mut() {
                    (top.others, top.choices) = (frame.others, frame.choices);
                }
                return true;
            }
            if self.place_one_of(frame.others) {
                return true;
            }
        }
        false
    }
}

/// A number for an operation, such that sets of operations have different sums.
fn name(op: usize) -> u128 {
    fn mix(mut x: u64) -> u64 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    let seed = (op as u64).wrapping_mul(2).wrapping_add(1);
    let (high, low) = (mix(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)), mix(!seed));
    (u128::from(high) << 64) | u128::from(low)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            scribe::{Scribe, busy, bytes, delete, get, grant, leased, put, range, swap},
            witness,
        },
        *,
    };

    fn found(scribe: &Scribe) -> Report {
        check(&scribe.history, &Limits::default(), None)
    }

    fn shift(scribe: &mut Scribe, id: OpId, call: Time, end: Time) {
        let op = &mut scribe.history.operations[id.0];
        (op.call, op.end) = (call, Some(end));
    }

    #[test]
    fn overlapping_clients_are_linearizable() {
        for seed in 0..30 {
            let scribe = busy(seed, 300, 6, seed % 3);
            let report = found(&scribe);
            assert_eq!((report.violations, report.given_up), (Vec::new(), 0), "seed {seed}");
            assert!(report.keys == 8 && report.operations > 300);
        }
    }

    #[test]
    fn small_windows_start_in_any_state() {
        for seed in 0..30 {
            let scribe = busy(seed, 600, 6, seed % 3);
            let witnessed = witness::check(&scribe.history);
            for account in [None, Some(&witnessed)] {
                let limits = Limits { window: 17, steps: 200_000 };
                let report = check(&scribe.history, &limits, account);
                assert_eq!(report.violations, Vec::new(), "seed {seed}");
                assert!(report.windows > 30 && report.given_up == 0);
            }
        }
    }

    #[test]
    fn many_lost_answers_are_settled_by_the_witness() {
        let scribe = busy(3, 6000, 8, 10);
        let witnessed = witness::check(&scribe.history);
        let report = check(&scribe.history, &Limits::default(), Some(&witnessed));
        assert_eq!((report.violations, report.given_up), (Vec::new(), 0));
    }

    #[test]
    fn a_stale_read_is_caught() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        let read = scribe.ask(2, get("a"));
        scribe.ask(1, put("a", "2"));
        assert_eq!(found(&scribe).violations, Vec::new());
        shift(&mut scribe, read, 115, 200);
        assert_eq!(found(&scribe).violations, Vec::new());
        shift(&mut scribe, read, 130, 200);
        let violations = found(&scribe).violations;
        assert!(violations.len() == 1 && violations[0].stuck.starts_with("op 1"), "{violations:?}");
    }

    #[test]
    fn a_lost_write_is_caught() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        scribe.ask(1, put("a", "2"));
        let read = scribe.ask(2, get("a"));
        let Reply::Range(reply) = scribe.reply(read) else { unreachable!() };
        reply.kvs[0].value = bytes("1");
        reply.kvs[0].version = 1;
        assert_eq!(found(&scribe).violations.len(), 1);
    }

    #[test]
    fn a_version_of_a_write_done_twice_is_caught() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        let read = scribe.ask(2, get("a"));
        let Reply::Range(reply) = scribe.reply(read) else { unreachable!() };
        reply.kvs[0].version = 2;
        assert_eq!(found(&scribe).violations.len(), 1);
    }

    #[test]
    fn a_lost_answer_may_or_may_not_have_happened() {
        for done in [false, true] {
            let mut scribe = Scribe::new();
            scribe.ask(1, put("a", "1"));
            scribe.lose(2, put("a", "2"), done);
            scribe.ask(1, get("a"));
            assert_eq!(found(&scribe).violations, Vec::new());
        }
        // But once it was seen it cannot be undone.
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        scribe.lose(2, put("a", "2"), true);
        let first = scribe.ask(1, get("a"));
        let second = scribe.ask(1, get("a"));
        let Reply::Range(reply) = scribe.reply(second) else { unreachable!() };
        reply.kvs[0].value = bytes("1");
        reply.kvs[0].version = 1;
        assert_eq!(found(&scribe).violations.len(), 1);
        // Nor come before its call.
        shift(&mut scribe, OpId(1), 500, 509);
        scribe.history.operations.truncate(3);
        assert_eq!(found(&scribe).violations.len(), 1);
        let _ = first;
    }

    #[test]
    fn a_refused_write_that_is_seen_is_caught() {
        let mut scribe = Scribe::new();
        let id = scribe.ask(1, put("a", "1"));
        scribe.ask(1, get("a"));
        scribe.history.operations[id.0].outcome = Outcome::Refused(proto::Error::NoLeader);
        assert_eq!(found(&scribe).violations.len(), 1);
    }

    #[test]
    fn a_swap_that_should_have_failed_is_caught() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        let won = scribe.ask(1, swap("a", "1", "2"));
        scribe.ask(2, swap("a", "1", "3"));
        assert_eq!(found(&scribe).violations, Vec::new());
        // Two winners on the same value.
        let reply = scribe.reply(won).clone();
        *scribe.reply(OpId(2)) = reply;
        assert_eq!(found(&scribe).violations.len(), 1);
    }

    #[test]
    fn a_delete_of_nothing_is_caught() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        let first = scribe.ask(1, delete("a", ""));
        let second = scribe.ask(1, delete("a", ""));
        assert_eq!(found(&scribe).violations, Vec::new());
        let reply = scribe.reply(first).clone();
        *scribe.reply(second) = reply;
        assert_eq!(found(&scribe).violations.len(), 1);
    }

    #[test]
    fn a_range_reads_each_of_its_keys() {
        let mut scribe = Scribe::new();
        scribe.ask(1, put("a", "1"));
        scribe.ask(1, put("b", "2"));
        let read = scribe.ask(2, range("a", "z"));
        assert_eq!(found(&scribe).violations, Vec::new());
        let Reply::Range(reply) = scribe.reply(read) else { unreachable!() };
        reply.kvs.pop();
        let violations = found(&scribe).violations;
        assert!(violations.len() == 1 && violations[0].key == "b", "{violations:?}");
    }

    #[test]
    fn keys_on_leases_are_left_out() {
        let mut scribe = Scribe::new();
        scribe.ask(1, grant(1, 10));
        scribe.ask(1, leased("a", "1", 1));
        scribe.unasked(delete("a", ""));
        scribe.ask(1, get("a"));
        assert_eq!(found(&scribe).keys, 0);
    }

    #[test]
    fn agrees_with_the_witness_on_reads_made_wrong() {
        let mut wrong = 0;
        for seed in 0..40 {
            let mut scribe = busy(seed, 80, 5, 2);
            let reads: Vec<OpId> = scribe
                .history
                .ops()
                .filter(|(_, op)| matches!(op.reply(), Some(Reply::Range(r)) if r.kvs.len() == 1))
                .map(|(id, _)| id)
                .collect();
            let Some(read) = reads.last().copied() else { continue };
            let Reply::Range(reply) = scribe.reply(read) else { unreachable!() };
            reply.kvs[0].value = bytes("never written");
            assert!(!witness::check(&scribe.history).violations.is_empty());
            assert_eq!(found(&scribe).violations.len(), 1, "seed {seed}");
            wrong += 1;
        }
        assert!(wrong > 20, "{wrong}");
    }

    #[test]
    fn a_search_that_is_too_long_is_given_up_and_counted() {
        let scribe = busy(1, 300, 6, 0);
        let report = check(&scribe.history, &Limits { window: 1000, steps: 3 }, None);
        assert!(report.given_up > 0 && report.violations.is_empty());
    }
}
