//! The page `/metrics`: Prometheus' text format, written line by line.

use std::{
    fmt::{Display, Write},
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use proto::cluster::group::Description;

use super::{CODES, HistogramReading, Metrics, NodeReport, Rpc};
use crate::{RouterConfig, door::Door};

/// A page in the making.
#[derive(Default)]
struct Page {
    text: String,
}

// === impl Page ===

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.text, "{name} {value}"),
            labels => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, labels: &str, reading: &HistogramReading) {
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in &reading.buckets {
            self.line(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{bound}\""), count);
        }
        let infinity = format!("{labels}{comma}le=\"+Inf\"");
        self.line(&format!("{name}_bucket"), &infinity, reading.count);
        self.line(&format!("{name}_sum"), labels, reading.sum);
        self.line(&format!("{name}_count"), labels, reading.count);
    }

    fn peers(&mut self, name: &str, help: &str, label: &str, values: &[(String, u64)]) {
        if values.is_empty() {
            return;
        }
        self.head(name, "counter", help);
        for (peer, value) in values {
            self.line(name, &format!("{label}=\"{peer}\""), value);
        }
    }
}

fn now(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn level(gauge: &AtomicI64) -> i64 {
    gauge.load(Ordering::Relaxed)
}

/// Writes the page. `home` is the home group's description of itself, if it gave one.
pub(crate) fn page(door: &Door, home: Option<&Description>) -> String {
    let mut page = Page { text: String::with_capacity(64 * 1024) };
    let report = door.status.report();
    let empty = Description::default();
    let home = home.unwrap_or(&empty);
    server(&mut page, &door.config, home, door.member_id, report.is_leader);
    server_of_node(&mut page, &report);
    storage(&mut page, home);
    split(&mut page, home);
    storage_of_node(&mut page, &report);
    watches(&mut page, &door.metrics, &report);
    leases(&mut page, &report);
    network(&mut page, &report);
    calls(&mut page, &door.metrics);
    process(&mut page);
    page.text.push_str(&report.extra);
    page.text
}

/// Writes the page of a tenant other than the default: what its home group says of itself.
/// Calls, watches, leases, disk and process are counted for all tenants together, and so are
/// not on it.
pub(crate) fn tenant_page(door: &Door, home: Option<&Description>) -> String {
    let mut page = Page::default();
    let empty = Description::default();
    let home = home.unwrap_or(&empty);
    server(&mut page, &door.config, home, door.member_id, false);
    storage(&mut page, home);
    split(&mut page, home);
    page.text
}

fn server(page: &mut Page, config: &RouterConfig, home: &Description, id: u64, leads: bool) {
    let flag = u8::from;
    page.gauge(
        "etcd_server_has_leader",
        "Whether a leader exists: 1 yes, 0 no.",
        flag(home.leader != 0),
    );
    let leads = leads || (home.leader != 0 && home.leader == id);
    page.gauge("etcd_server_is_leader", "Whether this member leads: 1 yes, 0 no.", flag(leads));
    page.gauge(
        "etcd_server_is_learner",
        "Whether this member learns: 1 yes, 0 no.",
        flag(home.is_learner),
    );
    page.head("etcd_server_id", "gauge", "This member's id in hex, always 1.");
    page.line("etcd_server_id", &format!("server_id=\"{id:x}\""), 1);
    page.head("etcd_server_version", "gauge", "The version that clients are told, always 1.");
    page.line("etcd_server_version", &format!("server_version=\"{}\"", config.server_version), 1);
    page.head("etcd_cluster_version", "gauge", "The cluster version, always 1.");
    let short = config.cluster_version.rsplit_once('.').map_or("", |(short, _)| short);
    page.line("etcd_cluster_version", &format!("cluster_version=\"{short}\""), 1);
    page.counter(
        "etcd_server_leader_changes_seen_total",
        "Leader changes seen.",
        home.leader_changes,
    );
    page.gauge(
        "etcd_server_proposals_committed_total",
        "Proposals committed.",
        home.raft_committed_index,
    );
    page.gauge(
        "etcd_server_proposals_applied_total",
        "Proposals applied.",
        home.raft_applied_index,
    );
    page.gauge("etcd_server_proposals_pending", "Proposals that wait.", home.proposals_pending);
    page.counter(
        "etcd_server_proposals_failed_total",
        "Proposals that failed.",
        home.proposals_failed,
    );
    page.gauge("etcd_server_quota_backend_bytes", "The quota in bytes.", home.quota);
}

fn server_of_node(page: &mut Page, report: &NodeReport) {
    page.counter("etcd_server_slow_apply_total", "Slow applies.", report.slow_applies_total);
    page.counter(
        "etcd_server_slow_read_indexes_total",
        "Slow read rounds.",
        report.slow_read_indexes_total,
    );
    page.counter(
        "etcd_server_read_indexes_failed_total",
        "Failed read rounds.",
        report.read_indexes_failed_total,
    );
    page.counter(
        "etcd_server_heartbeat_send_failures_total",
        "Heartbeats that left too late.",
        report.heartbeat_failures_total,
    );
}

fn storage(page: &mut Page, home: &Description) {
    page.gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes allocated on disk.", home.size);
    page.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes in use.", home.size_in_use);
    page.gauge("etcd_debugging_mvcc_keys_total", "Keys that live.", home.keys);
    let revision = home.header.map_or(0, |header| header.revision);
    page.gauge("etcd_debugging_mvcc_current_revision", "The store's revision.", revision);
    page.gauge("etcd_debugging_mvcc_compact_revision", "The compacted revision.", home.compacted);
}

/// What it costs that the etcd is split: told by the leader of its home group alone.
fn split(page: &mut Page, home: &Description) {
    let Some(split) = &home.split else { return };
    page.counter("atoll_split_revisions_granted_total", "Revisions given out.", split.grants);
    page.counter(
        "atoll_split_revisions_unused_total",
        "Revisions that nobody will ever use.",
        split.holes,
    );
    page.counter(
        "atoll_split_transactions_total",
        "Transactions over several groups.",
        split.transactions,
    );
    page.counter(
        "atoll_split_transaction_seconds_total",
        "How long transactions over several groups took in sum.",
        split.transaction_ms as f64 / 1000.0,
    );
    page.counter(
        "atoll_split_transactions_given_up_total",
        "Transactions over several groups that were given up and tried again.",
        split.given_up,
    );
    page.gauge(
        "atoll_split_waiting_seconds",
        "How long requests have been waiting for one of the groups.",
        split.waits_ms as f64 / 1000.0,
    );
}

fn storage_of_node(page: &mut Page, report: &NodeReport) {
    page.counter("etcd_mvcc_put_total", "Puts seen by this member.", report.puts_total);
    page.counter("etcd_mvcc_delete_total", "Deletes seen by this member.", report.deletes_total);
    page.counter("etcd_mvcc_txn_total", "Transactions seen by this member.", report.txns_total);
    page.counter("etcd_mvcc_range_total", "Ranges seen by this member.", report.ranges_total);
    let name = "etcd_disk_wal_fsync_duration_seconds";
    page.head(name, "histogram", "How long syncs of the log take.");
    page.histogram(name, "", &report.log_sync);
    let name = "etcd_disk_backend_commit_duration_seconds";
    page.head(name, "histogram", "How long commits to the backend take.");
    page.histogram(name, "", &report.engine_commit);
}

fn watches(page: &mut Page, metrics: &Metrics, report: &NodeReport) {
    page.gauge(
        "etcd_debugging_mvcc_watch_stream_total",
        "Watch streams open.",
        level(&metrics.watch_streams),
    );
    page.gauge("etcd_debugging_mvcc_watcher_total", "Watches open.", level(&metrics.watchers));
    page.gauge("etcd_debugging_mvcc_slow_watcher_total", "Watches behind.", report.slow_watchers);
    page.gauge(
        "etcd_debugging_mvcc_pending_events_total",
        "Events waiting.",
        report.pending_events,
    );
    page.counter("etcd_debugging_mvcc_events_total", "Events sent.", report.events_total);
    page.counter(
        "etcd_server_health_success",
        "Health checks passed.",
        now(&metrics.health_passed),
    );
    page.counter(
        "etcd_server_health_failures",
        "Health checks failed.",
        now(&metrics.health_failed),
    );
    page.gauge("atoll_router_connections", "Client connections open.", level(&metrics.connections));
}

fn leases(page: &mut Page, report: &NodeReport) {
    page.counter(
        "etcd_debugging_lease_granted_total",
        "Leases granted.",
        report.leases_granted_total,
    );
    page.counter(
        "etcd_debugging_lease_revoked_total",
        "Leases revoked.",
        report.leases_revoked_total,
    );
    page.counter(
        "etcd_debugging_lease_renewed_total",
        "Leases renewed.",
        report.leases_renewed_total,
    );
    page.counter(
        "etcd_debugging_server_lease_expired_total",
        "Leases expired.",
        report.leases_expired_total,
    );
}

fn network(page: &mut Page, report: &NodeReport) {
    page.peers(
        "etcd_network_peer_sent_bytes_total",
        "Bytes to peers.",
        "To",
        &report.peer_sent_bytes,
    );
    let received = &report.peer_received_bytes;
    page.peers("etcd_network_peer_received_bytes_total", "Bytes from peers.", "From", received);
    let failures = &report.peer_sent_failures;
    page.peers("etcd_network_peer_sent_failures_total", "Failed sends to peers.", "To", failures);
    let name = "etcd_network_peer_round_trip_time_seconds";
    if !report.peer_round_trips.is_empty() {
        page.head(name, "histogram", "Round trips to peers.");
    }
    for (peer, reading) in &report.peer_round_trips {
        page.histogram(name, &format!("To=\"{peer}\""), reading);
    }
}

fn calls(page: &mut Page, metrics: &Metrics) {
    let labels = |rpc: Rpc| {
        let (kind, service, method) = rpc.labels();
        let kind = kind.label();
        format!("grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"")
    };
    let all = || Rpc::ALL.iter().zip(&metrics.calls);
    page.head("grpc_server_started_total", "counter", "Calls begun.");
    for (rpc, calls) in all() {
        page.line("grpc_server_started_total", &labels(*rpc), now(&calls.started));
    }
    page.head("grpc_server_handled_total", "counter", "Calls ended, by code.");
    for (rpc, calls) in all() {
        let labels = labels(*rpc);
        for (code, count) in CODES.iter().zip(&calls.handled) {
            page.line(
                "grpc_server_handled_total",
                &format!("grpc_code=\"{code}\",{labels}"),
                now(count),
            );
        }
    }
    page.head("grpc_server_msg_received_total", "counter", "Messages received.");
    for (rpc, calls) in all() {
        page.line("grpc_server_msg_received_total", &labels(*rpc), now(&calls.received));
    }
    page.head("grpc_server_msg_sent_total", "counter", "Messages sent.");
    for (rpc, calls) in all() {
        page.line("grpc_server_msg_sent_total", &labels(*rpc), now(&calls.sent));
    }
}

/// Figures of the process itself, as far as /proc tells them.
fn process(page: &mut Page) {
    const PAGE_BYTES: u64 = 4096;
    let resident = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    if let Some(pages) = resident {
        page.gauge("process_resident_memory_bytes", "Resident memory.", pages * PAGE_BYTES);
    }
    let open = std::fs::read_dir("/proc/self/fd").map(|entries| entries.count());
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    if let Ok(open) = open {
        page.gauge("process_open_fds", "Open file descriptors.", open);
        page.gauge("os_fd_used", "Used file descriptors.", open);
    }
    if let Some(limit) = limit {
        page.gauge("process_max_fds", "Limit of file descriptors.", limit);
        page.gauge("os_fd_limit", "Limit of file descriptors.", limit);
    }
}
