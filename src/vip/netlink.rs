//! The messages of a netlink datagram, one after the other. Pure: no socket.

/// Octets of the header with which every message begins.
pub const HEADER: usize = 16;
/// Messages, and attributes in them, begin at multiples of this.
pub const ALIGNMENT: usize = 4;

/// The messages of a datagram with their headers. Ends at the first that is not whole.
pub fn messages_in(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = length_of_first(rest)?;
        let message = rest.get(..length)?;
        rest = rest
            .get(length.next_multiple_of(ALIGNMENT)..)
            .unwrap_or(&[]);
        Some(message)
    })
}

fn length_of_first(octets: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(octets.get(..4)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?;
    (HEADER..=octets.len()).contains(&length).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message with so many octets behind its header.
    fn message(body: usize) -> Vec<u8> {
        let length = HEADER + body;
        let mut octets = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        octets.resize(length, 7);
        octets
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_reading() {
        assert_eq!(messages_in(&[0xff; 64]).count(), 0);
        assert_eq!(
            messages_in(&[0; 64]).count(),
            0,
            "it would be read for ever"
        );
    }

    proptest! {
        #[test]
        fn messages_are_read_back(bodies in prop::collection::vec(0usize..40, 0..8), cut in 0usize..100) {
            let messages: Vec<Vec<u8>> = bodies.into_iter().map(message).collect();
            let mut datagram = vec![];
            let mut ends = vec![];
            for message in &messages {
                datagram.extend_from_slice(message);
                ends.push(datagram.len());
                datagram.resize(datagram.len().next_multiple_of(ALIGNMENT), 0);
            }
            prop_assert!(messages_in(&datagram).eq(messages.iter().map(Vec::as_slice)));
            datagram.truncate(datagram.len().saturating_sub(cut));
            let whole = ends.iter().filter(|end| **end <= datagram.len()).count();
            prop_assert_eq!(messages_in(&datagram).count(), whole);
        }

        #[test]
        fn no_octets_do_harm(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages_in(&octets).map(<[u8]>::len).sum::<usize>() <= octets.len());
        }
    }
}
