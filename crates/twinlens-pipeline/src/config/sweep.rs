//! `[stages.NAME.sweep]`: runs a stage once per combination of values of some of its options.
//!
//! A swept stage becomes *variants*, each with its own name, dataset and fingerprint. A stage that
//! reads a swept one gets one variant per variant of its input, unless it reads all of them as one
//! table ([`crate::Ports::reads_all_variants`]). If two inputs depend on the same sweep, variants
//! with equal values are matched.

use std::ops::Range;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use twinlens_dataset::protocol::Setting;

use crate::config::vars::article;
use crate::error::Fault;
use crate::suggest::{did_you_mean, list_names};

/// The most variants of a stage.
pub(crate) const MAX_VARIANTS: usize = 1000;
/// The longest value used in a name; for a longer one, its index is used.
const MAX_SLUG: usize = 32;

/// A swept option and its values.
pub(crate) struct Axis<'i> {
    option: Spanned<toml::de::DeString<'i>>,
    values: Vec<Spanned<DeValue<'i>>>,
}

impl Axis<'_> {
    pub(crate) fn name(&self) -> &str {
        self.option.get_ref()
    }
}

/// One combination of values.
pub(crate) struct Choice<'i> {
    pub(crate) entries: Vec<(Spanned<toml::de::DeString<'i>>, Spanned<DeValue<'i>>)>,
    pub(crate) settings: Vec<Setting>,
    /// The parts of the variant's name.
    pub(crate) slugs: Vec<String>,
    /// The span of its last value.
    pub(crate) place: Range<usize>,
}

/// Parses a `sweep` table; `known` are the options of the stage's kind, `given` those in the table
/// of the stage.
pub(crate) fn axes<'i>(
    stage: &str,
    sweep: Spanned<DeValue<'i>>,
    known: &[String],
    given: &DeTable<'i>,
    faults: &mut Vec<Fault>,
) -> Vec<Axis<'i>> {
    let span = sweep.span();
    let DeValue::Table(table) = sweep.into_inner() else {
        faults.push(
            Fault::at(span, "`sweep` is not a table").label(format!("expected `[stages.{stage}.sweep]`")),
        );
        return vec![];
    };
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(option, _)| option.span().start);
    if entries.is_empty() {
        faults.push(Fault::at(span.clone(), "the sweep has no options").hint("add one: `seed = [1, 2, 3]`"));
    }
    let mut axes = Vec::new();
    for (option, values) in entries {
        let name = option.get_ref().to_string();
        let names = || known.iter().map(String::as_str);
        if !known.contains(&name) {
            let fault = Fault::at(option.span(), format!("`{name}` cannot be swept"));
            let fault = fault.label(format!("known: {}", list_names(names())));
            faults.push(did_you_mean(&name, names()).into_iter().fold(fault, Fault::hint));
            continue;
        }
        if let Some((key, _)) = given.get_key_value(name.as_str()) {
            let mut fault = Fault::at(option.span(), format!("`{name}` is both given and swept"));
            fault.related = [(key.span(), "given here".to_string())].into();
            faults.push(fault.label("remove one of the two"));
            continue;
        }
        let (place, kind) = (values.span(), values.get_ref().type_str());
        match values.into_inner() {
            DeValue::Array(values) if !values.is_empty() => {
                axes.push(Axis { option, values: values.into_iter().collect() });
            }
            DeValue::Array(_) => {
                faults.push(Fault::at(place, format!("`{name}` is swept over an empty array")))
            }
            _ => faults.push(
                Fault::at(place, format!("`{name}` is swept over {}", article(kind)))
                    .label("expected an array of values"),
            ),
        }
    }
    let count = axes.iter().map(|axis| axis.values.len()).fold(1, usize::saturating_mul);
    if count > MAX_VARIANTS {
        faults.push(Fault::at(
            span,
            format!("the sweep makes {count} variants of `{stage}`, more than {MAX_VARIANTS}"),
        ));
        return vec![];
    }
    axes
}

/// All combinations; the last option changes fastest.
pub(crate) fn choices<'i>(stage: &str, axes: &[Axis<'i>]) -> Vec<Choice<'i>> {
    let mut all = vec![Choice { entries: vec![], settings: vec![], slugs: vec![], place: 0..0 }];
    for axis in axes {
        let option = axis.option.get_ref().to_string();
        let values: Vec<Value> = axis.values.iter().map(|value| json(value.get_ref())).collect();
        let slugs = slugs(&option, &values);
        let extend = |choice: &Choice<'i>| {
            let one = |number: usize| {
                let (value, place) = (values[number].clone(), axis.values[number].span());
                let entry = (axis.option.clone(), axis.values[number].clone());
                let setting = Setting { stage: stage.into(), option: option.clone(), value };
                Choice {
                    entries: choice.entries.iter().cloned().chain([entry]).collect(),
                    settings: choice.settings.iter().cloned().chain([setting]).collect(),
                    slugs: choice.slugs.iter().cloned().chain([slugs[number].clone()]).collect(),
                    place,
                }
            };
            (0..values.len()).map(one).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(extend).collect();
    }
    all
}

fn json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.to_string().into(), Value::from),
        DeValue::Float(number) => {
            number.as_str().parse::<f64>().map_or_else(|_| number.to_string().into(), Value::from)
        }
        DeValue::Boolean(value) => Value::from(*value),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(items) => items.iter().map(|item| json(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let entry = |(key, value): (&Spanned<toml::de::DeString<'_>>, &Spanned<DeValue<'_>>)| {
                (key.get_ref().to_string(), json(value.get_ref()))
            };
            Value::Object(table.iter().map(entry).collect())
        }
    }
}

/// The values of an option as parts of names: strings as words, other scalars after the name of the
/// option. The index is used instead if that is empty, too long, or equal for different values.
fn slugs(option: &str, values: &[Value]) -> Vec<String> {
    let named = |value: &Value| match value {
        Value::String(text) => slug_of(text),
        Value::Number(_) | Value::Bool(_) => slug_of(&format!("{option}_{value}")),
        _ => String::new(),
    };
    let names: Vec<String> = values.iter().map(named).collect();
    let taken = |number: usize| {
        let same = |other: usize| names[other] == names[number] && values[other] != values[number];
        (0..values.len()).any(same)
    };
    let slug = |number: usize| match names[number].as_str() {
        name if name.is_empty() || name.len() > MAX_SLUG || taken(number) => {
            format!("{option}_{}", number + 1)
        }
        name => name.to_owned(),
    };
    (0..values.len()).map(slug).collect()
}

/// Lower-case letters and digits; other characters become a single `_`.
fn slug_of(text: &str) -> String {
    let mut name = String::new();
    for c in text.to_lowercase().chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('_') {
            name.push('_');
        }
    }
    name.trim_end_matches('_').into()
}
