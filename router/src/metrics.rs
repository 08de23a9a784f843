//! What the router counts, and how everything measured is shown to Prometheus.
//!
//! Names and labels are etcd's, because dashboards and alerts ask for them. Three sources
//! meet on the page: the router's own counters of calls; the description of the tenant's home
//! group, asked for when the page is asked for; and what the node measures
//! ([`StatusSource`], given by whoever builds the router).
//!
//! Invariant: counting is a few relaxed additions; nothing is locked or allocated by a call.

mod page;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

pub(crate) use page::{page, tenant_page};
use tonic::Code;

/// A histogram as it stands now.
#[derive(Clone, Debug, Default)]
pub struct HistogramReading {
    /// Upper bound in seconds and number of observations at or below it, ascending; the bound
    /// "infinity" is left out.
    pub buckets: Vec<(f64, u64)>,
    /// Sum of all observations in seconds.
    pub sum: f64,
    /// Number of all observations.
    pub count: u64,
}

/// What a node measures about itself and the embedded tenant's replica on it.
#[derive(Clone, Debug, Default)]
pub struct NodeReport {
    /// Does this node lead the home group?
    pub is_leader: bool,
    /// Syncs of the log.
    pub log_sync: HistogramReading,
    /// Checkpoints into the engine.
    pub engine_commit: HistogramReading,
    /// Puts applied, as etcd counts them.
    pub puts_total: u64,
    /// Keys deleted.
    pub deletes_total: u64,
    /// Transactions applied.
    pub txns_total: u64,
    /// Ranges read.
    pub ranges_total: u64,
    /// Events sent to watches.
    pub events_total: u64,
    /// Watches that read from history.
    pub slow_watchers: u64,
    /// Events that wait for slow clients.
    pub pending_events: u64,
    /// Leases granted.
    pub leases_granted_total: u64,
    /// Leases revoked.
    pub leases_revoked_total: u64,
    /// Leases renewed.
    pub leases_renewed_total: u64,
    /// Leases expired.
    pub leases_expired_total: u64,
    /// Applies that took longer than etcd's warning threshold.
    pub slow_applies_total: u64,
    /// Read rounds that failed.
    pub read_indexes_failed_total: u64,
    /// Read rounds that were slow.
    pub slow_read_indexes_total: u64,
    /// Heartbeats that could not be sent in time.
    pub heartbeat_failures_total: u64,
    /// Bytes sent to each peer, by its member id in hex.
    pub peer_sent_bytes: Vec<(String, u64)>,
    /// Bytes received from each peer.
    pub peer_received_bytes: Vec<(String, u64)>,
    /// Messages to each peer that failed.
    pub peer_sent_failures: Vec<(String, u64)>,
    /// Round trips to each peer.
    pub peer_round_trips: Vec<(String, HistogramReading)>,
    /// More lines in Prometheus' text format, appended as they are.
    pub extra: String,
}

/// Who knows a node's own figures.
pub trait StatusSource: Send + Sync {
    /// The figures now; must not block.
    fn report(&self) -> NodeReport;
}

/// A source that knows nothing: for routers without a shard beside them, and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStatus;

impl StatusSource for NoStatus {
    fn report(&self) -> NodeReport {
        NodeReport::default()
    }
}

/// How a call runs, in the words of the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unary,
    ServerStream,
    BidiStream,
}

// === impl Kind ===

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }
}

macro_rules! rpcs {
    ($($name:ident = $kind:ident $service:literal $method:literal;)*) => {
        /// A call that the router answers. The often called come first: they are compared first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Rpc { $($name,)* }

        impl Rpc {
            pub(crate) const ALL: &[Rpc] = &[$(Rpc::$name,)*];

            /// The call with this HTTP path.
            pub(crate) fn from_path(path: &str) -> Option<Rpc> {
                match path {
                    $(concat!("/", $service, "/", $method) => Some(Rpc::$name),)*
                    _ => None,
                }
            }

            /// The service that the call belongs to.
            pub(crate) fn service(self) -> &'static str {
                self.labels().1
            }

            fn labels(self) -> (Kind, &'static str, &'static str) {
                match self { $(Rpc::$name => (Kind::$kind, $service, $method),)* }
            }
        }
    };
}

rpcs! {
    Put = Unary "etcdserverpb.KV" "Put";
    Range = Unary "etcdserverpb.KV" "Range";
    Txn = Unary "etcdserverpb.KV" "Txn";
    DeleteRange = Unary "etcdserverpb.KV" "DeleteRange";
    LeaseGrant = Unary "etcdserverpb.Lease" "LeaseGrant";
    RangeStream = ServerStream "etcdserverpb.KV" "RangeStream";
    Watch = BidiStream "etcdserverpb.Watch" "Watch";
    LeaseKeepAlive = BidiStream "etcdserverpb.Lease" "LeaseKeepAlive";
    LeaseRevoke = Unary "etcdserverpb.Lease" "LeaseRevoke";
    LeaseTimeToLive = Unary "etcdserverpb.Lease" "LeaseTimeToLive";
    LeaseLeases = Unary "etcdserverpb.Lease" "LeaseLeases";
    Compact = Unary "etcdserverpb.KV" "Compact";
    Status = Unary "etcdserverpb.Maintenance" "Status";
    Alarm = Unary "etcdserverpb.Maintenance" "Alarm";
    Defragment = Unary "etcdserverpb.Maintenance" "Defragment";
    Hash = Unary "etcdserverpb.Maintenance" "Hash";
    HashKv = Unary "etcdserverpb.Maintenance" "HashKV";
    Snapshot = ServerStream "etcdserverpb.Maintenance" "Snapshot";
    MoveLeader = Unary "etcdserverpb.Maintenance" "MoveLeader";
    Downgrade = Unary "etcdserverpb.Maintenance" "Downgrade";
    MemberAdd = Unary "etcdserverpb.Cluster" "MemberAdd";
    MemberRemove = Unary "etcdserverpb.Cluster" "MemberRemove";
    MemberUpdate = Unary "etcdserverpb.Cluster" "MemberUpdate";
    MemberList = Unary "etcdserverpb.Cluster" "MemberList";
    MemberPromote = Unary "etcdserverpb.Cluster" "MemberPromote";
    AuthEnable = Unary "etcdserverpb.Auth" "AuthEnable";
    AuthDisable = Unary "etcdserverpb.Auth" "AuthDisable";
    AuthStatus = Unary "etcdserverpb.Auth" "AuthStatus";
    Authenticate = Unary "etcdserverpb.Auth" "Authenticate";
    UserAdd = Unary "etcdserverpb.Auth" "UserAdd";
    UserGet = Unary "etcdserverpb.Auth" "UserGet";
    UserList = Unary "etcdserverpb.Auth" "UserList";
    UserDelete = Unary "etcdserverpb.Auth" "UserDelete";
    UserChangePassword = Unary "etcdserverpb.Auth" "UserChangePassword";
    UserGrantRole = Unary "etcdserverpb.Auth" "UserGrantRole";
    UserRevokeRole = Unary "etcdserverpb.Auth" "UserRevokeRole";
    RoleAdd = Unary "etcdserverpb.Auth" "RoleAdd";
    RoleGet = Unary "etcdserverpb.Auth" "RoleGet";
    RoleList = Unary "etcdserverpb.Auth" "RoleList";
    RoleDelete = Unary "etcdserverpb.Auth" "RoleDelete";
    RoleGrantPermission = Unary "etcdserverpb.Auth" "RoleGrantPermission";
    RoleRevokePermission = Unary "etcdserverpb.Auth" "RoleRevokePermission";
    Lock = Unary "v3lockpb.Lock" "Lock";
    Unlock = Unary "v3lockpb.Lock" "Unlock";
    Campaign = Unary "v3electionpb.Election" "Campaign";
    Proclaim = Unary "v3electionpb.Election" "Proclaim";
    Leader = Unary "v3electionpb.Election" "Leader";
    Observe = ServerStream "v3electionpb.Election" "Observe";
    Resign = Unary "v3electionpb.Election" "Resign";
    HealthCheck = Unary "grpc.health.v1.Health" "Check";
    HealthWatch = ServerStream "grpc.health.v1.Health" "Watch";
}

/// gRPC codes in the order of their numbers, as the label `grpc_code` names them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Counters of one call.
#[derive(Default)]
struct Calls {
    started: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// The router's own counters.
pub(crate) struct Metrics {
    calls: Vec<Calls>,
    /// Watch streams open now.
    pub(crate) watch_streams: AtomicI64,
    /// Watches open now.
    pub(crate) watchers: AtomicI64,
    /// Passed and failed checks of /health.
    pub(crate) health_passed: AtomicU64,
    pub(crate) health_failed: AtomicU64,
    /// Connections open now.
    pub(crate) connections: AtomicI64,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            calls: Rpc::ALL.iter().map(|_| Calls::default()).collect(),
            watch_streams: AtomicI64::new(0),
            watchers: AtomicI64::new(0),
            health_passed: AtomicU64::new(0),
            health_failed: AtomicU64::new(0),
            connections: AtomicI64::new(0),
        }
    }
}

// === impl Metrics ===

impl Metrics {
    fn of(&self, rpc: Rpc) -> Option<&Calls> {
        self.calls.get(rpc as usize)
    }

    pub(crate) fn started(&self, rpc: Rpc) {
        if let Some(calls) = self.of(rpc) {
            calls.started.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn received(&self, rpc: Rpc) {
        if let Some(calls) = self.of(rpc) {
            calls.received.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn sent(&self, rpc: Rpc, messages: u64) {
        if let Some(calls) = self.of(rpc) {
            calls.sent.fetch_add(messages, Ordering::Relaxed);
        }
    }

    pub(crate) fn handled(&self, rpc: Rpc, code: Code) {
        if let Some(count) = self.of(rpc).and_then(|calls| calls.handled.get(code as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_found_by_its_path() {
        for rpc in Rpc::ALL {
            let (_, service, method) = rpc.labels();
            assert_eq!(Rpc::from_path(&format!("/{service}/{method}")), Some(*rpc));
        }
        assert_eq!(Rpc::from_path("/etcdserverpb.KV/Nothing"), None);
    }

    #[test]
    fn codes_stand_at_their_numbers() {
        assert_eq!(CODES[Code::Unavailable as usize], "Unavailable");
        assert_eq!(CODES[Code::Unauthenticated as usize], "Unauthenticated");
        assert_eq!(CODES[Code::Cancelled as usize], "Canceled");
    }
}
