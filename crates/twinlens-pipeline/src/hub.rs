//! `hf://` names: models and datasets of the Hugging Face hub, by way of the cache that its own
//! library keeps.
//!
//! `hf://org/name` is a model, `hf://datasets/org/name` a dataset; `@revision` may follow, and of a
//! dataset a pattern of its files. The cache has the layout of `huggingface_hub`
//! (`models--org--name/{refs,blobs,snapshots}`), so that what was downloaded by it is found here,
//! and the other way round. Files appear in it whole.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use twinlens_dataset::storage::{hex, local};

use crate::error::RunError;

/// What such a name begins with.
const SCHEME: &str = "hf://";
/// Redirects that are followed for a file.
const REDIRECTS: usize = 5;

/// Whether a text of the options names something of the hub.
pub fn is_hub_name(written: &str) -> bool {
    written.starts_with(SCHEME)
}

/// What a request gave.
#[derive(Debug, Default, Clone)]
pub struct HubResponse {
    /// The HTTP status.
    pub status: u16,
    /// `ETag`, or `X-Linked-Etag` where that is given: the name of a file's content.
    pub etag: Option<String>,
    /// `Location`.
    pub location: Option<String>,
    /// The body, where it was not written to a file.
    pub body: Vec<u8>,
}

/// Who asks the hub.
pub trait HubClient: fmt::Debug + Send + Sync {
    /// One GET, without following redirects; with `token` as a bearer. A body of status 200 is
    /// written to `into`, where that is given.
    ///
    /// # Errors
    /// What went wrong, in words.
    fn get(&self, url: &str, token: Option<&str>, into: Option<&Path>) -> Result<HubResponse, String>;
}

/// The hub, and the cache on this machine.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    /// The folder of the cache (`~/.cache/huggingface/hub`); `None`: there is none.
    pub cache: Option<PathBuf>,
    /// Where the hub is: `https://huggingface.co`.
    pub endpoint: String,
    /// For what is not public.
    pub token: Option<String>,
    /// Who asks; `None`: nobody may (`HF_HUB_OFFLINE`), and what is not in the cache is not to be
    /// had.
    pub client: Option<Arc<dyn HubClient>>,
}

/// What a name means.
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
            RunError::user_with_hint(format!("`{written}` names nothing of the hub"), hint)
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
        // They become names of folders.
        let plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('.')
                && !text.contains("--")
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let good = plain(org) && plain(name) && plain(revision);
        let safe = path.iter().flat_map(|path| path.split('/')).all(|part| !part.is_empty() && part != "..");
        if !good || !safe || (kind == "models" && path.is_some()) {
            return Err(wrong());
        }
        Ok(Self { kind, id: format!("{org}/{name}"), revision: revision.into(), path })
    }

    /// The folder in the cache.
    fn folder(&self) -> String {
        format!("{}--{}", self.kind, self.id.replace('/', "--"))
    }
}

/// What the hub says of a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Where the files of one revision are.
struct Snapshot {
    folder: PathBuf,
    /// The names of its files on the hub; `None` where only the cache was asked.
    files: Option<Vec<String>>,
}

impl Hub {
    /// The local folder of a model (`hf://org/name`) that has of each group of `wanted` files the
    /// first that there is. What the cache has is taken as it is, and nothing is asked.
    ///
    /// # Errors
    /// The user's: a name that is none, a file that the model does not have, one that is not in the
    /// cache while offline.
    pub fn model(&self, written: &str, wanted: &[&[&str]]) -> Result<PathBuf, RunError> {
        let name = Name::parse(written)?;
        if name.kind != "models" {
            return Err(RunError::user(format!("`{written}` is a dataset, where a model is wanted")));
        }
        let has =
            |folder: &Path| wanted.iter().all(|group| group.iter().any(|file| folder.join(file).exists()));
        if let Some(snapshot) = self.cached(&name)?
            && has(&snapshot)
        {
            return Ok(snapshot);
        }
        let Snapshot { folder, files } = self.snapshot(&name, written)?;
        let files = files.unwrap_or_default();
        for group in wanted {
            let Some(file) = group.iter().find(|file| files.iter().any(|there| there == *file)) else {
                let hint = format!("it has {}", files.join(", "));
                let message = format!("{written} has none of {}", group.join(", "));
                return Err(RunError::user_with_hint(message, hint));
            };
            self.fetch(&name, &folder, file)?;
        }
        Ok(folder)
    }

    /// The files of a dataset (`hf://datasets/org/name`, or a pattern below it), sorted; if no
    /// pattern is given, its Parquet files, else its tar files. While offline, those that the cache
    /// has.
    ///
    /// # Errors
    /// The user's: a name that is none, no such file, nothing in the cache while offline.
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
            let mut found: Vec<&String> = all
                .iter()
                .filter(|file| crate::files::matches(pattern.as_bytes(), file.as_bytes()))
                .collect();
            found.sort();
            found
        };
        let found = match &name.path {
            Some(pattern) => matching(pattern),
            None => {
                Some(matching("*.parquet")).filter(|f| !f.is_empty()).unwrap_or_else(|| matching("*.tar"))
            }
        };
        if found.is_empty() {
            let hint = "name a pattern of its files: hf://datasets/org/name/data/*.parquet";
            return Err(RunError::user_with_hint(
                format!("{written} has no Parquet or tar file of that name"),
                hint,
            ));
        }
        found.into_iter().map(|file| self.fetch(&name, &folder, file)).collect()
    }

    fn root(&self, name: &Name) -> Result<PathBuf, RunError> {
        let cache = self.cache.as_ref().ok_or_else(|| {
            RunError::user_with_hint("there is no cache for files of the hub", "set HF_HOME to a folder")
        })?;
        Ok(cache.join(name.folder()))
    }

    /// The folder of a revision in the cache, if it is there.
    fn cached(&self, name: &Name) -> Result<Option<PathBuf>, RunError> {
        let root = self.root(name)?;
        let commit = local::read(&root.join("refs").join(&name.revision))?;
        let commit =
            commit.map_or(name.revision.clone(), |text| String::from_utf8_lossy(&text).trim().into());
        let folder = root.join("snapshots").join(commit);
        Ok(folder.is_dir().then_some(folder))
    }

    /// Asks the hub what a revision is; or, while offline, the cache.
    fn snapshot(&self, name: &Name, written: &str) -> Result<Snapshot, RunError> {
        let root = self.root(name)?;
        let Some(client) = &self.client else {
            return match self.cached(name)? {
                Some(folder) => Ok(Snapshot { folder, files: None }),
                None => Err(RunError::user_with_hint(
                    format!("{written} is not in the cache ({}), and HF_HUB_OFFLINE is set", root.display()),
                    format!("unset it, or download it elsewhere: hf download {} and copy the cache", name.id),
                )),
            };
        };
        let url = format!("{}/api/{}/{}/revision/{}", self.endpoint, name.kind, name.id, name.revision);
        let answer = client.get(&url, self.token.as_deref(), None).map_err(|why| unreachable(&url, &why))?;
        if answer.status != 200 {
            return Err(refused(written, &url, answer.status));
        }
        let damaged = |why: String| RunError::user(format!("{url}: the answer is no list of files: {why}"));
        let listing: Listing = serde_json::from_slice(&answer.body).map_err(|e| damaged(e.to_string()))?;
        let strange = |file: &str| file.starts_with('/') || file.split('/').any(|part| part == "..");
        let safe = listing.sha.chars().all(|c| c.is_ascii_hexdigit())
            && !listing.siblings.iter().any(|file| strange(&file.rfilename));
        if listing.sha.is_empty() || !safe {
            return Err(damaged("it names strange files".into()));
        }
        let folder = root.join("snapshots").join(&listing.sha);
        local::create_dir(&folder)?;
        local::write(&root.join("refs").join(&name.revision), listing.sha.as_bytes())?;
        Ok(Snapshot {
            folder,
            files: Some(listing.siblings.into_iter().map(|file| file.rfilename).collect()),
        })
    }

    /// A file of a snapshot, downloaded where it is not there.
    fn fetch(&self, name: &Name, folder: &Path, file: &str) -> Result<PathBuf, RunError> {
        let path = folder.join(file);
        if path.exists() {
            return Ok(path);
        }
        let commit = folder.file_name().unwrap_or_default().to_string_lossy();
        let space = if name.kind == "datasets" { "datasets/" } else { "" };
        let first = format!("{}/{space}{}/resolve/{commit}/{file}", self.endpoint, name.id);
        let Some(client) = &self.client else {
            let hint = "unset HF_HUB_OFFLINE, or put the file there";
            return Err(RunError::user_with_hint(format!("{} is not in the cache", path.display()), hint));
        };
        let blobs = self.root(name)?.join("blobs");
        local::create_dir(&blobs)?;
        let part =
            blobs.join(format!("{}.{}.incomplete", hex(&Sha256::digest(&first)[..16]), std::process::id()));
        let (mut url, mut etag, mut done) = (first.clone(), None, false);
        for hop in 0..=REDIRECTS {
            // The token is for the hub, and not for where it sends us.
            let token =
                self.token.as_deref().filter(|_| hop == 0 || url.starts_with(&format!("{}/", self.endpoint)));
            let answer = client.get(&url, token, Some(&part)).map_err(|why| unreachable(&url, &why))?;
            etag = etag.or(answer.etag);
            match (answer.status, answer.location) {
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
            return Err(unreachable(&first, "it redirects for ever"));
        }
        self.keep(&part, &blobs, etag.as_deref().unwrap_or_default(), &path, &first)?;
        Ok(path)
    }

    /// Gives a downloaded file its place: under the name of its content, and a link to it in the
    /// snapshot.
    fn keep(&self, part: &Path, blobs: &Path, etag: &str, path: &Path, url: &str) -> Result<(), RunError> {
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let (_, sha256) = local::digest(part)?;
        // Large files are named by their hash.
        if etag.len() == 64 && etag != sha256 {
            local::remove_file(part)?;
            return Err(RunError::user_with_hint(
                format!("{url}: the content has the SHA-256 {sha256}, but the hub promised {etag}"),
                "run again: the download was damaged",
            ));
        }
        let named = !etag.is_empty() && etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let blob = blobs.join(if named { etag } else { &sha256 });
        let io = |at: &Path| {
            let at = at.to_owned();
            move |error| RunError::io(at, error)
        };
        fs::rename(part, &blob).map_err(io(&blob))?;
        if let Some(parent) = path.parent() {
            local::create_dir(parent)?;
        }
        link(&blob, path).or_else(|error| if path.exists() { Ok(()) } else { Err(error) }).map_err(io(path))
    }
}

/// A link as `huggingface_hub` makes it, relative; where there are none, a copy.
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
        "look at the network, and at HF_ENDPOINT; with HF_HUB_OFFLINE=1 only the cache is used",
    )
}

fn refused(what: &str, url: &str, status: u16) -> RunError {
    let hint = match status {
        401 | 403 => "it is not public: set HF_TOKEN, and accept its terms on its page",
        404 => "look at the name and the revision",
        429 => "the hub wants fewer requests: wait, or set HF_TOKEN",
        _ => "try again later",
    };
    RunError::user_with_hint(format!("{what}: {url} answers {status}"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A hub in memory: answers by URL; and what was asked, with or without the token.
    #[derive(Debug, Default)]
    struct Made {
        answers: BTreeMap<String, HubResponse>,
        asked: Mutex<Vec<(String, bool)>>,
    }

    impl Made {
        fn has(mut self, url: &str, status: u16, etag: &str, location: &str, body: &str) -> Self {
            let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            let answer =
                HubResponse { status, etag: some(etag), location: some(location), body: body.into() };
            self.answers.insert(url.into(), answer);
            self
        }
    }

    impl HubClient for Made {
        fn get(&self, url: &str, token: Option<&str>, into: Option<&Path>) -> Result<HubResponse, String> {
            self.asked.lock().unwrap().push((url.into(), token.is_some()));
            let answer = self.answers.get(url).cloned().ok_or("no route")?;
            if let (200, Some(path)) = (answer.status, into) {
                fs::write(path, &answer.body).unwrap();
            }
            Ok(answer)
        }
    }

    fn hub(cache: &Path, client: Option<Arc<dyn HubClient>>) -> Hub {
        Hub { cache: Some(cache.into()), endpoint: "http://hub".into(), token: Some("t".into()), client }
    }

    const WANTED: [&[&str]; 2] =
        [&["open_clip_config.json", "config.json"], &["model.safetensors", "pytorch_model.bin"]];

    #[test]
    fn a_model_is_downloaded_once_into_the_layout_of_the_hubs_own_library() {
        let folder = tempfile::tempdir().unwrap();
        let weights = hex(&Sha256::digest("weights"));
        let listing = format!(
            r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json"}}, {{"rfilename": "model.safetensors"}}, {{"rfilename": "flax.msgpack"}}]}}"#
        );
        let at = format!("http://hub/org/name/resolve/{COMMIT}");
        let made = Made::default()
            .has("http://hub/api/models/org/name/revision/main", 200, "", "", &listing)
            .has(&format!("{at}/config.json"), 307, "\"blob1\"", "/moved/config.json", "")
            .has("http://hub/moved/config.json", 200, "\"other\"", "", "{}")
            .has(&format!("{at}/model.safetensors"), 302, &format!("\"{weights}\""), "http://cdn/w", "")
            .has("http://cdn/w", 200, "\"cdn\"", "", "weights");
        let made = Arc::new(made);
        let hub = hub(folder.path(), Some(made.clone()));
        let model = hub.model("hf://org/name", &WANTED).unwrap();
        assert_eq!(model, folder.path().join("models--org--name/snapshots").join(COMMIT));
        assert_eq!(fs::read_to_string(model.join("config.json")).unwrap(), "{}");
        let root = folder.path().join("models--org--name");
        let mut blobs = local::list(&root.join("blobs")).unwrap().files;
        blobs.sort();
        assert_eq!(blobs, [weights.clone(), "blob1".into()]);
        assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
        #[cfg(unix)]
        assert_eq!(fs::read_link(model.join("config.json")).unwrap(), Path::new("../../blobs/blob1"));
        let asked = std::mem::take(&mut *made.asked.lock().unwrap());
        assert_eq!(asked.len(), 5);
        assert!(asked.iter().all(|(url, token)| *token == url.starts_with("http://hub/")), "{asked:?}");
        // The second time, and offline, nothing is asked.
        assert_eq!(hub.model("hf://org/name", &WANTED).unwrap(), model);
        assert_eq!(self::hub(folder.path(), None).model("hf://org/name@main", &WANTED).unwrap(), model);
        assert_eq!(
            self::hub(folder.path(), None).model(&format!("hf://org/name@{COMMIT}"), &WANTED).unwrap(),
            model
        );
        assert!(made.asked.lock().unwrap().is_empty());
    }

    #[test]
    fn the_files_of_a_dataset_are_found_by_pattern_online_and_offline() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["data/b.parquet", "data/a.parquet", "README.md", "x.tar"];
        let listed: Vec<String> = files.iter().map(|file| format!(r#"{{"rfilename": "{file}"}}"#)).collect();
        let listing = format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, listed.join(","));
        let mut made =
            Made::default().has("http://hub/api/datasets/org/set/revision/v1", 200, "", "", &listing);
        for file in files {
            made =
                made.has(&format!("http://hub/datasets/org/set/resolve/{COMMIT}/{file}"), 200, "", "", file);
        }
        let online = hub(folder.path(), Some(Arc::new(made)));
        let names = |hub: &Hub, written: &str| -> Vec<String> {
            hub.files(written).unwrap().iter().map(|path| fs::read_to_string(path).unwrap()).collect()
        };
        assert_eq!(names(&online, "hf://datasets/org/set@v1/data/b*"), ["data/b.parquet"]);
        assert_eq!(names(&online, "hf://datasets/org/set@v1"), ["data/a.parquet", "data/b.parquet"]);
        let offline = hub(folder.path(), None);
        assert_eq!(names(&offline, "hf://datasets/org/set@v1"), ["data/a.parquet", "data/b.parquet"]);
    }

    #[test]
    fn what_is_not_to_be_had_says_why_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let listing = format!(
            r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json"}}, {{"rfilename": "model.safetensors"}}]}}"#
        );
        let lying = "f".repeat(64);
        let made = Made::default()
            .has("http://hub/api/models/org/gated/revision/main", 401, "", "", "")
            .has(
                "http://hub/api/models/org/odd/revision/main",
                200,
                "",
                "",
                r#"{"sha": "../x", "siblings": []}"#,
            )
            .has("http://hub/api/models/org/name/revision/main", 200, "", "", &listing)
            .has(&format!("http://hub/org/name/resolve/{COMMIT}/config.json"), 200, &lying, "", "{}");
        let online = hub(folder.path(), Some(Arc::new(made)));
        let offline = hub(folder.path(), None);
        let cases: [(&Hub, &str, &str); 7] = [
            (&offline, "hf://org/name", "HF_HUB_OFFLINE is set"),
            (&online, "hf://org/gated", "set HF_TOKEN"),
            (&online, "hf://org/odd", "strange files"),
            (&online, "hf://org/gone", "look at the network"),
            (&online, "hf://org/name", "but the hub promised"),
            (&online, "hf://datasets/org/name", "is a dataset"),
            (&online, "hf://../name", "names nothing of the hub"),
        ];
        for (hub, written, expected) in cases {
            let error = hub.model(written, &WANTED).unwrap_err();
            let RunError::User { message, hint } = error else { panic!("{error}") };
            let told = format!("{message} | {}", hint.unwrap_or_default());
            assert!(told.contains(expected), "{written}: {told}");
        }
        let none = online.model("hf://org/name", &[&["nothing.bin"]]).unwrap_err().to_string();
        assert!(none.contains("has none of nothing.bin"), "{none}");
        assert!(online.files("hf://org/name").unwrap_err().to_string().contains("is a model"));
    }
}
