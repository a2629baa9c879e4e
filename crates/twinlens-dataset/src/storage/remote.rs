//! Files and folders of an object store.
//!
//! A file is one object, which appears whole. A log is a folder of numbered objects, each of one or
//! more lines; an object is put only if none is there yet, so a second writer of the same dataset
//! fails. After every [`SEGMENT_OBJECTS`] of them, their lines are put once more, together, as a
//! segment: a log of a hundred thousand objects is read in two hundred requests. Local copies and
//! files before their upload are in a scratch folder; a copy is used only if its length equals that
//! of the object.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::future::Future;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bytes::Bytes;
use datafusion::prelude::SessionContext;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::path::{Path as Key, PathPart};
use object_store::prefix::PrefixStore;
use object_store::{
    Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;
use url::Url;

use super::client::{Client, Credentials};
use super::local;
use super::ranges::RemoteFile;
use super::store::{Listing, Log, LogEnd, ParquetFile, Store};
use crate::error::DatasetError;
use crate::sniff::SNIFF_BYTES;

/// Concurrent requests for small objects.
const READ_TOGETHER: usize = 64;
/// Objects of a log whose lines are in one segment.
const SEGMENT_OBJECTS: usize = 512;
/// The folder of the segments in that of the log: its name comes after those of the objects.
const SEGMENTS: &str = "segments";
/// Files that one request deletes, in stores that have such a request.
const DELETED_TOGETHER: usize = 1000;
/// Bytes at the end of a Parquet file: the length of the metadata before them, and the magic.
const PARQUET_TAIL: u64 = 8;
/// Bytes of a part of an upload, and of its buffer.
const PART_BYTES: usize = 8 << 20;
/// How long a store that has failed may take for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// An open object store with its own thread, so that synchronous code can use it on any thread.
pub(super) struct RemoteStore {
    client: Arc<dyn ObjectStore>,
    credentials: Credentials,
    /// Whether the last request failed although the library had tried it for minutes.
    is_silent: Arc<AtomicBool>,
    /// The URL of the bucket.
    root: Url,
    scratch: PathBuf,
    runtime: Option<Runtime>,
}

impl Drop for RemoteStore {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The last owner may be async code, which must not block.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.root.as_str())
    }
}

impl RemoteStore {
    /// Opens the store of a URL.
    pub(super) fn parse(written: &str, scratch: &Path) -> Result<(Self, PathBuf), DatasetError> {
        let Client { store, root, key, credentials } = Client::open(written)?;
        let mut store = Self::new(store, root, scratch)?;
        store.credentials = credentials;
        let path = store.join(Path::new(""), key.as_ref());
        Ok((store, path))
    }

    pub(super) fn new(client: Arc<dyn ObjectStore>, root: Url, scratch: &Path) -> Result<Self, DatasetError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("object-store")
            .enable_all()
            .build()
            .map_err(|error| DatasetError::io(scratch, error))?;
        // Stores must not share copies.
        let name = hex::encode(&<sha2::Sha256 as sha2::Digest>::digest(root.as_str())[..8]);
        Ok(Self {
            client,
            credentials: Credentials::not_needed(),
            is_silent: Arc::default(),
            root,
            scratch: scratch.join(name),
            runtime: Some(runtime),
        })
    }

    /// The URL, for messages and for the query engine.
    fn url(&self, path: &Path) -> String {
        let root = self.root.as_str();
        format!("{}/{}", root.strip_suffix('/').unwrap_or(root), path.display())
    }

    fn put(&self, path: &Path, content: &[u8], mode: PutMode) -> Result<(), DatasetError> {
        let (client, key, payload) = (self.client.clone(), key(path), PutPayload::from(content.to_vec()));
        let options = PutOptions { mode, ..PutOptions::default() };
        self.wait(path, async move { client.put_opts(&key, payload, options).await.map(|_| ()) })
    }

    fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, DatasetError> {
        let (client, key) = (self.client.clone(), key(path));
        let options = GetOptions { head: true, ..GetOptions::default() };
        self.wait(
            path,
            async move { optional(client.get_opts(&key, options).await.map(|result| result.meta)) },
        )
    }

    /// As [`Self::head`], of a file that must be there.
    fn existing(&self, path: &Path) -> Result<ObjectMeta, DatasetError> {
        let missing =
            || DatasetError::DamagedFile { path: self.display_path(path), why: "it is missing".into() };
        self.head(path)?.ok_or_else(missing)
    }

    fn range(&self, path: &Path, range: Range<u64>) -> Result<Vec<u8>, DatasetError> {
        let (client, key) = (self.client.clone(), key(path));
        self.wait(path, async move { Ok(client.get_range(&key, range).await?.to_vec()) })
    }

    fn delete_keys(&self, path: &Path, keys: Vec<Key>) -> Result<(), DatasetError> {
        let client = self.client.clone();
        self.wait(path, async move {
            let keys = futures::stream::iter(keys.into_iter().map(Ok)).boxed();
            let mut deleted = client.delete_stream(keys);
            while let Some(one) = deleted.next().await {
                optional(one)?;
            }
            Ok(())
        })
    }

    /// The segments of a log, from the first on.
    fn log_segments(&self, path: &Path) -> Result<Vec<Bytes>, DatasetError> {
        let mut segments: Vec<Bytes> = Vec::new();
        // Most logs have none.
        let mut asked = 1;
        loop {
            let (client, key, from) = (self.client.clone(), key(path), segments.len());
            let found: Vec<Option<Bytes>> = self.wait(path, async move {
                let get = |number: usize| {
                    let (client, key) =
                        (client.clone(), segment_name(number).split('/').fold(key.clone(), Key::join));
                    async move {
                        match optional(client.get_opts(&key, GetOptions::default()).await)? {
                            Some(result) => Ok(Some(result.bytes().await?)),
                            None => Ok(None),
                        }
                    }
                };
                let numbers = futures::stream::iter(from..from + asked);
                numbers.map(get).buffered(READ_TOGETHER).try_collect().await
            })?;
            segments.extend(found.into_iter().map_while(|segment| segment));
            if segments.len() < from + asked {
                return Ok(segments);
            }
            asked = READ_TOGETHER;
        }
    }

    /// The names of the objects of a log from number `first` on.
    fn object_names(&self, path: &Path, first: usize) -> Result<Vec<String>, DatasetError> {
        let before = first.checked_sub(1).map(object_name).unwrap_or_default();
        let names = self.list_after(path, &before)?;
        for (number, name) in (first..).zip(&names) {
            if *name != object_name(number) {
                return Err(DatasetError::DamagedManifest {
                    path: self.display_path(path),
                    line: number + 1,
                    why: format!("{} is missing", object_name(number)),
                });
            }
        }
        Ok(names)
    }

    /// Runs a request on the thread of the store and waits for it; the caller's runtime, if any, is
    /// not entered again. The library tries a request for minutes; after one that failed, others do
    /// so only once the store answers again: what a failure leads to ends soon.
    fn wait<T, F>(&self, path: &Path, work: F) -> Result<T, DatasetError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let (send, receive) = sync_channel(1);
        if let Some(runtime) = &self.runtime {
            let (client, credentials) = (self.client.clone(), self.credentials.clone());
            let (is_silent, key) = (self.is_silent.clone(), key(path));
            runtime.spawn(async move {
                let answers = match is_silent.load(Ordering::Relaxed) {
                    true => answers(client.as_ref(), &key).await,
                    false => Ok(()),
                };
                let done = match answers {
                    Ok(()) => work.await,
                    Err(error) => Err(error),
                };
                let has_failed = matches!(done, Err(Error::Generic { .. }));
                is_silent.store(has_failed, Ordering::Relaxed);
                let lacks_credentials = has_failed && credentials.are_missing().await;
                // The caller may be gone.
                let _ = send.send((done, lacks_credentials));
            });
        }
        let path = || self.display_path(path);
        match receive.recv() {
            Ok((Ok(done), _)) => Ok(done),
            Ok((Err(source), true)) => Err(DatasetError::NoCredentials { path: path(), source }),
            Ok((Err(source), false)) => Err(DatasetError::Store { path: path(), source }),
            Err(_) => {
                Err(DatasetError::Protocol(format!("{}: the store's thread is gone", path().display())))
            }
        }
    }
}

/// Fails if a store does not answer soon.
async fn answers(client: &dyn ObjectStore, key: &Key) -> Result<(), Error> {
    if key.as_ref().is_empty() {
        // The bucket itself is not an object.
        return Ok(());
    }
    match tokio::time::timeout(ANSWER_WAIT, client.head(key)).await {
        Ok(Err(error @ Error::Generic { .. })) => Err(error),
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Generic { store: "object store", source: "it does not answer any more".into() }),
    }
}

impl Store for RemoteStore {
    fn join(&self, folder: &Path, name: &str) -> PathBuf {
        let names = name.split('/').filter(|part| !part.is_empty()).map(PathPart::from);
        let joined: Key = key(folder).parts().chain(names).collect();
        joined.to_string().into()
    }

    fn display_path(&self, path: &Path) -> PathBuf {
        self.url(path).into()
    }

    fn is_local(&self) -> bool {
        false
    }

    fn local_path(&self, path: &Path) -> PathBuf {
        self.scratch.join(path)
    }

    fn stat(&self, path: &Path) -> Result<Option<(u64, String)>, DatasetError> {
        Ok(self.head(path)?.map(|meta| (meta.size, version(&meta))))
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, DatasetError> {
        let (client, key) = (self.client.clone(), key(path));
        self.wait(path, async move {
            match optional(client.get_opts(&key, GetOptions::default()).await)? {
                Some(result) => Ok(Some(result.bytes().await?.to_vec())),
                None => Ok(None),
            }
        })
    }

    fn read_all(&self, folder: &Path, names: Vec<String>) -> Result<Vec<Bytes>, DatasetError> {
        let (client, key) = (self.client.clone(), key(folder));
        self.wait(folder, async move {
            let get = |name: String| {
                let (client, key) = (client.clone(), key.clone().join(name));
                async move { client.get_opts(&key, GetOptions::default()).await?.bytes().await }
            };
            futures::stream::iter(names).map(get).buffered(READ_TOGETHER).try_collect().await
        })
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), DatasetError> {
        self.put(path, content, PutMode::Overwrite)
    }

    fn create(&self, path: &Path, content: &[u8]) -> Result<bool, DatasetError> {
        match self.put(path, content, PutMode::Create) {
            Ok(()) => Ok(true),
            Err(DatasetError::Store { source: Error::AlreadyExists { .. }, .. }) => {
                Ok(self.read(path)?.as_deref() == Some(content))
            }
            Err(error) => Err(error),
        }
    }

    fn list(&self, folder: &Path) -> Result<Listing, DatasetError> {
        let (client, key) = (self.client.clone(), key(folder));
        let mut listing = self.wait(folder, async move {
            let listed = client.list_with_delimiter(Some(&key)).await?;
            let name = |key: Key| key.filename().map(ToString::to_string);
            Ok(Listing {
                folders: listed.common_prefixes.into_iter().filter_map(name).collect(),
                files: listed.objects.into_iter().filter_map(|meta| name(meta.location)).collect(),
            })
        })?;
        listing.folders.sort();
        listing.files.sort();
        Ok(listing)
    }

    fn list_after(&self, folder: &Path, name: &str) -> Result<Vec<String>, DatasetError> {
        let (client, key, offset) = (self.client.clone(), key(folder), key(&self.join(folder, name)));
        let mut names = self.wait(folder, async move {
            let name = |meta: ObjectMeta| {
                let mut parts = meta.location.prefix_match(&key)?;
                let name = parts.next()?.as_ref().to_string();
                // The files of subdirectories are not its own.
                parts.next().is_none().then_some(name)
            };
            let listed: Vec<ObjectMeta> = client.list_with_offset(Some(&key), &offset).try_collect().await?;
            Ok(listed.into_iter().filter_map(name).collect::<Vec<_>>())
        })?;
        names.sort();
        Ok(names)
    }

    fn stats(&self, folder: &Path) -> Result<BTreeMap<String, (u64, String)>, DatasetError> {
        let (client, key) = (self.client.clone(), key(folder));
        self.wait(folder, async move {
            let listed = client.list_with_delimiter(Some(&key)).await?.objects;
            let named =
                |meta: ObjectMeta| Some((meta.location.filename()?.to_string(), (meta.size, version(&meta))));
            Ok(listed.into_iter().filter_map(named).collect())
        })
    }

    fn files(&self, folder: &Path, except: &str) -> Result<BTreeMap<String, u64>, DatasetError> {
        let (client, key, except) = (self.client.clone(), key(folder), format!("{except}/"));
        self.wait(folder, async move {
            let within = key.clone();
            let name = move |meta: ObjectMeta| {
                let parts = meta.location.prefix_match(&within)?.map(|part| part.as_ref().to_string());
                Some((parts.collect::<Vec<_>>().join("/"), meta.size))
            };
            let listed: Vec<ObjectMeta> = client.list(Some(&key)).try_collect().await?;
            Ok(listed.into_iter().filter_map(name).filter(|(name, _)| !name.starts_with(&except)).collect())
        })
    }

    fn own_files(&self, folder: &Path, except: &str) -> Result<BTreeSet<String>, DatasetError> {
        // There are no links.
        Ok(self.files(folder, except)?.into_keys().collect())
    }

    fn move_folder(&self, from: &Path, to: &Path, log: &str) -> Result<(), DatasetError> {
        // The lines of the log last and in order: until the last is there, the copy is a part.
        let mut names: Vec<String> = self.files(from, "")?.into_keys().collect();
        names.sort_by_key(|name| {
            (name.strip_prefix(log).is_some_and(|rest| rest.starts_with('/')), name.clone())
        });
        for name in names {
            let (client, source, target) =
                (self.client.clone(), key(&self.join(from, &name)), key(&self.join(to, &name)));
            self.wait(from, async move { client.copy(&source, &target).await })?;
        }
        let (source, target) = (self.local_path(from), self.local_path(to));
        if source.exists() {
            local::remove_dir(&target)?;
            local::move_folder(&source, &target)?;
        }
        self.delete_folder(from, log)
    }

    fn delete_folder(&self, folder: &Path, log: &str) -> Result<(), DatasetError> {
        // First the log, from the last segment to the first object: until it is empty, it stays
        // valid.
        let is_of_log = |name: &String| name.strip_prefix(log).is_some_and(|rest| rest.starts_with('/'));
        let (logged, others): (Vec<_>, Vec<_>) = self.files(folder, "")?.into_keys().partition(is_of_log);
        logged.iter().rev().try_for_each(|name| self.delete(&self.join(folder, name)))?;
        self.delete_all(folder, others)?;
        local::delete_folder(&self.local_path(folder), log)
    }

    fn delete(&self, path: &Path) -> Result<(), DatasetError> {
        self.delete_keys(path, vec![key(path)])
    }

    fn delete_all(&self, folder: &Path, names: Vec<String>) -> Result<(), DatasetError> {
        for names in names.chunks(DELETED_TOGETHER) {
            self.delete_keys(folder, names.iter().map(|name| key(&self.join(folder, name))).collect())?;
        }
        Ok(())
    }

    fn publish(&self, path: &Path) -> Result<(), DatasetError> {
        let from = local::unfinished(&self.local_path(path));
        let (client, key, local) = (self.client.clone(), key(path), from.clone());
        self.wait(path, async move {
            let fail = |source: std::io::Error| Error::Generic { store: "upload", source: Box::new(source) };
            let mut file = tokio::fs::File::open(&local).await.map_err(fail)?;
            let mut upload = BufWriter::with_capacity(client, key, PART_BYTES).with_max_concurrency(2);
            if let Err(error) = tokio::io::copy(&mut file, &mut upload).await {
                // The parts of an abandoned upload would stay in the store, invisible and billed.
                let _ = upload.abort().await;
                return Err(fail(error));
            }
            upload.shutdown().await.map_err(fail)
        })?;
        local::remove_file(&from)
    }

    fn local_copy(&self, path: &Path) -> Result<PathBuf, DatasetError> {
        let copy = self.local_path(path);
        let meta = self.existing(path)?;
        if fs::metadata(&copy).is_ok_and(|copy| copy.len() == meta.size) {
            return Ok(copy);
        }
        if let Some(folder) = copy.parent() {
            local::create_dir(folder)?;
        }
        let (client, key, to) = (self.client.clone(), key(path), local::unfinished(&copy));
        self.wait(path, async move {
            let fail =
                |source: std::io::Error| Error::Generic { store: "download", source: Box::new(source) };
            let mut file = tokio::fs::File::create(&to).await.map_err(fail)?;
            let mut bytes = client.get_opts(&key, GetOptions::default()).await?.into_stream();
            while let Some(piece) = bytes.try_next().await? {
                file.write_all(&piece).await.map_err(fail)?;
            }
            file.flush().await.map_err(fail)
        })?;
        local::publish(&copy)?;
        Ok(copy)
    }

    fn parquet_ends(&self, path: &Path) -> Result<PathBuf, DatasetError> {
        let length = self.existing(path)?.size;
        let start = self.range(path, 0..length.min(SNIFF_BYTES as u64))?;
        let mut end_at = length.saturating_sub(PARQUET_TAIL);
        let mut end = self.range(path, end_at..length)?;
        if let [a, b, c, d, ..] = end[..]
            && let Some(from) = end_at.checked_sub(u32::from_le_bytes([a, b, c, d]).into())
        {
            (end_at, end) = (from, self.range(path, from..length)?);
        }
        let copy = self.scratch.join("ends").join(path);
        if let Some(folder) = copy.parent() {
            local::create_dir(folder)?;
        }
        let io = |error| DatasetError::io(&copy, error);
        let mut file = fs::File::create(local::unfinished(&copy)).map_err(io)?;
        // Sparse between the ends.
        file.set_len(length).map_err(io)?;
        file.write_all(&start).map_err(io)?;
        file.seek(SeekFrom::Start(end_at)).map_err(io)?;
        file.write_all(&end).map_err(io)?;
        drop(file);
        local::publish(&copy)?;
        Ok(copy)
    }

    fn has_log(&self, path: &Path) -> Result<bool, DatasetError> {
        // The first object is deleted last.
        Ok(self.head(&self.join(path, &object_name(0)))?.is_some())
    }

    fn read_log(&self, path: &Path) -> Result<Option<Log>, DatasetError> {
        let segments = self.log_segments(path)?;
        let first = segments.len() * SEGMENT_OBJECTS;
        let names = match self.object_names(path, first) {
            // A listing during an append may lack an object and have the next one.
            Err(DatasetError::DamagedManifest { .. }) => self.object_names(path, first)?,
            other => other?,
        };
        let objects = self.read_all(path, names)?;
        let mut end = LogEnd { objects: first + objects.len(), ..LogEnd::default() };
        let mut bytes = segments.concat();
        for (number, chunk) in objects.chunks(SEGMENT_OBJECTS).enumerate() {
            let lines = chunk.concat();
            bytes.extend_from_slice(&lines);
            if chunk.len() == SEGMENT_OBJECTS {
                end.due.push((segments.len() + number, lines));
            } else {
                end.tail = lines;
            }
        }
        Ok((end.objects > 0).then_some(Log { bytes, end }))
    }

    fn append_log(&self, path: &Path, end: &mut LogEnd, lines: &[u8]) -> Result<(), DatasetError> {
        for (number, lines) in std::mem::take(&mut end.due) {
            self.write(&self.join(path, &segment_name(number)), &lines)?;
        }
        if !self.create(&self.join(path, &object_name(end.objects)), lines)? {
            return Err(DatasetError::Locked { path: self.display_path(path) });
        }
        end.objects += 1;
        end.tail.extend_from_slice(lines);
        if end.objects.is_multiple_of(SEGMENT_OBJECTS) {
            let number = end.objects / SEGMENT_OBJECTS - 1;
            self.write(&self.join(path, &segment_name(number)), &std::mem::take(&mut end.tail))?;
        }
        Ok(())
    }

    fn truncate_log(&self, _path: &Path, _length: u64) -> Result<(), DatasetError> {
        // Lines are objects, which are never torn.
        Ok(())
    }

    fn open_parquet(&self, path: &Path, bytes: u64) -> BoxFuture<'static, Result<ParquetFile, DatasetError>> {
        let file = RemoteFile::new(self.client.clone(), key(path), bytes);
        async move { Ok(Box::new(file) as ParquetFile) }.boxed()
    }

    fn object_store(&self, folder: &Path) -> Result<Arc<dyn ObjectStore>, DatasetError> {
        Ok(Arc::new(PrefixStore::new(self.client.clone(), key(folder))))
    }

    fn register(&self, path: &Path, session: &SessionContext) -> Result<String, DatasetError> {
        session.register_object_store(&self.root, self.client.clone());
        Ok(self.url(path))
    }
}

/// What changes when an object is written.
fn version(meta: &ObjectMeta) -> String {
    meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_rfc3339())
}

/// The key of a path, which is already encoded.
fn key(path: &Path) -> Key {
    let text = path.to_string_lossy();
    Key::parse(&text).unwrap_or_else(|_| Key::from(text.as_ref()))
}

/// The name of an object of a log; names sort like their numbers.
fn object_name(number: usize) -> String {
    format!("{number:08}.json")
}

/// The name of a segment of a log, in the folder of the log.
fn segment_name(number: usize) -> String {
    format!("{SEGMENTS}/{number:06}.jsonl")
}

fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
