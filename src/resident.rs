//! Tasks that a node has as long as it runs. One that panicked would be missed by nobody at once: the
//! router would go by an old map, or no replica would ever come here. So the node stops instead, as it
//! does when one of its threads panics; others take over, and a restart has all of them.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use shard::worker::Fatal;

/// Runs `work` beside the caller. It may end, but not by a panic.
pub(crate) fn spawn(
    name: &'static str,
    fatal: &Fatal,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let fatal = fatal.clone();
    tokio::spawn(async move {
        if AssertUnwindSafe(work).catch_unwind().await.is_err() {
            fatal(format!("the task \"{name}\" panicked, see above"));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_fatal_and_an_end_is_not() {
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let fatal: Fatal = Arc::new(move |message| said.send(message).unwrap());
        spawn("first", &fatal, async {});
        spawn("second", &fatal, async { panic!("for the test") });
        drop(fatal);
        assert_eq!(heard.recv().await.as_deref(), Some("the task \"second\" panicked, see above"));
        assert_eq!(heard.recv().await, None);
    }
}
