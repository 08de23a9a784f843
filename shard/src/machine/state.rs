//! The machine's small state, beside the rows: what a checkpoint writes as one row.

use proto::KeyRange;
use proto::cluster::group::Charter;
use proto::cluster::raft::ConfState;
use proto::cluster::split::Kept;
use proto::etcd::{AlarmMember, Member};

use crate::store::layout::Shelf;
use crate::store::shelves::{Past, Piece, Pieces, Shelves};

/// Index and term of a group's birth: before the first entry (any constant above 0 serves).
pub const BIRTH: (u64, u64) = (5, 5);

/// See the module. Every field is replicated but those marked local.
#[derive(Clone, PartialEq, prost::Message)]
pub struct State {
    /// Last applied entry.
    #[prost(uint64, tag = "1")]
    pub applied_index: u64,
    /// Its term.
    #[prost(uint64, tag = "2")]
    pub applied_term: u64,
    /// Voters and learners as of the applied index.
    #[prost(message, required, tag = "3")]
    pub conf_state: ConfState,
    /// Newest revision; an empty store stands at 1.
    #[prost(int64, tag = "4")]
    pub revision: i64,
    /// Compacted revision; -1 while nothing was ever compacted.
    #[prost(int64, tag = "5")]
    pub compacted: i64,
    /// Local: history below this revision has been removed from the rows.
    #[prost(int64, tag = "6")]
    pub swept: i64,
    /// Local: where the rows stand.
    #[prost(uint64, tag = "7")]
    pub shelf: u64,
    /// Version of the range that the group serves.
    #[prost(uint64, tag = "8")]
    pub range_version: u64,
    /// Bytes of all versions, by the store's own measure; after a split about so
    /// (`machine/ranges.rs`).
    #[prost(int64, tag = "9")]
    pub size: i64,
    /// Live keys.
    #[prost(int64, tag = "10")]
    pub keys: i64,
    /// Members, ascending by id; the id is the node's.
    #[prost(message, repeated, tag = "11")]
    pub members: Vec<Member>,
    /// Replicas that were members once: never again.
    #[prost(uint64, repeated, tag = "12")]
    pub removed: Vec<u64>,
    /// Alarms raised.
    #[prost(message, repeated, tag = "13")]
    pub alarms: Vec<AlarmMember>,
    /// Running digest over all applied changes; equal on all replicas at equal index.
    #[prost(uint64, tag = "14")]
    pub digest: u64,
    /// Id of the virtual cluster.
    #[prost(uint64, tag = "15")]
    pub cluster_id: u64,
    /// Changes of membership so far.
    #[prost(uint64, tag = "16")]
    pub membership_version: u64,
    /// Members whose replica does not have the number of its node.
    #[prost(message, repeated, tag = "17")]
    pub places: Vec<ReplicaPlace>,
    /// Replicas that were removed because their node left the cluster.
    #[prost(uint64, repeated, tag = "18")]
    pub retired: Vec<u64>,
    /// Local: where the versions stand, the first of them if there is more than one place; 0: on the
    /// shelf of all other rows. A group that was split off shares them with the group that it comes
    /// from.
    #[prost(uint64, tag = "19")]
    pub versions_shelf: u64,
    /// Local: shelves with older changes of this group's keys.
    #[prost(message, repeated, tag = "20")]
    pub past: Vec<PastChanges>,
    /// First key of the group's range.
    #[prost(bytes = "bytes", tag = "21")]
    pub start: bytes::Bytes,
    /// First key above it.
    #[prost(bytes = "bytes", optional, tag = "22")]
    pub end: Option<bytes::Bytes>,
    /// What is kept of a split tenant's entries; only where the state is written.
    #[prost(message, optional, tag = "23")]
    pub split: Option<Kept>,
    /// What placement has said of the group.
    #[prost(message, required, tag = "24")]
    pub charter: Charter,
    /// Term of the last recovery; 0 if there was none. Nobody who was left behind has heard of it.
    #[prost(uint64, tag = "25")]
    pub recovered_term: u64,
    /// Local: the other places where versions stand, ascending.
    #[prost(message, repeated, tag = "26")]
    pub pieces: Vec<VersionsPiece>,
}

/// Keys whose versions stand elsewhere than those below them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VersionsPiece {
    /// The first of them.
    #[prost(bytes = "bytes", tag = "1")]
    pub start: bytes::Bytes,
    /// Where they stand.
    #[prost(uint64, tag = "2")]
    pub shelf: u64,
}

/// Changes that were made before the group was split off, or by a group that it has absorbed.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PastChanges {
    /// Where they stand.
    #[prost(uint64, tag = "1")]
    pub shelf: u64,
    /// The last revision of which they tell.
    #[prost(int64, tag = "2")]
    pub to_revision: i64,
    /// The first key of which they tell.
    #[prost(bytes = "bytes", tag = "3")]
    pub start: bytes::Bytes,
    /// The first key above those.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub end: Option<bytes::Bytes>,
    /// Of these keys everything is swept up to this revision, whatever the group says of all.
    #[prost(int64, tag = "5")]
    pub swept: i64,
}

impl PastChanges {
    /// As the state has it.
    pub fn of(past: &Past) -> PastChanges {
        let Past { shelf, to_revision, range, swept } = past.clone();
        PastChanges { shelf: shelf.0, to_revision, start: range.start, end: range.end, swept }
    }

    /// The same, read.
    pub fn past(&self) -> Past {
        let range = KeyRange { start: self.start.clone(), end: self.end.clone() };
        let (shelf, to_revision, swept) = (Shelf(self.shelf), self.to_revision, self.swept);
        Past { shelf, to_revision, range, swept }
    }
}

/// Where a replica is.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ReplicaPlace {
    /// The replica.
    #[prost(uint64, tag = "1")]
    pub replica: u64,
    /// Its node.
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

impl State {
    /// Is the replica as it was born, with no row anywhere? One that was split off has rows of its
    /// parent.
    pub fn is_bare(&self) -> bool {
        let is_first = self.applied_index <= BIRTH.0 && self.revision <= 1;
        is_first && self.versions_shelf == 0 && self.past.is_empty()
    }

    /// Gives back room that decoding has left: what is read is kept as long as the replica is here.
    pub fn slim(&mut self) {
        for member in &mut self.members {
            member.peer_ur_ls.shrink_to_fit();
            member.client_ur_ls.shrink_to_fit();
        }
        self.members.shrink_to_fit();
    }

    /// The group's keys.
    pub fn range(&self) -> KeyRange {
        KeyRange { start: self.start.clone(), end: self.end.clone() }
    }

    /// Where the versions stand.
    pub fn versions(&self) -> Pieces {
        let first = Shelf(if self.versions_shelf == 0 { self.shelf } else { self.versions_shelf });
        let others = self
            .pieces
            .iter()
            .map(|piece| Piece { start: piece.start.clone(), shelf: Shelf(piece.shelf) });
        Pieces::new([Piece { start: bytes::Bytes::new(), shelf: first }].into_iter().chain(others))
    }

    /// The versions stand there from now on.
    pub fn set_versions(&mut self, pieces: &Pieces) {
        let mut pieces =
            pieces.iter().map(|it| VersionsPiece { start: it.start.clone(), shelf: it.shelf.0 });
        self.versions_shelf = pieces.next().map_or(0, |first| first.shelf);
        self.pieces = pieces.collect();
    }

    /// Where the group's rows stand.
    pub fn shelves(&self) -> Shelves {
        Shelves {
            own: Shelf(self.shelf),
            pieces: self.versions(),
            past: self.past.iter().map(PastChanges::past).collect(),
            range: self.range(),
            version: self.range_version,
        }
    }

    /// The replica of a member. A group's first replicas have the numbers of their nodes; those
    /// that came later have numbers of their own, so that none is ever used twice.
    pub fn replica_of(&self, node: u64) -> u64 {
        self.places.iter().find(|place| place.node == node).map_or(node, |place| place.replica)
    }

    /// The node of a member's replica, if it is known.
    pub fn node_of(&self, replica: u64) -> Option<u64> {
        let placed = self.places.iter().find(|place| place.replica == replica);
        // A node that came back has another replica than the one with its number.
        let is_first = |m: &&Member| m.id == replica && self.replica_of(m.id) == replica;
        let first = || self.members.iter().find(is_first).map(|m| m.id);
        placed.map(|place| place.node).or_else(first)
    }

    /// Is a replica that speaks in this term no member, or none any more? Of one that was added
    /// elsewhere this replica may not have heard yet; but not of one in a term before the last
    /// recovery: those who were lost may have had members of whom nobody here knows.
    pub fn is_left_behind(&self, replica: u64, term: u64) -> bool {
        self.removed.contains(&replica)
            || (term < self.recovered_term && self.node_of(replica).is_none())
    }

    /// The member whose replica this is.
    pub fn member_of(&self, replica: u64) -> Option<&Member> {
        let node = self.node_of(replica)?;
        self.members.iter().find(|member| member.id == node)
    }
}

/// A lease as it travels in a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaseState {
    /// Its id.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Granted TTL in seconds.
    #[prost(int64, tag = "2")]
    pub ttl_s: i64,
}

/// What a snapshot carries beside rows.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotState {
    /// The state at the snapshot's index.
    #[prost(message, required, tag = "1")]
    pub state: State,
    /// All leases.
    #[prost(message, repeated, tag = "2")]
    pub leases: Vec<LeaseState>,
    /// Packed changes of the revisions that changed a key more than once: the versions alone
    /// tell only the last of them.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub changes: Vec<bytes::Bytes>,
}
