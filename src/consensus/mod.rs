//! Replication: openraft behind our own words.

pub mod engine;
pub mod engine_memory;
pub mod engine_sled;
pub mod gate;
pub mod health;
pub mod log_store;
pub mod machine_store;
pub mod network;
pub mod publication;
mod record;
pub mod snapshot_file;
pub mod storage;
pub mod types;
pub mod watermark;
mod writer;
