//! The simplest freelist: a sorted list of spans that an allocation walks.
//!
//! It judges [`Freelist`](super::freelist::Freelist) in tests, and is what the measurement
//! compares with; nothing else uses it.

/// Spans as (start, length), ascending; no two touch.
#[derive(Debug, Clone, Default)]
pub struct Linear {
    spans: Vec<(u32, u32)>,
    pages: u32,
}

impl Linear {
    /// All spans.
    pub fn spans(&self) -> &[(u32, u32)] {
        &self.spans
    }

    /// Number of free pages.
    pub fn free_pages(&self) -> u32 {
        self.spans.iter().map(|(_, length)| length).sum()
    }

    /// Length of the longest span.
    pub fn longest(&self) -> u32 {
        self.spans.iter().map(|(_, length)| *length).max().unwrap_or(0)
    }

    /// The list of a file of `pages` pages with these free spans.
    pub fn with_spans(pages: u32, spans: Vec<(u32, u32)>) -> Self {
        Self { spans, pages }
    }

    /// Takes the first span that is long enough.
    pub fn allocate(&mut self, pages: u32) -> Option<u32> {
        let at = self.spans.iter().position(|(_, length)| *length >= pages)?;
        let (start, _) = *self.spans.get(at)?;
        self.carve(at, start, pages);
        Some(start)
    }

    /// Takes these pages, which are free.
    pub fn take(&mut self, start: u32, pages: u32) {
        let behind = self.spans.partition_point(|(other, _)| *other <= start);
        self.carve(behind.checked_sub(1).expect("the pages are free"), start, pages);
    }

    /// Takes pages out of the span at `at`.
    fn carve(&mut self, at: usize, start: u32, pages: u32) {
        let span = self.spans.get_mut(at).expect("the pages are free");
        let (from, length) = *span;
        assert!(start + pages <= from + length, "the pages are free");
        let behind = (start + pages, from + length - start - pages);
        match (start - from, behind.1) {
            (0, 0) => drop(self.spans.remove(at)),
            (0, _) => *span = behind,
            (before, 0) => span.1 = before,
            (before, _) => {
                span.1 = before;
                self.spans.insert(at + 1, behind);
            }
        }
    }

    /// Gives pages back and joins them with their neighbours.
    pub fn free(&mut self, start: u32, pages: u32) {
        let at = self.spans.partition_point(|(other, _)| *other < start);
        let end = start + pages;
        let behind = self.spans.get(at).copied().filter(|(other, _)| *other == end);
        let before = at.checked_sub(1).and_then(|before| self.spans.get_mut(before));
        match (before.filter(|(other, length)| other + *length == start), behind) {
            (Some(before), Some((_, more))) => {
                before.1 += pages + more;
                self.spans.remove(at);
            }
            (Some(before), None) => before.1 += pages,
            (None, Some((_, more))) => {
                if let Some(span) = self.spans.get_mut(at) {
                    *span = (start, pages + more);
                }
            }
            (None, None) => self.spans.insert(at, (start, pages)),
        }
    }

    /// Adds free pages at the end.
    pub fn extend(&mut self, pages: u32) {
        self.pages += pages;
        self.free(self.pages - pages, pages);
    }

    /// Takes the free pages at the end away.
    pub fn cut_tail(&mut self) -> u32 {
        match self.spans.pop() {
            Some((start, length)) if start + length == self.pages => {
                self.pages = start;
                length
            }
            last => {
                self.spans.extend(last);
                0
            }
        }
    }
}
