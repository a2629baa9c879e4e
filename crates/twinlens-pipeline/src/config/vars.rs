//! Expands `${name}` from `[vars]`, `--set` and listed environment variables.
//!
//! Only strings of the parsed file are expanded, so that a value can never become syntax. A string
//! that consists of `"${name}"` takes the type of the value, so that `epochs = "${epochs}"` is a
//! number.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::source::{Piece, Source, Strings};
use crate::error::Fault;
use crate::suggest::{Suggestions, did_you_mean, list_names};

/// External values: `--set` arguments (`name=value`) and the environment.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `epochs=3` sets a variable, `clip.epochs=3` an option of a stage, `seed=3` a top-level key.
    pub set: Vec<String>,
    /// The environment; only names that the file lists under `env` are looked up.
    pub env: BTreeMap<String, String>,
}

/// The value of a variable, and its text.
#[derive(Debug, Clone)]
pub(crate) struct Scalar<'i> {
    value: DeValue<'i>,
    text: String,
}

impl<'i> Scalar<'i> {
    /// Parses an external value as a number, boolean or date, else as a plain string.
    pub(crate) fn parse(text: &'i str) -> Self {
        let parsed = DeValue::parse(text).ok().and_then(|parsed| Self::from_toml(parsed.get_ref()));
        parsed.unwrap_or_else(|| Self { value: DeValue::String(text.into()), text: text.into() })
    }

    /// `None` for an array or a table.
    fn from_toml(value: &DeValue<'i>) -> Option<Self> {
        let text = match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Datetime(time) => time.to_string(),
            DeValue::Array(_) | DeValue::Table(_) => return None,
        };
        Some(Self { value: value.clone(), text })
    }
}

/// The variables of a pipeline file.
#[derive(Debug, Default)]
pub(crate) struct Vars<'i> {
    known: BTreeMap<String, Scalar<'i>>,
    /// Listed under `env` but not in the environment.
    unset: BTreeSet<String>,
    suggestions: Suggestions,
}

/// A `--set` argument that sets a variable.
pub(crate) struct SetVar<'i> {
    pub(crate) name: &'i str,
    pub(crate) place: Range<usize>,
    pub(crate) value: &'i str,
}

impl<'i> Vars<'i> {
    /// `--set` takes precedence over the environment, which takes precedence over `[vars]`.
    pub(crate) fn collect(
        table: Option<&Spanned<DeValue<'i>>>,
        listed: &[Spanned<String>],
        env: &'i BTreeMap<String, String>,
        set: &[SetVar<'i>],
        faults: &mut Vec<Fault>,
    ) -> Self {
        let mut vars = Self::default();
        match table.map(|table| (table.span(), table.get_ref())) {
            None => {}
            Some((_, DeValue::Table(table))) => {
                for (name, value) in table.iter() {
                    vars.declare(name, value, faults);
                }
            }
            Some((span, _)) => {
                faults.push(Fault::at(span, "`vars` is not a table").label("expected `[vars]`"))
            }
        }
        for name in listed {
            match env.get(name.get_ref().as_str()) {
                Some(value) => {
                    vars.known.insert(name.get_ref().clone(), Scalar::parse(value));
                }
                None => {
                    vars.unset.insert(name.get_ref().clone());
                }
            }
        }
        for var in set {
            vars.known.insert(var.name.into(), Scalar::parse(var.value));
        }
        vars
    }

    fn declare(
        &mut self,
        name: &Spanned<toml::de::DeString<'i>>,
        value: &Spanned<DeValue<'i>>,
        faults: &mut Vec<Fault>,
    ) {
        if !is_name(name.get_ref()) {
            faults.push(Fault::at(name.span(), "the name of a variable has only letters, digits and `_`"));
        }
        let scalar = Scalar::from_toml(value.get_ref());
        if scalar.as_ref().is_some_and(|scalar| scalar.text.contains("${")) {
            let fault = Fault::at(value.span(), "a variable cannot refer to other variables");
            faults.push(fault.hint("combine them where they are used: `\"${first}/${second}\"`"));
        }
        match scalar {
            Some(scalar) => {
                self.known.insert(name.get_ref().to_string(), scalar);
            }
            None => faults.push(
                Fault::at(
                    value.span(),
                    format!("the variable `{name}` is {}", article(value.get_ref().type_str())),
                )
                .label("expected a string, a number or a boolean"),
            ),
        }
    }

    fn unknown(&self, name: &str, place: Range<usize>) -> Fault {
        if self.unset.contains(name) {
            return Fault::at(place, format!("the environment variable `{name}` is not set"))
                .hint(format!("set it, or give a default under `[vars]`, or `--set {name}=...`"));
        }
        let fault = Fault::at(place, format!("undefined variable `{name}`"));
        if !self.suggestions.next() {
            return fault;
        }
        let names = || self.known.keys().chain(&self.unset).map(String::as_str);
        fault.label(format!("known: {}", list_names(names()))).hint(
            did_you_mean(name, names()).unwrap_or_else(|| {
                format!("define it under `[vars]`, list it under `env`, or give `--set {name}=...`")
            }),
        )
    }
}

pub(crate) fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

pub(crate) fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// A part of a template.
enum Part<'t> {
    Text(&'t str),
    Variable(&'t str),
    /// A `${` without a name and `}`.
    Malformed,
}

/// Splits a string into parts with their ranges; `$${` is a literal `${`.
fn parts(template: &str) -> Vec<(Range<usize>, Part<'_>)> {
    let mut parts = Vec::new();
    let mut done = 0;
    while let Some(found) = template[done..].find("${") {
        let at = done + found;
        if found > 0 && template[..at].ends_with('$') {
            parts.push((done..at - 1, Part::Text(&template[done..at - 1])));
            parts.push((at..at + 2, Part::Text("${")));
            done = at + 2;
            continue;
        }
        parts.push((done..at, Part::Text(&template[done..at])));
        let length = template[at..].find('}').map(|length| length + 1);
        let name = length.map(|length| &template[at + 2..at + length - 1]).filter(|name| is_name(name));
        // Of a malformed one, only the `${` is skipped: a valid one may follow.
        let (part, length) = name.map_or((Part::Malformed, 2), |name| (Part::Variable(name), name.len() + 3));
        parts.push((at..at + length, part));
        done = at + length;
    }
    parts.push((done..template.len(), Part::Text(&template[done..])));
    parts
}

/// Expands variables in the strings of a tree.
pub(crate) struct Expander<'a, 'i> {
    pub(crate) source: &'a Source,
    pub(crate) vars: &'a Vars<'i>,
    pub(crate) strings: &'a mut Strings,
    pub(crate) faults: &'a mut Vec<Fault>,
    /// The variables in use.
    pub(crate) used: BTreeSet<String>,
}

impl<'i> Expander<'_, 'i> {
    pub(crate) fn table(&mut self, table: &mut DeTable<'i>) {
        for (_, value) in table.iter_mut() {
            self.value(value);
        }
    }

    pub(crate) fn value(&mut self, value: &mut Spanned<DeValue<'i>>) {
        let span = value.span();
        let expanded = match value.get_mut() {
            DeValue::Array(items) => return items.iter_mut().for_each(|item| self.value(item)),
            DeValue::Table(table) => return self.table(table),
            // Values of `--set` are not expanded.
            DeValue::String(text) if text.contains("${") && span.start < self.source.file().len() => {
                let text = text.to_string();
                self.string(&text, &span)
            }
            _ => None,
        };
        if let Some(expanded) = expanded {
            *value.get_mut() = expanded;
        }
    }

    fn string(&mut self, template: &str, span: &Range<usize>) -> Option<DeValue<'i>> {
        let (mut result, mut pieces) = (String::new(), Vec::new());
        let mut whole = None;
        for (place, part) in parts(template) {
            let start = result.len();
            let is_literal = matches!(part, Part::Text(_));
            match part {
                Part::Text(text) => result.push_str(text),
                Part::Variable(name) => {
                    self.used.insert(name.to_string());
                    if let Some(scalar) = self.vars.known.get(name) {
                        result.push_str(&scalar.text);
                        whole = (place.len() == template.len()).then_some(scalar);
                    } else {
                        let unknown = self.vars.unknown(name, self.exact(span, &place));
                        self.broken(span, unknown);
                    }
                }
                Part::Malformed => {
                    let fault = Fault::at(self.exact(span, &place), "`${` without a name and `}`");
                    self.broken(
                        span,
                        fault.label("expected `${name}`").hint("write `$${` for a literal `${`"),
                    );
                }
            }
            pieces.push(Piece { result: start..result.len(), template: place, is_literal });
        }
        self.strings.expanded.insert(span.start, pieces);
        if let Some(scalar) = whole
            && !scalar.value.is_str()
        {
            self.strings.texts.insert(span.start, scalar.text.clone());
            return Some(scalar.value.clone());
        }
        Some(DeValue::String(result.into()))
    }

    fn exact(&self, span: &Range<usize>, within: &Range<usize>) -> Range<usize> {
        self.strings.content(self.source, span, within.clone()).unwrap_or(span.clone())
    }

    fn broken(&mut self, span: &Range<usize>, fault: Fault) {
        self.strings.broken.insert(span.start);
        self.faults.push(fault);
    }
}
