//! Counts who answers for a VIP: one ARP question every few milliseconds from a host outside, and everybody who answers it.
//!
//! Two answers to one question are two responders at one instant: the question reached both hosts with the same frame.

use std::{
    collections::{BTreeSet, VecDeque},
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};

use crate::{
    arp::{self, Mac, SLOTS, Told},
    lab::{LabError, namespace::Namespace, network::DEVICE},
};

const QUESTION_EVERY: Duration = Duration::from_millis(5);

/// One question, and who answered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub at: Instant,
    pub answered_by: BTreeSet<Mac>,
}

/// Asks until it is finished or dropped.
#[derive(Debug)]
pub struct Census {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Question>>>,
}

impl Census {
    /// Asks from `host` who has `vip`.
    ///
    /// # Errors
    /// When no packet socket can be made there.
    pub fn start(host: &Namespace, vip: Ipv4Addr) -> Result<Self, LabError> {
        let socket = arp::packet_socket(host)?;
        let device = arp::device_index(host, DEVICE)?;
        let mac = arp::parse_mac(&host.mac(DEVICE)?).ok_or(LabError::NoNode)?;
        let over = Arc::new(AtomicBool::new(false));
        let stopping = over.clone();
        let thread = std::thread::spawn(move || {
            let mut asker = Asker {
                socket,
                device,
                mac,
                vip,
                asked: vec![],
                open: VecDeque::new(),
            };
            while !stopping.load(Ordering::Relaxed) {
                asker.round();
            }
            asker.asked
        });
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }

    /// All questions, in order.
    pub fn finish(mut self) -> Vec<Question> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take();
        // Its panic has been printed.
        thread
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for Census {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic has been printed
        }
    }
}

struct Asker {
    socket: OwnedFd,
    device: u32,
    mac: Mac,
    vip: Ipv4Addr,
    asked: Vec<Question>,
    /// Slot and place in `asked` of the questions that may still be answered.
    open: VecDeque<(u8, usize)>,
}

impl Asker {
    /// Asks once, and takes answers until it is time for the next.
    fn round(&mut self) {
        let next = Instant::now() + QUESTION_EVERY;
        let slot = (self.asked.len() % usize::from(SLOTS)) as u8;
        let question = arp::question4(self.mac, slot, self.vip);
        self.open.push_back((slot, self.asked.len()));
        if self.open.len() == usize::from(SLOTS) {
            self.open.pop_front();
        }
        self.asked.push(Question {
            at: Instant::now(),
            answered_by: BTreeSet::new(),
        });
        // One that could not be sent has no answers; the next one follows soon.
        let _ = arp::send_on(&self.socket, self.device, &question);
        let mut buffer = [0; 2048];
        while Instant::now() < next {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => self.take(buffer.get(..length).unwrap_or(&[])),
                Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_micros(200)),
                Err(_) => {
                    return std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }
        }
    }

    fn take(&mut self, frame: &[u8]) {
        let Some(seen) = arp::read(frame, self.vip, std::net::Ipv6Addr::UNSPECIFIED) else {
            return;
        };
        let Told::Answers {
            is_six: false,
            slot,
        } = seen.told
        else {
            return;
        };
        let open = self.open.iter().find(|(open, _)| *open == slot);
        if let Some(question) = open.and_then(|(_, place)| self.asked.get_mut(*place)) {
            question.answered_by.insert(seen.from);
        }
    }
}

/// How long several hosts answered: the sum of the stretches of questions that each had more than one answer.
pub fn time_of_several(questions: &[Question]) -> Duration {
    let several = |question: &&Question| question.answered_by.len() > 1;
    QUESTION_EVERY * u32::try_from(questions.iter().filter(several).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_questions_with_several_answers_count() {
        let now = Instant::now();
        let question = |macs: &[u8]| Question {
            at: now,
            answered_by: macs.iter().map(|last| [2, 0, 0, 0, 0, *last]).collect(),
        };
        let questions = [question(&[]), question(&[1]), question(&[1, 2])];
        assert_eq!(time_of_several(&questions), QUESTION_EVERY);
        assert_eq!(time_of_several(&questions[..2]), Duration::ZERO);
    }
}
