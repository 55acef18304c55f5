//! Frames that ask who has an address: ARP (RFC 826) and neighbour discovery (RFC 4861 section 7), and how to read them.
//!
//! Each question carries a slot number in its sender's address, which the answer repeats as its target: that tells which
//! question an answer belongs to, with many under way.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::lab::{LabError, namespace::Namespace, network};

/// An Ethernet address.
pub type Mac = [u8; 6];
/// Questions that can be told apart: at one in 5 ms, those of 80 ms.
pub const SLOTS: u8 = 16;
/// The last octet of the sender's address of slot 0.
const FIRST_SENDER: u8 = 224;

const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICIT: u8 = 135;
const ADVERTISE: u8 = 136;

/// The address that asks in a slot.
pub fn sender4(slot: u8) -> Ipv4Addr {
    network::ipv4(FIRST_SENDER + slot % SLOTS)
}

/// The IPv6 address that asks in a slot.
pub fn sender6(slot: u8) -> Ipv6Addr {
    network::ipv6(FIRST_SENDER + slot % SLOTS)
}

/// `aa:bb:cc:dd:ee:ff` as octets.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let octets: Vec<u8> = text
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16).ok())
        .collect::<Option<_>>()?;
    octets.try_into().ok()
}

/// Octets as `aa:bb:cc:dd:ee:ff`.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

fn arp(operation: u8, mac: Mac, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &mac, &ARP].concat();
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [
        &ethernet[..],
        &head,
        &mac,
        &from.octets(),
        &[0; 6],
        &to.octets(),
    ]
    .concat()
}

/// "Who has `vip`?", asked by a slot's sender.
pub fn question4(mac: Mac, slot: u8, vip: Ipv4Addr) -> Vec<u8> {
    arp(1, mac, sender4(slot), vip)
}

/// "I have `vip`", to everybody (a gratuitous request).
pub fn announcement(mac: Mac, vip: Ipv4Addr) -> Vec<u8> {
    arp(1, mac, vip, vip)
}

/// The same question for IPv6: a neighbour solicitation with the asker's link-layer address.
pub fn question6(mac: Mac, slot: u8, vip: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = vip.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    );
    let source = sender6(slot);
    let mut message = [
        &[SOLICIT, 0, 0, 0, 0, 0, 0, 0][..],
        &vip.octets(),
        &[1, 1],
        &mac,
    ]
    .concat();
    let sum = checksum(source, group, &message);
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    let ethernet = [&[0x33, 0x33, 0xff, a, b, c][..], &mac, &IPV6].concat();
    let length = (message.len() as u16).to_be_bytes(); // 32
    let head = [&[0x60, 0, 0, 0][..], &length, &[ICMPV6, 255]].concat();
    [
        &ethernet[..],
        &head,
        &source.octets(),
        &group.octets(),
        &message,
    ]
    .concat()
}

/// RFC 4443 section 2.3.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [
        &source.octets()[..],
        &destination.octets(),
        &length,
        &[0, 0, 0, ICMPV6],
        message,
    ]
    .concat();
    let words = pseudo.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What a frame has to do with a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A slot asks for the VIP.
    Asks { is_six: bool, slot: u8 },
    /// A slot is told who has the VIP.
    Answers { is_six: bool, slot: u8 },
    /// A client's DNS query, or TCP SYN, to the IPv4 VIP.
    Request(Flow),
    /// The answer to it.
    Reply(Flow),
}

/// Tells one request from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub is_tcp: bool,
    pub client: Ipv4Addr,
    pub port: u16,
    /// The DNS message's id; 0 for TCP.
    pub id: u16,
}

/// A frame: whom it is from and to, and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub to: Mac,
    pub from: Mac,
    pub told: Told,
}

/// Reads a frame; none if it has nothing to do with these VIPs.
pub fn read(frame: &[u8], vip4: Ipv4Addr, vip6: Ipv6Addr) -> Option<Frame> {
    let to = octets(frame, 0)?;
    let from = octets(frame, 6)?;
    let told = match octets(frame, 12)? {
        ARP => read_arp(frame.get(14..)?, vip4),
        IPV4 => read_ip(frame.get(14..)?, vip4),
        IPV6 => read_nd(frame.get(14..)?, vip6),
        _ => None,
    }?;
    Some(Frame { to, from, told })
}

fn octets<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..)?.first_chunk().copied()
}

fn number(frame: &[u8], at: usize) -> Option<u16> {
    octets(frame, at).map(u16::from_be_bytes)
}

fn slot4(address: [u8; 4]) -> Option<u8> {
    (0..SLOTS).find(|slot| sender4(*slot).octets() == address)
}

fn read_arp(packet: &[u8], vip: Ipv4Addr) -> Option<Told> {
    let sender: [u8; 4] = octets(packet, 14)?;
    let target: [u8; 4] = octets(packet, 24)?;
    let is_six = false;
    match number(packet, 6)? {
        1 if target == vip.octets() => slot4(sender).map(|slot| Told::Asks { is_six, slot }),
        2 if sender == vip.octets() => slot4(target).map(|slot| Told::Answers { is_six, slot }),
        _ => None,
    }
}

fn read_nd(packet: &[u8], vip: Ipv6Addr) -> Option<Told> {
    let slot6 = |address: [u8; 16]| (0..SLOTS).find(|slot| sender6(*slot).octets() == address);
    let next: [u8; 1] = octets(packet, 6)?;
    let kind: [u8; 1] = octets(packet, 40)?;
    let target: [u8; 16] = octets(packet, 48)?;
    let is_six = true;
    match (next, kind) {
        _ if target != vip.octets() => None,
        ([ICMPV6], [SOLICIT]) => slot6(octets(packet, 8)?).map(|slot| Told::Asks { is_six, slot }),
        ([ICMPV6], [ADVERTISE]) => {
            slot6(octets(packet, 24)?).map(|slot| Told::Answers { is_six, slot })
        }
        _ => None,
    }
}

fn read_ip(packet: &[u8], vip: Ipv4Addr) -> Option<Told> {
    let [first] = octets(packet, 0)?;
    let [protocol] = octets(packet, 9)?;
    let source: [u8; 4] = octets(packet, 12)?;
    let destination: [u8; 4] = octets(packet, 16)?;
    let payload = packet.get(usize::from(first & 0x0f) * 4..)?;
    let (from_port, to_port) = (number(payload, 0)?, number(payload, 2)?);
    let is_request = destination == vip.octets();
    if !is_request && source != vip.octets() {
        return None;
    }
    let (client, port) = match is_request {
        true => (source.into(), from_port),
        false => (destination.into(), to_port),
    };
    let id = match protocol {
        17 if from_port == 53 || to_port == 53 => number(payload, 8)?,
        6 => {
            let [flags] = octets(payload, 13)?;
            let expected = if is_request { 0x02 } else { 0x12 };
            (flags & 0x17 == expected).then_some(0)?
        }
        _ => return None,
    };
    let is_tcp = protocol == 6;
    let flow = Flow {
        is_tcp,
        client,
        port,
        id,
    };
    Some(match is_request {
        true => Told::Request(flow),
        false => Told::Reply(flow),
    })
}

/// A socket for frames of a device on a host.
pub fn packet_socket(host: &Namespace) -> Result<OwnedFd, LabError> {
    let open = || {
        socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
    };
    host.enter(open)?.map_err(|error| LabError::Enter {
        namespace: host.name().to_owned(),
        source: error.into(),
    })
}

/// The number of a device on a host.
pub fn device_index(host: &Namespace, device: &str) -> Result<u32, LabError> {
    host.enter(|| nix::net::if_::if_nametoindex(device))?
        .map_err(|error| LabError::Enter {
            namespace: host.name().to_owned(),
            source: error.into(),
        })
}

/// Sends one frame from a host's device.
pub fn send(host: &Namespace, device: &str, frame: &[u8]) -> Result<(), LabError> {
    let socket = packet_socket(host)?;
    send_on(&socket, device_index(host, device)?, frame).map_err(|source| LabError::Enter {
        namespace: host.name().to_owned(),
        source,
    })
}

/// Sends one frame from the device with this number.
pub fn send_on(socket: &OwnedFd, device: u32, frame: &[u8]) -> std::io::Result<()> {
    send_to(socket, &packet_address(device, 0), frame)
}

/// The address of a device in the packet family; `protocol` in the order of the network.
pub fn packet_address(device: u32, protocol: u16) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: i32::try_from(device).unwrap_or(0),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    }
}

/// Sends one frame to an address of the packet family.
pub fn send_to(socket: &OwnedFd, address: &libc::sockaddr_ll, frame: &[u8]) -> std::io::Result<()> {
    #[expect(unsafe_code, reason = "nix sends to no packet address")]
    // SAFETY: frame and address outlive the call and are as long as stated.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const *address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    match sent {
        ..0 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];
    const HOLDER: Mac = [2, 0, 0, 0, 0, 1];

    fn vips() -> (Ipv4Addr, Ipv6Addr) {
        (network::ipv4(100), network::ipv6(100))
    }

    fn told(frame: &[u8]) -> Option<Told> {
        let (vip4, vip6) = vips();
        read(frame, vip4, vip6).map(|frame| frame.told)
    }

    #[test]
    fn questions_are_read_back_with_their_slots() {
        let (vip4, vip6) = vips();
        for slot in 0..SLOTS {
            let asks = |is_six| Some(Told::Asks { is_six, slot });
            assert_eq!(told(&question4(MAC, slot, vip4)), asks(false));
            assert_eq!(told(&question6(MAC, slot, vip6)), asks(true));
        }
        assert_eq!(told(&question4(MAC, 0, network::ipv4(11))), None);
        assert_eq!(told(&announcement(MAC, vip4)), None, "no slot asked");
        for length in 0..42 {
            assert_eq!(told(&question4(MAC, 0, vip4)[..length]), None);
        }
    }

    #[test]
    fn an_answer_repeats_the_slot() {
        let (vip4, _) = vips();
        let mut answer = arp(2, HOLDER, vip4, sender4(5));
        assert_eq!(
            told(&answer),
            Some(Told::Answers {
                is_six: false,
                slot: 5
            })
        );
        answer[21] = 1; // a request
        assert_eq!(told(&answer), None);
    }

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        // A message with its own sum in place adds up to zero.
        let (_, vip6) = vips();
        let frame = question6(MAC, 3, vip6);
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x64);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0, 0, 0x64]);
        assert_eq!(checksum(sender6(3), group, &frame[54..]), 0);
    }

    fn ip(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let mut head = vec![0x45; 20];
        head[9] = protocol;
        head[12..16].copy_from_slice(&from.octets());
        head[16..20].copy_from_slice(&to.octets());
        [&HOLDER[..], &MAC, &IPV4, &head, payload].concat()
    }

    #[test]
    fn queries_and_connections_are_told_apart() {
        let (vip, _) = vips();
        let client = network::ipv4(200);
        let query = [0x30, 0x39, 0, 53, 0, 0, 0, 0, 0xab, 0xcd];
        let flow = Flow {
            is_tcp: false,
            client,
            port: 12345,
            id: 0xabcd,
        };
        assert_eq!(
            told(&ip(17, client, vip, &query)),
            Some(Told::Request(flow))
        );
        let answer = [0, 53, 0x30, 0x39, 0, 0, 0, 0, 0xab, 0xcd];
        assert_eq!(told(&ip(17, vip, client, &answer)), Some(Told::Reply(flow)));
        let segment = |from: u16, to: u16, flags: u8| {
            let mut text = [from.to_be_bytes(), to.to_be_bytes()].concat();
            text.resize(20, 0);
            text[13] = flags;
            text
        };
        let flow = Flow {
            is_tcp: true,
            id: 0,
            ..flow
        };
        assert_eq!(
            told(&ip(6, client, vip, &segment(12345, 7, 0x02))),
            Some(Told::Request(flow))
        );
        assert_eq!(
            told(&ip(6, vip, client, &segment(7, 12345, 0x12))),
            Some(Told::Reply(flow))
        );
        assert_eq!(
            told(&ip(6, vip, client, &segment(7, 12345, 0x10))),
            None,
            "later segments"
        );
        assert_eq!(told(&ip(17, client, network::ipv4(11), &query)), None);
    }

    #[test]
    fn addresses_of_hardware_are_read() {
        assert_eq!(parse_mac("02:00:00:00:00:07"), Some(MAC));
        assert_eq!(mac_text(MAC), "02:00:00:00:00:07");
        for bad in ["", "02:00", "02:00:00:00:00:0g", "02:00:00:00:00:07:08"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
