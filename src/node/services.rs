//! What clients see: DNS, listeners and VIPs. Started when there is a state to serve, stopped when it may be served no
//! longer; none of them knows of consensus.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::fitness::{self, DiskProblem, Report, Subjects};
use crate::{
    config::{node::NodeConfig, reserved::Reserved},
    dns::{self, CacheLimits, DnsConfig, DnsServer, ForwardLimits, Identity, TcpLimits},
    model::{
        leadership::Leadership,
        snapshot::Snapshot,
        vip::{UnclaimedVips, VipFacts, VipPeers},
    },
    proxy::{self, Drain, Proxy, ProxyConfig, ProxyLimits, ProxyObserver, VipBinding},
    vip::{
        self,
        driver::{FenceWish, Mode, VipConfig, VipDriver, VipError, VipStatus},
        machine::Timing,
        notify::NotifyCommand,
        occupied::{self, Occupied},
    },
};

/// Longest wait for DNS answers that are under way when the node stops.
const DNS_DRAIN: Duration = Duration::from_secs(2);
/// Longest wait for a notify command that tells of the last release.
const NOTIFY_DRAIN: Duration = Duration::from_secs(2);

/// Why the services did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    #[error(transparent)]
    Dns(#[from] dns::StartError),
    #[error(transparent)]
    Proxy(#[from] proxy::StartError),
    #[error(transparent)]
    Vip(#[from] VipError),
}

/// The running services.
pub(super) struct Services {
    dns: Arc<DnsServer>,
    proxy: Proxy,
    vip: VipDriver,
    drain: Duration,
    fitness: watch::Receiver<Report>,
    occupied: watch::Receiver<Occupied>,
    /// These end with this value.
    _checks: AbortOnDropHandle<()>,
    _looks: Option<AbortOnDropHandle<()>>,
}

/// What others may look at while the services run.
#[derive(Clone)]
pub(super) struct Observed {
    pub(super) dns: Arc<DnsServer>,
    pub(super) proxy: ProxyObserver,
    pub(super) vips: watch::Receiver<Vec<VipStatus>>,
    pub(super) fitness: watch::Receiver<Report>,
    /// Addresses that can be held here as no VIP, since somebody else has put them on a device.
    pub(super) occupied: watch::Receiver<Occupied>,
}

impl Services {
    /// Opens the sockets and serves. DNS runs on `dns_runtime`. `front` need only tell of changes of the front door; DNS is
    /// given every snapshot by `DnsServer::serve`.
    pub(super) fn start(
        config: &NodeConfig,
        dns_runtime: &Handle,
        front: watch::Receiver<Arc<Snapshot>>,
        leadership: watch::Receiver<Leadership>,
        peers: watch::Receiver<VipPeers>,
        disk: DiskProblem,
    ) -> Result<Self, ServicesError> {
        let vip_config = VipConfig {
            peers: Some(peers),
            ..vip_config(config)
        };
        let vip = VipDriver::start(vip_config, leadership, front.clone())?;
        let proxy = Proxy::start(proxy_config(config, &vip), front.clone())?;
        let dns = {
            let _dns_runtime = dns_runtime.enter();
            DnsServer::start(dns_config(config, &vip), front)?
        };
        let (sender, occupied) = watch::channel(Occupied::new());
        // The VIPs of a local cluster are on no device.
        let looks = (!config.dev).then(|| tokio::spawn(occupied::run(sender)));
        let subjects = Subjects {
            proxy: proxy.observer(),
            vips: vip.status(),
            pulse: vip.pulse(),
            outlook: vip.outlook(),
            disk,
            occupied: occupied.clone(),
        };
        let (report, fitness) = watch::channel(Report::default());
        let checks = fitness::run(config.clone(), subjects, report);
        let checks = AbortOnDropHandle::new(tokio::spawn(checks));
        Ok(Self {
            dns: Arc::new(dns),
            proxy,
            vip,
            drain: config.proxy.drain,
            fitness,
            occupied,
            _checks: checks,
            _looks: looks.map(AbortOnDropHandle::new),
        })
    }

    pub(super) fn observed(&self) -> Observed {
        Observed {
            dns: Arc::clone(&self.dns),
            proxy: self.proxy.observer(),
            vips: self.vip.status(),
            fitness: self.fitness.clone(),
            occupied: self.occupied.clone(),
        }
    }

    /// What came of the checks, after each round of them.
    pub(super) fn fitness(&self) -> watch::Receiver<Report> {
        self.fitness.clone()
    }

    /// What the other members are to know of the VIPs here.
    pub(super) fn vip_facts(&self) -> watch::Receiver<VipFacts> {
        self.vip.facts()
    }

    /// The VIPs that this node holds as the first member.
    pub(super) fn vip_claims(&self) -> watch::Receiver<UnclaimedVips> {
        self.vip.claims()
    }

    /// The last term whose lease was taken back and under which nothing is held any more.
    pub(super) fn released(&self) -> watch::Receiver<u64> {
        self.vip.released()
    }

    /// Withdraws the VIPs; what comes back serves on without them.
    pub(super) async fn withdraw(self) -> Withdrawn {
        let vip = self.vip.withdraw().await;
        Withdrawn {
            vip,
            dns: self.dns,
            proxy: self.proxy,
            drain: self.drain,
        }
    }
}

/// Services after their VIPs are gone.
pub(super) struct Withdrawn {
    vip: vip::driver::Withdrawn,
    dns: Arc<DnsServer>,
    proxy: Proxy,
    drain: Duration,
}

impl Withdrawn {
    /// The same, with less patience for connections.
    pub(super) async fn stop_within(mut self, drain: Duration, cut_short: CancellationToken) {
        self.drain = self.drain.min(drain);
        self.stop(cut_short).await;
    }

    /// Finishes what is under way and frees every port. `cut_short` ends the connections that are left at once.
    pub(super) async fn stop(self, cut_short: CancellationToken) {
        let proxy = self.proxy.stop(Drain {
            deadline: Instant::now() + self.drain,
            cut_short,
        });
        let (dns_in_time, ()) = tokio::join!(self.dns.stop(DNS_DRAIN), proxy);
        // Until here connections through a VIP that was handed over were served.
        self.vip.end().await.wait(NOTIFY_DRAIN).await;
        if !dns_in_time {
            tracing::warn!("DNS did not finish within {DNS_DRAIN:?}");
        }
    }
}

fn vip_config(config: &NodeConfig) -> VipConfig {
    let mode = if config.dev {
        Mode::LoopbackStandIn
    } else {
        Mode::Kernel
    };
    let settings = &config.vip;
    VipConfig {
        mode,
        fence: if settings.require_fence {
            FenceWish::Required
        } else {
            FenceWish::IfPossible
        },
        notify: settings.notify.clone().map(|path| NotifyCommand {
            path,
            timeout: settings.notify_timeout,
        }),
        interfaces: config.interfaces.clone(),
        timing: Timing {
            second_chance: settings.second_chance,
            ..Timing::default()
        },
        own_addresses: config
            .addresses
            .service
            .iter()
            .chain(&config.addresses.dns)
            .copied()
            .collect(),
        needed: [config.addresses.raft.ip(), config.addresses.api.ip()]
            .into_iter()
            .chain(config.addresses.service.iter().copied())
            .collect(),
        reachable: settings.reachable.iter().copied().collect(),
        ..VipConfig::default()
    }
}

fn proxy_config(config: &NodeConfig, vip: &VipDriver) -> ProxyConfig {
    ProxyConfig {
        service_addresses: config.addresses.service.clone(),
        workers: config.proxy.workers.into(),
        limits: ProxyLimits {
            connections: config.proxy.connections,
            pipes: config.proxy.pipes,
            probes: config.proxy.probes as usize,
            drain: config.proxy.drain_removed,
            ..ProxyLimits::default()
        },
        // In `dev` every node could bind every VIP: the socket stands in for the address.
        vip_binding: if config.dev {
            VipBinding::WhenHeld(vip.held())
        } else {
            VipBinding::Always
        },
        reserved: Reserved::of(config),
    }
}

fn dns_config(config: &NodeConfig, vip: &VipDriver) -> DnsConfig {
    let (addresses, limits) = (&config.addresses, &config.dns);
    let shown = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let cache = CacheLimits {
        bytes: usize::try_from(limits.cache_size).unwrap_or(usize::MAX),
        ..CacheLimits::default()
    };
    let forward = ForwardLimits {
        cache,
        max_outstanding: limits.upstream_queries as usize,
        max_waiting: limits.waiting_questions as usize,
        max_waiting_per_client: limits.waiting_questions_per_client as usize,
        sources: [&addresses.dns[..], &addresses.service].concat(),
        ..ForwardLimits::default()
    };
    DnsConfig {
        addresses: addresses
            .dns
            .iter()
            .map(|ip| SocketAddr::new(*ip, addresses.dns_port))
            .collect(),
        vip_port: addresses.vip_dns_port,
        vips_held: config.dev.then(|| vip.held()),
        workers: limits.workers.into(),
        identity: Identity {
            version: shown(&limits.version),
            hostname: shown(&limits.identity),
        },
        tcp: TcpLimits {
            max_connections: limits.tcp_connections as usize,
            max_connections_per_client: limits.tcp_connections_per_client as usize,
            ..TcpLimits::default()
        },
        forward,
    }
}
