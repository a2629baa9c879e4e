//! The contracts: schemas that stages agree on, published as files in `schemas/`.
//!
//! Names and types follow img2dataset, DataComp and the Hugging Face `Image` feature, so that other
//! tools can read the shards. All columns are nullable; a table may lack some of them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use sha2::{Digest, Sha256};

/// The version of a contract. A later version adds columns; tables of an older version can still be
/// read, without them.
///
/// `accuracy` 2: `part`, `preprocess_hash`, `program`.
pub fn version(name: &str) -> u32 {
    if name == "accuracy" { 2 } else { 1 }
}

/// The columns by which the rows of a shard are ordered, as far as a table has them: pages that
/// show the same pair, and their texts, are put in order after its `uid`.
pub const ROW_ORDER: [&str; 5] = ["uid", "page_url", "text_source", "query_id", "id"];

/// Every contract by name.
pub fn all() -> Vec<(&'static str, SchemaRef)> {
    vec![
        ("pairs", pairs()),
        ("queries", queries()),
        ("query_stats", query_stats()),
        ("rejects", rejects()),
        ("train_log", train_log()),
        ("evaluations", evaluations()),
        ("accuracy", accuracy()),
        ("per_class", per_class()),
        ("predictions", predictions()),
        ("calibration", calibration()),
        ("examples", examples()),
        ("warnings", warnings()),
        ("scaling", scaling()),
        ("scaling_fit", scaling_fit()),
    ]
}

fn schema(fields: Vec<(&str, DataType)>) -> SchemaRef {
    Arc::new(Schema::new(
        fields.into_iter().map(|(name, kind)| Field::new(name, kind, true)).collect::<Vec<_>>(),
    ))
}

/// A point in time, in microseconds UTC.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The Hugging Face `Image` feature: `struct<bytes: large_binary, path: string>`.
/// Large, because a batch of images can exceed the 2 GiB that 32-bit offsets address.
pub fn image() -> DataType {
    DataType::Struct(image_fields())
}

/// The fields of an [`image`].
pub(crate) fn image_fields() -> Fields {
    vec![Field::new("bytes", DataType::LargeBinary, true), Field::new("path", DataType::Utf8, true)].into()
}

/// `list<item: int32>`.
pub fn int_list() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Int32, true)))
}

/// The uid of a pair: the first 32 hexadecimal digits of SHA-256 of the URL, a zero byte and the
/// caption.
pub fn pair_uid(url: &str, caption: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(url);
    hash.update([0]);
    hash.update(caption);
    hex::encode(&hash.finalize()[..16])
}

/// What is known about a pair before it is fetched: `uid` (32 hexadecimal digits: a hash of url
/// and caption), `url`, `caption`, `page_url`, `text_source` (alt, title, figcaption, ...).
pub fn pair_texts() -> SchemaRef {
    use DataType::Utf8;
    schema(vec![("uid", Utf8), ("url", Utf8), ("caption", Utf8), ("page_url", Utf8), ("text_source", Utf8)])
}

/// The columns that fetching adds: the stored image, its size in pixels and its original size, the
/// SHA-256 of the original bytes, a perceptual hash, EXIF as JSON, and the time of fetching.
pub fn image_columns() -> SchemaRef {
    use DataType::{Int32, Int64, Utf8};
    schema(vec![
        ("image", image()),
        ("width", Int32),
        ("height", Int32),
        ("original_width", Int32),
        ("original_height", Int32),
        ("sha256", Utf8),
        ("phash", Int64),
        ("exif", Utf8),
        ("fetched_at", timestamp()),
    ])
}

/// Image-text pairs, with all columns.
pub fn pairs() -> SchemaRef {
    let mut fields: Vec<_> = pair_texts().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("query_ids", int_list(), true)));
    fields.push(Arc::new(Field::new("keep_prob", DataType::Float32, true)));
    fields.extend(image_columns().fields().iter().cloned());
    fields.push(Arc::new(Field::new("license", DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

/// The query list: `origin` is number, synset, unigram, bigram or title; `score` its count or PMI.
pub fn queries() -> SchemaRef {
    use DataType::{Float32, Int32, Utf8};
    schema(vec![("id", Int32), ("text", Utf8), ("origin", Utf8), ("score", Float32)])
}

/// How often each query matched, how many matches counted under its cap, and how many pairs with it
/// were kept.
pub fn query_stats() -> SchemaRef {
    use DataType::{Int32, Int64};
    schema(vec![("query_id", Int32), ("matched", Int64), ("contributed", Int64), ("kept", Int64)])
}

/// The reserved columns of the ledger; the columns of the rejected rows precede them.
pub fn rejects() -> SchemaRef {
    use DataType::{Int32, Utf8};
    schema(vec![("reject_stage", Utf8), ("reject_code", Utf8), ("reject_detail", Utf8), ("attempts", Int32)])
}

/// One row per logged training step.
pub fn train_log() -> SchemaRef {
    use DataType::{Float32, Float64, Int64, Utf8};
    schema(vec![
        ("step", Int64),
        ("samples_seen", Int64),
        ("epoch", Float64),
        ("loss", Float32),
        ("lr", Float32),
        ("logit_scale", Float32),
        ("grad_norm", Float32),
        ("samples_per_second", Float32),
        ("wall", timestamp()),
        // What changed in the options since the step before, where a training was continued.
        ("change", Utf8),
    ])
}

/// One row per metric of an evaluation during training, after `step`.
pub fn evaluations() -> SchemaRef {
    use DataType::{Float64, Int64, Utf8};
    schema(vec![
        ("step", Int64),
        ("samples_seen", Int64),
        ("set", Utf8),
        ("prompts", Utf8),
        ("metric", Utf8),
        ("value", Float64),
        ("ci_low", Float64),
        ("ci_high", Float64),
        ("chance", Float64),
        ("n", Int64),
    ])
}

/// One row per metric of an evaluation, with everything needed to decide whether two numbers are
/// comparable. `part` is `all`; `clean` and `overlap` are added if the evaluation checks which
/// examples were trained on.
pub fn accuracy() -> SchemaRef {
    use DataType::{Float64, Int64, Utf8};
    schema(vec![
        ("model", Utf8),
        ("checkpoint", Utf8),
        ("set", Utf8),
        ("split", Utf8),
        ("part", Utf8),
        ("task", Utf8),
        ("prompts", Utf8),
        ("metric", Utf8),
        ("value", Float64),
        ("ci_low", Float64),
        ("ci_high", Float64),
        ("chance", Float64),
        ("n", Int64),
        ("set_hash", Utf8),
        ("classes_hash", Utf8),
        ("prompts_hash", Utf8),
        ("weights_hash", Utf8),
        ("preprocess_hash", Utf8),
        ("precision", Utf8),
        ("seconds", Float64),
        ("program", Utf8),
    ])
}

/// One row per class of an evaluation.
pub fn per_class() -> SchemaRef {
    use DataType::{Int32, Int64, Utf8};
    schema(vec![
        ("set", Utf8),
        ("prompts", Utf8),
        ("class_id", Int32),
        ("class_name", Utf8),
        ("n", Int64),
        ("correct", Int64),
    ])
}

/// One row per example of an evaluation; `example` is its uid.
pub fn predictions() -> SchemaRef {
    use DataType::{Float32, Int32, Utf8};
    schema(vec![
        ("set", Utf8),
        ("prompts", Utf8),
        ("example", Utf8),
        ("label", Int32),
        ("predicted", Int32),
        ("top5", int_list()),
        ("score", Float32),
    ])
}

/// One row per evaluation set and prompt set: the expected calibration error, and the mean
/// confidence and accuracy that it compares.
pub fn calibration() -> SchemaRef {
    use DataType::{Float64, Int64, Utf8};
    schema(vec![
        ("set", Utf8),
        ("prompts", Utf8),
        ("error", Float64),
        ("ci_low", Float64),
        ("ci_high", Float64),
        ("confidence", Float64),
        ("accuracy", Float64),
        ("n", Int64),
    ])
}

/// Random images of evaluation sets, as thumbnails.
pub fn examples() -> SchemaRef {
    schema(vec![("set", DataType::Utf8), ("example", DataType::Utf8), ("image", image())])
}

/// One row per reason to distrust the numbers of an evaluation set; `prompts` is null if the reason
/// does not depend on them. `code` comes from a closed list.
pub fn warnings() -> SchemaRef {
    use DataType::{Float64, Utf8};
    schema(vec![("set", Utf8), ("prompts", Utf8), ("code", Utf8), ("detail", Utf8), ("value", Float64)])
}

/// One row per model of a fit of error over compute: `role` is fit (a point of the fit), held_out
/// (one of the largest, left out) or predicted (not trained or not evaluated); `error` is measured,
/// `predicted` is given by the fit with its 95 % interval, and `within` says whether `error` lies
/// in it. `gflops` is the forward pass of one pair; `compute` is the variable of the fit.
pub fn scaling() -> SchemaRef {
    use DataType::{Boolean, Float64, Int64, Utf8};
    schema(vec![
        ("set", Utf8),
        ("prompts", Utf8),
        ("metric", Utf8),
        ("model", Utf8),
        ("gflops", Float64),
        ("samples_seen", Int64),
        ("compute", Float64),
        ("role", Utf8),
        ("error", Float64),
        ("error_low", Float64),
        ("error_high", Float64),
        ("predicted", Float64),
        ("predicted_low", Float64),
        ("predicted_high", Float64),
        ("within", Boolean),
    ])
}

/// One row per fit of error = a * compute^-b: `compute` is forward (GFLOP of a pair) or training
/// (of all pairs seen), `n` the number of points, `b_low` and `b_high` the 95 % interval of the
/// exponent, `residual` the standard deviation of the points from the line in ln(error); `note`
/// says why there is no fit.
pub fn scaling_fit() -> SchemaRef {
    use DataType::{Float64, Int64, Utf8};
    schema(vec![
        ("set", Utf8),
        ("prompts", Utf8),
        ("metric", Utf8),
        ("compute", Utf8),
        ("n", Int64),
        ("a", Float64),
        ("b", Float64),
        ("b_low", Float64),
        ("b_high", Float64),
        ("residual", Float64),
        ("r2", Float64),
        ("smallest", Float64),
        ("largest", Float64),
        ("note", Utf8),
    ])
}

/// Metadata key in the schema of a training log: the width of the model's embeddings, known before
/// the training runs.
const EMBED_WIDTH: &str = "twinlens.embed_width";

/// Records in the schema of a training log that the model's embeddings have `width` numbers.
pub fn with_embed_width(schema: SchemaRef, width: usize) -> SchemaRef {
    let mut metadata = schema.metadata().clone();
    metadata.insert(EMBED_WIDTH.into(), width.to_string());
    Arc::new(Schema::new_with_metadata(schema.fields().clone(), metadata))
}

/// The width of the embeddings of the model whose training log has this schema; `None` if unknown.
pub fn embed_width(schema: &Schema) -> Option<usize> {
    schema.metadata().get(EMBED_WIDTH)?.parse().ok()
}

/// Adds the metadata by which the Hugging Face hub shows an `image` column as images. A schema
/// without images is returned unchanged.
pub fn with_hub_features(schema: SchemaRef) -> SchemaRef {
    if !has_images(&schema) {
        return schema;
    }
    let features: serde_json::Map<String, serde_json::Value> = (schema.fields().iter())
        .filter_map(|field| hub_feature(field.data_type()).map(|feature| (field.name().clone(), feature)))
        .collect();
    let text = serde_json::json!({ "info": { "features": features } }).to_string();
    let mut metadata = schema.metadata().clone();
    metadata.insert("huggingface".into(), text);
    Arc::new(Schema::new_with_metadata(schema.fields().clone(), metadata))
}

/// Whether rows of this schema have images: a column `image` of the contract's type.
pub fn has_images(schema: &Schema) -> bool {
    schema.field_with_name("image").is_ok_and(|field| field.data_type() == &image())
}

/// The schema to write to files. The hub's `Image` feature requires 32-bit offsets, whatever the
/// metadata say. They suffice there: readers load one row group at a time, far below 2 GiB.
pub fn file_schema(schema: &Schema) -> SchemaRef {
    map_types(schema, |kind| if kind == &image() { hub_image() } else { kind.clone() })
}

/// The schema to use in memory for a file: the inverse of [`file_schema`], also for files of other
/// programs. Texts are strings with 32-bit offsets, whatever the file uses: dictionaries, views,
/// 64-bit offsets. So stages know one type of text.
pub fn memory_schema(schema: &Schema) -> SchemaRef {
    map_types(schema, |kind| if kind == &hub_image() { image() } else { plain_encoding(kind) })
}

fn plain_encoding(kind: &DataType) -> DataType {
    match kind {
        DataType::Dictionary(_, values) => plain_encoding(values),
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::LargeBinary,
        other => other.clone(),
    }
}

fn hub_image() -> DataType {
    let fields = [Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)];
    DataType::Struct(fields.into_iter().collect())
}

fn map_types(schema: &Schema, map: impl Fn(&DataType) -> DataType) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match map(field.data_type()) {
        same if &same == field.data_type() => field.clone(),
        other => Arc::new(field.as_ref().clone().with_data_type(other)),
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

/// The hub's feature of a type; `None` for types that it lacks.
fn hub_feature(kind: &DataType) -> Option<serde_json::Value> {
    use DataType::*;
    let value = |name: &str| Some(serde_json::json!({ "dtype": name, "_type": "Value" }));
    match kind {
        Utf8 => value("string"),
        Boolean => value("bool"),
        Timestamp(TimeUnit::Microsecond, None) => value("timestamp[us]"),
        kind if kind == &timestamp() => value("timestamp[us, tz=UTC]"),
        kind if kind == &image() => Some(serde_json::json!({ "_type": "Image" })),
        List(item) => {
            Some(serde_json::json!({ "feature": hub_feature(item.data_type())?, "_type": "Sequence" }))
        }
        Struct(fields) => {
            let feature = |field: &Arc<Field>| Some((field.name().clone(), hub_feature(field.data_type())?));
            Some(serde_json::Value::Object(fields.iter().map(feature).collect::<Option<_>>()?))
        }
        Binary | Date32 | Date64 => value(&kind.to_string().to_lowercase()),
        kind if kind.is_numeric() => value(&kind.to_string().to_lowercase()),
        _ => None,
    }
}
