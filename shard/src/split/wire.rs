//! Entries, words and what is kept, as they stand in logs, in checkpoints and on the way between
//! nodes. What cannot be read is `None`: somebody else wrote it, or it is damaged.

use bytes::Bytes;
use proto::cluster::group::RangePlace;
use proto::cluster::split as wire;
use proto::cluster::split::{down, entry, grant::Kind, up};
use proto::{GroupId, KeyRange};

use super::entry::{Decision, Entry, Kept, Merge};
use super::evaluate::{Change, Prediction, Put};
use super::footprint::Footprint;
use super::stream::{Branch, Down, Granted, Place, TxId, Up, Vote, Wanted};

/// A range of a group.
pub fn place_out(group: GroupId, place: &Place) -> RangePlace {
    let KeyRange { start, end } = place.range.clone();
    RangePlace { group: group.0, start, end, version: place.version }
}

/// The same, read.
pub fn place_in(place: RangePlace) -> (GroupId, Place) {
    let range = KeyRange { start: place.start, end: place.end };
    (GroupId(place.group), Place { range, version: place.version })
}

fn id_out(id: TxId) -> wire::TxId {
    wire::TxId { epoch: id.epoch, number: id.number }
}

fn id_in(id: Option<wire::TxId>) -> Option<TxId> {
    id.map(|id| TxId { epoch: id.epoch, number: id.number })
}

fn change_out(change: &Change) -> wire::Change {
    let put = change.put.clone().unwrap_or(Put { value: Bytes::new(), lease: 0 });
    wire::Change {
        place: change.place,
        key: change.key.clone(),
        put: change.put.is_some(),
        value: put.value,
        lease: put.lease,
    }
}

fn change_in(change: wire::Change) -> Change {
    let put = Put { value: change.value, lease: change.lease };
    Change { place: change.place, key: change.key, put: change.put.then_some(put) }
}

fn branch_out(branch: &Branch) -> wire::Branch {
    wire::Branch {
        id: Some(id_out(branch.id)),
        revision: branch.revision,
        changes: branch.changes.iter().map(change_out).collect(),
    }
}

fn branch_in(branch: wire::Branch) -> Option<Branch> {
    let changes = branch.changes.into_iter().map(change_in).collect();
    Some(Branch { id: id_in(branch.id)?, revision: branch.revision, changes })
}

fn decision_out(id: TxId, decision: &Decision) -> wire::Decision {
    let parts = decision.changes.iter().map(|(group, changes)| wire::GroupChanges {
        group: group.0,
        changes: changes.iter().map(change_out).collect(),
    });
    wire::Decision {
        id: Some(id_out(id)),
        revision: decision.revision,
        parts: parts.collect(),
        lease: decision.lease,
    }
}

fn decision_in(decision: wire::Decision) -> Option<(TxId, Decision)> {
    let parts = decision.parts.into_iter();
    let changes = parts
        .map(|part| (GroupId(part.group), part.changes.into_iter().map(change_in).collect()))
        .collect();
    let (revision, lease) = (decision.revision, decision.lease);
    Some((id_in(decision.id)?, Decision { revision, changes, lease }))
}

/// An entry, to be written.
pub fn entry_out(entry: &Entry) -> wire::Entry {
    use entry::Body;
    let body = match entry.clone() {
        Entry::Seal { epoch } => Body::Seal(wire::Seal { epoch }),
        Entry::Write { epoch, revision, txn, predicted } => Body::Write(wire::Write {
            epoch,
            revision,
            txn: Some(txn),
            predicted: Some(wire::Prediction { path: predicted.path, changes: predicted.changes }),
        }),
        Entry::Branch { epoch, branch } => {
            Body::Branch(wire::LogBranch { epoch, branch: Some(branch_out(&branch)) })
        }
        Entry::Split { epoch, version, at, child, limit } => {
            Body::Split(wire::Split { epoch, version, at, child: child.0, limit })
        }
        Entry::Begin { epoch, version, merge } => {
            Body::Begin(wire::Begin { epoch, version, merge: merge.number, right: merge.right.0 })
        }
        Entry::Freeze { epoch, version, merge, left } => {
            Body::Freeze(wire::Freeze { epoch, version, merge, left: left.0 })
        }
        Entry::Absorb { epoch, merge, place, revision, base } => {
            // The group is told with the merge.
            let place = Some(place_out(GroupId(0), &place));
            Body::Absorb(wire::Absorb { epoch, merge, place, revision, base })
        }
        Entry::Abort { merge } => Body::Abort(merge),
        Entry::Thaw { merge } => Body::Thaw(merge),
        Entry::Gone { right } => Body::Gone(right.0),
        Entry::Map { group, place } => Body::Map(place_out(group, &place)),
        Entry::Limit { revision } => Body::Limit(revision),
        Entry::Hand { revision } => Body::Hand(revision),
        Entry::Decision { id, decision } => Body::Decision(decision_out(id, &decision)),
        Entry::Forget { id } => Body::Forget(id_out(id)),
        Entry::LeaseGranted { lease, ttl_s } => {
            Body::LeaseGranted(wire::LeaseGranted { lease, ttl_s })
        }
        Entry::LeaseGone { lease } => Body::LeaseGone(lease),
        Entry::Compact { revision } => Body::Compact(revision),
    };
    wire::Entry { body: Some(body) }
}

/// An entry that was written. Its values share the memory of what it was read from.
pub fn entry_in(entry: wire::Entry) -> Option<Entry> {
    use entry::Body;
    Some(match entry.body? {
        Body::Seal(seal) => Entry::Seal { epoch: seal.epoch },
        Body::Write(write) => {
            let predicted = write.predicted?;
            let predicted = Prediction { path: predicted.path, changes: predicted.changes };
            let (epoch, revision) = (write.epoch, write.revision);
            Entry::Write { epoch, revision, txn: write.txn?, predicted }
        }
        Body::Branch(log) => Entry::Branch { epoch: log.epoch, branch: branch_in(log.branch?)? },
        Body::Split(wire::Split { epoch, version, at, child, limit }) => {
            Entry::Split { epoch, version, at, child: GroupId(child), limit }
        }
        Body::Begin(wire::Begin { epoch, version, merge, right }) => {
            let merge = Merge { number: merge, right: GroupId(right) };
            Entry::Begin { epoch, version, merge }
        }
        Body::Freeze(wire::Freeze { epoch, version, merge, left }) => {
            Entry::Freeze { epoch, version, merge, left: GroupId(left) }
        }
        Body::Absorb(wire::Absorb { epoch, merge, place, revision, base }) => {
            Entry::Absorb { epoch, merge, place: place_in(place?).1, revision, base }
        }
        Body::Abort(merge) => Entry::Abort { merge },
        Body::Thaw(merge) => Entry::Thaw { merge },
        Body::Gone(right) => Entry::Gone { right: GroupId(right) },
        Body::Map(place) => {
            let (group, place) = place_in(place);
            Entry::Map { group, place }
        }
        Body::Limit(revision) => Entry::Limit { revision },
        Body::Hand(revision) => Entry::Hand { revision },
        Body::Decision(decision) => {
            let (id, decision) = decision_in(decision)?;
            Entry::Decision { id, decision }
        }
        Body::Forget(id) => Entry::Forget { id: id_in(Some(id))? },
        Body::LeaseGranted(wire::LeaseGranted { lease, ttl_s }) => {
            Entry::LeaseGranted { lease, ttl_s }
        }
        Body::LeaseGone(lease) => Entry::LeaseGone { lease },
        Body::Compact(revision) => Entry::Compact { revision },
    })
}

/// What is kept, to be written; leases are rows of their own.
pub fn kept_out(kept: &Kept) -> wire::Kept {
    let merging = kept.merging.map(|Merge { number, right }| (number, right));
    let merge = |(number, group): (u64, GroupId)| wire::Merge { number, group: group.0 };
    wire::Kept {
        group: kept.group.0,
        home: kept.home.0,
        place: Some(place_out(kept.group, &kept.place)),
        map: kept.map.iter().map(|(group, place)| place_out(*group, place)).collect(),
        merging: merging.map(merge),
        frozen: kept.frozen.map(merge),
        absorbed: kept.absorbed.iter().map(|group| group.0).collect(),
        seal: kept.seal,
        revision: kept.revision,
        compacted: kept.compacted,
        limit: kept.limit,
        decisions: kept.decisions.iter().map(|(id, d)| decision_out(*id, d)).collect(),
        lost: kept.lost,
    }
}

/// What was kept, without leases.
pub fn kept_in(kept: wire::Kept) -> Option<Kept> {
    let (group, place) = place_in(kept.place?);
    let merging = kept.merging.map(|m| Merge { number: m.number, right: GroupId(m.group) });
    let decisions = kept.decisions.into_iter().map(decision_in);
    Some(Kept {
        home: GroupId(kept.home),
        map: kept.map.into_iter().map(place_in).collect(),
        merging,
        frozen: kept.frozen.map(|m| (m.number, GroupId(m.group))),
        absorbed: kept.absorbed.into_iter().map(GroupId).collect(),
        seal: kept.seal,
        revision: kept.revision,
        compacted: kept.compacted,
        limit: kept.limit,
        decisions: decisions.collect::<Option<_>>()?,
        lost: kept.lost,
        ..Kept::new(group, place)
    })
}

fn keys_out(keys: &KeyRange) -> wire::Interval {
    wire::Interval { start: keys.start.clone(), end: keys.end.clone() }
}

fn keys_in(keys: wire::Interval) -> KeyRange {
    KeyRange { start: keys.start, end: keys.end }
}

fn past_out((keys, revision): (&KeyRange, i64)) -> wire::PastInterval {
    wire::PastInterval { keys: Some(keys_out(keys)), revision }
}

fn past_in(past: wire::PastInterval) -> Option<(KeyRange, i64)> {
    Some((keys_in(past.keys?), past.revision))
}

fn footprint_out(footprint: &Footprint) -> wire::Footprint {
    wire::Footprint {
        reads: footprint.reads.iter().map(keys_out).collect(),
        writes: footprint.writes.iter().map(keys_out).collect(),
        past: footprint.past.iter().map(|(keys, at)| past_out((keys, *at))).collect(),
        leases: footprint.leases.clone(),
        conditional: footprint.conditional,
        keys_only: footprint.keys_only,
    }
}

fn footprint_in(footprint: wire::Footprint) -> Option<Footprint> {
    Some(Footprint {
        reads: footprint.reads.into_iter().map(keys_in).collect(),
        writes: footprint.writes.into_iter().map(keys_in).collect(),
        past: footprint.past.into_iter().map(past_in).collect::<Option<_>>()?,
        leases: footprint.leases,
        conditional: footprint.conditional,
        keys_only: footprint.keys_only,
    })
}

fn lists_out(lists: Vec<Vec<i64>>) -> wire::LeaseLists {
    wire::LeaseLists { items: lists.into_iter().map(|leases| wire::Leases { leases }).collect() }
}

fn lists_in(lists: wire::LeaseLists) -> Vec<Vec<i64>> {
    lists.items.into_iter().map(|item| item.leases).collect()
}

/// A participant's word, to be sent; the stream is named beside it.
pub fn up_out(group: GroupId, word: Up) -> wire::Up {
    use up::Body;
    let (applied, body) = match word {
        Up::Register { place, seal, applied, frozen, lost, .. } => {
            let place = Some(place_out(group, &place));
            (applied, Body::Register(wire::Register { place, seal, frozen, lost }))
        }
        Up::Want { items, applied } => {
            let lists = items.into_iter().map(|item| item.leases).collect();
            (applied, Body::Want(lists_out(lists)))
        }
        Up::Ask { applied } => (applied, Body::Ask(wire::Ask {})),
        Up::AskLeases { leases } => (0, Body::AskLeases(lists_out(leases))),
        Up::Vote { id, vote, applied } => {
            let past = vote
                .past
                .into_iter()
                .map(|(keys, at, rows)| wire::PastRows { at: Some(past_out((&keys, at))), rows });
            let (id, past) = (Some(id_out(id)), past.collect());
            (applied, Body::Vote(wire::Vote { id, rows: vote.rows, past }))
        }
    };
    wire::Up { applied, body: Some(body) }
}

/// A participant's word on its stream `number` of `term`.
pub fn up_in(term: u64, number: u64, word: wire::Up) -> Option<Up> {
    use up::Body;
    let applied = word.applied;
    Some(match word.body? {
        Body::Register(wire::Register { place, seal, frozen, lost }) => {
            let place = place_in(place?).1;
            Up::Register { place, term, number, seal, applied, frozen, lost }
        }
        Body::Want(lists) => {
            let items = lists_in(lists).into_iter().map(|leases| Wanted { leases }).collect();
            Up::Want { items, applied }
        }
        Body::Ask(wire::Ask {}) => Up::Ask { applied },
        Body::AskLeases(lists) => Up::AskLeases { leases: lists_in(lists) },
        Body::Vote(wire::Vote { id, rows, past }) => {
            let past = past.into_iter().map(|part| {
                let (keys, at) = past_in(part.at?)?;
                Some((keys, at, part.rows))
            });
            let vote = Vote { rows, past: past.collect::<Option<_>>()? };
            Up::Vote { id: id_in(id)?, vote, applied }
        }
    })
}

/// The sequencer's word, to be sent.
pub fn down_out(word: Down) -> wire::Down {
    use down::Body;
    let body = match word {
        Down::NeedSeal { epoch } => Body::NeedSeal(epoch),
        Down::Registered { branches } => {
            let branches = branches.iter().map(branch_out).collect();
            Body::Registered(wire::Branches { branches })
        }
        Down::Granted { items } => {
            let grant = |granted| match granted {
                Granted::Revision(revision) => {
                    wire::Grant { kind: Kind::Revision as i32, revision }
                }
                Granted::Later => wire::Grant { kind: Kind::Later as i32, revision: 0 },
                Granted::NoLease => wire::Grant { kind: Kind::NoLease as i32, revision: 0 },
            };
            Body::Granted(wire::Grants { items: items.into_iter().map(grant).collect() })
        }
        Down::Answer { revision, last } => Body::Answer(wire::Told { revision, last }),
        Down::Leases { found } => Body::Leases(wire::Found { found }),
        Down::Latch { id, footprint, revokes } => Body::Latch(wire::Latch {
            id: Some(id_out(id)),
            footprint: Some(footprint_out(&footprint)),
            revokes,
        }),
        Down::Release { id } => Body::Release(id_out(id)),
        Down::Decided(branch) => Body::Decided(branch_out(&branch)),
        Down::Compact { revision } => Body::Compact(revision),
    };
    wire::Down { body: Some(body) }
}

/// The sequencer's word.
pub fn down_in(word: wire::Down) -> Option<Down> {
    use down::Body;
    Some(match word.body? {
        Body::NeedSeal(epoch) => Down::NeedSeal { epoch },
        Body::Registered(wire::Branches { branches }) => {
            let branches = branches.into_iter().map(branch_in).collect::<Option<_>>()?;
            Down::Registered { branches }
        }
        Body::Granted(wire::Grants { items }) => {
            let grant = |item: wire::Grant| match item.kind() {
                Kind::Revision => Granted::Revision(item.revision),
                Kind::Later => Granted::Later,
                Kind::NoLease => Granted::NoLease,
            };
            Down::Granted { items: items.into_iter().map(grant).collect() }
        }
        Body::Answer(wire::Told { revision, last }) => Down::Answer { revision, last },
        Body::Leases(wire::Found { found }) => Down::Leases { found },
        Body::Latch(wire::Latch { id, footprint, revokes }) => {
            let footprint = footprint_in(footprint?)?;
            Down::Latch { id: id_in(id)?, footprint, revokes }
        }
        Body::Release(id) => Down::Release { id: id_in(Some(id))? },
        Body::Decided(branch) => Down::Decided(branch_in(branch)?),
        Body::Compact(revision) => Down::Compact { revision },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use proto::etcd::TxnRequest;
    use proto::mvccpb::KeyValue;

    use super::*;

    fn keys() -> impl Strategy<Value = Bytes> {
        "[a-d]{0,3}".prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (keys(), proptest::option::of(keys())).prop_map(|(start, end)| KeyRange { start, end })
    }

    fn place() -> impl Strategy<Value = Place> {
        (range(), any::<u64>()).prop_map(|(range, version)| Place { range, version })
    }

    fn id() -> impl Strategy<Value = TxId> {
        (any::<u64>(), any::<u64>()).prop_map(|(epoch, number)| TxId { epoch, number })
    }

    fn change() -> impl Strategy<Value = Change> {
        let put = (keys(), any::<i64>()).prop_map(|(value, lease)| Put { value, lease });
        (any::<u32>(), keys(), proptest::option::of(put)).prop_map(|(place, key, put)| Change {
            place,
            key,
            put,
        })
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        proptest::collection::vec(change(), 0..4)
    }

    fn branch() -> impl Strategy<Value = Branch> {
        (id(), any::<i64>(), changes()).prop_map(|(id, revision, changes)| Branch {
            id,
            revision,
            changes,
        })
    }

    fn decision() -> impl Strategy<Value = Decision> {
        let parts =
            proptest::collection::btree_map(any::<u64>().prop_map(GroupId), changes(), 0..3);
        (any::<i64>(), parts, any::<Option<i64>>())
            .prop_map(|(revision, changes, lease)| Decision { revision, changes, lease })
    }

    fn group() -> impl Strategy<Value = GroupId> {
        any::<u64>().prop_map(GroupId)
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let path = proptest::collection::vec(any::<bool>(), 0..4);
        prop_oneof![
            any::<u64>().prop_map(|epoch| Entry::Seal { epoch }),
            (any::<u64>(), any::<i64>(), path, any::<bool>()).prop_map(
                |(epoch, revision, path, changes)| {
                    let predicted = Prediction { path, changes };
                    Entry::Write { epoch, revision, txn: TxnRequest::default(), predicted }
                }
            ),
            (any::<u64>(), branch()).prop_map(|(epoch, branch)| Entry::Branch { epoch, branch }),
            (any::<u64>(), any::<u64>(), keys(), group(), any::<i64>()).prop_map(
                |(epoch, version, at, child, limit)| Entry::Split {
                    epoch,
                    version,
                    at,
                    child,
                    limit
                }
            ),
            (any::<u64>(), any::<u64>(), any::<u64>(), group()).prop_map(
                |(epoch, version, number, right)| {
                    Entry::Begin { epoch, version, merge: Merge { number, right } }
                }
            ),
            (any::<u64>(), any::<u64>(), any::<u64>(), group()).prop_map(
                |(epoch, version, merge, left)| Entry::Freeze { epoch, version, merge, left }
            ),
            (any::<u64>(), any::<u64>(), place(), any::<i64>(), any::<Option<i64>>()).prop_map(
                |(epoch, merge, place, revision, base)| {
                    Entry::Absorb { epoch, merge, place, revision, base }
                }
            ),
            any::<u64>().prop_map(|merge| Entry::Abort { merge }),
            any::<u64>().prop_map(|merge| Entry::Thaw { merge }),
            group().prop_map(|right| Entry::Gone { right }),
            (group(), place()).prop_map(|(group, place)| Entry::Map { group, place }),
            any::<i64>().prop_map(|revision| Entry::Limit { revision }),
            any::<i64>().prop_map(|revision| Entry::Hand { revision }),
            (id(), decision()).prop_map(|(id, decision)| Entry::Decision { id, decision }),
            id().prop_map(|id| Entry::Forget { id }),
            (any::<i64>(), any::<i64>())
                .prop_map(|(lease, ttl_s)| Entry::LeaseGranted { lease, ttl_s }),
            any::<i64>().prop_map(|lease| Entry::LeaseGone { lease }),
            any::<i64>().prop_map(|revision| Entry::Compact { revision }),
        ]
    }

    fn over<M: Message + Default>(message: &M) -> M {
        M::decode(Bytes::from(message.encode_to_vec())).expect("it was encoded here")
    }

    fn row(key: &'static str) -> KeyValue {
        KeyValue { key: key.into(), mod_revision: 3, ..Default::default() }
    }

    proptest! {
        #[test]
        fn entries_come_back(entry in entry()) {
            prop_assert_eq!(entry_in(over(&entry_out(&entry))), Some(entry));
        }

        #[test]
        fn what_is_kept_comes_back(
            place in place(),
            map in proptest::collection::btree_map(group(), place(), 0..3),
            decisions in proptest::collection::btree_map(id(), decision(), 0..3),
            numbers in any::<[i64; 3]>(),
            frozen in proptest::option::of((any::<u64>(), group())),
        ) {
            let [revision, compacted, limit] = numbers;
            let kept = Kept {
                home: GroupId(4),
                map,
                merging: frozen.map(|(number, right)| Merge { number, right }),
                frozen,
                absorbed: [GroupId(8)].into(),
                seal: 9,
                revision,
                compacted,
                limit,
                decisions,
                ..Kept::new(GroupId(7), place)
            };
            prop_assert_eq!(kept_in(over(&kept_out(&kept))), Some(kept));
        }
    }

    #[test]
    fn words_come_back() {
        let id = TxId { epoch: 3, number: 4 };
        let all = KeyRange::all();
        let place = Place { range: KeyRange::single(&"k".into()), version: 2 };
        let past = vec![(all.clone(), 7, vec![row("b")])];
        let ups = [
            Up::Register {
                place,
                term: 5,
                number: 6,
                seal: 7,
                applied: 8,
                frozen: true,
                lost: true,
            },
            Up::Want { items: vec![Wanted { leases: vec![1, 2] }, Wanted::default()], applied: 8 },
            Up::Ask { applied: 8 },
            Up::AskLeases { leases: vec![vec![], vec![3]] },
            Up::Vote { id, vote: Vote { rows: vec![row("a")], past }, applied: 8 },
        ];
        for word in ups {
            let back = up_in(5, 6, over(&up_out(GroupId(1), word.clone())));
            assert_eq!(back, Some(word));
        }
        let branch = Branch { id, revision: 9, changes: Vec::new() };
        let footprint = Footprint {
            reads: vec![all.clone()],
            writes: vec![KeyRange::single(&"k".into())],
            past: vec![(all, 4)],
            leases: vec![5],
            conditional: true,
            keys_only: true,
        };
        let items = vec![Granted::Revision(4), Granted::Later, Granted::NoLease];
        let downs = [
            Down::NeedSeal { epoch: 3 },
            Down::Registered { branches: vec![branch.clone()] },
            Down::Granted { items },
            Down::Answer { revision: 5, last: 4 },
            Down::Leases { found: vec![true, false] },
            Down::Latch { id, footprint, revokes: true },
            Down::Release { id },
            Down::Decided(branch),
            Down::Compact { revision: 3 },
        ];
        for word in downs {
            assert_eq!(down_in(over(&down_out(word.clone()))), Some(word));
        }
    }
}
