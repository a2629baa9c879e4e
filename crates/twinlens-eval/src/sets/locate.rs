//! Locates the declaration and the data of a set.

use std::path::{Path, PathBuf};

use twinlens_pipeline::RunError;
use twinlens_pipeline::files::Files;

use super::catalog;
use super::declaration::Declaration;

/// The file extension of a user's own declaration.
const OWN: &str = ".toml";

/// The declaration named by an option: a compiled-in set, or a user's `.toml` file (relative to the
/// pipeline file).
///
/// # Errors
/// There is no such set or file, or the declaration is invalid.
pub fn declared(files: &Files, written: &str) -> Result<Declaration, RunError> {
    if !written.ends_with(OWN) {
        return catalog::named(written).map_err(|(why, hint)| RunError::user_with_hint(why, hint));
    }
    let path = files.base.join(written);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| RunError::user(format!("{}: {error}", path.display())))?;
    Declaration::parse(&text).map_err(|why| RunError::user(format!("{}: {why}", path.display())))
}

/// Checks the name of a set in an option without I/O; returns message and hint if it is unknown.
pub(crate) fn unknown(written: &str) -> Option<(String, String)> {
    if written.ends_with(OWN) { None } else { catalog::named(written).err() }
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
    let is_there = |path: &PathBuf| match path.extension().is_some_and(|ending| ending == "parquet") {
        true => path.is_file(),
        false => path.is_dir() && path.read_dir().is_ok_and(|mut entries| entries.next().is_some()),
    };
    candidates(set).into_iter().map(|name| data.join(name)).find(is_there)
}

/// Every path that [`find`] looks at, so that data added later are noticed. Directories end in `/`.
pub fn data_paths(written: &str, data: &str) -> Vec<String> {
    let data = data.trim_end_matches('/');
    if written.ends_with(OWN) {
        // The file has not been read: assume that the set is named as its file.
        let name = written.rsplit('/').next().unwrap_or(written).trim_end_matches(OWN);
        return vec![written.into(), format!("{data}/{name}.parquet"), format!("{data}/{name}/")];
    }
    let Ok(set) = catalog::named(written) else { return Vec::new() };
    let place = |name: String| match name.ends_with(".parquet") {
        true => format!("{data}/{name}"),
        false => format!("{data}/{name}/"),
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
