//! Makes the checks that say whether this node is fit to hold VIPs, and tells what came of them. `vip::fitness` counts.
//!
//! The node asks its own DNS as a client does, over real sockets, because what hangs is seldom what is looked at: every worker
//! thread is reached by one of many askers, each of which keeps its port until it is answered. Every check has a bound in time; if
//! this task itself hangs, consensus hears nothing and counts the node as unfit. Ends when it is dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::process::ExitStatusExt,
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    config::node::{CheckScript, NodeConfig},
    consensus::Findings,
    model::label::Label,
    proxy::{ProxyObserver, SocketState},
    vip::{
        VipStatus,
        driver::Pulse,
        fitness::{Check, Counts, Finding, Fitness, Turn},
        lookout::Outlook,
        occupied::{self, Occupied},
    },
};

/// Between two rounds of the checks that ask something.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A round is over by then.
const ASK_LIMIT: Duration = Duration::from_millis(900);
/// An asker that gets no answer asks again so often within a round: a flood of clients may cost it one.
const ASK_AGAIN: Duration = Duration::from_millis(300);
/// Between two looks at what is known without asking.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Askers for each DNS worker: that none of them meets a worker that hangs is rarer than once in 2,000 rounds.
const ASKERS: usize = 8;
const MOST_ASKERS: usize = 64;

/// What answers is asked each second: three times without an answer, and ten times with one.
const ASKED: Counts = Counts { fall: 3, rise: 10 };
/// What is looked at four times a second. A device that comes and goes counts as gone for five seconds each time.
const DEVICE: Counts = Counts { fall: 2, rise: 20 };
/// The silence was counted already, of a network or of a disk.
const SILENCE: Counts = Counts { fall: 1, rise: 20 };

/// What the checks look at.
pub(super) struct Subjects {
    pub proxy: ProxyObserver,
    pub vips: watch::Receiver<Vec<VipStatus>>,
    pub pulse: Pulse,
    pub outlook: watch::Receiver<Outlook>,
    pub disk: DiskProblem,
    /// What somebody else has put on devices here.
    pub occupied: watch::Receiver<Occupied>,
}

impl Subjects {
    /// What is known without asking.
    fn look(&self) -> Vec<Found> {
        let cut_off = self.outlook.borrow().cut_off.clone();
        let occupied = self.occupied.borrow().clone();
        let mut found = look(&self.vips.borrow(), &cut_off, &occupied);
        found.push((Check::Disk, SILENCE, (self.disk)().map_or(Ok(()), Err)));
        found
    }
}

fn first_failed(found: &[Found]) -> Option<String> {
    found.iter().find_map(|(_, _, found)| found.clone().err())
}

/// Says why the disk of the log counts as hanging; none: it answers.
pub(super) type DiskProblem = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What came of the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Every check, and why it counts as failed.
    pub checks: Vec<(Check, Option<String>)>,
    /// Nothing speaks against a node where there are no VIPs.
    pub found: Findings,
}

/// What a check found.
type Found = (Check, Counts, Finding);

/// Checks for ever. `report` is sent after every round, whether anything changed or not.
pub(super) async fn run(config: NodeConfig, subjects: Subjects, report: watch::Sender<Report>) {
    let (sender, mut found) = mpsc::channel(16);
    let mut probes = JoinSet::new(); // ends with this future
    let settings = DnsProbe::new(&config);
    probes.spawn(ask_dns(settings, sender.clone()));
    probes.spawn(ask_threads(
        subjects.proxy.clone(),
        subjects.pulse.clone(),
        sender.clone(),
    ));
    if let Some(script) = config.vip.check.clone() {
        probes.spawn(run_script(script, sender.clone()));
    }
    drop(sender);
    let mut fitness = Fitness::default();
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changed = subjects.vips.clone();
    let mut doubt = None;
    loop {
        // No branch loses anything when it is dropped.
        let all = tokio::select! {
            Some(one) = found.recv() => vec![one],
            // It may pass, so it counts at the next ticks; till then it is a doubt.
            Ok(()) = changed.changed() => {
                doubt = first_failed(&subjects.look());
                vec![]
            }
            _ = tick.tick() => {
                let found = subjects.look();
                doubt = first_failed(&found);
                found
            }
        };
        let vips = subjects.vips.borrow().clone();
        let interfaces: BTreeSet<_> = vips.iter().map(|vip| &vip.interface).collect();
        let addresses: BTreeSet<_> = vips.iter().map(|vip| vip.address).collect();
        fitness.retain(|check| match check {
            Check::Interface(label)
            | Check::Fence(label)
            | Check::Announce(label)
            | Check::Segment(label) => interfaces.contains(label),
            Check::Vip(address) => addresses.contains(address),
            _ => true,
        });
        for one in all {
            log(take_in(&mut fitness, one));
        }
        let checks = fitness.checks();
        report.send_replace(Report {
            checks: checks
                .map(|(check, why)| (check.clone(), why.map(str::to_owned)))
                .collect(),
            found: match vips.is_empty() {
                true => Findings::default(),
                false => Findings {
                    unfit: fitness.unfit(),
                    doubt: fitness.doubt().map(str::to_owned).or_else(|| doubt.clone()),
                },
            },
        });
    }
}

/// Of a disk that answers again, and is not trusted yet, nobody is told that it does not answer.
fn take_in(fitness: &mut Fitness, (check, counts, finding): Found) -> Option<Turn> {
    let answers = check == Check::Disk && finding.is_ok();
    let turn = fitness.observe(&check, counts, finding);
    if answers {
        let trusted = (LOOK_EVERY * counts.rise).as_secs();
        // Without the time since it does: several nodes tell the same alarm, which is shown once if it has the same words.
        let words =
            format!("its disk answers again, and is trusted once it has done so for {trusted} s");
        fitness.reword(&check, words);
    }
    turn
}

fn log(turn: Option<Turn>) {
    match turn {
        Some(Turn::Failed(check, problem)) => {
            tracing::warn!(%check, problem, "a check failed: this node is unfit to hold VIPs");
        }
        Some(Turn::Passed(check)) => tracing::info!(%check, "a check passes again"),
        None => {}
    }
}

/// What is known of the VIPs without asking. `cut_off`: why the clients' side of an interface counts as such. `occupied`: what somebody else has put on
/// devices here.
fn look(vips: &[VipStatus], cut_off: &BTreeMap<Label, String>, occupied: &Occupied) -> Vec<Found> {
    let mut found = vec![];
    for vip in vips {
        let failed = |problem: &Option<String>| problem.clone().map_or(Ok(()), Err);
        let silent = cut_off.get(&vip.interface).cloned();
        // Known before this node is to hold it.
        let taken = || occupied::taken(occupied, vip.address).map(|taken| taken.to_string());
        let in_the_way = |vip: &VipStatus| vip.add_problem.clone().or_else(taken);
        let (interface, address) = (|| vip.interface.clone(), vip.address);
        found.extend([
            (
                Check::Interface(interface()),
                DEVICE,
                failed(&vip.device_problem),
            ),
            (
                Check::Fence(interface()),
                DEVICE,
                failed(&vip.fence_problem),
            ),
            (
                Check::Announce(interface()),
                DEVICE,
                failed(&vip.announce_problem),
            ),
            (Check::Vip(address), DEVICE, failed(&in_the_way(vip))),
            (Check::Segment(interface()), SILENCE, failed(&silent)),
        ]);
    }
    // Several VIPs on one interface say the same; it counts once.
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.dedup_by(|a, b| a.0 == b.0);
    found
}

/// Whether the threads that forward connections and hold VIPs live.
async fn ask_threads(proxy: ProxyObserver, mut pulse: Pulse, found: mpsc::Sender<Found>) {
    let mut tick = rounds(ASK_EVERY);
    loop {
        tick.tick().await;
        let (forwards, holds) = tokio::join!(proxy.answers(ASK_LIMIT), pulse.beats(ASK_LIMIT));
        let listeners = listeners(&proxy, forwards);
        let holding = match holds {
            true => Ok(()),
            false => Err("the thread that holds VIPs does not answer".to_owned()),
        };
        for one in [
            (Check::Listeners, ASKED, listeners),
            (Check::Holding, ASKED, holding),
        ] {
            if found.send(one).await.is_err() {
                return;
            }
        }
    }
}

fn listeners(proxy: &ProxyObserver, forwards: bool) -> Finding {
    if !forwards {
        return Err("a thread that forwards connections does not answer".to_owned());
    }
    for listener in proxy.status().listeners {
        for (address, state) in &listener.sockets {
            // What is withheld from a listener is so by the configuration: moving the VIPs would mend nothing.
            if matches!(state, SocketState::Failed { .. })
                && state.is_lasting()
                && let Some(problem) = state.problem()
            {
                return Err(format!(
                    "listener {} on {address}: {problem}",
                    listener.name
                ));
            }
        }
    }
    Ok(())
}

/// A ticker that skips what it missed.
fn rounds(every: Duration) -> tokio::time::Interval {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// Where DNS is asked, and from how many ports.
struct DnsProbe {
    addresses: Vec<SocketAddr>,
    askers: usize,
}

impl DnsProbe {
    fn new(config: &NodeConfig) -> Self {
        let workers = match config.dns.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count.into(),
        };
        let port = config.addresses.dns_port;
        let own = config.addresses.dns.iter();
        Self {
            addresses: own.map(|ip| SocketAddr::new(*ip, port)).collect(),
            askers: (ASKERS * workers).min(MOST_ASKERS),
        }
    }

    /// The address of each asker: all are in turn, so that no two of its askers share what may hang.
    fn asked(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().copied().cycle().take(self.askers)
    }
}

async fn ask_dns(probe: DnsProbe, found: mpsc::Sender<Found>) {
    let mut askers: Vec<Asker> = probe.asked().map(Asker::new).collect();
    let mut tick = rounds(ASK_EVERY);
    loop {
        tick.tick().await;
        let over_udp = futures::future::join_all(askers.iter_mut().map(Asker::ask));
        let over_tcp = futures::future::join_all(probe.addresses.iter().map(|a| ask_over_tcp(*a)));
        let (over_udp, over_tcp) = tokio::join!(over_udp, over_tcp);
        let all = over_udp.into_iter().chain(over_tcp);
        let finding = all.collect::<Result<(), String>>();
        if found.send((Check::Dns, ASKED, finding)).await.is_err() {
            return;
        }
    }
}

/// One that asks over UDP. It keeps its port, and with it the worker that serves it, until it is answered.
struct Asker {
    address: SocketAddr,
    socket: Option<UdpSocket>,
}

impl Asker {
    fn new(address: SocketAddr) -> Self {
        let socket = None;
        Self { address, socket }
    }

    async fn ask(&mut self) -> Finding {
        let address = self.address;
        let failed = |problem: String| format!("DNS on {address} over UDP: {problem}");
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connect_udp(address)
                .await
                .map_err(|e| failed(e.to_string()))?,
        };
        match timeout(ASK_LIMIT, exchange(&socket)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => {
                self.socket = Some(socket);
                Err(failed(format!("no answer within {ASK_LIMIT:?}")))
            }
        }
    }
}

async fn connect_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// Asks again and again until there is an answer.
async fn exchange(socket: &UdpSocket) -> io::Result<()> {
    let mut octets = [0; 512];
    loop {
        let query = query();
        socket.send(&query).await?;
        let answer = async {
            loop {
                let length = socket.recv(&mut octets).await?;
                if is_answer(octets.get(..length).unwrap_or_default(), &query) {
                    return Ok(());
                }
            }
        };
        match timeout(ASK_AGAIN, answer).await {
            Ok(answered) => return answered,
            Err(_) => continue,
        }
    }
}

async fn ask_over_tcp(address: SocketAddr) -> Finding {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let query = query();
        let length = u16::try_from(query.len()).unwrap_or(u16::MAX);
        let framed = [&length.to_be_bytes()[..], &query].concat();
        stream.write_all(&framed).await?;
        let mut octets = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut octets).await?;
        match is_answer(&octets, &query) {
            true => Ok(()),
            false => Err(io::Error::other("what came is no answer")),
        }
    };
    let problem = match timeout(ASK_LIMIT, exchange).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {ASK_LIMIT:?}"),
    };
    Err(format!("DNS on {address} over TCP: {problem}"))
}

/// `localhost. A`, which every node answers by itself, whatever it serves. What the answer says is no matter.
fn query() -> Vec<u8> {
    let id: u16 = rand::random();
    let mut query = id.to_be_bytes().to_vec();
    query.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    query.extend_from_slice(b"\x09localhost\x00");
    query.extend_from_slice(&[0, 1, 0, 1]);
    query
}

fn is_answer(octets: &[u8], query: &[u8]) -> bool {
    let is_reply = octets.get(2).is_some_and(|flags| flags & 0x80 != 0);
    is_reply && octets.get(..2) == query.get(..2)
}

async fn run_script(script: CheckScript, found: mpsc::Sender<Found>) {
    let counts = Counts {
        fall: script.fall,
        rise: script.rise,
    };
    let mut tick = rounds(script.interval);
    loop {
        tick.tick().await;
        let finding = run_once(&script).await;
        if found.send((Check::Script, counts, finding)).await.is_err() {
            return;
        }
    }
}

/// Runs the command to its end, or kills it with everything that it started.
async fn run_once(script: &CheckScript) -> Finding {
    let path = script.path.display();
    let mut command = tokio::process::Command::new(&script.path);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .map_err(|error| format!("{path} cannot be started: {error}"))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    match timeout(script.timeout, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(match (status.code(), status.signal()) {
            (Some(code), _) => format!("{path} ended with {code}"),
            (None, signal) => format!("{path} was ended by signal {}", signal.unwrap_or(0)),
        }),
        Ok(Err(error)) => Err(format!("{path} cannot be waited for: {error}")),
        Err(_) => {
            if let Some(group) = group {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL); // ended meanwhile: as well
            }
            let _ = child.wait().await;
            Err(format!("{path} took longer than {:?}", script.timeout))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

    use super::*;

    fn script(dir: &tempfile::TempDir, text: &str) -> CheckScript {
        let path = dir.path().join("check");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        CheckScript {
            path,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(20),
            fall: 1,
            rise: 1,
        }
    }

    #[test]
    fn each_vip_and_each_of_their_interfaces_is_looked_at_once() {
        let vip = |last: u8, add_problem: Option<&str>| VipStatus {
            address: [10, 77, 0, last].into(),
            interface: "lan".parse().unwrap(),
            device: Some("eth0".to_owned()),
            held: false,
            since: None,
            fence: Default::default(),
            problem: None,
            device_problem: None,
            fence_problem: Some("no fence".to_owned()),
            announce_problem: Some("no CAP_NET_RAW".to_owned()),
            add_problem: add_problem.map(str::to_owned),
            conflict: None,
        };
        let cut_off = [("lan".parse().unwrap(), "silence".to_owned())].into();
        let vips = [vip(100, None), vip(101, Some("taken")), vip(102, None)];
        let occupied = [([10, 77, 0, 102].into(), "eth7".to_owned())].into();
        let found = look(&vips, &cut_off, &occupied);
        let told: Vec<_> = found
            .into_iter()
            .map(|(check, _, finding)| (check.name(), finding.err()))
            .collect();
        let there = "10.77.0.102 is already on this node's device eth7, put there by somebody else; remove it, or choose another address for \
                     the VIP";
        let expected = [
            ("interface lan", None),
            ("fence lan", Some("no fence")),
            ("announce lan", Some("no CAP_NET_RAW")),
            ("vip 10.77.0.100", None),
            ("vip 10.77.0.101", Some("taken")),
            ("vip 10.77.0.102", Some(there)),
            ("segment lan", Some("silence")),
        ];
        let expected = expected.map(|(name, why)| (name.to_owned(), why.map(str::to_owned)));
        assert_eq!(told, expected);
    }

    #[test]
    fn a_disk_that_answers_again_is_said_to_until_it_is_trusted() {
        const HANGS: &str = "its disk has not answered for 10 s";
        const ANSWERS: &str = "its disk answers again, and is trusted once it has done so for 5 s";
        let mut fitness = Fitness::default();
        let mut unfit_after = |finding: Finding| {
            take_in(&mut fitness, (Check::Disk, SILENCE, finding));
            fitness.unfit()
        };
        assert_eq!(unfit_after(Ok(())), None);
        for _ in 0..2 {
            assert_eq!(unfit_after(Err(HANGS.into())).as_deref(), Some(HANGS));
            for _ in 1..SILENCE.rise {
                assert_eq!(unfit_after(Ok(())).as_deref(), Some(ANSWERS));
            }
        }
        assert_eq!(unfit_after(Ok(())), None);
    }

    #[tokio::test]
    async fn a_command_passes_by_its_exit_status() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run_once(&script(&dir, "exit 0")).await, Ok(()));
        let failed = run_once(&script(&dir, "exit 3")).await.unwrap_err();
        assert!(failed.ends_with("ended with 3"), "{failed}");
        let killed = run_once(&script(&dir, "kill -9 $$")).await.unwrap_err();
        assert!(killed.ends_with("signal 9"), "{killed}");
        let absent = CheckScript {
            path: dir.path().join("absent"),
            ..script(&dir, "")
        };
        let absent = run_once(&absent).await.unwrap_err();
        assert!(absent.contains("cannot be started"), "{absent}");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let told = dir.path().join("pid");
        let text = format!("sleep 600 & echo $! > {}; wait", told.display());
        let hanging = CheckScript {
            timeout: Duration::from_secs(2),
            ..script(&dir, &text)
        };
        let problem = run_once(&hanging).await.unwrap_err();
        assert!(problem.contains("took longer than 2s"), "{problem}");
        let pid: i32 = fs::read_to_string(&told).unwrap().trim().parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        // Killed, and gone or waiting for whoever reaps it.
        let is_over = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.map_or(true, |text| text.contains(") Z "))
        };
        while !is_over() {
            assert!(Instant::now() < deadline, "it still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn an_asker_is_answered_or_keeps_its_port() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut asker = Asker::new(server.local_addr().unwrap());
        let mut octets = [0; 512];
        let silent = asker.ask().await.unwrap_err();
        assert!(silent.contains("no answer"), "{silent}");
        let (_, first) = server.recv_from(&mut octets).await.unwrap();
        let answering = async {
            loop {
                let (length, from) = server.recv_from(&mut octets).await.unwrap();
                octets[2] |= 0x80;
                server.send_to(&octets[..length], from).await.unwrap();
                assert_eq!(from, first);
            }
        };
        let asked = tokio::select! {
            asked = asker.ask() => asked,
            () = answering => unreachable!("it goes on for ever"),
        };
        assert_eq!(asked, Ok(()));
        assert!(asker.socket.is_none(), "the next round has another port");
    }

    #[test]
    fn an_answer_is_a_reply_to_this_query() {
        let query = query();
        let mut answer = query.clone();
        assert!(!is_answer(&answer, &query));
        answer[2] |= 0x80;
        assert!(is_answer(&answer, &query));
        answer[0] ^= 1;
        assert!(!is_answer(&answer, &query));
        assert!(!is_answer(&[], &query));
    }
}
