//! Input files named by options: local paths relative to the pipeline file, or URLs of object
//! stores, both with patterns.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use datafusion::arrow::datatypes::SchemaRef;
use sha2::{Digest, Sha256};
use twinlens_dataset::samples::is_run_directory;
use twinlens_dataset::storage::{Location, is_url, local};
use twinlens_dataset::{Dataset, FileEntry, MAIN, manifest};

use crate::error::RunError;
use crate::hub::{Hub, Layout, is_hub_name};
use crate::patterns;

/// Resolves the paths, URLs and `hf://` names of options.
#[derive(Debug, Clone)]
pub struct Files {
    /// The folder of the pipeline file.
    pub base: PathBuf,
    /// A local folder for copies of remote files.
    pub scratch: PathBuf,
    /// Resolves `hf://` names.
    pub hub: Hub,
}

impl Files {
    /// Files beside a pipeline file in `folder`, with copies below it, and no hub but the default.
    pub fn in_folder(folder: &Path) -> Self {
        Self { base: folder.into(), scratch: folder.join("scratch"), hub: Hub::default() }
    }

    /// The location of a path or URL.
    pub fn location(&self, written: &str) -> Result<Location, RunError> {
        Ok(Location::parse(written, &self.base, &self.scratch)?)
    }

    /// The files that a path, URL or pattern names; the matches of a pattern and the files below a
    /// directory are sorted.
    ///
    /// # Errors
    /// A user error if there is none.
    pub fn expand(&self, written: &str) -> Result<Vec<Location>, RunError> {
        if is_hub_name(written) {
            return Ok(self.hub.files(written)?.into_iter().map(Location::from).collect());
        }
        let mut files = Vec::new();
        for name in patterns::expand_braces(written)? {
            files.extend(self.expand_one(&name)?);
        }
        Ok(files)
    }

    fn expand_one(&self, written: &str) -> Result<Vec<Location>, RunError> {
        if !patterns::has_wildcards(written) {
            let location = self.location(written.trim_end_matches('/'))?;
            // A dataset is one input, whatever its files are.
            let is_directory = location.as_local().is_some_and(Path::is_dir) || written.ends_with('/');
            if is_directory && !manifest::exists(&location)? {
                let files = patterns::all_below(&location)?;
                return if files.is_empty() { Err(no_file(&location)) } else { Ok(files) };
            }
            if is_directory || location.exists()? {
                return Ok(vec![location]);
            }
            let hint = if is_url(written) {
                "check the URL and the settings of the store in the environment".into()
            } else {
                format!("`{written}` is relative to the folder of the pipeline file")
            };
            return Err(RunError::user_with_hint(format!("{location} does not exist"), hint));
        }
        // The directories before the first wildcard.
        let wildcard = written.find(['*', '?']).unwrap_or_default();
        let start = written[..wildcard].rfind('/').map_or(0, |slash| slash + 1);
        let folder = match &written[..start] {
            "" => Location::from(&self.base),
            "/" => Location::from(Path::new("/")),
            folder => self.location(folder.trim_end_matches('/'))?,
        };
        let files = patterns::matching(&folder, &written[start..])?;
        if files.is_empty() { Err(no_file(&folder.join(&written[start..]))) } else { Ok(files) }
    }

    /// Checks that a file that a stage declared is there: a path, URL or pattern, or a local folder
    /// if it ends in `/`.
    ///
    /// # Errors
    /// The user's, if it is not.
    pub fn check(&self, written: &str) -> Result<(), RunError> {
        let Some(folder) = written.strip_suffix('/') else { return self.expand(written).map(drop) };
        let location = self.location(folder)?;
        match location.as_local() {
            Some(path) if path.is_dir() => Ok(()),
            Some(_) => Err(RunError::user(format!("{location} is not a directory"))),
            None => Err(RunError::user(format!("{location}: must be a local directory"))),
        }
    }

    /// The local folder of a model, which may be an `hf://` name: then it has the files of the
    /// first layout that the model has.
    ///
    /// # Errors
    /// A user error if there is no such model.
    pub fn model(&self, written: &str, layouts: &[Layout<'_>]) -> Result<PathBuf, RunError> {
        if is_hub_name(written) { self.hub.model(written, layouts) } else { Ok(self.base.join(written)) }
    }

    /// The Parquet files that an input names together: by a pattern, or as a dataset of the hub.
    /// `None` for a single file or dataset.
    ///
    /// # Errors
    /// The user's, if there is none, or another file among them.
    pub fn several(&self, written: &str) -> Result<Option<Vec<Location>>, RunError> {
        if !is_hub_name(written) && !patterns::has_wildcards(written) {
            return Ok(None);
        }
        let files = self.expand(written)?;
        match files.iter().find(|file| !file.name().ends_with(".parquet")) {
            None => Ok(Some(files)),
            Some(other) => Err(RunError::user_with_hint(
                format!("{other} is not a Parquet file"),
                "end the pattern in `.parquet`; a `webdataset` stage reads tar files",
            )),
        }
    }

    /// The Parquet file, the Parquet files or the dataset that a pipeline names as an input.
    ///
    /// # Errors
    /// The user's, if there is none.
    pub fn dataset(&self, written: &str) -> Result<Dataset, RunError> {
        if let Some(files) = self.several(written)? {
            return Ok(Dataset::from_parquet_files(&files)?);
        }
        let location = self.location(written)?;
        Ok(if location.exists()? { Dataset::from_parquet(location)? } else { Dataset::open(location)? })
    }

    /// The columns of that input; of a file, which of several is the first, no more than the footer
    /// is read.
    ///
    /// # Errors
    /// The user's, if there is none.
    pub fn schema(&self, written: &str) -> Result<SchemaRef, RunError> {
        if let Some(first) = self.several(written)?.as_deref().and_then(<[Location]>::first) {
            return Ok(Dataset::parquet_schema(first)?);
        }
        let location = self.location(written)?;
        if location.exists()? {
            return Ok(Dataset::parquet_schema(&location)?);
        }
        Ok(Dataset::open(location)?.schema(MAIN)?)
    }

    /// The name of a file in a recipe: relative to the pipeline file where it is below its folder,
    /// so that it depends neither on the working folder nor on the spelling.
    pub fn name(&self, location: &Location) -> String {
        match location.as_local() {
            Some(path) => self.relative(path),
            None => location.display_path().display().to_string(),
        }
    }

    /// The name in a recipe of a path or URL of the options.
    pub fn written_name(&self, written: &str) -> String {
        if is_url(written) || is_hub_name(written) {
            return written.into();
        }
        self.relative(&self.base.join(written))
    }

    fn relative(&self, path: &Path) -> String {
        // Both without `.` and from the root; `..` stays, since it may cross a link.
        let absolute = |path: &Path| std::path::absolute(Path::new(".").join(path)).unwrap_or(path.into());
        let (path, base) = (absolute(path), absolute(&self.base));
        path.strip_prefix(&base).unwrap_or(&path).display().to_string()
    }
}

fn no_file(pattern: &Location) -> RunError {
    RunError::user(format!("no file matches {pattern}"))
}

/// A text that changes with the content: length and modification time of a file, or the fingerprint
/// of a dataset.
pub fn stamp(location: &Location) -> Result<String, RunError> {
    if let Some((bytes, changed)) = location.stat()? {
        return Ok(format!("{bytes} bytes, changed {changed}"));
    }
    match manifest::read(location)? {
        Some(state) => Ok(state.begin.fingerprint),
        None => Err(RunError::user(format!("{location} does not exist or is not a dataset"))),
    }
}

/// Most files of a folder whose length and time are read; of the others, only the names count.
const MAX_STAT_FILES: u64 = 100_000;

/// A text that changes with the contents of a local folder: a hash over the names of all entries
/// below it, the times of its folders, and the lengths and times of its first [`MAX_STAT_FILES`]
/// files. Names need no access to the files, and the time of a folder changes when a file is added,
/// removed or replaced, so that a folder of millions takes seconds. Memory holds the names of one
/// folder at a time.
///
/// # Errors
/// A user error if there is no such folder.
pub fn folder_stamp(location: &Location) -> Result<String, RunError> {
    stamp_with_limit(location, MAX_STAT_FILES)
}

fn stamp_with_limit(location: &Location, max_stat_files: u64) -> Result<String, RunError> {
    let root = match location.as_local() {
        Some(path) if path.is_dir() => path,
        Some(_) => return Err(RunError::user(format!("{location} is not a directory"))),
        None => {
            return Err(RunError::user(format!("{location}: must be a local directory")));
        }
    };
    let (mut hash, mut open, mut files) = (Sha256::new(), vec![root.to_path_buf()], 0);
    while let Some(folder) = open.pop() {
        let io = |error| RunError::io(&folder, error);
        let mut entries = fs::read_dir(&folder).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        add_name(&mut hash, folder.strip_prefix(root).unwrap_or(&folder).as_os_str());
        add_times(&mut hash, &folder);
        let mut folders = Vec::new();
        for entry in entries {
            let is_folder = entry.file_type().map_err(io)?.is_dir();
            if is_folder && holds_only_runs(&entry.path())? {
                continue;
            }
            add_name(&mut hash, &entry.file_name());
            // A link to a folder is not followed: it may point back.
            if is_folder {
                folders.push(entry.path());
            } else {
                files += 1;
                if files <= max_stat_files {
                    add_times(&mut hash, &entry.path());
                }
            }
        }
        open.extend(folders.into_iter().rev());
    }
    Ok(format!("{files} files, {}", hex::encode(&hash.finalize()[..16])))
}

/// Whether a folder is a run directory, or contains nothing else: what a run of a pipeline makes in
/// the folder that it reads does not count as a change of that folder.
fn holds_only_runs(folder: &Path) -> Result<bool, RunError> {
    if is_run_directory(folder) {
        return Ok(true);
    }
    let io = |error| RunError::io(folder, error);
    let mut has_runs = false;
    for entry in fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if !entry.file_type().map_err(io)?.is_dir() || !is_run_directory(&entry.path()) {
            return Ok(false);
        }
        has_runs = true;
    }
    Ok(has_runs)
}

/// Most bytes of a file, or of the files of a folder, that are read to compare contents.
const MAX_HASHED_BYTES: u64 = 1 << 30;

/// A hash of the content of a local file, or of the names and contents of all files of a local
/// folder, whatever their times. `None` in an object store, whose versions depend on the content,
/// and where more than 1 GiB or [`MAX_STAT_FILES`] files would have to be read.
///
/// # Errors
/// A file that cannot be read.
pub fn content_hash(location: &Location) -> Result<Option<String>, RunError> {
    let Some(root) = location.as_local() else { return Ok(None) };
    let length = |path: &Path| fs::metadata(path).map_err(|error| RunError::io(path, error));
    // Only the lengths first, so that nothing is read in vain.
    let (mut files, mut bytes) = (0, 0);
    let fits = add_all(root, &mut |path, is_folder| {
        if !is_folder {
            (files, bytes) = (files + 1, bytes + length(path)?.len());
        }
        Ok(files <= MAX_STAT_FILES && bytes <= MAX_HASHED_BYTES)
    })?;
    if !fits {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    add_all(root, &mut |path, is_folder| {
        add_name(&mut hash, path.strip_prefix(root).unwrap_or(path).as_os_str());
        hash.update([u8::from(is_folder)]);
        if !is_folder {
            hash.update(length(path)?.len().to_le_bytes());
            let mut file = fs::File::open(path).map_err(|error| RunError::io(path, error))?;
            io::copy(&mut file, &mut hash).map_err(|error| RunError::io(path, error))?;
        }
        Ok(true)
    })?;
    Ok(Some(hex::encode(hash.finalize())))
}

/// A local file, or what is in a local folder, below it and sorted: names before contents.
fn add_all(
    path: &Path,
    add: &mut impl FnMut(&Path, bool) -> Result<bool, RunError>,
) -> Result<bool, RunError> {
    // A link to a folder is not followed: it may point back.
    let is_link = path.is_symlink();
    let is_folder = path.is_dir();
    if !add(path, is_folder)? {
        return Ok(false);
    }
    if !is_folder || is_link {
        return Ok(true);
    }
    let io = |error| RunError::io(path, error);
    let mut entries = fs::read_dir(path).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let is_folder = entry.file_type().map_err(io)?.is_dir();
        if is_folder && holds_only_runs(&entry.path())? {
            continue;
        }
        if !add_all(&entry.path(), add)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Hashes a name after its length, so that different lists of names differ in the hashed bytes.
fn add_name(hash: &mut Sha256, name: &OsStr) {
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name.as_encoded_bytes());
}

/// Hashes the length and modification time, unless the file is gone.
fn add_times(hash: &mut Sha256, path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return };
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let length = if metadata.is_dir() { 0 } else { metadata.len() };
    hash.update(length.to_le_bytes());
    hash.update(changed.unwrap_or_default().as_nanos().to_le_bytes());
}

/// Verifies files of a folder that is the dataset of another run, where the manifest says what was
/// written, or in the cache of the hub, where the names of large files are their hashes.
pub(crate) fn verify_artifacts(folder: &Path, files: &[&str]) -> Result<(), RunError> {
    let location = Location::from(folder);
    let Some(state) = manifest::read(&location)? else {
        return files.iter().try_for_each(|name| verify_blob(&folder.join(name)));
    };
    let dataset = Dataset::from_state(location, state);
    let is_read = |file: &&FileEntry| file.table.is_none() && files.contains(&file.path.as_str());
    let names: BTreeSet<&str> =
        dataset.state().files().filter(is_read).map(|file| file.path.as_str()).collect();
    Ok(names.into_iter().try_for_each(|name| dataset.artifact(name).map(drop))?)
}

/// Verifies a file of the hub's cache whose name is the SHA-256 of its content.
fn verify_blob(path: &Path) -> Result<(), RunError> {
    let Ok(blob) = path.canonicalize() else { return Ok(()) };
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    let is_blob = blob.parent().is_some_and(|folder| folder.ends_with("blobs"));
    if !is_blob || name.len() != 64 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let found = local::digest(&blob)?.sha256;
    if found == name {
        return Ok(());
    }
    Err(RunError::user_with_hint(
        format!("{}: damaged: the SHA-256 of its content is {found}", blob.display()),
        "delete this file and run again: it is downloaded again",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinlens_dataset::protocol::{Begin, FORMAT};
    use twinlens_dataset::shard::ShardLimits;
    use twinlens_dataset::{DatasetError, DatasetWriter};

    #[test]
    fn the_artifacts_of_another_run_are_verified() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Begin {
            format: FORMAT,
            position: 0,
            stage: "clip".into(),
            kind: "train".into(),
            fingerprint: "f".into(),
            recipe: serde_json::Value::Null,
            fused: Vec::new(),
            variant: None,
            tables: Default::default(),
        };
        let mut writer = DatasetWriter::open(dir.path(), begin, ShardLimits::default()).unwrap();
        let mut split = writer.split(0, "model");
        for name in ["model.safetensors", "config.json"] {
            fs::write(split.artifact(name), [7; 1000]).unwrap();
        }
        writer.commit(split.publish().unwrap()).unwrap();
        verify_artifacts(dir.path(), &["model.safetensors", "config.json"]).unwrap();
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        bytes[500] ^= 1;
        fs::write(&path, bytes).unwrap();
        verify_artifacts(dir.path(), &["config.json"]).unwrap();
        let error = verify_artifacts(dir.path(), &["model.safetensors"]).unwrap_err();
        assert!(
            matches!(error, RunError::Dataset(DatasetError::DamagedFile { path: named, .. }) if named == path)
        );
    }

    #[test]
    #[cfg(unix)]
    fn the_blobs_of_the_hub_are_verified() {
        let dir = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (dir.path().join("blobs"), dir.path().join("snapshots/main"));
        fs::create_dir(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        for (name, content) in [("config.json", "{}"), ("model.safetensors", "weights")] {
            // The names of small files are other hashes.
            let hash = hex::encode(Sha256::digest(content));
            let blob = if name == "config.json" { &hash[..40] } else { &hash };
            fs::write(blobs.join(blob), content).unwrap();
            std::os::unix::fs::symlink(blobs.join(blob), snapshot.join(name)).unwrap();
        }
        let files = ["config.json", "model.safetensors", "vocab.json"];
        verify_artifacts(&snapshot, &files).unwrap();
        fs::write(snapshot.join("model.safetensors"), "waights").unwrap();
        let error = verify_artifacts(&snapshot, &files).unwrap_err().to_string();
        assert!(error.contains("blobs/") && error.contains("damaged"), "{error}");
    }

    #[test]
    fn the_content_of_files_and_folders_has_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for folder in [&one, &two] {
            fs::create_dir_all(folder.join("in")).unwrap();
            fs::write(folder.join("in/a.txt"), "aa").unwrap();
            fs::write(folder.join("b.txt"), "b").unwrap();
        }
        let hash = |path: &Path| content_hash(&path.into()).unwrap().unwrap();
        assert_eq!(hash(&one), hash(&two));
        assert_eq!(hash(&one.join("b.txt")), hash(&two.join("b.txt")));
        fs::rename(two.join("b.txt"), two.join("c.txt")).unwrap();
        assert_ne!(hash(&one), hash(&two));
        fs::rename(two.join("c.txt"), two.join("b.txt")).unwrap();
        fs::write(two.join("in/a.txt"), "ab").unwrap();
        assert_ne!(hash(&one), hash(&two));
        // Sparse, but longer than is read.
        fs::File::create(two.join("long")).unwrap().set_len(MAX_HASHED_BYTES + 1).unwrap();
        assert_eq!(content_hash(&two.join("long").into()).unwrap(), None);
        assert_eq!(content_hash(&(&two).into()).unwrap(), None);
    }

    #[test]
    fn names_in_recipes_do_not_depend_on_the_spelling() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::in_folder(dir.path());
        let absolute = dir.path().join("in/a.csv").display().to_string();
        for written in ["in/a.csv", "./in/a.csv", "in//a.csv", "in/./a.csv", &absolute] {
            assert_eq!(files.written_name(written), "in/a.csv");
            assert_eq!(files.name(&files.location(written).unwrap()), "in/a.csv");
        }
        assert_eq!(files.written_name("../a.csv"), "../a.csv");
        assert_eq!(files.written_name("s3://b/./a.csv"), "s3://b/./a.csv");
        // The folder of the pipeline file, seen from the working folder.
        let here = Files { base: PathBuf::new(), ..files };
        assert_eq!(
            (here.written_name("./a.csv"), here.written_name("a.csv")),
            ("a.csv".into(), "a.csv".into())
        );
    }

    #[test]
    fn the_stamp_of_a_folder_changes_with_its_contents() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("1.txt"), "one").unwrap();
        let stamp = || folder_stamp(&dir.path().into()).unwrap();
        let mut seen = vec![stamp()];
        assert_eq!(stamp(), seen[0]);
        let changes: [&dyn Fn(); 4] = [
            &|| fs::write(deep.join("1.txt"), "three").unwrap(),
            &|| fs::write(deep.join("2.txt"), "").unwrap(),
            &|| fs::rename(deep.join("2.txt"), deep.join("3.txt")).unwrap(),
            &|| fs::create_dir(deep.join("c")).unwrap(),
        ];
        for change in changes {
            change();
            assert!(!seen.contains(&stamp()));
            seen.push(stamp());
        }
        // A run in the folder that it reads.
        fs::create_dir_all(dir.path().join("runs/photos/images")).unwrap();
        let (before, content) = (stamp(), content_hash(&dir.path().into()).unwrap());
        assert_ne!(before, seen[seen.len() - 1], "a folder that holds no run");
        fs::write(dir.path().join("runs/photos/run.json"), r#"{"format":1,"pipeline":"photos"}"#).unwrap();
        let (with_run, content_with_run) = (stamp(), content_hash(&dir.path().into()).unwrap());
        assert!(with_run != before && content_with_run != content, "it does not count any more");
        fs::write(dir.path().join("runs/photos/images/manifest.jsonl"), "{}").unwrap();
        fs::create_dir(dir.path().join("runs/photos/clip")).unwrap();
        assert_eq!(
            (stamp(), content_hash(&dir.path().into()).unwrap()),
            (with_run.clone(), content_with_run)
        );
        fs::write(dir.path().join("runs/notes.txt"), "").unwrap();
        assert_ne!(stamp(), with_run, "a file beside runs counts");
        fs::remove_dir_all(dir.path().join("runs")).unwrap();
        // Beyond the limit, only names count.
        let few = || stamp_with_limit(&dir.path().into(), 1).unwrap();
        let before = few();
        fs::write(deep.join("3.txt"), "longer").unwrap();
        assert_eq!(few(), before);
        fs::write(deep.join("4.txt"), "").unwrap();
        assert_ne!(few(), before);
        #[cfg(unix)]
        std::os::unix::fs::symlink(dir.path(), deep.join("back")).unwrap();
        assert_eq!(stamp().split(',').next(), Some("4 files"));
        let gone = folder_stamp(&dir.path().join("x").into()).unwrap_err().to_string();
        assert!(gone.contains("is not a directory"), "{gone}");
    }
}
