//! Formatting for the terminal: colours, counts, durations, sizes, and escaping.

use std::io::IsTerminal;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use twinlens_dataset::export::thousands as count;
pub(crate) use twinlens_pipeline::units::{bytes, seconds};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::env;

/// Colours, if they are enabled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(bool);

impl Paint {
    /// Colours if stderr is a terminal and `NO_COLOR` is not set.
    pub(crate) fn stderr() -> Self {
        Self(std::io::stderr().is_terminal() && !env::no_color())
    }

    /// Colours if stdout is a terminal and `NO_COLOR` is not set.
    pub(crate) fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && !env::no_color())
    }

    #[cfg(test)]
    pub(crate) fn colours() -> Self {
        Self(true)
    }

    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self(false)
    }

    pub(crate) fn is_on(self) -> bool {
        self.0
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn bold_red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// Escapes control characters except line feeds and tabs: text from the web must not control the
/// terminal.
pub(crate) fn printable(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// Escapes control characters and line feeds.
pub(crate) fn one_line(text: &str) -> String {
    escaped(text, |_| false)
}

/// A text of at most `most` columns of the terminal, with `...` where it is cut.
pub(crate) fn truncated(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.into();
    }
    let mut width = 0;
    let head = text.chars().take_while(|c| {
        width += c.width().unwrap_or(0);
        width <= most - 3
    });
    head.collect::<String>() + "..."
}

/// Like [`printable`], but for colours, which are ours where the text was made by a library that
/// lets no other escape sequence through.
pub(crate) fn printable_with_colours(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        shown += &printable(before);
        let end = after.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(after.len());
        let is_colour = after[end..].starts_with('m');
        let length = if is_colour { end + 1 } else { 0 };
        shown += if is_colour { "\u{1b}[" } else { "\\u{1b}[" };
        shown += &after[..length];
        rest = &after[length..];
    }
    shown + &printable(rest)
}

fn escaped(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_escaped(c) && !keep(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

fn is_escaped(c: char) -> bool {
    // Bidirectional controls reorder the text after them.
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `1 row`, `12,345 rows`.
pub(crate) fn counted(number: u64, one: &str) -> String {
    format!("{} {one}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `2026-11-30 14:55 UTC`.
pub(crate) fn date(time: SystemTime) -> String {
    let minutes = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60;
    let (days, minutes) = (minutes / (24 * 60), minutes % (24 * 60));
    // Eras of 400 years that begin in March, so that the day of a leap year is the last one
    // (H. Hinnant, "chrono-compatible low-level date algorithms").
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// Quotes a word for a POSIX shell, if necessary.
pub(crate) fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else if word.contains(is_escaped) {
        // As bash, zsh and ksh read it: the command must not control the terminal that shows it.
        let mut quoted = String::from("$'");
        for c in word.chars() {
            match c {
                '\'' | '\\' => quoted.extend(['\\', c]),
                c if is_escaped(c) => {
                    let mut bytes = [0; 4];
                    c.encode_utf8(&mut bytes).bytes().for_each(|byte| quoted += &format!("\\x{byte:02x}"));
                }
                c => quoted.push(c),
            }
        }
        quoted + "'"
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn numbers_are_formatted() {
        assert_eq!(["0", "999", "1,000", "1,234,567"], [0, 999, 1000, 1_234_567].map(count)[..]);
        assert_eq!(["1 row", "2 rows"], [1, 2].map(|rows| counted(rows, "row"))[..]);
        assert_eq!(
            ["14.2s", "1m 00s", "1h 02m"],
            [14.21, 60.4, 3725.0].map(|s| seconds(Duration::from_secs_f64(s)))[..]
        );
        let dates = [0, 951_782_400, 951_868_799, 1_709_164_800, 1_796_050_500]
            .map(|seconds| date(UNIX_EPOCH + Duration::from_secs(seconds)));
        assert_eq!(
            dates,
            [
                "1970-01-01 00:00 UTC",
                "2000-02-29 00:00 UTC",
                "2000-02-29 23:59 UTC",
                "2024-02-29 00:00 UTC",
                "2026-11-30 14:55 UTC"
            ]
        );
        assert_eq!(["5 B", "1.0 KiB", "1.5 GiB"], [5, 1024, 3 << 29].map(bytes)[..]);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable("a\x1b]0;x\x07\n\tb\u{202e}"), "a\\u{1b}]0;x\\u{7}\n\tb\\u{202e}");
        assert_eq!(one_line("two\nlines"), "two\\nlines");
        let coloured = "\u{1b}[1;31merror\u{1b}[0m\n\u{1b}[2J\u{9b}\u{1b}]0;x";
        let expected = "\u{1b}[1;31merror\u{1b}[0m\n\\u{1b}[2J\\u{9b}\\u{1b}]0;x";
        assert_eq!(printable_with_colours(coloured), expected);
        let quoted = ["a b", "it's", "a\nb'c\\\u{1b}[1m", "\u{202e}x"].map(shell_quote);
        let expected = ["'a b'", r"'it'\''s'", r"$'a\x0ab\'c\\\x1b[1m'", r"$'\xe2\x80\xaex'"];
        assert_eq!(quoted, expected);
        assert_eq!(one_line("naïve 猫 🐈"), "naïve 猫 🐈");
    }
}
