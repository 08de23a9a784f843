//! The trials: how Atoll proves itself. Judges of histories, the deterministic simulator,
//! real processes that are killed again and again, and the comparison with etcd.

pub mod chaos;
pub mod check;
pub mod differential;
pub mod process;
pub mod sim;
pub mod split;
