//! A DNS message as people and programs read it.

use hickory_proto::{
    ProtoError,
    op::Message,
    rr::{RData, rdata::opt::EdnsOption},
    serialize::binary::{BinEncodable, BinEncoder},
};
use serde::Serialize;

use super::exit;
use crate::{
    model::{name::write_label, rdata, rrset::RecordType},
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
    pub fn parse(message: &[u8]) -> Result<Self, Failure> {
        let message = Message::from_vec(message)
            .map_err(|e| exit::internal("answer", format!("it is no DNS message: {e}")))?;
        let unreadable = |e| exit::internal("answer", format!("a record cannot be shown: {e}"));
        let records = |section: &[hickory_proto::rr::Record]| {
            let records = section.iter().map(record);
            records.collect::<Result<_, _>>().map_err(unreadable)
        };
        Ok(Self {
            rcode: rcode(message.metadata.response_code),
            authoritative: message.metadata.authoritative,
            recursion_available: message.metadata.recursion_available,
            errors: extended_errors(&message),
            answers: records(&message.answers)?,
            authority: records(&message.authorities)?,
            additional: records(&message.additionals)?,
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
fn extended_errors(message: &Message) -> Vec<ExtendedError> {
    let options = message.edns.iter().flat_map(|edns| &edns.options().options);
    options
        .filter_map(|(_, option)| match option {
            EdnsOption::Unknown(EXTENDED_ERROR, data) => {
                let (code, text) = data.split_first_chunk::<2>()?;
                Some(ExtendedError {
                    code: u16::from_be_bytes(*code),
                    text: String::from_utf8_lossy(text).into_owned(),
                })
            }
            _ => None,
        })
        .collect()
}

/// In presentation form (RFC 1035 section 5.1), as master files have it.
fn record(record: &hickory_proto::rr::Record) -> Result<Record, ProtoError> {
    let rtype = record.record_type();
    Ok(Record {
        name: presentation(&record.name),
        rtype: rtype.to_string(),
        ttl: record.ttl,
        data: rdata::to_text(RecordType(rtype.into()), &uncompressed(&record.data)?),
    })
}

fn presentation(name: &hickory_proto::rr::Name) -> String {
    let mut text = String::new();
    for label in name.iter() {
        // Writing to a string cannot fail.
        let _ = write_label(&mut text, label);
        text.push('.');
    }
    match text.is_empty() {
        true => ".".to_owned(),
        false => text,
    }
}

fn uncompressed(data: &RData) -> Result<Vec<u8>, ProtoError> {
    let mut wire = vec![];
    let mut encoder = BinEncoder::new(&mut wire);
    encoder.set_canonical_form(true);
    data.emit(&mut encoder)?;
    Ok(wire)
}

/// The name of a response code (IANA "DNS RCODEs").
fn rcode(code: hickory_proto::op::ResponseCode) -> String {
    match u16::from(code) {
        0 => "NOERROR".to_owned(),
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        other => format!("RCODE{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns, OpCode};

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
