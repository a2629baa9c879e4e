//! Files outside the run that options name: local paths, seen from the pipeline file, or URLs of
//! object stores; `*` and `?` in the last part are patterns.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};
use twinlens_dataset::manifest;
use twinlens_dataset::storage::{self, Location, is_url};

use crate::error::RunError;
use crate::hub::{Hub, is_hub};

/// Where what the options name is looked for.
#[derive(Debug, Clone)]
pub struct Files {
    /// The folder of the pipeline file.
    pub base: PathBuf,
    /// A local folder for copies of remote files.
    pub scratch: PathBuf,
    /// What `hf://` names are looked for in.
    pub hub: Hub,
}

impl Files {
    /// The place that an option names.
    pub fn location(&self, written: &str) -> Result<Location, RunError> {
        Ok(Location::parse(written, &self.base, &self.scratch)?)
    }

    /// The files that a path, URL or pattern names, sorted.
    ///
    /// # Errors
    /// The user's, when there is none.
    pub fn expand(&self, written: &str) -> Result<Vec<Location>, RunError> {
        if is_hub(written) {
            return Ok(self.hub.files(written)?.into_iter().map(Location::from).collect());
        }
        let (folder, name) = match written.rsplit_once('/') {
            Some((folder, name)) if !folder.is_empty() => (folder, name),
            _ => ("", written),
        };
        if !name.contains(['*', '?']) {
            let location = self.location(written)?;
            let here = location.as_local().is_some_and(Path::exists) || location.exists()?;
            return match here {
                true => Ok(vec![location]),
                false => Err(RunError::user_with_hint(
                    format!("{location} does not exist"),
                    match is_url(written) {
                        true => "look at the URL, and at the store's settings in the environment".into(),
                        false => format!("`{written}` is relative to the folder of the pipeline file"),
                    },
                )),
            };
        }
        let folder = match folder {
            "" => Location::from(&self.base),
            written => self.location(written)?,
        };
        let found: Vec<Location> = (folder.list()?.files.iter())
            .filter(|found| matches(name.as_bytes(), found.as_bytes()))
            .map(|name| folder.join(name))
            .collect();
        match found.is_empty() {
            true => Err(RunError::user(format!("no file matches {}", folder.join(name)))),
            false => Ok(found),
        }
    }

    /// The local folder of a model: a path, or one of the hub, of which it has of each group of
    /// `wanted` files the first that there is.
    ///
    /// # Errors
    /// The user's, where there is no such model.
    pub fn model(&self, written: &str, wanted: &[&[&str]]) -> Result<PathBuf, RunError> {
        match is_hub(written) {
            true => self.hub.model(written, wanted),
            false => Ok(self.base.join(written)),
        }
    }

    /// The name of a file in a recipe: as seen from the pipeline file, since the same run may be
    /// started from another folder.
    pub fn name(&self, location: &Location) -> String {
        let shown = location.shown();
        shown.strip_prefix(&self.base).unwrap_or(&shown).display().to_string()
    }
}

/// What changes when the content does: length and time of a file, the fingerprint of a dataset.
pub fn stamp(location: &Location) -> Result<String, RunError> {
    if let Some((bytes, changed)) = location.stamp()? {
        return Ok(format!("{bytes} bytes, changed {changed}"));
    }
    match manifest::read(location)? {
        Some(state) => Ok(state.begin.fingerprint),
        None => Err(RunError::user(format!("{location} does not exist, or is no dataset"))),
    }
}

/// Files of a folder whose length and time are looked at, at the most; of those beyond, the names
/// alone.
const LOOKED_AT: u64 = 100_000;

/// What changes when a local folder does, or one below it: a hash over the names of all that is in
/// it, over the times of its folders, and over the lengths and times of its first [`LOOKED_AT`]
/// files. Names cost no look at the file itself, and the time of a folder tells of a file that
/// came, went, or was replaced; so a folder of millions is told in seconds. One folder's names are
/// in memory at a time.
///
/// # Errors
/// The user's, when there is no such folder.
pub fn folder_stamp(location: &Location) -> Result<String, RunError> {
    stamp_below(location, LOOKED_AT)
}

fn stamp_below(location: &Location, looked_at: u64) -> Result<String, RunError> {
    let root = match location.as_local() {
        Some(path) if path.is_dir() => path,
        Some(_) => return Err(RunError::user(format!("{location} is no folder"))),
        None => {
            return Err(RunError::user(format!("{location}: only a local folder can be read as a whole")));
        }
    };
    let (mut hash, mut open, mut files) = (Sha256::new(), vec![root.to_path_buf()], 0);
    while let Some(folder) = open.pop() {
        let io = |error| RunError::io(&folder, error);
        let mut entries = fs::read_dir(&folder).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        add(&mut hash, folder.strip_prefix(root).unwrap_or(&folder).as_os_str());
        add_times(&mut hash, &folder);
        let mut folders = Vec::new();
        for entry in entries {
            add(&mut hash, &entry.file_name());
            // A link to a folder is no folder: it may lead back.
            if entry.file_type().map_err(io)?.is_dir() {
                folders.push(entry.path());
            } else {
                files += 1;
                if files <= looked_at {
                    add_times(&mut hash, &entry.path());
                }
            }
        }
        open.extend(folders.into_iter().rev());
    }
    Ok(format!("{files} files, {}", storage::hex(&hash.finalize()[..16])))
}

/// A name, with its length before it, so that no two lists of names give the same bytes.
fn add(hash: &mut Sha256, name: &OsStr) {
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name.as_encoded_bytes());
}

/// Length and time of change; of what is gone, nothing.
fn add_times(hash: &mut Sha256, path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return };
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let length = if metadata.is_dir() { 0 } else { metadata.len() };
    hash.update(length.to_le_bytes());
    hash.update(changed.unwrap_or_default().as_nanos().to_le_bytes());
}

/// Whether a file name matches a pattern of `*` (any bytes) and `?` (one byte). Linear in time for
/// each `*`.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    p = after;
                    n = from + 1;
                    star = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_another_when_anything_in_it_is() {
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
        // Beyond the files that are looked at, names still tell.
        let few = || stamp_below(&dir.path().into(), 1).unwrap();
        let before = few();
        fs::write(deep.join("3.txt"), "longer").unwrap();
        assert_eq!(few(), before);
        fs::write(deep.join("4.txt"), "").unwrap();
        assert_ne!(few(), before);
        #[cfg(unix)]
        std::os::unix::fs::symlink(dir.path(), deep.join("back")).unwrap();
        assert_eq!(stamp().split(',').next(), Some("4 files"));
        let gone = folder_stamp(&dir.path().join("x").into()).unwrap_err().to_string();
        assert!(gone.contains("is no folder"), "{gone}");
    }

    #[test]
    fn patterns_match_whole_names() {
        let cases = [("*.csv", "a.csv", true), ("a?.csv", "ab.csv", true), ("a?.csv", "a.csv", false)];
        let more = [("*", "", true), ("a*b*c", "aXbYbZc", true), ("a*b", "abc", false), ("**x", "x", true)];
        for (pattern, name, expected) in cases.into_iter().chain(more) {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
