//! How a test says that it was not run.

use std::{fmt::Display, io::Write};

/// Says why, on standard error. Not by `println!`, which the test harness keeps to itself when the test passes.
pub fn say(why: impl Display) {
    // Nobody is left to tell when that fails.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}
