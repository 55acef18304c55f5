//! The userspace switch between two hosts: late and lost frames in one direction, and what it costs without either.
//!
//! Needs root and nft; says `skipped` without, and fails where `CI=true`.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use jepsen_like::lab::{
    self, Lab,
    namespace::Namespace,
    network::{self, DEVICE},
    switch::{Rule, Switch},
};

const HOSTS: [(&str, u8); 2] = [("n1", 11), ("n2", 12)];

struct Pair {
    lab: Lab,
    hosts: [Arc<Namespace>; 2],
    macs: BTreeMap<String, String>,
}

impl Pair {
    fn make() -> Option<Self> {
        if !lab::available() {
            return None;
        }
        if let Some(reason) = Switch::missing() {
            lab::skip(reason);
            return None;
        }
        let mut lab = Lab::create().unwrap();
        let hosts = HOSTS.map(|(name, number)| lab.add_host(name, number).unwrap());
        let macs = HOSTS.map(|(name, _)| {
            let mac = lab.host(name).unwrap().mac(DEVICE).unwrap();
            (name.to_owned(), mac)
        });
        let macs = macs.into();
        Some(Self { lab, hosts, macs })
    }

    fn switch(&self, rules: &[Rule]) -> Switch {
        Switch::start(self.lab.network().switch(), &self.macs, rules, 7).unwrap()
    }

    /// Both directions as they were, by way of the switch.
    fn transparent(&self) -> Switch {
        self.switch(&[rule("n1", "n2", 0, 0), rule("n2", "n1", 0, 0)])
    }

    /// Sends so many questions, one after the other; how long each answer took, without those that never came.
    fn ask(&self, count: usize, patience: Duration) -> Vec<Duration> {
        let bind = |host: usize| {
            let address: IpAddr = network::ipv4(HOSTS[host].1).into();
            let bind = || UdpSocket::bind((address, 0));
            self.hosts[host].enter(bind).unwrap().unwrap()
        };
        let (client, server) = (bind(0), bind(1));
        server
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        client.set_read_timeout(Some(patience)).unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut octets = [0; 64];
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Ok((length, from)) = server.recv_from(&mut octets) {
                        server.send_to(&octets[..length], from).unwrap();
                    }
                }
            });
            let one = |number: usize| {
                let began = Instant::now();
                client.send(&number.to_be_bytes()).unwrap();
                loop {
                    let mut octets = [0; 8];
                    match client.recv(&mut octets) {
                        Ok(_) if octets == number.to_be_bytes() => return Some(began.elapsed()),
                        Ok(_) => {} // the late answer to an earlier one
                        Err(_) => return None,
                    }
                }
            };
            let took = (0..count).filter_map(one).collect();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            took
        })
    }

    /// Octets a second through one connection.
    fn stream(&self, octets: usize) -> f64 {
        let any = SocketAddr::from((network::ipv4(HOSTS[1].1), 0));
        let listen = || TcpListener::bind(any);
        let listener = self.hosts[1].enter(listen).unwrap().unwrap();
        let at = listener.local_addr().unwrap();
        let began = Instant::now();
        let reader = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
        });
        let connect = || TcpStream::connect(at);
        let mut stream = self.hosts[0].enter(connect).unwrap().unwrap();
        let piece = vec![7; 1 << 16];
        for _ in 0..octets / piece.len() {
            stream.write_all(&piece).unwrap();
        }
        drop(stream);
        let came = reader.join().unwrap();
        assert_eq!(came as usize, octets / piece.len() * piece.len());
        octets as f64 / began.elapsed().as_secs_f64()
    }
}

fn rule(from: &str, to: &str, delay_ms: u64, loss_percent: u8) -> Rule {
    Rule {
        from: from.to_owned(),
        to: to.to_owned(),
        delay: Duration::from_millis(delay_ms),
        jitter: Duration::ZERO,
        loss_percent,
    }
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

#[test]
fn each_direction_is_late_by_itself_and_loses_its_share() {
    let Some(pair) = Pair::make() else { return };
    let patient = Duration::from_secs(5);
    pair.ask(20, patient); // both know each other's address
    let ms = Duration::from_millis;
    let late = |rules: &[Rule]| {
        let switch = pair.switch(rules);
        // A frame may be lost between the bridge and a switch that begins.
        pair.ask(3, ms(500));
        let took = pair.ask(20, patient);
        assert!(switch.counts().passed >= 20, "{:?}", switch.counts());
        assert_eq!(took.len(), 20);
        took.into_iter().min().unwrap()
    };
    let there = late(&[rule("n1", "n2", 40, 0)]);
    assert!((ms(40)..ms(80)).contains(&there), "{there:?}");
    let both = late(&[rule("n1", "n2", 40, 0), rule("n2", "n1", 60, 0)]);
    assert!((ms(100)..ms(150)).contains(&both), "{both:?}");

    let switch = pair.switch(&[rule("n2", "n1", 0, 30)]);
    let came = pair.ask(200, ms(100)).len();
    assert!((100..180).contains(&came), "{came} of 200");
    assert!(switch.counts().lost >= 20, "{:?}", switch.counts());
    drop(switch);

    // The bridge has its frames back, and nobody sees them twice.
    assert_eq!(pair.ask(50, patient).len(), 50);
    let switch = pair.switch(&[rule("n1", "n2", 0, 100)]);
    assert_eq!(pair.ask(5, ms(50)).len(), 0);
    drop(switch);
    assert_eq!(pair.ask(5, patient).len(), 5);
}

/// Prints the cost; requires only that everything arrives and that a run's load is far below what passes.
#[test]
fn without_delay_it_passes_everything_at_little_cost() {
    let Some(pair) = Pair::make() else { return };
    let patient = Duration::from_secs(5);
    pair.ask(20, patient);
    let bridged = (median(pair.ask(2000, patient)), pair.stream(256 << 20));
    let switch = pair.transparent();
    let asked = pair.ask(2000, patient);
    assert_eq!(asked.len(), 2000);
    let switched = (median(asked), pair.stream(256 << 20));
    println!(
        "bridge: {:?} there and back, {:.0} MiB/s; switch: {:?}, {:.0} MiB/s, {:?}",
        bridged.0,
        bridged.1 / 1048576.0,
        switched.0,
        switched.1 / 1048576.0,
        switch.counts()
    );
    assert!(switched.1 > 10e6, "{switched:?}");
    assert!(switched.0 < Duration::from_millis(20), "{switched:?}");
}
