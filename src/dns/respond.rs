//! What becomes of one message from a client: a reply, silence, or a question to an upstream server.
//!
//! Deciding code: the snapshot, the message and who sent it go in, octets come out. Sockets, the cache and waiting are
//! elsewhere; when an upstream's answer is needed, the caller gets it and comes back to `complete`.

use std::{net::IpAddr, sync::Arc, time::Instant};

use crate::model::{forwarder::Forwarder, rrset::RecordType, snapshot::Snapshot};

use super::{
    answer::{Query, Source},
    cache::Entry,
    chain::{Chain, Origin, Part, Resolved, Resolver},
    message::{
        ExtendedError, Rcode, class, flag, refused_type,
        reply::{Fit, Head, ReplyWriter, Section},
        request::{self, Nonsense, Rejected, Request},
        upstream::UpstreamQuestion,
    },
    sections::{Sections, Whole},
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
    pub origin: Origin,
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
            upstream: None,
        }
        .respond(out),
        Err(rejected) => reject(snapshot, client, &rejected, out),
    }
}

/// Answers the message once more, now that upstreams' answers are known: those to what was to be asked so far, in that
/// order, as of a moment. The reply may need a further one, a bounded number of times. `snapshot` must be the one that
/// `respond` saw.
pub fn complete(
    snapshot: &Snapshot,
    identity: &Identity,
    message: &[u8],
    client: Client,
    upstream: (&[Arc<Entry>], Instant),
    out: &mut Vec<u8>,
) -> Response {
    match request::parse(message) {
        Ok(request) => Responder {
            snapshot,
            identity,
            request: &request,
            client,
            upstream: Some(upstream),
        }
        .respond(out),
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
    Response::Reply(plain(complaint.rcode, Origin::Nobody))
}

fn plain(rcode: Rcode, origin: Origin) -> Replied {
    Replied {
        rcode,
        truncated: false,
        origin,
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

struct Responder<'a> {
    snapshot: &'a Snapshot,
    identity: &'a Identity,
    request: &'a Request<'a>,
    client: Client,
    /// What upstreams said so far, as of when.
    upstream: Option<(&'a [Arc<Entry>], Instant)>,
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
        match self.resolve() {
            Resolved::Ask(name, forwarder) => Response::Ask(self.ask(&name, forwarder)),
            Resolved::Answered(chain) => Response::Reply(self.write(chain, out)),
            Resolved::Nowhere => Response::Reply(self.refuse_foreign(out)),
            Resolved::Endless => {
                let error = Some(ExtendedError::ENDLESS);
                let replied = self.refuse(Rcode::SERV_FAIL, error, out);
                Response::Reply(Replied {
                    origin: Origin::Endless,
                    ..replied
                })
            }
        }
    }

    fn resolve(&self) -> Resolved<'a> {
        let resolver = Resolver {
            snapshot: self.snapshot,
            query: Query {
                name: self.request.question.name.as_wire(),
                rtype: self.request.question.rtype,
                // Stub resolvers, which set RD, have no use for the zone's servers; resolvers do.
                minimal: self.request.recursion_desired(),
            },
            recursion: self.request.recursion_desired() && self.recursion_allowed(),
        };
        resolver.resolve(self.upstream.map_or(&[], |(entries, _)| entries))
    }

    /// A name in none of our zones, of which nobody is to be asked.
    fn refuse_foreign(&self, out: &mut Vec<u8>) -> Replied {
        let error = if !self.request.recursion_desired() {
            ExtendedError::NOT_AUTHORITATIVE
        } else if self.recursion_allowed() {
            ExtendedError::NO_FORWARDER
        } else {
            ExtendedError::PROHIBITED
        };
        self.refuse(Rcode::REFUSED, Some(error), out)
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
        plain(rcode, Origin::Nobody)
    }

    fn write(&self, chain: Chain<'_>, out: &mut Vec<u8>) -> Replied {
        let mut writer = self.writer(out);
        let (rcode, error) = match &chain.last {
            Part::Own(own) => {
                let incomplete = own.rcode == Rcode::SERV_FAIL;
                let error = incomplete.then_some(ExtendedError::INVALID_ZONE);
                (own.rcode, error)
            }
            Part::Upstream { entry, .. } => (entry.rcode, entry.error),
        };
        if let Some(error) = error {
            writer.set_error(error);
        }
        let now = self.upstream.map(|(_, now)| now);
        let whole = Sections::new(&mut writer, self.request.question.rtype, now).write(&chain);
        writer.finish(self.head(rcode, chain.is_authoritative(), whole));
        Replied {
            truncated: whole == Whole::Truncated,
            origin: chain.origin(),
            rcode,
            source: chain.into_source(),
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
        plain(Rcode::NO_ERROR, Origin::BuiltIn)
    }
}

/// The part of a text that fits a character string.
fn shown(text: &str) -> &[u8] {
    let octets = text.as_bytes();
    &octets[..octets.len().min(255)]
}
