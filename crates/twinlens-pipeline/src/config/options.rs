//! A TOML table to a struct, with everything that is wrong told at once.
//!
//! `serde` stops at the first error. So what it complained of is taken out of the table and the
//! rest is tried again, until it either passes or only what was taken out is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::config::source::Strings;
use crate::error::Fault;
use crate::suggest::{did_you_mean, list_names, nearest};

/// What is known of a table beside its entries.
pub(crate) struct Shape<'a> {
    /// For messages: ``stage `clip` ``.
    pub(crate) what: &'a str,
    /// The place to blame for what is missing.
    pub(crate) header: Range<usize>,
    /// Options that must be there.
    pub(crate) required: &'a [String],
    /// Keys that were taken out before, and are known nevertheless.
    pub(crate) taken: &'a [&'a str],
}

/// Deserialises a table, or says all that is wrong with it.
pub(crate) fn build<'i, T>(
    mut table: DeTable<'i>,
    shape: &Shape<'_>,
    strings: &Strings,
    make: impl Fn(ValueDeserializer<'i>) -> Result<T, toml::de::Error>,
) -> Result<T, Vec<Fault>> {
    let original = table.clone();
    let mut state =
        State { shape, faults: vec![], guessed: BTreeSet::new(), removed: BTreeSet::new(), tainted: vec![] };
    // What was wrong with a number from a variable before it was tried as a string.
    let mut as_number: BTreeMap<usize, Fault> = BTreeMap::new();
    loop {
        let whole = Spanned::new(shape.header.clone(), DeValue::Table(table.clone()));
        let error = match make(whole.into()) {
            Ok(built) if state.faults.is_empty() => return Ok(built),
            Ok(_) => return Err(state.faults),
            Err(error) => error,
        };
        let span = error.span().unwrap_or(shape.header.clone());
        if span == shape.header {
            state.top(&table, error.message());
            return Err(state.faults);
        }
        if let Some(text) = strings.texts.get(&span.start)
            && stringify(&mut table, &span, text)
        {
            let path = path_of(&original, &span).unwrap_or_default();
            as_number.insert(span.start, fault(&path, span, error.message(), shape));
            continue;
        }
        let parents = take(&mut table, &shape.header, &span);
        let (Some(parents), Some(path)) = (parents, path_of(&original, &span)) else {
            state.faults.push(Fault::at(span, error.message()));
            return Err(state.faults);
        };
        state.removed(path, parents, span, error.message(), &mut as_number);
    }
}

struct State<'a> {
    shape: &'a Shape<'a>,
    faults: Vec<Fault>,
    /// Options that a wrong name was probably meant to be.
    guessed: BTreeSet<String>,
    /// Options at the top that were taken out.
    removed: BTreeSet<String>,
    /// Tables and arrays that lack something which was taken out: what they complain of then is no
    /// news.
    tainted: Vec<Range<usize>>,
}

impl State<'_> {
    /// An error about the table itself: nothing can be taken out for it.
    fn top(&mut self, table: &DeTable<'_>, message: &str) {
        let Some(named) = message.strip_prefix("missing field ") else {
            if self.faults.is_empty() {
                self.faults.push(Fault::at(self.shape.header.clone(), message));
            }
            return;
        };
        let named = named.trim_matches('`').to_string();
        let mut missing: Vec<&String> = (self.shape.required.iter().chain([&named]))
            .filter(|name| !table.contains_key(name.as_str()))
            .filter(|name| !self.removed.contains(*name) && !self.guessed.contains(*name))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.is_empty() {
            return;
        }
        let names = missing.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and no ");
        self.faults
            .push(Fault::at(self.shape.header.clone(), format!("{} has no {names}", self.shape.what)).label(
                if missing.len() == 1 { "this option is needed" } else { "these options are needed" },
            ));
    }

    fn removed(
        &mut self,
        path: String,
        parents: Vec<Range<usize>>,
        span: Range<usize>,
        message: &str,
        numbers: &mut BTreeMap<usize, Fault>,
    ) {
        if !self.tainted.contains(&span) {
            let first = numbers.remove(&span.start);
            self.faults.push(first.unwrap_or_else(|| fault(&path, span, message, self.shape)));
        }
        if message.starts_with("unknown field") && parents.len() == 1 {
            let expected = backquoted(message).skip(1);
            self.guessed.extend(nearest(&path, expected).map(String::from));
        } else if parents.len() == 1 {
            self.removed.insert(path);
        }
        self.tainted.extend(parents);
    }
}

/// The fault for one of `serde`'s messages about the option `path`.
fn fault(path: &str, span: Range<usize>, message: &str, shape: &Shape<'_>) -> Fault {
    let mut names = backquoted(message);
    let split = |prefix: &str| message.strip_prefix(prefix).and_then(|rest| rest.split_once(", expected "));
    if message.starts_with("unknown field") {
        let name = names.next().unwrap_or(path);
        let top = !path.contains(['.', '[']);
        let known: Vec<&str> = names.chain(shape.taken.iter().copied().filter(|_| top)).collect();
        let fault = Fault::at(span, format!("unknown option `{name}`"))
            .label(format!("known: {}", list_names(known.iter().copied())));
        return did_you_mean(name, known).into_iter().fold(fault, Fault::hint);
    }
    if message.starts_with("unknown variant") {
        let name = names.next().unwrap_or_default();
        let known: Vec<&str> = names.collect();
        let fault = Fault::at(span, format!("unknown value `{name}` for `{path}`"));
        let fault = fault.label(format!("expected {}", list_names(known.iter().copied())));
        return did_you_mean(name, known).into_iter().fold(fault, Fault::hint);
    }
    if let Some(name) = message.strip_prefix("missing field ") {
        return Fault::at(span, format!("`{path}` has no {name}")).label("this option is needed");
    }
    if let Some((found, expected)) = split("invalid type: ") {
        return Fault::at(span, format!("`{path}` has the wrong type")).label(format!(
            "expected {}, found {}",
            plain(expected),
            plain_found(found)
        ));
    }
    if let Some((found, expected)) = split("invalid value: ") {
        return Fault::at(span, format!("`{path}` has a value that is not allowed")).label(format!(
            "expected {}, found {}",
            plain(expected),
            plain_found(found)
        ));
    }
    Fault::at(span, format!("`{path}`: {message}"))
}

/// What a person calls what `serde` expected.
fn plain(expected: &str) -> String {
    match expected {
        "u8" => "a whole number from 0 to 255".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" | "u64" | "usize" => "a whole number of at least 0".into(),
        "i8" => "a whole number from -128 to 127".into(),
        "i16" => "a whole number from -32768 to 32767".into(),
        "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "`true` or `false`".into(),
        "a sequence" => "an array".into(),
        "a map" => "a table".into(),
        other if other.starts_with("struct ") => "a table".into(),
        other if other.starts_with("a nonzero ") => "a whole number of at least 1".into(),
        other => other.into(),
    }
}

fn plain_found(found: &str) -> String {
    match found.split_once(' ') {
        Some(("boolean" | "integer", value)) => value.into(),
        Some(("floating", value)) => value.trim_start_matches("point ").into(),
        Some(("string", value)) => format!("the string {value}"),
        _ => match found {
            "map" => "a table".into(),
            "sequence" => "an array".into(),
            other => other.into(),
        },
    }
}

/// The names in backquotes.
fn backquoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('`').skip(1).step_by(2)
}

/// Where an entry stands, as a person writes it: `resize.size`, `rules[2].code`.
fn path_of(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    fn inside(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<String> {
        match value.get_ref() {
            DeValue::Table(inner) => path_of(inner, span).map(|path| format!(".{path}")),
            DeValue::Array(items) => items.iter().enumerate().find_map(|(at, item)| {
                let rest = if item.span() == *span { Some(String::new()) } else { inside(item, span) };
                rest.map(|rest| format!("[{at}]{rest}"))
            }),
            _ => None,
        }
    }
    let mut entries = table.iter();
    let here = entries.find(|(key, value)| key.span() == *span || value.span() == *span);
    let here = here.map(|(key, _)| key.get_ref().to_string());
    here.or_else(|| {
        let mut entries = table.iter();
        entries.find_map(|(key, value)| inside(value, span).map(|rest| format!("{}{rest}", key.get_ref())))
    })
}

/// Takes out the entry whose key or value stands at `span`; gives the tables and arrays that it was
/// in, outermost first.
fn take(table: &mut DeTable<'_>, place: &Range<usize>, span: &Range<usize>) -> Option<Vec<Range<usize>>> {
    let mut entries = table.iter();
    let here = entries.find(|(key, value)| key.span() == *span || value.span() == *span);
    let here = here.map(|(key, _)| key.get_ref().to_string());
    let mut parents = match here {
        Some(key) => {
            table.remove(key.as_str());
            vec![]
        }
        None => table.iter_mut().find_map(|(_, value)| take_from(value, span))?,
    };
    parents.insert(0, place.clone());
    Some(parents)
}

fn take_from(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<Vec<Range<usize>>> {
    let place = value.span();
    match value.get_mut() {
        DeValue::Table(inner) => take(inner, &place, span),
        DeValue::Array(items) => {
            let mut parents = if let Some(at) = items.iter().position(|item| item.span() == *span) {
                let rest = items.clone().into_iter().enumerate().filter(|(index, _)| *index != at);
                *items = rest.map(|(_, item)| item).collect();
                vec![]
            } else {
                items.iter_mut().find_map(|item| take_from(item, span))?
            };
            parents.insert(0, place);
            Some(parents)
        }
        _ => None,
    }
}

/// Makes a number or boolean at `span` the string it was written as; false when it is a string
/// already.
fn stringify(table: &mut DeTable<'_>, span: &Range<usize>, text: &str) -> bool {
    fn inside(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>, text: &str) -> bool {
        let here = value.span() == *span;
        match value.get_mut() {
            DeValue::Table(inner) => stringify(inner, span, text),
            DeValue::Array(items) => items.iter_mut().any(|item| inside(item, span, text)),
            DeValue::String(_) => false,
            scalar if here => {
                *scalar = DeValue::String(text.to_string().into());
                true
            }
            _ => false,
        }
    }
    table.iter_mut().any(|(_, value)| inside(value, span, text))
}
