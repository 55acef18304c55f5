//! Which upstream to ask first: the one that has been quickest, with the others tried now and then.
//!
//! A pure type. Times are smoothed round trips in microseconds; a server never asked counts as quickest, so that each is
//! tried, and the time of a server passed over shrinks a little each time, so that one that has recovered is found.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

/// Servers remembered at one time.
const MAX_SERVERS: usize = 4096;
/// What a silent server counts as at most, in microseconds.
const WORST: u64 = 10_000_000;

#[derive(Debug, Default)]
pub(super) struct UpstreamTimes {
    smoothed: HashMap<SocketAddr, u64>,
}

impl UpstreamTimes {
    /// `upstreams` with the quickest first; equals keep their order.
    pub fn order(&mut self, upstreams: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut ordered = upstreams.to_vec();
        ordered.sort_by_key(|server| self.time_of(server));
        for server in ordered.iter().skip(1) {
            if let Some(time) = self.smoothed.get_mut(server) {
                *time -= *time / 50;
            }
        }
        ordered
    }

    fn time_of(&self, server: &SocketAddr) -> u64 {
        self.smoothed.get(server).copied().unwrap_or(0)
    }

    pub fn answered(&mut self, server: SocketAddr, took: Duration) {
        let took = u64::try_from(took.as_micros())
            .unwrap_or(WORST)
            .clamp(1, WORST);
        self.change(server, |time| match time {
            0 => took,
            time => (time * 7 + took * 3) / 10,
        });
    }

    /// No answer of use within `waited`.
    pub fn failed(&mut self, server: SocketAddr, waited: Duration) {
        let waited = u64::try_from(waited.as_micros()).unwrap_or(WORST);
        self.change(server, |time| (time * 2).max(waited).clamp(1000, WORST));
    }

    fn change(&mut self, server: SocketAddr, change: impl FnOnce(u64) -> u64) {
        if self.smoothed.len() >= MAX_SERVERS && !self.smoothed.contains_key(&server) {
            // More servers than any site has: old ones were removed from the configuration. Learn anew.
            self.smoothed.clear();
        }
        let time = self.smoothed.entry(server).or_insert(0);
        *time = change(*time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_comes_first_and_a_silent_one_last() {
        let servers: Vec<SocketAddr> = ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        let mut times = UpstreamTimes::default();
        assert_eq!(times.order(&servers), servers, "all unknown: as configured");
        times.failed(servers[0], Duration::from_millis(500));
        times.answered(servers[1], Duration::from_millis(20));
        times.answered(servers[2], Duration::from_millis(5));
        assert_eq!(times.order(&servers), [servers[2], servers[1], servers[0]]);
        let tried_again = (0..2000).position(|_| times.order(&servers)[0] == servers[0]);
        assert!(
            tried_again.is_some_and(|after| after > 50),
            "{tried_again:?}"
        );
    }
}
