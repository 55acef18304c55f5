//! Any octets are a zone or faults; a zone that was read is written, and read again unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon::{
    model::{name::Name, rrset::Rrset},
    zonefile::{include::Nothing, load, parse, write},
};

fuzz_target!(|text: &[u8]| {
    let Ok(loaded) = load(text, None, "fuzz", &mut Nothing) else {
        return;
    };
    let records = loaded.records.iter();
    let written = write(
        &loaded.apex,
        records.map(|(owner, set)| (owner.clone(), set)),
    );
    let back = parse(written.as_bytes(), &Name::root(), "written", &mut Nothing);
    let back = back.unwrap_or_else(|faults| panic!("{faults}\n{written}"));
    assert_eq!(sorted(back.records), sorted(loaded.records), "{written}");
});

fn sorted(mut records: Vec<(Name, Rrset)>) -> Vec<(Name, Rrset)> {
    records.sort_by(|a, b| (&a.0, a.1.rtype()).cmp(&(&b.0, b.1.rtype())));
    records
}
