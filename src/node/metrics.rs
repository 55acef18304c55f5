//! What the node counts, gathered at each scrape.

use std::sync::Arc;

use super::control::Control;
use crate::{
    consensus, dns, proxy,
    telemetry::metrics::{Kind, Metric, Source},
    vip::Fence,
};

/// The sources of this node's metrics.
pub(super) fn sources(control: &Arc<Control>) -> Vec<Source> {
    let control = Arc::clone(control);
    vec![Arc::new(move || gather(&control))]
}

fn gather(control: &Control) -> Vec<Metric> {
    let mut metrics = process();
    metrics.push(Metric::counter(
        "log_dropped",
        "Log lines lost because the writer was too slow",
        control.dropped_log_lines(),
    ));
    let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    metrics.push(Metric::labelled(
        "build_info",
        "The running program",
        Kind::Gauge,
        vec![(build, 1.0)],
    ));
    if let Some(consensus) = control.consensus() {
        metrics.extend(consensus::metrics::of_group(&consensus.status()));
        metrics.extend(consensus::metrics::of_storage(
            &consensus.health().borrow(),
            &consensus.log_figures(),
        ));
    }
    if let Some(services) = control.services() {
        metrics.extend(dns::metrics::of(&services.dns.stats()));
        metrics.extend(proxy::metrics::of(&services.proxy.status()));
        let vips = services.vips.borrow();
        let held = vips.iter().map(|vip| {
            let labels = vec![("address", vip.address.to_string())];
            (labels, f64::from(u8::from(vip.held)))
        });
        let fenced = vips.iter().map(|vip| {
            let labels = vec![("address", vip.address.to_string())];
            (labels, f64::from(u8::from(vip.fence == Fence::Kernel)))
        });
        metrics.push(Metric::labelled(
            "vip_fenced",
            "1 while the kernel keeps this node silent about the VIP unless it holds it",
            Kind::Gauge,
            fenced,
        ));
        metrics.push(Metric::labelled(
            "vip_held",
            "1 while this node holds the VIP",
            Kind::Gauge,
            held,
        ));
    }
    metrics
}

/// Memory and file descriptors of this process, from `/proc/self`.
fn process() -> Vec<Metric> {
    let mut metrics = Vec::new();
    if let Some(resident) = resident_bytes() {
        metrics.push(Metric::gauge(
            "process_resident_bytes",
            "Resident memory",
            resident as f64,
        ));
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        metrics.push(Metric::gauge(
            "process_open_fds",
            "Open file descriptors",
            entries.count() as f64,
        ));
    }
    metrics
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
