//! Stepping inputs and closing rounds: the order in which a node does things.

use prost::Message as _;
use proto::cluster::group::{Batch, Command, charter::Standing, command};
use proto::cluster::raft::{GroupMessage, PeerMessage, peer_message};
use proto::etcd::LeaseRevokeRequest;
use proto::group::{GroupError, Reply};
use proto::{Error, GroupId, NodeId, limits};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use super::{Input, Moving, NO_SKIP, Node, NodeError, Output, Persist};
use crate::charter;
use crate::engine::EngineError;
use crate::group::large::{Appended, Placed, Slot};
use crate::group::{Group, LeaseAsk, Then, Ticket, wire};
use crate::log::{Record, ReplicaKey};
use crate::machine::effect::Effect;
use crate::machine::{self, Settled};
use crate::room::Room;
use crate::store::{Moved, Store, layout};

/// Newest format of a log entry's batch that this program reads. Format 2 may hold a charter, which
/// a program that knows only 1 must not take for nothing; all others are written as 1. Format 3 is
/// a recovery, format 4 holds a split tenant's entries.
pub(super) const BATCH_FORMAT: u32 = machine::SPLIT_FORMAT;
/// For who asks without a term.
pub(super) const NO_TERM: u64 = u64::MAX;
/// Bytes of large values of applied entries that are kept for followers, per group.
const HELD_BYTES: u64 = 16 << 20;
/// Rest after all extents were looked at that could move.
const MOVE_REST_MS: u64 = 10_000;
/// A checkpoint that makes pages free waits so long after the last write.
const RELEASE_MS: u64 = 1000;
/// Bytes of extents that may move to the front of the page files per tick, and per round.
const MOVE_TICK: u64 = 2 << 20;
const MOVE_TICK_IDLE: u64 = 8 << 20;
const MOVE_ROUND: u64 = 256 << 10;
/// What looking at one that cannot move counts for.
const MOVE_PAST: u64 = 64 << 10;

impl Node {
    /// Takes one input. What it causes comes with the next [`Node::round`].
    pub fn step(&mut self, now_ms: u64, input: Input) -> Result<(), NodeError> {
        self.now_ms = self.now_ms.max(now_ms);
        match input {
            Input::Tick => self.tick(),
            Input::Request { ticket, request } => self.step_request(ticket, request),
            Input::Peer { from, message } => self.step_peer(from, message)?,
            Input::Persisted { id, sync_ms, appended } => {
                if self.slow.synced(self.now_ms, sync_ms) && !self.is_alone() {
                    tracing::warn!(sync_ms, "the disk is slow: this node hands over and rests");
                    self.hand_over();
                }
                self.appended(appended);
                self.persisted(id);
            }
            Input::CheckpointWritten => self.checkpoint_written()?,
            Input::Deaths(groups) => {
                let dead = groups.iter().filter(|id| self.may_die(**id, &groups));
                self.leaving.extend(dead.copied().collect::<Vec<_>>());
            }
            Input::Recover(wish) => self.recover(&wish),
            Input::Release(groups) => groups.into_iter().for_each(|id| self.release(id)),
            Input::Births(births) => births.iter().for_each(|birth| self.conceive(birth)),
            Input::Unreachable { node } => {
                // To other groups it makes no difference.
                let concerned = self.groups.iter().filter_map(|(id, group)| {
                    let replica = group.machine.state().replica_of(node.0);
                    group.core.is_streaming_to(replica).then_some((*id, replica))
                });
                for (id, replica) in concerned.collect::<Vec<_>>() {
                    self.touch(id);
                    if let Some(group) = self.groups.get_mut(&id) {
                        group.core.unreachable(replica);
                    }
                }
            }
            Input::Whereabouts(whereabouts) => self.whereabouts = whereabouts,
            Input::Room(room) => {
                self.room = room;
                if room == Room::Critical && !self.is_alone() {
                    self.draining = true;
                    self.hand_over();
                }
            }
            Input::Drain => {
                self.draining = true;
                self.hand_over();
            }
        }
        Ok(())
    }

    /// Closes a round: everything that the inputs so far lead to.
    pub fn round(&mut self, now_ms: u64) -> Result<Vec<Output>, NodeError> {
        self.now_ms = self.now_ms.max(now_ms);
        self.send_beats();
        self.hear_whispers();
        let touched = std::mem::take(&mut self.touched);
        for id in touched {
            self.guarded(id, |node| {
                node.propose(id);
                node.begin_reads(id);
                node.drive(id)
            })?;
            if !self.touched.contains(&id) {
                self.lull(id);
            }
        }
        self.depart();
        self.tidy()?;
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            let shelf_of = |key: ReplicaKey| {
                let group = self.groups.get(&GroupId(key.group))?;
                Some((key, group.machine.shelves().pieces.clone()))
            };
            let shelves = records.iter().filter_map(|record| match record {
                Record::Entries { key, .. } => shelf_of(*key),
                _ => None,
            });
            let shelves = shelves.collect();
            let persist = Persist { id: self.next_persist, records, shelves };
            self.outputs.push(Output::Persist(persist));
            self.next_persist += 1;
        }
        self.maybe_checkpoint();
        Ok(std::mem::take(&mut self.outputs))
    }

    /// Lets one group act. If it panics, its replica here is taken out of service and the
    /// others go on; a replica that nobody could replace takes the process with it, which
    /// leaves what is on disk as it is.
    fn guarded(
        &mut self,
        id: GroupId,
        act: impl FnOnce(&mut Node) -> Result<(), NodeError>,
    ) -> Result<(), NodeError> {
        let unsettled = self.outputs.len();
        match catch_unwind(AssertUnwindSafe(|| act(self))) {
            Ok(done) => done,
            Err(panic) => {
                // Pages belong to all groups.
                let all = self.store.extents().is_stopped();
                if all || self.group(id).is_none_or(Group::is_alone) {
                    resume_unwind(panic);
                }
                // Half of what the group wanted is not to be done.
                self.outputs.truncate(unsettled);
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                let reason = format!("it panicked: {}", text.unwrap_or("no message"));
                self.quarantine(id, reason);
                Ok(())
            }
        }
    }

    /// Is there work left that needs no input? Then close another round soon.
    pub fn is_busy(&self) -> bool {
        let waits = !self.touched.is_empty() || !self.whispers.is_empty();
        waits || self.moving.budget > 0 || !self.sweeping.is_empty()
    }

    fn tick(&mut self) {
        let gap_ms = self.now_ms - self.last_tick_ms;
        self.last_tick_ms = self.now_ms;
        if gap_ms > 3 * self.config.tick_ms {
            // The loop stalled: keepalives that came meanwhile are taken in first.
            self.lease_rest_until_ms = self.now_ms + 2 * self.config.tick_ms;
        }
        let election_ms = self.config.election_ms();
        let rest = self.now_ms < self.lease_rest_until_ms;
        let resting = self.slow.is_resting(self.now_ms);
        let mut lost = Vec::new();
        let asks = self.now_ms / election_ms != (self.now_ms - gap_ms) / election_ms;
        for id in self.pulse() {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if group.shared.is_withheld() && asks {
                // Whoever went on without it may answer where placement does not.
                lost.push(id);
            }
            if group.stopped.is_some() || group.shared.is_withheld() {
                continue;
            }
            group.core.tick(resting);
            group.stand_early(resting);
            if group.seed_anew {
                group.core.seek_snapshot();
            }
            if group.core.is_lost() {
                lost.push(id);
            }
            group.reads.retry(self.now_ms.saturating_sub(election_ms / 2));
            if group.core.has_output() || group.reads.has_fresh() {
                self.touched.insert(id);
            }
            let expired = if group.serving && !rest && !group.core.is_transferring() {
                group.lessor().expire(self.now_ms)
            } else {
                Vec::new()
            };
            if !expired.is_empty() {
                self.touched.insert(id);
            }
            for lease in expired {
                if self.split_expiry(id, lease) {
                    continue;
                }
                let revoke = LeaseRevokeRequest { id: lease };
                self.queue(id, Then::Expiry(lease), command::Body::LeaseRevoke(revoke));
            }
            self.check_transfer(id);
            if !self.touched.contains(&id) {
                self.lull(id);
            }
        }
        for id in lost {
            self.ask_members(id);
        }
        self.tick_roles();
        self.tick_merges(asks);
        if self.draining {
            self.hand_over();
        }
        self.tick_transfers();
        self.store.reclaim();
        let idle = std::mem::replace(&mut self.moving.commands, self.checkpoints.commands)
            == self.checkpoints.commands;
        if self.now_ms >= self.moving.rest_until_ms {
            self.moving.budget = if idle { MOVE_TICK_IDLE } else { MOVE_TICK };
        }
    }

    fn step_peer(&mut self, from: NodeId, message: PeerMessage) -> Result<(), NodeError> {
        match message.body {
            Some(peer_message::Body::Raft(raft)) => self.hear_raft(from, raft)?,
            Some(peer_message::Body::Piece(piece)) => self.step_piece(from, piece)?,
            Some(peer_message::Body::Ack(ack)) => self.step_ack(ack)?,
            Some(peer_message::Body::NotMember(word)) => self.step_not_member(word),
            Some(peer_message::Body::Split(said)) => self.step_split(from, said),
            Some(peer_message::Body::Beats(beats)) => self.step_beats(from, &beats)?,
            Some(peer_message::Body::AmMember(ask)) => {
                self.tell_removed(GroupId(ask.group), from, ask.replica, NO_TERM);
            }
            None => {}
        }
        Ok(())
    }

    /// A Raft message came from a node.
    pub(super) fn hear_raft(&mut self, from: NodeId, raft: GroupMessage) -> Result<(), NodeError> {
        let id = GroupId(raft.group);
        let Some(message) = &raft.message else { return Ok(()) };
        if self.tell_removed(id, from, message.from, message.term) {
            return Ok(());
        }
        let Some(group) = self.groups.get_mut(&id) else {
            if wire::asks_for_vote(message)
                && let Some(newborn) = self.newborns.iter_mut().find(|it| it.key.group == id.0)
            {
                newborn.asked = Some((from, raft));
            }
            return Ok(());
        };
        if group.machine.state().node_of(message.from).is_none() {
            group.heard.insert(message.from, from);
        }
        self.step_raft(id, raft)
    }

    /// Steps a Raft message that is for a replica here.
    pub(super) fn step_raft(&mut self, id: GroupId, raft: GroupMessage) -> Result<(), NodeError> {
        let Some(message) = raft.message else { return Ok(()) };
        let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
        let is_out = group.stopped.is_some() || group.shared.is_withheld() || group.is_recovering();
        if message.to != group.core.key().replica || is_out {
            return Ok(());
        }
        let Some(message) = wire::from_wire(message) else { return Ok(()) };
        self.touch(id);
        self.guarded(id, |node| {
            let Some(group) = node.groups.get_mut(&id) else { return Ok(()) };
            if let Err(lost) = group.core.step(message) {
                node.quarantine(id, lost.to_string());
            }
            Ok(())
        })
    }

    /// Takes a replica out of service for good: what it acknowledged is not all here.
    pub(super) fn quarantine(&mut self, id: GroupId, reason: String) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.stopped.is_some() {
            return;
        }
        tracing::error!(group = id.0, reason, "a replica is quarantined");
        group.stopped = Some(reason.clone());
        group.shared.stop();
        let key = group.core.key();
        self.announce(Output::Stopped { group: id });
        self.records.push(Record::Quarantine { key, reason });
        // It may have stopped in the middle of an entry: no checkpoint before the log says so.
        self.checkpoints.not_before = self.next_persist;
        self.transfers.forget_restore(id);
        self.step_down(id);
        let error = GroupError::not_done(Error::Quarantined, None);
        let Some(group) = self.groups.get_mut(&id) else { return };
        let reads = group.reads.take_all().into_iter().map(|(ticket, _)| ticket);
        let parts = std::mem::take(&mut group.parts).into_values().flatten().map(|part| part.0);
        for ticket in reads.chain(parts).collect::<Vec<_>>() {
            self.answer(ticket, Err(error));
        }
    }

    /// Packs what waits into as few entries as the size allows, and proposes them.
    fn propose(&mut self, id: GroupId) {
        self.propose_parting(id);
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.queued.is_empty() {
            return;
        }
        let mut queued = std::mem::take(&mut group.queued).into_iter().peekable();
        while queued.peek().is_some() {
            let mut commands: Vec<Command> = Vec::new();
            let mut then = Vec::new();
            let mut bytes = 0;
            while let Some((command, _)) = queued.peek() {
                bytes += command.encoded_len();
                if !commands.is_empty() && bytes > limits::MAX_ENTRY_BYTES {
                    break;
                }
                if let Some((command, next)) = queued.next() {
                    commands.push(command);
                    then.push(next);
                }
            }
            let has_charter =
                |command: &Command| matches!(command.body, Some(command::Body::Charter(_)));
            let format = if commands.iter().any(has_charter) { 2 } else { 1 };
            let Err(then) = self.propose_batch(id, format, commands, then) else { continue };
            let Some(group) = self.groups.get_mut(&id) else { return };
            // Full, or no leader any more: the asker waits a little and comes again.
            let error = match group.core.is_leader() {
                true => GroupError::not_done(Error::TooManyRequests, None),
                false => group.elsewhere(),
            };
            for then in then {
                self.give_up(id, then, error);
            }
        }
    }

    /// Proposes an entry; gives back who waits for it if Raft does not take it.
    pub(super) fn propose_batch(
        &mut self,
        id: GroupId,
        format: u32,
        commands: Vec<Command>,
        then: Vec<Then>,
    ) -> Result<(), Vec<Then>> {
        let Some(group) = self.groups.get_mut(&id) else { return Err(then) };
        let range_version = group.machine.state().range_version;
        let batch = Batch { format, range_version, commands };
        match group.core.propose(super::encode(&batch)) {
            Some(place) => {
                group.proposals.insert(place, then);
                Ok(())
            }
            None => {
                group.failed += 1;
                Err(then)
            }
        }
    }

    /// A command will not be applied: whoever waits for it hears `error`.
    pub(super) fn give_up(&mut self, id: GroupId, then: Then, error: GroupError) {
        if let Then::Expiry(lease) = then
            && let Some(group) = self.groups.get_mut(&id)
        {
            group.lessor().revoke_failed(lease);
        }
        match then {
            Then::Split(_, Some(ticket)) => self.finish(id, ticket, Err(error)),
            then => {
                if let Some(ticket) = then.ticket() {
                    self.answer(ticket, Err(error));
                }
            }
        }
    }

    pub(super) fn begin_reads(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        // A leader that has not committed in its term would drop the round silently.
        if group.core.leader().is_none() || (group.core.is_leader() && !group.serving) {
            return;
        }
        if let Some(round) = group.reads.begin(self.now_ms) {
            let mut context = Vec::with_capacity(24);
            context.extend_from_slice(&self.config.node.0.to_be_bytes());
            context.extend_from_slice(&self.config.incarnation.to_be_bytes());
            context.extend_from_slice(&round.to_be_bytes());
            group.core.read_index(context);
        }
    }

    fn drive(&mut self, id: GroupId) -> Result<(), NodeError> {
        loop {
            let persist = self.next_persist;
            let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
            if group.stopped.is_some() || !group.core.has_output() {
                break;
            }
            let before = self.records.len();
            let output = group.core.take(persist, &mut self.records);
            group.shared.work.wrote(entry_bytes(self.records.get(before..).unwrap_or_default()));
            if group.core.is_unsettled() {
                self.unsettled.insert(id);
            }
            if output.role_changed {
                self.role_changed(id);
            }
            if let Some(snapshot) = output.snapshot {
                self.adopt(id, &snapshot, persist)?;
            }
            for message in output.messages {
                self.send_raft(id, message);
            }
            let own = (self.config.node.0, self.config.incarnation);
            let election_ms = self.config.election_ms();
            if let Some(group) = self.groups.get_mut(&id) {
                for read in output.reads {
                    let round = own_round(&read.request_ctx, own);
                    if let Some(begun_ms) = round.and_then(|r| group.reads.confirm(r, read.index)) {
                        group.lessor().confirmed(begun_ms, election_ms);
                    }
                }
            }
            self.apply(id, output.committed)?;
            // A role change may have made reads possible that waited.
            self.begin_reads(id);
        }
        self.drop_unwanted(id);
        let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
        let applied = group.machine.state().applied_index;
        for read in group.reads.ready(applied) {
            self.answer_read(id, read);
        }
        self.answer_parts(id);
        self.drive_role(id);
        self.wake_parting(id);
        Ok(())
    }

    /// Sends a Raft message to the node of its replica. Snapshots go their own way.
    pub(super) fn send_raft(&mut self, id: GroupId, message: Message) {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            return self.begin_transfer(id, message);
        }
        let Some(group) = self.groups.get(&id) else { return };
        let to = group.node_of(message.to);
        let raft = GroupMessage { group: id.0, message: Some(wire::to_wire(message)) };
        let body = Some(peer_message::Body::Raft(raft));
        self.outputs.push(Output::Send { to, message: PeerMessage { body } });
    }

    fn role_changed(&mut self, id: GroupId) {
        let now_ms = self.now_ms;
        self.news += 1;
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.publish_role(now_ms);
        if !group.core.is_leader() {
            self.step_down(id);
        } else {
            let term = group.core.term();
            group.serving = group.machine.state().applied_term == term;
            if group.role.as_ref().is_some_and(|role| !role.is_of(term)) {
                // It led, lost that and leads again, all within one batch of messages.
                self.end_role(id);
            }
            self.take_role(id, false);
        }
        self.check_transfer(id);
    }

    /// This replica leads no more: what only a leader can answer is not done here.
    pub(super) fn step_down(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.serving = false;
        group.lessor().demote();
        self.end_role(id);
        let Some(group) = self.groups.get_mut(&id) else { return };
        let error = group.elsewhere();
        let reads = group.reads.take_leader_only();
        let queued = std::mem::take(&mut group.queued);
        let asks = std::mem::take(&mut group.lease_asks);
        for (ticket, _) in reads {
            self.answer(ticket, Err(error));
        }
        for (_, then) in queued {
            self.give_up(id, then, error);
        }
        for ask in asks.into_values().flatten() {
            let (LeaseAsk::KeepAlive(ticket) | LeaseAsk::TimeToLive(ticket)) = ask;
            self.answer(ticket, Err(error));
        }
    }

    fn apply(&mut self, id: GroupId, entries: Vec<Entry>) -> Result<(), NodeError> {
        let Some(last) = entries.last().map(|entry| (entry.index, entry.term)) else {
            return Ok(());
        };
        if let Some(group) = self.groups.get_mut(&id)
            && group.seed_anew
        {
            // They are in the snapshot that is awaited.
            group.core.applied(last.0, last.1);
            return Ok(());
        }
        self.changed.insert(id);
        for entry in entries {
            if !self.apply_entry(id, entry)? {
                return Ok(());
            }
        }
        let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
        group.core.applied(last.0, last.1);
        if group.core.is_leader() && !group.serving && last.1 == group.core.term() {
            group.serving = true;
            let election_ms = self.config.election_ms();
            group.lessor().promote(self.now_ms, election_ms, group.machine.leases());
            if group.machine.state().charter.standing() != Standing::Open {
                group.lessor().pause(self.now_ms);
            }
            self.take_role(id, false);
        }
        self.checkpoints.wrote(self.now_ms);
        Ok(())
    }

    /// Says whether the replica goes on.
    fn apply_entry(&mut self, id: GroupId, entry: Entry) -> Result<bool, NodeError> {
        let Some(group) = self.groups.get_mut(&id) else { return Ok(false) };
        let (index, term) = (entry.index, entry.term);
        let mut answers = None;
        let (mut effects, mut left) = (Vec::new(), Vec::new());
        match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => group.machine.advance(index, term),
            EntryType::EntryNormal => {
                let batch = Batch::decode(entry.data.clone()).map_err(|error| {
                    NodeError::Damaged(format!("entry {index} cannot be read: {error}"))
                })?;
                if batch.format > BATCH_FORMAT {
                    return Err(NodeError::Damaged(format!(
                        "entry {index} has format {}, this program knows {BATCH_FORMAT}: run a \
                         newer program",
                        batch.format
                    )));
                }
                self.checkpoints.commands += batch.commands.len() as u64;
                let slots = group.held.get(&index).cloned().unwrap_or_default();
                let placed = Placed::new(&entry.data, slots);
                match group.machine.apply(index, term, &batch, placed) {
                    Ok(None) => {}
                    Ok(Some(applied)) => {
                        answers = Some(applied.answers);
                        effects = applied.effects;
                    }
                    // The others know the value; this replica cannot follow them any more.
                    Err(EngineError::Value(what)) if !group.is_alone() => {
                        self.quarantine(id, what);
                        return Ok(false);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                let (answer, caused) = self.apply_change(id, &entry)?;
                answers = Some(vec![Settled::Answer(answer)]);
                effects = caused;
            }
        }
        for effect in effects {
            match effect {
                Effect::Split { at, kept } => self.part(id, &at, *kept)?,
                Effect::Absorb { right, revision } => {
                    if !self.absorb(id, right, revision)? {
                        return Ok(false);
                    }
                }
                effect => left.push(effect),
            }
        }
        self.resolve(id, index, term, answers);
        for effect in left {
            self.carry_out(id, effect);
        }
        Ok(true)
    }

    /// Answers whoever waits for the entry at `index`.
    fn resolve(&mut self, id: GroupId, index: u64, term: u64, answers: Option<Vec<Settled>>) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (current, leader) = (group.core.term(), group.leader_node());
        let swept = group.machine.state().swept;
        let mut mine = None;
        let mut passed = Vec::new();
        // Every index is applied once and in order, or jumped over by a snapshot, which takes
        // its proposals out: so what is passed here had its place taken by another term.
        while let Some(entry) = group.proposals.first_entry() {
            if entry.key().0 > index {
                break;
            }
            match entry.remove_entry() {
                (key, thens) if key == (index, term) => mine = Some(thens),
                (_, thens) => passed.extend(thens),
            }
        }
        // Another term's entry took the place: these were certainly not done.
        let error = GroupError::not_done(Error::LeaderChanged, leader);
        for then in passed {
            self.give_up(id, then, error);
        }
        let Some(thens) = mine else {
            // Another leader's: a part in a split tenant looks at all entries.
            for settled in answers.into_iter().flatten() {
                if let Settled::Split(entry, written) = settled {
                    self.split_applied(id, term, None, &entry, written);
                }
            }
            return;
        };
        let Some(answers) = answers else {
            let error = GroupError::not_done(Error::StaleRange, leader);
            for then in thens {
                self.give_up(id, then, error);
            }
            return;
        };
        for (then, settled) in thens.into_iter().zip(answers) {
            let answer = match settled {
                Settled::Answer(answer) => answer,
                Settled::Split(entry, written) => {
                    self.split_applied(id, term, Some(then), &entry, written);
                    continue;
                }
            };
            let answer = answer.map(|reply| stamp(reply, current)).map_err(|error| match error {
                // Only the answer could not be read: the changes may have been made.
                Error::DamagedValue => GroupError::unknown(error),
                error if error.is_stale() => GroupError::not_done(error, leader),
                error => GroupError::refused(error),
            });
            match then {
                Then::Answer(ticket) => self.answer(ticket, answer),
                Then::Refuse(ticket, error) => {
                    self.answer(ticket, Err(GroupError::refused(error)));
                }
                Then::AfterSweep(ticket, revision) => match answer {
                    Ok(reply) if revision > swept => {
                        if let Some(group) = self.groups.get_mut(&id) {
                            group.sweeping.push((ticket, revision, reply));
                        }
                    }
                    answer => self.answer(ticket, answer),
                },
                // The group was frozen meanwhile: it expires when it is thawed.
                Then::Expiry(lease) if answer.is_err_and(|error| error.error.is_stale()) => {
                    if let Some(group) = self.groups.get_mut(&id) {
                        group.lessor().revoke_failed(lease);
                    }
                }
                Then::Expiry(_) | Then::Split(..) => {}
            }
        }
    }

    fn carry_out(&mut self, id: GroupId, effect: Effect) {
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&id) else { return };
        match effect {
            Effect::Events(events) => self.outputs.push(Output::Events { group: id, events }),
            Effect::LeaseGranted { lease, ttl_s } => group.lessor().granted(now_ms, lease, ttl_s),
            Effect::LeaseRevoked { lease } => self.lease_gone(id, lease),
            Effect::Compacted { .. } => drop(self.sweeping.insert(id)),
            Effect::Charter { before } => self.charter_changed(id, before),
            Effect::Alone => self.go_alone(id),
            Effect::Passed => self.announce(Output::Replaced { group: id }),
            Effect::Split { .. } | Effect::Absorb { .. } => {
                unreachable!("it was carried out before")
            }
            Effect::Members => {
                group.publish_membership();
                self.announce(Output::Members { group: id });
            }
        }
    }

    /// What clients may do is another than `before`: lease clocks stop or go on.
    fn charter_changed(&mut self, id: GroupId, before: Standing) {
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&id) else { return };
        let standing = group.machine.state().charter.standing();
        if before == Standing::Deleted && standing != Standing::Deleted {
            group.lessor().refill(now_ms);
        }
        let Err(error) = charter::check_standing(standing) else {
            return group.lessor().resume(now_ms);
        };
        group.lessor().pause(now_ms);
        // The end of those leases waits for the thaw; who asked does not.
        for ask in std::mem::take(&mut group.lease_asks).into_values().flatten() {
            let (LeaseAsk::KeepAlive(ticket) | LeaseAsk::TimeToLive(ticket)) = ask;
            self.answer(ticket, Err(GroupError::not_done(error, None)));
        }
    }

    /// Records are synced: what they hold takes the place of what the log had there.
    fn appended(&mut self, appended: Vec<Appended>) {
        for Appended { key, first_index, slots } in appended {
            let group = self.groups.get_mut(&GroupId(key.group));
            let Some(group) = group.filter(|group| group.core.key() == key) else {
                self.appended_late(key, slots.into_iter().collect());
                continue;
            };
            let gone = group.held.split_off(&first_index);
            group.held.extend(slots);
            if !group.held.is_empty() {
                self.holding.insert(group.id);
            }
            let_go(&self.store, gone);
        }
    }

    fn persisted(&mut self, persist: u64) {
        let before = std::mem::replace(&mut self.persisted, persist);
        assert!(before < persist, "write {persist} is said to be durable after write {before}");
        self.departed();
        for id in std::mem::take(&mut self.unsettled) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if group.stopped.is_some() {
                continue;
            }
            let messages = group.core.persisted(persist);
            self.restored(id, persist);
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let is_unsettled = group.core.is_unsettled();
            if is_unsettled {
                self.unsettled.insert(id);
            }
            // There may be more to do now, or at last nothing.
            if !is_unsettled || group.core.has_output() {
                self.touched.insert(id);
            }
            for message in messages {
                self.send_raft(id, message);
            }
        }
    }

    /// Removes what is not needed any more, a slice a round.
    fn tidy(&mut self) -> Result<(), NodeError> {
        for id in self.sweeping.iter().copied().collect::<Vec<_>>() {
            let group = self.groups.get(&id).filter(|group| group.machine.needs_sweep());
            let Some(group) = group else {
                self.sweeping.remove(&id);
                continue;
            };
            // A snapshot that is being sent still reads what would go.
            let held = self.transfers.reads_rows(group.machine.shelves());
            let floors = self.floors(id);
            if let Some(group) = self.groups.get_mut(&id).filter(|_| !held) {
                let given_up = group.machine.sweep(&floors)?;
                self.changed.insert(id);
                let swept = group.machine.state().swept;
                let done: Vec<(Ticket, i64, Reply)> =
                    group.sweeping.extract_if(.., |(_, to, _)| *to <= swept).collect();
                for (ticket, _, reply) in done {
                    self.answer(ticket, Ok(reply));
                }
                self.checkpoints.wrote(self.now_ms);
                if !given_up.is_empty() {
                    self.note_sharing(id);
                    self.discard(given_up);
                }
            }
        }
        self.drop_garbage()?;
        self.move_extents()
    }

    /// Empties the end of the page files, so that it can be cut off.
    fn move_extents(&mut self) -> Result<(), NodeError> {
        let mut moved = 0;
        while moved < MOVE_ROUND && self.moving.budget > 0 {
            match self.store.move_extent(self.moving.skip)? {
                Moved::Nothing => {
                    // After a whole pass that left some where they are the next one can wait.
                    let rest = if self.moving.skip == NO_SKIP { 0 } else { MOVE_REST_MS };
                    let rest_until_ms = self.now_ms + rest;
                    let commands = self.moving.commands;
                    self.moving = Moving { rest_until_ms, commands, ..Default::default() };
                }
                Moved::Past(file, page) => {
                    self.moving.skip = (file, page);
                    moved += MOVE_PAST;
                }
                Moved::Bytes(bytes) => {
                    moved += bytes;
                    self.checkpoints.wrote(self.now_ms);
                }
            }
        }
        self.moving.budget = self.moving.budget.saturating_sub(moved);
        Ok(())
    }

    /// Freezes the recent table if it is time and none is being written.
    fn maybe_checkpoint(&mut self) {
        let policy = self.config.checkpoint;
        let state = &self.checkpoints;
        let Some(first_ms) = state.first_write_ms else { return };
        let released = self.store.extents().released_bytes();
        let due = state.forced
            || released >= policy.large_bytes
            || (released > 0 && self.now_ms >= state.last_write_ms + RELEASE_MS)
            || self.store.recent_bytes() >= policy.bytes
            || self.store.recent_large_bytes() >= policy.large_bytes
            || state.commands >= policy.commands
            || self.now_ms >= first_ms + policy.age_ms
            || self.now_ms >= state.last_write_ms + policy.idle_ms;
        // A restored state may reach the engine only once the log knows of it.
        let waits = self.persisted < state.not_before || self.transfers.restoring();
        if !due || state.on_its_way.is_some() || waits {
            return;
        }
        self.checkpoints.number += 1;
        let mut rows = Vec::new();
        for id in std::mem::take(&mut self.changed) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            group.machine.store_counts();
            let state = group.machine.state();
            group.freezing = state.applied_index;
            self.freezing.insert(id);
            let key = group.core.key();
            let row_key = layout::group_key(key.group, key.replica);
            rows.push((row_key.into(), Some(super::encode(&group.machine.whole_state()))));
        }
        rows.extend(self.newborn_rows());
        self.freeze_swallowed();
        let checkpoint = Arc::new(self.store.freeze(&self.node_row(), rows));
        let state = &mut self.checkpoints;
        state.start = self.log.position();
        state.on_its_way = Some(checkpoint.clone());
        state.commands = 0;
        state.drops = 0;
        state.forced = false;
        state.first_write_ms = None;
        self.transfers.frozen();
        self.outputs.push(Output::Checkpoint(checkpoint));
    }

    fn checkpoint_written(&mut self) -> Result<(), NodeError> {
        let Some(checkpoint) = self.checkpoints.on_its_way.take() else { return Ok(()) };
        self.store.finish(&checkpoint);
        self.log.set_followers(!self.is_alone());
        let start = self.checkpoints.start;
        self.records.push(Record::Checkpoint { n: checkpoint.number, start });
        let mut concerned = std::mem::take(&mut self.freezing);
        for id in &concerned {
            let Some(group) = self.groups.get_mut(id) else { continue };
            group.checkpointed = group.freezing;
            self.log.release(group.core.key(), group.checkpointed);
        }
        concerned.append(&mut self.holding);
        for id in concerned {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let keep = match self.transfers.reads_from(group.id) {
                // Whoever gets the snapshot asks for the entries behind it.
                true => u64::MAX,
                false if group.is_alone() => 0,
                false => HELD_BYTES,
            };
            let_go(&self.store, not_needed(&mut group.held, group.checkpointed, keep));
            if !group.held.is_empty() {
                self.holding.insert(id);
            }
        }
        self.deliver()?;
        self.settle_swallowed();
        self.tell_all_frozen();
        self.installed()
    }
}

/// Takes out the slots up to `checkpointed`, oldest first, but for about `keep` bytes of them:
/// followers that are a little behind ask for those entries.
fn not_needed(
    held: &mut BTreeMap<u64, Vec<Slot>>,
    checkpointed: u64,
    keep: u64,
) -> BTreeMap<u64, Vec<Slot>> {
    let mut kept = 0;
    let mut from = checkpointed + 1;
    for (index, slots) in held.range(..=checkpointed).rev() {
        kept += slots.iter().map(|slot| u64::from(slot.pointer.length)).sum::<u64>();
        if kept > keep {
            break;
        }
        from = *index;
    }
    let above = held.split_off(&from);
    std::mem::replace(held, above)
}

/// Bytes of the entries among records.
fn entry_bytes(records: &[Record]) -> u64 {
    let entries = records.iter().filter_map(|record| match record {
        Record::Entries { entries, .. } => Some(entries),
        _ => None,
    });
    entries.flatten().map(|entry| entry.data.len() as u64).sum()
}

/// These records hold their values no more.
pub(super) fn let_go(store: &Store, slots: BTreeMap<u64, Vec<Slot>>) {
    for slot in slots.into_values().flatten() {
        store.extents().let_go(&slot.pointer);
    }
}

/// The number of a read round if it is one of ours.
fn own_round(context: &[u8], (node, incarnation): (u64, u64)) -> Option<u64> {
    let (head, round) = context.split_last_chunk::<8>()?;
    let (first, second) = head.split_first_chunk::<8>()?;
    let ours = u64::from_be_bytes(*first) == node && second == incarnation.to_be_bytes();
    ours.then(|| u64::from_be_bytes(*round))
}

/// Puts the term into a reply's header.
fn stamp(mut reply: Reply, term: u64) -> Reply {
    let header = match &mut reply {
        Reply::Range(r) => &mut r.header,
        Reply::Put(r) => &mut r.header,
        Reply::DeleteRange(r) => &mut r.header,
        Reply::Txn(r) => &mut r.header,
        Reply::Compact(r) => &mut r.header,
        Reply::LeaseGrant(r) => &mut r.header,
        Reply::LeaseRevoke(r) => &mut r.header,
        Reply::Alarm(r) => &mut r.header,
        Reply::Members(r) => &mut r.header,
        Reply::MemberAdd(r) => &mut r.header,
        Reply::Done(header) => {
            header.raft_term = term;
            return reply;
        }
        _ => return reply,
    };
    if let Some(header) = header {
        header.raft_term = term;
    }
    reply
}

/// Only its context says what a change of members means to the machine.
pub(super) fn read_change(entry: &Entry) -> Result<super::members::Change, NodeError> {
    super::members::Change::decode(entry.context.clone()).map_err(|error| {
        NodeError::Damaged(format!("entry {} cannot be read: {error}", entry.index))
    })
}
