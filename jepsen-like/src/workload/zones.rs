//! Zones that come and go, one for each node: made, changed, deleted and made again, always from the same file. Every node is
//! asked for the serial after each step, and no later zone of the name may have an earlier one.

use std::{sync::Arc, time::Duration};

use pontoon::state::command::Change;
use pontoon_proto::v1;
use tokio::task::JoinSet;

use super::{
    Client, Context, Target,
    api::{Failed, NodeApi, set_txt},
    dns::{Asker, Resolver, look_up},
    name,
    register::committed,
    zone,
};
use crate::{
    history::Call,
    lab::{LabError, cluster::dns_at},
};

/// Below it are the zones.
const PARENT: &str = "comes-and-goes.test.";
/// Changes of a zone before it is deleted.
const CHANGES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(60);

/// Whether a name is that of one of these zones.
pub fn is_apex(key: &str) -> bool {
    key.strip_suffix(PARENT)
        .and_then(|label| label.strip_suffix('.'))
        .is_some_and(|label| !label.is_empty() && !label.contains('.'))
}

/// A client for each node.
pub(super) fn start(context: &Arc<Context>, tasks: &mut JoinSet<()>) -> Result<(), LabError> {
    for target in &context.targets {
        let mut places = vec![];
        for place in context.targets.clone() {
            let resolver = Resolver::of(&context.host, dns_at(place.address.into()))?;
            places.push((place, resolver));
        }
        let client = Client::of(target, context);
        let apex = format!("{}.{PARENT}", target.name);
        tasks.spawn(run(client, apex, places, context.clone()));
    }
    Ok(())
}

/// A node that is asked for serials.
struct Place {
    api: NodeApi,
    asker: Asker,
    name: String,
}

async fn run(
    mut client: Client,
    apex: String,
    places: Vec<(Target, Resolver)>,
    context: Arc<Context>,
) {
    let places = places.into_iter().filter_map(|(target, resolver)| {
        Some(Place {
            api: NodeApi::to(&target.socket),
            asker: resolver.start()?,
            name: target.name,
        })
    });
    let places: Vec<_> = places.collect();
    let process = context.recorder.new_process();
    while !context.is_over() {
        let mut steps = vec![Some((&zone(&apex)).into())];
        for _ in 0..CHANGES {
            let text = context.unique().to_string();
            steps.push(Some(set_txt(&apex, &apex, &[text])));
        }
        steps.push(None);
        for step in steps {
            let deletes = step.is_none();
            change(&mut client, &apex, step, &context).await;
            for place in places.iter().filter(|_| !deletes) {
                let (asker, api) = (&place.asker, Some(&place.api));
                look_up(asker, api, &place.name, &apex, process, &context).await;
            }
            context.think(PAUSE).await;
        }
    }
}

/// One step; none: the zone is deleted. What is refused, because an earlier step of unknown outcome was done or was not, changes
/// nothing.
async fn change(client: &mut Client, apex: &str, step: Option<v1::Change>, context: &Context) {
    let call = Call::Write {
        key: apex.to_owned(),
        value: step.as_ref().map(|_| context.unique().to_string()),
    };
    let change = step.unwrap_or_else(|| (&Change::DeleteZone { zone: name(apex) }).into());
    let work = async |api: &NodeApi| {
        let applied = api.propose(vec![], vec![change]).await?;
        Ok::<_, Failed>(((), Some(committed(&applied))))
    };
    client.perform(call, work).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_told_from_what_is_in_it() {
        assert!(is_apex("n1.comes-and-goes.test."));
        for other in [
            PARENT,
            "a.n1.comes-and-goes.test.",
            ".comes-and-goes.test.",
            "n1.set.test.",
        ] {
            assert!(!is_apex(other), "{other}");
        }
    }
}
