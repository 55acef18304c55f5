//! UDP sockets: opening them, and receiving and sending in batches.
//!
//! This is the one place in `dns` with unsafe code: recvmmsg(2), sendmmsg(2), sendmsg(2) and poll(2) take pointers to
//! buffers. Each call here builds its headers from buffers that it borrows for just as long as the call lasts.

#![allow(unsafe_code)]

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::{AsRawFd, RawFd},
    sync::Weak,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Messages taken from or given to the kernel at a time.
pub(super) const BATCH: usize = 32;
/// Longest query taken over UDP, in octets. Real ones are below 512.
pub(super) const LONGEST_QUERY: usize = 2048;
/// Octets that the kernel may hold for one socket until its worker comes for them.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Octets for one control message with a packet's own address: a header and an `in6_pktinfo`, rounded up.
const CONTROL: usize = 40;

/// Whether an address may be bound before the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// An address of this machine.
    Own,
    /// A VIP: it may come and go (IP_FREEBIND).
    Moving,
}

/// A bound UDP socket.
#[derive(Debug)]
pub(super) struct UdpPort {
    socket: UdpSocket,
    pub local: SocketAddr,
    /// Bound to all addresses: each packet says which one it came to.
    wildcard: bool,
}

impl UdpPort {
    /// Binds a socket that shares its address with others of this process.
    pub fn open(address: SocketAddr, presence: Presence) -> io::Result<Self> {
        let socket = unbound(address, Type::DGRAM, Protocol::UDP, presence)?;
        socket.set_reuse_port(true)?;
        // Room for a burst; the kernel gives what net.core.rmem_max allows, and less is no error.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        socket.bind(&address.into())?;
        let socket: UdpSocket = socket.into();
        let wildcard = address.ip().is_unspecified();
        if wildcard {
            match address {
                SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
                SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            }
        }
        let local = socket.local_addr()?;
        Ok(Self {
            socket,
            local,
            wildcard,
        })
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Fails if somebody else has the UDP address: a socket that shares it would be let in by a second process of the same
/// user, and the kernel would deal the queries out between the two.
pub(super) fn check_free(address: SocketAddr, presence: Presence) -> io::Result<()> {
    unbound(address, Type::DGRAM, Protocol::UDP, presence)?.bind(&address.into())
}

/// Binds a TCP socket and listens.
pub(super) fn listen(address: SocketAddr, presence: Presence) -> io::Result<std::net::TcpListener> {
    let socket = unbound(address, Type::STREAM, Protocol::TCP, presence)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn unbound(
    address: SocketAddr,
    kind: Type,
    protocol: Protocol,
    presence: Presence,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if presence == Presence::Moving {
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    Ok(socket)
}

/// Where a packet came from, and to which address, as the kernel wants it for the way back.
#[derive(Clone, Copy)]
struct Envelope {
    peer: libc::sockaddr_storage,
    peer_length: libc::socklen_t,
    control: [u64; CONTROL / 8],
    control_length: usize,
}

impl Envelope {
    fn empty() -> Self {
        // SAFETY: a sockaddr_storage is plain octets, for which zero is a value.
        let peer = unsafe { mem::zeroed() };
        Self {
            peer,
            peer_length: 0,
            control: [0; CONTROL / 8],
            control_length: 0,
        }
    }

    fn peer(&self) -> Option<SocketAddr> {
        let storage = (&raw const self.peer).cast::<u8>();
        // SAFETY: the family says which of the two shapes the storage, larger and better aligned than both, holds.
        unsafe {
            match i32::from(self.peer.ss_family) {
                libc::AF_INET => {
                    let v4 = storage.cast::<libc::sockaddr_in>().read();
                    let address = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                    Some(SocketAddrV4::new(address, u16::from_be(v4.sin_port)).into())
                }
                libc::AF_INET6 => {
                    let v6 = storage.cast::<libc::sockaddr_in6>().read();
                    let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                    let port = u16::from_be(v6.sin6_port);
                    Some(SocketAddrV6::new(address, port, 0, v6.sin6_scope_id).into())
                }
                _ => None,
            }
        }
    }

    /// Turns the control message that said where a packet came to into one that says where the reply is to leave from.
    ///
    /// The two have one shape. The interface is taken out, so that the route decides (ip(7), IP_PKTINFO; RFC 3542 section
    /// 6.2); but for a link-local address, which means nothing without it.
    fn turn_around(&mut self) {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        let data = self.control_length.saturating_sub(HEADER);
        // SAFETY: the control buffer is longer than the header and either pktinfo together, and unaligned access asks no more.
        unsafe {
            let info = (&raw mut self.control).cast::<u8>().add(HEADER);
            match i32::from(self.peer.ss_family) {
                libc::AF_INET if data >= size_of::<libc::in_pktinfo>() => {
                    let mut packet = info.cast::<libc::in_pktinfo>().read_unaligned();
                    packet.ipi_ifindex = 0;
                    packet.ipi_spec_dst = packet.ipi_addr;
                    info.cast::<libc::in_pktinfo>().write_unaligned(packet);
                }
                libc::AF_INET6 if data >= size_of::<libc::in6_pktinfo>() => {
                    let mut packet = info.cast::<libc::in6_pktinfo>().read_unaligned();
                    let own = Ipv6Addr::from(packet.ipi6_addr.s6_addr);
                    if !own.is_unicast_link_local() {
                        packet.ipi6_ifindex = 0;
                    }
                    info.cast::<libc::in6_pktinfo>().write_unaligned(packet);
                }
                _ => {}
            }
        }
    }

    fn header(&mut self, io: &mut libc::iovec, way: Way, wildcard: bool) -> libc::msghdr {
        // SAFETY: a msghdr is pointers and numbers, for which zero is a value.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_name = (&raw mut self.peer).cast();
        header.msg_namelen = match way {
            Way::In => size_of::<libc::sockaddr_storage>() as libc::socklen_t,
            Way::Out => self.peer_length,
        };
        header.msg_iov = io;
        header.msg_iovlen = 1;
        let control = match way {
            Way::In => CONTROL,
            Way::Out => self.control_length,
        };
        if wildcard && control > 0 {
            header.msg_control = (&raw mut self.control).cast();
            header.msg_controllen = control;
        }
        header
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// Buffers for messages that come together and whose replies go together.
pub(super) struct Batch {
    inputs: Box<[[u8; LONGEST_QUERY]; BATCH]>,
    lengths: [usize; BATCH],
    too_long: [bool; BATCH],
    envelopes: [Envelope; BATCH],
    /// The reply to each message; empty for none.
    pub replies: [Vec<u8>; BATCH],
}

impl Batch {
    pub fn new() -> Self {
        Self {
            inputs: Box::new([[0; LONGEST_QUERY]; BATCH]),
            lengths: [0; BATCH],
            too_long: [false; BATCH],
            envelopes: [Envelope::empty(); BATCH],
            replies: std::array::from_fn(|_| Vec::with_capacity(1500)),
        }
    }

    /// Takes what waits at `port`, at most `BATCH` messages, without blocking; says how many.
    pub fn receive(&mut self, port: &UdpPort) -> io::Result<usize> {
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|at| libc::iovec {
            iov_base: self.inputs[at].as_mut_ptr().cast(),
            iov_len: LONGEST_QUERY,
        });
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|at| libc::mmsghdr {
            msg_hdr: self.envelopes[at].header(&mut vectors[at], Way::In, port.wildcard),
            msg_len: 0,
        });
        // SAFETY: every header points at buffers of `self` and at `vectors`, which outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                port.fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (at, header) in headers.iter().enumerate().take(count) {
            self.lengths[at] = (header.msg_len as usize).min(LONGEST_QUERY);
            self.too_long[at] = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let envelope = &mut self.envelopes[at];
            envelope.peer_length = header.msg_hdr.msg_namelen;
            envelope.control_length = header.msg_hdr.msg_controllen;
            envelope.turn_around();
            self.replies[at].clear();
        }
        Ok(count)
    }

    /// Message `at` of the last `receive`; none when it was longer than `LONGEST_QUERY`.
    pub fn message(&self, at: usize) -> Option<&[u8]> {
        (!self.too_long[at]).then(|| &self.inputs[at][..self.lengths[at]])
    }

    /// Message `at` and the buffer for its reply.
    pub fn pair(&mut self, at: usize) -> (&[u8], &mut Vec<u8>) {
        (&self.inputs[at][..self.lengths[at]], &mut self.replies[at])
    }

    pub fn peer(&self, at: usize) -> Option<SocketAddr> {
        self.envelopes[at].peer()
    }

    /// The way back to the sender of message `at`, for a reply that is not ready yet.
    pub fn way_back(&self, at: usize, port: Weak<UdpPort>) -> WayBack {
        WayBack {
            port,
            envelope: self.envelopes[at],
        }
    }

    /// Sends the replies to the first `count` messages. Says how many the kernel did not take: they are lost, as packets
    /// may be.
    pub fn send(&mut self, port: &UdpPort, count: usize) -> usize {
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|at| libc::iovec {
            iov_base: self.replies[at].as_mut_ptr().cast(),
            iov_len: self.replies[at].len(),
        });
        // SAFETY: an mmsghdr is pointers and numbers, for which zero is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut ready = 0;
        for (vector, envelope) in vectors.iter_mut().zip(&mut self.envelopes).take(count) {
            if vector.iov_len > 0 {
                headers[ready].msg_hdr = envelope.header(vector, Way::Out, port.wildcard);
                ready += 1;
            }
        }
        let (mut sent, mut lost) = (0, 0);
        while sent + lost < ready {
            let rest = &mut headers[sent + lost..ready];
            // SAFETY: the headers point at buffers of `self` and at `vectors`, which outlive the call.
            let taken = unsafe {
                libc::sendmmsg(
                    port.fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => sent += taken,
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                // The error is of the first message; the ones behind it may still go.
                _ => lost += 1,
            }
        }
        lost
    }
}

/// The way back to a client whose reply takes its time. It does not keep the socket open.
pub(super) struct WayBack {
    port: Weak<UdpPort>,
    envelope: Envelope,
}

impl WayBack {
    /// Sends the reply from the address that was asked.
    pub fn send(mut self, reply: &mut [u8]) -> io::Result<()> {
        let Some(port) = self.port.upgrade() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let mut vector = libc::iovec {
            iov_base: reply.as_mut_ptr().cast(),
            iov_len: reply.len(),
        };
        let header = self.envelope.header(&mut vector, Way::Out, port.wildcard);
        // SAFETY: the header points at `reply`, `vector` and the envelope, which outlive the call.
        let sent = unsafe { libc::sendmsg(port.fd(), &raw const header, libc::MSG_DONTWAIT) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Waits until one of `fds` can be read, or `timeout_ms` is over. Each one's `revents` tells.
pub(super) fn wait_readable(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length are of one slice.
    let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    if count < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

/// What `wait_readable` is to watch of `fd`.
pub(super) fn watched(fd: RawFd) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}

/// The unspecified address of the family of `address`.
pub(super) fn unspecified(address: SocketAddr) -> IpAddr {
    match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: usize = size_of::<libc::cmsghdr>();

    /// The pktinfo that is left of one that a packet came with.
    fn turned<T>(family: i32, info: T) -> T {
        let mut envelope = Envelope::empty();
        envelope.peer.ss_family = family as libc::sa_family_t;
        envelope.control_length = HEADER + size_of::<T>();
        assert!(envelope.control_length <= CONTROL);
        let at = (&raw mut envelope.control).cast::<u8>();
        // SAFETY: the control buffer has room for the header and the pktinfo, as was just checked.
        unsafe {
            at.add(HEADER).cast::<T>().write_unaligned(info);
            envelope.turn_around();
            at.add(HEADER).cast::<T>().read_unaligned()
        }
    }

    #[test]
    fn the_route_chooses_the_interface_but_for_link_local_addresses() {
        for (own, interface) in [
            ("2001:db8::1", 0),
            ("fd00::1", 0),
            ("::1", 0),
            ("fe80::1", 7),
            ("febf::1", 7),
        ] {
            let address = own.parse::<Ipv6Addr>().expect("an address").octets();
            let came = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address },
                ipi6_ifindex: 7,
            };
            let left = turned(libc::AF_INET6, came);
            assert_eq!(left.ipi6_addr.s6_addr, address, "{own}");
            assert_eq!(left.ipi6_ifindex, interface, "{own}");
        }
        let came = libc::in_pktinfo {
            ipi_ifindex: 7,
            ipi_spec_dst: libc::in_addr { s_addr: 1 },
            ipi_addr: libc::in_addr { s_addr: 2 },
        };
        let left = turned(libc::AF_INET, came);
        assert_eq!((left.ipi_ifindex, left.ipi_spec_dst.s_addr), (0, 2));
    }
}
