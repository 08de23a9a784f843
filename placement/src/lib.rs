//! The steward: decides who lives where, and moves them. Empty as yet: a tenant has one group, on
//! the nodes it was started with.
