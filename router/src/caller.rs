//! One request on its way to a group: whose it is, where it goes, how long it may take.
//!
//! The only file that asks groups on behalf of clients. It stamps the route and the floor onto
//! each request, turns refusals into statuses, and completes headers.
//!
//! *Where.* A request goes by the map that it was admitted with, and by the newest one if it
//! lives longer than that map, as streams and waiting calls do. A group that refuses because
//! the map is older than itself, or newer, has done nothing: the request waits here for another
//! map, or a little, and goes again. So it is when they differ about whose the group is, or
//! whether it is frozen.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use proto::{
    Error, GroupId, VirtualEtcd,
    cluster::group::{GroupRequest, ReadAt, refusal::Outcome},
    etcd::ResponseHeader,
    group::{GroupError, Reply, Request},
    map::Target,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::Status;

use crate::{
    aim::{Aim, aim},
    connection::{Admission, Connection, Visit},
    course::Course,
    door::Door,
    gather::Gathering,
    identify,
    metadata::Metadata,
};

/// First and longest pause before a group that was ahead of us, or behind, is asked again
/// though no other map has come.
const STALE_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// One request of one client.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) connection: Arc<Connection>,
    admission: Arc<Admission>,
    /// The client wants no answer from a group that has no leader.
    pub(crate) require_leader: bool,
    /// How long the group may take; the client's own deadline if that is shorter.
    timeout_ms: u64,
    /// Size of the request message, known since it was read.
    pub(crate) message_bytes: usize,
}

// === impl Caller ===

impl Caller {
    /// Lets a request in by what its metadata says, as far as etcd looks at that.
    pub(crate) fn new(
        connection: Arc<Connection>,
        metadata: &Metadata<'_>,
    ) -> Result<Caller, Error> {
        if metadata.client_api_version.is_some_and(|it| std::str::from_utf8(it).is_err()) {
            return Err(Error::InvalidClientApiVersion);
        }
        let admission = connection.admit(&metadata.evidence)?;
        let longest = connection.door.config.request_timeout();
        let timeout = metadata.timeout.map_or(longest, |asked| asked.min(longest));
        let timeout_ms = (timeout.as_millis() as u64).max(1);
        let require_leader = metadata.require_leader;
        let home = admission.etcd.home();
        let caller = Caller { connection, admission, require_leader, timeout_ms, message_bytes: 0 };
        if require_leader && caller.door().groups.leaderless(home.group) {
            return Err(Error::NoLeader);
        }
        Ok(caller)
    }

    /// The same client at its own leisure: for streams and for waiting calls, whose single
    /// requests have the server's time limit and not the whole call's deadline.
    pub(crate) fn unhurried(mut self) -> Caller {
        self.timeout_ms = self.door().config.request_timeout().as_millis() as u64;
        self
    }

    pub(crate) fn door(&self) -> &Arc<Door> {
        &self.connection.door
    }

    /// What the client's connection has to do with the etcd.
    pub(crate) fn visit(&self) -> &Visit {
        &self.admission.visit
    }

    /// The etcd as it was when the request came in.
    pub(crate) fn etcd(&self) -> &VirtualEtcd {
        &self.admission.etcd
    }

    /// Is it the etcd of clients who name none?
    pub(crate) fn is_default(&self) -> bool {
        let map = self.door().map();
        map.default_etcd().is_some_and(|etcd| identify::id(etcd) == self.visit().etcd)
    }

    /// Is this node's replica of the home group a learner?
    pub(crate) fn is_learner(&self) -> bool {
        self.door().groups.is_learner(self.etcd().home().group)
    }

    /// What `ask` finds in the etcd as it is now.
    pub(crate) fn now<T>(&self, ask: impl FnOnce(&VirtualEtcd) -> T) -> Result<T, Error> {
        self.numbered(ask).map(|(found, _)| found)
    }

    /// The same with the number of the map that says so.
    fn numbered<T>(&self, ask: impl FnOnce(&VirtualEtcd) -> T) -> Result<(T, u64), Error> {
        let placed = self.door().placed.load();
        if placed.number == self.admission.number {
            return Ok((ask(self.etcd()), placed.number));
        }
        let (tenant, namespace) = self.visit().etcd;
        let etcd = placed.map.etcd(tenant, namespace).ok_or(Error::UnknownTenant)?;
        identify::admit(etcd)?;
        Ok((ask(etcd), placed.number))
    }

    /// The home group.
    pub(crate) fn home(&self) -> Result<Target, Error> {
        self.now(VirtualEtcd::home)
    }

    /// Asks the group that answers `body`.
    pub(crate) async fn ask(&self, body: Request) -> Result<Reply, Status> {
        self.try_ask(body).await.map_err(|error| error.error.into())
    }

    /// Asks the group that answers `body`, and says what a refusal means.
    pub(crate) async fn try_ask(&self, body: Request) -> Result<Reply, GroupError> {
        let (aim, number) = self.aim(&body)?;
        let begun = Instant::now();
        let spare = body.clone();
        match self.attempt(aim, self.timeout_ms, body).await {
            Err(error) if is_stale(error) => {
                Box::pin(self.ask_anew(spare, number, begun, error)).await
            }
            answer => answer,
        }
    }

    /// Asks again after `refusal`, by another map, until the time of a request begun at `begun` is up.
    async fn ask_anew(
        &self,
        body: Request,
        mut number: u64,
        begun: Instant,
        mut refusal: GroupError,
    ) -> Result<Reply, GroupError> {
        let deadline = begun + Duration::from_millis(self.timeout_ms);
        let mut maps = self.door().placements();
        let mut pause = STALE_PAUSE.0;
        loop {
            let until = deadline.min(Instant::now() + pause);
            let newer = timeout_at(until, maps.wait_for(|newest| *newest != number)).await.is_ok();
            pause = if newer { STALE_PAUSE.0 } else { (pause * 2).min(STALE_PAUSE.1) };
            let left = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
            if left == 0 {
                return Err(refusal);
            }
            let (aim, now) = self.aim(&body)?;
            number = now;
            match self.attempt(aim, left, body.clone()).await {
                Err(error) if is_stale(error) => refusal = error,
                answer => return answer,
            }
        }
    }

    fn aim(&self, body: &Request) -> Result<(Aim, u64), GroupError> {
        self.numbered(|etcd| aim(etcd, body)).map_err(|error| GroupError::not_done(error, None))
    }

    async fn attempt(&self, aim: Aim, timeout_ms: u64, body: Request) -> Result<Reply, GroupError> {
        match aim {
            Aim::One(target) => self.send(target, timeout_ms, None, body).await,
            Aim::Several(home) => {
                // Boxed, so that what goes to one group is not made larger by it.
                let gathering = Gathering::new(self, home, timeout_ms);
                Box::pin(async move { gathering.answer(&body).await }).await
            }
        }
    }

    /// Asks one group; not one without a leader, if the client minds.
    pub(crate) async fn send(
        &self,
        target: Target,
        timeout_ms: u64,
        read_at: Option<ReadAt>,
        body: Request,
    ) -> Result<Reply, GroupError> {
        if self.require_leader && self.door().groups.leaderless(target.group) {
            return Err(GroupError::not_done(Error::NoLeader, None));
        }
        let request = GroupRequest {
            tenant: target.tenant.0,
            namespace: target.namespace.0,
            group: target.group.0,
            range_version: target.range_version,
            floor: self.visit().floor(),
            timeout_ms,
            read_at,
            body: Some(body),
        };
        self.door().groups.call(request).await
    }

    /// Completes the header of an answer that the client is about to see.
    pub(crate) fn fill(&self, header: Option<ResponseHeader>) -> Option<ResponseHeader> {
        let header = header.unwrap_or_default();
        self.visit().show(header.revision);
        Some(self.visit().sign(header))
    }

    /// Completes the header of an answer about members, which carries no revision.
    pub(crate) fn fill_member(&self, header: Option<ResponseHeader>) -> Option<ResponseHeader> {
        Some(self.visit().sign(ResponseHeader { revision: 0, ..header.unwrap_or_default() }))
    }

    /// What ends a stream that needs these groups from outside.
    pub(crate) fn interruption(&self, groups: &[GroupId]) -> Interruption {
        let minded = groups.iter().filter(|_| self.require_leader);
        let leaderless = minded.map(|group| self.door().leadership.follow(*group)).collect();
        let course = self.course();
        let closing = self.connection.closing();
        Interruption { leaderless, course, closing, outlives_freeze: false }
    }

    /// Resolves when the etcd is frozen or gone; with the status that says so.
    pub(crate) async fn refused(&self) -> Status {
        refused(&mut self.course(), false).await
    }

    /// The etcd's ranges, and whatever keeps clients from it, from now on.
    pub(crate) fn course(&self) -> watch::Receiver<Course> {
        self.door().course(self.visit().etcd)
    }
}

fn is_stale(error: GroupError) -> bool {
    error.error.is_stale() && error.outcome == Outcome::NotDone
}

async fn refused(course: &mut watch::Receiver<Course>, outlives_freeze: bool) -> Status {
    let ends = |now: &Course| match now {
        Err(Error::TenantFrozen) => !outlives_freeze,
        now => now.is_err(),
    };
    let refusal =
        course.wait_for(ends).await.ok().and_then(|course| course.as_ref().err().copied());
    match refusal {
        Some(error) => error.into(),
        // Cannot happen: what is followed is kept.
        None => std::future::pending().await,
    }
}

/// What ends a stream from outside.
pub(crate) struct Interruption {
    /// Of the groups whose leaders the client minds.
    leaderless: Vec<watch::Receiver<bool>>,
    course: watch::Receiver<Course>,
    closing: watch::Receiver<bool>,
    outlives_freeze: bool,
}

// === impl Interruption ===

impl Interruption {
    /// For a stream that is quiet while its etcd is frozen, and goes on afterwards.
    pub(crate) fn outliving_freeze(mut self) -> Interruption {
        self.outlives_freeze = true;
        self
    }

    /// Resolves when one of the groups has had no leader for too long, if the client minds, when the
    /// etcd is frozen or gone, or when the listener stops; with the status that ends the
    /// stream. Pin it once for a whole loop: each call joins three queues of waiters.
    pub(crate) async fn wait(mut self) -> Status {
        let no_leader = async {
            let lost = async |signal: &mut watch::Receiver<bool>| {
                signal.wait_for(|leaderless| *leaderless).await.is_ok()
            };
            let mut lost: FuturesUnordered<_> = self.leaderless.iter_mut().map(lost).collect();
            if lost.next().await.is_none() {
                std::future::pending().await
            }
        };
        tokio::select! {
            status = refused(&mut self.course, self.outlives_freeze) => status,
            _ = no_leader => Error::NoLeader.into(),
            _ = self.closing.wait_for(|closing| *closing) => Error::Stopped.into(),
        }
    }
}

/// A reply of a kind that was not asked for: a defect of the group, told as one.
pub(crate) fn misplaced() -> Status {
    Status::internal("atoll: the group's reply does not fit the request")
}

/// Takes the expected kind out of a reply.
macro_rules! answer {
    ($reply:expr, $kind:ident) => {
        match $reply {
            proto::group::Reply::$kind(inner) => inner,
            _ => return Err($crate::caller::misplaced()),
        }
    };
}
pub(crate) use answer;
