//! A TOML table to a struct, with everything that is wrong told at once.
//!
//! `serde` stops at the first error. So what it complained of is taken out of the table and the rest is tried again, until
//! it either passes or only what was taken out is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::config::source::Strings;
use crate::error::Fault;
use crate::suggest::{did_you_mean, listed, nearest};

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
            && let Some(path) = stringify(&mut table, &span, text)
        {
            as_number.insert(span.start, fault(&path, span, error.message(), shape));
            continue;
        }
        let Some(taken) = take(&mut table, &shape.header, &span) else {
            state.faults.push(Fault::at(span, error.message()));
            return Err(state.faults);
        };
        state.removed(taken, span, error.message(), &mut as_number);
    }
}

struct State<'a> {
    shape: &'a Shape<'a>,
    faults: Vec<Fault>,
    /// Options that a wrong name was probably meant to be.
    guessed: BTreeSet<String>,
    /// Options at the top that were taken out.
    removed: BTreeSet<String>,
    /// Tables and arrays that lack something which was taken out: what they complain of then is no news.
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
        taken: Taken,
        span: Range<usize>,
        message: &str,
        numbers: &mut BTreeMap<usize, Fault>,
    ) {
        let known = self.tainted.contains(&span);
        if !known {
            let told = match numbers.remove(&span.start) {
                Some(first) => first,
                None => fault(&taken.path, span, message, self.shape),
            };
            self.faults.push(told);
        }
        if message.starts_with("unknown field") && taken.parents.len() == 1 {
            let expected = backquoted(message).skip(1);
            self.guessed.extend(nearest(&taken.path, expected.map(|(_, name)| name)).map(String::from));
        } else if taken.parents.len() == 1 {
            self.removed.insert(taken.path);
        }
        self.tainted.extend(taken.parents);
    }
}

/// The fault for one of `serde`'s messages about the option `path`.
fn fault(path: &str, span: Range<usize>, message: &str, shape: &Shape<'_>) -> Fault {
    let mut names = backquoted(message).map(|(_, name)| name);
    let split = |prefix: &str| message.strip_prefix(prefix).and_then(|rest| rest.split_once(", expected "));
    if message.starts_with("unknown field") {
        let name = names.next().unwrap_or(path);
        let known: Vec<&str> = names.chain(shape.taken.iter().copied()).collect();
        let fault = Fault::at(span, format!("unknown option `{name}`"))
            .label(format!("known are {}", listed(known.iter().copied())));
        return did_you_mean(name, known).into_iter().fold(fault, Fault::hint);
    }
    if message.starts_with("unknown variant") {
        let name = names.next().unwrap_or_default();
        let known: Vec<&str> = names.collect();
        let fault = Fault::at(span, format!("unknown value `{name}` for `{path}`"));
        let fault = fault.label(format!("expected {}", listed(known.iter().copied())));
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
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
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

/// The names in backquotes, with where they stand.
fn backquoted(message: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    message.split('`').enumerate().filter_map(move |(index, part)| {
        let start = at;
        at += part.len() + 1;
        (index % 2 == 1).then_some((start, part))
    })
}

/// What was taken out of a table.
struct Taken {
    /// `resize.size`.
    path: String,
    /// The tables and arrays it was in, outermost first.
    parents: Vec<Range<usize>>,
}

/// Takes out the entry whose key or value stands at `span`.
fn take(table: &mut DeTable<'_>, place: &Range<usize>, span: &Range<usize>) -> Option<Taken> {
    let here = |(key, value): &(&Spanned<_>, &Spanned<_>)| key.span() == *span || value.span() == *span;
    if let Some(key) = table.iter().find(here).map(|(key, _)| key.get_ref().to_string()) {
        table.remove(key.as_str());
        return Some(Taken { path: key, parents: vec![place.clone()] });
    }
    table.iter_mut().find_map(|(key, value)| {
        let mut taken = take_from(value, span)?;
        let dot = if taken.path.starts_with('[') { "" } else { "." };
        taken.path = format!("{}{dot}{}", key.get_ref(), taken.path);
        taken.parents.insert(0, place.clone());
        Some(taken)
    })
}

fn take_from(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<Taken> {
    let place = value.span();
    match value.get_mut() {
        DeValue::Table(inner) => take(inner, &place, span),
        DeValue::Array(items) => {
            if let Some(at) = items.iter().position(|item| item.span() == *span) {
                let rest = items.clone().into_iter().enumerate().filter(|(index, _)| *index != at);
                *items = rest.map(|(_, item)| item).collect();
                return Some(Taken { path: format!("[{at}]"), parents: vec![place] });
            }
            items.iter_mut().enumerate().find_map(|(at, item)| {
                let mut taken = take_from(item, span)?;
                taken.path = format!("[{at}].{}", taken.path);
                taken.parents.insert(0, place.clone());
                Some(taken)
            })
        }
        _ => None,
    }
}

/// Makes a number or boolean at `span` the string it was written as. Gives its path; `None` when it is a string already.
fn stringify(table: &mut DeTable<'_>, span: &Range<usize>, text: &str) -> Option<String> {
    fn inside(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>, text: &str) -> Option<String> {
        let here = value.span() == *span;
        match value.get_mut() {
            DeValue::Table(inner) => stringify(inner, span, text).map(|path| format!(".{path}")),
            DeValue::Array(items) => {
                let found = |(at, item)| inside(item, span, text).map(|path| format!("[{at}]{path}"));
                items.iter_mut().enumerate().find_map(found)
            }
            DeValue::String(_) => None,
            scalar if here => {
                *scalar = DeValue::String(text.to_string().into());
                Some(String::new())
            }
            _ => None,
        }
    }
    table.iter_mut().find_map(|(key, value)| Some(format!("{}{}", key.get_ref(), inside(value, span, text)?)))
}
