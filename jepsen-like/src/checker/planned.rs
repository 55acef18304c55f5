//! What a run owes by its plan: a workload that its head names must have had successes, and its checkers something to judge.

use std::{fmt, net::IpAddr};

use crate::{
    history::{Answer, Call, Operation, Reply, Responder, Run, Session, SessionEnd},
    workload::{
        Workload, acme,
        dns::{VIP4, VIP6},
        zones,
    },
};

/// Those that have the VIPs watched.
pub const WATCHED: &[Workload] = &[Workload::Vip, Workload::Sessions];

/// Whether one of some workloads was part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Planned,
    NotPlanned,
    /// The head names no workload at all.
    Unknown,
}

/// Whether any of these workloads was part of the run.
pub fn part(run: &Run, any_of: &[Workload]) -> Part {
    let is_named = |workload: &Workload| run.workloads.contains(workload.name());
    match run.workloads.is_empty() {
        true => Part::Unknown,
        false if any_of.iter().any(is_named) => Part::Planned,
        false => Part::NotPlanned,
    }
}

/// Why a checker decides nothing that has so many things to judge, which these workloads give. None: it has some, or is owed none.
pub fn unjudged(run: &Run, any_of: &[Workload], judged: usize, what: &str) -> Option<String> {
    match part(run, any_of) {
        _ if judged > 0 => None,
        Part::NotPlanned => None,
        Part::Planned => Some(format!("there are no {what} to judge")),
        Part::Unknown => Some(format!(
            "there are no {what} to judge, and the head names no workloads"
        )),
    }
}

/// A kind of thing that was tried, of which one at least must have succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trial<'a> {
    /// By what they do.
    Operations(&'static str),
    /// Queries for registers and their zone's serial, by the node or the VIP that is asked.
    Lookups { at: &'a str },
    /// Records that were added a moment ago, by the node that shows them.
    Challenges { at: &'a str },
    /// Answers of nodes for a VIP, by what was asked: `arp`, `nd`, `dns`, `tcp`.
    Answers { kind: &'a str, vip: &'a str },
    /// Connections through a node that brought something back; none: through the VIP.
    Sessions { through: Option<&'a str> },
}

impl<'a> Trial<'a> {
    /// With whether it succeeded: an answer that does not show the record it was asked for is none.
    pub fn of_operation(operation: &'a Operation) -> (Self, bool) {
        let trial = Self::of_call(operation);
        let shows = match &operation.reply {
            Some(Reply::Dns { value, .. }) => trial.is_shown_by(value.as_deref()),
            _ => true,
        };
        (trial, operation.is_ok() && shows)
    }

    fn of_call(operation: &'a Operation) -> Self {
        Self::Operations(match &operation.call {
            Call::Read { .. } => "register reads",
            Call::Write { key, .. } if zones::is_apex(key) => "changes of zones",
            Call::Write { key, .. } if is_challenge(key) => "changes of challenges",
            Call::Write { .. } => "register writes",
            Call::CompareAndSet { .. } => "compare-and-sets",
            Call::Add { .. } => "adds",
            Call::Remove { .. } => "removes",
            Call::Elements { .. } => "set reads",
            Call::Transaction { .. } => "transactions",
            Call::Lookup { key } => return Self::of_lookup(key, operation.node.as_deref()),
        })
    }

    /// Of a query for this key at this place.
    pub fn of_lookup(key: &str, at: Option<&'a str>) -> Self {
        match at {
            _ if zones::is_apex(key) => Self::Operations("lookups of zones"),
            Some(at) if is_challenge(key) => Self::Challenges { at },
            Some(at) => Self::Lookups { at },
            None => Self::Operations("lookups"),
        }
    }

    /// Whether a DNS answer with this value is what was asked for.
    pub fn is_shown_by(&self, value: Option<&str>) -> bool {
        !matches!(self, Self::Challenges { .. }) || value.is_some()
    }

    /// None for one of somebody who is no node.
    pub fn of_answer(answer: &'a Answer) -> Option<Self> {
        matches!(answer.by, Responder::Node(_)).then_some(Self::Answers {
            kind: &answer.kind,
            vip: &answer.vip,
        })
    }

    /// With whether it succeeded: something came back.
    pub fn of_session(session: &'a Session) -> (Self, bool) {
        let through = (!session.through_vip).then_some(session.node.as_str());
        let has_lived = matches!(session.end, SessionEnd::Closed | SessionEnd::Broken(_));
        (Self::Sessions { through }, has_lived)
    }

    /// Whether it is a service that a client asks for at a place: after the last fault each place owes it again.
    pub fn is_service(&self) -> bool {
        matches!(
            self,
            Self::Lookups { .. } | Self::Challenges { .. } | Self::Sessions { .. }
        )
    }

    /// What the workloads of a run must have tried, with success.
    pub fn owed(run: &'a Run) -> Vec<Self> {
        let planned = |workload| part(run, &[workload]) == Part::Planned;
        let mut owed: Vec<Self> = [
            (Workload::Register, "register reads"),
            (Workload::Register, "register writes"),
            (Workload::Set, "adds"),
            (Workload::Append, "transactions"),
            (Workload::Zones, "changes of zones"),
            (Workload::Acme, "changes of challenges"),
        ]
        .into_iter()
        .filter(|(workload, _)| planned(*workload))
        .map(|(_, what)| Self::Operations(what))
        .collect();
        let nodes = || run.nodes.iter().map(String::as_str);
        if planned(Workload::Dns) {
            owed.extend(nodes().map(|at| Self::Lookups { at }));
        }
        if planned(Workload::Acme) {
            owed.extend(nodes().map(|at| Self::Challenges { at }));
        }
        if planned(Workload::Sessions) {
            let places = nodes().map(Some).chain([None]);
            owed.extend(places.map(|through| Self::Sessions { through }));
        }
        for vip in &run.vips {
            let Some((at, kind)) = asked_as(vip) else {
                continue;
            };
            if planned(Workload::Vip) {
                owed.push(Self::Lookups { at });
            }
            if part(run, WATCHED) == Part::Planned {
                owed.push(Self::Answers { kind, vip });
            }
        }
        owed
    }
}

fn is_challenge(key: &str) -> bool {
    key.ends_with(acme::ZONE)
}

/// How clients name a VIP, and what asks who has it.
pub fn asked_as(vip: &str) -> Option<(&'static str, &'static str)> {
    Some(match vip.parse().ok()? {
        IpAddr::V4(_) => (VIP4, "arp"),
        IpAddr::V6(_) => (VIP6, "nd"),
    })
}

impl fmt::Display for Trial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operations(what) => f.write_str(what),
            Self::Lookups { at } => write!(f, "lookups at {at}"),
            Self::Challenges { at } => write!(f, "challenges seen at {at}"),
            Self::Answers { kind, vip } => write!(f, "answers for {vip} ({kind})"),
            Self::Sessions { through: None } => f.write_str("sessions through the VIP"),
            Self::Sessions {
                through: Some(node),
            } => write!(f, "sessions through {node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::fixture::planned;

    fn shown(workloads: &[Workload]) -> Vec<String> {
        let run = planned(workloads);
        let owed = Trial::owed(&run);
        owed.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_run_owes_what_its_workloads_try_and_nothing_else() {
        assert_eq!(shown(&[]), [""; 0]);
        let registers = ["register reads", "register writes"];
        assert_eq!(shown(&[Workload::Register]), registers);
        assert_eq!(shown(&[Workload::Dns]), ["lookups at n1", "lookups at n2"]);
        let of_challenges = [
            "changes of challenges",
            "challenges seen at n1",
            "challenges seen at n2",
        ];
        assert_eq!(shown(&[Workload::Acme]), of_challenges);
        let of_vips = [
            "lookups at vip4",
            "answers for 10.77.0.100 (arp)",
            "lookups at vip6",
            "answers for fd77::64 (nd)",
        ];
        assert_eq!(shown(&[Workload::Vip]), of_vips);
        let of_sessions = [
            "sessions through n1",
            "sessions through n2",
            "sessions through the VIP",
            "answers for 10.77.0.100 (arp)",
            "answers for fd77::64 (nd)",
        ];
        assert_eq!(shown(&[Workload::Sessions]), of_sessions);
        for workload in Workload::ALL {
            assert!(!shown(&[*workload]).is_empty(), "{workload}");
        }
    }

    #[test]
    fn without_anything_to_judge_nothing_is_decided_unless_nothing_was_to_be_tried() {
        let why = |workloads: &[Workload], judged| {
            unjudged(&planned(workloads), WATCHED, judged, "answers")
        };
        assert_eq!(why(&[Workload::Register], 0), None);
        assert_eq!(why(&[Workload::Vip], 1), None);
        assert!(why(&[Workload::Sessions], 0).is_some());
        assert!(why(&[], 0).is_some_and(|why| why.contains("names no workloads")));
    }
}
