//! Raft without I/O: inputs in, outputs out, time as ticks, randomness as a seed.
//!
//! The core wraps raft-rs's `RawNode` in its asynchronous mode. The caller's duties, each
//! round: step what came in, [`Core::take`], write the records it was given, send the
//! messages, apply the committed entries; when the records are durable, [`Core::persisted`].
//!
//! What may leave when (design: groups):
//! - Votes and acknowledgements wait until what they promise is durable.
//! - A leader's appends and heartbeats leave at once, unless a change of term or vote is not
//!   durable yet: then nothing leaves before it is. (A sole voter is leader before its term
//!   is written; without this rule a crash could show one term with two contents.)
//!
//! That an entry is committed is written down when the next one comes, and needs no write of its
//! own: after a restart a quorum finds it out again. Who is a quorum the configuration says, so a
//! change of it is written down as committed by itself. Else it could be the log's last entry, and
//! who restarts would wait for a majority of the members of before, for ever if that was lost since.
//!
//! Invariants:
//! - Readies are persisted in order; `waiting` is ascending.
//! - The same inputs and seed give the same outputs, byte for byte.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState,
    Message, MessageType, Snapshot,
};
use raft::{Config, ProgressState, RawNode, ReadState, StateRole};

use super::storage::GroupStorage;
use super::wire;
use crate::log::{self, Record, ReplicaKey};

/// Bytes that one append may carry.
const MAX_APPEND_BYTES: u64 = 1024 * 1024;
/// Appends that may be on their way to one follower.
const MAX_INFLIGHT: usize = 256;
/// Bytes that a leader takes before they are committed.
const MAX_UNCOMMITTED_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes handed out for apply at a time.
const MAX_COMMITTED_BYTES: u64 = 8 * 1024 * 1024;

/// How many election timeouts a replica that rests waits more.
const REST_FACTOR: usize = 4;
/// Terms that a recovery is above the newest that the replica knows: others went on electing.
const RECOVERY_TERMS: u64 = 1 << 20;

/// Number of a write to the log, ascending over the node's life.
pub type PersistId = u64;

struct Waiting {
    number: u64,
    /// The write it is part of; `None` if it had nothing to write.
    persist: Option<PersistId>,
    /// Last entry it handed out.
    last: Option<u64>,
    messages: Vec<Message>,
}

/// What a round gave.
#[derive(Default)]
pub struct Output {
    /// To be sent now.
    pub messages: Vec<Message>,
    /// To be applied now.
    pub committed: Vec<Entry>,
    /// Reads that are confirmed once their index is applied.
    pub reads: Vec<ReadState>,
    /// To be installed once durable.
    pub snapshot: Option<Snapshot>,
    /// Leader, role or term changed.
    pub role_changed: bool,
}

/// A replica in whose group nothing is under way.
pub struct AtRest {
    /// Last index, which is committed, applied and durable.
    pub commit: u64,
    /// The leader, which may be this replica.
    pub leader: u64,
    /// Ticks since the leader was heard, or since a leader counted its followers' answers.
    pub elapsed: usize,
    /// A leader's followers, and who has answered since then.
    pub peers: Vec<(u64, bool)>,
}

/// See the module.
pub struct Core {
    raw: RawNode<GroupStorage>,
    key: ReplicaKey,
    seed: u64,
    election_ticks: usize,
    ticks: u64,
    /// Had better not lead.
    rests: bool,
    waiting: VecDeque<Waiting>,
    /// Nothing leaves until this write is durable.
    barrier: Option<PersistId>,
    /// A leader's messages held back by the barrier.
    held: Vec<Message>,
    term_vote: (u64, u64),
    /// Ticks for which a snapshot was sought, and the term in which it was last asked for.
    sought_ticks: u64,
    asked_term: u64,
}

/// Who seeks a snapshot takes no entries for the last quarter of so many ticks.
const SEEK_TICKS: u64 = 16;

/// Mixes numbers into one (splitmix64's finisher): stands in for randomness.
pub fn mix(numbers: &[u64]) -> u64 {
    let mut z = 0x9e37_79b9_7f4a_7c15u64;
    for number in numbers {
        z = (z ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    z
}

impl Core {
    /// Opens a replica over its storage. `applied` is the machine's index; after
    /// `election_ticks` to twice that without a leader the replica campaigns.
    pub fn open(
        key: ReplicaKey,
        storage: GroupStorage,
        applied: u64,
        election_ticks: usize,
        seed: u64,
    ) -> Core {
        let config = Config {
            id: key.replica,
            election_tick: election_ticks,
            heartbeat_tick: 1,
            // Replicas that had better not lead wait longer.
            max_election_tick: (REST_FACTOR + 2) * election_ticks,
            applied,
            max_size_per_msg: MAX_APPEND_BYTES,
            max_inflight_msgs: MAX_INFLIGHT,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MAX_COMMITTED_BYTES,
            ..Default::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, storage, &logger)
            .expect("a storage whose log reaches the applied index opens");
        let term_vote = (raw.raft.term, raw.raft.vote);
        let mut core = Core {
            raw,
            key,
            seed,
            election_ticks,
            ticks: 0,
            rests: false,
            waiting: VecDeque::new(),
            barrier: None,
            held: Vec::new(),
            term_vote,
            sought_ticks: 0,
            asked_term: 0,
        };
        core.derandomize();
        core
    }

    /// raft-rs draws election timeouts from the thread's generator; replace them by ours.
    fn derandomize(&mut self) {
        let role = self.raw.raft.state as u64;
        let bucket = self.ticks / (4 * self.election_ticks as u64);
        // Of each group, so that not all groups of a node stand for election at one tick.
        let key = self.key;
        let drawn = mix(&[self.seed, key.group, key.replica, self.raw.raft.term, role, bucket]);
        let rest = if self.rests { REST_FACTOR * self.election_ticks } else { 0 };
        let drawn = (drawn % self.election_ticks as u64) as usize;
        let timeout = self.election_ticks + drawn + rest;
        self.raw.raft.set_randomized_election_timeout(timeout);
    }

    /// A tick passed. A replica that `rests` campaigns only after several election timeouts.
    pub fn tick(&mut self, rests: bool) {
        self.rests = rests;
        self.ticks += 1;
        self.raw.tick();
        self.derandomize();
    }

    /// How the replica rests, if all that is left for Raft to do is to send heartbeats, to answer
    /// them, and to count ticks. That may then be done without it until [`Core::wake`].
    pub fn at_rest(&self) -> Option<AtRest> {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        let last = log.last_index();
        let plain = raft.leader_id != raft::INVALID_ID
            && matches!(raft.state, StateRole::Leader | StateRole::Follower)
            && (log.committed, log.applied, log.persisted) == (last, last, last)
            && raft.election_elapsed < self.election_ticks
            && raft.pending_request_snapshot == raft::INVALID_INDEX
            && raft.lead_transferee.is_none()
            && raft.read_only.pending_read_count() == 0;
        if !plain || self.is_unsettled() || self.raw.has_ready() {
            return None;
        }
        let mut peers = Vec::new();
        if self.is_leader() {
            for (replica, progress) in raft.prs().iter().filter(|(id, _)| **id != raft.id) {
                let has_all = progress.state == ProgressState::Replicate
                    && progress.matched == last
                    && progress.pending_request_snapshot == raft::INVALID_INDEX
                    && !progress.is_paused();
                if !has_all {
                    return None;
                }
                peers.push((*replica, progress.recent_active));
            }
            peers.sort_unstable();
        }
        Some(AtRest { commit: last, leader: raft.leader_id, elapsed: raft.election_elapsed, peers })
    }

    /// Gives back memory that is only needed while something is under way: what is empty at rest
    /// keeps room for what it last had.
    pub fn slim(&mut self) {
        let raft = &mut self.raw.raft;
        raft.maybe_free_inflight_buffers();
        raft.msgs.shrink_to_fit();
        raft.read_states.shrink_to_fit();
        raft.read_only.pending_read_index.shrink_to_fit();
        raft.read_only.read_index_queue.shrink_to_fit();
        raft.raft_log.unstable.entries.shrink_to_fit();
        self.raw.mut_store().slim();
        self.waiting.shrink_to_fit();
        self.held.shrink_to_fit();
    }

    /// How many entries of its log are in memory.
    #[cfg(test)]
    pub fn cached(&self) -> usize {
        self.raw.store().cached()
    }

    /// Ends a rest of so many ticks: `elapsed` of them without the leader, or since a leader counted
    /// its followers' answers, of whom `active` have answered since.
    pub fn wake(&mut self, ticks: u64, elapsed: usize, active: impl Iterator<Item = (u64, bool)>) {
        self.ticks += ticks;
        self.raw.raft.election_elapsed = elapsed;
        for (replica, active) in active {
            if let Some(progress) = self.raw.raft.mut_prs().get_mut(replica) {
                progress.recent_active = active;
            }
        }
    }

    /// A message came. Refuses one that proves that our log lost its end: a commit beyond
    /// our last index on a heartbeat.
    pub fn step(&mut self, message: Message) -> Result<(), LostLog> {
        if message.get_msg_type() == MessageType::MsgHeartbeat
            && message.term >= self.raw.raft.term
            && message.commit > self.raw.raft.raft_log.last_index()
        {
            return Err(LostLog { commit: message.commit });
        }
        let entries =
            message.get_msg_type() == MessageType::MsgAppend && !message.entries.is_empty();
        if entries && self.sought_ticks > 0 && self.holds_off() {
            return Ok(());
        }
        // Errors are messages of unknown peers or proposals that raft-rs drops: nothing to do.
        let _ = self.raw.step(message);
        self.derandomize();
        Ok(())
    }

    /// Proposes data; gives the index and term under which it will stand, or `None` if it
    /// was not taken.
    #[allow(clippy::field_reassign_with_default, reason = "raft-rs's messages are built so")]
    pub fn propose(&mut self, data: Bytes) -> Option<(u64, u64)> {
        // A follower would pass it on to the leader, and "not taken" would be a lie. That this
        // replica stepped down may not have been noticed by its group yet.
        if !self.is_leader() {
            return None;
        }
        let before = self.raw.raft.raft_log.last_index();
        let mut entry = Entry::default();
        entry.data = data;
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.key.replica;
        message.set_entries(vec![entry].into());
        self.raw.raft.step(message).ok()?;
        self.taken(before)
    }

    /// Proposes a change of one member; `context` says what it means to the machine.
    pub fn propose_change(
        &mut self,
        kind: ConfChangeType,
        replica: u64,
        context: Vec<u8>,
    ) -> Option<(u64, u64)> {
        let before = self.raw.raft.raft_log.last_index();
        if !self.is_leader() || self.raw.raft.has_pending_conf() {
            return None;
        }
        self.raw.propose_conf_change(context, change(kind, replica)).ok()?;
        self.taken(before)
    }

    fn taken(&self, before: u64) -> Option<(u64, u64)> {
        let last = self.raw.raft.raft_log.last_index();
        (last == before + 1).then_some((last, self.raw.raft.term))
    }

    /// Applies an accepted change of one member.
    pub fn apply_change(&mut self, kind: ConfChangeType, replica: u64) -> ConfState {
        let conf = self
            .raw
            .apply_conf_change(&change(kind, replica))
            .expect("a change that the leader proposed is valid");
        self.raw.mut_store().set_conf_state(conf.clone());
        conf
    }

    /// Asks for a confirmation that this replica's group is still led by whom it thinks.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.raw.read_index(context);
    }

    /// Is no leader known, may this replica stand for election, and has nobody done so since `term`?
    pub fn is_unclaimed(&self, term: u64) -> bool {
        self.leader().is_none() && self.term() == term && self.raw.raft.promotable()
    }

    /// Stands for election at once: for a replica that has nobody to wait for.
    pub fn campaign(&mut self) {
        let _ = self.raw.campaign();
        self.derandomize();
    }

    /// Takes the whole log for committed, with an entry of `data` behind it, in a term that is above
    /// all that others may have reached. Only for a replica that is to go on without them: until
    /// that entry is applied the configuration is the old one. Says whether it was done: not while
    /// a snapshot is on its way into the log.
    #[allow(clippy::field_reassign_with_default, reason = "raft-rs's messages are built so")]
    pub fn force(&mut self, data: Bytes) -> bool {
        let raft = &mut self.raw.raft;
        if raft.raft_log.unstable_snapshot().is_some() {
            return false;
        }
        let term = raft.term + RECOVERY_TERMS;
        raft.become_follower(term, raft::INVALID_ID);
        raft.vote = self.key.replica;
        let mut entry = Entry::default();
        entry.index = raft.raft_log.last_index() + 1;
        entry.term = term;
        entry.data = data;
        raft.raft_log.append(std::slice::from_ref(&entry));
        raft.raft_log.commit_to(entry.index);
        self.derandomize();
        true
    }

    /// This replica is all that is left of the configuration.
    pub fn go_alone(&mut self) {
        let own = self.key.replica;
        let known = self.raw.raft.prs().iter().map(|(replica, _)| *replica);
        let mut others: Vec<u64> = known.filter(|replica| *replica != own).collect();
        others.sort_unstable();
        self.apply_change(ConfChangeType::AddNode, own);
        for other in others {
            self.apply_change(ConfChangeType::RemoveNode, other);
        }
    }

    /// Asks the leader for a snapshot, whatever the log holds. To be called at every tick until
    /// one has come: without a leader, or right after an election, nothing is sent.
    ///
    /// Who has asked takes no entries until the snapshot is here, and that must hold everything
    /// that was acknowledged here. So it is asked for only when all of this is committed: else the
    /// leader could need this replica to commit what the snapshot waits for. For the same reason
    /// a request ends with the leadership that it was made to. Under steady writes something is
    /// always on its way: now and then no entries are taken for some ticks.
    pub fn seek_snapshot(&mut self) {
        self.sought_ticks += 1;
        let raft = &mut self.raw.raft;
        let asking = raft.pending_request_snapshot != raft::INVALID_INDEX;
        if asking && self.asked_term != raft.term {
            raft.pending_request_snapshot = raft::INVALID_INDEX;
        } else if !asking && raft.raft_log.committed == raft.raft_log.last_index() {
            self.asked_term = raft.term;
            let _ = self.raw.request_snapshot();
        }
    }

    /// The snapshot that was sought is here.
    pub fn end_seeking(&mut self) {
        self.sought_ticks = 0;
    }

    /// Are entries not to be taken, so that a snapshot can be asked for?
    fn holds_off(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        self.sought_ticks % SEEK_TICKS > SEEK_TICKS * 3 / 4 && log.committed < log.last_index()
    }

    /// Hands leadership to another voter.
    pub fn transfer(&mut self, replica: u64) {
        self.raw.transfer_leader(replica);
    }

    /// A peer cannot be reached.
    pub fn unreachable(&mut self, replica: u64) {
        self.raw.report_unreachable(replica);
    }

    /// Does this replica lead and send entries to a peer without waiting for its word?
    pub fn is_streaming_to(&self, replica: u64) -> bool {
        let progress = self.raw.raft.prs().get(replica);
        self.is_leader() && progress.is_some_and(|p| p.state == ProgressState::Replicate)
    }

    /// How a snapshot's transfer ended.
    pub fn snapshot_done(&mut self, replica: u64, status: raft::SnapshotStatus) {
        self.raw.report_snapshot(replica, status);
    }

    /// Is there anything to take?
    pub fn has_output(&self) -> bool {
        self.raw.has_ready()
    }

    /// Takes what is to be done. Adds to `records` what is to be written as part of write
    /// `persist`.
    pub fn take(&mut self, persist: PersistId, records: &mut Vec<Record>) -> Output {
        let mut output = Output::default();
        let mut ready = self.raw.ready();
        let before = records.len();
        let mut last = None;

        let snapshot = ready.snapshot().clone();
        let has_snapshot = !snapshot.is_empty();
        let entries = ready.take_entries();
        if let Some(first) = entries.first() {
            last = entries.last().map(|entry| entry.index);
            records.push(Record::Entries {
                key: self.key,
                first_index: first.index,
                entries: entries.iter().map(wire::to_log).collect(),
            });
            self.raw.mut_store().append(&entries);
        }
        let mut changed_vote = false;
        if let Some(hard_state) = ready.hs() {
            changed_vote = (hard_state.term, hard_state.vote) != self.term_vote;
            self.term_vote = (hard_state.term, hard_state.vote);
            self.raw.mut_store().set_hard_state(hard_state.clone());
        }
        // The entries that it counts stand before it in the log.
        if ready.must_sync() || ready.committed_entries().iter().any(changes_members) {
            let hard_state = self.raw.raft.hard_state();
            records.push(Record::HardState { key: self.key, state: to_log_state(&hard_state) });
        }
        if has_snapshot {
            let meta = snapshot.get_metadata();
            let conf = meta.get_conf_state().clone();
            self.raw.mut_store().restore(meta.index, meta.term, conf);
            output.snapshot = Some(snapshot);
        }
        output.role_changed = ready.ss().is_some() || changed_vote;
        output.reads = ready.take_read_states();
        output.committed = ready.take_committed_entries();
        let now = ready.take_messages();
        let persisted = ready.take_persisted_messages();
        let number = ready.number();
        self.raw.advance_append_async(ready);

        let writes = records.len() > before || has_snapshot;
        if changed_vote && writes {
            self.barrier = Some(persist);
        }
        self.held.extend(now);
        let persist = writes.then_some(persist);
        self.waiting.push_back(Waiting { number, persist, last, messages: persisted });
        self.settle(0);
        self.release(&mut output);
        output
    }

    /// Everything up to write `id` is durable: gives the messages that waited for it.
    pub fn persisted(&mut self, id: PersistId) -> Vec<Message> {
        if self.barrier.is_some_and(|barrier| barrier <= id) {
            self.barrier = None;
        }
        let mut output = Output::default();
        self.settle(id);
        self.release(&mut output);
        output.messages
    }

    /// Does anything wait for a write to be durable?
    pub fn is_unsettled(&self) -> bool {
        !self.waiting.is_empty() || self.barrier.is_some()
    }

    /// Reports readies that are durable, in order, and frees their messages.
    fn settle(&mut self, id: PersistId) {
        let mut done = None;
        let mut durable = None;
        while self.waiting.front().is_some_and(|w| w.persist.is_none_or(|persist| persist <= id)) {
            let Some(waiting) = self.waiting.pop_front() else { break };
            done = Some(waiting.number);
            durable = waiting.last.or(durable);
            self.held.extend(waiting.messages);
        }
        if let Some(index) = durable {
            self.raw.mut_store().set_durable(index);
        }
        if let Some(number) = done {
            self.raw.on_persist_ready(number);
        }
    }

    fn release(&mut self, output: &mut Output) {
        if self.barrier.is_none() {
            output.messages.append(&mut self.held);
        }
    }

    /// The machine has applied up to here.
    pub fn applied(&mut self, index: u64, term: u64) {
        self.raw.mut_store().set_applied(index, term);
        self.raw.advance_apply_to(index);
    }

    /// Did an election timeout pass without a word of a leader, on a replica that does not
    /// stand for election? Then nobody hears of it, and it of nobody. True once a timeout.
    pub fn is_lost(&self) -> bool {
        let elapsed = self.raw.raft.election_elapsed;
        !self.raw.raft.promotable() && elapsed > 0 && elapsed.is_multiple_of(self.election_ticks)
    }

    /// Leads this replica?
    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Replica that leads, as far as this one knows.
    pub fn leader(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|leader| *leader != raft::INVALID_ID)
    }

    /// Current term.
    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// Commit index.
    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// Last index of the log.
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// Term of the last entry.
    pub fn last_term(&self) -> u64 {
        self.raw.raft.raft_log.last_term()
    }

    /// The entries that are not applied yet, committed or not.
    pub fn unapplied(&self) -> Option<Vec<Entry>> {
        let log = &self.raw.raft.raft_log;
        log.entries(log.applied + 1, None, raft::GetEntriesContext::empty(false)).ok()
    }

    /// Is a change of members in the log that is not applied?
    pub fn has_pending_change(&self) -> bool {
        self.raw.raft.has_pending_conf()
    }

    /// Is a handover of leadership under way?
    pub fn is_transferring(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// How far a follower's log matches ours; `None` unless this replica leads and knows it.
    pub fn matched(&self, replica: u64) -> Option<u64> {
        if !self.is_leader() {
            return None;
        }
        self.raw.raft.prs().get(replica).map(|progress| progress.matched)
    }

    /// Did the follower answer lately? Reset by raft-rs at every check of the quorum.
    pub fn recently_active(&self, replica: u64) -> bool {
        replica == self.key.replica
            || self.raw.raft.prs().get(replica).is_some_and(|progress| progress.recent_active)
    }

    /// The log's key.
    pub fn key(&self) -> ReplicaKey {
        self.key
    }
}

/// A heartbeat proved that acknowledged entries are missing here.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the leader knows that entry {commit} was stored here, but the log ends before")]
pub struct LostLog {
    /// The leader's commit index.
    pub commit: u64,
}

fn changes_members(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}

fn change(kind: ConfChangeType, replica: u64) -> ConfChangeV2 {
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = replica;
    let mut change = ConfChangeV2::default();
    change.set_changes(vec![single].into());
    change
}

fn to_log_state(state: &HardState) -> log::HardState {
    log::HardState { term: state.term, vote: state.vote, commit: state.commit }
}
