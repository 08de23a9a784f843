//! Leases in the machine: which exist, with which TTL, and which keys hang on them. When
//! they expire is the leader's business (`lease.rs`); here time does not exist.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::Error;
use proto::etcd::{LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeResponse};
use proto::group::Reply;

use super::effect::Effect;
use super::{Answer, Machine};
use crate::engine::EngineError;
use crate::store::Store;
use crate::store::layout::{self, Shelf, put_varint, take_varint};
use crate::store::shelves::Shelves;

/// Reads the leases of a shelf.
pub(super) fn load(store: &Store, shelf: Shelf) -> Result<BTreeMap<i64, i64>, EngineError> {
    let (from, to) = layout::leases_bounds(shelf);
    let mut leases = BTreeMap::new();
    for (key, value) in store.rows(&from, &to)? {
        let (Some(lease), Some(ttl_s)) = (layout::split_lease(&key), take_varint(&value, &mut 0))
        else {
            return Err(EngineError::Failed("a lease cannot be read".into()));
        };
        leases.insert(lease, ttl_s as i64);
    }
    Ok(leases)
}

/// The row of a lease.
pub fn row(ttl_s: i64) -> Bytes {
    let mut out = Vec::new();
    put_varint(&mut out, ttl_s as u64);
    out.into()
}

/// Keys of a group that are attached to a lease, ascending.
pub fn attached(store: &Store, shelves: &Shelves, lease: i64) -> Result<Vec<Bytes>, EngineError> {
    let mut keys = Vec::new();
    for (shelf, range) in shelves.versions() {
        let (from, to) = layout::lease_keys_bounds(shelf, lease, &range);
        let rows = store.rows(&from, &to)?;
        keys.extend(rows.iter().filter_map(|(row, _)| Some(layout::split_lease_key(row)?.1)));
    }
    Ok(keys)
}

/// Before format 3 the keys of leases stood on the group's own shelf, and nowhere else: puts them where
/// their versions are, in place of what others may have left there. May be done again.
pub fn shelve_with_versions(store: &Store, shelves: &Shelves) -> Result<(), EngineError> {
    let rows = |shelf| -> Result<Vec<(Bytes, i64, Bytes)>, EngineError> {
        let (from, to) = layout::all_lease_keys_bounds(shelf);
        let rows = store.rows(&from, &to)?.into_iter();
        let split = |(row, _): (Bytes, Bytes)| {
            let (lease, key) = layout::split_lease_key(&row)
                .ok_or_else(|| EngineError::Failed("a lease's key cannot be read".into()))?;
            Ok((row, lease, key))
        };
        rows.map(split).collect()
    };
    let own = rows(shelves.own)?;
    for (shelf, range) in shelves.versions().filter(|(shelf, _)| *shelf != shelves.own) {
        for (row, ..) in rows(shelf)?.iter().filter(|(.., key)| range.contains(key)) {
            store.remove(row.to_vec());
        }
        for (row, lease, key) in own.iter().filter(|(.., key)| range.contains(key)) {
            store.put_raw(layout::lease_key_key(shelf, *lease, key), Bytes::new());
            store.remove(row.to_vec());
        }
    }
    Ok(())
}

impl Machine {
    pub(super) fn apply_grant(
        &mut self,
        request: &LeaseGrantRequest,
        effects: &mut Vec<Effect>,
    ) -> Answer {
        if self.leases.contains_key(&request.id) {
            return Err(Error::LeaseExists);
        }
        self.leases.insert(request.id, request.ttl);
        self.store.put_raw(layout::lease_key(self.shelf(), request.id), row(request.ttl));
        effects.push(Effect::LeaseGranted { lease: request.id, ttl_s: request.ttl });
        Ok(Reply::LeaseGrant(LeaseGrantResponse {
            header: self.header(),
            id: request.id,
            ttl: request.ttl,
            error: String::new(),
        }))
    }

    pub(super) fn apply_revoke(
        &mut self,
        lease: i64,
        effects: &mut Vec<Effect>,
    ) -> Result<Answer, EngineError> {
        if self.leases.remove(&lease).is_none() {
            return Ok(Err(Error::LeaseNotFound));
        }
        self.store.remove(layout::lease_key(self.shelf(), lease));
        let mut changes = self.begin();
        for key in attached(&self.store, &self.shelves, lease)? {
            // The version says which lease it hangs on; the row only where to look.
            if let Some(live) = changes.view.get(&key)?
                && live.row.lease == lease
            {
                self.delete(&mut changes, key, live)?;
            }
        }
        let reply = Reply::LeaseRevoke(LeaseRevokeResponse { header: changes.header() });
        let answer = self.commit(changes, reply, effects)?;
        effects.push(Effect::LeaseRevoked { lease });
        Ok(answer)
    }
}
