//! A read view: a group's versions as they were at one revision.
//!
//! It is taken in this order: the revision, the recent tables, the engine. Rows above the
//! revision do not exist for it, so what is applied meanwhile does not show; a table leaves
//! the list only after its rows can be read from the engine, so nothing is missed. A row may
//! be seen in two places, then they are the same.
//!
//! ```text
//!  revision 7 ->   active   k@9  k@7            newest first; 9 is above the view
//!                  frozen   j@6  k@5
//!                  engine   a@2  j@3  k@4
//!  get(k) = k@7, get(j) = j@6, get(a) = a@2
//! ```
//!
//! Invariants:
//! - What its rows point to stays readable while the view lives.
//! - A view below the compacted revision may miss rows: whoever reads below the newest
//!   revision checks the compacted revision again *after* reading.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::KeyRange;
use proto::mvccpb::KeyValue;

use super::Tables;
use super::hot::Hot;
use super::layout::{self, Row, Shelf, Value};
use super::leaves::{LEAF_KEYS, Leaf, Leaves, Place, Seeing};
use super::recent::{Cell, Walk};
use super::shelves::Pieces;
use crate::engine::{Engine, EngineError, EngineScan};
use crate::extents::{Extents, Pointer};

/// See the module.
#[derive(Clone)]
pub struct View {
    pub(super) pieces: Pieces,
    /// Revision at which it reads.
    pub revision: i64,
    /// Pages that its rows name are not used again while somebody has these.
    pub(super) tables: Arc<Tables>,
    pub(super) hot: Arc<Hot>,
    pub(super) leaves: Arc<Leaves>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) extents: Arc<Extents>,
    pub(super) damages: Arc<Damages>,
    /// Keys that a scan may leave behind as leaves.
    pub(super) see_max: usize,
}

/// A version found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its revision.
    pub revision: i64,
    /// The row.
    pub row: Row,
}

impl Found {
    /// As clients see it, with this value.
    pub fn with(&self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            create_revision: self.row.create_revision,
            mod_revision: self.revision,
            version: self.row.version,
            value,
            lease: self.row.lease,
        }
    }
}

/// A version whose value cannot be read here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where its row stands.
    pub shelf: Shelf,
    /// Its key.
    pub key: Bytes,
    /// Its revision.
    pub revision: i64,
}

/// What reads have met that cannot be read.
#[derive(Default)]
pub(super) struct Damages {
    found: Mutex<Vec<Damage>>,
}

/// Damages that are remembered until somebody looks at them.
const DAMAGES_MAX: usize = 64;

impl Damages {
    fn note(&self, damage: Damage) {
        let mut found = self.found.lock();
        if found.len() < DAMAGES_MAX && !found.contains(&damage) {
            found.push(damage);
        }
    }

    pub(super) fn take(&self) -> Vec<Damage> {
        std::mem::take(&mut self.found.lock())
    }
}

/// Reads a value, wherever it stands.
pub fn read_value(extents: &Extents, value: &Value) -> Result<Bytes, EngineError> {
    match value {
        Value::Here(bytes) => Ok(bytes.clone()),
        // A place that cannot be read is damage as well.
        Value::There(pointer) => {
            extents.read(pointer).map_err(|error| EngineError::Value(error.to_string()))
        }
    }
}

/// Called with a row key and its row, until it breaks.
pub type EachVersion<'a> = dyn FnMut(&Bytes, Row) -> Result<ControlFlow<()>, EngineError> + 'a;

/// The same, with the row decoded only when it is asked for.
type EachRow<'a> =
    dyn FnMut(&Bytes, &dyn Fn() -> Result<Row, EngineError>) -> Result<Step, EngineError> + 'a;

/// Where a walk over version rows goes next.
enum Step {
    /// To the next row.
    Next,
    /// Past this key's versions above that revision.
    Past(i64),
    /// Nowhere.
    Stop,
}

/// Goes past all versions of a key that are left: no row has a revision of 0.
const NEXT_KEY: Step = Step::Past(0);

impl From<ControlFlow<()>> for Step {
    fn from(flow: ControlFlow<()>) -> Step {
        match flow {
            ControlFlow::Continue(()) => Step::Next,
            ControlFlow::Break(()) => Step::Stop,
        }
    }
}

/// The engine's rows, with a look at the next one.
struct Ahead {
    scan: EngineScan,
    next: Option<(Bytes, Bytes)>,
}

impl Ahead {
    /// Key of the next row.
    fn key(&mut self) -> Result<Option<&Bytes>, EngineError> {
        if self.next.is_none() {
            self.next = self.scan.next().transpose()?;
        }
        Ok(self.next.as_ref().map(|(key, _)| key))
    }

    /// The row that [`Ahead::key`] saw.
    fn take(&mut self) -> Option<(Bytes, Bytes)> {
        self.next.take()
    }

    fn pass(&mut self, bound: &[u8]) {
        self.next.take_if(|(key, _)| *key < bound);
        if self.next.is_none() {
            self.scan.pass(bound);
        }
    }
}

fn damaged() -> EngineError {
    EngineError::Failed("a row cannot be read: unknown format".into())
}

/// Keys of one scan that may become leaves: a walk over everything does not push out what is
/// listed often.
pub(super) const SEEN_MAX: usize = 20_000;
/// A page of fewer keys is not worth a leaf.
const SEEN_MIN: usize = 16;

/// What a walk has seen since the last leaf that it left behind.
struct Seen<'v> {
    view: &'v View,
    shelf: Shelf,
    start: Bytes,
    rows: Vec<(Bytes, Found)>,
    seeing: Option<Seeing>,
    keep: usize,
}

impl Seen<'_> {
    fn row(&mut self, key: &Bytes, found: &Found) {
        if self.seeing.is_none() {
            return;
        }
        self.rows.push((key.clone(), found.clone()));
        if self.rows.len() >= LEAF_KEYS {
            self.stopped();
        }
    }

    /// Everything up to the last row was seen.
    fn stopped(&mut self) {
        let Some((key, _)) = self.rows.last() else { return };
        // The least key above it.
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(key);
        end.push(0);
        self.reached(Some(end.into()));
    }

    /// Everything below `end` was seen.
    fn reached(&mut self, end: Option<Bytes>) {
        let Some(seeing) = self.seeing else { return };
        let leaf = Leaf::new(&self.rows, end.clone(), self.view.revision);
        self.keep = self.keep.saturating_sub(self.rows.len());
        self.rows.clear();
        let start = std::mem::replace(&mut self.start, end.unwrap_or_default());
        self.view.leaves.seen(self.shelf, start, leaf, seeing);
        if self.keep == 0 {
            self.seeing = None;
        }
    }
}

impl View {
    /// Where it reads.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// The same, for scans of what nobody is likely to list again.
    pub fn unseen(self) -> View {
        View { see_max: 0, ..self }
    }

    /// The same place at another revision.
    pub fn at(&self, revision: i64) -> View {
        View { revision, ..self.clone() }
    }

    /// The value of a row that the view gave.
    pub fn value(&self, row: &Row) -> Result<Bytes, EngineError> {
        read_value(&self.extents, &row.value)
    }

    /// What the view found under `key`, as clients see it.
    pub fn kv(&self, key: Bytes, found: &Found) -> Result<KeyValue, EngineError> {
        match self.value(&found.row) {
            Ok(value) => Ok(found.with(key, value)),
            Err(error) => {
                let (shelf, revision) = (self.pieces.shelf_of(&key), found.revision);
                self.damages.note(Damage { shelf, key, revision });
                Err(error)
            }
        }
    }

    /// A row that the view gave, the same wherever its value stands here.
    pub fn inline(&self, row: Row) -> Result<Row, EngineError> {
        Ok(Row { value: self.value(&row)?.into(), ..row })
    }

    /// The version of `key` that has this extent, and its revision.
    pub fn row_with(
        &self,
        key: &[u8],
        extent: &Pointer,
    ) -> Result<Option<(i64, Row)>, EngineError> {
        let shelf = self.pieces.shelf_of(key);
        let from = layout::version_bound(shelf, key);
        let mut to = layout::version_key(shelf, key, 0);
        to.push(0);
        let mut found = None;
        self.rows(&from, &to, &mut |row_key, row| {
            let row = row()?;
            if row.value.extent() != Some(extent) {
                return Ok(Step::Next);
            }
            let (_, revision) = layout::split_version(row_key).ok_or_else(damaged)?;
            found = Some((revision, row));
            Ok(Step::Stop)
        })?;
        Ok(found)
    }

    /// The newest version of `key` at the view's revision, delete markers included.
    pub fn version(&self, key: &[u8]) -> Result<Option<Found>, EngineError> {
        let shelf = self.pieces.shelf_of(key);
        if let Some(found) = self.hot.get(shelf, key)
            && found.revision <= self.revision
        {
            return Ok(Some(found));
        }
        let from = layout::version_key(shelf, key, self.revision);
        let mut to = layout::version_key(shelf, key, 0);
        to.push(0);
        // Newer tables hold higher revisions, so the first hit is the answer, unless a row was
        // taken away or moved there: then what lies below must be matched against that.
        for table in &self.tables.list {
            match table.first(&from, &to) {
                Some((row_key, Cell::Row(row))) => {
                    let (_, revision) = layout::split_version(&row_key).ok_or_else(damaged)?;
                    return Ok(Some(Found { revision, row }));
                }
                Some(_) => return self.merge_first(&from, &to),
                None => {}
            }
        }
        let Some((row_key, row)) = self.engine.first(&from, &to)? else { return Ok(None) };
        let (_, revision) = layout::split_version(&row_key).ok_or_else(damaged)?;
        Ok(Some(Found { revision, row: Row::decode(&row).ok_or_else(damaged)? }))
    }

    fn merge_first(&self, from: &[u8], to: &[u8]) -> Result<Option<Found>, EngineError> {
        let mut found = None;
        self.rows(from, to, &mut |row_key, row| {
            let (_, revision) = layout::split_version(row_key).ok_or_else(damaged)?;
            found = Some(Found { revision, row: row()? });
            Ok(Step::Stop)
        })?;
        Ok(found)
    }

    /// The live version of `key` at the view's revision.
    pub fn get(&self, key: &[u8]) -> Result<Option<Found>, EngineError> {
        Ok(self.version(key)?.filter(|found| !found.row.deleted))
    }

    /// The version of `key` written by exactly `revision`, if it is still there.
    pub fn exactly(&self, key: &[u8], revision: i64) -> Result<Option<Row>, EngineError> {
        let row_key = layout::version_key(self.pieces.shelf_of(key), key, revision);
        for table in &self.tables.list {
            match table.get(&row_key) {
                Some(Cell::Row(row) | Cell::Moved(row)) => return Ok(Some(row)),
                Some(_) => return Ok(None),
                None => {}
            }
        }
        match self.engine.get(&row_key)? {
            Some(row) => Ok(Some(Row::decode(&row).ok_or_else(damaged)?)),
            None => Ok(None),
        }
    }

    /// Calls `each` with every live key of `range`, ascending, until it breaks.
    pub fn scan(
        &self,
        range: &KeyRange,
        each: &mut dyn FnMut(Bytes, Found) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        if range.is_empty() {
            return Ok(());
        }
        let mut keep = self.see_max;
        for (shelf, part) in self.pieces.within(range) {
            if self.scan_piece(shelf, &part, &mut keep, each)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The part of a scan that stands on one shelf. Says whether `each` broke it.
    fn scan_piece(
        &self,
        shelf: Shelf,
        range: &KeyRange,
        keep: &mut usize,
        each: &mut dyn FnMut(Bytes, Found) -> ControlFlow<()>,
    ) -> Result<bool, EngineError> {
        let inside = |key: &Bytes| range.end.as_ref().is_none_or(|end| key < end);
        let mut from = range.start.clone();
        loop {
            let next = match self.leaves.find(shelf, &from, self.revision) {
                Place::Leaf(covered) => {
                    for (key, found) in covered.rows(&from) {
                        if !inside(&key) {
                            return Ok(false);
                        }
                        if each(key, found).is_break() {
                            return Ok(true);
                        }
                    }
                    self.leaves.renew(shelf, &covered);
                    covered.end().cloned()
                }
                Place::Gap { until, open } => {
                    let to = until.clone().filter(inside).or_else(|| range.end.clone());
                    let seeing = open.filter(|_| *keep > 0);
                    let (start, rows, keep_now) = (from.clone(), Vec::new(), *keep);
                    let mut seen = Seen { view: self, shelf, start, rows, seeing, keep: keep_now };
                    let broken = self.walk(&from, to.as_ref(), &mut seen, each)?;
                    if broken {
                        if seen.rows.len() >= SEEN_MIN {
                            seen.stopped();
                        }
                        return Ok(true);
                    }
                    seen.reached(to);
                    *keep = seen.keep;
                    until
                }
            };
            match next.filter(inside) {
                Some(next) => from = next,
                None => return Ok(false),
            }
        }
    }

    /// The part of a scan for which there is no leaf. Says whether `each` broke it.
    fn walk(
        &self,
        from: &Bytes,
        to: Option<&Bytes>,
        seen: &mut Seen<'_>,
        each: &mut dyn FnMut(Bytes, Found) -> ControlFlow<()>,
    ) -> Result<bool, EngineError> {
        let from = layout::version_bound(seen.shelf, from);
        let to = match to {
            Some(to) => layout::version_bound(seen.shelf, to),
            None => layout::version_end(seen.shelf),
        };
        let mut broken = false;
        self.rows(&from, &to, &mut |row_key, row| {
            let (_, revision) = layout::split_version(row_key).ok_or_else(damaged)?;
            if revision > self.revision {
                return Ok(Step::Past(self.revision));
            }
            let row = row()?;
            if row.deleted {
                return Ok(NEXT_KEY);
            }
            let key = layout::version_user_key(row_key).ok_or_else(damaged)?;
            let found = Found { revision, row };
            seen.row(&key, &found);
            broken = each(key, found).is_break();
            Ok(if broken { Step::Stop } else { NEXT_KEY })
        })?;
        Ok(broken)
    }

    /// Calls `each` with all versions of the keys of `range` at or below the view's revision, in
    /// the order of the layout: by key, newest first. `after`: only those behind this row, whose key
    /// is said without the shelf ([`layout::version_place`]).
    pub fn all_versions(
        &self,
        range: &KeyRange,
        after: Option<&[u8]>,
        each: &mut EachVersion<'_>,
    ) -> Result<(), EngineError> {
        let mut broken = false;
        for (shelf, part) in self.pieces.within(range) {
            let (mut from, end) = layout::versions_of(shelf, &part);
            if let Some(after) = after {
                from = from.max(layout::version_behind(shelf, after));
            }
            if from >= end {
                continue;
            }
            self.rows(&from, &end, &mut |row_key, row| {
                let (_, revision) = layout::split_version(row_key).ok_or_else(damaged)?;
                if revision > self.revision {
                    return Ok(Step::Past(self.revision));
                }
                let flow = each(row_key, row()?)?;
                broken = flow.is_break();
                Ok(flow.into())
            })?;
            if broken {
                break;
            }
        }
        Ok(())
    }

    /// Merges the sources of an interval of version rows; rows taken away are left out.
    fn rows(&self, from: &[u8], to: &[u8], each: &mut EachRow<'_>) -> Result<(), EngineError> {
        let mut tables: Vec<Walk<'_>> =
            self.tables.list.iter().map(|table| table.range(from, to)).collect();
        let mut engine = Ahead { scan: self.engine.scan(from, to), next: None };
        let mut bound = Vec::new();
        loop {
            let recent = tables.iter().filter_map(Walk::key).min().cloned();
            let (row_key, step) = match (recent, engine.key()?) {
                (None, None) => return Ok(()),
                (Some(recent), key) if key.is_none_or(|key| recent <= *key) => {
                    if key == Some(&recent) {
                        engine.take();
                    }
                    let mut newest = None;
                    for table in tables.iter_mut().filter(|table| table.key() == Some(&recent)) {
                        let row = table.next();
                        newest = newest.or(row);
                    }
                    let Some((_, Cell::Row(row) | Cell::Moved(row))) = newest else { continue };
                    let step = each(&recent, &|| Ok(row.clone()))?;
                    (recent, step)
                }
                _ => {
                    let Some((key, value)) = engine.take() else { continue };
                    let step = each(&key, &|| Row::decode(&value).ok_or_else(damaged))?;
                    (key, step)
                }
            };
            match step {
                Step::Next => {}
                Step::Stop => return Ok(()),
                Step::Past(revision) => {
                    layout::version_beside(&mut bound, &row_key, revision);
                    tables.iter_mut().for_each(|table| table.pass(&bound));
                    engine.pass(&bound);
                }
            }
        }
    }
}
