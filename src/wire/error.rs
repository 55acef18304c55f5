//! Failures as they travel: object, problem, hint and code in the details of a gRPC status, and as JSON.

use prost::Message;

use super::v1;

const DETAIL_TYPE: &str = "type.googleapis.com/pontoon.v1.ErrorDetail";
/// Octets of words that a status carries. It travels in the headers of HTTP/2, of which a client takes 16 KiB: once as `grpc-message`,
/// with up to three octets for each, and twice in the details, in base64.
const WORDS: usize = 2_500;

/// A failure in words for the operator and a code for programs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{object}: {problem}")]
pub struct Failure {
    /// The object as the operator knows it: `zone example.com.`, `cluster`.
    pub object: String,
    /// What was wrong with it.
    pub problem: String,
    /// What to do next; may be empty.
    pub hint: String,
    pub code: FailureCode,
}

macro_rules! failure_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// The `code` of a failure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum FailureCode {
            $($(#[$doc])* $name,)*
        }

        impl FailureCode {
            /// Every code, for tests and documentation.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            fn parse(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

failure_codes! {
    /// The form is wrong.
    Invalid = "invalid",
    /// Something named does not exist.
    NotFound = "not_found",
    /// Something to be made exists.
    AlreadyExists = "already_exists",
    /// A precondition did not hold.
    PreconditionFailed = "precondition_failed",
    /// It clashes with other objects.
    Conflict = "conflict",
    /// A limit would be passed.
    LimitExceeded = "limit_exceeded",
    /// Not all nodes know this kind of change yet.
    FeatureLevel = "feature_level",
    /// No leader is known; nothing was changed.
    NoLeader = "no_leader",
    /// No node answered; nothing was changed.
    Unreachable = "unreachable",
    /// The change may have been made, or not.
    UnknownOutcome = "unknown_outcome",
    /// The caller did not prove who it is.
    Unauthenticated = "unauthenticated",
    /// The caller may not do this.
    PermissionDenied = "permission_denied",
    /// Too many requests at one time.
    Overloaded = "overloaded",
    /// The node or object is not in a state for this.
    NotReady = "not_ready",
    /// The node does not know the call.
    Unsupported = "unsupported",
    /// A fault of the program or of its machine.
    Internal = "internal",
    /// The command line was wrong.
    Usage = "usage",
}

impl FailureCode {
    /// Whether the state machine itself decided, under the request id: asked again under it, it says the same.
    pub fn is_verdict(self) -> bool {
        matches!(
            self,
            Self::Invalid
                | Self::NotFound
                | Self::AlreadyExists
                | Self::PreconditionFailed
                | Self::Conflict
                | Self::FeatureLevel
        )
    }
}

impl Failure {
    pub fn new(
        code: FailureCode,
        object: impl ToString,
        problem: impl ToString,
        hint: impl ToString,
    ) -> Self {
        Self {
            object: object.to_string(),
            problem: problem.to_string(),
            hint: hint.to_string(),
            code,
        }
    }

    /// The same in at most `WORDS` octets. What is longer ends in `...`; object and hint leave a third to the problem.
    pub fn shortened(self) -> Self {
        let object = shorten(self.object, WORDS / 3);
        let hint = shorten(self.hint, WORDS / 3);
        let left = WORDS - object.len() - hint.len();
        Self {
            problem: shorten(self.problem, left),
            object,
            hint,
            code: self.code,
        }
    }

    /// The octets of `grpc-status-details-bin`.
    pub fn to_details(&self, status: i32) -> bytes::Bytes {
        let detail = v1::ErrorDetail {
            object: self.object.clone(),
            problem: self.problem.clone(),
            hint: self.hint.clone(),
            code: self.code.as_str().to_owned(),
        };
        let any = v1::ErrorAny {
            type_url: DETAIL_TYPE.to_owned(),
            value: detail.encode_to_vec().into(),
        };
        let status = v1::ErrorStatus {
            code: status,
            message: self.to_string(),
            details: vec![any],
        };
        status.encode_to_vec().into()
    }

    /// Reads what `to_details` wrote; none when there is no detail of ours.
    pub fn from_details(details: &[u8]) -> Option<Self> {
        let status = v1::ErrorStatus::decode(details).ok()?;
        let any = status.details.iter().find(|a| a.type_url == DETAIL_TYPE)?;
        let v1::ErrorDetail {
            object,
            problem,
            hint,
            code,
        } = v1::ErrorDetail::decode(any.value.as_ref()).ok()?;
        Some(Self {
            object,
            problem,
            hint,
            // A newer server may know more codes; its words still reach the operator.
            code: FailureCode::parse(&code).unwrap_or(FailureCode::Internal),
        })
    }
}

fn shorten(text: String, at_most: usize) -> String {
    const CUT: &str = "...";
    if text.len() <= at_most {
        return text;
    }
    let end = text.floor_char_boundary(at_most.saturating_sub(CUT.len()));
    text.get(..end).unwrap_or_default().to_owned() + CUT
}

impl From<crate::state::outcome::Refusal> for Failure {
    fn from(refusal: crate::state::outcome::Refusal) -> Self {
        use crate::state::outcome::{Refusal, RefusalKind};
        let Refusal {
            kind,
            object,
            problem,
            hint,
        } = refusal;
        let code = match kind {
            RefusalKind::Invalid => FailureCode::Invalid,
            RefusalKind::NotFound => FailureCode::NotFound,
            RefusalKind::AlreadyExists => FailureCode::AlreadyExists,
            RefusalKind::PreconditionFailed => FailureCode::PreconditionFailed,
            RefusalKind::Conflict => FailureCode::Conflict,
            RefusalKind::LimitExceeded => FailureCode::LimitExceeded,
            RefusalKind::FeatureLevel => FailureCode::FeatureLevel,
        };
        Self {
            object,
            problem,
            hint,
            code,
        }
    }
}

impl From<super::WireError> for Failure {
    fn from(error: super::WireError) -> Self {
        Self::new(FailureCode::Invalid, "request", error, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_travel_with_every_code() {
        for code in FailureCode::ALL {
            let failure = Failure::new(*code, "pool web", "is in use by listener web", "delete it");
            assert_eq!(
                Failure::from_details(&failure.to_details(9)),
                Some(failure.clone())
            );
            let json = serde_json::to_value(&failure).expect("plain strings");
            assert_eq!(json["code"], code.as_str());
        }
    }

    #[test]
    fn long_words_are_cut_and_short_ones_are_not() {
        let failure = |object: &str, problem: &str, hint: &str| {
            Failure::new(FailureCode::Conflict, object, problem, hint)
        };
        // Not at the middle of a character.
        let long = "ä".repeat(5_000);
        let cut = failure("VIPs", &long, "find it").shortened();
        assert_eq!(
            (cut.object.as_str(), cut.hint.as_str()),
            ("VIPs", "find it")
        );
        assert!(cut.problem.starts_with('ä') && cut.problem.ends_with("ä..."));
        let words = cut.object.len() + cut.problem.len() + cut.hint.len();
        assert!((WORDS - 1..=WORDS).contains(&words), "{words}");
        let cut = failure(&long, &long, &long).shortened();
        for text in [&cut.object, &cut.problem, &cut.hint] {
            assert!((WORDS / 3 - 2..=WORDS / 3 + 2).contains(&text.len()));
        }
        let whole = failure("VIPs", &"a".repeat(WORDS - 11), "find it");
        assert_eq!(whole.clone().shortened(), whole);
    }

    #[test]
    fn foreign_details_are_passed_over() {
        assert_eq!(Failure::from_details(b""), None);
        assert_eq!(Failure::from_details(b"\xff\xff"), None);
    }
}
