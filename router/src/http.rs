//! Pages for people, probes and scrapers: /version, /health, /livez, /readyz, /metrics.
//!
//! Bodies and codes are etcd's. /health says why it is not healthy in JSON; /livez and /readyz
//! run named checks, each also reachable by its own path, and list them when asked or failed.
//!
//! A page is about one etcd, named as in gRPC by port, host or header. /metrics shows the
//! process and its node to clients of the default etcd; a tenant sees its own home group only.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use proto::{
    Code, Error,
    cluster::group::{DescribeRequest, Description},
    etcd::{AlarmType, RangeRequest},
    group::{Reply as Answer, Request as Ask},
};

use crate::{
    caller::Caller, connection::Connection, door::Door, grpc::Reply, metadata::Metadata, metrics,
};

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// Checks of /livez and of /readyz by name.
const LIVE: &[&str] = &["serializable_read"];
const READY: &[&str] =
    &["data_corruption", "serializable_read", "linearizable_read", "non_learner"];

/// Answers one request that is not gRPC.
pub(crate) async fn page<B>(connection: Arc<Connection>, request: &Request<B>) -> Response<Reply> {
    let path = request.uri().path();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let known = matches!(path, "/version" | "/health" | "/metrics") || checks_of(path).is_some();
    if !known {
        return respond(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
    }
    if request.method() != Method::GET && path != "/metrics" {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let metadata = Metadata::of_page(request.uri(), request.headers());
    match Caller::new(connection.clone(), &metadata) {
        Ok(caller) => page_of_etcd(&caller, path, &query).await,
        Err(Error::NoTenant) => page_of_process(&connection.door, path),
        Err(error) => {
            let denied = error.code() == Code::PermissionDenied;
            let code = if denied { StatusCode::FORBIDDEN } else { StatusCode::SERVICE_UNAVAILABLE };
            respond(code, TEXT, format!("{error}\n"))
        }
    }
}

async fn page_of_etcd(caller: &Caller, path: &str, query: &Query<'_>) -> Response<Reply> {
    match path {
        "/version" => version(caller.door()),
        "/health" => health(caller, query).await,
        "/metrics" => {
            let home = describe(caller).await.ok();
            let page = if caller.is_default() {
                metrics::page(caller.door(), home.as_ref())
            } else {
                metrics::tenant_page(caller.door(), home.as_ref())
            };
            respond(StatusCode::OK, METRICS, page)
        }
        path => checks(caller, checks_of(path).unwrap_or_default(), query).await,
    }
}

/// The pages of a service without a default etcd, asked for by whom names none: probes and
/// scrapers of the process itself. It answers, so it lives.
fn page_of_process(door: &Door, path: &str) -> Response<Reply> {
    match path {
        "/version" => version(door),
        "/health" => respond(StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#),
        "/metrics" => respond(StatusCode::OK, METRICS, metrics::page(door, None)),
        _ => respond(StatusCode::OK, TEXT, "ok\n"),
    }
}

fn respond(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Reply> {
    let mut response = Response::new(Reply::Page(Some(body.into())));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if kind == TEXT {
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    }
    response
}

fn version(door: &Door) -> Response<Reply> {
    let config = &door.config;
    // Written by hand: the order of the keys is etcd's.
    let body = format!(
        r#"{{"etcdserver":"{}","etcdcluster":"{}","storage":"{}"}}"#,
        config.server_version, config.cluster_version, config.storage_version
    );
    respond(StatusCode::OK, JSON, body)
}

async fn describe(caller: &Caller) -> Result<Description, String> {
    match caller.ask(Ask::Describe(DescribeRequest {})).await {
        Ok(Answer::Describe(description)) => Ok(description),
        Ok(_) => Err("unexpected reply".to_owned()),
        Err(status) => Err(status.message().to_owned()),
    }
}

/// Reads one key below all others, to see that reading works.
async fn read(caller: &Caller, serializable: bool) -> Result<(), String> {
    let request = RangeRequest {
        key: Bytes::from_static(&[0]),
        limit: 1,
        keys_only: true,
        serializable,
        ..Default::default()
    };
    match caller.ask(Ask::Range(request)).await {
        Ok(_) => Ok(()),
        Err(status) => Err(status.message().to_owned()),
    }
}

// --- /health

async fn health(caller: &Caller, query: &Query<'_>) -> Response<Reply> {
    let serializable = query.first("serializable") == Some("true");
    let outcome = health_reason(caller, query, serializable).await;
    let metrics = &caller.door().metrics;
    let (healthy, reason) = match &outcome {
        Ok(()) => (true, ""),
        Err(reason) => (false, reason.as_str()),
    };
    let counter = if healthy { &metrics.health_passed } else { &metrics.health_failed };
    counter.fetch_add(1, Ordering::Relaxed);
    let reason = serde_json::Value::from(reason);
    let body = format!(r#"{{"health":"{healthy}","reason":{reason}}}"#);
    if healthy {
        respond(StatusCode::OK, TEXT, body)
    } else {
        respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, body + "\n")
    }
}

/// Why it is not healthy, in etcd's order: alarms, leader, a read.
async fn health_reason(
    caller: &Caller,
    query: &Query<'_>,
    serializable: bool,
) -> Result<(), String> {
    let described = describe(caller).await.map_err(|error| format!("RANGE ERROR:{error}"))?;
    for alarm in &described.alarms {
        let name = alarm.alarm().as_str_name();
        if !query.all("exclude").any(|excluded| excluded == name) {
            let known = matches!(alarm.alarm(), AlarmType::Nospace | AlarmType::Corrupt);
            return Err(format!("ALARM {}", if known { name } else { "UNKNOWN" }));
        }
    }
    if !serializable && described.leader == 0 {
        return Err("RAFT NO LEADER".to_owned());
    }
    read(caller, serializable).await.map_err(|error| format!("RANGE ERROR:{error}"))
}

// --- /livez and /readyz

/// The checks behind a path: all of the page, or the one it names.
fn checks_of(path: &str) -> Option<Vec<&'static str>> {
    let (all, rest) = if let Some(rest) = path.strip_prefix("/livez") {
        (LIVE, rest)
    } else {
        (READY, path.strip_prefix("/readyz")?)
    };
    if rest.is_empty() {
        return Some(all.to_vec());
    }
    let name = rest.strip_prefix('/')?;
    all.iter().find(|check| **check == name).map(|check| vec![*check])
}

async fn checks(caller: &Caller, names: Vec<&'static str>, query: &Query<'_>) -> Response<Reply> {
    let mut report = String::new();
    let mut passed = true;
    for name in names.into_iter().filter(|name| !query.all("exclude").any(|out| out == *name)) {
        // Writing into a String cannot fail.
        let _ = match check(caller, name).await {
            Ok(()) => writeln!(report, "[+]{name} ok"),
            Err(error) => {
                passed = false;
                writeln!(report, "[-]{name} failed: {error}")
            }
        };
    }
    if !passed {
        return respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, report + "\n");
    }
    if query.first("verbose").is_none() {
        report.clear();
    }
    respond(StatusCode::OK, TEXT, report + "ok\n")
}

async fn check(caller: &Caller, name: &str) -> Result<(), String> {
    match name {
        "serializable_read" => read(caller, true).await,
        "linearizable_read" => read(caller, false).await,
        "data_corruption" => {
            let described = describe(caller).await?;
            let corrupt = described.alarms.iter().any(|it| it.alarm() == AlarmType::Corrupt);
            if corrupt { Err("alarm activated: CORRUPT".to_owned()) } else { Ok(()) }
        }
        "non_learner" => {
            let learns = describe(caller).await?.is_learner;
            if learns { Err("not supported for learner".to_owned()) } else { Ok(()) }
        }
        _ => Err("unknown check".to_owned()),
    }
}

/// The pairs of a query, as they came: no name or value that matters here needs escapes.
struct Query<'a> {
    pairs: Vec<(&'a str, &'a str)>,
}

// === impl Query ===

impl<'a> Query<'a> {
    fn parse(text: &'a str) -> Query<'a> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query { pairs: pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect() }
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |pair| pair.0 == name).map(|pair| pair.1)
    }

    fn first(&self, name: &str) -> Option<&'a str> {
        self.all(name).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_path_of_its_own() {
        assert_eq!(checks_of("/livez").as_deref(), Some(LIVE));
        assert_eq!(checks_of("/readyz").as_deref(), Some(READY));
        assert_eq!(checks_of("/readyz/non_learner").as_deref(), Some(&["non_learner"][..]));
        for unknown in ["/livez/non_learner", "/readyzz", "/readyz/", "/"] {
            assert_eq!(checks_of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn a_query_may_repeat_a_name() {
        let query = Query::parse("exclude=NOSPACE&verbose&exclude=CORRUPT");
        assert_eq!(query.all("exclude").collect::<Vec<_>>(), ["NOSPACE", "CORRUPT"]);
        assert_eq!((query.first("verbose"), query.first("none")), (Some(""), None));
    }
}
