//! How answers are compared: field by field, so that a sentence can name the field.

use std::fmt;

use proto::{
    etcd::{
        self, DeleteRangeResponse, RangeResponse, ResponseHeader, response_op::Response as Answer,
    },
    group::Reply,
};

/// The header of an answer.
pub fn reply_header(reply: &Reply) -> Option<&ResponseHeader> {
    match reply {
        Reply::Range(reply) => reply.header.as_ref(),
        Reply::Put(reply) => reply.header.as_ref(),
        Reply::DeleteRange(reply) => reply.header.as_ref(),
        Reply::Txn(reply) => reply.header.as_ref(),
        Reply::Compact(reply) => reply.header.as_ref(),
        Reply::LeaseGrant(reply) => reply.header.as_ref(),
        Reply::LeaseRevoke(reply) => reply.header.as_ref(),
        Reply::LeaseKeepAlive(reply) => reply.header.as_ref(),
        Reply::LeaseTimeToLive(reply) => reply.header.as_ref(),
        Reply::LeaseLeases(reply) => reply.header.as_ref(),
        Reply::Alarm(reply) => reply.header.as_ref(),
        Reply::HashKv(reply) => reply.header.as_ref(),
        Reply::Linearize(header) | Reply::Done(header) => Some(header),
        Reply::Describe(reply) => reply.header.as_ref(),
        Reply::Members(reply) => reply.header.as_ref(),
        Reply::MemberAdd(reply) => reply.header.as_ref(),
        Reply::Span(reply) => reply.header.as_ref(),
        Reply::Ranges(_) | Reply::Refusal(_) => None,
    }
}

/// The first place where two answers of the state machine differ, as `path: expected x, got
/// y`. Of the outer header only the revision counts: ids and term are the answerer's own.
pub fn difference(expected: &Reply, got: &Reply) -> Option<String> {
    fn revision(reply: &Reply) -> Option<i64> {
        reply_header(reply).map(|header| header.revision)
    }
    differ("header.revision", &revision(expected), &revision(got)).or_else(|| {
        match (expected, got) {
            (Reply::Range(a), Reply::Range(b)) => range_difference("", a, b),
            (Reply::Put(a), Reply::Put(b)) => differ("prev_kv", &a.prev_kv, &b.prev_kv),
            (Reply::DeleteRange(a), Reply::DeleteRange(b)) => delete_difference("", a, b),
            (Reply::Txn(a), Reply::Txn(b)) => txn_difference("", a, b),
            (a, b) => {
                let (a, b) = (std::mem::discriminant(a), std::mem::discriminant(b));
                (a != b).then(|| "kind of answer".to_owned())
            }
        }
    })
}

fn differ<T: fmt::Debug + PartialEq>(path: &str, expected: &T, got: &T) -> Option<String> {
    (expected != got).then(|| format!("{path}: expected {expected:?}, got {got:?}"))
}

fn list_difference<T: fmt::Debug + PartialEq>(path: &str, a: &[T], b: &[T]) -> Option<String> {
    let first = a.iter().zip(b).enumerate().find(|(_, (a, b))| a != b);
    first
        .map(|(at, (a, b))| format!("{path}[{at}]: expected {a:?}, got {b:?}"))
        .or_else(|| differ(&format!("{path} (how many)"), &a.len(), &b.len()))
}

fn range_difference(path: &str, a: &RangeResponse, b: &RangeResponse) -> Option<String> {
    differ(&format!("{path}count"), &a.count, &b.count)
        .or_else(|| list_difference(&format!("{path}kvs"), &a.kvs, &b.kvs))
        .or_else(|| differ(&format!("{path}more"), &a.more, &b.more))
}

fn delete_difference(
    path: &str,
    a: &DeleteRangeResponse,
    b: &DeleteRangeResponse,
) -> Option<String> {
    differ(&format!("{path}deleted"), &a.deleted, &b.deleted)
        .or_else(|| list_difference(&format!("{path}prev_kvs"), &a.prev_kvs, &b.prev_kvs))
}

fn txn_difference(path: &str, a: &etcd::TxnResponse, b: &etcd::TxnResponse) -> Option<String> {
    differ(&format!("{path}succeeded"), &a.succeeded, &b.succeeded)
        .or_else(|| {
            let (a, b) = (a.responses.len(), b.responses.len());
            differ(&format!("{path}responses (how many)"), &a, &b)
        })
        .or_else(|| {
            a.responses.iter().zip(&b.responses).enumerate().find_map(|(index, (a, b))| {
                let path = format!("{path}responses[{index}].");
                answer_difference(&path, a.response.as_ref(), b.response.as_ref())
            })
        })
}

fn answer_difference(path: &str, a: Option<&Answer>, b: Option<&Answer>) -> Option<String> {
    // Inside a transaction a header tells the revision and nothing else.
    let head = |a: &Option<ResponseHeader>, b: &Option<ResponseHeader>| {
        differ(&format!("{path}header"), a, b)
    };
    match (a, b) {
        (Some(Answer::ResponseRange(a)), Some(Answer::ResponseRange(b))) => {
            head(&a.header, &b.header).or_else(|| range_difference(path, a, b))
        }
        (Some(Answer::ResponsePut(a)), Some(Answer::ResponsePut(b))) => head(&a.header, &b.header)
            .or_else(|| differ(&format!("{path}prev_kv"), &a.prev_kv, &b.prev_kv)),
        (Some(Answer::ResponseDeleteRange(a)), Some(Answer::ResponseDeleteRange(b))) => {
            head(&a.header, &b.header).or_else(|| delete_difference(path, a, b))
        }
        (Some(Answer::ResponseTxn(a)), Some(Answer::ResponseTxn(b))) => {
            head(&a.header, &b.header).or_else(|| txn_difference(path, a, b))
        }
        (None, None) => None,
        _ => Some(format!("{path}kind of answer")),
    }
}
