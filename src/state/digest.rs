//! Hashes of the state that follow each change: a sum over the parts, so that a part is taken out and put in again without
//! looking at the others, and the order in which parts came does not matter.

/// The sum of the hashes of a set of parts, modulo 2^128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u128);

impl Sum {
    pub fn add(&mut self, part: u128) {
        self.0 = self.0.wrapping_add(part);
    }

    pub fn remove(&mut self, part: u128) {
        self.0 = self.0.wrapping_sub(part);
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

/// The hash of one part: the first half of BLAKE3 over its kind and its bytes.
pub fn part(kind: u8, bytes: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(bytes);
    half(&hasher.finalize())
}

/// The first 128 bits of a hash.
pub fn half(hash: &blake3::Hash) -> u128 {
    let (first, _) = hash
        .as_bytes()
        .split_first_chunk::<16>()
        .expect("a hash has 32 octets");
    u128::from_be_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_does_not_depend_on_order_and_forgets_what_is_taken_out() {
        let (a, b) = (part(1, b"a"), part(1, b"b"));
        let mut one = Sum::default();
        one.add(a);
        one.add(b);
        let mut two = Sum::default();
        two.add(b);
        two.add(a);
        assert_eq!(one, two);
        one.remove(a);
        two = Sum::default();
        two.add(b);
        assert_eq!(one, two);
        assert_ne!(part(1, b"a"), part(2, b"a"));
        assert_eq!(Sum::from_bytes(one.to_bytes()), one);
    }
}
