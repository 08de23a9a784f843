//! `atoll playground`: three nodes in one process with two tenants, and what to type next.
//! Everything is in one folder, which goes with the process unless it was named. Each node has a
//! loopback address of its own, so that a tenant's port is the same at all of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use placement::{Answer, Command};

use crate::admin;
use crate::config::{Config, Settings};
use crate::start;

/// Nodes of a playground.
const NODES: u16 = 3;
/// The tenants, and their ports above the first node's.
const TENANTS: [(&str, u16); 2] = [("acme", 10), ("beta", 11)];
/// How long the nodes may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a playground is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Keeps everything in this folder [default: a new one, which is removed in the end].
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Client port of the nodes, on 127.0.0.1 to 127.0.0.3; those of the tenants are 10 and 11
    /// above.
    #[arg(long, default_value_t = 2379)]
    port: u16,
    /// error, warn, info, debug or trace.
    #[arg(long, default_value = "warn")]
    log_level: String,
}

/// Runs it until it is told to stop.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let given = options.data_dir.is_some();
    let name = format!("atoll-playground-{}", std::process::id());
    let folder = options.data_dir.clone().unwrap_or_else(|| std::env::temp_dir().join(name));
    let configs: Result<Vec<Config>, String> =
        (0..NODES).map(|n| config(options, &folder, n)).collect();
    let configs = configs?;
    start::tell_log(&options.log_level)?;
    let done = start::runtime()?.block_on(async {
        let seeding = tokio::spawn(seed(options.port));
        let nodes = configs.into_iter().map(start::serve);
        let ended = futures::future::join_all(nodes).await;
        seeding.abort();
        ended.into_iter().collect::<Result<Vec<()>, String>>()
    });
    if !given {
        // It may be gone already.
        let _ = std::fs::remove_dir_all(&folder);
    }
    done.map(drop)
}

fn config(options: &Options, folder: &std::path::Path, number: u16) -> Result<Config, String> {
    let url = |above: u16, node: u16| {
        let port = options.port.checked_add(above);
        let port = port.ok_or("--port is too high: there is no room above it".to_owned())?;
        Ok::<_, String>(format!("http://127.0.0.{}:{port}", node + 1))
    };
    let member = |node| Ok::<_, String>(format!("n{}={}", node + 1, url(1, node)?));
    let cluster: Result<Vec<String>, String> = (0..NODES).map(member).collect();
    let mut settings = Settings::default();
    settings.name = Some(format!("n{}", number + 1));
    settings.data_dir = Some(folder.join(format!("n{}", number + 1)));
    settings.listen_client_urls = Some(url(0, number)?);
    settings.listen_peer_urls = Some(url(1, number)?);
    settings.initial_advertise_peer_urls = Some(url(1, number)?);
    settings.listen_admin_urls = Some(url(2, number)?);
    settings.initial_cluster = Some(cluster?.join(","));
    settings.log_level = Some(options.log_level.clone());
    let config = settings.check(false).map_err(|error| error.0)?;
    Ok(Config { quiet: true, ..config })
}

/// Creates the tenants as soon as the nodes answer, and says what to type next.
async fn seed(port: u16) {
    let way = format!("http://127.0.0.1:{}", port + 2);
    let until = tokio::time::Instant::now() + PATIENCE;
    for (name, above) in TENANTS {
        let create = Command::TenantCreate {
            name: name.to_owned(),
            replicas: 0,
            port: port + above,
            reuse_name: false,
        };
        loop {
            match admin::ask(&way, &create).await {
                Ok(Answer::Tenants(_)) => break,
                Ok(Answer::Refused(why)) if why.contains("already") => break,
                Ok(_) | Err(_) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(answer) => return eprintln!("atoll: tenant {name}: {answer:?}"),
                Err(error) => return eprintln!("atoll: tenant {name}: {error}"),
            }
        }
    }
    show(port);
}

fn show(port: u16) {
    let [acme, beta] = TENANTS.map(|(_, above)| port + above);
    let admin = format!("http://127.0.0.1:{}", port + 2);
    println!("three nodes: n1, n2, n3; two tenants beside the default one:");
    println!(
        "  default  http://127.0.0.1:{port}, http://127.0.0.2:{port}, http://127.0.0.3:{port}"
    );
    println!("  acme     the same hosts, port {acme}");
    println!("  beta     the same hosts, port {beta}");
    println!();
    println!("Try, in another terminal:");
    println!("  export ATOLL_ADMIN={admin}");
    println!("  eval $(atoll env acme)        # sets etcdctl up for a tenant");
    println!("  etcdctl put hello acme; etcdctl get hello");
    println!("  etcdctl --endpoints 127.0.0.1:{beta} get hello     # nothing: another tenant");
    println!("  etcdctl watch hello &         # goes on over all that follows");
    println!("  atoll tenant create solo --replicas 1");
    println!("  atoll tenant move solo --to n2; atoll op list; atoll group list");
    println!("  atoll tenant list; atoll node list");
}
