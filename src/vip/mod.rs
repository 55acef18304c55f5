//! Virtual addresses: held only by the leader with a fresh lease.
