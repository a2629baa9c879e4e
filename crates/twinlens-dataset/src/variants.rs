//! Variants: the datasets of a stage that is swept over values of its options, or that reads a
//! swept stage.
//!
//! Each variant is a separate dataset. Under the name of the stage in the pipeline file they form
//! one table: the rows of all variants, with a column per swept option.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, ident, lit};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use serde_json::Value;

use crate::dataset::Dataset;
use crate::error::DatasetError;
use crate::protocol::{Setting, Variant};

/// Prefix of the columns of swept options.
const PREFIX: &str = "sweep_";

/// The column of a swept option.
struct Column<'a> {
    name: String,
    kind: DataType,
    axis: &'a Setting,
}

impl Column<'_> {
    /// The value of this column in a variant; null if the variant does not depend on the option.
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

/// The columns of variants: `sweep_model`, or `sweep_clip_model` if two swept options share the
/// name.
fn columns<'a>(variants: &[&'a Variant]) -> Vec<Column<'a>> {
    let mut axes: Vec<&Setting> = Vec::new();
    for setting in variants.iter().flat_map(|variant| &variant.settings) {
        if !axes.iter().any(|axis| axis.same_axis(setting)) {
            axes.push(setting);
        }
    }
    let is_ambiguous = |axis: &Setting| axes.iter().filter(|other| other.option == axis.option).count() > 1;
    let column = |&axis: &&'a Setting| {
        let name = if is_ambiguous(axis) {
            format!("{PREFIX}{}_{}", axis.stage, axis.option)
        } else {
            format!("{PREFIX}{}", axis.option)
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

/// The fields that all schemas share, in the order of the first.
fn common_fields(schemas: &[SchemaRef]) -> Vec<Arc<Field>> {
    let Some((first, rest)) = schemas.split_first() else { return Vec::new() };
    let is_common = |field: &&Arc<Field>| {
        let same = |schema: &SchemaRef| {
            schema.field_with_name(field.name()).is_ok_and(|other| other.data_type() == field.data_type())
        };
        rest.iter().all(same)
    };
    first.fields().iter().filter(is_common).cloned().collect()
}

/// The schema of all variants as one table: the columns that all share, then those of the swept
/// options.
pub fn schema(variants: &[(&Variant, SchemaRef)]) -> SchemaRef {
    let (which, schemas): (Vec<&Variant>, Vec<SchemaRef>) = variants.iter().cloned().unzip();
    let sweep = columns(&which);
    let taken: BTreeSet<&str> = sweep.iter().map(|column| column.name.as_str()).collect();
    let mut fields = common_fields(&schemas);
    fields.retain(|field| !taken.contains(field.name().as_str()));
    fields.extend(sweep.iter().map(|column| Arc::new(Field::new(&column.name, column.kind.clone(), true))));
    Arc::new(Schema::new(fields))
}

/// The columns of swept options, each with its value in every dataset: null in one that does not
/// depend on the option.
pub fn swept_values(datasets: &[&Dataset]) -> Vec<(String, Vec<ScalarValue>)> {
    let variant = |dataset: &&Dataset| dataset.state().begin.variant.clone();
    let variants: Vec<Option<Variant>> = datasets.iter().map(variant).collect();
    let known: Vec<&Variant> = variants.iter().flatten().collect();
    let none = Variant { of: String::new(), settings: Vec::new() };
    let values = |column: &Column<'_>| {
        variants.iter().map(|variant| column.value(variant.as_ref().unwrap_or(&none))).collect()
    };
    columns(&known).iter().map(|column| (column.name.clone(), values(column))).collect()
}

/// The union of a table over all variants; `None` if no dataset is a variant.
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
    let sweep = columns(&which);
    let mut all: Option<DataFrame> = None;
    for dataset in datasets {
        let Some(variant) = &dataset.state().begin.variant else { continue };
        let value = |field: &Arc<Field>| -> Expr {
            match sweep.iter().find(|column| &column.name == field.name()) {
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

/// Groups the variants among datasets by their stage, in the order of the datasets.
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
        let merged = schema(&[
            (&one, fields(&["loss", "only_here", "sweep_lr"])),
            (&two, fields(&["sweep_lr", "loss"])),
        ]);
        let shown: Vec<String> =
            merged.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
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
