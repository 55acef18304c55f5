//! Lists, a TXT set each with a character string for each element: a transaction reads several and appends to some of them, as one batch
//! that is committed only if none of them has changed since it was read.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pontoon_proto::v1::{Consistency, OwnedRrset};
use rand::RngExt;

use super::{
    Client, Context,
    api::{Failed, NodeApi, Strings, expect_txt, set_txt, strings},
};
use crate::history::{Call, Micro, Reply};

/// The zone of all lists.
pub const ZONE: &str = "append.test.";
/// Lists at one time.
const KEYS: u64 = 4;
/// Elements of the run's counter before other lists take their place: a list stays far below what a record can hold.
const EPOCH: u64 = 1500;
const PAUSE: Duration = Duration::from_millis(60);

type Lists = BTreeMap<String, Strings>;

/// One client, until the run ends.
pub async fn run(mut client: Client, context: Arc<Context>) {
    while !context.is_over() {
        let members = draw(context.unique(), || context.unique());
        let call = Call::Transaction {
            members: members.clone(),
        };
        let work = async |api: &NodeApi| {
            let lists = transact(api, &members).await?;
            Ok(((), Some(Reply::Lists(lists))))
        };
        client.perform(call, work).await;
        context.think(PAUSE).await;
    }
}

/// Two to four members on different lists, each read before it is appended to.
fn draw(number: u64, unique: impl Fn() -> u64) -> Vec<Micro> {
    let mut rng = rand::rng();
    let mut members = vec![];
    let is_read_only = rng.random_bool(0.25);
    let first = rng.random_range(0..KEYS);
    for at in 0..rng.random_range(2..=3) {
        let key = format!("k{}-{}.{ZONE}", number / EPOCH, (first + at) % KEYS);
        members.push(Micro::Read { key: key.clone() });
        if !is_read_only && rng.random_bool(0.7) {
            let element = unique();
            members.push(Micro::Append { key, element });
        }
    }
    members
}

async fn transact(api: &NodeApi, members: &[Micro]) -> Result<Vec<Option<Vec<u64>>>, Failed> {
    // Nothing has been asked for yet that could take effect.
    let read = api.read(ZONE, None, Consistency::Linearizable).await;
    let lists = lists(&read.map_err(|failed| Failed::Nothing(failed.to_string()))?);
    let appended: Vec<(&String, u64)> = (members.iter())
        .filter_map(|member| match member {
            Micro::Append { key, element } => Some((key, *element)),
            Micro::Read { .. } => None,
        })
        .collect();
    if !appended.is_empty() {
        let keys = members.iter().filter_map(|member| match member {
            Micro::Read { key } => Some(key),
            Micro::Append { .. } => None,
        });
        let held = |key: &String| expect_txt(ZONE, key, lists.get(key).map(Vec::as_slice));
        let preconditions = keys.map(held).collect();
        let changes = appended.iter().map(|(key, element)| {
            let mut list = lists.get(*key).cloned().unwrap_or_default();
            list.push(element.to_string());
            set_txt(ZONE, key, &list)
        });
        api.propose(preconditions, changes.collect()).await?;
    }
    Ok(members.iter().map(|member| seen(&lists, member)).collect())
}

fn seen(lists: &Lists, member: &Micro) -> Option<Vec<u64>> {
    let Micro::Read { key } = member else {
        return None;
    };
    let list = lists.get(key).map(Vec::as_slice).unwrap_or_default();
    // What is no number was appended by nobody: it must be found.
    let number = |text: &String| text.parse().unwrap_or(u64::MAX);
    Some(list.iter().map(number).collect())
}

fn lists(records: &[OwnedRrset]) -> Lists {
    let list = |owned: &OwnedRrset| Some((owned.name.clone(), strings(owned.rrset.as_ref()?)?));
    records.iter().filter_map(list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_reads_each_list_before_it_appends() {
        for number in 0..200 {
            let members = draw(number, || 7);
            let mut read = vec![];
            for member in &members {
                match member {
                    Micro::Read { key } => {
                        assert!(!read.contains(&key), "{members:?}");
                        read.push(key);
                    }
                    Micro::Append { key, .. } => assert_eq!(read.last(), Some(&key)),
                }
            }
            assert!((2..=3).contains(&read.len()));
        }
    }

    #[test]
    fn lists_are_read_in_their_order() {
        let key = "k0-1.append.test.".to_owned();
        let texts = ["3", "1"].map(str::to_owned);
        let records = [OwnedRrset {
            name: key.clone(),
            rrset: Some(super::super::api::txt(&texts)),
        }];
        let read = |key: &str| {
            seen(
                &lists(&records),
                &Micro::Read {
                    key: key.to_owned(),
                },
            )
        };
        assert_eq!(read(&key), Some(vec![3, 1]));
        assert_eq!(read("k0-2.append.test."), Some(vec![]));
        assert_eq!(
            seen(&lists(&records), &Micro::Append { key, element: 1 }),
            None
        );
    }
}
