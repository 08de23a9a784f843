//! A set of sizes that finds its least member at or above a number in a few steps.
//!
//! A bitmap with a bit per size, and above it bitmaps whose bits say which words of the one below
//! are not zero:
//!
//! ```text
//!   level 2                        1
//!   level 1            0 1 . . . . . . . . . 1          one bit per word below
//!   level 0   0000  0010 ...                0100        one bit per size
//! ```
//!
//! A search goes up until it meets a bit at or behind its place, and down along the first bits:
//! three levels hold all sizes of a page file.

/// Sizes from 0 to a greatest one that is fixed at creation.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Level 0 first; the last level has one word.
    levels: Vec<Vec<u64>>,
}

impl Sizes {
    /// The empty set, for sizes up to `size_max`.
    pub(super) fn new(size_max: u32) -> Self {
        let mut levels = Vec::new();
        let mut bits = size_max as usize + 1;
        loop {
            let words = bits.div_ceil(64);
            levels.push(vec![0; words]);
            if words == 1 {
                return Self { levels };
            }
            bits = words;
        }
    }

    /// Adds a size. Panics above the greatest one.
    pub(super) fn insert(&mut self, size: u32) {
        let mut at = size as usize;
        for level in &mut self.levels {
            let word = level.get_mut(at / 64).expect("a size is at most the greatest one");
            *word |= 1 << (at % 64);
            at /= 64;
        }
    }

    /// Takes a size out.
    pub(super) fn remove(&mut self, size: u32) {
        let mut at = size as usize;
        for level in &mut self.levels {
            let word = level.get_mut(at / 64).expect("a size is at most the greatest one");
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    /// The least member that is at least `size`.
    pub(super) fn at_least(&self, size: u32) -> Option<u32> {
        let mut at = size as usize;
        for (height, level) in self.levels.iter().enumerate() {
            let word = level.get(at / 64)? & (!0 << (at % 64));
            if word != 0 {
                let found = at / 64 * 64 + word.trailing_zeros() as usize;
                return self.descend(height, found, |word| word.trailing_zeros());
            }
            at = at / 64 + 1;
        }
        None
    }

    /// The greatest member.
    pub(super) fn greatest(&self) -> Option<u32> {
        let top = *self.levels.last()?.first()?;
        let found = 63usize.checked_sub(top.leading_zeros() as usize)?;
        self.descend(self.levels.len() - 1, found, |word| 63 - word.leading_zeros())
    }

    /// Goes down from bit `at` of the level at `height`; `pick` chooses among the bits of a word,
    /// which is never zero.
    fn descend(&self, height: usize, mut at: usize, pick: fn(u64) -> u32) -> Option<u32> {
        for level in self.levels.get(..height)?.iter().rev() {
            at = at * 64 + pick(*level.get(at)?) as usize;
        }
        u32::try_from(at).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_answers_as_an_ordered_set_does(
            max in prop_oneof![Just(3u32), Just(63), Just(64), Just(16_384), Just(300_000)],
            steps in proptest::collection::vec((any::<u32>(), any::<bool>()), 1..60),
        ) {
            let (mut sizes, mut model) = (Sizes::new(max), BTreeSet::new());
            for (raw, add) in steps {
                let size = raw % (max + 1);
                if add {
                    sizes.insert(size);
                    model.insert(size);
                } else {
                    let known = model.range(size..).next().copied().unwrap_or(size);
                    sizes.remove(known);
                    model.remove(&known);
                }
                for asked in [0, size, size.saturating_sub(1), (size + 1).min(max), max] {
                    prop_assert_eq!(sizes.at_least(asked), model.range(asked..).next().copied());
                }
                prop_assert_eq!(sizes.greatest(), model.last().copied());
            }
        }
    }
}
