//! Reads ranges of Parquet files in an object store.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStore};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

/// Reads one Parquet file of known length.
pub(super) struct RemoteFile {
    client: Arc<dyn ObjectStore>,
    key: Key,
    bytes: u64,
}

impl RemoteFile {
    /// A reader for a file of `bytes` bytes.
    pub(super) fn new(client: Arc<dyn ObjectStore>, key: Key, bytes: u64) -> Self {
        Self { client, key, bytes }
    }
}

impl AsyncFileReader for RemoteFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        let (client, key) = (self.client.clone(), self.key.clone());
        let external = |error| ParquetError::External(Box::new(error));
        async move {
            let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
            let result = client.get_opts(&key, options).await.map_err(external)?;
            result.bytes().await.map_err(external)
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let (client, key) = (self.client.clone(), self.key.clone());
        async move {
            // The store merges adjacent ranges into one request.
            client.get_ranges(&key, &ranges).await.map_err(|error| ParquetError::External(Box::new(error)))
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        async move {
            let bytes = self.bytes;
            let reader = ParquetMetaDataReader::new().with_arrow_reader_options(options);
            Ok(Arc::new(reader.load_and_finish(self, bytes).await?))
        }
        .boxed()
    }
}
