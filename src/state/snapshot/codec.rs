//! The bytes of stored values: variable-length numbers and length-prefixed octets.
//!
//! A `Reader` trusts nothing: a length never makes it set memory aside before the octets are there, and every length has a
//! limit that the caller states.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::state::DecodeError;

/// Appends values to a buffer.
pub trait Put {
    fn put_u8(&mut self, value: u8);
    /// Seven bits to an octet, the lowest first.
    fn put_number(&mut self, value: u64);
    fn put_octets(&mut self, octets: &[u8]);
    fn put_raw(&mut self, octets: &[u8]);

    fn put_text(&mut self, text: &str) {
        self.put_octets(text.as_bytes());
    }

    fn put_count(&mut self, count: usize) {
        self.put_number(count as u64);
    }

    /// In microseconds: configured times are whole milliseconds, and none exceeds a day.
    fn put_duration(&mut self, duration: Duration) {
        self.put_number(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    fn put_ip(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => {
                self.put_u8(4);
                self.put_raw(&v4.octets());
            }
            IpAddr::V6(v6) => {
                self.put_u8(6);
                self.put_raw(&v6.octets());
            }
        }
    }

    fn put_socket(&mut self, address: SocketAddr) {
        self.put_ip(address.ip());
        self.put_number(address.port().into());
    }
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn put_octets(&mut self, octets: &[u8]) {
        self.put_number(octets.len() as u64);
        self.extend_from_slice(octets);
    }

    fn put_raw(&mut self, octets: &[u8]) {
        self.extend_from_slice(octets);
    }
}

/// Collects what is put and hands it on in large pieces.
pub struct Writer<'a> {
    buffer: Vec<u8>,
    out: &'a mut dyn Write,
}

impl<'a> Writer<'a> {
    const PIECE: usize = 64 << 10;

    pub fn new(out: &'a mut dyn Write) -> Self {
        Self {
            buffer: Vec::with_capacity(2 * Self::PIECE),
            out,
        }
    }

    /// The buffer to put values into; `step` afterwards.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Hands on the buffer when it is large.
    pub fn step(&mut self) -> io::Result<()> {
        if self.buffer.len() >= Self::PIECE {
            self.out.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    pub fn finish(self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.out.flush()
    }
}

/// Takes values from a stream, which it may read beyond the last value.
pub struct Reader<'a> {
    input: io::BufReader<&'a mut dyn Read>,
    scratch: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub fn new(input: &'a mut dyn Read) -> Self {
        Self {
            input: io::BufReader::with_capacity(256 << 10, input),
            scratch: Vec::new(),
        }
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[octet]| octet)
    }

    pub fn number(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let octet = self.u8()?;
            let bits = u64::from(octet & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if octet & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number is larger than 64 bits"))
    }

    /// A number that fits `T`; `what` names it in the error.
    pub fn number_as<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, DecodeError> {
        let value = self.number()?;
        T::try_from(value).map_err(|_| malformed(format!("{what} {value} is out of range")))
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut octets = [0; N];
        self.input.read_exact(&mut octets).map_err(ended)?;
        Ok(octets)
    }

    /// Octets with a length of at most `limit`; they are overwritten by the next call.
    pub fn octets(&mut self, limit: usize, what: &str) -> Result<&[u8], DecodeError> {
        let length: usize = self.number_as(what)?;
        if length > limit {
            return Err(malformed(format!(
                "{what} of {length} octets, of which at most {limit} are allowed"
            )));
        }
        self.scratch.clear();
        // `take` grows the buffer as octets come, never ahead of them.
        let got = (&mut self.input)
            .take(length as u64)
            .read_to_end(&mut self.scratch)
            .map_err(ended)?;
        if got < length {
            return Err(malformed("it ends too early"));
        }
        Ok(&self.scratch)
    }

    pub fn text(&mut self, limit: usize, what: &str) -> Result<String, DecodeError> {
        let octets = self.octets(limit, what)?.to_vec();
        String::from_utf8(octets).map_err(|_| malformed(format!("{what} is not UTF-8")))
    }

    pub fn flag(&mut self, what: &str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(malformed(format!("{what} is {other}, neither 0 nor 1"))),
        }
    }

    pub fn duration(&mut self) -> Result<Duration, DecodeError> {
        Ok(Duration::from_micros(self.number()?))
    }

    pub fn ip(&mut self) -> Result<IpAddr, DecodeError> {
        match self.u8()? {
            4 => Ok(Ipv4Addr::from(self.array::<4>()?).into()),
            6 => Ok(Ipv6Addr::from(self.array::<16>()?).into()),
            other => Err(malformed(format!("an address of family {other}"))),
        }
    }

    pub fn socket(&mut self) -> Result<SocketAddr, DecodeError> {
        let address = self.ip()?;
        Ok(SocketAddr::new(address, self.number_as("port")?))
    }

    /// As many values as a count of at most `limit` says, each read by `one`.
    pub fn list<T>(
        &mut self,
        limit: usize,
        what: &str,
        mut one: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count: usize = self.number_as(what)?;
        if count > limit {
            return Err(malformed(format!(
                "{count} of {what}, of which at most {limit} are allowed"
            )));
        }
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(one(self)?);
        }
        Ok(values)
    }
}

pub fn malformed(problem: impl ToString) -> DecodeError {
    DecodeError::Malformed(problem.to_string())
}

fn ended(error: io::Error) -> DecodeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("it ends too early"),
        _ => malformed(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_round_trip(value in any::<u64>()) {
            let mut bytes = Vec::new();
            bytes.put_number(value);
            prop_assert_eq!(Reader::new(&mut bytes.as_slice()).number().ok(), Some(value));
        }
    }

    #[test]
    fn a_length_is_not_believed_before_the_octets_are_there() {
        let mut bytes = Vec::new();
        bytes.put_number(1 << 40);
        assert!(
            Reader::new(&mut bytes.as_slice())
                .octets(usize::MAX, "text")
                .is_err()
        );
        assert!(
            Reader::new(&mut bytes.as_slice())
                .list(usize::MAX, "items", Reader::u8)
                .is_err()
        );
        assert!(
            Reader::new(&mut [0xff; 11].as_slice()).number().is_err(),
            "more than 64 bits"
        );
        assert!(
            Reader::new(&mut [3, 1].as_slice())
                .octets(9, "text")
                .is_err()
        );
        assert!(
            Reader::new(&mut [3, 1, 1, 1].as_slice())
                .octets(2, "text")
                .is_err()
        );
    }
}
