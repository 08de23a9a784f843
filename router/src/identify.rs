//! Whose etcd a request is for: all that names one must name the same one.
//!
//! Clients cannot be changed, so there are several ways to name an etcd, and each client knows
//! some of them:
//!
//! | evidence | where | names |
//! |---|---|---|
//! | a port of its own | the listener that took the connection | the etcd that has the port |
//! | a virtual host | `:authority`, `Host` | `acme.<domain>`, `events.acme.<domain>` |
//! | a header, for tools | `atoll-tenant` | `acme`, `acme/events` |
//! | a login | `token`, `authorization` | what Authenticate answered to `root@acme` |
//!
//! It is decided for each request, because a proxy may put many tenants on one connection. A
//! host under none of the domains and a token that is not ours are no evidence; a name that
//! says whom it means and is not known is an error, never the default.
//!
//! None of this proves anything: there are no users yet and tenants are open. A token is a name
//! and nothing else, and whoever knows the name can write the token.
//!
//! Invariants:
//! * pure: the same map and the same evidence give the same answer;
//! * no piece of evidence outvotes another: two that differ are refused;
//! * what is told to a client names no tenant, its own or another.

use std::{borrow::Cow, sync::Arc};

use proto::{Error, NamespaceId, PlacementMap, TenantId, VirtualEtcd, map::Standing};

/// Pieces of evidence that one request may carry.
const PIECES_MAX: usize = 8;

/// How a token of ours begins. etcd's own tokens are 16 letters and a dot, or a JWT.
const TOKEN_PREFIX: &str = "tenant.";

/// How `authorization` may begin, as other tools than etcd's clients send it.
const BEARER: &str = "Bearer ";

/// What an etcd is known by between maps: names and ports change, ids never.
pub(crate) type EtcdId = (TenantId, NamespaceId);

/// The id of an etcd.
pub(crate) fn id(etcd: &VirtualEtcd) -> EtcdId {
    (etcd.tenant, etcd.namespace)
}

/// Where a connection came in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entrance {
    /// The port that the client dialled, 0 if that is not known.
    pub(crate) port: u16,
    /// The etcd that the listener was opened for, if for one.
    pub(crate) etcd: Option<EtcdId>,
}

/// How a piece of evidence is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A host name, perhaps with a port.
    #[default]
    Host,
    /// A name as it is.
    Name,
    /// A token of ours or of somebody else.
    Token,
}

/// What a request says about whom it is for, as it came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Evidence<'a> {
    pieces: [(Kind, &'a [u8]); PIECES_MAX],
    count: usize,
    /// More came than there is room for.
    excess: bool,
}

// === impl Evidence ===

impl<'a> Evidence<'a> {
    /// Adds a piece.
    pub(crate) fn add(&mut self, kind: Kind, value: &'a [u8]) {
        match self.pieces.get_mut(self.count) {
            Some(piece) => {
                *piece = (kind, value);
                self.count += 1;
            }
            None => self.excess = true,
        }
    }

    fn pieces(&self) -> impl Iterator<Item = (Kind, &'a [u8])> {
        self.pieces.iter().take(self.count).copied()
    }
}

/// Evidence that was kept to be compared with: most requests of a connection say the same.
#[derive(Debug, Default)]
pub(crate) struct KeptEvidence {
    pieces: Vec<(Kind, Box<[u8]>)>,
}

// === impl KeptEvidence ===

impl KeptEvidence {
    /// Keeps a copy. Evidence in excess is never the same as any: it must be refused each time.
    pub(crate) fn of(evidence: &Evidence<'_>) -> Option<KeptEvidence> {
        let pieces = evidence.pieces().map(|(kind, value)| (kind, value.into())).collect();
        (!evidence.excess).then_some(KeptEvidence { pieces })
    }

    /// Is it this?
    pub(crate) fn is(&self, evidence: &Evidence<'_>) -> bool {
        let mut pairs = self.pieces.iter().zip(evidence.pieces());
        self.pieces.len() == evidence.count
            && !evidence.excess
            && pairs.all(|((kind, value), (now, said))| *kind == now && **value == *said)
    }
}

/// The etcd that all evidence names; `None` when there is no evidence.
pub(crate) fn identify<'m>(
    map: &'m PlacementMap,
    domains: &[String],
    entrance: Entrance,
    evidence: &Evidence<'_>,
) -> Result<Option<&'m Arc<VirtualEtcd>>, Error> {
    let mut found = by_entrance(map, entrance)?;
    for (kind, value) in evidence.pieces() {
        let Some(name) = name(kind, value, domains)? else { continue };
        let etcd = map.named(&name).ok_or(Error::UnknownTenant)?;
        if found.is_some_and(|before| id(before) != id(etcd)) {
            return Err(Error::TenantMismatch);
        }
        found = Some(etcd);
    }
    // What was not looked at could name another.
    if evidence.excess { Err(Error::TenantMismatch) } else { Ok(found) }
}

fn by_entrance(map: &PlacementMap, entrance: Entrance) -> Result<Option<&Arc<VirtualEtcd>>, Error> {
    match entrance.etcd {
        Some((tenant, namespace)) => {
            map.etcd(tenant, namespace).map(Some).ok_or(Error::UnknownTenant)
        }
        None => Ok(map.on_port(entrance.port)),
    }
}

/// May clients of `etcd` do anything?
pub(crate) fn admit(etcd: &VirtualEtcd) -> Result<(), Error> {
    match etcd.standing {
        Standing::Open => Ok(()),
        Standing::Frozen => Err(Error::TenantFrozen),
        Standing::Deleted => Err(Error::TenantDeleted),
    }
}

/// The name that a piece says, if it says one.
fn name<'a>(
    kind: Kind,
    value: &'a [u8],
    domains: &[String],
) -> Result<Option<Cow<'a, str>>, Error> {
    // What is no text may still mean somebody: it must not end at the default.
    let text = std::str::from_utf8(value).map_err(|_| Error::UnknownTenant)?;
    match kind {
        Kind::Host => named_by_host(text, domains).map(|name| name.map(Cow::Owned)),
        Kind::Name => Ok(Some(Cow::Borrowed(text))),
        Kind::Token => {
            let token = text.strip_prefix(BEARER).unwrap_or(text);
            Ok(token.strip_prefix(TOKEN_PREFIX).map(Cow::Borrowed))
        }
    }
}

/// `acme.<domain>` is `acme`, `events.acme.<domain>` is `acme/events`.
fn named_by_host(authority: &str, domains: &[String]) -> Result<Option<String>, Error> {
    let host = host_of(authority).to_ascii_lowercase();
    let Some(labels) = under(&host, domains) else { return Ok(None) };
    if labels.contains('/') {
        return Err(Error::UnknownTenant);
    }
    let mut parts = labels.split('.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(tenant), None, None) => Ok(Some(tenant.to_owned())),
        (Some(namespace), Some(tenant), None) => Ok(Some(format!("{tenant}/{namespace}"))),
        _ => Err(Error::UnknownTenant),
    }
}

/// The host in `user@host:port`. Old Go clients leave the user in.
fn host_of(authority: &str) -> &str {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') {
        return host;
    }
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    host.strip_suffix('.').unwrap_or(host)
}

/// What stands before the domain that `host` is under; of nested domains before the longest.
fn under<'a>(host: &'a str, domains: &[String]) -> Option<&'a str> {
    let before = |domain: &String| {
        host.strip_suffix(domain.to_ascii_lowercase().as_str())?.strip_suffix('.')
    };
    domains.iter().filter_map(before).min_by_key(|labels| labels.len())
}

/// The virtual host of the etcd called `name`.
pub(crate) fn host(name: &str, domain: &str) -> String {
    match name.split_once('/') {
        Some((tenant, namespace)) => format!("{namespace}.{tenant}.{domain}"),
        None => format!("{name}.{domain}"),
    }
}

/// The tenant in the name of a user, `root@acme`.
pub(crate) fn tenant_of_user(user: &str) -> Option<&str> {
    user.rsplit_once('@').map(|(_, tenant)| tenant)
}

/// The token that names the etcd called `name`. It proves nothing.
pub(crate) fn token(name: &str) -> String {
    format!("{TOKEN_PREFIX}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{GroupId, map::Target};

    fn etcd(name: &str, tenant: u64, namespace: u64, port: u16) -> VirtualEtcd {
        let home = Target {
            tenant: TenantId(tenant),
            namespace: NamespaceId(namespace),
            group: GroupId(10 * tenant + namespace),
            range_version: 1,
        };
        let mut etcd = VirtualEtcd::unsplit(name, 100 + tenant, home);
        etcd.port = port;
        etcd
    }

    fn map() -> PlacementMap {
        PlacementMap::embedded(1)
            .with(etcd("acme", 7, 1, 4001))
            .with(etcd("acme/events", 7, 2, 0))
            .with(etcd("beta", 8, 1, 4002))
    }

    const HOST: Kind = Kind::Host;
    const NAME: Kind = Kind::Name;
    const TOKEN: Kind = Kind::Token;

    fn check(entrance: Entrance, pieces: &[(Kind, &str)]) -> Result<Option<String>, Error> {
        let mut evidence = Evidence::default();
        for (kind, value) in pieces {
            evidence.add(*kind, value.as_bytes());
        }
        let domains = ["localhost", "etcd.example", "example"].map(str::to_owned);
        identify(&map(), &domains, entrance, &evidence)
            .map(|found| found.map(|etcd| etcd.name.clone()))
    }

    fn by(kind: Kind, value: &str) -> Result<Option<String>, Error> {
        check(Entrance::default(), &[(kind, value)])
    }

    fn named(name: &str) -> Result<Option<String>, Error> {
        Ok(Some(name.to_owned()))
    }

    #[test]
    fn a_host_under_a_domain_names_an_etcd_whatever_the_port() {
        for host in ["acme.localhost", "acme.localhost:2379", "ACME.LocalHost.:1", "u@acme.example"]
        {
            assert_eq!(by(HOST, host), named("acme"), "{host}");
        }
        assert_eq!(by(HOST, "events.acme.localhost:2379"), named("acme/events"));
        assert_eq!(by(HOST, "acme.etcd.example"), named("acme"));
    }

    #[test]
    fn a_host_under_no_domain_is_no_evidence() {
        for host in
            ["localhost:2379", "127.0.0.1:2379", "[::1]:2379", "::1", "acme", "acmelocalhost", ""]
        {
            assert_eq!(by(HOST, host), Ok(None), "{host}");
        }
    }

    #[test]
    fn an_unknown_name_is_an_error_and_never_the_default() {
        for host in [
            "gamma.localhost",
            ".localhost",
            "other.acme.localhost",
            "x.events.acme.localhost",
            "acme..localhost",
            "acme/events.localhost",
        ] {
            assert_eq!(by(HOST, host), Err(Error::UnknownTenant), "{host}");
        }
        for name in ["", "gamma", "ACME", "acme/", "acme/events/", " acme"] {
            assert_eq!(by(NAME, name), Err(Error::UnknownTenant), "{name}");
        }
        assert_eq!(by(TOKEN, "tenant.gamma"), Err(Error::UnknownTenant));
        assert_eq!(by(TOKEN, "tenant."), Err(Error::UnknownTenant));
        let mut garbage = Evidence::default();
        garbage.add(HOST, b"\xff.localhost");
        let (map, domains) = (map(), ["localhost".to_owned()]);
        let found = identify(&map, &domains, Entrance::default(), &garbage);
        assert_eq!(found.err(), Some(Error::UnknownTenant));
    }

    #[test]
    fn headers_and_tokens_name_an_etcd() {
        assert_eq!(by(NAME, "acme"), named("acme"));
        assert_eq!(by(NAME, "acme/events"), named("acme/events"));
        assert_eq!(by(TOKEN, &token("acme/events")), named("acme/events"));
        assert_eq!(by(TOKEN, "Bearer tenant.beta"), named("beta"));
        for foreign in ["", "wPzKmrqLkXhJgQvt.12", "eyJhbGciOi.x.y", "Tenant.acme"] {
            assert_eq!(by(TOKEN, foreign), Ok(None), "{foreign}");
        }
    }

    #[test]
    fn a_port_names_its_etcd_and_a_listener_the_one_it_was_opened_for() {
        let at = |port, etcd| check(Entrance { port, etcd }, &[]);
        assert_eq!(at(4001, None), named("acme"));
        assert_eq!(at(2379, None), Ok(None));
        let events = (TenantId(7), NamespaceId(2));
        assert_eq!(at(9, Some(events)), named("acme/events"));
        let gone = (TenantId(9), NamespaceId(1));
        assert_eq!(at(4001, Some(gone)), Err(Error::UnknownTenant));
    }

    #[test]
    fn evidence_that_agrees_is_taken_and_a_contradiction_refused() {
        let acme = [(HOST, "acme.localhost:4001"), (NAME, "acme"), (TOKEN, "tenant.acme")];
        let port = |port| Entrance { port, etcd: None };
        assert_eq!(check(port(4001), &acme), named("acme"));
        let mismatch = Err(Error::TenantMismatch);
        assert_eq!(check(port(4002), &acme), mismatch);
        for other in [(HOST, "beta.localhost"), (NAME, "acme/events"), (TOKEN, "tenant.beta")] {
            for mine in acme {
                assert_eq!(check(port(0), &[mine, other]), mismatch, "{mine:?} {other:?}");
                assert_eq!(check(port(0), &[other, mine]), mismatch, "{mine:?} {other:?}");
            }
        }
        // The default is an etcd like the others: to name it contradicts too.
        assert_eq!(check(port(4001), &[(NAME, "default")]), mismatch);
        // What is no evidence contradicts nobody.
        assert_eq!(check(port(4001), &[(HOST, "10.0.0.1:4001"), (TOKEN, "x")]), named("acme"));
    }

    #[test]
    fn more_evidence_than_there_is_room_for_is_refused() {
        let many = vec![(TOKEN, "foreign"); PIECES_MAX];
        assert_eq!(check(Entrance::default(), &many), Ok(None));
        let mut more = many;
        more.push((NAME, "acme"));
        assert_eq!(check(Entrance::default(), &more), Err(Error::TenantMismatch));
    }

    #[test]
    fn kept_evidence_is_only_itself() {
        let mut evidence = Evidence::default();
        evidence.add(HOST, b"a");
        let kept = KeptEvidence::of(&evidence).expect("not in excess");
        assert!(kept.is(&evidence));
        let mut more = evidence;
        more.add(TOKEN, b"b");
        let mut other = Evidence::default();
        other.add(NAME, b"a");
        assert!(!kept.is(&more) && !kept.is(&other) && !kept.is(&Evidence::default()));
    }

    #[test]
    fn hosts_and_tokens_name_what_they_were_made_of() {
        for name in ["acme", "acme/events", "beta"] {
            assert_eq!(by(HOST, &host(name, "etcd.example")), named(name));
            assert_eq!(by(TOKEN, &token(name)), named(name));
        }
        assert_eq!(tenant_of_user("root@acme/events"), Some("acme/events"));
        assert_eq!((tenant_of_user("a@b@acme"), tenant_of_user("root")), (Some("acme"), None));
    }
}
