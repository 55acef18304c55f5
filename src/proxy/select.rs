//! Choosing a backend for a new connection. Deciding code: no clock, no sockets, no randomness but the seed it is given.
//!
//! Only a backend that is up, enabled and has a weight above zero is *available*. When none is, nothing is chosen and the
//! connection is refused: sending clients to a backend known to be down would hide the outage behind timeouts.
//!
//! A choice costs time in proportion to the number of backends; nothing is allocated.

use std::net::IpAddr;

use crate::model::{label::Label, pool::Policy};

/// What the choice knows of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Up, enabled and with a weight above zero.
    pub available: bool,
    /// Already tried for this very connection.
    pub tried: bool,
    /// Share of new connections, above zero when available.
    pub weight: u16,
    /// Connections of this node that the backend has now.
    pub connections: u32,
}

impl Candidate {
    fn may_be_chosen(&self) -> bool {
        self.available && !self.tried && self.weight > 0
    }
}

/// Remembers whose turn it is among the backends of one pool.
#[derive(Clone, Debug)]
pub struct Selector {
    policy: Policy,
    seed: u64,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Stable over restarts and equal on all nodes: made from the name.
    key: u64,
    /// Smooth weighted round robin: grows by the weight each turn, shrinks by the total when chosen.
    credit: i64,
    available: bool,
}

impl Selector {
    /// For backends in the order in which candidates will be given. The seed only decides who is first among equals, so
    /// that nodes started together do not all begin with the same backend.
    pub fn new<'a>(
        policy: Policy,
        backends: impl IntoIterator<Item = &'a Label>,
        seed: u64,
    ) -> Self {
        let entry = |name: &Label| Entry {
            key: hash_bytes(name.as_str().as_bytes()),
            credit: 0,
            available: false,
        };
        Self {
            policy,
            seed,
            entries: backends.into_iter().map(entry).collect(),
        }
    }

    /// The index of the backend for a connection from `client`; None when no candidate may be chosen.
    /// `candidates` are in the order given to `new`; any beyond that number are passed over.
    pub fn choose(&mut self, candidates: &[Candidate], client: IpAddr) -> Option<usize> {
        self.notice_availability(candidates);
        match self.policy {
            Policy::RoundRobin => self.next_turn(candidates, |_| true),
            Policy::LeastConnections => {
                let least = candidates
                    .iter()
                    .filter(|c| c.may_be_chosen())
                    .min_by(|a, b| compare_load(a, b))?;
                self.next_turn(candidates, |c| compare_load(c, least).is_eq())
            }
            Policy::SourceHash => self.highest_score(candidates, client),
        }
    }

    /// When a backend comes or goes all credits start anew: those left over from other company would starve a backend
    /// of small weight for as many turns as the largest weight.
    fn notice_availability(&mut self, candidates: &[Candidate]) {
        let same = self
            .entries
            .iter()
            .zip(candidates)
            .all(|(entry, c)| entry.available == c.available);
        if same {
            return;
        }
        for (entry, candidate) in self.entries.iter_mut().zip(candidates) {
            entry.available = candidate.available;
            entry.credit = 0;
        }
    }

    /// One turn of smooth weighted round robin among the candidates that may be chosen and `take_part`.
    fn next_turn(
        &mut self,
        candidates: &[Candidate],
        take_part: impl Fn(&Candidate) -> bool,
    ) -> Option<usize> {
        let count = self.entries.len();
        let first = self.seed.checked_rem(count as u64)? as usize;
        let mut total = 0;
        let mut best: Option<usize> = None;
        for index in (first..count).chain(0..first) {
            let (Some(candidate), Some(entry)) =
                (candidates.get(index), self.entries.get_mut(index))
            else {
                continue;
            };
            if !candidate.may_be_chosen() || !take_part(candidate) {
                continue;
            }
            let weight = i64::from(candidate.weight);
            total += weight;
            entry.credit += weight;
            let credit = entry.credit;
            if best.is_none_or(|b| credit > self.entries[b].credit) {
                best = Some(index);
            }
        }
        let chosen = best?;
        self.entries[chosen].credit -= total;
        Some(chosen)
    }

    /// Weighted rendezvous hashing: every backend draws a score from the client's address and its own name, the highest
    /// wins. Losing a backend moves only its clients; a changed weight moves only as many as it must.
    fn highest_score(&self, candidates: &[Candidate], client: IpAddr) -> Option<usize> {
        let client = hash_address(client);
        self.entries
            .iter()
            .zip(candidates)
            .enumerate()
            .filter(|(_, (_, candidate))| candidate.may_be_chosen())
            .map(|(index, (entry, candidate))| (index, score(client, entry.key, candidate.weight)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(index, _)| index)
    }
}

/// Connections in proportion to weight, compared without division.
fn compare_load(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    let cross = |x: &Candidate, y: &Candidate| u64::from(x.connections) * u64::from(y.weight);
    cross(a, b).cmp(&cross(b, a))
}

/// `-weight / ln(u)` with `u` uniform in (0, 1): the largest belongs to a backend with probability weight / total.
fn score(client: u64, backend: u64, weight: u16) -> f64 {
    let bits = mix(client ^ mix(backend)) >> 11;
    let uniform = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(weight) / uniform.ln()
}

fn hash_address(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => hash_bytes(&v4.octets()),
        IpAddr::V6(v6) => hash_bytes(&v6.octets()),
    }
}

/// FNV-1a, then mixed: the same on every node and in every release, which the standard library's hasher is not.
fn hash_bytes(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

/// The finalizer of SplitMix64: every input bit changes about half of the output bits.
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn names(count: usize) -> Vec<Label> {
        (0..count)
            .map(|i| format!("b{i}").parse().unwrap())
            .collect()
    }

    fn up(weight: u16) -> Candidate {
        Candidate {
            available: true,
            tried: false,
            weight,
            connections: 0,
        }
    }

    fn selector(policy: Policy, count: usize) -> Selector {
        Selector::new(policy, &names(count), 0)
    }

    #[test]
    fn round_robin_is_smooth() {
        let mut rr = selector(Policy::RoundRobin, 3);
        let candidates = [up(5), up(1), up(1)];
        let order: Vec<_> = (0..7)
            .map(|_| rr.choose(&candidates, CLIENT).unwrap())
            .collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn the_seed_decides_who_is_first_among_equals() {
        let mut rr = Selector::new(Policy::RoundRobin, &names(3), 7);
        let candidates = [up(1), up(1), up(1)];
        let order: Vec<_> = (0..4)
            .map(|_| rr.choose(&candidates, CLIENT).unwrap())
            .collect();
        assert_eq!(order, [1, 2, 0, 1]);
    }

    #[test]
    fn nothing_is_chosen_when_nothing_is_available() {
        for policy in [
            Policy::RoundRobin,
            Policy::LeastConnections,
            Policy::SourceHash,
        ] {
            assert_eq!(selector(policy, 0).choose(&[], CLIENT), None);
            let mut down = up(1);
            down.available = false;
            let mut tried = up(1);
            tried.tried = true;
            let candidates = [down, tried, up(0)];
            assert_eq!(selector(policy, 3).choose(&candidates, CLIENT), None);
        }
    }

    #[test]
    fn least_connections_counts_in_proportion_to_weight() {
        let mut least = selector(Policy::LeastConnections, 3);
        let with = |weight, connections| Candidate {
            connections,
            ..up(weight)
        };
        // loads 2/1, 3/2, 9/4
        let candidates = [with(1, 2), with(2, 3), with(4, 9)];
        assert_eq!(least.choose(&candidates, CLIENT), Some(1));
    }

    #[test]
    fn idle_equals_take_turns_by_weight_under_least_connections() {
        let mut least = selector(Policy::LeastConnections, 2);
        let candidates = [up(3), up(1)];
        let second = (0..400)
            .filter(|_| least.choose(&candidates, CLIENT) == Some(1))
            .count();
        assert_eq!(second, 100);
    }

    #[test]
    fn a_backend_that_returns_is_not_starved() {
        let mut rr = selector(Policy::RoundRobin, 3);
        let all = [up(1000), up(1), up(1)];
        for _ in 0..700 {
            rr.choose(&all, CLIENT);
        }
        let mut without_heavy = all;
        without_heavy[0].available = false;
        let order: Vec<_> = (0..4)
            .map(|_| rr.choose(&without_heavy, CLIENT).unwrap())
            .collect();
        assert_eq!(order, [1, 2, 1, 2]);
    }

    #[test]
    fn source_hash_gives_shares_by_weight() {
        let mut hash = selector(Policy::SourceHash, 3);
        let candidates = [up(1), up(2), up(1)];
        let mut counts = [0; 3];
        for n in 0..20_000_u32 {
            let client = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n));
            counts[hash.choose(&candidates, client).unwrap()] += 1;
        }
        assert!((4_500..5_500).contains(&counts[0]), "{counts:?}");
        assert!((9_300..10_700).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn an_ipv4_mapped_client_hashes_as_its_ipv4_address() {
        let mut hash = selector(Policy::SourceHash, 5);
        let candidates = [up(1); 5];
        for n in 0..50 {
            let v4 = Ipv4Addr::new(10, 0, 0, n);
            let plain = hash.choose(&candidates, v4.into());
            assert_eq!(plain, hash.choose(&candidates, v4.to_ipv6_mapped().into()));
        }
    }

    fn candidate() -> impl Strategy<Value = Candidate> {
        (any::<bool>(), any::<bool>(), 0..=1000_u16, 0..5000_u32).prop_map(
            |(available, tried, weight, connections)| Candidate {
                available,
                tried,
                weight,
                connections,
            },
        )
    }

    proptest! {
        #[test]
        fn only_a_candidate_that_may_be_chosen_is(
            candidates in prop::collection::vec(candidate(), 0..20),
            policy in prop::sample::select(vec![Policy::RoundRobin, Policy::LeastConnections, Policy::SourceHash]),
            seed: u64,
            client: u32,
        ) {
            let mut selector = Selector::new(policy, &names(candidates.len()), seed);
            let chosen = selector.choose(&candidates, IpAddr::V4(client.into()));
            match chosen {
                Some(index) => prop_assert!(candidates[index].may_be_chosen()),
                None => prop_assert!(!candidates.iter().any(Candidate::may_be_chosen)),
            }
        }

        #[test]
        fn over_one_cycle_round_robin_gives_exactly_the_weights(
            weights in prop::collection::vec(0..20_u16, 1..8),
            seed: u64,
        ) {
            let candidates: Vec<_> = weights.iter().map(|w| up(*w)).collect();
            let mut selector = Selector::new(Policy::RoundRobin, &names(weights.len()), seed);
            let mut counts = vec![0_u16; weights.len()];
            for _ in 0..weights.iter().sum() {
                counts[selector.choose(&candidates, CLIENT).unwrap()] += 1;
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn credits_stay_bounded_whatever_happens(
            rounds in prop::collection::vec(prop::collection::vec(candidate(), 6), 1..200),
        ) {
            let mut selector = selector(Policy::LeastConnections, 6);
            for mut candidates in rounds {
                for c in &mut candidates { c.available = c.weight > 0 }
                selector.choose(&candidates, CLIENT);
                prop_assert!(selector.entries.iter().all(|e| e.credit.abs() <= 12 * 1000));
            }
        }

        #[test]
        fn losing_a_backend_moves_only_its_clients(lost in 0..6_usize, clients in prop::collection::vec(any::<u32>(), 100)) {
            let mut selector = selector(Policy::SourceHash, 6);
            let all = [up(1); 6];
            let mut rest = all;
            rest[lost].available = false;
            for client in clients {
                let client = IpAddr::V4(client.into());
                let before = selector.choose(&all, client).unwrap();
                let after = selector.choose(&rest, client).unwrap();
                prop_assert!(before == after || before == lost);
            }
        }
    }
}
