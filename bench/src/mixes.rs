//! The mixes: kinds of traffic, each with its usual numbers and what the yardstick asks of it.
//!
//! A mix is data ([`Mix`]): a [`Kind`] of client and a [`Shape`]. Each family of kinds has a file
//! that prepares the servers and makes the clients. Keys are 8 bytes and values do not compress, see
//! [`content`].

use crate::error::Error;
use crate::goals::{Against, Goal, Metric};
use crate::load::{Session, Shape, Tally};

pub(crate) mod content;
mod gets;
mod leases;
mod puts;
mod txns;
mod watches;

/// One kind of traffic with its usual numbers.
pub(crate) struct Mix {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) kind: Kind,
    pub(crate) shape: Shape,
    pub(crate) goals: Vec<Goal>,
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Puts of random keys.
    Put,
    /// Gets of one random key.
    Get { serializable: bool },
    /// Linearizable reads of `span` neighbouring keys.
    Range,
    /// The same, list after list instead of random ones.
    Walk,
    /// Each client rewrites a key of its own if its revision is the one last seen; `reads_first`
    /// asks the server for that revision each time.
    CompareAndPut { reads_first: bool },
    /// Compare, put and get in each transaction.
    MixedTxn,
    /// Half of the transactions get one key, half put one.
    HalfTxn,
    /// One writer, many watchers of its key; an operation is one event delivered to one watcher.
    Watch,
    /// Grants of leases.
    LeaseGrant,
    /// Keepalives, each client on a stream of its own.
    KeepAlive,
}

/// Runs a kind of traffic against prepared servers.
pub(crate) async fn run(kind: Kind, session: &Session) -> Result<Tally, Error> {
    if session.shape.fill {
        content::Filling::of(&session.shape).fill(&session.side, 0..session.shape.keys).await?;
    }
    match kind {
        Kind::Put => puts::run(session).await,
        Kind::Get { serializable } => gets::run_get(session, serializable).await,
        Kind::Range => gets::run_range(session).await,
        Kind::Walk => gets::run_walk(session).await,
        Kind::CompareAndPut { reads_first } => txns::run_cas(session, reads_first).await,
        Kind::MixedTxn => txns::run_mixed(session).await,
        Kind::HalfTxn => txns::run_half(session).await,
        Kind::Watch => watches::run(session).await,
        Kind::LeaseGrant => leases::run_grant(session).await,
        Kind::KeepAlive => leases::run_keepalive(session).await,
    }
}

/// The mix of that name.
pub(crate) fn find(name: &str) -> Result<Mix, Error> {
    let unknown = || Error::Usage(format!("no mix {name:?}; `bench mixes` lists them"));
    all().into_iter().find(|mix| mix.name == name).ok_or_else(unknown)
}

// === The table ===

/// The mix whose servers are started again, without what their disks have in memory, between the
/// filling and the window.
pub(crate) const COLD: &str = "range-versions-cold";
const KIB: usize = 1024;
/// Bytes that the mixes with large values write in a window, at most: etcd's quota is 2 GiB.
const LARGE_BYTES_MAX: usize = 1 << 30;

fn shape(clients: usize, connections: usize) -> Shape {
    Shape {
        clients,
        connections,
        value_bytes: 256,
        keys: 10_000,
        span: 1_000,
        versions: 1,
        fill: false,
        rate: None,
        total: None,
        watchers: 0,
        pipeline: 1,
    }
}

fn filled(clients: usize, connections: usize) -> Shape {
    Shape { fill: true, ..shape(clients, connections) }
}

fn large_puts(clients: usize, value_bytes: usize, keys: u64) -> Shape {
    let total = Some((LARGE_BYTES_MAX / value_bytes) as u64);
    Shape { value_bytes, keys, total, ..shape(clients, clients) }
}

fn large_gets(clients: usize, value_bytes: usize, keys: u64) -> Shape {
    Shape { value_bytes, keys, ..filled(clients, clients) }
}

fn watched(connections: usize, rate: Option<f64>) -> Shape {
    Shape { watchers: 1_000, rate, ..shape(connections, connections) }
}

/// All mixes, in the order of the yardstick's table.
pub(crate) fn all() -> Vec<Mix> {
    use Metric::{Cpu, P50, P99, PeakMemory, Rate};
    let mix = |name, about, kind, shape, goals: &[(Metric, f64)]| {
        let goals = goals.iter().map(|&(metric, ratio)| Goal::ratio(metric, ratio).on(3)).collect();
        Mix { name, about, kind, shape, goals }
    };
    let get = Kind::Get { serializable: false };
    let mut mixes = vec![
        mix(
            "put",
            "puts of 256 B",
            Kind::Put,
            shape(100, 10),
            &[(Cpu, 0.25), (Rate, 3.0), (P99, 0.4)],
        ),
        mix(
            "put-1000",
            "the same from 1,000 clients",
            Kind::Put,
            shape(1_000, 100),
            &[(Cpu, 0.3), (Rate, 2.5)],
        ),
        mix("put-1", "puts, one client", Kind::Put, shape(1, 1), &[(Cpu, 0.35), (P50, 0.7)]),
        mix(
            "put-rate",
            "puts at a fixed 1,000 a second",
            Kind::Put,
            Shape { rate: Some(1_000.0), ..shape(100, 10) },
            &[(Cpu, 0.3), (P99, 0.4)],
        ),
        mix("get", "linearizable gets", get, filled(100, 10), &[(Cpu, 0.3), (Rate, 2.5)]),
        mix(
            "get-1",
            "linearizable gets, one client",
            get,
            filled(1, 1),
            &[(Cpu, 0.35), (P50, 0.7)],
        ),
        mix(
            "get-serializable",
            "gets from the member asked",
            Kind::Get { serializable: true },
            filled(100, 10),
            &[(Cpu, 0.35), (Rate, 2.0)],
        ),
        mix(
            "range",
            "linearizable reads of 1,000 keys",
            Kind::Range,
            filled(10, 10),
            &[(Cpu, 0.25), (Rate, 3.0)],
        ),
        mix(
            "range-versions",
            "the same, each key with 10 uncompacted versions",
            Kind::Range,
            Shape { versions: 10, ..filled(10, 10) },
            &[],
        ),
        mix(
            COLD,
            "each list of the same once, right after a restart (not with load)",
            Kind::Walk,
            Shape { versions: 10, keys: 100_000, total: Some(100), ..filled(10, 10) },
            &[(Cpu, 0.7)],
        ),
        mix(
            "cas",
            "compare-and-put, a key per client, revision read before (kube-style)",
            Kind::CompareAndPut { reads_first: true },
            shape(100, 10),
            &[(Cpu, 0.2), (Rate, 4.0)],
        ),
        mix(
            "cas-cached",
            "the same, revision known from the last write",
            Kind::CompareAndPut { reads_first: false },
            shape(100, 10),
            &[],
        ),
        mix(
            "txn",
            "mixed txn: compare, put one key, get another",
            Kind::MixedTxn,
            filled(100, 10),
            &[(Cpu, 0.25), (Rate, 3.0)],
        ),
        mix(
            "txn-half",
            "half of the txns get a key, half put one",
            Kind::HalfTxn,
            filled(100, 10),
            &[],
        ),
        mix(
            "put-100k",
            "puts of 100 KB",
            Kind::Put,
            large_puts(10, 100 * KIB, 1_000),
            &[(Cpu, 0.2), (Rate, 4.0)],
        ),
        mix(
            "put-1m",
            "puts of 1 MB",
            Kind::Put,
            large_puts(4, 1_024 * KIB, 100),
            &[(Cpu, 0.2), (Rate, 4.0), (PeakMemory, 0.1)],
        ),
        mix(
            "get-100k",
            "gets of 100 KB",
            get,
            large_gets(10, 100 * KIB, 1_000),
            &[(Cpu, 0.7), (Rate, 1.3)],
        ),
        mix(
            "get-1m",
            "gets of 1 MB",
            get,
            large_gets(4, 1_024 * KIB, 100),
            &[(Cpu, 0.7), (Rate, 1.3)],
        ),
        mix(
            "watch",
            "1 writer, 1,000 watchers on 10 streams",
            Kind::Watch,
            watched(10, None),
            &[(Cpu, 0.5), (Rate, 2.0), (P99, 0.5)],
        ),
        mix(
            "watch-1000",
            "1 writer, 1,000 watchers on 1,000 connections",
            Kind::Watch,
            watched(1_000, None),
            &[(Cpu, 0.5), (Rate, 2.0), (P99, 0.5)],
        ),
        mix(
            "watch-20",
            "20 writes a second, 1,000 watchers on 10 streams",
            Kind::Watch,
            watched(10, Some(20.0)),
            &[(Cpu, 0.4), (P99, 0.6)],
        ),
        mix(
            "lease-grant",
            "grants of leases",
            Kind::LeaseGrant,
            shape(100, 10),
            &[(Cpu, 0.3), (Rate, 2.5)],
        ),
        mix(
            "keepalive-1",
            "keepalives of one lease on one stream, one after the other",
            Kind::KeepAlive,
            shape(1, 1),
            &[(Cpu, 0.4), (Rate, 2.0)],
        ),
        mix(
            "keepalive-deep",
            "keepalives of 100 leases, all in flight on one stream",
            Kind::KeepAlive,
            Shape { pipeline: 100, ..shape(1, 1) },
            &[],
        ),
        mix(
            "keepalive-100",
            "keepalives of 100 leases, each on its own stream",
            Kind::KeepAlive,
            shape(100, 10),
            &[(Cpu, 0.4), (Rate, 2.0)],
        ),
    ];
    let mut add = |name: &str, goal: Goal| {
        let found = mixes.iter_mut().find(|mix| mix.name == name).expect("a mix of the table");
        found.goals.push(goal);
    };
    // The goals that the yardstick gives for one node.
    add("put", Goal::ratio(Cpu, 0.35).on(1));
    add("put-100k", Goal::ratio(Cpu, 0.4).on(1));
    // Old versions shall not slow lists that are read again and again.
    let against = Against::Own { row: "range", keys: None };
    add("range-versions", Goal { against, ..Goal::ratio(Cpu, 1.5) });
    mixes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_of_mixes_are_unique() {
        let mixes = all();
        let names: HashSet<_> = mixes.iter().map(|mix| mix.name).collect();
        assert_eq!(names.len(), mixes.len());
    }
}
