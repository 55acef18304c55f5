//! Addresses on devices, through rtnetlink: add, renew, remove, list, and watch for what others do to them.
//!
//! Every address put here expires by itself (`VALID_FOR`) unless renewed: if the process dies, hangs or is stopped, the kernel
//! takes the address away. It carries our mark (`IFA_PROTO`, Linux 5.18), so that a later start can tell our leftovers from an operator's
//! addresses without keeping a file: on older kernels the short life alone tells them apart, nobody else configures such.
//! Nothing here removes an address that is not ours.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::{
    AddressFamily as RouteFamily, RouteNetlinkMessage,
    address::{
        AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
        CacheInfo,
    },
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use nix::{
    net::if_::if_indextoname,
    sys::socket::{
        self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
    },
};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Runtime,
    task::JoinHandle,
    time::timeout,
};

use super::{announce::Mac, netlink::messages_in};
use crate::model::network::is_link_local;

/// How long an address outlives the last renewal. Whole seconds are all the kernel counts in.
pub const VALID_FOR: Duration = Duration::from_secs(3);
/// Our mark on an address: an address protocol number that is in no registry.
const OUR_PROTOCOL: u8 = 0x70;
/// A request to the kernel is answered within microseconds, unless something holds its lock.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Change messages waiting to be read; when it overflows the kernel says so and everything is looked at anew.
const CHANGE_BUFFER: usize = 1 << 20;
/// The kernel sends no larger one.
const DATAGRAM: usize = 1 << 15;
/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
/// Addresses that somebody else has put on devices and that are told: every member hears of them.
const MOST_FOREIGN: usize = 1000;

/// Why an address could not be added, removed or looked at.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    #[error(
        "no device named {device:?} on this node: correct [interfaces] in node.toml, or create the device"
    )]
    NoDevice { device: String },
    #[error(
        "not permitted to change the addresses of {device}: this process has no CAP_NET_ADMIN; run it as root, or grant the \
         capability (AmbientCapabilities= in the systemd unit)"
    )]
    NotPermitted { device: String },
    #[error("IPv6 is disabled on {device}: set net.ipv6.conf.{device}.disable_ipv6 to 0")]
    Ipv6Disabled { device: String },
    #[error(
        "{address} is already on this node's device {device}, put there by somebody else; remove it, or choose another address for \
         the VIP"
    )]
    Taken { address: IpAddr, device: String },
    #[error("cannot {attempt}: {source}")]
    Kernel {
        attempt: String,
        source: rtnetlink::Error,
    },
    #[error("cannot {attempt}: the kernel did not answer within {REQUEST_TIMEOUT:?}")]
    Timeout { attempt: String },
    #[error("cannot open a route netlink socket: {0}")]
    Open(#[source] io::Error),
}

/// A network device as it was when last looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub index: u32,
    /// None for devices without Ethernet addresses: nothing can be announced there.
    pub mac: Option<Mac>,
    /// Up, and with carrier.
    pub ready: bool,
}

impl Device {
    /// None when the message lacks a name.
    fn of_message(message: &LinkMessage) -> Option<Self> {
        let ready = LinkFlags::Up | LinkFlags::LowerUp;
        let mut device = Self {
            name: String::new(),
            index: message.header.index,
            mac: None,
            ready: message.header.flags.contains(ready),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => device.name.clone_from(name),
                LinkAttribute::Address(octets) => {
                    device.mac = Mac::try_from(octets.as_slice()).ok();
                }
                _ => {}
            }
        }
        device.mac = device.mac.filter(|mac| *mac != [0; 6]); // loopback
        (!device.name.is_empty()).then_some(device)
    }
}

/// An address on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Assigned {
    address: IpAddr,
    prefix: u8,
    device_index: u32,
    ours: bool,
}

impl Assigned {
    fn of_message(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut address, mut lifetime, mut protocol) = (None, None, None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::CacheInfo(info) => lifetime = Some(*info),
                AddressAttribute::Protocol(number) => protocol = Some(u8::from(*number)),
                _ => {}
            }
        }
        let address = local.or(address)?;
        let prefix = message.header.prefix_len;
        Some(Self {
            address,
            prefix,
            device_index: message.header.index,
            ours: prefix == full_prefix(address) && is_ours(protocol, lifetime),
        })
    }

    /// Somebody else has put it where it keeps a VIP from its device. On `lo` it does not.
    fn is_in_the_way(&self) -> bool {
        !self.ours && self.device_index != LOOPBACK
    }
}

/// The addresses of this host, as they were when they were asked for.
#[derive(Clone, Debug)]
pub struct Addresses(Vec<Assigned>);

impl Addresses {
    /// Whether nobody else has put the address on a device of this host, but for `lo`.
    pub fn expect_free(&self, address: IpAddr) -> Result<(), InterfaceError> {
        let mut foreign = self.0.iter().filter(|other| other.is_in_the_way());
        match foreign.find(|other| other.address == address) {
            Some(other) => Err(InterfaceError::Taken {
                address,
                device: device_named(other.device_index),
            }),
            None => Ok(()),
        }
    }

    /// Those that `expect_free` finds taken, each with a device that it is on, but for link-local ones, which are no VIPs. At most
    /// `MOST_FOREIGN`: those that the kernel names first.
    pub fn foreign(&self) -> BTreeMap<IpAddr, String> {
        let mut names: BTreeMap<u32, String> = BTreeMap::new();
        let foreign = self.0.iter().filter(|other| other.is_in_the_way());
        let foreign = foreign.filter(|other| !is_link_local(other.address));
        let named = foreign.take(MOST_FOREIGN).map(|other| {
            let name = names.entry(other.device_index);
            let name = name.or_insert_with(|| device_named(other.device_index));
            (other.address, name.clone())
        });
        named.collect()
    }

    /// Whether nobody else has put the address on the device.
    pub fn expect_not_foreign(
        &self,
        address: IpAddr,
        device: &Device,
    ) -> Result<(), InterfaceError> {
        let is_foreign = |other: &Assigned| {
            other.address == address && !other.ours && other.device_index == device.index
        };
        match self.0.iter().any(is_foreign) {
            true => Err(InterfaceError::Taken {
                address,
                device: device.name.clone(),
            }),
            false => Ok(()),
        }
    }

    /// Whether an address of ours is on the device.
    pub fn holds(&self, address: IpAddr, device: &Device) -> bool {
        let is_it = |a: &Assigned| a.ours && a.address == address && a.device_index == device.index;
        self.0.iter().any(is_it)
    }
}

/// Whether the device takes addresses of this version.
pub fn expect_enabled(address: IpAddr, device: &Device) -> Result<(), InterfaceError> {
    match address.is_ipv6() && is_ipv6_disabled(&device.name) {
        true => Err(InterfaceError::Ipv6Disabled {
            device: device.name.clone(),
        }),
        false => Ok(()),
    }
}

/// The name of a device in the network namespace of the calling thread, or its number where it has just gone.
fn device_named(index: u32) -> String {
    let name = if_indextoname(index).ok();
    let name = name.and_then(|name| name.into_string().ok());
    // Of a device that is gone nix 0.31 gives an empty name and no error.
    let name = name.filter(|name| !name.is_empty());
    name.unwrap_or_else(|| format!("number {index}"))
}

/// Whether the mark, or on kernels that keep no mark the lifetime, is ours.
fn is_ours(protocol: Option<u8>, lifetime: Option<CacheInfo>) -> bool {
    match protocol {
        Some(number) => number == OUR_PROTOCOL,
        None => lifetime.is_some_and(|info| {
            info.ifa_preferred == 0 && u64::from(info.ifa_valid) <= VALID_FOR.as_secs()
        }),
    }
}

fn full_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address message that all requests about `address` share.
fn message_about(address: IpAddr, device_index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => RouteFamily::Inet,
        IpAddr::V6(_) => RouteFamily::Inet6,
    };
    message.header.prefix_len = full_prefix(address);
    message.header.index = device_index;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    message
}

/// As above, with what makes it a VIP: short-lived and marked, never chosen as the source of new outgoing traffic
/// (preferred lifetime 0), and for IPv6 usable at once (no duplicate address detection) and without a route of its own.
fn vip_message(address: IpAddr, device_index: u32) -> AddressMessage {
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_preferred = 0;
    lifetime.ifa_valid = u32::try_from(VALID_FOR.as_secs()).unwrap_or(u32::MAX);
    let mut message = message_about(address, device_index);
    message
        .attributes
        .push(AddressAttribute::CacheInfo(lifetime));
    message
        .attributes
        .push(AddressAttribute::Protocol(AddressProtocol::Other(
            OUR_PROTOCOL,
        )));
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

/// A connection to the kernel's routing tables, with a thread of its own: the call that sends a request waits for the kernel's lock
/// (RTNL), which another program may hold for long. Ends with its value.
#[derive(Debug)]
pub struct Interfaces {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for Interfaces {
    fn drop(&mut self) {
        self.connection.abort();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Interfaces {
    /// Must be called within a runtime with a clock; the requests go to the network namespace of the calling thread.
    pub fn open() -> Result<Self, InterfaceError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("vip-addresses")
            .enable_io()
            .build()
            .map_err(InterfaceError::Open)?;
        let within = runtime.enter();
        let opened = rtnetlink::new_connection().map_err(InterfaceError::Open);
        drop(within);
        let (connection, handle, _) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        Ok(Self {
            handle,
            connection: runtime.spawn(connection),
            runtime: Some(runtime),
        })
    }

    /// Whether it carries no request any more: another is to be opened.
    pub fn has_ended(&self) -> bool {
        self.connection.is_finished()
    }

    #[cfg(test)]
    pub(super) fn end(&self) {
        self.connection.abort();
    }

    /// Nothing more comes to the kernel until what is returned is dropped, as while another program holds its lock.
    #[cfg(test)]
    pub(super) fn block(&self) -> std::sync::mpsc::Sender<()> {
        let (release, released) = std::sync::mpsc::channel();
        let (begin, has_begun) = std::sync::mpsc::channel();
        let runtime = self
            .runtime
            .as_ref()
            .expect("none only while it is dropped");
        runtime.spawn(async move {
            begin.send(()).expect("it is waited for");
            // Keeps the only thread.
            let _ = released.recv();
        });
        has_begun.recv().expect("it begins");
        release
    }

    pub async fn device(&self, name: &str) -> Result<Device, InterfaceError> {
        let attempt = || format!("look up device {name:?}");
        let mut links = self
            .handle
            .link()
            .get()
            .match_name(name.to_owned())
            .execute();
        let link = within(attempt, links.try_next()).await;
        let found = match link {
            Err(error) if errno(&error) == Some(libc::ENODEV) => None,
            other => other?.as_ref().and_then(Device::of_message),
        };
        found.ok_or_else(|| InterfaceError::NoDevice {
            device: name.to_owned(),
        })
    }

    /// Those on all devices of this host.
    pub async fn addresses(&self) -> Result<Addresses, InterfaceError> {
        Ok(Addresses(self.assigned().await?))
    }

    /// Puts the address on the device, or puts off the expiry of one that we put there. Whether somebody else has it here is for
    /// `Addresses` to tell.
    pub async fn renew(&self, address: IpAddr, device: &Device) -> Result<(), InterfaceError> {
        let attempt = || format!("add {address} to {}", device.name);
        let prefix = full_prefix(address);
        let mut request = self
            .handle
            .address()
            .add(device.index, address, prefix)
            .replace();
        *request.message_mut() = vip_message(address, device.index);
        let done = within(attempt, request.execute()).await;
        done.map_err(|error| explain(error, address, device))
    }

    /// Takes the address off the device. That it, or the device, is not there is no failure.
    pub async fn remove(&self, address: IpAddr, device: &Device) -> Result<(), InterfaceError> {
        self.delete(address, device.index, &device.name).await
    }

    async fn delete(
        &self,
        address: IpAddr,
        device_index: u32,
        name: &str,
    ) -> Result<(), InterfaceError> {
        let attempt = || format!("remove {address} from {name}");
        let request = self
            .handle
            .address()
            .del(message_about(address, device_index));
        match within(attempt, request.execute()).await {
            Err(error)
                if matches!(
                    errno(&error),
                    Some(libc::EADDRNOTAVAIL | libc::ENODEV | libc::ENXIO)
                ) =>
            {
                Ok(())
            }
            Err(error) if errno(&error) == Some(libc::EPERM) => Err(InterfaceError::NotPermitted {
                device: name.to_owned(),
            }),
            other => other,
        }
    }

    /// Removes what an earlier process left on the device. Returns what it was.
    pub async fn sweep(&self, device: &Device) -> Result<BTreeSet<IpAddr>, InterfaceError> {
        let mut swept = BTreeSet::new();
        for leftover in self.assigned().await? {
            if leftover.ours && leftover.device_index == device.index {
                self.remove(leftover.address, device).await?;
                swept.insert(leftover.address);
            }
        }
        Ok(swept)
    }

    /// Removes what a process left on any device. Returns what it was.
    pub async fn sweep_all(&self) -> Result<BTreeSet<IpAddr>, InterfaceError> {
        let mut swept = BTreeSet::new();
        for leftover in self.assigned().await?.into_iter().filter(|a| a.ours) {
            let device = device_named(leftover.device_index);
            self.delete(leftover.address, leftover.device_index, &device)
                .await?;
            swept.insert(leftover.address);
        }
        Ok(swept)
    }

    async fn assigned(&self) -> Result<Vec<Assigned>, InterfaceError> {
        let attempt = || "list addresses".to_owned();
        let messages = self
            .handle
            .address()
            .get()
            .execute()
            .filter_map(async |message| match message {
                Ok(message) => Assigned::of_message(&message).map(Ok),
                Err(error) => Some(Err(error)),
            })
            .try_collect();
        within(attempt, messages).await
    }
}

/// What cannot be read says nothing.
fn is_ipv6_disabled(device: &str) -> bool {
    let setting = Path::new("/proc/sys/net/ipv6/conf").join(device);
    let text = fs::read_to_string(setting.join("disable_ipv6"));
    text.is_ok_and(|text| text.trim() == "1")
}

/// Bounds a request in time and names what was attempted.
async fn within<T>(
    attempt: impl Fn() -> String,
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, InterfaceError> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(InterfaceError::Kernel {
            attempt: attempt(),
            source,
        }),
        Err(_) => Err(InterfaceError::Timeout { attempt: attempt() }),
    }
}

fn errno(error: &InterfaceError) -> Option<i32> {
    match error {
        InterfaceError::Kernel {
            source: rtnetlink::Error::NetlinkError(message),
            ..
        } => Some(message.raw_code().abs()),
        _ => None,
    }
}

fn explain(error: InterfaceError, address: IpAddr, device: &Device) -> InterfaceError {
    let name = device.name.clone();
    match errno(&error) {
        Some(libc::EPERM) => InterfaceError::NotPermitted { device: name },
        Some(libc::ENODEV | libc::ENXIO) => InterfaceError::NoDevice { device: name },
        Some(libc::EACCES) if address.is_ipv6() => InterfaceError::Ipv6Disabled { device: name },
        _ => error,
    }
}

/// What somebody, perhaps we, did to devices and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device appeared or changed.
    Device(Device),
    /// A device is gone.
    DeviceGone(String),
    /// An address is gone from the device with this index.
    AddressGone { address: IpAddr, device_index: u32 },
    /// Messages were lost: anything may have changed.
    Overrun,
}

/// Receives the kernel's messages about devices and addresses.
#[derive(Debug)]
pub struct Changes {
    socket: AsyncFd<OwnedFd>,
    datagram: Vec<u8>,
    /// Read and not yet handed out: the changes of one datagram.
    waiting: VecDeque<Change>,
}

impl Changes {
    /// Must be called within a runtime. Watches the network namespace of the calling thread.
    pub fn watch() -> Result<Self, InterfaceError> {
        let open = || {
            let socket = socket::socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkRoute,
            )?;
            socket::setsockopt(&socket, sockopt::RcvBuf, &CHANGE_BUFFER)?;
            let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
            let groups = u32::try_from(groups).expect("three bits of the lower half");
            socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
            register(socket)
        };
        Ok(Self {
            socket: open().map_err(InterfaceError::Open)?,
            datagram: vec![0; DATAGRAM],
            waiting: VecDeque::new(),
        })
    }

    /// The next change. Dropping the future loses nothing.
    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Ok(change);
            }
            let mut guard = self.socket.readable().await?;
            let received = guard.try_io(|socket| {
                let length = socket::recv(
                    socket.as_raw_fd(),
                    &mut self.datagram,
                    MsgFlags::MSG_DONTWAIT,
                )?;
                Ok(self
                    .datagram
                    .get(..length)
                    .map_or_else(Vec::new, changes_in))
            });
            match received {
                Ok(Ok(changes)) => self.waiting.extend(changes),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Change::Overrun);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

#[expect(unsafe_code, reason = "the safe constructor is deprecated as unsound")]
fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and names the same descriptor for all its life, and the `AsyncFd` now owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// The changes in one datagram. Messages that cannot be read are about things we do not use.
fn changes_in(datagram: &[u8]) -> Vec<Change> {
    let read = |message| NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok();
    messages_in(datagram)
        .filter_map(read)
        .filter_map(|message| change_of(&message.payload))
        .collect()
}

fn change_of(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            Device::of_message(link).map(Change::Device)
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
            Device::of_message(link).map(|device| Change::DeviceGone(device.name))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(address)) => {
            Assigned::of_message(address).map(|gone| Change::AddressGone {
                address: gone.address,
                device_index: gone.device_index,
            })
        }
        NetlinkPayload::Overrun(_) => Some(Change::Overrun),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::NetlinkHeader;

    use super::*;

    fn lifetime(preferred: u32, valid: u32) -> Option<CacheInfo> {
        let mut info = CacheInfo::default();
        (info.ifa_preferred, info.ifa_valid) = (preferred, valid);
        Some(info)
    }

    #[test]
    fn an_address_that_the_host_has_on_lo_is_foreign_there() {
        use crate::vip::namespace::{in_namespace_async, sh};
        in_namespace_async(async || {
            sh("ip link set lo up && ip addr add 10.77.0.9/32 dev lo");
            let interfaces = Interfaces::open().unwrap();
            let lo = interfaces.device("lo").await.unwrap();
            for (address, is_free) in [("10.77.0.9", false), ("10.77.0.10", true)] {
                let address = address.parse().unwrap();
                let there = interfaces.addresses().await.unwrap();
                let found = there.expect_not_foreign(address, &lo);
                assert_eq!(found.is_ok(), is_free, "{found:?}");
            }
            let ours = "10.77.0.10".parse().unwrap();
            interfaces.renew(ours, &lo).await.unwrap();
            let there = interfaces.addresses().await.unwrap();
            assert!(there.expect_not_foreign(ours, &lo).is_ok());
        });
    }

    #[test]
    fn what_keeps_vips_from_devices_is_named_with_its_device_up_to_a_bound() {
        let on = |device_index: u32, address: &str, ours: bool| Assigned {
            address: address.parse().unwrap(),
            prefix: 24,
            device_index,
            ours,
        };
        // No device has so high a number: there is no name for it.
        const GONE: u32 = 4_000_000;
        let mut all = vec![
            on(LOOPBACK, "10.77.0.1", false),
            on(GONE, "10.77.0.2", true),
            on(GONE, "fe80::1", false),
            on(GONE, "10.77.0.3", false),
            on(GONE, "fd77::3", false),
        ];
        let addresses = Addresses(all.clone());
        let expected = ["10.77.0.3", "fd77::3"].map(|address| {
            let address: IpAddr = address.parse().unwrap();
            assert!(addresses.expect_free(address).is_err());
            (address, format!("number {GONE}"))
        });
        assert_eq!(addresses.foreign(), BTreeMap::from(expected));
        let many = (0..2 * MOST_FOREIGN).map(|n| {
            let [.., third, fourth] = n.to_be_bytes();
            on(GONE, &format!("10.78.{third}.{fourth}"), false)
        });
        all.extend(many);
        assert_eq!(Addresses(all).foreign().len(), MOST_FOREIGN);
    }

    #[test]
    fn our_addresses_are_told_from_an_operators() {
        let forever = lifetime(u32::MAX, u32::MAX);
        for (protocol, lifetime, ours) in [
            (Some(OUR_PROTOCOL), lifetime(0, 3), true),
            (Some(OUR_PROTOCOL), forever, true),
            (Some(OUR_PROTOCOL + 1), lifetime(0, 3), false),
            (None, lifetime(0, 3), true),
            (None, lifetime(0, 2), true),
            (None, lifetime(0, 4), false),
            (None, lifetime(3, 3), false),
            (None, forever, false),
            (None, None, false),
        ] {
            assert_eq!(
                is_ours(protocol, lifetime),
                ours,
                "{protocol:?} {lifetime:?}"
            );
        }
    }

    #[test]
    fn a_shorter_prefix_is_never_ours() {
        let mut message = vip_message("10.77.0.100".parse().unwrap(), 7);
        assert!(Assigned::of_message(&message).unwrap().ours);
        message.header.prefix_len = 24;
        assert!(!Assigned::of_message(&message).unwrap().ours);
    }

    #[test]
    fn every_message_of_a_datagram_is_read_and_garbage_is_not() {
        let addresses: [IpAddr; 2] = [[10, 77, 0, 1].into(), "fd77::1".parse().unwrap()];
        let mut datagram = vec![];
        for address in addresses {
            let gone = RouteNetlinkMessage::DelAddress(message_about(address, 3));
            let mut message = NetlinkMessage::new(NetlinkHeader::default(), gone.into());
            message.finalize();
            let start = datagram.len();
            datagram.resize(start + message.buffer_len(), 0);
            message.serialize(&mut datagram[start..]);
        }
        let expected = addresses.map(|address| Change::AddressGone {
            address,
            device_index: 3,
        });
        assert_eq!(changes_in(&datagram), expected);
        for length in 0..datagram.len() {
            assert!(changes_in(&datagram[..length]).len() < 2);
        }
        assert!(changes_in(&[0xff; 64]).is_empty());
        assert!(
            changes_in(&[0; 64]).is_empty(),
            "a length of zero ends the reading"
        );
    }
}
