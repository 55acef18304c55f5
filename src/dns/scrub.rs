//! Keeping of an upstream's answer what answers the question. A pure function: a message in, the useful part of it out.
//!
//! An upstream, or whoever gets a reply past the checks in its name, may put any record into a message. Every answer is
//! kept under its own question only, so that it can spoil no other; but clients get all of it, and some keep what they get.
//! Resolvers pass on no more than was asked for (RFC 5452 section 6, RFC 2181 section 5.4.1), and neither do we.

use crate::model::rrset::RecordType;

use super::{
    answer::{Host, is_at_or_below},
    cache::Alias,
    message::{
        Rcode,
        record::Record,
        upstream::{Message, UpstreamQuestion},
    },
};

/// Longest chain of aliases that is followed; resolvers give up earlier.
const MAX_ALIASES: usize = 16;

/// What of `message` belongs to an answer to `question` by a server that is asked for `suffix` (wire form, lower case). None
/// when it holds records and none of them does: such a server is of no use.
///
/// - Answer: the aliases that lead away from the question, one after another, and the records of the type asked for.
/// - Authority: the SOA that denies, the servers of a zone on that way, and proofs for clients that want signatures.
/// - Additional: addresses of the hosts named by what stays, if they lie at or below `suffix`.
pub(super) fn scrub(
    message: Message,
    question: &UpstreamQuestion,
    suffix: &[u8],
) -> Option<Message> {
    let had_answer = !message.answer.is_empty();
    let (answer, way) = follow(message.answer, question);
    if had_answer && answer.is_empty() && message.rcode == Rcode::NO_ERROR {
        return None;
    }
    let mut authority = message.authority;
    authority.retain(|record| is_about(record, &way, question));
    let hosts: Vec<Vec<u8>> = answer
        .iter()
        .chain(&authority)
        .filter_map(|record| match Host::of(record.rtype, &record.data)? {
            Host::Named(name) => Some(lower(name)),
            Host::Owner => Some(lower(&record.owner)),
        })
        .collect();
    let mut additional = message.additional;
    additional.retain(|record| {
        let owner = lower(&record.owner);
        let wanted = match record.rtype {
            RecordType::A | RecordType::AAAA => true,
            RecordType::RRSIG => question.dnssec_ok,
            _ => false,
        };
        wanted && hosts.contains(&owner) && is_at_or_below(&owner, suffix)
    });
    Some(Message {
        answer,
        authority,
        additional,
        ..message
    })
}

/// The records on the way from the question through its aliases, in that order, and the names along it.
fn follow(records: Vec<Record>, question: &UpstreamQuestion) -> (Vec<Record>, Vec<Vec<u8>>) {
    let (mut kept, mut left) = (Vec::with_capacity(records.len()), records);
    let mut way = vec![question.name.to_vec()];
    while let Some(name) = way.last() {
        let (here, rest): (Vec<Record>, Vec<Record>) = left
            .into_iter()
            .partition(|record| is_wanted(record, name, question.rtype));
        left = rest;
        let next = alias_of(&here, name, question.rtype);
        kept.extend(here);
        match next {
            Some(next) if way.len() <= MAX_ALIASES && !way.contains(&next) => way.push(next),
            _ => break,
        }
    }
    (kept, way)
}

/// The aliases of an answer that `scrub` has put in order, from the question on.
pub(super) fn aliases(answer: &[Record], question: &UpstreamQuestion) -> Vec<Alias> {
    let mut found: Vec<Alias> = Vec::new();
    let mut left = answer;
    while found.len() <= MAX_ALIASES {
        let name = found.last().map_or(&question.name, |alias| &alias.target);
        let about = |record: &&Record| is_wanted(record, name, question.rtype);
        let (here, behind) = left.split_at(left.iter().take_while(about).count());
        let Some(target) = alias_of(here, name, question.rtype) else {
            break;
        };
        left = behind;
        found.push(Alias {
            records: answer.len() - behind.len(),
            target: target.into(),
        });
    }
    found
}

/// Whether `record` says something of `name` that was asked for, or where it leads.
fn is_wanted(record: &Record, name: &[u8], asked: RecordType) -> bool {
    let owner = lower(&record.owner);
    let rtype = record.covered();
    if owner == name {
        return asked == RecordType::ANY
            || record.rtype == asked
            || rtype == asked
            || rtype == RecordType::CNAME;
    }
    // RFC 6672 section 2.2: it stands above the names that it moves.
    rtype == RecordType::DNAME && is_at_or_below(name, &owner)
}

/// Where `name` leads, unless the alias itself was asked for.
fn alias_of(here: &[Record], name: &[u8], asked: RecordType) -> Option<Vec<u8>> {
    if matches!(asked, RecordType::CNAME | RecordType::ANY) {
        return None;
    }
    let mut aliases = here.iter();
    let alias = aliases.find(|r| r.rtype == RecordType::CNAME && lower(&r.owner) == name)?;
    Some(lower(&alias.data))
}

/// Whether a record of the authority section is about a name on the way.
fn is_about(record: &Record, way: &[Vec<u8>], question: &UpstreamQuestion) -> bool {
    let owner = lower(&record.owner);
    match record.rtype {
        // What denies is about the end of the way (RFC 2308 section 2).
        RecordType::SOA => way.last().is_some_and(|end| is_at_or_below(end, &owner)),
        RecordType::NS => way.iter().any(|name| is_at_or_below(name, &owner)),
        // Proofs may lie beside the way. They say nothing to who does not check them.
        RecordType::RRSIG | RecordType::NSEC | RecordType::NSEC3 | RecordType::DS => {
            question.dnssec_ok
        }
        _ => false,
    }
}

/// A name in wire form in lower case. Lengths of labels are below the letters.
fn lower(name: &[u8]) -> Vec<u8> {
    name.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::dns::testing::{lines, name, rdata};

    use super::*;

    fn record(line: &str) -> Record {
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap();
        let (owner, rtype) = (next(), next());
        let rtype = RecordType::parse(rtype).unwrap();
        Record {
            owner: name(owner).as_wire().into(),
            rtype,
            ttl: 60,
            data: rdata(rtype, &words.collect::<Vec<_>>()).into(),
        }
    }

    fn records(text: &[&str]) -> Vec<Record> {
        text.iter().map(|line| record(line)).collect()
    }

    fn question(qname: &str, rtype: RecordType) -> UpstreamQuestion {
        UpstreamQuestion {
            name: name(qname).as_wire().into(),
            rtype,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    fn message(rcode: Rcode, sections: [&[&str]; 3]) -> Message {
        let [answer, authority, additional] = sections.map(records);
        Message {
            id: 1,
            flags: 0,
            rcode,
            answer,
            authority,
            additional,
        }
    }

    fn scrubbed(
        asked: (&str, RecordType),
        suffix: &str,
        sections: [&[&str]; 3],
    ) -> [Vec<String>; 3] {
        let message = message(Rcode::NO_ERROR, sections);
        let question = question(asked.0, asked.1);
        let kept = scrub(message, &question, name(suffix).as_wire()).expect("of use");
        [&kept.answer, &kept.authority, &kept.additional].map(|section| lines(section))
    }

    #[test]
    fn what_stays_of_an_answer() {
        use RecordType as T;
        // (question, suffix, [answer, authority, additional] as sent, how many of each stay)
        type Case<'a> = ((&'a str, T), &'a str, [&'a [&'a str]; 3], [usize; 3]);
        let cases: [Case<'_>; 14] = [
            // Another name beside the right one, before or after it.
            (
                ("a.x.", T::A),
                ".",
                [&["a.x. A 192.0.2.1", "evil.y. A 192.0.2.6"], &[], &[]],
                [1, 0, 0],
            ),
            (
                ("a.x.", T::A),
                ".",
                [
                    &[
                        "evil.y. A 192.0.2.6",
                        "a.x. A 192.0.2.1",
                        "a.x. A 192.0.2.2",
                    ],
                    &[],
                    &[],
                ],
                [2, 0, 0],
            ),
            // Another type at the right name.
            (
                ("a.x.", T::A),
                ".",
                [&["a.x. A 192.0.2.1", "a.x. TXT x"], &[], &[]],
                [1, 0, 0],
            ),
            // Aliases, in whatever order and spelling; a branch that nothing leads to.
            (
                ("a.x.", T::A),
                ".",
                [
                    &[
                        "C.y. A 192.0.2.1",
                        "B.x. CNAME c.Y.",
                        "A.x. CNAME b.X.",
                        "d.y. CNAME c.y.",
                    ],
                    &[],
                    &[],
                ],
                [3, 0, 0],
            ),
            // An alias that was asked for is the answer.
            (
                ("a.x.", T::CNAME),
                ".",
                [&["a.x. CNAME b.x.", "b.x. CNAME c.x."], &[], &[]],
                [1, 0, 0],
            ),
            // A circle ends.
            (
                ("a.x.", T::A),
                ".",
                [&["a.x. CNAME b.x.", "b.x. CNAME a.x."], &[], &[]],
                [2, 0, 0],
            ),
            // A DNAME above the name, with the alias that was made from it; not one below, nor beside.
            (
                ("a.x.", T::A),
                ".",
                [
                    &[
                        "x. DNAME y.",
                        "a.x. CNAME a.y.",
                        "a.y. A 192.0.2.1",
                        "b.a.x. DNAME z.",
                        "q. DNAME z.",
                    ],
                    &[],
                    &[],
                ],
                [3, 0, 0],
            ),
            // Everything at the name, for ANY.
            (
                ("a.x.", T::ANY),
                ".",
                [
                    &["a.x. A 192.0.2.1", "a.x. TXT x", "b.x. A 192.0.2.2"],
                    &[],
                    &[],
                ],
                [2, 0, 0],
            ),
            // The SOA that denies lies above the end of the aliases.
            (
                ("a.x.", T::A),
                ".",
                [
                    &["a.x. CNAME b.y."],
                    &[
                        "y. SOA n. m. 1 1 1 1 1",
                        "x. SOA n. m. 1 1 1 1 1",
                        "z. SOA n. m. 1 1 1 1 1",
                    ],
                    &[],
                ],
                [1, 1, 0],
            ),
            // Servers of a zone on the way, and their addresses within the suffix.
            (
                ("a.x.", T::A),
                "x.",
                [
                    &["a.x. A 192.0.2.1"],
                    &[
                        "x. NS ns.x.",
                        "x. NS ns.other.",
                        "victim. NS ns.x.",
                        "x. TXT no",
                    ],
                    &[
                        "ns.x. A 192.0.2.3",
                        "ns.other. A 192.0.2.6",
                        "www.x. A 192.0.2.6",
                        "ns.x. TXT no",
                    ],
                ],
                [1, 2, 1],
            ),
            // Hosts of an MX set.
            (
                ("x.", T::MX),
                ".",
                [
                    &["x. MX 10 m.x."],
                    &[],
                    &["M.x. AAAA 2001:db8::1", "n.x. A 192.0.2.6"],
                ],
                [1, 0, 1],
            ),
            // A service at its own name, and one that there is not.
            (
                ("a.x.", T::HTTPS),
                ".",
                [
                    &["a.x. HTTPS 1 ."],
                    &[],
                    &["a.x. A 192.0.2.1", "b.x. A 192.0.2.6"],
                ],
                [1, 0, 1],
            ),
            (
                ("a.x.", T::HTTPS),
                ".",
                [&["a.x. HTTPS 0 ."], &[], &["a.x. A 192.0.2.6"]],
                [1, 0, 0],
            ),
            // Proofs only for those who asked for signatures.
            (
                ("a.x.", T::A),
                ".",
                [&["a.x. A 192.0.2.1"], &["x. NSEC b.x. A"], &[]],
                [1, 0, 0],
            ),
        ];
        for (asked, suffix, sections, expected) in cases {
            let kept = scrubbed(asked, suffix, sections);
            let counts = [kept[0].len(), kept[1].len(), kept[2].len()];
            assert_eq!(counts, expected, "{asked:?} {sections:?}: {kept:?}");
        }
    }

    #[test]
    fn aliases_come_in_their_order() {
        let sent: [&[&str]; 3] = [
            &["c.y. A 192.0.2.1", "b.x. CNAME c.y.", "a.x. CNAME b.x."],
            &[],
            &[],
        ];
        let message = message(Rcode::NO_ERROR, sent);
        let kept = scrub(message, &question("a.x.", RecordType::A), &[0]).expect("of use");
        let owners = kept.answer.iter().map(|record| record.owner.to_vec());
        let expected = ["a.x.", "b.x.", "c.y."].map(|text| name(text).as_wire().to_vec());
        assert_eq!(owners.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_answer_about_something_else_is_of_no_use_but_a_denial_is() {
        let question = question("a.x.", RecordType::A);
        let elsewhere: [&[&str]; 3] = [&["evil.y. A 192.0.2.6"], &[], &[]];
        let suffix = [0];
        assert_eq!(
            scrub(message(Rcode::NO_ERROR, elsewhere), &question, &suffix),
            None
        );
        let denied = scrub(message(Rcode::NX_DOMAIN, elsewhere), &question, &suffix);
        assert!(denied.is_some_and(|kept| kept.answer.is_empty()));
        let nothing = scrub(
            message(Rcode::NO_ERROR, [&[], &[], &[]]),
            &question,
            &suffix,
        );
        assert!(nothing.is_some());
    }

    #[test]
    fn signatures_stay_with_what_they_sign() {
        let mut signature = record("a.x. A 192.0.2.1");
        signature.rtype = RecordType::RRSIG;
        let over = |rtype: RecordType| Record {
            data: [&rtype.0.to_be_bytes()[..], &[0; 20]].concat().into(),
            ..signature.clone()
        };
        let mut sent = message(Rcode::NO_ERROR, [&["a.x. A 192.0.2.1"], &[], &[]]);
        sent.answer
            .extend([over(RecordType::A), over(RecordType::TXT)]);
        let kept = scrub(sent, &question("a.x.", RecordType::A), &[0]).expect("of use");
        assert_eq!(kept.answer.len(), 2);
    }

    proptest! {
        /// Whatever is sent: what stays was sent, and every name in the answer is reached from the question.
        #[test]
        fn nothing_is_invented_and_nothing_unrelated_stays(
            picks in proptest::collection::vec((0usize..5, 0usize..3, 0usize..5), 0..20),
        ) {
            let names = ["a.x.", "b.x.", "c.y.", "d.", "e.a.x."];
            let sent: Vec<Record> = picks.iter().map(|(owner, kind, target)| {
                let (owner, target) = (names[*owner], names[*target]);
                match kind {
                    0 => record(&format!("{owner} A 192.0.2.1")),
                    1 => record(&format!("{owner} CNAME {target}")),
                    _ => record(&format!("{owner} TXT x")),
                }
            }).collect();
            let mut message = message(Rcode::NX_DOMAIN, [&[], &[], &[]]);
            message.answer = sent.clone();
            message.authority = sent.clone();
            message.additional = sent.clone();
            let kept = scrub(message, &question("a.x.", RecordType::A), &[0]).unwrap();
            prop_assert!(kept.answer.iter().all(|record| sent.contains(record)));
            prop_assert!(kept.authority.is_empty() && kept.additional.is_empty());
            let start = name("a.x.").as_wire().to_vec();
            for record in &kept.answer {
                prop_assert!(record.rtype != RecordType::TXT);
                let led_to = kept.answer.iter().any(|r| r.rtype == RecordType::CNAME && r.data == record.owner);
                prop_assert!(led_to || *record.owner == *start, "{record:?}");
            }
        }
    }
}
