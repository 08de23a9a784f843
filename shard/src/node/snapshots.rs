//! Snapshots: bringing a replica that is too far behind up to date with rows.
//!
//! ```text
//!   sender                                receiver
//!   MsgSnapshot (held back)
//!   piece 0: rows ───────────────────────> rows onto a fresh shelf
//!            <─────────────────────── ack 1
//!   ...
//!   piece n: rows, state, MsgSnapshot ───> checkpoint (rows durable)
//!            <─────────────────────── ack   MsgSnapshot is stepped, `restore` logged
//! ```
//!
//! raft-rs sees MsgSnapshot only when all its rows are durable here, because it allows no
//! step between taking a Ready and advancing it. The `restore` record in the log is the
//! commit point: before it the old state stands, after it the new shelf is the state.
//!
//! Secondary rows are not shipped: packed changes, counts and lease attachments are made anew from
//! the versions, whose rows carry the place of the operation in its revision.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use proto::cluster::raft::{
    GroupMessage, PeerMessage, SnapshotAck, SnapshotPiece, SnapshotRow, peer_message,
};
use proto::group::GroupError;
use proto::{Error, GroupId, KeyRange, NodeId};
use raft::SnapshotStatus;
use raft::eraftpb::{Message, Snapshot};

use super::rounds::NO_TERM;
use super::{Node, NodeError, Output};
use crate::engine::EngineError;
use crate::group::wire;
use crate::log::{Record, ReplicaKey};
use crate::machine::leases;
use crate::machine::state::{SnapshotState, State};
use crate::store::changes::{self, Change};
use crate::store::counts;
use crate::store::layout::{self, Row, Shelf, Value};
use crate::store::recent::ChangeMap;
use crate::store::shelves::{Pieces, Shelves};

/// Without an acknowledgement for so many ticks the piece is sent again; after three times
/// that the transfer is given up and Raft decides anew.
const RESEND_TICKS: u64 = 10;

/// Transfers under way on a node.
#[derive(Default)]
pub(super) struct Transfers {
    next: u64,
    /// Bytes that may be sent before the next tick; below 0 when the last piece took more.
    budget: i64,
    sending: BTreeMap<u64, Sending>,
    receiving: BTreeMap<GroupId, Receiving>,
    /// Restores that the log does not know yet.
    restores: BTreeMap<GroupId, Restore>,
}

struct Sending {
    key: ReplicaKey,
    to: u64,
    node: NodeId,
    revision: i64,
    /// Where the group's versions stood when it began, and its keys then.
    pieces: Pieces,
    range: KeyRange,
    /// Row key of the last row sent, without the shelf's part.
    cursor: Option<Bytes>,
    number: u64,
    checksum: u32,
    state: SnapshotState,
    finish: GroupMessage,
    last_piece: SnapshotPiece,
    /// The last piece is there; the next one is sent as soon as the budget allows.
    waits: bool,
    sent_ms: u64,
    acked_ms: u64,
}

struct Receiving {
    from: NodeId,
    from_replica: u64,
    transfer: u64,
    next: u64,
    checksum: u32,
    shelf: Shelf,
    rebuild: Rebuild,
    /// The whole is here, waits for the checkpoint.
    finish: Option<GroupMessage>,
    phase: Phase,
    touched_ms: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Rows,
    /// All rows are in the recent table; the next freeze takes them.
    Freezing,
    /// They are in the checkpoint on its way.
    Frozen,
    /// They are durable: MsgSnapshot was stepped.
    Stepped,
}

struct Restore {
    persist: u64,
    index: u64,
    term: u64,
}

/// Secondary rows, made anew from versions as they come: by key, newest first.
struct Rebuild {
    changes: BTreeMap<i64, Vec<(u32, Change)>>,
    /// The version before this one in the scan: newer, of the same key.
    newer: Option<(Bytes, i64, u32, bool)>,
    size: i64,
    keys: i64,
    leased: Vec<(i64, Bytes)>,
    counts: counts::Builder,
}

impl Rebuild {
    fn new(block_keys: u32) -> Rebuild {
        Rebuild {
            changes: BTreeMap::new(),
            newer: None,
            size: 0,
            keys: 0,
            leased: Vec::new(),
            counts: counts::Builder::new(block_keys),
        }
    }

    fn row(&mut self, key: &Bytes, revision: i64, row: &Row) {
        let same = self.newer.as_ref().is_some_and(|(newer, ..)| newer == key);
        self.settle(if same && !row.deleted { revision } else { 0 });
        if !same && !row.deleted {
            self.counts.live(key);
            self.keys += 1;
            if row.lease != 0 {
                self.leased.push((row.lease, key.clone()));
            }
        }
        self.size += row.cost(key.len());
        self.newer = Some((key.clone(), revision, row.place, row.deleted));
    }

    fn settle(&mut self, previous: i64) {
        if let Some((key, revision, place, deleted)) = self.newer.take() {
            let (previous_cost, overwritten) = (None, None);
            let change = Change { key, deleted, place, previous, previous_cost, overwritten };
            self.changes.entry(revision).or_default().push((place, change));
        }
    }

    fn finish(&mut self) -> ChangeMap {
        self.settle(0);
        let changes = std::mem::take(&mut self.changes);
        changes
            .into_iter()
            .map(|(revision, mut list)| {
                list.sort_by_key(|(place, _)| *place);
                (revision, list.into_iter().map(|(_, change)| change).collect::<Arc<[Change]>>())
            })
            .collect()
    }
}

impl Transfers {
    /// Is a snapshot of the group being read?
    pub(super) fn reads_from(&self, id: GroupId) -> bool {
        self.sending.values().any(|sending| sending.key.group == id.0)
    }

    /// Does a snapshot that is being read want versions of a group's keys? They may have been
    /// another group's when it began.
    pub(super) fn reads_rows(&self, shelves: &Shelves) -> bool {
        let reads = |sending: &Sending| {
            let mut parts = sending.pieces.within(&sending.range);
            parts.any(|(shelf, keys)| {
                shelves.versions().any(|(other, own)| other == shelf && own.overlaps(&keys))
            })
        };
        self.sending.values().any(reads)
    }

    /// Is a snapshot being read on a shelf?
    pub(super) fn reads_shelf(&self, shelf: Shelf) -> bool {
        let reads = |sending: &Sending| sending.pieces.iter().any(|piece| piece.shelf == shelf);
        self.sending.values().any(reads)
    }

    /// A replica leaves this node: nothing of it is sent or awaited any more.
    pub(super) fn forget(&mut self, id: GroupId) {
        self.restores.remove(&id);
        self.sending.retain(|_, sending| sending.key.group != id.0);
    }

    /// A replica is quarantined: what it was about to restore does not matter any more.
    pub(super) fn forget_restore(&mut self, id: GroupId) {
        self.restores.remove(&id);
    }

    /// Is a restore on its way into the log?
    pub(super) fn restoring(&self) -> bool {
        !self.restores.is_empty()
    }

    /// A checkpoint was frozen: what was received completely is in it.
    pub(super) fn frozen(&mut self) {
        for receiving in self.receiving.values_mut() {
            if receiving.phase == Phase::Freezing {
                receiving.phase = Phase::Frozen;
            }
        }
    }
}

impl Node {
    /// Raft wants to send a snapshot: take one of now and begin to send it.
    pub(super) fn begin_transfer(&mut self, id: GroupId, mut message: Message) {
        let to = message.to;
        let now_ms = self.now_ms;
        if self.transfers.sending.values().any(|s| s.key.group == id.0 && s.to == to) {
            return;
        }
        let Some(group) = self.groups.get_mut(&id) else { return };
        let state = match group.machine.snapshot_state() {
            Ok(state) => state,
            Err(error) => {
                // As below: the next round meets the same error.
                tracing::error!(%error, "read the state for a snapshot");
                return group.core.snapshot_done(to, SnapshotStatus::Failure);
            }
        };
        let meta = message.mut_snapshot().mut_metadata();
        meta.index = state.state.applied_index;
        meta.term = state.state.applied_term;
        meta.set_conf_state(wire::conf_from_wire(&state.state.conf_state));
        let finish = GroupMessage { group: id.0, message: Some(wire::to_wire(message)) };
        let sending = Sending {
            key: group.core.key(),
            to,
            node: group.node_of(to),
            revision: state.state.revision,
            pieces: group.machine.shelves().pieces.clone(),
            range: group.machine.shelves().range.clone(),
            cursor: None,
            number: 0,
            checksum: 0,
            state,
            finish,
            last_piece: SnapshotPiece::default(),
            waits: true,
            sent_ms: now_ms,
            acked_ms: now_ms,
        };
        self.transfers.next += 1;
        let transfer = crate::group::core::mix(&[self.config.incarnation, self.transfers.next]);
        self.transfers.sending.insert(transfer, sending);
        self.send_pieces();
    }

    /// Sends the next piece of all that wait, as far as the budget goes.
    fn send_pieces(&mut self) {
        let sending = self.transfers.sending.iter();
        let waiting = sending.filter(|(_, sending)| sending.waits).map(|(transfer, _)| *transfer);
        for transfer in waiting.collect::<Vec<_>>() {
            if self.transfers.budget <= 0 {
                return;
            }
            if let Err(error) = self.send_piece(transfer) {
                // A damaged value cannot be sent. If it is the engine that failed, the next round
                // meets the same error and ends the node.
                tracing::error!(%error, "read rows for a snapshot");
                self.end_transfer(transfer, SnapshotStatus::Failure);
            }
        }
    }

    /// Reads and sends the next piece.
    fn send_piece(&mut self, transfer: u64) -> Result<(), EngineError> {
        let Some(sending) = self.transfers.sending.get_mut(&transfer) else { return Ok(()) };
        let view = self.store.view(&sending.pieces, sending.revision);
        let mut rows = Vec::new();
        let (piece_bytes, mut bytes) = (self.config.transfer.piece_bytes, 0);
        let mut complete = true;
        view.all_versions(&sending.range, sending.cursor.as_deref(), &mut |row_key, row| {
            if bytes >= piece_bytes {
                complete = false;
                return Ok(ControlFlow::Break(()));
            }
            let row = view.inline(row)?.encode();
            bytes += row_key.len() + row.len();
            rows.push(SnapshotRow { key: layout::version_place(row_key), row });
            Ok(ControlFlow::Continue(()))
        })?;
        let mut hash = crc32fast::Hasher::new_with_initial(sending.checksum);
        for row in &rows {
            hash.update(&row.key);
            hash.update(&row.row);
        }
        sending.checksum = hash.finalize();
        if let Some(row) = rows.last() {
            sending.cursor = Some(row.key.clone());
        }
        let piece = SnapshotPiece {
            group: sending.key.group,
            to: sending.to,
            from: sending.key.replica,
            transfer,
            number: sending.number,
            rows,
            checksum: sending.checksum,
            finish: complete.then(|| sending.finish.clone()),
            state: if complete { super::encode(&sending.state) } else { Bytes::new() },
        };
        sending.last_piece = piece.clone();
        (sending.waits, sending.sent_ms) = (false, self.now_ms);
        self.transfers.budget -= bytes as i64;
        let to = sending.node;
        let body = Some(peer_message::Body::Piece(piece));
        self.outputs.push(Output::Send { to, message: PeerMessage { body } });
        Ok(())
    }

    /// The receiver wants the next piece, or is done, or does not want it.
    pub(super) fn step_ack(&mut self, ack: SnapshotAck) -> Result<(), NodeError> {
        let now_ms = self.now_ms;
        let Some(sending) = self.transfers.sending.get_mut(&ack.transfer) else { return Ok(()) };
        if ack.refused {
            self.end_transfer(ack.transfer, SnapshotStatus::Failure);
            return Ok(());
        }
        if ack.next != sending.number + 1 {
            return Ok(());
        }
        sending.acked_ms = now_ms;
        if sending.last_piece.finish.is_some() {
            self.end_transfer(ack.transfer, SnapshotStatus::Finish);
            return Ok(());
        }
        sending.number += 1;
        sending.waits = true;
        self.send_pieces();
        Ok(())
    }

    fn end_transfer(&mut self, transfer: u64, status: SnapshotStatus) {
        let Some(sending) = self.transfers.sending.remove(&transfer) else { return };
        let id = GroupId(sending.key.group);
        self.touch(id);
        if let Some(group) = self.groups.get_mut(&id) {
            group.core.snapshot_done(sending.to, status);
        }
    }

    /// Sends what waits for a tick, resends pieces without an answer, gives up on dead receivers
    /// and senders.
    pub(super) fn tick_transfers(&mut self) {
        // What was not used is not saved up.
        let a_tick = self.config.transfer.bytes_per_s * self.config.tick_ms / 1000;
        self.transfers.budget = (self.transfers.budget + a_tick as i64).min(a_tick as i64);
        self.send_pieces();
        let resend_ms = RESEND_TICKS * self.config.tick_ms;
        let now_ms = self.now_ms;
        let mut dead = Vec::new();
        for (transfer, sending) in &mut self.transfers.sending {
            let leads =
                self.groups.get(&GroupId(sending.key.group)).is_some_and(|g| g.core.is_leader());
            // The last piece is acknowledged only after a checkpoint, which may take long.
            let patience = if sending.last_piece.finish.is_some() { 20 } else { 3 };
            if sending.waits {
                sending.acked_ms = now_ms;
            }
            if !leads || now_ms > sending.acked_ms + patience * resend_ms {
                dead.push(*transfer);
            } else if !sending.waits && now_ms > sending.sent_ms + resend_ms {
                sending.sent_ms = now_ms;
                let to = sending.node;
                let body = Some(peer_message::Body::Piece(sending.last_piece.clone()));
                self.outputs.push(Output::Send { to, message: PeerMessage { body } });
            }
        }
        for transfer in dead {
            self.end_transfer(transfer, SnapshotStatus::Failure);
        }
        let late = now_ms.saturating_sub(30 * resend_ms);
        let abandoned: Vec<_> = self
            .transfers
            .receiving
            .iter()
            .filter(|(_, r)| r.phase == Phase::Rows && r.touched_ms < late)
            .map(|(id, _)| *id)
            .collect();
        for id in abandoned {
            self.abandon(id);
        }
    }

    /// The shelves onto which snapshots are coming. One that its sender gave up stays for half a
    /// minute.
    pub fn awaited_shelves(&self) -> impl Iterator<Item = Shelf> {
        self.transfers.receiving.values().map(|receiving| receiving.shelf)
    }

    pub(super) fn abandon(&mut self, id: GroupId) {
        if let Some(receiving) = self.transfers.receiving.remove(&id)
            && self.groups.get(&id).is_none_or(|g| g.machine.shelf() != receiving.shelf)
        {
            self.discard([receiving.shelf]);
        }
    }

    /// Takes a piece of a snapshot.
    pub(super) fn step_piece(
        &mut self,
        from: NodeId,
        piece: SnapshotPiece,
    ) -> Result<(), NodeError> {
        let id = GroupId(piece.group);
        let now_ms = self.now_ms;
        let ours = self.groups.get(&id).is_some_and(|group| {
            let is_out =
                group.stopped.is_some() || group.shared.is_withheld() || group.is_recovering();
            group.core.key().replica == piece.to && !is_out
        });
        if !ours || self.tell_removed(id, from, piece.from, NO_TERM) {
            self.ack(from, &piece, 0, true);
            return Ok(());
        }
        let current = self.transfers.receiving.get(&id).map(|r| (r.transfer, r.phase));
        if current.is_none_or(|(transfer, _)| transfer != piece.transfer) {
            if piece.number != 0 || current.is_some_and(|(_, phase)| phase != Phase::Rows) {
                self.ack(from, &piece, 0, true);
                return Ok(());
            }
            self.abandon(id);
            let shelf = self.take_shelf();
            let key = self.groups.get(&id).map(|group| group.core.key()).unwrap_or_default();
            self.records.push(Record::Install { key, shelf: shelf.0 });
            let receiving = Receiving {
                from,
                from_replica: piece.from,
                transfer: piece.transfer,
                next: 0,
                checksum: 0,
                shelf,
                rebuild: Rebuild::new(self.config.block_keys),
                finish: None,
                phase: Phase::Rows,
                touched_ms: now_ms,
            };
            self.transfers.receiving.insert(id, receiving);
        }
        let Some(receiving) = self.transfers.receiving.get_mut(&id) else { return Ok(()) };
        receiving.touched_ms = now_ms;
        if piece.number != receiving.next || receiving.phase != Phase::Rows {
            // One that was sent again. The last one is acknowledged when it is durable.
            if receiving.phase == Phase::Rows || receiving.phase == Phase::Stepped {
                let next = receiving.next;
                self.ack(from, &piece, next, false);
            }
            return Ok(());
        }
        let mut hash = crc32fast::Hasher::new_with_initial(receiving.checksum);
        for row in &piece.rows {
            hash.update(&row.key);
            hash.update(&row.row);
        }
        receiving.checksum = hash.finalize();
        if receiving.checksum != piece.checksum {
            self.abandon(id);
            self.ack(from, &piece, 0, true);
            return Ok(());
        }
        receiving.next += 1;
        let shelf = receiving.shelf;
        let (prefix, _) = layout::versions_bounds(shelf);
        for row in &piece.rows {
            let mut row_key = prefix.clone();
            row_key.extend_from_slice(&row.key);
            let read = layout::split_version(&row_key)
                .map(|(escaped, revision)| (layout::unescape(escaped), revision))
                .zip(Row::decode(&row.row));
            let Some(((key, revision), mut decoded)) = read else {
                self.abandon(id);
                self.ack(from, &piece, 0, true);
                return Ok(());
            };
            receiving.rebuild.row(&key, revision, &decoded);
            decoded.value = match decoded.value {
                Value::Here(value) => {
                    self.store.place(shelf, &key, value, self.config.large_bytes)?
                }
                // Another node's place means nothing here.
                Value::There(_) => {
                    self.abandon(id);
                    self.ack(from, &piece, 0, true);
                    return Ok(());
                }
            };
            let placed = decoded.value.extent().copied();
            self.store.install_version(shelf, &key, revision, decoded);
            if let Some(pointer) = placed {
                self.store.extents().let_go(&pointer);
            }
        }
        self.checkpoints.wrote(now_ms);
        if piece.finish.is_none() {
            let next = receiving.next;
            self.ack(from, &piece, next, false);
            return Ok(());
        }
        self.received(id, piece)
    }

    /// All rows are here: adds the secondary rows and the state, and asks for a checkpoint.
    fn received(&mut self, id: GroupId, piece: SnapshotPiece) -> Result<(), NodeError> {
        let Some(receiving) = self.transfers.receiving.get_mut(&id) else { return Ok(()) };
        let Ok(sent) = SnapshotState::decode(piece.state.clone()) else {
            let from = receiving.from;
            self.abandon(id);
            self.ack(from, &piece, 0, true);
            return Ok(());
        };
        let shelf = receiving.shelf;
        let mut changes = receiving.rebuild.finish();
        let state = State {
            shelf: shelf.0,
            versions_shelf: 0,
            pieces: Vec::new(),
            past: Vec::new(),
            size: receiving.rebuild.size,
            keys: receiving.rebuild.keys,
            ..sent.state
        };
        for packed in &sent.changes {
            for (revision, list) in changes::unpack(packed).unwrap_or_default() {
                self.store.put_raw(layout::twice_key(shelf, revision), Bytes::new());
                // Where the version before stands is every node's own matter.
                let here = |change: &Change| Change { previous_cost: None, ..change.clone() };
                changes.insert(revision, list.iter().map(here).collect());
            }
        }
        // What lies below both was removed at the sender, or is of no use to anybody.
        let low = state.compacted.min(state.swept);
        for (revision, list) in changes {
            if revision >= low {
                self.store.note(shelf, revision, list);
            }
        }
        for lease in &sent.leases {
            self.store.put_raw(layout::lease_key(shelf, lease.id), leases::row(lease.ttl_s));
        }
        for (lease, key) in std::mem::take(&mut receiving.rebuild.leased) {
            self.store.put_raw(layout::lease_key_key(shelf, lease, &key), Bytes::new());
        }
        for (first, live) in std::mem::take(&mut receiving.rebuild.counts.blocks) {
            self.store.put_raw(layout::counts_key(shelf, &first), counts::row(live));
        }
        self.store.put_raw(layout::staged_key(shelf), super::encode(&state));
        receiving.finish = piece.finish;
        receiving.phase = Phase::Freezing;
        self.checkpoints.forced = true;
        Ok(())
    }

    fn ack(&mut self, to: NodeId, piece: &SnapshotPiece, next: u64, refused: bool) {
        let ack = SnapshotAck {
            group: piece.group,
            to: piece.from,
            from: piece.to,
            transfer: piece.transfer,
            next,
            refused,
        };
        let body = Some(peer_message::Body::Ack(ack));
        self.outputs.push(Output::Send { to, message: PeerMessage { body } });
    }

    /// A checkpoint is durable: snapshots that are in it can be stepped.
    pub(super) fn installed(&mut self) -> Result<(), NodeError> {
        let ids: Vec<_> = self
            .transfers
            .receiving
            .iter()
            .filter(|(_, r)| r.phase == Phase::Frozen)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(receiving) = self.transfers.receiving.get_mut(&id) else { continue };
            receiving.phase = Phase::Stepped;
            let piece = SnapshotPiece {
                group: id.0,
                from: receiving.from_replica,
                transfer: receiving.transfer,
                to: self.groups.get(&id).map_or(0, |group| group.core.key().replica),
                ..Default::default()
            };
            let (from, next) = (receiving.from, receiving.next);
            let finish = receiving.finish.take();
            self.ack(from, &piece, next, false);
            if let Some(finish) = finish {
                // Raft is to say, or nobody, that it is not wanted.
                self.touch(id);
                self.hear_raft(from, finish)?;
            }
        }
        if self.transfers.receiving.values().any(|r| r.phase == Phase::Freezing) {
            self.checkpoints.forced = true;
        }
        Ok(())
    }

    /// Drops a snapshot that was stepped and that Raft did not want: it is of an old leader,
    /// or the log has caught up meanwhile. Until then no other one would be taken.
    pub(super) fn drop_unwanted(&mut self, id: GroupId) {
        if self.transfers.receiving.get(&id).is_some_and(|r| r.phase == Phase::Stepped) {
            self.abandon(id);
        }
    }

    /// Raft took the snapshot: its shelf is the state from here on.
    pub(super) fn adopt(
        &mut self,
        id: GroupId,
        snapshot: &Snapshot,
        persist: u64,
    ) -> Result<(), NodeError> {
        let meta = snapshot.get_metadata();
        let Some(receiving) = self.transfers.receiving.remove(&id) else {
            return Err(NodeError::Damaged("a snapshot was stepped without its rows".into()));
        };
        assert!(receiving.phase == Phase::Stepped, "a snapshot is adopted when it is durable");
        let staged = self.store.row(&layout::staged_key(receiving.shelf))?;
        let state = staged.and_then(|staged| State::decode(staged).ok()).ok_or_else(|| {
            NodeError::Damaged("the state of an installed snapshot cannot be read".into())
        })?;
        assert_eq!(state.applied_index, meta.index, "the rows are of another snapshot");
        let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
        let before = group.machine.shelves().clone();
        group.machine.restore(state)?;
        group.publish_membership();
        group.seed_anew = false;
        group.core.end_seeking();
        // What was proposed here and lies below the snapshot may be in it or not.
        let above = group.proposals.split_off(&(meta.index + 1, 0));
        let below = std::mem::replace(&mut group.proposals, above);
        self.records.push(Record::Restore {
            key: group.core.key(),
            index: meta.index,
            term: meta.term,
            conf_state: super::encode(&wire::conf_to_wire(meta.get_conf_state())),
            shelf: receiving.shelf.0,
        });
        let restore = Restore { persist, index: meta.index, term: meta.term };
        self.transfers.restores.insert(id, restore);
        self.unsettled.insert(id);
        self.changed.insert(id);
        self.sweeping.insert(id);
        self.note_sharing(id);
        self.swallow_covered(id);
        self.discard(before.all());
        let error = GroupError::unknown(Error::LeaderChanged);
        for then in below.into_values().flatten() {
            self.give_up(id, then, error);
        }
        self.announce(Output::Replaced { group: id });
        self.announce(Output::Members { group: id });
        Ok(())
    }

    /// A write is durable: a restore in it may be told to Raft.
    pub(super) fn restored(&mut self, id: GroupId, persist: u64) {
        if self.transfers.restores.get(&id).is_some_and(|restore| restore.persist <= persist)
            && let Some(restore) = self.transfers.restores.remove(&id)
            && let Some(group) = self.groups.get_mut(&id)
        {
            group.core.applied(restore.index, restore.term);
            self.store.remove(layout::staged_key(group.machine.shelf()));
            self.checkpoints.force(self.now_ms);
        }
    }
}
