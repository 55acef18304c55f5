//! Registers: one TXT set each, read linearizably, written, deleted, and set only if it holds what was last seen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pontoon_proto::v1::{Applied, Consistency};
use rand::RngExt;

use super::{
    Client, Context,
    api::{Failed, delete_txt, expect_txt, set_txt},
};
use crate::history::{Call, Reply};

/// The zone of all registers.
pub const ZONE: &str = "register.test.";
/// Registers at one time.
const KEYS: u64 = 3;
/// Operations on these before others take their place: the search for an order stays small, whatever is unknown.
const EPOCH: u64 = 400;
const PAUSE: Duration = Duration::from_millis(40);

/// Which registers are in use.
#[derive(Debug, Default)]
pub struct Keys(AtomicU64);

impl Keys {
    /// For an operation.
    fn draw(&self) -> String {
        let count = self.0.fetch_add(1, Ordering::Relaxed);
        Self::named(count / EPOCH, rand::rng().random_range(0..KEYS))
    }

    /// For a look at one that is being written now.
    pub fn look(&self) -> String {
        let count = self.0.load(Ordering::Relaxed);
        Self::named(count / EPOCH, rand::rng().random_range(0..KEYS))
    }

    fn named(epoch: u64, key: u64) -> String {
        format!("r{epoch}-{key}.{ZONE}")
    }
}

/// One client, until the run ends.
pub async fn run(mut client: Client, context: Arc<Context>) {
    let mut seen: Option<(String, Option<String>)> = None;
    while !context.is_over() {
        let key = context.registers.draw();
        let value = context.unique().to_string();
        let draw = rand::rng().random_range(0..100);
        match draw {
            0..45 => {
                if let Some(value) = read(&mut client, &key).await {
                    seen = Some((key, value));
                }
            }
            45..70 => drop(write(&mut client, &key, Some(value)).await),
            70..76 => drop(write(&mut client, &key, None).await),
            _ => {
                let (key, expected) = match seen.take() {
                    Some((of, value)) if of == key => (of, value),
                    // Read first, by an operation of its own.
                    _ => match read(&mut client, &key).await {
                        Some(value) => (key, value),
                        None => continue,
                    },
                };
                compare_and_set(&mut client, &key, expected, Some(value)).await;
            }
        }
        context.think(PAUSE).await;
    }
}

async fn read(client: &mut Client, key: &str) -> Option<Option<String>> {
    let call = Call::Read {
        key: key.to_owned(),
    };
    let work = async |api: &super::NodeApi| {
        let strings = api.read_txt(ZONE, key, Consistency::Linearizable).await?;
        let value = strings.map(|strings| strings.concat());
        Ok((value.clone(), Some(Reply::Value(value))))
    };
    client.perform(call, work).await
}

/// Writes a register, or deletes its set.
pub async fn write(client: &mut Client, key: &str, value: Option<String>) -> Option<()> {
    write_in(client, ZONE, key, value).await
}

/// The same in another zone: what is written so is judged like a register.
pub(super) async fn write_in(
    client: &mut Client,
    zone: &str,
    key: &str,
    value: Option<String>,
) -> Option<()> {
    let change = match &value {
        Some(value) => set_txt(zone, key, std::slice::from_ref(value)),
        None => delete_txt(zone, key),
    };
    let call = Call::Write {
        key: key.to_owned(),
        value,
    };
    let work = async |api: &super::NodeApi| {
        let applied = api.propose(vec![], vec![change]).await?;
        Ok::<_, Failed>(((), Some(committed(&applied))))
    };
    client.perform(call, work).await
}

async fn compare_and_set(
    client: &mut Client,
    key: &str,
    expected: Option<String>,
    value: Option<String>,
) {
    let strings = expected.clone().map(|value| vec![value]);
    let condition = expect_txt(ZONE, key, strings.as_deref());
    let change = match &value {
        Some(value) => set_txt(ZONE, key, std::slice::from_ref(value)),
        None => delete_txt(ZONE, key),
    };
    let call = Call::CompareAndSet {
        key: key.to_owned(),
        expected,
        value,
    };
    let work = async |api: &super::NodeApi| {
        let applied = api.propose(vec![condition], vec![change]).await?;
        Ok(((), Some(committed(&applied))))
    };
    client.perform(call, work).await;
}

/// What a change of one zone was given.
pub(super) fn committed(applied: &Applied) -> Reply {
    Reply::Committed {
        revision: applied.revision,
        serial: applied.serials.first().map(|zone| zone.serial),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_replaced_after_an_epoch() {
        let keys = Keys::default();
        for _ in 0..EPOCH {
            assert!(keys.draw().starts_with("r0-"));
        }
        assert!(keys.look().starts_with("r1-"));
        assert!(keys.draw().ends_with(".register.test."));
    }
}
