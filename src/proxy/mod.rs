//! Forwarding TCP from listeners to pools.
