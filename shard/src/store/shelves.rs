//! Where the rows of one group stand, and which of those there are its own.
//!
//! A group that was never split has one shelf, and everything on it. A split moves no row: the
//! versions stay where they are, and both sides read and write them there, each in its range; the
//! keys of leases are with their versions. All other rows are of a group alone, because revisions of two groups interleave: so the new group
//! gets a shelf of its own for them, and finds what changed before the split on older ones.
//!
//! ```text
//!   shelf   1                        5                  7
//!           versions of all three
//!           changes of A             changes of B       changes of C
//!
//!   A [ , m)   own 1, versions 1
//!   B [m, t)   own 5, versions 1, past: 1 to revision 90
//!   C [t,  )   own 7, versions 1, past: 1 to revision 90, 5 to revision 120
//! ```
//!
//! A merge moves no row either. The versions of the two may stand on different shelves, because a
//! replica that came with a snapshot has one of its own: so a group has *pieces*, each of them a
//! stretch of keys on one shelf. What changed on the right before the merge is told by the right's
//! shelves, of the right's keys.
//!
//! ```text
//!   A + B at revision 150   own 1, versions 1, past: 5 to revision 150 for [m, t)
//!   that + C, come anew     own 1, versions 1 below t, 9 from t on, past: 5 to 150 for [m, t), 9 to 170 from t on
//! ```
//!
//! Invariants:
//! - Groups have ranges that do not overlap: of a key's versions one group is the owner, and what
//!   belongs to no group here is garbage.
//! - Own and past shelves together tell of every key that the group has. One may tell of other keys
//!   as well, and above its last revision of this group's, when they were another's.

use std::sync::Arc;

use bytes::Bytes;
use proto::KeyRange;

use super::layout::Shelf;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelves {
    /// Changes, counts, leases.
    pub own: Shelf,
    /// Versions, and the keys of leases.
    pub pieces: Pieces,
    /// Older changes.
    pub past: Vec<Past>,
    /// The group's keys.
    pub range: KeyRange,
    /// Version of that range.
    pub version: u64,
}

/// Where changes stand that were made before a split or a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Their shelf.
    pub shelf: Shelf,
    /// The last revision that is to be looked for there.
    pub to_revision: i64,
    /// The keys of which it tells.
    pub range: KeyRange,
    /// What was superseded of these keys up to here is removed: by the group that was absorbed.
    pub swept: i64,
}

/// Which keys' versions stand on which shelf. The first piece reaches down to the lowest key, the
/// last one has no end: whoever reads keeps to the group's range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces(Arc<[Piece]>);

/// A stretch of keys, up to the next piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first key.
    pub start: Bytes,
    /// Where its versions stand.
    pub shelf: Shelf,
}

impl From<Shelf> for Pieces {
    fn from(shelf: Shelf) -> Pieces {
        Pieces(Arc::from([Piece { start: Bytes::new(), shelf }]))
    }
}

impl From<&Pieces> for Pieces {
    fn from(pieces: &Pieces) -> Pieces {
        pieces.clone()
    }
}

impl Pieces {
    /// These, ascending. Neighbours on one shelf become one piece.
    pub fn new(pieces: impl IntoIterator<Item = Piece>) -> Pieces {
        let mut list: Vec<Piece> = Vec::new();
        for piece in pieces {
            match list.last() {
                Some(last) if last.shelf == piece.shelf => {}
                Some(_) => list.push(piece),
                None => list.push(Piece { start: Bytes::new(), ..piece }),
            }
        }
        assert!(!list.is_empty(), "versions stand somewhere");
        Pieces(list.into())
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.0.iter()
    }

    fn place_of(&self, key: &[u8]) -> usize {
        self.0.partition_point(|piece| piece.start.as_ref() <= key).saturating_sub(1)
    }

    /// Where the versions of a key stand.
    pub fn shelf_of(&self, key: &[u8]) -> Shelf {
        self.0.get(self.place_of(key)).map_or_else(Shelf::default, |piece| piece.shelf)
    }

    /// The parts of `range`, ascending, and where each stands.
    pub fn within<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = (Shelf, KeyRange)> + 'a {
        let first = self.place_of(&range.start);
        let next = self.0.iter().skip(first + 1).map(|piece| Some(&piece.start)).chain([None]);
        let parts = self.0.iter().skip(first).zip(next).map(|(piece, next)| {
            let start = piece.start.clone().max(range.start.clone());
            let end = next.into_iter().chain(&range.end).min().cloned();
            (piece.shelf, KeyRange { start, end })
        });
        parts.take_while(|(_, part)| !part.is_empty())
    }

    /// Those of `range` alone.
    pub fn clipped(&self, range: &KeyRange) -> Pieces {
        let parts = self.within(range).map(|(shelf, part)| Piece { start: part.start, shelf });
        Pieces::new(parts)
    }

    /// These below `at`, and from there on others.
    pub fn joined(&self, at: &Bytes, right: &Pieces) -> Pieces {
        let left = self.0.iter().filter(|piece| piece.start < *at).cloned();
        let right = right.iter().map(|piece| {
            let start = piece.start.clone().max(at.clone());
            Piece { start, shelf: piece.shelf }
        });
        Pieces::new(left.chain(right))
    }
}

impl Default for Shelves {
    fn default() -> Shelves {
        Shelves::of(Shelf::default())
    }
}

impl Shelves {
    /// Those of a group that has everything on one shelf.
    pub fn of(shelf: Shelf) -> Shelves {
        let (pieces, range) = (shelf.into(), KeyRange::all());
        Shelves { own: shelf, pieces, past: Vec::new(), range, version: 0 }
    }

    /// Has the group everything that is on its shelf, as far as it knows?
    pub fn is_alone(&self) -> bool {
        self.pieces.iter().all(|piece| piece.shelf == self.own) && self.past.is_empty()
    }

    /// The stretches of the group's keys, and where the versions of each stand.
    pub fn versions(&self) -> impl Iterator<Item = (Shelf, KeyRange)> + '_ {
        self.pieces.within(&self.range)
    }

    /// The part of `range` that the group has.
    pub fn within(&self, range: &KeyRange) -> KeyRange {
        let ends = self.range.end.iter().chain(&range.end);
        let start = self.range.start.clone().max(range.start.clone());
        KeyRange { start, end: ends.min().cloned() }
    }

    /// The shelves whose changes the group reads, its own last.
    pub fn told_by(&self) -> impl Iterator<Item = Shelf> + '_ {
        self.past.iter().map(|past| past.shelf).chain([self.own])
    }

    /// Is it removed already what a revision superseded of a key?
    pub fn is_swept(&self, key: &[u8], revision: i64) -> bool {
        self.past.iter().any(|past| revision <= past.swept && past.range.contains(key))
    }

    /// All of them; a shelf may come more than once.
    pub fn all(&self) -> impl Iterator<Item = Shelf> + '_ {
        self.told_by().chain(self.pieces.iter().map(|piece| piece.shelf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> Bytes {
        Bytes::copy_from_slice(&[byte])
    }

    proptest! {
        /// Cut and joined again and again: every key stands where its owner put it.
        #[test]
        fn a_key_stands_where_it_stood(
            steps in proptest::collection::vec((any::<bool>(), 1u8..20), 1..40),
        ) {
            // Groups by first key, in order, and for every key the shelf where it truly stands.
            let mut groups = vec![(0u8, Pieces::from(Shelf(1)))];
            let mut truth = [Shelf(1); 20];
            for (number, (splits, at)) in steps.into_iter().enumerate() {
                let own = groups.partition_point(|(start, _)| *start <= at) - 1;
                let end = groups.get(own + 1).map(|(start, _)| *start);
                let (start, pieces) = groups[own].clone();
                if splits && at > start {
                    let left = KeyRange { start: key(start), end: Some(key(at)) };
                    let right = KeyRange { start: key(at), end: end.map(key) };
                    groups[own].1 = pieces.clipped(&left);
                    // Every second one comes with a snapshot: on a shelf of its own.
                    let anew = number % 2 == 0;
                    let shelf = Shelf(100 + number as u64);
                    let child = if anew { shelf.into() } else { pieces.clipped(&right) };
                    groups.insert(own + 1, (at, child));
                    if anew {
                        truth[at as usize..end.unwrap_or(20) as usize].fill(shelf);
                    }
                } else if own > 0 {
                    let (at, right) = groups.remove(own);
                    groups[own - 1].1 = groups[own - 1].1.joined(&key(at), &right);
                }
                for byte in 0..20u8 {
                    let own = groups.partition_point(|(start, _)| *start <= byte) - 1;
                    prop_assert_eq!(groups[own].1.shelf_of(&[byte]), truth[byte as usize]);
                    let one = KeyRange { start: key(byte), end: Some(key(byte + 1)) };
                    let parts: Vec<_> = groups[own].1.within(&one).collect();
                    prop_assert_eq!(parts, vec![(truth[byte as usize], one)]);
                }
            }
        }
    }
}
