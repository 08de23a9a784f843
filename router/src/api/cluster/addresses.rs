//! Where a client reaches its own etcd at a node. Pure.
//!
//! A node's plain URL leads to whatever etcd a request names otherwise, so it is told last:
//!
//! 1. the tenant's own port, if it has one: the node's URL with that port;
//! 2. the tenant's virtual host, if there is a domain that resolves for clients;
//! 3. the node's URL.

use proto::{VirtualEtcd, map::RouterPlace};

use crate::identify;

/// A domain in which every machine finds itself: no client elsewhere can go by it.
const LOOPBACK: &str = "localhost";

/// URLs of `etcd` at `router`, each once.
pub(super) fn of(router: &RouterPlace, etcd: &VirtualEtcd, domains: &[String]) -> Vec<String> {
    let domain = domains.first().filter(|domain| *domain != LOOPBACK);
    let own = |url: &String| {
        let (scheme, host, port) = parts(url)?;
        if etcd.port != 0 {
            return Some(format!("{scheme}://{host}:{}", etcd.port));
        }
        let host = identify::host(&etcd.name, domain?);
        Some(format!("{scheme}://{host}{port}"))
    };
    let mut urls = Vec::new();
    for url in &router.client_urls {
        let url = own(url).unwrap_or_else(|| url.clone());
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}

/// Scheme, host and port of a URL, the port with its colon; `None` for what has no host, such
/// as a socket's path.
fn parts(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    if !matches!(scheme, "http" | "https") {
        return None;
    }
    let authority = rest.split('/').next()?;
    let host_end = authority.rfind(']').map_or(0, |end| end + 1);
    let colon = authority.get(host_end..)?.find(':').map(|at| at + host_end);
    let (host, port) = authority.split_at(colon.unwrap_or(authority.len()));
    (!host.is_empty()).then_some((scheme, host, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{GroupId, NamespaceId, NodeId, TenantId, map::Target};

    fn check(name: &str, port: u16, domain: &str, urls: &[&str], expected: &[&str]) {
        let home = Target {
            tenant: TenantId(7),
            namespace: NamespaceId(1),
            group: GroupId(10),
            range_version: 1,
        };
        let mut etcd = VirtualEtcd::unsplit(name, 1, home);
        etcd.port = port;
        let client_urls = urls.iter().map(|url| (*url).to_owned()).collect();
        let router = RouterPlace { node: NodeId(1), name: "n1".into(), client_urls };
        assert_eq!(of(&router, &etcd, &[domain.to_owned()]), expected, "{name} {port} {domain}");
    }

    const PLAIN: &[&str] = &["http://10.0.0.1:2379", "https://[fd00::1]:2379/"];

    #[test]
    fn a_port_of_its_own_replaces_the_nodes() {
        let own = &["http://10.0.0.1:4001", "https://[fd00::1]:4001"];
        check("acme", 4001, "etcd.example", PLAIN, own);
        check("acme", 4001, "localhost", &["http://node"], &["http://node:4001"]);
    }

    #[test]
    fn a_public_domain_gives_a_virtual_host() {
        let own = &["http://acme.etcd.example:2379", "https://acme.etcd.example:2379"];
        check("acme", 0, "etcd.example", PLAIN, own);
        let two = &["http://a:2379", "http://b:2379"];
        check("acme/events", 0, "x.org", two, &["http://events.acme.x.org:2379"]);
        check("acme", 0, "x.org", &["http://a"], &["http://acme.x.org"]);
    }

    #[test]
    fn otherwise_the_nodes_own_urls_are_told() {
        check("acme", 0, "localhost", PLAIN, PLAIN);
        let odd = &["unix:///run/etcd.sock", "10.0.0.1:2379", "http://"];
        check("acme", 4001, "etcd.example", odd, odd);
    }
}
