//! The first two octets choose a type; the rest is taken as its data, and as text. Neither may panic, and what passes the
//! check survives being written and read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon::model::{
    name::Name,
    rdata::{canonical, names, parse, to_text},
    rrset::RecordType,
};

fuzz_target!(|input: &[u8]| {
    let Some(([high, low], data)) = input.split_first_chunk::<2>() else {
        return;
    };
    // Most numbers are types without fields: stay among those that have some.
    let rtype = RecordType(u16::from_be_bytes([high & 1, *low]));
    let _ = names(rtype, data).count();
    if let Ok(folded) = canonical(rtype, data) {
        let text = to_text(rtype, data);
        assert_eq!(parse(rtype, &text, &Name::root()), Ok(folded), "{text}");
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(wire) = parse(rtype, text, &Name::root())
    {
        assert_eq!(canonical(rtype, &wire), Ok(wire.clone()), "{text}");
    }
});
