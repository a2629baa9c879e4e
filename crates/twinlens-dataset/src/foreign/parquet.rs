//! Parquet files: what they claim is checked when they are opened.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReader};
use parquet::basic::Type;
use parquet::column::page::{Page, PageReader};
use parquet::column::reader::{ColumnReader, get_column_reader};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::serialized_reader::SerializedPageReader;

use super::pages::{self, BATCH_ROWS, Expansion, MAX_BATCH_BYTES};
use super::thrift::Walker;
use crate::error::{DatasetError, parquet_error};
use crate::guard::catch_panic;
use crate::sniff::FileKind;

/// Bytes at the end of a file: the length of the metadata, and the magic.
const TAIL: u64 = 8;
/// Bytes that may be decoded at once to look at them.
const PROBE_BYTES: u64 = 64 << 20;

/// Opens a Parquet file that others wrote.
///
/// # Errors
/// `WrongKind`, `DamagedInput`, `Parquet`, or I/O errors with the path.
pub fn open_parquet(path: &Path) -> Result<(File, ArrowReaderMetadata), DatasetError> {
    let io = |error| DatasetError::io(path, error);
    let damaged = |why| DatasetError::DamagedInput { path: path.into(), why };
    let mut file = File::open(path).map_err(io)?;
    let (kind, length) = FileKind::of_file(&mut file).map_err(io)?;
    if kind != FileKind::Parquet {
        return Err(DatasetError::WrongKind { path: path.into(), kind, expected: "a Parquet file" });
    }
    check_metadata(&mut file, length).map_err(io)?.map_err(damaged)?;
    let metadata = catch_panic(path.display(), || {
        ArrowReaderMetadata::load(&file, Default::default()).map_err(|error| parquet_error(path, error))
    })?;
    for (group, chunk) in chunks(metadata.metadata()) {
        pages::check_range(length, chunk).map_err(|why| damaged(in_column(group, chunk, &why)))?;
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    Ok((file, metadata))
}

/// Checks that the pages of a file can be read in memory that its size explains: reads the header
/// of each, and the dictionaries.
///
/// # Errors
/// `DamagedInput`, `Parquet`, or I/O errors with the path.
pub fn check_pages(path: &Path, file: &File, metadata: &ParquetMetaData) -> Result<(), DatasetError> {
    let io = |error| DatasetError::io(path, error);
    let damaged = |why| DatasetError::DamagedInput { path: path.into(), why };
    let file = file.try_clone().map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    for (group, chunk) in chunks(metadata) {
        let in_column = |why: String| damaged(in_column(group, chunk, &why));
        pages::check_range(length, chunk).map_err(in_column)?;
        let expansion = pages::check(&file, chunk).map_err(io)?.map_err(in_column)?;
        if may_expand(chunk, &expansion) {
            let rows = metadata.row_group(group).num_rows().max(0) as usize;
            let pages = || SerializedPageReader::new(Arc::new(file.try_clone()?), chunk, rows, None);
            let measured = catch_panic(path.display(), || {
                measure_values(chunk, &pages, &expansion).map_err(|error| parquet_error(path, error))
            })?;
            measured.map_err(in_column)?;
        }
    }
    Ok(())
}

/// The column chunks of a file, each with the number of its row group.
fn chunks(metadata: &ParquetMetaData) -> impl Iterator<Item = (usize, &ColumnChunkMetaData)> {
    let groups = metadata.row_groups().iter().enumerate();
    groups.flat_map(|(number, group)| group.columns().iter().map(move |chunk| (number, chunk)))
}

fn in_column(group: usize, chunk: &ColumnChunkMetaData, why: &str) -> String {
    format!("column `{}`, row group {group}: {why}", chunk.column_path().string())
}

/// Checks that the metadata at the end are there, and claim no more than they have.
fn check_metadata(file: &mut File, length: u64) -> io::Result<Result<(), String>> {
    let mut tail = [0; TAIL as usize];
    if length < 4 + TAIL {
        return Ok(Err("it ends within its header".into()));
    }
    file.seek(SeekFrom::Start(length - TAIL))?;
    file.read_exact(&mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    let claimed = u64::from(u32::from_le_bytes([a, b, c, d]));
    if &magic != b"PAR1" {
        return Ok(Err("it has no metadata at its end: it is cut off".into()));
    }
    if claimed > length - 4 - TAIL {
        return Ok(Err(format!("it has {length} bytes, but its metadata claim {claimed}")));
    }
    file.seek(SeekFrom::Start(length - TAIL - claimed))?;
    let mut metadata = vec![0; claimed as usize];
    file.read_exact(&mut metadata)?;
    Ok(Walker::new(&metadata).skip_struct().map_err(|_| "its metadata are damaged".to_string()))
}

/// Whether the values of a chunk may take more memory than the bytes of its pages.
fn may_expand(chunk: &ColumnChunkMetaData, expansion: &Expansion) -> bool {
    let is_bytes = matches!(chunk.column_type(), Type::BYTE_ARRAY | Type::FIXED_LEN_BYTE_ARRAY);
    is_bytes && (expansion.from_dictionary > 0 || expansion.from_deltas > 0)
}

/// Opens the pages of a column.
type OpenPages<'a> = &'a dyn Fn() -> Result<SerializedPageReader<File>, ParquetError>;

/// Decodes values, a few at a time, until it is certain that no batch is too large.
fn measure_values(
    chunk: &ColumnChunkMetaData,
    pages: OpenPages<'_>,
    expansion: &Expansion,
) -> Result<Result<(), String>, ParquetError> {
    let mut longest = if expansion.from_deltas > 0 { expansion.delta_page } else { 0 };
    if expansion.from_dictionary > 0 {
        longest = longest.max(longest_in_dictionary(chunk, pages)?);
    }
    let repeated = (expansion.from_dictionary + expansion.from_deltas).min(BATCH_ROWS);
    if repeated.saturating_mul(longest) <= MAX_BATCH_BYTES {
        return Ok(Ok(()));
    }
    let reader = get_column_reader(chunk.column_descr_ptr(), Box::new(pages()?));
    let ColumnReader::ByteArrayColumnReader(mut values) = reader else {
        return Ok(Err(format!("{repeated} rows repeat values of {longest} bytes")));
    };
    let step = (PROBE_BYTES / longest.max(1)).clamp(1, BATCH_ROWS);
    loop {
        let (mut rows, mut bytes) = (0, 0);
        while rows < BATCH_ROWS {
            let (mut levels, mut repeats, mut read) = (Vec::new(), Vec::new(), Vec::new());
            let step = step.min(BATCH_ROWS - rows) as usize;
            let (records, ..) =
                values.read_records(step, Some(&mut levels), Some(&mut repeats), &mut read)?;
            if records == 0 {
                return Ok(Ok(()));
            }
            rows += records as u64;
            bytes += read.iter().map(|value| value.len() as u64).sum::<u64>();
            if bytes > MAX_BATCH_BYTES {
                return Ok(Err(format!(
                    "{rows} rows repeat values of up to {longest} bytes: {bytes} bytes in memory"
                )));
            }
        }
    }
}

/// The length of the longest value in the dictionary of a column; 0 if it has none.
fn longest_in_dictionary(chunk: &ColumnChunkMetaData, pages: OpenPages<'_>) -> Result<u64, ParquetError> {
    if chunk.column_type() == Type::FIXED_LEN_BYTE_ARRAY {
        return Ok(chunk.column_descr().type_length().max(0) as u64);
    }
    let mut pages = pages()?;
    let Some(Page::DictionaryPage { buf, .. }) = pages.get_next_page()? else { return Ok(0) };
    // Values are a length of four bytes, and the bytes.
    let (mut rest, mut longest) = (&buf[..], 0);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        longest = longest.max(length as u64);
        rest = after.get(length..).unwrap_or_default();
    }
    Ok(longest)
}

/// Batches of a Parquet file; a panic of the reader is an error.
pub struct ParquetBatches {
    path: PathBuf,
    reader: ParquetRecordBatchReader,
}

impl ParquetBatches {
    /// Reads the batches of `reader`; errors name `path`.
    pub fn new(path: &Path, reader: ParquetRecordBatchReader) -> Self {
        Self { path: path.into(), reader }
    }
}

impl Iterator for ParquetBatches {
    type Item = Result<RecordBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { path, reader } = self;
        catch_panic(path.display(), || {
            reader.next().transpose().map_err(|error| parquet_error(path, error.into()))
        })
        .transpose()
    }
}
