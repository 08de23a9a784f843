//! Settings: flags over environment over file over defaults.
//!
//! The names are etcd's wherever the meaning is, so that an operator's habits and scripts
//! carry over; the environment is `ATOLL_` and the flag in upper case; the file is TOML with
//! the same names and durations as `"10m"`. A key that nobody knows is an error, never
//! silently ignored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use shard::autocompact::Retention;
use shard::group::large::LARGE_BYTES;

/// Everything that can be set, as it was given: unset is `None`.
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Settings {
    /// Name of this node, as in --initial-cluster.
    #[arg(long, env = "ATOLL_NAME")]
    pub(crate) name: Option<String>,
    /// Directory of everything this node stores [default: NAME.atoll].
    #[arg(long, env = "ATOLL_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// URLs to answer clients on, separated by commas [default: http://localhost:2379].
    #[arg(long, env = "ATOLL_LISTEN_CLIENT_URLS")]
    pub(crate) listen_client_urls: Option<String>,
    /// URLs that clients are told [default: those listened on].
    #[arg(long, env = "ATOLL_ADVERTISE_CLIENT_URLS")]
    pub(crate) advertise_client_urls: Option<String>,
    /// URLs to answer other nodes on [default: http://localhost:2380].
    #[arg(long, env = "ATOLL_LISTEN_PEER_URLS")]
    pub(crate) listen_peer_urls: Option<String>,
    /// URLs that other nodes are told [default: http://localhost:2380].
    #[arg(long, env = "ATOLL_INITIAL_ADVERTISE_PEER_URLS")]
    pub(crate) initial_advertise_peer_urls: Option<String>,
    /// URLs to answer operators on: whoever reaches one may do everything [default:
    /// http://localhost:2381 if clients are answered on port 2379, else none].
    #[arg(long, env = "ATOLL_LISTEN_ADMIN_URLS")]
    pub(crate) listen_admin_urls: Option<String>,
    /// Domains under which tenants are found by host name, separated by commas: acme.DOMAIN
    /// [default: localhost].
    #[arg(long, env = "ATOLL_TENANT_DOMAINS")]
    pub(crate) tenant_domains: Option<String>,
    /// The zone this node is in: replicas of a group go to different ones.
    #[arg(long, env = "ATOLL_ZONE")]
    pub(crate) zone: Option<String>,
    /// First members, name=peer URL, separated by commas [default: this node alone].
    #[arg(long, env = "ATOLL_INITIAL_CLUSTER")]
    pub(crate) initial_cluster: Option<String>,
    /// new, or existing to join a running cluster that this node was added to.
    #[arg(long, env = "ATOLL_INITIAL_CLUSTER_STATE")]
    pub(crate) initial_cluster_state: Option<String>,
    /// Keeps clusters apart that are made from the same URLs [default: atoll-cluster].
    #[arg(long, env = "ATOLL_INITIAL_CLUSTER_TOKEN")]
    pub(crate) initial_cluster_token: Option<String>,
    /// Milliseconds between heartbeats [default: 100].
    #[arg(long, env = "ATOLL_HEARTBEAT_INTERVAL")]
    pub(crate) heartbeat_interval: Option<u64>,
    /// Milliseconds without a leader before an election [default: 1000].
    #[arg(long, env = "ATOLL_ELECTION_TIMEOUT")]
    pub(crate) election_timeout: Option<u64>,
    /// Bytes from which on writes are refused; 0 is 2 GiB, below 0 is never [default: 0].
    #[arg(long, env = "ATOLL_QUOTA_BACKEND_BYTES", allow_negative_numbers = true)]
    pub(crate) quota_backend_bytes: Option<i64>,
    /// periodic or revision [default: periodic].
    #[arg(long, env = "ATOLL_AUTO_COMPACTION_MODE")]
    pub(crate) auto_compaction_mode: Option<String>,
    /// What automatic compaction keeps: a duration (hours if a bare number), or revisions;
    /// 0 switches it off [default: 0].
    #[arg(long, env = "ATOLL_AUTO_COMPACTION_RETENTION")]
    pub(crate) auto_compaction_retention: Option<String>,
    /// Operations allowed in one list of a transaction [default: 128].
    #[arg(long, env = "ATOLL_MAX_TXN_OPS")]
    pub(crate) max_txn_ops: Option<usize>,
    /// Bytes of a request [default: 1572864].
    #[arg(long, env = "ATOLL_MAX_REQUEST_BYTES")]
    pub(crate) max_request_bytes: Option<usize>,
    /// Streams of one client connection [default: 4294967295].
    #[arg(long, env = "ATOLL_MAX_CONCURRENT_STREAMS")]
    pub(crate) max_concurrent_streams: Option<u32>,
    /// Commands after which a checkpoint is written [default: 50000].
    #[arg(long, env = "ATOLL_SNAPSHOT_COUNT")]
    pub(crate) snapshot_count: Option<u64>,
    /// Bytes of the disk that must stay free: below it what adds data is refused [default: a
    /// tenth of the disk, from 192 MiB to 1 GiB].
    #[arg(long, env = "ATOLL_DISK_RESERVE_BYTES")]
    pub(crate) disk_reserve_bytes: Option<u64>,
    /// Values from this many bytes on are stored in page files, outside of the engine
    /// [default: 8192].
    #[arg(long, env = "ATOLL_LARGE_VALUE_BYTES")]
    pub(crate) large_value_bytes: Option<usize>,
    /// How often an idle watch that asked for it is told its progress [default: 10m].
    #[arg(
        long,
        alias = "experimental-watch-progress-notify-interval",
        env = "ATOLL_WATCH_PROGRESS_NOTIFY_INTERVAL"
    )]
    #[serde(alias = "experimental-watch-progress-notify-interval")]
    pub(crate) watch_progress_notify_interval: Option<String>,
    /// error, warn, info, debug or trace [default: info].
    #[arg(long, env = "ATOLL_LOG_LEVEL")]
    pub(crate) log_level: Option<String>,
    // What etcd's start scripts set beside these: taken, and said to be without effect.
    #[arg(long, hide = true)]
    logger: Option<String>,
    #[arg(long, hide = true)]
    log_outputs: Option<String>,
    #[arg(long, hide = true)]
    max_snapshots: Option<String>,
    #[arg(long, hide = true)]
    max_wals: Option<String>,
    #[arg(long, hide = true)]
    feature_gates: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pre_vote: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    strict_reconfig_check: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    experimental_initial_corrupt_check: Option<String>,
}

/// Settings as the program uses them.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Name of this node.
    pub(crate) name: String,
    /// Where everything is stored.
    pub(crate) data_dir: PathBuf,
    /// `host:port` to answer clients on.
    pub(crate) listen_client: Vec<String>,
    /// URLs that clients are told.
    pub(crate) advertise_client: Vec<String>,
    /// `host:port` to answer other nodes on; empty for a node that is alone for ever.
    pub(crate) listen_peer: Vec<String>,
    /// `host:port` to answer operators on.
    pub(crate) listen_admin: Vec<String>,
    /// The above were not chosen by anybody.
    pub(crate) admin_by_default: bool,
    /// Domains of tenants' host names.
    pub(crate) tenant_domains: Vec<String>,
    /// Zone of this node; empty if nobody said.
    pub(crate) zone: String,
    /// Names and peer URLs of the first members.
    pub(crate) initial_cluster: Vec<(String, String)>,
    /// Join a running cluster.
    pub(crate) join: bool,
    /// Keeps clusters apart.
    pub(crate) token: String,
    /// Own peer URLs.
    pub(crate) advertise_peer: Vec<String>,
    /// Milliseconds between ticks.
    pub(crate) heartbeat_ms: u64,
    /// Milliseconds of the election timeout.
    pub(crate) election_ms: u64,
    /// The quota; below 1 is none.
    pub(crate) quota_bytes: i64,
    /// Automatic compaction.
    pub(crate) retention: Retention,
    /// Transaction operations.
    pub(crate) max_txn_ops: usize,
    /// Bytes of a request.
    pub(crate) max_request_bytes: usize,
    /// Streams of a connection.
    pub(crate) max_concurrent_streams: u32,
    /// Commands between checkpoints.
    pub(crate) snapshot_count: u64,
    /// What must stay free on the disk, if the operator chose it.
    pub(crate) disk_reserve_bytes: Option<u64>,
    /// Values from this length on are stored in page files.
    pub(crate) large_value_bytes: usize,
    /// Progress of idle watches.
    pub(crate) progress_interval: Duration,
    /// Log level.
    pub(crate) log_level: String,
    /// Prints nothing.
    pub(crate) quiet: bool,
}

/// A setting that cannot be used: one line that says what to do.
#[derive(Debug)]
pub(crate) struct ConfigError(pub(crate) String);

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! fill {
    ($into:ident from $file:ident: $($field:ident)*) => {
        $(if $into.$field.is_none() { $into.$field = $file.$field; })*
    };
}

impl Settings {
    /// The settings of etcd that were given and mean nothing here, as a sentence.
    pub(crate) fn without_effect(&self) -> Option<String> {
        let given = [
            ("logger", &self.logger),
            ("log-outputs", &self.log_outputs),
            ("max-snapshots", &self.max_snapshots),
            ("max-wals", &self.max_wals),
            ("feature-gates", &self.feature_gates),
            ("pre-vote", &self.pre_vote),
            ("strict-reconfig-check", &self.strict_reconfig_check),
            ("experimental-initial-corrupt-check", &self.experimental_initial_corrupt_check),
        ];
        let names: Vec<_> =
            given.iter().filter(|(_, given)| given.is_some()).map(|(name, _)| *name).collect();
        (!names.is_empty()).then(|| format!("without effect here: {}", names.join(", ")))
    }

    /// Fills what flags and environment left open from a file.
    pub(crate) fn with_file(mut self, path: Option<&Path>) -> Result<Settings, ConfigError> {
        let Some(path) = path else { return Ok(self) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError(format!("read {}: {error}", path.display())))?;
        let file: Settings = toml::from_str(&text).map_err(|error| {
            let line = error.to_string().replace('\n', " ");
            ConfigError(format!("{}: {line}; correct or remove the setting", path.display()))
        })?;
        fill!(self from file:
            name data_dir listen_client_urls advertise_client_urls listen_peer_urls
            listen_admin_urls tenant_domains zone
            initial_advertise_peer_urls initial_cluster initial_cluster_state
            initial_cluster_token heartbeat_interval election_timeout quota_backend_bytes
            auto_compaction_mode auto_compaction_retention max_txn_ops max_request_bytes
            logger log_outputs max_snapshots max_wals feature_gates pre_vote
            strict_reconfig_check experimental_initial_corrupt_check
            max_concurrent_streams snapshot_count disk_reserve_bytes large_value_bytes watch_progress_notify_interval log_level);
        Ok(self)
    }

    /// Checks everything and fills in the defaults. `alone` is the embedded default: no
    /// other node will ever be.
    pub(crate) fn check(self, alone: bool) -> Result<Config, ConfigError> {
        let name = self.name.unwrap_or_else(|| "default".into());
        let client_urls = self.listen_client_urls.unwrap_or_else(|| "http://localhost:2379".into());
        let listen_client = hosts("listen-client-urls", &client_urls)?;
        let advertise_client = match &self.advertise_client_urls {
            Some(urls) => urls.split(',').map(str::to_owned).collect(),
            None => client_urls.split(',').map(str::to_owned).collect(),
        };
        let peer_default = || "http://localhost:2380".to_owned();
        let peer_urls = self.listen_peer_urls.unwrap_or_else(peer_default);
        let advertise_peer = self.initial_advertise_peer_urls.unwrap_or_else(peer_default);
        let initial = self.initial_cluster.unwrap_or_else(|| format!("{name}={advertise_peer}"));
        let mut initial_cluster = Vec::new();
        for part in initial.split(',').filter(|part| !part.is_empty()) {
            let (member, url) = part.split_once('=').ok_or_else(|| {
                ConfigError(format!("initial-cluster: \"{part}\" is not of the form name=url"))
            })?;
            host("initial-cluster", url)?;
            initial_cluster.push((member.to_owned(), url.to_owned()));
        }
        if !initial_cluster.iter().any(|(member, _)| *member == name) {
            return Err(ConfigError(format!(
                "initial-cluster does not name this node: add {name}=<its peer url>, or set --name"
            )));
        }
        let join = match self.initial_cluster_state.as_deref() {
            None | Some("new") => false,
            Some("existing") => true,
            Some(other) => {
                return Err(ConfigError(format!(
                    "initial-cluster-state is \"{other}\": say new or existing"
                )));
            }
        };
        let heartbeat_ms = self.heartbeat_interval.unwrap_or(100);
        let election_ms = self.election_timeout.unwrap_or(1000);
        if heartbeat_ms == 0 || election_ms < 5 * heartbeat_ms || election_ms > 50_000 {
            return Err(ConfigError(format!(
                "election-timeout ({election_ms}) must be at least five times heartbeat-interval \
                 ({heartbeat_ms}) and at most 50000"
            )));
        }
        let mode = self.auto_compaction_mode.as_deref().unwrap_or("periodic");
        let kept = self.auto_compaction_retention.as_deref().unwrap_or("0");
        let retention = retention(mode, kept)?;
        let admin_by_default = self.listen_admin_urls.is_none();
        let listen_admin = match &self.listen_admin_urls {
            Some(urls) => hosts("listen-admin-urls", urls)?,
            None => listen_client.first().and_then(|host| beside(host)).into_iter().collect(),
        };
        let domains = self.tenant_domains.unwrap_or_else(|| "localhost".into());
        let progress = self.watch_progress_notify_interval.as_deref().unwrap_or("10m");
        let quota = self.quota_backend_bytes.unwrap_or(0);
        Ok(Config {
            data_dir: self.data_dir.unwrap_or_else(|| PathBuf::from(format!("{name}.atoll"))),
            name,
            listen_client,
            advertise_client,
            listen_admin,
            admin_by_default,
            tenant_domains: domains.split(',').map(|domain| domain.trim().to_lowercase()).collect(),
            zone: self.zone.unwrap_or_default(),
            listen_peer: if alone { Vec::new() } else { hosts("listen-peer-urls", &peer_urls)? },
            initial_cluster,
            join,
            token: self.initial_cluster_token.unwrap_or_else(|| "atoll-cluster".into()),
            advertise_peer: advertise_peer.split(',').map(str::to_owned).collect(),
            heartbeat_ms,
            election_ms,
            quota_bytes: if quota == 0 { proto::limits::DEFAULT_QUOTA_BYTES } else { quota },
            retention,
            max_txn_ops: self.max_txn_ops.unwrap_or(proto::limits::MAX_TXN_OPS),
            max_request_bytes: self.max_request_bytes.unwrap_or(proto::limits::MAX_REQUEST_BYTES),
            max_concurrent_streams: self.max_concurrent_streams.unwrap_or(u32::MAX),
            snapshot_count: self.snapshot_count.unwrap_or(50_000).max(1),
            disk_reserve_bytes: self.disk_reserve_bytes,
            large_value_bytes: self.large_value_bytes.unwrap_or(LARGE_BYTES),
            progress_interval: duration("watch-progress-notify-interval", progress)?,
            log_level: self.log_level.unwrap_or_else(|| "info".into()),
            quiet: false,
        })
    }
}

fn retention(mode: &str, kept: &str) -> Result<Retention, ConfigError> {
    let bad = |what: &str| {
        ConfigError(format!("auto-compaction-retention is \"{kept}\": give {what}, or 0 for none"))
    };
    if kept == "0" {
        return Ok(Retention::All);
    }
    match mode {
        "revision" => kept.parse().map(Retention::Revisions).map_err(|_| bad("a number")),
        "periodic" => {
            let period = match kept.parse::<u64>() {
                Ok(hours) => Duration::from_secs(hours * 3600),
                Err(_) => parse_duration(kept).ok_or_else(|| bad("a duration such as 1h30m"))?,
            };
            Ok(Retention::PeriodMs(period.as_millis() as u64))
        }
        other => Err(ConfigError(format!(
            "auto-compaction-mode is \"{other}\": say periodic or revision"
        ))),
    }
}

fn duration(name: &str, text: &str) -> Result<Duration, ConfigError> {
    parse_duration(text).ok_or_else(|| {
        ConfigError(format!("{name} is \"{text}\": give a duration such as 500ms, 10s or 1h30m"))
    })
}

/// Reads Go's notation of durations: numbers, each with its unit.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = after;
    }
    Some(total)
}

/// Where operators are answered if nobody says where: on this machine only, and nowhere if the
/// client port is not the usual one, for two above it may be anything.
fn beside(client: &str) -> Option<String> {
    let (_, port) = client.rsplit_once(':')?;
    (port == "2379").then(|| "localhost:2381".to_owned())
}

fn hosts(name: &str, urls: &str) -> Result<Vec<String>, ConfigError> {
    urls.split(',').filter(|url| !url.is_empty()).map(|url| host(name, url)).collect()
}

/// `host:port` of a plain URL.
pub(crate) fn host(name: &str, url: &str) -> Result<String, ConfigError> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some(("https", _)) => {
            return Err(ConfigError(format!("{name}: {url}: TLS is not available yet, use http")));
        }
        _ => return Err(ConfigError(format!("{name}: {url} is not of the form http://host:port"))),
    };
    let rest = rest.trim_end_matches('/');
    let port = rest.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none() {
        return Err(ConfigError(format!("{name}: {url} has no port")));
    }
    Ok(rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
        for bad in ["", "10", "ten", "5 s x", "-1s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_unknown_key_in_the_file_is_named() {
        let error = toml::from_str::<Settings>("nmae = \"a\"").unwrap_err().to_string();
        assert!(error.contains("nmae"), "{error}");
    }

    #[test]
    fn what_means_nothing_here_is_named() {
        let file = "logger = \"zap\"\nname = \"a\"\nmax-wals = \"5\"";
        let settings = toml::from_str::<Settings>(file).unwrap();
        assert_eq!(settings.without_effect().unwrap(), "without effect here: logger, max-wals");
        assert_eq!(Settings::default().without_effect(), None);
    }

    #[test]
    fn a_bare_retention_is_hours() {
        assert_eq!(retention("periodic", "2").unwrap(), Retention::PeriodMs(7_200_000));
        assert_eq!(retention("revision", "1000").unwrap(), Retention::Revisions(1000));
        assert!(retention("periodic", "x").is_err());
        assert!(retention("sometimes", "1").is_err());
    }

    #[test]
    fn a_node_must_be_in_its_cluster() {
        let settings = Settings {
            name: Some("a".into()),
            initial_cluster: Some("b=http://localhost:1".into()),
            ..Default::default()
        };
        assert!(settings.check(false).unwrap_err().0.contains("does not name this node"));
    }
}
