//! A DNS message as people and programs read it.

use serde::Serialize;

use super::exit;
use crate::{
    dns::message::{self, flag, record, upstream::Message},
    model::{name::write_label, rdata},
    wire::error::Failure,
};

/// The EDNS option of extended errors.
const EXTENDED_ERROR: u16 = 15;

/// A reply.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// `NOERROR`, `NXDOMAIN`, ...
    rcode: String,
    authoritative: bool,
    recursion_available: bool,
    /// Why it is so (RFC 8914), when the node says.
    errors: Vec<ExtendedError>,
    answers: Vec<Record>,
    authority: Vec<Record>,
    additional: Vec<Record>,
}

/// An extended DNS error (RFC 8914).
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ExtendedError {
    code: u16,
    /// May be empty.
    text: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Record {
    name: String,
    #[serde(rename = "type")]
    rtype: String,
    ttl: u32,
    data: String,
}

impl Answer {
    /// Reads a message.
    pub fn parse(octets: &[u8]) -> Result<Self, Failure> {
        let message = Message::decode(octets)
            .ok_or_else(|| exit::internal("answer", "it is no DNS message"))?;
        let records = |section: &[record::Record]| section.iter().map(Record::from).collect();
        Ok(Self {
            rcode: message.rcode.to_string(),
            authoritative: message.flags & flag::AA != 0,
            recursion_available: message.flags & flag::RA != 0,
            errors: extended_errors(octets),
            answers: records(&message.answer),
            authority: records(&message.authority),
            additional: records(&message.additional),
        })
    }

    /// The way `dig` shows it, in short.
    pub fn text(&self) -> String {
        let mut flags = String::new();
        if self.authoritative {
            flags.push_str(" aa");
        }
        if self.recursion_available {
            flags.push_str(" ra");
        }
        let mut text = format!(";; {}{flags}\n", self.rcode);
        for error in &self.errors {
            text.push_str(&format!(
                ";; extended error {}: {}\n",
                error.code, error.text
            ));
        }
        for (title, records) in [
            ("", &self.answers),
            (";; authority\n", &self.authority),
            (";; additional\n", &self.additional),
        ] {
            if !records.is_empty() {
                text.push_str(title);
            }
            for r in records {
                text.push_str(&format!("{} {} {} {}\n", r.name, r.ttl, r.rtype, r.data));
            }
        }
        text
    }
}

/// The option's data is a code of 16 bits and a text (RFC 8914 section 2).
fn extended_errors(octets: &[u8]) -> Vec<ExtendedError> {
    let options = message::options(octets).into_iter();
    options
        .filter(|(code, _)| *code == EXTENDED_ERROR)
        .filter_map(|(_, data)| {
            let (code, text) = data.split_first_chunk::<2>()?;
            Some(ExtendedError {
                code: u16::from_be_bytes(*code),
                text: String::from_utf8_lossy(text).into_owned(),
            })
        })
        .collect()
}

/// In presentation form (RFC 1035 section 5.1), as master files and exports have it.
impl From<&record::Record> for Record {
    fn from(record: &record::Record) -> Self {
        let record::Record {
            owner,
            rtype,
            ttl,
            data,
        } = record;
        // What an upstream says need not be well-formed: it is shown as octets then.
        let folded = rdata::canonical(*rtype, data);
        Self {
            name: presentation(owner),
            rtype: rtype.to_string(),
            ttl: *ttl,
            data: rdata::to_text(*rtype, folded.as_deref().unwrap_or(data)),
        }
    }
}

/// A name in wire form, in its own spelling.
fn presentation(wire: &[u8]) -> String {
    let (mut text, mut rest) = (String::new(), wire);
    while let Some((length @ 1.., after)) = rest.split_first() {
        let Some((label, after)) = after.split_at_checked(usize::from(*length)) else {
            break;
        };
        // Writing to a string cannot fail.
        let _ = write_label(&mut text, label);
        text.push('.');
        rest = after;
    }
    match text.is_empty() {
        true => ".".to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{name::Name, rrset::RecordType};
    use hickory_proto::{
        op::{Edns, Message, OpCode},
        rr::rdata::opt::EdnsOption,
    };

    /// A response with one answer.
    fn response(rcode: u16, rtype: RecordType, data: &[u8]) -> Vec<u8> {
        let words = [0, 0x8180 | (rcode & 15), 0, 1, 0, 0, rtype.0, 1, 0, 60];
        let (header, fixed) = words.split_at(6);
        let octets = |words: &[u16]| {
            words
                .iter()
                .flat_map(|w| w.to_be_bytes())
                .collect::<Vec<_>>()
        };
        let length = (data.len() as u16).to_be_bytes();
        let name = *b"\x01x\x04test\0";
        [&octets(header)[..], &name, &octets(fixed), &length, data].concat()
    }

    #[test]
    fn every_type_is_shown_as_zones_show_it() {
        for (rtype, text) in [
            ("LOC", "52 22 23.000 N 4 53 32.000 E -2.00m 1m 10000m 10m"),
            ("RP", "ann.test. x.test."),
            ("AFSDB", "1 x.test."),
            ("KX", "10 x.test."),
            ("APL", "1:192.0.2.0/24"),
            ("DHCID", "AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA="),
            ("SPF", "\"v=spf1 -all\""),
            ("EUI48", "00-00-5e-00-53-2a"),
            ("EUI64", "00-00-5e-ef-10-00-00-2a"),
            ("URI", "10 1 \"https://x.test/\""),
            ("TYPE65280", "\\# 3 010203"),
            ("CAA", "0 averylongtagwithmanyletters \"x\""),
            ("CSYNC", "7 255 A NS"),
            ("HTTPS", "\\# 9 0001000001000201ff"),
        ] {
            let rtype = RecordType::parse(rtype).expect("a type");
            let data = rdata::parse(rtype, text, &Name::root());
            let data = data.unwrap_or_else(|e| panic!("{rtype} {text}: {e}"));
            let answer = Answer::parse(&response(0, rtype, &data)).expect("reads");
            let expected = format!("x.test. 60 {rtype} {}", rdata::to_text(rtype, &data));
            assert_eq!(answer.text().lines().nth(1), Some(expected.as_str()));
        }
    }

    #[test]
    fn response_codes_have_their_names() {
        for (code, name) in [
            (0, "NOERROR"),
            (6, "YXDOMAIN"),
            (10, "NOTZONE"),
            (15, "RCODE15"),
        ] {
            let octets = response(code, RecordType::A, &[192, 0, 2, 1]);
            assert_eq!(Answer::parse(&octets).expect("reads").rcode, name);
        }
    }

    #[test]
    fn garbage_is_no_message() {
        let whole = response(0, RecordType::A, &[192, 0, 2, 1]);
        for end in 0..whole.len() {
            assert!(Answer::parse(&whole[..end]).is_err(), "{end}");
        }
        assert!(message::options(&whole[..11]).is_empty());
    }

    #[test]
    fn names_and_data_are_as_in_a_master_file() {
        use hickory_proto::rr::{Name, RData, rdata};
        let name = |labels: &[&[u8]]| Name::from_labels(labels.iter().copied()).expect("valid");
        let odd = name(&[b"sp ace", "b\u{fc}cher".as_bytes(), b"Demo", b"test"]);
        let apex = name(&[b"demo", b"test"]);
        let soa = rdata::SOA::new(apex.clone(), odd.clone(), 7, 1, 2, 3, 4);
        let text = rdata::TXT::from_bytes(vec![b"a\xc3\xbc\"q"]);
        let mut message = Message::response(0, OpCode::Query);
        message.answers = [
            RData::CNAME(rdata::CNAME(odd.clone())),
            RData::SOA(soa),
            RData::TXT(text),
        ]
        .map(|data| hickory_proto::rr::Record::from_rdata(odd.clone(), 60, data))
        .to_vec();
        let answer = Answer::parse(&message.to_vec().expect("encodes")).expect("reads");
        let owner = r"sp\032ace.b\195\188cher.Demo.test.";
        let folded = owner.to_ascii_lowercase();
        let expected = [
            format!("{owner} 60 CNAME {folded}"),
            format!("{owner} 60 SOA demo.test. {folded} 7 1 2 3 4"),
            format!(r#"{owner} 60 TXT "a\195\188\"q""#),
        ];
        assert_eq!(answer.text().lines().skip(1).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_refusal_says_why() {
        let mut message = Message::response(0, OpCode::Query);
        let data = [&[0, 18][..], b"recursion is not for you"].concat();
        let mut edns = Edns::new();
        edns.options_mut()
            .insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
        message.edns = Some(edns);
        let answer = Answer::parse(&message.to_vec().expect("encodes")).expect("reads");
        let text = answer.text();
        assert!(
            text.contains(";; extended error 18: recursion is not for you\n"),
            "{text}"
        );
    }
}
