//! A disk in memory that loses what a real one may lose.
//!
//! Every file remembers, for each 512-byte sector written since its last sync, the bytes that are
//! durable. [`SimDisk::crash`] puts any subset of them back, chosen by the caller, so that a write
//! is lost, kept or torn. Directory changes are kept as a list until `sync_dir`, and a crash keeps
//! any subset of that list.
//!
//! ```text
//!   write  -> data (what reads see)      + unsynced: sector -> durable bytes
//!   sync   -> forgets `unsynced`
//!   failed -> moves `unsynced` to `lying`: reads still see the data, later syncs do not help
//!   crash  -> for each sector of `unsynced` and `lying`: durable bytes or data, as chosen
//! ```
//!
//! Nothing here is random and no order depends on a hash: the same calls and choices give the same
//! bytes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskFile};
use crate::room::Space;

/// Unit of tearing, in bytes.
pub const SECTOR_BYTES: u64 = 512;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// A simulated directory. Clones share it; [`SimDisk::fork`] copies it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Clone, Default)]
struct Inner {
    /// Rises with every crash, so that handles from before it are dead.
    generation: u64,
    next_file: u64,
    files: BTreeMap<u64, SimContents>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced_changes: Vec<Change>,
    capacity_bytes: Option<u64>,
    fail_next_sync: bool,
    /// Changes that are still carried out before the disk stops, when that is planned.
    halt_in: Option<u64>,
    syncs: u64,
}

#[derive(Debug, Clone)]
enum Change {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Clone, Default)]
struct SimContents {
    data: Vec<u8>,
    durable_len: usize,
    unsynced: BTreeMap<u64, Vec<u8>>,
    lying: BTreeMap<u64, Vec<u8>>,
}

impl SimDisk {
    /// An empty directory without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// An independent copy of the directory as it is now, with un-synced state and planned faults.
    pub fn fork(&self) -> Self {
        Self { inner: Arc::new(Mutex::new(self.inner.lock().clone())) }
    }

    /// Cuts the power. `choose(n)` returns a number below `n` and decides the fate of everything
    /// un-synced, in a fixed order. Old handles fail from now on; planned faults are cleared, the
    /// capacity stays.
    pub fn crash(&self, choose: &mut dyn FnMut(u64) -> u64) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        inner.generation += 1;
        inner.halt_in = None;
        inner.fail_next_sync = false;
        for change in std::mem::take(&mut inner.unsynced_changes) {
            if choose(2) == 1 {
                apply_change(&mut inner.durable_names, &change);
            }
        }
        inner.names = inner.durable_names.clone();
        for file in inner.files.values_mut() {
            file.crash(choose);
        }
        let names = &inner.names;
        inner.files.retain(|id, _| names.values().any(|named| named == id));
    }

    /// Makes the next sync of a file or of the directory fail with EIO.
    pub fn fail_next_sync(&self) {
        self.inner.lock().fail_next_sync = true;
    }

    /// Bounds the sum of all file lengths; what would exceed it fails with ENOSPC.
    pub fn set_capacity(&self, capacity_bytes: Option<u64>) {
        self.inner.lock().capacity_bytes = capacity_bytes;
    }

    /// Carries out `changes` more writes, syncs and directory changes and fails all later ones, as
    /// a process sees it that is stopped in the middle of its work. A crash ends it.
    pub fn halt_after(&self, changes: u64) {
        self.inner.lock().halt_in = Some(changes);
    }

    /// Flips one bit (0 to 7) of the durable and visible byte at `offset`, as a failing disk does.
    /// Fails with `NotFound` or `UnexpectedEof` when there is no such byte.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let file = inner.named(name)?;
        let byte = file.data.get_mut(offset as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        *byte ^= 1 << (bit % 8);
        let within = (offset % SECTOR_BYTES) as usize;
        for durable in [&mut file.unsynced, &mut file.lying] {
            let sector = durable.get_mut(&(offset / SECTOR_BYTES));
            if let Some(byte) = sector.and_then(|sector| sector.get_mut(within)) {
                *byte ^= 1 << (bit % 8);
            }
        }
        Ok(())
    }

    /// Number of syncs of files and of the directory so far, for tests that count them.
    pub fn syncs(&self) -> u64 {
        self.inner.lock().syncs
    }
}

impl Disk for SimDisk {
    fn space(&self) -> io::Result<Space> {
        let inner = self.inner.lock();
        let used: u64 = inner.files.values().map(|file| file.data.len() as u64).sum();
        let total_bytes = inner.capacity_bytes.unwrap_or(u64::MAX);
        Ok(Space { free_bytes: total_bytes.saturating_sub(used), total_bytes })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner.lock().names.keys().cloned().collect())
    }

    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.inner.lock();
        inner.step()?;
        if inner.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inner.reserve(len_bytes)?;
        let id = inner.next_file;
        inner.next_file += 1;
        let contents = SimContents { data: vec![0; len_bytes as usize], ..SimContents::default() };
        inner.files.insert(id, contents);
        inner.change(Change::Create(name.to_owned(), id));
        Ok(self.handle(&inner, id))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.inner.lock();
        let id = *inner.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(&inner, id))
    }

    fn rename(&self, source: &str, target: &str) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.step()?;
        inner.named(source)?;
        inner.change(Change::Rename(source.to_owned(), target.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.step()?;
        inner.named(name)?;
        inner.change(Change::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.step_sync()?;
        inner.durable_names = inner.names.clone();
        inner.unsynced_changes.clear();
        Ok(())
    }
}

impl SimDisk {
    fn handle(&self, inner: &Inner, id: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), generation: inner.generation, id })
    }
}

impl Inner {
    fn named(&mut self, name: &str) -> io::Result<&mut SimContents> {
        let id = self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        self.files.get_mut(id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Counts one change against a planned halt.
    fn step(&mut self) -> io::Result<()> {
        match &mut self.halt_in {
            Some(0) => Err(io::Error::other("the simulated disk has stopped")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn step_sync(&mut self) -> io::Result<()> {
        self.step()?;
        self.syncs += 1;
        if std::mem::take(&mut self.fail_next_sync) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }

    fn reserve(&self, more_bytes: u64) -> io::Result<()> {
        let used: u64 =
            self.names.values().filter_map(|id| self.files.get(id)).map(SimContents::len).sum();
        match self.capacity_bytes {
            Some(capacity) if used + more_bytes > capacity => {
                Err(io::Error::from_raw_os_error(ENOSPC))
            }
            _ => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        apply_change(&mut self.names, &change);
        self.unsynced_changes.push(change);
    }
}

/// Carries out one directory change; one whose source does not exist has no effect, which is how a
/// subset of a list of changes is applied.
fn apply_change(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Create(name, id) => {
            names.insert(name.clone(), *id);
        }
        Change::Rename(source, target) => {
            if let Some(id) = names.remove(source) {
                names.insert(target.clone(), id);
            }
        }
        Change::Remove(name) => {
            names.remove(name);
        }
    }
}

impl SimContents {
    fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// Keeps the durable bytes of the sectors that `start..end` touches before they change.
    fn keep_durable(&mut self, start: u64, end: u64) {
        for sector in start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            if let Some(durable) = self.lying.remove(&sector) {
                self.unsynced.insert(sector, durable);
            } else if !self.unsynced.contains_key(&sector) {
                let from = ((sector * SECTOR_BYTES) as usize).min(self.data.len());
                let to = (from + SECTOR_BYTES as usize).min(self.data.len());
                let mut durable = self.data.get(from..to).unwrap_or_default().to_vec();
                durable.resize(SECTOR_BYTES as usize, 0);
                self.unsynced.insert(sector, durable);
            }
        }
    }

    fn crash(&mut self, choose: &mut dyn FnMut(u64) -> u64) {
        let mut sectors = std::mem::take(&mut self.unsynced);
        sectors.append(&mut self.lying);
        for (sector, durable) in sectors {
            if choose(2) == 1 {
                continue;
            }
            let from = (sector * SECTOR_BYTES) as usize;
            for (byte, old) in self.data.iter_mut().skip(from).zip(durable) {
                *byte = old;
            }
        }
        if self.durable_len != self.data.len() && choose(2) == 0 {
            self.data.resize(self.durable_len, 0);
        }
        self.durable_len = self.data.len();
    }
}

/// A handle of one simulated file.
#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    generation: u64,
    id: u64,
}

impl SimFile {
    fn with<T>(
        &self,
        step: fn(&mut Inner) -> io::Result<()>,
        act: impl FnOnce(&mut SimContents) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut inner = self.disk.inner.lock();
        if inner.generation != self.generation {
            return Err(io::Error::other("the handle is from before a crash"));
        }
        let stepped = step(&mut inner);
        let file = inner.files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        match stepped {
            Ok(()) => act(file),
            Err(error) => {
                // Linux marks the pages clean after a failed write-back, so a later sync returns
                // success without having written them.
                if error.raw_os_error() == Some(EIO) {
                    let mut unsynced = std::mem::take(&mut file.unsynced);
                    file.lying.append(&mut unsynced);
                }
                Err(error)
            }
        }
    }

    fn grow(&self, end: u64) -> io::Result<()> {
        let len = self.with(|_| Ok(()), |file| Ok(file.len()))?;
        if end > len { self.disk.inner.lock().reserve(end - len) } else { Ok(()) }
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|_| Ok(()), |file| Ok(file.len()))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(
            |_| Ok(()),
            |file| {
                let start = offset as usize;
                let data = file.data.get(start..start.saturating_add(buffer.len()));
                buffer.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            },
        )
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        self.grow(end)?;
        self.with(Inner::step, |file| {
            file.keep_durable(offset, end);
            if file.len() < end {
                file.data.resize(end as usize, 0);
            }
            for (target, source) in file.data.iter_mut().skip(offset as usize).zip(data) {
                *target = *source;
            }
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(Inner::step_sync, |file| {
            file.unsynced.clear();
            file.durable_len = file.data.len();
            Ok(())
        })
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.grow(len_bytes)?;
        self.with(Inner::step, |file| {
            let old = file.len();
            file.keep_durable(len_bytes.min(old), len_bytes.max(old));
            file.data.resize(len_bytes as usize, 0);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(disk: &SimDisk, name: &str, len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        disk.open(name).unwrap().read_at(0, &mut buffer).unwrap();
        buffer
    }

    fn synced_file() -> SimDisk {
        let disk = SimDisk::new();
        let file = disk.create("a", 1024).unwrap();
        file.write_at(0, &[1; 1024]).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir().unwrap();
        disk
    }

    #[test]
    fn unsynced_writes_are_visible_and_torn_by_sector_in_a_crash() {
        let disk = synced_file();
        let file = disk.open("a").unwrap();
        file.write_at(500, &[2; 100]).unwrap();
        assert_eq!(read(&disk, "a", 1024)[500..600], [2; 100]);
        let mut choices = [1, 0].into_iter();
        disk.crash(&mut |_| choices.next().unwrap());
        assert_eq!(read(&disk, "a", 1024)[500..512], [2; 12]);
        assert_eq!(read(&disk, "a", 1024)[512..600], [1; 88]);
        assert!(file.write_at(0, &[3]).is_err(), "the handle died with the crash");
    }

    #[test]
    fn unsynced_directory_changes_survive_only_if_chosen() {
        let disk = synced_file();
        disk.rename("a", "b").unwrap();
        disk.create("c", 10).unwrap();
        let kept = disk.fork();
        kept.crash(&mut |_| 1);
        assert_eq!(kept.list().unwrap(), ["b", "c"]);
        disk.crash(&mut |_| 0);
        assert_eq!(disk.list().unwrap(), ["a"]);
    }

    #[test]
    fn a_failed_sync_makes_the_cache_lie_even_if_the_next_one_succeeds() {
        let disk = synced_file();
        let file = disk.open("a").unwrap();
        file.write_at(0, &[9; 8]).unwrap();
        disk.fail_next_sync();
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(EIO));
        file.sync_data().unwrap();
        assert_eq!(read(&disk, "a", 8), [9; 8]);
        disk.crash(&mut |_| 0);
        assert_eq!(read(&disk, "a", 8), [1; 8]);
    }

    #[test]
    fn a_full_disk_refuses_growth_but_not_overwriting() {
        let disk = synced_file();
        disk.set_capacity(Some(1100));
        assert_eq!(disk.create("b", 100).err().unwrap().raw_os_error(), Some(ENOSPC));
        let file = disk.open("a").unwrap();
        assert_eq!(file.write_at(1000, &[0; 200]).unwrap_err().raw_os_error(), Some(ENOSPC));
        file.write_at(0, &[0; 1024]).unwrap();
    }

    #[test]
    fn a_flipped_bit_stays_and_a_halted_disk_changes_nothing_more() {
        let disk = synced_file();
        disk.flip_bit("a", 3, 7).unwrap();
        assert_eq!(read(&disk, "a", 4)[3], 0x81);
        disk.halt_after(1);
        let file = disk.open("a").unwrap();
        file.write_at(0, &[5]).unwrap();
        assert!(file.sync_data().is_err());
        assert!(disk.rename("a", "b").is_err());
        disk.crash(&mut |_| 0);
        assert_eq!(read(&disk, "a", 1), [1]);
    }
}
