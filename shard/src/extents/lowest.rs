//! Finds the lowest file that has a free span of a wanted length.
//!
//! A tournament tree over the longest free span of each file: a node holds the greater of its
//! two children, so the way down to the first leaf that is long enough takes one step per level.

/// Longest span per place; places are file numbers.
#[derive(Debug, Clone, Default)]
pub(super) struct Lowest {
    /// Node 1 is the root, the children of `i` are `2i` and `2i + 1`, the leaves fill the second
    /// half. Empty before the first `set`.
    nodes: Vec<u32>,
}

impl Lowest {
    fn leaves(&self) -> usize {
        self.nodes.len() / 2
    }

    /// Notes the longest span of `place`, 0 for none.
    pub(super) fn set(&mut self, place: u32, longest: u32) {
        let place = place as usize;
        if place >= self.leaves() {
            self.widen(place + 1);
        }
        let mut at = self.leaves() + place;
        if let Some(leaf) = self.nodes.get_mut(at) {
            *leaf = longest;
        }
        while at > 1 {
            at /= 2;
            let greater = self.node(2 * at).max(self.node(2 * at + 1));
            if let Some(node) = self.nodes.get_mut(at) {
                *node = greater;
            }
        }
    }

    /// The lowest place whose longest span is at least `wanted`, which is above 0.
    pub(super) fn first(&self, wanted: u32) -> Option<u32> {
        if self.node(1) < wanted {
            return None;
        }
        let mut at = 1;
        while at < self.leaves() {
            at = if self.node(2 * at) >= wanted { 2 * at } else { 2 * at + 1 };
        }
        u32::try_from(at - self.leaves()).ok()
    }

    fn node(&self, at: usize) -> u32 {
        self.nodes.get(at).copied().unwrap_or(0)
    }

    fn widen(&mut self, places: usize) {
        let leaves = places.next_power_of_two().max(2);
        let mut nodes = vec![0; 2 * leaves];
        let old = self.nodes.get(self.leaves()..).unwrap_or_default();
        for (target, source) in nodes.iter_mut().skip(leaves).zip(old) {
            *target = *source;
        }
        for at in (1..leaves).rev() {
            let child = |child: usize| nodes.get(child).copied().unwrap_or(0);
            let greater = child(2 * at).max(child(2 * at + 1));
            if let Some(node) = nodes.get_mut(at) {
                *node = greater;
            }
        }
        self.nodes = nodes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_place_that_is_long_enough_is_found() {
        let mut lowest = Lowest::default();
        assert_eq!(lowest.first(1), None);
        let longest = [3, 0, 7, 5, 9, 1, 9];
        for (place, pages) in longest.into_iter().enumerate().rev() {
            lowest.set(place as u32, pages);
        }
        for wanted in 1..=10 {
            let expected = longest.iter().position(|pages| *pages >= wanted);
            assert_eq!(lowest.first(wanted), expected.map(|place| place as u32), "{wanted}");
        }
        lowest.set(2, 0);
        lowest.set(100, 20);
        assert_eq!(lowest.first(7), Some(4));
        assert_eq!(lowest.first(10), Some(100));
    }
}
