//! What an injection did, which may be less than was planned: only what was done counts.

use std::collections::BTreeSet;

use crate::history::{Fault, Skip};

/// What an injection did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Something, to these nodes alone.
    To(BTreeSet<String>),
    /// Something that any node may notice; these it touched.
    Whole { touched: BTreeSet<String> },
    /// Nothing, and why.
    Nothing(String),
}

impl Done {
    /// As the fault's entry tells it. `leader`: who led as it began.
    #[must_use]
    pub fn told(self, fault: Fault, leader: Option<&str>) -> Fault {
        let hits = |touched: &BTreeSet<String>| leader.is_some_and(|name| touched.contains(name));
        match self {
            Self::To(nodes) => Fault {
                hit_leader: hits(&nodes),
                nodes,
                ..fault
            },
            Self::Whole { touched } => Fault {
                hit_leader: hits(&touched),
                nodes: BTreeSet::new(),
                ..fault
            },
            Self::Nothing(why) => Fault {
                hit_leader: false,
                skipped: Some(Skip::Missed { missed: why }),
                ..fault
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Moment;

    #[test]
    fn only_what_was_done_to_the_leader_hits_it() {
        let nodes = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let told = |done: Done, leader| {
            let planned = Fault {
                kind: "vip-move".into(),
                nodes: BTreeSet::new(),
                began: Moment(7),
                healed: None,
                hit_leader: false,
                skipped: None,
            };
            let fault = done.told(planned, leader);
            (fault.hit_leader, fault.skipped.is_none())
        };
        let touched = || Done::Whole {
            touched: nodes(&["n1", "n2"]),
        };
        let injected = true;
        assert_eq!(told(Done::To(nodes(&["n1"])), Some("n1")), (true, injected));
        assert_eq!(
            told(Done::To(nodes(&["n1"])), Some("n2")),
            (false, injected)
        );
        assert_eq!(told(Done::To(nodes(&[])), Some("n2")), (false, injected));
        assert_eq!(told(touched(), Some("n2")), (true, injected));
        assert_eq!(told(touched(), Some("n3")), (false, injected));
        for done in [Done::To(nodes(&["n1"])), touched()] {
            assert_eq!(told(done, None), (false, injected), "nobody led");
        }
        let nothing = Done::Nothing("n2 lags".into());
        assert_eq!(told(nothing, Some("n1")), (false, !injected));
    }
}
