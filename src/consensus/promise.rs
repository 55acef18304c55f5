//! What a voter promises to a leader with every answer to its entries and heartbeats: to elect nobody else for a time.
//!
//! The promise is ours, in front of openraft's, because openraft cannot change its own while it runs. It is made when the
//! leader's message arrives, before openraft sees it, and stated in the answer; so a leader that counts the answer knows what it
//! may rely on, and the promise outlasts what is counted from the message's sending. `election_timeout_max` is its length.
//!
//! A longer promise is written down before it is made (`Ledger`): a restarted node, which has forgotten what it promised, keeps
//! from voting for the longest that it may have.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::model::timing::LONGEST_REFUSAL;

/// Until when this voter elects nobody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    until: Option<Instant>,
    /// The length of the last one that was made; zero before.
    stated: Duration,
}

impl Promise {
    /// A leader spoke at `now`. An earlier promise that was longer is kept.
    pub fn renew(&mut self, now: Instant, refusal: Duration) {
        self.until = self.until.max(Some(now + refusal));
        self.stated = refusal;
    }

    /// What an answer states: the last promise, which was made when the message arrived that is answered, or after.
    pub fn stated(&self) -> Duration {
        self.stated
    }

    /// When it ends, or ended; none was made: none.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// For how much longer it binds.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.until?
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }
}

/// The smallest refusal among the voters whose answers a lease is counted from: none while one of them has not stated its own.
///
/// `acked`: for every other voter, when the newest message that it answered was sent. A voter that answered nothing since
/// `quorum_acked` is not counted on, and need not be known.
pub fn smallest_refusal(
    own: Duration,
    quorum_acked: Instant,
    acked: impl IntoIterator<Item = (Option<Instant>, Option<Duration>)>,
) -> Option<Duration> {
    acked
        .into_iter()
        .filter(|(acked, _)| acked.is_some_and(|at| at >= quorum_acked))
        .try_fold(own, |smallest, (_, stated)| {
            Some(smallest.min(stated.filter(|stated| !stated.is_zero())?))
        })
}

/// Where the longest promise is written down.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// None: nowhere, for tests.
    path: Option<PathBuf>,
}

/// What stands for a file that cannot be believed: no promise is longer.
const UNREADABLE: Duration = LONGEST_REFUSAL;

impl Ledger {
    pub fn at(path: PathBuf) -> Self {
        Self { path: Some(path) }
    }

    /// The longest promise that an earlier process may have made; none when nothing is written. A file that no node wrote
    /// stands for the longest promise there can be, never for a longer one: the node would not vote for as long as it says.
    pub fn read(&self) -> Option<Duration> {
        let path = self.path.as_ref()?;
        let problem = match fs::read_to_string(path) {
            Ok(text) => match parse(&text) {
                Ok(promised) => return Some(promised),
                Err(problem) => problem,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
        };
        tracing::warn!(
            path = %path.display(), problem, instead = ?UNREADABLE,
            "how long this node promised not to vote cannot be told; the longest promise is kept"
        );
        Some(UNREADABLE)
    }

    /// Makes it say so, durably. What says so already is left alone: that needs no space.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn keep(&self, refusal: Duration) -> io::Result<()> {
        let written = self
            .path
            .as_ref()
            .and_then(|path| fs::read_to_string(path).ok());
        match written.is_some_and(|text| parse(&text) == Ok(refusal)) {
            true => Ok(()),
            false => self.write(refusal),
        }
    }

    /// Writes it down, durably.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn write(&self, refusal: Duration) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{}", refusal.as_millis())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// A promise as `Ledger::write` wrote it.
fn parse(text: &str) -> Result<Duration, String> {
    let milliseconds = text
        .trim()
        .parse()
        .map_err(|_| "no number of milliseconds".to_owned())?;
    let promised = Duration::from_millis(milliseconds);
    match promised <= LONGEST_REFUSAL {
        true => Ok(promised),
        false => Err(format!(
            "{milliseconds} ms is longer than any promise ({LONGEST_REFUSAL:?})"
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_shorter_promise_does_not_end_a_longer_one() {
        let start = Instant::now();
        let mut promise = Promise::default();
        assert_eq!(promise.left(start), None);
        promise.renew(start, ms(2500));
        promise.renew(start + ms(100), ms(280));
        assert_eq!(promise.left(start + ms(400)), Some(ms(2100)));
        assert_eq!(promise.left(start + ms(2500)), None);
    }

    #[test]
    fn only_voters_that_are_counted_on_matter() {
        let at = Instant::now();
        let (old, new) = (Some(at - ms(50)), Some(at + ms(5)));
        // (other voters, smallest)
        let cases = [
            (vec![], Some(ms(280))),
            (vec![(new, Some(ms(180)))], Some(ms(180))),
            (
                vec![(Some(at), Some(ms(180))), (new, Some(ms(2500)))],
                Some(ms(180)),
            ),
            (vec![(new, Some(ms(2500)))], Some(ms(280))),
            (
                vec![(old, Some(ms(180))), (new, Some(ms(280)))],
                Some(ms(280)),
            ),
            (vec![(None, None), (new, Some(ms(280)))], Some(ms(280))),
            (vec![(new, None)], None),
            (vec![(new, Some(ms(0)))], None),
        ];
        for (others, smallest) in cases {
            assert_eq!(
                smallest_refusal(ms(280), at, others.clone()),
                smallest,
                "{others:?}"
            );
        }
    }

    #[test]
    fn the_ledger_remembers_and_doubts_what_it_cannot_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("promise");
        let ledger = Ledger::at(path.clone());
        assert_eq!(ledger.read(), None);
        ledger.write(ms(2500)).unwrap();
        assert_eq!(ledger.read(), Some(ms(2500)));
        ledger.write(ms(280)).unwrap();
        assert_eq!(ledger.read(), Some(ms(280)));
        ledger.write(LONGEST_REFUSAL).unwrap();
        assert_eq!(ledger.read(), Some(LONGEST_REFUSAL));
        let none_is_so_long = ["30001", "4000000000000", "18446744073709551615"];
        for garbage in ["", "x", "-1", "280 ms", "18446744073709551616"]
            .into_iter()
            .chain(none_is_so_long)
        {
            fs::write(&path, garbage).unwrap();
            assert_eq!(ledger.read(), Some(UNREADABLE), "{garbage:?}");
        }
        assert!(
            Ledger::at(dir.path().join("no/promise"))
                .write(ms(1))
                .is_err()
        );
    }

    #[test]
    fn a_ledger_that_says_so_already_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("promise");
        let ledger = Ledger::at(path.clone());
        ledger.keep(ms(280)).unwrap();
        // Nothing can be written any more: the new file has a directory in its place.
        fs::create_dir(path.with_extension("new")).unwrap();
        ledger.keep(ms(280)).unwrap();
        assert!(ledger.keep(ms(2500)).is_err());
        assert_eq!(ledger.read(), Some(ms(280)));
        fs::remove_dir(path.with_extension("new")).unwrap();
        fs::write(&path, "x").unwrap();
        ledger.keep(UNREADABLE).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), "30000");
    }

    /// What happens to one voter: the leader's message arrives, its answer arrives back, it learns of another profile.
    #[derive(Clone, Debug)]
    enum Happens {
        Change(u64),
        /// Milliseconds on the way there and back.
        Heartbeat(u64, u64),
    }

    fn happens() -> impl Strategy<Value = Happens> {
        prop_oneof![
            prop::sample::select(vec![180, 280, 2500]).prop_map(Happens::Change),
            (0u64..200, 0u64..400).prop_map(|(there, back)| Happens::Heartbeat(there, back)),
        ]
    }

    proptest! {
        /// A leader and one voter that keeps changing its timing; messages are slow and overtake each other. At no instant does
        /// the leader rely on a lease that the voter's promise does not cover, whatever it last heard.
        #[test]
        fn a_lease_never_outlasts_the_promise(script in prop::collection::vec((1u64..60, happens()), 1..60)) {
            let start = Instant::now();
            let mut refusal = ms(280);
            let mut promise = Promise::default();
            let mut clock = 0;
            // (arrives back, sent, stated); (arrives there, sent, back)
            let mut answers: Vec<(u64, u64, Duration)> = vec![];
            let mut requests: Vec<(u64, u64, u64)> = vec![];
            let mut newest: Option<(u64, Duration)> = None;
            for (pause, event) in script {
                for now in clock..clock + pause {
                    for (_, sent, back) in requests.extract_if(.., |r| r.0 <= now) {
                        promise.renew(start + ms(now), refusal);
                        answers.push((now + back, sent, refusal));
                    }
                    for (_, sent, said) in answers.extract_if(.., |a| a.0 <= now) {
                        // What the answer to the newest question says counts.
                        newest = newest.max(Some((sent, said)));
                    }
                    if let Some((sent, said)) = newest {
                        let at = start + ms(sent);
                        let smallest = smallest_refusal(ms(60_000), at, [(Some(at), Some(said))]).unwrap();
                        let lease_until = at + crate::model::timing::lease_of(smallest);
                        let now = start + ms(now);
                        if now < lease_until {
                            prop_assert!(promise.left(now).is_some(), "at {now:?}: lease until {lease_until:?}");
                        }
                    }
                }
                clock += pause;
                match event {
                    Happens::Change(to) => refusal = ms(to),
                    Happens::Heartbeat(there, back) => requests.push((clock + there, clock, back)),
                }
            }
        }
    }
}
