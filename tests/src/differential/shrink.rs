//! Makes a script that shows a difference as short as it gets: steps are dropped, in ever
//! smaller groups, as long as the rest still shows one; then the lists inside transactions.

use std::time::Instant;

use proto::etcd::TxnRequest;
use proto::etcd::request_op::Request;

use super::op::Op;

/// Returns a short script for which `differs` still holds, trying until `deadline`.
pub async fn shrink(
    mut ops: Vec<Op>,
    deadline: Instant,
    mut differs: impl AsyncFnMut(Vec<Op>) -> bool,
) -> Vec<Op> {
    let mut group = ops.len().div_ceil(2);
    while group > 0 && Instant::now() < deadline {
        let mut dropped = false;
        // From the end: what follows the difference goes first.
        let mut at = ops.len();
        while at > 0 && Instant::now() < deadline {
            let from = at.saturating_sub(group);
            let mut fewer = ops.clone();
            fewer.drain(from..at);
            if !fewer.is_empty() && differs(fewer.clone()).await {
                ops = fewer;
                dropped = true;
            }
            at = from.min(ops.len());
        }
        if group > 1 {
            group = group.div_ceil(2);
        } else if !dropped {
            break;
        }
    }
    while Instant::now() < deadline {
        let mut simpler = None;
        'search: for (at, op) in ops.iter().enumerate() {
            let Op::Txn(txn) = op else { continue };
            for less in shorter(txn) {
                let mut attempt = ops.clone();
                attempt[at] = Op::Txn(less);
                if Instant::now() < deadline && differs(attempt.clone()).await {
                    simpler = Some(attempt);
                    break 'search;
                }
            }
        }
        match simpler {
            Some(attempt) => ops = attempt,
            None => break,
        }
    }
    ops
}

/// Returns the transaction with one compare or one operation less, for each of them.
fn shorter(txn: &TxnRequest) -> Vec<TxnRequest> {
    let mut all = Vec::new();
    for at in 0..txn.compare.len() {
        let mut less = txn.clone();
        less.compare.remove(at);
        all.push(less);
    }
    let branches: [fn(&mut TxnRequest) -> &mut Vec<_>; 2] =
        [|txn| &mut txn.success, |txn| &mut txn.failure];
    for branch in branches {
        let ops = branch(&mut txn.clone()).clone();
        for (at, op) in ops.iter().enumerate() {
            let mut less = txn.clone();
            branch(&mut less).remove(at);
            all.push(less);
            if let Some(Request::RequestTxn(inner)) = &op.request {
                for inner in shorter(inner) {
                    let mut less = txn.clone();
                    branch(&mut less)[at].request = Some(Request::RequestTxn(inner));
                    all.push(less);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn only_the_steps_that_matter_are_left() {
        let ops: Vec<Op> = (0..13).map(|target| Op::MoveLeader { target }).collect();
        let targets = |ops: &[Op]| -> Vec<u64> {
            let target = |op: &Op| if let Op::MoveLeader { target } = op { *target } else { 99 };
            ops.iter().map(target).collect()
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let small = shrink(ops, deadline, async |ops| {
            let targets = targets(&ops);
            targets.contains(&3) && targets.contains(&8)
        })
        .await;
        assert_eq!(targets(&small), [3, 8]);
    }
}
