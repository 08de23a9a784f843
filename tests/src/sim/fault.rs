//! Faults planted into the simulated world, one at a time, to show that the judges see them.
//!
//! Each stands for a mistake that the product could make. None is in the product: the world does
//! the node's disk, engine, watches or clients the wrong that such a mistake would.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Writes are said to be durable, and are not synced.
    AckBeforeSync,
    /// Term and vote are not written.
    LostVote,
    /// Tombstones are not written: a replica that was removed comes back, and votes.
    LostTombstone,
    /// A node comes back without its disk, under its old number: its first replicas are born twice.
    BornTwice,
    /// A node forgets the last shelf that it gave: two groups stand on it.
    SharedShelf,
    /// A watch that is made anew begins at what is now.
    SkippingWatch,
    /// Replicas answer linearizable reads without asking anybody.
    UnaskedRead,
    /// What may have been done is done again.
    Repeated,
    /// Groups are said to know of their charters, and were never told.
    Untold,
    /// A router takes a client for one of the tenant whose group it asks.
    Disguised,
    /// A node with an empty disk says that it is the directory that placement knows.
    SameDirectory,
    /// What was planned on an old ledger is written into the newest.
    Unfenced,
}

impl Fault {
    /// Each of them.
    pub const ALL: [Fault; 12] = [
        Fault::AckBeforeSync,
        Fault::LostVote,
        Fault::LostTombstone,
        Fault::BornTwice,
        Fault::SharedShelf,
        Fault::SkippingWatch,
        Fault::UnaskedRead,
        Fault::Repeated,
        Fault::Untold,
        Fault::Disguised,
        Fault::SameDirectory,
        Fault::Unfenced,
    ];
}
