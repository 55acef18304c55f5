//! A holder that cannot serve gives the VIPs to a node that can, though its process lives and its peers hear it; and nobody is moved
//! to and fro.
//!
//! Needs root; says `skipped` without, and fails where `CI=true`.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use jepsen_like::{
    arp,
    lab::{
        self,
        cluster::{CLIENT, Cluster, NAME, dns_at, vip4, wait_for},
        network,
    },
    probe::Prober,
};
use nix::unistd::Pid;
use pontoon::{
    model::{leadership::Preference, node::NodeId, vip::Vip},
    state::command::Change,
};
use pontoon_proto::v1::StatusReply;

/// Three failures a second apart, and what a busy machine adds.
const BOUND: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// Threads of a process that are stopped for as long as this lives, while the others go on.
struct Stopped(Vec<Pid>);

impl Stopped {
    /// Those whose name begins with `name`.
    fn threads(process: Pid, name: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let called = |id: &i32| {
            let comm = fs::read_to_string(format!("/proc/{process}/task/{id}/comm"));
            comm.is_ok_and(|comm| comm.starts_with(name))
        };
        let ids = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
        let threads: Vec<Pid> = ids.filter(called).map(Pid::from_raw).collect();
        for thread in &threads {
            trace(libc::PTRACE_SEIZE, *thread);
            trace(libc::PTRACE_INTERRUPT, *thread);
        }
        Self(threads)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for thread in &self.0 {
            // Only one that has stopped can be let go.
            let _ = nix::sys::wait::waitpid(*thread, Some(nix::sys::wait::WaitPidFlag::__WALL));
            trace(libc::PTRACE_DETACH, *thread);
        }
    }
}

#[expect(unsafe_code, reason = "nix has no call that stops one thread")]
fn trace(request: libc::c_uint, thread: Pid) {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests read and write no memory of either process.
    let done = unsafe { libc::ptrace(request, thread.as_raw(), none, none) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn cluster() -> Option<Cluster> {
    lab::available().then(|| Cluster::start(3).unwrap_or_else(|error| panic!("{error}")))
}

fn holder(cluster: &Cluster) -> String {
    cluster.wait_for_holder().unwrap().name().to_owned()
}

/// What a node that leads, or another one, says of the cluster.
fn status(cluster: &Cluster) -> Option<StatusReply> {
    cluster.leader_now()?.client().status(PATIENCE).ok()
}

fn wait_until(cluster: &Cluster, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    wait_for(what, BOUND, || Ok(condition().then_some(())))
        .unwrap_or_else(|error| panic!("{}", cluster.with_logs(error)));
    start.elapsed()
}

/// Waits until another node than `first` leads and holds.
fn wait_for_another(cluster: &Cluster, first: &str) -> Duration {
    wait_until(cluster, &format!("another holder than {first}"), || {
        let leader = cluster.leader_now().map(|node| node.name().to_owned());
        let other = leader.is_some_and(|leader| leader != first);
        other && holder(cluster) != first
    })
}

fn says_unfit(cluster: &Cluster, name: &str, why: &str) -> bool {
    let found = status(cluster);
    let nodes = found.iter().flat_map(|status| &status.nodes);
    let mut of_name = nodes.filter(|node| node.name == name);
    of_name.any(|node| node.unfit.contains(why))
}

fn is_fit(cluster: &Cluster, name: &str) -> bool {
    let found = status(cluster);
    let nodes = found.iter().flat_map(|status| &status.nodes);
    let mut of_name = nodes.filter(|node| node.name == name && node.state != "unreachable");
    of_name.any(|node| node.unfit.is_empty())
}

#[test]
fn a_holder_whose_dns_threads_hang_gives_the_vips_away() {
    let Some(cluster) = cluster() else { return };
    let first = holder(&cluster);
    let client = cluster.client().clone();
    let prober = Prober::dns(&client, dns_at(vip4()), NAME, Duration::from_millis(10)).unwrap();
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    let from = Instant::now();
    let stopped = Stopped::threads(cluster.node(&first).unwrap().pid().unwrap(), "dns-");
    assert!(!stopped.0.is_empty(), "no thread of DNS was found");
    let took = wait_for_another(&cluster, &first);
    prober.wait_until_live("DNS from the VIP", BOUND).unwrap();
    let (_, gap) = prober.longest_gap_since(from);
    println!("hanging DNS threads: another holder after {took:?}, clients waited {gap:?}");
    wait_until(&cluster, "the reason in the status", || {
        says_unfit(&cluster, &first, "DNS")
    });
    let alarm = "is unfit to hold the VIPs";
    let told = status(&cluster).is_some_and(|s| s.alarms.iter().any(|a| a.contains(alarm)));
    assert!(told, "an alarm names the node");

    drop(stopped);
    wait_until(&cluster, "the node fit again", || is_fit(&cluster, &first));
    assert_ne!(holder(&cluster), first, "it does not take the VIPs back");
}

/// Adds to the `[vip]` of every node, which has none so far, and starts it again.
fn reconfigure(cluster: &mut Cluster, text: impl Fn(&str) -> String) {
    let names: Vec<String> = cluster
        .nodes()
        .iter()
        .map(|n| n.name().to_owned())
        .collect();
    for name in names {
        let node = cluster.node_mut(&name).unwrap();
        node.stop().unwrap();
        let mut file = fs::File::options()
            .append(true)
            .open(node.config())
            .unwrap();
        file.write_all(format!("\n[vip]\n{}\n", text(&name)).as_bytes())
            .unwrap();
        node.start().unwrap();
        cluster.wait_until_whole().unwrap();
    }
    cluster.wait_for_holder().unwrap();
}

#[test]
fn a_holder_that_no_client_reaches_or_whose_check_fails_gives_the_vips_away() {
    let Some(mut cluster) = cluster() else { return };
    let directory = cluster.lab().directory().to_owned();
    let client_address = network::ipv4(200);
    reconfigure(&mut cluster, |name| {
        // One script for each node: it is told nothing.
        let own = directory.join(format!("check-{name}"));
        let bad = directory.join(format!("bad-{name}"));
        fs::write(&own, format!("#!/bin/sh\ntest ! -e {}\n", bad.display())).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        format!(
            "reachable = [\"{client_address}\"]\ncheck_script = \"{}\"\ncheck_fall = 2\ncheck_rise = 2\ncheck_interval = \"300ms\"",
            own.display()
        )
    });
    for node in cluster.nodes() {
        let name = node.name().to_owned();
        wait_until(&cluster, &format!("{name} fit"), || is_fit(&cluster, &name));
    }

    let first = holder(&cluster);
    fs::write(directory.join(format!("bad-{first}")), "").unwrap();
    let took = wait_for_another(&cluster, &first);
    println!("a check that fails: another holder after {took:?}");
    wait_until(&cluster, "the reason in the status", || {
        says_unfit(&cluster, &first, "ended with 1")
    });
    // It is not taken back by the way: an unfit node is refused as the target.
    let second = holder(&cluster);
    assert_ne!(second, first);
    fs::remove_file(directory.join(format!("bad-{first}"))).unwrap();
    wait_until(&cluster, "the node fit again", || is_fit(&cluster, &first));

    // Its peers go on hearing it: only the client's frames do not arrive.
    let mac = cluster
        .lab()
        .host(CLIENT)
        .unwrap()
        .mac(network::DEVICE)
        .unwrap();
    let host = cluster.node(&second).unwrap().host();
    let filter = format!(
        "add table netdev cut; add chain netdev cut in {{ type filter hook ingress device \"{}\" priority -400; }}; \
         add rule netdev cut in ether saddr {mac} drop",
        network::DEVICE
    );
    host.output("nft", &[&filter]).unwrap();
    let took = wait_for_another(&cluster, &second);
    println!("the clients' side is cut: another holder after {took:?}");
    wait_until(&cluster, "the reason in the status", || {
        says_unfit(&cluster, &second, "reachable")
    });
}

#[test]
fn a_thief_is_told_by_its_ethernet_address() {
    let Some(mut cluster) = cluster() else { return };
    let thief = cluster.add_host("thief", 220).unwrap();
    holder(&cluster);
    let address = format!("{}/32", vip4());
    thief
        .ip(&["address", "add", &address, "dev", network::DEVICE])
        .unwrap();
    let mac = thief.mac(network::DEVICE).unwrap();
    let octets = arp::parse_mac(&mac).unwrap();
    let std::net::IpAddr::V4(vip) = vip4() else {
        unreachable!("it is of IPv4")
    };
    arp::send(&thief, network::DEVICE, &arp::announcement(octets, vip)).unwrap();
    let took = wait_until(&cluster, "an alarm that names the thief", || {
        status(&cluster).is_some_and(|s| s.alarms.iter().any(|alarm| alarm.contains(&mac)))
    });
    println!("the thief was told after {took:?}");
}

/// How often `words` stand in the nodes' logs.
fn logged(cluster: &Cluster, words: &str) -> usize {
    let logs = cluster.nodes().iter().map(|node| {
        let text = fs::read_to_string(node.log()).unwrap();
        text.matches(words).count()
    });
    logs.sum()
}

/// How often a leader has given the VIPs away for the sake of the preferred node.
fn given_to_the_preferred(cluster: &Cluster) -> usize {
    logged(cluster, "the preferred node has been fit")
}

#[test]
fn what_makes_all_nodes_unfit_at_one_moment_does_not_send_the_vips_round() {
    let Some(cluster) = cluster() else { return };
    holder(&cluster);
    let names: Vec<String> = (cluster.nodes().iter())
        .map(|node| node.name().to_owned())
        .collect();
    for name in &names {
        wait_until(&cluster, &format!("{name} fit"), || is_fit(&cluster, name));
    }
    let address = network::ipv4(199).into();
    let vip = Vip {
        address,
        interface: "nosuch".parse().unwrap(),
    };
    let propose = |change: Change| {
        let leader = cluster.leader().unwrap();
        leader.client().propose(&[change], PATIENCE).unwrap();
    };
    propose(Change::PutVip { vip, create: true });
    for name in &names {
        wait_until(&cluster, &format!("{name} unfit"), || {
            says_unfit(&cluster, name, "nosuch")
        });
    }
    propose(Change::DeleteVip { address });
    for name in &names {
        wait_until(&cluster, &format!("{name} fit"), || is_fit(&cluster, name));
    }
    // One may be given them that had not heard of it yet.
    let refused = logged(&cluster, "leadership was not handed over");
    let moves = logged(&cluster, "handing leadership and the VIPs over") - refused;
    println!("{moves} moves when all became unfit");
    assert!(moves <= 1, "{moves} moves");
}

#[test]
fn the_preferred_node_gets_the_vips_once_a_cool_down_however_often_its_device_comes_and_goes() {
    let Some(cluster) = cluster() else { return };
    let first = holder(&cluster);
    let ids = status(&cluster).unwrap().nodes;
    let preferred = ids.iter().find(|node| node.name != first).unwrap();
    let name = preferred.name.clone();
    let cool_down = Duration::from_secs(6);
    let change = Change::SetPreference {
        preference: Some(Preference {
            node: NodeId(preferred.id),
            cool_down,
        }),
    };
    let set = Instant::now();
    let leader = cluster.leader().unwrap();
    leader.client().propose(&[change], PATIENCE).unwrap();
    wait_until(&cluster, "the preferred node holds", || {
        cluster.leader_now().is_some_and(|node| node.name() == name)
    });
    // By chance it may have been elected before: then nobody gave it anything.
    assert!(
        set.elapsed() >= cool_down || given_to_the_preferred(&cluster) == 0,
        "not before the cool-down"
    );
    wait_until(&cluster, "the address there", || holder(&cluster) == name);

    // Its link goes down and up for a while: it loses the VIPs once, and gets them back only when it was left alone.
    let begin = Instant::now();
    let mut moves = 0;
    let mut last = name.clone();
    let mut note = |cluster: &Cluster| {
        if let Some(leader) = cluster.leader_now().map(|node| node.name().to_owned())
            && leader != last
        {
            moves += 1;
            last = leader;
        }
    };
    while begin.elapsed() < Duration::from_secs(12) {
        cluster.lab().network().unplug(&name).unwrap();
        std::thread::sleep(Duration::from_millis(900)); // how the link behaves
        note(&cluster);
        cluster.lab().network().plug(&name).unwrap();
        std::thread::sleep(Duration::from_millis(600));
        note(&cluster);
    }
    let flapped = begin.elapsed();
    let most = 1 + 2 * (flapped.as_secs() / cool_down.as_secs());
    println!("{moves} moves while the link came and went for {flapped:?}");
    if moves < 1 || moves > most {
        let wrong = lab::LabError::Waited {
            what: format!("1 to {most} moves, not {moves},"),
            seconds: flapped.as_secs(),
        };
        panic!("{}", cluster.with_logs(wrong));
    }
    let quiet = Instant::now();
    let given = given_to_the_preferred(&cluster);
    wait_for("the preferred node holds again", BOUND * 2, || {
        Ok(cluster
            .leader_now()
            .is_some_and(|node| node.name() == name)
            .then_some(()))
    })
    .unwrap_or_else(|error| panic!("{}", cluster.with_logs(error)));
    assert!(
        quiet.elapsed() >= Duration::from_secs(4) || given_to_the_preferred(&cluster) == given,
        "{:?}",
        quiet.elapsed()
    );
}
