//! `atoll playground`: three nodes in one process with two tenants, and what to type next.
//! Everything is in one folder, which goes with the process unless it was named. Each node has a
//! loopback address of its own, so that a tenant's port is the same at all of them, and a runtime
//! of its own, so that one can be killed for good while the others run: what is typed into the
//! playground's own terminal kills a node or adds one.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;
use placement::{Answer, Command};
use tokio::sync::oneshot;

use crate::admin;
use crate::config::{Config, Settings};
use crate::members;
use crate::start;

/// Nodes of a playground in the beginning, and most that it ever has.
const NODES: u16 = 3;
const NODES_MAX: u16 = 9;
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
    let (ended, endings) = mpsc::channel();
    let mut running = Vec::new();
    for config in configs {
        running.push(begin(config, ended.clone())?);
    }
    let port = options.port;
    let seeding = start::runtime()?;
    seeding.spawn(seed(port));
    let (options, inside) = (options.clone(), folder.clone());
    thread::spawn(move || obey(&options, &inside, running, &ended));
    let mut done = Ok(());
    while let Ok(Ending { killed, result }) = endings.recv() {
        // A signal reaches all of them; who was killed does not count.
        if !killed {
            done = result;
            break;
        }
    }
    seeding.shutdown_background();
    if !given {
        // It may be gone already.
        let _ = std::fs::remove_dir_all(&folder);
    }
    done
}

/// A node that runs: dropping its `kill` ends it as a power cut would, without a word to anybody.
struct Running {
    name: String,
    kill: oneshot::Sender<()>,
}

/// How a node ended.
struct Ending {
    killed: bool,
    result: Result<(), String>,
}

fn begin(config: Config, ended: mpsc::Sender<Ending>) -> Result<Running, String> {
    let runtime = start::runtime()?;
    let (kill, mut killed) = oneshot::channel::<()>();
    let name = config.name.clone();
    thread::spawn(move || {
        let result = runtime.block_on(async {
            tokio::select! {
                result = start::serve(config) => Some(result),
                _ = &mut killed => None,
            }
        });
        let ending = Ending { killed: result.is_none(), result: result.unwrap_or(Ok(())) };
        // What else the node has begun ends with its runtime.
        runtime.shutdown_background();
        // Nobody listens any more when the playground has ended.
        let _ = ended.send(ending);
    });
    Ok(Running { name, kill })
}

/// Does what is typed into the playground's terminal.
fn obey(options: &Options, folder: &Path, mut running: Vec<Running>, ended: &mpsc::Sender<Ending>) {
    let mut born = NODES;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            ["kill", name] => match running.iter().position(|node| node.name == *name) {
                Some(at) => {
                    drop(running.swap_remove(at).kill);
                    println!("{name} is dead, for good. `atoll status` says what follows.");
                }
                None => println!("{name} does not run here"),
            },
            ["add"] if born < NODES_MAX => {
                let node = introduce(options, born).and_then(|()| config(options, folder, born));
                match node.and_then(|config| begin(config, ended.clone())) {
                    Ok(node) => {
                        println!("{} joins, on 127.0.0.{}", node.name, born + 1);
                        running.push(node);
                        born += 1;
                    }
                    Err(error) => println!("{error}"),
                }
            }
            ["add"] => println!("there is room for {NODES_MAX} nodes"),
            _ => println!("kill NODE, or add (a node)"),
        }
    }
    // Nothing is typed any more; what is running goes on.
    loop {
        thread::park();
    }
}

/// Has the others know of a node that is about to join.
fn introduce(options: &Options, number: u16) -> Result<(), String> {
    start::runtime()?.block_on(async {
        let mut client = members::dial(&format!("http://127.0.0.1:{}", options.port)).await?;
        let peer = format!("http://127.0.0.{}:{}", number + 1, options.port + 1);
        members::add(&mut client, peer).await.map(drop)
    })
}

fn config(options: &Options, folder: &Path, number: u16) -> Result<Config, String> {
    let url = |above: u16, node: u16| {
        let port = options.port.checked_add(above);
        let port = port.ok_or("--port is too high: there is no room above it".to_owned())?;
        Ok::<_, String>(format!("http://127.0.0.{}:{port}", node + 1))
    };
    let member = |node| Ok::<_, String>(format!("n{}={}", node + 1, url(1, node)?));
    let joins = number >= NODES;
    let known = (0..NODES).chain(joins.then_some(number));
    let cluster: Result<Vec<String>, String> = known.map(member).collect();
    let mut settings = Settings::default();
    settings.name = Some(format!("n{}", number + 1));
    settings.data_dir = Some(folder.join(format!("n{}", number + 1)));
    settings.listen_client_urls = Some(url(0, number)?);
    settings.listen_peer_urls = Some(url(1, number)?);
    settings.initial_advertise_peer_urls = Some(url(1, number)?);
    settings.listen_admin_urls = Some(url(2, number)?);
    settings.initial_cluster = Some(cluster?.join(","));
    settings.initial_cluster_state = joins.then(|| "existing".to_owned());
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
    println!();
    println!("Here, in this terminal (the first commands in the other one):");
    println!("  add                           # a fourth node; atoll node drain n2; atoll op list");
    println!(
        "  kill n3                       # for good: atoll node repair-after 10s; atoll status"
    );
}
