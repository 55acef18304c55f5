//! The tree cut off anywhere in what it is given: what was durable is found, and of a write that was not a part from its beginning.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};

use super::write_ahead::{Ends, Kind, Sizes, Step, copy, kind, same, steps};
use crate::consensus::{
    engine::{Engine, Operation},
    engine_memory::MemoryEngine,
    engine_sled::{Barrier, SledEngine},
    journal,
};

/// A write, and what came before it.
fn writes(sizes: Sizes) -> impl Strategy<Value = (Vec<Step>, Vec<Kind>)> {
    (steps(sizes), prop::collection::vec(kind(sizes), 1..8))
}

fn write(engine: &dyn Engine, operations: &[Operation]) {
    engine.write(operations).unwrap();
    engine.barrier().unwrap();
}

fn entries(engine: &dyn Engine) -> BTreeMap<u64, Bytes> {
    let all = engine.read(0..u64::MAX, usize::MAX).unwrap();
    all.into_iter().collect()
}

/// The log in `base`, whose tree was given so much more.
fn give(base: &Path, place: &Path, given: &[sled::Event]) {
    copy(base, place);
    let db = sled::Config::new().path(place).open().unwrap();
    for event in given {
        match event {
            sled::Event::Insert { key, value } => db.insert(key, value).unwrap(),
            sled::Event::Remove { key } => db.remove(key).unwrap(),
        };
    }
    db.flush().unwrap();
}

/// Entries without a gap, first those that were there, then those that were being written, though they are to be truncated again.
fn is_between(
    found: &BTreeMap<u64, Bytes>,
    before: &BTreeMap<u64, Bytes>,
    operations: &[Operation],
) -> bool {
    let follow = found.keys().zip(found.keys().skip(1));
    let without_gap = follow.into_iter().all(|(a, b)| a + 1 == *b);
    let is_written = |(at, found): (&u64, &Bytes)| {
        let is_it = |operation: &Operation| matches!(operation, Operation::Append { index, record } if index == at && record == found);
        operations.iter().any(is_it)
    };
    let was_there = |(at, found): &(&u64, &Bytes)| before.get(at) == Some(found);
    without_gap && found.iter().skip_while(was_there).all(is_written)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_the_tree_was_given_of_a_write_is_done_again_or_a_part_of_it(
        (steps, kinds) in prop_oneof![writes(Sizes::All), writes(Sizes::Small)],
        cuts in prop::collection::vec(any::<Index>(), 4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(&dir.path().join("log"), Barrier::Durable).unwrap();
        let (model, mut ends) = (MemoryEngine::new(), Ends::default());
        for step in &steps {
            match step {
                Step::Write(kinds) => {
                    let operations: Vec<_> = kinds.iter().map(|kind| ends.operation(kind)).collect();
                    write(&engine, &operations);
                    write(&model, &operations);
                }
                Step::Settle => engine.settle().unwrap(),
                Step::Look | Step::Spill | Step::Kill => engine.spill(),
            }
        }
        engine.spill();
        let base = dir.path().join("base");
        copy(Path::new(&engine.place()), &base);
        let before = entries(&model);

        let mut events = engine.tree().watch_prefix([]);
        let operations: Vec<_> = kinds.iter().map(|kind| ends.operation(kind)).collect();
        write(&engine, &operations);
        write(&model, &operations);
        engine.spill();
        let given: Vec<_> = std::iter::from_fn(|| events.next_timeout(Duration::from_millis(20)).ok()).collect();
        // A generation is closed before the journal is written again.
        let closing = given.iter().position(|event| event.key() == b"g");
        let is_journaled = operations.iter().map(Operation::size).sum::<usize>() <= journal::LARGEST;
        let cuts = cuts.iter().map(|cut| cut.index(given.len() + 1));
        for cut in cuts.chain([given.len()]) {
            let place = dir.path().join(format!("cut-{cut}"));
            if place.exists() {
                continue;
            }
            give(&base, &place, &given[..cut]);
            let is_written = closing.is_none_or(|at| cut > at);
            if is_written {
                fs::copy(dir.path().join("log/journal"), place.join("journal")).unwrap();
            }
            let found = SledEngine::open(&place, Barrier::Durable);
            prop_assert!(found.is_ok(), "{:?} after {cut} of {given:?}", found.err());
            let found = found.unwrap();
            match is_written && is_journaled || cut == given.len() {
                true => same(&found, &model)?,
                false => {
                    let found = entries(&found);
                    prop_assert!(is_between(&found, &before, &operations), "{found:?} of {before:?} after {cut} of {given:?}");
                }
            }
        }
    }
}
