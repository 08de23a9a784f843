//! Starts, restarts and stops the servers that are compared.
//!
//! A [`Cluster`] is one node or three on loopback, with free ports, default settings, and fresh data
//! folders below one root that goes away with it. Dropping it kills the processes at once and waits
//! for their end, so neither an error nor an interrupt leaves anything behind.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::connection;
use crate::cpu;
use crate::error::Error;

/// Both systems write this when they take requests.
const READY_LINE: &str = "ready to serve client requests";
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// A free port may be taken by somebody else before the server gets it.
const START_ATTEMPTS: usize = 3;
const LOG_TAIL_LINES: usize = 15;

/// A kind of server and the program to run.
#[derive(Clone, Debug)]
pub(crate) struct System {
    pub(crate) label: String,
    pub(crate) kind: Kind,
    pub(crate) program: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Atoll,
    Etcd,
}

/// Running servers.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    root: PathBuf,
}

struct Node {
    name: String,
    command: Vec<String>,
    program: PathBuf,
    client_url: String,
    data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// Starts `count` nodes with empty data folders below `root`, which must not exist yet. Returns
    /// when each said that it is ready and has answered a put.
    pub(crate) async fn start(
        system: &System,
        count: usize,
        root: &Path,
    ) -> Result<Cluster, Error> {
        let mut attempt = 1;
        loop {
            let mut cluster = Cluster::lay_out(system, count, root)?;
            match cluster.run().await {
                Ok(_) => return Ok(cluster),
                Err(error) if attempt == START_ATTEMPTS => return Err(error),
                Err(error) => eprintln!("start again: {error}"),
            }
            attempt += 1;
        }
    }

    fn lay_out(system: &System, count: usize, root: &Path) -> Result<Cluster, Error> {
        fs::create_dir_all(root).map_err(Error::file("make folder", root))?;
        let ports = free_ports(2 * count).map_err(Error::file("find free ports for", root))?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (client_ports, peer_ports) = ports.split_at(count);
        let names: Vec<String> = (1..=count).map(|n| format!("n{n}")).collect();
        let members: Vec<String> = names
            .iter()
            .zip(peer_ports)
            .map(|(name, &port)| format!("{name}={}", url(port)))
            .collect();
        let nodes = names.iter().zip(client_ports).zip(peer_ports);
        let nodes = nodes.map(|((name, &client_port), &peer_port)| {
            let data = root.join(name);
            let client_url = url(client_port);
            let command = arguments(
                system.kind,
                &Place {
                    name,
                    data: &data,
                    client_url: &client_url,
                    peer_url: &url(peer_port),
                    members: &members,
                },
            );
            let log = root.join(format!("{name}.log"));
            let program = system.program.clone();
            Node { name: name.clone(), command, program, client_url, data, log, child: None }
        });
        Ok(Cluster { nodes: nodes.collect(), root: root.to_owned() })
    }

    /// Starts all processes; tells how long it took until each answered a put.
    async fn run(&mut self) -> Result<Duration, Error> {
        let started = Instant::now();
        for node in &mut self.nodes {
            node.spawn()?;
        }
        for node in &mut self.nodes {
            node.wait_ready(started).await?;
        }
        let healthy = connection::wait_healthy(&self.endpoints(), START_LIMIT).await;
        match healthy {
            Ok(_) => Ok(started.elapsed()),
            Err(error) => Err(self.nodes[0].failure(&error.to_string())),
        }
    }

    /// Ends all processes in an orderly way and starts them again on their data; tells how long it
    /// took from the start until each answered a put.
    pub(crate) async fn restart(&mut self) -> Result<Duration, Error> {
        for node in &self.nodes {
            node.signal(Signal::TERM);
        }
        for node in &mut self.nodes {
            node.wait_end().await?;
        }
        self.run().await
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client_url.clone()).collect()
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.child.as_ref().map(Child::id)).collect()
    }

    /// Space of all data folders.
    pub(crate) fn disk_mib(&self) -> f64 {
        self.nodes.iter().map(|node| cpu::disk_mib(&node.data)).sum()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if let Err(error) = fs::remove_dir_all(&self.root) {
            eprintln!("remove {}: {error}", self.root.display());
        }
    }
}

// === Node ===

impl Node {
    fn spawn(&mut self) -> Result<(), Error> {
        let log = File::create(&self.log).map_err(Error::file("make log", &self.log))?;
        let copy = log.try_clone().map_err(Error::file("share log", &self.log))?;
        let mut command = Command::new(&self.program);
        command.args(&self.command).stdin(Stdio::null()).stdout(log).stderr(copy);
        // Both systems take settings from the environment too; these shall be the defaults.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("ETCD_") || name.starts_with("ATOLL_") {
                command.env_remove(name.as_ref());
            }
        }
        self.child = Some(command.spawn().map_err(Error::file("start", &self.program))?);
        Ok(())
    }

    async fn wait_ready(&mut self, started: Instant) -> Result<(), Error> {
        loop {
            let log = fs::read(&self.log).unwrap_or_default();
            if String::from_utf8_lossy(&log).contains(READY_LINE) {
                return Ok(());
            }
            let ended = self.child.as_mut().is_none_or(|c| !matches!(c.try_wait(), Ok(None)));
            if ended {
                return Err(self.failure("ended before it was ready"));
            }
            if started.elapsed() > START_LIMIT {
                return Err(self.failure("did not become ready"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn wait_end(&mut self) -> Result<(), Error> {
        let asked = Instant::now();
        while let Some(child) = &mut self.child {
            if !matches!(child.try_wait(), Ok(None)) {
                self.child = None;
            } else if asked.elapsed() > STOP_LIMIT {
                return Err(self.failure("did not end when asked to"));
            } else {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|c| Pid::from_raw(i32::try_from(c.id()).ok()?));
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, signal)
        {
            eprintln!("signal {}: {error}", self.name);
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it is gone already.
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn failure(&self, reason: &str) -> Error {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
        Error::Server {
            name: self.name.clone(),
            reason: format!("{reason}; its log ends:\n{tail}"),
        }
    }
}

// === Command lines ===

struct Place<'a> {
    name: &'a str,
    data: &'a Path,
    client_url: &'a str,
    peer_url: &'a str,
    members: &'a [String],
}

/// The arguments of one node: nothing but where it lives and whom it knows.
fn arguments(kind: Kind, place: &Place<'_>) -> Vec<String> {
    let data = place.data.to_string_lossy();
    let members = place.members.join(",");
    let here = ["--data-dir", &data, "--listen-client-urls", place.client_url];
    let known = [
        "--name",
        place.name,
        "--advertise-client-urls",
        place.client_url,
        "--listen-peer-urls",
        place.peer_url,
        "--initial-advertise-peer-urls",
        place.peer_url,
        "--initial-cluster",
        &members,
    ];
    let words = match (kind, place.members.len()) {
        (Kind::Etcd, _) => [&here[..], &known[..]].concat(),
        (Kind::Atoll, 1) => [&["dev"], &here[..]].concat(),
        (Kind::Atoll, _) => [&["start"], &here[..], &known[..]].concat(),
    };
    words.into_iter().map(str::to_owned).collect()
}

/// Ports that nobody listened on a moment ago, all different.
fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let listeners: Result<Vec<_>, _> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect();
    listeners?.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(kind: Kind, members: &[String]) -> Vec<String> {
        let data = Path::new("/d");
        arguments(kind, &Place { name: "n1", data, client_url: "c", peer_url: "p", members })
    }

    #[test]
    fn one_atoll_is_a_dev_server_and_three_are_started_like_etcd() {
        let (one, three) = (["n1=p".to_owned()], ["n1=p", "n2=q", "n3=r"].map(str::to_owned));
        assert_eq!(
            words(Kind::Atoll, &one),
            ["dev", "--data-dir", "/d", "--listen-client-urls", "c"]
        );
        assert_eq!(words(Kind::Atoll, &three)[1..], words(Kind::Etcd, &three));
        assert!(words(Kind::Etcd, &three).contains(&"n1=p,n2=q,n3=r".to_owned()));
    }

    #[test]
    fn free_ports_differ() {
        let mut ports = free_ports(6).expect("loopback has free ports");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 6);
    }
}
