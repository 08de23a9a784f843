//! One bit per page of a file: what a checkpoint knows of it.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

/// A set of pages of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    /// The empty set for a file of `pages` pages, rounded up to 64.
    pub fn new(pages: u32) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize] }
    }

    /// Pages of the file, rounded up to 64.
    pub fn pages(&self) -> u32 {
        self.words.len() as u32 * 64
    }

    /// Adds `pages` pages from `page`. Panics outside of the file.
    pub fn set(&mut self, page: u32, pages: u32) {
        for (at, mask) in masks(page, pages) {
            *self.words.get_mut(at).expect("a page lies in its file") |= mask;
        }
    }

    /// Takes `pages` pages from `page` out. Panics outside of the file.
    pub fn clear(&mut self, page: u32, pages: u32) {
        for (at, mask) in masks(page, pages) {
            *self.words.get_mut(at).expect("a page lies in its file") &= !mask;
        }
    }

    /// Whether all of these pages are in the set. Pages outside of the file are not.
    pub fn all(&self, page: u32, pages: u32) -> bool {
        masks(page, pages).all(|(at, mask)| self.word(at) & mask == mask)
    }

    /// Whether any of these pages is in the set.
    pub fn any(&self, page: u32, pages: u32) -> bool {
        masks(page, pages).any(|(at, mask)| self.word(at) & mask != 0)
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// One above the highest page in the set, 0 when it is empty.
    pub fn end(&self) -> u32 {
        let Some(at) = self.words.iter().rposition(|word| *word != 0) else { return 0 };
        at as u32 * 64 + 64 - self.word(at).leading_zeros()
    }

    /// The first page in the set at or above `page`.
    pub fn first_from(&self, page: u32) -> Option<u32> {
        let found = self.next(page, self.pages(), true);
        (found < self.pages()).then_some(found)
    }

    /// The spans below page `pages` that are not in the set, ascending, each as long as possible.
    pub fn gaps(&self, pages: u32) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, pages, false);
            if start >= pages {
                return None;
            }
            at = self.next(start, pages, true);
            Some(start..at)
        })
    }

    /// The bytes in a checkpoint: 2 KiB for a file of 64 MiB.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.words.len() * 8);
        for word in &self.words {
            out.put_u64_le(*word);
        }
        out.freeze()
    }

    /// Reads what [`Bitmap::encode`] wrote; `None` for any other length.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        rest.is_empty().then_some(Self { words })
    }

    /// The first page from `at` that is (`present`) or is not in the set, or `pages`.
    fn next(&self, mut at: u32, pages: u32, present: bool) -> u32 {
        while at < pages {
            let word = self.word((at / 64) as usize);
            let wanted = if present { word } else { !word };
            let behind = wanted & (!0 << (at % 64));
            if behind != 0 {
                return (at / 64 * 64 + behind.trailing_zeros()).min(pages);
            }
            at = (at / 64 + 1) * 64;
        }
        pages
    }

    fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }
}

/// Word number and bits of each word that a span touches.
fn masks(page: u32, pages: u32) -> impl Iterator<Item = (usize, u64)> {
    let end = page.saturating_add(pages);
    (page / 64..end.div_ceil(64)).filter_map(move |at| {
        let from = page.max(at * 64) - at * 64;
        let to = end.min(at * 64 + 64) - at * 64;
        (from < to).then(|| (at as usize, (!0 << from) & (!0 >> (64 - to))))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_answers_as_a_row_of_flags_does(
            steps in proptest::collection::vec((0u32..200, 0u32..140, any::<bool>()), 1..20),
        ) {
            let (mut bitmap, mut flags) = (Bitmap::new(320), [false; 320]);
            for (page, pages, add) in steps {
                let range = page as usize..(page + pages).min(320) as usize;
                let pages = range.len() as u32;
                if add { bitmap.set(page, pages) } else { bitmap.clear(page, pages) }
                flags[range].fill(add);
                let part = &flags[50..180];
                prop_assert_eq!(bitmap.all(50, 130), part.iter().all(|flag| *flag));
                prop_assert_eq!(bitmap.any(50, 130), part.iter().any(|flag| *flag));
                prop_assert_eq!(bitmap.count(), flags.iter().filter(|flag| **flag).count() as u32);
                let end = flags.iter().rposition(|flag| *flag).map_or(0, |at| at as u32 + 1);
                prop_assert_eq!(bitmap.end(), end);
                prop_assert_eq!(bitmap.is_empty(), end == 0);
                let first = flags[page as usize..].iter().position(|flag| *flag);
                prop_assert_eq!(bitmap.first_from(page), first.map(|at| page + at as u32));
                let mut gaps = [true; 300];
                for gap in bitmap.gaps(300) {
                    gaps[gap.start as usize..gap.end as usize].fill(false);
                }
                prop_assert_eq!(&gaps[..], &flags[..300]);
                prop_assert_eq!(Bitmap::decode(&bitmap.encode()), Some(bitmap.clone()));
            }
        }
    }

    #[test]
    fn a_file_of_64_mib_takes_2_kib() {
        let mut bitmap = Bitmap::new(super::super::FILE_PAGES);
        bitmap.set(9, 2);
        let bytes = bitmap.encode();
        assert_eq!(bytes.len(), 2048);
        assert_eq!(bytes[..3], [0, 6, 0]);
        assert_eq!(Bitmap::decode(&bytes[1..]), None);
    }
}
