//! What one server calls things whose names are its own: ids, keys made from ids. Masking
//! replaces them in an answer by words that both servers share, so that the rest of two
//! answers can be compared with `==`.

use std::collections::HashMap;

use bytes::Bytes;
use proto::{etcd, mvccpb, v3electionpb, v3lockpb};

use super::exception::Exception;

const OWN: u64 = 1;
const OTHER: u64 = 2;
/// Shared word for the first lease that the server picked; the next ones follow.
const FIRST_CHOSEN: i64 = -1_000_000_000;

/// One server's own names.
#[derive(Clone, Debug, Default)]
pub struct Names {
    cluster_id: u64,
    member_id: u64,
    leases: HashMap<i64, i64>,
    keys: HashMap<Bytes, Bytes>,
}

impl Names {
    /// Returns the names of a server of which only its ids are known.
    pub fn new(cluster_id: u64, member_id: u64) -> Self {
        Self { cluster_id, member_id, ..Default::default() }
    }

    /// Notes that the server picked `id` for a lease; both servers must be told in one order.
    pub fn chose_lease(&mut self, id: i64) {
        let word = FIRST_CHOSEN - self.leases.len() as i64;
        self.leases.insert(id, word);
    }

    /// Says whether a client knows of a lease.
    pub fn knows_lease(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Notes that a client granted a lease under an id of its own.
    pub fn asked_for_lease(&mut self, id: i64) {
        self.leases.insert(id, id);
    }

    /// Notes that `key`, which starts with `prefix`, ends in an id that the server picked.
    pub fn chose_key(&mut self, prefix: &Bytes, key: &Bytes) {
        let word = format!("/#{}", self.keys.len());
        self.keys.insert(key.clone(), Bytes::from([prefix.as_ref(), word.as_bytes()].concat()));
    }

    fn lease(&self, id: &mut i64) {
        if let Some(word) = self.leases.get(id)
            && word != id
        {
            Exception::ChosenLease.used();
            *id = *word;
        }
    }

    fn key(&self, key: &mut Bytes) {
        if !self.keys.is_empty()
            && let Some(word) = self.keys.get(key)
        {
            Exception::SessionKey.used();
            *key = word.clone();
        }
    }

    fn member(&self, id: &mut u64) {
        if *id != 0 {
            Exception::MemberId.used();
            *id = if *id == self.member_id { OWN } else { *id | OTHER << 62 };
        }
    }
}

/// An answer, or a part of one, that names things in its server's own words.
pub trait Mask {
    /// Replaces the server's own words by shared ones.
    fn mask(&mut self, names: &Names);
}

impl<T: Mask> Mask for Option<T> {
    fn mask(&mut self, names: &Names) {
        if let Some(part) = self {
            part.mask(names);
        }
    }
}

impl<T: Mask> Mask for Vec<T> {
    fn mask(&mut self, names: &Names) {
        for part in self {
            part.mask(names);
        }
    }
}

impl Mask for etcd::ResponseHeader {
    fn mask(&mut self, names: &Names) {
        if self.cluster_id != 0 {
            Exception::ClusterId.used();
            self.cluster_id = if self.cluster_id == names.cluster_id { OWN } else { OTHER };
        }
        names.member(&mut self.member_id);
        if self.raft_term != 0 {
            Exception::RaftTerm.used();
            self.raft_term = 1;
        }
    }
}

impl Mask for mvccpb::KeyValue {
    fn mask(&mut self, names: &Names) {
        names.lease(&mut self.lease);
        names.key(&mut self.key);
    }
}

impl Mask for mvccpb::Event {
    fn mask(&mut self, names: &Names) {
        self.kv.mask(names);
        self.prev_kv.mask(names);
    }
}

/// Masks the named fields, each of which must itself be maskable.
macro_rules! mask_fields {
    ($($message:path { $($field:ident),* })*) => {
        $(impl Mask for $message {
            fn mask(&mut self, names: &Names) {
                $(self.$field.mask(names);)*
            }
        })*
    };
}

mask_fields! {
    etcd::RangeResponse { header, kvs }
    etcd::PutResponse { header, prev_kv }
    etcd::DeleteRangeResponse { header, prev_kvs }
    etcd::TxnResponse { header, responses }
    etcd::CompactionResponse { header }
    etcd::LeaseRevokeResponse { header }
    etcd::DefragmentResponse { header }
    etcd::MoveLeaderResponse { header }
    etcd::AuthStatusResponse { header }
    etcd::WatchResponse { header, events }
    etcd::AlarmResponse { header, alarms }
    etcd::MemberListResponse { header, members }
    v3lockpb::UnlockResponse { header }
    v3electionpb::ProclaimResponse { header }
    v3electionpb::ResignResponse { header }
    v3electionpb::LeaderResponse { header, kv }
    v3electionpb::CampaignResponse { header, leader }
}

impl Mask for etcd::ResponseOp {
    fn mask(&mut self, names: &Names) {
        use etcd::response_op::Response;
        match &mut self.response {
            Some(Response::ResponseRange(range)) => range.mask(names),
            Some(Response::ResponsePut(put)) => put.mask(names),
            Some(Response::ResponseDeleteRange(delete)) => delete.mask(names),
            Some(Response::ResponseTxn(txn)) => txn.mask(names),
            None => {}
        }
    }
}

impl Mask for etcd::LeaseGrantResponse {
    fn mask(&mut self, names: &Names) {
        self.header.mask(names);
        names.lease(&mut self.id);
    }
}

impl Mask for etcd::LeaseTimeToLiveResponse {
    fn mask(&mut self, names: &Names) {
        self.header.mask(names);
        names.lease(&mut self.id);
        for key in &mut self.keys {
            names.key(key);
        }
    }
}

impl Mask for etcd::LeaseKeepAliveResponse {
    fn mask(&mut self, names: &Names) {
        self.header.mask(names);
        names.lease(&mut self.id);
    }
}

impl Mask for etcd::LeaseLeasesResponse {
    fn mask(&mut self, names: &Names) {
        self.header.mask(names);
        Exception::OrphanLease.used();
        self.leases.retain(|lease| names.knows_lease(lease.id));
        for lease in &mut self.leases {
            names.lease(&mut lease.id);
        }
        Exception::LeaseOrder.used();
        self.leases.sort_by_key(|lease| lease.id);
    }
}

impl Mask for etcd::AlarmMember {
    fn mask(&mut self, names: &Names) {
        names.member(&mut self.member_id);
    }
}

impl Mask for etcd::Member {
    fn mask(&mut self, names: &Names) {
        Exception::MemberUrls.used();
        names.member(&mut self.id);
        presence(&mut self.name);
        self.peer_ur_ls.truncate(1);
        self.client_ur_ls.truncate(1);
        self.peer_ur_ls.iter_mut().chain(&mut self.client_ur_ls).for_each(presence);
    }
}

impl Mask for etcd::StatusResponse {
    fn mask(&mut self, names: &Names) {
        self.header.mask(names);
        for error in &mut self.errors {
            Exception::AlarmText.used();
            *error = error.replace(&names.member_id.to_string(), "OWN").replace("  ", " ");
        }
        Exception::Version.used();
        presence(&mut self.version);
        presence(&mut self.storage_version);
        Exception::DbSize.used();
        self.db_size = self.db_size.signum();
        self.db_size_in_use = self.db_size_in_use.signum();
        Exception::RaftIndex.used();
        self.raft_index = self.raft_index.min(1);
        self.raft_applied_index = self.raft_applied_index.min(1);
        self.raft_term = self.raft_term.min(1);
        names.member(&mut self.leader);
    }
}

impl Mask for etcd::HashResponse {
    fn mask(&mut self, names: &Names) {
        self.header.mask(names);
        Exception::HashValue.used();
        self.hash = 0;
    }
}

impl Mask for etcd::HashKvResponse {
    fn mask(&mut self, names: &Names) {
        self.header.mask(names);
        Exception::HashValue.used();
        self.hash = 0;
    }
}

impl Mask for etcd::DowngradeResponse {
    fn mask(&mut self, names: &Names) {
        self.header.mask(names);
        Exception::Version.used();
        presence(&mut self.version);
    }
}

impl Mask for v3lockpb::LockResponse {
    fn mask(&mut self, names: &Names) {
        self.header.mask(names);
        names.key(&mut self.key);
    }
}

impl Mask for v3electionpb::LeaderKey {
    fn mask(&mut self, names: &Names) {
        names.key(&mut self.key);
        names.lease(&mut self.lease);
    }
}

/// Leaves of a text only whether there is one.
fn presence(text: &mut String) {
    if !text.is_empty() {
        *text = "present".to_owned();
    }
}
