//! One request on its way to a group: whose it is, where it goes, how long it may take.
//!
//! The only file that asks groups on behalf of clients. It stamps the route and the floor onto
//! each request, turns refusals into statuses, and completes headers.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use proto::{
    Error, GroupId, TenantId,
    cluster::group::GroupRequest,
    etcd::ResponseHeader,
    group::{GroupError, Reply, Request},
};
use tonic::Status;

use crate::{
    door::{Connection, Door},
    route::Target,
};

/// One request of one client.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) connection: Arc<Connection>,
    /// The client wants no answer from a group that has no leader.
    pub(crate) require_leader: bool,
    /// How long the group may take; the client's own deadline if that is shorter.
    timeout_ms: u64,
    /// Size of the request message, known since it was read.
    pub(crate) message_bytes: usize,
}

// === impl Caller ===

impl Caller {
    /// Reads what etcd looks for in a request's metadata.
    pub(crate) fn new(connection: Arc<Connection>, headers: &HeaderMap) -> Result<Caller, Status> {
        if let Some(version) = headers.get("client-api-version")
            && std::str::from_utf8(version.as_bytes()).is_err()
        {
            return Err(Error::InvalidClientApiVersion.into());
        }
        let require_leader = headers.get("hasleader").is_some_and(|value| value == "true");
        let longest = connection.door.config.request_timeout();
        let asked = headers.get("grpc-timeout").and_then(|value| deadline(value.as_bytes()));
        let timeout = asked.map_or(longest, |asked| asked.min(longest));
        let timeout_ms = (timeout.as_millis() as u64).max(1);
        let caller = Caller { connection, require_leader, timeout_ms, message_bytes: 0 };
        if require_leader && caller.door().groups.leaderless(caller.home()?.group) {
            return Err(Error::NoLeader.into());
        }
        Ok(caller)
    }

    /// The same client at its own leisure: for streams and for waiting calls, whose single
    /// requests have the server's time limit and not the whole call's deadline.
    pub(crate) fn unhurried(mut self) -> Caller {
        self.timeout_ms = self.door().config.request_timeout().as_millis() as u64;
        self
    }

    pub(crate) fn door(&self) -> &Arc<Door> {
        &self.connection.door
    }

    pub(crate) fn tenant(&self) -> TenantId {
        self.connection.tenant
    }

    /// The group that has `key`.
    pub(crate) fn place(&self, key: &[u8]) -> Result<Target, Status> {
        let map = self.door().map.load();
        map.lookup(self.tenant(), key).ok_or_else(|| Error::PermissionDenied.into())
    }

    /// Is this node's replica of the home group a learner?
    pub(crate) fn is_learner(&self) -> bool {
        self.home().is_ok_and(|home| self.door().groups.is_learner(home.group))
    }

    /// The tenant's home group.
    pub(crate) fn home(&self) -> Result<Target, Status> {
        let map = self.door().map.load();
        map.home(self.tenant()).ok_or_else(|| Error::PermissionDenied.into())
    }

    /// Asks `target`.
    pub(crate) async fn ask(&self, target: Target, body: Request) -> Result<Reply, GroupError> {
        let request = GroupRequest {
            tenant: target.tenant.0,
            namespace: target.namespace.0,
            group: target.group.0,
            range_version: target.range_version,
            floor: self.connection.floor(),
            timeout_ms: self.timeout_ms,
            body: Some(body),
        };
        self.door().groups.call(request).await
    }

    /// Asks the group that has `key`.
    pub(crate) async fn ask_about(&self, key: &[u8], body: Request) -> Result<Reply, Status> {
        self.ask(self.place(key)?, body).await.map_err(status)
    }

    /// Asks the home group.
    pub(crate) async fn ask_home(&self, body: Request) -> Result<Reply, Status> {
        self.ask(self.home()?, body).await.map_err(status)
    }

    /// Completes the header of an answer that the client is about to see.
    pub(crate) fn fill(&self, header: Option<ResponseHeader>) -> Option<ResponseHeader> {
        let header = header.unwrap_or_default();
        self.connection.show(header.revision);
        Some(self.sign(header))
    }

    /// Completes the header of an answer about members, which carries no revision.
    pub(crate) fn fill_member(&self, header: Option<ResponseHeader>) -> Option<ResponseHeader> {
        Some(self.sign(ResponseHeader { revision: 0, ..header.unwrap_or_default() }))
    }

    /// Puts the ids of cluster and member into `header`.
    pub(crate) fn sign(&self, header: ResponseHeader) -> ResponseHeader {
        let identity = self.door().groups.identity();
        ResponseHeader { cluster_id: identity.cluster_id, member_id: identity.member_id, ..header }
    }

    /// Resolves when `group` has had no leader for too long, if the client minds, or when the
    /// server stops; with the status that ends the stream.
    pub(crate) fn interruption(&self, group: GroupId) -> Interruption {
        let leaderless = self.require_leader.then(|| self.door().leadership.follow(group));
        Interruption { leaderless, closing: self.door().closing.subscribe() }
    }
}

/// What ends a stream from outside.
pub(crate) struct Interruption {
    leaderless: Option<tokio::sync::watch::Receiver<bool>>,
    closing: tokio::sync::watch::Receiver<bool>,
}

// === impl Interruption ===

impl Interruption {
    /// Waits for it; may be dropped and called again.
    pub(crate) async fn wait(&mut self) -> Status {
        let no_leader = async {
            match &mut self.leaderless {
                Some(signal) => signal.wait_for(|leaderless| *leaderless).await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = no_leader => Error::NoLeader.into(),
            _ = self.closing.wait_for(|closing| *closing) => Error::Stopped.into(),
        }
    }
}

/// The status of a group's refusal.
pub(crate) fn status(error: GroupError) -> Status {
    error.error.into()
}

/// A reply of a kind that was not asked for: a defect of the group, told as one.
pub(crate) fn misplaced() -> Status {
    Status::internal("atoll: the group's reply does not fit the request")
}

/// Takes the expected kind out of a reply.
macro_rules! answer {
    ($reply:expr, $kind:ident) => {
        match $reply {
            proto::group::Reply::$kind(inner) => inner,
            _ => return Err($crate::caller::misplaced()),
        }
    };
}
pub(crate) use answer;

/// Reads a `grpc-timeout`: up to eight digits and a unit.
fn deadline(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_in_all_units() {
        assert_eq!(deadline(b"2H"), Some(Duration::from_secs(7200)));
        assert_eq!(deadline(b"3M"), Some(Duration::from_secs(180)));
        assert_eq!(deadline(b"10S"), Some(Duration::from_secs(10)));
        assert_eq!(deadline(b"99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(deadline(b"5u"), Some(Duration::from_micros(5)));
        assert_eq!(deadline(b"7n"), Some(Duration::from_nanos(7)));
    }

    #[test]
    fn a_malformed_deadline_is_no_deadline() {
        for bad in [&b""[..], b"S", b"10", b"123456789S", b"-1S", b"1x"] {
            assert_eq!(deadline(bad), None, "{bad:?}");
        }
    }
}
