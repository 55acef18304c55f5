//! Measures what a client sees when the leader is lost: how long the VIP does not answer, and how long writes are not accepted.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    lab::{
        LabError,
        client::Client,
        cluster::{Cluster, Fault, NAME, dns_at, page_at, vip4, vip6, wait_for, write_of},
    },
    probe::{Answers, Prober},
};

/// Between two questions of the DNS prober; half of it is the error of a measured gap.
const DNS_INTERVAL: Duration = Duration::from_millis(2);
const PAGE_INTERVAL: Duration = Duration::from_millis(10);
const WRITE_INTERVAL: Duration = Duration::from_millis(5);
/// A write that is not accepted by then is given up, and another one tried.
const WRITE_PATIENCE: Duration = Duration::from_millis(100);
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Every service must have been answering for so long before a fault, and must go on for so long after it.
const STEADY: Duration = Duration::from_millis(500);

/// The longest silence of each service around one fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Gaps {
    /// DNS over UDP from the IPv4 VIP.
    #[serde(serialize_with = "as_millis")]
    pub dns: Duration,
    /// The same from the IPv6 VIP.
    #[serde(serialize_with = "as_millis")]
    pub dns6: Duration,
    /// The proxied page, a new connection to the VIP each time.
    #[serde(serialize_with = "as_millis")]
    pub page: Duration,
    /// Accepted writes.
    #[serde(serialize_with = "as_millis")]
    pub write: Duration,
}

fn as_millis<S: serde::Serializer>(gap: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(millis(*gap))
}

fn millis(gap: Duration) -> f64 {
    (gap.as_secs_f64() * 10_000.0).round() / 10.0
}

/// Faults the leader once, waits until another node serves everything again, heals, and waits until the cluster is whole.
pub fn once(cluster: &mut Cluster, fault: Fault) -> Result<Gaps, LabError> {
    cluster.wait_until_whole()?;
    let leader = cluster.leader()?.name().to_owned();
    wait_for("the VIPs on the leader", BACK_WITHIN, || {
        let node = cluster.node(&leader)?;
        Ok((node.has_address(vip4())? && node.has_address(vip6())?).then_some(()))
    })?;
    let probers = Probers::start(cluster, &leader)?;
    probers.wait_until_steady()?;

    let from = Instant::now();
    cluster.inject(fault, &leader)?;
    wait_for("the VIPs on another node", BACK_WITHIN, || {
        for node in cluster.nodes().iter().filter(|node| node.name() != leader) {
            if node.has_address(vip4())? && node.has_address(vip6())? {
                return Ok(Some(()));
            }
        }
        Ok(None)
    })?;
    probers.wait_until_steady()?;
    let gaps = probers.finish(from);
    cluster.heal(fault, &leader)?;
    cluster.wait_until_whole()?;
    Ok(gaps)
}

/// One prober for each service.
struct Probers {
    dns: Prober,
    dns6: Prober,
    page: Prober,
    write: Prober,
}

impl Probers {
    /// Writes go to a node that will not be faulted.
    fn start(cluster: &Cluster, faulted: &str) -> Result<Self, LabError> {
        let client = cluster.client();
        let survivor = cluster.nodes().iter().find(|node| node.name() != faulted);
        let survivor = survivor.ok_or(LabError::NoNode)?;
        let writer = Client::to(survivor.client().socket())?;
        let mut written = 0u64;
        let write = move || {
            written += 1;
            let change = write_of(&format!("write-{written}"));
            writer.propose(&[change], WRITE_PATIENCE).is_ok()
        };
        Ok(Self {
            dns: Prober::dns(client, dns_at(vip4()), NAME, DNS_INTERVAL)?,
            dns6: Prober::dns(client, dns_at(vip6()), NAME, DNS_INTERVAL)?,
            page: Prober::http(client, page_at(vip4()), PAGE_INTERVAL),
            write: Prober::of(WRITE_INTERVAL, write),
        })
    }

    fn named(&self) -> [(&'static str, &Prober); 4] {
        [
            ("DNS from the IPv4 VIP", &self.dns),
            ("DNS from the IPv6 VIP", &self.dns6),
            ("the page from the VIP", &self.page),
            ("an accepted write", &self.write),
        ]
    }

    fn wait_until_steady(&self) -> Result<(), LabError> {
        for (what, prober) in self.named() {
            prober.wait_until_live(what, BACK_WITHIN)?;
        }
        std::thread::sleep(STEADY);
        for (what, prober) in self.named() {
            prober.wait_until_live(what, BACK_WITHIN)?;
        }
        Ok(())
    }

    fn finish(self, from: Instant) -> Gaps {
        let until = Instant::now();
        let gap = |answers: Answers| answers.longest_gap(from, until).1;
        Gaps {
            dns: gap(self.dns.finish()),
            dns6: gap(self.dns6.finish()),
            page: gap(self.page.finish()),
            write: gap(self.write.finish()),
        }
    }
}

/// Median and worst of one service over all runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Spread {
    #[serde(serialize_with = "as_millis", rename = "median_ms")]
    pub median: Duration,
    #[serde(serialize_with = "as_millis", rename = "worst_ms")]
    pub worst: Duration,
}

impl Spread {
    /// None of no runs. Of an even number the upper median: never flattering.
    pub fn of(gaps: impl IntoIterator<Item = Duration>) -> Option<Self> {
        let mut sorted: Vec<_> = gaps.into_iter().collect();
        sorted.sort_unstable();
        Some(Self {
            median: *sorted.get(sorted.len() / 2)?,
            worst: *sorted.last()?,
        })
    }
}

/// What many runs gave.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    pub fault: String,
    pub runs: Vec<Gaps>,
}

impl Report {
    fn services(&self) -> [(&'static str, Option<Spread>); 4] {
        let spread = |gap: fn(&Gaps) -> Duration| Spread::of(self.runs.iter().map(gap));
        [
            ("DNS answer, IPv4 VIP", spread(|gaps| gaps.dns)),
            ("DNS answer, IPv6 VIP", spread(|gaps| gaps.dns6)),
            ("proxied page, VIP", spread(|gaps| gaps.page)),
            ("accepted write", spread(|gaps| gaps.write)),
        ]
    }

    /// One JSON document: fault, runs, and the spread of each service.
    pub fn to_json(&self) -> serde_json::Value {
        let spread: serde_json::Map<_, _> = self
            .services()
            .into_iter()
            .map(|(service, spread)| (service.to_owned(), serde_json::json!(spread)))
            .collect();
        serde_json::json!({ "fault": self.fault, "runs": self.runs, "spread": spread })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.runs.len();
        writeln!(f, "fault {}, {runs} runs, longest silence:", self.fault)?;
        writeln!(f, "{:<24}{:>12}{:>12}", "", "median", "worst")?;
        for (service, spread) in self.services() {
            let Some(spread) = spread else { continue };
            let (median, worst) = (millis(spread.median), millis(spread.worst));
            writeln!(f, "{service:<24}{median:>9.1} ms{worst:>9.1} ms")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_of_the_sorted_gaps() {
        let ms = Duration::from_millis;
        let spread = Spread::of([ms(5), ms(1), ms(9), ms(3)]).unwrap();
        assert_eq!((spread.median, spread.worst), (ms(5), ms(9)));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn the_report_names_every_service() {
        let gap = Duration::from_micros(412_340);
        let gaps = Gaps {
            dns: gap,
            dns6: gap,
            page: gap,
            write: gap * 2,
        };
        let report = Report {
            fault: "kill".to_owned(),
            runs: vec![gaps],
        };
        let text = report.to_string();
        assert!(
            text.contains("accepted write              824.7 ms    824.7 ms"),
            "{text}"
        );
        let json = report.to_json();
        assert_eq!(json["spread"]["DNS answer, IPv4 VIP"]["median_ms"], 412.3);
    }
}
