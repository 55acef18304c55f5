//! The kernel's list of all TCP connections of this host, as text.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// As `connections::at`.
pub fn at(addresses: &BTreeSet<IpAddr>) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
    let mut found = vec![];
    // Of the network namespace of this thread.
    for list in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match fs::read_to_string(list) {
            Ok(text) => found.extend(listed(&text, addresses)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn listed(
    text: &str,
    addresses: &BTreeSet<IpAddr>,
) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
    text.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let own = end(fields.next()?)?;
        let client = end(fields.next()?)?;
        (addresses.contains(&own.ip()) && is_alive(fields.next()?)).then_some((client, own))
    })
}

/// Neither listening nor closed: TIME_WAIT answers by itself, and its connection has ended.
fn is_alive(state: &str) -> bool {
    const TIME_WAIT: &str = "06";
    const CLOSE: &str = "07";
    const LISTEN: &str = "0A";
    ![TIME_WAIT, CLOSE, LISTEN].contains(&state)
}

/// Reads `0100007F:0050`: each 32 bits of the address as the machine has them in memory, and the port.
fn end(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|n| {
            let word = address.get(n * 8..n * 8 + 8)?;
            u32::from_str_radix(word, 16).ok().map(u32::to_ne_bytes)
        })
        .collect();
    let octets = words?.concat();
    let address = match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        Err(_) => {
            let octets = <[u8; 16]>::try_from(octets.as_slice()).ok()?;
            Ipv6Addr::from(octets).to_canonical()
        }
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_read_and_listeners_are_not() {
        if cfg!(target_endian = "big") {
            return crate::skipped::say("the sample was written on a little-endian machine");
        }
        let text = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 6400000A:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 6400000A:0050 0100000A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 1 1
   2: 6400000A:0050 0100000A:9C41 06 00000000:00000000 00:00000000 00000000     0        0 1 1
   3: 6500000A:0050 0100000A:9C42 01 00000000:00000000 00:00000000 00000000     0        0 1 1
   4: 0000000000000000FFFF00006400000A:0050 0000000000000000FFFF00000100000A:9C43 08 0:0
   5: garbage";
        let clients: Vec<String> = listed(text, &[[10, 0, 0, 100].into()].into())
            .map(|(client, _)| client.to_string())
            .collect();
        assert_eq!(clients, ["10.0.0.1:40000", "10.0.0.1:40003"]);
    }
}
