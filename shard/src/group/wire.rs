//! Raft's messages as ours and back: fields are moved, never the bytes of values copied, and
//! what a peer sent is never read by raft-rs's own decoder.

use bytes::{BufMut, Bytes, BytesMut};
use proto::cluster::raft as wire;
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

use crate::log;

/// Message kinds by their number on the wire (raft-rs's own ordinals).
const KINDS: [MessageType; 19] = [
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn entry_type(kind: u32) -> EntryType {
    match kind {
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => EntryType::EntryNormal,
    }
}

/// A configuration as it travels and is stored.
pub fn conf_to_wire(conf: &ConfState) -> wire::ConfState {
    wire::ConfState {
        voters: conf.voters.clone(),
        learners: conf.learners.clone(),
        voters_outgoing: conf.voters_outgoing.clone(),
        learners_next: conf.learners_next.clone(),
        auto_leave: conf.auto_leave,
    }
}

/// The other way.
#[allow(clippy::field_reassign_with_default, reason = "raft-rs's messages are built so")]
pub fn conf_from_wire(conf: &wire::ConfState) -> ConfState {
    let mut out = ConfState::default();
    out.voters = conf.voters.clone();
    out.learners = conf.learners.clone();
    out.voters_outgoing = conf.voters_outgoing.clone();
    out.learners_next = conf.learners_next.clone();
    out.auto_leave = conf.auto_leave;
    out
}

/// Does a candidate ask for a vote, or whether it would get one?
pub fn asks_for_vote(message: &wire::Message) -> bool {
    let kind = KINDS.get(message.kind as usize);
    matches!(kind, Some(MessageType::MsgRequestVote | MessageType::MsgRequestPreVote))
}

/// A message for a peer.
pub fn to_wire(mut message: Message) -> wire::Message {
    let snapshot = message.snapshot.take().map(|snapshot| wire::SnapshotMeta {
        index: snapshot.get_metadata().index,
        term: snapshot.get_metadata().term,
        conf_state: Some(conf_to_wire(snapshot.get_metadata().get_conf_state())),
        data: Bytes::new(),
    });
    wire::Message {
        kind: message.get_msg_type() as u32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        commit: message.commit,
        commit_term: message.commit_term,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        priority: if message.deprecated_priority != 0 {
            message.deprecated_priority as i64
        } else {
            message.priority
        },
        entries: message.take_entries().into_iter().map(entry_to_wire).collect(),
        context: message.context,
        snapshot,
    }
}

fn entry_to_wire(entry: Entry) -> wire::Entry {
    wire::Entry {
        kind: entry.get_entry_type() as u32,
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
    }
}

/// A message from a peer; `None` if it is of a kind that peers do not send.
pub fn from_wire(message: wire::Message) -> Option<Message> {
    let kind = *KINDS.get(message.kind as usize)?;
    if raft::raw_node::is_local_msg(kind) || kind == MessageType::MsgPropose {
        return None;
    }
    let mut out = Message::default();
    out.set_msg_type(kind);
    out.to = message.to;
    out.from = message.from;
    out.term = message.term;
    out.log_term = message.log_term;
    out.index = message.index;
    out.commit = message.commit;
    out.commit_term = message.commit_term;
    out.request_snapshot = message.request_snapshot;
    out.reject = message.reject;
    out.reject_hint = message.reject_hint;
    out.priority = message.priority;
    let entries: Vec<Entry> = message
        .entries
        .into_iter()
        .map(|entry| {
            let mut to = Entry::default();
            to.set_entry_type(entry_type(entry.kind));
            to.term = entry.term;
            to.index = entry.index;
            to.data = entry.data;
            to.context = entry.context;
            to
        })
        .collect();
    out.set_entries(entries.into());
    out.context = message.context;
    if let Some(meta) = message.snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = meta.index;
        snapshot.mut_metadata().term = meta.term;
        let conf = meta.conf_state.unwrap_or_default();
        snapshot.mut_metadata().set_conf_state(conf_from_wire(&conf));
        out.set_snapshot(snapshot);
    }
    Some(out)
}

/// Data and context of an entry as one body for the log. Only configuration entries have a
/// context; the last four bytes say how long it is.
pub fn join_body(entry: &Entry) -> Bytes {
    if entry.get_entry_type() == EntryType::EntryNormal {
        return entry.data.clone();
    }
    let mut out = BytesMut::with_capacity(entry.data.len() + entry.context.len() + 4);
    out.put_slice(&entry.data);
    out.put_slice(&entry.context);
    out.put_u32(entry.context.len() as u32);
    // A normal entry has no such tail: the kind of the entry says which it is.
    out.freeze()
}

/// An entry for the log.
pub fn to_log(entry: &Entry) -> log::Entry {
    let entry_type = entry.get_entry_type() as u8;
    log::Entry { term: entry.term, entry_type, data: join_body(entry) }
}

/// Takes a configuration entry's body apart again.
pub fn split_tail(body: Bytes) -> (Bytes, Bytes) {
    let Some((rest, tail)) = body.split_last_chunk::<4>() else { return (body, Bytes::new()) };
    let context = u32::from_be_bytes(*tail) as usize;
    let Some(cut) = rest.len().checked_sub(context) else { return (body, Bytes::new()) };
    (body.slice(..cut), body.slice(cut..rest.len()))
}
