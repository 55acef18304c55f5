//! Failures as gRPC statuses: the one place where the two meet, in both directions.

use tonic::{Code, Status};

use crate::wire::error::{Failure, FailureCode};

/// The status of a failure, with the failure itself in its details.
impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let code = code_of(failure.code);
        let failure = failure.shortened();
        let details = failure.to_details(code.into());
        Status::with_details(code, failure.to_string(), details)
    }
}

fn code_of(code: FailureCode) -> Code {
    match code {
        FailureCode::Invalid | FailureCode::Usage => Code::InvalidArgument,
        FailureCode::NotFound => Code::NotFound,
        FailureCode::AlreadyExists => Code::AlreadyExists,
        FailureCode::PreconditionFailed
        | FailureCode::Conflict
        | FailureCode::FeatureLevel
        | FailureCode::NotReady => Code::FailedPrecondition,
        FailureCode::LimitExceeded | FailureCode::Overloaded => Code::ResourceExhausted,
        FailureCode::NoLeader | FailureCode::Unreachable => Code::Unavailable,
        // "Unknown" in gRPC says just this: no claim about what happened.
        FailureCode::UnknownOutcome => Code::Unknown,
        FailureCode::Unauthenticated => Code::Unauthenticated,
        FailureCode::PermissionDenied => Code::PermissionDenied,
        FailureCode::Unsupported => Code::Unimplemented,
        FailureCode::Internal => Code::Internal,
    }
}

/// The failure a status tells of. `written`: the call may have changed something, so that a lost answer leaves its outcome
/// unknown.
pub fn failure_of(status: &Status, object: &str, written: bool) -> Failure {
    if let Some(failure) = Failure::from_details(status.details()) {
        return failure;
    }
    let cause = innermost(status);
    let sent = !never_sent(status);
    let broken = match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => true,
        // A connection that broke, or never spoke our protocol.
        Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    };
    let (code, hint) = match status.code() {
        // An answer that is longer than we take says that something was done.
        _ if (broken || status.code() == Code::OutOfRange) && written && sent => {
            let hint = "look whether the change was made before you repeat it";
            (FailureCode::UnknownOutcome, hint)
        }
        _ if broken => {
            let hint = "check that the node runs and that the endpoint is right";
            (FailureCode::Unreachable, hint)
        }
        Code::Unimplemented => {
            let hint = "the node's program is older than this one: upgrade it";
            (FailureCode::Unsupported, hint)
        }
        Code::Unauthenticated => (FailureCode::Unauthenticated, ""),
        Code::PermissionDenied => (FailureCode::PermissionDenied, ""),
        Code::ResourceExhausted | Code::OutOfRange => (FailureCode::LimitExceeded, ""),
        Code::InvalidArgument => (FailureCode::Invalid, ""),
        _ => (FailureCode::Internal, ""),
    };
    Failure::new(code, object, cause, hint)
}

/// Whether a node itself said what was wrong, in its own words.
pub fn says_why(status: &Status) -> bool {
    Failure::from_details(status.details()).is_some()
}

/// Whether the cause is one that goes away by itself: nothing listens there, the connection broke, or no answer came. A
/// node that restarts looks so; a wrong certificate or a foreign protocol does not.
pub fn may_pass(status: &Status) -> bool {
    if says_why(status) {
        return false;
    }
    let mut deepest = None;
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            deepest = Some(io.kind());
        }
        source = error.source();
    }
    use std::io::ErrorKind;
    match deepest {
        Some(kind) => matches!(
            kind,
            ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::NotConnected
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
                | ErrorKind::NotFound
                | ErrorKind::TimedOut
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::NetworkDown
        ),
        None => match status.code() {
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => true,
            // A connection that ended before its answer.
            Code::Unknown => std::error::Error::source(status).is_some(),
            _ => false,
        },
    }
}

/// Whether the request never left this process: no connection was made.
fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let text = error.to_string();
        if error.downcast_ref::<std::io::Error>().is_some_and(|io| {
            matches!(
                io.kind(),
                std::io::ErrorKind::ConnectionRefused
                    | std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::PermissionDenied
                    | std::io::ErrorKind::TimedOut
                    | std::io::ErrorKind::HostUnreachable
                    | std::io::ErrorKind::NetworkUnreachable
            )
        }) || text.contains("tcp connect error")
        {
            return true;
        }
        source = error.source();
    }
    false
}

/// The words of the deepest cause: "connection refused" says more than "transport error".
fn innermost(status: &Status) -> String {
    let mut words = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        words = error.to_string();
        source = error.source();
    }
    if words.is_empty() {
        words = status.code().to_string();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_comes_back_whole() {
        for code in FailureCode::ALL {
            let failure = Failure::new(*code, "zone example.", "is not there", "create it");
            let status = Status::from(failure.clone());
            assert_ne!(status.code(), Code::Ok);
            assert_eq!(failure_of(&status, "request", true), failure);
        }
    }

    /// A client refuses an answer whose headers are longer, and its caller would hear of a fault of the protocol.
    #[test]
    fn however_long_its_words_a_failure_fits_into_the_headers_that_a_client_takes() {
        const TAKEN: usize = 16 * 1024;
        for character in ["a", " ", "ä"] {
            let long = character.repeat(20_000);
            let failure = Failure::new(FailureCode::Conflict, &long, &long, &long);
            let status = Status::from(failure);
            let mut headers = http::HeaderMap::new();
            status.add_header(&mut headers).unwrap();
            // As HTTP/2 counts them (RFC 9113 section 6.5.2).
            let octets: usize = headers
                .iter()
                .map(|(name, value)| name.as_str().len() + value.len() + 32)
                .sum();
            assert!(octets < TAKEN - 512, "{octets} octets of {character:?}");
            let told = failure_of(&status, "request", true);
            assert_eq!(told.code, FailureCode::Conflict);
            assert!(told.problem.starts_with(character));
        }
    }

    #[test]
    fn a_lost_answer_of_a_write_is_never_called_a_failure() {
        for code in [Code::Unavailable, Code::Cancelled, Code::DeadlineExceeded] {
            let status = Status::new(code, "connection reset");
            let written = failure_of(&status, "request", true);
            assert_eq!(written.code, FailureCode::UnknownOutcome, "{code:?}");
            let read = failure_of(&status, "request", false);
            assert_eq!(read.code, FailureCode::Unreachable, "{code:?}");
        }
        let long = Status::new(Code::OutOfRange, "decoded message length too large");
        let code = |written| failure_of(&long, "request", written).code;
        assert_eq!(code(true), FailureCode::UnknownOutcome);
        assert_eq!(code(false), FailureCode::LimitExceeded);
    }

    #[test]
    fn a_refused_connection_wrote_nothing() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(refused));
        let failure = failure_of(&status, "endpoint", true);
        assert_ne!(failure.code, FailureCode::UnknownOutcome);
    }

    #[test]
    fn what_may_pass_is_told_from_what_stays() {
        use std::io::{Error, ErrorKind};
        for (kind, passes) in [
            (ErrorKind::ConnectionRefused, true),
            (ErrorKind::NotFound, true),
            (ErrorKind::ConnectionReset, true),
            (ErrorKind::UnexpectedEof, true),
            (ErrorKind::TimedOut, true),
            // A certificate that is not ours, a socket that is not for us.
            (ErrorKind::InvalidData, false),
            (ErrorKind::PermissionDenied, false),
        ] {
            let status = Status::from_error(Box::new(Error::from(kind)));
            assert_eq!(may_pass(&status), passes, "{kind}");
        }
        let told = Failure::new(FailureCode::NoLeader, "cluster", "no leader", "wait");
        assert!(!may_pass(&told.into()), "a node said why");
        assert!(may_pass(&Status::cancelled("Timeout expired")));
    }
}
