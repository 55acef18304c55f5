//! How long the VIP is silent when its holder is lost or moved, beside keepalived with an advertisement every second (its
//! default) and every tenth of one. All in one run, in the same lab, seen by the same prober: a DNS question every 2 ms.
//!
//! Needs root; keepalived's part also needs keepalived, and says so when it is not there. No figure is a test: the targets stand
//! beside what was measured.
//!
//! `cargo bench -p jepsen-like --bench failover -- --runs 50`

mod keepalived;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use clap::Parser;
use jepsen_like::{
    census::{Census, time_of_several},
    failover::{self, Spread},
    lab::{
        self, LabError,
        cluster::{BACKEND, Cluster, Fault, NAME, dns_at, vip4, wait_for},
        network, program,
    },
    probe::Prober,
    traffic::{self, Traffic},
};
use pontoon::model::timing::Profile;

use keepalived::Pair;

const INTERVAL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(30);
const STEADY: Duration = Duration::from_millis(500);
/// Of the service behind the connections of a planned move.
const ECHO: u16 = 7007;
const FAULTS: [(Kind, Fault, &str); 3] = [
    (Kind::Cut, Fault::Cut, "link cut"),
    (Kind::Kill, Fault::Kill, "kill -9"),
    (Kind::Pause, Fault::Pause, "SIGSTOP"),
];
const PROFILES: [Profile; 2] = [Profile::Lan, Profile::Fast];
const ADVERTS: [&str; 2] = ["1", "0.1"];

/// What happens to the holder.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Cut,
    Kill,
    Pause,
    Move,
}

/// Silence of a VIP at failover and planned moves, beside keepalived.
#[derive(Parser)]
struct Options {
    /// Runs of each fault.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Connections through the VIP in a planned move.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    connections: u32,
    /// Without keepalived.
    #[arg(long)]
    alone: bool,
    /// Only keepalived.
    #[arg(long)]
    peer_only: bool,
    /// Only these: `cut`, `kill`, `pause`, `move`. By default all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Only this timing profile of Pontoon. By default `lan` and `fast`.
    #[arg(long, value_parser = named_profile)]
    profile: Option<Profile>,
    /// Prints every planned move: its silence, and why connections ended.
    #[arg(long)]
    moves: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn named_profile(word: &str) -> Result<Profile, String> {
    Profile::of_word(word).ok_or_else(|| "not `lan`, `fast` or `wan`".to_owned())
}

impl Options {
    fn wants(&self, kind: Kind) -> bool {
        self.only.is_empty() || self.only.contains(&kind)
    }

    fn faults(&self) -> impl Iterator<Item = (Fault, &'static str)> {
        FAULTS
            .into_iter()
            .filter(|(kind, ..)| self.wants(*kind))
            .map(|(_, fault, name)| (fault, name))
    }
}

/// What the runs of one fault on one subject gave.
struct Row {
    subject: String,
    fault: &'static str,
    dns: Vec<Duration>,
    writes: Vec<Duration>,
    /// Time in which two hosts answered for the VIP, over all runs.
    several: Duration,
    /// Connections that were lost, of how many.
    lost: Option<(usize, usize)>,
}

impl Row {
    fn new(subject: String, fault: &'static str) -> Self {
        Self {
            subject,
            fault,
            dns: vec![],
            writes: vec![],
            several: Duration::ZERO,
            lost: None,
        }
    }

    fn print(&self) {
        let spread = |gaps: &[Duration]| match Spread::of(gaps.iter().copied()) {
            Some(spread) => format!("{:>9.1}{:>9.1}", ms(spread.median), ms(spread.worst)),
            None => format!("{:>9}{:>9}", "-", "-"),
        };
        let lost = self
            .lost
            .map_or("-".to_owned(), |(lost, of)| format!("{lost} of {of}"));
        println!(
            "{:<20}{:<14}{:>5}{}{}{:>12.0}{lost:>16}",
            self.subject,
            self.fault,
            self.dns.len(),
            spread(&self.dns),
            spread(&self.writes),
            ms(self.several),
        );
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn main() -> Result<(), LabError> {
    let options = Options::parse();
    if let Some(reason) = lab::missing() {
        println!("skipped: {reason}");
        return Ok(());
    }
    println!(
        "{:<20}{:<14}{:>5}{:>18}{:>18}{:>12}{:>16}",
        "", "", "", "DNS silent, ms", "writes, ms", "two answer,", "connections"
    );
    println!(
        "{:<20}{:<14}{:>5}{:>9}{:>9}{:>9}{:>9}{:>12}{:>16}",
        "subject", "fault", "runs", "median", "worst", "median", "worst", "ms", "lost"
    );
    let profiles = options.profile.map_or(PROFILES.to_vec(), |only| vec![only]);
    for profile in profiles.into_iter().filter(|_| !options.peer_only) {
        of_pontoon(&options, profile)?;
    }
    let has_keepalived = std::process::Command::new("keepalived")
        .arg("--version")
        .output()
        .is_ok();
    match (options.alone, has_keepalived) {
        (true, _) => {}
        (false, false) => println!("skipped: keepalived is not installed"),
        (false, true) => {
            for advert in ADVERTS {
                of_keepalived(&options, advert)?;
            }
        }
    }
    println!(
        "targets: link cut, kill -9, SIGSTOP: median 350 ms, worst 700 ms in lan; median 220 ms in fast; never two that answer. \
         Planned move: 10 ms, no connection lost."
    );
    Ok(())
}

fn census_of(
    host: &std::sync::Arc<jepsen_like::lab::namespace::Namespace>,
) -> Result<Census, LabError> {
    let IpAddr::V4(vip) = vip4() else {
        return Err(LabError::NoNode);
    };
    Census::start(host, vip)
}

fn of_pontoon(options: &Options, profile: Profile) -> Result<(), LabError> {
    let mut cluster = Cluster::start(3)?;
    let witness = cluster.add_host("witness", 220)?;
    let backend = SocketAddr::new(network::ipv4(210).into(), ECHO);
    let listener = cluster
        .lab()
        .host(BACKEND)?
        .enter(|| TcpListener::bind(backend))?;
    traffic::serve_echo(listener.map_err(LabError::Directory)?);
    let leader = cluster.leader()?;
    let site = traffic::echo_site(ECHO, backend);
    leader.client().propose(&site, PATIENCE)?;
    let pontoon = program::pontoon()?.display().to_string();
    let name = profile.to_string();
    let socket = format!("unix:{}", leader.client().socket().display());
    let set = ["cluster", "profile", "set", &name, "--endpoints", &socket];
    leader.host().output(&pontoon, &set)?;
    let subject = format!("pontoon {profile}");
    for (fault, name) in options.faults() {
        let mut row = Row::new(subject.clone(), name);
        for _ in 0..options.runs {
            let census = census_of(&witness)?;
            let gaps = failover::once(&mut cluster, fault)?;
            row.dns.push(gaps.dns);
            row.writes.push(gaps.write);
            row.several += time_of_several(&census.finish());
        }
        row.print();
    }
    if !options.wants(Kind::Move) {
        return Ok(());
    }
    let mut quiet = Row::new(subject.clone(), "no move");
    let mut row = Row::new(subject, "planned move");
    let (mut lost, mut opened) = (0, 0);
    for run in 1..=options.runs {
        let census = census_of(&witness)?;
        let Moved {
            before,
            gap,
            begins,
            ends,
        } = move_pontoon(&cluster, options.connections as usize)?;
        quiet.dns.push(before);
        row.dns.push(gap);
        row.several += time_of_several(&census.finish());
        if options.moves || !ends.is_empty() {
            println!(
                "  move {run}: {:.1} ms, {:.1} ms after the command, {} lost {}",
                ms(gap),
                ms(begins),
                ends.len(),
                counted(&ends)
            );
        }
        lost += ends.len();
        opened += options.connections as usize;
    }
    row.lost = Some((lost, opened));
    quiet.print();
    row.print();
    Ok(())
}

/// Each reason and how often it was given.
fn counted(reasons: &[String]) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let texts = counts
        .iter()
        .map(|(text, count)| format!("({count}: {text})"));
    texts.collect::<Vec<_>>().join(" ")
}

/// What one planned move gave.
struct Moved {
    /// The longest silence in a time of the same length before it: what this machine does to the same traffic by itself.
    before: Duration,
    /// The longest silence.
    gap: Duration,
    /// How long after the command it began.
    begins: Duration,
    /// Why connections ended.
    ends: Vec<String>,
}

fn move_pontoon(cluster: &Cluster, connections: usize) -> Result<Moved, LabError> {
    cluster.wait_until_whole()?;
    let holder = cluster.wait_for_holder()?.name().to_owned();
    let client = cluster.client();
    let prober = Prober::dns(client, dns_at(vip4()), NAME, INTERVAL)?;
    let traffic = Traffic::start(client, SocketAddr::new(vip4(), ECHO), connections)?;
    traffic.wait_for_exchanges(2)?;
    prober.wait_until_live("DNS from the VIP", PATIENCE)?;
    let from = Instant::now();
    std::thread::sleep(STEADY);
    let (_, before) = prober.answers().longest_gap(from, Instant::now());
    let from = Instant::now();
    cluster.leader()?.client().transfer(PATIENCE)?;
    wait_for("another holder", PATIENCE, || {
        let now = cluster.wait_for_holder()?;
        Ok((now.name() != holder).then_some(()))
    })?;
    prober.wait_until_live("DNS from the VIP", PATIENCE)?;
    std::thread::sleep(STEADY);
    let (begins, gap) = prober.longest_gap_since(from);
    traffic.wait_for_exchanges(4)?;
    Ok(Moved {
        before,
        gap,
        begins: begins.saturating_duration_since(from),
        ends: traffic.finish(),
    })
}

fn of_keepalived(options: &Options, advert: &str) -> Result<(), LabError> {
    let mut pair = Pair::start(advert, ECHO)?;
    let witness = pair.lab_mut().add_host("witness", 220)?;
    let subject = format!("keepalived {advert} s");
    for (fault, name) in options.faults() {
        let mut row = Row::new(subject.clone(), name);
        for _ in 0..options.runs {
            pair.wait_until_settled()?;
            let census = census_of(&witness)?;
            let prober = Prober::dns(pair.client(), dns_at(vip4()), NAME, INTERVAL)?;
            prober.wait_until_live("DNS from the VIP", PATIENCE)?;
            std::thread::sleep(STEADY);
            let from = Instant::now();
            pair.inject(fault)?;
            pair.wait_for_other()?;
            prober.wait_until_live("DNS from the VIP", PATIENCE)?;
            std::thread::sleep(STEADY);
            row.dns.push(prober.longest_gap_since(from).1);
            row.several += time_of_several(&census.finish());
            pair.heal(fault)?;
        }
        row.print();
    }
    if !options.wants(Kind::Move) {
        return Ok(());
    }
    let mut row = Row::new(subject, "planned move");
    let connections = options.connections as usize;
    let (mut lost, mut opened) = (0, 0);
    for _ in 0..options.runs {
        pair.wait_until_settled()?;
        std::thread::sleep(STEADY);
        let prober = Prober::dns(pair.client(), dns_at(vip4()), NAME, INTERVAL)?;
        let traffic = Traffic::start(pair.client(), SocketAddr::new(vip4(), ECHO), connections)?;
        traffic.wait_for_exchanges(2)?;
        let from = Instant::now();
        pair.stop_master()?;
        pair.wait_for_other()?;
        prober.wait_until_live("DNS from the VIP", PATIENCE)?;
        std::thread::sleep(STEADY);
        row.dns.push(prober.longest_gap_since(from).1);
        lost += traffic.finish().len();
        opened += connections;
        pair.start_master()?;
    }
    row.lost = Some((lost, opened));
    row.print();
    Ok(())
}
