//! How the state behaves when it is large. Prints figures; run with `--release -- --ignored --nocapture`.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::*;

/// Processor time of this thread, which other work on the machine does not lengthen.
struct Clock(Duration);

impl Clock {
    fn start() -> Self {
        Self(Self::now())
    }

    fn elapsed(&self) -> Duration {
        Self::now() - self.0
    }

    fn now() -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
            .map(Duration::from)
            .expect("the clock of this thread")
    }
}

/// Creates `zones` zones with `records` addresses each, besides SOA and NS.
fn filled(zones: usize, records: usize) -> Machine {
    let mut machine = Machine::default();
    for z in 0..zones {
        let zone = format!("zone{z}.test.");
        let mut contents = apex(&zone, 1);
        contents.extend((0..records).map(|i| {
            let data = u32::try_from(i).expect("few").to_be_bytes();
            let set = Rrset::new(RecordType::A, 300, [data]).expect("one record");
            (name(&format!("host{i}.{zone}")), set)
        }));
        machine.applied(vec![Change::CreateZone {
            zone: name(&zone),
            records: contents,
        }]);
    }
    machine
}

/// Mean time of one change, in nanoseconds.
fn change_cost(machine: &mut Machine) -> u128 {
    const CHANGES: u32 = 20_000;
    let start = Clock::start();
    for i in 0..CHANGES {
        let owner = format!("host{}.zone0.test.", i % 8);
        machine.applied(vec![set("zone0.test.", &owner, a((i / 8 % 250) as u8))]);
    }
    start.elapsed().as_nanos() / u128::from(CHANGES)
}

/// Resident memory of this process, in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok());
    (pages.unwrap_or(0) * 4096) >> 20
}

#[test]
#[ignore = "a million records; meant for release builds"]
fn a_million_records() {
    let small = change_cost(&mut filled(1, 10));
    let base = resident();
    let start = Clock::start();
    let mut machine = filled(1_000, 1_000);
    println!("built in {:?}, {} MiB", start.elapsed(), resident() - base);
    let large = change_cost(&mut machine);
    println!("one change: {small} ns with ten records, {large} ns with a million");

    let start = Clock::start();
    let mut bytes = Vec::new();
    machine
        .state
        .encode(&mut bytes)
        .expect("a vector takes everything");
    println!(
        "encoded in {:?}, {} MiB",
        start.elapsed(),
        bytes.len() >> 20
    );
    let (start, before) = (Clock::start(), resident());
    let again = State::decode(&mut bytes.as_slice()).expect("what was encoded");
    println!(
        "decoded in {:?}, {} MiB",
        start.elapsed(),
        resident() - before
    );
    assert_eq!(again.hash(), machine.state.hash());
    let start = Clock::start();
    println!("hash in {:?}: {:?}", start.elapsed(), machine.state.hash());
}

#[test]
fn one_zone_with_many_records_is_replaced_and_changed() {
    let mut machine = filled(1, 20_000);
    let changed = machine.applied(vec![set("zone0.test.", "host7.zone0.test.", a(1))]);
    assert!(changed.changed);
    let zone = &machine.state.snapshot().zones[&name("zone0.test.")];
    assert_eq!(zone.record_count, 20_002);
}
