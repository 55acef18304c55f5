//! Pontoon: DNS, load balancing and virtual addresses from one replicated log.

#[cfg(test)]
mod alone;
pub mod api;
pub mod cli;
pub mod config;
pub mod consensus;
pub mod defect;
pub mod dev;
pub mod dns;
pub mod enrol;
pub mod model;
pub mod node;
pub mod pki;
pub mod priority;
pub mod proxy;
pub mod shortage;
pub mod site;
#[cfg(test)]
mod skipped;
pub mod state;
pub mod telemetry;
pub mod transport;
pub mod vip;
pub mod wire;
pub mod zonefile;
