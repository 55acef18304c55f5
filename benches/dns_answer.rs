//! Answers a second on one thread, from the octets of a query to the octets of its reply, without sockets and without
//! copies of earlier replies: in a zone of ten names and in one of a million. The cost must hardly depend on the size.
//! What is measured is the thread's own processor time, so that a busy machine does not show.
//!
//! `cargo bench --bench dns_answer`

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use nix::time::{ClockId, clock_gettime};
use pontoon::{
    dns::{
        Identity,
        respond::{Client, Response, Transport, respond},
    },
    model::{
        name::{Name, NameKey},
        rdata,
        rrset::{RecordType, Rrset},
        serial::Serial,
        snapshot::Snapshot,
        zone::{Node, Zone},
    },
};

const ROUNDS: u32 = 100;
const QUERIES: usize = 8192;

fn main() {
    println!(
        "{:>9}  {:>8}  {:>12}  {:>9}",
        "names", "answer", "answers/s", "ns each"
    );
    let mut figures = Vec::new();
    for names in [10, 1_000_000] {
        let snapshot = Snapshot {
            zones: [(apex(), Arc::new(zone(names)))].into_iter().collect(),
            ..Snapshot::default()
        };
        for (what, exists) in [("hit", true), ("NXDOMAIN", false)] {
            let each = measure(&snapshot, &queries(names, exists));
            println!("{names:>9}  {what:>8}  {:>12.0}  {:>9.0}", 1e9 / each, each);
            figures.push(each);
        }
    }
    println!(
        "ratio of a million names to ten: hit {:.2}, NXDOMAIN {:.2}",
        figures[2] / figures[0],
        figures[3] / figures[1]
    );
}

fn apex() -> Name {
    "bench.test.".parse().expect("a name")
}

fn zone(names: u32) -> Zone {
    let apex = apex();
    let data = |rtype, text| rdata::parse(rtype, text, &apex).expect("record data");
    let set = |rtype, data: Vec<u8>| Rrset::new(rtype, 300, [data]).expect("a set");
    let soa = data(
        RecordType::SOA,
        "ns1.bench.test. admin.bench.test. 1 7200 3600 86400 300",
    );
    let ns = data(RecordType::NS, "ns1.bench.test.");
    let top = Node::new([set(RecordType::SOA, soa), set(RecordType::NS, ns)]).expect("a node");
    let hosts = (0..names).map(|n| {
        let address = set(
            RecordType::A,
            Ipv4Addr::from(0x0a00_0000 + n).octets().to_vec(),
        );
        let key = NameKey::apex().child(format!("host{n}").as_bytes());
        (key, Node::new([address]).expect("a node"))
    });
    Zone {
        nodes: [(NameKey::apex(), top)].into_iter().chain(hosts).collect(),
        apex,
        serial: Serial(1),
        revision: 1,
        record_count: u64::from(names) + 2,
        data_bytes: 0,
        content_hash: [0; 16],
    }
}

/// Queries for names all over the zone, in no order.
fn queries(names: u32, exists: bool) -> Vec<Vec<u8>> {
    let mut state = 1u64;
    let mut draw = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u32 % names
    };
    let name = |n| {
        if exists {
            format!("host{n}.bench.test.")
        } else {
            format!("host{n}x.bench.test.")
        }
    };
    (0..QUERIES).map(|_| query(&name(draw()))).collect()
}

fn query(name: &str) -> Vec<u8> {
    let name: Name = name.parse().expect("a name");
    let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    let opt = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];
    [&header[..], name.as_wire(), &[0, 1, 0, 1], &opt].concat()
}

/// Nanoseconds for one answer.
fn measure(snapshot: &Snapshot, queries: &[Vec<u8>]) -> f64 {
    let identity = Identity::default();
    let client = Client {
        address: Ipv4Addr::LOCALHOST.into(),
        transport: Transport::Udp,
    };
    let mut out = Vec::with_capacity(1500);
    let started = processor_time();
    for _ in 0..ROUNDS {
        for query in queries {
            let response = respond(snapshot, &identity, query, client, &mut out);
            assert!(matches!(response, Response::Reply(_)), "{response:?}");
            std::hint::black_box(&out);
        }
    }
    let spent = processor_time() - started;
    spent.as_nanos() as f64 / f64::from(ROUNDS) / queries.len() as f64
}

/// Processor time that this thread has had.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("a clock")
        .into()
}
