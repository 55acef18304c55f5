//! Address ranges, for allow-lists and views, and what an address says beyond one host.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::quoted::quoted;

/// Whether an address is of the IPv6 link-local range (`fe80::/10`): it names a host only together with a network device.
pub fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Whether an address is of the IPv4 link-local range (`169.254.0.0/16`, RFC 3927): hosts take these by themselves, and no router passes
/// anything on to one.
pub fn is_link_local_v4(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_link_local())
}

/// Why no host can have the address on a network, to follow the address in a sentence; none when one can, be it a loopback one.
pub fn no_address_of_a_host(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_multicast() => Some("is a multicast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => {
            Some("is of 0.0.0.0/8, which means this network (RFC 1122 section 3.2.1.3)")
        }
        IpAddr::V4(v4) if v4.is_broadcast() => Some("is the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => {
            Some("is of 240.0.0.0/4, which is reserved (RFC 1112 section 4)")
        }
        _ if address.is_unspecified() => Some("is the unspecified address"),
        _ => None,
    }
}

/// The address and port alone, without a scope id (`fe80::1%2`: the number of a device on one node) or a flow label.
pub fn without_scope(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

/// An address range: networks in allow-lists (`10.0.0.0/8`, `fd00::/8`). Host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not a network: {problem}", quoted(.text))]
pub struct NetworkError {
    text: String,
    problem: &'static str,
}

impl Network {
    /// None when `prefix` is longer than the address or host bits are set.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let network = Self { address, prefix };
        let fits = prefix <= if address.is_ipv4() { 32 } else { 128 };
        (fits && network.masked(address) == Some(address)).then_some(network)
    }

    /// Whether `address` lies in the range. An IPv4-mapped IPv6 address counts as its IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.masked(address.to_canonical()) == Some(self.address)
    }

    fn masked(&self, address: IpAddr) -> Option<IpAddr> {
        match (self.address, address) {
            (IpAddr::V4(_), IpAddr::V4(a)) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.prefix))
                    .unwrap_or(0);
                Some(IpAddr::V4((a.to_bits() & mask).into()))
            }
            (IpAddr::V6(_), IpAddr::V6(a)) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(self.prefix))
                    .unwrap_or(0);
                Some(IpAddr::V6((a.to_bits() & mask).into()))
            }
            _ => None,
        }
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Why no host of this network can have the address, to follow the address in a sentence; none when one can, or the address is not
    /// of this network. Where the prefix leaves one bit or none, every address is a host's (RFC 3021, RFC 6164).
    pub fn no_host_of_it(&self, address: IpAddr) -> Option<&'static str> {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        if !self.contains(address) || self.prefix + 1 >= bits {
            return None;
        }
        match address {
            _ if address == self.address && address.is_ipv4() => Some("is the address"),
            _ if address == self.address => {
                Some("is the anycast address of the routers (RFC 4291 section 2.6.1)")
            }
            IpAddr::V4(v4) => {
                let hosts = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                (v4.to_bits() & hosts == hosts).then_some("is the broadcast address")
            }
            IpAddr::V6(_) => None,
        }
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

impl std::str::FromStr for Network {
    type Err = NetworkError;

    /// Reads `ADDRESS/PREFIX`, or an address alone for a single host.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let error = |problem| NetworkError {
            text: text.chars().take(80).collect(),
            problem,
        };
        let (address, prefix) = text
            .split_once('/')
            .map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address
            .parse()
            .map_err(|_| error("the part before '/' is no IPv4 or IPv6 address"))?;
        let full = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(full), |p| {
            p.parse()
                .map_err(|_| error("the prefix length is no number"))
        })?;
        if prefix > full {
            return Err(error("the prefix length is longer than the address"));
        }
        Self::new(address, prefix).ok_or_else(|| error("bits beyond the prefix length are set"))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_addresses_that_are_no_hosts() {
        // (network, address, why)
        let cases = [
            ("10.77.0.0/24", "10.77.0.255", Some("is the broadcast")),
            ("10.77.0.0/24", "10.77.0.0", Some("is the address")),
            ("10.77.0.0/24", "10.77.0.254", None),
            ("10.77.0.0/24", "10.77.1.255", None),
            ("10.0.0.0/8", "10.77.0.255", None),
            ("10.0.0.0/8", "10.255.255.255", Some("is the broadcast")),
            ("0.0.0.0/0", "255.255.255.255", Some("is the broadcast")),
            ("10.77.0.4/30", "10.77.0.7", Some("is the broadcast")),
            ("10.77.0.4/31", "10.77.0.4", None),
            ("10.77.0.4/31", "10.77.0.5", None),
            ("10.77.0.4/32", "10.77.0.4", None),
            ("fd00::/64", "fd00::", Some("is the anycast")),
            ("fd00::/64", "fd00::ffff:ffff:ffff:ffff", None),
            ("fd00::/127", "fd00::", None),
            ("fd00::/128", "fd00::", None),
        ];
        for (network, address, expected) in cases {
            let network: Network = network.parse().unwrap();
            let why = network.no_host_of_it(address.parse().unwrap());
            assert_eq!(
                why.is_some(),
                expected.is_some(),
                "{network} {address}: {why:?}"
            );
            assert!(
                why.is_none_or(|why| why.starts_with(expected.unwrap())),
                "{why:?}"
            );
        }
    }

    #[test]
    fn some_addresses_are_no_hosts() {
        let none = [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "ff02::1",
        ];
        for text in none {
            assert!(
                no_address_of_a_host(text.parse().unwrap()).is_some(),
                "{text}"
            );
        }
        for text in [
            "1.0.0.0",
            "127.0.0.1",
            "192.0.2.1",
            "223.255.255.255",
            "::1",
            "2001:db8::1",
        ] {
            assert_eq!(no_address_of_a_host(text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn a_scope_is_told_from_an_address() {
        for (text, plain) in [
            ("[fe80::1%2]:80", "[fe80::1]:80"),
            ("[fd00::1%7]:80", "[fd00::1]:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
        ] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(without_scope(address), plain.parse().unwrap());
        }
        for (text, expected) in [
            ("fe80::1", true),
            ("febf:ffff::1", true),
            ("fec0::1", false),
            ("fd00::1", false),
            ("169.254.0.1", false),
        ] {
            assert_eq!(is_link_local(text.parse().unwrap()), expected, "{text}");
        }
        for (text, expected) in [
            ("169.253.255.255", false),
            ("169.254.0.0", true),
            ("169.254.255.255", true),
            ("169.255.0.0", false),
            ("fe80::1", false),
        ] {
            let address = text.parse().unwrap();
            assert_eq!(is_link_local_v4(address), expected, "{text}");
        }
    }

    #[test]
    fn networks_contain_what_their_prefix_says() {
        let net: Network = "10.0.0.0/8".parse().unwrap();
        assert!(net.contains("10.255.0.1".parse().unwrap()));
        assert!(net.contains("::ffff:10.0.0.1".parse().unwrap()));
        assert!(!net.contains("11.0.0.1".parse().unwrap()));
        assert!(
            "0.0.0.0/0"
                .parse::<Network>()
                .unwrap()
                .contains("1.2.3.4".parse().unwrap())
        );
        assert!(
            "::/0"
                .parse::<Network>()
                .unwrap()
                .contains("fe80::1".parse().unwrap())
        );
        assert!(
            !"0.0.0.0/0"
                .parse::<Network>()
                .unwrap()
                .contains("fe80::1".parse().unwrap())
        );
        for bad in ["10.0.0.1/8", "10.0.0.0/33", "x/8", "10.0.0.0/", "fd00::1/8"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
