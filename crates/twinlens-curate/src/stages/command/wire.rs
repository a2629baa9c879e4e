//! The wire: an Arrow IPC stream to the program, and one back from it.
//!
//! Answers are read message by message. A length in a message's header is checked against a limit
//! and allocates nothing by itself: memory grows with the bytes that arrive.

use std::collections::HashMap;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::buffer::Buffer;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::ipc::convert::fb_to_schema;
use datafusion::arrow::ipc::reader::read_record_batch;
use datafusion::arrow::ipc::{MessageHeader, root_as_message};

/// The largest metadata of a message, in bytes.
const MAX_METADATA: usize = 16 << 20;
/// The largest body of a message (the values of a batch), in bytes.
pub(super) const MAX_BODY: usize = 512 << 20;
/// Bytes that may be allocated before they arrive.
const AHEAD: usize = 8 << 20;

/// What is wrong with the bytes that a program wrote.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("its stdout ended in the middle of a message")]
    Truncated,
    #[error("its stdout is not an Arrow IPC stream: {0}")]
    NotArrow(String),
    #[error("a message claims {0} bytes, more than the limit of {MAX_BODY}: answer with smaller batches")]
    TooLarge(i64),
    #[error("its stdout cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Reads the batches of an IPC stream.
pub(super) struct BatchReader<R> {
    input: R,
    schema: Option<SchemaRef>,
}

impl<R: Read> BatchReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, schema: None }
    }

    /// The next batch; `None` at the end of the stream.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, WireError> {
        while let Some(message) = self.message()? {
            let decoded = catch_unwind(AssertUnwindSafe(|| self.decode(&message)));
            if let Some(batch) = decoded.unwrap_or_else(|_| Err(not_arrow("malformed metadata")))? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    fn message(&mut self) -> Result<Option<Message>, WireError> {
        let mut prefix = [0; 4];
        match read_up_to(&mut self.input, &mut prefix)? {
            0 => return Ok(None),
            4 => {}
            _ => return Err(WireError::Truncated),
        }
        if prefix != [0xff; 4] {
            return Err(not_arrow(format!(
                "it begins a message with {:?}",
                String::from_utf8_lossy(&prefix)
            )));
        }
        if read_up_to(&mut self.input, &mut prefix)? < 4 {
            return Err(WireError::Truncated);
        }
        let length = i32::from_le_bytes(prefix);
        if length == 0 {
            return Ok(None);
        }
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_METADATA);
        let length = length.ok_or_else(|| not_arrow("the length of a message's metadata is out of range"))?;
        let metadata = self.bytes(length)?;
        let body = root_as_message(&metadata).map_err(|error| not_arrow(error.to_string()))?.bodyLength();
        let body = match usize::try_from(body) {
            Ok(length) if length <= MAX_BODY => self.bytes(length)?,
            _ => return Err(WireError::TooLarge(body)),
        };
        Ok(Some(Message { metadata, body: Buffer::from_vec(body) }))
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>, WireError> {
        let mut bytes = Vec::with_capacity(length.min(AHEAD));
        let read = self.input.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        if read == length { Ok(bytes) } else { Err(WireError::Truncated) }
    }

    /// The batch of a message; `None` for the schema.
    fn decode(&mut self, message: &Message) -> Result<Option<RecordBatch>, WireError> {
        let invalid = |error: &dyn std::fmt::Display| not_arrow(error.to_string());
        let header = root_as_message(&message.metadata).map_err(|error| invalid(&error))?;
        if let (Some(schema), None) = (header.header_as_schema(), &self.schema) {
            self.schema = Some(Arc::new(fb_to_schema(schema)));
            return Ok(None);
        }
        let (Some(batch), Some(schema)) = (header.header_as_record_batch(), &self.schema) else {
            return Err(not_arrow(match header.header_type() {
                MessageHeader::DictionaryBatch => "dictionary-encoded columns are not supported".into(),
                MessageHeader::RecordBatch => "a batch comes before the schema".into(),
                other => format!("unexpected message: {}", other.variant_name().unwrap_or("unknown")),
            }));
        };
        if batch.compression().is_some() {
            return Err(not_arrow("compressed batches are not supported"));
        }
        let version = header.version();
        let batch = read_record_batch(&message.body, batch, schema.clone(), &HashMap::new(), None, &version);
        batch.map(Some).map_err(|error| invalid(&error))
    }
}

struct Message {
    metadata: Vec<u8>,
    body: Buffer,
}

fn not_arrow(reason: impl Into<String>) -> WireError {
    WireError::NotArrow(reason.into())
}

/// Fills `bytes` as far as the input reaches.
fn read_up_to(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match input.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{ArrayRef, Int32Array, StringArray};
    use datafusion::arrow::ipc::writer::StreamWriter;
    use proptest::prelude::*;

    fn batch(rows: i32) -> RecordBatch {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|row| row.to_string())));
        let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(0..rows));
        RecordBatch::try_from_iter([("text", texts), ("number", numbers)]).unwrap()
    }

    fn stream(batches: &[RecordBatch]) -> Vec<u8> {
        let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.into_inner().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<RecordBatch>, WireError> {
        let mut reader = BatchReader::new(bytes);
        std::iter::from_fn(|| reader.next().transpose()).collect()
    }

    #[test]
    fn batches_come_back_also_empty_ones() {
        let batches = [batch(3), batch(0), batch(5)];
        assert_eq!(read(&stream(&batches)).unwrap(), batches);
        assert_eq!(read(&[]).unwrap(), []);
    }

    #[test]
    fn lengths_are_not_believed() {
        let good = stream(&[batch(3)]);
        let message = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        assert!(message(&good[..good.len() - 9]).contains("middle of a message"));
        assert!(message(b"Traceback (most recent call last)").contains("begins a message with \"Trac\""));
        assert!(message(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).contains("out of range"));
        // The body length of the batch: a little-endian i64 in its metadata.
        let claimed = root_body_length(&good);
        let mut huge = good.clone();
        huge[claimed..claimed + 8].copy_from_slice(&(1i64 << 60).to_le_bytes());
        assert!(message(&huge).contains("more than the limit"), "{}", message(&huge));
        huge[claimed..claimed + 8].copy_from_slice(&(MAX_BODY as i64).to_le_bytes());
        assert!(message(&huge).contains("middle of a message"));
    }

    /// Where the body length of the second message (the first batch) is.
    fn root_body_length(stream: &[u8]) -> usize {
        let length = |at: usize| u32::from_le_bytes(stream[at + 4..at + 8].try_into().unwrap()) as usize;
        let (second, end) = (8 + length(0), 8 + length(0) + 8 + length(8 + length(0)));
        let body = root_as_message(&stream[second + 8..end]).unwrap().bodyLength().to_le_bytes();
        second + 8 + stream[second + 8..end].windows(8).position(|bytes| bytes == body).unwrap()
    }

    proptest! {
        #[test]
        fn damaged_streams_do_not_panic(at: prop::sample::Index, value: u8, length: prop::sample::Index) {
            let mut bytes = stream(&[batch(3), batch(2)]);
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = read(&bytes[..length.index(bytes.len() + 1)]);
        }
    }
}
