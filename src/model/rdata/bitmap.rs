//! Type bitmaps (RFC 4034 section 4.1.2): windows of 256 types, each with up to 32 octets of bits.

use super::super::rrset::RecordType;

/// Whether `octets` is a bitmap: windows in ascending order, none empty, none with zero octets at its end.
pub(super) fn check(octets: &[u8]) -> Result<usize, String> {
    let mut rest = octets;
    let mut previous = None;
    while let Some((window, bits, tail)) = take_window(rest) {
        if previous.is_some_and(|p| window <= p) {
            return Err("expected type bitmap windows in ascending order".to_owned());
        }
        if bits.len() > 32 || bits.last().is_none_or(|last| *last == 0) {
            return Err(
                "expected type bitmap windows of 1 to 32 octets, the last not zero".to_owned(),
            );
        }
        previous = Some(window);
        rest = tail;
    }
    if rest.is_empty() {
        Ok(octets.len())
    } else {
        Err("a type bitmap window ends too early".to_owned())
    }
}

fn take_window(octets: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([window, length], rest) = octets.split_first_chunk::<2>()?;
    let (bits, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((*window, bits, rest))
}

/// The types in a well-formed bitmap, in ascending order.
pub(super) fn types(octets: &[u8]) -> impl Iterator<Item = RecordType> {
    let mut rest = octets;
    std::iter::from_fn(move || {
        let (window, bits, tail) = take_window(rest)?;
        rest = tail;
        Some((window, bits))
    })
    .flat_map(|(window, bits)| {
        (0..bits.len() * 8)
            .filter(|bit| bits[bit / 8] & (0x80 >> (bit % 8)) != 0)
            .map(move |bit| RecordType(u16::from(window) << 8 | bit as u16))
    })
}

/// Appends the bitmap of `types`, in any order.
pub(super) fn write(mut types: Vec<RecordType>, out: &mut Vec<u8>) {
    types.sort_unstable();
    for window in types.chunk_by(|a, b| a.0 >> 8 == b.0 >> 8) {
        let mut bits = [0u8; 32];
        let mut used = 0;
        for rtype in window {
            let bit = usize::from(rtype.0 & 0xff);
            bits[bit / 8] |= 0x80 >> (bit % 8);
            used = bit / 8 + 1;
        }
        let number = window.first().map_or(0, |t| t.0 >> 8);
        out.extend_from_slice(&[number as u8, used as u8]);
        out.extend_from_slice(&bits[..used]);
    }
}
