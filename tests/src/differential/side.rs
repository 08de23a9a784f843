//! One of the two servers: carries out a step against it and returns its answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use proto::etcd::cluster_client::ClusterClient;
use proto::etcd::kv_client::KvClient;
use proto::etcd::lease_client::LeaseClient;
use proto::etcd::maintenance_client::MaintenanceClient;
use proto::v3electionpb::election_client::ElectionClient;
use proto::v3lockpb::lock_client::LockClient;
use proto::{etcd, v3electionpb, v3lockpb};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::answer::Answer;
use super::exception::Exception;
use super::names::Names;
use super::op::{Numbers, Op};
use super::raw;

/// How long an answer may take before the server counts as silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a lock or a campaign may wait for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a key is looked for while waiting.
const KEY_POLL: Duration = Duration::from_millis(2);
const EXPIRY_POLL: Duration = Duration::from_millis(50);

/// A server and what a script has learnt from it.
#[derive(Debug)]
pub struct Side {
    channel: Channel,
    watches: Channel,
    /// The server's own names.
    pub names: Arc<Names>,
    /// What stand-in numbers mean to it.
    pub numbers: Numbers,
    last_lock: Bytes,
    last_leader: v3electionpb::LeaderKey,
}

impl Side {
    /// Connects to the server at `url` and asks who it is.
    pub async fn connect(url: &str) -> Result<Self, String> {
        let fail = |e: &dyn std::fmt::Display| format!("connect to {url}: {e}");
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| fail(&e))?;
        let endpoint = endpoint.tcp_nodelay(true).connect_timeout(ANSWER_TIMEOUT);
        let channel = endpoint.connect().await.map_err(|e| fail(&e))?;
        let watches = endpoint.connect().await.map_err(|e| fail(&e))?;
        let status = MaintenanceClient::new(channel.clone())
            .status(etcd::StatusRequest {})
            .await
            .map_err(|e| fail(&e))?
            .into_inner();
        let header = status.header.unwrap_or_default();
        let compacted = MaintenanceClient::new(channel.clone())
            .hash_kv(etcd::HashKvRequest { revision: 0 })
            .await
            .map_or(-1, |hash| hash.get_ref().compact_revision);
        let names = Names::new(header.cluster_id, header.member_id);
        let numbers = Numbers {
            revision: header.revision,
            compacted,
            member_id: header.member_id,
            ..Default::default()
        };
        Ok(Self {
            channel,
            watches,
            names: Arc::new(names),
            numbers,
            last_lock: Bytes::new(),
            last_leader: v3electionpb::LeaderKey::default(),
        })
    }

    /// Returns the connection that watch streams use.
    pub fn watch_channel(&self) -> Channel {
        self.watches.clone()
    }

    /// Forgets what only the last script knew.
    pub fn begin_script(&mut self) {
        self.numbers.chosen.clear();
        self.last_lock = Bytes::new();
        self.last_leader = v3electionpb::LeaderKey::default();
    }

    /// Carries out a step that is not about watches.
    pub async fn answer(&mut self, op: &Op) -> Answer {
        let timeout = match op {
            Op::Lock { .. } | Op::HandOver { .. } | Op::Campaign { .. } => TURN_TIMEOUT,
            _ => ANSWER_TIMEOUT,
        };
        tokio::time::timeout(timeout, self.dispatch(op)).await.unwrap_or(Answer::Silent)
    }

    async fn dispatch(&mut self, op: &Op) -> Answer {
        match op {
            Op::Range(request) => self.kv().range(self.numbers.range(request)).await.into(),
            Op::RangeStream(request) => self.range_stream(request).await,
            Op::Put(request) => self.kv().put(self.numbers.put(request)).await.into(),
            Op::DeleteRange(request) => self.kv().delete_range(request.clone()).await.into(),
            Op::Txn(request) => self.kv().txn(self.numbers.txn(request)).await.into(),
            Op::Compact(request) => {
                let revision = self.numbers.rev(request.revision);
                self.kv().compact(etcd::CompactionRequest { revision, ..*request }).await.into()
            }
            Op::Grant(_)
            | Op::Revoke(_)
            | Op::TimeToLive(_)
            | Op::Leases
            | Op::KeepAlive(_)
            | Op::Expire { .. } => self.lease_op(op).await,
            Op::Lock { .. } | Op::Unlock | Op::UnlockKey(_) | Op::HandOver { .. } => {
                self.lock_op(op).await
            }
            Op::Campaign { .. }
            | Op::Proclaim { .. }
            | Op::Leader(_)
            | Op::Observe(_)
            | Op::Resign { .. } => self.election_op(op).await,
            Op::Raw { method, body, .. } => {
                let sent = raw::send(self.channel.clone(), method, body.clone()).await;
                sent.map_or_else(Answer::from, |_| Answer::Nothing).code_only()
            }
            Op::Watch { .. }
            | Op::CancelWatch { .. }
            | Op::WatchProgress { .. }
            | Op::SyncWatch { .. } => unreachable!("the pair carries out watch steps"),
            _ => self.upkeep_op(op).await,
        }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// Returns the merged chunks, as `RangeResponse`.
    async fn range_stream(&self, request: &etcd::RangeRequest) -> Answer {
        Exception::StreamChunks.used();
        let mut chunks = match self.kv().range_stream(self.numbers.range(request)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return status.into(),
        };
        let mut merged = etcd::RangeResponse::default();
        while let Some(chunk) = chunks.next().await {
            let part = match chunk {
                Ok(chunk) => chunk.range_response.unwrap_or_default(),
                Err(status) => return status.into(),
            };
            // As proto.Merge does: lists grow, set fields replace.
            merged.kvs.extend(part.kvs);
            merged.more |= part.more;
            if part.count != 0 {
                merged.count = part.count;
            }
            merged.header = part.header.or(merged.header);
        }
        merged.into()
    }

    async fn lease_op(&mut self, op: &Op) -> Answer {
        let mut client = LeaseClient::new(self.channel.clone());
        match op {
            Op::Grant(request) => {
                let answer = client.lease_grant(*request).await;
                if let (0, Ok(granted)) = (request.id, &answer) {
                    let id = granted.get_ref().id;
                    self.numbers.chosen.push(id);
                    Arc::make_mut(&mut self.names).chose_lease(id);
                }
                if answer.is_ok() && !self.names.knows_lease(request.id) && request.id != 0 {
                    Arc::make_mut(&mut self.names).asked_for_lease(request.id);
                }
                answer.into()
            }
            Op::Revoke(request) => {
                let id = self.numbers.lease(request.id);
                client.lease_revoke(etcd::LeaseRevokeRequest { id }).await.into()
            }
            Op::TimeToLive(request) => {
                let id = self.numbers.lease(request.id);
                let request = etcd::LeaseTimeToLiveRequest { id, ..*request };
                client.lease_time_to_live(request).await.into()
            }
            Op::Leases => client.lease_leases(etcd::LeaseLeasesRequest {}).await.into(),
            Op::KeepAlive(ids) => {
                let ids: Vec<i64> = ids.iter().map(|id| self.numbers.lease(*id)).collect();
                keep_alive(client, ids).await
            }
            Op::Expire { lease, key } => self.expire(*lease, key).await,
            _ => unreachable!("not about leases"),
        }
    }

    /// Hangs `key` on a lease of the shortest TTL and waits until both are gone.
    async fn expire(&mut self, lease: i64, key: &Bytes) -> Answer {
        let grant = etcd::LeaseGrantRequest { ttl: 1, id: lease };
        let granted = LeaseClient::new(self.channel.clone()).lease_grant(grant).await;
        let put = etcd::PutRequest { key: key.clone(), lease, ..Default::default() };
        let put = self.kv().put(put).await;
        let range = etcd::RangeRequest { key: key.clone(), ..Default::default() };
        loop {
            let read = self.kv().range(range.clone()).await;
            match &read {
                Ok(response) if response.get_ref().count > 0 => {
                    tokio::time::sleep(EXPIRY_POLL).await;
                }
                _ => return Answer::Many(vec![granted.into(), put.into(), read.into()]),
            }
        }
    }

    async fn lock_op(&mut self, op: &Op) -> Answer {
        let mut client = LockClient::new(self.channel.clone());
        match op {
            Op::Lock { name, lease } => {
                let request =
                    v3lockpb::LockRequest { name: name.clone(), lease: self.numbers.lease(*lease) };
                let answer = client.lock(request).await;
                if let Ok(locked) = &answer {
                    self.last_lock = locked.get_ref().key.clone();
                    self.learn_session(name, &self.last_lock.clone(), *lease);
                }
                answer.into()
            }
            Op::Unlock => {
                let key = self.last_lock.clone();
                client.unlock(v3lockpb::UnlockRequest { key }).await.into()
            }
            Op::UnlockKey(key) => {
                client.unlock(v3lockpb::UnlockRequest { key: key.clone() }).await.into()
            }
            Op::HandOver { name, lease } => self.hand_over(name, self.numbers.lease(*lease)).await,
            _ => unreachable!("not about locks"),
        }
    }

    /// Notes the lease that the server made for a lock or an election, and its key.
    fn learn_session(&mut self, name: &Bytes, key: &Bytes, lease: i64) {
        if lease != 0 {
            return;
        }
        let text = String::from_utf8_lossy(key);
        let id = text.rsplit('/').next().and_then(|hex| i64::from_str_radix(hex, 16).ok());
        if let Some(id) = id {
            self.numbers.chosen.push(id);
            Arc::make_mut(&mut self.names).chose_lease(id);
            Arc::make_mut(&mut self.names).chose_key(name, key);
        }
    }

    /// Queues a second owner up, unlocks the first one's key, and returns what both got.
    async fn hand_over(&mut self, name: &Bytes, lease: i64) -> Answer {
        let waiting = v3lockpb::LockRequest { name: name.clone(), lease };
        let mut client = LockClient::new(self.channel.clone());
        let second = tokio::spawn(async move { client.lock(waiting).await });
        let queued = Bytes::from([name.as_ref(), format!("/{lease:x}").as_bytes()].concat());
        let range = etcd::RangeRequest { key: queued, ..Default::default() };
        while !second.is_finished() {
            let read = self.kv().range(range.clone()).await;
            if read.is_ok_and(|response| response.get_ref().count > 0) {
                break;
            }
            tokio::time::sleep(KEY_POLL).await;
        }
        let key = self.last_lock.clone();
        let unlocked =
            LockClient::new(self.channel.clone()).unlock(v3lockpb::UnlockRequest { key }).await;
        let locked = second.await.unwrap_or_else(|e| Err(Status::unknown(e.to_string())));
        if let Ok(locked) = &locked {
            self.last_lock = locked.get_ref().key.clone();
        }
        Answer::Many(vec![unlocked.into(), locked.into()])
    }

    async fn election_op(&mut self, op: &Op) -> Answer {
        let mut client = ElectionClient::new(self.channel.clone());
        match op {
            Op::Campaign { name, lease, value } => {
                let request = v3electionpb::CampaignRequest {
                    name: name.clone(),
                    lease: self.numbers.lease(*lease),
                    value: value.clone(),
                };
                let answer = client.campaign(request).await;
                if let Ok(won) = &answer {
                    self.last_leader = won.get_ref().leader.clone().unwrap_or_default();
                    self.learn_session(name, &self.last_leader.key.clone(), *lease);
                }
                answer.into()
            }
            Op::Proclaim { value, held } => {
                let leader = held.then(|| self.last_leader.clone());
                let request = v3electionpb::ProclaimRequest { leader, value: value.clone() };
                client.proclaim(request).await.into()
            }
            Op::Leader(name) => {
                client.leader(v3electionpb::LeaderRequest { name: name.clone() }).await.into()
            }
            Op::Observe(name) => {
                let request = v3electionpb::LeaderRequest { name: name.clone() };
                match client.observe(request).await {
                    Ok(response) => match response.into_inner().next().await {
                        Some(Ok(first)) => first.into(),
                        Some(Err(status)) => status.into(),
                        None => Answer::Nothing,
                    },
                    Err(status) => status.into(),
                }
            }
            Op::Resign { held } => {
                let leader = held.then(|| self.last_leader.clone());
                client.resign(v3electionpb::ResignRequest { leader }).await.into()
            }
            _ => unreachable!("not about elections"),
        }
    }

    async fn upkeep_op(&mut self, op: &Op) -> Answer {
        let mut client = MaintenanceClient::new(self.channel.clone());
        match op {
            Op::Alarm(request) => {
                let member_id = self.numbers.member(request.member_id);
                client.alarm(etcd::AlarmRequest { member_id, ..*request }).await.into()
            }
            Op::Status => client.status(etcd::StatusRequest {}).await.into(),
            Op::Members { linearizable } => {
                let request = etcd::MemberListRequest { linearizable: *linearizable };
                ClusterClient::new(self.channel.clone()).member_list(request).await.into()
            }
            Op::Hash => client.hash(etcd::HashRequest {}).await.into(),
            Op::HashKv(request) => {
                let revision = self.numbers.rev(request.revision);
                client.hash_kv(etcd::HashKvRequest { revision }).await.into()
            }
            Op::MoveLeader { target } => {
                let target_id = self.numbers.member(*target);
                client.move_leader(etcd::MoveLeaderRequest { target_id }).await.into()
            }
            Op::Downgrade(request) => client.downgrade(request.clone()).await.into(),
            Op::Defragment => client.defragment(etcd::DefragmentRequest {}).await.into(),
            Op::AuthStatus => {
                let mut auth = etcd::auth_client::AuthClient::new(self.channel.clone());
                auth.auth_status(etcd::AuthStatusRequest {}).await.into()
            }
            _ => unreachable!("not about upkeep"),
        }
    }
}

/// Sends `ids` one by one on a stream, each after the answer to the one before.
async fn keep_alive(mut client: LeaseClient<Channel>, ids: Vec<i64>) -> Answer {
    let (sender, requests) = tokio::sync::mpsc::unbounded_channel();
    let mut ids = ids.into_iter();
    let mut send_next = move || {
        let request = ids.next().map(|id| etcd::LeaseKeepAliveRequest { id });
        request.is_some_and(|request| sender.send(request).is_ok())
    };
    send_next();
    let requests = tokio_stream::wrappers::UnboundedReceiverStream::new(requests);
    let mut answers = match client.lease_keep_alive(requests).await {
        Ok(response) => response.into_inner(),
        Err(status) => return status.into(),
    };
    let mut heard = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => heard.push(answer.into()),
            Err(status) => {
                heard.push(status.into());
                break;
            }
        }
        if !send_next() {
            break;
        }
    }
    Answer::Many(heard)
}
