//! The `warc` stage: image-text pairs out of web archives, the pages themselves (WARC) or what
//! Common Crawl kept of them (WAT).
//!
//! A file is a split. It is read as a stream, a record at a time; a record that is damaged, too
//! long or not understood is one reject, with the file and the byte at which it begins.

mod page;
mod reader;
mod record;
mod wat;

use std::fs::File;
use std::io::BufReader;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::stage::{Source, SourceSplit};
use twinlens_pipeline::{
    CheckContext, Fault, Input, InputTables, Located, RunContext, RunError, Stage, StageKind, Tables, Work,
    rejects,
};

use self::reader::{Damage, Item, Record, Records};
use self::record::Header;
use super::checks;
use super::files::{self, Files, Readable, engine};
use super::reading::{self, Send};
use crate::html::{Captions, Reading, TextSource};
use crate::net::HttpOptions;
use crate::pairs::{self, Row, Rows};

/// The codes of records that give no pairs.
pub const CODES: &[&str] = &[
    "damaged_gzip",
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

/// Rows of a batch.
const BATCH: usize = 4096;
/// How much of a file is read at a time, in bytes.
const BUFFER: usize = 256 << 10;

/// Web archives.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Warc {
    /// The files (`.warc`, `.warc.gz`, `.wat.gz`), relative to the pipeline file; `*` and `?` in
    /// the last part are patterns. Or URLs (http, https): each is copied, read, and taken away;
    /// that one changed is not noticed.
    files: Located<Vec<Located<String>>>,
    /// The texts that are taken as captions. An archive of the kind WAT has `alt`, `title` and
    /// `open-graph` alone.
    #[serde(default = "crate::html::default_captions")]
    captions: Vec<TextSource>,
    /// Obey X-Robots-Tag, robots meta tags and TDM reservations (noai, noimageai, noml, noindex,
    /// noimageindex).
    #[serde(default = "opt_outs")]
    opt_outs: bool,
    /// Our name: what opt-outs that are for one robot address.
    #[serde(default = "product")]
    product: String,
    /// Longest record that is read, in bytes.
    #[serde(default = "max_record_bytes")]
    max_record_bytes: u64,
    /// How the network is used, where `files` are URLs.
    #[serde(default = "super::nowhere::<HttpOptions>")]
    http: Located<HttpOptions>,
    #[serde(skip)]
    open: Files,
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
    const KIND: &'static str = "warc";
    const ABOUT: &'static str =
        "Takes image-text pairs out of web archives: WARC and WAT files as Common Crawl publishes them.";
    const EXAMPLE: &'static str = r#"
[stages.pages]
kind = "warc"
files = ["CC-MAIN-2026-40/*.warc.wat.gz"]
captions = ["alt", "title"]
"#;
    const VERSION: u32 = 1;
}

impl Stage for Warc {
    fn inputs(&self) -> Vec<Input> {
        Vec::new()
    }

    fn files(&self) -> Vec<Located<String>> {
        files::watched(&self.files)
    }

    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let mut faults = checks::http(&self.http);
        faults.extend(files::faults(&self.files));
        checks::tables(faults, || Tables::main(pairs::schema(&[])))
    }

    fn work(&self) -> Work<'_> {
        Work::Source(self)
    }
}

#[async_trait]
impl Source for Warc {
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        files::splits(cx, &self.files)
    }

    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        let options = Options {
            captions: Captions::of(&self.captions),
            opt_outs: self.opt_outs,
            product: self.product.clone(),
            max_bytes: self.max_record_bytes,
        };
        let schema = rejects::schema_with_reserved(&pairs::schema(&[]));
        let file = self.open.open(cx, &self.http, split).await?;
        reading::frame(cx, Archive { schema, stage: cx.stage.clone(), file, options })
    }
}

/// What is taken out of records.
#[derive(Debug, Clone)]
struct Options {
    captions: Captions,
    opt_outs: bool,
    product: String,
    /// Longest block, and longest page, in bytes.
    max_bytes: u64,
}

impl Options {
    fn reading(&self) -> Reading<'_> {
        Reading { product: &self.product, captions: self.captions }
    }
}

/// One file, as it is read.
#[derive(Debug)]
struct Archive {
    schema: SchemaRef,
    stage: String,
    file: Readable,
    options: Options,
}

impl reading::Reading for Archive {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn read(&self, send: Send<'_>) -> Result<(), RunError> {
        let path = self.file.path();
        let io = |error| RunError::io(path, error);
        let file = BufReader::with_capacity(BUFFER, File::open(path).map_err(io)?);
        let named_gz = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"));
        let mut records = Records::new(file, named_gz, self.options.max_bytes, wanted).map_err(io)?;
        let mut rows = Rows::new(&self.stage, &[]);
        while let Some(item) = records.next().map_err(io)? {
            self.push(&mut rows, item);
            if rows.len() >= BATCH && !send(rows.finish().map_err(engine)?) {
                return Ok(());
            }
        }
        if !rows.is_empty() {
            send(rows.finish().map_err(engine)?);
        }
        self.file.served();
        Ok(())
    }
}

impl Archive {
    /// Adds the pairs of a record, or the reject.
    fn push(&self, rows: &mut Rows, item: Item) {
        let (offset, target, read) = match item {
            Item::Damaged(Damage { offset, code, detail }) => (offset, String::new(), Err((code, detail))),
            Item::Record(record) => {
                (record.offset, record.header.target().to_string(), pairs_of(&record, &self.options))
            }
        };
        match read {
            Ok(page) => page.pairs.iter().for_each(|pair| {
                rows.push(Row {
                    url: Some(&pair.image),
                    caption: Some(&pair.text),
                    page_url: Some(&page.url),
                    text_source: Some(pair.source.name()),
                    ..Row::default()
                });
            }),
            Err((code, why)) => {
                let detail = format!("{} byte {offset}: {why}", self.file.name);
                let page_url = Some(target.as_str()).filter(|url| !url.is_empty());
                rows.push(Row { page_url, refused: Some((code, &detail)), ..Row::default() });
            }
        }
    }
}

/// Records that may hold pairs: responses, bare pages, and the metadata that WAT files are made of.
fn wanted(header: &Header) -> bool {
    match header.kind.as_str() {
        "response" => matches!(header.media_type().as_str(), "application/http" | ""),
        "resource" => matches!(header.media_type().as_str(), "text/html" | "application/xhtml+xml"),
        "metadata" => wat::is_wat(header.fields.get("content-type")),
        _ => false,
    }
}

fn pairs_of(record: &Record, options: &Options) -> Result<page::Page, page::Refusal> {
    match record.header.kind.as_str() {
        "metadata" => wat::read(record.header.target(), &record.block, options),
        _ => page::read(record, options),
    }
}
