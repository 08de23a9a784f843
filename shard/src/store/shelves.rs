//! Where the rows of one group stand, and which of those there are its own.
//!
//! A group that was never split has one shelf, and everything on it. A split moves no row: the
//! versions stay where they are, and both sides read and write them there, each in its range. All
//! other rows are of a group alone, because revisions of two groups interleave: so the new group
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
//! Invariants:
//! - Groups of one versions shelf have ranges that do not overlap: of a key's versions one group is
//!   the owner, and what belongs to no group here is garbage.
//! - A past shelf tells of every key that the group has, up to its revision; of revisions above it
//!   it may tell as well, of other groups' keys.

use proto::KeyRange;

use super::layout::Shelf;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shelves {
    /// Changes, counts, leases.
    pub own: Shelf,
    /// Versions.
    pub versions: Shelf,
    /// Older changes, ascending.
    pub past: Vec<Past>,
    /// The group's keys.
    pub range: KeyRange,
}

/// Where changes stand that were made before a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// Their shelf.
    pub shelf: Shelf,
    /// The last revision that is to be looked for there.
    pub to_revision: i64,
}

impl Default for Shelves {
    fn default() -> Shelves {
        Shelves::of(Shelf::default())
    }
}

impl Shelves {
    /// Those of a group that has everything on one shelf.
    pub fn of(shelf: Shelf) -> Shelves {
        Shelves { own: shelf, versions: shelf, past: Vec::new(), range: KeyRange::all() }
    }

    /// Has the group everything that is on its shelf, as far as it knows?
    pub fn is_alone(&self) -> bool {
        self.versions == self.own && self.past.is_empty()
    }

    /// Has the group all keys?
    pub fn is_whole(&self) -> bool {
        self.range.start.is_empty() && self.range.end.is_none()
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

    /// All of them; a shelf may come more than once.
    pub fn all(&self) -> impl Iterator<Item = Shelf> + '_ {
        self.told_by().chain([self.versions])
    }
}
