//! Pipelines of values: what a command builds from its arguments passes the checks of a pipeline
//! file, and errors point at the arguments.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::config::file::Check;
use crate::config::inputs::InputSchemas;
use crate::config::pipeline::Pipeline;
use crate::config::report::Report;
use crate::config::secrets;
use crate::config::source::{Source, Strings};
use crate::registry::Registry;

/// A pipeline that a command builds from its arguments.
#[derive(Debug)]
pub struct PipelineValues {
    name: String,
    arguments: Vec<(String, String)>,
    stages: Vec<StageValues>,
}

/// An argument of the command line, from which values come.
#[derive(Debug, Clone, Copy)]
pub struct Argument(usize);

/// A stage of a pipeline of values.
#[derive(Debug)]
pub struct StageValues {
    name: String,
    from: Argument,
    options: Vec<(String, OptionValue)>,
}

/// The value of an option, and where it comes from.
#[derive(Debug)]
enum OptionValue {
    One(Value, Argument),
    /// An array whose items come from several arguments; itself from that of the stage.
    Items(Vec<(Value, Argument)>),
}

impl PipelineValues {
    /// A pipeline without stages.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), arguments: Vec::new(), stages: Vec::new() }
    }

    /// Adds an argument as it was given: `--sets`, `cifar10`.
    pub fn argument(&mut self, option: &str, text: &str) -> Argument {
        self.arguments.push((option.into(), text.into()));
        Argument(self.arguments.len() - 1)
    }

    /// Adds a stage, which exists because of an argument.
    pub fn stage(&mut self, name: &str, kind: &str, from: Argument) -> &mut StageValues {
        let kind = ("kind".into(), OptionValue::One(kind.into(), from));
        self.stages.push(StageValues { name: name.into(), from, options: vec![kind] });
        let last = self.stages.len() - 1;
        &mut self.stages[last]
    }

    /// Checks the pipeline. Relative paths start at `base`.
    ///
    /// # Errors
    /// Everything that is wrong with the values.
    pub fn check(
        self,
        base: &Path,
        registry: &Registry,
        schemas: &InputSchemas<'_>,
    ) -> Result<Pipeline, Report> {
        let source = Source::new("the command line", "", self.arguments);
        let at = |argument: Argument| source.argument(argument.0);
        let numbers = Numbers::new(self.stages.iter().flat_map(|stage| &stage.options));
        let stages = self.stages.iter().map(|stage| {
            let span = at(stage.from);
            let options = stage.options.iter().filter_map(|(name, value)| {
                let value = match value {
                    OptionValue::One(value, from) => numbers.spanned(value, &at(*from))?,
                    OptionValue::Items(items) => {
                        let items = items.iter().map(|(value, from)| (value, at(*from)));
                        let items = items.filter_map(|(value, span)| numbers.spanned(value, &span));
                        Spanned::new(span.clone(), DeValue::Array(items.collect()))
                    }
                };
                Some((key(name, &value.span()), value))
            });
            let table = DeValue::Table(options.collect());
            (key(&stage.name, &span), Spanned::new(span, table))
        });
        let root: DeTable<'_> = [
            (key("name", &(0..0)), Spanned::new(0..0, DeValue::String(self.name.as_str().into()))),
            (key("stages", &(0..0)), Spanned::new(0..0, DeValue::Table(stages.collect()))),
        ]
        .into_iter()
        .collect();
        let check = Check { source: &source, registry, schemas };
        let strings = Strings { secrets: secrets::of_values(&root), ..Strings::default() };
        match check.table(root, &strings) {
            Ok(checked) => Ok(Pipeline { base: base.into(), ..checked }),
            Err(faults) => Err(Report::new(source, &strings, faults)),
        }
    }
}

impl StageValues {
    /// Sets an option.
    pub fn option(&mut self, name: &str, value: impl Into<Value>, from: Argument) -> &mut Self {
        self.options.push((name.into(), OptionValue::One(value.into(), from)));
        self
    }

    /// Sets an option to an array, each item of which has an argument of its own.
    pub fn items(&mut self, name: &str, items: Vec<(Value, Argument)>) -> &mut Self {
        self.options.push((name.into(), OptionValue::Items(items)));
        self
    }
}

fn key<'v>(name: &'v str, span: &Range<usize>) -> Spanned<DeString<'v>> {
    Spanned::new(span.clone(), name.into())
}

/// The texts of all numbers, from which values borrow: only TOML's parser can make a number.
struct Numbers(BTreeSet<String>);

impl Numbers {
    fn new<'v>(options: impl Iterator<Item = &'v (String, OptionValue)>) -> Self {
        let mut numbers = Self(BTreeSet::new());
        for (_, value) in options {
            match value {
                OptionValue::One(value, _) => numbers.add(value),
                OptionValue::Items(items) => items.iter().for_each(|(value, _)| numbers.add(value)),
            }
        }
        numbers
    }

    fn add(&mut self, value: &Value) {
        match value {
            Value::Number(number) => {
                self.0.insert(number.to_string());
            }
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            Value::Object(entries) => entries.values().for_each(|value| self.add(value)),
            Value::Null | Value::Bool(_) | Value::String(_) => {}
        }
    }

    /// A value as the parser of a pipeline file gives it, with the same span everywhere; `None` for
    /// null, which TOML lacks.
    fn spanned<'v>(&'v self, value: &'v Value, span: &Range<usize>) -> Option<Spanned<DeValue<'v>>> {
        let value = match value {
            Value::Null => return None,
            Value::Bool(value) => DeValue::Boolean(*value),
            // Every number of JSON is one of TOML.
            Value::Number(number) => DeValue::parse(self.0.get(&number.to_string())?).ok()?.into_inner(),
            Value::String(text) => DeValue::String(text.as_str().into()),
            Value::Array(items) => {
                DeValue::Array(items.iter().filter_map(|item| self.spanned(item, span)).collect())
            }
            Value::Object(entries) => {
                let entry = |(name, value): (&'v String, &'v Value)| {
                    Some((key(name, span), self.spanned(value, span)?))
                };
                DeValue::Table(entries.iter().filter_map(entry).collect())
            }
        };
        Some(Spanned::new(span.clone(), value))
    }
}
