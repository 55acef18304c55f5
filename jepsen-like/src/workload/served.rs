//! Where clients were served lately: what a run waits for once all faults are healed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use crate::{checker::planned::Trial, history::Moment};

/// For each place, by the words of its [`Trial`], the latest beginning of anything that succeeded there.
#[derive(Debug, Default)]
pub struct Served(Mutex<BTreeMap<String, Moment>>);

impl Served {
    /// Something succeeded that had begun then.
    pub fn note(&self, trial: Trial<'_>, began: Moment) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = latest.entry(trial.to_string()).or_default();
        *latest = began.max(*latest);
    }

    /// Whether something succeeded there that had begun at this moment or later.
    pub fn is_since(&self, trial: Trial<'_>, moment: Moment) -> bool {
        let latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (latest.get(&trial.to_string())).is_some_and(|began| *began >= moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_before_a_moment_is_not_since() {
        let (n1, n2) = (Trial::Lookups { at: "n1" }, Trial::Lookups { at: "n2" });
        let served = Served::default();
        served.note(n1, Moment(5));
        served.note(n1, Moment(3));
        assert!(served.is_since(n1, Moment(5)) && !served.is_since(n1, Moment(6)));
        assert!(!served.is_since(n2, Moment(0)));
        let through = Some("n1");
        assert!(!served.is_since(Trial::Sessions { through }, Moment(0)));
    }
}
