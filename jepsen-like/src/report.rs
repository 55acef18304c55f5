//! `report.html`: one page that needs nothing else. Drawn from the history and the verdicts alone.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use crate::{
    checker::{Conclusion, Verdict},
    history::{History, Moment, Outcome, Responder, Skip},
};

const WIDTH: f64 = 1100.0;
const LEFT: f64 = 130.0;
const ROW: f64 = 18.0;
const BINS: usize = 220;
const PLOT: f64 = 120.0;
/// Findings that are shown of one checker.
const SHOWN: usize = 20;
/// Nobody has a VIP who has not answered for so long; it is asked for every 5 ms.
const SILENT: Duration = Duration::from_millis(250);
const COLOURS: [&str; 8] = [
    "#3b6fb6", "#d9822b", "#3a9a5b", "#a04fb0", "#c2b02e", "#2aa5a5", "#b84a62", "#777777",
];

/// The page.
pub fn page(history: &History, verdicts: &[Verdict]) -> String {
    let axis = Axis::of(history);
    let mut page = String::from(HEAD);
    let run = &history.run;
    let _ = write!(
        page,
        "<h1>Run with seed {}</h1><p>{} nodes, {} operations, {} faults injected, {:.1} s. Workloads: {}. Faults: {}.</p>",
        run.seed,
        run.nodes.len(),
        history.operations.len(),
        (history.faults.iter())
            .filter(|fault| fault.skipped.is_none())
            .count(),
        axis.end.as_secs_f64(),
        escape(&list(&run.workloads)),
        escape(&list(&run.nemeses)),
    );
    page += &verdict_table(verdicts);
    page += "<h2>Faults, leader and holder of the VIP</h2>";
    page += "<p>Red faults hit the leader. Where a VIP's row is blank, nobody answered for it.</p>";
    page += &timeline(history, &axis);
    page += &left_out(history);
    page += "<h2>Latency of operations that succeeded</h2>";
    page += &latency(history, &axis);
    page += "<h2>Operations by outcome</h2>";
    page += &availability(history, &axis);
    page += "<h2>Findings</h2>";
    for verdict in verdicts {
        page += &findings(verdict, history);
    }
    page += "</body></html>\n";
    page
}

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Run</title><style>\
body{font:14px system-ui,sans-serif;margin:2em;max-width:1200px;color:#222}\
table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}\
.holds{color:#287a3e}.not-exercised{color:#777}.undecided{color:#a06a00}.violated{color:#b3202c;font-weight:bold}\
pre{background:#f5f5f5;padding:.6em;white-space:pre-wrap}svg text{font:11px system-ui,sans-serif;fill:#333}\
</style></head><body>";

fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().cloned().collect::<Vec<_>>().join(", ")
}

/// Text as HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// From the run's time to the page.
struct Axis {
    end: Duration,
}

impl Axis {
    fn of(history: &History) -> Self {
        let operations = (history.operations.iter()).filter_map(|operation| operation.completed);
        let faults = history.faults.iter().filter_map(|fault| fault.healed);
        let answers = history.answers.last().map(|answer| answer.latest);
        let last = operations.chain(faults).chain(answers).max();
        let end = last.unwrap_or_default().since(Moment(0));
        Self {
            end: end.max(Duration::from_secs(1)),
        }
    }

    fn x(&self, at: Moment) -> f64 {
        let share = at.since(Moment(0)).as_secs_f64() / self.end.as_secs_f64();
        LEFT + share.min(1.0) * (WIDTH - LEFT)
    }

    fn bin(&self, at: Moment) -> usize {
        let share = at.since(Moment(0)).as_secs_f64() / self.end.as_secs_f64();
        ((share * BINS as f64) as usize).min(BINS - 1)
    }

    /// Where a bin begins.
    fn bin_x(&self, bin: usize) -> f64 {
        LEFT + bin as f64 / BINS as f64 * (WIDTH - LEFT)
    }

    /// A scale of seconds at `y`, with lines up to `top`.
    fn ticks(&self, y: f64, top: f64) -> String {
        let seconds = self.end.as_secs_f64();
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0]
            .into_iter()
            .find(|step| seconds / step <= 15.0)
            .unwrap_or(3600.0);
        let mut svg = String::new();
        let mut at = 0.0;
        while at <= seconds {
            let x = self.x(Moment::after(Duration::from_secs_f64(at)));
            let _ = write!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{y}\" stroke=\"#eee\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\">{at} s</text>",
                y + 12.0
            );
            at += step;
        }
        svg
    }
}

fn svg(height: f64, inside: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"100%\" xmlns=\"http://www.w3.org/2000/svg\">{inside}</svg>"
    )
}

fn bar(from: f64, to: f64, y: f64, colour: &str, title: &str) -> String {
    format!(
        "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"><title>{}</title></rect>",
        y + 2.0,
        (to - from).max(1.5),
        ROW - 4.0,
        escape(title)
    )
}

fn label(y: f64, text: &str) -> String {
    format!(
        "<text x=\"0\" y=\"{:.1}\">{}</text>",
        y + 13.0,
        escape(text)
    )
}

fn colour(node: &str) -> &'static str {
    let number = node.bytes().last().map_or(0, usize::from);
    COLOURS[number % COLOURS.len()]
}

/// One row for each kind of fault, one for the leader, one for each VIP's holder.
fn timeline(history: &History, axis: &Axis) -> String {
    let mut rows: Vec<(String, String)> = vec![];
    let mut kinds: BTreeMap<&str, Vec<&crate::history::Fault>> = BTreeMap::new();
    for fault in history
        .faults
        .iter()
        .filter(|fault| fault.skipped.is_none())
    {
        kinds.entry(&fault.kind).or_default().push(fault);
    }
    let mut y = 0.0;
    for (kind, faults) in kinds {
        let mut bars = String::new();
        for fault in faults {
            let healed = fault.healed.unwrap_or(Moment(u64::MAX));
            let on = match fault.nodes.is_empty() {
                true => "every node".to_owned(),
                false => list(&fault.nodes),
            };
            let leader = if fault.hit_leader {
                " (the leader)"
            } else {
                ""
            };
            let title = format!("{kind} on {on}{leader}, {} to {healed}", fault.began);
            let colour = if fault.hit_leader {
                "#b3202c"
            } else {
                "#e2a0a5"
            };
            bars += &bar(axis.x(fault.began), axis.x(healed), y, colour, &title);
        }
        rows.push((kind.to_owned(), bars));
        y += ROW;
    }
    let leaders = leaders(history);
    rows.push(("leader".to_owned(), spans(&leaders, axis, y)));
    y += ROW;
    for (vip, seen) in holders(history) {
        rows.push((vip.to_owned(), spans(&seen, axis, y)));
        y += ROW;
    }
    let mut inside = axis.ticks(y, 0.0);
    for (place, (name, bars)) in rows.iter().enumerate() {
        inside += &label(place as f64 * ROW, name);
        inside += bars;
    }
    inside += &legend(history, y + 20.0);
    svg(y + 40.0, &inside)
}

fn legend(history: &History, y: f64) -> String {
    let mut text = String::new();
    for (place, node) in history.run.nodes.iter().enumerate() {
        let x = LEFT + place as f64 * 60.0;
        text += &bar(x, x + 14.0, y, colour(node), node);
        let _ = write!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x + 18.0,
            y + 13.0,
            escape(node)
        );
    }
    text
}

/// A node, and what it was from when to when.
struct Span {
    node: String,
    from: Moment,
    until: Moment,
    title: String,
}

/// Each leads until the next is seen.
fn leaders(history: &History) -> Vec<Span> {
    let mut spans: Vec<Span> = vec![];
    for seen in &history.leaders {
        if let Some(last) = spans.last_mut() {
            last.until = seen.at;
        }
        spans.push(Span {
            node: seen.node.clone(),
            from: seen.at,
            until: Moment(u64::MAX),
            title: format!("{} leads in term {} from {}", seen.node, seen.term, seen.at),
        });
    }
    spans
}

/// Each holds a VIP from its first answer to the last that another's, or a silence, comes after. What is blank had no answer.
fn holders(history: &History) -> BTreeMap<&str, Vec<Span>> {
    let mut answers: Vec<_> = history.answers.iter().collect();
    answers.sort_by_key(|answer| answer.latest);
    let mut vips: BTreeMap<&str, Vec<Span>> = BTreeMap::new();
    for answer in answers {
        let by = match &answer.by {
            Responder::Node(node) => node.clone(),
            Responder::Stranger(mac) => format!("stranger {mac}"),
        };
        let spans = vips.entry(&answer.vip).or_default();
        match spans.last_mut() {
            Some(last) if last.node == by && answer.latest.since(last.until) < SILENT => {
                last.until = answer.latest;
            }
            _ => spans.push(Span {
                node: by,
                from: answer.latest,
                until: answer.latest,
                title: answer.vip.clone(),
            }),
        }
    }
    for span in vips.values_mut().flatten() {
        span.title = format!(
            "{} answers for {} from {} to {}",
            span.node, span.title, span.from, span.until
        );
    }
    vips
}

fn spans(spans: &[Span], axis: &Axis, y: f64) -> String {
    let drawn = spans.iter().map(|span| {
        let (from, until) = (axis.x(span.from), axis.x(span.until));
        bar(from, until, y, colour(&span.node), &span.title)
    });
    drawn.collect()
}

/// Median and 99th percentile of each bin, on a logarithmic scale.
fn latency(history: &History, axis: &Axis) -> String {
    let mut bins: Vec<Vec<f64>> = vec![vec![]; BINS];
    for operation in history
        .operations
        .iter()
        .filter(|operation| operation.is_ok())
    {
        let Some(completed) = operation.completed else {
            continue;
        };
        if let Some(bin) = bins.get_mut(axis.bin(completed)) {
            bin.push(completed.since(operation.invoked).as_secs_f64() * 1000.0);
        }
    }
    let height = |ms: f64| PLOT * (1.0 - (ms.max(0.1).log10() + 1.0) / 5.0).clamp(0.0, 1.0);
    let mut inside = axis.ticks(PLOT, 0.0);
    for ms in [0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0] {
        let y = height(ms);
        let _ = write!(
            inside,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#eee\"/><text x=\"60\" y=\"{:.1}\">{ms} ms</text>",
            y + 4.0
        );
    }
    for (share, colour) in [(0.99, "#d9822b"), (0.5, "#3b6fb6")] {
        for (place, bin) in bins.iter_mut().enumerate() {
            bin.sort_by(f64::total_cmp);
            let at = ((bin.len() as f64 * share) as usize).min(bin.len().saturating_sub(1));
            let Some(ms) = bin.get(at) else { continue };
            let _ = write!(
                inside,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\" fill=\"{colour}\"><title>{ms:.1} ms</title></circle>",
                axis.bin_x(place),
                height(*ms)
            );
        }
    }
    inside += &label(PLOT + 18.0, "blue: median, orange: 99 %");
    svg(PLOT + 36.0, &inside)
}

/// How many ended how, in each bin, by their invocation.
fn availability(history: &History, axis: &Axis) -> String {
    let mut bins = vec![[0u32; 3]; BINS];
    for operation in &history.operations {
        let outcome = match operation.outcome {
            Outcome::Ok => 0,
            Outcome::Fail => 1,
            Outcome::Unknown => 2,
        };
        let count =
            (bins.get_mut(axis.bin(operation.invoked))).and_then(|bin| bin.get_mut(outcome));
        if let Some(count) = count {
            *count += 1;
        }
    }
    let most = bins
        .iter()
        .map(|bin| bin.iter().sum())
        .max()
        .unwrap_or(1)
        .max(1u32);
    let mut inside = axis.ticks(PLOT, 0.0);
    let width = (WIDTH - LEFT) / BINS as f64;
    for (place, bin) in bins.iter().enumerate() {
        let mut y = PLOT;
        for (count, (colour, name)) in bin.iter().zip([
            ("#3a9a5b", "ok"),
            ("#c2b02e", "failed"),
            ("#b3202c", "unknown"),
        ]) {
            let height = f64::from(*count) / f64::from(most) * PLOT;
            y -= height;
            let _ = write!(
                inside,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"><title>{count} {name}</title></rect>",
                axis.bin_x(place)
            );
        }
    }
    inside += &label(PLOT + 18.0, "green: ok, yellow: failed, red: unknown");
    svg(PLOT + 36.0, &inside)
}

fn word(conclusion: Conclusion) -> &'static str {
    match conclusion {
        Conclusion::NotExercised => "not exercised",
        Conclusion::Holds => "holds",
        Conclusion::Undecided => "undecided",
        Conclusion::Violated => "violated",
    }
}

fn verdict_table(verdicts: &[Verdict]) -> String {
    let mut table = String::from("<table><tr><th>checker</th><th>verdict</th><th></th></tr>");
    for verdict in verdicts {
        let word = word(verdict.conclusion);
        let _ = write!(
            table,
            "<tr><td>{}</td><td class=\"{}\">{word}</td><td>{}</td></tr>",
            escape(verdict.checker),
            word.replace(' ', "-"),
            escape(&verdict.summary)
        );
    }
    table + "</table>"
}

/// Faults that were planned and not done, with the reasons.
fn left_out(history: &History) -> String {
    let mut rows = String::new();
    for fault in &history.faults {
        let (word, why) = match &fault.skipped {
            None => continue,
            Some(Skip::Impossible(why)) => ("impossible here", why),
            Some(Skip::Missed { missed: why }) => ("missed", why),
        };
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{word}</td><td>{}</td></tr>",
            fault.began,
            escape(&fault.kind),
            escape(why)
        );
    }
    match rows.is_empty() {
        true => rows,
        false => format!(
            "<h2>Faults that were not injected</h2><table><tr><th>at</th><th>fault</th><th></th><th>why</th></tr>{rows}</table>"
        ),
    }
}

fn findings(verdict: &Verdict, history: &History) -> String {
    if verdict.findings.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "<h3>{}: {} found</h3>",
        escape(verdict.checker),
        verdict.found
    );
    for finding in verdict.findings.iter().take(SHOWN) {
        let at = finding.at.map(|at| format!(" at {at}")).unwrap_or_default();
        let _ = write!(
            text,
            "<p><b>{}</b>{at}</p><pre>{}",
            escape(finding.kind),
            escape(&finding.text)
        );
        for id in finding.operations.iter().take(SHOWN) {
            let operation = history
                .operations
                .iter()
                .find(|operation| operation.id == *id);
            if let Some(operation) = operation {
                let _ = write!(text, "\n{}", escape(&operation.to_string()));
            }
        }
        text += "</pre>";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::Finding,
        history::{Answer, Call, Fault, LeaderSeen, Operation},
    };

    #[test]
    fn the_page_stands_alone_and_shows_everything() {
        let at = |ms: u64| Moment(ms * 1_000_000);
        let history = History {
            operations: vec![Operation {
                id: 4,
                process: 1,
                node: Some("n1".into()),
                invoked: at(10),
                completed: Some(at(30)),
                call: Call::Read { key: "<k>".into() },
                outcome: Outcome::Ok,
                reply: None,
                reason: None,
            }],
            faults: vec![
                Fault {
                    kind: "pause".into(),
                    nodes: ["n2".to_owned()].into(),
                    began: at(5),
                    healed: None,
                    hit_leader: true,
                    skipped: None,
                },
                Fault {
                    kind: "vip-move".into(),
                    nodes: [].into(),
                    began: at(6),
                    healed: Some(at(7)),
                    hit_leader: false,
                    skipped: Some(Skip::Missed {
                        missed: "n3 < n2".into(),
                    }),
                },
            ],
            leaders: vec![LeaderSeen {
                at: at(1),
                node: "n2".into(),
                term: 3,
            }],
            answers: vec![Answer {
                vip: "10.77.0.100".into(),
                by: Responder::Node("n2".into()),
                earliest: at(2),
                latest: at(2),
                kind: "arp".into(),
            }],
            ..History::default()
        };
        let finding = Finding::about("lost", "a < b".into(), &history.operations);
        let verdicts = [Verdict::of("set", "1 & 2".into(), vec![finding])];
        let page = page(&history, &verdicts);
        for part in [
            "class=\"violated\"",
            "a &lt; b",
            "1 &amp; 2",
            "pause on n2 (the leader)",
            "<td>0.006000 s</td><td>vip-move</td><td>missed</td><td>n3 &lt; n2</td>",
            "n2 leads in term 3",
            "n2 answers for 10.77.0.100",
            "20.0 ms",
            "read &lt;k&gt;",
        ] {
            assert!(page.contains(part), "{part}");
        }
        let foreign = ["src=", "href=", "<k>", "<script"];
        assert!(foreign.iter().all(|part| !page.contains(part)));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }

    #[test]
    fn a_holder_holds_as_long_as_it_answers() {
        let answer = |ms: u64, by: &str| Answer {
            vip: "10.77.0.100".into(),
            by: Responder::Node(by.into()),
            earliest: Moment(ms * 1_000_000),
            latest: Moment(ms * 1_000_000),
            kind: "arp".into(),
        };
        let history = History {
            answers: vec![
                answer(10, "n1"),
                answer(200, "n1"),
                answer(205, "n2"),
                answer(1000, "n2"),
            ],
            ..History::default()
        };
        let holders = holders(&history);
        let spans = holders["10.77.0.100"].iter();
        let spans: Vec<_> = spans
            .map(|span| {
                (
                    span.node.as_str(),
                    span.from.0 / 1_000_000,
                    span.until.0 / 1_000_000,
                )
            })
            .collect();
        assert_eq!(
            spans,
            [("n1", 10, 200), ("n2", 205, 205), ("n2", 1000, 1000)]
        );
    }
}
