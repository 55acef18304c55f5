//! Outages in peace: writes that nobody acknowledges, batches that nobody commits, reads that nobody confirms, a VIP that nobody answers for, a
//! zone that a place answers nobody from, a proxy that serves nobody, and no fault that explains it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    Finding,
    calm::{self, Calm},
    linearizable::has_seen_another,
    planned::{self, Part, Trial, WATCHED},
    recovery::is_write,
};
use crate::{
    history::{Call, History, Moment, Operation, Outcome, Reply, Responder},
    workload::{zone_of, zones},
};

/// In peace nothing fails for so long. 10 s, as long as a hand-over may take: a leader that is lost is replaced within a second, and a machine
/// that is too busy for several elections in turn comes to itself in so much.
const LONGEST: Duration = Duration::from_secs(10);
/// A VIP that is asked so many times more seldom than it is silent now tells nothing by its silence.
const USUAL: u32 = 5;
/// Operations that are named of one outage.
const NAMED: usize = 20;
/// What is asked for, in words, and whether the recovery judges that it comes back after the last fault.
type Asked = (String, Back);

/// Who judges that something comes back at all after the last fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Back {
    /// The recovery.
    Recovery,
    /// Nobody but this: it is an outage as in any other calm.
    Nobody,
}

/// What was found in the calms of a run.
#[derive(Debug, Default)]
pub struct Outages {
    pub findings: Vec<Finding>,
    /// How much time there was in which an outage would have been one.
    pub peace: Duration,
}

impl Outages {
    /// Judges every calm: in it nothing may fail for longer than [`LONGEST`], nor for longer than the recovery bound after the faults before it.
    ///
    /// What does not come back at all after the last fault is the recovery's to judge, where that does. An operation that never ended tells nothing but that it
    /// was tried.
    pub fn of(history: &History, recovery: Duration) -> Self {
        let calms = calm::calms(history, calm::last_look(history));
        let peaceful = calms
            .into_iter()
            .filter(|calm| !calm.peace(recovery).is_zero());
        let peaceful: Vec<Calm> = peaceful.collect();
        let mut outages = Self {
            peace: peaceful.iter().map(|calm| calm.peace(recovery)).sum(),
            ..Self::default()
        };
        if peaceful.is_empty() {
            return outages;
        }
        let mut add = |what: &str, back: Back, down: Down, calm: &Calm| {
            let is_of_recovery =
                calm.is_last && calm.is_after_fault && down.is_first && back == Back::Recovery;
            // What was not seen once the laboratory had failed says nothing of the cluster.
            let is_unseen = calm.is_last && history.breakdown.is_some() && !down.is_over;
            let due = calm::due(calm.from, recovery, down.from, LONGEST);
            if down.until > due && !is_of_recovery && !is_unseen {
                outages.findings.push(down.finding(what, calm));
            }
        };
        for ((what, back), tries) in &tries(history) {
            for calm in &peaceful {
                let downs = downs(tries, calm).into_iter();
                downs.for_each(|down| add(what, *back, down, calm));
            }
        }
        for (vip, answers) in &answers(history) {
            for calm in &peaceful {
                let downs = silences(answers, calm).into_iter();
                let what = format!("answers for {vip}");
                downs.for_each(|down| add(&what, Back::Recovery, down, calm));
            }
        }
        outages
    }
}

/// Something that was asked for.
#[derive(Clone, Copy, Debug)]
struct Try {
    began: Moment,
    /// When it was certain how it ended.
    ended: Moment,
    is_good: bool,
    operation: Option<u64>,
}

/// A time in which nothing succeeded.
#[derive(Debug)]
struct Down {
    from: Moment,
    until: Moment,
    tried: usize,
    /// The first of them.
    operations: Vec<u64>,
    /// Nothing had succeeded in this calm before.
    is_first: bool,
    /// Something succeeded in the end.
    is_over: bool,
}

impl Down {
    fn finding(self, what: &str, calm: &Calm) -> Finding {
        let Self { from, until, .. } = self;
        let tried = match self.tried {
            0 => String::new(),
            tried => format!(", {tried} tried"),
        };
        let since = match calm.is_after_fault {
            true => format!("no fault since {}", calm.from),
            false => "no fault before".to_owned(),
        };
        let text = format!(
            "no {what} from {from} to {until} ({:?}{tried}), and {since}",
            until.since(from)
        );
        Finding {
            operations: self.operations,
            ..Finding::new("outage", text).at(from)
        }
    }
}

/// All that clients tried, by what they asked for and where; each in order of its beginning.
fn tries(history: &History) -> BTreeMap<Asked, Vec<Try>> {
    let mut tries: BTreeMap<Asked, Vec<Try>> = BTreeMap::new();
    let mut add = |what: String, back: Back, attempt: Try| {
        tries.entry((what, back)).or_default().push(attempt);
    };
    // Those that come and go and are there now: their client asks for them behind each change, and changes them by itself.
    let mut there: BTreeSet<&str> = BTreeSet::new();
    for operation in &history.operations {
        let mut attempt = Try {
            began: operation.invoked,
            ended: operation.completed.unwrap_or(operation.invoked),
            is_good: operation.is_ok(),
            operation: Some(operation.id),
        };
        match &operation.call {
            call if is_write(call) => {
                if let Call::Write { key, value } = call
                    && zones::is_apex(key)
                {
                    match operation.is_ok() && value.is_some() {
                        true => there.insert(key),
                        false => there.remove(key.as_str()),
                    };
                }
                // One that meets another is refused, but the other is committed then.
                if matches!(call, Call::Transaction { .. }) {
                    add("transactions that append".to_owned(), Back::Nobody, attempt);
                }
                attempt.is_good |= has_been_decided(operation);
                add("writes".to_owned(), Back::Recovery, attempt);
            }
            Call::Read { .. } | Call::Elements { local: false, .. } => {
                add("linearizable reads".to_owned(), Back::Nobody, attempt);
            }
            Call::Lookup { key } => {
                // Any answer will do, also one that does not show the challenge yet; but not one of old state.
                attempt.is_good &= !is_stale(operation);
                match (operation.node.as_deref(), zones::is_apex(key)) {
                    (Some(at), false) => add(lookups(zone_of(key), at), Back::Recovery, attempt),
                    (Some(at), true) if there.contains(key.as_str()) => {
                        add(lookups(Some(key), at), Back::Nobody, attempt);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    for session in &history.sessions {
        let (trial, has_lived) = Trial::of_session(session);
        let attempt = Try {
            began: session.opened,
            // One that fails hears nothing for as long as its client waits. That says nothing of those that begin meanwhile.
            ended: session.opened,
            is_good: has_lived,
            operation: None,
        };
        add(trial.to_string(), Back::Recovery, attempt);
    }
    for of_one in tries.values_mut() {
        of_one.sort_by_key(|one| one.began);
    }
    tries
}

/// A place may serve one zone and not another.
fn lookups(zone: Option<&str>, at: &str) -> String {
    match zone {
        Some(zone) => format!("lookups of {zone} at {at}"),
        None => format!("lookups at {at}"),
    }
}

/// Whether a DNS answer says that it is of old state: in peace every node hears a leader.
fn is_stale(operation: &Operation) -> bool {
    matches!(operation.reply, Some(Reply::Dns { stale: true, .. }))
}

/// Whether a compare-and-set failed by what the register held: the cluster has looked at it.
fn has_been_decided(operation: &Operation) -> bool {
    match &operation.call {
        Call::CompareAndSet { expected, .. } => {
            operation.outcome == Outcome::Fail && has_seen_another(operation, expected.as_ref())
        }
        _ => false,
    }
}

/// The times in a calm in which one thing was tried and failed, each from the first try that failed to the end of the last before a success.
fn downs(tries: &[Try], calm: &Calm) -> Vec<Down> {
    let first = tries.partition_point(|one| one.began < calm.from);
    let within = tries.get(first..).unwrap_or_default().iter();
    let mut downs = vec![];
    let mut down: Option<Down> = None;
    let mut is_first = true;
    for one in within.take_while(|one| one.began <= calm.until) {
        let ended = one.ended.min(calm.until);
        if one.is_good {
            is_first = false;
            // What was asked before and failed late says nothing of the time since.
            downs.extend(down.take().map(|down| Down {
                is_over: true,
                until: down.until.min(one.began),
                ..down
            }));
            continue;
        }
        let down = down.get_or_insert_with(|| Down {
            from: one.began,
            until: ended,
            tried: 0,
            operations: vec![],
            is_first,
            is_over: false,
        });
        down.until = down.until.max(ended);
        down.tried += 1;
        let named = one.operation.filter(|_| down.operations.len() < NAMED);
        down.operations.extend(named);
    }
    downs.extend(down);
    downs
}

/// When nodes answered for each VIP, in order.
fn answers(history: &History) -> BTreeMap<&str, Vec<Moment>> {
    let mut answers: BTreeMap<&str, Vec<Moment>> = BTreeMap::new();
    if planned::part(&history.run, WATCHED) == Part::NotPlanned {
        return answers;
    }
    for answer in &history.answers {
        if matches!(answer.by, Responder::Node(_)) {
            answers.entry(&answer.vip).or_default().push(answer.latest);
        }
    }
    for of_one in answers.values_mut() {
        of_one.sort();
    }
    answers
}

/// The times in a calm in which a VIP was silent for longer than it usually is between two answers, as it is asked.
fn silences(answers: &[Moment], calm: &Calm) -> Vec<Down> {
    let mut between: Vec<Duration> = (answers.windows(2))
        .filter_map(|pair| Some(pair.last()?.since(*pair.first()?)))
        .collect();
    between.sort();
    let Some(usual) = between.get(between.len() / 2) else {
        return vec![];
    };
    let is_within = |at: &&Moment| calm.from <= **at && **at <= calm.until;
    let within: Vec<Moment> = answers.iter().filter(is_within).copied().collect();
    let froms = [calm.from].into_iter().chain(within.iter().copied());
    let untils = within.iter().copied().chain([calm.until]);
    let pairs = froms.zip(untils).enumerate();
    pairs
        .filter(|(_, (from, until))| until.since(*from) > *usual * USUAL)
        .map(|(place, (from, until))| Down {
            from,
            until,
            tried: 0,
            operations: vec![],
            is_first: place == 0,
            is_over: place < within.len(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::fixture::*,
        history::{Answer, Breakdown, Fault, Micro, Session, SessionEnd},
        workload::Workload,
    };

    const SECOND: u64 = 1_000_000_000;
    const RECOVERY: Duration = Duration::from_secs(20);

    /// A write each second, each for a microsecond, which fail within these seconds; until 100 s.
    fn writes(down: std::ops::Range<u64>) -> Vec<Operation> {
        let one = |at: u64| {
            let (from, to) = (at * SECOND, at * SECOND + 1000);
            match down.contains(&at) {
                true => failed(at, from, to, write("a", "1")),
                false => ok(at, from, to, write("a", "1"), committed(at)),
            }
        };
        (0..100).map(one).collect()
    }

    fn kill(began: u64, healed: u64) -> Fault {
        fault("kill", "n1", began * SECOND, healed * SECOND, true)
    }

    fn texts(history: &History) -> Vec<String> {
        let found = Outages::of(history, RECOVERY).findings;
        assert!(found.iter().all(|finding| finding.kind == "outage"));
        found.into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn writes_that_fail_for_long_in_peace_are_found() {
        let found = Outages::of(&tried(vec![], writes(40..52)), RECOVERY);
        assert_eq!(found.peace.as_secs(), 79, "from 20 s to the last look");
        assert_eq!(kinds_of(&found), ["outage"]);
        assert_eq!(found.findings[0].operations, (40..52).collect::<Vec<_>>());
        let told = &found.findings[0].text;
        let begins = "no writes from 40.000000 s to 51.000001 s (11.000001s, 12 tried)";
        assert!(told.starts_with(begins), "{told}");
        // Shorter than any that is; as long as the start may take.
        assert!(texts(&tried(vec![], writes(40..50))).is_empty());
        assert!(texts(&tried(vec![], writes(0..20))).is_empty());
        assert_eq!(texts(&tried(vec![], writes(0..21))).len(), 1);
        // Not over before the end.
        assert_eq!(texts(&tried(vec![], writes(80..100))).len(), 1);
    }

    fn kinds_of(outages: &Outages) -> Vec<&'static str> {
        outages.findings.iter().map(|one| one.kind).collect()
    }

    #[test]
    fn what_a_fault_explains_is_no_outage() {
        // In force, or healed no longer ago than the cluster may take.
        for faults in [
            vec![kill(40, 60)],
            vec![kill(30, 39)],
            vec![kill(10, 20), kill(45, 46)],
            vec![kill(55, 56), kill(30, 35)],
        ] {
            assert!(
                texts(&tried(faults.clone(), writes(40..55))).is_empty(),
                "{faults:?}"
            );
        }
        // Long before, or after it.
        for faults in [vec![kill(10, 15)], vec![kill(60, 62)]] {
            let found = texts(&tried(faults.clone(), writes(40..55)));
            assert_eq!(found.len(), 1, "{faults:?}");
        }
        // From a fault on, and for longer than recovery may take; another one comes later.
        let slow = tried(vec![kill(10, 15), kill(70, 71)], writes(11..40));
        assert_eq!(texts(&slow).len(), 1);
        // After the last one that is the recovery's.
        let last = tried(vec![kill(10, 15)], writes(11..40));
        assert!(texts(&last).is_empty());
        let skipped = Fault {
            skipped: Some("no tool".into()),
            ..kill(40, 60)
        };
        assert_eq!(texts(&tried(vec![skipped], writes(40..55))).len(), 1);
    }

    #[test]
    fn clients_that_ask_for_nothing_miss_nothing() {
        let mut operations = writes(40..42);
        operations.retain(|one| !(42..60).contains(&one.id));
        // One that never ended was tried, and that is all.
        operations.push(Operation {
            completed: None,
            ..unknown(200, 42 * SECOND, 0, write("a", "2"))
        });
        assert!(texts(&tried(vec![], operations)).is_empty());
        // A compare-and-set that meets another value has been answered.
        let mut decided = writes(40..60);
        for one in &mut decided[40..60] {
            one.call = compare_and_set("a", "1", "2");
            one.reason = Some("record a TXT: it is not the set that was expected".into());
        }
        assert!(texts(&tried(vec![], decided)).is_empty());
    }

    #[test]
    fn a_vip_that_falls_silent_in_peace_is_found() {
        let judged = |silent: std::ops::Range<u64>, every_ms: usize, end: u64| {
            let mut history = tried(vec![], writes(0..0));
            history.run.workloads = [Workload::Vip.to_string()].into();
            let times = (0..end * 1000).step_by(every_ms).map(|ms| ms * 1_000_000);
            let times = times.filter(|at| !silent.contains(&(at / SECOND)));
            history.answers = times
                .map(|at| Answer {
                    vip: "10.77.0.100".into(),
                    by: Responder::Node("n1".into()),
                    earliest: Moment(at),
                    latest: Moment(at),
                    kind: "arp".into(),
                })
                .collect();
            history
        };
        let found = texts(&judged(40..55, 100, 100));
        let expected = "no answers for 10.77.0.100 from 39.900000 s to 55.000000 s (15.1s), and no fault before";
        assert_eq!(found, [expected]);
        assert!(texts(&judged(40..49, 100, 100)).is_empty());
        assert_eq!(texts(&judged(60..100, 100, 100)).len(), 1, "never again");
        // Who is asked every 10 s is not silent for it, and one answer says nothing of how often that is.
        assert!(texts(&judged(40..55, 10_000, 100)).is_empty());
        assert!(texts(&judged(1..100, 100_000, 100)).is_empty());
        let mut broken = judged(60..100, 100, 100);
        broken.breakdown = Some(Breakdown {
            at: Moment(70 * SECOND),
            text: "no such device".into(),
        });
        assert!(texts(&broken).is_empty());
    }

    #[test]
    fn a_place_that_serves_nobody_in_peace_is_found() {
        let mut history = tried(vec![], writes(0..0));
        for at in 0..100 {
            let mut lookup = look_up(1000 + at, "n2", at * SECOND);
            if (40..60).contains(&at) {
                (lookup.outcome, lookup.reply) = (Outcome::Fail, None);
            }
            history.operations.push(lookup);
            history.sessions.push(Session {
                id: at,
                node: "n1".into(),
                through_vip: false,
                opened: Moment(at * SECOND),
                ended: Moment(at * SECOND + 1000),
                end: match (70..85).contains(&at) {
                    true => SessionEnd::NotConnected("refused".into()),
                    false => SessionEnd::Closed,
                },
                longest_gap_us: 0,
            });
        }
        let found = texts(&history);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("no lookups at n2 from 40"),
            "{found:?}"
        );
        assert!(
            found[1].starts_with("no sessions through n1 from 70"),
            "{found:?}"
        );
    }

    #[test]
    fn a_session_that_dies_late_says_nothing_of_the_time_until_then() {
        let session = |id: u64, ends_after: u64, end: SessionEnd| Session {
            id,
            node: "n1".into(),
            through_vip: true,
            opened: Moment((40 + id) * SECOND),
            ended: Moment((40 + id + ends_after) * SECOND),
            end,
            longest_gap_us: 0,
        };
        let dead = |id| session(id, 15, SessionEnd::Stillborn("silent".into()));
        let mut history = tried(vec![], writes(0..0));
        // Others are served meanwhile, or afterwards.
        history.sessions = vec![dead(0), session(20, 1, SessionEnd::Closed)];
        assert!(texts(&history).is_empty(), "{:?}", texts(&history));
        // All that began within twelve seconds died.
        history.sessions.extend([dead(6), dead(12)]);
        history.sessions.sort_by_key(|session| session.opened);
        assert_eq!(texts(&history).len(), 1);
    }

    #[test]
    fn what_fails_late_is_over_where_something_succeeds() {
        let mut operations = writes(0..0);
        operations.retain(|one| one.id != 40);
        let slow = failed(200, 40 * SECOND, 55 * SECOND, write("a", "1"));
        operations.push(slow);
        assert!(texts(&tried(vec![], operations)).is_empty());
    }

    #[test]
    fn reads_challenges_and_old_answers_in_peace_are_found() {
        let mut history = tried(vec![], writes(0..0));
        for at in 0..100 {
            let began = at * SECOND;
            let is_down = (40..60).contains(&at);
            let mut read = ok(1000 + at, began, began + 1000, read("a"), value("1"));
            let mut challenge = look_up(2000 + at, "n1", began);
            challenge.call = Call::Lookup {
                key: format!("c{at}.{}", crate::workload::acme::ZONE),
            };
            let mut old = look_up(3000 + at, "n2", began);
            if is_down {
                (read.outcome, read.reply) = (Outcome::Fail, None);
                (challenge.outcome, challenge.reply) = (Outcome::Fail, None);
                if let Some(Reply::Dns { stale, .. }) = &mut old.reply {
                    *stale = true;
                }
            }
            history.operations.extend([read, challenge, old]);
        }
        let found = texts(&history);
        assert_eq!(found.len(), 3, "{found:?}");
        for (text, what) in found.iter().zip([
            "no linearizable reads from 40",
            "no lookups at n2 from 40",
            "no lookups of acme.test. at n1 from 40",
        ]) {
            assert!(text.starts_with(what), "{text}");
        }
    }

    fn look_up_in(id: u64, key: &str, place: &str, at: u64, is_good: bool) -> Operation {
        let mut lookup = look_up(id, place, at * SECOND);
        lookup.call = Call::Lookup { key: key.into() };
        if !is_good {
            (lookup.outcome, lookup.reply) = (Outcome::Fail, None);
        }
        lookup
    }

    #[test]
    fn a_zone_that_one_place_alone_does_not_serve_is_found() {
        const OTHERS: &str = "n1.comes-and-goes.test.";
        let served = |faults: Vec<Fault>, silent: &str, from: u64, until: u64| {
            let mut history = tried(faults, writes(0..0));
            for at in 0..100 {
                let made = at * SECOND;
                let change = ok(1000 + at, made, made + 1, write(OTHERS, "1"), committed(at));
                history.operations.push(change);
                for (place, number) in ["n1", "n2"].into_iter().zip(0..) {
                    for (key, number) in ["r0-1.register.test.", "_a.h1.acme.test.", OTHERS]
                        .into_iter()
                        .zip(number * 3..)
                    {
                        let is_down = place == "n2" && key == silent && (from..until).contains(&at);
                        let id = 2000 + 10 * at + number;
                        (history.operations).push(look_up_in(id, key, place, at, !is_down));
                    }
                }
            }
            history.operations.sort_by_key(|one| (one.invoked, one.id));
            texts(&history)
        };
        for (silent, zone) in [
            ("r0-1.register.test.", "register.test."),
            ("_a.h1.acme.test.", "acme.test."),
            (OTHERS, OTHERS),
        ] {
            let found = served(vec![], silent, 40, 60);
            let told = format!("no lookups of {zone} at n2 from 40.0");
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(&told), "{found:?}");
            assert!(served(vec![], silent, 40, 48).is_empty());
            assert!(served(vec![kill(35, 45)], silent, 40, 60).is_empty());
        }
        // What never comes back is the recovery's, where that judges it.
        let never = |silent| served(vec![kill(10, 20)], silent, 15, 100).len();
        assert_eq!([never("r0-1.register.test."), never(OTHERS)], [0, 1]);
    }

    #[test]
    fn a_zone_that_is_not_there_is_served_by_nobody() {
        const ZONE: &str = "n1.comes-and-goes.test.";
        let deleted = || Call::Write {
            key: ZONE.into(),
            value: None,
        };
        for change in [
            ok(1000, 1, 2, deleted(), committed(1)),
            failed(1000, 1, 2, write(ZONE, "1")),
            unknown(1000, 1, 2, write(ZONE, "1")),
        ] {
            let mut history = tried(vec![], writes(0..0));
            history.operations.insert(1, change);
            let lookups = (0..100).map(|at| look_up_in(2000 + at, ZONE, "n1", at, false));
            history.operations.extend(lookups);
            assert_eq!(texts(&history), [""; 0]);
        }
    }

    #[test]
    fn batches_that_fail_while_other_writes_do_not_are_found() {
        let transaction = |at: u64, appends: bool, is_good: bool| {
            let key = || "k".to_owned();
            let read = Micro::Read { key: key() };
            let append = Micro::Append {
                key: key(),
                element: at,
            };
            let members = match appends {
                true => vec![read, append],
                false => vec![read],
            };
            let lists = match appends {
                true => vec![Some(vec![]), None],
                false => vec![Some(vec![])],
            };
            let (id, from) = (1000 + 2 * at + u64::from(appends), at * SECOND);
            let call = Call::Transaction { members };
            match is_good {
                true => ok(id, from, from + 1, call, Reply::Lists(lists)),
                false => failed(id, from, from + 1, call),
            }
        };
        let judged = |down: std::ops::Range<u64>| {
            let mut history = tried(vec![], writes(0..0));
            for at in 0..100 {
                let append = transaction(at, true, !down.contains(&at));
                history
                    .operations
                    .extend([transaction(at, false, true), append]);
            }
            texts(&history)
        };
        let found = judged(40..60);
        assert_eq!(found.len(), 1, "{found:?}");
        let told = "no transactions that append from 40.0";
        assert!(found[0].starts_with(told), "{found:?}");
        assert!(judged(40..50).is_empty());
    }
}
