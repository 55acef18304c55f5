//! The RFCs' own examples, and what must hold for any octets.

use std::{sync::Arc, time::Instant};

use proptest::prelude::*;

use crate::model::{rrset::RecordType, snapshot::Snapshot};

use super::{
    cache::{CacheLimits, Entry},
    message::{
        Rcode, class, flag, request,
        upstream::{Message, UpstreamQuestion},
    },
    respond::{Client, Identity, Response, Transport, complete, respond},
    testing::{add_forwarder, lines, name, query, snapshot},
};

/// RFC 4592 section 2.2.1.
const RFC_4592: &str = "
example. 3600 IN SOA ns.example.com. admin.example. 1 7200 3600 86400 900
example. 3600 IN NS ns.example.com.
example. 3600 IN NS ns.example.net.
*.example. 3600 IN TXT \"wildcard\"
*.example. 3600 IN MX 10 host1.example.
sub.*.example. 3600 IN TXT \"not-a-wildcard\"
host1.example. 3600 IN A 192.0.2.1
_ssh._tcp.host1.example. 3600 IN SRV 0 0 22 host1.example.
_ssh._tcp.host2.example. 3600 IN SRV 0 0 22 host2.example.
subdel.example. 3600 IN NS ns.example.com.
subdel.example. 3600 IN NS ns.example.net.
";

const SITE: &str = "
site.test. 600 IN SOA ns1.site.test. admin.site.test. 5 7200 3600 86400 300
site.test. 600 IN NS ns1.site.test.
ns1.site.test. 600 IN A 192.0.2.53
ns1.site.test. 600 IN AAAA 2001:db8::53
www.site.test. 60 IN A 192.0.2.80
www.site.test. 60 IN A 192.0.2.81
mail.site.test. 60 IN MX 10 www.site.test.
svc.site.test. 60 IN HTTPS 1 www.site.test.
alias.site.test. 60 IN CNAME www.site.test.
hop1.site.test. 60 IN CNAME hop2.site.test.
hop2.site.test. 60 IN CNAME host.other.test.
away.site.test. 60 IN CNAME www.elsewhere.test.
loop1.site.test. 60 IN CNAME loop2.site.test.
loop2.site.test. 60 IN CNAME loop1.site.test.
gone.site.test. 60 IN CNAME nothing.site.test.
child.site.test. 60 IN NS ns.child.site.test.
child.site.test. 60 IN NS ns.sister.site.test.
child.site.test. 60 IN TYPE43 abcd
ns.child.site.test. 60 IN A 192.0.2.99
sister.site.test. 60 IN NS ns.sister.site.test.
ns.sister.site.test. 60 IN A 192.0.2.98
*.child.site.test. 60 IN TXT \"hidden\"
old.site.test. 60 IN DNAME new.other.test.
a.b.c.site.test. 60 IN TXT \"deep\"
";

const OTHER: &str = "
other.test. 600 IN SOA ns1.site.test. admin.site.test. 5 7200 3600 86400 60
other.test. 600 IN NS ns1.site.test.
host.other.test. 60 IN A 192.0.2.7
x.new.other.test. 60 IN TXT \"moved\"
";

/// A reply, as text that a test can compare.
#[derive(Debug, PartialEq)]
struct Reply {
    rcode: Rcode,
    aa: bool,
    answer: Vec<String>,
    authority: Vec<String>,
    additional: Vec<String>,
    flags: u16,
}

fn client() -> Client {
    Client {
        address: [127, 0, 0, 1].into(),
        transport: Transport::Tcp,
    }
}

fn read(octets: &[u8]) -> Reply {
    let message = Message::decode(octets).expect("a reply that can be read");
    Reply {
        rcode: message.rcode,
        aa: message.flags & flag::AA != 0,
        answer: lines(&message.answer),
        authority: lines(&message.authority),
        additional: lines(&message.additional),
        flags: message.flags,
    }
}

fn ask_with(snapshot: &Snapshot, message: &[u8], client: Client) -> Option<Reply> {
    let mut out = Vec::new();
    let response = respond(snapshot, &Identity::default(), message, client, &mut out);
    matches!(response, Response::Reply(_)).then(|| read(&out))
}

fn ask(snapshot: &Snapshot, qname: &str, rtype: RecordType) -> Reply {
    let message = query(1, qname, rtype, 0, Some(1232));
    ask_with(snapshot, &message, client()).expect("a reply")
}

fn outcome(reply: &Reply) -> (Rcode, usize, bool) {
    let denied = reply.authority.iter().any(|line| line.contains(" SOA "));
    (reply.rcode, reply.answer.len(), denied)
}

#[test]
fn wildcards_are_those_of_rfc_4592_section_2_2_1() {
    let snapshot = snapshot(&[RFC_4592]);
    let (mx, txt, a, srv) = (
        RecordType::MX,
        RecordType::TXT,
        RecordType::A,
        RecordType::SRV,
    );
    for (qname, rtype, expected) in [
        // Synthesized from a wildcard.
        ("host3.example.", mx, (Rcode::NO_ERROR, 1, false)),
        ("host3.example.", a, (Rcode::NO_ERROR, 0, true)),
        ("foo.bar.example.", txt, (Rcode::NO_ERROR, 1, false)),
        // Not synthesized: the name exists, has a closer encloser, is the wildcard itself.
        ("host1.example.", mx, (Rcode::NO_ERROR, 0, true)),
        ("sub.*.example.", mx, (Rcode::NO_ERROR, 0, true)),
        (
            "_telnet._tcp.host1.example.",
            srv,
            (Rcode::NX_DOMAIN, 0, true),
        ),
        ("ghost.*.example.", mx, (Rcode::NX_DOMAIN, 0, true)),
        // Empty non-terminals exist (section 2.2.2).
        ("_tcp.host1.example.", a, (Rcode::NO_ERROR, 0, true)),
        ("host2.example.", mx, (Rcode::NO_ERROR, 0, true)),
        ("*.example.", mx, (Rcode::NO_ERROR, 1, false)),
    ] {
        assert_eq!(
            outcome(&ask(&snapshot, qname, rtype)),
            expected,
            "{qname} {rtype}"
        );
    }
    let synthesized = ask(&snapshot, "host3.example.", mx);
    assert_eq!(
        synthesized.answer,
        ["host3.example. 3600 IN MX 10 host1.example."]
    );
    assert_eq!(
        synthesized.additional,
        ["host1.example. 3600 IN A 192.0.2.1"]
    );
    let referral = ask(&snapshot, "host.subdel.example.", a);
    assert!(!referral.aa && referral.answer.is_empty() && referral.authority.len() == 2);
}

#[test]
fn a_wildcard_that_is_an_empty_non_terminal_stands_in_too() {
    let snapshot = snapshot(&["
z. 60 IN SOA a. b. 1 1 1 1 1
z. 60 IN NS a.
sub.*.z. 60 IN TXT \"x\""]);
    let reply = ask(&snapshot, "foo.z.", RecordType::TXT);
    assert_eq!(outcome(&reply), (Rcode::NO_ERROR, 0, true));
}

#[test]
fn aliases_are_followed_within_our_zones() {
    let snapshot = snapshot(&[SITE, OTHER]);
    let reply = ask(&snapshot, "hop1.site.test.", RecordType::A);
    assert_eq!(reply.answer.len(), 3);
    assert!(
        reply.aa
            && reply
                .answer
                .contains(&"host.other.test. 60 IN A 192.0.2.7".to_owned())
    );
    // The alias itself is what was asked.
    assert_eq!(
        ask(&snapshot, "hop1.site.test.", RecordType::CNAME)
            .answer
            .len(),
        1
    );
    // Out of our zones: as far as we know.
    let reply = ask(&snapshot, "away.site.test.", RecordType::A);
    assert_eq!(
        reply.answer,
        ["away.site.test. 60 IN CNAME www.elsewhere.test."]
    );
    assert_eq!((reply.rcode, reply.authority.len()), (Rcode::NO_ERROR, 0));
    // A circle ends.
    assert_eq!(
        ask(&snapshot, "loop1.site.test.", RecordType::A)
            .answer
            .len(),
        2
    );
    // The code is that of the last name (RFC 6604).
    let reply = ask(&snapshot, "gone.site.test.", RecordType::A);
    assert_eq!(outcome(&reply), (Rcode::NX_DOMAIN, 1, true));
}

#[test]
fn dname_makes_a_cname_as_rfc_6672_says() {
    let snapshot = snapshot(&[SITE, OTHER]);
    let reply = ask(&snapshot, "x.old.site.test.", RecordType::TXT);
    assert_eq!(
        reply.answer,
        [
            "old.site.test. 60 IN DNAME new.other.test.",
            "x.new.other.test. 60 IN TXT \"moved\"",
            "x.old.site.test. 60 IN CNAME x.new.other.test.",
        ]
    );
    assert_eq!(
        ask(&snapshot, "old.site.test.", RecordType::DNAME)
            .answer
            .len(),
        1
    );
    assert_eq!(
        ask(&snapshot, "old.site.test.", RecordType::A).answer.len(),
        0
    );
    // Section 2.3: a name that gets too long.
    let long = format!("{}old.site.test.", "abcdefg.".repeat(30));
    let reply = ask(&snapshot, &long, RecordType::A);
    assert_eq!(reply.rcode, Rcode::YX_DOMAIN);
    assert_eq!(reply.answer, ["old.site.test. 60 IN DNAME new.other.test."]);
}

#[test]
fn negative_answers_carry_the_soa_as_rfc_2308_says() {
    let snapshot = snapshot(&[SITE]);
    let soa = "site.test. 300 IN SOA ns1.site.test. admin.site.test. 5 7200 3600 86400 300";
    for (qname, rcode) in [
        ("www.site.test.", Rcode::NO_ERROR),
        ("b.c.site.test.", Rcode::NO_ERROR),
        ("nothing.site.test.", Rcode::NX_DOMAIN),
        ("x.a.b.c.site.test.", Rcode::NX_DOMAIN),
    ] {
        let reply = ask(&snapshot, qname, RecordType::NAPTR);
        assert_eq!((reply.rcode, reply.aa), (rcode, true), "{qname}");
        assert_eq!(reply.authority, [soa], "{qname}");
    }
    // The SOA itself keeps its own TTL.
    let reply = ask(&snapshot, "site.test.", RecordType::SOA);
    assert!(reply.answer[0].starts_with("site.test. 600 IN SOA"));
}

#[test]
fn delegations_come_with_glue_and_hide_what_lies_below() {
    let snapshot = snapshot(&[SITE]);
    for qname in [
        "child.site.test.",
        "x.y.child.site.test.",
        "ns.child.site.test.",
    ] {
        let reply = ask(&snapshot, qname, RecordType::A);
        assert!(!reply.aa && reply.answer.is_empty(), "{qname}");
        assert_eq!(reply.authority.len(), 2, "{qname}");
        // In-domain and sibling glue.
        assert_eq!(
            reply.additional,
            [
                "ns.child.site.test. 60 IN A 192.0.2.99",
                "ns.sister.site.test. 60 IN A 192.0.2.98"
            ]
        );
    }
    let ds = ask(&snapshot, "child.site.test.", RecordType::DS);
    assert!(ds.aa && ds.answer.len() == 1, "{ds:?}");
    let none = ask(&snapshot, "sister.site.test.", RecordType::DS);
    assert_eq!(
        (outcome(&none), none.aa),
        ((Rcode::NO_ERROR, 0, true), true)
    );
}

#[test]
fn ds_of_a_zone_of_ours_comes_from_the_zone_above() {
    let child = "
child.site.test. 60 IN SOA a. b. 1 1 1 1 1
child.site.test. 60 IN NS a.";
    let snapshot = snapshot(&[SITE, child]);
    assert_eq!(
        ask(&snapshot, "child.site.test.", RecordType::DS)
            .answer
            .len(),
        1
    );
    assert!(
        ask(&snapshot, "child.site.test.", RecordType::NS)
            .answer
            .len()
            == 1
    );
    // With no zone above here, it is the child that knows there is none.
    let alone = ask(
        &super::testing::snapshot(&[child]),
        "child.site.test.",
        RecordType::DS,
    );
    assert_eq!(outcome(&alone), (Rcode::NO_ERROR, 0, true));
}

#[test]
fn any_gets_one_set_and_meta_types_are_refused() {
    let snapshot = snapshot(&[SITE]);
    let any = ask(&snapshot, "ns1.site.test.", RecordType::ANY);
    assert_eq!(any.answer.len(), 1);
    assert_eq!(
        ask(&snapshot, "alias.site.test.", RecordType::ANY)
            .answer
            .len(),
        1
    );
    for (rtype, rcode) in [
        (RecordType::AXFR, Rcode::REFUSED),
        (RecordType::IXFR, Rcode::REFUSED),
        (RecordType::OPT, Rcode::FORM_ERR),
        (RecordType(0), Rcode::FORM_ERR),
        (RecordType::TSIG, Rcode::NOT_IMP),
        (RecordType(254), Rcode::NOT_IMP),
    ] {
        assert_eq!(ask(&snapshot, "site.test.", rtype).rcode, rcode, "{rtype}");
    }
    assert_eq!(
        ask(&snapshot, "site.test.", RecordType(65_280)).rcode,
        Rcode::NO_ERROR
    );
}

#[test]
fn hosts_named_by_records_come_along() {
    let snapshot = snapshot(&[SITE]);
    let www = [
        "www.site.test. 60 IN A 192.0.2.80",
        "www.site.test. 60 IN A 192.0.2.81",
    ];
    assert_eq!(
        ask(&snapshot, "mail.site.test.", RecordType::MX).additional[2..],
        www
    );
    assert_eq!(
        ask(&snapshot, "svc.site.test.", RecordType::HTTPS).additional[2..],
        www
    );
    let ns = ask(&snapshot, "site.test.", RecordType::NS);
    assert_eq!(
        (ns.answer.len(), ns.authority.len(), ns.additional.len()),
        (1, 0, 2)
    );
}

#[test]
fn a_service_at_its_own_name_brings_its_own_addresses() {
    let snapshot = snapshot(&["
svc.test. 60 IN SOA a. b. 1 1 1 1 1
svc.test. 60 IN HTTPS 1 .
svc.test. 60 IN A 192.0.2.1
svc.test. 60 IN AAAA 2001:db8::1
off.svc.test. 60 IN HTTPS 0 .
off.svc.test. 60 IN A 192.0.2.2"]);
    let own = ask(&snapshot, "svc.test.", RecordType::HTTPS);
    let expected = [
        "svc.test. 60 IN A 192.0.2.1",
        "svc.test. 60 IN AAAA 2001:db8::1",
    ];
    assert_eq!(
        (own.answer.len(), own.additional),
        (1, expected.map(str::to_owned).to_vec())
    );
    // An alias to the root says that there is no service.
    let off = ask(&snapshot, "off.svc.test.", RecordType::HTTPS);
    assert_eq!((off.answer.len(), off.additional.len()), (1, 0));
}

#[test]
fn the_apex_servers_are_for_resolvers() {
    let snapshot = snapshot(&[SITE]);
    let resolver = ask(&snapshot, "www.site.test.", RecordType::A);
    assert_eq!(resolver.authority, ["site.test. 600 IN NS ns1.site.test."]);
    let message = query(1, "www.site.test.", RecordType::A, flag::RD, None);
    let stub = ask_with(&snapshot, &message, client()).expect("a reply");
    assert!(stub.authority.is_empty());
    assert_ne!(stub.flags & flag::RD, 0);
}

#[test]
fn recursion_is_for_those_who_may_and_want_it() {
    let mut snapshot = snapshot(&[SITE]);
    add_forwarder(
        &mut snapshot,
        "elsewhere.test.",
        &["192.0.2.1:53".parse().unwrap()],
    );
    let stranger = Client {
        address: [203, 0, 113, 9].into(),
        ..client()
    };
    let message = |qname, flags| query(1, qname, RecordType::A, flags, Some(1232));
    for (flags, from, qname) in [
        (0, client(), "www.elsewhere.test."),
        (flag::RD, stranger, "www.elsewhere.test."),
        (flag::RD, client(), "www.example."),
    ] {
        let reply = ask_with(&snapshot, &message(qname, flags), from).expect("a reply");
        assert_eq!(reply.rcode, Rcode::REFUSED, "{qname} {flags} {from:?}");
        assert_eq!(reply.flags & flag::RA != 0, from == client());
        assert_eq!(reply.flags & flag::RD, flags);
    }
    for qname in ["www.elsewhere.test.", "away.site.test."] {
        assert!(
            ask_with(&snapshot, &message(qname, flag::RD), client()).is_none(),
            "{qname}"
        );
    }
    // A stranger still learns where our alias leads.
    let reply = ask_with(&snapshot, &message("away.site.test.", flag::RD), stranger);
    assert_eq!(
        reply.map(|r| (r.rcode, r.answer.len())),
        Some((Rcode::NO_ERROR, 1))
    );
}

#[test]
fn an_upstreams_answer_is_put_behind_our_alias_with_its_time_counted_down() {
    let mut ours = snapshot(&[SITE]);
    add_forwarder(&mut ours, ".", &["192.0.2.1:53".parse().unwrap()]);
    let upstream = snapshot(&["
elsewhere.test. 60 IN SOA a. b. 1 1 1 1 1
elsewhere.test. 60 IN NS a.
www.elsewhere.test. 60 IN A 192.0.2.200"]);
    let (identity, mut out) = (Identity::default(), Vec::new());
    let asked = query(1, "www.elsewhere.test.", RecordType::A, flag::RD, None);
    respond(&upstream, &identity, &asked, client(), &mut out);
    let now = Instant::now();
    let decoded = Message::decode(&out).expect("a reply");
    let question = UpstreamQuestion {
        name: name("www.elsewhere.test.").as_wire().into(),
        rtype: RecordType::A,
        dnssec_ok: false,
        checking_disabled: false,
    };
    let entry = Entry::of_message(decoded, &question, &CacheLimits::default(), now);
    let entries = [Arc::new(entry)];
    let message = query(9, "away.site.test.", RecordType::A, flag::RD, None);
    let later = now + std::time::Duration::from_secs(20);
    complete(
        &ours,
        &identity,
        &message,
        client(),
        (&entries, later),
        &mut out,
    );
    let reply = read(&out);
    assert_eq!(
        reply.answer,
        [
            "away.site.test. 60 IN CNAME www.elsewhere.test.",
            "www.elsewhere.test. 40 IN A 192.0.2.200",
        ]
    );
    assert!(reply.aa, "the first name is ours");
    complete(
        &ours,
        &identity,
        &asked,
        client(),
        (&entries, later),
        &mut out,
    );
    assert!(!read(&out).aa, "nothing of it is ours");
}

#[test]
fn private_and_special_names_do_not_leave_the_site() {
    let mut snapshot = snapshot(&[SITE]);
    let upstream = "192.0.2.1:53".parse().expect("an address");
    add_forwarder(&mut snapshot, ".", &[upstream]);
    let asked = |qname: &str| query(1, qname, RecordType::PTR, flag::RD, None);
    let local = ask_with(&snapshot, &asked("1.0.0.127.in-addr.arpa."), client());
    let local = local.expect("a reply");
    assert_eq!(
        local.answer,
        ["1.0.0.127.in-addr.arpa. 10800 IN PTR localhost."]
    );
    for private in [
        "7.0.0.10.in-addr.arpa.",
        "1.2.30.172.in-addr.arpa.",
        "c.d.f.ip6.arpa.",
    ] {
        let reply = ask_with(&snapshot, &asked(private), client()).expect("a reply");
        assert_eq!(outcome(&reply), (Rcode::NX_DOMAIN, 0, true), "{private}");
    }
    let public = asked("1.1.1.1.in-addr.arpa.");
    assert!(
        ask_with(&snapshot, &public, client()).is_none(),
        "that is for the upstream"
    );
    // Unless the site says otherwise.
    add_forwarder(&mut snapshot, "10.in-addr.arpa.", &[upstream]);
    let private = asked("7.0.0.10.in-addr.arpa.");
    assert!(ask_with(&snapshot, &private, client()).is_none());
}

#[test]
fn the_clients_spelling_comes_back() {
    let snapshot = snapshot(&[SITE]);
    let mut message = query(1, "www.site.test.", RecordType::A, 0, None);
    message[13..16].copy_from_slice(b"wWW");
    let mut out = Vec::new();
    respond(
        &snapshot,
        &Identity::default(),
        &message,
        client(),
        &mut out,
    );
    assert_eq!(out[12..message.len()], message[12..]);
    assert_eq!(
        out[message.len()..message.len() + 2],
        [0xc0, 12],
        "compressed against the question"
    );
    assert_eq!(Message::decode(&out).map(|m| m.answer.len()), Some(2));
}

#[test]
fn what_is_no_question_gets_its_code_or_nothing() {
    let snapshot = snapshot(&[SITE]);
    let good = query(5, "www.site.test.", RecordType::A, flag::RD, Some(4096));
    let changed = |at: usize, octets: &[u8]| {
        let mut message = good.clone();
        message[at..at + octets.len()].copy_from_slice(octets);
        message
    };
    let opt = good.len() - 11;
    for (what, message, rcode) in [
        ("good", good.clone(), Some(Rcode::NO_ERROR)),
        ("a response", changed(2, &[0x80]), None),
        ("too short", good[..11].to_vec(), None),
        ("empty", Vec::new(), None),
        ("UPDATE", changed(2, &[5 << 3]), Some(Rcode::NOT_IMP)),
        ("NOTIFY", changed(2, &[4 << 3]), Some(Rcode::NOT_IMP)),
        ("no question", changed(4, &[0, 0]), Some(Rcode::FORM_ERR)),
        ("two questions", changed(4, &[0, 2]), Some(Rcode::FORM_ERR)),
        ("cut short", good[..20].to_vec(), Some(Rcode::FORM_ERR)),
        (
            "a pointer in the question",
            changed(12, &[0xc0, 12]),
            Some(Rcode::FORM_ERR),
        ),
        (
            "octets left over",
            [&good[..], &[0]].concat(),
            Some(Rcode::FORM_ERR),
        ),
        (
            "records missing",
            changed(10, &[0, 2]),
            Some(Rcode::FORM_ERR),
        ),
        (
            "an OPT with a name",
            changed(opt, &[1]),
            Some(Rcode::FORM_ERR),
        ),
        (
            "EDNS version 1",
            changed(opt + 6, &[1]),
            Some(Rcode::BAD_VERS),
        ),
        (
            "class ANY",
            changed(opt - 2, &[0, 255]),
            Some(Rcode::REFUSED),
        ),
    ] {
        let reply = ask_with(&snapshot, &message, client());
        assert_eq!(reply.map(|reply| reply.rcode), rcode, "{what}");
    }
}

#[test]
fn the_server_says_who_it_is_if_it_may() {
    let mut message = query(5, "version.bind.", RecordType::TXT, 0, None);
    let end = message.len();
    message[end - 1] = class::CHAOS as u8;
    let identity = Identity {
        version: Some("pontoon".to_owned()),
        hostname: None,
    };
    let (snapshot, mut out) = (Snapshot::default(), Vec::new());
    respond(&snapshot, &identity, &message, client(), &mut out);
    assert_eq!(out[3] & 15, 0);
    assert!(out.ends_with(b"\x08\x07pontoon"));
    respond(
        &snapshot,
        &Identity::default(),
        &message,
        client(),
        &mut out,
    );
    assert_eq!(out[3] & 15, 5, "hidden");
}

#[test]
fn a_reply_over_udp_fits_and_says_when_it_is_cut() {
    let many: String = (0..100).fold(SITE.to_owned(), |text, n| {
        text + &format!("big.site.test. 60 IN A 192.0.2.{n}\n")
    });
    let snapshot = snapshot(&[&many]);
    let udp = Client {
        transport: Transport::Udp,
        ..client()
    };
    for (payload, limit, answers) in [
        (None, 512, 0),
        (Some(100), 512, 0),
        (Some(65_535), 1232, 0),
        (Some(1232), 1232, 0),
    ] {
        let message = query(1, "big.site.test.", RecordType::A, 0, payload);
        let mut out = Vec::new();
        respond(&snapshot, &Identity::default(), &message, udp, &mut out);
        let reply = read(&out);
        assert!(out.len() <= limit, "{payload:?}");
        assert_ne!(reply.flags & flag::TC, 0, "{payload:?}");
        assert_eq!(reply.answer.len(), answers, "no part of a set");
    }
    let message = query(1, "big.site.test.", RecordType::A, 0, None);
    let whole = ask_with(&snapshot, &message, client()).expect("a reply");
    assert_eq!((whole.answer.len(), whole.flags & flag::TC), (100, 0));
}

#[test]
fn zones_are_found_by_their_longest_apex() {
    let soa = |apex: &str| format!("{apex} 60 IN SOA a. b. 1 1 1 1 1");
    let texts = ["a.test.", "b.a.test.", "zz.test.", "x.zz.test.", "test."].map(soa);
    let snapshot = snapshot(&texts.each_ref().map(String::as_str));
    for (qname, apex) in [
        ("a.test.", Some("a.test.")),
        ("x.y.z.a.test.", Some("a.test.")),
        ("y.b.a.test.", Some("b.a.test.")),
        ("bb.a.test.", Some("a.test.")),
        ("c.d.e.f.test.", Some("test.")),
        ("w.zz.test.", Some("zz.test.")),
        ("q.z.y.x.zz.test.", Some("x.zz.test.")),
        ("a.tes.", None),
        (".", None),
        ("zzz.", None),
    ] {
        let found = super::answer::zone_around(&snapshot, name(qname).as_wire());
        assert_eq!(
            found.map(|zone| zone.apex.to_string()).as_deref(),
            apex,
            "{qname}"
        );
    }
}

proptest! {
    #[test]
    fn any_octets_get_a_reply_that_can_be_read_or_none(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
        answers_soundly(&octets);
    }

    #[test]
    fn a_question_with_some_octets_changed_does_too(
        changes in proptest::collection::vec((0usize..60, any::<u8>()), 1..6),
        cut in 0usize..80,
    ) {
        let mut message = query(3, "x.old.site.test.", RecordType::A, flag::RD, Some(1400));
        for (at, octet) in changes {
            if let Some(place) = message.get_mut(at) {
                *place = octet;
            }
        }
        message.truncate(message.len().saturating_sub(cut.saturating_sub(40)));
        answers_soundly(&message);
    }

    #[test]
    fn no_octets_upset_the_reader_of_upstream_messages(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Message::decode(&octets);
    }

    #[test]
    fn the_zone_around_a_name_is_the_longest_suffix(labels in proptest::collection::vec("[a-c]{1,2}", 0..6)) {
        let soa = |apex: &str| format!("{apex} 60 IN SOA a. b. 1 1 1 1 1");
        let texts = ["a.", "b.a.", "c.b.a.", "a.a.b.", "cc.", "ab.b.cc."].map(soa);
        let snapshot = snapshot(&texts.each_ref().map(String::as_str));
        let asked = name(&format!("{}.", labels.join(".")));
        let found = super::answer::zone_around(&snapshot, asked.as_wire()).map(|zone| &zone.apex);
        prop_assert_eq!(found, snapshot.zone_of(&asked).map(|zone| &zone.apex));
    }
}

fn answers_soundly(octets: &[u8]) {
    thread_local! {
        static SNAPSHOT: Snapshot = snapshot(&[SITE, OTHER]);
    }
    let udp = Client {
        transport: Transport::Udp,
        ..client()
    };
    let mut out = Vec::new();
    let response = SNAPSHOT.with(|s| respond(s, &Identity::default(), octets, udp, &mut out));
    match (request::parse(octets), response) {
        (Err(request::Rejected::Drop(_)), Response::Silence(_)) => {}
        (_, Response::Reply(_)) => {
            assert!(out.len() <= 1232 && out[..2] == octets[..2]);
            assert!(Message::decode(&out).is_some());
        }
        (parsed, response) => panic!("{parsed:?} gave {response:?}"),
    }
}
