//! Requests and events in a few words, for sentences that a person reads.

use proto::{
    etcd::{
        Compare, PutRequest, RangeRequest, RequestOp, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request as Op,
    },
    group::Request,
    mvccpb::{Event, event::EventType},
};

use super::model::kv;

/// A key or value as text.
pub fn text(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    match bytes.get(..SHOWN) {
        Some(head) if bytes.len() > SHOWN => format!("{}...", head.escape_ascii()),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// An event in a few words.
pub fn event_words(event: &Event) -> String {
    let state = kv(event);
    let key = text(&state.key);
    match event.r#type() {
        EventType::Put => format!("put {key}={}@{}", text(&state.value), state.mod_revision),
        EventType::Delete => format!("delete {key}@{}", state.mod_revision),
    }
}

/// A list of events in a few words.
pub fn events_words(events: &[Event]) -> String {
    let words: Vec<String> = events.iter().map(event_words).collect();
    format!("[{}]", words.join(", "))
}

fn span(key: &[u8], range_end: &[u8]) -> String {
    if range_end.is_empty() { text(key) } else { format!("{}..{}", text(key), text(range_end)) }
}

fn range_words(range: &RangeRequest) -> String {
    let mut words = format!("range {}", span(&range.key, &range.range_end));
    if range.revision != 0 {
        words += &format!("@{}", range.revision);
    }
    if range.serializable {
        words += " serializable";
    }
    words
}

fn put_words(put: &PutRequest) -> String {
    let value = if put.ignore_value { "(same)".to_owned() } else { text(&put.value) };
    let lease = if put.lease == 0 { String::new() } else { format!(" lease {}", put.lease) };
    format!("put {}={value}{lease}", text(&put.key))
}

fn compare_words(compare: &Compare) -> String {
    let sign = match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => "=",
        Ok(CompareResult::NotEqual) => "!=",
        Ok(CompareResult::Greater) => ">",
        Ok(CompareResult::Less) => "<",
        Err(_) => "?",
    };
    let target = CompareTarget::try_from(compare.target).map_or("?", |target| target.as_str_name());
    let operand = match &compare.target_union {
        Some(TargetUnion::Value(value)) => text(value),
        Some(
            TargetUnion::Version(number)
            | TargetUnion::CreateRevision(number)
            | TargetUnion::ModRevision(number)
            | TargetUnion::Lease(number),
        ) => number.to_string(),
        None => "nothing".to_owned(),
    };
    format!("{target}({}){sign}{operand}", span(&compare.key, &compare.range_end))
}

fn txn_words(txn: &TxnRequest) -> String {
    let ops = |ops: &[RequestOp]| {
        let words: Vec<String> = ops
            .iter()
            .map(|op| match &op.request {
                Some(Op::RequestRange(range)) => range_words(range),
                Some(Op::RequestPut(put)) => put_words(put),
                Some(Op::RequestDeleteRange(delete)) => {
                    format!("delete {}", span(&delete.key, &delete.range_end))
                }
                Some(Op::RequestTxn(txn)) => txn_words(txn),
                None => "nothing".to_owned(),
            })
            .collect();
        words.join("; ")
    };
    let compares: Vec<String> = txn.compare.iter().map(compare_words).collect();
    let (then, otherwise) = (ops(&txn.success), ops(&txn.failure));
    format!("txn if {} then {{{then}}} else {{{otherwise}}}", compares.join(" and "))
}

/// A request in a few words.
pub fn request_words(request: &Request) -> String {
    match request {
        Request::Range(range) => range_words(range),
        Request::Put(put) => put_words(put),
        Request::DeleteRange(delete) => format!("delete {}", span(&delete.key, &delete.range_end)),
        Request::Txn(txn) => txn_words(txn),
        Request::Compact(compact) => format!("compact {}", compact.revision),
        Request::LeaseGrant(grant) => format!("grant lease {} ttl {}", grant.id, grant.ttl),
        Request::LeaseRevoke(revoke) => format!("revoke lease {}", revoke.id),
        Request::LeaseKeepAlive(keep) => format!("keep lease {} alive", keep.id),
        Request::LeaseTimeToLive(ask) => format!("time to live of lease {}", ask.id),
        Request::LeaseLeases(_) => "list leases".to_owned(),
        Request::HashKv(ask) => format!("hash at {}", ask.revision),
        Request::Linearize(_) => "linearize".to_owned(),
        other => format!("{other:?}"),
    }
}
