//! Files outside the run that options name: local paths, seen from the pipeline file, or URLs of object stores; `*` and `?` in
//! the last part are patterns.

use std::path::{Path, PathBuf};

use twinlens_dataset::manifest;
use twinlens_dataset::storage::{Location, is_url};

use crate::error::RunError;

/// Where what the options name is looked for.
#[derive(Debug, Clone)]
pub struct Files {
    /// The folder of the pipeline file.
    pub base: PathBuf,
    /// A local folder for copies of remote files.
    pub scratch: PathBuf,
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

    /// The name of a file in a recipe: as seen from the pipeline file, since the same run may be started from another folder.
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

/// Whether a file name matches a pattern of `*` (any bytes) and `?` (one byte). Linear in time for each `*`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
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
    fn patterns_match_whole_names() {
        let cases = [("*.csv", "a.csv", true), ("a?.csv", "ab.csv", true), ("a?.csv", "a.csv", false)];
        let more = [("*", "", true), ("a*b*c", "aXbYbZc", true), ("a*b", "abc", false), ("**x", "x", true)];
        for (pattern, name, expected) in cases.into_iter().chain(more) {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
