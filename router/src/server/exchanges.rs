//! All exchanges of one connection, run by the connection's own task.
//!
//! hyper would give each HTTP/2 stream a task of its own. Then every answer wakes a task, which
//! takes the connection's lock and wakes the connection's task, which, on another thread, begins
//! to write while the next answers are still being laid out: two system calls and two wake-ups
//! an answer. Here the first answer of a round wakes the connection, and all that are ready by
//! then leave with one write.
//!
//! The price: one connection runs on one thread at a time, so an exchange must not compute for
//! long. What does (reading many rows) gets a task of its own (`api.rs`).
//!
//! ```text
//! hyper -- begins a stream --> Begun -- next poll --> Exchanges.running -- ends --> gone
//! ```
//!
//! Invariants:
//! * an exchange ends with its connection at the latest, whatever it waits for;
//! * an exchange that panics ends alone.

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, poll_fn},
    stream::FuturesUnordered,
};
use parking_lot::Mutex;
use tokio::task::unconstrained;

type Exchange = BoxFuture<'static, ()>;

/// Where hyper puts exchanges that begin.
#[derive(Clone, Default)]
pub(super) struct Begun {
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Begun {
    fn execute(&self, exchange: F) {
        // The panic itself is told by the process' hook; the client sees a reset stream.
        let exchange = AssertUnwindSafe(exchange).catch_unwind().map(drop);
        self.exchanges.lock().push(Box::pin(exchange));
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Exchanges {
    begun: Begun,
    running: FuturesUnordered<Exchange>,
}

// === impl Exchanges ===

impl Exchanges {
    /// The executor for the connection whose exchanges these are.
    pub(super) fn begun(&self) -> Begun {
        self.begun.clone()
    }

    /// Lets all go on that can. Must be called by the connection's task whenever it is polled:
    /// it is woken when one of them can go on.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) {
        self.running.extend(self.begun.exchanges.lock().drain(..));
        let all = poll_fn(|context| {
            while let Poll::Ready(Some(())) = self.running.poll_next_unpin(context) {}
            Poll::Ready(())
        });
        // tokio's budget is for one task that never waits. Many exchanges would use it up, and
        // the others be polled in vain; the set itself gives way when all had their turn.
        let _ = pin!(unconstrained(all)).poll(context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::rt::Executor;
    use std::{sync::Weak, task::Waker};

    fn poll(exchanges: &mut Exchanges) {
        exchanges.poll(&mut Context::from_waker(Waker::noop()));
    }

    #[test]
    fn what_began_goes_on_when_it_is_woken() {
        let mut exchanges = Exchanges::default();
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let seen = Arc::new(Mutex::new(false));
        let see = seen.clone();
        exchanges.begun().execute(async move {
            *see.lock() = receiver.await.is_ok();
        });
        poll(&mut exchanges);
        assert!(!*seen.lock());
        let _ = sender.send(());
        poll(&mut exchanges);
        assert!(*seen.lock() && exchanges.running.is_empty());
    }

    #[test]
    fn a_panic_ends_one_exchange_and_not_its_neighbour() {
        let mut exchanges = Exchanges::default();
        exchanges.begun().execute(async { panic!("on purpose") });
        exchanges.begun().execute(std::future::pending());
        poll(&mut exchanges);
        assert_eq!(exchanges.running.len(), 1);
    }

    #[test]
    fn exchanges_end_with_their_connection() {
        let mut exchanges = Exchanges::default();
        let held = Arc::new(());
        let alive: Weak<()> = Arc::downgrade(&held);
        exchanges.begun().execute(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        poll(&mut exchanges);
        assert!(alive.upgrade().is_some());
        drop(exchanges);
        assert!(alive.upgrade().is_none());
    }
}
