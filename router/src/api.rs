//! etcd's services: one file each. A handler turns a message into a group's request and the
//! reply into a message; what etcd would refuse it refuses through `validate.rs`.
//!
//! [`call`] is the table of all calls. Each arm is boxed by itself, so that a small call does
//! not pay for the largest.

mod auth;
mod cluster;
mod election;
mod health;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod range_stream;
mod session;
mod watch;

use std::{pin::Pin, sync::Arc};

use http::{Request, Response, request::Parts};
use hyper::body::Incoming;
use prost::Message;
use proto::Error;
use tokio::task::JoinSet;
use tonic::Status;

use crate::{
    caller::Caller,
    connection::Connection,
    grpc::{self, Reply, inbound::Inbound, live::Outlet},
    metadata::Metadata,
    metrics::Rpc,
    validate,
};

/// The answer to come.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Response<Reply>> + Send>>;

/// Answers one gRPC call.
pub(crate) fn call(connection: Arc<Connection>, request: Request<Incoming>) -> Answer {
    let Some(rpc) = Rpc::from_path(request.uri().path()) else {
        let status = unknown(request.uri().path());
        return Box::pin(async move { status.into_http() });
    };
    connection.door.metrics.started(rpc);
    let (parts, body) = request.into_parts();
    match rpc {
        Rpc::Authenticate => return outside(connection, rpc, parts, body, auth::authenticate),
        Rpc::HealthCheck => return outside(connection, rpc, parts, body, health::check),
        _ => {}
    }
    let metadata = Metadata::read(&parts.uri, &parts.headers);
    let caller = match Caller::new(connection.clone(), &metadata) {
        Ok(caller) => caller,
        Err(error) => {
            return Box::pin(async move { grpc::refuse(&connection.door, rpc, error.into()) });
        }
    };
    // etcd's door for learners (server/etcdserver/api/v3rpc/util.go); ranges are judged by kv.rs.
    let for_learners = matches!(rpc, Rpc::Range | Rpc::Status | Rpc::Snapshot | Rpc::HealthWatch);
    if !for_learners && caller.is_learner() {
        let status = Error::NotSupportedForLearner.into();
        return Box::pin(async move { grpc::refuse(&connection.door, rpc, status) });
    }
    let incoming = Call { rpc, caller, body };
    match rpc {
        Rpc::Put => incoming.unary(kv::put),
        Rpc::Range => incoming.weighed(kv::is_long_range, kv::range),
        Rpc::Txn => incoming.weighed(validate::reads_only, kv::txn),
        Rpc::DeleteRange => incoming.unary(kv::delete_range),
        Rpc::Compact => incoming.unary(kv::compact),
        Rpc::RangeStream => incoming.server_stream(range_stream::check, range_stream::run),
        Rpc::Watch => incoming.bidi_stream(watch::run),
        Rpc::LeaseGrant => incoming.unary(lease::grant),
        Rpc::LeaseRevoke => incoming.unary(lease::revoke),
        Rpc::LeaseKeepAlive => incoming.bidi_stream(lease::keep_alive),
        Rpc::LeaseTimeToLive => incoming.unary(lease::time_to_live),
        Rpc::LeaseLeases => incoming.unary(lease::leases),
        Rpc::Status => incoming.unary(maintenance::status),
        Rpc::Alarm => incoming.unary(maintenance::alarm),
        Rpc::Defragment => incoming.unary(maintenance::defragment),
        Rpc::Hash => incoming.unary(maintenance::hash),
        Rpc::HashKv => incoming.weighed(|_| true, maintenance::hash_kv),
        Rpc::Snapshot => incoming.server_stream(maintenance::check_snapshot, maintenance::snapshot),
        Rpc::MoveLeader => incoming.unary(maintenance::move_leader),
        Rpc::Downgrade => incoming.unary(maintenance::downgrade),
        Rpc::MemberAdd => incoming.unary(cluster::add),
        Rpc::MemberRemove => incoming.unary(cluster::remove),
        Rpc::MemberUpdate => incoming.unary(cluster::update),
        Rpc::MemberList => incoming.unary(cluster::list),
        Rpc::MemberPromote => incoming.unary(cluster::promote),
        Rpc::AuthStatus => incoming.unary(auth::status),
        Rpc::AuthDisable => incoming.unary(auth::disable),
        Rpc::Lock => incoming.unary(lock::lock),
        Rpc::Unlock => incoming.unary(lock::unlock),
        Rpc::Campaign => incoming.unary(election::campaign),
        Rpc::Proclaim => incoming.unary(election::proclaim),
        Rpc::Leader => incoming.unary(election::leader),
        Rpc::Resign => incoming.unary(election::resign),
        Rpc::Observe => incoming.server_stream(|_, _| Ok(()), election::observe),
        Rpc::HealthWatch => incoming.server_stream(|_, _| Ok(()), health::watch),
        // The first two have been answered above.
        Rpc::Authenticate
        | Rpc::HealthCheck
        | Rpc::AuthEnable
        | Rpc::UserAdd
        | Rpc::UserGet
        | Rpc::UserList
        | Rpc::UserDelete
        | Rpc::UserChangePassword
        | Rpc::UserGrantRole
        | Rpc::UserRevokeRole
        | Rpc::RoleAdd
        | Rpc::RoleGet
        | Rpc::RoleList
        | Rpc::RoleDelete
        | Rpc::RoleGrantPermission
        | Rpc::RoleRevokePermission => incoming.unary(auth::unavailable),
    }
}

/// A call that may come before its client has named an etcd, and so is read before it is let in.
/// Such calls ask no group.
fn outside<I, O>(
    connection: Arc<Connection>,
    rpc: Rpc,
    parts: Parts,
    body: Incoming,
    handler: fn(Arc<Connection>, &Metadata<'_>, &I) -> Result<O, Status>,
) -> Answer
where
    I: Message + Default + 'static,
    O: Message + 'static,
{
    Box::pin(async move {
        let unanswered = Unanswered { connection: connection.clone(), rpc, answered: false };
        let limit = connection.door.config.max_message_bytes();
        let message = Inbound::<I>::new(body, limit).only().await;
        unanswered.answer(message.and_then(|(message, _)| {
            connection.door.metrics.received(rpc);
            handler(connection, &Metadata::read(&parts.uri, &parts.headers), &message)
        }))
    })
}

/// The status of a path that names no call, in the words of Go's gRPC server.
fn unknown(path: &str) -> Status {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/'))
    else {
        return Status::unimplemented(format!("malformed method name: {path:?}"));
    };
    if Rpc::ALL.iter().any(|rpc| rpc.service() == service) {
        Status::unimplemented(format!("unknown method {method} for service {service}"))
    } else {
        Status::unimplemented(format!("unknown service {service}"))
    }
}

/// One call that has come in.
struct Call {
    rpc: Rpc,
    caller: Caller,
    body: Incoming,
}

// === impl Call ===

impl Call {
    /// Reads the only message.
    async fn message<M: Message + Default>(
        body: Incoming,
        rpc: Rpc,
        caller: &mut Caller,
    ) -> Result<M, Status> {
        let limit = caller.door().config.max_message_bytes();
        let (message, bytes) = Inbound::<M>::new(body, limit).only().await?;
        caller.message_bytes = bytes;
        caller.door().metrics.received(rpc);
        Ok(message)
    }

    /// One message in, one out, soon.
    fn unary<I, O, F>(self, handler: impl FnOnce(Caller, I) -> F + Send + 'static) -> Answer
    where
        I: Message + Default + 'static,
        O: Message + 'static,
        F: Future<Output = Result<O, Status>> + Send + 'static,
    {
        self.weighed(|_| false, handler)
    }

    /// One message in, one out. What `is_long` may compute for long, and is given a task of its
    /// own: all other exchanges of the connection share one (`server/exchanges.rs`).
    fn weighed<I, O, F>(
        self,
        is_long: fn(&I) -> bool,
        handler: impl FnOnce(Caller, I) -> F + Send + 'static,
    ) -> Answer
    where
        I: Message + Default + 'static,
        O: Message + 'static,
        F: Future<Output = Result<O, Status>> + Send + 'static,
    {
        let Call { rpc, mut caller, body } = self;
        Box::pin(async move {
            let connection = caller.connection.clone();
            let unanswered = Unanswered { connection, rpc, answered: false };
            match Call::message(body, rpc, &mut caller).await {
                Ok(message) if is_long(&message) => {
                    apart(async move { unanswered.answer(handler(caller, message).await) }).await
                }
                Ok(message) => unanswered.answer(handler(caller, message).await),
                Err(status) => unanswered.answer(Err::<O, _>(status)),
            }
        })
    }

    /// One message in, many out. What `check` refuses is answered without a stream.
    fn server_stream<I, F>(
        self,
        check: impl FnOnce(&Caller, &I) -> Result<(), Status> + Send + 'static,
        run: impl FnOnce(Caller, I, Outlet) -> F + Send + 'static,
    ) -> Answer
    where
        I: Message + Default + 'static,
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let Call { rpc, mut caller, body } = self;
        Box::pin(async move {
            let door = caller.door().clone();
            let message = Call::message::<I>(body, rpc, &mut caller).await;
            match message.and_then(|message| check(&caller, &message).map(|()| message)) {
                Ok(message) => {
                    grpc::stream(door, rpc, |outlet| run(caller.unhurried(), message, outlet))
                }
                Err(status) => grpc::refuse(&door, rpc, status),
            }
        })
    }

    /// Many messages in, many out.
    fn bidi_stream<I, F>(
        self,
        run: impl FnOnce(Caller, Inbound<I>, Outlet) -> F + Send + 'static,
    ) -> Answer
    where
        I: Message + Default + 'static,
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let Call { rpc, caller, body } = self;
        Box::pin(async move {
            let door = caller.door().clone();
            let inbound = Inbound::new(body, door.config.max_message_bytes());
            grpc::stream(door, rpc, |outlet| run(caller.unhurried(), inbound, outlet))
        })
    }
}

/// Runs `answer` in a task of its own, which ends at the latest when nobody waits any more.
async fn apart(answer: impl Future<Output = Response<Reply>> + Send + 'static) -> Response<Reply> {
    let mut task = JoinSet::new();
    task.spawn(answer);
    match task.join_next().await {
        Some(Ok(answer)) => answer,
        // It panicked, or the process ends.
        Some(Err(_)) | None => Status::internal("atoll: the call was given up").into_http(),
    }
}

/// A unary call that was begun: counted as cancelled if its client leaves before the answer.
struct Unanswered {
    connection: Arc<Connection>,
    rpc: Rpc,
    answered: bool,
}

// === impl Unanswered ===

impl Unanswered {
    fn answer<M: Message>(mut self, outcome: Result<M, Status>) -> Response<Reply> {
        self.answered = true;
        grpc::finish(&self.connection.door, self.rpc, outcome)
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if !self.answered {
            self.connection.door.metrics.handled(self.rpc, tonic::Code::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_paths_are_named_in_gos_words() {
        let text = |path: &str| unknown(path).message().to_owned();
        assert_eq!(
            text("/etcdserverpb.KV/Nope"),
            "unknown method Nope for service etcdserverpb.KV"
        );
        assert_eq!(text("/a.B/C"), "unknown service a.B");
        assert_eq!(text("nothing"), "malformed method name: \"nothing\"");
    }
}
