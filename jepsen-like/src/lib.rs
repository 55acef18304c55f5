//! The fault laboratory of Pontoon.
//!
//! `lab` makes hosts in network namespaces and runs real nodes in them; `probe` and `witness` watch from outside, as a client
//! or a neighbour would; `failover` puts them together and measures. `run` has `workload`s and a `nemesis` at once, records what
//! happens (`history`), and `checker` judges it. A fault of the harness is a [`lab::LabError`], never a finding.

pub mod arp;
pub mod backend;
pub mod canary;
pub mod census;
pub mod check;
pub mod checker;
pub mod failover;
pub mod failure;
pub mod history;
pub mod hold;
pub mod lab;
pub mod names;
pub mod nemesis;
pub mod observe;
pub mod output;
pub mod probe;
pub mod recorder;
pub mod report;
pub mod responders;
pub mod run;
pub mod selftest;
pub mod traffic;
pub mod waiting;
pub mod witness;
pub mod workload;
