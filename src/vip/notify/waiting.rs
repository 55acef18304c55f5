//! Decides which notices are told when the command is slower than the VIPs change: in order, and never one that leaves a VIP told of as
//! it is no more.

use std::{collections::BTreeMap, net::IpAddr};

use super::Notice;
use crate::model::label::Label;

/// Notices that wait for their run.
///
/// Of one VIP two wait at most: a third takes the place of both, which say nothing any more. So a VIP that comes and goes ten times
/// during one run of the command is told of as it is in the end.
#[derive(Debug)]
pub(super) struct Waiting {
    /// By a number that grows.
    notices: BTreeMap<u64, Notice>,
    /// The numbers of those of each VIP.
    of_vip: BTreeMap<(IpAddr, Label), Vec<u64>>,
    next: u64,
    at_most: usize,
}

impl Waiting {
    /// `at_most`: of all VIPs together.
    pub fn new(at_most: usize) -> Self {
        Self {
            notices: BTreeMap::new(),
            of_vip: BTreeMap::new(),
            next: 0,
            at_most,
        }
    }

    /// Puts it at the end.
    ///
    /// # Errors
    /// It comes back when too many wait.
    pub fn push(&mut self, notice: Notice) -> Result<(), Notice> {
        let vip = (notice.address, notice.interface.clone());
        let before = self.of_vip.get(&vip).map_or(0, Vec::len);
        if before >= 2 {
            for number in self.of_vip.remove(&vip).unwrap_or_default() {
                self.notices.remove(&number);
            }
        }
        if self.notices.len() >= self.at_most {
            return Err(notice);
        }
        self.of_vip.entry(vip).or_default().push(self.next);
        self.notices.insert(self.next, notice);
        self.next += 1;
        Ok(())
    }

    /// The oldest.
    pub fn pop(&mut self) -> Option<Notice> {
        let (number, notice) = self.notices.pop_first()?;
        let vip = (notice.address, notice.interface.clone());
        if let Some(numbers) = self.of_vip.get_mut(&vip) {
            numbers.retain(|of_vip| *of_vip != number);
            if numbers.is_empty() {
                self.of_vip.remove(&vip);
            }
        }
        Some(notice)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::vip::notify::Turn;

    fn notice(vip: u8, turn: Turn, term: u64) -> Notice {
        Notice {
            turn,
            address: [192, 0, 2, vip].into(),
            interface: "vip".parse().unwrap(),
            device: None,
            term,
        }
    }

    #[test]
    fn a_third_notice_of_a_vip_takes_the_place_of_two() {
        let mut waiting = Waiting::new(10);
        for (vip, turn, term) in [
            (1, Turn::Release, 1),
            (2, Turn::Release, 2),
            (1, Turn::Claim, 3),
            (1, Turn::Release, 4),
        ] {
            waiting.push(notice(vip, turn, term)).unwrap();
        }
        let told: Vec<Notice> = std::iter::from_fn(|| waiting.pop()).collect();
        let expected = [notice(2, Turn::Release, 2), notice(1, Turn::Release, 4)];
        assert_eq!(told, expected);
        assert!(waiting.of_vip.is_empty());
    }

    #[test]
    fn what_is_too_much_comes_back() {
        let mut waiting = Waiting::new(2);
        for vip in 1..=2 {
            waiting.push(notice(vip, Turn::Claim, 1)).unwrap();
        }
        let third = notice(3, Turn::Claim, 1);
        assert_eq!(waiting.push(third.clone()), Err(third.clone()));
        assert_eq!(waiting.pop(), Some(notice(1, Turn::Claim, 1)));
        assert_eq!(waiting.push(third), Ok(()));
    }

    proptest! {
        /// VIPs come and go, and the command runs now and then: turns of a VIP are told by turns and in order, the last one among them, and
        /// no more than two of each wait. A command that keeps up is told everything.
        #[test]
        fn the_last_turn_of_each_vip_is_told(
            steps in prop::collection::vec(prop::option::weighted(0.7, 0u8..4), 0..200),
            keeps_up: bool,
        ) {
            let mut waiting = Waiting::new(8);
            let mut held = BTreeSet::new();
            let (mut happened, mut told) = (vec![], vec![]);
            for (term, step) in (0u64..).zip(steps) {
                if let Some(vip) = step {
                    let turn = match held.remove(&vip) {
                        true => Turn::Release,
                        false => Turn::Claim,
                    };
                    if turn == Turn::Claim {
                        held.insert(vip);
                    }
                    let notice = notice(vip, turn, term);
                    happened.push(notice.clone());
                    prop_assert_eq!(waiting.push(notice), Ok(()));
                }
                if step.is_none() || keeps_up {
                    told.extend(waiting.pop());
                }
            }
            told.extend(std::iter::from_fn(|| waiting.pop()));
            prop_assert!(told.is_sorted_by_key(|notice| notice.term));
            if keeps_up {
                prop_assert_eq!(&told, &happened);
            }
            for vip in 0..4u8 {
                let of = |all: &[Notice]| -> Vec<Notice> {
                    let of_vip = all.iter().filter(|n| n.address == IpAddr::from([192, 0, 2, vip]));
                    of_vip.cloned().collect()
                };
                let (told, happened) = (of(&told), of(&happened));
                prop_assert_eq!(told.last(), happened.last());
                prop_assert!(told.windows(2).all(|two| two[0].turn != two[1].turn), "{:?}", told);
            }
        }
    }
}
