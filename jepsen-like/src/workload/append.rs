//! Lists, a TXT set each with a character string for each element: a transaction reads several and appends to some of them, as one batch
//! that is committed only if none of them has changed since it was read.
//!
//! All lists are read at once, as the zone that they are: so those of former epochs are taken away. A transaction that may have met that is
//! none: it has failed if it had only read, and is unknown if it had asked for anything.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pontoon_proto::v1::{Consistency, OwnedRrset};
use rand::RngExt;

use super::{
    Client, Context,
    api::{Failed, NodeApi, Strings, delete_txt, expect_txt, set_txt, strings},
};
use crate::history::{Call, Micro, Reply};

/// The zone of all lists.
pub const ZONE: &str = "append.test.";
/// Lists at one time.
const KEYS: u64 = 4;
/// Elements of the run's counter before other lists take their place: a list stays far below what a record can hold.
const EPOCH: u64 = 1500;
/// Epochs whose lists stay: the one in use and some before it, for transactions that take their time.
const KEPT: u64 = 4;
const PAUSE: Duration = Duration::from_millis(60);

type Lists = BTreeMap<String, Strings>;

const TOO_LATE: &str = "its lists may have been taken away meanwhile";

/// Which lists there may be.
#[derive(Debug, Default)]
pub struct Epochs {
    /// The oldest whose lists were not given to anybody to take away.
    oldest: AtomicU64,
}

impl Epochs {
    /// The next epoch whose lists are to be taken away, given to one who asks. `counted`: how far the run's counter is.
    fn take(&self, counted: u64) -> Option<u64> {
        let next = |oldest| is_former(oldest, counted).then_some(oldest + 1);
        let taken = (self.oldest).fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        taken.ok()
    }
}

/// Whether the lists of an epoch may be gone by now.
fn is_former(epoch: u64, counted: u64) -> bool {
    counted / EPOCH >= epoch + KEPT
}

/// One client, until the run ends.
pub async fn run(mut client: Client, context: Arc<Context>) {
    while !context.is_over() {
        let number = context.unique();
        let members = draw(number, || context.unique());
        let call = Call::Transaction {
            members: members.clone(),
        };
        let is_late = || is_former(number / EPOCH, context.counted());
        let work = async |api: &NodeApi| {
            let lists = transact(api, &members, is_late).await?;
            Ok(((), Some(Reply::Lists(lists))))
        };
        client.perform(call, work).await;
        if let Some(epoch) = context.lists.take(context.counted()) {
            take_away(&client.api, epoch, &context).await;
        }
        context.think(PAUSE).await;
    }
}

/// Deletes the lists of an epoch; nobody uses them, so it is no operation of the history.
async fn take_away(api: &NodeApi, epoch: u64, context: &Context) {
    let changes = || (0..KEYS).map(|key| delete_txt(ZONE, &named(epoch, key)));
    while !context.is_over() {
        if api.propose(vec![], changes().collect()).await.is_ok() {
            return;
        }
        context.think(PAUSE).await;
    }
}

fn named(epoch: u64, key: u64) -> String {
    format!("k{epoch}-{key}.{ZONE}")
}

/// Two to four members on different lists, each read before it is appended to.
fn draw(number: u64, unique: impl Fn() -> u64) -> Vec<Micro> {
    let mut rng = rand::rng();
    let mut members = vec![];
    let is_read_only = rng.random_bool(0.25);
    let first = rng.random_range(0..KEYS);
    for at in 0..rng.random_range(2..=3) {
        let key = named(number / EPOCH, (first + at) % KEYS);
        members.push(Micro::Read { key: key.clone() });
        if !is_read_only && rng.random_bool(0.7) {
            let element = unique();
            members.push(Micro::Append { key, element });
        }
    }
    members
}

/// `is_late`: whether its lists may have been taken away by now.
async fn transact(
    api: &NodeApi,
    members: &[Micro],
    is_late: impl Fn() -> bool,
) -> Result<Vec<Option<Vec<u64>>>, Failed> {
    // Nothing has been asked for yet that could take effect.
    let read = api.read(ZONE, None, Consistency::Linearizable).await;
    let lists = lists(&read.map_err(|failed| Failed::Nothing(failed.to_string()))?);
    if is_late() {
        return Err(Failed::Nothing(TOO_LATE.to_owned()));
    }
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
        if is_late() {
            return Err(Failed::Perhaps(TOO_LATE.to_owned()));
        }
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
    fn lists_are_taken_away_once_and_never_those_in_use() {
        let epochs = Epochs::default();
        assert_eq!(epochs.take(KEPT * EPOCH - 1), None);
        let now = (KEPT + 2) * EPOCH;
        let taken: Vec<_> = std::iter::from_fn(|| epochs.take(now)).collect();
        assert_eq!(taken, [0, 1, 2]);
        // Whoever drew of one of these and comes back now is too late, and nobody else.
        assert!(taken.iter().all(|epoch| is_former(*epoch, now)));
        assert!(!is_former(3, now));
        assert_eq!(epochs.take(now + EPOCH), Some(3));
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
