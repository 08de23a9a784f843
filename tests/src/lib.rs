//! The trials: how Atoll proves itself. Judges of histories, the deterministic simulator,
//! and the comparison with etcd.

pub mod check;
pub mod differential;
pub mod process;
pub mod sim;
