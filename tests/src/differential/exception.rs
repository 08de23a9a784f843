//! The one table of what may differ between two servers that both speak etcd's API to the
//! letter, each row with its reason. The code that lets a difference pass names its row, so
//! that a run can say how often each was used.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! exceptions {
    ($($name:ident: $what:literal, $reason:literal;)*) => {
        /// A named difference that is let pass.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Exception { $($name),* }

        /// Every exception: name, what is let pass, reason.
        pub const EXCEPTIONS: &[(Exception, &str, &str, &str)] =
            &[$((Exception::$name, stringify!($name), $what, $reason)),*];
    };
}

exceptions! {
    ClusterId: "cluster_id: compared as none, the server's own, or another",
        "derived from URLs and a token that differ by server";
    MemberId: "member ids: compared as none, the server's own, or another",
        "derived from URLs that differ by server";
    RaftTerm: "raft_term: compared as zero or not",
        "counts elections, which depend on timing";
    RaftIndex: "Status.raftIndex, raftAppliedIndex: compared as zero or not",
        "counts log entries, also those of no client";
    Version: "Status.version, storageVersion, Downgrade.version: compared by presence",
        "name the program, not its behaviour";
    AlarmText: "Status.errors: two spaces compared as one",
        "Go's text format puts one or two, by a hash of the program, so that nobody relies on it";
    DbSize: "Status.dbSize, dbSizeInUse: compared as zero or not",
        "depend on the file format";
    HashValue: "Hash.hash, HashKV.hash: not compared",
        "etcd hashes its own rows; clients compare members of one cluster only";
    HashAtCompaction: "HashKV of a revision that was compacted to: its compact_revision, whether it \
                       is answered when compacted further, and 0 after a compaction at 0",
        "etcd remembers the hashes that its last ten compactions made, and answers from them";
    MemberUrls: "Member.name, peerURLs, clientURLs: compared by presence",
        "configuration of the process";
    ChosenLease: "lease ids picked by the server: the n-th of one stands for the n-th of the other",
        "random by contract";
    LeaseKeyOrder: "order of the keys in LeaseTimeToLive: not compared",
        "etcd lists them in the order of a Go map, which is random";
    LeaseOrder: "order of LeaseLeases: not compared",
        "it is by expiry, and leases granted within a millisecond expire in either order";
    OrphanLease: "leases in LeaseLeases that no answer has named: not compared",
        "etcd's election service grants itself leases of 60 s to look up a leader";
    SessionKey: "lock and election keys made for a lease picked by the server: as ChosenLease",
        "the key ends in the lease id";
    RemainingTtl: "TTL that remains: may differ by 2 s",
        "the two servers' clocks run on between the two requests";
    TieOrder: "Range sorted by VERSION, CREATE, MOD or VALUE: order within equal sort values, and \
               which of them a limit keeps",
        "Go's sort is not stable, the order is unspecified";
    DecodeText: "text of the error for undecodable messages and unknown methods: code only",
        "comes from the protobuf and gRPC libraries";
    WireType: "random bytes that etcd takes and we call undecodable",
        "Go passes over a known field that has another wire type, prost refuses the message";
    StreamChunks: "RangeStream: how keys spread over messages, and what came before an error",
        "chunking is the server's choice; the merged answer is compared";
    WatchBatches: "watch events: how revisions spread over responses, fragments merged",
        "depends on timing; the sequence of events is compared";
    CatchUpHeader: "header.revision of watch responses for a watch into history: not compared",
        "the store's revision when the catch-up ran, by contract";
    LateHeader: "header.revision of a cancel reply after its script ended: not compared",
        "later scripts have already moved the revision on";
    ProgressDropped: "progress responses: not compared one by one, but each must hold its promise \
                      and the last must come",
        "etcd drops a request while a watch is not synced";
    CancelRace: "events of a watch cancelled by its client: one server's may be a prefix of the \
                 other's",
        "a cancel may overtake events by contract";
    SecondCancel: "second cancel reply for a watch cancelled by compaction: not compared",
        "etcd keeps the id until the client cancels it, too";
}

static USED: [AtomicU64; EXCEPTIONS.len()] = [const { AtomicU64::new(0) }; EXCEPTIONS.len()];

impl Exception {
    /// Counts that a difference was, or could have been, let pass for this reason.
    pub fn used(self) {
        USED[self as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the table as text, with how often each row was used by this process.
pub fn table() -> String {
    let mut text = String::new();
    for (exception, name, what, reason) in EXCEPTIONS {
        let used = USED[*exception as usize].load(Ordering::Relaxed);
        text.push_str(&format!("{name:<16} {used:>9}  {what}\n{:28}because: {reason}\n", ""));
    }
    text
}
