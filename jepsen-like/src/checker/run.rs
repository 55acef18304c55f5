//! The run itself: it must have been a trial.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{Bounds, Finding, Verdict, leaders, planned::Trial, set_aside};
use crate::{
    history::{Fault, History, Skip},
    nemesis::{Kind, hits_leader},
};

/// A kind of fault that was tried so often and never done shows nothing of what it was to show.
const TRIES: usize = 3;

/// A run in which nothing was injected, no leader was hit (where a kind of its mix can hit one), or nothing succeeded shows nothing, and
/// fails. One in which a kind was tried [`TRIES`] times or more and never done leaves open what that kind would have shown.
///
/// Of each kind of thing that was tried one must have succeeded, and each workload that the head names must have tried its own: every node
/// and every VIP answered DNS, every VIP ARP or neighbour discovery, and a session came to life through the VIP and through each node.
pub fn check_trial(history: &History, bounds: &Bounds) -> Verdict {
    let (injected, skipped): (Vec<_>, Vec<_>) =
        (history.faults.iter()).partition(|fault| fault.skipped.is_none());
    let mut findings = vec![];
    if !history.run.nemeses.is_empty() {
        if injected.is_empty() {
            let text = match skipped.first() {
                Some(first) => format!(
                    "none of {} faults was injected; {}",
                    skipped.len(),
                    why(first)
                ),
                None => "no fault was injected".to_owned(),
            };
            findings.push(Finding::new("nothing injected", text));
        }
        if !injected.is_empty()
            && owes_leader_hit(history)
            && !injected.iter().any(|fault| hits_leader(fault))
        {
            let text = format!("none of {} faults touched a leader", injected.len());
            findings.push(Finding::new("leader never hit", text));
        }
    }
    // One that was missed is no failure of the run: it tells of what the cluster was then, and the others were done.
    let is_impossible = |fault: &&&Fault| matches!(fault.skipped, Some(Skip::Impossible(_)));
    let impossible = skipped.iter().filter(is_impossible);
    let missed = skipped.len() - impossible.clone().count();
    if !bounds.allow_skip {
        let told = |fault: &&Fault| Finding::new("skipped", why(fault)).at(fault.began);
        findings.extend(impossible.map(told));
    }
    for (trial, (ok, all)) in trials(history) {
        if ok == 0 {
            let text = match all {
                0 => format!("there were no {trial}"),
                _ => format!("none of {all} succeeded: {trial}"),
            };
            findings.push(Finding::new("nothing succeeded", text));
        }
    }
    if history.operations.is_empty() && history.sessions.is_empty() {
        findings.push(Finding::new(
            "nothing succeeded",
            "there are no operations and no sessions".to_owned(),
        ));
    }
    // What has not come yet may have come later.
    if !history.is_complete {
        findings.retain(|finding| finding.kind == "skipped");
    }
    let absent = set_aside(history, &mut findings, |finding| finding.kind == "skipped");
    let ended = match &history.breakdown {
        Some(breakdown) => Some(format!(
            "the laboratory failed at {}: {}",
            breakdown.at, breakdown.text
        )),
        None => (!history.is_complete).then(|| "the run did not come to its end".to_owned()),
    };
    let reasons = ended.into_iter().chain(absent);
    // What an entry says of the leader is not believed where nobody was seen to lead.
    let unseen = leaders::unseen(history).filter(|_| owes_leader_hit(history));
    let unseen = unseen.map(|why| format!("whether a fault hit a leader is not known: {why}"));
    let reasons = reasons.chain(unseen);
    let reasons: Vec<_> = reasons.chain(never_done(history)).collect();
    let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
    let mut summary = format!(
        "{} operations, {} faults, {} skipped",
        history.operations.len(),
        injected.len(),
        skipped.len() - missed
    );
    if missed > 0 {
        let _ = write!(summary, ", {missed} missed");
    }
    if let Some(worst) = history.latenesses.iter().map(|late| late.worst_us).max() {
        let _ = write!(summary, ", the machine up to {} ms late", worst / 1000);
    }
    Verdict::of("run", summary, findings).unless_undecided(reason)
}

/// Whether a kind of its mix can hit a leader. One that this program does not know may be able to.
fn owes_leader_hit(history: &History) -> bool {
    let can_hit = |name: &String| name.parse::<Kind>().map_or(true, Kind::can_hit_leader);
    history.run.nemeses.iter().any(can_hit)
}

/// The kind of a fault that was not injected, and why it was not.
fn why(fault: &Fault) -> String {
    match &fault.skipped {
        Some(skip) => format!("{}: {skip}", fault.kind),
        None => fault.kind.clone(),
    }
}

/// The kinds of faults that were tried again and again and never done, each with why the last was not.
fn never_done(history: &History) -> Vec<String> {
    let mut missed: BTreeMap<&str, (usize, &Fault)> = BTreeMap::new();
    for fault in &history.faults {
        if let Some(Skip::Missed { .. }) = fault.skipped {
            let (count, last) = missed.entry(&fault.kind).or_insert((0, fault));
            (*count, *last) = (*count + 1, fault);
        }
    }
    let is_done = |kind: &str| {
        let mut faults = history.faults.iter();
        faults.any(|fault| fault.kind == kind && fault.skipped.is_none())
    };
    (missed.iter())
        .filter(|(kind, (count, _))| *count >= TRIES && !is_done(kind))
        .map(|(_, (count, last))| format!("tried {count} times and never done: {}", why(last)))
        .collect()
}

/// How many of each kind succeeded, and were tried.
fn trials(history: &History) -> BTreeMap<Trial<'_>, (usize, usize)> {
    let mut trials: BTreeMap<Trial<'_>, (usize, usize)> = BTreeMap::new();
    let operations = history.operations.iter().map(Trial::of_operation);
    let sessions = history.sessions.iter().map(Trial::of_session);
    let answers = history.answers.iter().filter_map(Trial::of_answer);
    let answers = answers.map(|answered| (answered, true));
    for (trial, is_ok) in operations.chain(sessions).chain(answers) {
        let (ok, all) = trials.entry(trial).or_default();
        *ok += usize::from(is_ok);
        *all += 1;
    }
    // A run that broke off may not have come to it.
    if history.is_complete {
        for owed in Trial::owed(&history.run) {
            trials.entry(owed).or_default();
        }
    }
    trials
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::{Conclusion, fixture::*},
        history::{Answer, Moment, Operation, Outcome, Responder, Session, SessionEnd},
        workload::Workload,
    };

    #[test]
    fn a_run_that_tried_nothing_fails() {
        let written = || vec![ok(0, 0, 1, write("a", "1"), committed(1))];
        let judged = |history: &History| kinds(&check_trial(history, &Bounds::default()));
        let leader = || fault("kill", "n1", 5, 6, true);
        assert!(judged(&tried(vec![leader()], written())).is_empty());
        assert_eq!(judged(&tried(vec![], written())), ["nothing injected"]);
        assert_eq!(
            judged(&tried(vec![fault("kill", "n2", 5, 6, false)], written())),
            ["leader never hit"]
        );
        assert_eq!(
            judged(&tried(vec![leader()], vec![])),
            ["nothing succeeded"]
        );
        assert_eq!(
            judged(&tried(
                vec![leader()],
                vec![failed(0, 0, 1, write("a", "1"))]
            )),
            ["nothing succeeded"]
        );

        // One that was interrupted before shows nothing either, and fails for nothing.
        let mut interrupted = tried(vec![], vec![]);
        interrupted.is_complete = false;
        let verdict = check_trial(&interrupted, &Bounds::default());
        assert!(verdict.conclusion == Conclusion::Undecided, "{verdict:?}");

        let mut skipped = fault("skew", "n2", 5, 6, false);
        skipped.skipped = Some("faketime is absent".into());
        let history = tried(vec![leader(), skipped], written());
        assert_eq!(judged(&history), ["skipped"]);
        let lenient = Bounds {
            allow_skip: true,
            ..Bounds::default()
        };
        assert!(check_trial(&history, &lenient).findings.is_empty());

        // What was tried and not done touched nobody, and fails a run only if nothing else was done.
        let mut missed = fault("vip-move", "n1", 5, 6, false);
        missed.skipped = Some(Skip::Missed {
            missed: "n2 lags".into(),
        });
        assert!(judged(&tried(vec![leader(), missed.clone()], written())).is_empty());
        let verdict = check_trial(&tried(vec![missed], written()), &Bounds::default());
        assert_eq!(kinds(&verdict), ["nothing injected"]);
        assert!(verdict.findings[0].text.contains("vip-move: n2 lags"));
        assert!(verdict.summary.ends_with("0 faults, 0 skipped, 1 missed"));

        let mut history = tried(vec![leader()], written());
        history.is_complete = false;
        assert_eq!(
            check_trial(&history, &Bounds::default()).conclusion,
            Conclusion::Undecided
        );
    }

    /// Whatever the entries of its faults say.
    #[test]
    fn a_history_without_anybody_who_led_leaves_open_whether_a_leader_was_hit() {
        let judged = |nemesis: &str, hit_leader| {
            let written = vec![ok(0, 0, 1, write("a", "1"), committed(1))];
            let mut history = tried(vec![fault("kill", "n1", 5, 6, hit_leader)], written);
            history.run.nemeses = [nemesis.to_owned()].into();
            history.leaders.clear();
            check_trial(&history, &Bounds::default())
        };
        let open = judged("kill", true);
        assert_eq!(open.conclusion, Conclusion::Undecided, "{open:?}");
        let missing = "no line \"entry\": \"leader\"";
        assert!(open.summary.contains(missing), "{open:?}");
        assert_eq!(kinds(&judged("kill", false)), ["leader never hit"]);
        let owes_none = judged("join", false);
        assert_eq!(owes_none.conclusion, Conclusion::Holds, "{owes_none:?}");
    }

    #[test]
    fn a_leader_is_owed_a_hit_only_where_a_kind_of_the_mix_can_hit_one() {
        let judged = |nemeses: &[&str]| {
            let written = vec![ok(0, 0, 1, write("a", "1"), committed(1))];
            let mut history = tried(vec![fault("join", "n4", 5, 6, false)], written);
            history.run.nemeses = nemeses.iter().map(|name| (*name).to_owned()).collect();
            kinds(&check_trial(&history, &Bounds::default()))
        };
        for harmless in [
            "join",
            "profile-change",
            "address-stolen",
            "partition-bridge",
        ] {
            assert!(judged(&[harmless]).is_empty(), "{harmless}");
        }
        assert_eq!(judged(&["join", "kill"]), ["leader never hit"]);
        assert_eq!(judged(&["some-other"]), ["leader never hit"]);
    }

    /// Though their entries say that they did, as those of earlier programs do.
    #[test]
    fn what_takes_nothing_from_the_leader_hits_none() {
        for (kind, expected) in [
            ("profile-change", vec!["leader never hit"]),
            ("address-stolen", vec!["leader never hit"]),
            ("partition-bridge", vec!["leader never hit"]),
            ("partition-ring", vec!["leader never hit"]),
            ("partition-leader", vec![]),
            ("some-other", vec![]),
        ] {
            let written = vec![ok(0, 0, 1, write("a", "1"), committed(1))];
            let history = tried(vec![fault(kind, "n1", 5, 6, true)], written);
            let verdict = check_trial(&history, &Bounds::default());
            assert_eq!(kinds(&verdict), expected, "{kind}");
        }
    }

    #[test]
    fn a_kind_that_was_never_done_leaves_the_run_open() {
        let judged = |missed: usize, done: usize| {
            let written = vec![ok(0, 0, 1, write("a", "1"), committed(1))];
            let refused = Fault {
                skipped: Some(Skip::Missed {
                    missed: "n2 lags".into(),
                }),
                ..fault("vip-move", "n1", 5, 6, false)
            };
            let mut faults = vec![refused; missed];
            faults.extend(vec![fault("vip-move", "n1", 7, 8, true); done]);
            faults.push(fault("kill", "n1", 9, 10, true));
            check_trial(&tried(faults, written), &Bounds::default())
        };
        assert_eq!(judged(2, 0).conclusion, Conclusion::Holds);
        assert_eq!(judged(5, 1).conclusion, Conclusion::Holds);
        let never = judged(3, 0);
        assert_eq!(never.conclusion, Conclusion::Undecided);
        let told = "tried 3 times and never done: vip-move: n2 lags";
        assert!(never.summary.ends_with(told), "{}", never.summary);
    }

    fn answer(vip: &str, kind: &str) -> Answer {
        Answer {
            vip: vip.into(),
            by: Responder::Node("n1".into()),
            earliest: Moment(1),
            latest: Moment(1),
            kind: kind.into(),
        }
    }

    fn session(node: &str, through_vip: bool, end: SessionEnd) -> Session {
        Session {
            id: 0,
            node: node.into(),
            through_vip,
            opened: Moment(1),
            ended: Moment(2),
            end,
            longest_gap_us: 0,
        }
    }

    /// All that the workloads of DNS, of the VIPs and of sessions owe.
    fn fruitful() -> History {
        let places = ["n1", "n2", "vip4", "vip6"].iter().zip(0..);
        let mut history = history(places.map(|(place, id)| look_up(id, place, 0)));
        history.run = planned(&[Workload::Dns, Workload::Vip, Workload::Sessions]);
        history.answers = vec![answer("10.77.0.100", "arp"), answer("fd77::64", "nd")];
        history.sessions = vec![
            session("n1", true, SessionEnd::Closed),
            session("n1", false, SessionEnd::Closed),
            session("n2", false, SessionEnd::Broken("reset".into())),
        ];
        history.is_complete = true;
        history
    }

    fn texts(history: &History) -> Vec<String> {
        let verdict = check_trial(history, &Bounds::default());
        verdict.findings.into_iter().map(|one| one.text).collect()
    }

    #[test]
    fn a_vip_that_never_answers_is_a_failure_of_the_run() {
        assert_eq!(texts(&fruitful()), [""; 0]);
        // The fence of one family never opens.
        let mut closed = fruitful();
        closed.answers.pop();
        for lookup in &mut closed.operations {
            if lookup.node.as_deref() == Some("vip6") {
                (lookup.outcome, lookup.reply) = (Outcome::Fail, None);
            }
        }
        assert_eq!(
            texts(&closed),
            [
                "none of 1 succeeded: lookups at vip6",
                "there were no answers for fd77::64 (nd)"
            ]
        );
        // An answer of somebody who is no node is none.
        let mut stolen = fruitful();
        stolen.answers[1].by = Responder::Stranger("02:00".into());
        assert_eq!(texts(&stolen), ["there were no answers for fd77::64 (nd)"]);
        // What the head does not name is not owed, and a run that broke off may not have come to it.
        closed.operations.retain(Operation::is_ok);
        closed.run.workloads = [Workload::Dns.to_string()].into();
        assert_eq!(texts(&closed), [""; 0]);
        let mut short = fruitful();
        short.answers.clear();
        short.is_complete = false;
        assert_eq!(texts(&short), [""; 0]);
    }

    #[test]
    fn a_proxy_that_takes_no_connection_is_a_failure_of_the_run() {
        let refused = || SessionEnd::NotConnected("refused".into());
        let mut history = fruitful();
        history.sessions.clear();
        assert_eq!(
            texts(&history),
            [
                "there were no sessions through the VIP",
                "there were no sessions through n1",
                "there were no sessions through n2"
            ]
        );
        history.sessions = vec![
            session("n1", true, SessionEnd::Stillborn("silent".into())),
            session("n1", false, SessionEnd::Closed),
            session("n1", false, refused()),
            session("n2", false, refused()),
            session("n2", false, refused()),
        ];
        assert_eq!(
            texts(&history),
            [
                "none of 1 succeeded: sessions through the VIP",
                "none of 2 succeeded: sessions through n2"
            ]
        );
    }
}
