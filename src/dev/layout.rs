//! Where the parts of a development cluster lie: addresses, ports and files, from the port base and the directory.
//! `docs/cli.md` promises these to scripts.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
};

use crate::enrol::identity_file::FirstMember;

/// Most nodes of a development cluster: ports of one kind are 100 apart, and 127.0.53.53 is the VIP.
pub const MAX_NODES: u16 = 49;
/// The VIP of every development cluster.
pub const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 53, 53));
/// Offsets from the port base: the sample site's listener, its demo upstream and its two demo backends.
const LISTENER: u16 = 400;
const UPSTREAM: u16 = 490;
const BACKENDS: [u16; 2] = [491, 492];
/// The highest offset in use.
const LAST: u16 = 499;
/// Largest port base for which every port exists.
pub const MAX_PORT_BASE: u16 = u16::MAX - LAST;
/// Longest path of a unix socket that Linux takes, in octets.
pub const MAX_SOCKET_PATH: usize = 107;

/// By what an address is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// An address that a node or a demo service will bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub address: SocketAddr,
    pub transport: Transport,
    /// What it is for.
    pub what: String,
}

impl Place {
    fn tcp(address: SocketAddr, what: impl Into<String>) -> Self {
        let (transport, what) = (Transport::Tcp, what.into());
        Self {
            address,
            transport,
            what,
        }
    }

    fn udp(address: SocketAddr, what: impl Into<String>) -> Self {
        let (transport, what) = (Transport::Udp, what.into());
        Self {
            address,
            transport,
            what,
        }
    }

    /// Both, as DNS is served.
    fn dns(address: SocketAddr, what: &str) -> [Self; 2] {
        [
            Self::udp(address, format!("{what} over UDP")),
            Self::tcp(address, format!("{what} over TCP")),
        ]
    }

    /// Whether it can be bound now.
    ///
    /// # Errors
    /// Says why not.
    pub fn check_free(&self) -> io::Result<()> {
        match self.transport {
            Transport::Udp => UdpSocket::bind(self.address).map(drop),
            // Binding a listener also finds a socket of another `dev` that shares its port.
            Transport::Tcp => TcpListener::bind(self.address).map(drop),
        }
    }
}

/// A development cluster's addresses and files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub dir: PathBuf,
    pub nodes: u16,
    pub port_base: u16,
}

impl Layout {
    /// The node numbers, from 1.
    pub fn numbers(&self) -> impl Iterator<Item = u16> + use<> {
        1..=self.nodes
    }

    pub fn dns(&self, node: u16) -> SocketAddr {
        self.loopback(node)
    }

    pub fn api(&self, node: u16) -> SocketAddr {
        self.loopback(100 + node)
    }

    pub fn http(&self, node: u16) -> SocketAddr {
        self.loopback(200 + node)
    }

    pub fn raft(&self, node: u16) -> SocketAddr {
        self.loopback(300 + node)
    }

    /// Where the node opens listeners of the site.
    pub fn service(&self, node: u16) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(127, 0, 53, node as u8)) // MAX_NODES fits
    }

    pub fn vip_dns(&self) -> SocketAddr {
        SocketAddr::new(VIP, self.port_base)
    }

    pub fn listener_port(&self) -> u16 {
        self.port_base + LISTENER
    }

    pub fn demo_upstream(&self) -> SocketAddr {
        self.loopback(UPSTREAM)
    }

    pub fn demo_backends(&self) -> [SocketAddr; 2] {
        BACKENDS.map(|offset| self.loopback(offset))
    }

    pub fn node_dir(&self, node: u16) -> PathBuf {
        self.dir.join(format!("n{node}"))
    }

    pub fn node_data(&self, node: u16) -> PathBuf {
        self.node_dir(node).join("data")
    }

    pub fn node_config(&self, node: u16) -> PathBuf {
        self.node_dir(node).join("node.toml")
    }

    pub fn first_members(&self) -> Vec<FirstMember> {
        let member = |node| FirstMember {
            name: format!("n{node}"),
            raft_address: self.raft(node),
            api_address: self.api(node),
        };
        self.numbers().map(member).collect()
    }

    pub fn socket(&self, node: u16) -> PathBuf {
        self.node_dir(node).join("sock")
    }

    /// Every address that a node or a demo service will bind.
    pub fn all_places(&self) -> Vec<Place> {
        let mut all = Place::dns(self.vip_dns(), "DNS on the VIP").to_vec();
        for node in self.numbers() {
            all.extend(Place::dns(self.dns(node), &format!("DNS of node {node}")));
            let kinds = [
                ("API", self.api(node)),
                ("HTTP", self.http(node)),
                ("Raft", self.raft(node)),
            ];
            all.extend(
                kinds.map(|(kind, address)| Place::tcp(address, format!("{kind} of node {node}"))),
            );
        }
        all.push(Place::udp(self.demo_upstream(), "the demo upstream"));
        let backends = self.demo_backends();
        all.extend(backends.map(|address| Place::tcp(address, "a demo backend")));
        all
    }

    /// Where the sample site's listener will be: the cluster's own addresses on its port.
    pub fn sample_listener(&self) -> Vec<Place> {
        let nodes = self.numbers().map(|node| self.service(node));
        let addresses = nodes.chain([VIP]);
        addresses
            .map(|ip| SocketAddr::new(ip, self.listener_port()))
            .map(|address| Place::tcp(address, "the sample listener"))
            .collect()
    }

    /// `node.toml` of a node.
    pub fn config_text(&self, node: u16) -> String {
        let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
        format!(
            "# Written by `pontoon dev`; changes are lost.\n\
             name = \"n{node}\"\n\
             data_dir = {data}\n\
             dev = true\n\
             \n\
             [addresses]\n\
             service = [\"{service}\"]\n\
             dns = [\"127.0.0.1\"]\n\
             dns_port = {dns_port}\n\
             vip_dns_port = {vip_dns_port}\n\
             raft = \"{raft}\"\n\
             api = \"{api}\"\n\
             http = \"{http}\"\n\
             socket = {socket}\n",
            data = quoted(&self.node_data(node)),
            service = self.service(node),
            dns_port = self.dns(node).port(),
            vip_dns_port = self.port_base,
            raft = self.raft(node),
            api = self.api(node),
            http = self.http(node),
            socket = quoted(&self.socket(node)),
        )
    }

    fn loopback(&self, offset: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port_base + offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::node::NodeConfig;

    #[test]
    fn ports_are_those_of_the_contract() {
        let layout = Layout {
            dir: "/tmp/d \"q\"".into(),
            nodes: 3,
            port_base: 5300,
        };
        assert_eq!(layout.dns(1), "127.0.0.1:5301".parse().unwrap());
        assert_eq!(layout.api(2), "127.0.0.1:5402".parse().unwrap());
        assert_eq!(layout.http(3), "127.0.0.1:5503".parse().unwrap());
        assert_eq!(layout.raft(1), "127.0.0.1:5601".parse().unwrap());
        assert_eq!(layout.vip_dns(), "127.0.53.53:5300".parse().unwrap());
        assert_eq!(layout.listener_port(), 5700);
        for node in layout.numbers() {
            let config = NodeConfig::parse(&layout.config_text(node)).expect("valid");
            assert_eq!(config.addresses.service, [layout.service(node)]);
            assert!(config.dev);
        }
    }

    #[test]
    fn addresses_are_distinct_and_below_the_last_port() {
        let layout = Layout {
            dir: "/d".into(),
            nodes: MAX_NODES,
            port_base: MAX_PORT_BASE,
        };
        let places = layout.all_places();
        for transport in [Transport::Udp, Transport::Tcp] {
            let of_it = places.iter().filter(|place| place.transport == transport);
            let mut all: Vec<_> = of_it.map(|place| place.address).collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count, "{transport:?}");
        }
        assert!(layout.demo_backends()[1].port() >= layout.port_base);
    }

    #[test]
    fn a_port_that_is_taken_by_udp_or_tcp_is_found() {
        let layout = Layout {
            dir: "/d".into(),
            nodes: 2,
            port_base: 5300,
        };
        let places = layout.all_places();
        for address in [layout.vip_dns(), layout.dns(1), layout.dns(2)] {
            for transport in [Transport::Udp, Transport::Tcp] {
                let found = |p: &&Place| (p.address, p.transport) == (address, transport);
                assert_eq!(places.iter().filter(found).count(), 1, "{address}");
            }
        }
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let place = Place::udp(udp.local_addr().expect("bound"), "x");
        let error = place.check_free().expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let place = Place::tcp(tcp.local_addr().expect("bound"), "x");
        let error = place.check_free().expect_err("taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
