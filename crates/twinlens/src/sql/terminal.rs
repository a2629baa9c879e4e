//! What is different about answers on a terminal: they are bounded, and cannot control it.

use std::io::{self, BufWriter, IsTerminal, Write};

use super::rows::Out;
use crate::text::{count, printable};

/// The most that is shown of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

impl Limit {
    /// What a person can look through.
    const TERMINAL: Self = Self { rows: 1000, bytes: 1 << 20 };

    /// What is said where an answer ends early.
    pub(super) fn note(self, rows: usize) -> String {
        format!(
            "... {} rows are shown; `--all` shows all of them, and so do a pipe and `-o FILE`",
            count(rows as u64)
        )
    }
}

/// stdout, and the limit of an answer there; `all` lifts it.
pub(super) fn stdout(all: bool) -> (Out, Option<Limit>) {
    let out = BufWriter::new(std::io::stdout());
    if !std::io::stdout().is_terminal() {
        return (Box::new(out), None);
    }
    (Box::new(Printable(out)), (!all).then_some(Limit::TERMINAL))
}

/// Escapes what controls a terminal. Each call gets whole characters: rows are written as a whole.
struct Printable<W>(W);

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(printable(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_controls_the_terminal() {
        let mut out = Printable(Vec::new());
        out.write_all("a\x1b[2J,\u{202e}b\u{9b}\n\"c\nd\"\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(out.0).unwrap(), "a\\u{1b}[2J,\\u{202e}b\\u{9b}\n\"c\nd\"\n");
    }
}
