//! Names on the command line: `all`, `none`, or names with commas between them; and what may have been meant by one that there is not.

use std::collections::BTreeSet;

/// Of names that are alike so many are suggested.
const SUGGESTED: usize = 3;

/// Why a list of names cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    #[error(
        "no {what} is named `{name}`{}; `jepsen-like list` names them",
        meant(suggestions)
    )]
    Unknown {
        what: &'static str,
        name: String,
        suggestions: Vec<String>,
    },
    #[error("a name is missing: write {what}s with commas between them, or `all`")]
    Missing { what: &'static str },
    #[error("`{word}` stands alone: it cannot be mixed with names")]
    Mixed { word: &'static str },
}

fn meant(suggestions: &[String]) -> String {
    match suggestions {
        [] => String::new(),
        _ => format!(" (perhaps {}?)", suggestions.join(", ")),
    }
}

/// Reads a list of names; `what` is what they name, `all` is what there is, `name_of` the name of each.
pub fn parse<T: Copy + Ord>(
    what: &'static str,
    text: &str,
    all: &[T],
    name_of: impl Fn(T) -> &'static str,
) -> Result<BTreeSet<T>, NamesError> {
    match text.trim() {
        "all" => return Ok(all.iter().copied().collect()),
        "none" => return Ok(BTreeSet::new()),
        _ => {}
    }
    let one = |name: &str| {
        let known = all.iter().copied().find(|one| name_of(*one) == name);
        known.ok_or_else(|| match name {
            "" => NamesError::Missing { what },
            "all" => NamesError::Mixed { word: "all" },
            "none" => NamesError::Mixed { word: "none" },
            _ => NamesError::Unknown {
                what,
                name: name.to_owned(),
                suggestions: suggestions(name, all.iter().map(|one| name_of(*one))),
            },
        })
    };
    text.split(',').map(|name| one(name.trim())).collect()
}

/// The names most like this one: those with it in them or that it has in it, then those a few letters away.
fn suggestions(name: &str, all: impl Iterator<Item = &'static str>) -> Vec<String> {
    let name = name.to_lowercase();
    let letters = name.chars().count();
    let mut alike: Vec<(usize, &str)> = all
        .filter_map(|known| {
            let is_part = letters >= 3 && (known.contains(&name) || name.contains(known));
            let apart = distance(&name, known);
            match is_part {
                true => Some((0, known)),
                false => (apart <= 1 + letters / 4).then_some((apart, known)),
            }
        })
        .collect();
    alike.sort_by_key(|(apart, _)| *apart);
    alike.truncate(SUGGESTED);
    let known = alike.into_iter().map(|(_, known)| known.to_owned());
    known.collect()
}

/// Letters to insert, delete or exchange until one text is the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut next = vec![above + 1];
        for (place, (theirs, pair)) in other.iter().zip(row.windows(2)).enumerate() {
            let (diagonal, up) = (pair.first().copied(), pair.last().copied());
            let exchanged = diagonal.unwrap_or(0) + usize::from(*theirs != letter);
            let left = next.get(place).copied().unwrap_or(0) + 1;
            next.push(exchanged.min(left).min(up.unwrap_or(0) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nemesis::Kind, workload::Workload};

    fn faults(text: &str) -> Result<BTreeSet<Kind>, String> {
        parse("fault", text, Kind::ALL, Kind::name).map_err(|error| error.to_string())
    }

    #[test]
    fn names_stand_alone_or_with_commas() {
        assert_eq!(faults("all").unwrap().len(), Kind::ALL.len());
        assert_eq!(faults("none").unwrap(), BTreeSet::new());
        assert_eq!(
            faults(" kill, pause ,kill").unwrap(),
            [Kind::Kill, Kind::Pause].into()
        );
        for wrong in ["", ",", "kill,", "kill,,pause"] {
            assert!(faults(wrong).unwrap_err().contains("a name is missing"));
        }
        for wrong in ["all,kill", "kill,none"] {
            assert!(faults(wrong).unwrap_err().contains("stands alone"));
        }
    }

    #[test]
    fn what_may_have_been_meant_is_named() {
        for (wrong, meant) in [
            ("kil", "(perhaps kill, kill-all?)"),
            ("clock", "(perhaps clock-step, clock-skew?)"),
            (
                "partition",
                "(perhaps partition-leader, partition-halves, partition-ring?)",
            ),
            ("restrat", "(perhaps restart?)"),
            ("stolen-address", "fault is named `stolen-address`;"),
            ("Pause", "(perhaps pause?)"),
        ] {
            let said = faults(wrong).unwrap_err();
            assert!(said.contains(meant), "{said}");
        }
        let said = parse("workload", "regster", Workload::ALL, Workload::name).unwrap_err();
        assert_eq!(
            said.to_string(),
            "no workload is named `regster` (perhaps register?); `jepsen-like list` names them"
        );
    }

    #[test]
    fn distances_are_counted_in_letters() {
        for (one, other, apart) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("loss", "loss", 0),
            ("delay", "dealy", 2),
        ] {
            assert_eq!(distance(one, other), apart);
            assert_eq!(distance(other, one), apart);
        }
    }
}
