//! Our log as a measured one, driven as a node drives it: one thread writes, another prepares the
//! next segment at the start and as often as a checkpoint would be written.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use shard::disk::os::OsDisk;
use shard::log::{Entry, Log, LogConfig, Record, ReplicaKey};

use crate::drive::{Load, RELEASE_BYTES, Subject};

/// The log and the thread beside it.
pub(crate) struct Own {
    log: Arc<Log>,
    /// Asks for a spare and to be told when it is there; taken when the log is closed.
    spare: Option<Sender<Sender<()>>>,
    preparer: Option<JoinHandle<()>>,
    /// Payload since the last time it was asked.
    unprepared: u64,
}

impl Own {
    /// Opens the log in `folder`. With `spare` the next segment is prepared ahead, as in a node.
    pub(crate) fn open(folder: &Path, spare: bool) -> Self {
        let disk = Arc::new(OsDisk::open(folder).expect("open the folder"));
        let config = LogConfig { salt: 0x5eed, ..LogConfig::default() };
        let (log, _) = Log::open(disk, 1, config).expect("open the log");
        let log = Arc::new(log);
        let mut own = Self { log: Arc::clone(&log), spare: None, preparer: None, unprepared: 0 };
        if spare {
            let (sender, receiver) = channel::<Sender<()>>();
            own.spare = Some(sender);
            own.preparer = Some(std::thread::spawn(move || {
                for done in receiver {
                    log.prepare_spare(Duration::from_millis(5)).expect("prepare a segment");
                    // Mostly nobody waits for it.
                    let _ = done.send(());
                }
            }));
            own.prepare();
        }
        own
    }

    /// Asks for a spare; what is returned ends when it is there.
    fn prepare(&mut self) -> Receiver<()> {
        self.unprepared = 0;
        let (done, receiver) = channel();
        if let Some(spare) = &self.spare {
            spare.send(done).expect("the thread listens until it is closed");
        }
        receiver
    }
}

impl Subject for Own {
    fn append(&mut self, index: u64, load: &Load, sync: bool) {
        let record = |group| {
            let data = load.payload(group, index);
            let entries = vec![Entry { term: 1, entry_type: 0, data }];
            Record::Entries { key: key(group), first_index: index, entries }
        };
        let batch: Vec<Record> = (1..=load.groups).map(record).collect();
        self.log.append(&batch).expect("append");
        if sync {
            self.log.sync().expect("sync");
        }
        self.unprepared += load.round_bytes();
        if self.unprepared >= RELEASE_BYTES {
            self.prepare();
        }
    }

    fn release(&mut self, applied: u64, load: &Load) {
        for group in 1..=load.groups {
            self.log.release(key(group), applied);
        }
    }

    fn read(&mut self, group: u64, index: u64) -> usize {
        let found = self.log.entries(key(group), index, index + 1, u64::MAX).expect("read");
        found.iter().map(|entry| entry.data.len()).sum()
    }

    fn settle(&mut self) {
        // Without a thread there is nobody to answer and nothing to wait for.
        let _ = self.prepare().recv();
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.spare = None;
        if let Some(preparer) = self.preparer.take() {
            preparer.join().expect("the thread ends when nobody can ask it");
        }
        self.log.close().expect("close the log");
    }
}

fn key(group: u64) -> ReplicaKey {
    ReplicaKey { group, replica: 1 }
}
