//! Unique elements, a name each: added, sometimes removed, and read all at once.

use std::{sync::Arc, time::Duration};

use pontoon_proto::v1::{Consistency, OwnedRrset};
use rand::RngExt;

use super::{
    Client, Context,
    api::{Failed, NodeApi, delete_txt, set_txt},
    register::committed,
};
use crate::history::{Call, Reply};

/// The zone of all elements.
pub const ZONE: &str = "set.test.";
const SET: &str = "set";
const PAUSE: Duration = Duration::from_millis(60);
/// Elements that are there at once. Each read is written down whole: without a bound a history grows as the square of its run.
const MOST: usize = 1000;

/// One client, until the run ends.
pub async fn run(mut client: Client, context: Arc<Context>) {
    while !context.is_over() {
        let draw = rand::rng().random_range(0..100);
        let present = context.elements().len();
        match Act::drawn(draw, present) {
            Act::Add => add(&mut client, &context).await,
            Act::Remove => remove(&mut client, &context).await,
            Act::Read { local } => drop(read(&mut client, local, false).await),
        }
        context.think(PAUSE).await;
    }
}

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Add,
    Remove,
    Read { local: bool },
}

impl Act {
    /// By a number below 100 and how many elements there may be now: of a full set something is removed in the place of each further add.
    fn drawn(draw: u32, present: usize) -> Self {
        match draw {
            0..80 if present < MOST => Self::Add,
            0..92 => Self::Remove,
            _ => Self::Read { local: draw < 95 },
        }
    }
}

async fn add(client: &mut Client, context: &Context) {
    let element = context.unique();
    let call = Call::Add {
        set: SET.to_owned(),
        element,
    };
    let change = set_txt(ZONE, &name(element), &["x".to_owned()]);
    let mut may_be_there = false;
    let work = async |api: &NodeApi| {
        let applied = api.propose(vec![], vec![change]).await;
        may_be_there = !matches!(applied, Err(Failed::Nothing(_)));
        Ok(((), Some(committed(&applied?))))
    };
    client.perform(call, work).await;
    if may_be_there {
        context.elements().push(element);
    }
}

/// One that is there, or may be; nobody adds it again. What was not removed for certain is left for another try.
async fn remove(client: &mut Client, context: &Context) {
    let drawn = {
        let mut elements = context.elements();
        let place = rand::rng().random_range(0..elements.len().max(1));
        (place < elements.len()).then(|| elements.swap_remove(place))
    };
    let Some(element) = drawn else { return };
    let call = Call::Remove {
        set: SET.to_owned(),
        element,
    };
    let change = delete_txt(ZONE, &name(element));
    let work = async |api: &NodeApi| {
        let applied = api.propose(vec![], vec![change]).await?;
        Ok(((), Some(committed(&applied))))
    };
    if client.perform(call, work).await.is_none() {
        context.elements().push(element);
    }
}

/// All elements; the final read is of the node's own state.
pub async fn read(client: &mut Client, is_local: bool, is_final: bool) -> Option<()> {
    let call = Call::Elements {
        set: SET.to_owned(),
        local: is_local || is_final,
        is_final,
    };
    let consistency = match is_local || is_final {
        true => Consistency::Local,
        false => Consistency::Linearizable,
    };
    let work = async |api: &NodeApi| {
        let records = api.read(ZONE, None, consistency).await?;
        let elements = records.iter().filter_map(element).collect();
        Ok(((), Some(Reply::Elements(elements))))
    };
    client.perform(call, work).await
}

fn name(element: u64) -> String {
    format!("e{element}.{ZONE}")
}

fn element(owned: &OwnedRrset) -> Option<u64> {
    let label = owned.name.strip_suffix(ZONE)?.strip_suffix('.')?;
    label.strip_prefix('e')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_does_not_grow_without_bound() {
        let mut present = 0usize;
        for step in 0..100_000_u32 {
            match Act::drawn(step * 37 % 100, present) {
                Act::Add => present += 1,
                Act::Remove => present = present.saturating_sub(1),
                Act::Read { .. } => {}
            }
            assert!(present <= MOST);
        }
        assert!(present + 50 > MOST, "{present}: it fills up");
        assert_eq!(Act::drawn(99, MOST), Act::Read { local: false });
    }

    #[test]
    fn an_element_is_its_name() {
        let owned = |name: String| OwnedRrset { name, rrset: None };
        assert_eq!(element(&owned(name(17))), Some(17));
        assert_eq!(element(&owned("ns.set.test.".to_owned())), None);
    }
}
