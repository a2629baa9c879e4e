//! What a stage requires of a column of its input.

use std::ops::Range;

use datafusion::arrow::datatypes::{DataType, Schema};
use twinlens_dataset::{ImageColumn, contracts, types};

use crate::error::Fault;
use crate::located::Located;
use crate::suggest::{did_you_mean, list_names};

/// The sorts of columns that stages ask for.
#[derive(Debug, Clone, Copy)]
pub enum ColumnType {
    /// Whatever it holds.
    Any,
    /// Strings.
    Text,
    /// Whole numbers of any width.
    Integer,
    /// 32-bit integers.
    Int32,
    /// 64-bit integers.
    Int64,
    /// Integers or floats.
    Number,
    /// Floats.
    Float,
    /// True or false.
    Boolean,
    /// Lists of 32-bit integers.
    IntList,
    /// Images in the layout of Hugging Face: `struct<bytes, path>`.
    Image,
    /// Encoded images: `struct<bytes, path>` or binary.
    EncodedImage,
    /// Vectors: lists of floats, each of the same length.
    Embedding,
    /// Another sort: what it is in words, and whether a type is of it.
    Other(&'static str, fn(&DataType) -> bool),
}

impl ColumnType {
    /// Whether a column of this type will do.
    pub fn accepts(self, kind: &DataType) -> bool {
        match self {
            Self::Any => true,
            Self::Text => matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
            Self::Integer => kind.is_integer(),
            Self::Int32 => kind == &DataType::Int32,
            Self::Int64 => kind == &DataType::Int64,
            Self::Number => kind.is_numeric(),
            Self::Float => kind.is_floating(),
            Self::Boolean => kind == &DataType::Boolean,
            Self::IntList => {
                matches!(kind, DataType::List(item) | DataType::LargeList(item)
                    if item.data_type() == &DataType::Int32)
            }
            Self::Image => kind == &contracts::image(),
            Self::EncodedImage => ImageColumn::accepts(kind),
            Self::Embedding => {
                matches!(kind, DataType::FixedSizeList(item, _) if item.data_type().is_floating())
            }
            Self::Other(_, accepts) => accepts(kind),
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Any => "a column",
            Self::Text => "text",
            Self::Integer => "integers",
            Self::Int32 => "32-bit integers",
            Self::Int64 => "64-bit integers",
            Self::Number => "numbers",
            Self::Float => "floats",
            Self::Boolean => "booleans",
            Self::IntList => "lists of 32-bit integers",
            Self::Image => "images (struct<bytes, path>)",
            Self::EncodedImage => "images (struct<bytes, path>, or binary)",
            Self::Embedding => "embeddings (fixed_size_list of floats)",
            Self::Other(expected, _) => expected,
        }
    }
}

/// A column as an option or a stage names it.
#[derive(Debug, Clone)]
pub struct ColumnName<'a> {
    name: &'a str,
    span: Option<Range<usize>>,
    /// The option that names it.
    option: Option<&'static str>,
}

impl<'a> ColumnName<'a> {
    /// A column that an option at `span` requires.
    pub fn at(name: &'a str, span: Range<usize>) -> Self {
        Self { name, span: Some(span).filter(|span| !span.is_empty()), option: None }
    }

    /// The option by which another column can be named: a missing column is then answered with
    /// those that fit.
    pub fn of_option(self, option: &'static str) -> Self {
        Self { option: Some(option), ..self }
    }
}

impl<'a> From<&'a str> for ColumnName<'a> {
    fn from(name: &'a str) -> Self {
        Self { name, span: None, option: None }
    }
}

/// A default has no span: then the fault points at the input.
impl<'a> From<&'a Located<String>> for ColumnName<'a> {
    fn from(name: &'a Located<String>) -> Self {
        Self::at(name.value(), name.span())
    }
}

/// Whether a stage can do without a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Required<'a> {
    /// It cannot.
    Yes,
    /// It cannot; this is how to get it.
    Hint(&'a str),
    /// It can, but a column of that name must have the right type.
    No,
}

/// How to name a column by an option.
fn set_option(option: &str, fits: &[&str]) -> Option<String> {
    match fits {
        [] => None,
        [one] => Some(format!("set `{option} = \"{one}\"`")),
        several => Some(format!("set `{option}` to {}", list_names(several.iter().copied()))),
    }
}

/// The type of a column, if the table has it.
///
/// # Errors
/// The column is missing, or of another type.
pub(crate) fn check(
    (input, place): (&str, Range<usize>),
    schema: &Schema,
    column: &ColumnName<'_>,
    expected: ColumnType,
    required: Required<'_>,
) -> Result<Option<DataType>, Fault> {
    let span = column.span.clone().unwrap_or(place);
    let hint = match required {
        Required::Hint(hint) => Some(hint.to_string()),
        _ => None,
    };
    let (message, label, hint) = match schema.field_with_name(column.name) {
        Ok(field) if expected.accepts(field.data_type()) => return Ok(Some(field.data_type().clone())),
        Ok(field) => {
            let found = types::name(field.data_type());
            let message = format!("the column `{}` of `{input}` is of type {found}", column.name);
            (message, format!("expected {}", expected.expected()), hint)
        }
        Err(_) if required == Required::No => return Ok(None),
        Err(_) => {
            let names = || schema.fields().iter().map(|field| field.name().as_str());
            let message = format!("`{input}` has no column `{}`", column.name);
            let label = format!("the columns are {}", list_names(names()));
            let fits = schema.fields().iter().filter(|field| expected.accepts(field.data_type()));
            let fits: Vec<&str> = fits.map(|field| field.name().as_str()).collect();
            let option = column.option.and_then(|option| set_option(option, &fits));
            (message, label, did_you_mean(column.name, names()).or(option).or(hint))
        }
    };
    Err(hint.into_iter().fold(Fault::at(span, message).label(label), Fault::hint))
}
