//! The `warc` stage: extracts image-text pairs from web archives: pages (WARC), or the metadata
//! that Common Crawl extracts from them (WAT).
//!
//! A file is a split. It is streamed record by record; a record that is damaged, too long or not
//! understood is one reject, with the file and the byte offset.

mod input;
mod page;
mod reader;
mod record;
mod wat;

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::contracts::ROW_ORDER;
use twinlens_dataset::sniff::{Compression, FileKind};
use twinlens_dataset::unpack::{self, PlainFile};
use twinlens_pipeline::{Located, Ports, RunContext, RunError, SortKey, Source, StageKind, Work, rejects};

use self::input::Input;
use self::page::ReadOptions;
use self::reader::{DamagedRecord, Item, Record, Records, Selection};
use self::record::Header;
use super::common::arrow_error;
use super::files::{self, FileOpener, FileSplit, InputFile};
use super::options;
use super::split_reader::{self, BatchSink, SplitReader};
use crate::html::{TextSource, TextSourceSet};
use crate::net::HttpOptions;
use crate::pairs::{self, PairBatchBuilder, PairRow};

/// Reject codes of records.
pub const CODES: &[&str] = &[
    "damaged_gzip",
    "damaged_zstd",
    "truncated",
    "bad_record",
    "record_too_long",
    "bad_http",
    "content_encoding",
    "too_many_bytes",
    "malformed_json",
    "bad_url",
    "opted_out",
];

/// Rows per batch.
const BATCH: usize = 4096;
/// Read buffer, in bytes.
const BUFFER: usize = 256 << 10;

/// What to do about a file that is not an archive.
const HINT: &str = "`warc` reads WARC, ARC and WAT files, plain or compressed";
/// Column with the charset of the page.
const CHARSET: &str = "charset";

/// Extracts image-text pairs from web archives: WARC, ARC and WAT files, as published by Common
/// Crawl. The column `charset` has the charset in which a page was decoded.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WarcOptions {
    /// Files (`.warc`, `.warc.gz`, `.warc.zst`, `.arc.gz`, `.wat.gz`; their contents tell what they
    /// are), relative to the pipeline file; the last path component may contain the wildcards `*`
    /// and `?`. Or http(s) URLs: each is downloaded, read, and deleted; changes on the server are
    /// not detected.
    files: Located<Vec<Located<String>>>,
    /// Texts to use as captions. WAT files only have `alt`, `title` and `open-graph`.
    #[serde(default = "crate::html::default_captions")]
    captions: Vec<TextSource>,
    /// Obey X-Robots-Tag, robots meta tags and TDM reservations (noai, noimageai, noml, noindex,
    /// noimageindex).
    #[serde(default = "opt_outs")]
    opt_outs: bool,
    /// Our product token, which opt-outs may address.
    #[serde(default = "product")]
    product: String,
    /// Longest record, in bytes.
    #[serde(default = "max_record_bytes")]
    max_record_bytes: u64,
    /// HTTP settings for `files` that are URLs.
    #[serde(default = "super::options::default_option::<HttpOptions>")]
    http: Located<HttpOptions>,
}

/// `warc` as it runs.
pub struct Warc {
    files: Vec<Located<String>>,
    options: ReadOptions,
    opener: FileOpener,
}

fn opt_outs() -> bool {
    true
}
fn product() -> String {
    "twinlens".into()
}
fn max_record_bytes() -> u64 {
    16 << 20
}

impl StageKind for Warc {
    type Options = WarcOptions;
    const NAME: &'static str = "warc";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = r#"
[stages.pages]
kind = "warc"
files = ["CC-MAIN-2026-40/*.warc.wat.gz"]
captions = ["alt", "title"]
"#;

    fn plan(options: WarcOptions, ports: &mut Ports<'_>) -> Option<Work> {
        options::check_http(ports, &options.http);
        files::declare(ports, &options.files);
        ports.output(pairs::schema(&[CHARSET.into()]), SortKey::columns(ROW_ORDER));
        Some(Work::source(Warc {
            files: options.files.value().clone(),
            options: ReadOptions {
                captions: TextSourceSet::new(&options.captions),
                opt_outs: options.opt_outs,
                product: options.product,
                max_bytes: options.max_record_bytes,
            },
            opener: FileOpener::new(options.http.value().clone()),
        }))
    }
}

#[async_trait]
impl Source for Warc {
    type Split = FileSplit;

    async fn splits(&self, cx: &RunContext) -> Result<Vec<FileSplit>, RunError> {
        Ok(files::list(cx, &self.files)?.into_iter().map(|file| FileSplit { file: file.name }).collect())
    }

    async fn read(&self, cx: &RunContext, split: &FileSplit) -> Result<DataFrame, RunError> {
        let (stage, options) = (cx.stage.clone(), self.options.clone());
        let schema = rejects::schema_with_reserved(&pairs::schema(&[CHARSET.into()]));
        let file = self.opener.open(cx, &split.file).await?;
        let scratch = cx.files.scratch.clone();
        split_reader::data_frame(cx, WarcReader { schema, stage, file, scratch, options })
    }
}

#[derive(Debug)]
struct WarcReader {
    schema: SchemaRef,
    stage: String,
    file: InputFile,
    scratch: PathBuf,
    options: ReadOptions,
}

impl SplitReader for WarcReader {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&self, send: BatchSink<'_>) -> Result<(), RunError> {
        // Of a download, the URL is named and not the copy.
        let io = |error| RunError::io(Path::new(self.file.written()), error);
        let input = Input::new(self.open()?, BUFFER).map_err(io)?;
        let selection = Selection { max_block: self.options.max_bytes, is_wanted: may_hold_pairs };
        let mut records = Records::new(input, &self.file.name, selection).map_err(io)?;
        let mut rows = PairBatchBuilder::new(&self.stage, &[CHARSET.into()]);
        let mut first_damage = None;
        while let Some(item) = records.next().map_err(io)? {
            if let Item::Damaged(damage) = &item {
                first_damage.get_or_insert_with(|| format!("{}: {}", damage.place, damage.detail));
            }
            self.push(&mut rows, item);
            if rows.len() >= BATCH && !send(rows.finish().map_err(arrow_error)?) {
                return Ok(());
            }
        }
        if records.intact() == 0 {
            return Err(self.unusable(first_damage));
        }
        if !rows.is_empty() {
            send(rows.finish().map_err(arrow_error)?);
        }
        self.file.mark_read();
        Ok(())
    }
}

impl WarcReader {
    /// Opens the file: as it is if the reader of records knows its compression, else a decompressed
    /// copy.
    fn open(&self) -> Result<File, RunError> {
        let path = self.file.path();
        let io = |error| RunError::io(Path::new(self.file.written()), error);
        // A damaged beginning is the reader's concern.
        let Ok(unpacked) = unpack::open(path) else { return File::open(path).map_err(io) };
        match unpacked.kind {
            FileKind::Warc | FileKind::Arc | FileKind::Binary => {}
            // Text may be a damaged beginning.
            kind if kind.is_text() => {}
            kind => {
                let hint = kind.hint().unwrap_or(HINT);
                let what = format!("{}: this is {kind}, not a web archive", self.file.written());
                return Err(RunError::user_with_hint(what, hint));
            }
        }
        if let [] | [Compression::Gzip | Compression::Zstd] = unpacked.layers[..] {
            return File::open(path).map_err(io);
        }
        let plain = PlainFile::open(path, &self.scratch)?;
        match plain.damage {
            None => Ok(plain.file),
            Some(why) => Err(RunError::user(format!("{}: {why}", self.file.written()))),
        }
    }

    /// The error of a file in which no record could be read.
    fn unusable(&self, first_damage: Option<String>) -> RunError {
        let kind = unpack::open(self.file.path()).map(|unpacked| unpacked.kind);
        let kind = kind.ok().filter(|kind| !matches!(kind, FileKind::Warc | FileKind::Arc));
        let what = kind.map(|kind| format!(" (this is {kind})")).unwrap_or_default();
        let why = first_damage.unwrap_or_else(|| "it has none".into());
        let file = self.file.written();
        RunError::user_with_hint(format!("{file}{what}: no record of a web archive can be read: {why}"), HINT)
    }

    /// Adds the pairs or the reject of a record.
    fn push(&self, rows: &mut PairBatchBuilder, item: Item) {
        let (place, target, read) = match item {
            Item::Damaged(DamagedRecord { place, code, detail }) => {
                (place, String::new(), Err((code, detail)))
            }
            Item::Record(record) => {
                (record.place, record.header.target().to_string(), read_record(&record, &self.options))
            }
        };
        match read {
            Ok(page) => page.pairs.iter().for_each(|pair| {
                rows.push(PairRow {
                    extra: &[page.charset.map(String::from)],
                    url: Some(&pair.image),
                    caption: Some(&pair.text),
                    page_url: Some(&page.url),
                    text_source: Some(pair.source.name()),
                    ..PairRow::default()
                });
            }),
            Err((code, why)) => {
                let detail = format!("{} {place}: {why}", self.file.name);
                let page_url = Some(target.as_str()).filter(|url| !url.is_empty());
                rows.push(PairRow { page_url, reject: Some((code, &detail)), ..PairRow::default() });
            }
        }
    }
}

/// Whether a record may hold pairs: responses, bare pages, and WAT metadata.
fn may_hold_pairs(header: &Header) -> bool {
    match header.kind.as_str() {
        "response" => matches!(header.media_type().as_str(), "application/http" | ""),
        "resource" => matches!(header.media_type().as_str(), "text/html" | "application/xhtml+xml"),
        "metadata" => wat::is_wat(header.fields.get("content-type")),
        _ => false,
    }
}

fn read_record(record: &Record, options: &ReadOptions) -> Result<page::Page, page::Rejection> {
    match record.header.kind.as_str() {
        "metadata" => wat::read(record.header.target(), &record.block, options),
        _ => page::read(record, options),
    }
}
