//! Input files named by options: local paths relative to the pipeline file, or URLs of object
//! stores; `*` and `?` in the last part are patterns.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};
use twinlens_dataset::storage::{Location, is_url};
use twinlens_dataset::{Dataset, manifest};

use crate::error::RunError;
use crate::hub::{Hub, file_pattern, is_hub_name};

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

    /// The files that match a path, URL or pattern, sorted.
    ///
    /// # Errors
    /// A user error if there is none.
    pub fn expand(&self, written: &str) -> Result<Vec<Location>, RunError> {
        if is_hub_name(written) {
            return Ok(self.hub.files(written)?.into_iter().map(Location::from).collect());
        }
        let (folder, name) = match written.rsplit_once('/') {
            Some((folder, name)) if !folder.is_empty() => (folder, name),
            _ => ("", written),
        };
        if !name.contains(['*', '?']) {
            let location = self.location(written)?;
            if location.as_local().is_some_and(Path::exists) || location.exists()? {
                return Ok(vec![location]);
            }
            let hint = if is_url(written) {
                "check the URL and the settings of the store in the environment".into()
            } else {
                format!("`{written}` is relative to the folder of the pipeline file")
            };
            return Err(RunError::user_with_hint(format!("{location} does not exist"), hint));
        }
        let folder = match folder {
            "" => Location::from(&self.base),
            written => self.location(written)?,
        };
        let pattern = file_pattern(name);
        let files: Vec<Location> = (folder.list()?.files.iter())
            .filter(|file| pattern.matches(file))
            .map(|name| folder.join(name))
            .collect();
        if files.is_empty() {
            return Err(RunError::user(format!("no file matches {}", folder.join(name))));
        }
        Ok(files)
    }

    /// The local folder of a model, which may be an `hf://` name: then it contains, of each group
    /// of `required` files, the first that exists.
    ///
    /// # Errors
    /// A user error if there is no such model.
    pub fn model(&self, written: &str, required: &[&[&str]]) -> Result<PathBuf, RunError> {
        if is_hub_name(written) { self.hub.model(written, required) } else { Ok(self.base.join(written)) }
    }

    /// The Parquet file or dataset that a pipeline names as an input.
    ///
    /// # Errors
    /// The user's, if there is none.
    pub fn dataset(&self, written: &str) -> Result<Dataset, RunError> {
        let location = self.location(written)?;
        Ok(if location.exists()? { Dataset::from_parquet(location)? } else { Dataset::open(location)? })
    }

    /// The name of a file in a recipe: relative to the pipeline file, so that it does not depend on
    /// the working folder.
    pub fn name(&self, location: &Location) -> String {
        let path = location.display_path();
        path.strip_prefix(&self.base).unwrap_or(&path).display().to_string()
    }
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
            add_name(&mut hash, &entry.file_name());
            // A link to a folder is not followed: it may point back.
            if entry.file_type().map_err(io)?.is_dir() {
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

#[cfg(test)]
mod tests {
    use super::*;

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
