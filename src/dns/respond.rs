//! What becomes of one message from a client: a reply, silence, or a question to an upstream server.
//!
//! Deciding code: the snapshot, the message and who sent it go in, octets come out. Sockets, the cache and waiting are
//! elsewhere; when an upstream's answer is needed, the caller gets it and comes back to `complete`.

use std::{net::IpAddr, sync::Arc, time::Instant};

use crate::model::{forwarder::Forwarder, rrset::RecordType, snapshot::Snapshot};

use super::{
    answer::{self, Answer, AnswerSet, Data, Query, Source},
    builtin::BUILT_IN,
    cache::Entry,
    message::{
        ExtendedError, Rcode, class, flag,
        record::Record,
        refused_type,
        reply::{Fit, Head, ReplyWriter, Section},
        request::{self, Nonsense, Rejected, Request},
        upstream::UpstreamQuestion,
    },
};

/// Largest message over TCP (RFC 1035 section 4.2.2).
const TCP_LIMIT: usize = 65_535;

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Udp,
    Tcp,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    pub transport: Transport,
}

/// What this server says of itself under the class CHAOS (RFC 4892) and in NSID (RFC 5001). None: it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `version.bind` and `version.server`; at most 255 octets are shown.
    pub version: Option<String>,
    /// `hostname.bind`, `id.server` and NSID; at most 255 octets are shown.
    pub hostname: Option<String>,
}

/// What became of a message.
#[derive(Debug)]
pub enum Response {
    /// A reply was written.
    Reply(Replied),
    /// Nothing must be sent.
    Silence(Nonsense),
    /// An upstream has to be asked first; nothing was written.
    Ask(Ask),
}

/// Facts of a reply, for counters and for keeping copies of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replied {
    pub rcode: Rcode,
    pub truncated: bool,
    /// Set when the reply depends on nothing but this, the question and the client's flags.
    pub source: Option<Source>,
}

/// What to ask an upstream.
#[derive(Clone, Debug)]
pub struct Ask {
    pub question: UpstreamQuestion,
    pub forwarder: Arc<Forwarder>,
}

/// Answers one message, writing the reply to `out`.
pub fn respond(
    snapshot: &Snapshot,
    identity: &Identity,
    message: &[u8],
    client: Client,
    out: &mut Vec<u8>,
) -> Response {
    match request::parse(message) {
        Ok(request) => Responder {
            snapshot,
            identity,
            request: &request,
            client,
        }
        .respond(out),
        Err(rejected) => reject(snapshot, client, &rejected, out),
    }
}

/// Answers the message once more, now that the upstream's answer is known. `snapshot` must be the one that `respond` saw.
pub fn complete(
    snapshot: &Snapshot,
    identity: &Identity,
    message: &[u8],
    client: Client,
    upstream: (&Entry, Instant),
    out: &mut Vec<u8>,
) -> Response {
    let (entry, now) = upstream;
    match request::parse(message) {
        Ok(request) => Response::Reply(
            Responder {
                snapshot,
                identity,
                request: &request,
                client,
            }
            .merge(entry, now, out),
        ),
        Err(rejected) => reject(snapshot, client, &rejected, out),
    }
}

/// Complains of what is no question, if its sender is to be told.
fn reject(
    snapshot: &Snapshot,
    client: Client,
    rejected: &Rejected<'_>,
    out: &mut Vec<u8>,
) -> Response {
    let complaint = match rejected {
        Rejected::Drop(why) => return Response::Silence(*why),
        Rejected::Reply(complaint) => complaint,
    };
    let limit = request::udp_limit(complaint.edns);
    let mut flags = complaint.flags & (flag::OPCODE | flag::RD | flag::CD);
    if recursion_available(snapshot, client.address) {
        flags |= flag::RA;
    }
    ReplyWriter::new(out, limit, complaint.question, complaint.edns).finish(Head {
        id: complaint.id,
        flags,
        rcode: complaint.rcode,
    });
    Response::Reply(plain(complaint.rcode))
}

fn plain(rcode: Rcode) -> Replied {
    Replied {
        rcode,
        truncated: false,
        source: None,
    }
}

/// Whether the cluster's policy lets this client ask for names outside our zones.
fn recursion_allowed(snapshot: &Snapshot, client: IpAddr) -> bool {
    let allowed = &snapshot.dns.recursion_allowed;
    allowed.iter().any(|network| network.contains(client))
}

/// The RA flag: the client may, and there is somebody to ask.
pub(super) fn recursion_available(snapshot: &Snapshot, client: IpAddr) -> bool {
    !snapshot.forwarders.is_empty() && recursion_allowed(snapshot, client)
}

/// Whether everything that has to be in the reply found room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    Complete,
    Truncated,
}

struct Responder<'a> {
    snapshot: &'a Snapshot,
    identity: &'a Identity,
    request: &'a Request<'a>,
    client: Client,
}

impl<'a> Responder<'a> {
    fn respond(&self, out: &mut Vec<u8>) -> Response {
        let question = &self.request.question;
        match question.class {
            class::IN => {}
            class::CHAOS => return Response::Reply(self.describe_self(out)),
            _ => return Response::Reply(self.refuse(Rcode::REFUSED, None, out)),
        }
        if let Some(rcode) = refused_type(question.rtype) {
            let error = Some(ExtendedError::NOT_SUPPORTED);
            return Response::Reply(self.refuse(rcode, error, out));
        }
        let Some(own) = self.own_answer() else {
            return self.beyond_zones(out);
        };
        match self.question_beyond(&own) {
            Some(ask) => Response::Ask(ask),
            None => Response::Reply(self.write_own(own, out)),
        }
    }

    fn own_answer(&self) -> Option<Answer<'a>> {
        let query = Query {
            name: self.request.question.name.as_wire(),
            rtype: self.request.question.rtype,
            // Stub resolvers, which set RD, have no use for the zone's servers; resolvers do.
            minimal: self.request.recursion_desired(),
        };
        answer::answer(self.snapshot, query).or_else(|| self.built_in_answer(query))
    }

    /// What every server knows, unless the site has a forwarder for just those names.
    fn built_in_answer(&self, query: Query<'a>) -> Option<Answer<'a>> {
        let forwarder = answer::forwarder_for(self.snapshot, query.name);
        if forwarder.is_some_and(|forwarder| !forwarder.suffix.is_root()) {
            return None;
        }
        let mut own = answer::answer(&BUILT_IN, query)?;
        own.source = None;
        Some(own)
    }

    /// A name in none of our zones.
    fn beyond_zones(&self, out: &mut Vec<u8>) -> Response {
        let name = self.request.question.name.as_wire();
        let error = match answer::forwarder_for(self.snapshot, name) {
            _ if !self.request.recursion_desired() => ExtendedError::NOT_AUTHORITATIVE,
            _ if !self.recursion_allowed() => ExtendedError::PROHIBITED,
            None => ExtendedError::NO_FORWARDER,
            Some(forwarder) => return Response::Ask(self.ask(name, forwarder)),
        };
        Response::Reply(self.refuse(Rcode::REFUSED, Some(error), out))
    }

    /// What is left to ask when our zones have said their part: an alias that leads out of them, or a name in a delegated
    /// zone that has a forwarder of its own.
    fn question_beyond(&self, own: &Answer<'_>) -> Option<Ask> {
        if !self.request.recursion_desired() || !self.recursion_allowed() {
            return None;
        }
        if let Some(target) = &own.unresolved {
            let forwarder = answer::forwarder_for(self.snapshot, target)?;
            return Some(self.ask(target, forwarder));
        }
        let cut = own
            .authority
            .first()
            .filter(|_| own.referral && own.answer.is_empty())?;
        let name = self.request.question.name.as_wire();
        let forwarder = answer::forwarder_for(self.snapshot, name)?;
        answer::is_at_or_below(forwarder.suffix.as_wire(), &cut.owner)
            .then(|| self.ask(name, forwarder))
    }

    fn ask(&self, name: &[u8], forwarder: &Arc<Forwarder>) -> Ask {
        Ask {
            question: UpstreamQuestion {
                name: name.into(),
                rtype: self.request.question.rtype,
                dnssec_ok: self.request.edns.is_some_and(|edns| edns.dnssec_ok),
                checking_disabled: self.request.flags & flag::CD != 0,
            },
            forwarder: Arc::clone(forwarder),
        }
    }

    fn recursion_allowed(&self) -> bool {
        recursion_allowed(self.snapshot, self.client.address)
    }

    fn writer<'o>(&self, out: &'o mut Vec<u8>) -> ReplyWriter<'o>
    where
        'a: 'o,
    {
        let limit = match self.client.transport {
            Transport::Udp => self.request.udp_limit(),
            Transport::Tcp => TCP_LIMIT,
        };
        let question = Some(self.request.question.octets);
        let mut writer = ReplyWriter::new(out, limit, question, self.request.edns);
        let wants_identity = self.request.edns.is_some_and(|edns| edns.wants_identity);
        if let Some(hostname) = self.identity.hostname.as_deref().filter(|_| wants_identity) {
            writer.set_identity(shown(hostname));
        }
        writer
    }

    /// The header of our replies: RD and CD as asked, RA where it holds.
    fn head(&self, rcode: Rcode, authoritative: bool, whole: Whole) -> Head {
        let mut flags = self.request.flags & (flag::RD | flag::CD);
        if authoritative {
            flags |= flag::AA;
        }
        if whole == Whole::Truncated {
            flags |= flag::TC;
        }
        if recursion_available(self.snapshot, self.client.address) {
            flags |= flag::RA;
        }
        Head {
            id: self.request.id,
            flags,
            rcode,
        }
    }

    fn refuse(&self, rcode: Rcode, error: Option<ExtendedError>, out: &mut Vec<u8>) -> Replied {
        let mut writer = self.writer(out);
        if let Some(error) = error {
            writer.set_error(error);
        }
        writer.finish(self.head(rcode, false, Whole::Complete));
        plain(rcode)
    }

    fn write_own(&self, own: Answer<'_>, out: &mut Vec<u8>) -> Replied {
        let mut writer = self.writer(out);
        if own.rcode == Rcode::SERV_FAIL {
            writer.set_error(ExtendedError::INVALID_ZONE);
        }
        let whole = write_answer(&mut writer, &own);
        writer.finish(self.head(own.rcode, own.authoritative, whole));
        Replied {
            rcode: own.rcode,
            truncated: whole == Whole::Truncated,
            source: own
                .source
                .filter(|_| own.unresolved.is_none() && !own.referral),
        }
    }

    /// Our own aliases, if the question went through any, and then what the upstream said.
    fn merge(&self, entry: &Entry, now: Instant, out: &mut Vec<u8>) -> Replied {
        let own = self.own_answer().filter(|own| own.unresolved.is_some());
        let mut writer = self.writer(out);
        if let Some(error) = entry.error {
            writer.set_error(error);
        }
        let aliases = own.as_ref().map_or(&[][..], |own| &own.answer);
        let age = entry.age(now);
        let whole = match write_sets(&mut writer, Section::Answer, aliases) {
            Whole::Complete => write_entry(&mut writer, entry, age),
            Whole::Truncated => Whole::Truncated,
        };
        writer.finish(self.head(entry.rcode, own.is_some(), whole));
        Replied {
            truncated: whole == Whole::Truncated,
            ..plain(entry.rcode)
        }
    }

    /// RFC 4892: names of the class CHAOS that say who answers.
    fn describe_self(&self, out: &mut Vec<u8>) -> Replied {
        let question = &self.request.question;
        let text = match question.name.as_wire() {
            b"\x07version\x04bind\0" | b"\x07version\x06server\0" => &self.identity.version,
            b"\x08hostname\x04bind\0" | b"\x02id\x06server\0" => &self.identity.hostname,
            _ => &None,
        };
        let asked = matches!(question.rtype, RecordType::TXT | RecordType::ANY);
        let Some(text) = text.as_deref().map(shown).filter(|_| asked) else {
            return self.refuse(Rcode::REFUSED, None, out);
        };
        let data = [&[text.len() as u8], text].concat();
        let mut writer = self.writer(out);
        let fit = writer.write_set(
            Section::Answer,
            question.name.as_wire(),
            RecordType::TXT,
            0,
            std::iter::once(data.as_slice()),
        );
        let whole = if fit == Fit::Written {
            Whole::Complete
        } else {
            Whole::Truncated
        };
        writer.finish(self.head(Rcode::NO_ERROR, true, whole));
        plain(Rcode::NO_ERROR)
    }
}

/// The part of a text that fits a character string.
fn shown(text: &str) -> &[u8] {
    let octets = text.as_bytes();
    &octets[..octets.len().min(255)]
}

fn write_answer(writer: &mut ReplyWriter<'_>, own: &Answer<'_>) -> Whole {
    let sections = [
        (Section::Answer, &own.answer),
        (Section::Authority, &own.authority),
        (Section::Additional, &own.additional),
    ];
    for (section, sets) in sections {
        if write_sets(writer, section, sets) == Whole::Truncated {
            return Whole::Truncated;
        }
    }
    Whole::Complete
}

/// Writes sets until a required one does not fit; others may be left out in silence (RFC 2181 section 9).
fn write_sets(writer: &mut ReplyWriter<'_>, section: Section, sets: &[AnswerSet<'_>]) -> Whole {
    for set in sets {
        let (owner, rtype, ttl) = (&*set.owner, set.rtype, set.ttl);
        let fit = match &set.data {
            Data::Set(data) => writer.write_set(section, owner, rtype, ttl, data.rdata()),
            Data::Made(data) => {
                let data = std::iter::once(data.as_slice());
                writer.write_set(section, owner, rtype, ttl, data)
            }
        };
        if fit == Fit::NoRoom && set.required {
            return Whole::Truncated;
        }
    }
    Whole::Complete
}

fn write_entry(writer: &mut ReplyWriter<'_>, entry: &Entry, age: u32) -> Whole {
    let sections = [
        (Section::Answer, &entry.answer),
        (Section::Authority, &entry.authority),
        (Section::Additional, &entry.additional),
    ];
    for (section, records) in sections {
        let same_set = |a: &Record, b: &Record| {
            a.rtype == b.rtype && a.owner.eq_ignore_ascii_case(&b.owner) && a.ttl == b.ttl
        };
        for set in records.chunk_by(same_set) {
            let Some(first) = set.first() else {
                continue;
            };
            let ttl = first.ttl.saturating_sub(age);
            let data = set.iter().map(|record| &*record.data);
            let fit = writer.write_set(section, &first.owner, first.rtype, ttl, data);
            if fit == Fit::NoRoom && section != Section::Additional {
                return Whole::Truncated;
            }
        }
    }
    Whole::Complete
}
