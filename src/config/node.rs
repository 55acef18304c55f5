//! `node.toml`: where this node is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    ConfigError, Fault, defaults,
    reader::Section,
    reserved::covers,
    units::{parse_duration, parse_size},
};
use crate::model::{
    label::{Label, LabelError},
    network::{is_link_local, without_scope},
    node::is_like_id,
    quoted::quoted,
};

/// A node's checked configuration. `docs/configuration.md` documents every key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Unique in the cluster; shown in status and logs.
    pub name: String,
    /// Log, snapshots, identity and certificates; mode 0700.
    pub data_dir: PathBuf,
    /// Plaintext peers and API, loopback only, VIPs by the loopback stand-in. Set by `pontoon dev`.
    pub dev: bool,
    /// How long a start waits for a leader before it serves what it has, marked stale; 0 to 10 minutes.
    pub recovery_wait: Duration,
    /// How long a node without a leader goes on serving; 1 minute to 10 years.
    pub max_stale: Duration,
    pub addresses: Addresses,
    /// Logical interface names of VIPs, and the devices they are on this node.
    pub interfaces: BTreeMap<Label, String>,
    pub vip: VipSettings,
    pub logging: Logging,
    pub dns: DnsLimits,
    pub proxy: ProxyLimits,
    pub storage: StorageLimits,
}

/// Where this node is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Own addresses on which listeners answer, and DNS unless `dns` says otherwise; at least one.
    pub service: Vec<IpAddr>,
    /// Own addresses on which DNS answers.
    pub dns: Vec<IpAddr>,
    /// Port of DNS on the node's own addresses.
    pub dns_port: u16,
    /// Port of DNS on VIPs; that of the own addresses unless set.
    pub vip_dns_port: u16,
    /// Peers.
    pub raft: SocketAddr,
    /// Command line and programs.
    pub api: SocketAddr,
    /// Metrics and health over HTTP.
    pub http: SocketAddr,
    /// The unix socket of the API; mode 0660.
    pub socket: PathBuf,
}

/// How this node holds VIPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipSettings {
    /// Without a fence this node holds none; it still serves.
    pub require_fence: bool,
    /// Run when a VIP is claimed or released.
    pub notify: Option<PathBuf>,
    /// After this the command is killed; 100 ms to 10 minutes.
    pub notify_timeout: Duration,
    /// How long connections through a VIP that was given away by plan may last; zero: they are not kept. At most a day.
    pub second_chance: Duration,
    /// Addresses in the clients' network, such as the router's: a node that none of them answers is unfit to hold VIPs.
    pub reachable: Vec<IpAddr>,
    /// A command of the operator's: a node where it fails is unfit to hold VIPs.
    pub check: Option<CheckScript>,
}

/// A command that says by its exit status whether this node can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckScript {
    pub path: PathBuf,
    /// From the start of a run to that of the next; 100 ms to an hour.
    pub interval: Duration,
    /// After this a run is killed, and counts as failed; 100 ms to 10 minutes.
    pub timeout: Duration,
    /// Failures in a row after which the node is unfit, 1 to 100.
    pub fall: u32,
    /// Passes in a row after which it is fit again, 1 to 100.
    pub rise: u32,
}

/// Where the log goes and how much of it there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// Directives such as `info` or `info,pontoon::dns=debug`.
    pub level: String,
    pub format: LogFormat,
    pub target: LogTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    Stderr,
    /// Rotated when it passes `max_size` octets; `keep` old files stay.
    File {
        path: PathBuf,
        max_size: u64,
        keep: u32,
    },
    Syslog,
    Journald,
}

/// Bounds of the DNS service on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsLimits {
    /// Threads that answer; 0: one per core.
    pub workers: u16,
    /// Octets of cached answers.
    pub cache_size: u64,
    /// TCP connections at one time.
    pub tcp_connections: u32,
    /// TCP connections at one time from one address.
    pub tcp_connections_per_client: u32,
    /// Questions under way to upstreams at one time.
    pub upstream_queries: u32,
    /// Client questions waiting for upstreams at one time.
    pub waiting_questions: u32,
    /// Client questions waiting for upstreams at one time from one address.
    pub waiting_questions_per_client: u32,
    /// The text of `version.bind`; empty hides it.
    pub version: String,
    /// The text of `hostname.bind` and `id.server`; empty hides it.
    pub identity: String,
}

/// Bounds of the proxy on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyLimits {
    /// Threads that forward; 0: one per core.
    pub workers: u16,
    /// Connections at one time, all listeners together.
    pub connections: u32,
    /// How long connections may go on after a stop was asked for.
    pub drain: Duration,
    /// How long connections of a removed listener or backend may go on; at most a day.
    pub drain_removed: Duration,
    /// Pipes for splice(2), of 256 KiB and two files each; beyond it bytes are copied. 0: all are.
    pub pipes: u32,
    /// Health probes under way at one time; beyond it they are late.
    pub probes: u32,
}

/// Bounds of the storage on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageLimits {
    /// Free space below which writes are refused; none: a twentieth of the file system, 2 MiB to 64 MiB.
    pub min_free: Option<u64>,
    /// Octets of commands, unpacked, after which a snapshot of the state is written.
    pub snapshot_log_bytes: u64,
}

impl NodeConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, or with every fault found in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|faults| ConfigError::Faults {
            path: path.to_owned(),
            faults,
        })
    }

    /// Checks a text.
    ///
    /// # Errors
    /// Every fault found in it.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| vec![Fault::new("", e.to_string())])?;
        let mut faults = Vec::new();
        let config = read(Section::root(table, &mut faults, "docs/configuration.md"));
        check_together(&config, &mut faults);
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(faults)
        }
    }

    /// The keys whose values differ, but those of `logging`, with their sections: `addresses.api`.
    pub fn differing_keys(&self, other: &Self) -> Vec<String> {
        let Self {
            name,
            data_dir,
            dev,
            recovery_wait,
            max_stale,
            addresses,
            interfaces,
            vip,
            logging: _,
            dns,
            proxy,
            storage,
        } = self;
        let of_the_file = [
            ("name", *name != other.name),
            ("data_dir", *data_dir != other.data_dir),
            ("dev", *dev != other.dev),
            ("recovery_wait", *recovery_wait != other.recovery_wait),
            ("max_stale", *max_stale != other.max_stale),
        ];
        let sections = [
            addresses.differing_keys(&other.addresses),
            differing_interfaces(interfaces, &other.interfaces),
            vip.differing_keys(&other.vip),
            dns.differing_keys(&other.dns),
            proxy.differing_keys(&other.proxy),
            storage.differing_keys(&other.storage),
        ];
        let mut keys = named("", &of_the_file);
        keys.extend(sections.into_iter().flatten());
        keys
    }

    /// Where the log and the snapshots are kept.
    pub fn storage_dir(&self) -> PathBuf {
        self.data_dir.join("log")
    }

    /// Where identity and certificates are kept.
    pub fn identity_dir(&self) -> PathBuf {
        self.data_dir.join("identity")
    }
}

/// Those that are true, in their section.
fn named(section: &str, keys: &[(&str, bool)]) -> Vec<String> {
    let differing = keys.iter().filter(|(_, differs)| *differs);
    differing
        .map(|(key, _)| format!("{section}{key}"))
        .collect()
}

fn differing_interfaces(
    ours: &BTreeMap<Label, String>,
    other: &BTreeMap<Label, String>,
) -> Vec<String> {
    let all: BTreeSet<&Label> = ours.keys().chain(other.keys()).collect();
    all.into_iter()
        .filter(|label| ours.get(*label) != other.get(*label))
        .map(|label| format!("interfaces.{label}"))
        .collect()
}

macro_rules! differing_keys {
    ($type:ident, $section:literal, $($key:ident),*) => {
        impl $type {
            /// The keys whose values differ.
            fn differing_keys(&self, other: &Self) -> Vec<String> {
                let Self { $($key),* } = self;
                named(concat!($section, "."), &[$((stringify!($key), *$key != other.$key)),*])
            }
        }
    };
}

differing_keys!(
    Addresses,
    "addresses",
    service,
    dns,
    dns_port,
    vip_dns_port,
    raft,
    api,
    http,
    socket
);
impl CheckScript {
    /// The keys whose values differ.
    fn differing_keys(&self, other: &Self) -> Vec<String> {
        let Self {
            path,
            interval,
            timeout,
            fall,
            rise,
        } = self;
        let keys = [
            ("check_script", *path != other.path),
            ("check_interval", *interval != other.interval),
            ("check_timeout", *timeout != other.timeout),
            ("check_fall", *fall != other.fall),
            ("check_rise", *rise != other.rise),
        ];
        named("vip.", &keys)
    }
}

impl VipSettings {
    /// The keys whose values differ. A check that is set or taken away differs in its script alone: the rest goes with that.
    fn differing_keys(&self, other: &Self) -> Vec<String> {
        let Self {
            require_fence,
            notify,
            notify_timeout,
            second_chance,
            reachable,
            check,
        } = self;
        let keys = [
            ("require_fence", *require_fence != other.require_fence),
            ("notify", *notify != other.notify),
            ("notify_timeout", *notify_timeout != other.notify_timeout),
            ("second_chance", *second_chance != other.second_chance),
            ("reachable", *reachable != other.reachable),
        ];
        let mut differing = named("vip.", &keys);
        differing.extend(match (check, &other.check) {
            (Some(ours), Some(theirs)) => ours.differing_keys(theirs),
            (None, None) => Vec::new(),
            _ => vec!["vip.check_script".to_owned()],
        });
        differing
    }
}
differing_keys!(
    DnsLimits,
    "dns",
    workers,
    cache_size,
    tcp_connections,
    tcp_connections_per_client,
    upstream_queries,
    waiting_questions,
    waiting_questions_per_client,
    version,
    identity
);
differing_keys!(
    ProxyLimits,
    "proxy",
    workers,
    connections,
    drain,
    drain_removed,
    pipes,
    probes
);
differing_keys!(StorageLimits, "storage", min_free, snapshot_log_bytes);

impl LogTarget {
    /// The keys of `logging` that differ.
    pub fn differing_keys(&self, other: &Self) -> Vec<String> {
        let (
            Self::File {
                path,
                max_size,
                keep,
            },
            Self::File {
                path: other_path,
                max_size: other_max_size,
                keep: other_keep,
            },
        ) = (self, other)
        else {
            return named("logging.", &[("target", self != other)]);
        };
        let keys = [
            ("file", path != other_path),
            ("max_size", max_size != other_max_size),
            ("keep", keep != other_keep),
        ];
        named("logging.", &keys)
    }
}

fn read(mut root: Section<'_>) -> NodeConfig {
    let name = root.required_text("name", String::new(), "this node's name", node_name);
    let data_dir = root.required_text("data_dir", PathBuf::new(), "a directory", absolute_path);
    let dev = root.flag("dev", false);
    let recovery_wait = root.text(
        "recovery_wait",
        secs(5),
        duration_within(secs(0), secs(600)),
    );
    let max_stale = root.text("max_stale", days(7), duration_within(secs(60), days(3650)));
    let addresses = read_addresses(root.section("addresses"), &data_dir);
    let interfaces = read_interfaces(root.section("interfaces"));
    let vip = read_vip(root.section("vip"), dev);
    let logging = read_logging(root.section("logging"));
    let dns = read_dns(root.section("dns"), &name);
    let proxy = read_proxy(root.section("proxy"));
    let storage = read_storage(root.section("storage"));
    root.finish();
    NodeConfig {
        name,
        data_dir,
        dev,
        recovery_wait,
        max_stale,
        addresses,
        interfaces,
        vip,
        logging,
        dns,
        proxy,
        storage,
    }
}

fn read_addresses(mut section: Section<'_>, data_dir: &Path) -> Addresses {
    let service: Vec<IpAddr> = section.list("service", "an IPv4 or IPv6 address");
    if service.is_empty() {
        section.fault(
            "service",
            "expected at least one address of this node, on which it answers DNS and listeners",
        );
    }
    let mut dns: Vec<IpAddr> = section.list("dns", "an IPv4 or IPv6 address");
    if dns.is_empty() {
        dns.clone_from(&service);
    }
    for (key, address) in service
        .iter()
        .map(|a| ("service", a))
        .chain(dns.iter().map(|a| ("dns", a)))
    {
        if address.is_unspecified() || address.is_multicast() {
            section.fault(key, format!("{address} is no address of a node; name each address, so that replies leave from the address asked"));
        }
        if is_link_local(*address) && (key == "service" || dns != service) {
            section.fault(key, format!("{address} is link-local, and cannot be listened on without a device: name a global or unique local address, such as one of fd00::/8"));
        }
    }
    for (key, list) in [("service", &service), ("dns", &dns)] {
        // What `service` has twice would be said again of a `dns` that is a copy of it.
        if key == "service" || dns != service {
            for address in repeated(list) {
                section.fault(
                    key,
                    format!("{address} is there more than once; name each address once"),
                );
            }
        }
    }
    let dns_port = section.number("dns_port", 53, 1..=u16::MAX);
    let vip_dns_port = section.number("vip_dns_port", dns_port, 1..=u16::MAX);
    let stand_in = SocketAddr::from(([127, 0, 0, 1], 0));
    let example = "an address and a port, such as \"10.0.0.1:7400\"";
    let raft = section.required_text("raft", stand_in, example, socket_address);
    let api = section.required_text("api", stand_in, example, socket_address);
    let http = section.text(
        "http",
        SocketAddr::from(([127, 0, 0, 1], 7402)),
        socket_address,
    );
    let socket = section.text("socket", data_dir.join(SOCKET_NAME), absolute_path);
    section.finish();
    Addresses {
        service,
        dns,
        dns_port,
        vip_dns_port,
        raft,
        api,
        http,
        socket,
    }
}

/// What a list has more than once, each once.
fn repeated(list: &[IpAddr]) -> BTreeSet<IpAddr> {
    let mut seen = BTreeSet::new();
    let again = list.iter().filter(|address| !seen.insert(**address));
    again.copied().collect()
}

fn read_interfaces(mut section: Section<'_>) -> BTreeMap<Label, String> {
    let mut interfaces = BTreeMap::new();
    for (key, device) in section.take_texts() {
        match (key.parse::<Label>(), device_name(&device)) {
            (Ok(label), Ok(device)) => drop(interfaces.insert(label, device)),
            (Err(problem), _) => section.fault(&key, problem.to_string()),
            (_, Err(problem)) => section.fault(&key, problem),
        }
    }
    interfaces
}

fn read_vip(mut section: Section<'_>, dev: bool) -> VipSettings {
    let settings = VipSettings {
        require_fence: section.flag("require_fence", !dev),
        notify: section.optional_text("notify", absolute_path),
        notify_timeout: section.text(
            "notify_timeout",
            secs(10),
            duration_within(Duration::from_millis(100), secs(600)),
        ),
        second_chance: section.text(
            "second_chance",
            secs(600),
            duration_within(Duration::ZERO, secs(86_400)),
        ),
        reachable: read_reachable(&mut section),
        check: read_check(&mut section),
    };
    section.finish();
    settings
}

fn read_reachable(section: &mut Section<'_>) -> Vec<IpAddr> {
    let reachable: Vec<IpAddr> = section.list("reachable", "an IPv4 or IPv6 address");
    for address in &reachable {
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            section.fault(
                "reachable",
                format!("{address} is no address of another host"),
            );
        }
    }
    reachable
}

fn read_check(section: &mut Section<'_>) -> Option<CheckScript> {
    const KEYS: [&str; 4] = [
        "check_interval",
        "check_timeout",
        "check_fall",
        "check_rise",
    ];
    let path = section.optional_text("check_script", absolute_path);
    let given = KEYS.into_iter().find(|key| section.has(key));
    if let (None, Some(key)) = (&path, given) {
        section.fault(key, "is set, but check_script is not");
    }
    let tenth = Duration::from_millis(100);
    let interval = section.text(
        "check_interval",
        secs(1),
        duration_within(tenth, secs(3600)),
    );
    let timeout = section.text("check_timeout", secs(1), duration_within(tenth, secs(600)));
    let fall = section.number("check_fall", 3, 1..=100);
    let rise = section.number("check_rise", 3, 1..=100);
    path.map(|path| CheckScript {
        path,
        interval,
        timeout,
        fall,
        rise,
    })
}

fn read_logging(mut section: Section<'_>) -> Logging {
    let level = section.text("level", "info".to_owned(), log_level);
    let format = section.text("format", LogFormat::Text, |text| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!(
            "{other} is not \"text\" or \"json\"",
            other = quoted(other)
        )),
    });
    let path = section.optional_text("file", absolute_path);
    let max_size = section.text("max_size", 100 << 20, size_within(64 << 10, 1 << 40));
    let keep = section.number("keep", 5, 0..=1000);
    let target = section.text("target", "stderr".to_owned(), |text| match text {
        "stderr" | "file" | "syslog" | "journald" => Ok(text.to_owned()),
        other => Err(format!(
            "{other} is not \"stderr\", \"file\", \"syslog\" or \"journald\"",
            other = quoted(other)
        )),
    });
    let target = match (target.as_str(), path) {
        ("file", Some(path)) => LogTarget::File {
            path,
            max_size,
            keep,
        },
        ("file", None) => {
            section.fault(
                "file",
                "missing: target = \"file\" needs the path of the file",
            );
            LogTarget::Stderr
        }
        (_, Some(_)) => {
            section.fault("file", "is set, but target is not \"file\"");
            LogTarget::Stderr
        }
        ("syslog", None) => LogTarget::Syslog,
        ("journald", None) => LogTarget::Journald,
        _ => LogTarget::Stderr,
    };
    section.finish();
    Logging {
        level,
        format,
        target,
    }
}

fn read_dns(mut section: Section<'_>, name: &str) -> DnsLimits {
    let limits = DnsLimits {
        workers: section.number("workers", 0, 0..=256),
        cache_size: section.text(
            "cache_size",
            defaults::dns::CACHE_SIZE,
            size_within(1 << 20, 1 << 40),
        ),
        tcp_connections: section.number(
            "tcp_connections",
            defaults::dns::TCP_CONNECTIONS,
            1..=1_000_000,
        ),
        tcp_connections_per_client: section.number(
            "tcp_connections_per_client",
            defaults::dns::TCP_CONNECTIONS_PER_CLIENT,
            1..=1_000_000,
        ),
        upstream_queries: section.number(
            "upstream_queries",
            defaults::dns::UPSTREAM_QUERIES,
            1..=60_000,
        ),
        waiting_questions: section.number(
            "waiting_questions",
            defaults::dns::WAITING_QUESTIONS,
            1..=1_000_000,
        ),
        waiting_questions_per_client: section.number(
            "waiting_questions_per_client",
            defaults::dns::WAITING_QUESTIONS_PER_CLIENT,
            1..=1_000_000,
        ),
        version: section.text("version", "Pontoon".to_owned(), txt_string),
        identity: section.text("identity", name.to_owned(), txt_string),
    };
    section.finish();
    limits
}

fn read_proxy(mut section: Section<'_>) -> ProxyLimits {
    let limits = ProxyLimits {
        workers: section.number("workers", 0, 0..=256),
        connections: section.number("connections", defaults::proxy::CONNECTIONS, 1..=2_000_000),
        drain: section.text("drain", secs(10), duration_within(secs(0), secs(3600))),
        drain_removed: section.text(
            "drain_removed",
            defaults::proxy::DRAIN_REMOVED,
            duration_within(secs(0), days(1)),
        ),
        pipes: section.number("pipes", defaults::proxy::PIPES, 0..=100_000),
        probes: section.number("probes", defaults::proxy::PROBES, 1..=100_000),
    };
    section.finish();
    limits
}

fn read_storage(mut section: Section<'_>) -> StorageLimits {
    let limits = StorageLimits {
        min_free: section.optional_text("min_free", size_within(0, 1 << 50)),
        snapshot_log_bytes: section.text(
            "snapshot_log_bytes",
            16 << 20,
            size_within(64 << 10, 1 << 40),
        ),
    };
    section.finish();
    limits
}

/// The socket's name where it lies by default.
const SOCKET_NAME: &str = "pontoon.sock";
/// What the kernel allows for the path of a unix socket, without the octet that ends it.
const SOCKET_PATH: usize = 107;

/// Faults that only several keys together make.
fn check_together(config: &NodeConfig, faults: &mut Vec<Fault>) {
    let addresses = &config.addresses;
    let listening = [
        ("addresses.raft", addresses.raft),
        ("addresses.api", addresses.api),
        ("addresses.http", addresses.http),
    ];
    let dns = addresses.dns.iter();
    let dns = dns.map(|ip| {
        (
            "addresses.dns_port",
            SocketAddr::new(*ip, addresses.dns_port),
        )
    });
    let all: Vec<(&str, SocketAddr)> = listening.into_iter().chain(dns).collect();
    for (at, (key, address)) in all.iter().enumerate() {
        let mut before = all[..at].iter().filter(|(other, _)| other != key);
        if let Some((other, theirs)) = before.find(|(_, theirs)| collide(*theirs, *address)) {
            let problem = match theirs == address {
                true => format!("{address} is also {other}; give each a port of its own"),
                false => format!(
                    "{address} and {other}, {theirs}, cannot both be listened on: one covers the other; give each a port of its own"
                ),
            };
            faults.push(Fault::new(*key, problem));
        }
    }
    faults.extend(socket_path(config));
    for (key, address) in listening {
        if config.dev && !address.ip().is_loopback() {
            let problem = format!(
                "{address} is not a loopback address; dev = true speaks plaintext and must not leave this machine"
            );
            faults.push(Fault::new(key, problem));
        }
    }
    for (key, address) in [
        ("addresses.raft", addresses.raft),
        ("addresses.api", addresses.api),
    ] {
        if is_link_local(address.ip()) || address != without_scope(address) {
            let problem = format!(
                "{address}: other members are told this address, and a device of this node means nothing to them; name a global or unique local address, such as one of fd00::/8"
            );
            faults.push(Fault::new(key, problem));
        }
        if address.ip().is_unspecified() {
            let problem = format!(
                "{address}: other members are told this address; it must be one of this node's own"
            );
            faults.push(Fault::new(key, problem));
        }
    }
}

/// Whether two sockets cannot be bound beside each other. Port 0 is any free one.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() != 0 && (covers(one, other) || covers(other, one))
}

fn socket_path(config: &NodeConfig) -> Option<Fault> {
    let path = &config.addresses.socket;
    let octets = path.as_os_str().len();
    if octets <= SOCKET_PATH {
        return None;
    }
    let whose = match *path == config.data_dir.join(SOCKET_NAME) {
        true => " (it lies in data_dir unless this key says otherwise)",
        false => "",
    };
    let problem = format!(
        "{path}{whose} has {octets} octets, and the path of a unix socket at most {SOCKET_PATH}: name a shorter one",
        path = quoted(&path.to_string_lossy())
    );
    Some(Fault::new("addresses.socket", problem))
}

fn node_name(text: &str) -> Result<String, String> {
    let label: Label = text.parse().map_err(|e: LabelError| e.to_string())?;
    if is_like_id(text) {
        return Err(format!(
            "{text} is digits alone, which commands take for a node's id; add a letter, as in {better}",
            text = quoted(text),
            better = quoted(&format!("n{text}"))
        ));
    }
    Ok(label.as_str().to_owned())
}

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!(
            "{text} is not an absolute path",
            text = quoted(text)
        ))
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{text} is not an address and a port, such as \"10.0.0.1:7400\" or \"[fd00::1]:7400\"",
            text = quoted(text)
        )
    })
}

/// Linux allows 15 octets, without spaces and slashes.
fn device_name(text: &str) -> Result<String, String> {
    let fits =
        (1..=15).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text} is not the name of a network device",
            text = quoted(text)
        ))
    }
}

/// Levels as the log library reads them.
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn log_level(text: &str) -> Result<String, String> {
    use tracing_subscriber::EnvFilter;
    // The library takes a word that is no level for the name of a part of the program, and would silence all others.
    let stray = text.split(',').map(str::trim).find(|word| {
        !word.contains('=') && !LOG_LEVELS.iter().any(|l| word.eq_ignore_ascii_case(l))
    });
    if let Some(word) = stray {
        return Err(format!(
            "{} is no level: expected {}, or directives such as \"info,pontoon::dns=debug\"",
            quoted(word),
            LOG_LEVELS.join(", ")
        ));
    }
    EnvFilter::builder()
        .parse(text)
        .map(|_| text.to_owned())
        .map_err(|e| format!("{text}: {e}; expected \"info\", \"debug\" or directives such as \"info,pontoon::dns=debug\"", text = quoted(text)))
}

fn txt_string(text: &str) -> Result<String, String> {
    if text.len() <= 255 {
        Ok(text.to_owned())
    } else {
        Err("longer than the 255 octets of a TXT string".into())
    }
}

fn duration_within(low: Duration, high: Duration) -> impl Fn(&str) -> Result<Duration, String> {
    use super::units::format_duration;
    move |text| {
        let value = parse_duration(text)?;
        let range = || {
            format!(
                "{text} is not within {} to {}",
                format_duration(low),
                format_duration(high),
                text = quoted(text)
            )
        };
        if (low..=high).contains(&value) {
            Ok(value)
        } else {
            Err(range())
        }
    }
}

fn size_within(low: u64, high: u64) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let value = parse_size(text)?;
        if (low..=high).contains(&value) {
            Ok(value)
        } else {
            Err(format!(
                "{text} is not within {low} to {high} octets",
                text = quoted(text)
            ))
        }
    }
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        name = "n1"
        data_dir = "/var/lib/pontoon"
        [addresses]
        service = ["10.0.0.1"]
        raft = "10.0.0.1:7400"
        api = "10.0.0.1:7401"
    "#;

    #[test]
    fn a_minimal_file_takes_the_defaults() {
        let config = NodeConfig::parse(MINIMAL).expect("valid");
        assert_eq!(config.addresses.dns_port, 53);
        assert_eq!(config.recovery_wait, secs(5));
        assert_eq!(config.max_stale, days(7));
        assert_eq!(config.logging.target, LogTarget::Stderr);
        assert_eq!(config.dns.identity, "n1");
        assert!(config.vip.require_fence);
        assert_eq!(config.vip.notify, None);
        assert_eq!(config.vip.notify_timeout, secs(10));
        assert_eq!(config.vip.second_chance, secs(600));
        assert_eq!(
            config.addresses.socket,
            Path::new("/var/lib/pontoon/pontoon.sock")
        );
    }

    #[test]
    fn how_vips_are_held_can_be_said() {
        let text = format!(
            "{MINIMAL}\n[vip]\nrequire_fence = false\nnotify = \"/usr/lib/notify\"\nnotify_timeout = \"2s\"\nsecond_chance = \"0s\""
        );
        let vip = NodeConfig::parse(&text).expect("valid").vip;
        let expected = VipSettings {
            require_fence: false,
            notify: Some("/usr/lib/notify".into()),
            notify_timeout: secs(2),
            second_chance: secs(0),
            reachable: vec![],
            check: None,
        };
        assert_eq!(vip, expected);
        let dev = MINIMAL.replace("10.0.0.1", "127.0.0.1");
        let dev = NodeConfig::parse(&format!("dev = true\n{dev}"));
        let faulty =
            format!("{MINIMAL}\n[vip]\nnotify = \"notify\"\nnotify_timeout = \"1ms\"\nfence = 1");
        let faults = NodeConfig::parse(&faulty).expect_err("faulty");
        let keys: Vec<_> = faults.iter().map(|f| f.key.as_str()).collect();
        assert_eq!(keys, ["vip.notify", "vip.notify_timeout", "vip.fence"]);
        if let Ok(dev) = dev {
            assert!(!dev.vip.require_fence, "loopback needs none");
        }
    }

    #[test]
    fn the_bounds_of_the_proxy_can_be_set() {
        let usual = NodeConfig::parse(MINIMAL).expect("valid").proxy;
        assert_eq!((usual.pipes, usual.probes), (256, 512));
        assert_eq!(usual.drain_removed, secs(600));
        let text = format!("{MINIMAL}\n[proxy]\npipes = 0\nprobes = 9\ndrain_removed = \"24h\"");
        let config = NodeConfig::parse(&text).expect("valid");
        let proxy = &config.proxy;
        assert_eq!((proxy.pipes, proxy.probes), (0, 9));
        assert_eq!(proxy.drain_removed, days(1));
        let other = NodeConfig::parse(MINIMAL).expect("valid");
        let keys = ["proxy.drain_removed", "proxy.pipes", "proxy.probes"];
        assert_eq!(config.differing_keys(&other), keys);
        let faulty =
            format!("{MINIMAL}\n[proxy]\npipes = 100001\nprobes = 0\ndrain_removed = \"25h\"");
        assert_eq!(NodeConfig::parse(&faulty).expect_err("faulty").len(), 3);
    }

    #[test]
    fn fitness_can_be_checked_by_a_command_and_by_addresses() {
        let text = format!(
            "{MINIMAL}\n[vip]\nreachable = [\"10.0.0.254\", \"fd00::1\"]\ncheck_script = \"/usr/lib/check\"\ncheck_fall = 2"
        );
        let vip = NodeConfig::parse(&text).expect("valid").vip;
        assert_eq!(vip.reachable.len(), 2);
        let expected = CheckScript {
            path: "/usr/lib/check".into(),
            interval: secs(1),
            timeout: secs(1),
            fall: 2,
            rise: 3,
        };
        assert_eq!(vip.check, Some(expected));
        let faulty = format!(
            "{MINIMAL}\n[vip]\nreachable = [\"127.0.0.1\"]\ncheck_rise = 0\ncheck_timeout = \"1\""
        );
        let faults = NodeConfig::parse(&faulty).expect_err("faulty");
        let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        let expected = [
            "vip.reachable",
            "vip.check_timeout",
            "vip.check_timeout",
            "vip.check_rise",
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn all_faults_are_reported_together() {
        let text = r#"
            name = "N 1"
            colour = "red"
            recovery_wait = 5
            [addresses]
            service = ["10.0.0.1", "ten"]
            dns_port = 70000
            raft = "10.0.0.1:7400"
            api = "10.0.0.1:7400"
            speed = 1
            [interfaces]
            VIP = "eth0"
            vip = "eth 0"
            [logging]
            level = "loud,,=x"
            target = "file"
        "#;
        let faults = NodeConfig::parse(text).expect_err("faulty");
        let keys: Vec<&str> = faults.iter().map(|f| f.key.as_str()).collect();
        for key in [
            "name",
            "data_dir",
            "colour",
            "recovery_wait",
            "addresses.service",
            "addresses.dns_port",
            "addresses.speed",
            "addresses.api",
            "interfaces.VIP",
            "interfaces.vip",
            "logging.file",
            "logging.level",
        ] {
            assert!(keys.contains(&key), "{key} is not among {keys:?}");
        }
    }

    #[test]
    fn a_name_is_not_taken_for_an_id() {
        for name in ["n3", "3n", "10.0.0.1", "2026-11"] {
            assert_eq!(node_name(name).as_deref(), Ok(name));
        }
        for name in ["3", "007", "18446744073709551616"] {
            let fault = node_name(name).expect_err(name);
            assert!(
                fault.contains(name) && fault.contains("node's id"),
                "{fault}"
            );
            assert!(fault.contains(&format!("n{name}")), "{fault}");
        }
    }

    #[test]
    fn an_address_is_named_once() {
        let twice = MINIMAL.replace(
            "[\"10.0.0.1\"]",
            "[\"10.0.0.1\", \"fd00::1\", \"10.0.0.1\", \"fd00:0::1\", \"10.0.0.1\"]\ndns = [\"10.0.0.2\", \"10.0.0.2\"]\nspeed = 1",
        );
        let faults = NodeConfig::parse(&twice).expect_err("faulty");
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        let expected = [
            ("addresses.service", "10.0.0.1 is there more than once"),
            ("addresses.service", "fd00::1 is there more than once"),
            ("addresses.dns", "10.0.0.2 is there more than once"),
        ];
        for ((key, problem), told) in expected.iter().zip(&told) {
            assert!(told.contains(key) && told.contains(problem), "{told}");
        }
        let once = MINIMAL.replace("[\"10.0.0.1\"]", "[\"10.0.0.1\", \"10.0.0.1\"]");
        assert_eq!(NodeConfig::parse(&once).expect_err("faulty").len(), 1);
    }

    #[test]
    fn what_cannot_be_listened_on_beside_each_other_is_refused() {
        let text = |dns_port: u16, http: &str| {
            format!("{MINIMAL}\nhttp = \"{http}\"\ndns_port = {dns_port}")
        };
        let cases = [
            (53, "127.0.0.1:7402", None),
            (53, "10.0.0.2:7401", None),
            (53, "127.0.0.1:53", None),
            (53, "10.0.0.1:0", None),
            (7400, "127.0.0.1:7402", Some("addresses.dns_port")),
            (7401, "127.0.0.1:7402", Some("addresses.dns_port")),
            (7402, "0.0.0.0:7402", Some("addresses.dns_port")),
            (53, "[::]:53", Some("addresses.dns_port")),
            (53, "10.0.0.1:7401", Some("addresses.http")),
            (53, "0.0.0.0:7401", Some("addresses.http")),
            (53, "[::]:7400", Some("addresses.http")),
        ];
        for (dns_port, http, key) in cases {
            let faults = NodeConfig::parse(&text(dns_port, http))
                .err()
                .unwrap_or_default();
            let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
            assert_eq!(keys, Vec::from_iter(key), "{dns_port} {http}: {faults:?}");
            let says = |fault: &Fault| fault.to_string().contains("give each a port of its own");
            assert!(faults.iter().all(says), "{faults:?}");
        }
    }

    #[test]
    fn a_socket_lies_where_the_kernel_can_name_it() {
        let at = |path: &str| {
            let text = format!("{MINIMAL}\nsocket = \"{path}\"");
            NodeConfig::parse(&text).err().unwrap_or_default()
        };
        assert_eq!(at(&format!("/{}", "s".repeat(106))), []);
        let faults = at(&format!("/{}", "s".repeat(107)));
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0].key, "addresses.socket");
        assert!(
            faults[0].to_string().contains("has 108 octets"),
            "{faults:?}"
        );
        // By default it lies in the data directory.
        let long = format!("/{}", "d".repeat(100));
        let text = MINIMAL.replace("/var/lib/pontoon", &long);
        let faults = NodeConfig::parse(&text).expect_err("too long");
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].to_string().contains("data_dir"), "{faults:?}");
        assert!(NodeConfig::parse(&format!("{text}\nsocket = \"/s\"")).is_ok());
    }

    #[test]
    fn link_local_addresses_are_refused() {
        let text = MINIMAL
            .replace(
                "[\"10.0.0.1\"]",
                "[\"10.0.0.1\", \"fe80::1\"]\ndns = [\"fe80::2\"]",
            )
            .replace("10.0.0.1:7400", "[fe80::1%2]:7400")
            .replace("10.0.0.1:7401", "[fd00::1%2]:7401");
        let faults = NodeConfig::parse(&text).expect_err("faulty");
        let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
        let expected = [
            "addresses.service",
            "addresses.dns",
            "addresses.raft",
            "addresses.api",
        ];
        assert_eq!(keys, expected, "{faults:?}");
        // A copy of `service` is no second fault.
        let text = MINIMAL.replace("[\"10.0.0.1\"]", "[\"fe80::1\"]");
        assert_eq!(NodeConfig::parse(&text).expect_err("faulty").len(), 1);
    }

    #[test]
    fn the_keys_of_a_check_are_named_as_they_are_written() {
        let config =
            |vip: &str| NodeConfig::parse(&format!("{MINIMAL}\n[vip]\n{vip}")).expect("valid");
        let none = config("");
        let one = config("check_script = \"/usr/lib/check\"");
        let all = config(
            "check_script = \"/c\"\ncheck_interval = \"2s\"\ncheck_timeout = \"2s\"\ncheck_fall = 4\ncheck_rise = 4",
        );
        assert_eq!(none.differing_keys(&one), ["vip.check_script"]);
        assert_eq!(one.differing_keys(&none), ["vip.check_script"]);
        let keys = ["script", "interval", "timeout", "fall", "rise"];
        let keys = keys.map(|key| format!("vip.check_{key}"));
        assert_eq!(one.differing_keys(&all), keys);
    }

    #[test]
    fn keys_that_differ_are_named() {
        let config = NodeConfig::parse(MINIMAL).expect("valid");
        assert_eq!(config.differing_keys(&config), [""; 0]);
        let text = MINIMAL.replace("7401", "7403").replace("\"n1\"", "\"n2\"")
            + "http = \"127.0.0.1:7402\"\n[interfaces]\nlan = \"eth0\"\n[dns]\nworkers = 3\nidentity = \"n1\"\n";
        let other = NodeConfig::parse(&text).expect("valid");
        let keys = ["name", "addresses.api", "interfaces.lan", "dns.workers"];
        assert_eq!(config.differing_keys(&other), keys);
        let file = |keep| LogTarget::File {
            path: "/x".into(),
            max_size: 1,
            keep,
        };
        assert_eq!(file(1).differing_keys(&file(2)), ["logging.keep"]);
        assert_eq!(
            file(1).differing_keys(&LogTarget::Stderr),
            ["logging.target"]
        );
    }

    #[test]
    fn a_misspelt_level_is_no_target() {
        for good in ["info", "DEBUG", "off", "warn,pontoon::dns=debug"] {
            assert!(log_level(good).is_ok(), "{good}");
        }
        for bad in [
            "loud",
            "inof",
            "nope nope",
            "",
            "info,",
            "pontoon::dns",
            "info,loud",
            "info,x=loud",
        ] {
            assert!(log_level(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn plaintext_stays_on_loopback() {
        let faults =
            NodeConfig::parse(&format!("dev = true\n{MINIMAL}")).expect_err("not loopback");
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn text_that_is_no_toml_is_one_fault() {
        assert_eq!(NodeConfig::parse("name = ").expect_err("no TOML").len(), 1);
    }
}
