//! Arrow files (including Feather 2) and streams.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::ipc::{root_as_footer, root_as_message};

use super::pages::{FREE_BYTES, MAX_RATIO};
use crate::error::DatasetError;
use crate::guard::catch_panic;
use crate::sniff::FileKind;

/// The largest metadata of a message, in bytes.
const MAX_METADATA: u64 = 64 << 20;
/// Bytes at the end of a file: the length of the footer, and the magic.
const TAIL: u64 = 10;

/// The batches of an Arrow file or stream in order.
pub struct ArrowBatches {
    path: PathBuf,
    reader: Reader,
    /// Of the file.
    length: u64,
}

enum Reader {
    File(FileReader<BufReader<File>>),
    Stream(StreamReader<BufReader<File>>),
}

impl ArrowBatches {
    /// Opens a file, of which all messages must be there.
    ///
    /// # Errors
    /// `WrongKind`, `DamagedInput`, or I/O errors with the path.
    pub fn open(path: &Path) -> Result<Self, DatasetError> {
        let io = |error| DatasetError::io(path, error);
        let mut file = File::open(path).map_err(io)?;
        let (kind, length) = FileKind::of_file(&mut file).map_err(io)?;
        let checked = match kind {
            FileKind::ArrowFile => check_file(&mut file, length),
            FileKind::ArrowStream => check_stream(&mut file, length),
            kind => {
                return Err(DatasetError::WrongKind { path: path.into(), kind, expected: "an Arrow file" });
            }
        };
        let damaged = |why| DatasetError::DamagedInput { path: path.into(), why };
        checked.map_err(io)?.map_err(damaged)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let reader = catch_panic(path.display(), || {
            let file = BufReader::new(file);
            let opened = match kind {
                FileKind::ArrowFile => FileReader::try_new(file, None).map(Reader::File),
                _ => StreamReader::try_new(file, None).map(Reader::Stream),
            };
            opened.map_err(|error| damaged(error.to_string()))
        })?;
        Ok(Self { path: path.into(), reader, length })
    }

    /// The schema of the file.
    pub fn schema(&self) -> SchemaRef {
        match &self.reader {
            Reader::File(reader) => reader.schema(),
            Reader::Stream(reader) => reader.schema(),
        }
    }
}

impl Iterator for ArrowBatches {
    type Item = Result<RecordBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { path, reader, length } = self;
        let damaged = |why: String| DatasetError::DamagedInput { path: path.clone(), why };
        let next = catch_panic(path.display(), || {
            let next: Option<Result<_, ArrowError>> = match reader {
                Reader::File(reader) => reader.next(),
                Reader::Stream(reader) => reader.next(),
            };
            next.transpose().map_err(|error| damaged(error.to_string()))
        });
        // Columns without buffers (of nulls, or none at all) may claim any number of rows.
        let fits = |batch: &RecordBatch| batch.num_rows() as u64 <= length.saturating_mul(8);
        let checked = next.and_then(|batch| match batch {
            Some(batch) if !fits(&batch) => {
                Err(damaged(format!("a batch claims {} rows, more than the file has bits", batch.num_rows())))
            }
            batch => Ok(batch),
        });
        checked.transpose()
    }
}

/// What is wrong with the lengths that a file claims.
type Checked = io::Result<Result<(), String>>;

/// Checks that the footer and all blocks are within the file.
fn check_file(file: &mut File, length: u64) -> Checked {
    let mut tail = [0; TAIL as usize];
    if length < 2 * TAIL {
        return Ok(Err("it ends within its header".into()));
    }
    file.seek(SeekFrom::Start(length - TAIL))?;
    file.read_exact(&mut tail)?;
    let [a, b, c, d, magic @ ..] = tail;
    if &magic != b"ARROW1" {
        return Ok(Err("it has no footer: it is cut off, or was not closed".into()));
    }
    let claimed = u64::try_from(i32::from_le_bytes([a, b, c, d])).unwrap_or(u64::MAX);
    if claimed > length - TAIL || claimed > MAX_METADATA {
        return Ok(Err(format!("its footer claims {claimed} bytes")));
    }
    file.seek(SeekFrom::Start(length - TAIL - claimed))?;
    let mut footer = vec![0; claimed as usize];
    file.read_exact(&mut footer)?;
    let footer = match root_as_footer(&footer) {
        Ok(footer) => footer,
        Err(error) => return Ok(Err(format!("its footer is damaged: {error}"))),
    };
    if footer.schema().is_none() {
        return Ok(Err("its footer has no schema".into()));
    }
    let mut input = BufReader::new(file);
    for block in footer.recordBatches().iter().chain(footer.dictionaries().iter()).flatten() {
        let parts = [block.offset(), i64::from(block.metaDataLength()), block.bodyLength()];
        let end = parts.iter().try_fold(0u64, |end, part| end.checked_add(u64::try_from(*part).ok()?));
        if end.is_none_or(|end| end > length) || block.metaDataLength() < 8 {
            return Ok(Err(format!("it has {length} bytes, but its footer claims a block at {parts:?}")));
        }
        if let Err(why) = check_message(&mut input, block.offset().max(0) as u64, length)? {
            return Ok(Err(why));
        }
    }
    Ok(Ok(()))
}

/// Checks that all messages are within the file.
fn check_stream(file: &mut File, length: u64) -> Checked {
    let mut input = BufReader::new(file);
    let mut at = 0;
    while at < length {
        match check_message(&mut input, at, length)? {
            Ok(Some(end)) => at = end,
            Ok(None) => break,
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(()))
}

/// Checks the message at a byte; returns where it ends, or `None` at the end marker.
fn check_message(
    input: &mut BufReader<&mut File>,
    at: u64,
    length: u64,
) -> io::Result<Result<Option<u64>, String>> {
    let mut prefix = [0; 8];
    if length - at < 8 {
        return Ok(Err("it ends within a message".into()));
    }
    seek(input, at)?;
    input.read_exact(&mut prefix)?;
    let [marker @ .., a, b, c, d] = prefix;
    // Before version 0.15 there was no marker.
    let (claimed, mut start) = match marker {
        [0xff, 0xff, 0xff, 0xff] => ([a, b, c, d], at + 8),
        old => (old, at + 4),
    };
    let claimed = u64::try_from(i32::from_le_bytes(claimed)).unwrap_or(u64::MAX);
    if claimed == 0 {
        return Ok(Ok(None));
    }
    if claimed > length - start || claimed > MAX_METADATA {
        return Ok(Err(format!("it has {length} bytes, but a message claims {claimed} at byte {start}")));
    }
    seek(input, start)?;
    let mut metadata = vec![0; claimed as usize];
    input.read_exact(&mut metadata)?;
    start += claimed;
    let message = match root_as_message(&metadata) {
        Ok(message) => message,
        Err(error) => return Ok(Err(format!("the message at byte {at} is damaged: {error}"))),
    };
    let body = u64::try_from(message.bodyLength()).unwrap_or(u64::MAX);
    if body > length - start {
        return Ok(Err(format!("it has {length} bytes, but a batch claims {body} at byte {start}")));
    }
    let batch = message.header_as_record_batch();
    let batch = batch.or_else(|| message.header_as_dictionary_batch().and_then(|batch| batch.data()));
    if let Some(batch) = batch.filter(|batch| batch.compression().is_some())
        && let Err(why) = check_compressed(input, batch, start..start + body)?
    {
        return Ok(Err(why));
    }
    Ok(Ok(Some(start + body)))
}

/// Checks what the compressed buffers of a batch claim to be without compression: each starts with
/// that length.
fn check_compressed(
    input: &mut BufReader<&mut File>,
    batch: arrow::ipc::RecordBatch<'_>,
    body: Range<u64>,
) -> Checked {
    for buffer in batch.buffers().iter().flatten() {
        let (offset, packed) = (u64::try_from(buffer.offset()), u64::try_from(buffer.length()));
        let (Ok(offset), Ok(packed)) = (offset, packed) else {
            return Ok(Err("a buffer has a negative place".into()));
        };
        if offset.saturating_add(packed) > body.end - body.start {
            return Ok(Err("a buffer is not within its batch".into()));
        }
        if packed < 8 {
            continue;
        }
        let mut claimed = [0; 8];
        seek(input, body.start + offset)?;
        input.read_exact(&mut claimed)?;
        // -1: not compressed.
        let claimed = i64::from_le_bytes(claimed);
        let is_explained = claimed <= i64::try_from(FREE_BYTES.max(packed * MAX_RATIO)).unwrap_or(i64::MAX);
        if claimed < -1 || !is_explained {
            return Ok(Err(format!("a buffer has {packed} bytes and claims {claimed} without compression")));
        }
    }
    Ok(Ok(()))
}

/// Seeks without losing the buffer where possible.
fn seek(input: &mut BufReader<&mut File>, at: u64) -> io::Result<()> {
    let now = input.stream_position()?;
    input.seek_relative(at as i64 - now as i64)
}
