//! One network segment: a bridge in a namespace of its own, a cable to every host.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::{LabError, LabName, namespace::Namespace};

/// The device that every host has towards the bridge.
pub const DEVICE: &str = "eth0";
const BRIDGE: &str = "br0";

/// The address of host number `host` of a lab. Labs share no network, so all use the same addresses.
pub fn ipv4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

/// The IPv6 address of host number `host`.
pub fn ipv6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host.into())
}

/// A bridge. The machine's own network knows nothing of it.
#[derive(Debug)]
pub struct Network {
    switch: Arc<Namespace>,
}

impl Network {
    pub(super) fn create(lab: &LabName) -> Result<Self, LabError> {
        let switch = Arc::new(Namespace::create(lab.namespace("switch"))?);
        switch.ip(&[
            "link",
            "add",
            BRIDGE,
            "type",
            "bridge",
            "mcast_snooping",
            "0",
        ])?;
        switch.ip(&["link", "set", BRIDGE, "up"])?;
        Ok(Self { switch })
    }

    /// Where the ports of all hosts are; each port has its host's name.
    pub fn switch(&self) -> &Arc<Namespace> {
        &self.switch
    }

    /// A cable from the bridge to `host`, whose end there is `eth0` with an IPv4 and an IPv6 address.
    pub(super) fn connect(&self, host: &Namespace, port: &str, number: u8) -> Result<(), LabError> {
        let switch = &self.switch;
        switch.ip(&[
            "link",
            "add",
            port,
            "type",
            "veth",
            "peer",
            "name",
            DEVICE,
            "netns",
            host.name(),
        ])?;
        switch.ip(&["link", "set", port, "master", BRIDGE, "up"])?;
        set_up(host, number)
    }

    /// The bridge neither takes frames from the port nor sends any to it. The host keeps its carrier: it cannot tell.
    pub fn cut(&self, port: &str) -> Result<(), LabError> {
        self.set_port_state(port, "disabled")
    }

    /// Undoes `cut`.
    pub fn heal(&self, port: &str) -> Result<(), LabError> {
        self.set_port_state(port, "forwarding")
    }

    /// Pulls the cable: the host loses its carrier.
    pub fn unplug(&self, port: &str) -> Result<(), LabError> {
        self.switch.ip(&["link", "set", port, "down"]).map(drop)
    }

    /// Puts the cable back.
    pub fn plug(&self, port: &str) -> Result<(), LabError> {
        self.switch.ip(&["link", "set", port, "up"]).map(drop)
    }

    fn set_port_state(&self, port: &str, state: &str) -> Result<(), LabError> {
        let arguments = ["link", "set", "dev", port, "state", state];
        self.switch.output("bridge", &arguments).map(drop)
    }
}

/// Sets a host's device up, with its addresses: as those who look after networks do, since a device that was down has lost some.
pub fn set_up(host: &Namespace, number: u8) -> Result<(), LabError> {
    let address = format!("{}/24", ipv4(number));
    host.ip(&["address", "replace", &address, "dev", DEVICE])?;
    let address = format!("{}/64", ipv6(number));
    host.ip(&["address", "replace", &address, "dev", DEVICE, "nodad"])?;
    host.ip(&["link", "set", DEVICE, "up"]).map(drop)
}

/// Both addresses of a host.
pub fn addresses(host: u8) -> [IpAddr; 2] {
    [ipv4(host).into(), ipv6(host).into()]
}
