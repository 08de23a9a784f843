//! Every bound of the system that is not a setting, with its reason.

/// Operations of one list of a transaction (etcd's `--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;
/// Bytes of one request (etcd's `--max-request-bytes`, 1.5 MiB).
pub const MAX_REQUEST_BYTES: usize = 1_572_864;
/// What a gRPC message may be larger than a request (etcd's own overhead allowance).
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;
/// Depth to which transactions may be nested: bounds recursion in checks and in apply.
/// prost refuses messages nested deeper than 100, so this is never the first to refuse.
pub const MAX_TXN_DEPTH: usize = 64;
/// Requests that may wait in front of one node's worker before the router is told to wait.
pub const MAILBOX_DEPTH: usize = 16_384;
/// Bytes of commands packed into one Raft entry.
pub const MAX_ENTRY_BYTES: usize = 1024 * 1024;
/// Largest TTL of a lease in seconds (etcd's lease.MaxLeaseTTL).
pub const MAX_LEASE_TTL_S: i64 = 9_000_000_000;
/// Leases revoked by expiry per second and group (etcd's lessor rate).
pub const LEASE_EXPIRIES_PER_S: usize = 1000;
/// Quota of a tenant that has none set (etcd's default backend quota, 2 GiB).
pub const DEFAULT_QUOTA_BYTES: i64 = 2 * 1024 * 1024 * 1024;
/// What a recovery adds to the version of a group's members, and to the numbers of its replicas:
/// more than the lost ones can have counted meanwhile.
pub const RECOVERY_STEP: u64 = 1 << 20;
/// What a recovery adds to a group's revision, as `etcdutl snapshot restore --bump-revision` is told
/// to: what the lost replicas gave their clients lies below.
pub const RECOVERY_REVISIONS: i64 = 1_000_000_000;
/// Events that may wait for one client stream before its watches fall back to history.
pub const WATCH_STREAM_DEPTH: usize = 1024;
/// Revisions that one catch-up response may hold (etcd's watchBatchMaxRevs).
pub const WATCH_BATCH_REVISIONS: usize = 1000;
/// Bytes of events that one watch over several groups holds back before its parts that run ahead
/// wait: several responses, and little beside what a stream's queue may hold.
pub const WATCH_HELD_BYTES: usize = 4 * 1024 * 1024;
