//! What the tests of the stages share: stages of this crate, and tables from literals.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, Int32Array, Int32Builder, Int64Array, ListBuilder, RecordBatch, StringArray,
};
use twinlens_pipeline::{Registry, RunContext};
pub(super) use twinlens_testkit::stage::{StageTest, lines};

fn registry() -> Registry {
    let mut registry = Registry::default();
    super::register(&mut registry);
    registry
}

/// A stage of this crate, with options as in its TOML table.
pub(super) fn stage(kind: &str, options: &str) -> StageTest {
    StageTest::new(registry(), kind, options)
}

/// What a stage is run with, without files.
pub(super) fn context() -> RunContext {
    twinlens_testkit::stage::context(&registry(), "".as_ref())
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

/// Pairs of (uid, caption); a caption of NUL is null.
pub(super) fn pairs(rows: &[(&str, &str)]) -> RecordBatch {
    let captions: StringArray = rows.iter().map(|(_, text)| (*text != "\0").then_some(*text)).collect();
    let uids: Vec<&str> = rows.iter().map(|(uid, _)| *uid).collect();
    let urls: Vec<String> = uids.iter().map(|uid| format!("http://example.com/{uid}")).collect();
    batch(vec![
        ("uid", Arc::new(StringArray::from(uids))),
        ("url", Arc::new(StringArray::from(urls))),
        ("caption", Arc::new(captions)),
        ("page_url", Arc::new(StringArray::new_null(rows.len()))),
        ("text_source", Arc::new(StringArray::new_null(rows.len()))),
    ])
}

/// Pairs of uid and query ids.
pub(super) fn matched_pairs(rows: &[(String, Option<Vec<i32>>)]) -> RecordBatch {
    let mut lists = ListBuilder::new(Int32Builder::new());
    for (_, queries) in rows {
        lists.append_option(queries.as_ref().map(|queries| queries.iter().copied().map(Some)));
    }
    let uids = StringArray::from_iter_values(rows.iter().map(|(uid, _)| uid));
    batch(vec![("uid", Arc::new(uids)), ("query_ids", Arc::new(lists.finish()))])
}

/// Rows of uid and perceptual hash.
pub(super) fn hashed(rows: &[(&str, Option<i64>)]) -> RecordBatch {
    let uids = StringArray::from_iter_values(rows.iter().map(|(uid, _)| uid));
    let hashes: Int64Array = rows.iter().map(|(_, hash)| *hash).collect();
    batch(vec![("uid", Arc::new(uids)), ("phash", Arc::new(hashes))])
}

/// A query list of (id, text).
pub(super) fn queries(rows: &[(i32, &str)]) -> RecordBatch {
    let ids: Int32Array = rows.iter().map(|(id, _)| Some(*id)).collect();
    let texts: StringArray = rows.iter().map(|(_, text)| Some(*text)).collect();
    batch(vec![("id", Arc::new(ids)), ("text", Arc::new(texts))])
}
