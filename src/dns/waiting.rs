//! The client questions that wait for upstreams: whose they are, for which forwarder, and how many there may be.
//!
//! A pure type. One of several forwarders gets half of the places, of all and of each client: servers that are slow leave
//! room for those of other suffixes, though a whole network may ask from one address.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
};

use crate::model::name::Name;

use super::under_way::Share;

/// Questions that wait at one time.
#[derive(Debug)]
pub(super) struct Waiting {
    most: usize,
    most_per_client: usize,
    total: usize,
    by_client: HashMap<IpAddr, usize>,
    by_suffix: HashMap<Name, usize>,
    by_both: HashMap<(IpAddr, Name), usize>,
}

impl Waiting {
    /// Room for `most` questions, and of these `most_per_client` from one address.
    pub fn new(most: usize, most_per_client: usize) -> Self {
        Self {
            most,
            most_per_client,
            total: 0,
            by_client: HashMap::new(),
            by_suffix: HashMap::new(),
            by_both: HashMap::new(),
        }
    }

    /// Takes a place for a question of `client` that waits for the forwarder of `suffix`; false: there is none. Give it back
    /// with `end`.
    pub fn begin(&mut self, client: IpAddr, suffix: &Name, share: Share) -> bool {
        let both = (client, suffix.clone());
        let of_all = share.of(self.most);
        let of_client = share.of(self.most_per_client);
        let is_full = self.total >= self.most
            || number(&self.by_client, &client) >= self.most_per_client
            || number(&self.by_suffix, suffix) >= of_all
            || number(&self.by_both, &both) >= of_client;
        if is_full {
            return false;
        }
        self.total += 1;
        *self.by_client.entry(client).or_insert(0) += 1;
        *self.by_suffix.entry(suffix.clone()).or_insert(0) += 1;
        *self.by_both.entry(both).or_insert(0) += 1;
        true
    }

    /// Gives a place back that `begin` has given.
    pub fn end(&mut self, client: IpAddr, suffix: &Name) {
        self.total = self.total.saturating_sub(1);
        take_one(&mut self.by_client, client);
        take_one(&mut self.by_suffix, suffix.clone());
        take_one(&mut self.by_both, (client, suffix.clone()));
    }

    pub fn total(&self) -> usize {
        self.total
    }
}

fn number<K: Eq + Hash>(counts: &HashMap<K, usize>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or(0)
}

fn take_one<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() = count.get().saturating_sub(1);
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::dns::{testing::name, under_way::half};

    use super::*;

    fn client(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    #[test]
    fn one_of_several_forwarders_gets_half_of_the_places_of_a_client() {
        let (slow, quick) = (name("10.in-addr.arpa."), name("."));
        let mut waiting = Waiting::new(100, 5);
        let mut begin = |suffix, share| waiting.begin(client(1), suffix, share);
        let slow_ones = [(); 4].map(|()| begin(&slow, Share::Half));
        assert_eq!(slow_ones, [true, true, true, false]);
        assert!(begin(&quick, Share::Half));
        assert!(begin(&slow, Share::Whole), "the only forwarder left");
        assert!(!begin(&quick, Share::Half), "all places are taken");
        assert!(waiting.begin(client(2), &slow, Share::Half));
    }

    proptest! {
        /// Whatever begins and ends: nobody has more than the bounds allow, and nothing is left over in the end.
        #[test]
        fn counts_are_true_and_bounded(
            steps in proptest::collection::vec((any::<bool>(), 0u8..3, 0usize..3), 1..200),
            most in 1usize..8,
            per_client in 1usize..6,
        ) {
            let suffixes = ["x.", "y.", "z."].map(name);
            let mut waiting = Waiting::new(most, per_client);
            let mut held: Vec<(u8, usize)> = Vec::new();
            for (begins, whose, suffix) in steps {
                let having = |test: &dyn Fn(&(u8, usize)) -> bool| held.iter().filter(|one| test(one)).count();
                if begins {
                    let room = held.len() < most
                        && having(&|one| one.0 == whose) < per_client
                        && having(&|one| one.1 == suffix) < half(most)
                        && having(&|one| *one == (whose, suffix)) < half(per_client);
                    let begun = waiting.begin(client(whose), &suffixes[suffix], Share::Half);
                    prop_assert_eq!(begun, room);
                    if begun {
                        held.push((whose, suffix));
                    }
                } else if !held.is_empty() {
                    let (whose, suffix) = held.remove(suffix % held.len());
                    waiting.end(client(whose), &suffixes[suffix]);
                }
                prop_assert_eq!(waiting.total(), held.len());
            }
            for (whose, suffix) in held {
                waiting.end(client(whose), &suffixes[suffix]);
            }
            prop_assert!(waiting.by_client.is_empty() && waiting.by_suffix.is_empty() && waiting.by_both.is_empty());
        }
    }
}
