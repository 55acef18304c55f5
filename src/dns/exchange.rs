//! One question to one upstream server: over UDP, and over TCP where the answer is too long for that.
//!
//! Replies are checked before they count. It waits as long as it takes: whoever asks bounds it, and may drop it at any time.

use std::{io, net::SocketAddr, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use super::{
    forward::Forwarding,
    message::{
        ExtendedError, HEADER, Rcode, flag,
        upstream::{Message, UpstreamQuestion},
    },
    respond::Ask,
    scrub::scrub,
    stats::count,
};
use crate::shortage::{Shortage, shortage};

/// Messages that do not fit the query before the server is asked over TCP, where nobody can guess.
const MAX_IGNORED: usize = 16;

/// Why one upstream gave nothing; what says more comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    /// No answer in time.
    Silent,
    /// The network said no.
    Broken,
    /// An answer that cannot be used.
    Nonsense,
    /// An answer that is an error code.
    Error(Rcode),
    /// This node had no files, memory or ports to ask it with: it says nothing of the server. Last, since who was not asked
    /// might have answered.
    Unasked,
}

impl Failure {
    /// What a client is told (RFC 8914).
    pub fn explained(self) -> ExtendedError {
        match self {
            Self::Silent => ExtendedError::UPSTREAM_SILENT,
            Self::Broken => ExtendedError::UPSTREAM_UNREACHABLE,
            Self::Nonsense => ExtendedError::UPSTREAM_NONSENSE,
            Self::Error(Rcode::SERV_FAIL) => ExtendedError::UPSTREAM_SERVFAIL,
            Self::Error(Rcode::REFUSED) => ExtendedError::UPSTREAM_REFUSED,
            Self::Error(_) => ExtendedError::UPSTREAM_ERROR,
            Self::Unasked => ExtendedError::NO_RESOURCES,
        }
    }

    /// Whether it is an answer for the next who ask, too. What this node lacks may be there again in a moment.
    pub fn is_kept(self) -> bool {
        self != Self::Unasked
    }

    /// What an error of the system on the way to a server is.
    fn of(error: &io::Error, way: Way) -> Self {
        match lacked(error, way) {
            Some(_) => Self::Unasked,
            None => Self::Broken,
        }
    }
}

/// What this node lacks, if that is what an error says. EADDRINUSE: every port is taken. EADDRNOTAVAIL says so of TCP, which
/// is bound to an address that UDP has found; of UDP it says that no address leads to the server.
fn lacked(error: &io::Error, way: Way) -> Option<Shortage> {
    match (error.raw_os_error(), way) {
        (Some(libc::EADDRINUSE), _) => Some(Shortage::Ports),
        (Some(libc::EADDRNOTAVAIL), Way::Udp) => None,
        _ => shortage(error),
    }
}

/// A question and the server that is asked.
pub(super) struct Exchange<'a> {
    pub forwarding: &'a Forwarding,
    pub ask: &'a Ask,
    pub server: SocketAddr,
}

/// The two ways to a server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Udp,
    Tcp,
}

impl Exchange<'_> {
    /// Asks over UDP with EDNS; without it from when the server says that it does not know it; over TCP from when the answer
    /// is too long.
    pub async fn run(&self) -> Result<Message, Failure> {
        let (mut way, mut edns) = (Way::Udp, true);
        // At most four times: each turn takes back one of the two.
        let message = loop {
            let received = match way {
                Way::Udp => self.over_udp(edns).await?,
                Way::Tcp => self.over_tcp(edns).await?,
            };
            match received {
                Received::Truncated if way == Way::Tcp => return Err(Failure::Nonsense),
                Received::Truncated => way = Way::Tcp,
                Received::Whole(message) if edns && knows_no_edns(message.rcode) => edns = false,
                Received::Whole(message) => break message,
            }
        };
        match message.rcode {
            // YXDOMAIN is a true answer: a DNAME makes a name that is too long (RFC 6672 section 2.3).
            Rcode::NO_ERROR | Rcode::NX_DOMAIN | Rcode::YX_DOMAIN => {
                let suffix = self.ask.forwarder.suffix.as_wire();
                scrub(message, &self.ask.question, suffix).ok_or(Failure::Nonsense)
            }
            rcode => Err(Failure::Error(rcode)),
        }
    }

    /// What `error` on the way to the server means. The log is told of what this node lacks, once a minute.
    fn failed(&self, error: &io::Error, way: Way) -> Failure {
        let told = &self.forwarding.told;
        if let Some(lacked) = lacked(error, way)
            && let Some(left_out) = told.admit(Instant::now())
        {
            let advice = match lacked {
                Shortage::Resources => lacked.advice(),
                Shortage::Ports => "widen net.ipv4.ip_local_port_range",
            };
            let server = self.server;
            tracing::warn!(%server, %error, left_out, "this node lacks what a query to an upstream server needs: {advice}");
        }
        Failure::of(error, way)
    }

    async fn over_udp(&self, edns: bool) -> Result<Received, Failure> {
        let asked = self.ask_over_udp(edns).await;
        asked.map_err(|error| self.failed(&error, Way::Udp))
    }

    async fn over_tcp(&self, edns: bool) -> Result<Received, Failure> {
        let found = self.forwarding.socket_to(self.server).await;
        let source = found.and_then(|socket| socket.local_addr());
        let source = source.map_err(|error| self.failed(&error, Way::Udp))?;
        let asked = self.ask_over_tcp(source, edns).await;
        let received = asked.map_err(|error| self.failed(&error, Way::Tcp))?;
        received.ok_or(Failure::Nonsense)
    }

    async fn ask_over_udp(&self, edns: bool) -> io::Result<Received> {
        let counters = &self.forwarding.counters;
        let socket = self.forwarding.socket_to(self.server).await?;
        let id = rand::random();
        count(&counters.sent);
        socket.send(&self.ask.question.encode(id, edns)).await?;
        let mut buffer = [0; 4096];
        for _ in 0..MAX_IGNORED {
            let length = socket.recv(&mut buffer).await?;
            let octets = buffer.get(..length).unwrap_or_default();
            match Received::read(&self.ask.question, id, edns, octets) {
                Some(received) => return Ok(received),
                None => count(&counters.ignored),
            }
        }
        Ok(Received::Truncated)
    }

    /// From the address of `source`. None: what came is no answer.
    async fn ask_over_tcp(
        &self,
        mut source: SocketAddr,
        edns: bool,
    ) -> io::Result<Option<Received>> {
        let counters = &self.forwarding.counters;
        count(&counters.over_tcp);
        count(&counters.sent);
        let socket = match self.server {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // Whole, since an address of one link is nothing without its scope.
        source.set_port(0);
        socket.bind(source)?;
        let mut stream = socket.connect(self.server).await?;
        let id = rand::random();
        let query = self.ask.question.encode(id, edns);
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        stream
            .write_all(&[&length.to_be_bytes(), query.as_slice()].concat())
            .await?;
        let length = u64::from(stream.read_u16().await?);
        let mut octets = Vec::new();
        stream.take(length).read_to_end(&mut octets).await?;
        Ok(Received::read(&self.ask.question, id, edns, &octets))
    }
}

/// A message that is a server's answer to a query.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    Whole(Message),
    /// The answer is to be had over TCP. What there is of it may end within a record, and is not looked at.
    Truncated,
}

impl Received {
    /// None when `octets` do not fit the query with this id, with or without EDNS.
    fn read(question: &UpstreamQuestion, id: u16, edns: bool, octets: &[u8]) -> Option<Self> {
        if question.is_answered_by(id, octets) {
            let truncated = super::message::u16_at(octets, 2)? & flag::TC != 0;
            return match truncated {
                true => Some(Self::Truncated),
                false => Message::decode(octets).map(Self::Whole),
            };
        }
        // A server that takes our query for nonsense may leave the question out.
        let message = Message::decode(octets).filter(|_| edns && octets.len() == HEADER)?;
        let refused =
            message.id == id && message.flags & flag::QR != 0 && knows_no_edns(message.rcode);
        refused.then_some(Self::Whole(message))
    }
}

/// Whether a server says so of a query with EDNS (RFC 6891 section 7).
fn knows_no_edns(rcode: Rcode) -> bool {
    matches!(rcode, Rcode::FORM_ERR | Rcode::NOT_IMP)
}

#[cfg(test)]
mod tests {
    use crate::{
        dns::{
            respond::{Client, Identity, Transport, respond},
            testing::{name, snapshot},
        },
        model::rrset::RecordType,
    };

    use super::*;

    const ID: u16 = 7;

    fn question() -> UpstreamQuestion {
        UpstreamQuestion {
            name: name("www.x.").as_wire().into(),
            rtype: RecordType::A,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    fn answer() -> Vec<u8> {
        let state = snapshot(&["x. 60 IN SOA a. b. 1 1 1 1 1\nwww.x. 60 IN A 192.0.2.1"]);
        let client = Client {
            address: [127, 0, 0, 1].into(),
            transport: Transport::Tcp,
        };
        let (query, mut out) = (question().encode(ID, true), Vec::new());
        respond(&state, &Identity::default(), &query, client, &mut out);
        out
    }

    fn read(octets: &[u8]) -> Option<Received> {
        Received::read(&question(), ID, true, octets)
    }

    #[test]
    fn what_this_node_lacks_is_no_failure_of_the_server() {
        use Failure::{Broken, Unasked};
        for (number, udp, tcp) in [
            (libc::EMFILE, Unasked, Unasked),
            (libc::ENFILE, Unasked, Unasked),
            (libc::ENOMEM, Unasked, Unasked),
            (libc::ENOBUFS, Unasked, Unasked),
            (libc::EADDRINUSE, Unasked, Unasked),
            (libc::EADDRNOTAVAIL, Broken, Unasked),
            (libc::ECONNREFUSED, Broken, Broken),
            (libc::ENETUNREACH, Broken, Broken),
        ] {
            let of = |way| Failure::of(&io::Error::from_raw_os_error(number), way);
            assert_eq!((of(Way::Udp), of(Way::Tcp)), (udp, tcp), "{number}");
        }
        assert!(!Unasked.is_kept() && Broken.is_kept());
        assert!(Unasked > Failure::Error(Rcode::SERV_FAIL));
    }

    #[test]
    fn a_truncated_answer_is_one_wherever_it_was_cut() {
        let whole = answer();
        assert!(matches!(read(&whole), Some(Received::Whole(_))));
        let mut cut = whole.clone();
        cut[2] |= (flag::TC >> 8) as u8;
        let end_of_question = HEADER + question().name.len() + 4;
        for length in end_of_question..=cut.len() {
            assert_eq!(read(&cut[..length]), Some(Received::Truncated), "{length}");
            let uncut = read(&whole[..length]);
            assert_eq!(uncut.is_some(), length == whole.len(), "{length}");
        }
        assert_eq!(read(&cut[..end_of_question - 1]), None);
        cut[1] ^= 1;
        assert_eq!(read(&cut), None, "the id of another query");
    }

    #[test]
    fn a_bare_header_counts_when_it_refuses_edns_and_no_other_time() {
        let header = |rcode: u8| [0, ID as u8, 0x81, rcode, 0, 0, 0, 0, 0, 0, 0, 0];
        for (rcode, counts) in [(1, true), (4, true), (2, false), (0, false)] {
            let received = read(&header(rcode));
            assert_eq!(received.is_some(), counts, "{rcode}");
        }
        let plain = Received::read(&question(), ID, false, &header(1));
        assert_eq!(plain, None, "there was no EDNS to refuse");
    }
}
