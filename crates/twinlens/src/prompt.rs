//! Questions in the terminal.

use std::io::{IsTerminal, Write};

use twinlens_pipeline::run::consent::Replace;

/// Whether a person can be asked.
pub(crate) fn is_possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Shows a text and asks whether to proceed. Any answer but yes means no.
pub(crate) fn confirm(text: &str) -> bool {
    let mut err = std::io::stderr().lock();
    let mut answer = String::new();
    let asked = write!(err, "{text}\nContinue? [y/N] ").and_then(|()| err.flush());
    let read = asked.and_then(|()| std::io::stdin().read_line(&mut answer));
    read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

/// How a run is allowed to delete what was expensive to make.
pub(crate) fn replace() -> Replace {
    if is_possible() { Replace::Ask(confirm) } else { Replace::No }
}
