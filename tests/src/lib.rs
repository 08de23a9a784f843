//! tests

pub mod check;
pub mod differential;
pub mod process;
