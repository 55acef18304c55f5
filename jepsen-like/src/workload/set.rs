//! Unique elements, a name each: added, sometimes removed, and read all at once.

use std::{sync::Arc, time::Duration};

use pontoon_proto::v1::{Consistency, OwnedRrset};
use rand::RngExt;

use super::{
    Client, Context,
    api::{NodeApi, delete_txt, set_txt},
    register::committed,
};
use crate::history::{Call, Reply};

/// The zone of all elements.
pub const ZONE: &str = "set.test.";
const SET: &str = "set";
const PAUSE: Duration = Duration::from_millis(60);

/// One client, until the run ends.
pub async fn run(mut client: Client, context: Arc<Context>) {
    while !context.is_over() {
        let draw = rand::rng().random_range(0..100);
        match draw {
            0..80 => add(&mut client, &context).await,
            80..92 => remove(&mut client, &context).await,
            _ => drop(read(&mut client, draw < 95, false).await),
        }
        context.think(PAUSE).await;
    }
}

async fn add(client: &mut Client, context: &Context) {
    let element = context.unique();
    let call = Call::Add {
        set: SET.to_owned(),
        element,
    };
    let change = set_txt(ZONE, &name(element), &["x".to_owned()]);
    let work = async |api: &NodeApi| {
        let applied = api.propose(vec![], vec![change]).await?;
        Ok(((), Some(committed(&applied))))
    };
    if client.perform(call, work).await.is_some() {
        context.added().push(element);
    }
}

/// One that was added for certain; nobody adds it again.
async fn remove(client: &mut Client, context: &Context) {
    let drawn = {
        let mut added = context.added();
        let place = rand::rng().random_range(0..added.len().max(1));
        (place < added.len()).then(|| added.swap_remove(place))
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
    client.perform(call, work).await;
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
    fn an_element_is_its_name() {
        let owned = |name: String| OwnedRrset { name, rrset: None };
        assert_eq!(element(&owned(name(17))), Some(17));
        assert_eq!(element(&owned("ns.set.test.".to_owned())), None);
    }
}
