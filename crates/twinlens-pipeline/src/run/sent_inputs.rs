//! Input files of the run's own disk: put into the run directory once, by their hash, so that other
//! machines have them.
//!
//! Another machine gets a folder that has the files as they are in the folder of the pipeline file:
//! relative paths of options lead there. So all local inputs of a unit must be in that folder or
//! below it. Where they are not, or are too large, none is sent, and each machine must have them at
//! the same place.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use twinlens_dataset::storage::{Location, is_url, local};

use crate::config::{Node, Resolved};
use crate::error::RunError;
use crate::files::Files;
use crate::hub::is_hub_name;
use crate::patterns;
use crate::run::directory::WORKERS;
use crate::secrets::Secrets;

/// Most bytes of the inputs of a unit that are sent: each machine downloads them.
const MOST_BYTES: u64 = 1 << 30;
/// Most files.
const MOST_FILES: usize = 10_000;

/// A file that was put into the run directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentFile {
    /// Its path, relative to the folder of the pipeline file.
    path: String,
    /// Of its content: its name in the run directory.
    sha256: String,
    /// Whether it is a program.
    is_executable: bool,
}

/// Puts the local inputs of stages into the run directory. `None` if each machine must have them.
/// Blocking.
pub(super) fn send<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    files: &Files,
    run: &Location,
    secrets: &Secrets,
) -> Result<Option<Vec<SentFile>>, RunError> {
    let mut found = Vec::new();
    for node in nodes {
        for written in local_inputs(node) {
            found.extend(below(files, &written)?);
        }
    }
    found.sort();
    found.dedup();
    let mut bytes = 0;
    for path in &found {
        bytes += fs::metadata(path).map_err(|error| RunError::io(path, error))?.len();
    }
    // Names are told in the recipe, and a secret is told nowhere.
    let is_tellable = |name: &String| secrets.hide(name) == name.as_str();
    let names: Option<Vec<String>> =
        found.iter().map(|path| relative(files, path).filter(is_tellable)).collect();
    let Some(names) = names.filter(|names| names.len() <= MOST_FILES && bytes <= MOST_BYTES) else {
        return Ok(None);
    };
    let sent = names.into_iter().zip(&found).map(|(name, path)| send_one(name, path, run));
    Ok(Some(sent.collect::<Result<_, _>>()?))
}

/// The local paths and patterns that a stage reads.
fn local_inputs(node: &Node) -> Vec<String> {
    let declared = node.plan.files.iter().map(|file| file.value().clone());
    let paths = node.inputs.iter().filter_map(|input| match &input.resolved {
        Resolved::Path(path) => Some(path.clone()),
        _ => None,
    });
    let all = declared.chain(paths).chain(node.plan.optional_files.iter().cloned());
    all.filter(|written| !is_url(written) && !is_hub_name(written)).collect()
}

/// The files that a path, a pattern or a folder names; none if it is not there.
fn below(files: &Files, written: &str) -> Result<Vec<PathBuf>, RunError> {
    let (mut paths, found) = (Vec::new(), files.expand(written).unwrap_or_default());
    for location in found {
        let Some(path) = location.as_local() else { continue };
        if path.is_dir() {
            let inside = patterns::all_below(&location)?;
            paths.extend(inside.iter().filter_map(Location::as_local).map(PathBuf::from));
        } else {
            paths.push(path.into());
        }
    }
    Ok(paths)
}

/// The path below the folder of the pipeline file, if it is there.
fn relative(files: &Files, path: &Path) -> Option<String> {
    let name = files.name(&path.into());
    let is_below = |part: Component<'_>| matches!(part, Component::Normal(_));
    Path::new(&name).components().all(is_below).then_some(name)
}

fn send_one(path: String, file: &Path, run: &Location) -> Result<SentFile, RunError> {
    let sha256 = local::digest(file)?.sha256;
    let to = object(run, &sha256);
    if !to.exists()? {
        let before = local::unfinished(&to.local_path());
        if let Some(folder) = before.parent() {
            local::create_dir(folder)?;
        }
        fs::copy(file, &before).map_err(|error| RunError::io(file, error))?;
        to.publish()?;
    }
    Ok(SentFile { path, sha256, is_executable: is_executable(file)? })
}

fn object(run: &Location, sha256: &str) -> Location {
    run.join(&format!("{WORKERS}/inputs/{sha256}"))
}

/// Makes a folder in `scratch` that has the files that were sent, and gives it. Blocking.
pub(super) fn receive(sent: &[SentFile], run: &Location, scratch: &Path) -> Result<PathBuf, RunError> {
    let list = serde_json::to_vec(sent).map_err(|error| RunError::Internal(error.to_string()))?;
    let all = scratch.join("inputs");
    let folder = all.join(hex::encode(&Sha256::digest(list)[..8]));
    local::create_dir(&folder)?;
    // Two units that are built at a time may read the same files.
    let lock = all.join("lock");
    let held = File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _held = held.map_err(|error| RunError::io(&lock, error))?;
    for file in sent {
        let to = folder.join(&file.path);
        if to.exists() {
            continue;
        }
        let is_below = |part: Component<'_>| matches!(part, Component::Normal(_));
        let is_safe = Path::new(&file.path).components().all(is_below);
        if !is_safe || !file.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(RunError::Internal(format!("{} is not a name of an input", file.path)));
        }
        if let Some(parent) = to.parent() {
            local::create_dir(parent)?;
        }
        let from = object(run, &file.sha256);
        let copy = from.local_copy()?;
        let found = local::digest(&copy)?.sha256;
        if found != file.sha256 {
            local::remove_file(&copy)?;
            let message = format!("{from}: damaged: the SHA-256 of its content is {found}");
            return Err(RunError::user_with_hint(
                message,
                "delete this file: the next run puts it there again",
            ));
        }
        let before = local::unfinished(&to);
        fs::copy(&copy, &before).map_err(|error| RunError::io(&before, error))?;
        set_executable(&before, file.is_executable)?;
        local::publish(&to)?;
    }
    Ok(folder)
}

#[cfg(unix)]
fn is_executable(file: &Path) -> Result<bool, RunError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = fs::metadata(file).map_err(|error| RunError::io(file, error))?;
    Ok(metadata.permissions().mode() & 0o100 != 0)
}

#[cfg(not(unix))]
fn is_executable(_: &Path) -> Result<bool, RunError> {
    Ok(false)
}

#[cfg(unix)]
fn set_executable(file: &Path, is_executable: bool) -> Result<(), RunError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = if is_executable { 0o755 } else { 0o644 };
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).map_err(|error| RunError::io(file, error))
}

#[cfg(not(unix))]
fn set_executable(_: &Path, _: bool) -> Result<(), RunError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run directory in a store, and a place for copies.
    fn store(folder: &Path, scratch: &str) -> (Location, PathBuf) {
        let scratch = folder.join(scratch);
        let url = format!("file://{}", folder.join("run").display());
        (Location::parse(&url, Path::new(""), &scratch).unwrap(), scratch)
    }

    #[test]
    fn files_that_were_sent_are_received_as_they_are_by_several_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        fs::create_dir_all(base.join("data")).unwrap();
        fs::create_dir(folder.path().join("run")).unwrap();
        fs::write(base.join("data/a.csv"), "a").unwrap();
        fs::write(base.join("data/same.csv"), "a").unwrap();
        fs::write(base.join("filter.sh"), "exit 0").unwrap();
        set_executable(&base.join("filter.sh"), true).unwrap();
        let (run, _) = store(folder.path(), "scratch-run");
        let names = ["data/a.csv", "data/same.csv", "filter.sh"];
        let send = || -> Vec<SentFile> {
            names.iter().map(|name| send_one(name.to_string(), &base.join(name), &run).unwrap()).collect()
        };
        let sent = send();
        assert_eq!(sent, send());
        assert_eq!(
            sent.iter().map(|file| file.is_executable).collect::<Vec<_>>(),
            [false, false, cfg!(unix)]
        );
        let received: Vec<PathBuf> = std::thread::scope(|scope| {
            let receivers: Vec<_> = (0..8)
                .map(|_| {
                    let (run, scratch) = store(folder.path(), "scratch-other");
                    let sent = &sent;
                    scope.spawn(move || receive(sent, &run, &scratch).unwrap())
                })
                .collect();
            receivers.into_iter().map(|receiver| receiver.join().unwrap()).collect()
        });
        for name in names {
            assert_eq!(fs::read(received[0].join(name)).unwrap(), fs::read(base.join(name)).unwrap());
        }
        assert!(received.iter().all(|folder| *folder == received[0]));
        assert_eq!(is_executable(&received[0].join("filter.sh")).unwrap(), cfg!(unix));

        // A damaged object, and a name that leads elsewhere.
        let (run, scratch) = store(folder.path(), "scratch-third");
        object(&run, &sent[0].sha256).write(b"b").unwrap();
        let error = receive(&sent, &run, &scratch).unwrap_err().to_string();
        assert!(error.contains("damaged: the SHA-256"), "{error}");
        let outside = SentFile { path: "../a.csv".into(), ..sent[2].clone() };
        assert!(receive(&[outside], &run, &scratch).is_err());
    }
}
