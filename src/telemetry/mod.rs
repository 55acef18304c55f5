//! Logs, metrics and health over HTTP.
//!
//! Owns the global log subscriber and the HTTP endpoint. Logging never blocks the code that logs: lines pass through a
//! bounded queue to a writer thread, whatever the target; lines that do not fit, and those that the target refuses, are
//! dropped and counted.

mod daemon;
pub mod http;
mod journald;
pub mod log;
mod lost;
pub mod metrics;
mod rotate;
mod syslog;
pub mod throttle;
