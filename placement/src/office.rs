//! Where commands are carried out: reads the ledger, asks the pure planners what would change,
//! and writes that if the ledger is still the same.
//!
//! Any node's office will do, at any time: the system group's transactions are what keeps two of
//! them apart. The same file follows the ledger, so that a node always has a recent one: a read of
//! all rows, then a watch from there on; whatever breaks the watch leads to a read anew.
//!
//! With many tenants the ledger is long, so it is read as a whole only where there is no other way.
//! A change is planned on what is known here and refused by the system group if that is old. What
//! is only shown, or a reason to do nothing, must be as new as the question: the office asks for the
//! revision of the one row that every change writes, and waits until it knows of that.
//!
//! Invariants:
//! - What is known here is the whole ledger at its revision, and never goes back.
//! - The changes that an office makes are made one after the other, so they do not refuse each other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::cluster::group::{DescribeRequest, GroupRequest};
use proto::etcd::{CompactionRequest, RangeRequest, RangeResponse, TxnRequest};
use proto::group::{
    GroupError, Groups, Reply, Request, WatchOutput, WatchSink, WatchSpec, request_to,
};
use proto::mvccpb::Event;
use proto::{GroupId, KeyRange, NamespaceId, TenantId, id};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::command::{Answer, Command, Refusal};
use crate::executor::Asking;
use crate::inventory::Inventory;
use crate::ledger::{Change, Ledger};
use crate::record::{END, META_KEY, Node, NodeState, PREFIX, Replica};
use crate::recovery;
use crate::splits::{self, Said, Wish};
use crate::tenants::{self, Planned};
use crate::{
    autosplit, check, groups, merges, nodes, operators, pins, plans, policy, spread, status,
};

/// Tries before a change that always meets another one is given up.
const TRIES: usize = 20;
/// How often, and at most how many times, it is looked whether what is followed is new enough.
const LOOK: Duration = Duration::from_millis(5);
const LOOKS: usize = 40;
/// After the followed ledger was shown it rests so many times as long as that took.
const SHOW_REST: u32 = 10;
/// Outputs of the watch that may wait for us.
const SINK_DEPTH: usize = 1024;
/// How long a group may take to say how large it is, in milliseconds.
const DESCRIBE_MS: u64 = 1000;
/// Revisions of the ledger that are kept, about.
const HISTORY: i64 = 1000;
/// Pause before the ledger is read anew, at most.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone)]
pub struct Office {
    pub(crate) groups: Arc<dyn Groups>,
    /// Also in the hands of those it was shown to: they do not see what comes later.
    known: Arc<Mutex<Arc<Ledger>>>,
    /// Is had by the change that is being made.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// For which operators groups are being asked for something that takes long.
    pub(crate) asking: Asking,
}

fn unreachable(error: GroupError) -> Refusal {
    Refusal::Unreachable(error.error.to_string())
}

fn request(body: Request) -> GroupRequest {
    request_to(id::SYSTEM_GROUP, body)
}

fn whole() -> KeyRange {
    KeyRange::parse(&Bytes::from_static(PREFIX.as_bytes()), &Bytes::from_static(END.as_bytes()))
}

// === impl Office ===

impl Office {
    /// An office that reaches the system group through `groups`.
    pub fn new(groups: Arc<dyn Groups>) -> Office {
        Office { groups, known: Arc::default(), turn: Arc::default(), asking: Asking::default() }
    }

    async fn range(&self, ask: RangeRequest) -> Result<RangeResponse, Refusal> {
        match self.groups.call(request(Request::Range(ask))).await.map_err(unreachable)? {
            Reply::Range(answer) => Ok(answer),
            _ => Err(Refusal::Unreachable("it gives another answer".to_owned())),
        }
    }

    /// Reads the whole ledger as it is now.
    async fn read(&self) -> Result<(), Refusal> {
        let range = whole();
        let ask = RangeRequest {
            key: range.start.clone(),
            range_end: range.end.clone().unwrap_or_default(),
            ..Default::default()
        };
        let read = Ledger::read(&self.range(ask).await?);
        let read = read.map_err(|error| Refusal::Unreachable(error.to_string()))?;
        let mut known = self.known.lock();
        if known.revision < read.revision {
            *known = Arc::new(read);
        }
        Ok(())
    }

    /// Waits until what is known here is as new as this call.
    async fn refresh(&self) -> Result<(), Refusal> {
        let row =
            RangeRequest { key: Bytes::from_static(META_KEY.as_bytes()), ..Default::default() };
        let answer = self.range(row).await?;
        let newest = answer.kvs.first().map_or(0, |kv| kv.mod_revision);
        for _ in 0..LOOKS {
            let known = self.known.lock().meta_revision;
            if known >= newest {
                return Ok(());
            }
            if known == 0 {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        // Nobody follows the ledger here, or it cannot be followed now.
        self.read().await
    }

    /// The ledger as it is known here: with all changes that this office made, and perhaps without
    /// newer ones of others.
    pub fn known(&self) -> Arc<Ledger> {
        self.known.lock().clone()
    }

    /// Looks at a ledger that is at least as new as this call.
    pub async fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> Result<T, Refusal> {
        self.refresh().await?;
        Ok(look(&self.known.lock()))
    }

    /// Makes what `plan` says of the newest ledger, if it says anything.
    async fn change(&self, plan: impl Fn(&Ledger) -> Planned) -> Result<Answer, Refusal> {
        let _turn = self.turn.lock().await;
        let mut is_newest = false;
        for _ in 0..TRIES {
            let planned = {
                let known = self.known.lock();
                let write =
                    |change: &Change| (!change.is_empty()).then(|| known.transaction(change));
                plan(&known).map(|(change, answer)| (write(&change), change, answer))
            };
            match planned {
                Ok((Some(write), change, answer)) => {
                    if let Some(revision) = self.write(write).await? {
                        self.made(&change, revision);
                        return Ok(answer);
                    }
                }
                // Of an old ledger neither means anything.
                Ok((None, _, answer)) if is_newest => return Ok(answer),
                Err(refusal) if is_newest => return Err(refusal),
                _ => {}
            }
            self.refresh().await?;
            is_newest = true;
        }
        Err(Refusal::Unreachable("others change the ledger all the time".to_owned()))
    }

    /// A change was made at a revision, of the ledger that was known.
    fn made(&self, change: &Change, revision: i64) {
        let mut known = self.known.lock();
        if known.revision < revision {
            change.apply(Arc::make_mut(&mut known), revision);
        }
    }

    /// Writes a change if the ledger is still the one that it was planned on, and says at which
    /// revision.
    async fn write(&self, txn: TxnRequest) -> Result<Option<i64>, Refusal> {
        match self.groups.call(request(Request::Txn(txn))).await.map_err(unreachable)? {
            Reply::Txn(answer) => {
                let revision = answer.header.map_or(0, |header| header.revision);
                Ok(answer.succeeded.then_some(revision))
            }
            _ => Err(Refusal::Unreachable("it gives another answer".to_owned())),
        }
    }

    /// Makes a change that needs no answer, until it is made or known not to be needed.
    pub(crate) async fn insist(
        &self,
        plan: impl Fn(&Ledger) -> Option<Change>,
    ) -> Result<(), Refusal> {
        let plan =
            |ledger: &Ledger| Ok((plan(ledger).unwrap_or_default(), Answer::Done(String::new())));
        self.change(plan).await.map(drop)
    }

    /// Founds the service, if nobody has.
    pub async fn found(
        &self,
        cluster: u64,
        founders: &[Node],
        default_tenant: bool,
    ) -> Result<(), Refusal> {
        self.insist(|ledger| nodes::found(ledger, cluster, founders, default_tenant)).await
    }

    /// Tells who this node is.
    pub async fn register(&self, node: &Node) -> Result<(), Refusal> {
        self.insist(|ledger| {
            ledger.meta.as_ref()?;
            nodes::register(ledger, node.clone())
        })
        .await
    }

    /// Tells the members of a group, as its leader knows them, and the nodes that etcd's member
    /// commands have removed with it.
    pub async fn report(
        &self,
        group: GroupId,
        version: u64,
        replicas: &[Replica],
        retired: &[u64],
    ) -> Result<(), Refusal> {
        self.insist(|ledger| nodes::report(ledger, group.0, version, replicas, retired)).await
    }

    /// Tells the keys of a group, as a replica of it has applied them.
    pub async fn report_keys(
        &self,
        group: GroupId,
        said: &Said,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        self.insist(|ledger| splits::learn(ledger, group.0, said, now_ms)).await
    }

    /// Does what time alone asks for: what was deleted goes when its grace is over, and so does old
    /// history of the ledger.
    pub async fn keep(&self, ledger: &Ledger, now_ms: u64) -> Result<(), Refusal> {
        if ledger.revision > 0 && ledger.revision % HISTORY > HISTORY / 2 {
            let revision = ledger.revision - ledger.revision % HISTORY;
            let ask = CompactionRequest { revision, physical: false };
            // Refused when it was done before.
            let _ = self.groups.call(request(Request::Compact(ask))).await;
        }
        if tenants::purge(ledger, now_ms).is_none() {
            return Ok(());
        }
        self.insist(|ledger| tenants::purge(ledger, now_ms)).await
    }

    /// Carries out an operator's command.
    pub async fn run(&self, command: &Command, inventory: &Inventory, now_ms: u64) -> Answer {
        match self.try_run(command, inventory, now_ms).await {
            Ok(answer) => answer,
            Err(refusal) => Answer::Refused(refusal.to_string()),
        }
    }

    async fn try_run(
        &self,
        command: &Command,
        inventory: &Inventory,
        now_ms: u64,
    ) -> Result<Answer, Refusal> {
        match command {
            Command::TenantList => self.look(|ledger| tenants::show(ledger, None)).await?,
            Command::TenantShow { name } => {
                let shown = self.look(|ledger| tenants::show(ledger, Some(name))).await??;
                Ok(self.with_sizes(shown).await)
            }
            Command::NamespaceList { tenant } => {
                self.look(|ledger| tenants::show(ledger, Some(tenant))).await?
            }
            Command::NodeList => {
                let list = self.look(|ledger| nodes::list(ledger, inventory, now_ms)).await?;
                Ok(Answer::Nodes(list))
            }
            Command::Status => {
                let status = self.look(|ledger| status::of(ledger, inventory, now_ms)).await?;
                Ok(Answer::Status(Box::new(status)))
            }
            Command::GroupList => self.look(tenants::groups).await,
            Command::GroupShow { group } => {
                self.look(|ledger| groups::show(ledger, inventory, *group, now_ms)).await?
            }
            Command::GroupTop { limit } => {
                self.look(|ledger| groups::top(ledger, inventory, *limit, now_ms)).await
            }
            Command::OperatorList => self.look(|ledger| operators::show(ledger, None)).await?,
            Command::OperatorShow { id } => {
                self.look(|ledger| operators::show(ledger, Some(*id))).await?
            }
            Command::TenantExplain { name } => {
                let explain = |ledger: &Ledger| autosplit::explain(ledger, inventory, name, now_ms);
                self.look(explain).await?
            }
            Command::PolicyShow => self.look(policy::show).await,
            Command::RebalanceShow => {
                self.look(|ledger| plans::show(ledger, inventory, now_ms)).await
            }
            Command::RebalanceExplain { version } => {
                self.look(|ledger| plans::explain(ledger, *version, now_ms)).await?
            }
            Command::RebalanceHistory => self.look(|ledger| plans::history(ledger, now_ms)).await,
            Command::RebalanceCheck => Ok(Answer::Findings(self.look(check::check).await?)),
            changing => {
                let plan = |ledger: &Ledger| {
                    let silent = inventory.silent(ledger, now_ms);
                    plan(&ledger.with_silent(silent), changing, inventory, now_ms)
                };
                let answer = self.change(plan).await?;
                Ok(self.bring_about(answer, now_ms).await)
            }
        }
    }

    /// Tells the groups of a tenant that was changed, so that the change is in force when the
    /// operator hears of it. Where that cannot be the executor goes on with it, and the answer says
    /// which groups have not heard.
    async fn bring_about(&self, answer: Answer, now_ms: u64) -> Answer {
        let Answer::Tenants(views) = &answer else { return answer };
        let Some(tenant) = views.first().map(|view| view.id) else { return answer };
        if views.iter().all(|view| view.heard) {
            return answer;
        }
        let Ok(ledger) = self.look(Ledger::clone).await else { return answer };
        self.tell(&ledger, now_ms, |of| of == tenant).await;
        let shown = self.look(|ledger| {
            let name = ledger.tenants.get(&tenant).map(|tenant| tenant.name.as_str());
            tenants::show(ledger, name)
        });
        shown.await.and_then(|shown| shown).unwrap_or(answer)
    }

    /// The same views with the sizes that their groups tell.
    async fn with_sizes(&self, answer: Answer) -> Answer {
        let Answer::Tenants(mut views) = answer else { return answer };
        let mut asked = JoinSet::new();
        for group in views.iter().flat_map(|view| &view.places).map(|place| place.group) {
            let describe = Request::Describe(DescribeRequest {});
            let timeout_ms = DESCRIBE_MS;
            let ask = GroupRequest { timeout_ms, ..request_to(GroupId(group), describe) };
            let groups = self.groups.clone();
            asked.spawn(async move { (group, groups.call(ask).await) });
        }
        while let Some(told) = asked.join_next().await {
            let Ok((group, Ok(Reply::Describe(told)))) = told else { continue };
            let leader = self.known.lock().node_name(told.leader);
            let mut places = views.iter_mut().flat_map(|view| &mut view.places);
            if let Some(place) = places.find(|place| place.group == group) {
                place.size = u64::try_from(told.size_in_use).ok();
                place.leader = (told.leader != 0).then_some(leader);
            }
        }
        for view in views.iter_mut().filter(|view| view.group != 0) {
            view.size = view.places.iter().map(|place| place.size).sum();
        }
        Answer::Tenants(views)
    }

    /// Follows the ledger for ever: the receiver always has the newest one that is known here.
    pub fn follow(&self) -> watch::Receiver<Arc<Ledger>> {
        let (sender, receiver) = watch::channel(Arc::new(Ledger::default()));
        let office = self.clone();
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(50);
            while !sender.is_closed() {
                match office.follow_once(&sender).await {
                    Ok(()) => pause = Duration::from_millis(50),
                    Err(error) => tracing::debug!(%error, "the ledger cannot be followed"),
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(PAUSE_MAX);
            }
        });
        receiver
    }

    /// Reads, then watches until that ends.
    async fn follow_once(&self, sender: &watch::Sender<Arc<Ledger>>) -> Result<(), Refusal> {
        self.read().await?;
        let revision = self.known.lock().revision;
        let (sink, mut outputs) = mpsc::channel(SINK_DEPTH);
        let control = self.groups.watch(id::SYSTEM_GROUP, Arc::new(Sink(sink)));
        control.create(WatchSpec {
            tenant: TenantId(0),
            namespace: NamespaceId(0),
            group: id::SYSTEM_GROUP,
            key: 1,
            range: whole(),
            start_revision: revision + 1,
            prev_kv: false,
            no_put: false,
            no_delete: false,
        });
        let mut rest_until = self.show(sender);
        loop {
            let is_shown = sender.borrow().revision == self.known.lock().revision;
            let output = tokio::select! {
                output = outputs.recv() => output,
                () = tokio::time::sleep_until(rest_until), if !is_shown => {
                    rest_until = self.show(sender);
                    continue;
                }
            };
            match output {
                Some(WatchOutput::Events { revision, events, .. }) => {
                    let events: Vec<&Event> = events.iter().map(|event| &***event).collect();
                    let followed = Arc::make_mut(&mut self.known.lock()).follow(revision, &events);
                    followed.map_err(|error| Refusal::Unreachable(error.to_string()))?;
                }
                Some(WatchOutput::Progress { .. } | WatchOutput::WatchProgress { .. }) => {}
                Some(WatchOutput::Compacted { .. } | WatchOutput::Closed { .. }) | None => {
                    return Ok(());
                }
            }
        }
    }

    /// Shows what is known, and says until when it had better not be shown again: copying a long
    /// ledger for each of many changes would be most of what they cost.
    fn show(&self, sender: &watch::Sender<Arc<Ledger>>) -> Instant {
        let begun = Instant::now();
        sender.send_replace(self.known.lock().clone());
        let now = Instant::now();
        now + SHOW_REST * (now - begun)
    }
}

/// What a changing command would change.
fn plan(ledger: &Ledger, command: &Command, inventory: &Inventory, now_ms: u64) -> Planned {
    match command {
        Command::TenantCreate { name, replicas, port, reuse_name: true } => {
            tenants::create_reusing(ledger, name, *replicas, *port)
        }
        Command::TenantCreate { name, replicas, port, .. } => {
            tenants::create(ledger, name, *replicas, *port)
        }
        Command::TenantQuota { name, bytes } => tenants::set_quota(ledger, name, *bytes),
        Command::NamespaceDelete { tenant, name } => {
            tenants::delete_namespace(ledger, tenant, name, now_ms)
        }
        Command::NamespaceUndelete { tenant, name } => {
            tenants::undelete_namespace(ledger, tenant, name)
        }
        Command::TenantFreeze { name } => tenants::set_frozen(ledger, name, true),
        Command::TenantThaw { name } => tenants::set_frozen(ledger, name, false),
        Command::TenantDelete { name } => tenants::delete(ledger, name, now_ms),
        Command::TenantUndelete { name } => tenants::undelete(ledger, name),
        Command::TenantRename { name, to } => tenants::rename(ledger, name, to),
        Command::TenantDefault { name } => tenants::set_default(ledger, name),
        Command::NamespaceCreate { tenant, name, prefix, port } => {
            tenants::create_namespace(ledger, tenant, name, prefix.as_deref(), *port)
        }
        Command::NodeCordon { name } => nodes::set_state(ledger, name, NodeState::Cordoned),
        Command::NodeUncordon { name } => nodes::set_state(ledger, name, NodeState::Up),
        Command::NodeWeight { name, weight } => nodes::set_weight(ledger, name, *weight),
        Command::NodeZone { name, zone } => nodes::set_zone(ledger, name, zone),
        Command::NodeDrain { name } => nodes::set_state(ledger, name, NodeState::Draining),
        Command::NodeRemove { name, force: false } => nodes::remove(ledger, name),
        Command::NodeRemove { name, force: true } => nodes::give_up(ledger, name),
        Command::NodeRepairAfter { ms } => nodes::set_repair_after(ledger, *ms),
        Command::TenantSplit { name, at, prefixes } => {
            splits::split(ledger, inventory, &Wish { name, at, prefixes }, now_ms)
        }
        Command::TenantMerge { name, at, all } => {
            let wish = merges::Wish { name, at: at.as_deref(), all: *all };
            merges::merge(ledger, inventory, &wish, now_ms)
        }
        Command::TenantSpread { name, by } => spread::spread(ledger, inventory, name, by, now_ms),
        Command::PolicySet(wish) => policy::set(ledger, wish),
        Command::TenantMove { name, to } => operators::move_tenant(ledger, name, to, now_ms),
        Command::TenantPin { name, to, zone } => pins::pin(ledger, name, to, zone, now_ms),
        Command::NodeLabel { name, key, value } => nodes::set_label(ledger, name, key, value),
        Command::RebalancePlan => plans::make(ledger, inventory, now_ms),
        Command::RebalanceApply { version, by } => {
            plans::apply(ledger, inventory, *version, by, now_ms)
        }
        Command::RebalanceRevert { version } => plans::revert(ledger, inventory, *version, now_ms),
        Command::RebalancePause => plans::pause(ledger, now_ms),
        Command::RebalanceResume => plans::resume(ledger),
        Command::OperatorCancel { id } => operators::cancel(ledger, *id, now_ms),
        Command::GroupRecover { group, choose, accept_loss } => {
            let wish = recovery::Wish { group: *group, choose, accept_loss: *accept_loss };
            recovery::recover(ledger, inventory, &wish, now_ms)
        }
        Command::TenantList
        | Command::TenantShow { .. }
        | Command::NamespaceList { .. }
        | Command::NodeList
        | Command::Status
        | Command::GroupShow { .. }
        | Command::GroupTop { .. }
        | Command::OperatorList
        | Command::OperatorShow { .. }
        | Command::RebalanceShow
        | Command::RebalanceExplain { .. }
        | Command::RebalanceHistory
        | Command::RebalanceCheck
        | Command::TenantExplain { .. }
        | Command::PolicyShow
        | Command::GroupList => Ok((Change::default(), Answer::Done(String::new()))),
    }
}

/// The watch's queue. When it is full the hub waits with what it has.
struct Sink(mpsc::Sender<WatchOutput>);

impl WatchSink for Sink {
    fn offer(&self, output: WatchOutput) -> Result<(), WatchOutput> {
        self.0.try_send(output).map_err(|error| match error {
            mpsc::error::TrySendError::Full(output) => output,
            mpsc::error::TrySendError::Closed(output) => output,
        })
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}
