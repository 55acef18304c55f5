//! Membership in virtual time: nodes join, leave, fall silent, lag and take leadership over at random, changes stop half done, and whoever
//! leads does what the rules say next. The group stays one that can decide, and once the faults end it is what the state says.

use proptest::prelude::*;

use super::*;

/// Between two looks of a leader, in milliseconds.
const LOOK: u64 = 200;
/// Members at a time.
const MOST: usize = 7;

/// Nodes are named by their place among those of the group, so that every event means somebody.
#[derive(Clone, Copy, Debug)]
enum Event {
    Join,
    /// An operator removes a node. `is_cut`: the state says so, and leadership is lost before the group follows.
    Leave {
        place: usize,
        is_cut: bool,
    },
    Silent(usize),
    Answers(usize),
    Lags(usize),
    CaughtUp(usize),
    Leads(usize),
    /// Leaders look so often. `is_cut`: a change of voters stays half done.
    Pass {
        looks: u64,
        is_cut: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let place = 0..MOST;
    prop_oneof![
        2 => Just(Event::Join),
        3 => (place.clone(), any::<bool>()).prop_map(|(place, is_cut)| Event::Leave { place, is_cut }),
        2 => place.clone().prop_map(Event::Silent),
        2 => place.clone().prop_map(Event::Answers),
        2 => place.clone().prop_map(Event::Lags),
        2 => place.clone().prop_map(Event::CaughtUp),
        2 => place.prop_map(Event::Leads),
        6 => (1..8u64, any::<bool>()).prop_map(|(looks, is_cut)| Event::Pass { looks, is_cut }),
    ]
}

/// What a leader saw of the learners when it looked.
struct Look {
    at: u64,
    reign: u64,
    ready: BTreeSet<NodeId>,
}

struct World {
    group: Group,
    readiness: Readiness,
    me: NodeId,
    /// Counts leaders.
    reign: u64,
    lags: BTreeSet<NodeId>,
    next: u64,
    start: Instant,
    /// Milliseconds since `start`.
    now: u64,
    looks: Vec<Look>,
}

impl World {
    fn new(voters: u64) -> Self {
        let ids: BTreeSet<NodeId> = (1..=voters).map(NodeId).collect();
        let members = ids.iter().map(|id| (*id, peer(*id))).collect();
        Self {
            group: Group {
                voters: ids.clone(),
                alive: ids,
                members: Some(members),
                ..Group::default()
            },
            readiness: Readiness::default(),
            me: NodeId(1),
            reign: 0,
            lags: BTreeSet::new(),
            next: voters + 1,
            start: Instant::now(),
            now: 0,
            looks: vec![],
        }
    }

    fn members(&mut self) -> &mut BTreeMap<NodeId, Peer> {
        self.group.members.get_or_insert_default()
    }

    fn is_member(&self, id: NodeId) -> bool {
        (self.group.members.as_ref()).is_some_and(|members| members.contains_key(&id))
    }

    fn nth(&self, place: usize) -> NodeId {
        let nodes: Vec<NodeId> = self.group.nodes().collect();
        nodes[place % nodes.len()]
    }

    /// A voter that answers, has caught up and is to stay.
    fn heir(&self) -> Option<NodeId> {
        let mut voters = self.group.voters.iter().copied();
        voters.find(|id| *id != self.me && self.may_lead(*id))
    }

    fn may_lead(&self, id: NodeId) -> bool {
        let answers = self.group.alive.contains(&id) && !self.lags.contains(&id);
        self.group.voters.contains(&id) && self.is_member(id) && answers
    }

    fn lead(&mut self, id: NodeId) {
        self.me = id;
        self.reign += 1;
        self.readiness.clear();
    }

    /// A leader that does not hear a majority commits nothing.
    fn decides(&self) -> bool {
        let heard = self.group.voters.intersection(&self.group.alive).count();
        heard >= majority(self.group.voters.len())
    }

    fn happen(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Join if self.members().len() < MOST && self.decides() => {
                let id = NodeId(self.next);
                self.next += 1;
                self.members().insert(id, peer(id));
                self.group.alive.insert(id);
            }
            Event::Join => {}
            Event::Leave { place, is_cut } => self.leave(self.nth(place), is_cut),
            Event::Silent(place) => {
                let id = self.nth(place);
                if id != self.me {
                    self.group.alive.remove(&id);
                }
            }
            Event::Answers(place) => {
                let id = self.nth(place);
                if self.is_member(id) {
                    self.group.alive.insert(id);
                }
            }
            Event::Lags(place) => {
                let id = self.nth(place);
                if id != self.me {
                    self.lags.insert(id);
                }
            }
            Event::CaughtUp(place) => {
                let id = self.nth(place);
                self.lags.remove(&id);
            }
            Event::Leads(place) => {
                let id = self.nth(place);
                if self.may_lead(id) && id != self.me {
                    self.lead(id);
                }
            }
            Event::Pass { looks, is_cut } => {
                for _ in 0..looks {
                    self.look(is_cut)?;
                }
            }
        }
        Ok(())
    }

    fn leave(&mut self, id: NodeId, is_cut: bool) {
        if !self.decides() || self.group.check_removal(id).is_err() {
            return;
        }
        if id == self.me {
            let Some(heir) = self.heir() else { return };
            self.lead(heir);
        }
        self.members().remove(&id);
        // It ends as soon as it hears that.
        self.group.alive.remove(&id);
        match (is_cut, self.heir()) {
            (true, Some(heir)) => self.lead(heir),
            _ => self.drop_from_group(id),
        }
    }

    fn drop_from_group(&mut self, id: NodeId) {
        self.group.voters.remove(&id);
        self.group.learners.remove(&id);
    }

    /// What a leader does every [`LOOK`].
    fn look(&mut self, is_cut: bool) -> Result<Option<Step>, TestCaseError> {
        self.now += LOOK;
        let heard = self.group.learners.intersection(&self.group.alive);
        let ready: BTreeSet<NodeId> = heard
            .copied()
            .filter(|id| !self.lags.contains(id))
            .collect();
        let now = self.start + Duration::from_millis(self.now);
        self.group.ready_since = self.readiness.observe(&ready, now).clone();
        self.looks.push(Look {
            at: self.now,
            reign: self.reign,
            ready,
        });
        let step = self.group.next_step(self.me, now);
        if let Some(step) = step.clone().filter(|_| self.decides()) {
            self.judge(&step)?;
            self.take(step, is_cut);
        }
        Ok(step)
    }

    /// The rules, looking back.
    fn judge(&self, step: &Step) -> Result<(), TestCaseError> {
        let Group {
            joint,
            voters,
            learners,
            ..
        } = &self.group;
        prop_assert_eq!(*joint, *step == Step::Finish);
        match step {
            Step::Finish => {}
            Step::StepAside => prop_assert!(!self.is_member(self.me)),
            Step::Remove(id) => prop_assert!(*id != self.me && !self.is_member(*id)),
            Step::AddLearner(id, _) => {
                prop_assert!(self.is_member(*id) && !self.group.contains(*id));
            }
            Step::Promote(id) => {
                prop_assert!(learners.contains(id) && voters.len() < MAX_VOTERS);
                let mut reign = (self.looks.iter().rev())
                    .take_while(|look| look.reign == self.reign && look.ready.contains(id));
                let needed = u64::try_from(PROMOTION_AFTER.as_millis()).unwrap();
                let waited = reign.any(|look| self.now - look.at >= needed);
                prop_assert!(waited, "{id} was not ready for so long");
            }
        }
        Ok(())
    }

    fn take(&mut self, step: Step, is_cut: bool) {
        match step {
            Step::Finish => self.group.joint = false,
            Step::StepAside => {
                if let Some(heir) = self.heir() {
                    self.lead(heir);
                }
            }
            Step::Remove(id) if self.group.check_removal(id).is_ok() => {
                self.group.joint = is_cut && self.group.voters.contains(&id);
                self.drop_from_group(id);
            }
            Step::Remove(_) => {}
            Step::AddLearner(id, _) => {
                self.group.learners.insert(id);
            }
            Step::Promote(id) => {
                self.group.learners.remove(&id);
                self.group.voters.insert(id);
                self.group.joint = is_cut;
            }
        }
    }

    /// Were every member to answer, the group could decide.
    fn judge_group(&self) -> Result<(), TestCaseError> {
        let voters = &self.group.voters;
        let staying = voters.iter().filter(|id| self.is_member(**id)).count();
        prop_assert!(
            staying >= majority(voters.len()),
            "voters {voters:?}, members {:?}",
            self.group.members.as_ref().map(|members| members.keys())
        );
        prop_assert!(voters.len() <= MAX_VOTERS);
        Ok(())
    }

    /// The faults end; the group becomes what the state says, and stays so.
    fn heal(&mut self) -> Result<(), TestCaseError> {
        self.lags.clear();
        let members: BTreeSet<NodeId> = self.members().keys().copied().collect();
        self.group.alive = members.clone();
        self.group.alive.insert(self.me);
        // Every member that is to be promoted waits on its own.
        for _ in 0..40 {
            self.look(false)?;
            self.judge_group()?;
        }
        prop_assert_eq!(self.group.nodes().collect::<BTreeSet<_>>(), members.clone());
        prop_assert_eq!(self.group.voters.len(), members.len().min(MAX_VOTERS));
        prop_assert_eq!(self.look(false)?, None);
        Ok(())
    }
}

fn peer(id: NodeId) -> Peer {
    Peer {
        name: format!("n{id}"),
        raft_address: ([10, 0, 0, 1], 7000).into(),
        api_address: ([10, 0, 0, 1], 8000).into(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn whatever_happens_the_group_can_decide_and_becomes_what_the_state_says(
        voters in 1..=5u64,
        events in proptest::collection::vec(event(), 0..60),
    ) {
        let mut world = World::new(voters);
        for event in events {
            world.happen(event)?;
            world.judge_group()?;
        }
        world.heal()?;
    }
}
