//! The stored form of the state. Each version keeps its own conversions, which name every field; a newer program reads the
//! older versions, an older one refuses a newer version by its number.

pub mod codec;
pub mod v1;

use std::io::{self, Read, Write};

use self::codec::{Put, Reader, Writer, malformed};
use super::{DecodeError, State, requests::Requests};
use crate::defect::{self, Defect};

/// In front of every encoded state.
const MAGIC: [u8; 8] = *b"PONTOON\0";
/// The version written.
const VERSION: u32 = 1;

/// Writes the whole state, secrets and histories included.
pub fn encode(state: &State, out: &mut dyn Write) -> io::Result<()> {
    if defect::is(Defect::SnapshotMissesMap) && state.requests.iter().len() > 0 {
        let requests = Requests::forgotten_before(state.requests.forgotten());
        let state = State {
            requests,
            ..state.clone()
        };
        return encode(&state, out);
    }
    let mut writer = Writer::new(out);
    writer.buffer().put_raw(&MAGIC);
    writer.buffer().put_number(VERSION.into());
    v1::write_state(state, &mut writer)?;
    writer.finish()
}

/// Reads what `encode` wrote. May read `input` beyond it. The result is checked against the hash that was written with it.
pub fn decode(input: &mut dyn Read) -> Result<State, DecodeError> {
    let mut reader = Reader::new(input);
    if reader.array()? != MAGIC {
        return Err(malformed("it does not begin as a state snapshot does"));
    }
    match reader.number_as("version")? {
        1 => v1::read_state(&mut reader),
        found => Err(DecodeError::Version {
            found,
            known: VERSION,
        }),
    }
}
