//! `hf://` names: models and datasets of the Hugging Face Hub, through its local cache.
//!
//! `hf://org/name` is a model, `hf://datasets/org/name` a dataset; `@revision` may follow, and for
//! a dataset a pattern of files. The cache has the layout of `huggingface_hub`
//! (`models--org--name/{refs,blobs,snapshots}`) and is shared with that library. Files appear in it
//! whole.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glob::Pattern;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use twinlens_dataset::storage::local;

use crate::error::RunError;

/// Prefix of the names.
const SCHEME: &str = "hf://";
/// Most redirects followed for a file.
const MAX_REDIRECTS: usize = 5;

/// Whether an option's value is an `hf://` name.
pub fn is_hub_name(written: &str) -> bool {
    written.starts_with(SCHEME)
}

/// The response of the hub.
#[derive(Debug, Default, Clone)]
pub struct HubResponse {
    /// The HTTP status.
    pub status: u16,
    /// `X-Linked-Etag` if present, else `ETag`: identifies the content of a file.
    pub etag: Option<String>,
    /// `Location`.
    pub location: Option<String>,
    /// The body, unless it was written to a file.
    pub body: Vec<u8>,
}

/// Sends requests to the hub.
pub trait HubClient: fmt::Debug + Send + Sync {
    /// Sends one GET request without following redirects, with `token` as bearer token. The body of
    /// a response with status 200 is written to `into`, if given.
    ///
    /// # Errors
    /// A description of the failure.
    fn get(&self, url: &str, token: Option<&str>, into: Option<&Path>) -> Result<HubResponse, String>;
}

/// The files of a model in one layout: of each group of the first list the first that exists, and
/// those of the second list that exist.
pub type Layout<'a> = (&'a [&'a [&'a str]], &'a [&'a str]);

/// What the cache knows of a model's files in a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CachedLayout {
    /// All of them are cached.
    Complete,
    /// Required files are cached, but of none of the others it is known whether they exist.
    Unknown,
    /// Required files are missing.
    Incomplete,
}

/// The hub and its local cache.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    /// The folder of the cache (`~/.cache/huggingface/hub`), if there is one.
    pub cache: Option<PathBuf>,
    /// The URL of the hub: `https://huggingface.co`.
    pub endpoint: String,
    /// The access token for private and gated repositories.
    pub token: Option<String>,
    /// `None` if offline (`HF_HUB_OFFLINE`): only the cache is used.
    pub client: Option<Arc<dyn HubClient>>,
}

/// A parsed name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    /// `models` or `datasets`.
    kind: &'static str,
    /// `org/name`.
    id: String,
    revision: String,
    /// A file or a pattern of files.
    path: Option<String>,
}

impl Name {
    fn parse(written: &str) -> Result<Self, RunError> {
        let wrong = || {
            let hint = "a model is hf://org/name, a dataset hf://datasets/org/name or hf://datasets/org/name/data/*.parquet; \
                        @revision may follow the name";
            RunError::user_with_hint(format!("`{written}` is not a Hugging Face Hub address"), hint)
        };
        let rest = written.strip_prefix(SCHEME).ok_or_else(wrong)?;
        let (kind, rest) = match rest.strip_prefix("datasets/") {
            Some(rest) => ("datasets", rest),
            None => ("models", rest),
        };
        let mut parts = rest.trim_end_matches('/').splitn(3, '/');
        let (org, name) = parts.next().zip(parts.next()).ok_or_else(wrong)?;
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let path = parts.next().map(String::from);
        // They become folder names.
        let is_plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('.')
                && !text.contains("--")
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let valid = is_plain(org) && is_plain(name) && is_plain(revision);
        let safe = path.iter().flat_map(|path| path.split('/')).all(|part| !part.is_empty() && part != "..");
        if !valid || !safe || (kind == "models" && path.is_some()) {
            return Err(wrong());
        }
        Ok(Self { kind, id: format!("{org}/{name}"), revision: revision.into(), path })
    }

    /// Its folder in the cache.
    fn folder_name(&self) -> String {
        format!("{}--{}", self.kind, self.id.replace('/', "--"))
    }
}

/// The hub's description of a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The files of one revision.
struct Snapshot {
    folder: PathBuf,
    /// The names of its files on the hub; `None` if offline.
    files: Option<Vec<String>>,
}

impl Hub {
    /// The local folder of a model (`hf://org/name`) with its files in the first of `layouts` that
    /// it has. If the cache has them, no request is sent.
    ///
    /// # Errors
    /// User errors: a malformed name, a missing file, or a file that is not cached while offline.
    pub fn model(&self, written: &str, layouts: &[Layout<'_>]) -> Result<PathBuf, RunError> {
        let name = Name::parse(written)?;
        if name.kind != "models" {
            return Err(RunError::user(format!("`{written}` is a dataset, but a model is required")));
        }
        if let Some(folder) = self.cached(&name)? {
            let absent = self.absent_folder(&name, &folder)?;
            let state = |layout: &Layout<'_>| cached_layout(&folder, &absent, *layout);
            let cached = layouts.iter().map(|layout| (layout, state(layout)));
            match cached.into_iter().find(|(_, state)| *state != CachedLayout::Incomplete) {
                Some((_, CachedLayout::Complete)) => return Ok(folder),
                // Without them, images might be prepared wrongly.
                Some(((_, optional), _)) if self.client.is_none() => {
                    let message = format!(
                        "{written}: {} is not in the cache, HF_HUB_OFFLINE is set, and whether the model has it is \
                         not known",
                        optional.join(" or ")
                    );
                    let hint = format!("unset HF_HUB_OFFLINE once, or copy the file to {}", folder.display());
                    return Err(RunError::user_with_hint(message, hint));
                }
                _ => {}
            }
        }
        let Snapshot { folder, files } = self.snapshot(&name, written)?;
        let files = files.unwrap_or_default();
        let has = |file: &str| files.iter().any(|name| name == file);
        let is_missing = |group: &&&[&str]| !group.iter().any(|file| has(file));
        let is_complete = |(required, _): &&Layout<'_>| !required.iter().any(|group| is_missing(&group));
        let Some((required, optional)) = layouts.iter().find(is_complete) else {
            let groups = layouts.last().map_or(&[][..], |(required, _)| required);
            let group = groups.iter().find(is_missing).copied().unwrap_or_default();
            let hint = format!("it has {}", files.join(", "));
            let message = format!("{written} has none of {}", group.join(", "));
            return Err(RunError::user_with_hint(message, hint));
        };
        let firsts = required.iter().filter_map(|group| group.iter().find(|file| has(file)));
        for file in firsts.chain(optional.iter().filter(|file| has(file))) {
            self.fetch(&name, &folder, file)?;
        }
        let absent = self.absent_folder(&name, &folder)?;
        for file in optional.iter().filter(|file| !has(file)) {
            local::create_dir(&absent)?;
            local::write(&absent.join(file), b"")?;
        }
        Ok(folder)
    }

    /// The folder whose files mark files that a revision does not have, as `huggingface_hub` does.
    fn absent_folder(&self, name: &Name, snapshot: &Path) -> Result<PathBuf, RunError> {
        Ok(self.root(name)?.join(".no_exist").join(snapshot.file_name().unwrap_or_default()))
    }

    /// The files of a dataset (`hf://datasets/org/name`, optionally with a pattern), sorted.
    /// Without a pattern, its Parquet files or, if there are none, its tar files. While offline,
    /// only cached files.
    ///
    /// # Errors
    /// User errors: a malformed name, no such file, nothing cached while offline.
    pub fn files(&self, written: &str) -> Result<Vec<PathBuf>, RunError> {
        let name = Name::parse(written)?;
        if name.kind != "datasets" {
            let hint = format!("did you mean hf://datasets/{}?", name.id);
            return Err(RunError::user_with_hint(format!("`{written}` is a model"), hint));
        }
        let Snapshot { folder, files } = self.snapshot(&name, written)?;
        let all = match files {
            Some(files) => files,
            None => local::files(&folder, "")?.into_keys().collect(),
        };
        let matching = |pattern: &str| -> Vec<&String> {
            let pattern = file_pattern(pattern);
            let mut files: Vec<&String> = all.iter().filter(|file| pattern.matches(file)).collect();
            files.sort();
            files
        };
        let files = match &name.path {
            Some(pattern) => matching(pattern),
            None => {
                Some(matching("*.parquet")).filter(|f| !f.is_empty()).unwrap_or_else(|| matching("*.tar"))
            }
        };
        if files.is_empty() {
            let hint = "give a pattern of its files: hf://datasets/org/name/data/*.parquet";
            return Err(RunError::user_with_hint(
                format!("{written} has no matching Parquet or tar file"),
                hint,
            ));
        }
        files.into_iter().map(|file| self.fetch(&name, &folder, file)).collect()
    }

    fn root(&self, name: &Name) -> Result<PathBuf, RunError> {
        let cache = self.cache.as_ref().ok_or_else(|| {
            RunError::user_with_hint("there is no folder for the hub's cache", "set HF_HOME to a folder")
        })?;
        Ok(cache.join(name.folder_name()))
    }

    /// The folder of a revision in the cache, if it exists.
    fn cached(&self, name: &Name) -> Result<Option<PathBuf>, RunError> {
        let root = self.root(name)?;
        let commit = local::read(&root.join("refs").join(&name.revision))?;
        let commit =
            commit.map_or(name.revision.clone(), |text| String::from_utf8_lossy(&text).trim().into());
        let folder = root.join("snapshots").join(commit);
        Ok(folder.is_dir().then_some(folder))
    }

    /// Looks up a revision on the hub or, while offline, in the cache.
    fn snapshot(&self, name: &Name, written: &str) -> Result<Snapshot, RunError> {
        let root = self.root(name)?;
        let Some(client) = &self.client else {
            return match self.cached(name)? {
                Some(folder) => Ok(Snapshot { folder, files: None }),
                None => Err(RunError::user_with_hint(
                    format!("{written} is not in the cache ({}), and HF_HUB_OFFLINE is set", root.display()),
                    format!(
                        "unset it, or run `hf download {}` on another machine and copy the cache",
                        name.id
                    ),
                )),
            };
        };
        let url = format!("{}/api/{}/{}/revision/{}", self.endpoint, name.kind, name.id, name.revision);
        let response =
            client.get(&url, self.token.as_deref(), None).map_err(|why| unreachable(&url, &why))?;
        if response.status != 200 {
            return Err(refused(written, &url, response.status));
        }
        let damaged =
            |why: String| RunError::user(format!("{url}: the response is not a list of files: {why}"));
        let listing: Listing = serde_json::from_slice(&response.body).map_err(|e| damaged(e.to_string()))?;
        let is_unsafe = |file: &str| file.starts_with('/') || file.split('/').any(|part| part == "..");
        let safe = listing.sha.chars().all(|c| c.is_ascii_hexdigit())
            && !listing.siblings.iter().any(|file| is_unsafe(&file.rfilename));
        if listing.sha.is_empty() || !safe {
            return Err(damaged("it contains unsafe file names".into()));
        }
        let folder = root.join("snapshots").join(&listing.sha);
        local::create_dir(&folder)?;
        local::write(&root.join("refs").join(&name.revision), listing.sha.as_bytes())?;
        Ok(Snapshot {
            folder,
            files: Some(listing.siblings.into_iter().map(|file| file.rfilename).collect()),
        })
    }

    /// The path of a file of a snapshot, downloaded if missing.
    fn fetch(&self, name: &Name, folder: &Path, file: &str) -> Result<PathBuf, RunError> {
        let path = folder.join(file);
        if path.exists() {
            return Ok(path);
        }
        let commit = folder.file_name().unwrap_or_default().to_string_lossy();
        let space = if name.kind == "datasets" { "datasets/" } else { "" };
        let first = format!("{}/{space}{}/resolve/{commit}/{file}", self.endpoint, name.id);
        let Some(client) = &self.client else {
            let hint = "unset HF_HUB_OFFLINE, or copy the file there";
            return Err(RunError::user_with_hint(format!("{} is not in the cache", path.display()), hint));
        };
        let blobs = self.root(name)?.join("blobs");
        local::create_dir(&blobs)?;
        let part = blobs.join(format!(
            "{}.{}.incomplete",
            hex::encode(&Sha256::digest(&first)[..16]),
            std::process::id()
        ));
        let (mut url, mut etag, mut done) = (first.clone(), None, false);
        for hop in 0..=MAX_REDIRECTS {
            // The token is only for the hub, not for redirect targets.
            let token =
                self.token.as_deref().filter(|_| hop == 0 || url.starts_with(&format!("{}/", self.endpoint)));
            let response = client.get(&url, token, Some(&part)).map_err(|why| unreachable(&url, &why))?;
            etag = etag.or(response.etag);
            match (response.status, response.location) {
                (200, _) => {
                    done = true;
                    break;
                }
                (300..=399, Some(to)) if to.starts_with('/') => url = format!("{}{to}", origin(&url)),
                (300..=399, Some(to)) => url = to,
                (status, _) => return Err(refused(&format!("{}/{file}", name.id), &url, status)),
            }
        }
        if !done {
            return Err(unreachable(&first, "too many redirects"));
        }
        self.store(&part, &blobs, etag.as_deref().unwrap_or_default(), &path, &first)?;
        Ok(path)
    }

    /// Moves a downloaded file to its blob, named by content, and links it into the snapshot.
    fn store(&self, part: &Path, blobs: &Path, etag: &str, path: &Path, url: &str) -> Result<(), RunError> {
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let sha256 = local::digest(part)?.sha256;
        // The ETag of a large file is its SHA-256.
        if etag.len() == 64 && etag != sha256 {
            local::remove_file(part)?;
            return Err(RunError::user_with_hint(
                format!("{url}: the content has the SHA-256 {sha256}, but the hub announced {etag}"),
                "run again: the download was damaged",
            ));
        }
        let is_name = !etag.is_empty() && etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let blob = blobs.join(if is_name { etag } else { &sha256 });
        let io = |at: &Path| {
            let at = at.to_owned();
            move |error| RunError::io(at, error)
        };
        // After a power cut it is whole, or not there.
        fs::File::open(part).and_then(|file| file.sync_all()).map_err(io(part))?;
        fs::rename(part, &blob).map_err(io(&blob))?;
        if let Some(parent) = path.parent() {
            local::create_dir(parent)?;
        }
        link(&blob, path).or_else(|error| if path.exists() { Ok(()) } else { Err(error) }).map_err(io(path))
    }
}

/// What a snapshot in the cache has of a layout; `absent` is the folder of the files that the
/// revision does not have.
fn cached_layout(snapshot: &Path, absent: &Path, (required, optional): Layout<'_>) -> CachedLayout {
    let is_cached = |file: &str| snapshot.join(file).exists();
    if !required.iter().all(|group| group.iter().any(|file| is_cached(file))) {
        CachedLayout::Incomplete
    } else if optional.iter().any(|file| is_cached(file))
        || optional.iter().all(|file| absent.join(file).exists())
    {
        CachedLayout::Complete
    } else {
        CachedLayout::Unknown
    }
}

/// A pattern of file names in which `*` matches any text and `?` one character; brackets are
/// literal.
pub(crate) fn file_pattern(text: &str) -> Pattern {
    let mut pattern = text.replace('[', "[[]");
    while pattern.contains("**") {
        pattern = pattern.replace("**", "*");
    }
    // Without brackets and `**`, every pattern is valid.
    Pattern::new(&pattern).unwrap_or_default()
}

/// Makes a relative link, as `huggingface_hub` does; a copy where links are not supported.
fn link(blob: &Path, path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let snapshots = blob.parent().and_then(Path::parent).unwrap_or(Path::new("")).join("snapshots");
        let below = path.strip_prefix(&snapshots).unwrap_or(path);
        let up: PathBuf = below.components().map(|_| "..").collect();
        std::os::unix::fs::symlink(up.join("blobs").join(blob.file_name().unwrap_or_default()), path)
    }
    #[cfg(not(unix))]
    {
        fs::copy(blob, path).map(|_| ())
    }
}

/// The scheme and host of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find('/').map_or(url, |end| &url[..host + end])
}

fn unreachable(url: &str, why: &str) -> RunError {
    RunError::user_with_hint(
        format!("{url}: {why}"),
        "check the network and HF_ENDPOINT; with HF_HUB_OFFLINE=1 only the cache is used",
    )
}

fn refused(what: &str, url: &str, status: u16) -> RunError {
    let hint = match status {
        401 | 403 => "it is not public: set HF_TOKEN and accept its terms on its page",
        404 => "check the name and the revision",
        429 => "too many requests: wait, or set HF_TOKEN",
        _ => "try again later",
    };
    RunError::user_with_hint(format!("{what}: {url} returned status {status}"), hint)
}

#[cfg(test)]
mod tests;
