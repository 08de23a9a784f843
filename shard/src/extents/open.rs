//! A start: from the files on the disk and what the checkpoint and the log name in them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::bitmap::Bitmap;
use super::file::{PageFile, parse_name};
use super::life::{Life, Overlap};
use super::pointer::{Pointer, Span};
use super::{ExtentError, Extents, ExtentsConfig, FILE_PAGES, FILES_MAX, Unsynced};
use crate::disk::Disk;

/// What is known of the page files from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Named {
    /// Number of the engine's checkpoint, 0 for an empty engine.
    pub checkpoint: u64,
    /// The bitmaps in it: for each file the newest that [`Extents::freeze`] gave.
    pub bitmaps: BTreeMap<u32, Bitmap>,
    /// The pointers in all log records that are applied on top of it, or may be. Not those of
    /// records that the checkpoint contains: their pages may belong to others.
    pub held: Vec<Pointer>,
}

/// The page files after a start.
pub struct Opened {
    /// The page files.
    pub extents: Extents,
    /// Files that lost pages which were named. Empty unless something outside of this program
    /// touched the directory.
    pub repaired: Vec<Repaired>,
}

/// A file that was missing or shorter than what is named in it. Zeros stand there now, so that the
/// extents that lay there are damaged and everything else works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repaired {
    /// Number of the file.
    pub file: u32,
    /// Pages that it had, 0 when it was missing.
    pub pages_found: u32,
    /// Pages that it has now.
    pub pages_named: u32,
}

impl Extents {
    /// Are there any page files?
    pub fn any(disk: &dyn Disk) -> Result<bool, ExtentError> {
        let failed = |source| ExtentError::Io { action: "open the page files", source };
        Ok(disk.list().map_err(failed)?.iter().any(|name| parse_name(name).is_some()))
    }

    /// Opens the page files of a directory. Other files in it are left alone. Fails when the same
    /// page is named twice, and when something is named that cannot be.
    pub fn open(
        disk: Arc<dyn Disk>,
        config: ExtentsConfig,
        named: Named,
    ) -> Result<Opened, ExtentError> {
        let file_pages = config.file_pages;
        assert!(file_pages > 0 && file_pages <= FILE_PAGES, "a page file has a usual length");
        assert!(file_pages.is_multiple_of(64), "a bitmap has whole words");
        let failed = |source| ExtentError::Io { action: "open the page files", source };
        let mut held: Vec<Span> = named.held.iter().map(Pointer::span).collect();
        held.sort_unstable();
        let ends = ends(&named.bitmaps, &held, file_pages)?;
        let mut handles = BTreeMap::new();
        let mut pages = BTreeMap::new();
        for number in disk.list().map_err(failed)?.iter().filter_map(|name| parse_name(name)) {
            let file = PageFile::open(disk.as_ref(), number, config.salt).map_err(failed)?;
            pages.insert(number, file.pages(file_pages).map_err(failed)?);
            handles.insert(number, file);
        }
        let mut repaired = Vec::new();
        let mut unsynced = Unsynced::default();
        for (number, end) in ends {
            let found = pages.get(&number).copied().unwrap_or(0);
            if found >= end {
                continue;
            }
            if let Some(file) = handles.get(&number) {
                file.set_pages(end).map_err(failed)?;
            } else {
                let made = PageFile::create(disk.as_ref(), number, end, config.salt);
                handles.insert(number, made.map_err(failed)?);
            }
            pages.insert(number, end);
            unsynced.files.insert(number);
            repaired.push(Repaired { file: number, pages_found: found, pages_named: end });
        }
        // The last process may have ended between the creation of a file and its sync: the name
        // is seen, but a power cut could still take it.
        unsynced.directory = true;
        let life = Life::recover(file_pages, named.checkpoint, &pages, named.bitmaps, &held);
        let life = life
            .map_err(|Overlap(span)| ExtentError::Overlap { file: span.file, page: span.page })?;
        let extents = Extents {
            disk,
            config,
            life: Mutex::new(life),
            files: RwLock::new(handles),
            unsynced: Mutex::new(unsynced),
            syncing: Mutex::new(()),
            failed: OnceLock::new(),
        };
        Ok(Opened { extents, repaired })
    }
}

/// Pages that each file must have for what is named in it. Files in which nothing is named are
/// not listed.
fn ends(
    bitmaps: &BTreeMap<u32, Bitmap>,
    held: &[Span],
    file_pages: u32,
) -> Result<BTreeMap<u32, u32>, ExtentError> {
    let rows = bitmaps.iter().map(|(number, bitmap)| {
        (*number, Some(bitmap.end()).filter(|_| bitmap.pages() == file_pages))
    });
    let records = held.iter().map(|span| (span.file, span.page.checked_add(span.pages)));
    let mut ends = BTreeMap::new();
    for (number, end) in rows.chain(records).filter(|(_, end)| *end != Some(0)) {
        let end = end.filter(|end| *end <= file_pages && number < FILES_MAX);
        let end = end.ok_or(ExtentError::OutOfBounds { file: number })?;
        let known: &mut u32 = ends.entry(number).or_default();
        *known = end.max(*known);
    }
    Ok(ends)
}
