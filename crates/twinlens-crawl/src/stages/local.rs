//! Images in local files: a row may have the path of a file instead of a URL.

use std::path::{Component, Path, PathBuf};

use twinlens_dataset::samples::Refusal;
use twinlens_pipeline::RunError;
use twinlens_pipeline::files::Files;
use url::{ParseError, Url};

use super::common::is_url;

/// Reject codes of rows with paths.
pub const CODES: &[&str] = &[OUTSIDE, NOT_FOUND, NOT_A_FILE, UNREADABLE];

/// The path leads out of the folder that may be read, by itself or through a link.
pub(super) const OUTSIDE: &str = "outside_root";
/// The file does not exist.
pub(super) const NOT_FOUND: &str = "file_not_found";
/// A directory, a device.
pub(super) const NOT_A_FILE: &str = "not_a_file";
/// The file is there, but cannot be read.
pub(super) const UNREADABLE: &str = "unreadable_file";

/// The path that a row has instead of a URL: a text without a scheme, or a `file:` URL. `None` if
/// it has another scheme or is not a URL either.
pub(super) fn path_of(written: &str) -> Option<Result<PathBuf, Refusal>> {
    if is_url(written) {
        return None;
    }
    match Url::parse(written) {
        Ok(url) if url.scheme() == "file" => {
            let path = url.to_file_path();
            Some(path.map_err(|()| (OUTSIDE, format!("`{written}` is a file of another machine"))))
        }
        Err(ParseError::RelativeUrlWithoutBase) if !written.is_empty() => Some(Ok(written.into())),
        _ => None,
    }
}

/// A folder whose files may be read.
#[derive(Debug, Clone)]
pub(super) struct Root {
    /// Its absolute path.
    folder: PathBuf,
    /// Its path without links.
    real: PathBuf,
}

impl Root {
    /// # Errors
    /// A user error if it is not a directory.
    pub(super) fn open(folder: &Path) -> Result<Self, RunError> {
        let io = |error| RunError::io(folder, error);
        // The folder of the pipeline file may have an empty name.
        let folder = std::path::absolute(Path::new(".").join(folder)).map_err(io)?;
        match folder.canonicalize() {
            Ok(real) if real.is_dir() => Ok(Self { folder, real }),
            Ok(_) => Err(RunError::user(format!("{} is not a directory", folder.display()))),
            Err(error) => Err(RunError::user(format!("{}: {error}", folder.display()))),
        }
    }

    /// The part of a path below the folder, where relative paths start; `None` if it leads out of
    /// the folder. The file system is not asked.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        let below = if path.is_absolute() {
            path.strip_prefix(&self.folder).or_else(|_| path.strip_prefix(&self.real)).ok()?
        } else {
            path
        };
        let is_below = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        let parts = below.components().filter(|part| *part != Component::CurDir);
        let below = below.components().all(is_below).then(|| parts.collect::<PathBuf>());
        below.filter(|below| !below.as_os_str().is_empty())
    }

    /// Whether a path without links is below the folder.
    pub(super) fn holds(&self, real: &Path) -> bool {
        real.starts_with(&self.real)
    }
}

/// What the paths of a table mean.
#[derive(Debug)]
pub(super) struct TablePaths {
    /// `None` if the table is on a server.
    root: Option<Root>,
    /// The name of the root relative to the folder of the pipeline file.
    name: PathBuf,
}

impl TablePaths {
    /// Paths below `folder`.
    ///
    /// # Errors
    /// A user error if it is not a directory.
    pub(super) fn open(files: &Files, folder: Option<&Path>) -> Result<Self, RunError> {
        let Some(folder) = folder else { return Ok(Self { root: None, name: PathBuf::new() }) };
        Ok(Self { root: Some(Root::open(folder)?), name: files.name(&folder.into()).into() })
    }

    /// The URL of a row as it is, or its path relative to the folder of the pipeline file.
    pub(super) fn resolve(&self, written: &str) -> Result<String, Refusal> {
        let Some(path) = path_of(written).transpose()? else { return Ok(written.into()) };
        let outside = |why: String| (OUTSIDE, format!("`{written}` {why}: set `root`"));
        let Some(root) = &self.root else {
            return Err(outside("is not a URL, and a table on a server has no folder".into()));
        };
        let shown = if self.name.as_os_str().is_empty() {
            "the folder of the pipeline file".into()
        } else {
            self.name.display().to_string()
        };
        let below = root.below(&path).ok_or_else(|| outside(format!("is not below {shown}")))?;
        // A file that is not there is the concern of whoever reads it.
        if root.folder.join(&below).canonicalize().is_ok_and(|real| !root.holds(&real)) {
            return Err(outside(format!("is a link out of {shown}")));
        }
        let path = self.name.join(below);
        let text = path.to_str().ok_or_else(|| ("not_utf8", format!("`{written}` is not UTF-8")))?;
        // A name such as `a:b.png` must not become a URL.
        Ok(if path_of(text).is_some() { text.into() } else { format!("./{text}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_urls() {
        let cases = [
            ("a.png", Some("a.png")),
            ("a b/ü.png", Some("a b/ü.png")),
            ("./a:b.png", Some("./a:b.png")),
            ("12:30.png", Some("12:30.png")),
            ("/a/b.png", Some("/a/b.png")),
            ("//host/b.png", Some("//host/b.png")),
            ("file:///a/b%20c.png", Some("/a/b c.png")),
            ("file://localhost/a.png", Some("/a.png")),
            ("http://a/b.png", None),
            ("HTTPS://a/b.png", None),
            ("https://", None),
            ("data:image/png;base64,AA", None),
            ("s3://bucket/a.png", None),
            ("", None),
        ];
        for (written, path) in cases {
            let found = path_of(written).map(|path| path.unwrap().display().to_string());
            assert_eq!(found.as_deref(), path, "{written}");
        }
        assert_eq!(path_of("file://host/a.png").unwrap().unwrap_err().0, OUTSIDE);
    }

    #[test]
    fn paths_of_a_table_stay_below_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("lists/in")).unwrap();
        std::fs::write(base.join("secret.png"), "x").unwrap();
        #[cfg(unix)]
        for (link, target) in [("out.png", "../secret.png"), ("up", ".."), ("same", "in")] {
            std::os::unix::fs::symlink(target, base.join("lists").join(link)).unwrap();
        }
        let paths = TablePaths::open(&Files::in_folder(&base), Some(&base.join("lists"))).unwrap();
        let absolute = |name: &str| format!("{}/{name}", base.display());
        let cases = [
            ("in/a.png".into(), Ok("lists/in/a.png")),
            ("./in//a.png".into(), Ok("lists/in/a.png")),
            ("same/a.png".into(), Ok("lists/same/a.png")),
            (absolute("lists/a.png"), Ok("lists/a.png")),
            (format!("file://{}", absolute("lists/a%20b.png")), Ok("lists/a b.png")),
            ("http://a/../b.png".into(), Ok("http://a/../b.png")),
            ("../secret.png".into(), Err(OUTSIDE)),
            ("in/../a.png".into(), Err(OUTSIDE)),
            (".".into(), Err(OUTSIDE)),
            ("/etc/passwd".into(), Err(OUTSIDE)),
            (absolute("secret.png"), Err(OUTSIDE)),
            (absolute("lists2/a.png"), Err(OUTSIDE)),
            ("file:///etc/passwd".into(), Err(OUTSIDE)),
            ("out.png".into(), Err(OUTSIDE)),
            ("up/secret.png".into(), Err(OUTSIDE)),
        ];
        for (written, expected) in cases {
            let found = paths.resolve(&written).map_err(|(code, _)| code);
            assert_eq!(found, expected.map(String::from), "{written}");
        }
        let top = TablePaths::open(&Files::in_folder(&base), Some(&base)).unwrap();
        assert_eq!(top.resolve("./a:b.png").unwrap(), "./a:b.png");
        let remote = TablePaths::open(&Files::in_folder(&base), None).unwrap();
        assert_eq!(remote.resolve("a.png").unwrap_err().0, OUTSIDE);
    }
}
