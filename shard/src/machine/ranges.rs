//! Cutting a group's range in two.

use bytes::Bytes;

use super::Machine;
use super::state::{PastChanges, State};
use crate::engine::EngineError;
use crate::store::layout::Shelf;

impl Machine {
    /// Cuts the keys from `at` on out of this group; gives the new group's first state.
    pub fn split_off(&mut self, at: &Bytes, shelf: Shelf) -> Result<State, EngineError> {
        let mut past = self.state.past.clone();
        past.push(PastChanges { shelf: self.state.shelf, to_revision: self.state.revision });
        let end = self.state.end.replace(at.clone());
        let state = State {
            end,
            shelf: shelf.0,
            versions_shelf: self.state.versions().0,
            past,
            start: at.clone(),
            removed: Vec::new(),
            retired: Vec::new(),
            places: Vec::new(),
            ..self.state.clone()
        };
        Ok(state)
    }
}
