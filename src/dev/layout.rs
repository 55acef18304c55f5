//! Where the parts of a development cluster lie: addresses, ports and files, from the port base and the directory.
//! `docs/cli.md` promises these to scripts.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
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
/// What the demo upstream is called among the addresses; it speaks UDP alone.
pub(super) const DEMO_UPSTREAM: &str = "the demo upstream";
/// The highest offset in use.
const LAST: u16 = 499;
/// Largest port base for which every port exists.
pub const MAX_PORT_BASE: u16 = u16::MAX - LAST;

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

    /// Every address that a node or a demo service will bind, with what it is for.
    pub fn all_addresses(&self) -> Vec<(SocketAddr, String)> {
        let mut all = vec![(self.vip_dns(), "DNS on the VIP".to_owned())];
        for node in self.numbers() {
            let kinds = [
                ("DNS", self.dns(node)),
                ("API", self.api(node)),
                ("HTTP", self.http(node)),
                ("Raft", self.raft(node)),
            ];
            all.extend(kinds.map(|(kind, address)| (address, format!("{kind} of node {node}"))));
        }
        all.push((self.demo_upstream(), DEMO_UPSTREAM.to_owned()));
        let backends = self.demo_backends();
        all.extend(backends.map(|address| (address, "a demo backend".to_owned())));
        all
    }

    /// Where the sample site's listener will be: the cluster's own addresses on its port.
    pub fn sample_listener(&self) -> Vec<(SocketAddr, String)> {
        let nodes = self.numbers().map(|node| self.service(node));
        let addresses = nodes.chain([VIP]);
        addresses
            .map(|ip| SocketAddr::new(ip, self.listener_port()))
            .map(|address| (address, "the sample listener".to_owned()))
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
            data = quoted(&self.node_dir(node).join("data")),
            service = self.service(node),
            dns_port = self.dns(node).port(),
            vip_dns_port = self.port_base,
            raft = self.raft(node),
            api = self.api(node),
            http = self.http(node),
            socket = quoted(&self.node_dir(node).join("sock")),
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
        let mut all: Vec<_> = layout
            .all_addresses()
            .into_iter()
            .map(|(address, _)| address)
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(layout.demo_backends()[1].port() >= layout.port_base);
    }
}
