//! What a client gets of an upstream's answer: which records, for how long, and when it is to come again over TCP.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::model::rrset::RecordType;

use super::{
    cache::{CacheLimits, Entry},
    message::{
        Rcode,
        record::Record,
        upstream::{Message, UpstreamQuestion},
    },
    respond::{Client, Identity, Response, Transport, complete},
    testing::{add_forwarder, lines, name, query, rdata, snapshot},
};

/// A record written as `owner ttl type data...`.
fn record(line: &str) -> Record {
    let words: Vec<&str> = line.split_whitespace().collect();
    let rtype = RecordType::parse(words[2]).expect("a type");
    Record {
        owner: name(words[0]).as_wire().into(),
        rtype,
        ttl: words[1].parse().expect("a TTL"),
        data: rdata(rtype, &words[3..]).into(),
    }
}

fn question(dnssec_ok: bool) -> UpstreamQuestion {
    UpstreamQuestion {
        name: name("www.x.").as_wire().into(),
        rtype: RecordType::A,
        dnssec_ok,
        checking_disabled: false,
    }
}

/// The answer of an upstream to `question`, in sections.
fn entry(dnssec_ok: bool, sections: [&[&str]; 3], now: Instant) -> Entry {
    let [answer, authority, additional] =
        sections.map(|lines| lines.iter().map(|line| record(line)).collect());
    let message = Message {
        id: 0,
        flags: 0,
        rcode: Rcode::NO_ERROR,
        answer,
        authority,
        additional,
    };
    let limits = CacheLimits::default();
    Entry::of_message(message, &question(dnssec_ok), &limits, now)
}

/// What a client gets over UDP, in a message of at most 512 octets.
fn served(entry: Entry, at: Instant) -> Message {
    let mut state = snapshot(&[]);
    add_forwarder(
        &mut state,
        ".",
        &["192.0.2.1:53".parse().expect("an address")],
    );
    let client = Client {
        address: [127, 0, 0, 1].into(),
        transport: Transport::Udp,
    };
    let asked = query(1, "www.x.", RecordType::A, super::message::flag::RD, None);
    let (said, mut out) = ([Arc::new(entry)], Vec::new());
    let identity = Identity::default();
    let response = complete(&state, &identity, &asked, client, (&said, at), &mut out);
    assert!(matches!(response, Response::Reply(_)), "{response:?}");
    assert!(out.len() <= 512);
    Message::decode(&out).expect("a message")
}

const ADDRESS: &str = "www.x. 60 A 192.0.2.1";

#[test]
fn what_is_no_answer_is_left_out_when_its_own_time_is_over() {
    let now = Instant::now();
    let sections: [&[&str]; 3] = [
        &[ADDRESS],
        &["x. 10 NS ns1.x.", "x. 20 NS ns2.x.", "x. 0 NS ns3.x."],
        &["ns1.x. 5 A 192.0.2.2", "ns2.x. 30 A 192.0.2.3"],
    ];
    for (age, authority, additional) in [
        (0, 3, 2),
        (4, 2, 2),
        (9, 2, 1),
        (10, 1, 1),
        (29, 0, 1),
        (59, 0, 0),
    ] {
        let entry = entry(false, sections, now);
        let at = now + Duration::from_secs(age);
        assert!(entry.is_fresh(at), "{age}");
        let reply = served(entry, at);
        let answer = format!("www.x. {} IN A 192.0.2.1", 60 - age);
        assert_eq!(lines(&reply.answer), [answer]);
        let left = (reply.authority.len(), reply.additional.len());
        assert_eq!(left, (authority, additional), "{age}");
        let mut old = reply.authority.iter().chain(&reply.additional);
        assert!(old.all(|r| r.ttl > 0 || age == 0), "{age}");
    }
}

#[test]
fn an_answer_does_not_outlive_its_proofs() {
    let now = Instant::now();
    for (dnssec_ok, authority, lives) in [
        (false, ["x. 10 NS ns1.x.", "x. 10 NSEC a"], 60),
        (true, ["x. 10 NS ns1.x.", "x. 20 NSEC a"], 20),
        (true, ["x. 10 NS ns1.x.", "x. 90 NSEC a"], 60),
    ] {
        let entry = entry(dnssec_ok, [&[ADDRESS], &authority, &[]], now);
        let at = |seconds| now + Duration::from_secs(seconds);
        let ends = (entry.is_fresh(at(lives - 1)), entry.is_fresh(at(lives)));
        assert_eq!(ends, (true, false), "{authority:?}");
    }
}

#[test]
fn only_what_is_needed_sends_a_client_to_tcp() {
    let now = Instant::now();
    let servers: Vec<String> = (0..30)
        .map(|n| format!("x. 60 NS a-long-name-of-server-{n}.x."))
        .collect();
    let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
    let long = "w".repeat(500);
    let proof = format!("x. 60 NSEC {long}");
    let glue: Vec<String> = (0..40).map(|n| format!("ns.x. 60 A 192.0.2.{n}")).collect();
    let glue: Vec<&str> = glue.iter().map(String::as_str).collect();
    let whole = |answer: &[&str], authority: &[&str], additional: &[&str]| {
        let entry = entry(true, [answer, authority, additional], now);
        !served(entry, now).is_truncated()
    };
    assert!(whole(&[ADDRESS], &servers, &[]), "servers of the zone");
    assert!(whole(&[ADDRESS], &[], &glue), "addresses of its servers");
    assert!(!whole(&[ADDRESS], &[&proof], &[]), "a proof");
    assert!(!whole(&[], &servers, &[]), "a referral");
}
