//! A follower is lost for good and replaced while clients write: what they feel of it.
//!
//! ```text
//!   fill | rest | 3 windows undisturbed | follower killed, removed | new, empty node joins as a learner
//!                                                                  | window | ... until it is a voter
//! ```
//!
//! The filling puts one value per request, so that the logs of both systems have long let go of their
//! beginning and the newcomer needs a snapshot. Clients write at a fixed rate to the two nodes that
//! stay: at full speed on shared cores the newcomer's own work would show, not what the others feel.
//! The rest lets what the filling left behind end, which would make the undisturbed windows look bad and
//! the others good. Windows follow one another until the newcomer has caught up; the worst p99 of them
//! is held against the median of the undisturbed ones.

use std::cell::Cell;
use std::time::{Duration, Instant};

use proto::etcd;

use super::{Measured, Window};
use crate::connection::{self, Connection};
use crate::error::Error;
use crate::goals::{Goal, Metric};
use crate::load::{Drive, Target, Timing};
use crate::mixes::{self, content::Filling};
use crate::results::median;
use crate::servers::{Cluster, Newcomer};

/// The name of the row.
pub(crate) const NAME: &str = "catch-up";
/// Nodes of the cluster: one can be lost, and the rest still writes.
pub(crate) const NODES: usize = 3;
const VALUE_BYTES: usize = 10 * 1024;
const FILL_IN_FLIGHT: usize = 100;
const REST: Duration = Duration::from_secs(15);
const WINDOWS_BEFORE: usize = 3;
/// A newcomer that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(300);
/// Between two tries to make the newcomer a voter, which is refused until it has caught up.
const PROMOTE_EVERY: Duration = Duration::from_millis(50);

/// How much is to be caught up.
pub(crate) struct Plan {
    pub(crate) data_bytes: u64,
}

/// The yardstick's goal.
pub(crate) fn goals() -> [Goal; 1] {
    [Goal::at_most(Metric::P99Factor, 1.5)]
}

impl Plan {
    /// Fills, measures, loses a follower, and measures until another one has taken its place.
    pub(crate) async fn run(
        &self,
        cluster: &mut Cluster,
        row: &str,
        timing: Timing,
    ) -> Result<Measured, Error> {
        let mut endpoints = connection::leader_first(&cluster.endpoints()).await?;
        let leader = Connection::open(&endpoints[0]).await?;
        let filling = Filling {
            value_bytes: VALUE_BYTES,
            versions: 1,
            puts_max: 1,
            in_flight: FILL_IN_FLIGHT,
        };
        let keys = (self.data_bytes / VALUE_BYTES as u64).max(1);
        filling.fill(&leader, 0..keys).await?;
        let lost = endpoints.pop().expect("a cluster has nodes");
        let shape = mixes::find("put-rate")?.shape;
        let window = |cluster: &Cluster| {
            let (shape, drive) = (shape.clone(), Drive::new(&shape, timing));
            let target = Target { endpoints: endpoints.clone(), pids: cluster.pids() };
            let (row, kind) = (row.to_owned(), mixes::Kind::Put);
            async move { Window::measure(&row, kind, &shape, drive, target).await }
        };
        tokio::time::sleep(REST).await;
        let mut before = Vec::new();
        while before.len() < WINDOWS_BEFORE {
            before.push(window(cluster).await?);
        }
        let newcomer = cluster.newcomer()?;
        cluster.lose(&lost);
        let id = replace(&leader, &lost, &newcomer).await?;
        cluster.join(&newcomer)?;
        let caught_up = Cell::new(None);
        let promotion = async {
            caught_up.set(Some(promote(&leader, id).await?));
            Ok(())
        };
        let windows = async {
            let mut windows = Vec::new();
            while caught_up.get().is_none() {
                windows.push(window(cluster).await?);
            }
            Ok(windows)
        };
        let ((), during) = futures::try_join!(promotion, windows)?;
        let caught_up = caught_up.get().unwrap_or_default();
        Ok(measured(row, before, during, caught_up))
    }
}

fn measured(row: &str, before: Vec<Window>, during: Vec<Window>, caught_up: Duration) -> Measured {
    let greatest = |of: fn(&Window) -> f64| during.iter().map(of).fold(0.0, f64::max);
    let p99_before = median(&before.iter().map(|w| w.figures.p99_ms).collect::<Vec<_>>());
    let p99 = greatest(|window| window.figures.p99_ms);
    let cpu = greatest(|window| window.figures.server_cpu_us_per_op.unwrap_or(0.0));
    let mut measured = Measured::default();
    let values = [
        (Metric::Cpu, cpu),
        (Metric::P99Before, p99_before),
        (Metric::P99, p99),
        (Metric::P99Factor, p99 / p99_before),
        (Metric::Worst, greatest(|window| window.figures.max_ms)),
        (Metric::CatchUpSeconds, caught_up.as_secs_f64()),
    ];
    measured.add(row, None, &values);
    measured.windows.extend(before);
    measured.windows.extend(during);
    measured
}

/// Tells the cluster that a member is gone and that another one comes; returns its id.
async fn replace(leader: &Connection, lost: &str, newcomer: &Newcomer) -> Result<u64, Error> {
    let mut cluster = leader.cluster();
    let list = etcd::MemberListRequest { linearizable: true };
    let list = cluster.member_list(list).await.map_err(Error::request("list the members"))?;
    let members = list.into_inner().members;
    let gone = members.iter().find(|member| member.client_ur_ls.iter().any(|url| url == lost));
    let gone = gone.ok_or_else(|| Error::Usage(format!("no member has the client URL {lost}")))?;
    let remove = etcd::MemberRemoveRequest { id: gone.id };
    cluster.member_remove(remove).await.map_err(Error::request("remove a member"))?;
    let add =
        etcd::MemberAddRequest { peer_ur_ls: vec![newcomer.peer_url.clone()], is_learner: true };
    let added = cluster.member_add(add).await.map_err(Error::request("add a member"))?;
    Ok(added.into_inner().member.map_or(0, |member| member.id))
}

/// Makes a learner a voter as soon as it has caught up; tells how long that took.
async fn promote(leader: &Connection, id: u64) -> Result<Duration, Error> {
    let began = Instant::now();
    loop {
        let request = etcd::MemberPromoteRequest { id };
        match leader.cluster().member_promote(request).await {
            Ok(_) => return Ok(began.elapsed()),
            Err(status) if began.elapsed() > LIMIT => {
                return Err(Error::request("promote the newcomer")(status));
            }
            Err(_) => tokio::time::sleep(PROMOTE_EVERY).await,
        }
    }
}
