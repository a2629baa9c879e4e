//! Arrow files (including Feather 2) and streams.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::ipc::{root_as_footer, root_as_message};

use super::measure;
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
        let (kind, length) = measure(&mut file).map_err(io)?;
        let checked = match kind {
            FileKind::ArrowFile => check_file(&mut file, length),
            FileKind::ArrowStream => check_stream(&mut BufReader::new(&mut file), length),
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
    for block in footer.recordBatches().iter().chain(footer.dictionaries().iter()).flatten() {
        let parts = [block.offset(), i64::from(block.metaDataLength()), block.bodyLength()];
        let end = parts.iter().try_fold(0u64, |end, part| end.checked_add(u64::try_from(*part).ok()?));
        if end.is_none_or(|end| end > length) || block.metaDataLength() < 8 {
            return Ok(Err(format!("it has {length} bytes, but its footer claims a block at {parts:?}")));
        }
    }
    Ok(Ok(()))
}

/// Checks that all messages are within the file.
fn check_stream<R: Read + Seek>(input: &mut BufReader<R>, length: u64) -> Checked {
    let mut at = 0;
    while length - at >= 8 {
        let mut prefix = [0; 8];
        input.read_exact(&mut prefix)?;
        at += 8;
        let [marker @ .., a, b, c, d] = prefix;
        if marker != [0xff; 4] {
            return Ok(Err(format!("there is no message at byte {}", at - 8)));
        }
        let claimed = u64::try_from(i32::from_le_bytes([a, b, c, d])).unwrap_or(u64::MAX);
        if claimed == 0 {
            return Ok(Ok(()));
        }
        if claimed > length - at || claimed > MAX_METADATA {
            return Ok(Err(format!("it has {length} bytes, but a message claims {claimed} at byte {at}")));
        }
        let mut metadata = vec![0; claimed as usize];
        input.read_exact(&mut metadata)?;
        at += claimed;
        let body = match root_as_message(&metadata) {
            Ok(message) => u64::try_from(message.bodyLength()).unwrap_or(u64::MAX),
            Err(error) => return Ok(Err(format!("the message before byte {at} is damaged: {error}"))),
        };
        if body > length - at {
            return Ok(Err(format!("it has {length} bytes, but a batch claims {body} at byte {at}")));
        }
        at += body;
        input.seek_relative(body as i64)?;
    }
    Ok(if at == length { Ok(()) } else { Err("it ends within a message".into()) })
}
