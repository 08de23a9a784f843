//! What a request says beside its message, read in one pass over its headers.
//!
//! A look-up in a header map hashes the name; a request has few headers and we ask for many, so
//! each header is compared with what we know instead.

use std::time::Duration;

use http::{HeaderMap, Uri};

use crate::identify::{Evidence, Kind};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Metadata<'a> {
    /// Whom it is for.
    pub(crate) evidence: Evidence<'a>,
    /// Its client wants no answer from a group that has no leader.
    pub(crate) require_leader: bool,
    /// Its client's deadline.
    pub(crate) timeout: Option<Duration>,
    /// The version that the client says it speaks.
    pub(crate) client_api_version: Option<&'a [u8]>,
}

// === impl Metadata ===

impl<'a> Metadata<'a> {
    /// Reads everything. Of what is said twice the first counts, but all evidence counts.
    pub(crate) fn read(uri: &'a Uri, headers: &'a HeaderMap) -> Metadata<'a> {
        let mut metadata = Metadata::default();
        if let Some(authority) = uri.authority() {
            metadata.evidence.add(Kind::Host, authority.as_str().as_bytes());
        }
        let (mut require_leader, mut timeout) = (None, None);
        for (name, value) in headers {
            let value = value.as_bytes();
            match name.as_str() {
                "grpc-timeout" => timeout = timeout.or(Some(value)),
                "hasleader" => require_leader = require_leader.or(Some(value)),
                "token" | "authorization" => metadata.evidence.add(Kind::Token, value),
                "host" => metadata.evidence.add(Kind::Host, value),
                "atoll-tenant" => metadata.evidence.add(Kind::Name, value),
                "client-api-version" => {
                    metadata.client_api_version = metadata.client_api_version.or(Some(value));
                }
                _ => {}
            }
        }
        metadata.require_leader = require_leader == Some(b"true");
        metadata.timeout = timeout.and_then(deadline);
        metadata
    }

    /// Reads what matters to a page: whom it is about.
    pub(crate) fn of_page(uri: &'a Uri, headers: &'a HeaderMap) -> Metadata<'a> {
        let evidence = Metadata::read(uri, headers).evidence;
        Metadata { evidence, ..Default::default() }
    }
}

/// Reads a `grpc-timeout`: up to eight digits and a unit.
fn deadline(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identify::KeptEvidence;
    use http::HeaderValue;

    #[test]
    fn deadlines_are_read_in_all_units() {
        assert_eq!(deadline(b"2H"), Some(Duration::from_secs(7200)));
        assert_eq!(deadline(b"3M"), Some(Duration::from_secs(180)));
        assert_eq!(deadline(b"10S"), Some(Duration::from_secs(10)));
        assert_eq!(deadline(b"99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(deadline(b"5u"), Some(Duration::from_micros(5)));
        assert_eq!(deadline(b"7n"), Some(Duration::from_nanos(7)));
    }

    #[test]
    fn a_malformed_deadline_is_no_deadline() {
        for bad in [&b""[..], b"S", b"10", b"123456789S", b"-1S", b"1x"] {
            assert_eq!(deadline(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn all_evidence_is_found_and_of_the_rest_the_first() {
        let uri: Uri = "http://acme.localhost:2379/etcdserverpb.KV/Put".parse().unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("te", "trailers"),
            ("grpc-timeout", "3S"),
            ("grpc-timeout", "4S"),
            ("token", "one"),
            ("token", "two"),
            ("hasleader", "true"),
            ("atoll-tenant", "acme"),
            ("authorization", "three"),
            ("host", "beta"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let metadata = Metadata::read(&uri, &headers);
        assert_eq!(metadata.timeout, Some(Duration::from_secs(3)));
        assert!(metadata.require_leader && metadata.client_api_version.is_none());
        let mut expected = Evidence::default();
        for (kind, value) in [
            (Kind::Host, "acme.localhost:2379"),
            (Kind::Token, "one"),
            (Kind::Token, "two"),
            (Kind::Name, "acme"),
            (Kind::Token, "three"),
            (Kind::Host, "beta"),
        ] {
            expected.add(kind, value.as_bytes());
        }
        assert!(KeptEvidence::of(&expected).is_some_and(|kept| kept.is(&metadata.evidence)));
    }
}
