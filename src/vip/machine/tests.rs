use proptest::prelude::*;

use super::*;
use crate::model::node::NodeId;

const MARGIN: Duration = Duration::from_millis(30);
const LEASE: Duration = Duration::from_millis(270);

fn target(n: u8) -> Target {
    let address = match n % 2 {
        0 => IpAddr::from([10, 77, 0, n]),
        _ => IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, n.into()]),
    };
    Target {
        address,
        interface: "vip".parse().unwrap(),
    }
}

fn leading(term: u64, until: Instant) -> Event {
    Event::Leadership(Leadership {
        term,
        leader: Some(NodeId(1)),
        lease_until: Some(until),
        given_up: false,
        heir: None,
        granted_in: None,
    })
}

fn following(term: u64) -> Event {
    Event::Leadership(Leadership {
        term,
        leader: Some(NodeId(2)),
        lease_until: None,
        given_up: false,
        heir: None,
        granted_in: None,
    })
}

fn giving_away(term: u64) -> Event {
    Event::Leadership(Leadership {
        term,
        leader: Some(NodeId(1)),
        lease_until: None,
        given_up: true,
        heir: Some(NodeId(2)),
        granted_in: None,
    })
}

fn drain(machine: &mut Machine) -> Vec<Action> {
    std::iter::from_fn(|| machine.poll_action()).collect()
}

/// A machine that was told of one VIP and leads term 5 until `now + LEASE`.
fn claiming(now: Instant) -> Machine {
    claiming_behind(Fencing::Unfenced, now)
}

fn claiming_behind(fencing: Fencing, now: Instant) -> Machine {
    let mut machine = Machine::new(Timing::default(), fencing);
    machine.handle(Event::Configured([target(0)].into()), now);
    machine.handle(leading(5, now + LEASE), now);
    machine
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Leads with a fresh lease; the last try failed.
    Withdrawn,
    Adding,
    /// Only behind a fence.
    Permitting,
    /// Only behind a fence.
    Silent,
    Held,
    Removing,
    Stuck,
}

const KINDS: [Kind; 5] = [
    Kind::Withdrawn,
    Kind::Adding,
    Kind::Held,
    Kind::Removing,
    Kind::Stuck,
];

const FENCED_KINDS: [Kind; 7] = [
    Kind::Withdrawn,
    Kind::Adding,
    Kind::Permitting,
    Kind::Silent,
    Kind::Held,
    Kind::Removing,
    Kind::Stuck,
];

fn kind(machine: &Machine) -> Option<Kind> {
    machine.phase(&target(0)).map(|phase| match phase {
        Phase::Withdrawn { .. } => Kind::Withdrawn,
        Phase::Adding => Kind::Adding,
        Phase::Permitting { .. } => Kind::Permitting,
        Phase::Silent { .. } => Kind::Silent,
        Phase::Held { .. } => Kind::Held,
        Phase::Removing => Kind::Removing,
        Phase::Stuck { .. } => Kind::Stuck,
    })
}

/// A machine in the phase, with a fresh lease in term 5, all actions taken.
fn machine_in(kind_wanted: Kind, now: Instant) -> Machine {
    machine_behind(Fencing::Unfenced, kind_wanted, now)
}

fn machine_behind(fencing: Fencing, kind_wanted: Kind, now: Instant) -> Machine {
    let mut machine = claiming_behind(fencing, now);
    let road: &[Event] = &match kind_wanted {
        Kind::Withdrawn => vec![Event::AddFailed(target(0)), Event::Removed(target(0))],
        Kind::Adding => vec![],
        Kind::Permitting => vec![Event::Added(target(0))],
        Kind::Silent => vec![
            Event::Added(target(0)),
            Event::PermitFailed([target(0)].into()),
        ],
        Kind::Held if fencing == Fencing::Standing => {
            vec![
                Event::Added(target(0)),
                Event::Permitted([target(0)].into()),
            ]
        }
        Kind::Held => vec![Event::Added(target(0))],
        Kind::Removing => vec![Event::AddFailed(target(0))],
        Kind::Stuck => vec![Event::AddFailed(target(0)), Event::RemoveFailed(target(0))],
    };
    for event in road {
        machine.handle(event.clone(), now);
    }
    drain(&mut machine);
    assert_eq!(kind(&machine), Some(kind_wanted));
    machine
}

/// What the table feeds in: every kind of event, leadership in each of its meanings.
fn inputs(now: Instant) -> Vec<(&'static str, Event)> {
    vec![
        ("lease renewed", leading(5, now + LEASE * 2)),
        ("lease lost", following(5)),
        ("lease within the margin", leading(5, now + MARGIN)),
        ("higher term, other leader", following(6)),
        ("higher term, own lease", leading(6, now + LEASE)),
        ("lower term", following(4)),
        ("configured", Event::Configured([target(0)].into())),
        ("configured away", Event::Configured([].into())),
        ("added", Event::Added(target(0))),
        ("add failed", Event::AddFailed(target(0))),
        ("removed", Event::Removed(target(0))),
        ("remove failed", Event::RemoveFailed(target(0))),
        ("missing", Event::Missing(target(0))),
        ("link ready", Event::LinkReady("vip".parse().unwrap())),
        (
            "other link ready",
            Event::LinkReady("other".parse().unwrap()),
        ),
        ("stop", Event::Stop),
        ("deadline", Event::Deadline),
        (
            "fence down",
            Event::Fenced("vip".parse().unwrap(), Fencing::Down),
        ),
        (
            "other fence down",
            Event::Fenced("other".parse().unwrap(), Fencing::Down),
        ),
        ("permitted", Event::Permitted([target(0)].into())),
        ("permit failed", Event::PermitFailed([target(0)].into())),
        (
            "lease runs out",
            leading(5, now + MARGIN + Duration::from_millis(1)),
        ),
    ]
}

/// The whole table: for each event the phase that follows and the actions, from each of the five phases in `KINDS` order.
/// `-` is no VIP at all; letters are A(dd), N (renew), R(emove), G (announce), S(ilence: nothing to do without a fence).
#[rustfmt::skip]
const TABLE: &[(&str, [(&str, &str); 5])] = &[
    //                              withdrawn          adding             held               removing           stuck
    ("lease renewed",             [("Withdrawn", ""), ("Adding", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("lease lost",                [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("lease within the margin",   [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("higher term, other leader", [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("higher term, own lease",    [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("lower term",                [("Withdrawn", ""), ("Adding", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("configured",                [("Withdrawn", ""), ("Adding", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("configured away",           [("-", ""),         ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("added",                     [("Removing", "R"), ("Held", "G"),     ("Held", ""),      ("Removing", ""),  ("Removing", "R")]),
    ("add failed",                [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("removed",                   [("Withdrawn", ""), ("Adding", ""),    ("Adding", "SA"),   ("Withdrawn", ""), ("Withdrawn", "")]),
    ("remove failed",             [("Withdrawn", ""), ("Adding", ""),    ("Held", ""),      ("Stuck", ""),     ("Stuck", "")]),
    ("missing",                   [("Withdrawn", ""), ("Adding", ""),    ("Adding", "SA"),   ("Removing", ""),  ("Stuck", "")]),
    ("link ready",                [("Adding", "A"),   ("Adding", ""),    ("Held", "NG"),    ("Removing", ""),  ("Stuck", "")]),
    ("other link ready",          [("Withdrawn", ""), ("Adding", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("stop",                      [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("deadline",                  [("Withdrawn", ""), ("Adding", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("fence down",                [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("other fence down",          [("Withdrawn", ""), ("Adding", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("permitted",                 [("Withdrawn", ""), ("Adding", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("permit failed",             [("Withdrawn", ""), ("Adding", ""),    ("Held", "SG"),    ("Removing", ""),  ("Stuck", "")]),
    ("lease runs out",            [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
];

/// The same behind a fence; P(ermit).
#[rustfmt::skip]
const FENCED_TABLE: &[(&str, [(&str, &str); 7])] = &[
    //                              withdrawn          adding             permitting          silent             held               removing           stuck
    ("lease renewed",             [("Withdrawn", ""), ("Adding", ""),    ("Permitting", "P"), ("Silent", ""),    ("Held", "P"),     ("Removing", ""),  ("Stuck", "")]),
    ("lease lost",                [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"),   ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("lease within the margin",   [("Withdrawn", ""), ("Removing", "R"), ("Silent", "S"),     ("Silent", ""),    ("Silent", "S"),   ("Removing", ""),  ("Stuck", "")]),
    ("higher term, other leader", [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"),   ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("higher term, own lease",    [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"),   ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("lower term",                [("Withdrawn", ""), ("Adding", ""),    ("Permitting", ""),  ("Silent", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("configured",                [("Withdrawn", ""), ("Adding", ""),    ("Permitting", ""),  ("Silent", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("configured away",           [("-", ""),         ("Removing", "R"), ("Removing", "R"),   ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("added",                     [("Removing", "R"), ("Permitting", "P"), ("Permitting", ""), ("Silent", ""),   ("Held", ""),      ("Removing", ""),  ("Removing", "R")]),
    ("add failed",                [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"),   ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("removed",                   [("Withdrawn", ""), ("Adding", ""),    ("Adding", "SA"),     ("Adding", "SA"),   ("Adding", "SA"),   ("Withdrawn", ""), ("Withdrawn", "")]),
    ("remove failed",             [("Withdrawn", ""), ("Adding", ""),    ("Permitting", ""),  ("Silent", ""),    ("Held", ""),      ("Stuck", ""),     ("Stuck", "")]),
    ("missing",                   [("Withdrawn", ""), ("Adding", ""),    ("Adding", "SA"),     ("Adding", "SA"),   ("Adding", "SA"),   ("Removing", ""),  ("Stuck", "")]),
    ("link ready",                [("Adding", "A"),   ("Adding", ""),    ("Permitting", "N"), ("Silent", "N"),   ("Held", "NG"),    ("Removing", ""),  ("Stuck", "")]),
    ("other link ready",          [("Withdrawn", ""), ("Adding", ""),    ("Permitting", ""),  ("Silent", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("stop",                      [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"),   ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("deadline",                  [("Withdrawn", ""), ("Adding", ""),    ("Permitting", ""),  ("Silent", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("fence down",                [("Withdrawn", ""), ("Removing", "R"), ("Removing", "R"),   ("Removing", "R"), ("Removing", "R"), ("Removing", ""),  ("Stuck", "")]),
    ("other fence down",          [("Withdrawn", ""), ("Adding", ""),    ("Permitting", ""),  ("Silent", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("permitted",                 [("Withdrawn", ""), ("Adding", ""),    ("Held", "G"),       ("Silent", ""),    ("Held", ""),      ("Removing", ""),  ("Stuck", "")]),
    ("permit failed",             [("Withdrawn", ""), ("Adding", ""),    ("Silent", "S"),     ("Silent", ""),    ("Silent", "S"),   ("Removing", ""),  ("Stuck", "")]),
    ("lease runs out",            [("Withdrawn", ""), ("Removing", "R"), ("Silent", "S"),     ("Silent", ""),    ("Silent", "S"),   ("Removing", ""),  ("Stuck", "")]),
];

fn letters(actions: &[Action]) -> String {
    actions
        .iter()
        .map(|action| match action {
            Action::Add(_) => 'A',
            Action::Renew(_) => 'N',
            Action::Remove(_) => 'R',
            Action::Announce(_) => 'G',
            Action::Permit { .. } => 'P',
            Action::Silence(_) => 'S',
            Action::Serve(_) => 'V',
            Action::EndServe(_) => 'E',
        })
        .collect()
}

/// Feeds every input to a machine in every phase and compares what follows.
fn compare<const N: usize>(
    fencing: Fencing,
    kinds: [Kind; N],
    table: &[(&str, [(&str, &str); N])],
) {
    let now = Instant::now();
    let inputs = inputs(now);
    assert_eq!(inputs.len(), table.len());
    for ((name, event), (table_name, rows)) in inputs.into_iter().zip(table) {
        assert_eq!(name, *table_name);
        for (from, (phase, actions)) in kinds.into_iter().zip(rows) {
            let mut machine = machine_behind(fencing, from, now);
            // The first announcement is due in the instant of the claim; take it out of the way.
            machine.handle(Event::Deadline, now);
            drain(&mut machine);
            machine.handle(event.clone(), now + Duration::from_millis(1));
            let after = kind(&machine).map_or("-".to_owned(), |k| format!("{k:?}"));
            assert_eq!(after, *phase, "{from:?} on {name}");
            assert_eq!(
                letters(&drain(&mut machine)),
                *actions,
                "{from:?} on {name}"
            );
        }
    }
}

#[test]
fn every_transition_is_as_the_table_says() {
    compare(Fencing::Unfenced, KINDS, TABLE);
    compare(Fencing::Standing, FENCED_KINDS, FENCED_TABLE);
}

#[test]
fn where_the_fence_has_to_stand_and_does_not_nothing_is_claimed() {
    let now = Instant::now();
    let mut machine = claiming_behind(Fencing::Down, now);
    assert!(drain(&mut machine).is_empty());
    assert_eq!(machine.next_deadline(now), None);
    machine.handle(
        Event::Fenced("other".parse().unwrap(), Fencing::Standing),
        now,
    );
    assert!(drain(&mut machine).is_empty());
    machine.handle(
        Event::Fenced("vip".parse().unwrap(), Fencing::Standing),
        now,
    );
    assert_eq!(drain(&mut machine), [Action::Add(target(0))]);
    assert!(machine.may_add(&target(0), now));
    machine.handle(Event::Fenced("vip".parse().unwrap(), Fencing::Down), now);
    assert!(
        !machine.may_add(&target(0), now),
        "taken back before it was done"
    );
    assert_eq!(machine.reason(&target(0), now), Reason::NoFence);
}

#[test]
fn a_lapsed_vip_stays_silent_and_is_heard_again_in_the_same_term() {
    let now = Instant::now();
    let mut machine = machine_behind(Fencing::Standing, Kind::Held, now);
    let lapse = now + LEASE - MARGIN;
    assert!(machine.next_deadline(now).unwrap() <= lapse);
    machine.handle(Event::Deadline, lapse);
    assert_eq!(
        letters(&drain(&mut machine)),
        "S",
        "silent, and still there"
    );
    assert!(!machine.may_announce(&target(0), lapse) && !machine.may_permit(&target(0), lapse));
    assert_eq!(machine.released(), None, "it may be heard again");

    // The kernel's own expiry is put off meanwhile.
    let renewal = machine.next_deadline(lapse).unwrap();
    assert!(renewal <= now + Timing::default().renew_every);
    machine.handle(Event::Deadline, renewal);
    assert_eq!(drain(&mut machine), [Action::Renew(target(0))]);
    assert!(machine.may_renew(&target(0), renewal));

    let again = renewal + Duration::from_secs(1);
    machine.handle(leading(5, again + LEASE), again);
    let expected = Action::Permit {
        targets: [target(0)].into(),
        lease_until: again + LEASE,
    };
    assert!(drain(&mut machine).contains(&expected));
    machine.handle(Event::Permitted([target(0)].into()), again);
    assert_eq!(drain(&mut machine), [Action::Announce(target(0))]);

    // Not in another term, even if it is this node's own.
    machine.handle(Event::Deadline, again + LEASE);
    drain(&mut machine);
    machine.handle(leading(6, again + LEASE * 3), again + LEASE);
    assert_eq!(drain(&mut machine), [Action::Remove(target(0))]);
}

#[test]
fn permissions_are_renewed_together_with_the_lease() {
    let now = Instant::now();
    let mut machine = Machine::new(Timing::default(), Fencing::Standing);
    machine.handle(Event::Configured([target(0), target(1)].into()), now);
    machine.handle(leading(5, now + LEASE), now);
    for n in [0, 1] {
        machine.handle(Event::Added(target(n)), now);
    }
    let both: BTreeSet<_> = [target(0), target(1)].into();
    machine.handle(Event::Permitted(both.clone()), now);
    drain(&mut machine);
    let permits = |machine: &mut Machine| -> Vec<_> {
        let actions = drain(machine);
        let permit = |action| match action {
            Action::Permit {
                targets,
                lease_until,
            } => Some((targets, lease_until)),
            _ => None,
        };
        actions.into_iter().filter_map(permit).collect()
    };
    let mut until = now + LEASE;
    for (put_off_ms, renews) in [(50, true), (4, false), (1, true), (50, true)] {
        until += Duration::from_millis(put_off_ms);
        machine.handle(leading(5, until), now);
        let expected = if renews {
            vec![(both.clone(), until)]
        } else {
            vec![]
        };
        assert_eq!(
            permits(&mut machine),
            expected,
            "put off by {put_off_ms} ms"
        );
    }
    until -= Duration::from_millis(1);
    machine.handle(leading(5, until), now);
    assert_eq!(
        permits(&mut machine),
        [(both, until)],
        "a shorter lease is taken over at once"
    );
}

#[test]
fn a_permission_that_failed_is_asked_for_again_soon() {
    let now = Instant::now();
    let mut machine = machine_behind(Fencing::Standing, Kind::Silent, now);
    let again = machine.next_deadline(now).unwrap();
    assert_eq!(again, now + Duration::from_millis(10));
    machine.handle(Event::Deadline, again);
    assert_eq!(letters(&drain(&mut machine)), "P");
    machine.handle(Event::Permitted([target(0)].into()), again);
    assert_eq!(letters(&drain(&mut machine)), "G");
}

#[test]
fn being_leader_without_a_lease_permits_nothing() {
    let now = Instant::now();
    let mut machine = Machine::new(Timing::default(), Fencing::Unfenced);
    machine.handle(Event::Configured([target(0), target(1)].into()), now);
    let leader = Leadership {
        term: 3,
        leader: Some(NodeId(1)),
        lease_until: None,
        given_up: false,
        heir: None,
        granted_in: None,
    };
    machine.handle(Event::Leadership(leader), now);
    assert!(drain(&mut machine).is_empty());
    assert_eq!(machine.next_deadline(now), None);
}

#[test]
fn every_vip_is_claimed_renewed_and_withdrawn_before_the_lease_lapses() {
    let now = Instant::now();
    let mut machine = Machine::new(Timing::default(), Fencing::Unfenced);
    machine.handle(Event::Configured([target(0), target(1)].into()), now);
    machine.handle(leading(5, now + LEASE), now);
    assert_eq!(
        drain(&mut machine),
        [Action::Add(target(0)), Action::Add(target(1))]
    );
    for n in [0, 1] {
        machine.handle(Event::Added(target(n)), now);
        assert_eq!(drain(&mut machine), [Action::Announce(target(n))]);
        assert!(machine.may_announce(&target(n), now));
    }
    let last = now + LEASE - MARGIN;
    assert!(machine.next_deadline(now).unwrap() <= last);
    machine.handle(Event::Deadline, last);
    assert_eq!(
        drain(&mut machine),
        [Action::Remove(target(0)), Action::Remove(target(1))]
    );
    assert!(!machine.may_announce(&target(0), last));
    assert!(!machine.is_withdrawn());
    machine.handle(Event::Removed(target(0)), last);
    machine.handle(Event::Removed(target(1)), last);
    assert!(machine.is_withdrawn());
    assert_eq!(
        machine.next_deadline(last),
        None,
        "nothing to wait for but a new lease"
    );
}

#[test]
fn a_higher_term_withdraws_before_it_claims_again() {
    let now = Instant::now();
    let mut machine = machine_in(Kind::Held, now);
    machine.handle(leading(6, now + LEASE), now);
    assert_eq!(drain(&mut machine), [Action::Remove(target(0))]);
    machine.handle(Event::Removed(target(0)), now);
    assert_eq!(drain(&mut machine), [Action::Add(target(0))]);
}

#[test]
fn a_grant_that_goes_over_into_a_lease_of_ones_own_is_held_on() {
    let now = Instant::now();
    let mut machine = Machine::new(Timing::default(), Fencing::Unfenced);
    machine.handle(Event::Configured([target(0)].into()), now);
    let granted = |term, granted_in| {
        Event::Leadership(Leadership {
            term,
            leader: Some(NodeId(2)),
            lease_until: Some(now + LEASE),
            given_up: false,
            heir: None,
            granted_in,
        })
    };
    machine.handle(granted(5, Some(5)), now);
    assert_eq!(drain(&mut machine), [Action::Add(target(0))]);
    machine.handle(Event::Added(target(0)), now);
    assert_eq!(letters(&drain(&mut machine)), "G");
    machine.handle(granted(6, Some(5)), now);
    assert!(drain(&mut machine).is_empty(), "held on");
    machine.handle(granted(8, Some(5)), now);
    assert_eq!(
        drain(&mut machine),
        [Action::Remove(target(0))],
        "not across a term that was granted by nobody"
    );
}

#[test]
fn what_a_vip_carries_is_served_on_when_it_is_given_away() {
    let now = Instant::now();
    let mut machine = held_behind_a_fence(now);
    machine.handle(giving_away(5), now);
    assert_eq!(
        drain(&mut machine),
        [Action::Serve(target(0)), Action::Remove(target(0))],
        "served before it goes"
    );
    machine.handle(Event::Removed(target(0)), now);
    assert_eq!(machine.released(), Some(5));
    let mut at = now;
    for _ in 0..4 {
        at = machine.next_deadline(at).unwrap();
        machine.handle(Event::Deadline, at);
        assert_eq!(drain(&mut machine), [Action::Serve(target(0))]);
    }
    assert!(at - now < SERVE_LASTS * 2);
    machine.handle(following(6), at);
    machine.handle(Event::Stop, at);
    assert!(
        machine.may_serve(&target(0)),
        "on, beyond the stop of claims"
    );
    machine.handle(quiet(false), at);
    assert_eq!(drain(&mut machine), [Action::EndServe(target(0))]);
    assert_eq!(machine.next_deadline(at), None);
}

#[test]
fn serving_ends_by_the_deadline_at_the_end_and_when_the_vip_comes_back() {
    let now = Instant::now();
    let served = || {
        let mut machine = held_behind_a_fence(now);
        machine.handle(giving_away(5), now);
        machine.handle(Event::Removed(target(0)), now);
        drain(&mut machine);
        machine
    };
    let late = now + Timing::default().second_chance;
    for (event, at) in [
        (Event::Deadline, late),
        (Event::End, now),
        (Event::Configured([].into()), now),
        (Event::Fenced("vip".parse().unwrap(), Fencing::Down), now),
    ] {
        let mut machine = served();
        machine.handle(event.clone(), at);
        assert_eq!(
            drain(&mut machine),
            [Action::EndServe(target(0))],
            "{event:?}"
        );
        assert_eq!(machine.served().count(), 0);
    }
    let mut machine = served();
    machine.handle(leading(6, now + LEASE), now);
    assert_eq!(drain(&mut machine), [Action::Add(target(0))]);
    machine.handle(Event::Added(target(0)), now);
    assert_eq!(letters(&drain(&mut machine)), "P");
    assert_eq!(machine.served().count(), 1, "until it is held");
    machine.handle(Event::Permitted([target(0)].into()), now);
    assert!(drain(&mut machine).contains(&Action::EndServe(target(0))));
}

fn quiet(relays: bool) -> Event {
    let target = target(0);
    Event::Quiet { target, relays }
}

#[test]
fn who_only_relays_says_that_it_carries_nothing_and_goes_on_for_a_while() {
    let now = Instant::now();
    let mut machine = held_behind_a_fence(now);
    machine.handle(giving_away(5), now);
    machine.handle(Event::Removed(target(0)), now);
    drain(&mut machine);
    let before = |machine: &Machine| (machine.carrying().count(), machine.served().count());
    assert_eq!(before(&machine), (1, 1));
    let mut at = now;
    while at < now + Timing::default().relay_on {
        machine.handle(quiet(true), at);
        assert_eq!(drain(&mut machine), []);
        assert_eq!(before(&machine), (0, 1));
        at = machine.next_deadline(at).unwrap();
        machine.handle(Event::Deadline, at);
        assert_eq!(drain(&mut machine), [Action::Serve(target(0))]);
    }
    // One that was found after all starts the time anew.
    machine.handle(Event::Busy(target(0)), at);
    assert_eq!(before(&machine), (1, 1));
    machine.handle(quiet(true), at);
    assert_eq!((drain(&mut machine), before(&machine)), (vec![], (0, 1)));
    machine.handle(quiet(true), at + Timing::default().relay_on);
    assert_eq!(drain(&mut machine), [Action::EndServe(target(0))]);
    assert_eq!(before(&machine), (0, 0));
}

fn held_behind_a_fence(now: Instant) -> Machine {
    let mut machine = Machine::new(Timing::default(), Fencing::Standing);
    machine.handle(Event::Configured([target(0)].into()), now);
    machine.handle(leading(5, now + LEASE), now);
    machine.handle(Event::Added(target(0)), now);
    machine.handle(Event::Permitted([target(0)].into()), now);
    drain(&mut machine);
    machine
}

#[test]
fn a_vip_that_moves_to_another_interface_leaves_the_first_one() {
    let now = Instant::now();
    let mut machine = machine_in(Kind::Held, now);
    let moved = Target {
        interface: "aaa".parse().unwrap(), // sorts before the old one
        ..target(0)
    };
    machine.handle(Event::Configured([moved.clone()].into()), now);
    assert_eq!(
        drain(&mut machine),
        [Action::Remove(target(0)), Action::Add(moved.clone())]
    );
    machine.handle(Event::Removed(target(0)), now);
    assert_eq!(machine.phase(&target(0)), None);
    assert_eq!(machine.phase(&moved), Some(Phase::Adding));
}

#[test]
fn announcements_come_in_a_burst_then_farther_apart_then_steadily() {
    let start = Instant::now();
    let mut machine = machine_in(Kind::Held, start);
    let (mut now, mut at) = (start, vec![]);
    while now < start + Duration::from_secs(60) {
        machine.handle(leading(5, now + LEASE), now);
        let announced = drain(&mut machine)
            .iter()
            .any(|a| matches!(a, Action::Announce(_)));
        if announced {
            at.push((now - start).as_millis());
        }
        now += Duration::from_millis(10);
    }
    // The announcement at 0 was taken by `machine_in`.
    assert_eq!(&at[..8], [20, 40, 60, 80, 180, 380, 780, 1580]);
    let gaps: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps[gaps.len() - 2..], [10_000, 10_000]);

    machine.handle(Event::LinkReady("vip".parse().unwrap()), now);
    assert_eq!(
        letters(&drain(&mut machine)),
        "NG",
        "carrier came back: announced at once"
    );
    let next = machine.next_deadline(now).unwrap();
    assert!(
        next <= now + Duration::from_millis(20),
        "and the burst begins anew"
    );
}

#[test]
fn failures_are_retried_with_growing_waits_while_the_lease_lasts() {
    let mut now = Instant::now();
    let mut machine = claiming(now);
    let mut waits = vec![];
    for _ in 0..9 {
        assert_eq!(letters(&drain(&mut machine)), "A");
        machine.handle(Event::AddFailed(target(0)), now);
        assert_eq!(
            letters(&drain(&mut machine)),
            "R",
            "it may be there all the same"
        );
        machine.handle(leading(5, now + Duration::from_secs(60)), now);
        machine.handle(Event::Removed(target(0)), now);
        let next = machine.next_deadline(now).unwrap();
        waits.push((next - now).as_millis());
        now = next;
        machine.handle(Event::Deadline, now);
    }
    assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn an_address_that_cannot_be_removed_is_tried_again_even_after_stop() {
    let now = Instant::now();
    let mut machine = machine_in(Kind::Held, now);
    machine.handle(Event::Stop, now);
    machine.handle(Event::RemoveFailed(target(0)), now);
    drain(&mut machine);
    assert!(!machine.is_withdrawn());
    let retry = machine.next_deadline(now).unwrap();
    machine.handle(Event::Deadline, retry);
    assert_eq!(drain(&mut machine), [Action::Remove(target(0))]);
    machine.handle(Event::Removed(target(0)), retry);
    assert!(machine.is_withdrawn());
    machine.handle(leading(9, retry + LEASE), retry);
    assert!(drain(&mut machine).is_empty(), "stopped is stopped");
}

#[test]
fn a_withdrawal_says_why() {
    let now = Instant::now();
    for (event, at, reason) in [
        (Event::Stop, now, Reason::Stopping),
        (Event::Configured([].into()), now, Reason::NotConfigured),
        (following(5), now, Reason::NotLeading),
        (following(6), now, Reason::NotLeading),
        (Event::Deadline, now + LEASE - MARGIN, Reason::LeaseRunsOut),
        (leading(6, now + LEASE), now, Reason::ToBeTakenAnew),
        (Event::AddFailed(target(0)), now, Reason::ToBeTakenAnew),
    ] {
        let mut machine = machine_in(Kind::Held, now);
        machine.handle(event.clone(), at);
        assert_eq!(drain(&mut machine), [Action::Remove(target(0))]);
        assert_eq!(machine.reason(&target(0), at), reason, "{event:?}");
    }
}

#[test]
fn a_term_is_released_when_its_lease_was_given_up_for_good_and_nothing_is_held() {
    let now = Instant::now();
    let mut machine = machine_in(Kind::Held, now);
    assert_eq!(machine.released(), None, "held");
    // Lost for a moment, as when no quorum answers: what was said then would count when it is held again in the same term.
    machine.handle(following(5), now);
    machine.handle(Event::Removed(target(0)), now);
    assert!(machine.is_withdrawn());
    assert_eq!(machine.released(), None, "it may come back");
    machine.handle(leading(5, now + LEASE), now);
    machine.handle(Event::Added(target(0)), now);
    assert_eq!(machine.released(), None, "held again");
    machine.handle(giving_away(5), now);
    assert_eq!(machine.released(), None, "not withdrawn yet");
    machine.handle(Event::Removed(target(0)), now);
    assert_eq!(machine.released(), Some(5));
    machine.handle(following(6), now);
    assert_eq!(
        machine.released(),
        Some(5),
        "no lease was seen in the new term"
    );
    machine.handle(leading(7, now + LEASE), now);
    assert_eq!(machine.released(), None);

    let mut machine = machine_in(Kind::Held, now);
    machine.handle(Event::Deadline, now + LEASE);
    machine.handle(Event::Removed(target(0)), now + LEASE);
    assert!(machine.is_withdrawn());
    assert_eq!(machine.released(), None, "a lapsed lease may be renewed");
    machine.handle(Event::Stop, now + LEASE);
    assert_eq!(machine.released(), Some(5));
    assert_eq!(
        Machine::new(Timing::default(), Fencing::Unfenced).released(),
        None
    );
}

/// Steps of a random life of one node. Milliseconds.
#[derive(Clone, Debug)]
enum Step {
    Pass(u16),
    Lease {
        lasts: u16,
        new_term: bool,
    },
    Depose {
        new_term: bool,
    },
    /// The lease is given away by plan; nothing is left of what the VIPs carry, or something.
    GiveAway {
        quiet: bool,
        relays: bool,
    },
    /// The lease of another leader is granted, and goes over into one of this node's own.
    Granted {
        lasts: u16,
    },
    Configure(BTreeSet<u8>),
    DeletedByOthers(u8),
    LinkReady,
    Break {
        adds: bool,
        removes: bool,
        permits: bool,
    },
    Fence {
        stands: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u16..400).prop_map(Step::Pass),
        6 => (0u16..500, proptest::bool::weighted(0.1)).prop_map(|(lasts, new_term)| Step::Lease { lasts, new_term }),
        1 => any::<bool>().prop_map(|new_term| Step::Depose { new_term }),
        1 => any::<(bool, bool)>().prop_map(|(quiet, relays)| Step::GiveAway { quiet, relays }),
        1 => (0u16..500).prop_map(|lasts| Step::Granted { lasts }),
        2 => proptest::collection::btree_set(0u8..4, 0..4).prop_map(Step::Configure),
        1 => (0u8..4).prop_map(Step::DeletedByOthers),
        1 => Just(Step::LinkReady),
        1 => any::<(bool, bool, bool)>().prop_map(|(adds, removes, permits)| Step::Break { adds, removes, permits }),
        1 => any::<bool>().prop_map(|stands| Step::Fence { stands }),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The machine, a kernel, and a clock that serves deadlines `lateness` late.
struct World {
    machine: Machine,
    now: Instant,
    lateness: Duration,
    term: u64,
    lease_until: Option<Instant>,
    present: BTreeSet<Target>,
    wanted: BTreeSet<Target>,
    adds_fail: bool,
    removes_fail: bool,
    permits_fail: bool,
    /// Whether there is a fence at all, and whether it stands.
    fenced: bool,
    stands: bool,
    /// The kernel's timed set: until when frames pass.
    permitted: BTreeMap<Target, Instant>,
    /// Its other one: until when answers on behalf of the holder pass.
    served: BTreeMap<Target, Instant>,
    /// Nothing that is served carries a connection.
    quiet: bool,
    relays: bool,
}

impl World {
    fn new(lateness: Duration) -> Self {
        Self::behind(Fencing::Unfenced, lateness)
    }

    fn behind(fencing: Fencing, lateness: Duration) -> Self {
        Self {
            machine: Machine::new(Timing::default(), fencing),
            permits_fail: false,
            fenced: fencing == Fencing::Standing,
            stands: true,
            permitted: BTreeMap::new(),
            served: BTreeMap::new(),
            quiet: false,
            relays: false,
            now: Instant::now(),
            lateness,
            term: 1,
            lease_until: None,
            present: BTreeSet::new(),
            wanted: BTreeSet::new(),
            adds_fail: false,
            removes_fail: false,
        }
    }

    fn lease_is_fresh(&self) -> bool {
        self.lease_until.is_some_and(|until| self.now < until)
    }

    fn feed(&mut self, event: Event) {
        self.machine.handle(event, self.now);
        while let Some(action) = self.machine.poll_action() {
            self.carry_out(action);
        }
        self.check();
    }

    fn carry_out(&mut self, action: Action) {
        let outcome = match action {
            Action::Add(t) | Action::Renew(t) => {
                let heard = !self.fenced || !self.present.contains(&t);
                assert!(
                    !heard || self.lease_is_fresh(),
                    "asked for {t:?} without a lease"
                );
                assert!(
                    !heard
                        || self.machine.entitled(self.now)
                        || self.machine.may_renew(&t, self.now),
                    "asked for {t:?} within the margin"
                );
                assert!(
                    !self.fenced || self.stands,
                    "asked for {t:?} without a fence"
                );
                if self.adds_fail {
                    Event::AddFailed(t)
                } else {
                    self.present.insert(t.clone());
                    Event::Added(t)
                }
            }
            Action::Remove(t) => {
                self.permitted.remove(&t);
                if self.removes_fail {
                    Event::RemoveFailed(t)
                } else {
                    self.present.remove(&t);
                    Event::Removed(t)
                }
            }
            Action::Silence(t) => {
                self.permitted.remove(&t);
                return;
            }
            Action::Permit {
                targets,
                lease_until,
            } => {
                assert!(self.fenced && self.stands);
                assert_eq!(
                    Some(lease_until),
                    self.lease_until,
                    "permitted for another lease"
                );
                if self.permits_fail {
                    Event::PermitFailed(targets)
                } else {
                    let until = lease_until - MARGIN;
                    self.permitted
                        .extend(targets.iter().map(|t| (t.clone(), until)));
                    Event::Permitted(targets)
                }
            }
            Action::Serve(t) => {
                assert!(self.fenced && self.stands, "served without a fence");
                self.served.insert(t.clone(), self.now + SERVE_LASTS);
                if self.quiet {
                    Event::Quiet {
                        target: t,
                        relays: self.relays,
                    }
                } else {
                    Event::Busy(t)
                }
            }
            Action::EndServe(t) => {
                self.served.remove(&t);
                return;
            }
            Action::Announce(t) => {
                assert!(
                    self.lease_is_fresh() && self.present.contains(&t),
                    "announced {t:?}"
                );
                return;
            }
        };
        self.machine.handle(outcome, self.now);
    }

    fn check(&self) {
        for target in self.machine.served() {
            assert!(
                self.fenced && self.stands,
                "{target:?} is served without a fence"
            );
            assert!(
                !matches!(self.machine.phase(target), Some(Phase::Held { .. })),
                "{target:?} is served and held"
            );
        }
        let served: BTreeSet<_> = self.machine.served().cloned().collect();
        assert!(
            self.served
                .keys()
                .all(|t| served.contains(t) || !self.stands),
            "served on though the machine has ended it"
        );
        if self.fenced {
            self.check_fenced();
        } else {
            self.check_unfenced();
        }
    }

    /// The promise behind a fence: every permission in the kernel ends before the lease does, whenever this process comes to act.
    fn check_fenced(&self) {
        for (target, until) in &self.permitted {
            let lease = self.lease_until.expect("no permission without a lease");
            assert!(*until < lease, "{target:?} is heard beyond the lease");
        }
        for (target, phase) in self.machine.phases() {
            if matches!(phase, Phase::Held { .. }) {
                assert!(self.present.contains(target), "{target:?} is not there");
                assert!(self.stands && self.lease_is_fresh());
            }
        }
    }

    /// The promise without one. While removals fail, only that nothing is *believed* to be held.
    fn check_unfenced(&self) {
        let believed: BTreeSet<_> = self
            .machine
            .phases()
            .filter(|(_, phase)| matches!(phase, Phase::Held { .. }))
            .map(|(t, _)| t.clone())
            .collect();
        assert!(believed.is_subset(&self.present));
        if !self.lease_is_fresh() {
            assert!(believed.is_empty(), "held without a lease");
        }
        if !self.removes_fail && !self.lease_is_fresh() {
            let unknown: Vec<_> = self
                .present
                .iter()
                .filter(|t| !matches!(self.machine.phase(t), Some(Phase::Stuck { .. })))
                .collect();
            assert!(unknown.is_empty(), "present without a lease: {unknown:?}");
        }
    }

    /// Lets time pass, serving deadlines late.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        for round in 0.. {
            assert!(
                round < 10_000,
                "a deadline that is over comes again and again"
            );
            let due = self
                .machine
                .next_deadline(self.now)
                .map(|at| (at + self.lateness).max(self.now));
            match due {
                Some(due) if due <= end => {
                    self.now = due;
                    self.feed(Event::Deadline);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Pass(ms) => self.pass(Duration::from_millis(ms.into())),
            Step::Lease { lasts, new_term } => {
                self.term += u64::from(new_term);
                self.lease_until = Some(self.now + Duration::from_millis(lasts.into()));
                self.feed(leading(
                    self.term,
                    self.now + Duration::from_millis(lasts.into()),
                ));
            }
            Step::Depose { new_term } => {
                self.term += u64::from(new_term);
                self.lease_until = None;
                self.feed(following(self.term));
            }
            Step::GiveAway { quiet, relays } => {
                (self.quiet, self.relays) = (quiet, relays);
                self.lease_until = None;
                self.feed(giving_away(self.term));
            }
            Step::Granted { lasts } => {
                let until = self.now + Duration::from_millis(lasts.into());
                self.lease_until = Some(until);
                let granted_in = Some(self.term);
                for term in [self.term, self.term + 1] {
                    self.feed(Event::Leadership(Leadership {
                        term,
                        leader: None,
                        lease_until: Some(until),
                        given_up: false,
                        heir: None,
                        granted_in,
                    }));
                }
                self.term += 1;
            }
            Step::Configure(vips) => {
                self.wanted = vips.into_iter().map(target).collect();
                self.feed(Event::Configured(self.wanted.clone()));
            }
            Step::DeletedByOthers(n) => {
                if self.present.remove(&target(n)) {
                    self.feed(Event::Missing(target(n)));
                }
            }
            Step::LinkReady => self.feed(Event::LinkReady("vip".parse().unwrap())),
            Step::Break {
                adds,
                removes,
                permits,
            } => {
                (self.adds_fail, self.removes_fail, self.permits_fail) = (adds, removes, permits);
            }
            Step::Fence { stands } if self.fenced => {
                self.stands = stands;
                self.permitted.clear(); // whether it was destroyed or made anew
                let fencing = if stands {
                    Fencing::Standing
                } else {
                    Fencing::Down
                };
                self.feed(Event::Fenced("vip".parse().unwrap(), fencing));
            }
            Step::Fence { .. } => {}
        }
    }
}

#[test]
fn answers_that_are_taken_in_together_ask_for_one_permission() {
    let now = Instant::now();
    let all: BTreeSet<Target> = (0..100).map(target).collect();
    let mut machine = Machine::new(Timing::default(), Fencing::Standing);
    machine.handle(Event::Configured(all.clone()), now);
    machine.handle(leading(5, now + LEASE), now);
    assert_eq!(drain(&mut machine).len(), 100);
    machine.handle_all(all.iter().cloned().map(Event::Added), now);
    let expected = Action::Permit {
        targets: all.clone(),
        lease_until: now + LEASE,
    };
    assert_eq!(drain(&mut machine), [expected]);
    machine.handle(Event::Permitted(all), now);
    let announced = drain(&mut machine).into_iter();
    assert_eq!(
        announced
            .filter(|a| matches!(a, Action::Announce(_)))
            .count(),
        100
    );
}

#[test]
fn it_claims_while_it_leads_whether_its_lease_is_fresh_or_not() {
    let now = Instant::now();
    let mut machine = claiming(now);
    assert!(machine.claims());
    machine.handle(Event::Deadline, now + LEASE);
    assert!(machine.claims() && !machine.entitled(now + LEASE));
    machine.handle(following(6), now + LEASE);
    assert!(!machine.claims());
    machine.handle(leading(7, now + 3 * LEASE), now + 2 * LEASE);
    assert!(machine.claims());
    machine.handle(Event::Stop, now + 2 * LEASE);
    assert!(!machine.claims());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever happens, and however late (below the margin) timers fire: nothing is on an interface without a fresh lease,
    /// and nothing is asked for or announced without one.
    #[test]
    fn nothing_is_ever_held_without_a_fresh_lease(life in steps(), lateness_ms in 0u64..30) {
        let mut world = World::new(Duration::from_millis(lateness_ms));
        for step in life {
            world.step(step);
        }
    }

    /// Behind a fence the same holds however late this process acts: stopped for seconds, in the middle of anything.
    #[test]
    fn behind_a_fence_nothing_is_heard_beyond_the_lease(life in steps(), lateness_ms in 0u64..3_000) {
        let mut world = World::behind(Fencing::Standing, Duration::from_millis(lateness_ms));
        for step in life {
            world.step(step);
        }
    }

    /// Many are added, and some of them were: what is held is permitted for a newer lease, and renewed, before the next is added.
    #[test]
    fn what_is_held_is_permitted_and_renewed_before_the_next_is_added(
        held in 1u8..8, new in 1u8..60, begun in 0u8..60, answered in 0u8..60, put_off in 5u64..200, renews: bool,
    ) {
        let now = Instant::now();
        let known: BTreeSet<Target> = (0..held).map(target).collect();
        let mut machine = Machine::new(Timing::default(), Fencing::Standing);
        machine.handle(Event::Configured(known.clone()), now);
        machine.handle(leading(5, now + LEASE), now);
        machine.handle_all(known.iter().cloned().map(Event::Added), now);
        machine.handle(Event::Permitted(known.clone()), now);
        drain(&mut machine);

        let all = (0..held + new).map(target).collect();
        machine.handle(Event::Configured(all), now);
        let adds: Vec<Action> = (0..begun.min(new)).filter_map(|_| machine.poll_action()).collect();
        let added = adds.into_iter().take(answered.into()).map(|action| match action {
            Action::Add(target) => Event::Added(target),
            other => panic!("nothing else is to be done: {other:?}"),
        });
        machine.handle_all(added.collect::<Vec<_>>(), now);
        let later = now + if renews { Timing::default().renew_every } else { Duration::ZERO };
        let lease = later + LEASE + Duration::from_millis(put_off);
        machine.handle(leading(5, lease), later);

        let actions = drain(&mut machine);
        let next_add = actions.iter().position(|a| matches!(a, Action::Add(_)));
        prop_assert_eq!(next_add.is_some(), begun < new);
        let before = &actions[..next_add.unwrap_or(actions.len())];
        let permitted = before.iter().any(|action| match action {
            Action::Permit { targets, lease_until } => *lease_until == lease && known.is_subset(targets),
            _ => false,
        });
        prop_assert!(permitted, "{before:?}");
        let renewed = |target: &Target| before.contains(&Action::Renew(target.clone()));
        prop_assert!(!renews || known.iter().all(renewed), "{before:?}");
    }

    /// When faults end, a leader holds exactly what the snapshot says; stopped, it holds nothing.
    #[test]
    fn faults_heal(life in steps(), fenced: bool) {
        let fencing = if fenced { Fencing::Standing } else { Fencing::Unfenced };
        let mut world = World::behind(fencing, Duration::ZERO);
        for step in life {
            world.step(step);
        }
        world.step(Step::Break { adds: false, removes: false, permits: false });
        world.step(Step::Fence { stands: true });
        for _ in 0..120 {
            world.step(Step::Lease { lasts: 400, new_term: false });
            world.pass(Duration::from_millis(100));
        }
        prop_assert_eq!(&world.present, &world.wanted);
        if fenced {
            let heard: BTreeSet<_> = world.permitted.keys().cloned().collect();
            prop_assert_eq!(&heard, &world.wanted);
        }
        world.feed(Event::Stop);
        prop_assert!(world.present.is_empty());
        prop_assert!(world.permitted.is_empty());
        prop_assert!(world.machine.is_withdrawn());
    }
}
