//! What the run writes down: one [`History`] on one clock, shared by all tasks.
//!
//! A moment is read before a request leaves and after an answer has come, so an operation's
//! interval is never shorter than it was: the judges may miss something by this, but accuse
//! nobody wrongly.

use std::time::Instant;

use parking_lot::Mutex;
use proto::Error;
use proto::group::{Reply, Request};
use proto::mvccpb::Event;
use tonic::{Code, Status};

use crate::check::history::{Heard, History, OpId, Outcome, Time, WatchId, WatchSpec};

/// The account of a run in the making.
pub(super) struct Record {
    begun: Instant,
    account: Mutex<Account>,
}

/// All that was written down.
#[derive(Default)]
pub(super) struct Account {
    /// For the judges.
    pub(super) history: History,
    /// What is wrong and no judge can see, in sentences.
    pub(super) complaints: Vec<String>,
    /// When a leader was killed.
    pub(super) leader_kills: Vec<Time>,
    connections: u64,
    /// Nobody reads on: who still talks is not listened to.
    closed: bool,
}

// === impl Record ===

impl Record {
    /// An empty one, whose clock begins now.
    pub(super) fn new() -> Record {
        Record { begun: Instant::now(), account: Mutex::new(Account::default()) }
    }

    /// Microseconds since the beginning.
    pub(super) fn now(&self) -> Time {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(Time::MAX)
    }

    /// A number for a new connection, or a new stream.
    pub(super) fn connection(&self) -> u64 {
        let mut account = self.account.lock();
        account.connections += 1;
        account.connections
    }

    /// A client is about to send a request.
    pub(super) fn call(&self, client: u64, request: Request) -> OpId {
        let at = self.now();
        self.account.lock().history.call(client, at, request)
    }

    /// A client heard of its request, or gave up.
    pub(super) fn end(&self, op: OpId, outcome: Outcome) {
        let at = self.now();
        let mut account = self.account.lock();
        if account.closed {
            return;
        }
        if let Outcome::Refused(error) = &outcome
            && *error != Error::TooManyRequests
        {
            // Clients ask for nothing that etcd would refuse.
            let told = account.history.tell(op);
            account.complaints.push(format!("{told} was refused without a cause: {error}"));
        }
        account.history.end(op, at, outcome);
    }

    /// A client is about to ask for a watch.
    pub(super) fn watch(&self, spec: WatchSpec) -> WatchId {
        let number = self.connection();
        let at = self.now();
        self.account.lock().history.watch(number, number, at, spec)
    }

    /// A watch got a message.
    pub(super) fn hear(&self, watch: WatchId, heard: Heard) {
        let at = self.now();
        let mut account = self.account.lock();
        if !account.closed {
            account.history.hear(watch, at, heard);
        }
    }

    /// A watch of everything was shown these events; `source` names it.
    pub(super) fn committed(&self, source: u64, events: &[Event]) {
        let at = self.now();
        let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let mut account = self.account.lock();
        for same in events.chunk_by(|a, b| revision(a) == revision(b)) {
            let of = same.first().map_or(0, revision);
            account.history.committed(source, at, of, same);
        }
    }

    /// Notes what is wrong.
    pub(super) fn complain(&self, sentence: String) {
        self.account.lock().complaints.push(sentence);
    }

    /// Notes that a leader is about to be killed.
    pub(super) fn leader_dies(&self) {
        let at = self.now();
        self.account.lock().leader_kills.push(at);
    }

    /// Takes everything out; what is written down later is lost.
    pub(super) fn close(&self) -> Account {
        let closed = Account { closed: true, ..Account::default() };
        std::mem::replace(&mut *self.account.lock(), closed)
    }
}

/// What a client knows after an answer. Only a status that names a row of the error table whose
/// code says "refused" is certain; all others, a lost connection above all, may hide an effect.
pub(super) fn outcome(answer: Result<Reply, Status>) -> Outcome {
    let status = match answer {
        Ok(reply) => return Outcome::Done(reply),
        Err(status) => status,
    };
    let uncertain = matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DataLoss
    );
    let same =
        |row: &Error| row.text() == status.message() && row.code() as i32 == status.code() as i32;
    match Error::ALL.iter().copied().find(same) {
        Some(row) if !uncertain => Outcome::Refused(row),
        _ => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_of_the_table_is_certain() {
        let refused = |status: Status| matches!(outcome(Err(status)), Outcome::Refused(_));
        assert!(refused(Error::TooManyRequests.into()));
        assert!(refused(Error::FutureRevision.into()));
        assert!(!refused(Error::Timeout.into()));
        assert!(!refused(Error::NoLeader.into()));
        assert!(!refused(Status::unavailable("connection lost")));
        assert!(!refused(Status::resource_exhausted("message too large")));
        assert!(!refused(Status::deadline_exceeded("")));
    }
}
