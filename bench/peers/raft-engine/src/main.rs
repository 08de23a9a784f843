//! TiKV's raft-engine as a measured log: `bench/src/bin/log.rs --peer` builds and runs this program
//! and says in `bench/src/bin/log/drive.rs` what it does. It is a package and a workspace of its
//! own, so that building ours never builds a rival.
//!
//! Settings that differ from raft-engine's own: files as long as our segments, as much log kept as
//! we keep (it would keep 10 GB), and no compression, which ours has none of either. Its entries
//! are raft-rs' own, as in TiKV, with the payload shared instead of copied. It is purged on the
//! writing thread, outside of the rounds whose time is taken.

#[path = "../../../src/bin/log/drive.rs"]
mod drive;

use std::path::Path;

use raft::eraftpb::Entry;
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::drive::{Load, Subject};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    drive::run(&args, |subject, folder| match subject {
        "raft-engine" => Box::new(Peer::open(folder, false)),
        "raft-engine-prefilled" => Box::new(Peer::open(folder, true)),
        _ => panic!("no subject {subject}"),
    });
}

/// How raft-engine reads an entry's index.
struct Indexed;

impl MessageExt for Indexed {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// An open raft-engine.
struct Peer {
    engine: Engine,
    batch: LogBatch,
}

impl Peer {
    /// Opens it in `folder`; with `prefill` it writes its files full of zeros first.
    fn open(folder: &Path, prefill: bool) -> Self {
        let config = Config {
            dir: folder.to_str().expect("a folder with a plain name").to_owned(),
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize::mb(64),
            purge_threshold: ReadableSize::mb(256),
            prefill_for_recycle: prefill,
            ..Config::default()
        };
        let engine = Engine::open(config).expect("open raft-engine");
        Self { engine, batch: LogBatch::default() }
    }

    fn write(&mut self, sync: bool) {
        self.engine.write(&mut self.batch, sync).expect("write a batch");
    }
}

impl Subject for Peer {
    fn append(&mut self, index: u64, load: &Load, sync: bool) {
        for group in 1..=load.groups {
            let data = load.payload(group, index);
            let entry = Entry { term: 1, index, data, ..Entry::default() };
            self.batch.add_entries::<Indexed>(group, &[entry]).expect("add an entry");
        }
        self.write(sync);
    }

    fn release(&mut self, applied: u64, load: &Load) {
        for group in 1..=load.groups {
            self.batch.add_command(group, Command::Compact { index: applied + 1 });
        }
        self.write(false);
        self.engine.purge_expired_files().expect("purge");
    }

    fn read(&mut self, group: u64, index: u64) -> usize {
        let found = self.engine.get_entry::<Indexed>(group, index).expect("read");
        found.map_or(0, |entry| entry.data.len())
    }
}
