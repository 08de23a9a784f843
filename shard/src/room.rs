//! Room on the disk: how much must stay free, and what happens when it is not.
//!
//! The engine and the log must never meet a full disk: a failed write ends the process, and
//! the start needs room as well. So a reserve is kept for what goes on by itself (the next
//! log segments, a checkpoint, the engine's merging), and data is refused before it is
//! touched:
//!
//! | free | then |
//! |---|---|
//! | above the reserve | everything goes on |
//! | below the reserve | this node's leaders refuse what adds data, with etcd's NOSPACE error; reads, deletes, compaction and leases go on |
//! | below half of it, with peers | the node hands its leaderships away and stops |
//!
//! It ends by itself when space returns; nothing that was acknowledged is touched.

/// Bytes free and in all, of the file system that a directory is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What this process may still use.
    pub free_bytes: u64,
    /// Size of the file system.
    pub total_bytes: u64,
}

/// How the disk stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    /// As it should be.
    #[default]
    Enough,
    /// The reserve is touched.
    Low,
    /// Half of the reserve is gone.
    Critical,
}

/// Most of a reserve that nobody chose: the largest merge of the engine, a checkpoint and
/// two log segments.
const MOST_BYTES: u64 = 1 << 30;
/// Least of it: two log segments and a checkpoint.
const LEAST_BYTES: u64 = 192 << 20;

/// What must stay free on a file system of `total_bytes`: what the operator `chose`, or a
/// tenth within bounds, and never more than half of it.
pub fn reserve_bytes(total_bytes: u64, chose: Option<u64>) -> u64 {
    let own = (total_bytes / 10).clamp(LEAST_BYTES, MOST_BYTES).min(total_bytes / 2);
    chose.unwrap_or(own)
}

/// Judges what is free against a reserve.
pub fn judge(free_bytes: u64, reserve_bytes: u64) -> Room {
    if free_bytes >= reserve_bytes {
        Room::Enough
    } else if free_bytes >= reserve_bytes / 2 {
        Room::Low
    } else {
        Room::Critical
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_fits_its_disk() {
        assert_eq!(reserve_bytes(1 << 40, None), MOST_BYTES);
        assert_eq!(reserve_bytes(1 << 30, None), LEAST_BYTES);
        assert_eq!(reserve_bytes(100 << 20, None), 50 << 20);
        assert_eq!(reserve_bytes(1 << 40, Some(7)), 7);
    }

    #[test]
    fn half_of_the_reserve_is_critical() {
        let judged = [100, 99, 50, 49].map(|free| judge(free, 100));
        assert_eq!(judged, [Room::Enough, Room::Low, Room::Low, Room::Critical]);
        assert_eq!(judge(0, 0), Room::Enough);
    }
}
