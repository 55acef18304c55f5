//! Replication: openraft behind our own words.

pub mod gate;
pub mod leadership;
pub mod membership;
pub mod network;
pub mod recovery;
pub mod types;
