//! Puts and deletes, alone or inside a transaction.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use proto::etcd::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, ResponseHeader,
};
use proto::group::{Reply, WatchEvent};
use proto::mvccpb::{Event, KeyValue, event::EventType};
use proto::{Error, KeyRange};

use super::effect::{ChangeEvent, Effect, RevisionEvents};
use super::{Answer, Machine};
use crate::engine::EngineError;
use crate::store::changes::Change;
use crate::store::layout::{self, Row};
use crate::store::view::{Found, View};

/// A command's changes on their way: all under one revision, which exists only if there is
/// at least one.
pub(super) struct Changes {
    /// Sees the command's own rows.
    pub(super) view: View,
    /// Newest revision before the command.
    pub(super) begin: i64,
    pub(super) list: Vec<Change>,
    /// Places in the list that created or deleted a key.
    counted: Vec<(usize, i32)>,
    events: Vec<ChangeEvent>,
    /// A value for the answer is damaged on this disk. The changes are made all the same: other
    /// replicas make them, too.
    pub(super) damaged: bool,
    /// Place of the next change in its revision.
    pub(super) next_place: u32,
}

impl Changes {
    /// Revision that a reader inside the command is told.
    pub(super) fn revision(&self) -> i64 {
        self.begin + i64::from(!self.list.is_empty())
    }

    fn take_place(&mut self) -> u32 {
        let place = self.next_place;
        self.next_place += 1;
        place
    }

    /// An earlier operation's row is about to be overwritten: its change keeps it, together
    /// with its value.
    fn overwrite(&mut self, key: &Bytes, row: &Row) -> Result<(), EngineError> {
        if let Some(change) = self.list.iter_mut().rev().find(|change| change.key == *key) {
            change.overwritten = Some(self.view.inline(row.clone())?);
        }
        Ok(())
    }

    /// What is told to the client of a version, if its value can be read here.
    fn shown(&mut self, key: &Bytes, found: &Found) -> Result<Option<KeyValue>, EngineError> {
        match self.view.kv(key.clone(), found) {
            Ok(kv) => Ok(Some(kv)),
            Err(EngineError::Value(_)) => {
                self.damaged = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What stood under `key` before the command. Watchers are told this as the previous
    /// value of every change of the revision, as etcd does, which reads one revision back.
    fn before(&self, key: &Bytes, live: &Found) -> Result<Option<Found>, EngineError> {
        if live.revision <= self.begin {
            return Ok(Some(live.clone()));
        }
        self.view.at(self.begin).get(key)
    }

    /// See [`Change::previous_cost`].
    fn cost_before(&self, key: &Bytes, previous: Option<&Found>, live: &Found) -> Option<i64> {
        let first = live.revision <= self.begin;
        let found = previous.filter(|found| first && found.row.value.extent().is_none())?;
        Some(found.row.cost(key.len()))
    }

    pub(super) fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.revision(), ..Default::default() })
    }
}

impl Machine {
    pub(super) fn begin(&self) -> Changes {
        let begin = self.state.revision;
        let view = self.store.view(&self.shelves.pieces, begin + 1);
        let (list, counted, events) = (Vec::new(), Vec::new(), Vec::new());
        Changes { view, begin, list, counted, events, damaged: false, next_place: 0 }
    }

    /// Makes the changes a revision, if there are any, and answers.
    pub(super) fn commit(
        &mut self,
        changes: Changes,
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) -> Result<Answer, EngineError> {
        let answer = if changes.damaged { Err(Error::DamagedValue) } else { Ok(reply) };
        if changes.list.is_empty() {
            return Ok(answer);
        }
        let revision = changes.begin + 1;
        self.state.revision = revision;
        let after = std::mem::replace(&mut self.fed, revision);
        self.count(revision, &changes)?;
        if changes.list.iter().any(|change| change.overwritten.is_some()) {
            self.store.put_raw(layout::twice_key(self.shelf(), revision), Bytes::new());
        }
        self.store.note(self.shelf(), revision, Arc::from(changes.list));
        let events = RevisionEvents { revision, after, events: changes.events };
        effects.push(Effect::Events(Arc::new(events)));
        Ok(answer)
    }

    /// Keeps the counts of live keys.
    fn count(&self, revision: i64, changes: &Changes) -> Result<(), EngineError> {
        let counted = changes.counted.iter();
        let counted =
            counted.filter_map(|(at, by)| changes.list.get(*at).map(|change| (&change.key, *by)));
        let large = self.published.counts().write().changed(revision, counted);
        let Some(large) = large else { return Ok(()) };
        // The first block and the last one reach over the group's range.
        let part = self.shelves.within(&large);
        let mut keys: Vec<Bytes> = Vec::new();
        self.store.view(&self.shelves.pieces, revision).unseen().scan(&part, &mut |key, _| {
            keys.push(key);
            ControlFlow::Continue(())
        })?;
        let left = keys.len() / 2;
        // Not below the block's own beginning, which no key needs to have.
        if let Some(middle) = keys.get(left).filter(|middle| **middle > large.start) {
            self.published.counts().write().cut(&large.start, middle.clone(), left as u32);
        }
        Ok(())
    }

    pub(super) fn apply_put(
        &mut self,
        request: &PutRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<Answer, EngineError> {
        let mut changes = self.begin();
        if let Err(error) = self.check_put(&changes.view, request)? {
            return Ok(Err(error));
        }
        let response = self.put(&mut changes, request)?;
        self.commit(changes, Reply::Put(response), effects)
    }

    /// Everything that can be wrong with a put, before anything is written.
    pub(super) fn check_put(
        &self,
        view: &View,
        request: &PutRequest,
    ) -> Result<Result<(), Error>, EngineError> {
        let must_be_known = request.lease != 0 && self.checks_leases();
        if must_be_known && !self.leases.contains_key(&request.lease) {
            return Ok(Err(Error::LeaseNotFound));
        }
        if request.ignore_value || request.ignore_lease {
            let Some(found) = view.get(&request.key)? else {
                return Ok(Err(Error::KeyNotFound));
            };
            if request.ignore_value {
                // Whether it can be read is known before anything is written.
                view.value(&found.row)?;
            }
        }
        Ok(Ok(()))
    }

    /// Writes a checked put.
    pub(super) fn put(
        &mut self,
        changes: &mut Changes,
        request: &PutRequest,
    ) -> Result<PutResponse, EngineError> {
        let key = &request.key;
        let revision = changes.begin + 1;
        let newest = changes.view.version(key)?;
        let live = newest.as_ref().filter(|found| !found.row.deleted);
        let versions = self.shelves.pieces.shelf_of(key);
        let (bytes, value, placed) = match live {
            // An extent has one row: a value that stays is written again.
            Some(found) if request.ignore_value => {
                let bytes = changes.view.value(&found.row)?;
                let least = if found.row.value.extent().is_some() { 0 } else { usize::MAX };
                let value = self.store.place(versions, key, bytes.clone(), least)?;
                let placed = value.extent().copied();
                (bytes, value, placed)
            }
            _ => (request.value.clone(), self.placed.value(&request.value), None),
        };
        let row = Row {
            deleted: false,
            place: changes.take_place(),
            create_revision: live.map_or(revision, |found| found.row.create_revision),
            version: live.map_or(0, |found| found.row.version) + 1,
            lease: match live {
                Some(found) if request.ignore_lease => found.row.lease,
                _ => request.lease,
            },
            value,
        };
        let old_lease = live.map_or(0, |found| found.row.lease);
        if old_lease != row.lease {
            if old_lease != 0 {
                self.store.remove(layout::lease_key_key(versions, old_lease, key));
            }
            if row.lease != 0 {
                self.store.put_raw(layout::lease_key_key(versions, row.lease, key), Bytes::new());
            }
        }
        // An earlier operation of the same transaction may have written this very row.
        let replaced = newest.as_ref().filter(|found| found.revision == revision);
        self.state.size -= replaced.map_or(0, |found| found.row.cost(key.len()));
        self.state.size += row.cost(key.len());
        self.state.keys += i64::from(live.is_none());
        self.digest(key, revision, Some(&bytes));
        let answered = match live.filter(|_| request.prev_kv) {
            Some(found) => changes.shown(key, found)?,
            None => None,
        };
        let previous = match live {
            Some(live) if row.create_revision < revision => changes.before(key, live)?,
            _ => None,
        };
        if let Some(found) = replaced {
            changes.overwrite(key, &found.row)?;
            self.store.replaces(versions, &found.row);
        }
        if live.is_none() {
            changes.counted.push((changes.list.len(), 1));
        }
        changes.list.push(Change {
            key: key.clone(),
            deleted: false,
            place: row.place,
            previous: previous.as_ref().map_or(0, |found| found.revision),
            previous_cost: live.and_then(|live| changes.cost_before(key, previous.as_ref(), live)),
            overwritten: None,
        });
        let place = row.place;
        let found = Found { revision, row };
        let kv = Some(found.with(key.clone(), bytes));
        let event = Event { r#type: EventType::Put as i32, kv, prev_kv: None };
        self.store.put_version(versions, key, revision, found.row);
        if let Some(pointer) = placed {
            // No record held it, only this command.
            self.store.extents().let_go(&pointer);
        }
        changes.events.push(ChangeEvent { event: WatchEvent::new(event, place), previous });
        Ok(PutResponse { header: changes.header(), prev_kv: answered })
    }

    pub(super) fn apply_delete(
        &mut self,
        request: &DeleteRangeRequest,
        effects: &mut Vec<Effect>,
    ) -> Result<Answer, EngineError> {
        let mut changes = self.begin();
        let response = self.delete_range(&mut changes, request)?;
        self.commit(changes, Reply::DeleteRange(response), effects)
    }

    pub(super) fn delete_range(
        &mut self,
        changes: &mut Changes,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, EngineError> {
        let mut found = Vec::new();
        if request.range_end.is_empty() {
            if let Some(one) = changes.view.get(&request.key)? {
                found.push((request.key.clone(), one));
            }
        } else {
            let range = KeyRange::parse(&request.key, &request.range_end);
            changes.view.scan(&range, &mut |key, one| {
                // It stays in the recent table: not with the whole block that it came in.
                found.push((Bytes::copy_from_slice(&key), one));
                ControlFlow::Continue(())
            })?;
        }
        let deleted = found.len() as i64;
        let mut prev_kvs = Vec::new();
        for (key, one) in found {
            if request.prev_kv {
                prev_kvs.extend(changes.shown(&key, &one)?);
            }
            self.delete(changes, key, one)?;
        }
        Ok(DeleteRangeResponse { header: changes.header(), deleted, prev_kvs })
    }

    /// Deletes a live key.
    pub(super) fn delete(
        &mut self,
        changes: &mut Changes,
        key: Bytes,
        live: Found,
    ) -> Result<(), EngineError> {
        let revision = changes.begin + 1;
        let versions = self.shelves.pieces.shelf_of(&key);
        if live.row.lease != 0 {
            self.store.remove(layout::lease_key_key(versions, live.row.lease, &key));
        }
        let place = changes.take_place();
        let row = Row { deleted: true, place, ..Default::default() };
        let previous = changes.before(&key, &live)?;
        if live.revision == revision {
            self.state.size -= live.row.cost(key.len());
            changes.overwrite(&key, &live.row)?;
            self.store.replaces(versions, &live.row);
        }
        self.state.size += row.cost(key.len());
        self.state.keys -= 1;
        self.digest(&key, revision, None);
        self.store.put_version(versions, &key, revision, row);
        changes.counted.push((changes.list.len(), -1));
        changes.list.push(Change {
            key: key.clone(),
            deleted: true,
            place,
            previous: previous.as_ref().map_or(0, |found| found.revision),
            previous_cost: changes.cost_before(&key, previous.as_ref(), &live),
            overwritten: None,
        });
        let kv = KeyValue { key, mod_revision: revision, ..Default::default() };
        let event = Event { r#type: EventType::Delete as i32, kv: Some(kv), prev_kv: None };
        changes.events.push(ChangeEvent { event: WatchEvent::new(event, place), previous });
        Ok(())
    }
}
