//! What a server answered to one step, and the comparison of two such answers.

use bytes::Bytes;
use proto::etcd::range_request::{SortOrder, SortTarget};
use proto::etcd::request_op::Request;
use proto::etcd::response_op::Response;
use proto::{etcd, mvccpb, v3electionpb, v3lockpb};
use tonic::{Code, Status};

use super::exception::Exception;
use super::names::{Mask, Names};
use super::op::Op;

/// Seconds by which two servers may differ about a remaining TTL.
const TTL_TOLERANCE_S: i64 = 2;

macro_rules! answers {
    ($($variant:ident($message:path)),* $(,)?) => {
        /// A server's answer.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Answer {
            /// A gRPC error.
            Failed { code: Code, text: String },
            /// Nothing came in time.
            Silent,
            /// The step has no answer, or could not be taken.
            Nothing,
            /// Several answers on one stream.
            Many(Vec<Answer>),
            /// Only the code counts.
            Code(Code),
            $($variant($message)),*
        }

        $(impl From<$message> for Answer {
            fn from(message: $message) -> Self {
                Self::$variant(message)
            }
        })*

        impl Answer {
            /// Returns its header, if it has one.
            pub fn header(&self) -> Option<&etcd::ResponseHeader> {
                match self {
                    $(Self::$variant(message) => message.header.as_ref(),)*
                    Self::Many(answers) => answers.last()?.header(),
                    Self::Failed { .. } | Self::Silent | Self::Nothing | Self::Code(_) => None,
                }
            }
        }

        impl Mask for Answer {
            fn mask(&mut self, names: &Names) {
                match self {
                    $(Self::$variant(message) => message.mask(names),)*
                    Self::Many(answers) => answers.mask(names),
                    Self::Failed { .. } | Self::Silent | Self::Nothing | Self::Code(_) => {}
                }
            }
        }
    };
}

answers! {
    Range(etcd::RangeResponse),
    Put(etcd::PutResponse),
    DeleteRange(etcd::DeleteRangeResponse),
    Txn(etcd::TxnResponse),
    Compact(etcd::CompactionResponse),
    Grant(etcd::LeaseGrantResponse),
    Revoke(etcd::LeaseRevokeResponse),
    TimeToLive(etcd::LeaseTimeToLiveResponse),
    KeepAlive(etcd::LeaseKeepAliveResponse),
    Leases(etcd::LeaseLeasesResponse),
    Watch(etcd::WatchResponse),
    Alarm(etcd::AlarmResponse),
    Status(etcd::StatusResponse),
    Members(etcd::MemberListResponse),
    Hash(etcd::HashResponse),
    HashKv(etcd::HashKvResponse),
    MoveLeader(etcd::MoveLeaderResponse),
    Downgrade(etcd::DowngradeResponse),
    Defragment(etcd::DefragmentResponse),
    AuthStatus(etcd::AuthStatusResponse),
    Lock(v3lockpb::LockResponse),
    Unlock(v3lockpb::UnlockResponse),
    Campaign(v3electionpb::CampaignResponse),
    Proclaim(v3electionpb::ProclaimResponse),
    Leader(v3electionpb::LeaderResponse),
    Resign(v3electionpb::ResignResponse),
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self::Failed { code: status.code(), text: status.message().to_owned() }
    }
}

impl<T: Into<Answer>> From<Result<tonic::Response<T>, Status>> for Answer {
    fn from(result: Result<tonic::Response<T>, Status>) -> Self {
        match result {
            Ok(response) => response.into_inner().into(),
            Err(status) => status.into(),
        }
    }
}

impl Answer {
    /// Returns the answer that leaves of `self` only its code.
    pub fn code_only(self) -> Self {
        Exception::DecodeText.used();
        Self::Code(match self {
            Self::Failed { code, .. } => code,
            Self::Silent => Code::DeadlineExceeded,
            _ => Code::Ok,
        })
    }

    /// Says whether the server could not be reached, or says so itself.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Failed { code: Code::Unavailable | Code::Unknown, .. } | Self::Silent)
    }
}

/// Takes out of two masked answers to `op` what may differ; what is left must be equal.
pub fn reconcile(op: &Op, one: &mut Answer, other: &mut Answer) {
    match (op, one, other) {
        (Op::Range(request), Answer::Range(one), Answer::Range(other)) => {
            reconcile_range(request, one, other);
        }
        (Op::Txn(request), Answer::Txn(one), Answer::Txn(other)) => {
            reconcile_txn(request, one, other);
        }
        // etcd remembers the hashes that its last compactions made and answers from them.
        (
            Op::HashKv(_),
            one @ Answer::Failed { code: Code::OutOfRange, .. },
            other @ Answer::HashKv(_),
        ) => {
            Exception::HashAtCompaction.used();
            *one = Answer::Nothing;
            *other = Answer::Nothing;
        }
        // Asked for the newest (0), it takes the one of a compaction at revision 0 for it.
        (Op::HashKv(request), Answer::HashKv(one), Answer::HashKv(other))
            if request.revision == 0 && other.hash_revision == 0 =>
        {
            Exception::HashAtCompaction.used();
            *other = *one;
        }
        // Random bytes may name a known field with another wire type.
        (
            Op::Raw { why: "noise", .. },
            one @ Answer::Code(Code::Internal),
            other @ Answer::Code(Code::Ok),
        ) => {
            Exception::WireType.used();
            *one = Answer::Nothing;
            *other = Answer::Nothing;
        }
        (Op::TimeToLive(_), Answer::TimeToLive(one), Answer::TimeToLive(other)) => {
            Exception::LeaseKeyOrder.used();
            one.keys.sort();
            other.keys.sort();
            let near = (one.ttl - other.ttl).abs() <= TTL_TOLERANCE_S;
            if near && one.ttl > 0 && other.ttl > 0 {
                Exception::RemainingTtl.used();
                other.ttl = one.ttl;
            }
        }
        (Op::HashKv(_), Answer::HashKv(one), Answer::HashKv(other)) => {
            let newest = one.compact_revision.max(other.compact_revision);
            if one.compact_revision != other.compact_revision && newest == one.hash_revision {
                Exception::HashAtCompaction.used();
                other.compact_revision = one.compact_revision;
            }
        }
        _ => {}
    }
}

fn reconcile_txn(
    request: &etcd::TxnRequest,
    one: &mut etcd::TxnResponse,
    other: &mut etcd::TxnResponse,
) {
    let ops = if one.succeeded { &request.success } else { &request.failure };
    for ((op, one), other) in ops.iter().zip(&mut one.responses).zip(&mut other.responses) {
        match (&op.request, &mut one.response, &mut other.response) {
            (
                Some(Request::RequestRange(request)),
                Some(Response::ResponseRange(one)),
                Some(Response::ResponseRange(other)),
            ) => reconcile_range(request, one, other),
            (
                Some(Request::RequestTxn(request)),
                Some(Response::ResponseTxn(one)),
                Some(Response::ResponseTxn(other)),
            ) => reconcile_txn(request, one, other),
            _ => {}
        }
    }
}

/// Puts pairs of equal sort value into key order, and forgets which of them a limit kept.
fn reconcile_range(
    request: &etcd::RangeRequest,
    one: &mut etcd::RangeResponse,
    other: &mut etcd::RangeResponse,
) {
    let Some(sort_value) = sort_value(request) else { return };
    if one.kvs.len() != other.kvs.len() || one.more != other.more {
        return;
    }
    // The last run of equal values may be cut by the limit; of it only the values count.
    let cut = if one.more { one.kvs.last().map(&sort_value) } else { None };
    for kvs in [&mut one.kvs, &mut other.kvs] {
        for run in kvs.chunk_by_mut(|a, b| sort_value(a) == sort_value(b)) {
            run.sort_by(|a, b| a.key.cmp(&b.key));
        }
    }
    let Some(cut) = cut else { return };
    for (one, other) in one.kvs.iter().zip(&mut other.kvs) {
        let both = sort_value(one) == cut && sort_value(other) == cut;
        if both && one.key != other.key {
            Exception::TieOrder.used();
            *other = one.clone();
        }
    }
}

/// Returns what a range is sorted by, unless keys decide, which are never equal.
fn sort_value(request: &etcd::RangeRequest) -> Option<impl Fn(&mvccpb::KeyValue) -> (i64, Bytes)> {
    let target = SortTarget::try_from(request.sort_target).ok()?;
    SortOrder::try_from(request.sort_order).ok()?;
    if target == SortTarget::Key {
        return None;
    }
    // Values that keys_only leaves out cannot tell ties apart: all may be one.
    let values_unseen = request.keys_only && target == SortTarget::Value;
    Some(move |kv: &mvccpb::KeyValue| match target {
        SortTarget::Version => (kv.version, Bytes::new()),
        SortTarget::Create => (kv.create_revision, Bytes::new()),
        SortTarget::Mod => (kv.mod_revision, Bytes::new()),
        SortTarget::Value if !values_unseen => (0, kv.value.clone()),
        SortTarget::Value | SortTarget::Key => (0, Bytes::new()),
    })
}

/// Longest line of a printed answer.
const LINE_MAX: usize = 240;
/// Most lines of a printed answer or step.
const LINES_MAX: usize = 400;

/// Prints a value over several lines, neither too many nor too long to read.
pub fn show(value: &(impl std::fmt::Debug + ?Sized)) -> String {
    let text = format!("{value:#?}");
    let mut short = String::with_capacity(text.len().min(64 * 1024));
    let lines = text.lines().count();
    for line in text.lines().take(LINES_MAX) {
        match line.char_indices().nth(LINE_MAX) {
            Some((at, _)) => {
                short.push_str(&line[..at]);
                short.push_str(&format!("… ({} bytes)", line.len()));
            }
            None => short.push_str(line),
        }
        short.push('\n');
    }
    if lines > LINES_MAX {
        short.push_str(&format!("… ({lines} lines)\n"));
    }
    short
}

/// Prints two texts below each other, marking the lines that only one has.
pub fn side_by_side(one: &str, other: &str) -> String {
    let one_lines: Vec<&str> = one.lines().collect();
    let other_lines: Vec<&str> = other.lines().collect();
    let head = one_lines.iter().zip(&other_lines).take_while(|(a, b)| a == b).count();
    let rest = one_lines.len().min(other_lines.len()) - head;
    let tail = (0..rest)
        .take_while(|i| {
            one_lines[one_lines.len() - 1 - i] == other_lines[other_lines.len() - 1 - i]
        })
        .count();
    let mut text = String::new();
    let mut push = |mark: &str, lines: &[&str]| {
        for line in lines {
            text.push_str(&format!("{mark} {line}\n"));
        }
    };
    push("     ", &one_lines[..head]);
    push("atoll", &one_lines[head..one_lines.len() - tail]);
    push("etcd ", &other_lines[head..other_lines.len() - tail]);
    push("     ", &one_lines[one_lines.len() - tail..]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str, version: i64) -> mvccpb::KeyValue {
        mvccpb::KeyValue { key: key.into(), version, ..Default::default() }
    }

    fn sorted_by_version(keys: [(&'static str, i64); 3], more: bool) -> Answer {
        let kvs = keys.map(|(key, version)| kv(key, version)).to_vec();
        Answer::Range(etcd::RangeResponse { kvs, more, ..Default::default() })
    }

    #[test]
    fn ties_may_come_in_any_order_and_nothing_else() {
        let op = Op::Range(etcd::RangeRequest { sort_target: 1, ..Default::default() });
        let check = |mut one: Answer, mut other: Answer| {
            reconcile(&op, &mut one, &mut other);
            one == other
        };
        let base = sorted_by_version([("a", 1), ("b", 1), ("c", 2)], false);
        assert!(check(base.clone(), sorted_by_version([("b", 1), ("a", 1), ("c", 2)], false)));
        assert!(!check(base.clone(), sorted_by_version([("c", 2), ("a", 1), ("b", 1)], false)));
        assert!(!check(base, sorted_by_version([("a", 1), ("b", 1), ("d", 2)], false)));
        let cut = sorted_by_version([("a", 1), ("b", 2), ("c", 2)], true);
        assert!(check(cut.clone(), sorted_by_version([("a", 1), ("c", 2), ("d", 2)], true)));
        assert!(!check(cut, sorted_by_version([("x", 1), ("b", 2), ("c", 2)], true)));
    }

    #[test]
    fn a_printed_difference_marks_the_lines_that_differ() {
        assert_eq!(side_by_side("a\nb\nc", "a\nx\nc"), "      a\natoll b\netcd  x\n      c\n");
    }
}
