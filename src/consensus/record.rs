//! The frame around everything stored: a version, and a checksum over contents and place.
//!
//! `version (1) | crc32c (4, little endian) | body`. The checksum covers the record's identity too, so that a record which
//! turns up at another key is refused as well as a garbled one.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

use super::engine::MetadataKey;

/// Version of the frame and of the encoding of the body. A later program reads earlier versions.
const VERSION: u8 = 1;
const HEADER: usize = 5;

/// What a record is, and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    Entry(u64),
    Metadata(MetadataKey),
    /// Slot of the watermark file.
    Watermark(u64),
}

/// Why stored bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("cut off after {0} bytes")]
    Short(usize),
    #[error("version {found}; this program reads version {VERSION}")]
    Version { found: u8 },
    #[error("its checksum does not match its contents")]
    Checksum,
    #[error("its contents cannot be decoded: {0}")]
    Body(String),
}

/// Encodes and frames a value.
pub fn seal<T: Serialize>(identity: Identity, value: &T) -> Result<Bytes, RecordError> {
    let mut framed = BytesMut::with_capacity(256);
    framed.put_u8(VERSION);
    framed.put_u32_le(0);
    let mut framed = postcard::to_extend(value, Extend(framed))
        .map_err(|e| RecordError::Body(e.to_string()))?
        .0;
    let checksum = checksum(identity, VERSION, framed.get(HEADER..).unwrap_or_default());
    if let Some(field) = framed.get_mut(1..HEADER) {
        field.copy_from_slice(&checksum.to_le_bytes());
    }
    Ok(framed.freeze())
}

/// Checks a frame and decodes what is in it.
pub fn open<T: DeserializeOwned>(identity: Identity, record: &[u8]) -> Result<T, RecordError> {
    let Some((&[version, a, b, c, d], body)) = record.split_first_chunk::<HEADER>() else {
        return Err(RecordError::Short(record.len()));
    };
    if version != VERSION {
        return Err(RecordError::Version { found: version });
    }
    if checksum(identity, version, body) != u32::from_le_bytes([a, b, c, d]) {
        return Err(RecordError::Checksum);
    }
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(RecordError::Body(format!("{} bytes too many", rest.len()))),
        Err(e) => Err(RecordError::Body(e.to_string())),
    }
}

fn checksum(identity: Identity, version: u8, body: &[u8]) -> u32 {
    let (kind, place) = match identity {
        Identity::Entry(index) => (b'e', index),
        Identity::Metadata(key) => (b'm', u64::from(key as u8)),
        Identity::Watermark(slot) => (b'w', slot),
    };
    let mut head = [0; 10];
    head[0] = kind;
    head[1..9].copy_from_slice(&place.to_be_bytes());
    head[9] = version;
    crc32c::crc32c_append(crc32c::crc32c(&head), body)
}

/// Lets postcard write behind the header, without a copy.
struct Extend(BytesMut);

impl std::iter::Extend<u8> for Extend {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

impl<'a> std::iter::Extend<&'a u8> for Extend {
    fn extend<I: IntoIterator<Item = &'a u8>>(&mut self, bytes: I) {
        self.0.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_again() {
        let value = ("a".to_owned(), 7u64, vec![0u8; 10_000]);
        let record = seal(Identity::Entry(3), &value).unwrap();
        assert_eq!(open(Identity::Entry(3), &record), Ok(value));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let record = seal(Identity::Entry(3), &(1u64, "text".to_owned())).unwrap();
        for bit in 0..record.len() * 8 {
            let mut garbled = record.to_vec();
            garbled[bit / 8] ^= 1 << (bit % 8);
            assert!(
                open::<(u64, String)>(Identity::Entry(3), &garbled).is_err(),
                "{bit}"
            );
        }
        for cut in 0..record.len() {
            assert!(open::<(u64, String)>(Identity::Entry(3), &record[..cut]).is_err());
        }
    }

    #[test]
    fn a_record_at_another_place_is_noticed() {
        let record = seal(Identity::Entry(3), &1u64).unwrap();
        for other in [
            Identity::Entry(4),
            Identity::Metadata(MetadataKey::Vote),
            Identity::Watermark(3),
        ] {
            assert_eq!(open::<u64>(other, &record), Err(RecordError::Checksum));
        }
    }
}
