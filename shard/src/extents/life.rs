//! Who owns each page: the state behind [`Extents`](super::Extents), without any I/O.
//!
//! Every page of every file is free or belongs to one extent. An extent has up to two owners at
//! the same time, the log record that brought it and the row that it went into, and it is free
//! only when both are gone:
//!
//! ```text
//!                     no row          in a row         row gone, checkpoint n not over
//!   in a record       held            held + in use    held + pending
//!   in no record      free            in use           pending
//! ```
//!
//! Pages in rows are a bitmap, because that is all that a checkpoint keeps; where an extent in a
//! row begins is known only to the row. Held and pending extents are lists, which are short.
//!
//! Invariants:
//!
//! * The pages that are free, held, in rows and pending are all pages of the file, and only a held
//!   extent can also be in a row or pending.
//! * `changed` names every file whose rows differ from the newest frozen checkpoint.
//! * A pending extent waits for a checkpoint that is not complete, or for a view that is older.
//! * A file that is `busy` is being made, grown, cut or removed outside of the lock by one thread.

use std::collections::{BTreeMap, BTreeSet};

use super::bitmap::Bitmap;
use super::freelist::Freelist;
use super::lowest::Lowest;
use super::pointer::Span;
use super::{FILES_MAX, Usage};

/// All files of a node.
#[derive(Debug, Clone)]
pub(super) struct Life {
    /// Pages of a file that is not cut.
    pages_max: u32,
    files: BTreeMap<u32, FileLife>,
    lowest: Lowest,
    /// Newest checkpoint that was frozen.
    frozen: u64,
    /// Newest checkpoint that is complete.
    complete: u64,
    /// What becomes free when a checkpoint is complete and older views are closed.
    pending: BTreeMap<u64, Vec<Span>>,
    /// Files whose rows changed since the newest freeze.
    changed: BTreeSet<u32>,
    /// Pages whose row went since the newest freeze.
    released: u64,
}

/// One file.
#[derive(Debug, Clone)]
struct FileLife {
    free: Freelist,
    /// Pages in rows.
    rows: Bitmap,
    /// Start to length of the extents that a log record holds.
    held: BTreeMap<u32, u32>,
    /// Start to length of the extents whose row is gone.
    pending: BTreeMap<u32, u32>,
    busy: bool,
}

/// Two owners of one page, found at open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overlap(pub(super) Span);

/// A file to be made or to be made longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growth {
    pub(super) file: u32,
    /// Pages that it has, `None` when it does not exist.
    pub(super) from: Option<u32>,
    pub(super) to: u32,
}

/// A file to be made shorter, or removed when nothing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) file: u32,
    /// Pages that stay; 0 means that the file goes.
    pub(super) pages: u32,
    /// Pages that were cut off.
    pub(super) freed: u32,
}

impl Life {
    /// The state after a start: `files` with their pages, `rows` as the engine's checkpoint has
    /// them, `held` by log records above it. All of `rows` and `held` lies inside of `files`.
    pub(super) fn recover(
        pages_max: u32,
        checkpoint: u64,
        files: &BTreeMap<u32, u32>,
        mut rows: BTreeMap<u32, Bitmap>,
        held: &[Span],
    ) -> Result<Self, Overlap> {
        let mut life = Self {
            pages_max,
            files: BTreeMap::new(),
            lowest: Lowest::default(),
            frozen: checkpoint,
            complete: checkpoint,
            pending: BTreeMap::new(),
            changed: BTreeSet::new(),
            released: 0,
        };
        for (number, pages) in files {
            let rows = rows.remove(number).unwrap_or_else(|| Bitmap::new(pages_max));
            assert!(rows.end() <= *pages, "a file has all pages that rows use");
            let mut used = rows.clone();
            let mut holds = BTreeMap::new();
            for span in held.iter().filter(|span| span.file == *number) {
                if used.any(span.page, span.pages) {
                    return Err(Overlap(*span));
                }
                assert!(span.page + span.pages <= *pages, "a file has all pages that are held");
                used.set(span.page, span.pages);
                holds.insert(span.page, span.pages);
            }
            let free = Freelist::rebuild(pages_max, *pages, &used);
            life.lowest.set(*number, free.longest());
            let (held, pending) = (holds, BTreeMap::new());
            life.files.insert(*number, FileLife { free, rows, held, pending, busy: false });
        }
        assert!(rows.values().all(Bitmap::is_empty), "every file that rows use exists");
        Ok(life)
    }

    /// Takes pages in one span and holds them; `None` when no file before `end` has such a span.
    pub(super) fn allocate(&mut self, pages: u32, end: u32) -> Option<Span> {
        let number = self.lowest.first(pages).filter(|number| *number < end)?;
        let file = self.file(number);
        let page = file.free.allocate(pages).expect("the file has a span of this length");
        assert!(!file.rows.any(page, pages), "an allocated page is in no row");
        let before = file.held.insert(page, pages);
        assert_eq!(before, None, "an allocated extent was not held");
        self.measure(number);
        Some(Span { file: number, page, pages })
    }

    /// A row has the extent now, beside the record that holds it.
    pub(super) fn keep(&mut self, span: Span) {
        let file = self.file(span.file);
        assert_eq!(file.held.get(&span.page), Some(&span.pages), "a kept extent is held");
        assert!(!file.rows.any(span.page, span.pages), "an extent goes into one row");
        assert!(!file.pending.contains_key(&span.page), "an extent goes into a row once");
        file.rows.set(span.page, span.pages);
        self.changed.insert(span.file);
    }

    /// No record holds the extent any more.
    pub(super) fn let_go(&mut self, span: Span) {
        let file = self.file(span.file);
        let held = file.held.remove(&span.page);
        assert_eq!(held, Some(span.pages), "an extent is let go once, by who held it");
        if !file.rows.any(span.page, span.pages) && !file.pending.contains_key(&span.page) {
            self.free(span);
        }
    }

    /// No row has the extent any more, from the next checkpoint on that is frozen.
    pub(super) fn release(&mut self, span: Span) {
        let n = self.frozen + 1;
        let file = self.file(span.file);
        assert!(file.rows.all(span.page, span.pages), "a released extent is in a row");
        file.rows.clear(span.page, span.pages);
        let before = file.pending.insert(span.page, span.pages);
        assert_eq!(before, None, "an extent is released once");
        self.changed.insert(span.file);
        self.pending.entry(n).or_default().push(span);
        self.released += u64::from(span.pages);
    }

    /// Freezes checkpoint `n` and returns the rows' pages of all files that changed.
    pub(super) fn freeze(&mut self, n: u64) -> Vec<(u32, Bitmap)> {
        assert_eq!(n, self.frozen + 1, "checkpoints are frozen one after the other");
        assert_eq!(self.complete, self.frozen, "the last checkpoint is complete");
        self.frozen = n;
        self.released = 0;
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|number| (number, self.file(number).rows.clone())).collect()
    }

    /// Checkpoint `n` is complete and no view is older than `oldest_view`.
    pub(super) fn checkpointed(&mut self, n: u64, oldest_view: u64) {
        assert!(n <= self.frozen, "only a frozen checkpoint can be complete");
        assert!(n >= self.complete, "checkpoints are completed in their order");
        self.complete = n;
        let waiting = self.pending.split_off(&(n.min(oldest_view).saturating_add(1)));
        for span in std::mem::replace(&mut self.pending, waiting).into_values().flatten() {
            let file = self.file(span.file);
            let pending = file.pending.remove(&span.page);
            assert_eq!(pending, Some(span.pages), "a pending extent is listed once");
            if !file.held.contains_key(&span.page) {
                self.free(span);
            }
        }
    }

    /// Pages whose row went since the newest freeze.
    pub(super) fn released(&self) -> u64 {
        self.released
    }

    /// Newest complete checkpoint.
    pub(super) fn complete(&self) -> u64 {
        self.complete
    }

    /// Chooses a file to grow by `step` pages, or more if need be, so that it gets a free span of
    /// `pages` pages, and makes it busy. `None` when there are too many files.
    pub(super) fn plan_growth(&mut self, pages: u32, step: u32) -> Option<Growth> {
        let to = self.pages_max;
        assert!(pages <= to, "an extent fits into a file");
        let cut = self.files.iter_mut().find(|(_, file)| {
            let has = file.free.pages();
            !file.busy && has < to && to - has + file.free.free_tail() >= pages
        });
        if let Some((number, file)) = cut {
            file.busy = true;
            let from = file.free.pages();
            let missing = pages.saturating_sub(file.free.free_tail());
            let to = (from + missing.max(step)).min(to);
            return Some(Growth { file: *number, from: Some(from), to });
        }
        let number = (0..FILES_MAX).find(|number| !self.files.contains_key(number))?;
        let file = FileLife {
            free: Freelist::new(to),
            rows: Bitmap::new(to),
            held: BTreeMap::new(),
            pending: BTreeMap::new(),
            busy: true,
        };
        self.files.insert(number, file);
        Some(Growth { file: number, from: None, to: pages.max(step).min(to) })
    }

    /// The file has grown as planned.
    pub(super) fn grown(&mut self, growth: Growth) {
        let file = self.file(growth.file);
        assert!(file.busy, "only a busy file grows");
        file.busy = false;
        file.free.extend(growth.to - growth.from.unwrap_or(0));
        self.measure(growth.file);
    }

    /// Chooses a file whose free tail is to be cut off and makes it busy; its free pages at the
    /// end are nobody's from now on. The highest files come first, tails below `tail_min` stay,
    /// and so do `keep` free pages of all.
    pub(super) fn plan_cut(&mut self, keep: u64, tail_min: u32) -> Option<Cut> {
        let free: u64 = self.files.values().map(|file| u64::from(file.free.free_pages())).sum();
        let (number, file) = self.files.iter_mut().rev().find(|(_, file)| {
            let tail = file.free.free_tail();
            let worth = tail >= tail_min || tail == file.free.pages();
            !file.busy && worth && free >= keep + u64::from(tail)
        })?;
        file.busy = true;
        let freed = file.free.cut_tail();
        let cut = Cut { file: *number, pages: file.free.pages(), freed };
        self.measure(cut.file);
        Some(cut)
    }

    /// The first page of the extent that should move next: of the highest file with rows, when
    /// more than `ahead` pages and a quarter of what is used are free beside that. Files above
    /// that of `skip` are passed over, and in that file what lies before its page.
    pub(super) fn plan_move(&self, ahead: u64, skip: (u32, u32)) -> Option<(u32, u32)> {
        let (pages, free) = self.room();
        let used = pages - free;
        if free <= 2 * ahead + used / 4 {
            return None;
        }
        for (number, file) in self.files.range(..=skip.0).rev() {
            let mut page = if skip.0 == *number { skip.1 } else { 0 };
            while let Some(found) = file.rows.first_from(page) {
                match file.held.get(&found) {
                    Some(pages) => page = found + pages,
                    None => return Some((*number, found)),
                }
            }
        }
        None
    }

    /// The file is cut as planned. One without pages is gone.
    pub(super) fn shortened(&mut self, cut: Cut) {
        assert!(self.file(cut.file).busy, "only a busy file is cut");
        if cut.pages == 0 {
            self.vacate(cut.file);
        } else {
            self.file(cut.file).busy = false;
        }
    }

    /// Forgets a file of which nothing is left or came to be; its number may be used again.
    pub(super) fn vacate(&mut self, number: u32) {
        assert!(
            !self.changed.contains(&number),
            "the newest checkpoint knows that a file is empty"
        );
        let file = self.files.remove(&number).expect("the file is known");
        assert_eq!(file.free.pages(), 0, "a file goes without pages");
        assert!(file.held.is_empty() && file.pending.is_empty(), "a file goes without extents");
        assert!(file.rows.is_empty(), "a file goes without rows");
    }

    /// The planned change failed and the file is as long as before.
    pub(super) fn unchanged(&mut self, number: u32) {
        self.file(number).busy = false;
    }

    /// Pages of all files, and how many of them are free.
    pub(super) fn room(&self) -> (u64, u64) {
        let of =
            |file: &FileLife| (u64::from(file.free.pages()), u64::from(file.free.free_pages()));
        let add = |a: (u64, u64), b: (u64, u64)| (a.0 + b.0, a.1 + b.1);
        self.files.values().map(of).fold((0, 0), add)
    }

    /// Pages by what they are.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for file in self.files.values() {
            usage.files += 1;
            usage.pages += u64::from(file.free.pages());
            usage.free_pages += u64::from(file.free.free_pages());
            usage.row_pages += u64::from(file.rows.count());
            usage.held_pages += sum(&file.held);
            usage.pending_pages += sum(&file.pending);
        }
        usage
    }

    /// Checks that every page has one owner. Walks everything: for tests.
    pub(super) fn audit(&self) {
        let mut pending = BTreeMap::new();
        for span in self.pending.values().flatten() {
            assert!(pending.insert((span.file, span.page), span.pages).is_none(), "pending once");
        }
        for (number, file) in &self.files {
            file.free.audit();
            assert!(file.busy || self.lowest_agrees(*number), "the longest span is known");
            let mut owned = file.rows.clone();
            for (page, pages) in &file.pending {
                assert!(!owned.any(*page, *pages), "a pending extent is in no row");
                assert_eq!(
                    pending.remove(&(*number, *page)),
                    Some(*pages),
                    "it waits for a number"
                );
                owned.set(*page, *pages);
            }
            let before = owned.clone();
            for (page, pages) in &file.held {
                let whole = before.all(*page, *pages);
                assert!(whole || !owned.any(*page, *pages), "a held extent is in one row or none");
                owned.set(*page, *pages);
            }
            for (page, pages) in file.free.spans() {
                assert!(!owned.any(page, pages), "a free page has no owner");
                owned.set(page, pages);
            }
            assert_eq!(owned.count(), file.free.pages(), "no page is lost");
            assert!(owned.end() <= file.free.pages(), "no page lies behind the end");
        }
        assert!(pending.is_empty(), "what waits is known to its file");
    }

    fn lowest_agrees(&self, number: u32) -> bool {
        let mut lowest = self.lowest.clone();
        let longest = self.files.get(&number).map_or(0, |file| file.free.longest());
        (0..number).for_each(|lower| lowest.set(lower, 0));
        (longest == 0 || lowest.first(longest) == Some(number))
            && lowest.first(longest + 1) != Some(number)
    }

    fn file(&mut self, number: u32) -> &mut FileLife {
        self.files.get_mut(&number).expect("an extent lies in a known file")
    }

    fn free(&mut self, span: Span) {
        self.file(span.file).free.free(span.page, span.pages);
        self.measure(span.file);
    }

    /// Notes the longest span of a file.
    fn measure(&mut self, number: u32) {
        let longest = self.file(number).free.longest();
        self.lowest.set(number, longest);
    }
}

fn sum(extents: &BTreeMap<u32, u32>) -> u64 {
    extents.values().map(|pages| u64::from(*pages)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(files: u32) -> Life {
        let files = (0..files).map(|number| (number, 64)).collect();
        Life::recover(64, 0, &files, BTreeMap::new(), &[]).unwrap()
    }

    fn free_pages(life: &Life) -> u64 {
        life.audit();
        life.usage().free_pages
    }

    #[test]
    fn pages_are_free_when_checkpoint_view_and_record_are_gone_in_any_order() {
        // Which of the three comes first, second and last.
        for order in [[0, 1, 2], [0, 2, 1], [2, 0, 1]] {
            let mut life = life(1);
            let span = life.allocate(10, FILES_MAX).unwrap();
            life.keep(span);
            life.release(span);
            life.freeze(1);
            assert_eq!(free_pages(&life), 54);
            for (at, event) in order.into_iter().enumerate() {
                match event {
                    0 => life.checkpointed(1, 0),
                    1 => life.checkpointed(1, 1),
                    _ => life.let_go(span),
                }
                assert_eq!(free_pages(&life), if at == 2 { 64 } else { 54 }, "{order:?} {at}");
            }
        }
    }

    #[test]
    fn what_no_command_used_is_free_when_its_record_goes() {
        let mut life = life(1);
        let span = life.allocate(10, FILES_MAX).unwrap();
        life.let_go(span);
        assert_eq!(free_pages(&life), 64);
        assert_eq!(life.freeze(1), []);
    }

    #[test]
    fn a_checkpoint_has_the_bitmaps_of_the_files_that_changed() {
        let mut life = life(3);
        let spans: Vec<_> = (0..3).map(|_| life.allocate(40, FILES_MAX).unwrap()).collect();
        assert_eq!(spans.iter().map(|span| span.file).collect::<Vec<_>>(), [0, 1, 2]);
        life.keep(spans[0]);
        life.keep(spans[2]);
        let mut used = Bitmap::new(64);
        used.set(0, 40);
        assert_eq!(life.freeze(1), [(0, used.clone()), (2, used)]);
        life.checkpointed(1, 1);
        life.release(spans[2]);
        assert_eq!(life.freeze(2), [(2, Bitmap::new(64))]);
        life.checkpointed(2, 2);
        assert_eq!(life.freeze(3), []);
        life.audit();
    }

    #[test]
    fn two_owners_of_a_page_are_refused_at_open() {
        let files = BTreeMap::from([(0, 64)]);
        let mut rows = Bitmap::new(64);
        rows.set(10, 5);
        let held = Span { file: 0, page: 14, pages: 2 };
        let rows = BTreeMap::from([(0, rows)]);
        assert_eq!(Life::recover(64, 1, &files, rows, &[held]).err(), Some(Overlap(held)));
        let beside = Span { file: 0, page: 15, pages: 2 };
        let twice = Life::recover(64, 1, &files, BTreeMap::new(), &[held, beside]);
        assert_eq!(twice.err(), Some(Overlap(beside)));
    }

    #[test]
    fn wrong_steps_are_noticed() {
        let wrong: [fn(&mut Life, Span); 6] = [
            |life, span| life.release(span),
            |life, span| (0..2).for_each(|_| life.keep(span)),
            |life, span| (0..2).for_each(|_| life.let_go(span)),
            |life, span| life.let_go(Span { pages: 9, ..span }),
            |life, span| {
                life.keep(span);
                (0..2).for_each(|_| life.release(span));
            },
            |life, _| life.checkpointed(1, 1),
        ];
        for (at, steps) in wrong.into_iter().enumerate() {
            let caught = std::panic::catch_unwind(|| {
                let mut life = life(1);
                let span = life.allocate(10, FILES_MAX).unwrap();
                steps(&mut life, span);
            });
            assert!(caught.is_err(), "{at}");
        }
    }

    #[test]
    fn extents_of_the_last_file_move_when_much_is_free() {
        let mut life = life(2);
        let spans: Vec<_> = (0..6).map(|_| life.allocate(20, FILES_MAX).unwrap()).collect();
        assert_eq!(spans[3], Span { file: 1, page: 0, pages: 20 });
        spans.iter().for_each(|span| life.keep(*span));
        spans[1..].iter().for_each(|span| life.let_go(*span));
        let all = (u32::MAX, 0);
        assert_eq!(life.plan_move(0, all), None, "nothing is free");
        life.release(spans[0]);
        life.release(spans[1]);
        life.release(spans[2]);
        life.freeze(1);
        life.checkpointed(1, 1);
        assert_eq!(life.plan_move(40, all), None, "too little is free");
        assert_eq!(life.plan_move(4, all), Some((1, 0)));
        assert_eq!(life.plan_move(4, (1, 1)), Some((1, 1)), "an extent that was passed over");
        assert_eq!(life.plan_move(4, (1, 20)), Some((1, 20)));
        assert_eq!(life.plan_move(4, (1, 60)), None, "no row is left in the file below");
        assert_eq!(life.allocate(20, 0), None);
        assert_eq!(life.allocate(20, 1), Some(Span { file: 0, page: 20, pages: 20 }));
    }

    #[test]
    fn a_file_grows_to_its_length_again_before_another_is_made() {
        let mut life = life(1);
        let span = life.allocate(10, FILES_MAX).unwrap();
        let cut = life.plan_cut(0, 1).unwrap();
        assert_eq!(cut, Cut { file: 0, pages: 10, freed: 54 });
        assert_eq!(life.plan_cut(0, 1), None, "the file is busy");
        assert_eq!(life.plan_growth(5, 64), Some(Growth { file: 1, from: None, to: 64 }));
        life.shortened(cut);
        life.vacate(1);
        assert_eq!(life.allocate(1, FILES_MAX), None);
        let growth = life.plan_growth(5, 64).unwrap();
        assert_eq!(growth, Growth { file: 0, from: Some(10), to: 64 });
        life.grown(growth);
        assert_eq!(life.plan_growth(64, 64).unwrap().file, 1);
        life.vacate(1);
        assert_eq!(life.plan_growth(5, 16), Some(Growth { file: 1, from: None, to: 16 }));
        life.vacate(1);
        life.let_go(span);
        assert_eq!(life.plan_cut(1, 1), None, "one page is to be kept");
        let cut = life.plan_cut(0, 1).unwrap();
        assert_eq!(cut, Cut { file: 0, pages: 0, freed: 64 });
        life.shortened(cut);
        assert_eq!(life.usage(), Usage::default());
    }
}
