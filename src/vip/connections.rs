//! The TCP connections that this host has at an address, as the kernel lists them.
//!
//! It is asked for these alone (`sock_diag`). Its list of all, as text, takes about a microsecond for each connection of the host,
//! and a busy one has a hundred thousand that have ended and wait for a minute: permissions would lapse meanwhile. That list is
//! read only where the kernel does not know the question.

mod list;
pub mod looks;
mod question;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType},
};

use question::{Answer, Family, MOST_ADDRESSES};

/// No datagram of a dump is larger.
const DATAGRAM: usize = 1 << 16;

/// Client and own end.
pub type Connection = (SocketAddr, SocketAddr);

/// Every connection at one of `addresses`: of those that a packet may still belong to. Those of the network
/// namespace of this thread. `between` is called between two walks of the kernel through its table.
///
/// # Errors
/// When the kernel does not tell.
pub fn at(addresses: &BTreeSet<IpAddr>, between: impl FnMut()) -> io::Result<Vec<Connection>> {
    if addresses.is_empty() {
        return Ok(vec![]);
    }
    match ask(addresses, between) {
        Err(Errno::ENOENT | Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL) => {
            list::at(addresses)
        }
        answered => Ok(answered?),
    }
}

fn ask(addresses: &BTreeSet<IpAddr>, mut between: impl FnMut()) -> Result<Vec<Connection>, Errno> {
    let addresses: Vec<IpAddr> = addresses.iter().copied().collect();
    let socket = open()?;
    let (mut found, mut sequence) = (vec![], 0);
    for chunk in addresses.chunks(MOST_ADDRESSES) {
        // One at an IPv4 address may be that of an IPv6 socket.
        for family in [Family::V4, Family::V6] {
            if sequence > 0 {
                between();
            }
            sequence += 1;
            send(&socket, &question::about(family, chunk, sequence))?;
            receive(&socket, sequence, &mut found)?;
        }
    }
    Ok(found)
}

fn open() -> Result<OwnedFd, Errno> {
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

fn send(socket: &OwnedFd, octets: &[u8]) -> Result<(), Errno> {
    let kernel = NetlinkAddr::new(0, 0);
    loop {
        match socket::sendto(socket.as_raw_fd(), octets, &kernel, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            sent => return sent.map(drop),
        }
    }
}

/// Reads to the end of a dump, which goes on as it is read: the kernel never keeps anybody waiting.
fn receive(socket: &OwnedFd, sequence: u32, found: &mut Vec<Connection>) -> Result<(), Errno> {
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let length = match socket::recv(socket.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        };
        for answer in question::answers_in(datagram.get(..length).unwrap_or(&[]), sequence) {
            match answer {
                Answer::Connection { client, own } => found.push((client, own)),
                Answer::Failed(errno) => return Err(Errno::from_raw(errno)),
                Answer::End => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    type Kept = (TcpListener, TcpStream, TcpStream);

    /// A connection of this process at a loopback address of its own: its ends, and what keeps it, the server's first.
    fn connection(listen_on: &str, at: &str) -> ((SocketAddr, SocketAddr), Kept) {
        let listener = TcpListener::bind((listen_on, 0)).unwrap();
        let own = SocketAddr::new(at.parse().unwrap(), listener.local_addr().unwrap().port());
        let client = TcpStream::connect(own).unwrap();
        let ends = (client.local_addr().unwrap(), own);
        let accepted = listener.accept().unwrap().0;
        (ends, (listener, accepted, client))
    }

    #[test]
    fn connections_at_these_addresses_are_found_and_no_others() {
        let (first, _first) = connection("127.0.53.61", "127.0.53.61");
        // Of an IPv6 socket.
        let (second, _second) = connection("::", "127.0.53.62");
        let (third, _third) = connection("::1", "::1");
        let (other, _other) = connection("127.0.53.63", "127.0.53.63");
        let asked: BTreeSet<IpAddr> = [first.1.ip(), second.1.ip(), third.1.ip()].into();
        for found in [Ok(ask(&asked, || {}).unwrap()), list::at(&asked)] {
            let found = found.unwrap();
            assert!([first, second, third].iter().all(|one| found.contains(one)));
            assert!(!found.contains(&other));
            assert!(found.iter().all(|(_, own)| asked.contains(&own.ip())));
            // Neither the listeners nor the clients' ends.
            assert_eq!(found.iter().filter(|(_, own)| *own == first.1).count(), 1);
        }
    }

    #[test]
    fn a_connection_that_waits_for_its_end_is_none() {
        let (ends, kept) = connection("127.0.53.64", "127.0.53.64");
        let asked = [ends.1.ip()].into();
        assert_eq!(at(&asked, || {}).unwrap(), [ends]);
        drop(kept); // the server's end is closed first, and waits
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !at(&asked, || {}).unwrap().is_empty() {
            assert!(std::time::Instant::now() < deadline, "it is still listed");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    #[test]
    fn many_addresses_are_asked_for() {
        let (ends, _kept) = connection("127.0.53.65", "127.0.53.65");
        let mut asked: BTreeSet<IpAddr> = (0..=u8::MAX)
            .flat_map(|high| (0..4).map(move |low| IpAddr::from([10, 99, low, high])))
            .collect();
        asked.extend((0..600u16).map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])));
        asked.insert(ends.1.ip());
        assert_eq!(ask(&asked, || {}).unwrap(), [ends]);
    }

    #[test]
    fn nothing_is_asked_for_without_an_address() {
        assert_eq!(at(&BTreeSet::new(), || {}).unwrap(), []);
    }
}
