//! What a certificate client does: add a TXT record, see it from every node, delete it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    Client, Context,
    api::NodeApi,
    dns::{Asker, Resolver, look_up},
    query::Answer,
    register::write_in,
};
use crate::lab::{LabError, cluster::dns_at};

/// The zone of all challenges.
pub const ZONE: &str = "acme.test.";
const PAUSE: Duration = Duration::from_millis(300);
/// While a node does not show it yet.
const RETRY: Duration = Duration::from_millis(50);
/// A node that is cut off shows it only when it is healed: not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node that is looked at.
struct Place {
    name: String,
    asker: Asker,
    api: NodeApi,
}

/// One client for each node, which looks at all of them.
pub fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) -> Result<(), LabError> {
    for target in &context.targets {
        let client = Client::of(target, context);
        let mut resolvers = vec![];
        for target in &context.targets {
            let resolver = Resolver::of(&context.host, dns_at(target.address.into()))?;
            resolvers.push((target.clone(), resolver));
        }
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
            for place in places {
                wait_until_seen(place, &name, &value, process, context).await;
            }
        }
        // Also when it may be there only: nobody leaves challenges behind.
        write_in(&mut client, ZONE, &name, None).await;
        context.think(PAUSE).await;
    }
}

async fn wait_until_seen(place: &Place, name: &str, value: &str, process: u64, context: &Context) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && !context.is_over() {
        let seen = look_up(
            &place.asker,
            Some(&place.api),
            &place.name,
            name,
            process,
            context,
        );
        if matches!(seen.await, Some(Answer::Text(text)) if text == value) {
            return;
        }
        context.think(RETRY).await;
    }
}
