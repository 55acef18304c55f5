//! The TCP addresses that a node needs for itself and that no listener may have. Pure: worked out from `node.toml`.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::node::{Addresses, NodeConfig};

/// Who needs an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Dns,
    Api,
    Http,
    Raft,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "DNS",
            Self::Api => "the API",
            Self::Http => "metrics and health",
            Self::Raft => "the peers' service",
        })
    }
}

/// What one node needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    own: Vec<(SocketAddr, Owner)>,
    vip_dns_port: Option<u16>,
}

impl Reserved {
    pub fn of(config: &NodeConfig) -> Self {
        let Addresses {
            service: _,
            dns,
            dns_port,
            vip_dns_port,
            raft,
            api,
            http,
            socket: _,
        } = &config.addresses;
        let dns = dns
            .iter()
            .map(|ip| (SocketAddr::new(*ip, *dns_port), Owner::Dns));
        let others = [
            (*api, Owner::Api),
            (*http, Owner::Http),
            (*raft, Owner::Raft),
        ];
        Self {
            own: dns.chain(others).collect(),
            vip_dns_port: Some(*vip_dns_port),
        }
    }

    /// Who needs `address`, which is one of this node's own.
    pub fn owner(&self, address: SocketAddr) -> Option<Owner> {
        let mut own = self.own.iter();
        let (_, owner) = own.find(|(theirs, _)| covers(*theirs, address))?;
        Some(*owner)
    }

    /// Who needs `port` of every VIP.
    pub fn vip_owner(&self, port: u16) -> Option<Owner> {
        (self.vip_dns_port == Some(port)).then_some(Owner::Dns)
    }
}

/// Whether a socket on `bound` takes what is sent to `address`. One on `[::]` takes IPv4 too.
pub(super) fn covers(bound: SocketAddr, address: SocketAddr) -> bool {
    let every = match bound.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() && address.is_ipv4(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    bound.port() == address.port() && (every || bound.ip() == address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_its_owner() {
        let config = NodeConfig::parse(
            "name = \"n\"\ndata_dir = \"/d\"\n[addresses]\nservice = [\"10.0.0.1\", \"fd00::1\"]\nraft = \"10.0.0.1:7400\"\napi = \"10.0.0.1:7401\"\nhttp = \"0.0.0.0:7402\"\nvip_dns_port = 54\n",
        );
        let reserved = Reserved::of(&config.expect("valid"));
        let cases = [
            ("10.0.0.1:53", Some(Owner::Dns)),
            ("[fd00::1]:53", Some(Owner::Dns)),
            ("10.0.0.2:53", None),
            ("10.0.0.1:54", None),
            ("10.0.0.1:7400", Some(Owner::Raft)),
            ("10.0.0.1:7401", Some(Owner::Api)),
            ("10.0.0.2:7401", None),
            ("10.0.0.7:7402", Some(Owner::Http)),
            ("[fd00::1]:7402", None),
            ("10.0.0.1:80", None),
        ];
        for (address, owner) in cases {
            assert_eq!(reserved.owner(address.parse().unwrap()), owner, "{address}");
        }
        assert_eq!(reserved.vip_owner(54), Some(Owner::Dns));
        assert_eq!(reserved.vip_owner(53), None);
        assert_eq!(Reserved::default().vip_owner(53), None);
    }

    #[test]
    fn the_wildcard_of_ipv6_takes_ipv4_too() {
        let bound = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(covers(bound("[::]:1"), bound("10.0.0.1:1")));
        assert!(covers(bound("[::]:1"), bound("[fd00::1]:1")));
        assert!(!covers(bound("0.0.0.0:1"), bound("[fd00::1]:1")));
    }
}
