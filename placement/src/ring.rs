//! Which nodes a new group is proposed to: a weighted consistent-hash ring over the nodes.
//!
//! The ring only proposes; the choice is written into the ledger and read from there ever after.
//! That it is a ring keeps proposals spread and stable when nodes come and go. The hash is our
//! own over explicit bytes, the same on every machine and in every program that will ever run.
//!
//! Nodes of one zone are taken only when there are fewer zones than replicas.

use std::hash::{Hash, Hasher};

use consistent_hash::{Node as Spot, RingHash, StaticHashRing};

use crate::record::{Node, NodeState};

/// Places on the ring for a node of weight 1.
const SPOTS: usize = 128;

/// FNV-1a over the bytes that are fed, finished by a mix: short, stable, well spread.
struct Stable(u64);

impl Hasher for Stable {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    // Numbers are fed in one byte order on all machines.
    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write(&(number as u64).to_le_bytes());
    }

    fn finish(&self) -> u64 {
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

struct StableHash;

/// A number that looks like nothing, the same everywhere and for ever.
pub(crate) fn stable<T: Hash>(item: &T) -> u64 {
    let mut hasher = Stable(0xcbf2_9ce4_8422_2325);
    item.hash(&mut hasher);
    hasher.finish()
}

impl RingHash for StableHash {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        stable(item)
    }

    fn hash_vnode<K: Hash>(&self, key: &K, spot: usize) -> u64 {
        let mut hasher = Stable(stable(key));
        hasher.write_usize(spot);
        hasher.finish()
    }
}

/// The nodes for `count` replicas of group `group`, best first: fewer when there are not enough.
pub fn propose<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    group: u64,
    count: usize,
) -> Vec<&'a Node> {
    let fit = nodes.filter(|node| node.state == NodeState::Up && node.weight > 0);
    let spots = fit
        .map(|node| Spot::new(node.id).value(node).quantity(SPOTS * node.weight.min(64) as usize));
    let ring = StaticHashRing::new(StableHash, spots);
    let mut chosen: Vec<&Node> = Vec::new();
    let mut spare: Vec<&Node> = Vec::new();
    for candidate in ring.calc_candidates(&group) {
        let node: &'a Node = candidate.value;
        let same_zone = |other: &&Node| !node.zone.is_empty() && other.zone == node.zone;
        if chosen.iter().any(same_zone) { spare.push(node) } else { chosen.push(node) }
    }
    chosen.truncate(count);
    let missing = count - chosen.len();
    chosen.extend(spare.into_iter().take(missing));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn node(id: u64, zone: &str, weight: u32) -> Node {
        Node {
            id,
            name: format!("n{id}"),
            peer_urls: Vec::new(),
            client_urls: Vec::new(),
            zone: zone.to_owned(),
            weight,
            directory: 0,
            state: NodeState::Up,
            labels: BTreeMap::new(),
        }
    }

    fn ids(chosen: &[&Node]) -> Vec<u64> {
        chosen.iter().map(|node| node.id).collect()
    }

    #[test]
    fn proposals_are_the_same_for_ever() {
        let nodes: Vec<_> = (1..=5).map(|id| node(id, "", 1)).collect();
        let chosen: Vec<_> = (2..6).map(|group| ids(&propose(nodes.iter(), group, 3))).collect();
        assert_eq!(chosen, GOLDEN);
    }

    const GOLDEN: [[u64; 3]; 4] = [[3, 4, 1], [4, 5, 1], [3, 4, 1], [5, 2, 4]];

    #[test]
    fn zones_are_shared_only_when_there_are_too_few() {
        let nodes = [node(1, "a", 1), node(2, "a", 1), node(3, "b", 1), node(4, "c", 1)];
        for group in 0..200 {
            let three = propose(nodes.iter(), group, 3);
            let mut zones: Vec<_> = three.iter().map(|node| &node.zone).collect();
            zones.sort();
            zones.dedup();
            assert_eq!(zones.len(), 3, "group {group} has two replicas in one zone");
            assert_eq!(propose(nodes.iter(), group, 4).len(), 4);
        }
    }

    #[test]
    fn weights_are_kept_and_unfit_nodes_are_not_taken() {
        let mut nodes = vec![node(1, "", 1), node(2, "", 1), node(3, "", 2), node(4, "", 0)];
        nodes.push(Node { state: NodeState::Cordoned, ..node(5, "", 1) });
        let mut homes: BTreeMap<u64, usize> = BTreeMap::new();
        for group in 0..4000 {
            *homes.entry(propose(nodes.iter(), group, 1)[0].id).or_default() += 1;
        }
        assert_eq!(homes.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        let heavy = homes[&3] as f64 / (homes[&1] + homes[&2]) as f64;
        assert!((0.75..1.35).contains(&heavy), "twice the weight got {heavy} of the two others");
    }

    #[test]
    fn a_node_more_moves_few_proposals() {
        let nodes: Vec<_> = (1..=10).map(|id| node(id, "", 1)).collect();
        let home = |count: usize, group| propose(nodes.iter().take(count), group, 1)[0].id;
        let moved = (0..1000).filter(|group| home(9, *group) != home(10, *group)).count();
        assert!(moved < 200, "{moved} of 1000 proposals changed");
    }
}
