//! A DNS message as people and programs read it.

use hickory_proto::op::Message;
use serde::Serialize;

use super::exit;
use crate::wire::error::Failure;

/// A reply.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// `NOERROR`, `NXDOMAIN`, ...
    rcode: String,
    authoritative: bool,
    recursion_available: bool,
    answers: Vec<Record>,
    authority: Vec<Record>,
    additional: Vec<Record>,
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
        let records = |section: &[hickory_proto::rr::Record]| section.iter().map(record).collect();
        Ok(Self {
            rcode: rcode(message.metadata.response_code),
            authoritative: message.metadata.authoritative,
            recursion_available: message.metadata.recursion_available,
            answers: records(&message.answers),
            authority: records(&message.authorities),
            additional: records(&message.additionals),
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

fn record(record: &hickory_proto::rr::Record) -> Record {
    Record {
        name: record.name.to_string(),
        rtype: record.record_type().to_string(),
        ttl: record.ttl,
        data: record.data.to_string(),
    }
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
