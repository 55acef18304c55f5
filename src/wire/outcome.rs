//! Outcomes and refusals.

use super::{WireError, parsed, required, v1};
use crate::{
    model::{node::NodeId, serial::Serial},
    state::outcome::{Applied, Outcome, Refusal, RefusalKind},
};

impl From<&Outcome> for v1::Outcome {
    fn from(outcome: &Outcome) -> Self {
        let kind = match outcome {
            Outcome::Applied(applied) => v1::outcome::Kind::Applied(applied.into()),
            Outcome::Refused(refusal) => v1::outcome::Kind::Refused(refusal.into()),
            Outcome::Unknown => v1::outcome::Kind::Unknown(v1::UnknownOutcome {}),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Outcome> for Outcome {
    type Error = WireError;

    fn try_from(message: v1::Outcome) -> Result<Self, WireError> {
        let v1::Outcome { kind } = message;
        Ok(match required("outcome.kind", kind)? {
            v1::outcome::Kind::Applied(applied) => Self::Applied(applied.try_into()?),
            v1::outcome::Kind::Refused(refusal) => Self::Refused(refusal.try_into()?),
            v1::outcome::Kind::Unknown(v1::UnknownOutcome {}) => Self::Unknown,
        })
    }
}

impl From<&Applied> for v1::Applied {
    fn from(applied: &Applied) -> Self {
        let Applied {
            revision,
            changed,
            serials,
            node,
        } = applied;
        let serial = |(zone, serial): &(crate::model::name::Name, Serial)| v1::ZoneSerial {
            zone: zone.to_string(),
            serial: serial.0,
        };
        Self {
            revision: *revision,
            changed: *changed,
            serials: serials.iter().map(serial).collect(),
            node: node.map(|id| id.0),
        }
    }
}

impl TryFrom<v1::Applied> for Applied {
    type Error = WireError;

    fn try_from(message: v1::Applied) -> Result<Self, WireError> {
        let v1::Applied {
            revision,
            changed,
            serials,
            node,
        } = message;
        let serial = |v1::ZoneSerial { zone, serial }: v1::ZoneSerial| {
            Ok((parsed("serials.zone", &zone)?, Serial(serial)))
        };
        Ok(Self {
            revision,
            changed,
            serials: serials.into_iter().map(serial).collect::<Result<_, _>>()?,
            node: node.map(NodeId),
        })
    }
}

impl From<&Refusal> for v1::Refusal {
    fn from(refusal: &Refusal) -> Self {
        let Refusal {
            kind,
            object,
            problem,
            hint,
        } = refusal;
        Self {
            kind: v1::RefusalKind::from(*kind).into(),
            object: object.clone(),
            problem: problem.clone(),
            hint: hint.clone(),
        }
    }
}

impl TryFrom<v1::Refusal> for Refusal {
    type Error = WireError;

    fn try_from(message: v1::Refusal) -> Result<Self, WireError> {
        let v1::Refusal {
            kind,
            object,
            problem,
            hint,
        } = message;
        Ok(Self {
            kind: refusal_kind(kind)?,
            object,
            problem,
            hint,
        })
    }
}

impl From<RefusalKind> for v1::RefusalKind {
    fn from(kind: RefusalKind) -> Self {
        match kind {
            RefusalKind::Invalid => Self::Invalid,
            RefusalKind::NotFound => Self::NotFound,
            RefusalKind::AlreadyExists => Self::AlreadyExists,
            RefusalKind::PreconditionFailed => Self::PreconditionFailed,
            RefusalKind::Conflict => Self::Conflict,
            RefusalKind::LimitExceeded => Self::LimitExceeded,
            RefusalKind::FeatureLevel => Self::FeatureLevel,
        }
    }
}

fn refusal_kind(number: i32) -> Result<RefusalKind, WireError> {
    match v1::RefusalKind::try_from(number) {
        Ok(v1::RefusalKind::Invalid) => Ok(RefusalKind::Invalid),
        Ok(v1::RefusalKind::NotFound) => Ok(RefusalKind::NotFound),
        Ok(v1::RefusalKind::AlreadyExists) => Ok(RefusalKind::AlreadyExists),
        Ok(v1::RefusalKind::PreconditionFailed) => Ok(RefusalKind::PreconditionFailed),
        Ok(v1::RefusalKind::Conflict) => Ok(RefusalKind::Conflict),
        Ok(v1::RefusalKind::LimitExceeded) => Ok(RefusalKind::LimitExceeded),
        Ok(v1::RefusalKind::FeatureLevel) => Ok(RefusalKind::FeatureLevel),
        Ok(v1::RefusalKind::Unspecified) => Err(WireError::missing("refusal.kind")),
        Err(_) => Err(WireError::new(
            "refusal.kind",
            format!("{number} is not known"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_comes_back() {
        let kinds = [
            RefusalKind::Invalid,
            RefusalKind::NotFound,
            RefusalKind::AlreadyExists,
            RefusalKind::PreconditionFailed,
            RefusalKind::Conflict,
            RefusalKind::LimitExceeded,
            RefusalKind::FeatureLevel,
        ];
        let mut all: Vec<Outcome> = kinds
            .iter()
            .map(|kind| Outcome::Refused(Refusal::new(*kind, "pool web", "is gone", "")))
            .collect();
        all.push(Outcome::Unknown);
        all.push(Outcome::Applied(Applied {
            revision: 9,
            changed: true,
            serials: vec![("example.".parse().unwrap(), Serial(3))],
            node: Some(NodeId(4)),
        }));
        for outcome in all {
            assert_eq!(
                Outcome::try_from(v1::Outcome::from(&outcome)),
                Ok(outcome.clone())
            );
        }
    }

    #[test]
    fn an_empty_outcome_is_refused() {
        assert!(Outcome::try_from(v1::Outcome { kind: None }).is_err());
        let unspecified = v1::Refusal::default();
        assert!(Refusal::try_from(unspecified).is_err());
    }
}
