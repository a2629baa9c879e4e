//! Opens CSV, TSV, JSON and text files, and learns from their start how they are laid out.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use twinlens_dataset::sniff::FileKind;
use twinlens_dataset::unpack;
use twinlens_pipeline::RunError;

use super::columns::{ColumnSelection, FoundColumns, RENAME, infer_header};
use super::encoding::Transcoded;
use super::errors::{complain, damaged, not_of_format};
use super::format::Format;
use super::json::{self, Sample};
use super::options::{ColumnKind, Header, TextOptions};
use super::records::{Item, Layout, Position, Records};

/// Rows of a JSON file that are looked at to learn the types of its values ...
const SAMPLE_ROWS: u64 = 1000;
/// ... and bytes.
const SAMPLE_BYTES: u64 = 1 << 20;

pub(super) type Input = Box<dyn Read + Send>;

/// What text files are read with.
#[derive(Debug, Clone, Copy)]
pub(super) struct TextSpec<'a> {
    pub(super) format: Format,
    pub(super) options: &'a TextOptions,
    pub(super) selection: &'a ColumnSelection,
}

/// What the start of a file says.
#[derive(Debug)]
pub(super) struct Shape {
    layout: Layout,
    /// The first record.
    pub(super) start: Position,
    /// Whether records can be read from any position: the text is not compressed, and is UTF-8.
    pub(super) is_seekable: bool,
    pub(super) columns: FoundColumns,
    pub(super) is_image_only: bool,
    /// The types of the kept columns.
    pub(super) kinds: Vec<ColumnKind>,
}

/// The text of a file, without compression and as UTF-8.
struct TextInput {
    input: Input,
    /// Length of the byte order mark.
    mark: u64,
    is_seekable: bool,
}

pub(super) fn read_error(path: &Path, line: u64, error: &io::Error) -> RunError {
    damaged(&format_args!("{} line {line}: damaged: {error}", path.display()))
}

fn open(path: &Path, spec: TextSpec<'_>) -> Result<TextInput, RunError> {
    let unpacked = unpack::open(path).map_err(|error| damaged(&error))?;
    let (kind, is_packed) = (unpacked.kind, !unpacked.layers.is_empty());
    let marked = match kind {
        FileKind::Utf16Le => Some(encoding_rs::UTF_16LE),
        FileKind::Utf16Be => Some(encoding_rs::UTF_16BE),
        _ => None,
    };
    let encoding = marked.or(spec.options.encoding.filter(|_| kind != FileKind::Utf8Bom));
    // UTF-16 without a mark looks like binary data.
    let is_named = kind == FileKind::Binary && encoding.is_some();
    if !spec.format.fits(kind) && !is_named {
        return Err(not_of_format(path, spec.format, kind));
    }
    let mark = if kind == FileKind::Utf8Bom { 3 } else { 0 };
    let input: Input = match encoding {
        Some(encoding) => Box::new(Transcoded::new(unpacked, encoding)),
        None => Box::new(unpacked),
    };
    Ok(TextInput { input, mark, is_seekable: encoding.is_none() && !is_packed })
}

/// Reads the text of a file from a position on.
pub(super) fn open_at(
    path: &Path,
    spec: TextSpec<'_>,
    shape: &Shape,
    position: Position,
) -> Result<Records<Input>, RunError> {
    let io = |error| RunError::io(path, error);
    let input: Input = if shape.is_seekable {
        let mut file = File::open(path).map_err(io)?;
        file.seek(SeekFrom::Start(position.0)).map_err(io)?;
        Box::new(file)
    } else {
        let mut input = open(path, spec)?.input;
        let skipped = io::copy(&mut input.by_ref().take(position.0), &mut io::sink());
        skipped.map_err(|error| read_error(path, 1, &error))?;
        input
    };
    Ok(Records::new(input, shape.layout, position))
}

/// Looks at the start of a file.
pub(super) fn inspect(path: &Path, spec: TextSpec<'_>) -> Result<Shape, RunError> {
    let TextInput { mut input, mark, is_seekable } = open(path, spec)?;
    let skipped = io::copy(&mut input.by_ref().take(mark), &mut io::sink());
    skipped.map_err(|error| read_error(path, 1, &error))?;
    let mut shape = match spec.format {
        Format::Json | Format::Jsonl => inspect_json(path, spec, input, mark)?,
        Format::Txt => {
            let columns = spec.selection.resolve(&["url".to_string()], RENAME);
            let columns = columns.map_err(|why| complain(path, why))?;
            Shape::new(Layout::Lines, (mark, 1), columns)
        }
        _ => inspect_header(path, spec, input, mark)?,
    };
    shape.is_seekable = is_seekable;
    shape.kinds.resize(spec.selection.keep.len(), ColumnKind::String);
    Ok(shape)
}

impl Shape {
    fn new(layout: Layout, start: Position, columns: FoundColumns) -> Self {
        let is_image_only = columns.caption.is_empty();
        Self { layout, start, is_seekable: false, columns, is_image_only, kinds: Vec::new() }
    }
}

fn inspect_header(path: &Path, spec: TextSpec<'_>, input: Input, mark: u64) -> Result<Shape, RunError> {
    let dialect = spec.options.dialect(spec.format);
    let layout = Layout::Delimited { dialect, columns: None };
    let mut records = Records::new(input, layout, (mark, 1));
    let first = match records.next().map_err(|error| read_error(path, 1, &error))? {
        None => Vec::new(),
        Some((_, Item::Fields(record))) => {
            let name = |field| String::from_utf8_lossy(record.field(field)).trim().to_string();
            (0..record.len()).map(name).collect()
        }
        Some((line, Item::Refused { refusal: (_, why), .. })) => {
            let hint = "check `delimiter` and `quote`, or name the columns: `header = [...]`";
            return Err(complain(path, (format!("line {line}, the header: {why}"), hint.into())));
        }
        Some((_, Item::Text(_))) => return Err(RunError::Internal("a line of delimited text".into())),
    };
    let (names, is_row) = match &spec.options.header {
        Some(Header::Names(names)) => (names.clone(), true),
        Some(Header::Present(true)) => (first, false),
        Some(Header::Present(false)) => {
            let numbered = || (1..=first.len()).map(|column| format!("column_{column}")).collect();
            (infer_header(&first).unwrap_or_else(numbered), true)
        }
        None => match infer_header(&first) {
            Some(names) => (names, true),
            None => (first, false),
        },
    };
    let columns = spec.selection.resolve(&names, RENAME).map_err(|why| complain(path, why))?;
    let start = if is_row { (mark, 1) } else { records.position() };
    Ok(Shape::new(Layout::Delimited { dialect, columns: Some(names.len()) }, start, columns))
}

fn inspect_json(path: &Path, spec: TextSpec<'_>, mut input: Input, mark: u64) -> Result<Shape, RunError> {
    let io = |error: io::Error| read_error(path, 1, &error);
    // An array begins with `[` and, behind it, an object.
    let (mut start, mut line, mut is_array, mut next) = (mark, 1, false, None);
    let mut byte = [0];
    while next.is_none() && start < mark + SAMPLE_BYTES && input.read(&mut byte).map_err(io)? == 1 {
        match byte[0] {
            b' ' | b'\t' | b'\r' => {}
            b'\n' => line += 1,
            b'[' if !is_array => is_array = true,
            other => next = Some(other),
        }
        start += 1;
    }
    let is_array = is_array && matches!(next, Some(b'{' | b']') | None);
    let (layout, start) = match (is_array, next) {
        (true, Some(_)) => (Layout::Array, (start - 1, line)),
        (true, None) => (Layout::Array, (start, line)),
        (false, _) => (Layout::Lines, (mark, 1)),
    };
    let mut shape = Shape::new(layout, start, FoundColumns::default());
    let mut records = open_at(path, spec, &shape, start)?;
    let (mut sample, mut seen, mut objects, mut error) = (Sample::default(), 0, 0, None);
    while seen < SAMPLE_ROWS && records.position().0 < start.0 + SAMPLE_BYTES {
        let Some((line, item)) = records.next().map_err(|error| read_error(path, line, &error))? else {
            break;
        };
        seen += 1;
        let parsed = match item {
            Item::Text(text) => json::parse(text),
            Item::Refused { refusal, .. } => Err(refusal),
            Item::Fields(_) => return Err(RunError::Internal("delimited fields of JSON".into())),
        };
        match parsed {
            Ok(object) => {
                objects += 1;
                sample.add(&object, spec.selection);
            }
            Err((_, why)) => error = error.or(Some((line, why))),
        }
    }
    if let (0, Some((line, why))) = (objects, error) {
        let message = format!("its first {seen} rows are not JSON objects; line {line}: {why}");
        return Err(complain(path, (message, "name the format of the file: `format`".into())));
    }
    sample.check(spec.selection).map_err(|why| complain(path, why))?;
    shape.is_image_only = sample.is_image_only() || !spec.selection.needs_captions();
    shape.kinds = sample.kinds(spec.selection);
    Ok(shape)
}

/// Rows of a file, and where they begin.
pub(super) type Piece = (Range<u64>, Position);

/// Counts the rows of a file, and cuts them into pieces of `every` rows.
pub(super) fn index(
    path: &Path,
    spec: TextSpec<'_>,
    shape: &Shape,
    every: u64,
) -> Result<Vec<Piece>, RunError> {
    let mut records = open_at(path, spec, shape, shape.start)?;
    let (mut row, mut pieces): (u64, Vec<Piece>) = (0, Vec::new());
    loop {
        let position = records.position();
        let Some((_, item)) = records.next().map_err(|error| read_error(path, position.1, &error))? else {
            return Ok(pieces);
        };
        // A piece begins with a record: several lines may be refused at once.
        if pieces.last().is_none_or(|(rows, _)| row - rows.start >= every) {
            pieces.push((row..row, position));
        }
        row += item.rows();
        if let Some((rows, _)) = pieces.last_mut() {
            rows.end = row;
        }
    }
}
