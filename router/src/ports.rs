//! Ports of their own: listeners that come and go with the map.
//!
//! A tenant whose client cannot send a name (an address without a host, no way to add a header)
//! is known by the port that it dials. The map says which ports there are, and this task keeps
//! a listener open for each, on every given host.
//!
//! *A port that cannot be bound* is somebody else's for now: it is told once as a warning and
//! tried again every second. *A port that is given to another etcd* is closed before it is
//! opened again, so that no connection of the one lives on as the other's.
//!
//! Invariant: a listener is open for the etcd that has its port in the newest map, or closing.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    pin::pin,
    time::Duration,
};

use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};

use crate::{
    Router,
    identify::{self, EtcdId},
    server::Entry,
};

/// How often a port that could not be bound is tried.
const RETRY: Duration = Duration::from_secs(1);

/// An open listener; it closes when this is dropped.
struct Open {
    etcd: EtcdId,
    stop: oneshot::Sender<()>,
    /// Resolves when the port is free again.
    released: oneshot::Receiver<()>,
}

/// See the module.
struct Ports {
    router: Router,
    hosts: Vec<IpAddr>,
    open: HashMap<SocketAddr, Open>,
    /// Those that could not be bound at the last try.
    failing: HashMap<SocketAddr, EtcdId>,
    serving: JoinSet<()>,
}

// === impl Router ===

impl Router {
    /// Keeps a listener open on each of `hosts` for every port that the map gives to one etcd,
    /// until `shutdown` resolves and their connections have ended (or had their time). The
    /// hosts should be those that the shared listeners could be bound to.
    pub async fn serve_ports(&self, hosts: Vec<IpAddr>, shutdown: impl Future<Output = ()> + Send) {
        let mut maps = self.placements();
        let mut ports = Ports {
            router: self.clone(),
            hosts,
            open: HashMap::new(),
            failing: HashMap::new(),
            serving: JoinSet::new(),
        };
        let mut shutdown = pin!(shutdown);
        loop {
            maps.mark_unchanged();
            ports.follow_map().await;
            tokio::select! {
                // The router that sends maps is in our own hands.
                _ = maps.changed() => {}
                () = tokio::time::sleep(RETRY), if !ports.failing.is_empty() => {}
                Some(_) = ports.serving.join_next(), if !ports.serving.is_empty() => {}
                () = &mut shutdown => break,
            }
        }
        ports.open.clear();
        while ports.serving.join_next().await.is_some() {}
    }
}

// === impl Ports ===

impl Ports {
    /// Closes what the newest map does not have, and opens what it has.
    async fn follow_map(&mut self) {
        let wanted = self.wanted();
        let is_wanted = |address: &SocketAddr, etcd: EtcdId| wanted.get(address) == Some(&etcd);
        self.failing.retain(|address, etcd| is_wanted(address, *etcd));
        let gone = self.open.extract_if(|address, open| !is_wanted(address, open.etcd));
        for (address, open) in gone.collect::<Vec<_>>() {
            tracing::info!(%address, "a tenant's port closes");
            drop(open.stop);
            // Dropped with the listener, not sent.
            let _ = open.released.await;
        }
        for (address, etcd) in wanted {
            if !self.open.contains_key(&address) {
                self.open(address, etcd).await;
            }
        }
    }

    fn wanted(&self) -> HashMap<SocketAddr, EtcdId> {
        let map = self.router.map();
        let of_port = |port| map.on_port(port).map(|etcd| (port, identify::id(etcd)));
        let ports: Vec<_> = map.ports().into_iter().filter_map(of_port).collect();
        let on_hosts =
            |(port, etcd)| self.hosts.iter().map(move |host| (SocketAddr::new(*host, port), etcd));
        ports.into_iter().flat_map(on_hosts).collect()
    }

    async fn open(&mut self, address: SocketAddr, etcd: EtcdId) {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => {
                if self.failing.insert(address, etcd).is_none() {
                    tracing::warn!(%address, %error, "a tenant's port cannot be opened yet");
                }
                return;
            }
        };
        self.failing.remove(&address);
        tracing::info!(%address, "a tenant's port is open");
        let (stop, stopped) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let entry = Entry::of_etcd(listener, etcd, Some(release));
        let router = self.router.clone();
        self.serving.spawn(async move {
            let shutdown = async { drop(stopped.await) };
            router.receive(vec![entry], shutdown).await;
        });
        self.open.insert(address, Open { etcd, stop, released });
    }
}
