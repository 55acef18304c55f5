//! Answering DNS: authoritative from the snapshot, else from upstreams through a bounded cache.
