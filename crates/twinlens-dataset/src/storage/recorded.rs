//! Readers of recorded files, for Parquet and for the query engine.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};

use super::checksums::{BLOCK, Recorded, cut};
use super::store::ParquetFile;
use crate::error::{DatasetError, parquet_error};

/// A file of a dataset open for synchronous reading by ranges, verified where it is recorded.
#[derive(Debug, Clone)]
pub(crate) struct RangeFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    bytes: u64,
    recorded: Option<Arc<Recorded>>,
    /// The blocks of the last read: a header and the data behind it are read one after the other.
    last: Mutex<(u64, Bytes)>,
    /// Parquet turns errors into text: the damage that was found is kept here.
    damage: Mutex<Option<DatasetError>>,
}

impl RangeFile {
    pub(crate) fn new(file: File, recorded: Option<Arc<Recorded>>) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self(Arc::new(Inner { file, bytes, recorded, last: Mutex::default(), damage: Mutex::default() })))
    }

    /// The error of a reader of this file.
    pub(crate) fn error(&self, path: &Path, error: ParquetError) -> DatasetError {
        let damage = self.0.damage.lock().unwrap_or_else(PoisonError::into_inner).take();
        damage.unwrap_or_else(|| parquet_error(path, error))
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, ParquetError> {
        let inner = &self.0;
        if range.start > range.end || range.end > inner.bytes {
            return Err(ParquetError::EOF(format!("bytes {range:?} of a file of {} bytes", inner.bytes)));
        }
        let last = inner.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(bytes) = cut(std::slice::from_ref(&last), &range) {
            return Ok(bytes);
        }
        let blocks = inner.recorded.as_ref().map_or_else(|| range.clone(), |known| known.blocks(&range));
        if blocks.end < range.end {
            return Err(ParquetError::EOF(format!("bytes {range:?} end after byte {}", blocks.end)));
        }
        let mut bytes = vec![0; (blocks.end - blocks.start) as usize];
        inner.file.read_exact_at(&mut bytes, blocks.start).map_err(external)?;
        if let Some(recorded) = &inner.recorded
            && let Err(error) = recorded.verify(blocks.start, &bytes)
        {
            let text = error.to_string();
            *inner.damage.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return Err(ParquetError::General(text));
        }
        let read = (blocks.start, Bytes::from(bytes));
        let part = cut(std::slice::from_ref(&read), &range);
        // Only small pieces are worth keeping: large ones are whole pages.
        if read.1.len() as u64 <= 2 * BLOCK {
            *inner.last.lock().unwrap_or_else(PoisonError::into_inner) = read;
        }
        part.ok_or_else(|| ParquetError::EOF(format!("bytes {range:?}")))
    }
}

impl Length for RangeFile {
    fn len(&self) -> u64 {
        self.0.bytes
    }
}

impl ChunkReader for RangeFile {
    type T = RangeReader;

    fn get_read(&self, start: u64) -> Result<RangeReader, ParquetError> {
        Ok(RangeReader { file: self.clone(), next: start, piece: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.read(start..start.saturating_add(length as u64))
    }
}

/// Reads a [`RangeFile`] from a position on.
#[derive(Debug)]
pub(crate) struct RangeReader {
    file: RangeFile,
    next: u64,
    piece: Bytes,
}

impl Read for RangeReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let end = (self.next / BLOCK + 1).saturating_mul(BLOCK).min(self.file.0.bytes);
            if self.next >= end {
                return Ok(0);
            }
            self.piece = self.file.read(self.next..end).map_err(io::Error::other)?;
            self.next = end;
        }
        let length = to.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut to[..length]);
        Ok(length)
    }
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// A recorded Parquet file open for asynchronous reading.
pub(super) struct RecordedParquet {
    pub(super) file: ParquetFile,
    pub(super) recorded: Arc<Recorded>,
}

impl AsyncFileReader for RecordedParquet {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            let ranges = self.get_byte_ranges(vec![range]).await?;
            ranges.into_iter().next().ok_or_else(|| ParquetError::General("no bytes".into()))
        }
        .boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move {
            let blocks = self.recorded.joined_blocks(&ranges);
            let pieces = self.file.get_byte_ranges(blocks.clone()).await?;
            verified(&self.recorded, &blocks, pieces, &ranges).map_err(external)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let bytes = self.recorded.bytes();
            let reader = ParquetMetaDataReader::new().with_arrow_reader_options(options);
            Ok(Arc::new(reader.load_and_finish(self, bytes).await?))
        }
        .boxed()
    }
}

/// Verifies the `pieces` at `blocks` and cuts `ranges` out of them.
fn verified(
    recorded: &Recorded,
    blocks: &[Range<u64>],
    pieces: Vec<Bytes>,
    ranges: &[Range<u64>],
) -> Result<Vec<Bytes>, DatasetError> {
    let pieces: Vec<(u64, Bytes)> = blocks.iter().map(|range| range.start).zip(pieces).collect();
    for (start, bytes) in &pieces {
        recorded.verify(*start, bytes)?;
    }
    let part = |range| {
        cut(&pieces, range).ok_or_else(|| DatasetError::DamagedFile {
            path: recorded.path().into(),
            why: format!("bytes {range:?} are outside of its {} bytes", recorded.bytes()),
        })
    };
    ranges.iter().map(part).collect()
}

/// The recorded files of a dataset as a store for the query engine. It can only be read.
#[derive(Debug)]
pub(crate) struct RecordedStore {
    pub(crate) inner: Arc<dyn ObjectStore>,
    /// By their path below the dataset's folder.
    pub(crate) files: BTreeMap<Key, Arc<Recorded>>,
}

const NAME: &str = "recorded files";

/// Damage, with what to do about it: the engine turns some errors into text.
#[derive(Debug, thiserror::Error)]
#[error("{0}; {hint}", hint = .0.hint().unwrap_or_default())]
struct Damage(#[source] DatasetError);

fn failed(error: DatasetError) -> object_store::Error {
    object_store::Error::Generic { store: NAME, source: Box::new(Damage(error)) }
}

fn read_only() -> object_store::Error {
    object_store::Error::NotSupported { source: "recorded files are never changed".into() }
}

impl fmt::Display for RecordedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "recorded files of {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for RecordedStore {
    async fn get_opts(&self, key: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        let Some(recorded) = self.files.get(key).filter(|_| !options.head) else {
            let mut result = self.inner.get_opts(key, options).await?;
            // A store of a prefix answers with the whole path.
            result.meta.location = key.clone();
            return Ok(result);
        };
        let length = recorded.bytes();
        let range = match &options.range {
            None => 0..length,
            Some(GetRange::Bounded(range)) => range.start.min(length)..range.end.min(length),
            Some(GetRange::Offset(start)) => (*start).min(length)..length,
            Some(GetRange::Suffix(count)) => length.saturating_sub(*count)..length,
        };
        let blocks = recorded.blocks(&range);
        let options = GetOptions { range: Some(GetRange::Bounded(blocks.clone())), ..options };
        let result = self.inner.get_opts(key, options).await?;
        let meta = ObjectMeta { location: key.clone(), ..result.meta.clone() };
        let attributes = result.attributes.clone();
        let bytes = result.bytes().await?;
        let part =
            verified(recorded, &[blocks], vec![bytes], std::slice::from_ref(&range)).map_err(failed)?;
        let payload = GetResultPayload::Stream(Box::pin(futures::stream::iter(part.into_iter().map(Ok))));
        Ok(GetResult { payload, meta, range, attributes })
    }

    async fn get_ranges(&self, key: &Key, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        let Some(recorded) = self.files.get(key) else { return self.inner.get_ranges(key, ranges).await };
        let blocks = recorded.joined_blocks(ranges);
        let pieces = self.inner.get_ranges(key, &blocks).await?;
        verified(recorded, &blocks, pieces, ranges).map_err(failed)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn put_opts(&self, _: &Key, _: PutPayload, _: PutOptions) -> object_store::Result<PutResult> {
        Err(read_only())
    }

    async fn put_multipart_opts(
        &self,
        _: &Key,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(read_only())
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        Box::pin(futures::stream::iter([Err(read_only())]))
    }

    async fn copy_opts(&self, _: &Key, _: &Key, _: CopyOptions) -> object_store::Result<()> {
        Err(read_only())
    }
}
