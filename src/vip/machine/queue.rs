//! The machine's actions, in the order in which they are carried out.
//!
//! The kernel may keep each `Add` and `Remove` waiting, and a thousand may be asked for at once. What is on an interface already must not
//! fall silent or expire meanwhile: what permits, silences or renews goes before each `Add`, and is done while one of either takes its
//! time. All else waits for its end.

use std::collections::VecDeque;

use super::Action;

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// What stands before the first `Add`, or, while something takes its time, before the end of that.
    first: VecDeque<Action>,
    /// Begins with the first `Add`, or behind what takes its time.
    rest: VecDeque<Action>,
    /// What `pop` returned last takes its time.
    held_up: bool,
}

impl Queue {
    /// Puts it at the end; or, if it permits, silences or renews, right before the first `Add`. So these keep their order among
    /// themselves, a permission and the `Silence` after it above all; and so do all others.
    pub fn push(&mut self, action: Action) {
        let is_for_later = is_add(&action) || self.held_up || !self.rest.is_empty();
        match goes_first(&action) || !is_for_later {
            true => self.first.push_back(action),
            false => self.rest.push_back(action),
        }
    }

    pub fn pop(&mut self) -> Option<Action> {
        let next = self.first.pop_front();
        if self.held_up {
            return next;
        }
        let next = next.or_else(|| self.rest.pop_front());
        self.advance();
        next
    }

    /// What `pop` returns next.
    pub fn peek(&self) -> Option<&Action> {
        let rest = self.rest.front().filter(|_| !self.held_up);
        self.first.front().or(rest)
    }

    /// What `pop` returned last takes its time: until `go_on`, only what goes before each `Add` is returned.
    pub fn hold_up(&mut self) {
        self.held_up = true;
        let (first, behind) = std::mem::take(&mut self.first)
            .into_iter()
            .partition(goes_first);
        self.first = first;
        let rest = std::mem::replace(&mut self.rest, behind);
        self.rest.extend(rest);
    }

    /// That has ended.
    pub fn go_on(&mut self) {
        self.held_up = false;
        self.advance();
    }

    /// What is behind no `Add` any more waits for none.
    fn advance(&mut self) {
        while self.rest.front().is_some_and(|action| !is_add(action)) {
            self.first.extend(self.rest.pop_front());
        }
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
        /// It does what a list would in which the place before the first `Add`, or before what takes its time, is looked for each time.
        #[test]
        fn what_goes_first_stands_before_what_may_take_its_time_and_nothing_else_changes_its_place(
            steps in prop::collection::vec((0u8..10, actions(Instant::now())), 0..200),
        ) {
            // None: what takes its time.
            let (mut queue, mut list) = (Queue::default(), Vec::<Option<Action>>::new());
            let is_held_up = |list: &[Option<Action>]| list.iter().position(Option::is_none);
            for (step, action) in steps {
                match step {
                    0..5 => {
                        let end = list.len();
                        let may_wait = |one: &Option<Action>| one.as_ref().is_none_or(is_add);
                        let before = list.iter().position(may_wait).unwrap_or(end);
                        let place = if goes_first(&action) { before } else { end };
                        list.insert(place, Some(action.clone()));
                        queue.push(action);
                    }
                    5..8 => {
                        let is_there = list.first().is_some_and(Option::is_some);
                        let expected = is_there.then(|| list.remove(0)).flatten();
                        prop_assert_eq!(queue.pop(), expected);
                    }
                    8 if is_held_up(&list).is_none() => {
                        let goes_on = |one: &Option<Action>| one.as_ref().is_some_and(goes_first);
                        let (mut all, behind): (Vec<_>, Vec<_>) = list.into_iter().partition(goes_on);
                        all.push(None);
                        all.extend(behind);
                        list = all;
                        queue.hold_up();
                    }
                    _ => if let Some(place) = is_held_up(&list) {
                        list.remove(place);
                        queue.go_on();
                    }
                }
                prop_assert_eq!(queue.peek(), list.first().and_then(Option::as_ref));
            }
            queue.go_on();
            let left: Vec<Action> = std::iter::from_fn(|| queue.pop()).collect();
            let expected: Vec<Action> = list.into_iter().flatten().collect();
            prop_assert_eq!(left, expected);
        }
    }
}
