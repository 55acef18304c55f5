//! Scenarios: real processes on loopback, one binary so that linking is cheap.

#[path = "../support/mod.rs"]
mod support;

mod defects;
mod dev;
mod disks;
mod kills;
mod members;
mod ports;
mod quorum;
mod watch;
