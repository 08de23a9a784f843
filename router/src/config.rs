//! What an operator may set for the door, with etcd's defaults.
//!
//! Values only: nothing here reads files or flags (the binary does) and nothing checks.

use std::time::Duration;

use proto::limits;

/// Settings of one router.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Operations of one list of a transaction (etcd's `--max-txn-ops`).
    pub max_txn_ops: usize,
    /// Bytes of one writing request (etcd's `--max-request-bytes`).
    pub max_request_bytes: usize,
    /// How often an idle watch that asked for it hears its progress
    /// (etcd's `--watch-progress-notify-interval`), at least 100 ms.
    pub watch_progress_interval: Duration,
    /// Election timeout of the groups: sets the request timeout and the patience of streams
    /// that require a leader.
    pub election_timeout: Duration,
    /// Streams that one connection may have open (etcd's `--max-concurrent-streams`).
    pub max_concurrent_streams: u32,
    /// After this much silence the server pings a connection (etcd's keepalive interval).
    pub keepalive_interval: Duration,
    /// How long a ping may stay unanswered before the connection is closed.
    pub keepalive_timeout: Duration,
    /// Domains under which a host names a tenant: `acme.<domain>`. The first is the one that
    /// clients are told, unless it is `localhost`, which means another machine to each of them.
    pub tenant_domains: Vec<String>,
    /// Version of etcd that clients are told; feature detection goes by it.
    pub server_version: String,
    /// Cluster version that clients are told.
    pub cluster_version: String,
    /// Storage version that clients are told.
    pub storage_version: String,
}

/// Shortest progress interval (etcd's minWatchProgressInterval).
pub(crate) const MIN_PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

impl Default for RouterConfig {
    fn default() -> RouterConfig {
        RouterConfig {
            max_txn_ops: limits::MAX_TXN_OPS,
            max_request_bytes: limits::MAX_REQUEST_BYTES,
            watch_progress_interval: Duration::from_secs(600),
            election_timeout: Duration::from_secs(1),
            max_concurrent_streams: u32::MAX,
            keepalive_interval: Duration::from_secs(7200),
            keepalive_timeout: Duration::from_secs(20),
            tenant_domains: vec!["localhost".to_owned()],
            server_version: "3.7.1".to_owned(),
            cluster_version: "3.7.0".to_owned(),
            storage_version: "3.7.0".to_owned(),
        }
    }
}

impl RouterConfig {
    /// How long a request may take (etcd's ReqTimeout).
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election_timeout
    }

    /// Largest gRPC message that is read; also the size above which watch responses are cut.
    pub fn max_message_bytes(&self) -> usize {
        self.max_request_bytes + limits::GRPC_OVERHEAD_BYTES
    }

    /// The progress interval, not below its minimum.
    pub(crate) fn progress_interval(&self) -> Duration {
        self.watch_progress_interval.max(MIN_PROGRESS_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_request_timeout_is_seven_seconds() {
        assert_eq!(RouterConfig::default().request_timeout(), Duration::from_secs(7));
    }
}
