//! The tree and the journal in front of it, killed at any time: what is found is what was written last.

use std::{fs, path::Path};

use bytes::Bytes;
use proptest::prelude::*;

use crate::consensus::{
    engine::{Engine, MetadataKey, Operation},
    engine_memory::MemoryEngine,
    engine_sled::{Barrier, SledEngine},
    journal,
};

const KEYS: [MetadataKey; 3] = [
    MetadataKey::Vote,
    MetadataKey::Committed,
    MetadataKey::Purged,
];

/// What is done next.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Operations that are made durable together.
    Write(Vec<Kind>),
    /// Reads all of it.
    Look,
    Settle,
    /// The tree has everything on the disk, in the middle of a generation.
    Spill,
    /// Ends without a word, and starts again.
    Kill,
}

/// How large entries are: alone, small ones lie in runs that follow one another without a gap.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sizes {
    All,
    Small,
}

/// An operation; which indexes it is about follows from the log.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Append {
        size: usize,
    },
    /// So many from the end.
    Truncate(u64),
    /// So many from the beginning.
    Purge(u64),
    Put(MetadataKey, u8),
}

pub(super) fn kind(sizes: Sizes) -> BoxedStrategy<Kind> {
    let size = match sizes {
        Sizes::All => prop_oneof![6 => 0usize..3000, 1 => 20_000usize..400_000].boxed(),
        Sizes::Small => (0usize..100).boxed(),
    };
    prop_oneof![
        7 => size.prop_map(|size| Kind::Append { size }),
        1 => (0u64..5).prop_map(Kind::Truncate),
        1 => (0u64..5).prop_map(Kind::Purge),
        2 => (prop::sample::select(KEYS.to_vec()), any::<u8>()).prop_map(|(k, v)| Kind::Put(k, v)),
    ]
    .boxed()
}

pub(super) fn steps(sizes: Sizes) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::vec(kind(sizes), 1..6).prop_map(Step::Write),
        1 => Just(Step::Look),
        1 => Just(Step::Settle),
        3 => Just(Step::Spill),
        2 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..60)
}

/// The log's ends, so that operations are such as the log store makes.
#[derive(Default)]
pub(super) struct Ends {
    first: u64,
    next: u64,
    /// No two records are equal.
    count: u64,
}

impl Ends {
    pub(super) fn operation(&mut self, kind: &Kind) -> Operation {
        self.count += 1;
        match *kind {
            Kind::Append { size } => {
                let index = self.next;
                self.next += 1;
                let mut record = self.count.to_be_bytes().to_vec();
                record.resize(8 + size, u8::try_from(self.count % 251).unwrap());
                let record = Bytes::from(record);
                Operation::Append { index, record }
            }
            Kind::Truncate(count) => {
                self.next = self.next.saturating_sub(count).max(self.first);
                Operation::Truncate { from: self.next }
            }
            Kind::Purge(count) => {
                let through = (self.first + count).min(self.next);
                self.first = (through + 1).min(self.next).max(self.first);
                self.next = self.next.max(self.first);
                match through.checked_sub(1) {
                    Some(through) => Operation::Purge { through },
                    None => Operation::Truncate { from: self.next },
                }
            }
            Kind::Put(key, value) => Operation::Put {
                key,
                record: Bytes::from(vec![value]),
            },
        }
    }
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        match file.file_type().unwrap().is_dir() {
            true => copy(&file.path(), &to.join(file.file_name())),
            false => drop(fs::copy(file.path(), to.join(file.file_name())).unwrap()),
        }
    }
}

pub(super) fn same(engine: &dyn Engine, model: &dyn Engine) -> Result<(), TestCaseError> {
    let all = |engine: &dyn Engine| engine.read(0..u64::MAX, usize::MAX).unwrap();
    prop_assert_eq!(all(engine), all(model));
    for key in KEYS {
        prop_assert_eq!(engine.metadata(key).unwrap(), model.metadata(key).unwrap());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_found_after_an_end_at_any_time_is_what_was_durable(
        steps in prop_oneof![steps(Sizes::All), steps(Sizes::Small)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut place = dir.path().join("0");
        let mut engine = SledEngine::open(&place, Barrier::Durable).unwrap();
        let model = MemoryEngine::new();
        let mut ends = Ends::default();
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::Write(kinds) => {
                    let operations: Vec<_> = kinds.iter().map(|kind| ends.operation(kind)).collect();
                    for engine in [&engine as &dyn Engine, &model] {
                        engine.write(&operations).unwrap();
                        engine.barrier().unwrap();
                    }
                }
                Step::Look => same(&engine, &model)?,
                Step::Settle => engine.settle().unwrap(),
                Step::Spill => engine.spill(),
                Step::Kill => {
                    // What is on disk now is what a killed process leaves: nothing that its memory holds.
                    place = dir.path().join(format!("{}", number + 1));
                    copy(Path::new(&engine.place()), &place);
                    engine = SledEngine::open(&place, Barrier::Durable).unwrap();
                    same(&engine, &model)?;
                }
            }
        }
        same(&engine, &model)?;
    }
}

#[test]
fn many_small_writes_go_through_several_generations_of_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let engine = SledEngine::open(&dir.path().join("log"), Barrier::Durable).unwrap();
    let entries = 4 * journal::SIZE / 4096;
    for index in 0..entries {
        let record = Bytes::from(index.to_be_bytes().repeat(500));
        engine
            .write(&[Operation::Append { index, record }])
            .unwrap();
        engine.barrier().unwrap();
        if index % 3 == 0 {
            engine.settle().unwrap();
        }
    }
    let killed = dir.path().join("killed");
    copy(Path::new(&engine.place()), &killed);
    let after = SledEngine::open(&killed, Barrier::Durable).unwrap();
    let found = after.read(0..u64::MAX, usize::MAX).unwrap();
    assert_eq!(found.len() as u64, entries);
    assert!(
        found
            .iter()
            .all(|(index, record)| record[..8] == index.to_be_bytes())
    );
}
