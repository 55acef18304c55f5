//! Answers in several parts: whoever a question for a name would go to answers it, wherever the name came from.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use proptest::prelude::*;

use crate::model::{rrset::RecordType, snapshot::Snapshot};

use super::{
    cache::{CacheLimits, Entry},
    chain::{MAX_UPSTREAM, Origin},
    message::{Rcode, flag, upstream::Message},
    respond::{Ask, Client, Identity, Response, Transport, complete, respond},
    scrub::scrub,
    testing::{add_forwarder, lines, query, snapshot},
};

const DEMO: &str = "
demo.test. 600 IN SOA a. b. 1 1 1 1 30
demo.test. 600 IN NS a.
www.demo.test. 60 IN A 192.0.2.1
away.demo.test. 60 IN CNAME app.corp.test.
home.demo.test. 60 IN CNAME localhost.
moved.demo.test. 60 IN DNAME corp.test.
circle.demo.test. 60 IN CNAME circle.corp.test.
cut.demo.test. 60 IN NS ns.cut.demo.test.
into.demo.test. 60 IN CNAME www.cut.demo.test.
out.demo.test. 60 IN CNAME out.example.
";

/// What upstreams say, by the suffix that they are asked for: zones in which an alias may lead to nowhere.
type Upstreams<'a> = BTreeMap<&'a str, Snapshot>;

fn zone_of(apex: &str, records: &[&str]) -> Snapshot {
    let soa = format!("{apex} 60 IN SOA a. b. 1 1 1 1 30\n");
    snapshot(&[&records.iter().fold(soa, |text, line| text + line + "\n")])
}

fn ours(upstreams: &Upstreams<'_>) -> Snapshot {
    let mut state = snapshot(&[DEMO]);
    let server = "192.0.2.53:53".parse().expect("an address");
    for suffix in upstreams.keys() {
        add_forwarder(&mut state, suffix, &[server]);
    }
    state
}

fn client() -> Client {
    Client {
        address: [127, 0, 0, 1].into(),
        transport: Transport::Tcp,
    }
}

/// The entry that the upstreams' answer becomes.
fn entry(upstreams: &Upstreams<'_>, ask: &Ask, now: Instant) -> Arc<Entry> {
    let upstream = &upstreams[ask.forwarder.suffix.to_string().as_str()];
    let mut out = Vec::new();
    let message = ask.question.encode(1, true);
    respond(upstream, &Identity::default(), &message, client(), &mut out);
    let message = Message::decode(&out).expect("a message");
    let scrubbed = scrub(message, &ask.question, ask.forwarder.suffix.as_wire());
    let limits = CacheLimits::default();
    let message = scrubbed.expect("of use");
    Arc::new(Entry::of_message(message, &ask.question, &limits, now))
}

struct Reply {
    message: Message,
    origin: Origin,
    asked: usize,
}

impl Reply {
    fn answer(&self) -> Vec<String> {
        lines(&self.message.answer)
    }
}

/// The reply to a question, with every upstream asked that has to be.
fn ask(state: &Snapshot, upstreams: &Upstreams<'_>, qname: &str) -> Reply {
    let (identity, now) = (Identity::default(), Instant::now());
    let message = query(1, qname, RecordType::A, flag::RD, Some(1232));
    let (mut entries, mut out) = (Vec::new(), Vec::new());
    let mut response = respond(state, &identity, &message, client(), &mut out);
    while let Response::Ask(ask) = response {
        entries.push(entry(upstreams, &ask, now));
        assert!(entries.len() <= MAX_UPSTREAM, "{qname} has no end");
        let said = (entries.as_slice(), now);
        response = complete(state, &identity, &message, client(), said, &mut out);
    }
    let Response::Reply(replied) = response else {
        panic!("{response:?}");
    };
    Reply {
        message: Message::decode(&out).expect("a message"),
        origin: replied.origin,
        asked: entries.len(),
    }
}

fn some_upstreams() -> Upstreams<'static> {
    let corp = zone_of(
        "corp.test.",
        &[
            "app.corp.test. 60 IN CNAME www.demo.test.",
            "other.corp.test. 60 IN CNAME www.other.test.",
            "none.corp.test. 60 IN CNAME none.demo.test.",
            "circle.corp.test. 60 IN CNAME circle.demo.test.",
            "out.corp.test. 60 IN CNAME out.example.",
            "here.corp.test. 60 IN CNAME localhost.",
            "cut.corp.test. 60 IN CNAME www.cut.demo.test.",
            "back.corp.test. 60 IN CNAME app.moved.demo.test.",
        ],
    );
    let other = zone_of("other.test.", &["www.other.test. 60 IN A 192.0.2.2"]);
    let cut = zone_of("cut.demo.test.", &["www.cut.demo.test. 60 IN A 192.0.2.3"]);
    BTreeMap::from([
        ("corp.test.", corp),
        ("other.test.", other),
        ("cut.demo.test.", cut),
    ])
}

#[test]
fn an_upstream_that_knows_nothing_of_our_names_denies_none_of_them() {
    let corp = zone_of(
        "test.",
        &[
            "x.corp.test. 60 IN CNAME out.demo.test.",
            "y.corp.test. 60 IN CNAME www.cut.demo.test.",
        ],
    );
    let upstreams = BTreeMap::from([("corp.test.", corp)]);
    let state = ours(&upstreams);
    for (qname, last) in [
        ("x.corp.test.", "CNAME out.example."),
        ("y.corp.test.", "CNAME www.cut.demo.test."),
    ] {
        let reply = ask(&state, &upstreams, qname);
        assert_eq!(reply.message.rcode, Rcode::NO_ERROR, "{qname}");
        let answer = reply.answer();
        let has = answer.iter().any(|line| line.ends_with(last));
        assert!(has, "{answer:?}");
    }
}

#[test]
fn an_alias_is_followed_wherever_it_leads() {
    let upstreams = some_upstreams();
    let state = ours(&upstreams);
    for (qname, end, origin, asked) in [
        ("app.corp.test.", Some("A 192.0.2.1"), Origin::Zone, 1),
        ("away.demo.test.", Some("A 192.0.2.1"), Origin::Zone, 1),
        ("app.moved.demo.test.", Some("A 192.0.2.1"), Origin::Zone, 1),
        ("other.corp.test.", Some("A 192.0.2.2"), Origin::Upstream, 2),
        ("here.corp.test.", Some("A 127.0.0.1"), Origin::BuiltIn, 1),
        ("home.demo.test.", Some("A 127.0.0.1"), Origin::BuiltIn, 0),
        ("cut.corp.test.", Some("A 192.0.2.3"), Origin::Upstream, 2),
        ("into.demo.test.", Some("A 192.0.2.3"), Origin::Upstream, 1),
        ("none.corp.test.", None, Origin::Zone, 1),
        ("out.corp.test.", None, Origin::Upstream, 1),
    ] {
        let reply = ask(&state, &upstreams, qname);
        let answer = reply.answer();
        assert_eq!((reply.origin, reply.asked), (origin, asked), "{qname}");
        match end {
            Some(end) => assert!(
                answer.iter().any(|line| line.ends_with(end)),
                "{qname}: {answer:?}"
            ),
            None => assert!(
                answer.iter().all(|line| line.contains(" CNAME ")),
                "{qname}: {answer:?}"
            ),
        }
        let ours = qname.ends_with("demo.test.");
        assert_eq!(reply.message.flags & flag::AA != 0, ours, "{qname}");
    }
    let denied = ask(&state, &upstreams, "none.corp.test.");
    assert_eq!(denied.message.rcode, Rcode::NX_DOMAIN);
    assert_eq!(denied.message.authority.len(), 1, "the SOA of our zone");
}

/// What a client gets without any upstream being asked; none: one has to be asked, that for the suffix returned.
fn at_once(
    state: &Snapshot,
    qname: &str,
    rtype: RecordType,
    flags: u16,
) -> Result<Message, String> {
    let message = query(1, qname, rtype, flags, Some(1232));
    let mut out = Vec::new();
    match respond(state, &Identity::default(), &message, client(), &mut out) {
        Response::Ask(ask) => Err(ask.forwarder.suffix.to_string()),
        response => {
            assert!(matches!(response, Response::Reply(_)), "{response:?}");
            Ok(Message::decode(&out).expect("a message"))
        }
    }
}

#[test]
fn a_name_that_our_zone_delegates_is_asked_of_a_forwarder() {
    let world = || zone_of(".", &["www.cut.demo.test. 60 IN A 192.0.2.9"]);
    let upstreams = BTreeMap::from([(".", world())]);
    let state = ours(&upstreams);
    for qname in ["www.cut.demo.test.", "into.demo.test."] {
        let reply = ask(&state, &upstreams, qname);
        let answer = reply.answer();
        let found = answer.iter().any(|line| line.ends_with("A 192.0.2.9"));
        assert!(found && reply.asked == 1, "{qname}: {answer:?}");
    }
    let none = ask(&state, &upstreams, "none.cut.demo.test.");
    assert_eq!(none.message.rcode, Rcode::NX_DOMAIN);
    // The longest suffix counts, around the zone or below the cut.
    let all: Upstreams<'_> = [".", "test.", "cut.demo.test."]
        .into_iter()
        .map(|suffix| (suffix, world()))
        .collect();
    for (suffixes, expected) in [(1, "."), (2, "test."), (3, "cut.demo.test.")] {
        let some = [".", "test.", "cut.demo.test."].into_iter().take(suffixes);
        let some: Upstreams<'_> = some.map(|suffix| (suffix, all[suffix].clone())).collect();
        let asked = at_once(&ours(&some), "www.cut.demo.test.", RecordType::A, flag::RD);
        assert_eq!(asked.err().as_deref(), Some(expected));
    }
}

#[test]
fn a_referral_is_for_those_who_can_do_nothing_better() {
    let forwarding = ours(&BTreeMap::from([(".", zone_of(".", &[]))]));
    let alone = ours(&BTreeMap::new());
    for (what, state, flags) in [
        ("no recursion is desired", &forwarding, 0),
        ("there is nobody to ask", &alone, flag::RD),
    ] {
        let reply = at_once(state, "www.cut.demo.test.", RecordType::A, flags).expect("a reply");
        let shape = (reply.rcode, reply.answer.len(), reply.authority.len());
        assert_eq!(shape, (Rcode::NO_ERROR, 0, 1), "{what}");
        assert_eq!(reply.authority[0].rtype, RecordType::NS, "{what}");
    }
}

#[test]
fn ds_of_a_forwarders_suffix_is_asked_of_the_forwarder_above() {
    let suffixes = ["corp.test.", "a.corp.test.", "10.in-addr.arpa."];
    let some = || suffixes.map(|suffix| (suffix, zone_of(suffix, &[])));
    let without_root = ours(&BTreeMap::from(some()));
    let mut with_root = BTreeMap::from(some());
    with_root.insert(".", zone_of(".", &[]));
    let with_root = ours(&with_root);
    for (state, qname, rtype, expected) in [
        (&with_root, "corp.test.", RecordType::DS, "."),
        (&with_root, "a.corp.test.", RecordType::DS, "corp.test."),
        (&with_root, "b.corp.test.", RecordType::DS, "corp.test."),
        (&with_root, "corp.test.", RecordType::A, "corp.test."),
        (&with_root, ".", RecordType::DS, "."),
        (&with_root, "10.in-addr.arpa.", RecordType::DS, "."),
        // Nobody above is known: the child's servers know at least that they do not.
        (&without_root, "corp.test.", RecordType::DS, "corp.test."),
    ] {
        let asked = at_once(state, qname, rtype, flag::RD).err();
        assert_eq!(asked.as_deref(), Some(expected), "{qname} {rtype}");
    }
}

#[test]
fn a_dname_stands_in_an_answer_once_though_it_moves_two_names_of_it() {
    let upstreams = some_upstreams();
    let state = ours(&upstreams);
    let reply = ask(&state, &upstreams, "back.moved.demo.test.");
    let answer = reply.answer();
    let dnames = answer.iter().filter(|line| line.contains(" DNAME "));
    assert_eq!(
        (dnames.count(), answer.len(), reply.asked),
        (1, 6, 2),
        "{answer:?}"
    );
    // Within one zone as well.
    let zone = zone_of(
        "z.",
        &[
            "d.z. 60 IN DNAME e.z.",
            "x.e.z. 60 IN CNAME y.d.z.",
            "y.e.z. 60 IN A 192.0.2.1",
        ],
    );
    let reply = at_once(&zone, "x.d.z.", RecordType::A, 0).expect("a reply");
    let expected = [
        "d.z. 60 IN DNAME e.z.",
        "x.d.z. 60 IN CNAME x.e.z.",
        "x.e.z. 60 IN CNAME y.d.z.",
        "y.d.z. 60 IN CNAME y.e.z.",
        "y.e.z. 60 IN A 192.0.2.1",
    ];
    assert_eq!(lines(&reply.answer), expected);
}

#[test]
fn names_below_localhost_are_loopback_names() {
    let state = ours(&BTreeMap::from([(".", zone_of(".", &[]))]));
    for qname in ["localhost.", "foo.localhost.", "a.foo.localhost."] {
        let reply = at_once(&state, qname, RecordType::A, flag::RD).expect("a reply");
        assert_eq!(
            lines(&reply.answer),
            [format!("{qname} 10800 IN A 127.0.0.1")]
        );
        let reply = at_once(&state, qname, RecordType::AAAA, flag::RD).expect("a reply");
        assert_eq!(lines(&reply.answer), [format!("{qname} 10800 IN AAAA ::1")]);
        let none = at_once(&state, qname, RecordType::TXT, flag::RD).expect("a reply");
        assert_eq!(
            (none.rcode, none.answer.len(), none.authority.len()),
            (Rcode::NO_ERROR, 0, 1)
        );
    }
}

#[test]
fn a_circle_through_upstreams_ends() {
    let upstreams = some_upstreams();
    let state = ours(&upstreams);
    for qname in ["circle.demo.test.", "circle.corp.test."] {
        let reply = ask(&state, &upstreams, qname);
        assert_eq!(reply.message.rcode, Rcode::SERV_FAIL, "{qname}");
        assert!(reply.message.answer.is_empty() && reply.asked <= 2);
        assert_eq!(reply.origin, Origin::Endless);
    }
}

#[test]
fn an_upstream_is_believed_unless_somebody_knows_better() {
    // A server for corp.test that knows the rest of the world, but not our zone and not other.test.
    let knowing = [
        "corp.test. 60 IN SOA a. b. 1 1 1 1 30
data.corp.test. 60 IN CNAME www.world.
nodata.corp.test. 60 IN CNAME txt.world.
ours.corp.test. 60 IN CNAME www.demo.test.
other.corp.test. 60 IN CNAME www.other.test.",
        "world. 60 IN SOA a. b. 1 1 1 1 30
www.world. 60 IN A 192.0.2.9
txt.world. 60 IN TXT x",
        "test. 60 IN SOA a. b. 1 1 1 1 30",
    ];
    let root = zone_of(".", &[]);
    let mut upstreams = some_upstreams();
    upstreams.insert("corp.test.", snapshot(&knowing));
    upstreams.insert(".", root);
    let state = ours(&upstreams);
    let outcome = |qname: &str| {
        let reply = ask(&state, &upstreams, qname);
        let end = reply
            .answer()
            .into_iter()
            .find(|line| line.contains(" IN A "));
        let address = end.and_then(|line| line.rsplit(' ').next().map(str::to_owned));
        (reply.message.rcode, address, reply.asked)
    };
    let at = |address: &str| Some(address.to_owned());
    let ok = Rcode::NO_ERROR;
    assert_eq!(outcome("data.corp.test."), (ok, at("192.0.2.9"), 1));
    assert_eq!(
        outcome("nodata.corp.test."),
        (ok, None, 1),
        "not that of the root"
    );
    assert_eq!(outcome("ours.corp.test."), (ok, at("192.0.2.1"), 1));
    assert_eq!(outcome("other.corp.test."), (ok, at("192.0.2.2"), 2));
}

const NAMES: [&str; 8] = [
    "a.demo.test.",
    "b.demo.test.",
    "c.demo.test.",
    "a.x.",
    "b.x.",
    "a.y.",
    "b.y.",
    "localhost.",
];

/// The address that whoever answers for each name leads to, followed by hand; none: there is no end within the limits.
fn expected(aliases: &BTreeMap<&str, &str>, qname: &str) -> Option<String> {
    let mut name = qname;
    for _ in 0..=NAMES.len() {
        match aliases.get(name) {
            Some(target) => name = target,
            None if name == "localhost." => {
                return Some("localhost. 10800 IN A 127.0.0.1".to_owned());
            }
            None => return Some(format!("{name} 60 IN A 192.0.2.1")),
        }
    }
    None
}

proptest! {
    /// Aliases at random between a zone of ours and two upstreams that know nothing but their own names: every question
    /// gets the address at the end of its aliases, or an end where they go in a circle.
    #[test]
    fn every_alias_is_followed_to_its_end(targets in proptest::collection::vec(proptest::option::of(0..NAMES.len()), 7)) {
        let aliases: BTreeMap<&str, &str> = NAMES
            .iter()
            .zip(&targets)
            .filter_map(|(name, target)| target.map(|target| (*name, NAMES[target])))
            .collect();
        let zone = |apex: &str| {
            let names = NAMES.iter().filter(|name| name.ends_with(apex));
            let line = |name: &&str| match aliases.get(name) {
                Some(target) => format!("{name} 60 IN CNAME {target}"),
                None => format!("{name} 60 IN A 192.0.2.1"),
            };
            let lines: Vec<String> = names.map(line).collect();
            zone_of(apex, &lines.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let upstreams = BTreeMap::from([("x.", zone("x.")), ("y.", zone("y."))]);
        let mut state = zone("demo.test.");
        for suffix in upstreams.keys() {
            add_forwarder(&mut state, suffix, &["192.0.2.53:53".parse().unwrap()]);
        }
        for qname in NAMES {
            let reply = ask(&state, &upstreams, qname);
            let answer = reply.answer();
            match expected(&aliases, qname) {
                Some(end) => prop_assert!(answer.contains(&end), "{}: {:?}", qname, answer),
                None => prop_assert!(answer.iter().all(|line| line.contains(" CNAME "))),
            }
        }
    }
}
