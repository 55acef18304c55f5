//! The question for TCP connections at some addresses, as octets, and the answers. Pure: no socket.
//!
//! Numbers are those of `linux/inet_diag.h`. Ports and addresses are big-endian, the rest is native.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::vip::netlink::{HEADER, messages_in};

/// Addresses in one question: a program for the kernel, in which a jump goes over at most 64 KiB.
pub const MOST_ADDRESSES: usize = 1000;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const BY_FAMILY: u16 = 20;
const REQUEST_A_DUMP: u16 = 0x301;
const TCP: u8 = 6;
/// Neither listening nor closed: TIME_WAIT answers by itself, and its connection has ended.
const ALIVE: u32 = 0x1ffe & !(1 << TIME_WAIT) & !(1 << CLOSE) & !(1 << LISTEN);
const TIME_WAIT: u32 = 6;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;
/// Source and destination port and address, device and cookie.
const ENDS: usize = 48;
const BYTECODE: u16 = 1;
const JUMP: u8 = 1;
/// The own end is at an address.
const OWN_END: u8 = 7;
const ANY_PORT: i32 = -1;

/// Whose sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4 = 2,
    V6 = 10,
}

/// What the kernel answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Connection {
        client: SocketAddr,
        own: SocketAddr,
    },
    /// It does not tell, for this error number.
    Failed(i32),
    End,
}

/// The question for connections at `addresses`, at most `MOST_ADDRESSES` of them.
pub fn about(family: Family, addresses: &[IpAddr], sequence: u32) -> Vec<u8> {
    let program = program(addresses);
    let mut body = vec![family as u8, TCP, 0, 0];
    body.extend_from_slice(&ALIVE.to_ne_bytes());
    body.resize(body.len() + ENDS, 0);
    body.extend_from_slice(&short(4 + program.len()).to_ne_bytes());
    body.extend_from_slice(&BYTECODE.to_ne_bytes());
    body.extend_from_slice(&program);
    let length = u32::from(short(HEADER + body.len()));
    let mut octets = vec![];
    octets.extend_from_slice(&length.to_ne_bytes());
    octets.extend_from_slice(&BY_FAMILY.to_ne_bytes());
    octets.extend_from_slice(&REQUEST_A_DUMP.to_ne_bytes());
    octets.extend_from_slice(&sequence.to_ne_bytes());
    octets.extend_from_slice(&0u32.to_ne_bytes());
    octets.extend_from_slice(&body);
    octets
}

/// A program that ends at its end for what is wanted, and beyond it for the rest: condition, jump to the end, condition, jump ...
fn program(addresses: &[IpAddr]) -> Vec<u8> {
    const JUMP_LENGTH: usize = 4;
    let conditions: Vec<Vec<u8>> = addresses
        .iter()
        .map(|address| condition(*address))
        .collect();
    let conditions_length: usize = conditions.iter().map(Vec::len).sum();
    let whole = conditions_length + JUMP_LENGTH * conditions.len().saturating_sub(1);
    let mut program = vec![];
    for condition in conditions {
        program.extend(condition);
        if program.len() < whole {
            let to_the_end = short(whole - program.len());
            program.extend_from_slice(&[JUMP, 4]);
            program.extend_from_slice(&to_the_end.to_ne_bytes());
        }
    }
    program
}

/// Goes on right behind itself if the own end is at the address, else behind the jump that follows.
fn condition(address: IpAddr) -> Vec<u8> {
    let (family, octets) = match address {
        IpAddr::V4(v4) => (Family::V4, v4.octets().to_vec()),
        IpAddr::V6(v6) => (Family::V6, v6.octets().to_vec()),
    };
    let (length, bits) = (12 + octets.len(), octets.len() * 8);
    let narrow = |number: usize| u8::try_from(number).expect("an address has 16 octets at most");
    let mut condition = vec![OWN_END, narrow(length)];
    condition.extend_from_slice(&short(length + 4).to_ne_bytes());
    condition.extend_from_slice(&[family as u8, narrow(bits), 0, 0]);
    condition.extend_from_slice(&ANY_PORT.to_ne_bytes());
    condition.extend(octets);
    condition
}

fn short(length: usize) -> u16 {
    u16::try_from(length).expect("questions are chunked below 64 KiB")
}

/// The answers in one datagram to the question with this sequence number. What cannot be read is left out.
pub fn answers_in(datagram: &[u8], sequence: u32) -> Vec<Answer> {
    messages_in(datagram)
        .filter(|message| number_at(message, 8) == Some(sequence))
        .filter_map(answer_of)
        .collect()
}

fn number_at(octets: &[u8], at: usize) -> Option<u32> {
    let four = octets.get(at..at + 4)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

fn answer_of(message: &[u8]) -> Option<Answer> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let body = message.get(HEADER..)?;
    match kind {
        ERROR => {
            let error = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
            Some(Answer::Failed(error.saturating_neg()))
        }
        DONE => Some(Answer::End),
        BY_FAMILY => {
            let family = match *body.first()? {
                f if f == Family::V4 as u8 => Family::V4,
                f if f == Family::V6 as u8 => Family::V6,
                _ => return None,
            };
            Some(Answer::Connection {
                own: end(family, body.get(4..6)?, body.get(8..24)?)?,
                client: end(family, body.get(6..8)?, body.get(24..40)?)?,
            })
        }
        _ => None,
    }
}

fn end(family: Family, port: &[u8], address: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(port.try_into().ok()?);
    let address = match family {
        Family::V4 => {
            let octets: [u8; 4] = address.get(..4)?.try_into().ok()?;
            Ipv4Addr::from(octets).into()
        }
        Family::V6 => {
            let octets: [u8; 16] = address.try_into().ok()?;
            Ipv6Addr::from(octets).to_canonical()
        }
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vip::netlink::ALIGNMENT;

    fn message(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut octets = length.to_ne_bytes().to_vec();
        octets.extend_from_slice(&kind.to_ne_bytes());
        octets.extend_from_slice(&[0, 0]);
        octets.extend_from_slice(&sequence.to_ne_bytes());
        octets.extend_from_slice(&[0; 4]);
        octets.extend_from_slice(body);
        octets.resize(octets.len().next_multiple_of(ALIGNMENT), 0);
        octets
    }

    fn connection(family: Family, own: (&[u8], u16), client: (&[u8], u16)) -> Vec<u8> {
        let mut body = vec![family as u8, 1, 0, 0];
        body.extend_from_slice(&own.1.to_be_bytes());
        body.extend_from_slice(&client.1.to_be_bytes());
        for (address, _) in [own, client] {
            let mut padded = address.to_vec();
            padded.resize(16, 0);
            body.extend(padded);
        }
        body.resize(72, 0);
        body
    }

    #[test]
    fn answers_are_read_and_those_to_other_questions_are_not() {
        let v4 = connection(Family::V4, (&[10, 0, 0, 100], 80), (&[10, 0, 0, 1], 40000));
        let mapped = |last: u8| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last];
        let v6 = connection(Family::V6, (&mapped(100), 80), (&mapped(1), 40001));
        let mut other = v4.clone();
        other[0] = 9; // of no family of these
        let mut datagram = message(BY_FAMILY, 7, &v4);
        datagram.extend(message(BY_FAMILY, 6, &v4));
        datagram.extend(message(BY_FAMILY, 7, &other));
        datagram.extend(message(BY_FAMILY, 7, &v6));
        datagram.extend(message(DONE, 7, &[0; 4]));
        let found = |client: &str| Answer::Connection {
            client: client.parse().unwrap(),
            own: "10.0.0.100:80".parse().unwrap(),
        };
        let expected = [
            found("10.0.0.1:40000"),
            found("10.0.0.1:40001"),
            Answer::End,
        ];
        assert_eq!(answers_in(&datagram, 7), expected);
        let failed = message(ERROR, 7, &(-2i32).to_ne_bytes());
        assert_eq!(answers_in(&failed, 7), [Answer::Failed(2)]);
    }

    #[test]
    fn every_condition_leads_to_the_end_or_beyond_the_jump_behind_it() {
        let addresses = [
            [10, 0, 0, 1].into(),
            IpAddr::from([1u16; 8]),
            [10, 0, 0, 2].into(),
        ];
        let program = program(&addresses);
        let (mut at, mut conditions) = (0, 0);
        while at < program.len() {
            assert_eq!(program[at], OWN_END);
            let length = usize::from(program[at + 1]);
            let otherwise = usize::from(u16::from_ne_bytes([program[at + 2], program[at + 3]]));
            assert_eq!(otherwise, length + 4);
            (at, conditions) = (at + length, conditions + 1);
            if at < program.len() {
                let jump = u16::from_ne_bytes([program[at + 2], program[at + 3]]);
                assert_eq!((program[at], program[at + 1]), (JUMP, 4));
                assert_eq!(at + usize::from(jump), program.len());
                at += 4;
            }
        }
        assert_eq!((at, conditions), (program.len(), addresses.len()));
        let most = vec![IpAddr::from([1u16; 8]); MOST_ADDRESSES];
        assert!(about(Family::V6, &most, 1).len() < usize::from(u16::MAX));
    }

    proptest! {
        #[test]
        fn no_octets_do_harm(octets in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            answers_in(&octets, 7);
            let v4 = connection(Family::V4, (&[10, 0, 0, 100], 80), (&[10, 0, 0, 1], 40000));
            let mut whole = message(BY_FAMILY, 7, &v4);
            whole.truncate(cut);
            prop_assert!(answers_in(&whole, 7).len() <= 1);
        }
    }
}
