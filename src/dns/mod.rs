//! Answering DNS: authoritative from the snapshot, else from upstreams through a bounded cache.

pub mod answer;
pub mod cache;
pub mod message;
pub mod respond;
mod zone_tree;

#[cfg(test)]
mod agreement_tests;
#[cfg(test)]
mod answer_tests;
#[cfg(test)]
mod testing;
