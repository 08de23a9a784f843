//! Balance in the service. What groups weigh is made up, so that there is something to even out;
//! somebody has plans made, applied, taken back, stops all that and lets it go on, while the moves
//! go on by themselves, one step an errand.

use placement::Ledger;
use placement::inventory::{GroupReport, Inventory};
use placement::plans;
use placement::tenants::Planned;
use proto::GroupId;

use crate::sim::random::Random;

/// What a leader says of its group's load, if it is the only one that says something.
pub(super) fn load_of(seed: u64, group: GroupId) -> GroupReport {
    let mut random = Random::new(seed ^ group.0.rotate_left(40));
    GroupReport {
        size_bytes: random.below(8) << 30,
        requests_per_s: random.below(1000),
        write_bytes_per_s: random.below(4) << 22,
        cpu_us_per_s: random.below(4) * 100_000,
        ..GroupReport::default()
    }
}

/// What an operator thinks of.
pub(super) fn idea(
    ledger: &Ledger,
    inventory: &Inventory,
    random: &mut Random,
    now_ms: u64,
) -> Planned {
    let newest = ledger.plans.keys().next_back().copied().unwrap_or_default();
    let some = newest.saturating_sub(random.below(3));
    match random.below(10) {
        0..=2 => plans::make(ledger, inventory, now_ms),
        3..=5 => plans::apply(ledger, inventory, newest, "somebody", now_ms),
        6 => plans::revert(ledger, inventory, some, now_ms),
        7 => plans::pause(ledger, now_ms),
        _ => plans::resume(ledger),
    }
}

/// When the faults are over nothing new is begun.
pub(super) fn rest(ledger: &Ledger, now_ms: u64) -> Option<Planned> {
    let runs = ledger.meta.as_ref().is_some_and(|meta| !meta.balance_paused);
    runs.then(|| plans::pause(ledger, now_ms))
}

/// What is wrong with plans in the end.
pub(super) fn judge(ledger: &Ledger) -> Vec<String> {
    let running = |plan: &&placement::record::Plan| plan.applied_ms != 0 && plan.ended_ms == 0;
    let left = ledger.plans.values().filter(running);
    left.map(|plan| format!("a plan has not come to its end: {plan:?}")).collect()
}
