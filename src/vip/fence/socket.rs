//! Sockets to nf_tables: one that makes transactions and asks questions, one that hears of changes.
//!
//! The first owns the tables that it creates, for as long as it is open: it lives as long as the fence. Its calls do not wait for
//! anybody but the kernel: a transaction is done when the call that sends it returns.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::message::{self, NETDEV, Reply, Request};

/// The kernel's answers to one transaction or question, waiting to be read.
const ANSWER_BUFFER: usize = 1 << 20;
/// No datagram of a dump is larger.
const DATAGRAM: usize = 1 << 16;
/// The group that hears of every change of nf_tables (`NFNLGRP_NFTABLES`, number 7).
const CHANGES_GROUP: u32 = 1 << 6;
/// Repetitions of a dump that changes keep cutting.
const DUMP_TRIES: u32 = 5;

/// Why a transaction or question failed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("cannot open a netfilter netlink socket: {0}")]
    Open(#[source] io::Error),
    #[error("cannot {attempt}: {source}")]
    Refused {
        attempt: String,
        #[source]
        source: Errno,
    },
    #[error("cannot {attempt}: the kernel gave no answer")]
    NoAnswer { attempt: String },
}

impl SocketError {
    pub fn errno(&self) -> Option<Errno> {
        match self {
            SocketError::Open(error) => error.raw_os_error().map(Errno::from_raw),
            SocketError::Refused { source, .. } => Some(*source),
            SocketError::NoAnswer { .. } => None,
        }
    }
}

fn open(flags: SockFlag, groups: u32) -> Result<OwnedFd, SocketError> {
    let open = || {
        let socket = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | flags,
            SockProtocol::NetlinkNetFilter,
        )?;
        socket::setsockopt(&socket, sockopt::RcvBuf, &ANSWER_BUFFER)?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(socket)
    };
    open().map_err(|error: Errno| SocketError::Open(error.into()))
}

/// Makes transactions and asks questions, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Transactions {
    socket: OwnedFd,
    /// By which the kernel knows this socket.
    port: u32,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Transactions {
    pub fn open() -> Result<Self, SocketError> {
        let socket = open(SockFlag::empty(), 0)?;
        let own: NetlinkAddr = socket::getsockname(socket.as_raw_fd())
            .map_err(|error| SocketError::Open(error.into()))?;
        Ok(Self {
            socket,
            port: own.pid(),
            sequence: 0,
            datagram: vec![0; DATAGRAM],
        })
    }

    pub fn port(&self) -> u32 {
        self.port
    }

    /// Carries out all of the requests, or none.
    pub fn commit(&mut self, requests: &[Request]) -> Result<(), SocketError> {
        if requests.is_empty() {
            return Ok(());
        }
        let first = self.sequence.wrapping_add(1);
        self.sequence = first
            .wrapping_add(u32::try_from(requests.len()).unwrap_or(u32::MAX)) // of the last request
            .wrapping_add(1); // and of the end
        let whole = || "change nf_tables".to_owned();
        self.send(&message::transaction(requests, first), whole)?;
        let mut acknowledged = false;
        for reply in self.waiting(whole)? {
            let Reply::Outcome { sequence, error } = reply else {
                continue;
            };
            let place = sequence.wrapping_sub(first);
            if place > self.sequence.wrapping_sub(first) {
                continue; // to an earlier transaction
            }
            if error == 0 {
                acknowledged = true;
                continue;
            }
            let about = usize::try_from(place)
                .ok()
                .and_then(|place| requests.get(place.checked_sub(1)?))
                .map_or_else(whole, |request| request.about.clone());
            return Err(SocketError::Refused {
                attempt: about,
                source: Errno::from_raw(error),
            });
        }
        if acknowledged {
            Ok(())
        } else {
            Err(SocketError::NoAnswer { attempt: whole() })
        }
    }

    /// The objects that the kernel tells of in answer to a question, as message bodies.
    pub fn ask(&mut self, request: &Request) -> Result<Vec<Vec<u8>>, SocketError> {
        for _ in 0..DUMP_TRIES {
            if let Some(bodies) = self.ask_once(request)? {
                return Ok(bodies);
            }
        }
        Err(SocketError::Refused {
            attempt: request.about.clone(),
            source: Errno::EINTR,
        })
    }

    /// None when a change cut the dump.
    fn ask_once(&mut self, request: &Request) -> Result<Option<Vec<Vec<u8>>>, SocketError> {
        self.sequence = self.sequence.wrapping_add(1);
        let asked = self.sequence;
        let about = || request.about.clone();
        self.send(&message::question(request, asked), about)?;
        let (mut bodies, mut cut) = (vec![], false);
        loop {
            let replies = self.waiting(about)?;
            if replies.is_empty() {
                return Err(SocketError::NoAnswer { attempt: about() });
            }
            for reply in replies {
                match reply {
                    Reply::Outcome { sequence, error } if sequence == asked && error != 0 => {
                        return Err(SocketError::Refused {
                            attempt: about(),
                            source: Errno::from_raw(error),
                        });
                    }
                    Reply::End {
                        sequence,
                        interrupted,
                    } if sequence == asked => {
                        return Ok((!cut && !interrupted).then_some(bodies));
                    }
                    Reply::Object {
                        family,
                        sequence,
                        interrupted,
                        body,
                        ..
                    } if sequence == asked => {
                        cut |= interrupted;
                        if family == NETDEV {
                            bodies.push(body);
                        }
                        if !message::asks_for_a_dump(request) {
                            return Ok(Some(bodies));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&self, octets: &[u8], about: impl Fn() -> String) -> Result<(), SocketError> {
        let kernel = NetlinkAddr::new(0, 0);
        loop {
            match socket::sendto(self.socket.as_raw_fd(), octets, &kernel, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(source) => {
                    return Err(SocketError::Refused {
                        attempt: about(),
                        source,
                    });
                }
            }
        }
    }

    /// What the kernel has answered so far. It answers within the call that sends; a dump goes on as it is read.
    fn waiting(&mut self, about: impl Fn() -> String) -> Result<Vec<Reply>, SocketError> {
        let mut replies = vec![];
        loop {
            let received = socket::recv(
                self.socket.as_raw_fd(),
                &mut self.datagram,
                MsgFlags::MSG_DONTWAIT,
            );
            match received {
                Ok(length) => {
                    replies.extend(message::replies_in(
                        self.datagram.get(..length).unwrap_or(&[]),
                    ));
                }
                Err(Errno::EAGAIN) => return Ok(replies),
                Err(Errno::EINTR) => {}
                Err(source) => {
                    return Err(SocketError::Refused {
                        attempt: about(),
                        source,
                    });
                }
            }
        }
    }
}

/// Hears of changes of one table by others than the socket with one port.
#[derive(Debug)]
pub struct TableWatch {
    socket: AsyncFd<OwnedFd>,
    datagram: Vec<u8>,
    table: &'static str,
    own_port: u32,
}

impl TableWatch {
    /// Must be called within a runtime.
    pub fn open(table: &'static str, own_port: u32) -> Result<Self, SocketError> {
        let socket = open(SockFlag::SOCK_NONBLOCK, CHANGES_GROUP)?;
        Ok(Self {
            socket: register(socket).map_err(SocketError::Open)?,
            datagram: vec![0; DATAGRAM],
            table,
            own_port,
        })
    }

    /// Returns when somebody changed the table, or may have. Dropping the future loses nothing but what it would have returned
    /// for the datagram it was reading; it reads and returns without waiting in between.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.socket.readable().await?;
            let received = guard.try_io(|socket| {
                let length = socket::recv(
                    socket.as_raw_fd(),
                    &mut self.datagram,
                    MsgFlags::MSG_DONTWAIT,
                )?;
                Ok(self
                    .datagram
                    .get(..length)
                    .map_or_else(Vec::new, message::replies_in))
            });
            match received {
                Ok(Ok(replies))
                    if replies
                        .iter()
                        .any(|r| is_foreign(r, self.table, self.own_port)) =>
                {
                    return Ok(());
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

fn is_foreign(reply: &Reply, table: &str, own_port: u32) -> bool {
    match reply {
        Reply::Object {
            family, by, body, ..
        } => {
            *family == NETDEV
                && *by != own_port
                && message::table_of(body).as_deref() == Some(table)
        }
        Reply::Outcome { .. } | Reply::End { .. } => false,
    }
}

#[expect(unsafe_code, reason = "the safe constructor is deprecated as unsound")]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and names the same descriptor for all its life, and the `AsyncFd` now owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}
