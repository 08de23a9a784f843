//! What the operating system says about processes: CPU time, memory, disk, load; and what it is told:
//! to forget files that it holds in memory.
//!
//! CPU per operation is the figure that survives noise, so it is taken from `/proc/PID/stat`
//! (user + system time, all threads, also those that ended) at both ends of the measured window.
//! The kernel scales these two so that their sum is the precise run time, rounded to a tick of 10 ms.

use std::fs::{self, File};
use std::ops::Sub;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use serde::Serialize;

/// Microseconds in a tick of `/proc`: the kernel's user-visible clock is 100 Hz on every
/// architecture that this runs on.
const TICK_US: u64 = 10_000;
const MIB: f64 = 1024.0 * 1024.0;

/// CPU time spent so far, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuTimes {
    /// All given servers together.
    pub(crate) servers_us: u64,
    /// This process.
    pub(crate) client_us: u64,
    /// The machine's cores at rest.
    pub(crate) idle_us: u64,
    /// The machine's cores while the hypervisor ran somebody else.
    pub(crate) stolen_us: u64,
}

impl CpuTimes {
    /// Reads the clocks now; a server that is gone counts as zero.
    pub(crate) fn read(server_pids: &[u32]) -> CpuTimes {
        let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
        let (idle_us, stolen_us) = resting_us(&machine);
        CpuTimes {
            servers_us: server_pids.iter().map(|pid| process_us(&stat(&pid.to_string()))).sum(),
            client_us: process_us(&stat("self")),
            idle_us,
            stolen_us,
        }
    }
}

impl Sub for CpuTimes {
    type Output = CpuTimes;

    fn sub(self, earlier: CpuTimes) -> CpuTimes {
        CpuTimes {
            servers_us: self.servers_us.saturating_sub(earlier.servers_us),
            client_us: self.client_us.saturating_sub(earlier.client_us),
            idle_us: self.idle_us.saturating_sub(earlier.idle_us),
            stolen_us: self.stolen_us.saturating_sub(earlier.stolen_us),
        }
    }
}

/// User and system time of a line of `/proc/PID/stat`. The process's name may hold blanks and
/// brackets, so fields are counted from the last closing bracket.
fn process_us(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|n| n.parse::<u64>().ok())
        .sum::<u64>()
        * TICK_US
}

/// Idle (with I/O wait) and stolen time of all cores, of the first line of `/proc/stat`. The kernel
/// measures these two; its busy times are samples of the tick and too low for what runs in bursts.
fn resting_us(stat: &str) -> (u64, u64) {
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let field = |at: usize| ticks.get(at).copied().unwrap_or(0) * TICK_US;
    (field(3) + field(4), field(7))
}

/// Cores of the machine.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Memory of processes together, in MiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident_mib: f64,
    /// Resident at most since the processes started (the sum of each one's own peak).
    pub(crate) peak_mib: f64,
    /// The part of resident that is not backed by a file.
    pub(crate) anonymous_mib: f64,
}

impl Memory {
    pub(crate) fn read(pids: &[u32]) -> Memory {
        let mut all = Memory::default();
        for pid in pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            all.resident_mib += status_mib(&status, "VmRSS:");
            all.peak_mib += status_mib(&status, "VmHWM:");
            all.anonymous_mib += status_mib(&status, "RssAnon:");
        }
        all
    }
}

fn status_mib(status: &str, field: &str) -> f64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// The load average of the last minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// Space that the files below `folder` occupy on the disk, in MiB.
pub(crate) fn disk_mib(folder: &Path) -> f64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0.0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => disk_mib(&entry.path()),
            Ok(found) => found.blocks() as f64 * 512.0 / MIB,
            // A file that a compaction removed meanwhile.
            Err(_) => 0.0,
        })
        .sum()
}

/// Bytes that processes wrote to disks, as far as they were not deleted before they got there.
pub(crate) fn written_bytes(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        io_field(&io, "write_bytes:").saturating_sub(io_field(&io, "cancelled_write_bytes:"))
    };
    pids.iter().map(of).sum()
}

fn io_field(io: &str, field: &str) -> u64 {
    let rest = io.lines().find_map(|line| line.strip_prefix(field));
    rest.and_then(|rest| rest.trim().parse().ok()).unwrap_or(0)
}

/// Drops what the system holds in memory of the files below `folder`, so that the next read of each
/// goes to the disk. Pages that a process has mapped stay: to be called while nobody uses them.
pub(crate) fn forget_files(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            forget_files(&path);
        } else if let Ok(file) = File::open(&path) {
            // Pages that are not on the disk yet would stay. What fails here leaves the file in
            // memory, as it would be without a word from us.
            drop(file.sync_all());
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
}

/// The kind of file system that holds `folder`, such as `ext4` or `tmpfs`.
pub(crate) fn file_system(folder: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut best = (0, String::from("unknown"));
    for line in mounts.lines() {
        let mut fields = line.split_whitespace().skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else { continue };
        if folder.starts_with(point) && point.len() >= best.0 {
            best = (point.len(), kind.to_owned());
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_time_is_found_behind_an_awkward_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 150 50 9 9 20 0 8 0 100 1 1";
        assert_eq!(process_us(stat), 200 * TICK_US);
        assert_eq!(process_us(""), 0);
    }

    #[test]
    fn resting_time_is_idle_with_waiting_for_disks_and_apart_from_it_stolen() {
        let stat = "cpu  1 2 4 100 50 8 16 7 0 0\ncpu0 9 9 9";
        assert_eq!(resting_us(stat), (150 * TICK_US, 7 * TICK_US));
    }

    #[test]
    fn fields_of_io_are_not_taken_for_each_other() {
        let io = "wchar: 9\nwrite_bytes: 4096\ncancelled_write_bytes: 512\n";
        assert_eq!(io_field(io, "write_bytes:"), 4096);
        assert_eq!(io_field(io, "cancelled_write_bytes:"), 512);
    }

    #[test]
    fn memory_fields_are_read_in_kib() {
        assert_eq!(status_mib("VmHWM:\t 2048 kB\nVmRSS:\t 1024 kB\n", "VmRSS:"), 1.0);
    }
}
