//! Sessions that nothing touched must have lived, and none may have got anything but what it had sent.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use super::{Finding, Verdict, planned, set_aside, witnessed::Witnessed};
use crate::{
    history::{Answer, Fault, History, Moment, Responder, Session, SessionEnd},
    workload::Workload,
};

/// Faults that end no established session, by the beginning of their names.
///
/// Some are more than one thing: what ends sessions in them (`kill`, `restart`) is in the history under a name of its own.
const HARMLESS: [&str; 11] = [
    "transfer",
    "vip-move",
    "clock",
    "profile",
    "flush",
    "slow-disk",
    "disk-full",
    "bit-flip",
    "join",
    "dns-hang",
    "rolling",
];

/// A profile that is too fast for the machine loses leaders, and with each the sessions through the VIP.
const RESTLESS: &str = "profile-change";

/// A leader whose log cannot be written leads no longer, and another one has to be elected: the sessions through the VIP end.
const DEPOSING: &str = "disk-full";

/// The present holder, and those before it that are reached.
const HOLDERS: usize = 3;

/// Sessions whose way no fault touched were closed by their client, and no session got anything but what it had sent.
///
/// What is excused, and why it may be:
/// - A session whose way a fault touched. A planned move is none: it is to be survived, and so are several among three holders. Among more
///   it is not promised: what is passed on goes two steps and no further (docs/decisions/0012).
/// - One through the VIP while another timing profile was in force: the nemesis sets `fast` without a look at the machine, and a profile that is
///   too fast for it loses leaders, and with each the connections through the VIP. Through a node of its own a session has to live all the same.
/// - One through the VIP whose holder lost its lease on a machine that did not keep up. A lease of some 250 ms is lost by whoever is not run in time; the
///   VIP is then silent by design, nobody else may take it before the lease is over, and what ends in that silence is the machine's doing. Both have
///   to be seen from outside: the witness had no answer for [`SILENT`], and a thread that asks for next to nothing, with the priority of those that renew
///   the lease, was run [`LATE`] late within two seconds of that. A silence alone excuses nothing: a leader that is lost on a machine that keeps up is a fault of ours.
/// - A connection that was made and never brought anything back, if any fault was in force within [`AFTERMATH`] before it, or since. What a fault on its
///   way did to it may have been over as it counted as opened: its backend was down to the node a moment ago and is looked for again seconds later, or
///   its first octets went to a holder that is no more. In peace nothing excuses it. That a connection was not made at all is never judged here, for a fault may forbid it: that none ever was made
///   at some place is a failure of the run (`run`).
pub fn check(history: &History) -> Verdict {
    let silences = silences(history);
    let witnessed = Witnessed::of(of_four(history));
    let mut findings = vec![];
    let (mut starved, mut not_made) = (0, 0);
    for session in &history.sessions {
        let (kind, how) = match &session.end {
            SessionEnd::Closed => continue,
            SessionEnd::NotConnected(_) => {
                not_made += 1;
                continue;
            }
            SessionEnd::Corrupt(how) => ("corrupt", how),
            SessionEnd::Broken(_) if is_excused(session, history, &witnessed) => continue,
            SessionEnd::Broken(how) => ("broken", how),
            SessionEnd::Stillborn(_) if !is_in_peace(session, history) => continue,
            SessionEnd::Stillborn(how) => ("nothing came back", how),
        };
        let silences: Vec<&Silence> = match session.through_vip {
            true => (silences.iter())
                .filter(|silence| silence.from <= session.ended && session.opened <= silence.until)
                .collect(),
            false => vec![],
        };
        if kind != "corrupt" && silences.iter().any(|silence| silence.is_starved) {
            starved += 1;
            continue;
        }
        let way = if session.through_vip {
            " through the VIP"
        } else {
            ""
        };
        let mut text = format!(
            "session {} at {}{way}, opened at {}: {how}",
            session.id, session.node, session.opened
        );
        for silence in silences {
            let _ = write!(
                text,
                "; nobody answered for the VIP from {} to {}",
                silence.from, silence.until
            );
        }
        findings.push(Finding::new(kind, text).at(session.ended));
    }
    let made = history.sessions.len() - not_made;
    let mut summary = format!("{made} sessions");
    if not_made > 0 {
        let _ = write!(summary, ", {not_made} connections not made");
    }
    if starved > 0 {
        let _ = write!(
            summary,
            ", {starved} not judged: the VIP was silent while the machine did not keep up"
        );
    }
    // The fault that ended a session may have been open still.
    let reason = set_aside(history, &mut findings, |finding| finding.kind == "corrupt")
        .or_else(|| planned::unjudged(&history.run, &[Workload::Sessions], made, "sessions"));
    Verdict::of("sessions", summary, findings)
        .unless_undecided(reason)
        .exercised_by(made)
}

/// A node looks for a backend that was down every few seconds, and a client's first octets are sent again as late.
const AFTERMATH: Duration = Duration::from_secs(10);
/// The VIP of the sessions had no answer for so long: longer than any hand-over, shorter than a lease of the profile `lan`.
const SILENT: Duration = Duration::from_millis(200);
/// A lease of `lan` lasts 252 ms and is renewed every 40 ms, by five threads at least, each of which has to be run in turn: a timer and a connection here, a
/// connection and a log there, and here again. If each is so late the renewal is too.
const LATE: Duration = Duration::from_millis(40);
/// Lateness is written so often, or a little more seldom on a busy machine.
const SAMPLED: Duration = Duration::from_secs(2);

/// A time in which nobody answered for the IPv4 VIP.
struct Silence {
    from: Moment,
    until: Moment,
    /// The machine did not keep up then.
    is_starved: bool,
}

fn silences(history: &History) -> Vec<Silence> {
    let mut answered: Vec<Moment> = of_four(history)
        .filter(|answer| matches!(answer.by, Responder::Node(_)))
        .map(|answer| answer.latest)
        .collect();
    answered.sort();
    let late: Vec<Moment> = (history.latenesses.iter())
        .filter(|lateness| Duration::from_micros(lateness.worst_us) >= LATE)
        .map(|lateness| lateness.at)
        .collect();
    let is_starved = |from: Moment, until: Moment| {
        let is_near = |at: &Moment| from.since(*at) <= SAMPLED && at.since(until) <= SAMPLED;
        late.iter().any(is_near)
    };
    let pairs = answered.windows(2).filter_map(|pair| match pair {
        [from, until] if until.since(*from) >= SILENT => Some((*from, *until)),
        _ => None,
    });
    pairs
        .map(|(from, until)| Silence {
            from,
            until,
            is_starved: is_starved(from, until),
        })
        .collect()
}

/// Whether a fault that ends sessions was in force on the session's way while it lived.
///
/// Through the VIP the way leads over whoever held it then: a holder passes on to an earlier one what is not its own, and that one once
/// more (docs/decisions/0012).
fn is_excused(session: &Session, history: &History, witnessed: &Witnessed<'_>) -> bool {
    let holders = match session.through_vip {
        true => holders(session, witnessed),
        false => vec![],
    };
    let way: BTreeSet<&str> = (holders.iter().copied())
        .chain([session.node.as_str()])
        .collect();
    way.len() > HOLDERS || is_hit(session, &way, &history.faults)
}

/// Whether no fault was in force from a while before the session to its end.
fn is_in_peace(session: &Session, history: &History) -> bool {
    history.faults.iter().all(|fault| {
        let is_over = fault.healed.is_some_and(|healed| {
            session.opened > healed && session.opened.since(healed) >= AFTERMATH
        });
        fault.skipped.is_some() || fault.began > session.ended || is_over
    })
}

/// Who held the VIP during a session, in order.
fn holders<'a>(session: &'a Session, witnessed: &Witnessed<'a>) -> Vec<&'a str> {
    let mut holders: Vec<&str> = vec![session.node.as_str()];
    for answer in witnessed.between(session.opened, session.ended) {
        if let Responder::Node(node) = &answer.by
            && holders.last() != Some(&node.as_str())
        {
            holders.push(node);
        }
    }
    holders
}

/// The answers for the VIP that sessions go through: the IPv4 one.
fn of_four(history: &History) -> impl Iterator<Item = &Answer> {
    let is_four = |answer: &&Answer| answer.vip.parse::<std::net::Ipv4Addr>().is_ok();
    history.answers.iter().filter(is_four)
}

fn is_hit(session: &Session, way: &BTreeSet<&str>, faults: &[Fault]) -> bool {
    faults.iter().any(|fault| {
        let is_on_way = |node: &String| way.contains(node.as_str());
        let is_there = fault.nodes.is_empty() || fault.nodes.iter().any(is_on_way);
        let is_over = fault.healed.is_some_and(|healed| healed < session.opened);
        let ends_those_through_the_vip =
            fault.kind == RESTLESS || (fault.kind == DEPOSING && fault.hit_leader);
        let is_harmless = HARMLESS.iter().any(|name| fault.kind.starts_with(name))
            && !(session.through_vip && ends_those_through_the_vip);
        is_there
            && !is_over
            && !is_harmless
            && fault.skipped.is_none()
            && fault.began <= session.ended
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::{Conclusion, fixture::*},
        history::Lateness,
    };

    #[test]
    fn the_way_of_a_session_through_the_vip_leads_over_its_holders() {
        let judged = |holders: &[(u64, &str)], faults: Vec<Fault>| {
            let mut history = tried(faults, vec![]);
            history.sessions = vec![Session {
                id: 1,
                node: "n1".into(),
                through_vip: true,
                opened: Moment(10),
                ended: Moment(100),
                end: SessionEnd::Broken("reset".into()),
                longest_gap_us: 0,
            }];
            let answer = |(at, node): &(u64, &str)| crate::history::Answer {
                vip: "10.77.0.100".into(),
                by: Responder::Node((*node).into()),
                earliest: Moment(*at),
                latest: Moment(*at),
                kind: "arp".into(),
            };
            history.answers = holders.iter().map(answer).collect();
            kinds(&check(&history))
        };
        let kill_n2 = || vec![fault("kill", "n2", 50, 60, false)];
        // It was moved from n1 to n2, and n2 was killed.
        assert!(judged(&[(20, "n1"), (40, "n2")], kill_n2()).is_empty());
        assert_eq!(judged(&[(20, "n1")], kill_n2()), ["broken"]);
        assert_eq!(judged(&[(20, "n1"), (140, "n2")], kill_n2()), ["broken"]);
        let profile = || vec![fault("profile-change", "n1", 50, 60, true)];
        assert!(judged(&[(20, "n1"), (40, "n2")], profile()).is_empty());
        // A full disk costs a leader its office, and a follower nothing.
        let full = |of_leader| vec![fault("disk-full", "n1", 50, 60, of_leader)];
        assert!(judged(&[(20, "n1")], full(true)).is_empty());
        assert_eq!(judged(&[(20, "n1")], full(false)), ["broken"]);
        // Moves among three are to be survived, among more they are not promised.
        let three = [(20, "n1"), (40, "n2"), (60, "n3"), (80, "n2")];
        assert_eq!(judged(&three[..2], vec![]), ["broken"]);
        assert_eq!(judged(&three, vec![]), ["broken"]);
        let four = [(20, "n1"), (40, "n2"), (60, "n3"), (80, "n4")];
        assert!(judged(&four, vec![]).is_empty());
    }

    #[test]
    fn a_silence_excuses_sessions_through_the_vip_only_where_the_machine_did_not_keep_up() {
        const MS: u64 = 1_000_000;
        let judged = |through_vip, answered: &[u64], late: Option<(u64, u64)>| {
            let mut history = tried(vec![], vec![]);
            history.sessions = vec![Session {
                id: 1,
                node: "n1".into(),
                through_vip,
                opened: Moment(10_000 * MS),
                ended: Moment(16_000 * MS),
                end: SessionEnd::Broken("silent".into()),
                longest_gap_us: 0,
            }];
            let answer = |at: &u64| crate::history::Answer {
                vip: "10.77.0.100".into(),
                by: Responder::Node("n1".into()),
                earliest: Moment(*at * MS),
                latest: Moment(*at * MS),
                kind: "arp".into(),
            };
            history.answers = answered.iter().map(answer).collect();
            history.latenesses = (late.into_iter())
                .map(|(at, worst_ms)| Lateness {
                    at: Moment(at * MS),
                    worst_us: worst_ms * 1000,
                })
                .collect();
            check(&history)
        };
        let silent = [9_900, 12_000, 12_500];
        let excused = judged(true, &silent, Some((11_000, 40)));
        assert!(excused.findings.is_empty());
        assert!(
            excused.summary.contains("1 not judged"),
            "{}",
            excused.summary
        );
        // Seen in the next sample, too little, too late, too early; not silent; not through the VIP.
        assert!(
            judged(true, &silent, Some((14_400, 900)))
                .findings
                .is_empty()
        );
        let told = &judged(true, &silent, Some((11_000, 39))).findings[0]
            .text
            .clone();
        assert!(
            told.contains("nobody answered for the VIP from 9.900000 s to 12.000000 s"),
            "{told}"
        );
        assert_eq!(
            kinds(&judged(true, &silent, Some((15_000, 900)))),
            ["broken"]
        );
        assert_eq!(
            kinds(&judged(true, &silent, Some((7_000, 900)))),
            ["broken"]
        );
        assert_eq!(kinds(&judged(true, &silent, None)), ["broken"]);
        assert_eq!(
            kinds(&judged(true, &[9_900, 10_050, 10_200], Some((11_000, 900)))),
            ["broken"]
        );
        assert_eq!(
            kinds(&judged(false, &silent, Some((11_000, 900)))),
            ["broken"]
        );
    }

    #[test]
    fn without_a_session_nothing_is_decided() {
        let mut history = tried(vec![], vec![]);
        history.run.workloads = [Workload::Sessions.to_string()].into();
        history.sessions = vec![Session {
            id: 1,
            node: "n1".into(),
            through_vip: false,
            opened: Moment(10),
            ended: Moment(20),
            end: SessionEnd::NotConnected("refused".into()),
            longest_gap_us: 0,
        }];
        let verdict = check(&history);
        assert_eq!(verdict.conclusion, Conclusion::Undecided);
        assert!(
            (verdict.summary).starts_with("0 sessions, 1 connections not made; "),
            "{}",
            verdict.summary
        );
        history.sessions[0].end = SessionEnd::Closed;
        assert_eq!(check(&history).conclusion, Conclusion::Holds);
        history.sessions.clear();
        history.run.workloads = [Workload::Register.to_string()].into();
        let idle = check(&history).conclusion;
        assert_eq!(idle, Conclusion::NotExercised, "none owed");
    }

    #[test]
    fn sessions_that_no_fault_touched_live() {
        let judged = |node: &str, end: SessionEnd, faults: Vec<Fault>| {
            let mut history = tried(faults, vec![]);
            history.sessions = vec![Session {
                id: 1,
                node: node.into(),
                through_vip: true,
                opened: Moment(10),
                ended: Moment(100),
                end,
                longest_gap_us: 0,
            }];
            kinds(&check(&history))
        };
        let broken = || SessionEnd::Broken("reset".into());
        let kill = || vec![fault("kill", "n1", 50, 60, true)];
        assert!(judged("n1", SessionEnd::Closed, vec![]).is_empty());
        assert!(judged("n1", broken(), kill()).is_empty());
        assert_eq!(judged("n2", broken(), kill()), ["broken"]);
        assert_eq!(
            judged("n1", broken(), vec![fault("transfer", "n1", 50, 60, true)]),
            ["broken"]
        );
        assert_eq!(
            judged("n1", broken(), vec![fault("kill", "n1", 1, 5, true)]),
            ["broken"]
        );
        assert_eq!(
            judged("n1", SessionEnd::Corrupt("x".into()), kill()),
            ["corrupt"]
        );
        // Nothing came back: at any fault's time, wherever it was, and for a while after.
        let stillborn = || SessionEnd::Stillborn("silent".into());
        assert!(judged("n2", stillborn(), kill()).is_empty());
        assert!(judged("n2", stillborn(), vec![fault("flush", "n1", 1, 5, true)]).is_empty());
        assert_eq!(judged("n2", stillborn(), vec![]), ["nothing came back"]);
        let later = fault("kill", "n2", 101, 102, true);
        assert_eq!(
            judged("n2", stillborn(), vec![later]),
            ["nothing came back"]
        );
    }
}
