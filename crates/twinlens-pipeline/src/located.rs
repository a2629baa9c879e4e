//! Values with their location in the pipeline file.

use std::ops::{Deref, Range};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Fault;

/// A value of a pipeline file and its byte range, for errors that point at it.
///
/// It serialises as the bare value, so that fingerprints do not depend on the location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    value: T,
    span: Range<usize>,
}

impl<T> Located<T> {
    /// A value that is not from a file (defaults, tests).
    pub fn without_span(value: T) -> Self {
        Self { value, span: 0..0 }
    }

    /// A value at `span` (bytes) of the pipeline file.
    pub fn new(value: T, span: Range<usize>) -> Self {
        Self { value, span }
    }

    /// The byte range in the pipeline file.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Whether the value is the default of its type, which fingerprints leave out.
    pub fn is_default(&self) -> bool
    where
        T: Default + PartialEq,
    {
        self.value == T::default()
    }
}

impl<T: Default> Default for Located<T> {
    fn default() -> Self {
        Self::without_span(T::default())
    }
}

impl<T> Deref for Located<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::<T>::deserialize(deserializer)?;
        let span = spanned.span();
        Ok(Self { value: spanned.into_inner(), span })
    }
}

impl<T: Serialize> Serialize for Located<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for Located<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

/// The name of another stage, of a side table (`stage.table`), or the path of a Parquet file, a
/// pattern of Parquet files, or a dataset folder.
///
/// It is a path if it contains `/` or ends in `.parquet`; a relative path starts at the folder of
/// the pipeline file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Input(pub Located<String>);

impl Input {
    /// The byte range in the pipeline file.
    pub fn span(&self) -> Range<usize> {
        self.0.span()
    }

    /// A fault that points at the place where this input is named.
    pub fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::at(self.span(), message)
    }

    /// The text as written.
    pub fn name(&self) -> &str {
        self.0.value()
    }

    /// Whether this is a file or folder rather than a stage.
    pub fn is_path(&self) -> bool {
        self.name().contains('/') || self.name().ends_with(".parquet")
    }

    /// The stage: the part before the first dot. `None` for a path.
    pub fn stage(&self) -> Option<&str> {
        (!self.is_path()).then(|| self.name().split_once('.').map_or(self.name(), |(stage, _)| stage))
    }

    /// The side table, if one is named (`wit.query_stats`).
    pub fn table(&self) -> Option<&str> {
        if self.is_path() { None } else { self.name().split_once('.').map(|(_, table)| table) }
    }
}

impl JsonSchema for Input {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Input".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string", "description": "A stage, a side table (`stage.table`), or the path of a Parquet file, a pattern of Parquet files (`data/train-*.parquet`), or a dataset." })
    }
}
