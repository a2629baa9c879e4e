//! Views of wiki articles, from hourly page-view files.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::counter::Counter;
use super::open::open;
use crate::error::{CurateError, Result};

/// Which lines of page-view files count.
#[derive(Debug, Clone)]
pub struct Views {
    /// The wiki, as in the first field of a line: `en`. Its mobile site (`en.m`) counts too.
    pub project: String,
    /// Hours with fewer views of a title do not count for it.
    pub min_hourly: u64,
    /// Titles with fewer views in total are left out.
    pub min_views: u64,
}

/// The titles with enough views, with their views, sorted by title; and the number of malformed
/// lines. `files` hold lines `project title views bytes`. Malformed lines (titles with spaces,
/// truncated lines) are counted and skipped. Titles with a colon belong to other namespaces and are
/// left out.
///
/// # Errors
/// [`CurateError::Read`]; [`CurateError::Line`] for a file without a single well-formed line.
pub fn read_views(
    files: &[PathBuf],
    views: &Views,
    memory: usize,
    folder: PathBuf,
) -> Result<(Vec<(String, u64)>, u64)> {
    let mobile = format!("{}.m", views.project);
    let mut counter = Counter::new(memory, folder);
    let mut malformed = 0;
    for path in files {
        let mut formed = 0u64;
        each_line(path, |line| {
            let mut fields = line.split(' ');
            let parts = (
                fields.next(),
                fields.next(),
                fields.next().and_then(|n| n.parse::<u64>().ok()),
                fields.next(),
            );
            let (Some(project), Some(title), Some(count), Some(_)) = parts else {
                malformed += u64::from(!line.is_empty());
                return Ok(());
            };
            formed += 1;
            let counts = (project == views.project || project == mobile) && count >= views.min_hourly;
            if counts && !title.contains(':') && !title.is_empty() {
                counter.add(&title.replace('_', " "), count).map_err(|source| read_error(path, source))?;
            }
            Ok(())
        })?;
        if formed == 0 {
            let message = "no line of the file has the form `project title views bytes`".into();
            return Err(CurateError::Line { path: path.clone(), line: 1, message });
        }
    }
    let failed = |source| read_error(files.first().map_or(Path::new(""), PathBuf::as_path), source);
    let mut titles = Vec::new();
    for title in counter.finish().map_err(failed)? {
        let (title, count) = title.map_err(failed)?;
        if count >= views.min_views {
            titles.push((title, count));
        }
    }
    Ok((titles, malformed))
}

/// The `titles` that are in a list of articles (`all-titles-in-ns0`: one per line).
///
/// # Errors
/// [`CurateError::Read`].
pub fn only_articles(titles: Vec<(String, u64)>, articles: &[PathBuf]) -> Result<Vec<(String, u64)>> {
    let mut left: HashMap<String, u64> = titles.iter().cloned().collect();
    let mut found: HashSet<String> = HashSet::new();
    for path in articles {
        each_line(path, |line| {
            if let Some((title, _)) = left.remove_entry(&line.replace('_', " ")) {
                found.insert(title);
            }
            Ok(())
        })?;
    }
    Ok(titles.into_iter().filter(|(title, _)| found.contains(title)).collect())
}

fn read_error(path: &Path, source: std::io::Error) -> CurateError {
    CurateError::Read { path: path.into(), source }
}

/// Invalid UTF-8 becomes U+FFFD.
fn each_line(path: &Path, mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut file = open(path)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.read_until(b'\n', &mut line).map_err(|source| read_error(path, source))? == 0 {
            return Ok(());
        }
        take(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn views_are_summed_over_files_and_sites() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("pageviews-1");
        std::fs::write(&plain, "en Dog 60 0\nen.m Dog 50 0\nen Talk:Dog 900 0\nde Hund 800 0\nen Rare_Bird 49 0\nbroken\nen New_York 70 0\n").unwrap();
        let zipped = folder.path().join("pageviews-2.gz");
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"en Rare_Bird 69 0\nen - 900 0\nen New_York 55 0\nen Caf\xff 99 0\n").unwrap();
        std::fs::write(&zipped, encoder.finish().unwrap()).unwrap();
        let views = Views { project: "en".into(), min_hourly: 50, min_views: 70 };
        let files = [plain, zipped];
        let (titles, malformed) = read_views(&files, &views, 0, folder.path().into()).unwrap();
        let count = |title: &str, count| (title.to_string(), count);
        assert_eq!(
            titles,
            [count("-", 900), count("Caf\u{fffd}", 99), count("Dog", 110), count("New York", 125)]
        );
        assert_eq!(malformed, 1);
        let articles = folder.path().join("all-titles-in-ns0");
        std::fs::write(&articles, "page_title\nDog\nNew_York\nRare_Bird\n").unwrap();
        let known = only_articles(titles, std::slice::from_ref(&articles)).unwrap();
        assert_eq!(known, [count("Dog", 110), count("New York", 125)]);
        let error = read_views(&[articles], &views, 0, folder.path().into()).unwrap_err();
        assert!(error.to_string().contains("no line of the file has the form"), "{error}");
    }
}
