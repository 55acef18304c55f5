//! The machine's actions, in the order in which they are carried out.
//!
//! The kernel may keep each `Add` waiting, and a thousand may be asked for at once. What is on an interface already must not fall silent
//! or expire meanwhile: what permits, silences or renews goes before them.

use std::collections::VecDeque;

use super::Action;

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// What stands before the first `Add`.
    first: VecDeque<Action>,
    /// Begins with the first `Add`; empty, where there is none.
    rest: VecDeque<Action>,
}

impl Queue {
    /// Puts it at the end; or, if it permits, silences or renews, right before the first `Add`. So these keep their order among
    /// themselves, a permission and the `Silence` after it above all; and so do all others.
    pub fn push(&mut self, action: Action) {
        let is_for_later = is_add(&action) || !self.rest.is_empty();
        match goes_first(&action) || !is_for_later {
            true => self.first.push_back(action),
            false => self.rest.push_back(action),
        }
    }

    pub fn pop(&mut self) -> Option<Action> {
        let next = self.first.pop_front().or_else(|| self.rest.pop_front());
        while self.rest.front().is_some_and(|action| !is_add(action)) {
            self.first.extend(self.rest.pop_front());
        }
        next
    }

    /// What `pop` returns next.
    pub fn peek(&self) -> Option<&Action> {
        self.first.front().or_else(|| self.rest.front())
    }
}

fn is_add(action: &Action) -> bool {
    matches!(action, Action::Add(_))
}

fn goes_first(action: &Action) -> bool {
    match action {
        Action::Permit { .. } | Action::Silence(_) | Action::Renew(_) => true,
        Action::Add(_)
        | Action::Remove(_)
        | Action::Announce(_)
        | Action::Serve(_)
        | Action::EndServe(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::{super::Target, *};

    fn actions(now: Instant) -> impl Strategy<Value = Action> {
        (0u8..8, any::<u8>()).prop_map(move |(kind, n)| {
            let target = Target {
                address: [10, 77, 0, n].into(),
                interface: "vip".parse().unwrap(),
            };
            match kind {
                0 => Action::Permit {
                    targets: [target].into(),
                    lease_until: now,
                },
                1 => Action::Silence(target),
                2 => Action::Renew(target),
                3 => Action::Remove(target),
                4 => Action::Announce(target),
                5 => Action::Serve(target),
                6 => Action::EndServe(target),
                _ => Action::Add(target),
            }
        })
    }

    proptest! {
        /// It does what a list would in which the place before the first `Add` is looked for each time.
        #[test]
        fn what_goes_first_stands_before_the_first_add_and_nothing_else_changes_its_place(
            steps in prop::collection::vec(prop::option::weighted(0.6, actions(Instant::now())), 0..200),
        ) {
            let (mut queue, mut list) = (Queue::default(), Vec::new());
            for step in steps {
                match step {
                    Some(action) => {
                        let end = list.len();
                        let before_adds = list.iter().position(is_add).unwrap_or(end);
                        let place = if goes_first(&action) { before_adds } else { end };
                        list.insert(place, action.clone());
                        queue.push(action);
                    }
                    None => {
                        let expected = (!list.is_empty()).then(|| list.remove(0));
                        prop_assert_eq!(queue.pop(), expected);
                    }
                }
                prop_assert_eq!(queue.peek(), list.first());
            }
            let left: Vec<Action> = std::iter::from_fn(|| queue.pop()).collect();
            prop_assert_eq!(left, list);
        }
    }
}
