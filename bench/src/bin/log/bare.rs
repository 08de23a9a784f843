//! The bare disk: the payload of a round, one write and one `fdatasync`, and nothing else. It shows
//! what a log could reach at best.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::drive::{Load, Subject};

/// Length of the file that is filled with zeros first, and then written over again and again.
const ZEROS: u64 = 256 << 20;

/// One file.
pub(crate) struct Bare {
    file: File,
    /// Where writing begins again; a growing file has no end.
    end: u64,
    offset: u64,
    buffer: Vec<u8>,
}

impl Bare {
    /// A file to which each round is appended.
    pub(crate) fn growing(folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("make the folder");
        let file = File::create_new(folder.join("bare")).expect("make the file");
        Self { file, end: u64::MAX, offset: 0, buffer: Vec::new() }
    }

    /// A file whose blocks have all been written before.
    pub(crate) fn zeroed(folder: &Path) -> Self {
        let bare = Self::growing(folder);
        let piece = vec![0; 1 << 20];
        for offset in (0..ZEROS).step_by(piece.len()) {
            bare.file.write_all_at(&piece, offset).expect("write zeros");
        }
        bare.file.sync_all().expect("sync the zeros");
        Self { end: ZEROS, ..bare }
    }
}

impl Subject for Bare {
    fn append(&mut self, index: u64, load: &Load, sync: bool) {
        self.buffer.clear();
        for group in 1..=load.groups {
            self.buffer.extend_from_slice(&load.payload(group, index));
        }
        let len = self.buffer.len() as u64;
        if self.offset + len > self.end {
            self.offset = 0;
        }
        self.file.write_all_at(&self.buffer, self.offset).expect("write");
        self.offset += len;
        if sync {
            self.file.sync_data().expect("sync");
        }
    }

    fn release(&mut self, _applied: u64, _load: &Load) {}

    fn read(&mut self, _group: u64, _index: u64) -> usize {
        panic!("a bare file has no entries")
    }
}
