//! What a recovery does to a group: most voters are lost for good, and one replica goes on alone.
//!
//! What the lost ones had and this one has not is gone, and nobody knows how much that was. So
//! whatever counts jumps far ahead: no revision is given twice for other changes, and whoever comes
//! back is behind by its version of the members, and told that it is none. All history up to the
//! new revision is compacted: who watches or reads from before hears so, and lists anew.
//!
//! Where the tenant is on several groups home's revisions jump like that; another one waits for home,
//! which gives up the whole tenant's history up to now when it hears of it.
//!
//! It is an entry like any other, behind everything that the replica's log held. The others get it
//! with the snapshot by which they come.

use proto::Error;
use proto::cluster::group::Recovery;
use proto::cluster::raft::ConfState;
use proto::group::Reply;
use proto::limits::{RECOVERY_REVISIONS, RECOVERY_STEP};

use super::effect::Effect;
use super::{Answer, Machine};

impl Machine {
    /// Leaves the named replica alone, unless that was done before.
    pub(super) fn apply_recovery(
        &mut self,
        recovery: &Recovery,
        term: u64,
        effects: &mut Vec<Effect>,
    ) -> Answer {
        let replica = recovery.replica;
        let state = &mut self.state;
        if recovery.membership_version <= state.membership_version {
            return Ok(Reply::Done(self.header().unwrap_or_default()));
        }
        let Some(mut survivor) = state.member_of(replica).cloned() else {
            return Err(Error::MemberNotFound);
        };
        let others = state.members.iter().filter(|member| member.id != survivor.id);
        let lost: Vec<u64> = others.map(|member| state.replica_of(member.id)).collect();
        state.removed.extend(lost);
        // They may have given numbers that nobody here has heard of.
        let highest = state.removed.iter().copied().chain([replica]).max().unwrap_or(replica);
        state.removed.push(highest.saturating_add(RECOVERY_STEP));
        survivor.is_learner = false;
        state.places.retain(|place| place.node == survivor.id);
        state.members = vec![survivor];
        state.conf_state = ConfState { voters: vec![replica], ..Default::default() };
        state.membership_version = recovery.membership_version;
        state.recovered_term = term;
        match self.kept.as_mut().filter(|kept| !kept.is_alone()) {
            None => {
                state.revision = (state.revision + RECOVERY_REVISIONS).max(recovery.revision);
                state.compacted = state.revision;
            }
            // Its revisions are home's to give (`split/entry.rs`).
            Some(kept) => {
                kept.recover(recovery.revision);
                state.revision = kept.revision;
                state.compacted = state.compacted.max(kept.compacted);
            }
        }
        effects.push(Effect::Compacted { revision: state.compacted });
        effects.push(Effect::Alone);
        effects.push(Effect::Members);
        Ok(Reply::Done(self.header().unwrap_or_default()))
    }
}
