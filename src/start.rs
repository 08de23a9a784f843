//! Starting a node: from a data directory and settings to a running server, and down again.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use placement::record::{self, Record};
use placement::{Ledger, Office, view};
use proto::cluster::group::groups_client::GroupsClient;
use proto::cluster::group::{GroupRequest, PublishMember, RequestBatch, RequestFrame};
use proto::etcd::{CompactionRequest, Member, MemberListRequest, MemberListResponse, RangeRequest};
use proto::group::{Groups, Identity, Reply, Request, from_reply, own_request, request_to};
use proto::{GroupId, NamespaceId, NodeId, PlacementMap, TenantId, id};
use router::{HistogramReading, NodeReport, Router, RouterConfig, StatusSource};
use shard::autocompact::{AutoCompactor, Retention};
use shard::disk::os::OsDisk;
use shard::engine::fjall::FjallEngine;
use shard::extents::ExtentsConfig;
use shard::group::core::mix;
use shard::heal::heal;
use shard::local::LocalGroups;
use shard::log::{Log, LogConfig};
use shard::node::{Birth, CheckpointPolicy, Input, Node, NodeConfig, Pages, TransferPolicy};
use shard::store::counts::BLOCK_KEYS;
use shard::transport::{CLUSTER, PeerServices, Peers};
use shard::worker::{self, NodeHandle};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::admin;
use crate::config::{Config, host};
use crate::directory::{Directory, number};
use crate::resident;
use crate::rollcall::RollCall;
use crate::steward::Steward;

/// How long leaderships may take to move when the node is told to stop.
const HAND_OVER: Duration = Duration::from_secs(3);

/// How long a node that begins waits for each of the others to say that it knows it.
const ASK_PATIENCE: Duration = Duration::from_millis(500);

/// Runs a node until it is told to stop.
pub(crate) fn run(config: Config) -> Result<(), String> {
    tell_log(&config.log_level)?;
    runtime()?.block_on(serve(config))
}

/// Tells what happens on the standard error.
pub(crate) fn tell_log(level: &str) -> Result<(), String> {
    // The engine tells of every table that it writes.
    let quiet = format!("{level},fjall=warn,lsm_tree=warn");
    let filter = tracing_subscriber::EnvFilter::try_new(quiet)
        .map_err(|_| format!("log-level is \"{level}\": say error, warn, info or debug"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

/// What everything beside a node's own threads runs on.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build().map_err(|error| format!("start the runtime: {error}"))
}

/// A number from text, the same everywhere and for ever.
fn stable(parts: &[&str]) -> u64 {
    let mut numbers = Vec::new();
    for part in parts {
        numbers.push(part.len() as u64);
        numbers.extend(part.bytes().map(u64::from));
    }
    mix(&numbers).max(1)
}

/// Where this node stands in its cluster.
struct Place {
    node: u64,
    cluster: u64,
    /// First members; empty for a node that joins a running cluster.
    members: Vec<Member>,
    /// Ids and peer URLs known before any group said so.
    peers: Vec<(u64, String)>,
}

fn first_place(config: &Config) -> Place {
    let mut members: Vec<Member> = config
        .initial_cluster
        .iter()
        .map(|(name, url)| Member {
            id: stable(&[&config.token, url]),
            name: name.clone(),
            peer_ur_ls: vec![url.clone()],
            ..Default::default()
        })
        .collect();
    members.sort_by_key(|member| member.id);
    let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    let node = members.iter().find(|m| m.name == config.name).map_or(1, |member| member.id);
    let peers = members.iter().map(|m| (m.id, m.peer_ur_ls.join(","))).collect();
    Place { node, cluster: mix(&ids).max(1), members, peers }
}

/// Asks a node for its members over its peer URL; `None` if it does not answer.
async fn ask_members(url: &str, linearizable: bool) -> Option<MemberListResponse> {
    let request = own_request(Request::MemberList(MemberListRequest { linearizable }));
    match ask(url, 0, request).await? {
        Reply::Members(list) => Some(list),
        _ => None,
    }
}

/// Asks a node over its peer URL, if it is of `cluster`, or, for 0, of any; `None` if there is no
/// answer.
async fn ask(url: &str, cluster: u64, request: GroupRequest) -> Option<Reply> {
    let mut client = GroupsClient::connect(url.to_owned()).await.ok()?;
    let frames = vec![RequestFrame { id: 1, request: Some(request) }];
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let _ = sender.send(RequestBatch { frames }).await;
    let mut asked = tonic::Request::new(tokio_stream_of(receiver));
    if cluster != 0 {
        asked.metadata_mut().insert(CLUSTER, cluster.into());
    }
    let replies = client.call(asked).await.ok()?;
    let batch = replies.into_inner().message().await.ok()??;
    let frame = batch.frames.into_iter().next()?;
    from_reply(frame.reply.unwrap_or_default()).ok()
}

/// Does a node know that this one has been running? From the members of the default group, which
/// may have left the node since, and from placement's record of it.
async fn was_started(url: &str, place: &Place) -> bool {
    if let Some(list) = ask_members(url, false).await {
        let same = list.header.is_none_or(|header| header.cluster_id == place.cluster);
        let before = list.members.iter().find(|m| m.id == place.node);
        if same && before.is_some_and(|member| !member.client_ur_ls.is_empty()) {
            return true;
        }
    }
    let record = record::node_key(place.node);
    let range =
        RangeRequest { key: record.clone().into(), serializable: true, ..Default::default() };
    let request = request_to(id::SYSTEM_GROUP, Request::Range(range));
    let Some(Reply::Range(answer)) = ask(url, place.cluster, request).await else { return false };
    let known = answer.kvs.first().and_then(|kv| Record::decode(&record, &kv.value).ok().flatten());
    matches!(known, Some(Record::Node(node)) if node.directory != 0)
}

/// Peer URLs of the first members but this one.
fn others(config: &Config) -> impl Iterator<Item = &String> {
    config.initial_cluster.iter().filter(|(name, _)| *name != config.name).map(|(_, url)| url)
}

/// Asks the running members who we are: they know us by our peer URL.
async fn joined_place(config: &Config) -> Result<Place, String> {
    for url in others(config) {
        let Some(list) = ask_members(url, true).await else { continue };
        let ours = |m: &&Member| m.peer_ur_ls.iter().any(|url| config.advertise_peer.contains(url));
        let Some(member) = list.members.iter().find(ours) else {
            return Err(format!(
                "the cluster has no member with the peer URL {}: add it first with atoll member add",
                config.advertise_peer.join(",")
            ));
        };
        let cluster = list.header.map_or(0, |header| header.cluster_id);
        let peers = list.members.iter().map(|m| (m.id, m.peer_ur_ls.join(","))).collect();
        return Ok(Place { node: member.id, cluster, members: Vec::new(), peers });
    }
    Err("no member of --initial-cluster answers: start them, or correct the URLs".into())
}

/// Refuses to begin a member anew that has been running before: with its directory it lost
/// its votes and what it acknowledged, and as a voter it could lose that for all. Without a
/// member that answers this cannot be known (etcd has the same check and the same limit).
async fn never_started(config: &Config, place: &Place) -> Result<(), String> {
    for url in others(config) {
        let asked = tokio::time::timeout(ASK_PATIENCE, was_started(url, place)).await;
        if asked.unwrap_or(false) {
            return Err(format!(
                "member {} ({:x}) has been running before, but {} is empty: remove it with atoll \
                 member remove {:x}, add it again and start it with --initial-cluster-state \
                 existing",
                config.name,
                place.node,
                config.data_dir.display(),
                place.node
            ));
        }
    }
    Ok(())
}

fn tokio_stream_of<T: Send + 'static>(
    receiver: tokio::sync::mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

/// Runs a node until the process is told to stop.
pub(crate) async fn serve(config: Config) -> Result<(), String> {
    let directory = Directory::open(&config.data_dir)?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let incarnation = mix(&[since_epoch.as_nanos() as u64, u64::from(std::process::id())]);
    let (place, identity) = match directory.identity()? {
        Some(identity) => {
            let mut place = first_place(&config);
            let node = number(&identity.node)?;
            if config.join || node != place.node {
                // Joined later: the members are in the group's own state.
                place.members.clear();
                place.peers.clear();
            }
            (Place { node, cluster: number(&identity.cluster)?, ..place }, identity)
        }
        None => {
            let place =
                if config.join { joined_place(&config).await? } else { first_place(&config) };
            never_started(&config, &place).await?;
            let identity = directory.claim(place.node, place.cluster, incarnation)?;
            (place, identity)
        }
    };
    let identity_salt = identity.salt.clone();
    let disk = OsDisk::open(directory.log()).map_err(|e| format!("open the log: {e}"))?;
    let log_config = LogConfig { salt: number(&identity.salt)?, ..Default::default() };
    let (log, recovered) = Log::open(Arc::new(disk), place.node, log_config)
        .map_err(|e| format!("open the log: {e}"))?;
    for hole in &recovered.holes {
        tracing::error!(
            segment = hole.at.segment,
            offset = hole.at.offset,
            "the log has a damaged place"
        );
    }
    let log = Arc::new(log);
    let engine = FjallEngine::open(&directory.engine()).map_err(|e| e.to_string())?;
    let node_config = NodeConfig {
        node: NodeId(place.node),
        cluster: place.cluster,
        incarnation,
        seed: incarnation,
        tick_ms: config.heartbeat_ms,
        election_ticks: (config.election_ms / config.heartbeat_ms) as usize,
        quota_bytes: config.quota_bytes,
        // etcd: the shortest TTL is one and a half election timeouts, rounded up to seconds.
        min_lease_ttl_s: (config.election_ms * 3 / 2).div_ceil(1000) as i64,
        block_keys: BLOCK_KEYS,
        large_bytes: config.large_value_bytes,
        withhold: true,
        checkpoint: CheckpointPolicy { commands: config.snapshot_count, ..Default::default() },
        transfer: TransferPolicy::default(),
    };
    let births = first_groups(&place);
    let disk = OsDisk::open(directory.pages()).map_err(|e| format!("open the page files: {e}"))?;
    let pages = Pages {
        disk: Arc::new(disk),
        config: ExtentsConfig { salt: number(&identity.salt)?, ..Default::default() },
    };
    let engine = Arc::new(engine);
    let opened = Node::open(node_config, engine, log.clone(), &recovered, &births, pages, 1000)
        .map_err(|e| e.to_string())?;
    for refused in &opened.refused {
        tracing::error!(
            group = refused.key.group,
            reason = refused.reason,
            "a replica is quarantined"
        );
    }
    // What others have as well is replaced; without them nothing is left to run.
    let nothing_runs = opened.node.groups().next().is_none();
    let lost = opened.refused.iter().all(|refused| refused.alone);
    if let (Some(refused), true) = (opened.refused.first(), nothing_runs && lost) {
        return Err(format!(
            "the data of this node cannot be trusted ({}): remove this member from the cluster, \
             empty {} and add it again",
            refused.reason,
            config.data_dir.display()
        ));
    }
    let (peers, mut reports) = Peers::new(NodeId(place.node), place.cluster);
    for (node, url) in &place.peers {
        peers.introduce(NodeId(*node), url);
    }
    let fatal: worker::Fatal = Arc::new(|message: String| {
        // Nothing is retried: a restart replays the log, peers go on meanwhile.
        eprintln!("atoll: {message}; this node stops");
        std::process::exit(2);
    });
    let handle =
        worker::start(opened.node, log, peers.clone(), config.disk_reserve_bytes, fatal.clone());
    resident::spawn("heal", &fatal, heal(NodeId(place.node), handle.clone(), peers.clone()));
    let identity = Identity { cluster_id: place.cluster, member_id: place.node };
    let election = Duration::from_millis(config.election_ms);
    let timeout = Duration::from_secs(5) + 2 * election;
    let make = |peers| {
        let node = NodeId(place.node);
        Arc::new(LocalGroups::new(node, handle.clone(), peers, identity, timeout, election))
    };
    let local = make(Some(peers.clone()));
    let known = directory.ledger().and_then(|bytes| match Ledger::load(&bytes) {
        Ok(ledger) => Some(ledger),
        Err(error) => {
            tracing::warn!(%error, "the copy of placement's ledger is not used");
            None
        }
    });
    for node in known.iter().flat_map(|ledger| ledger.nodes.values()) {
        if let Some(url) = node.peer_urls.first() {
            peers.introduce(NodeId(node.id), url);
        }
    }
    let known = known.map(|ledger| Arc::new(view::map(&ledger)));
    local.locate(known.clone().unwrap_or_else(|| Arc::new(first_map(&place))));
    let groups: Arc<dyn Groups> = local.clone();
    let (stop, stopped) = watch::channel(false);
    let ended = |mut stopped: watch::Receiver<bool>| async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };

    let alone: Arc<dyn Groups> = make(None);
    let directory_number = number(&identity_salt)?;
    let roll_call = RollCall::new(place.node, place.cluster, directory_number, handle.clone());
    let roll_call = Arc::new(roll_call);
    for address in &config.listen_peer {
        let listener = listen(address).await?;
        let services =
            PeerServices::new(NodeId(place.node), place.cluster, handle.clone(), alone.clone());
        let (others, shutdown) = (roll_call.routes(), ended(stopped.clone()));
        resident::spawn("peers", &fatal, async move {
            if let Err(error) = services.serve(listener, others, shutdown).await {
                tracing::error!(%error, "the peer listener ended");
            }
        });
    }
    let h = handle.clone();
    let stop_removed = stop.clone();
    resident::spawn("reports", &fatal, async move {
        loop {
            tokio::select! {
                Some(node) = reports.unreachable.recv() => h.input(Input::Unreachable { node }),
                Some(_) = reports.retired.recv() => {
                    eprintln!("atoll: this node was removed from the cluster and stops");
                    let _ = stop_removed.send(true);
                }
                else => return,
            }
        }
    });

    let router = Router::new(
        router_config(&config),
        groups.clone(),
        Arc::new(Figures { handle: handle.clone(), node: place.node }),
    );
    if let Some(map) = known {
        router.place(map);
    }
    let mut listeners = Vec::new();
    for address in &config.listen_client {
        for address in resolve(address).await? {
            match TcpListener::bind(address).await {
                Ok(listener) => listeners.push(listener),
                // localhost without IPv6 is no reason not to start.
                Err(error) if address.is_ipv6() => tracing::debug!(%address, %error, "listen"),
                Err(error) => return Err(format!("listen on {address}: {error}")),
            }
        }
    }
    if listeners.is_empty() {
        return Err("none of --listen-client-urls can be listened on".into());
    }
    let office = Office::new(groups.clone());
    let steward = Steward {
        office: office.clone(),
        handle: handle.clone(),
        groups: local,
        peers: peers.clone(),
        router: router.clone(),
        node: own_record(&config, &place, directory_number),
        founders: place.members.iter().map(founder).collect(),
        cluster: place.cluster,
        roll_call: roll_call.clone(),
        copy: directory.ledger_path(),
    };
    steward.start(&fatal);
    for address in &config.listen_admin {
        let listener = match listen(address).await {
            Ok(listener) => listener,
            Err(error) if config.admin_by_default => {
                tracing::warn!(error, "no commands are taken here: set --listen-admin-urls");
                continue;
            }
            Err(error) => return Err(error),
        };
        let service = admin::Service::new(office.clone(), roll_call.clone(), groups.clone());
        let shutdown = ended(stopped.clone());
        tokio::spawn(async move {
            if let Err(error) = service.serve(listener, shutdown).await {
                tracing::error!(%error, "the operators' listener ended");
            }
        });
    }
    if !config.quiet {
        show(&config, &place);
    }
    let shutdown = ended(stopped.clone());
    // A tenant's own port is bound wherever clients are answered.
    let hosts = listeners.iter().filter_map(|listener| listener.local_addr().ok());
    let mut hosts: Vec<std::net::IpAddr> = hosts.map(|address| address.ip()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let (own_ports, own_ports_end) = (router.clone(), ended(stopped.clone()));
    resident::spawn("ports", &fatal, async move {
        own_ports.serve_ports(hosts, own_ports_end).await;
    });
    let serving = tokio::spawn(async move { router.serve(listeners, shutdown).await });
    resident::spawn("announce", &fatal, announce(groups.clone(), config.clone(), place.node));
    if config.retention != Retention::All {
        let compaction = compact(groups, handle.clone(), config.retention, place.node);
        resident::spawn("compaction", &fatal, compaction);
    }

    wait_for_signal(stopped.clone()).await;
    handle.input(Input::Drain);
    let until = tokio::time::Instant::now() + HAND_OVER;
    while place.peers.len() > 1
        && handle.leads_any(place.node)
        && tokio::time::Instant::now() < until
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = stop.send(true);
    let _ = tokio::time::timeout(HAND_OVER, serving).await;
    handle.stop();
    let until = tokio::time::Instant::now() + HAND_OVER;
    while !handle.is_closed() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The groups that begin with the node, unless they are on its disk: the system group, on the
/// nodes that began together, and the default tenant's.
fn first_groups(place: &Place) -> Vec<Birth> {
    let birth = |group, tenant, namespace| Birth {
        group,
        replica: place.node,
        members: place.members.clone(),
        cluster_id: place.cluster,
        tenant,
        namespace,
    };
    let default = birth(id::DEFAULT_GROUP, id::DEFAULT_TENANT, id::DEFAULT_NAMESPACE);
    match place.members.is_empty() {
        true => vec![default],
        false => vec![birth(id::SYSTEM_GROUP, TenantId(0), NamespaceId(0)), default],
    }
}

/// Where everything is before placement has said so.
fn first_map(place: &Place) -> PlacementMap {
    let nodes: Vec<NodeId> = place.peers.iter().map(|(node, _)| NodeId(*node)).collect();
    PlacementMap::embedded(place.cluster)
        .with_replicas(id::SYSTEM_GROUP, nodes.clone())
        .with_replicas(id::DEFAULT_GROUP, nodes)
}

/// This node as placement knows it.
fn own_record(config: &Config, place: &Place, directory: u64) -> record::Node {
    record::Node {
        id: place.node,
        name: config.name.clone(),
        peer_urls: config.advertise_peer.clone(),
        client_urls: config.advertise_client.clone(),
        zone: config.zone.clone(),
        weight: 1,
        directory,
        state: record::NodeState::Up,
        labels: Default::default(),
    }
}

/// A node that began with this one, as far as it is known.
fn founder(member: &Member) -> record::Node {
    record::Node {
        id: member.id,
        name: member.name.clone(),
        peer_urls: member.peer_ur_ls.clone(),
        client_urls: Vec::new(),
        zone: String::new(),
        weight: 1,
        directory: 0,
        state: record::NodeState::Up,
        labels: Default::default(),
    }
}

fn router_config(config: &Config) -> RouterConfig {
    RouterConfig {
        max_txn_ops: config.max_txn_ops,
        max_request_bytes: config.max_request_bytes,
        watch_progress_interval: config.progress_interval,
        election_timeout: Duration::from_millis(config.election_ms),
        max_concurrent_streams: config.max_concurrent_streams,
        tenant_domains: config.tenant_domains.clone(),
        ..Default::default()
    }
}

async fn resolve(address: &str) -> Result<Vec<std::net::SocketAddr>, String> {
    let found = tokio::net::lookup_host(address)
        .await
        .map_err(|error| format!("listen on {address}: {error}"))?;
    let mut found: Vec<_> = found.collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

async fn listen(address: &str) -> Result<TcpListener, String> {
    let found = resolve(address).await?;
    TcpListener::bind(found.as_slice())
        .await
        .map_err(|error| format!("listen on {address}: {error}"))
}

fn show(config: &Config, place: &Place) {
    println!("atoll {}", env!("CARGO_PKG_VERSION"));
    println!("  node      {} ({:x})", config.name, place.node);
    println!("  cluster   {:x}", place.cluster);
    println!("  data      {}", config.data_dir.display());
    println!("  clients   {}", config.advertise_client.join(", "));
    if !config.listen_peer.is_empty() {
        println!("  peers     {}", config.advertise_peer.join(", "));
    }
    if let Some(url) = config.advertise_client.first() {
        println!(
            "  try       etcdctl --endpoints {} put hello world",
            host("", url).unwrap_or_default()
        );
    }
}

/// Tells the cluster this node's name and client URLs, until it has been heard.
async fn announce(groups: Arc<dyn Groups>, config: Config, node: u64) {
    let member = Member {
        id: node,
        name: config.name.clone(),
        client_ur_ls: config.advertise_client.clone(),
        ..Default::default()
    };
    loop {
        let publish = PublishMember { member: Some(member.clone()) };
        match groups.call(own_request(Request::Publish(publish))).await {
            Ok(_) => break,
            Err(error) => tracing::debug!(%error, "not heard yet"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if !config.quiet {
        println!("ready to serve client requests");
    }
}

/// Compacts by itself, from the leader's node only.
async fn compact(groups: Arc<dyn Groups>, handle: NodeHandle, retention: Retention, node: u64) {
    let mut compactor = AutoCompactor::new(retention, handle.now_ms());
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(view) = handle.group(id::DEFAULT_GROUP) else { continue };
        let target = compactor.sample(handle.now_ms(), view.shared.published.revision());
        if let Some(revision) = target
            && view.shared.leader() == Some(node)
        {
            let ask = CompactionRequest { revision, physical: false };
            match groups.call(own_request(Request::Compact(ask))).await {
                Ok(_) => tracing::info!(revision, "compacted automatically"),
                Err(error) => tracing::warn!(revision, %error, "automatic compaction failed"),
            }
        }
    }
}

async fn wait_for_signal(mut stopped: watch::Receiver<bool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
}

/// The node's own figures for /metrics.
struct Figures {
    handle: NodeHandle,
    node: u64,
}

impl StatusSource for Figures {
    fn report(&self) -> NodeReport {
        use std::sync::atomic::Ordering::Relaxed;
        let durations = self.handle.durations();
        let reading = |pair: &(std::sync::atomic::AtomicU64, std::sync::atomic::AtomicU64),
                       buckets: &[std::sync::atomic::AtomicU64; 15]| {
            let mut below = 0;
            let bounds = buckets.iter().take(14).enumerate().map(|(n, bucket)| {
                below += bucket.load(Relaxed);
                (0.001 * f64::from(1u32 << n), below)
            });
            HistogramReading {
                buckets: bounds.collect(),
                sum: pair.1.load(Relaxed) as f64 / 1e6,
                count: pair.0.load(Relaxed),
            }
        };
        let leads = |group: GroupId| {
            self.handle.group(group).is_some_and(|view| view.shared.leader() == Some(self.node))
        };
        NodeReport {
            is_leader: leads(id::DEFAULT_GROUP),
            log_sync: reading(&durations.syncs, &durations.sync_buckets),
            engine_commit: reading(&durations.checkpoints, &durations.checkpoint_buckets),
            ..Default::default()
        }
    }
}
