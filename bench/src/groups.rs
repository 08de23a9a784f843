//! `bench groups`: what idle tenants cost, each with a group of its own on every node.
//!
//! One cluster with no tenant is weighed first; then tenants are created in stages, with some creations
//! on their way at a time, and at the end of each stage a few one by one; then everything rests and is
//! weighed again; then all nodes are started again on their data. What is told of a group is the
//! difference to the cluster without tenants.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use proto::cluster::admin::Ask;
use proto::etcd::RangeRequest;

use crate::compare::parse_nodes;
use crate::connection::{self, Connection};
use crate::cpu::{CpuTimes, Memory};
use crate::error::Error;
use crate::servers::{Cluster, Kind, Settings, System};

/// Tenants at the end of the stages, as far as there shall be so many.
const STAGES: [usize; 5] = [100, 1000, 3000, 10_000, 30_000];
/// Creations one by one at the end of a stage.
const SINGLES: usize = 10;
/// "At rest" begins this long after the last creation: a checkpoint of idle groups is behind us.
const REST: Duration = Duration::from_secs(15);
/// How long idle CPU is watched.
const WATCH: Duration = Duration::from_secs(20);
/// How long a group may take to answer after a restart.
const PATIENCE: Duration = Duration::from_secs(300);
/// Requests on their way when all groups are asked.
const ASKERS: usize = 64;

/// Arguments of `bench groups`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program.
    #[arg(long, default_value = "target/release/atoll")]
    atoll: PathBuf,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3, value_parser = parse_nodes)]
    nodes: usize,
    /// Tenants to create.
    #[arg(long, default_value_t = 10_000)]
    groups: usize,
    /// Creations on their way at a time.
    #[arg(long, default_value_t = 32)]
    parallel: usize,
    /// Folder for the nodes' data, which must not exist yet; it goes away at the end.
    #[arg(long)]
    data: PathBuf,
    /// Seconds of more rest before the restart, so that the running nodes can be looked at.
    #[arg(long, default_value_t = 0)]
    hold_s: u64,
}

/// A cluster at rest.
struct Weight {
    memory: Memory,
    /// Of one core, in per cent, all nodes together.
    idle_percent: f64,
}

/// Runs `bench groups`.
pub(crate) async fn command(args: Args) -> Result<(), Error> {
    let system =
        System { label: "Atoll".to_owned(), kind: Kind::Atoll, program: args.atoll.clone() };
    let settings = Settings { operators: true, ..Default::default() };
    let mut cluster = Cluster::start(&system, settings, args.nodes, &args.data).await?;
    let empty = weigh(&cluster).await;
    tell("without tenants", &empty, cluster.nodes());
    let mut made = 0;
    for stage in STAGES.into_iter().filter(|stage| *stage < args.groups).chain([args.groups]) {
        let singles = SINGLES.min(stage - made);
        let (count, began) = (stage - made - singles, Instant::now());
        create(&cluster, made..made + count, args.parallel).await?;
        let each_ms = |took: Duration, count: usize| took.as_secs_f64() * 1e3 / count.max(1) as f64;
        let packed_ms = each_ms(began.elapsed(), count);
        let began = Instant::now();
        create(&cluster, stage - singles..stage, 1).await?;
        let single_ms = each_ms(began.elapsed(), singles);
        made = stage;
        let parallel = args.parallel;
        println!(
            "to {stage} tenants: {packed_ms:.1} ms each, {parallel} at a time; {single_ms:.1} ms one by one"
        );
    }
    tokio::time::sleep(REST).await;
    let full = weigh(&cluster).await;
    tell(&format!("{made} tenants"), &full, cluster.nodes());
    tell_share(&empty, &full, made, cluster.nodes());
    if args.hold_s > 0 {
        println!("processes {:?}", cluster.pids());
        tokio::time::sleep(Duration::from_secs(args.hold_s)).await;
    }
    let began = Instant::now();
    let ready = cluster.restart().await?;
    let stopped = began.elapsed() - ready;
    answers(&cluster, made).await?;
    let all = began.elapsed() - stopped;
    println!(
        "stop {:.1} s; start {:.1} s until each node takes a put, {:.1} s until all groups have answered",
        stopped.as_secs_f64(),
        ready.as_secs_f64(),
        all.as_secs_f64()
    );
    tokio::time::sleep(REST).await;
    let again = weigh(&cluster).await;
    tell("after the restart", &again, cluster.nodes());
    tell_share(&empty, &again, made, cluster.nodes());
    Ok(())
}

fn name(number: usize) -> String {
    format!("t{number}")
}

async fn create(
    cluster: &Cluster,
    numbers: std::ops::Range<usize>,
    parallel: usize,
) -> Result<(), Error> {
    // All at one node, as an operator's script would.
    let admin = Connection::open(&cluster.admins()[0]).await?;
    let one = |number: usize| {
        let mut client = admin.admin();
        async move {
            let command = format!(r#"{{"command":"tenant-create","name":"{}"}}"#, name(number));
            let told = client.run(Ask { command }).await.map_err(Error::request("create"))?;
            let answer = told.into_inner().answer;
            match answer.contains("refused") || answer.contains("Refused") {
                true => Err(Error::Usage(format!("create {}: {answer}", name(number)))),
                false => Ok(()),
            }
        }
    };
    stream::iter(numbers.map(one)).buffer_unordered(parallel).try_collect().await
}

/// Asks each tenant for a key until its group has answered.
async fn answers(cluster: &Cluster, tenants: usize) -> Result<(), Error> {
    let endpoints = cluster.endpoints();
    let doors = connection::open_all(&endpoints, endpoints.len()).await?;
    let until = Instant::now() + PATIENCE;
    let one = |number: usize| {
        let mut client = doors[number % doors.len()].kv_of(&format!("{}.localhost", name(number)));
        async move {
            loop {
                let ask = RangeRequest { key: "k".into(), ..Default::default() };
                match client.range(ask).await {
                    Ok(_) => return Ok(()),
                    Err(status) if Instant::now() > until => {
                        return Err(Error::request("ask a tenant")(status));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
    };
    stream::iter((0..tenants).map(one)).buffer_unordered(ASKERS).try_collect().await
}

async fn weigh(cluster: &Cluster) -> Weight {
    let before = CpuTimes::read(&cluster.pids());
    let began = Instant::now();
    tokio::time::sleep(WATCH).await;
    let spent = CpuTimes::read(&cluster.pids()) - before;
    let idle_percent = spent.servers_us as f64 / began.elapsed().as_micros() as f64 * 100.0;
    Weight { memory: Memory::read(&cluster.pids()), idle_percent }
}

fn tell(what: &str, weight: &Weight, nodes: usize) {
    println!(
        "{what}: {:.1} MiB resident a node ({:.1} anonymous), {:.1} % of a core idle in all",
        weight.memory.resident_mib / nodes as f64,
        weight.memory.anonymous_mib / nodes as f64,
        weight.idle_percent
    );
}

fn tell_share(empty: &Weight, full: &Weight, tenants: usize, nodes: usize) {
    let replicas = (tenants * nodes) as f64;
    let kib = |full: f64, empty: f64| (full - empty) * 1024.0 / replicas;
    println!(
        "a group and node: {:.1} KiB resident ({:.1} anonymous); {:.2} µs of CPU a second",
        kib(full.memory.resident_mib, empty.memory.resident_mib),
        kib(full.memory.anonymous_mib, empty.memory.anonymous_mib),
        (full.idle_percent - empty.idle_percent) * 1e4 / replicas
    );
}
