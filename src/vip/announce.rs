//! Tells the neighbours where a VIP is now: gratuitous ARP for IPv4, unsolicited neighbour advertisements for IPv6.
//!
//! Building a frame is pure; `Announcer` owns one packet socket that receives nothing and sends what it is given. It does not decide whether to
//! send: the driver asks the machine right before each frame.

use std::{
    io,
    mem::{MaybeUninit, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const BROADCAST: Mac = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1]; // RFC 2464 section 7
const ICMPV6: u8 = 58;

/// The frame that announces `vip` at `mac`.
pub fn announcement(vip: IpAddr, mac: Mac) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => gratuitous_arp(vip, mac),
        IpAddr::V6(vip) => unsolicited_advertisement(vip, mac),
    }
}

/// A gratuitous ARP request: sender and target protocol address are both the VIP (RFC 5227 section 3: an ARP announcement).
///
/// The request form, because some hosts take no unasked replies. The target hardware address is zero, as RFC 5227 asks.
pub fn gratuitous_arp(vip: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut frame = ethernet_header(BROADCAST, mac, ETHERTYPE_ARP);
    frame.extend_from_slice(&1u16.to_be_bytes()); // hardware: Ethernet
    frame.extend_from_slice(&0x0800u16.to_be_bytes()); // protocol: IPv4
    frame.extend_from_slice(&[6, 4]); // address lengths
    frame.extend_from_slice(&1u16.to_be_bytes()); // request
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&vip.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&vip.octets());
    frame.resize(60, 0); // smallest Ethernet frame without its check sequence
    frame
}

/// An unsolicited neighbour advertisement to all nodes, from and for the VIP, with the override flag and the link-layer address
/// (RFC 4861 sections 4.4 and 7.2.6).
pub fn unsolicited_advertisement(vip: Ipv6Addr, mac: Mac) -> Vec<u8> {
    const OVERRIDE: u32 = 1 << 29;
    let mut body = vec![136, 0, 0, 0]; // type, code, checksum
    body.extend_from_slice(&OVERRIDE.to_be_bytes());
    body.extend_from_slice(&vip.octets());
    body.extend_from_slice(&[2, 1]); // option: target link-layer address, one unit of eight octets
    body.extend_from_slice(&mac);
    let checksum = icmpv6_checksum(vip, ALL_NODES, &body);
    body[2..4].copy_from_slice(&checksum.to_be_bytes());

    let length = u16::try_from(body.len()).expect("an advertisement has 32 octets");
    let mut frame = ethernet_header(ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&[ICMPV6, 255]); // hop limit: proves to the receiver that no router passed it on
    frame.extend_from_slice(&vip.octets());
    frame.extend_from_slice(&ALL_NODES.octets());
    frame.extend_from_slice(&body);
    frame
}

pub(super) fn ethernet_header(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&from);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

/// The checksum over pseudo-header and body (RFC 4443 section 2.3, RFC 8200 section 8.1).
pub(super) fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut pseudo = Vec::with_capacity(40 + body.len());
    pseudo.extend_from_slice(&from.octets());
    pseudo.extend_from_slice(&to.octets());
    pseudo.extend_from_slice(&length.to_be_bytes());
    pseudo.extend_from_slice(&[0, 0, 0, ICMPV6]);
    pseudo.extend_from_slice(body);
    !ones_complement_sum(&pseudo)
}

fn ones_complement_sum(octets: &[u8]) -> u16 {
    let sum: u32 = octets
        .chunks(2)
        .map(|pair| {
            let low = pair.get(1).copied().unwrap_or(0);
            u32::from(u16::from_be_bytes([pair[0], low]))
        })
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).expect("two folds leave 16 bits")
}

/// Sends frames as they are. Needs CAP_NET_RAW.
#[derive(Debug)]
pub struct Announcer {
    socket: Socket,
}

impl Announcer {
    /// A packet socket of protocol 0: the kernel hands it nothing to receive.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// Sends on the device with this index. A full queue loses the frame with an error; the next announcement follows soon.
    pub fn send(&self, frame: &[u8], device_index: u32) -> io::Result<()> {
        let sent = self
            .socket
            .send_to(frame, &link_layer_address(device_index, frame))?;
        if sent == frame.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

/// Where to send: only the device's index counts for a raw packet socket, see packet(7).
#[expect(unsafe_code, reason = "no safe constructor of a packet address exists")]
fn link_layer_address(device_index: u32, frame: &[u8]) -> SockAddr {
    let mut to: libc::sockaddr_ll =
        // SAFETY: sockaddr_ll is plain integers and arrays of them; all zero is a value of it.
        unsafe { MaybeUninit::zeroed().assume_init() };
    to.sll_family = u16::try_from(libc::AF_PACKET).expect("AF_PACKET is 17");
    to.sll_ifindex = i32::try_from(device_index).unwrap_or(0);
    to.sll_halen = 6;
    for (slot, octet) in to.sll_addr.iter_mut().zip(frame.iter().take(6)) {
        *slot = *octet;
    }
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the socket addresses that a storage has room and alignment for, and `length` is its size.
    unsafe {
        *storage.view_as::<libc::sockaddr_ll>() = to;
        let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())
            .expect("a socket address is a few octets");
        SockAddr::new(storage, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x02, 0, 0, 0xaa, 0xbb, 0xcc];

    #[test]
    fn gratuitous_arp_is_a_request_for_itself() {
        let frame = gratuitous_arp(Ipv4Addr::new(10, 77, 0, 100), MAC);
        let expected = [
            &[0xff; 6][..],
            &MAC,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &MAC,
            &[10, 77, 0, 100, 0, 0, 0, 0, 0, 0, 10, 77, 0, 100],
            &[0; 18],
        ]
        .concat();
        assert_eq!(frame, expected);
    }

    #[test]
    fn advertisement_overrides_and_sums_up() {
        let vip: Ipv6Addr = "fd77::100".parse().unwrap();
        let frame = unsolicited_advertisement(vip, MAC);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[..6], ALL_NODES_MAC);
        assert_eq!(frame[12..14], [0x86, 0xdd]);
        assert_eq!(frame[18..22], [0, 32, 58, 255]);
        assert_eq!(frame[22..38], vip.octets());
        let body = &frame[54..];
        assert_eq!(body[..2], [136, 0]);
        assert_eq!(
            body[4..8],
            [0x20, 0, 0, 0],
            "override, not solicited, no router"
        );
        assert_eq!(body[8..24], vip.octets());
        assert_eq!(body[24..], [&[2, 1][..], &MAC].concat());
        // A receiver sums over the checksum too and must find all ones.
        assert_eq!(icmpv6_checksum(vip, ALL_NODES, body), 0);
    }

    #[test]
    fn checksum_folds_twice_and_pads() {
        assert_eq!(ones_complement_sum(&[0xff, 0xff, 0xff, 0xff]), 0xffff);
        assert_eq!(ones_complement_sum(&[0x01]), 0x0100);
        assert_eq!(ones_complement_sum(&[]), 0);
        // The example of RFC 1071 section 3.
        let octets = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(ones_complement_sum(&octets), 0xddf2);
    }
}
