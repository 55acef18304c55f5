//! Domain values: what the cluster is about, without sockets, clocks, executors or randomness.
//!
//! The words are those of `docs/glossary.md`. Everything here is an ordinary value; `state` changes them, the servers read them.

pub mod few;
pub mod forwarder;
pub mod health;
pub mod label;
pub mod leadership;
pub mod listener;
pub mod moment;
pub mod name;
pub mod network;
pub mod node;
pub mod pool;
pub mod quoted;
pub mod rdata;
pub mod rrset;
pub mod serial;
pub mod snapshot;
pub mod timing;
pub mod vip;
pub mod zone;
