//! How a machine becomes a member: its identity on disk, `cluster init`, and `cluster join`.
//!
//! Both commands only write the identity; the node process reads it at start, or waits for it when it started first.

pub mod admin_files;
pub mod identity_file;
pub mod init;
pub mod join;
pub mod ownership;
pub mod service;
pub mod vacancy;

pub use identity_file::{IdentityError, IdentityFile, StoredIdentity};
