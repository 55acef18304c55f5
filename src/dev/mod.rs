//! `pontoon dev`: a local cluster; owns its child processes.
