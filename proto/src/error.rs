//! The error table: every error a client can see, with its exact gRPC code and text.
//!
//! Clients decide by these: Go's client converts by looking the text up, retry decisions go
//! by the code. So the texts are an interface; they are etcd's to the letter (api/v3rpc/
//! rpctypes) where etcd has the condition, and begin with `atoll: ` where it has not.
//! Two rows carry code Unknown on purpose: etcd lets them leave the server as plain errors.
//!
//! The rows about tenants have codes that etcd's clients hand to their user at once, streams
//! included. Not Unavailable: reads, watches and keepalives would be tried again without end and
//! without a word, and nothing changes before an operator acts. Not NotFound: clients take that
//! for a lease that has ended.

use std::fmt;

/// gRPC status codes by their numbers in the gRPC specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Code {
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    OutOfRange = 11,
    Unimplemented = 12,
    Unavailable = 14,
    DataLoss = 15,
}

/// What the asker may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The answer is final.
    No,
    /// Nothing happened: the same request may be sent again, perhaps elsewhere.
    Again,
    /// It may have happened; repeating is safe for reads only.
    ReadsOnly,
}

macro_rules! table {
    ($($name:ident = $number:literal, $code:ident, $text:literal;)*) => {
        /// A condition a client can be told of. The numbers travel between nodes: never reuse one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Error {
            $(#[doc = $text] $name = $number,)*
        }

        impl Error {
            /// All rows, for tests and look-ups.
            pub const ALL: &[Error] = &[$(Error::$name),*];

            /// The gRPC code of the row.
            pub fn code(self) -> Code {
                match self { $(Error::$name => Code::$code,)* }
            }

            /// The exact text of the row.
            pub fn text(self) -> &'static str {
                match self { $(Error::$name => $text,)* }
            }
        }
    };
}

table! {
    EmptyKey = 1, InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound = 2, InvalidArgument, "etcdserver: key not found";
    ValueProvided = 3, InvalidArgument, "etcdserver: value is provided";
    LeaseProvided = 4, InvalidArgument, "etcdserver: lease is provided";
    TooManyOps = 5, InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey = 6, InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidClientApiVersion = 7, InvalidArgument, "etcdserver: invalid client api version";
    InvalidSortOption = 8, InvalidArgument, "etcdserver: invalid sort option";
    MemberBadUrls = 9, InvalidArgument, "etcdserver: given member URLs are invalid";
    RequestTooLarge = 10, InvalidArgument, "etcdserver: request is too large";
    Compacted = 11, OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRevision = 12, OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    LeaseTtlTooLarge = 13, OutOfRange, "etcdserver: too large lease TTL";
    NoSpace = 14, ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    TooManyRequests = 15, ResourceExhausted, "etcdserver: too many requests";
    LeaseNotFound = 16, NotFound, "etcdserver: requested lease not found";
    MemberNotFound = 17, NotFound, "etcdserver: member not found";
    LeaseExists = 18, FailedPrecondition, "etcdserver: lease already exists";
    MemberExists = 19, FailedPrecondition, "etcdserver: member ID already exist";
    PeerUrlExists = 20, FailedPrecondition, "etcdserver: Peer URLs already exists";
    MemberNotEnoughStarted = 21, Unknown, "etcdserver: re-configuration failed due to not enough started members";
    MemberNotLearner = 22, FailedPrecondition, "etcdserver: can only promote a learner member";
    LearnerNotReady = 23, FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    TooManyLearners = 24, FailedPrecondition, "etcdserver: too many learner members in cluster";
    ClusterIdMismatch = 25, FailedPrecondition, "etcdserver: cluster ID mismatch";
    AuthNotEnabled = 26, FailedPrecondition, "etcdserver: authentication is not enabled";
    NotLeader = 27, FailedPrecondition, "etcdserver: not leader";
    NotSupportedForLearner = 28, FailedPrecondition, "etcdserver: rpc not supported for learner";
    BadLeaderTransferee = 29, FailedPrecondition, "etcdserver: bad leader transferee";
    PermissionDenied = 30, PermissionDenied, "etcdserver: permission denied";
    NoLeader = 31, Unavailable, "etcdserver: no leader";
    LeaderChanged = 32, Unavailable, "etcdserver: leader changed";
    Stopped = 33, Unavailable, "etcdserver: server stopped";
    Timeout = 34, Unavailable, "etcdserver: request timed out";
    TimeoutLeaderFail = 35, Unavailable, "etcdserver: request timed out, possibly due to previous leader failure";
    TimeoutConnectionLost = 36, Unavailable, "etcdserver: request timed out, possibly due to connection lost";
    UnhealthyCluster = 37, Unavailable, "etcdserver: unhealthy cluster";
    Corrupt = 38, DataLoss, "etcdserver: corrupt cluster";
    WatchCanceled = 39, Canceled, "etcdserver: watch canceled";
    RequestCanceled = 40, Canceled, "etcdserver: request canceled";
    DowngradeBadFormat = 41, InvalidArgument, "etcdserver: wrong downgrade target version format";
    DowngradeBadTarget = 42, InvalidArgument, "etcdserver: invalid downgrade target version";
    NoInflightDowngrade = 43, FailedPrecondition, "etcdserver: no inflight downgrade job";
    StreamSortUnsupported = 44, Unimplemented, "RangeStream does not support custom sort orders";
    StreamFilterUnsupported = 45, Unimplemented, "RangeStream does not support revision filters";
    AuthUnavailable = 46, Unimplemented, "atoll: users and roles are not available yet";
    SnapshotUnavailable = 47, Unimplemented, "atoll: snapshots in etcd's file format are not available yet";
    LeaderFieldMissing = 48, Unknown, "\"leader\" field must be provided";
    ElectionNoLeader = 49, Unknown, "election: no leader";
    SessionExpired = 50, Unknown, "election: session expired";
    StaleRange = 51, Unavailable, "atoll: the range has moved";
    Quarantined = 52, DataLoss, "atoll: this replica is quarantined, its data is damaged";
    DamagedValue = 53, DataLoss, "atoll: a value is damaged on the disk of this member";
    UnknownTenant = 54, PermissionDenied, "atoll: no such tenant";
    TenantMismatch = 55, PermissionDenied, "atoll: the request names more than one tenant";
    NoTenant = 56, PermissionDenied, "atoll: the request names no tenant";
    TenantFrozen = 57, FailedPrecondition, "atoll: the tenant is frozen";
    TenantDeleted = 58, FailedPrecondition, "atoll: the tenant is deleted";
    MembersFixed = 59, PermissionDenied, "atoll: members are nodes of the service; ask its operator";
    NodeInUse = 61, FailedPrecondition, "atoll: the node has replicas of tenants: drain it first";
    NotSupportedForLeader = 60, FailedPrecondition, "atoll: a leader does not remove itself";
    ForeignGroup = 70, Unavailable, "atoll: the group serves another tenant";
}

impl Error {
    /// The row with this number, if this program knows it.
    pub fn from_number(number: u32) -> Option<Error> {
        Error::ALL.iter().copied().find(|row| *row as u32 == number)
    }

    /// Number of the row between nodes.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// Does a group that has done nothing say by this that it is ahead of the asker's map, or
    /// behind it? Another map, or a little time, may lead to an answer.
    pub fn is_stale(self) -> bool {
        matches!(
            self,
            Error::StaleRange | Error::ForeignGroup | Error::TenantFrozen | Error::TenantDeleted
        )
    }

    /// What the asker may do.
    pub fn retry(self) -> Retry {
        match self {
            Error::NoLeader | Error::StaleRange | Error::ForeignGroup | Error::Quarantined => {
                Retry::Again
            }
            Error::LeaderChanged
            | Error::Stopped
            | Error::Timeout
            | Error::TimeoutLeaderFail
            | Error::TimeoutConnectionLost => Retry::ReadsOnly,
            _ => Retry::No,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Error {}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> tonic::Status {
        tonic::Status::new(tonic::Code::from_i32(error.code() as i32), error.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_and_texts_are_unique() {
        let numbers: BTreeSet<u32> = Error::ALL.iter().map(|e| e.number()).collect();
        let texts: BTreeSet<&str> = Error::ALL.iter().map(|e| e.text()).collect();
        assert_eq!(numbers.len(), Error::ALL.len());
        assert_eq!(texts.len(), Error::ALL.len());
        assert!(Error::ALL.iter().all(|e| Error::from_number(e.number()) == Some(*e)));
    }

    #[test]
    fn texts_carry_an_owner() {
        for error in Error::ALL {
            let text = error.text();
            assert!(
                ["etcdserver: ", "atoll: ", "election: ", "RangeStream ", "\"leader\""]
                    .iter()
                    .any(|owner| text.starts_with(owner)),
                "{text}"
            );
        }
    }
}
