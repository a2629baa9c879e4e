//! Renders all errors of a pipeline: position, source line, what was expected, what to do.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::config::source::{Part, Source, Strings};
use crate::error::Fault;

/// Most errors shown.
const MAX_SHOWN: usize = 50;

/// The errors of a pipeline: at least one, in the order of the file.
pub struct Report {
    source: Source,
    faults: Vec<Fault>,
}

impl Report {
    pub(crate) fn new(source: Source, strings: &Strings, faults: Vec<Fault>) -> Self {
        let mut faults: Vec<Fault> = faults
            .into_iter()
            .map(|mut fault| {
                fault.span = strings.place(&source, &fault);
                fault.within = None;
                fault
            })
            .collect();
        faults.sort_by_key(|fault| (fault.span.start, fault.span.end));
        faults.dedup();
        Self { source, faults }
    }

    /// The errors. Their spans are bytes of the file, or beyond its end for arguments of the
    /// command line.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// The line and column (in characters) of an error, both from 1; `None` if it is in an
    /// argument of the command line.
    pub fn position(&self, fault: &Fault) -> Option<(usize, usize)> {
        let Part { argument: None, text, range, .. } = self.source.part(&fault.span) else { return None };
        let line = text[..range.start].rsplit('\n').next().unwrap_or_default();
        Some((self.source.line(range.start), line.chars().count() + 1))
    }

    /// The report as text, optionally with colours.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut text = String::new();
        for fault in self.faults.iter().take(MAX_SHOWN) {
            text.push_str(&self.render_fault(fault, &renderer));
            text.push_str("\n\n");
        }
        if self.faults.len() > MAX_SHOWN {
            text.push_str(&format!("... and {} more\n\n", self.faults.len() - MAX_SHOWN));
        }
        let count = match self.faults.len() {
            1 => "1 error".to_string(),
            more => format!("{more} errors"),
        };
        text + &format!("{count} in {}", printable(self.source.name()))
    }

    fn render_fault(&self, fault: &Fault, renderer: &Renderer) -> String {
        let Part { name, text, range, argument } = self.source.part(&fault.span);
        let label = printable(&fault.label);
        let mut snippet = Snippet::source(text).path(printable(name));
        snippet = snippet.annotation(primary(text, range).label((!label.is_empty()).then_some(label)));
        for (span, note) in &fault.related {
            let other = self.source.part(span);
            if other.argument == argument {
                snippet =
                    snippet.annotation(AnnotationKind::Context.span(other.range).label(printable(note)));
            }
        }
        let mut group = Level::ERROR.primary_title(printable(&fault.message)).element(snippet);
        if let Some(hint) = &fault.hint {
            group = group.element(Level::HELP.message(printable(hint)));
        }
        renderer.render(&[group])
    }
}

/// The underlined range. Of a value over several lines, only the first is underlined.
fn primary<'a>(text: &str, place: Range<usize>) -> annotate_snippets::Annotation<'a> {
    let end = text[place.clone()].find(['\n', '\r']).map_or(place.end, |length| place.start + length);
    AnnotationKind::Primary.span(place.start..end)
}

/// Replaces control characters: a pipeline file must not control the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}
