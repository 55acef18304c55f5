//! A process that holds VIPs and is nothing else: no consensus, a lease for as long as it lives. For trying what becomes of an
//! address when the process that holds it is killed, stopped or lacks a privilege.

use std::{
    io::{self, Write},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use pontoon::{
    model::{leadership::Leadership, node::NodeId, snapshot::Snapshot, vip::Vip},
    vip::{FenceWish, VipConfig, VipDriver, VipError, VipStatus},
};
use tokio::sync::watch;

/// The logical interface name that the tests use.
pub const INTERFACE: &str = "vip";
const LEASE: Duration = Duration::from_millis(300);

/// A snapshot with these VIPs and nothing else.
pub fn snapshot_with(vips: &[IpAddr]) -> Arc<Snapshot> {
    let vip = |address: &IpAddr| {
        let interface = INTERFACE.parse().expect("a valid label");
        let address = *address;
        (address, Vip { address, interface })
    };
    Arc::new(Snapshot {
        vips: vips.iter().map(vip).collect(),
        ..Snapshot::default()
    })
}

/// The configuration of a node whose VIPs are on `device`.
pub fn config_on(device: &str) -> VipConfig {
    let label = INTERFACE.parse().expect("a valid label");
    VipConfig {
        interfaces: [(label, device.to_owned())].into(),
        ..VipConfig::default()
    }
}

/// The same without a fence.
pub fn unfenced_on(device: &str) -> VipConfig {
    VipConfig {
        fence: FenceWish::Off,
        ..config_on(device)
    }
}

/// Standing of a leader whose lease lasts `lease` from now.
pub fn leading(term: u64, lease: Duration) -> Leadership {
    Leadership {
        term,
        leader: Some(NodeId(1)),
        lease_until: Some(Instant::now() + lease),
        given_up: false,
        heir: None,
        granted_in: None,
    }
}

/// Holds until the process ends; prints a line whenever a VIP's status changes: the address, `held` or `not held`, the problem.
pub async fn hold(device: &str, vips: &[IpAddr]) -> Result<(), VipError> {
    let (leadership, leadership_receiver) = watch::channel(leading(1, LEASE));
    let (_snapshots, snapshots_receiver) = watch::channel(snapshot_with(vips));
    let driver = VipDriver::start(config_on(device), leadership_receiver, snapshots_receiver)?;
    let mut status = driver.status();
    let mut renewal = tokio::time::interval(LEASE / 6);
    loop {
        // Either branch may be dropped: a missed change is seen at the next, a missed tick comes at once.
        tokio::select! {
            _ = renewal.tick() => drop(leadership.send_replace(leading(1, LEASE))),
            changed = status.changed() => match changed {
                Ok(()) if print_status(&status.borrow_and_update()).is_ok() => {}
                _ => return Ok(()), // the driver ended, or nobody reads any more
            },
        }
    }
}

fn print_status(all: &[VipStatus]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for vip in all {
        let held = if vip.held { "held" } else { "not held" };
        let problem = vip.problem.as_deref().unwrap_or("");
        writeln!(out, "{} {held} {problem}", vip.address)?;
    }
    out.flush()
}
