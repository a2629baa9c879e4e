//! Reads the rows of CSV, TSV, JSON and text files. A malformed row is one reject and takes bounded
//! memory (an unclosed quote, an endless line).

use std::borrow::Cow;

use twinlens_dataset::samples::Refusal;
use twinlens_pipeline::RunError;

use super::columns::{ColumnSelection, FoundColumns};
use super::delimited::Record;
use super::format::Format;
use super::json;
use super::open_split::OpenSplit;
use super::options::ColumnKind;
use super::records::Item;
use super::rows::{Row, RowCaptions, TextBatch};
use super::text::{inspect, open_at, read_error};
use crate::stages::common::{arrow_error, file_name};
use crate::stages::split_reader::BatchSink;

/// Rows per batch.
const BATCH: usize = 4096;
/// Reads a split; returns whether all of it was consumed.
pub(super) fn read(table: &OpenSplit, send: BatchSink<'_>) -> Result<bool, RunError> {
    let (path, split) = (table.file.path(), &table.split);
    let spec = table.text_spec();
    let shape = inspect(path, spec)?;
    let kinds = table.kept_kinds()?;
    let position = split.position.unwrap_or(shape.start);
    let mut records = open_at(path, spec, &shape, position)?;
    let mut batch = TextBatch::new(table.pusher(shape.is_image_only), table.kept.clone());
    let (mut row, name) = (table.rows.start, file_name(&split.file));
    while row < table.rows.end {
        let line = records.position().1;
        let Some((line, item)) = records.next().map_err(|error| read_error(path, line, &error))? else {
            break;
        };
        let rows = item.rows();
        match item {
            Item::Fields(record) => {
                let values = record_row(record, &shape.columns, &table.reader.selection, &kinds);
                batch.push(values, &|| format!("{name} row {row}, line {line}"));
            }
            Item::Text(text) => {
                let location = || format!("{name} row {row}, line {line}");
                if spec.format == Format::Txt {
                    batch.push(url_row(text), &location);
                } else {
                    match json::parse(text) {
                        Ok(object) => {
                            batch.push(json::row(&object, &table.reader.selection, &kinds), &location);
                        }
                        Err(refusal) => batch.push(Err(refusal), &location),
                    }
                }
            }
            Item::Refused { refusal: (code, why), .. } => {
                for number in 0..rows {
                    let location = || format!("{name} row {}, line {}", row + number, line + number);
                    batch.push(Err((code, why.clone())), &location);
                }
            }
        }
        row += rows;
        if batch.rows.pairs.len() >= BATCH && !send(batch.finish().map_err(arrow_error)?) {
            return Ok(false);
        }
    }
    Ok(batch.rows.pairs.is_empty() || send(batch.finish().map_err(arrow_error)?))
}

fn utf8(bytes: &[u8], field: usize) -> Result<&str, Refusal> {
    let refuse = |error| ("not_utf8", format!("field {}: {error}: set `encoding`", field + 1));
    std::str::from_utf8(bytes).map_err(refuse)
}

/// The row of a line that is a URL.
fn url_row(line: &[u8]) -> Result<Row<'_>, Refusal> {
    let url = Some(Cow::Borrowed(utf8(line, 0)?));
    Ok(Row { url, captions: RowCaptions::None, page_url: None, text_source: None, kept: Vec::new() })
}

/// The selected values of a record.
fn record_row<'r>(
    record: &'r Record,
    found: &FoundColumns,
    selection: &ColumnSelection,
    kinds: &[ColumnKind],
) -> Result<Row<'r>, Refusal> {
    let value = |columns: &[usize]| -> Result<Option<&'r str>, Refusal> {
        for &column in columns {
            let text = utf8(record.field(column), column)?;
            if !text.trim().is_empty() {
                return Ok(Some(text));
            }
        }
        Ok(None)
    };
    let mut kept = Vec::with_capacity(kinds.len());
    for ((&column, kind), wanted) in found.kept.iter().zip(kinds).zip(&selection.keep) {
        let text = utf8(record.field(column), column)?;
        kept.push(match kind {
            ColumnKind::String => Some(Cow::Borrowed(text)),
            _ if text.trim().is_empty() => None,
            _ => Some(kind.canonical(text.into()).ok_or_else(|| kind.refuse(&wanted.source, text))?),
        });
    }
    Ok(Row {
        url: value(&found.url)?.map(Cow::Borrowed),
        captions: value(&found.caption)?
            .map_or(RowCaptions::None, |text| RowCaptions::of_text(text, selection.captions)),
        page_url: value(&found.page_url)?.map(Cow::Borrowed),
        text_source: value(&found.text_source)?.map(Cow::Borrowed),
        kept,
    })
}
