//! The node as the API, the metrics and the readiness endpoint see it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use arc_swap::ArcSwapOption;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{alarms::Alarms, group::NodeGroup, services::Observed};
use crate::{
    api::group::{
        BackendHealth, BackendVerdict, DnsAnswer, FlushScope, Group, HeldVip, ListenerReport,
        NodeControl, NodeReport, Reloaded,
    },
    config::{node::NodeConfig, reserved::Reserved, units::format_duration},
    consensus::{Consensus, MemberRole, Recovery},
    dns::Flush,
    enrol::IdentityFile,
    model::{
        few::{and_more, first_few},
        moment::moment_of,
        name::Name,
        network::Network,
        node::Member,
        rrset::RecordType,
    },
    pki::{validity::Left, verify::Expected},
    proxy::{SocketState, Verdict},
    telemetry::{http::Readiness, log::Log},
    transport::{
        Security,
        connect::{Link, channel_over},
    },
    vip::{Fence, lookout::networks_by_device},
    wire::error::{Failure, FailureCode},
};

/// What a node says of itself from its stop on, when DNS and listeners take nothing new.
pub(super) const STOPPING: &str =
    "it is stopping: connections that are open are served to their end";

/// What is known of the running node. Parts appear as the node comes up.
pub(super) struct Control {
    config: NodeConfig,
    config_path: PathBuf,
    log: Mutex<Log>,
    security: OnceLock<Security>,
    consensus: OnceLock<Consensus>,
    services: ArcSwapOption<Observed>,
    /// Why the services did not start at the last try.
    not_started: Mutex<Option<String>>,
    stop: CancellationToken,
    left: AtomicBool,
}

impl Control {
    pub(super) fn new(
        config: NodeConfig,
        config_path: PathBuf,
        log: Log,
        stop: CancellationToken,
    ) -> Self {
        Self {
            config,
            config_path,
            log: Mutex::new(log),
            security: OnceLock::new(),
            consensus: OnceLock::new(),
            services: ArcSwapOption::empty(),
            not_started: Mutex::default(),
            stop,
            left: AtomicBool::new(false),
        }
    }

    /// The node has an identity and takes part in its group.
    pub(super) fn joined(&self, security: Security, consensus: Consensus) {
        // Set once: a node has one identity in its lifetime.
        let _ = self.security.set(security);
        let _ = self.consensus.set(consensus);
    }

    pub(super) fn serving(&self, services: Option<Observed>) {
        *self.why_not_started() = None;
        self.services.store(services.map(Arc::new));
    }

    /// The services could not be started; they are tried again.
    pub(super) fn not_started(&self, problem: String) {
        *self.why_not_started() = Some(problem);
    }

    fn why_not_started(&self) -> MutexGuard<'_, Option<String>> {
        self.not_started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn services(&self) -> Option<Arc<Observed>> {
        self.services.load_full()
    }

    pub(super) fn consensus(&self) -> Option<&Consensus> {
        self.consensus.get()
    }

    /// Whether the node has left its cluster.
    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    pub(super) fn dropped_log_lines(&self) -> u64 {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .dropped_lines()
    }

    /// Reads the configuration and the certificate again.
    pub(super) fn reload_settings(&self) -> Result<Reloaded, Failure> {
        let failed = |object: &str, problem: String| {
            Failure::new(
                FailureCode::Invalid,
                object,
                problem,
                "correct it and reload again; nothing was changed by it",
            )
        };
        // The error names the file.
        let fresh = NodeConfig::load(&self.config_path)
            .map_err(|e| failed("configuration", e.to_string()))?;
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut applied, mut needs_restart) = log
            .reload(&fresh.logging)
            .map_err(|e| failed("logging", e.to_string()))?;
        drop(log);
        needs_restart.extend(self.config.differing_keys(&fresh));
        if let Some(Security::Tls(shared)) = self.security.get() {
            let identity = IdentityFile::in_dir(&self.config.data_dir).load();
            let identity = identity.map_err(|e| failed("identity", e.to_string()))?;
            let credentials = identity.map(|identity| identity.credentials());
            let credentials = credentials.transpose();
            let credentials = credentials.map_err(|e| failed("certificate", e.to_string()))?;
            if let Some(credentials) = credentials.flatten() {
                shared.replace(credentials);
                applied.push("certificate read again".into());
            }
        }
        Ok(Reloaded {
            applied,
            needs_restart,
        })
    }

    fn not_serving(&self) -> Vec<String> {
        let Some(consensus) = self.consensus() else {
            return vec![super::membership::why_outside(&self.config.data_dir)];
        };
        let mut problems = match *consensus.recovery().borrow() {
            Recovery::Recovering => vec!["the state is being recovered".into()],
            Recovery::Stopped(reason) => vec![reason.to_string()],
            Recovery::Current | Recovery::Stale => Vec::new(),
        };
        match self.services() {
            None if problems.is_empty() => {
                let why = self.why_not_started().clone();
                problems.push(without_services(self.stop.is_cancelled(), why));
            }
            None => {}
            Some(services) => problems.extend(unbound(&services)),
        }
        problems
    }
}

/// Why a node serves nothing that has its state: `not_started` is what became of the last try.
fn without_services(stops: bool, not_started: Option<String>) -> String {
    match (stops, not_started) {
        (true, _) => STOPPING.into(),
        (false, Some(why)) => why,
        (false, None) => "the services are being started".into(),
    }
}

/// Attempts to bind an address of a VIP for DNS, some 700 ms, after which it raises an alarm.
const DNS_LASTING: u32 = 4;

/// Addresses that could not be bound. What is withheld from a listener is not among them: the node serves all that it ever
/// can, and there is an alarm.
fn unbound(services: &Observed) -> Vec<String> {
    let mut problems = Vec::new();
    for listener in services.proxy.status().listeners {
        for (address, state) in listener.sockets {
            if let SocketState::Failed { error, .. } = state {
                problems.push(format!("listener {} on {address}: {error}", listener.name));
            }
        }
    }
    let unbound = services.dns.unbound();
    problems.extend(unbound.iter().map(ToString::to_string));
    problems
}

/// Adds what stays unbound: what is tried a moment longer is no matter for a person.
fn add_lasting(alarms: &mut Alarms, services: &Observed) {
    for listener in services.proxy.status().listeners {
        let sockets = listener.sockets.iter().filter(|(_, s)| s.is_lasting());
        alarms
            .listeners
            .extend(sockets.filter_map(|(address, state)| {
                Some(format!(
                    "listener {} does not answer on {address}: {}",
                    listener.name,
                    state.problem()?
                ))
            }));
    }
    let unbound = services.dns.unbound();
    let lasting = unbound.iter().filter(|u| u.attempts >= DNS_LASTING);
    let told = lasting.map(|u| format!("{u}; it is tried again every second"));
    alarms.dns.extend(told);
}

#[tonic::async_trait]
impl NodeControl for Control {
    fn group(&self) -> Option<Arc<dyn Group>> {
        let consensus = self.consensus()?.clone();
        Some(Arc::new(NodeGroup {
            consensus,
            services: self.services(),
        }))
    }

    fn outside(&self) -> Failure {
        super::membership::outside(&self.config.data_dir)
    }

    fn report(&self) -> NodeReport {
        let services = self.services();
        NodeReport {
            name: self.config.name.clone(),
            pid: std::process::id(),
            raft_address: Some(self.config.addresses.raft),
            api_address: Some(self.config.addresses.api),
            not_serving: self.not_serving(),
            held_vips: services
                .as_deref()
                .map(|s| held_vips(s, self.config.dev))
                .unwrap_or_default(),
            occupied: services
                .as_deref()
                .map(|services| services.occupied.borrow().clone())
                .unwrap_or_default(),
            unfenced_vips: match services.as_deref() {
                Some(services) if !self.config.dev => unfenced_vips(services),
                _ => vec![],
            },
            backends: services.as_deref().map(backends).unwrap_or_default(),
            listeners: services.as_deref().map(listeners).unwrap_or_default(),
            alarms: self.alarms().told(),
            service_addresses: self.config.addresses.service.clone(),
            interfaces: self
                .config
                .interfaces
                .keys()
                .map(ToString::to_string)
                .collect(),
        }
    }

    fn authority_fingerprint(&self) -> Option<String> {
        match self.security.get() {
            Some(Security::Tls(shared)) => shared.current().authority_fingerprint(),
            _ => None,
        }
    }

    fn networks(&self) -> BTreeMap<String, BTreeSet<Network>> {
        let by_device = networks_by_device();
        let interfaces = self.config.interfaces.iter();
        let mapped = interfaces.filter_map(|(label, device)| {
            Some((label.to_string(), by_device.get(device)?.clone()))
        });
        mapped.collect()
    }

    fn reserved(&self) -> Reserved {
        Reserved::of(&self.config)
    }

    fn channel(&self, member: &Member) -> Channel {
        let local = if self.config.dev {
            None
        } else {
            Some(self.own_address())
        };
        let link = Link {
            local,
            ..Link::default()
        };
        let security = self.security.get().cloned().unwrap_or(Security::Plain);
        channel_over(
            link,
            member.api_address,
            &security,
            Expected::Node(member.id),
        )
    }

    async fn reload(&self) -> Result<Reloaded, Failure> {
        self.reload_settings()
    }

    fn dns_counters(&self) -> Vec<(String, u64)> {
        self.services()
            .map(|services| crate::dns::metrics::counters(&services.dns.stats()))
            .unwrap_or_default()
    }

    fn dns_flush(&self, what: &FlushScope) -> u64 {
        let flush = match what {
            FlushScope::All => Flush::All,
            FlushScope::Name(name) => Flush::Name(name.as_wire().into()),
            FlushScope::Subtree(name) => Flush::Subtree(name.as_wire().into()),
        };
        self.services()
            .map_or(0, |services| services.dns.flush(&flush))
    }

    async fn dns_query(&self, name: &Name, rtype: RecordType) -> Result<DnsAnswer, Failure> {
        let problem = |text: &str| {
            Failure::new(
                FailureCode::NotReady,
                "DNS",
                text,
                "look at `pontoon cluster status`",
            )
        };
        let services = self
            .services()
            .ok_or_else(|| problem("this node does not serve"))?;
        let reply = services.dns.query_local(name, rtype, true).await;
        let reply = reply.ok_or_else(|| problem("the reply could not be read"))?;
        Ok(DnsAnswer {
            source: reply.source.word().to_owned(),
            message: reply.octets,
        })
    }

    fn stop(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.stop.cancel();
    }
}

impl Control {
    /// The address that our own connections leave from.
    pub(super) fn own_address(&self) -> IpAddr {
        self.config.addresses.raft.ip()
    }

    /// What needs a person.
    pub(super) fn alarms(&self) -> Alarms {
        let mut alarms = Alarms::default();
        let single = &mut alarms.single;
        single.extend(self.consensus().into_iter().flat_map(|c| c.status().alarms));
        single.extend(self.consensus().and_then(slow_disk));
        single.extend(self.why_not_started().clone());
        if let Some(Security::Tls(shared)) = self.security.get() {
            match shared.current().tolerated() {
                0 => {}
                count => single.push(format!("{count} certificates were believed only thanks to the tolerance for clocks: compare the clocks of the nodes")),
            }
            let end = shared.current().end();
            single.extend(end.and_then(|end| not_renewed(end, SystemTime::now())));
        }
        if let Some(services) = self.services() {
            alarms.look_at(&services.vips.borrow(), &services.occupied.borrow());
            add_lasting(&mut alarms, &services);
        }
        alarms
    }
}

/// That this node's certificate, which it renews long before `end`, is about to end all the same.
fn not_renewed(end: SystemTime, now: SystemTime) -> Option<String> {
    let word = match Left::at(now, end) {
        Left::Enough => return None,
        Left::Little => "ends",
        Left::Nothing => "ended",
    };
    Some(format!(
        "this node's certificate {word} at {} and was not renewed: its log says why",
        moment_of(end)
    ))
}

/// That this voter's disk is slower than the timing of the cluster allows for. The same words on every node: they are told once.
fn slow_disk(consensus: &Consensus) -> Option<String> {
    let status = consensus.status();
    let own = status.nodes.iter().find(|node| node.id == consensus.id())?;
    let flush = consensus.log_figures().fresh_flush(Instant::now())?;
    let slowest = consensus.timing().slowest_flush();
    (own.role == MemberRole::Voter && flush > slowest).then(|| {
        format!(
            "a flush of the disk takes more than {}, a quarter of election_timeout_min: elections may fail; choose a slower profile or a faster disk",
            format_duration(slowest)
        )
    })
}

/// The VIPs that no fence stands for here, held or not.
fn unfenced_vips(services: &Observed) -> Vec<IpAddr> {
    let vips = services.vips.borrow();
    let unfenced = vips.iter().filter(|vip| vip.fence == Fence::None);
    unfenced.map(|vip| vip.address).collect()
}

fn held_vips(services: &Observed, dev: bool) -> Vec<HeldVip> {
    let vips = services.vips.borrow();
    let fence = |vip: &crate::vip::driver::VipStatus| {
        if dev {
            "loopback".to_owned()
        } else {
            vip.fence.to_string()
        }
    };
    vips.iter()
        .filter(|vip| vip.held)
        .map(|vip| HeldVip {
            address: vip.address,
            fence: fence(vip),
        })
        .collect()
}

fn backends(services: &Observed) -> Vec<BackendVerdict> {
    let mut verdicts = Vec::new();
    for pool in services.proxy.status().pools {
        for backend in pool.backends {
            let health = match (backend.checked, backend.presumed, backend.verdict) {
                (false, _, _) => BackendHealth::Unchecked,
                (true, true, _) => BackendHealth::Unknown,
                (true, false, Verdict::Up) => BackendHealth::Up,
                (true, false, Verdict::Down) => BackendHealth::Down,
            };
            verdicts.push(BackendVerdict {
                pool: pool.name.to_string(),
                backend: backend.name.to_string(),
                health,
                connections: backend.connections.into(),
                problem: backend.problem().unwrap_or_default().to_owned(),
                since: backend.verdict_age,
            });
        }
    }
    verdicts
}

fn listeners(services: &Observed) -> Vec<ListenerReport> {
    let report = |listener: crate::proxy::ListenerStatus| {
        let mut problems = Vec::new();
        let mut bound = Vec::new();
        for (address, state) in listener.sockets {
            match state.problem() {
                None => bound.push(address),
                Some(problem) => problems.push(format!("{address}: {problem}")),
            }
        }
        let connections = listener.connections.into();
        ListenerReport {
            listener: listener.name.to_string(),
            bound,
            problem: first_few(problems, and_more).join("; "),
            connections,
        }
    };
    services
        .proxy
        .status()
        .listeners
        .into_iter()
        .map(report)
        .collect()
}

impl Readiness for Control {
    fn problems(&self) -> Vec<String> {
        self.not_serving()
    }

    fn quorum_problem(&self) -> Option<String> {
        let Some(consensus) = self.consensus() else {
            return Some(super::membership::why_outside(&self.config.data_dir));
        };
        match *consensus.recovery().borrow() {
            Recovery::Current if consensus.present_leader().is_some() => None,
            _ => Some(consensus.why_leaderless().to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_node_that_stops_is_not_said_to_start() {
        assert_eq!(without_services(true, None), STOPPING);
        assert_eq!(without_services(true, Some("in use".into())), STOPPING);
        assert_eq!(without_services(false, Some("in use".into())), "in use");
        assert!(without_services(false, None).contains("being started"));
    }

    #[test]
    fn a_certificate_that_nobody_renewed_raises_an_alarm() {
        let end = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let day = Duration::from_secs(86_400);
        assert_eq!(not_renewed(end, end - 31 * day), None);
        for (now, told) in [(end - 29 * day, "ends at"), (end + day, "ended at")] {
            let alarm = not_renewed(end, now).expect("an alarm");
            assert!(
                alarm.contains(told) && alarm.contains("2023-11-14"),
                "{alarm}"
            );
        }
    }
}
