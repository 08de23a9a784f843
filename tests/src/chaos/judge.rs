//! The verdict: the judges of [`crate::check`], and two questions asked without them.
//!
//! The judges walk the committed history by its revisions. Lest a defect of theirs hides a lost
//! write, the simplest question is asked on its own, and trusts no revision: does each node's own
//! account, a watch of everything from the beginning at the end of the run, show every
//! acknowledged write exactly once?

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;
use proto::etcd::request_op::Request as Op;
use proto::etcd::response_op::Response as Answer;
use proto::group::{Reply, Request};
use proto::mvccpb::event::EventType;

use crate::check::history::{Heard, History, Outcome, Time, WatchId};
use crate::check::words::{events_words, text};
use crate::check::{self, leases, linear};

/// Says everything that is wrong with a history at whose end all watches were waited for. `finals`
/// are the nodes' own accounts.
pub(super) fn judge(history: &History, finals: &[WatchId], end: Time) -> Vec<String> {
    let settings = check::Settings {
        // There are no leases in these runs.
        leases: leases::Bounds {
            second: 1_000_000,
            early: 0,
            late: 0,
            healthy_since: None,
            ended: end,
        },
        settled: true,
        linear: Some(linear::Limits::default()),
    };
    let report = check::run(history, &settings);
    let mut violations: Vec<String> =
        report.violations.iter().map(|violation| format!("{violation}")).collect();
    violations.extend(lost(history, finals));
    violations
}

/// Acknowledged writes that a node's own account does not show, or shows more than once.
fn lost(history: &History, finals: &[WatchId]) -> Vec<String> {
    let mut found = Vec::new();
    for id in finals {
        let mut shown: BTreeMap<Bytes, usize> = BTreeMap::new();
        let mut deleted: BTreeMap<(i64, Bytes), usize> = BTreeMap::new();
        for (_, heard) in &history.watches[id.0].heard {
            let Heard::Events { events, .. } = heard else { continue };
            for event in events {
                let Some(kv) = &event.kv else { continue };
                match event.r#type() {
                    EventType::Put => *shown.entry(kv.value.clone()).or_default() += 1,
                    EventType::Delete => {
                        *deleted.entry((kv.mod_revision, kv.key.clone())).or_default() += 1;
                    }
                }
            }
        }
        for (op, operation) in history.ops() {
            let Outcome::Done(reply) = &operation.outcome else { continue };
            for value in values(&operation.request, reply) {
                let times = shown.get(&value).copied().unwrap_or(0);
                if times != 1 {
                    let (op, value) = (history.tell(op), text(&value));
                    found.push(format!("{op}: {id} shows its {value} {times} times"));
                }
            }
            // Deletes look alike: here the revision must do.
            if let (Request::DeleteRange(request), Reply::DeleteRange(reply)) =
                (&operation.request, reply)
                && request.range_end.is_empty()
                && reply.deleted == 1
            {
                let name = (operation.revision().unwrap_or(0), request.key.clone());
                if deleted.get(&name) != Some(&1) {
                    found.push(format!("{}: {id} does not show it", history.tell(op)));
                }
            }
        }
    }
    found
}

/// The values that an answered request wrote.
fn values(request: &Request, reply: &Reply) -> Vec<Bytes> {
    match (request, reply) {
        (Request::Put(put), Reply::Put(_)) => vec![put.value.clone()],
        (Request::Txn(txn), Reply::Txn(answer)) => {
            let taken = if answer.succeeded { &txn.success } else { &txn.failure };
            let both = taken.iter().zip(&answer.responses);
            both.filter_map(|(op, answer)| match (&op.request, &answer.response) {
                (Some(Op::RequestPut(put)), Some(Answer::ResponsePut(_))) => {
                    Some(put.value.clone())
                }
                _ => None,
            })
            .collect()
        }
        _ => Vec::new(),
    }
}

/// Microseconds from each kill of a leader to the end of the first write that was sent after it
/// and acknowledged, ascending.
pub(super) fn gaps(history: &History, leader_kills: &[Time]) -> Vec<Time> {
    let wrote =
        |operation: &&check::history::Operation| match (&operation.request, &operation.outcome) {
            (request, Outcome::Done(reply)) => !values(request, reply).is_empty(),
            _ => false,
        };
    let writes: Vec<(Time, Time)> = history
        .operations
        .iter()
        .filter(wrote)
        .filter_map(|operation| Some((operation.call, operation.end?)))
        .collect();
    let gap = |killed: &Time| {
        let after = writes.iter().filter(|(call, _)| call >= killed);
        after.map(|(_, end)| end - killed).min()
    };
    let mut gaps: Vec<Time> = leader_kills.iter().filter_map(gap).collect();
    gaps.sort_unstable();
    gaps
}

/// The history for a person: every operation and every revision, a line each.
pub(super) fn text_of(history: &History) -> String {
    let mut text = String::new();
    for (op, _) in history.ops() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", history.tell(op));
    }
    for (revision, change) in &history.changes {
        let words = events_words(&change.events);
        let _ = writeln!(text, "revision {revision}, seen at {}: {words}", change.at);
    }
    text
}

#[cfg(test)]
mod tests {
    use proto::etcd::{DeleteRangeRequest, PutRequest, RangeRequest};

    use super::*;
    use crate::check::history::{OpId, WatchSpec};
    use crate::check::model::Model;

    fn put(key: &'static str, value: &'static str) -> Request {
        let (key, value) = (Bytes::from(key), Bytes::from(value));
        Request::Put(PutRequest { key, value, ..Default::default() })
    }

    fn delete(key: &'static str) -> Request {
        Request::DeleteRange(DeleteRangeRequest { key: Bytes::from(key), ..Default::default() })
    }

    fn get(key: &'static str) -> Request {
        Request::Range(RangeRequest { key: Bytes::from(key), ..Default::default() })
    }

    /// A run whose clients were all answered; the server then forgot the requests in `lost`
    /// (and counted on without them).
    fn run(lost: &[usize]) -> (History, WatchId) {
        let requests =
            [put("a", "1"), put("b", "2"), delete("a"), put("a", "3"), get("a"), put("b", "4")];
        let (mut told, mut kept) = (Model::new(), Model::new());
        let mut history = History::new();
        for (index, request) in requests.iter().enumerate() {
            let at = 10 * index as u64;
            let op = history.call(1, at, request.clone());
            let reply = told.apply(request).expect("the model does not refuse it");
            history.end(op, at + 9, Outcome::Done(reply));
            if !lost.contains(&index) {
                kept.apply(request).expect("the model does not refuse it");
            }
        }
        let watch = history.watch(9, 9, 100, WatchSpec::new(b"\0", b"\0", 1));
        history.hear(watch, 101, Heard::Created(kept.revision()));
        for (revision, events) in kept.changes() {
            history.committed(1, 102, *revision, events);
            let (revision, events) = (*revision, events.clone());
            history.hear(watch, 102, Heard::Events { revision, events, fragment: false });
        }
        (history, watch)
    }

    #[test]
    fn a_right_run_passes() {
        let (history, watch) = run(&[]);
        assert_eq!(judge(&history, &[watch], 200), Vec::<String>::new());
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_is_found_by_both() {
        for dropped in [0, 1, 2, 3, 5] {
            let (history, watch) = run(&[dropped]);
            assert!(!lost(&history, &[watch]).is_empty(), "{dropped}");
            let found = judge(&history, &[watch], 200);
            let about = history.tell(OpId(dropped));
            let others = found.len() - lost(&history, &[watch]).len();
            assert!(others > 0 && found.iter().any(|text| text.contains(&about)), "{found:#?}");
        }
    }

    #[test]
    fn a_write_done_twice_is_found() {
        let (mut history, watch) = run(&[]);
        let heard = history.watches[watch.0].heard.clone();
        history.watches[watch.0].heard.extend(heard.into_iter().skip(1));
        assert!(lost(&history, &[watch]).iter().any(|text| text.contains("2 times")));
    }

    #[test]
    fn a_gap_ends_with_a_write_sent_after_the_kill() {
        let (history, _) = run(&[]);
        // Of the operations at 0, 10, 20, 30, 40 and 50 those at 20 and 40 put nothing.
        assert_eq!(gaps(&history, &[11, 31, 51]), vec![28, 28]);
    }
}
