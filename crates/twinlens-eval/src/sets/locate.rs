//! Locates the declaration and the data of a set.

use std::path::{Path, PathBuf};

use twinlens_pipeline::files::Files;
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::{Located, Ports, RunError};

use super::declaration::Declaration;
use super::undeclared::TOML;
use super::{catalog, undeclared};

/// A set, and its file or directory if it exists.
#[derive(Debug, Clone)]
pub struct LocatedSet {
    pub set: Declaration,
    pub root: Option<PathBuf>,
}

/// The set that an option names: one with a declaration, whose data are looked for in the directory
/// `data`, or data without one. Of data, `split` is the split that is declared; by
/// default the first of the usual ones.
///
/// # Errors
/// The set or file does not exist, or cannot be a set.
pub fn locate(
    files: &Files,
    written: &str,
    data: Option<&Path>,
    split: Option<&str>,
) -> Result<LocatedSet, RunError> {
    if undeclared::is_data(written) {
        let root = files.base.join(written);
        let set = undeclared::declaration(written, &root, split)?;
        return Ok(LocatedSet { set, root: Some(root) });
    }
    let set = declared(files, written)?;
    let root = data.and_then(|data| find(&set, data));
    Ok(LocatedSet { set, root })
}

/// The declaration named by an option: a compiled-in set, or a user's `.toml` file (relative to the
/// pipeline file).
///
/// # Errors
/// The set or file does not exist, or the declaration is invalid.
pub fn declared(files: &Files, written: &str) -> Result<Declaration, RunError> {
    if !written.ends_with(TOML) {
        return catalog::named(written).map_err(|(why, hint)| RunError::user_with_hint(why, hint));
    }
    let path = files.base.join(written);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| RunError::user(format!("{}: {error}", path.display())))?;
    Declaration::parse(&text).map_err(|why| RunError::user(format!("{}: {why}", path.display())))
}

/// Checks the name of a set in an option without I/O; returns message and hint if it is unknown.
pub(crate) fn unknown(written: &str) -> Option<(String, String)> {
    if is_hub_name(written) {
        let message = format!("`{written}` is not a local file or directory");
        return Some((message, "download it, and name its directory: `./pets/`".into()));
    }
    if written.ends_with(TOML) || undeclared::is_data(written) { None } else { catalog::named(written).err() }
}

/// Whether the data of a set are looked for in the directory `data`.
pub(crate) fn needs_data(written: &str) -> bool {
    !undeclared::is_data(written)
}

/// The files of a set, for the fingerprint.
pub(crate) struct DataFiles<'a> {
    pub set: &'a Located<String>,
    /// The directory with the data of declared sets.
    pub data: Option<&'a str>,
}

impl DataFiles<'_> {
    /// Declares them: data without a declaration must exist.
    pub(crate) fn declare(&self, ports: &mut Ports<'_>) {
        let written = self.set.value();
        if is_hub_name(written) {
            return;
        }
        if needs_data(written) {
            let paths = self.data.map(|data| data_paths(written, data)).unwrap_or_default();
            paths.into_iter().for_each(|file| ports.optional_file(file));
            return;
        }
        let slash = if written.ends_with(".parquet") { "" } else { "/" };
        let path = format!("{}{slash}", written.trim_end_matches('/'));
        ports.file(&Located::new(path, self.set.span()));
    }
}

/// The possible names of a set's file or directory under `data`, in order of preference. `wds_` is
/// the prefix of CLIP_benchmark's directories.
fn candidates(set: &Declaration) -> Vec<String> {
    let names = std::iter::once(&set.name).chain(&set.aliases);
    names.flat_map(|name| [format!("{name}.parquet"), name.clone(), format!("wds_{name}")]).collect()
}

/// Looks for the data of a set under a directory: `NAME.parquet` or `NAME/`, then its aliases.
/// Returns the Parquet file, or the directory.
pub fn find(set: &Declaration, data: &Path) -> Option<PathBuf> {
    let is_there = |path: &PathBuf| {
        if path.extension().is_some_and(|ending| ending == "parquet") {
            return path.is_file();
        }
        path.is_dir() && path.read_dir().is_ok_and(|mut entries| entries.next().is_some())
    };
    candidates(set).into_iter().map(|name| data.join(name)).find(is_there)
}

/// Every path that [`find`] looks at, so that data added later are noticed. Directories end in `/`.
fn data_paths(written: &str, data: &str) -> Vec<String> {
    let data = data.trim_end_matches('/');
    if written.ends_with(TOML) {
        // The file has not been read: assume that the set is named as its file.
        let name = written.rsplit('/').next().unwrap_or(written).trim_end_matches(TOML);
        return vec![written.into(), format!("{data}/{name}.parquet"), format!("{data}/{name}/")];
    }
    let Ok(set) = catalog::named(written) else { return Vec::new() };
    let place = |name: String| {
        let slash = if name.ends_with(".parquet") { "" } else { "/" };
        format!("{data}/{name}{slash}")
    };
    candidates(&set).into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_are_found_under_every_name_of_the_set() {
        let folder = tempfile::tempdir().unwrap();
        let set = catalog::named("cifar10").unwrap();
        assert_eq!(find(&set, folder.path()), None);
        std::fs::create_dir_all(folder.path().join("cifar10")).unwrap();
        assert_eq!(find(&set, folder.path()), None, "an empty directory");
        std::fs::create_dir_all(folder.path().join("wds_cifar10/test")).unwrap();
        assert_eq!(find(&set, folder.path()).unwrap(), folder.path().join("wds_cifar10"));
        std::fs::write(folder.path().join("cifar10.parquet"), "x").unwrap();
        assert_eq!(find(&set, folder.path()).unwrap(), folder.path().join("cifar10.parquet"));
        assert!(data_paths("cifar10", "data/").contains(&"data/cifar10/".to_string()));
    }
}
