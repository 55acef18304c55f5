//! What became of a command. Apply never fails: it answers with one of these.

use crate::model::{name::Name, node::NodeId, serial::Serial};

/// The end of a command.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    Applied(Applied),
    Refused(Refusal),
    /// The request is older than the remembered request ids: it may have been applied before, or never. Nothing changed now.
    Unknown,
}

/// What an applied command did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Applied {
    /// Revision of the state that shows it. For a command that changed nothing, the revision it found.
    pub revision: u64,
    /// False when the state already was as asked.
    pub changed: bool,
    /// Zones that changed, with their serials now; for a command that changed nothing, those it named.
    pub serials: Vec<(Name, Serial)>,
    /// The id given by `AddMember` or `InitCluster`.
    pub node: Option<NodeId>,
}

/// Why nothing was changed, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{object}: {problem}")]
pub struct Refusal {
    pub kind: RefusalKind,
    /// The object as the operator knows it: `zone example.com.`, `pool web`, ...
    pub object: String,
    /// What was wrong with it.
    pub problem: String,
    /// What to do next; may be empty.
    pub hint: String,
}

/// Kinds of refusal, for programs: `code` in JSON errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum RefusalKind {
    /// The form is wrong: it can never be applied.
    Invalid,
    NotFound,
    AlreadyExists,
    /// A precondition did not hold.
    PreconditionFailed,
    /// It clashes with other objects: CNAME and other data, ports, a pool in use.
    Conflict,
    /// A limit would be passed.
    LimitExceeded,
    /// The command is of a kind that not all nodes know yet.
    FeatureLevel,
}

impl RefusalKind {
    /// The `code` of JSON errors.
    pub fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::PreconditionFailed => "precondition_failed",
            Self::Conflict => "conflict",
            Self::LimitExceeded => "limit_exceeded",
            Self::FeatureLevel => "feature_level",
        }
    }
}

impl Refusal {
    pub fn new(
        kind: RefusalKind,
        object: impl ToString,
        problem: impl ToString,
        hint: impl ToString,
    ) -> Self {
        Self {
            kind,
            object: object.to_string(),
            problem: problem.to_string(),
            hint: hint.to_string(),
        }
    }

    /// Cuts the words to `most` octets together, the last of them first.
    pub fn shorten(&mut self, most: usize) {
        let mut left = most;
        for text in [&mut self.object, &mut self.problem, &mut self.hint] {
            if text.len() > left {
                text.truncate(text.floor_char_boundary(left.saturating_sub(ELLIPSIS.len())));
                if left >= ELLIPSIS.len() {
                    text.push_str(ELLIPSIS);
                }
            }
            left = left.saturating_sub(text.len());
        }
    }
}

/// Stands where a text was cut.
const ELLIPSIS: &str = "...";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_to_a_limit_and_no_further_the_second_time() {
        let texts = ["zone example.", "too long: über", "split it"];
        let whole = Refusal::new(RefusalKind::Invalid, texts[0], texts[1], texts[2]);
        let length = texts.map(str::len).iter().sum();
        for most in 0..=length + 1 {
            let mut cut = whole.clone();
            cut.shorten(most);
            let octets = cut.object.len() + cut.problem.len() + cut.hint.len();
            assert!(octets <= most, "{most}: {cut:?}");
            assert_eq!(cut == whole, most >= length, "{most}");
            let mut again = cut.clone();
            again.shorten(most);
            assert_eq!(again, cut, "{most}");
        }
    }
}
