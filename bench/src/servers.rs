//! Starts, restarts and stops the servers that are compared.
//!
//! A [`Cluster`] is one node or three on loopback, with free ports, default settings (but for a larger
//! quota where a test writes more than the default lets in), and fresh data folders below one root that
//! goes away with it. Dropping it kills the processes at once and waits for their end, so neither an
//! error nor an interrupt leaves anything behind.

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
/// With millions of keys a start takes a minute on some systems; one that fails ends by itself.
const START_LIMIT: Duration = Duration::from_secs(300);
const STOP_LIMIT: Duration = Duration::from_secs(60);
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

impl System {
    /// The first line that the program says of its version.
    pub(crate) fn version(&self) -> String {
        let said = Command::new(&self.program).arg("--version").output();
        let said = said.map(|said| said.stdout).unwrap_or_default();
        String::from_utf8_lossy(&said).lines().next().unwrap_or("unknown").to_owned()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Atoll,
    Etcd,
}

/// What is not a default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    /// The flag `--quota-backend-bytes`, the same for both systems.
    pub(crate) quota_bytes: Option<u64>,
    /// Whether operators' commands are taken; Atoll only.
    pub(crate) operators: bool,
}

/// Running servers.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    system: System,
    settings: Settings,
    root: PathBuf,
}

struct Node {
    name: String,
    command: Vec<String>,
    program: PathBuf,
    client_url: String,
    peer_url: String,
    admin_url: Option<String>,
    data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// Starts `count` nodes with empty data folders below `root`, which must not exist yet. Returns
    /// when each said that it is ready and has answered a put.
    pub(crate) async fn start(
        system: &System,
        settings: Settings,
        count: usize,
        root: &Path,
    ) -> Result<Cluster, Error> {
        let mut attempt = 1;
        loop {
            let mut cluster = Cluster::lay_out(system, settings, count, root)?;
            match cluster.run().await {
                Ok(_) => return Ok(cluster),
                Err(error) if attempt == START_ATTEMPTS => return Err(error),
                Err(error) => eprintln!("start again: {error}"),
            }
            attempt += 1;
        }
    }

    fn lay_out(
        system: &System,
        settings: Settings,
        count: usize,
        root: &Path,
    ) -> Result<Cluster, Error> {
        fs::create_dir_all(root).map_err(Error::file("make folder", root))?;
        let mut cluster =
            Cluster { nodes: Vec::new(), system: system.clone(), settings, root: root.to_owned() };
        let urls = free_urls(3 * count).map_err(Error::file("find free ports for", root))?;
        let (client_urls, urls) = urls.split_at(count);
        let (peer_urls, admin_urls) = urls.split_at(count);
        let names: Vec<String> = (1..=count).map(|n| format!("n{n}")).collect();
        let members: Vec<String> =
            names.iter().zip(peer_urls).map(|(name, url)| format!("{name}={url}")).collect();
        for (((name, client_url), peer_url), admin_url) in
            names.iter().zip(client_urls).zip(peer_urls).zip(admin_urls)
        {
            let mut node = cluster.node(name, client_url, peer_url, &members);
            if settings.operators {
                node.command.extend(["--listen-admin-urls".to_owned(), admin_url.clone()]);
                node.admin_url = Some(admin_url.clone());
            }
            cluster.nodes.push(node);
        }
        Ok(cluster)
    }

    fn node(&self, name: &str, client_url: &str, peer_url: &str, members: &[String]) -> Node {
        let data = self.root.join(name);
        let place = Place { name, data: &data, client_url, peer_url, members };
        Node {
            name: name.to_owned(),
            command: arguments(self.system.kind, self.settings, &place),
            program: self.system.program.clone(),
            client_url: client_url.to_owned(),
            peer_url: peer_url.to_owned(),
            admin_url: None,
            log: self.root.join(format!("{name}.log")),
            data,
            child: None,
        }
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
        self.stop().await?;
        self.run().await
    }

    /// The same, with nothing of their data in the system's memory.
    pub(crate) async fn restart_cold(&mut self) -> Result<Duration, Error> {
        self.stop().await?;
        for node in &self.nodes {
            cpu::forget_files(&node.data);
        }
        self.run().await
    }

    async fn stop(&mut self) -> Result<(), Error> {
        for node in &self.nodes {
            node.signal(Signal::TERM);
        }
        for node in &mut self.nodes {
            node.wait_end().await?;
        }
        Ok(())
    }

    /// Kills the node at a client URL and deletes its data, for good: the others must be told.
    pub(crate) fn lose(&mut self, client_url: &str) {
        let Some(at) = self.nodes.iter().position(|node| node.client_url == client_url) else {
            return;
        };
        let mut node = self.nodes.remove(at);
        node.kill();
        // What stays of it only takes space until the cluster goes.
        drop(fs::remove_dir_all(&node.data));
    }

    /// A node that is not there yet: its name and its URL for the other nodes, which must have been
    /// told of it before [`Cluster::join`].
    pub(crate) fn newcomer(&self) -> Result<Newcomer, Error> {
        let urls = free_urls(2).map_err(Error::file("find free ports for", &self.root))?;
        let [client_url, peer_url] = <[String; 2]>::try_from(urls).expect("as many as asked for");
        Ok(Newcomer { name: "newcomer".to_owned(), client_url, peer_url })
    }

    /// Starts a node that knows the others; does not wait for it.
    pub(crate) fn join(&mut self, newcomer: &Newcomer) -> Result<(), Error> {
        let named = |name: &str, url: &str| format!("{name}={url}");
        let mut members: Vec<String> =
            self.nodes.iter().map(|node| named(&node.name, &node.peer_url)).collect();
        members.push(named(&newcomer.name, &newcomer.peer_url));
        let mut node =
            self.node(&newcomer.name, &newcomer.client_url, &newcomer.peer_url, &members);
        node.command.extend(["--initial-cluster-state".to_owned(), "existing".to_owned()]);
        node.spawn()?;
        self.nodes.push(node);
        Ok(())
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client_url.clone()).collect()
    }

    /// Where operators' commands are taken, as far as they are.
    pub(crate) fn admins(&self) -> Vec<String> {
        self.nodes.iter().filter_map(|node| node.admin_url.clone()).collect()
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.child.as_ref().map(Child::id)).collect()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.system.kind
    }

    /// Nodes of this cluster.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
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

/// A node that shall join.
pub(crate) struct Newcomer {
    name: String,
    client_url: String,
    pub(crate) peer_url: String,
}

struct Place<'a> {
    name: &'a str,
    data: &'a Path,
    client_url: &'a str,
    peer_url: &'a str,
    members: &'a [String],
}

/// The arguments of one node: where it lives, whom it knows, and what is not a default.
fn arguments(kind: Kind, settings: Settings, place: &Place<'_>) -> Vec<String> {
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
    let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    if let Some(bytes) = settings.quota_bytes {
        words.extend(["--quota-backend-bytes".to_owned(), bytes.to_string()]);
    }
    words
}

/// URLs of ports that nobody listened on a moment ago, all different.
fn free_urls(count: usize) -> std::io::Result<Vec<String>> {
    let listeners: Result<Vec<_>, _> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect();
    let url =
        |listener: &TcpListener| Ok(format!("http://127.0.0.1:{}", listener.local_addr()?.port()));
    listeners?.iter().map(url).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(kind: Kind, members: &[String]) -> Vec<String> {
        let data = Path::new("/d");
        let place = Place { name: "n1", data, client_url: "c", peer_url: "p", members };
        arguments(kind, Settings::default(), &place)
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
    fn a_quota_is_told_to_both_in_the_same_words() {
        let (settings, members) =
            (Settings { quota_bytes: Some(9), ..Default::default() }, ["n1=p".to_owned()]);
        for kind in [Kind::Atoll, Kind::Etcd] {
            let data = Path::new("/d");
            let place =
                Place { name: "n1", data, client_url: "c", peer_url: "p", members: &members };
            let words = arguments(kind, settings, &place);
            assert_eq!(words[words.len() - 2..], ["--quota-backend-bytes", "9"]);
        }
    }

    #[test]
    fn free_urls_differ() {
        let mut urls = free_urls(6).expect("loopback has free ports");
        urls.sort_unstable();
        urls.dedup();
        assert_eq!(urls.len(), 6);
    }
}
