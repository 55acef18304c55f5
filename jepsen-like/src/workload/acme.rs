//! What a certificate client does: add a TXT record, see it from every node, delete it. That every node ceases to show it is seen too.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;

use super::{
    Client, Context,
    api::NodeApi,
    dns::{Asker, Resolver, look_up},
    query::Answer,
    register::write_in,
};
use crate::{
    checker::{calm::due, visibility},
    history::Moment,
    lab::{LabError, cluster::dns_at},
};

/// The zone of all challenges.
pub const ZONE: &str = "acme.test.";
const PAUSE: Duration = Duration::from_millis(300);
/// While a node does not show it yet.
const RETRY: Duration = Duration::from_millis(50);
/// A node that is cut off shows it only when it is healed: not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// In peace a node is looked at until it owes an answer that shows it, and so much longer: some looks then tell what became of it.
const FURTHER: Duration = Duration::from_secs(1);

/// A node that is looked at.
struct Place {
    name: String,
    asker: Asker,
    api: NodeApi,
}

/// One client for each node, which looks at all of them.
pub fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) -> Result<(), LabError> {
    for (place, target) in context.targets.iter().enumerate() {
        let client = Client::of(target, context);
        let mut resolvers = vec![];
        for target in &context.targets {
            let resolver = Resolver::of(&context.host, dns_at(target.address.into()))?;
            resolvers.push((target.clone(), resolver));
        }
        // Each begins at its own: where one node shows nothing, the others are looked at all the same.
        resolvers.rotate_left(place);
        let context = context.clone();
        tasks.spawn(async move {
            let places = resolvers.into_iter().filter_map(|(target, resolver)| {
                Some(Place {
                    api: NodeApi::to(&target.socket),
                    asker: resolver.start()?,
                    name: target.name,
                })
            });
            run(client, &places.collect::<Vec<_>>(), &context).await;
        });
    }
    Ok(())
}

async fn run(mut client: Client, places: &[Place], context: &Context) {
    let process = context.recorder.new_process();
    while !context.is_over() {
        let number = context.unique();
        let name = format!("_acme-challenge.h{number}.{ZONE}");
        let value = format!("token-{number}");
        let written = write_in(&mut client, ZONE, &name, Some(value.clone())).await;
        if written.is_some() {
            let shown = Answer::Text(value);
            wait_at_all(places, &name, &shown, process, context).await;
        }
        // Also when it may be there only: nobody leaves challenges behind.
        let deleted = write_in(&mut client, ZONE, &name, None).await;
        if deleted.is_some() {
            wait_at_all(places, &name, &Answer::Nothing, process, context).await;
        }
        context.think(PAUSE).await;
    }
}

/// Looks at one place after the other, until each answers so.
async fn wait_at_all(
    places: &[Place],
    name: &str,
    expected: &Answer,
    process: u64,
    context: &Context,
) {
    let changed = context.recorder.now();
    for place in places {
        wait_until_seen(place, name, expected, changed, process, context).await;
    }
}

/// `changed`: when the change was acknowledged.
async fn wait_until_seen(
    place: &Place,
    name: &str,
    expected: &Answer,
    changed: Moment,
    process: u64,
    context: &Context,
) {
    let began = context.recorder.now();
    let is_waiting = || {
        let calm = context.board.calm_since();
        let until = patient_until(began, changed, calm, context.recovery);
        !context.is_over() && context.recorder.now() < until
    };
    while is_waiting() {
        let (api, at) = (Some(&place.api), &place.name);
        let seen = look_up(&place.asker, api, at, name, process, context).await;
        if seen.as_ref() == Some(expected) {
            return;
        }
        context.think(RETRY).await;
    }
}

/// Until when a place is looked at that does not show a change yet. `calm`: since when no fault has been in force, if none is.
fn patient_until(
    began: Moment,
    changed: Moment,
    calm: Option<Moment>,
    recovery: Duration,
) -> Moment {
    let usual = began.later(PATIENCE);
    match calm {
        Some(calm) => usual.max(due(calm, recovery, changed, visibility::PATIENCE).later(FURTHER)),
        None => usual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_peace_a_place_is_looked_at_until_it_owes_the_record() {
        let second = |seconds| Moment::after(Duration::from_secs(seconds));
        let until = |calm| {
            let recovery = Duration::from_secs(20);
            patient_until(second(31), second(30), calm, recovery)
        };
        assert_eq!(until(None), second(36), "while a fault is in force");
        let owed = |due: u64| second(due).later(FURTHER);
        assert_eq!(until(Some(second(0))), owed(40), "nothing happened lately");
        assert_eq!(until(Some(second(29))), owed(49), "it may recover still");
    }
}
