//! Large values, outside of the engine: each is written once, into pages of its own.
//!
//! A value above a threshold is an *extent*: whole pages of 4 KiB in a page file of 64 MiB. The
//! log record and later the row hold a [`Pointer`] to it. What is stored here is only bytes and who
//! owns them; which extents exist is said by the rows of the newest checkpoint and by the log.
//!
//! # Life of an extent
//!
//! ```text
//!             write               keep                 release
//!    free ------------> held -------------> in use --------------> pending
//!     ^                  |                                            |
//!     |      let_go      |    checkpoint n is complete, older views   |
//!     +------------------+    are closed, and no record holds it      |
//!     +---------------------------------------------------------------+
//! ```
//!
//! 1. [`Extents::write`] when an entry is appended: pages are taken and written, the record that
//!    is about to be appended holds them. [`Extents::sync`], *then* the log's sync.
//! 2. [`Extents::keep`] when apply puts the pointer into a row.
//! 3. [`Extents::let_go`] when a start would not find the record any more, or would not apply it:
//!    its index is in a complete checkpoint, or a record that overwrites it is synced.
//! 4. [`Extents::release`] when the row goes; `n` is the next checkpoint, the first that will not
//!    have it.
//! 5. [`Extents::freeze`] at the freeze of a checkpoint: which pages rows use, for the ingestion;
//!    [`Extents::checkpointed`] when it is complete, and again when views are closed.
//!
//! An extent that only a row has, after a start, goes from `in use` on. A received snapshot or a
//! relocation is a holder like a record: it lets go once the row is in the table.
//!
//! # A start
//!
//! [`Extents::open`] is given the bitmaps of the engine's checkpoint and the pointers in all log
//! records that will be applied on top of it. Every other page is free, whatever it holds: what
//! was written and never synced, whose record was lost, whose row went with the last checkpoint.
//! There is no list of free pages on the disk that could be wrong.
//!
//! Invariants:
//!
//! * A page has one extent. (Asserted in `life.rs` at every step, at open an error.)
//! * Pages that the newest complete checkpoint, a log record above it or an open view names are
//!   not written, cut or removed. (They are not in the freelist: asserted there.)
//! * A read gives the bytes that were written or an error. (Checksums in `file.rs`, seeded with the
//!   place and repeated in the pointer.)
//! * An error of a write or sync is final: everything that writes answers
//!   [`ExtentError::Poisoned`] from then on, and the process is to end. A full disk is not such an
//!   error: pages are made before they are needed.
//!
//! # Threads
//!
//! All methods take `&self`. Who owns what stands behind one lock that is held for microseconds,
//! never for I/O; reads do not take it. Only syncs wait for each other, so that none returns while
//! another one still carries its data.

mod bitmap;
#[cfg(test)]
mod crash;
mod file;
pub mod freelist;
mod life;
#[doc(hidden)]
pub mod linear;
mod lowest;
mod open;
mod pointer;
mod sizes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard, RwLock};
use thiserror::Error;

use self::file::{PageFile, file_name, pages_of};
use self::life::{Growth, Life};
use self::pointer::Span;
use crate::disk::Disk;
use crate::store::layout::Shelf;

pub use self::bitmap::Bitmap;
pub use self::file::Extent;
pub use self::open::{Named, Opened, Repaired};
pub use self::pointer::{POINTER_BYTES, Pointer};

/// Length of a page in bytes.
pub const PAGE_BYTES: usize = 4096;
/// Pages of a file: 64 MiB.
pub const FILE_PAGES: u32 = 16_384;
/// Page files that a node may have: 64 TiB.
pub const FILES_MAX: u32 = 1 << 20;

/// Bounds and the secret of the page files.
#[derive(Debug, Clone)]
pub struct ExtentsConfig {
    /// Pages of a new file, at most [`FILE_PAGES`], in steps of 64. Never changes for a directory.
    pub file_pages: u32,
    /// Pages by which files grow, in steps of 64.
    pub grow_pages: u32,
    /// A shorter free tail of a file that holds something is not cut off, in pages.
    pub cut_pages_min: u32,
    /// Pages that are kept free once there is anything, so that a write need not make them.
    pub ahead_pages: u32,
    /// Secret number of this node that seeds all checksums, so that a tenant cannot write a value
    /// that passes for an extent. Drawn once by the caller; with another one nothing validates.
    pub salt: u64,
}

impl Default for ExtentsConfig {
    fn default() -> Self {
        Self {
            file_pages: FILE_PAGES,
            grow_pages: FILE_PAGES / 16,
            cut_pages_min: FILE_PAGES / 16,
            ahead_pages: FILE_PAGES / 4,
            salt: 0,
        }
    }
}

/// Pages by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Page files.
    pub files: u32,
    /// Pages of all files.
    pub pages: u64,
    /// Pages that can be allocated.
    pub free_pages: u64,
    /// Pages that log records hold. Some of them are also in rows or pending.
    pub held_pages: u64,
    /// Pages that rows use.
    pub row_pages: u64,
    /// Pages whose row is gone and that are not free yet.
    pub pending_pages: u64,
}

/// Why the page files refused or failed.
#[derive(Debug, Error)]
pub enum ExtentError {
    /// The disk failed. Final unless it comes from a read or from making a page file.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The disk's answer.
        #[source]
        source: io::Error,
    },
    /// An earlier write or sync failed; this process must end.
    #[error("the page files are stopped: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// What lies at the pointer's place is not what was written there. Other extents are
    /// unharmed.
    #[error("the extent at page {page} of page file {file} is damaged: {what}")]
    Damaged {
        /// Number of the page file.
        file: u32,
        /// First page.
        page: u32,
        /// What is wrong, for a person.
        what: &'static str,
    },
    /// A key and value that no page file can hold. Nothing was written.
    #[error("a value of {len_bytes} bytes is too large for a page file")]
    TooLarge {
        /// Length of the value.
        len_bytes: usize,
    },
    /// There are [`FILES_MAX`] page files.
    #[error("no more than {FILES_MAX} page files can be made")]
    TooMany,
    /// The checkpoint and the log, or two records, name the same page.
    #[error("page {page} of page file {file} is named twice")]
    Overlap {
        /// Number of the page file.
        file: u32,
        /// First page of the second extent that names it.
        page: u32,
    },
    /// A bitmap or a pointer that names pages which no file of this node can have.
    #[error("page file {file} cannot have the pages that are named in it")]
    OutOfBounds {
        /// Number of the page file.
        file: u32,
    },
    /// A newer program wrote an extent.
    #[error(
        "an extent has format {found}, this program knows formats up to {supported}: run a newer \
         program"
    )]
    Format {
        /// Its format.
        found: u32,
        /// The newest one that this program reads.
        supported: u32,
    },
}

/// The page files of a node.
pub struct Extents {
    disk: Arc<dyn Disk>,
    config: ExtentsConfig,
    life: Mutex<Life>,
    files: RwLock<BTreeMap<u32, PageFile>>,
    unsynced: Mutex<Unsynced>,
    /// Held by the one thread that syncs, also while it does.
    syncing: Mutex<()>,
    failed: OnceLock<String>,
}

/// What the next sync has to do.
#[derive(Debug, Default)]
struct Unsynced {
    directory: bool,
    files: BTreeSet<u32>,
}

impl Extents {
    /// Writes a value into free pages and holds them for the record that is about to be appended.
    /// Makes new pages when no free span is long enough. The value is durable after the next
    /// [`Extents::sync`]; it can be read at once.
    pub fn write(&self, shelf: Shelf, key: &[u8], value: &[u8]) -> Result<Pointer, ExtentError> {
        let pages = self.pages_of(key, value)?;
        let span = loop {
            // The guard is gone before the file grows.
            let span = self.life().allocate(pages, FILES_MAX);
            match span {
                Some(span) => break span,
                None => self.grow(pages)?,
            }
        };
        self.fill(span, shelf, key, value)
    }

    /// As [`Extents::write`], for an extent that moves: into a file before the one where it lies,
    /// where there is room, else `None`.
    pub fn write_before(
        &self,
        before: &Pointer,
        extent: &Extent,
    ) -> Result<Option<Pointer>, ExtentError> {
        let pages = self.pages_of(&extent.key, &extent.value)?;
        let span = self.life().allocate(pages, before.file);
        let Some(span) = span else { return Ok(None) };
        self.fill(span, extent.shelf, &extent.key, &extent.value).map(Some)
    }

    fn pages_of(&self, key: &[u8], value: &[u8]) -> Result<u32, ExtentError> {
        self.refuse_if_failed()?;
        pages_of(key.len(), value.len())
            .filter(|pages| *pages <= self.config.file_pages)
            .ok_or(ExtentError::TooLarge { len_bytes: value.len() })
    }

    fn fill(
        &self,
        span: Span,
        shelf: Shelf,
        key: &[u8],
        value: &[u8],
    ) -> Result<Pointer, ExtentError> {
        let file = self.file(span.file).expect("pages are allocated in open files");
        let written = file.write(span, shelf, key, value);
        let checksum = written.map_err(|source| self.fail("write an extent", source))?;
        // Marked only now: a sync that took the mark before would not have covered the write.
        self.unsynced.lock().files.insert(span.file);
        let (file, page, length) = (span.file, span.page, value.len() as u32);
        Ok(Pointer { file, page, pages: span.pages, length, checksum })
    }

    /// Did a write or sync fail, or is it in doubt who owns a page? Then the process is to end.
    pub fn is_stopped(&self) -> bool {
        self.failed.get().is_some()
    }

    /// Makes everything written so far durable. Touches only the files that were written to.
    pub fn sync(&self) -> Result<(), ExtentError> {
        let _turn = self.syncing.lock();
        self.refuse_if_failed()?;
        let unsynced = std::mem::take(&mut *self.unsynced.lock());
        if unsynced.directory {
            let synced = self.disk.sync_dir();
            synced.map_err(|source| self.fail("sync the directory of page files", source))?;
        }
        for number in unsynced.files {
            // A file that is gone had nothing in it that anybody needs.
            if let Some(file) = self.file(number) {
                file.sync().map_err(|source| self.fail("sync a page file", source))?;
            }
        }
        Ok(())
    }

    /// Reads a value. The caller is inside a view that shows the row, or knows that the record is
    /// not gone: else the pages may belong to another extent by now, which shows as damage.
    pub fn read(&self, pointer: &Pointer) -> Result<Bytes, ExtentError> {
        self.read_extent(pointer).map(|extent| extent.value)
    }

    /// Reads a value together with whose it is.
    pub fn read_extent(&self, pointer: &Pointer) -> Result<Extent, ExtentError> {
        let (file, page) = (pointer.file, pointer.page);
        let missing = ExtentError::Damaged { file, page, what: "its page file is missing" };
        self.file(file).ok_or(missing)?.read(pointer)
    }

    /// Writes an extent once more into its place, durable on return, if `value` is what the pointer
    /// names; says whether it is. The caller has a view in which a row of `shelf` and `key` names
    /// it.
    pub fn heal(
        &self,
        pointer: &Pointer,
        shelf: Shelf,
        key: &[u8],
        value: &[u8],
    ) -> Result<bool, ExtentError> {
        self.refuse_if_failed()?;
        let (file, page) = (pointer.file, pointer.page);
        let missing = ExtentError::Damaged { file, page, what: "its page file is missing" };
        let opened = self.file(file).ok_or(missing)?;
        if pointer.length as usize != value.len()
            || pages_of(key.len(), value.len()) != Some(pointer.pages)
            || opened.checksum_of(pointer.span(), shelf, key, value) != pointer.checksum
        {
            return Ok(false);
        }
        let written = opened.write(pointer.span(), shelf, key, value);
        written.map_err(|source| self.fail("write an extent", source))?;
        self.unsynced.lock().files.insert(file);
        self.sync()?;
        Ok(true)
    }

    /// The next extent that should move so that a file can be cut off: it is in a row and held by
    /// nothing else. `None` when too little is free for it to be worth it. Extents of that file
    /// before `skip` are left where they are.
    pub fn to_move(&self, skip: (u32, u32)) -> Result<Option<(Pointer, Extent)>, ExtentError> {
        let place = self.life().plan_move(u64::from(self.config.ahead_pages), skip);
        let Some((number, page)) = place else { return Ok(None) };
        let missing = ExtentError::Damaged { file: number, page, what: "its page file is missing" };
        self.file(number).ok_or(missing)?.at(page, self.config.file_pages).map(Some)
    }

    /// A row has the extent now. It stays held as well. Panics unless it is held and in no row.
    pub fn keep(&self, pointer: &Pointer) {
        self.life().keep(pointer.span());
    }

    /// The record that held the extent is gone for good, see the module. The pages are free when
    /// no row has them. Panics unless the extent is held.
    pub fn let_go(&self, pointer: &Pointer) {
        self.life().let_go(pointer.span());
    }

    /// The row with the extent is gone from the next checkpoint on. Called together with the
    /// change of the row. Panics when no row has the extent.
    pub fn release(&self, pointer: &Pointer) {
        self.life().release(pointer.span());
    }

    /// Freezes checkpoint `n`, while apply pauses: the pages that rows use in each file that
    /// changed since the last one, to be written in the same ingestion as the rows. An empty
    /// bitmap may be a removal. Panics when the last checkpoint is not complete.
    pub fn freeze(&self, n: u64) -> Vec<(u32, Bitmap)> {
        self.life().freeze(n)
    }

    /// Checkpoint `n` is complete, and every open view was taken when [`Extents::complete`] was at
    /// least `oldest_view`; `n` when no view is open. Called again with the same `n` when views
    /// are closed.
    pub fn checkpointed(&self, n: u64, oldest_view: u64) {
        self.life().checkpointed(n, oldest_view);
    }

    /// Bytes of pages that the next checkpoint makes free, as far as rows are concerned.
    pub fn released_bytes(&self) -> u64 {
        self.life().released() * PAGE_BYTES as u64
    }

    /// Newest complete checkpoint. A view asks for it before it takes anything else.
    pub fn complete(&self) -> u64 {
        self.life().complete()
    }

    /// Makes pages before they are needed, and gives back what is far too much. For a background
    /// thread, after values were written or freed.
    pub fn tend(&self) -> Result<(), ExtentError> {
        let (pages, free) = self.life().room();
        let ahead = u64::from(self.config.ahead_pages);
        if pages == free {
            self.trim(0)?;
        } else if free < ahead {
            self.grow_ahead(ahead)?;
        } else {
            self.trim(2 * ahead)?;
        }
        Ok(())
    }

    /// Makes pages until `free_pages` are free, so that writes do not wait for them.
    pub fn grow_ahead(&self, free_pages: u64) -> Result<(), ExtentError> {
        self.refuse_if_failed()?;
        while self.life().room().1 < free_pages {
            self.grow(1)?;
        }
        Ok(())
    }

    /// Gives free tails of files back to the file system, highest file first, and removes files
    /// that are free; at least `keep_pages` stay free. Returns the number of pages given back.
    pub fn trim(&self, keep_pages: u64) -> Result<u64, ExtentError> {
        self.refuse_if_failed()?;
        let mut freed = 0;
        loop {
            let cut = self.life().plan_cut(keep_pages, self.config.cut_pages_min.max(1));
            let Some(cut) = cut else { return Ok(freed) };
            let done = if cut.pages == 0 {
                self.files.write().remove(&cut.file);
                self.disk.remove(&file_name(cut.file))
            } else {
                self.file(cut.file).expect("a file that is cut is open").set_pages(cut.pages)
            };
            done.map_err(|source| self.fail("cut a page file", source))?;
            self.life().shortened(cut);
            freed += u64::from(cut.freed);
        }
    }

    /// Length of all page files in bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.life().room().0 * PAGE_BYTES as u64
    }

    /// Pages by what they are.
    pub fn usage(&self) -> Usage {
        self.life().usage()
    }

    /// Checks that every page has one owner. Walks everything: for tests.
    #[doc(hidden)]
    pub fn audit(&self) {
        self.life().audit();
    }

    /// Makes a file, or makes one longer, so that there is a free span of `pages` pages.
    fn grow(&self, pages: u32) -> Result<(), ExtentError> {
        let growth = self.life().plan_growth(pages, self.config.grow_pages);
        let growth = growth.ok_or(ExtentError::TooMany)?;
        match self.carry_out(growth) {
            Ok(()) => {
                self.life().grown(growth);
                Ok(())
            }
            Err(source) => {
                if growth.from.is_some() {
                    self.life().unchanged(growth.file);
                } else if self.remove_if_there(growth.file).is_ok() {
                    self.life().vacate(growth.file);
                }
                // Otherwise the number stays taken until the next start, which looks again.
                Err(ExtentError::Io { action: "make a page file", source })
            }
        }
    }

    fn carry_out(&self, growth: Growth) -> io::Result<()> {
        if growth.from.is_some() {
            let file = self.file(growth.file).ok_or(io::ErrorKind::NotFound)?;
            return file.set_pages(growth.to);
        }
        let salt = self.config.salt;
        let file = PageFile::create(self.disk.as_ref(), growth.file, growth.to, salt)?;
        self.unsynced.lock().directory = true;
        self.files.write().insert(growth.file, file);
        Ok(())
    }

    fn remove_if_there(&self, number: u32) -> io::Result<()> {
        match self.disk.remove(&file_name(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn life(&self) -> Watched<'_> {
        Watched { life: self.life.lock(), failed: &self.failed }
    }

    fn file(&self, number: u32) -> Option<PageFile> {
        self.files.read().get(&number).cloned()
    }

    fn refuse_if_failed(&self) -> Result<(), ExtentError> {
        match self.failed.get() {
            Some(reason) => Err(ExtentError::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn fail(&self, action: &'static str, source: io::Error) -> ExtentError {
        // Only the first failure is kept.
        let _ = self.failed.set(format!("{action}: {source}"));
        ExtentError::Io { action, source }
    }
}

/// Who owns what, for one caller. If that one panics, what is known of the pages may be wrong,
/// and nothing is written any more.
struct Watched<'a> {
    life: MutexGuard<'a, Life>,
    failed: &'a OnceLock<String>,
}

impl Deref for Watched<'_> {
    type Target = Life;

    fn deref(&self) -> &Life {
        &self.life
    }
}

impl DerefMut for Watched<'_> {
    fn deref_mut(&mut self) -> &mut Life {
        &mut self.life
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.failed.set("a panic over who owns a page".into());
        }
    }
}
