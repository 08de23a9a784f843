//! Rules of the protocol that can be left out, to see that the simulator's checkers notice.
//!
//! The product never leaves one out: [`Faults::NONE`] is what it runs with.

/// A rule that is not kept. The name says what is done instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Fault {
    /// Reads are answered without a read round of home.
    NoReadRound,
    /// A new sequencer goes on at the highest revision that it has heard of, not at the limit.
    RestartAtMax,
    /// Revisions above the committed limit are granted.
    GrantAboveLimit,
    /// Reads do not wait until what can concern them is applied.
    NoWaitForLast,
    /// Participants hear of a decision's revision only when it is committed.
    LastAtCommit,
    /// Participants get answers while a decision that concerns them is not applied.
    AnswersNotWithheld,
    /// A decision's branch goes out behind later answers.
    BranchLate,
    /// What was predicted is not looked at again when it is applied.
    NoVerify,
    /// Predictions do not wait for earlier writes of the same keys.
    PredictOnApplied,
    /// A latch does not wait for writes that came before it.
    LatchJumps,
    /// A participant votes before what came before the latch is applied.
    VoteEarly,
    /// Votes are not looked at again when it is decided.
    VotesNotChecked,
    /// A participant lets a latch go by itself.
    LatchDropped,
    /// The sequencer opens although one group is not sealed, and entries of an older one count.
    NoSeal,
    /// Answers of an older stream are taken.
    OldStream,
    /// An older registration is taken.
    OldRegistration,
    /// A registration is answered while a decision is not applied.
    RegisteredEarly,
    /// A registration is answered without the branches that the group lacks.
    RegisteredWithoutBranches,
    /// A participant registers before it has applied what it proposed.
    RegisterUndrained,
    /// A decision is forgotten before everybody has applied it.
    ForgetEarly,
    /// A transaction that was called dead is decided later.
    DeadDecided,
    /// A lease is not looked up when a revision is granted.
    LeaseNotChecked,
    /// Keys may be attached to a lease that is being revoked.
    LeaseNotMarked,
    /// The mark ends when a revocation is decided, not when it is applied.
    MarkEndsEarly,
    /// After a change of home's leader a revocation asks only the groups that it knows of.
    LeaseGroupsForgotten,
    /// A revocation's latch does not cover the keys of the lease.
    LeaseKeysFree,
    /// "Lease not found" is said without a read round of home.
    LeaseNotConfirmed,
    /// A planned transfer of home goes on granting after it wrote down where it stopped.
    HandGoesOn,
    /// A range is split while writes are under way.
    RangeNotAlone,
    /// A group is served before home's log says that it has its range.
    ServedBeforeMap,
    /// Transactions go on although the groups that they concern have changed.
    OldMapDecided,
    /// What is known of a lease's groups stays although a group was split.
    HoldersNotSplit,
    /// A tenant that is split for the first time does not say how far revisions may be granted.
    SplitWithoutLimit,
    /// A tenant that is on one group again does not say what was granted or shown.
    AbsorbWithoutBase,
    /// A frozen group goes on.
    FrozenServes,
    /// A frozen group goes on when it has waited for long.
    ThawOnClock,
    /// A group absorbs its neighbour while its own writes are under way.
    AbsorbNotAlone,
    /// Groups have revisions of their own in advance, every third or so.
    BlocksInAdvance,
    /// A latch holds nobody up and waits for nobody.
    NoLatch,
    /// A watch "from now" begins at each group where that group is.
    WatchFromEachGroup,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 40] = [
        Fault::NoReadRound,
        Fault::RestartAtMax,
        Fault::GrantAboveLimit,
        Fault::NoWaitForLast,
        Fault::LastAtCommit,
        Fault::AnswersNotWithheld,
        Fault::BranchLate,
        Fault::NoVerify,
        Fault::PredictOnApplied,
        Fault::LatchJumps,
        Fault::VoteEarly,
        Fault::VotesNotChecked,
        Fault::LatchDropped,
        Fault::NoSeal,
        Fault::OldStream,
        Fault::OldRegistration,
        Fault::RegisteredEarly,
        Fault::RegisteredWithoutBranches,
        Fault::RegisterUndrained,
        Fault::ForgetEarly,
        Fault::DeadDecided,
        Fault::LeaseNotChecked,
        Fault::LeaseNotMarked,
        Fault::MarkEndsEarly,
        Fault::LeaseGroupsForgotten,
        Fault::LeaseKeysFree,
        Fault::LeaseNotConfirmed,
        Fault::HandGoesOn,
        Fault::RangeNotAlone,
        Fault::ServedBeforeMap,
        Fault::OldMapDecided,
        Fault::HoldersNotSplit,
        Fault::SplitWithoutLimit,
        Fault::AbsorbWithoutBase,
        Fault::FrozenServes,
        Fault::ThawOnClock,
        Fault::AbsorbNotAlone,
        Fault::BlocksInAdvance,
        Fault::NoLatch,
        Fault::WatchFromEachGroup,
    ];
}

/// A set of faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults(u64);

impl Faults {
    /// Every rule is kept.
    pub const NONE: Faults = Faults(0);

    /// With one more.
    #[must_use]
    pub fn and(self, fault: Fault) -> Faults {
        Faults(self.0 | 1 << fault as u8)
    }

    /// Is the rule left out?
    pub fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u8) != 0
    }
}
