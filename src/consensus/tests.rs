//! Clusters of several nodes in this process.
