//! Whether a fault can have been one of its run: what is written of it excuses what checkers would else find.

use super::{Fault, Moment, Run};
use crate::nemesis::Kind;

/// Why it cannot. `end`: the end of the run, where that is written.
pub(super) fn refuted(fault: &Fault, run: &Run, end: Option<Moment>) -> Option<String> {
    let problem = match (fault.healed, end) {
        (Some(healed), _) if healed < fault.began => {
            format!("it was healed at {healed}, before it began")
        }
        (_, Some(end)) if fault.began > end => {
            format!("it began after the end of the run at {end}")
        }
        (Some(healed), Some(end)) if healed > end.later(Fault::BRIEF) => {
            format!("it was healed at {healed}, after the end of the run at {end}")
        }
        _ => {
            let stranger = fault.nodes.iter().find(|name| !is_node(name, fault, run))?;
            let nodes: Vec<&str> = run.nodes.iter().map(String::as_str).collect();
            format!(
                "it names `{stranger}`, and the nodes of the run are {}",
                nodes.join(", ")
            )
        }
    };
    Some(format!("{fault}: {problem}"))
}

/// Whether a fault of this run may name this node. A further one may have joined: no member at the end, so that the head does not name it.
fn is_node(name: &str, fault: &Fault, run: &Run) -> bool {
    let is_further = || name == format!("n{}", run.nodes.len() + 1);
    // Of a head that names none nothing follows.
    run.nodes.is_empty()
        || run.nodes.contains(name)
        || (fault.kind == Kind::Join.name() && is_further())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::fixture::fault;

    fn run() -> Run {
        Run {
            nodes: ["n1", "n2", "n3"].map(str::to_owned).into(),
            ..Run::default()
        }
    }

    #[test]
    fn a_fault_that_ends_before_it_begins_or_after_its_run_is_refuted() {
        let said = |began, healed, end: Option<u64>| {
            let fault = fault("kill", "n2", began, healed, false);
            refuted(&fault, &run(), end.map(Moment))
        };
        let brief = u64::try_from(Fault::BRIEF.as_nanos()).unwrap();
        for (began, healed, end) in [
            (5, 5, None),
            (5, 9, Some(9)),
            (5, u64::MAX, None),
            (9, 9 + brief, Some(9)),
        ] {
            assert_eq!(said(began, healed, end), None, "{began} {healed} {end:?}");
        }
        for (began, healed, end, problem) in [
            (5, 4, None, "it was healed at 0.000000 s, before it began"),
            (10, 4, Some(9), "before it began"),
            (10, 10, Some(9), "it began after the end of the run at 0.0"),
            (5, 10 + brief, Some(9), "after the end of the run at 0.0"),
        ] {
            let said = said(began, healed, end).unwrap();
            assert!(said.starts_with("kill on n2, begun at 0.0"), "{said}");
            assert!(said.contains(problem), "{said}");
        }
        let never = Fault {
            healed: None,
            ..fault("kill", "n2", 10, 0, false)
        };
        assert_eq!(refuted(&never, &run(), Some(Moment(10))), None);
        assert!(refuted(&never, &run(), Some(Moment(9))).is_some());
    }

    #[test]
    fn a_fault_names_nodes_of_its_run_and_the_one_that_joins() {
        let said = |kind, node| refuted(&fault(kind, node, 1, 2, false), &run(), None);
        assert_eq!(said("kill", "n3"), None);
        assert_eq!(said("join", "n4"), None);
        for (kind, node) in [("kill", "n4"), ("join", "n5"), ("pause", "")] {
            let said = said(kind, node).unwrap();
            let told = format!("it names `{node}`, and the nodes of the run are n1, n2, n3");
            assert!(said.ends_with(&told), "{said}");
        }
        let unnamed = fault("kill", "n9", 1, 2, false);
        assert_eq!(refuted(&unnamed, &Run::default(), None), None);
    }
}
