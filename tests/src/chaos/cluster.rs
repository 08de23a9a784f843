//! Nodes as processes that die and come back on the same ports with the same data.
//!
//! ```text
//!   work dir ── n1 ── data        as the node left it, through all its lives
//!            │     ├─ log.1       what the first life said
//!            │     └─ log.2       …
//!            ├─ n2 …
//! ```
//!
//! Ports lie below the range from which the system takes the local ports of connections: a node
//! that is down must find its own port free, and a client that knocks at a port where nobody
//! listens may otherwise be connected with itself.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use proto::etcd::StatusRequest;
use proto::etcd::maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};

use crate::process::{Program, READY_LINE, START_POLL, START_TIMEOUT, free_ports, last_words};
use crate::sim::random::Random;

/// How long a connection may take: the node is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a node may take to say who leads.
const STATUS_TIMEOUT: Duration = Duration::from_millis(300);
/// How long a node may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Commands after which a node writes a checkpoint and lets go of its log: drawn for each node,
/// so that some come back from the log and some need a snapshot.
const SNAPSHOT_COUNTS: [u64; 3] = [500, 3_000, 50_000];

/// A signal that a node does not handle itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    /// Freezes it.
    Stop,
    /// Lets it go on.
    Continue,
    /// Asks it to end.
    Terminate,
}

/// A node.
pub(super) struct Member {
    name: String,
    dir: PathBuf,
    args: Vec<String>,
    url: String,
    admin_url: String,
    child: Option<Child>,
    lives: u32,
}

/// All nodes, and the program that they run.
pub(super) struct Cluster {
    program: Program,
    members: Vec<Member>,
}

// === impl Cluster ===

impl Cluster {
    /// Starts so many nodes with empty directories and waits until all serve.
    pub(super) async fn start(
        program: &Program,
        nodes: usize,
        work_dir: &Path,
        random: &mut Random,
    ) -> io::Result<Cluster> {
        let ports = free_ports(3 * nodes, random)?;
        let (client_ports, ports) = ports.split_at(nodes);
        let (peer_ports, admin_ports) = ports.split_at(nodes);
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let name = |index: usize| format!("n{}", index + 1);
        let all: Vec<String> = peer_ports
            .iter()
            .enumerate()
            .map(|(index, port)| format!("{}={}", name(index), url(port)))
            .collect();
        let mut members = Vec::new();
        for (index, (client, peer)) in client_ports.iter().zip(peer_ports).enumerate() {
            let dir = work_dir.join(name(index));
            fs::create_dir_all(&dir)?;
            let (client, peer) = (url(client), url(peer));
            let count = random.below(SNAPSHOT_COUNTS.len() as u64) as usize;
            let settings = [
                ("--name", name(index)),
                ("--data-dir", dir.join("data").display().to_string()),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client.clone()),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", all.join(",")),
                ("--initial-cluster-token", "chaos".to_owned()),
                ("--snapshot-count", SNAPSHOT_COUNTS[count].to_string()),
            ];
            let args = settings.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
            members.push(Member {
                name: name(index),
                dir,
                args: args.collect(),
                url: client,
                admin_url: url(&admin_ports[index]),
                child: None,
                lives: 0,
            });
        }
        let mut cluster = Cluster { program: program.clone(), members };
        for node in 0..nodes {
            cluster.spawn(node)?;
        }
        for node in 0..nodes {
            cluster.wait_ready(node).await?;
        }
        Ok(cluster)
    }

    /// Where clients reach the nodes.
    pub(super) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    /// Where the nodes take an operator's commands.
    pub(super) fn admin_urls(&self) -> Vec<String> {
        self.members.iter().map(|member| member.admin_url.clone()).collect()
    }

    /// Starts a node that is down, where it left off, and waits until it serves; says how long
    /// that took.
    pub(super) async fn restart(&mut self, node: usize) -> io::Result<Duration> {
        let begun = Instant::now();
        self.spawn(node)?;
        self.wait_ready(node).await?;
        Ok(begun.elapsed())
    }

    /// Kills a node as `kill -9` does.
    pub(super) fn kill(&mut self, node: usize) -> io::Result<()> {
        if let Some(mut child) = self.members[node].child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks a node to end and waits until it has; says what is wrong with how it did.
    pub(super) async fn stop(&mut self, node: usize) -> io::Result<Option<String>> {
        self.signal(node, Signal::Terminate)?;
        let member = &mut self.members[node];
        let begun = Instant::now();
        let Some(child) = &mut member.child else { return Ok(None) };
        let ended = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if begun.elapsed() > STOP_TIMEOUT {
                break None;
            }
            tokio::time::sleep(START_POLL).await;
        };
        let name = member.name.clone();
        let wrong = match ended {
            Some(status) if self.good(status) => None,
            Some(status) => Some(format!("{name} ended on SIGTERM with {status}")),
            None => Some(format!("{name} did not end within {STOP_TIMEOUT:?} of SIGTERM")),
        };
        self.kill(node)?;
        Ok(wrong)
    }

    /// Is this how the program ends when it is asked to? (etcd dies of the signal in the end.)
    fn good(&self, status: ExitStatus) -> bool {
        const SIGTERM: i32 = 15;
        let of_signal =
            matches!(self.program, Program::Etcd(_)) && status.signal() == Some(SIGTERM);
        status.success() || of_signal
    }

    /// Sends a signal to a node.
    pub(super) fn signal(&self, node: usize, signal: Signal) -> io::Result<()> {
        let Some(child) = &self.members[node].child else { return Ok(()) };
        let name = match signal {
            Signal::Stop => "STOP",
            Signal::Continue => "CONT",
            Signal::Terminate => "TERM",
        };
        // The shell's own `kill`: the standard library knows SIGKILL only.
        let line = format!("kill -{name} {}", child.id());
        let status = Command::new("sh").args(["-c", &line]).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("{line}: {status}"))) }
    }

    /// Nodes that ended though nobody asked them to, with their last words.
    pub(super) fn ended(&mut self) -> Vec<(usize, String)> {
        let mut ended = Vec::new();
        for (node, member) in self.members.iter_mut().enumerate() {
            let Some(child) = &mut member.child else { continue };
            if let Ok(Some(status)) = child.try_wait() {
                let words = last_words(&member.log());
                ended.push((node, format!("{} ended by itself ({status}):\n{words}", member.name)));
            }
        }
        ended
    }

    /// Lines of all logs of all lives that tell of a panic.
    pub(super) fn panics(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for member in &self.members {
            for life in 1..=member.lives {
                let log = fs::read(member.dir.join(format!("log.{life}"))).unwrap_or_default();
                let log = String::from_utf8_lossy(&log).into_owned();
                let panics = log.lines().filter(|line| line.contains("panicked at"));
                lines.extend(panics.map(|line| format!("{} life {life}: {line}", member.name)));
            }
        }
        lines
    }

    /// The node that the others believe to lead.
    pub(super) async fn leader(&self) -> Option<usize> {
        let mut ids = Vec::new();
        let mut leader = 0;
        for member in &self.members {
            let status = tokio::time::timeout(STATUS_TIMEOUT, status(&member.url)).await;
            let (id, believed) = status.ok().flatten().unwrap_or_default();
            ids.push(id);
            leader = if believed == 0 { leader } else { believed };
        }
        ids.iter().position(|id| *id == leader && leader != 0)
    }

    fn spawn(&mut self, node: usize) -> io::Result<()> {
        let member = &mut self.members[node];
        assert!(member.child.is_none(), "a node runs once");
        member.lives += 1;
        let log = File::create(member.log())?;
        let binary = self.program.binary();
        let verb = matches!(self.program, Program::Atoll(_)).then_some("start");
        let child = Command::new(binary)
            .args(verb)
            .args(&member.args)
            .env("ATOLL_LISTEN_ADMIN_URLS", &member.admin_url)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("start {}: {e}", binary.display())))?;
        member.child = Some(child);
        Ok(())
    }

    async fn wait_ready(&mut self, node: usize) -> io::Result<()> {
        let member = &mut self.members[node];
        let begun = Instant::now();
        loop {
            let log = fs::read(member.log())?;
            if String::from_utf8_lossy(&log).contains(READY_LINE) {
                return Ok(());
            }
            let ended = match &mut member.child {
                Some(child) => child.try_wait()?.is_some(),
                None => true,
            };
            if ended || begun.elapsed() > START_TIMEOUT {
                let what = if ended { "ended at once" } else { "does not serve" };
                let words = last_words(&member.log());
                let name = &member.name;
                return Err(io::Error::other(format!("{name}, after a start, {what}:\n{words}")));
            }
            tokio::time::sleep(START_POLL).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..self.members.len() {
            // SIGKILL also ends a node that is frozen; one that is gone already is as good.
            let _ = self.kill(node);
        }
    }
}

// === impl Member ===

impl Member {
    fn log(&self) -> PathBuf {
        self.dir.join(format!("log.{}", self.lives))
    }
}

/// Connects to a node.
pub(super) async fn connect(url: &str) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).ok()?;
    endpoint.tcp_nodelay(true).connect_timeout(CONNECT_TIMEOUT).connect().await.ok()
}

/// A node's own id, and the leader's as it believes.
async fn status(url: &str) -> Option<(u64, u64)> {
    let channel = connect(url).await?;
    let answer = MaintenanceClient::new(channel).status(StatusRequest {}).await.ok()?.into_inner();
    Some((answer.header.unwrap_or_default().member_id, answer.leader))
}
