//! Replication: openraft behind our own words.

pub mod gate;
pub mod network;
pub mod types;
