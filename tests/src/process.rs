//! Servers as real processes: started on free ports with a data directory of their own,
//! waited for by the line they log when they serve, killed when dropped.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::sim::random::Random;

/// What etcd logs, and Atoll after it, once clients may connect.
pub(crate) const READY_LINE: &str = "ready to serve client requests";
/// How long a server may take to start.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the log is looked at while waiting.
pub(crate) const START_POLL: Duration = Duration::from_millis(5);

/// Where ports are taken from: below the local ports of connections (32768 and up by default), which
/// anybody's next connection may take.
const PORTS: (u64, u64) = (15_000, 31_000);
/// Lines of a log that a report shows.
const LAST_LINES: usize = 12;

/// Which program to start and how it wants to be spoken to.
#[derive(Clone, Debug)]
pub enum Program {
    /// `etcd`; alone without syncing to disk.
    Etcd(PathBuf),
    /// `atoll dev` alone, `atoll start` among others.
    Atoll(PathBuf),
}

impl Program {
    /// Returns etcd as `tests/peers/build.sh` leaves it.
    pub fn etcd_peer() -> Self {
        Self::Etcd(peers_dir().join("bin").join("etcd"))
    }

    pub(crate) fn binary(&self) -> &Path {
        match self {
            Self::Etcd(path) | Self::Atoll(path) => path,
        }
    }

    fn command(&self, data_dir: &Path, port: u16, peer_port: u16) -> Command {
        let client = format!("http://127.0.0.1:{port}");
        let mut command = Command::new(self.binary());
        match self {
            Self::Etcd(_) => {
                let peer = format!("http://127.0.0.1:{peer_port}");
                // One thread, whose collector runs seldom: the tests need the cores as well.
                command
                    .envs([("GOMAXPROCS", "1"), ("GOGC", "400")])
                    .args(["--name", "default", "--unsafe-no-fsync", "--log-level", "info"])
                    .arg("--data-dir")
                    .arg(data_dir)
                    .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                    .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                    .args(["--initial-cluster", &format!("default={peer}")]);
            }
            Self::Atoll(_) => {
                command.arg("dev").arg("--data-dir").arg(data_dir);
                command.args(["--listen-client-urls", &client]);
            }
        }
        command
    }
}

/// Returns where the programs that Atoll is checked against lie.
pub fn peers_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("ATOLL_PEERS") {
        return PathBuf::from(dir);
    }
    std::env::home_dir().unwrap_or_default().join(".cache").join("atoll-peers")
}

/// A running server; it and its directory go away with this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    dir: PathBuf,
    url: String,
}

impl Process {
    /// Starts `program` with an empty directory under `work_dir` and waits until it serves.
    pub fn start(program: &Program, work_dir: &Path, name: &str) -> io::Result<Self> {
        let dir = work_dir.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ports = free_ports(2, &mut Random::new(since_epoch.subsec_nanos().into()))?;
        let log = File::create(dir.join("log"))?;
        let child = program
            .command(&dir.join("data"), ports[0], ports[1])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| {
                io::Error::new(e.kind(), format!("start {}: {e}", program.binary().display()))
            })?;
        let mut process = Self { child, dir, url: format!("http://127.0.0.1:{}", ports[0]) };
        process.wait_ready()?;
        Ok(process)
    }

    /// Returns the URL at which clients reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Says whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns what its log says about a panic, and its last lines.
    pub fn last_words(&self) -> String {
        last_words(&self.dir.join("log"))
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            let log = fs::read(self.dir.join("log"))?;
            if String::from_utf8_lossy(&log).contains(READY_LINE) {
                return Ok(());
            }
            let ended = self.has_ended();
            if ended || begun.elapsed() > START_TIMEOUT {
                let what = if ended { "ended at once" } else { "did not become ready" };
                return Err(io::Error::other(format!("server {what}:\n{}", self.last_words())));
            }
            thread::sleep(START_POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that is gone already cannot be killed, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Returns what a log says about a panic, and its last lines.
pub(crate) fn last_words(log: &Path) -> String {
    let log = fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let (older, last) = lines.split_at(lines.len().saturating_sub(LAST_LINES));
    let panics = older.iter().filter(|line| line.contains("panic"));
    panics.chain(last).copied().collect::<Vec<_>>().join("\n")
}

/// Returns so many ports that were free a moment ago.
pub(crate) fn free_ports(count: usize, random: &mut Random) -> io::Result<Vec<u16>> {
    const TRIES: usize = 1000;
    let mut held = Vec::new();
    for _ in 0..TRIES {
        if held.len() == count {
            break;
        }
        let port = u16::try_from(random.between(PORTS.0, PORTS.1)).unwrap_or(u16::MAX);
        held.extend(TcpListener::bind(("127.0.0.1", port)));
    }
    if held.len() < count {
        return Err(io::Error::other("no free ports"));
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
