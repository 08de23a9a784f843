//! The free pages of one page file, in spans.
//!
//! ```text
//!   pages    0 1 2 3 4 5 6 7 8 9          . free   # used
//!            . . # . . # # . . .
//!
//!   lengths  {2, 3}          starts  0 -> 2, 3 -> 2, 7 -> 3
//!   by_length                ends    2 -> 2, 5 -> 2, 10 -> 3
//!     2 -> {0, 3}
//!     3 -> {7}
//! ```
//!
//! An allocation takes the shortest span that is long enough, among those of a length the one with
//! the lowest address, and gives the rest back. `lengths` finds the length in three steps however
//! many pages are free. What is freed is joined at once with the free spans that end where it
//! begins and begin where it ends.
//!
//! Invariants:
//!
//! * No page is in two spans, and no two spans touch.
//! * `by_length`, `starts` and `ends` hold the same spans; `lengths` the keys of `by_length`.
//! * `free_pages` is their sum and at most `pages`.
//! * Nothing depends on the order of a hash map: the same calls give the same places.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::bitmap::Bitmap;
use super::sizes::Sizes;

type PageMap<T> = HashMap<u32, T, BuildHasherDefault<PageHasher>>;

/// Spans of free pages of one file.
#[derive(Debug, Clone)]
pub struct Freelist {
    /// Pages that the file may have.
    pages_max: u32,
    /// Pages that the file has.
    pages: u32,
    /// Sum of all spans.
    free_pages: u32,
    /// Lengths of which there is a span.
    lengths: Sizes,
    /// Length to starts.
    by_length: PageMap<BTreeSet<u32>>,
    /// Start to length.
    starts: PageMap<u32>,
    /// End, exclusive, to length.
    ends: PageMap<u32>,
}

impl Freelist {
    /// The list of a file without any pages that may get `pages_max`.
    pub fn new(pages_max: u32) -> Self {
        Self {
            pages_max,
            pages: 0,
            free_pages: 0,
            lengths: Sizes::new(pages_max),
            by_length: PageMap::default(),
            starts: PageMap::default(),
            ends: PageMap::default(),
        }
    }

    /// The list of a file of `pages` pages in which those of `used` are not free.
    pub fn rebuild(pages_max: u32, pages: u32, used: &Bitmap) -> Self {
        let mut list = Self::new(pages_max);
        list.pages = pages;
        assert!(pages <= pages_max, "a file has at most as many pages as it may have");
        for gap in used.gaps(pages) {
            list.insert(gap.start, gap.end - gap.start);
        }
        list
    }

    /// Pages of the file, free or not.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Number of free pages.
    pub fn free_pages(&self) -> u32 {
        self.free_pages
    }

    /// Length of the longest free span in pages.
    pub fn longest(&self) -> u32 {
        self.lengths.greatest().unwrap_or(0)
    }

    /// Length of the free span at the end of the file in pages.
    pub fn free_tail(&self) -> u32 {
        self.ends.get(&self.pages).copied().unwrap_or(0)
    }

    /// Takes `pages` pages in one span and returns the first; `None` when no span is long enough.
    /// Panics for 0.
    pub fn allocate(&mut self, pages: u32) -> Option<u32> {
        assert!(pages > 0, "an allocation has at least one page");
        let length = self.lengths.at_least(pages)?;
        let start = *self.by_length.get(&length)?.first()?;
        self.remove(start, length);
        if length > pages {
            self.insert(start + pages, length - pages);
        }
        Some(start)
    }

    /// Gives pages back that [`Freelist::allocate`] returned, or a part of them. Panics for pages
    /// that are free, as far as it shows at the edges, and for pages outside of the file.
    pub fn free(&mut self, start: u32, pages: u32) {
        assert!(pages > 0, "at least one page is freed");
        let mut end = start.checked_add(pages).expect("the end of a span is a page number");
        assert!(end <= self.pages, "freed pages lie in the file");
        assert!(pages <= self.pages - self.free_pages, "no more pages are freed than are used");
        assert!(!self.starts.contains_key(&start), "the first freed page was not free");
        assert!(!self.ends.contains_key(&end), "the last freed page was not free");
        debug_assert!(self.overlapped(start, end).is_none(), "the freed pages were not free");
        let mut start = start;
        if let Some(before) = self.ends.get(&start).copied() {
            self.remove(start - before, before);
            start -= before;
        }
        if let Some(behind) = self.starts.get(&end).copied() {
            self.remove(end, behind);
            end += behind;
        }
        self.insert(start, end - start);
    }

    /// Adds `pages` free pages at the end of the file. Panics above the most it may have.
    pub fn extend(&mut self, pages: u32) {
        assert!(pages <= self.pages_max - self.pages, "a file grows to its greatest length");
        let start = self.pages;
        self.pages += pages;
        self.free(start, pages);
    }

    /// Forgets the free pages at the end of the file and returns their number.
    pub fn cut_tail(&mut self) -> u32 {
        let tail = self.free_tail();
        if tail > 0 {
            self.remove(self.pages - tail, tail);
            self.pages -= tail;
        }
        tail
    }

    /// All spans as (start, length), ascending.
    pub fn spans(&self) -> Vec<(u32, u32)> {
        let mut spans: Vec<_> = self.starts.iter().map(|(start, len)| (*start, *len)).collect();
        spans.sort_unstable();
        spans
    }

    /// Checks all invariants. Walks everything: for tests.
    pub fn audit(&self) {
        let spans = self.spans();
        let mut end_before = None;
        for (start, length) in &spans {
            assert!(*length > 0, "a span is not empty");
            assert!(end_before.is_none_or(|end| end < *start), "spans do not touch");
            assert_eq!(self.ends.get(&(start + length)), Some(length), "an end for each start");
            let starts = self.by_length.get(length).expect("a set for each length");
            assert!(starts.contains(start), "a start stands under its length");
            assert_eq!(self.lengths.at_least(*length), Some(*length), "each length is marked");
            end_before = Some(start + length);
        }
        assert!(end_before.is_none_or(|end| end <= self.pages), "spans lie in the file");
        assert_eq!(self.ends.len(), spans.len(), "no end without a start");
        let listed: usize = self.by_length.values().map(BTreeSet::len).sum();
        assert_eq!(listed, spans.len(), "no start under two lengths");
        let sum: u32 = spans.iter().map(|(_, length)| length).sum();
        assert_eq!(sum, self.free_pages, "the free pages are counted");
        let longest = spans.iter().map(|(_, length)| *length).max().unwrap_or(0);
        assert_eq!(self.longest(), longest, "no length is marked without a span");
    }

    /// The first span that overlaps with `start..end`.
    fn overlapped(&self, start: u32, end: u32) -> Option<(u32, u32)> {
        self.spans().into_iter().find(|(other, length)| *other < end && start < other + length)
    }

    fn insert(&mut self, start: u32, length: u32) {
        let set = self.by_length.entry(length).or_default();
        if set.is_empty() {
            self.lengths.insert(length);
        }
        set.insert(start);
        self.starts.insert(start, length);
        self.ends.insert(start + length, length);
        self.free_pages += length;
    }

    fn remove(&mut self, start: u32, length: u32) {
        let known = self.starts.remove(&start);
        assert_eq!(known, Some(length), "a span that is taken was free");
        let known = self.ends.remove(&(start + length));
        assert_eq!(known, Some(length), "a span that is taken has an end");
        if let Some(set) = self.by_length.get_mut(&length) {
            set.remove(&start);
            if set.is_empty() {
                self.by_length.remove(&length);
                self.lengths.remove(length);
            }
        }
        self.free_pages -= length;
    }
}

// === impl PageHasher ===

/// Hashes a page number by one multiplication: nobody outside chooses page numbers, and a fixed
/// seed keeps runs alike.
#[derive(Debug, Clone, Copy, Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        // The table takes its place from the low bits, which a product hardly mixes.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::linear::Linear;
    use super::*;

    const PAGES: u32 = 96;

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(u32),
        /// Frees the n-th of what is allocated, or only its first half.
        Free {
            which: usize,
            half: bool,
        },
        Cut,
        Extend(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let size = prop_oneof![4 => 1u32..5, 2 => 5u32..20, 1 => 20u32..90];
        let step = prop_oneof![
            5 => size.prop_map(Step::Allocate),
            5 => (any::<usize>(), any::<bool>()).prop_map(|(which, half)| Step::Free { which, half }),
            1 => Just(Step::Cut),
            1 => (1u32..30).prop_map(Step::Extend),
        ];
        proptest::collection::vec(step, 1..120)
    }

    /// The same calls to one list, with all that it gave out.
    struct Driven<L> {
        list: L,
        out: Vec<(u32, u32)>,
    }

    impl<L> Driven<L> {
        fn give(&mut self, start: u32, pages: u32) {
            let clash = self.out.iter().find(|(s, p)| *s < start + pages && start < s + p);
            assert_eq!(clash, None, "{pages} pages at {start} are allocated twice");
            self.out.push((start, pages));
        }

        fn take(&mut self, which: usize, half: bool) -> Option<(u32, u32)> {
            let at = which.checked_rem(self.out.len())?;
            let (start, pages) = self.out.swap_remove(at);
            if half && pages > 1 {
                self.out.push((start + pages / 2, pages - pages / 2));
                return Some((start, pages / 2));
            }
            Some((start, pages))
        }

        fn used(&self) -> u32 {
            self.out.iter().map(|(_, pages)| pages).sum()
        }
    }

    proptest! {
        #[test]
        fn it_does_what_the_linear_list_does(steps in steps()) {
            let mut list = Driven { list: Freelist::new(PAGES), out: Vec::new() };
            let mut judge = Driven { list: Linear::default(), out: Vec::new() };
            list.list.extend(PAGES);
            judge.list.extend(PAGES);
            for step in steps {
                match step {
                    Step::Allocate(pages) => {
                        let longest = judge.list.longest();
                        let found = (list.list.allocate(pages), judge.list.allocate(pages));
                        if let (Some(start), Some(other)) = found {
                            list.give(start, pages);
                            judge.give(other, pages);
                        } else {
                            // The lists choose different places, so each may fail alone; never
                            // while it has a span that is long enough.
                            prop_assert!(found.0.is_some() || list.list.longest() < pages);
                            prop_assert!(found.1.is_some() || longest < pages);
                            found.0.into_iter().for_each(|start| list.list.free(start, pages));
                            found.1.into_iter().for_each(|start| judge.list.free(start, pages));
                        }
                    }
                    Step::Free { which, half } => {
                        list.take(which, half).into_iter().for_each(|(s, p)| list.list.free(s, p));
                        judge.take(which, half).into_iter().for_each(|(s, p)| judge.list.free(s, p));
                    }
                    // Where the tail is depends on the places: judged in the next test.
                    Step::Cut | Step::Extend(_) => {}
                }
                list.list.audit();
                prop_assert_eq!(list.list.free_pages(), judge.list.free_pages());
                prop_assert_eq!(list.list.free_pages() + list.used(), PAGES);
            }
        }

        #[test]
        fn its_spans_are_those_of_a_linear_list_with_the_same_pages(steps in steps()) {
            let mut driven = Driven { list: Freelist::new(PAGES), out: Vec::new() };
            let mut judge = Linear::default();
            for step in steps {
                match step {
                    Step::Allocate(pages) => {
                        let longest = judge.longest();
                        let found = driven.list.allocate(pages);
                        prop_assert_eq!(found.is_some(), longest >= pages);
                        if let Some(start) = found {
                            driven.give(start, pages);
                            judge.take(start, pages);
                        }
                    }
                    Step::Free { which, half } => {
                        if let Some((start, pages)) = driven.take(which, half) {
                            driven.list.free(start, pages);
                            judge.free(start, pages);
                        }
                    }
                    Step::Cut => prop_assert_eq!(driven.list.cut_tail(), judge.cut_tail()),
                    Step::Extend(pages) => {
                        let pages = pages.min(PAGES - driven.list.pages());
                        if pages > 0 {
                            driven.list.extend(pages);
                            judge.extend(pages);
                        }
                    }
                }
                driven.list.audit();
                prop_assert_eq!(&driven.list.spans()[..], judge.spans());
                prop_assert_eq!(driven.list.longest(), judge.longest());
                let mut used = Bitmap::new(PAGES);
                driven.out.iter().for_each(|(start, pages)| used.set(*start, *pages));
                let rebuilt = Freelist::rebuild(PAGES, driven.list.pages(), &used);
                rebuilt.audit();
                prop_assert_eq!(rebuilt.spans(), driven.list.spans());
            }
        }
    }

    #[test]
    fn the_shortest_span_that_fits_is_taken_and_of_those_the_lowest() {
        let mut list = Freelist::new(100);
        list.extend(100);
        assert_eq!(list.allocate(100), Some(0));
        for (start, pages) in [(40, 3), (60, 3), (10, 5), (80, 2)] {
            list.free(start, pages);
        }
        assert_eq!(list.allocate(3), Some(40));
        assert_eq!(list.allocate(3), Some(60));
        assert_eq!(list.allocate(3), Some(10));
        assert_eq!(list.allocate(3), None);
        assert_eq!(list.spans(), [(13, 2), (80, 2)]);
    }

    #[test]
    fn freeing_twice_is_noticed() {
        for (start, pages) in [(4, 2), (2, 4), (4, 6), (0, 99)] {
            let caught = std::panic::catch_unwind(|| {
                let mut list = Freelist::new(16);
                list.extend(16);
                assert_eq!(list.allocate(16), Some(0));
                list.free(4, 2);
                list.free(start, pages);
            });
            assert!(caught.is_err(), "{pages} pages at {start}");
        }
    }
}
