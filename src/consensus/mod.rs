//! Replication: openraft behind our own words.
