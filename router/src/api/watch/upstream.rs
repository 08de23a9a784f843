//! Where the events of a stream come from: the hubs of an etcd's groups, and its home.
//!
//! ```text
//!   stream <──outputs── Upstream: Merge (pure) ──asks──> control ──> hub of each group
//!                          ^                                          │
//!                          └──── home's answers, maps, outputs <──────┘ sink (bounded)
//! ```
//!
//! What is asked, and what an answer means, is decided by [`Merge`]; here are the channels and the
//! clock.
//!
//! *Losing touch.* When a hub closes a watch, or lets go of its sink, all watches at that hub are
//! created anew after a pause, with a new sink, from behind what each has had; the client notices
//! nothing. What the old sink still holds is dropped with it: it comes again. The other groups' hubs
//! go on meanwhile.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use proto::{
    Error, GroupId,
    cluster::group::{Span, SpanRequest},
    group::{Reply, Request, WatchControl, WatchOutput, WatchSink},
    limits,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Sleep, sleep},
};

use super::{
    RETRY,
    merge::{Ask, Merge, Output, Wish},
    places::Places,
};
use crate::{caller::Caller, course::Course};

/// The bounded queue between a hub and a stream.
struct Sink {
    outputs: mpsc::Sender<WatchOutput>,
}

// === impl Sink ===

impl WatchSink for Sink {
    fn offer(&self, output: WatchOutput) -> Result<(), WatchOutput> {
        self.outputs.try_send(output).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(output) | mpsc::error::TrySendError::Closed(output) => {
                output
            }
        })
    }

    fn is_closed(&self) -> bool {
        self.outputs.is_closed()
    }
}

/// The connection to the hub of a group.
struct Hub {
    state: State,
    /// The pause that the next loss begins with; back to the first once the hub says anything.
    pause: Duration,
}

enum State {
    Open {
        control: Box<dyn WatchControl>,
        queue: mpsc::Receiver<WatchOutput>,
    },
    /// Tried again when the sleep is over.
    Lost(Pin<Box<Sleep>>),
}

/// What a hub has to say.
enum Heard {
    Output(WatchOutput),
    /// It let go of the sink: as good as closed.
    Gone,
    /// The pause after a loss is over.
    Retry,
}

// === impl Hub ===

impl Hub {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Heard> {
        match &mut self.state {
            State::Open { queue, .. } => {
                queue.poll_recv(context).map(|output| output.map_or(Heard::Gone, Heard::Output))
            }
            State::Lost(retry) => retry.as_mut().poll(context).map(|()| Heard::Retry),
        }
    }
}

type Answer = Pin<Box<dyn Future<Output = Span> + Send>>;

/// What came.
enum News {
    Hub(GroupId, Heard),
    Home(Span),
    Map,
}

/// All that a stream hears from.
pub(super) struct Upstream {
    caller: Caller,
    merge: Merge,
    hubs: BTreeMap<GroupId, Hub>,
    /// The group that was heard last: the others come first.
    turn: GroupId,
    /// The etcd's ranges, whenever they change.
    course: watch::Receiver<Course>,
    /// Home's answer to come.
    answer: Option<Answer>,
    /// How long home is left alone after an answer of no use.
    pause: Duration,
    outputs: Vec<Output>,
}

// === impl Upstream ===

impl Upstream {
    pub(super) fn new(caller: Caller) -> Result<Upstream, Error> {
        let mut course = caller.course();
        let (tenant, namespace) = caller.visit().etcd;
        course.borrow_and_update();
        let places = caller.now(Places::of)?;
        Ok(Upstream {
            merge: Merge::new(tenant, namespace, places),
            caller,
            hubs: BTreeMap::new(),
            turn: GroupId(0),
            course,
            answer: None,
            pause: RETRY.0,
            outputs: Vec::new(),
        })
    }

    /// The groups that the watches are at, or have been at under the places of now.
    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.hubs.keys().copied()
    }

    /// Adds a watch. Keys ascend.
    pub(super) fn create(&mut self, key: u64, wish: Wish) {
        self.merge.create(key, wish, &mut self.outputs);
        self.carry_out();
    }

    pub(super) fn cancel(&mut self, key: u64) {
        self.merge.cancel(key, &mut self.outputs);
        self.carry_out();
    }

    /// Asks for the progress of the whole stream.
    pub(super) fn progress(&mut self) {
        self.merge.progress(&mut self.outputs);
        self.carry_out();
    }

    /// Asks for the progress of each of these that was idle since the last tick.
    pub(super) fn tick(&mut self, keys: impl Iterator<Item = u64>) {
        self.merge.tick(keys, &mut self.outputs);
        self.carry_out();
    }

    /// What has come and was not taken yet.
    pub(super) fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Waits until something has come; there may be nothing for the stream in it. May be dropped
    /// while it waits.
    pub(super) async fn hear(&mut self) {
        if self.outputs.is_empty() {
            let Upstream { hubs, turn, course, answer, .. } = self;
            let news = tokio::select! {
                (group, heard) = poll_fn(|context| poll_hubs(hubs, *turn, context)) => {
                    News::Hub(group, heard)
                }
                span = resolve(answer) => News::Home(span),
                () = changed(course) => News::Map,
            };
            self.take_in(news);
        }
    }

    /// Takes in one more output of a hub, if one waits.
    pub(super) fn hear_now(&mut self) -> bool {
        let waits = |hub: &mut Hub| match &mut hub.state {
            State::Open { queue, .. } => queue.try_recv().ok(),
            State::Lost(_) => None,
        };
        let mut hubs = self.hubs.iter_mut();
        let news = hubs.find_map(|(group, hub)| Some((*group, waits(hub)?)));
        let Some((group, output)) = news else { return false };
        self.take_in(News::Hub(group, Heard::Output(output)));
        true
    }

    fn take_in(&mut self, news: News) {
        match news {
            News::Hub(group, heard) => self.heard(group, heard),
            News::Home(span) => {
                self.answer = None;
                self.merge.span(&span, &mut self.outputs);
            }
            News::Map => {
                // Of an etcd that is frozen or gone there is nothing to follow.
                let ranges = self.course.borrow_and_update().as_ref().ok().map(|it| Places::of(it));
                if let Some(places) = ranges {
                    self.merge.follow(places, &mut self.outputs);
                }
            }
        }
        self.carry_out();
    }

    fn heard(&mut self, group: GroupId, heard: Heard) {
        self.turn = group;
        match heard {
            Heard::Output(WatchOutput::Closed { key }) if self.merge.knows(key) => self.lost(group),
            Heard::Output(WatchOutput::Closed { .. }) => {}
            Heard::Gone => self.lost(group),
            Heard::Output(output) => {
                if let Some(hub) = self.hubs.get_mut(&group) {
                    hub.pause = RETRY.0;
                }
                self.merge.heard(group, output, &mut self.outputs);
            }
            Heard::Retry => {
                tracing::debug!(%group, "watching anew");
                self.open(group);
                self.merge.found(group, &mut self.outputs);
            }
        }
    }

    fn lost(&mut self, group: GroupId) {
        let pause = self.hubs.get(&group).map_or(RETRY.0, |hub| hub.pause);
        let state = State::Lost(Box::pin(sleep(pause)));
        self.hubs.insert(group, Hub { state, pause: (pause * 2).min(RETRY.1) });
        self.merge.lost(group, &mut self.outputs);
    }

    fn open(&mut self, group: GroupId) {
        let (outputs, queue) = mpsc::channel(limits::WATCH_STREAM_DEPTH);
        let control = self.caller.door().groups.watch(group, Arc::new(Sink { outputs }));
        let pause = self.hubs.get(&group).map_or(RETRY.0, |hub| hub.pause);
        self.hubs.insert(group, Hub { state: State::Open { control, queue }, pause });
    }

    /// Asks what the merge wants to know.
    fn carry_out(&mut self) {
        for ask in self.merge.take_asks() {
            match ask {
                Ask::Reset => self.hubs.clear(),
                Ask::Create(spec) => {
                    if !self.hubs.contains_key(&spec.group) {
                        self.open(spec.group);
                    }
                    self.with(spec.group, |control| control.create(spec));
                }
                Ask::Cancel(group, key) => self.with(group, |control| control.cancel(key)),
                Ask::Progress(group) => self.with(group, |control| control.progress()),
                Ask::ProgressAt(group, at) => self.with(group, |control| control.progress_at(at)),
                Ask::WatchProgress(group, key) => {
                    self.with(group, |control| control.watch_progress(key));
                }
                Ask::Span { weak, later } => {
                    self.pause = if later { (self.pause * 2).min(RETRY.1) } else { RETRY.0 };
                    let pause = later.then_some(self.pause / 2);
                    self.answer = Some(Box::pin(ask_home(self.caller.clone(), weak, pause)));
                }
            }
        }
    }

    /// Out of touch nothing is asked: all is asked anew when the hub is found.
    fn with(&self, group: GroupId, ask: impl FnOnce(&dyn WatchControl)) {
        if let Some(Hub { state: State::Open { control, .. }, .. }) = self.hubs.get(&group) {
            ask(control.as_ref());
        }
    }
}

/// The first hub with something to say, beginning behind the one that spoke last.
fn poll_hubs(
    hubs: &mut BTreeMap<GroupId, Hub>,
    turn: GroupId,
    context: &mut Context<'_>,
) -> Poll<(GroupId, Heard)> {
    for is_later in [true, false] {
        for (group, hub) in hubs.iter_mut().filter(|(group, _)| (**group > turn) == is_later) {
            if let Poll::Ready(heard) = hub.poll(context) {
                return Poll::Ready((*group, heard));
            }
        }
    }
    Poll::Pending
}

/// Waits for an answer, or for ever if none was asked for.
async fn resolve(answer: &mut Option<Answer>) -> Span {
    match answer {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

async fn changed(course: &mut watch::Receiver<Course>) {
    if course.changed().await.is_err() {
        // Cannot happen: what is followed is kept.
        std::future::pending().await
    }
}

/// Asks home where the revisions stand, until it answers. What cannot pass ends the stream in
/// other ways.
async fn ask_home(caller: Caller, weak: bool, first: Option<Duration>) -> Span {
    let mut pause = RETRY.0;
    if let Some(first) = first {
        sleep(first).await;
    }
    loop {
        match caller.try_ask(Request::Span(SpanRequest { weak })).await {
            Ok(Reply::Span(span)) => return span,
            Ok(_) => tracing::debug!("home answers something else"),
            Err(error) => tracing::debug!(%error, "home does not answer"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}
