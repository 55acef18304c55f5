//! Logs, metrics and health over HTTP.
//!
//! Owns the global log subscriber and the HTTP endpoint. Logging never blocks the code that logs: lines pass through a
//! bounded queue to a writer thread; lines that do not fit are dropped and counted.

pub mod http;
pub mod log;
pub mod metrics;
mod rotate;
mod syslog;
