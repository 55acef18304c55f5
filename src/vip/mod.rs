//! Virtual addresses: held only by the leader with a fresh lease.
//!
//! `machine` decides: who may hold is its business alone, and it has neither clock nor socket. Nothing here calls consensus: leadership and the snapshot
//! come in over channels.

pub mod machine;
