//! Variants: the datasets of one stage of a pipeline file that was swept over values of its
//! options, or reads one that was.
//!
//! Each variant is a dataset of its own. Under the name that the file has for the stage they are
//! one table: the rows of all, with a column for each swept option.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, ident, lit};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dataset::Dataset;
use crate::error::DatasetError;

/// What a column of a swept option begins with.
pub const PREFIX: &str = "sweep_";

/// Which variant of a stage this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// The stage's name in the pipeline file.
    pub of: String,
    /// The swept options that it depends on, the earliest first, and their values.
    pub settings: Vec<Setting>,
}

/// The value of a swept option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The stage that is swept, as the file names it.
    pub stage: String,
    /// The option.
    pub option: String,
    /// What it is in this variant.
    pub value: Value,
}

impl Setting {
    /// Whether it is of the same sweep over the same option.
    pub fn same_axis(&self, other: &Setting) -> bool {
        (&self.stage, &self.option) == (&other.stage, &other.option)
    }
}

impl Variant {
    /// The value of an option of a sweep.
    fn value(&self, axis: &Setting) -> Option<&Value> {
        self.settings.iter().find(|setting| setting.same_axis(axis)).map(|setting| &setting.value)
    }
}

/// A column for a swept option.
struct Column<'a> {
    name: String,
    kind: DataType,
    axis: &'a Setting,
}

impl Column<'_> {
    /// The value of this column in a variant; null where the variant does not depend on the option.
    fn value(&self, variant: &Variant) -> ScalarValue {
        let value = variant.value(self.axis);
        match self.kind {
            DataType::Int64 => ScalarValue::Int64(value.and_then(Value::as_i64)),
            DataType::Float64 => ScalarValue::Float64(value.and_then(Value::as_f64)),
            DataType::Boolean => ScalarValue::Boolean(value.and_then(Value::as_bool)),
            _ => ScalarValue::Utf8(value.map(|value| match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            })),
        }
    }
}

/// The columns of variants: `sweep_model`, or `sweep_clip_model` where two sweeps are over options
/// of that name.
fn columns<'a>(variants: &[&'a Variant]) -> Vec<Column<'a>> {
    let mut axes: Vec<&Setting> = Vec::new();
    for setting in variants.iter().flat_map(|variant| &variant.settings) {
        if !axes.iter().any(|axis| axis.same_axis(setting)) {
            axes.push(setting);
        }
    }
    let twice = |axis: &Setting| axes.iter().filter(|other| other.option == axis.option).count() > 1;
    let column = |&axis: &&'a Setting| {
        let name = match twice(axis) {
            true => format!("{PREFIX}{}_{}", axis.stage, axis.option),
            false => format!("{PREFIX}{}", axis.option),
        };
        let values: Vec<&Value> = variants.iter().filter_map(|variant| variant.value(axis)).collect();
        let all = |test: fn(&Value) -> bool| values.iter().all(|value| test(value));
        let kind = if all(Value::is_i64) {
            DataType::Int64
        } else if all(Value::is_number) {
            DataType::Float64
        } else if all(Value::is_boolean) {
            DataType::Boolean
        } else {
            DataType::Utf8
        };
        Column { name, kind, axis }
    };
    axes.iter().map(column).collect()
}

/// The fields that all of some schemas have, as the first has them.
fn shared(schemas: &[SchemaRef]) -> Vec<Arc<Field>> {
    let Some((first, rest)) = schemas.split_first() else { return Vec::new() };
    let everywhere = |field: &&Arc<Field>| {
        let same = |schema: &SchemaRef| {
            schema.field_with_name(field.name()).is_ok_and(|other| other.data_type() == field.data_type())
        };
        rest.iter().all(same)
    };
    first.fields().iter().filter(everywhere).cloned().collect()
}

/// The schema of all variants as one table: the columns that every one has, then those of the swept
/// options.
pub fn schema(variants: &[(&Variant, SchemaRef)]) -> SchemaRef {
    let (which, schemas): (Vec<&Variant>, Vec<SchemaRef>) = variants.iter().cloned().unzip();
    let own = columns(&which);
    let taken: BTreeSet<&str> = own.iter().map(|column| column.name.as_str()).collect();
    let mut fields = shared(&schemas);
    fields.retain(|field| !taken.contains(field.name().as_str()));
    fields.extend(own.iter().map(|column| Arc::new(Field::new(&column.name, column.kind.clone(), true))));
    Arc::new(Schema::new(fields))
}

/// A table of all variants as one; `None` when no dataset is a variant.
pub async fn union(
    session: &SessionContext,
    datasets: &[&Dataset],
    table: &str,
) -> Result<Option<DataFrame>, DatasetError> {
    let mut variants = Vec::new();
    for dataset in datasets {
        if let Some(variant) = &dataset.state().begin.variant {
            variants.push((variant, dataset.schema(table)?));
        }
    }
    let schema = schema(&variants);
    let which: Vec<&Variant> = variants.iter().map(|(variant, _)| *variant).collect();
    let own = columns(&which);
    let mut all: Option<DataFrame> = None;
    for dataset in datasets {
        let Some(variant) = &dataset.state().begin.variant else { continue };
        let value = |field: &Arc<Field>| -> Expr {
            match own.iter().find(|column| &column.name == field.name()) {
                Some(column) => lit(column.value(variant)).alias(field.name()),
                None => ident(field.name()),
            }
        };
        let rows = dataset.frame(session, table).await?;
        let rows = rows.select(schema.fields().iter().map(value).collect::<Vec<_>>())?;
        all = Some(match all {
            Some(before) => before.union(rows)?,
            None => rows,
        });
    }
    Ok(all)
}

/// The variants among datasets by the stage that they are of, in the order of the datasets.
pub fn families<'a>(datasets: impl IntoIterator<Item = &'a Dataset>) -> Vec<(&'a str, Vec<&'a Dataset>)> {
    let mut families: Vec<(&str, Vec<&Dataset>)> = Vec::new();
    for dataset in datasets {
        let Some(variant) = &dataset.state().begin.variant else { continue };
        match families.iter_mut().find(|(of, _)| *of == variant.of) {
            Some((_, members)) => members.push(dataset),
            None => families.push((variant.of.as_str(), vec![dataset])),
        }
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn variant(settings: &[(&str, &str, Value)]) -> Variant {
        let setting = |(stage, option, value): &(&str, &str, Value)| Setting {
            stage: stage.to_string(),
            option: option.to_string(),
            value: value.clone(),
        };
        Variant { of: "clip".into(), settings: settings.iter().map(setting).collect() }
    }

    #[test]
    fn a_swept_option_is_a_column_of_its_type() {
        let fields = |names: &[&str]| -> SchemaRef {
            let field = |name: &&str| Field::new(*name, DataType::Utf8, true);
            Arc::new(Schema::new(names.iter().map(field).collect::<Vec<_>>()))
        };
        let one = variant(&[
            ("clip", "lr", json!(1)),
            ("clip", "model", json!("a")),
            ("eval", "model", json!("x")),
        ]);
        let two = variant(&[("clip", "lr", json!(0.5)), ("clip", "model", json!({ "embed": 3 }))]);
        let found = schema(&[
            (&one, fields(&["loss", "only_here", "sweep_lr"])),
            (&two, fields(&["sweep_lr", "loss"])),
        ]);
        let shown: Vec<String> =
            found.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
        assert_eq!(
            shown,
            ["loss Utf8", "sweep_lr Float64", "sweep_clip_model Utf8", "sweep_eval_model Utf8"]
        );
        let which = [&one, &two];
        let own = columns(&which);
        assert_eq!(own[0].value(&one), ScalarValue::Float64(Some(1.0)));
        assert_eq!(own[1].value(&two), ScalarValue::from(r#"{"embed":3}"#));
        assert_eq!(own[2].value(&two), ScalarValue::Utf8(None), "the second does not depend on it");
    }
}
