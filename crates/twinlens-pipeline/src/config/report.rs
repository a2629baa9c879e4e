//! Renders all errors of a pipeline: position, source line, what was expected, what to do.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::config::source::{Part, Source, Strings};
use crate::error::Fault;
use crate::secrets::Secrets;

/// Most errors shown.
const MAX_SHOWN: usize = 50;

/// The errors of a pipeline: at least one, in the order of the file.
pub struct Report {
    source: Box<Source>,
    faults: Vec<Fault>,
    secrets: Secrets,
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
        Self { source: Box::new(source), faults, secrets: strings.secrets.clone() }
    }

    /// The errors. Their spans are bytes of the file, or beyond its end for arguments of the
    /// command line.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// The name of the file, or of what took its place.
    pub fn name(&self) -> &str {
        self.source.name()
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
        text += &format!("{count} in {}", printable(self.source.name()));
        // The lines of the file are shown as they are.
        self.secrets.hide(&text).into_owned()
    }

    fn render_fault(&self, fault: &Fault, renderer: &Renderer) -> String {
        let Part { name, text, range, argument } = self.source.part(&fault.span);
        let parts = fault.related.iter().map(|(span, note)| (self.source.part(span), note));
        let related: Vec<_> = parts.filter(|(other, _)| other.argument == argument).collect();
        let (start, shown) =
            lines(text, [&range].into_iter().chain(related.iter().map(|(other, _)| &other.range)));
        let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
        let within = |place: &Range<usize>| place.start - start..place.end - start;
        let label = printable(&fault.label);
        let mut snippet = Snippet::source(shown).path(printable(name)).line_start(line);
        let label = (!label.is_empty()).then_some(label);
        snippet = snippet.annotation(primary(shown, within(&range)).label(label));
        for (other, note) in &related {
            let place = within(&other.range);
            snippet = snippet.annotation(AnnotationKind::Context.span(place).label(printable(note)));
        }
        let mut group = Level::ERROR.primary_title(printable(&fault.message)).element(snippet);
        if let Some(hint) = &fault.hint {
            group = group.element(Level::HELP.message(printable(hint)));
        }
        renderer.render(&[group])
    }
}

/// The lines of a text that have some places, and where they start. The renderer goes through all
/// that it is given, for each error.
fn lines<'t, 'p>(text: &'t str, places: impl Iterator<Item = &'p Range<usize>> + Clone) -> (usize, &'t str) {
    let first = places.clone().map(|place| place.start).min().unwrap_or(0);
    let last = places.map(|place| place.end).max().unwrap_or(0);
    let start = text[..first].rfind('\n').map_or(0, |at| at + 1);
    let end = text[last..].find('\n').map_or(text.len(), |at| last + at);
    let end = if end > last && text[..end].ends_with('\r') { end - 1 } else { end };
    (start, &text[start..end])
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
