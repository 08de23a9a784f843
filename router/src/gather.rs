//! Reads over several groups of one etcd, all at one revision.
//!
//! ```text
//!   home    <── span ── where do the revisions stand, and who has which keys?
//!   groups  <── parts ── each what it has of the interval, at that revision
//! ```
//!
//! Home's answer is a promise: a group that has applied `last` has all that concerns its keys up to
//! the revision. So any replica of a group may answer its part, as soon as it has applied so much,
//! and the parts together are the etcd at that revision. Who has which keys is as home says in the
//! same answer, not as the router's map says; the groups are the etcd's own, because its home names
//! them, and each of them looks at whose request it gets.
//!
//! A part that is refused because its group has other keys by now, and one whose revision was
//! compacted meanwhile, make the whole read begin anew.

use std::time::Duration;

use futures::future::try_join_all;
use proto::{
    Error, GroupId, KeyRange,
    cluster::group::{ReadAt, Span, SpanRequest},
    etcd::{
        HashKvRequest, HashKvResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
        RangeRequest, RangeResponse, ResponseHeader,
    },
    group::{GroupError, Reply, Request},
    map::Target,
};
use tokio::time::Instant;

use crate::{caller::Caller, lists};

/// Tries before a read that always loses against compaction gives up.
const TRIES: usize = 8;

/// One group's part of a read.
struct Part {
    target: Target,
    read_at: ReadAt,
    /// What it has of the keys that are read.
    range: KeyRange,
}

/// One read over several groups.
pub(crate) struct Gathering<'a> {
    caller: &'a Caller,
    home: Target,
    deadline: Instant,
}

// === impl Gathering ===

impl<'a> Gathering<'a> {
    pub(crate) fn new(caller: &'a Caller, home: Target, timeout_ms: u64) -> Gathering<'a> {
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        Gathering { caller, home, deadline }
    }

    /// Answers `body`, which is of a kind that [`crate::aim`] sends to several groups.
    pub(crate) async fn answer(&self, body: &Request) -> Result<Reply, GroupError> {
        // A leader of home that is none any more may name groups that are none any more, either.
        let mut weak = matches!(body, Request::Range(range) if range.serializable);
        for _ in 0..TRIES {
            let span = self.span(weak).await?;
            let answer = match body {
                Request::Range(range) => self.range(&span, range).await,
                Request::HashKv(hash) => self.hash(&span, hash).await,
                Request::LeaseTimeToLive(ask) => self.time_to_live(&span, ask).await,
                _ => Err(GroupError::refused(Error::KeyNotFound)),
            };
            match answer {
                Err(error) if error.error == Error::Compacted && !is_compacted(body, &span) => {}
                Err(error) if error.error.is_stale() && weak => {}
                answer => return answer,
            }
            weak = false;
        }
        Err(GroupError::refused(Error::Compacted))
    }

    /// Asks home where the revisions stand: not below what the client has seen.
    async fn span(&self, weak: bool) -> Result<Span, GroupError> {
        let span = self.ask_span(weak).await?;
        if weak && span.revision < self.caller.visit().floor() {
            return self.ask_span(false).await;
        }
        Ok(span)
    }

    async fn ask_span(&self, weak: bool) -> Result<Span, GroupError> {
        let ask = Request::Span(SpanRequest { weak });
        match self.send(self.home, None, ask).await? {
            Reply::Span(span) => Ok(span),
            _ => Err(misplaced()),
        }
    }

    async fn send(
        &self,
        target: Target,
        read_at: Option<ReadAt>,
        body: Request,
    ) -> Result<Reply, GroupError> {
        let left = self.deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
        if left == 0 {
            return Err(GroupError::unknown(Error::Timeout));
        }
        self.caller.send(target, left, read_at, body).await
    }

    async fn send_part(&self, part: &Part, body: Request) -> Result<Reply, GroupError> {
        self.send(part.target, Some(part.read_at), body).await
    }

    /// The parts of a read of `range`, in the order of their keys.
    fn parts(&self, span: &Span, range: &KeyRange) -> Result<Vec<Part>, GroupError> {
        let mut parts = Vec::new();
        for told in &span.parts {
            let Some(place) = &told.place else { continue };
            let has = KeyRange { start: place.start.clone(), end: place.end.clone() };
            let Some(range) = has.common(range) else { continue };
            let group = GroupId(place.group);
            let target = Target { group, range_version: place.version, ..self.home };
            let read_at = ReadAt { revision: span.revision, last: told.last };
            parts.push(Part { target, read_at, range });
        }
        parts.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        // Keys of a group that home does not know of yet, because it has just come, wait for it.
        let joined = parts.windows(2).all(|two| match two {
            [a, b] => a.range.end.as_ref() == Some(&b.range.start),
            _ => true,
        });
        let ends = parts.first().map(|part| &part.range.start) == Some(&range.start)
            && parts.last().map(|part| &part.range.end) == Some(&range.end);
        if range.is_empty() || (joined && ends) {
            return Ok(parts);
        }
        Err(GroupError::not_done(Error::StaleRange, None))
    }

    async fn range(&self, span: &Span, request: &RangeRequest) -> Result<Reply, GroupError> {
        check_revision(request.revision, span)?;
        let range = KeyRange::parse(&request.key, &request.range_end);
        let parts = self.parts(span, &range)?;
        let is_page = lists::is_page(request);
        let first = parts.iter().enumerate().map(|(at, part)| {
            let mut ask = lists::part(request, part.range.clone());
            ask.count_only |= is_page && at > 0;
            self.list(part, ask)
        });
        let mut lists = try_join_all(first).await?;
        if is_page {
            let shares = lists::shares(request.limit, lists.iter().map(|list| list.count));
            let rest = parts.iter().zip(&shares).zip(&mut lists).skip(1);
            let rest = rest.filter(|((_, share), _)| **share > 0);
            try_join_all(rest.map(|((part, share), list)| async move {
                let ask = lists::part(request, part.range.clone());
                list.kvs = self.list(part, RangeRequest { limit: *share, ..ask }).await?.kvs;
                Ok(())
            }))
            .await?;
        }
        let merged = lists::merge(request, lists);
        Ok(Reply::Range(RangeResponse { header: Some(header(span)), ..merged }))
    }

    async fn list(&self, part: &Part, ask: RangeRequest) -> Result<RangeResponse, GroupError> {
        match self.send_part(part, Request::Range(ask)).await? {
            Reply::Range(list) => Ok(list),
            _ => Err(misplaced()),
        }
    }

    /// The sum of the groups' hashes: the same as long as no group is split or merged.
    async fn hash(&self, span: &Span, request: &HashKvRequest) -> Result<Reply, GroupError> {
        check_revision(request.revision, span)?;
        let parts = self.parts(span, &KeyRange::all())?;
        let asks = parts.iter().map(|part| self.send_part(part, Request::HashKv(*request)));
        let mut sum = HashKvResponse { header: Some(header(span)), ..Default::default() };
        for answer in try_join_all(asks).await? {
            let Reply::HashKv(hash) = answer else { return Err(misplaced()) };
            sum.hash = sum.hash.wrapping_add(hash.hash);
            sum.compact_revision = sum.compact_revision.max(hash.compact_revision);
            sum.hash_revision = sum.hash_revision.max(hash.hash_revision);
        }
        Ok(Reply::HashKv(sum))
    }

    /// Home has the lease, every group its own keys of it.
    async fn time_to_live(
        &self,
        span: &Span,
        ask: &LeaseTimeToLiveRequest,
    ) -> Result<Reply, GroupError> {
        let parts = self.parts(span, &KeyRange::all())?;
        let at_home = LeaseTimeToLiveRequest { keys: false, ..*ask };
        let at_home = self.send(self.home, None, Request::LeaseTimeToLive(at_home)).await?;
        let Reply::LeaseTimeToLive(mut lease) = at_home else { return Err(misplaced()) };
        if lease.ttl < 0 {
            return Ok(Reply::LeaseTimeToLive(lease));
        }
        let asks = parts.iter().map(|part| self.send_part(part, Request::LeaseTimeToLive(*ask)));
        for answer in try_join_all(asks).await? {
            let Reply::LeaseTimeToLive(LeaseTimeToLiveResponse { keys, .. }) = answer else {
                return Err(misplaced());
            };
            lease.keys.extend(keys);
        }
        lease.keys.sort();
        // What was attached later than the keys were read may be missing.
        lease.header = Some(header(span));
        Ok(Reply::LeaseTimeToLive(lease))
    }
}

/// May a read of `asked` be carried out, as home sees it?
fn check_revision(asked: i64, span: &Span) -> Result<(), GroupError> {
    if asked > span.revision {
        return Err(GroupError::refused(Error::FutureRevision));
    }
    if asked > 0 && asked < span.compacted {
        return Err(GroupError::refused(Error::Compacted));
    }
    Ok(())
}

/// Is what `body` asks for compacted for good, as home sees it?
fn is_compacted(body: &Request, span: &Span) -> bool {
    let asked = match body {
        Request::Range(range) => range.revision,
        Request::HashKv(hash) => hash.revision,
        _ => 0,
    };
    asked > 0 && asked < span.compacted
}

/// Home's header, at the revision that was read.
fn header(span: &Span) -> ResponseHeader {
    ResponseHeader { revision: span.revision, ..span.header.unwrap_or_default() }
}

/// A reply of a kind that was not asked for: nothing was changed by it.
fn misplaced() -> GroupError {
    GroupError::unknown(Error::Timeout)
}
