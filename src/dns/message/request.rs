//! Reading what clients send.

use crate::model::{name::MAX_NAME, rrset::RecordType};

use super::{EDNS_UDP, HEADER, PLAIN_UDP, Rcode, flag, record_at, u16_at};

/// A name server identifier was asked for (RFC 5001).
const OPTION_NSID: u16 = 3;

/// A question that can be answered.
#[derive(Clone, Debug)]
pub struct Request<'q> {
    pub id: u16,
    /// The flags word as it came.
    pub flags: u16,
    pub question: Question<'q>,
    pub edns: Option<Edns>,
}

/// The one entry of the question section.
#[derive(Clone, Debug)]
pub struct Question<'q> {
    /// Name, type and class as they came, the client's spelling included: the reply starts with them.
    pub octets: &'q [u8],
    /// The name in lower case.
    pub name: FoldedName,
    pub rtype: RecordType,
    pub class: u16,
}

/// A name in uncompressed wire form and lower case, on the stack.
#[derive(Clone)]
pub struct FoldedName {
    octets: [u8; MAX_NAME],
    length: u8,
}

impl FoldedName {
    /// None when `name` is longer than a name can be.
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut octets = [0; MAX_NAME];
        let target = octets.get_mut(..name.len())?;
        target.copy_from_slice(name);
        target.make_ascii_lowercase();
        Some(Self {
            octets,
            length: name.len() as u8,
        })
    }

    pub fn as_wire(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }
}

impl std::fmt::Debug for FoldedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.as_wire().escape_ascii())
    }
}

/// What a client says of itself in its OPT record (RFC 6891 section 6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP message it takes, as it said.
    pub payload: u16,
    pub version: u8,
    pub dnssec_ok: bool,
    pub wants_identity: bool,
}

impl Request<'_> {
    pub fn recursion_desired(&self) -> bool {
        self.flags & flag::RD != 0
    }

    /// Octets that a UDP reply to this client may take.
    pub fn udp_limit(&self) -> usize {
        udp_limit(self.edns)
    }
}

/// Octets that a UDP reply may take for a client with this OPT record.
pub fn udp_limit(edns: Option<Edns>) -> usize {
    edns.map_or(PLAIN_UDP, |edns| {
        usize::from(edns.payload).clamp(PLAIN_UDP, EDNS_UDP)
    })
}

/// What came is no question that can be answered.
#[derive(Clone, Debug)]
pub enum Rejected<'q> {
    /// Say nothing: it is no query, or not enough of one.
    Drop(Nonsense),
    /// Tell the client.
    Reply(Complaint<'q>),
}

/// Why a message gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonsense {
    /// Shorter than a header.
    TooShort,
    /// A response: answering it could start a loop between two servers.
    Response,
}

/// An error reply to a message whose header, at least, could be read.
#[derive(Clone, Debug)]
pub struct Complaint<'q> {
    pub id: u16,
    pub flags: u16,
    pub rcode: Rcode,
    /// Name, type and class as they came, where they could be read.
    pub question: Option<&'q [u8]>,
    pub edns: Option<Edns>,
}

/// Reads a message from a client.
pub fn parse(message: &[u8]) -> Result<Request<'_>, Rejected<'_>> {
    let header = |at| u16_at(message, at).ok_or(Rejected::Drop(Nonsense::TooShort));
    let (id, flags) = (header(0)?, header(2)?);
    let counts = [header(4)?, header(6)?, header(8)?, header(10)?];
    if flags & flag::QR != 0 {
        return Err(Rejected::Drop(Nonsense::Response));
    }
    let complain = |rcode, question, edns| {
        Rejected::Reply(Complaint {
            id,
            flags,
            rcode,
            question,
            edns,
        })
    };
    if flags & flag::OPCODE != 0 {
        // Other kinds of message are laid out alike (RFC 2136 section 2); what can be read is given back.
        let question = parse_question(message).filter(|_| counts[0] == 1);
        let octets = question.map(|question| question.octets);
        let start = HEADER + octets.map_or(0, <[u8]>::len);
        let edns = parse_rest(message, start, &counts[1..]).ok().flatten();
        return Err(complain(Rcode::NOT_IMP, octets, edns));
    }
    let form_err = || complain(Rcode::FORM_ERR, None, None);
    if counts[0] != 1 {
        return Err(form_err());
    }
    let question = parse_question(message).ok_or_else(form_err)?;
    let octets = Some(question.octets);
    let start = HEADER + question.octets.len();
    let edns = parse_rest(message, start, &counts[1..])
        .map_err(|Malformed| complain(Rcode::FORM_ERR, octets, None))?;
    if edns.is_some_and(|edns| edns.version > 0) {
        return Err(complain(Rcode::BAD_VERS, octets, edns));
    }
    Ok(Request {
        id,
        flags,
        question,
        edns,
    })
}

fn parse_question(message: &[u8]) -> Option<Question<'_>> {
    let mut end = HEADER;
    loop {
        // There is nothing in front of the question that a compression pointer could mean.
        match *message.get(end)? {
            0 => break,
            length @ 1..=63 => end += 1 + usize::from(length),
            _ => return None,
        }
        if end - HEADER >= MAX_NAME {
            return None;
        }
    }
    end += 1;
    Some(Question {
        octets: message.get(HEADER..end + 4)?,
        name: FoldedName::new(message.get(HEADER..end)?)?,
        rtype: RecordType(u16_at(message, end)?),
        class: u16_at(message, end + 2)?,
    })
}

/// The sections after the question cannot be read.
struct Malformed;

/// Walks the records after the question and reads the OPT record among them.
fn parse_rest(message: &[u8], start: usize, counts: &[u16]) -> Result<Option<Edns>, Malformed> {
    let mut at = start;
    let mut edns = None;
    for (section, count) in counts.iter().enumerate() {
        for _ in 0..*count {
            let record = record_at(message, at).ok_or(Malformed)?;
            at = record.data.end;
            if record.rtype != RecordType::OPT {
                continue;
            }
            let in_place = section == 2 && message.get(record.owner) == Some(&0);
            if !in_place || edns.is_some() {
                return Err(Malformed);
            }
            let options = message.get(record.data).ok_or(Malformed)?;
            edns = Some(read_opt(record.class, record.ttl, options)?);
        }
    }
    // Octets after the last record would be read by nobody: whoever sent them counts otherwise than we do.
    if at == message.len() {
        Ok(edns)
    } else {
        Err(Malformed)
    }
}

fn read_opt(class: u16, ttl: u32, options: &[u8]) -> Result<Edns, Malformed> {
    let mut edns = Edns {
        payload: class,
        version: (ttl >> 16) as u8,
        dnssec_ok: ttl & 0x8000 != 0,
        wants_identity: false,
    };
    let mut rest = options;
    while !rest.is_empty() {
        let code = u16_at(rest, 0).ok_or(Malformed)?;
        let length = usize::from(u16_at(rest, 2).ok_or(Malformed)?);
        rest = rest.get(4 + length..).ok_or(Malformed)?;
        edns.wants_identity |= code == OPTION_NSID;
    }
    Ok(edns)
}
