//! The fault laboratory of Pontoon.
//!
//! `lab` makes hosts in network namespaces and runs real nodes in them; `probe` and `witness` watch from outside, as a client
//! or a neighbour would; `failover` puts them together and measures. A fault of the harness is a [`lab::LabError`], never a finding.

pub mod backend;
pub mod check;
pub mod checker;
pub mod failover;
pub mod history;
pub mod hold;
pub mod lab;
pub mod probe;
pub mod witness;
