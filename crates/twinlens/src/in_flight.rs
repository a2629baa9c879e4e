//! Which images a process was decoding when it died, so that one image never stops a run twice.
//!
//! Each decoding thread has a slot of a small file, into which it writes what it is about to
//! decode: a call of the system for each image, no sync, since the file must survive a process and
//! not a power cut. The next run finds the slots. The images in them are first decoded by a process
//! of their own: of one that kills that, too, the row is rejected as `killed_the_process`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use twinlens_image::{DecodeWatch, ImageModes, Limits, decode_as, watch_decoders};

use crate::children;

/// The file, in the local folder of a run.
const FILE: &str = ".inflight";
/// The argument by which this program is started to decode one image.
const TRIAL: &str = "--decode-one-image";
/// How long that may take.
const TRIAL_TIME: Duration = Duration::from_secs(60);
/// Bytes of a slot.
const SLOT: usize = 16;
/// Threads that decode at a time; others are not noted.
const SLOTS: u32 = 1024;
/// The token of an image that is not noted.
const NO_SLOT: u32 = u32::MAX;
/// Bytes at both ends of an image by which it is known again.
const END: usize = 4096;
/// In debug builds: an image that holds the value of this variable aborts its process. For tests.
pub(crate) const ABORT_ON: &str = "TWINLENS_ABORT_ON";

/// What an image is known by: checksums of both ends, and its length. Another image with the same
/// key is only tried in vain.
type Key = [u8; SLOT];

fn key(bytes: &[u8]) -> Key {
    let mut key = Key::default();
    let (first, last) = (&bytes[..bytes.len().min(END)], &bytes[bytes.len().saturating_sub(END)..]);
    key[..4].copy_from_slice(&crc32fast::hash(first).to_le_bytes());
    key[4..8].copy_from_slice(&crc32fast::hash(last).to_le_bytes());
    key[8..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    key
}

/// What is known of an image that was being decoded when a process died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspect {
    Untried,
    /// It kills processes.
    Killer,
}

/// Notes in a folder, which begin with the first image.
pub(crate) struct Notes {
    folder: PathBuf,
    /// `None` inside if they cannot be written: a death then costs what it costs without them.
    opened: OnceLock<Option<InFlight>>,
}

impl Notes {
    /// Notes in a folder from now on what this process decodes.
    pub(crate) fn watch(folder: &Path) -> Arc<Self> {
        let opened = OnceLock::new();
        if !children::can_be_started() {
            // A suspect could not be tried.
            let _ = opened.set(None);
        }
        let notes = Arc::new(Self { folder: folder.into(), opened });
        watch_decoders(Some(notes.clone()));
        notes
    }

    /// Stops noting. After a run that is complete nothing is suspect; after another one, what was
    /// not tried still is.
    pub(crate) fn stop(&self, is_complete: bool) {
        watch_decoders(None);
        let path = self.folder.join(FILE);
        // What cannot be deleted is a suspicion too much.
        let _ = match self.opened.get() {
            Some(Some(notes)) if !is_complete => notes.keep_suspects(&path),
            _ if is_complete && path.exists() => fs::remove_file(&path),
            _ => Ok(()),
        };
    }
}

impl DecodeWatch for Notes {
    fn begin(&self, bytes: &[u8]) -> Option<u32> {
        let open = || InFlight::open(&self.folder, survives_trial).ok();
        match self.opened.get_or_init(open) {
            Some(notes) => notes.begin(bytes),
            None => Some(NO_SLOT),
        }
    }

    fn end(&self, slot: u32) {
        if let Some(Some(notes)) = self.opened.get() {
            notes.end(slot);
        }
    }
}

/// What processes left in their folders, for one that does their work.
pub(crate) fn left_in(folder: &Path) -> Vec<u8> {
    fs::read(folder.join(FILE)).unwrap_or_default()
}

/// Leaves in a folder what other processes left in theirs.
pub(crate) fn leave_in(folder: &Path, left: &[u8]) -> io::Result<()> {
    if left.is_empty() { Ok(()) } else { fs::write(folder.join(FILE), left) }
}

/// The notes of this process.
struct InFlight {
    file: File,
    free: Mutex<Vec<u32>>,
    suspects: Mutex<HashMap<Key, Suspect>>,
    /// Whether an image survives being decoded.
    survives: fn(&[u8]) -> bool,
}

impl InFlight {
    /// Reads what the process before this one left in a folder.
    fn open(folder: &Path, survives: fn(&[u8]) -> bool) -> io::Result<Self> {
        let path = folder.join(FILE);
        let left = match fs::read(&path) {
            Ok(left) => left,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let keys = left.chunks_exact(SLOT).filter_map(|slot| Key::try_from(slot).ok());
        let suspects: HashMap<Key, Suspect> =
            keys.filter(|key| *key != Key::default()).map(|key| (key, Suspect::Untried)).collect();
        write_notes(&path, &suspects)?;
        let file = File::options().write(true).open(&path)?;
        let free = Mutex::new((0..SLOTS).rev().collect());
        Ok(Self { file, free, suspects: Mutex::new(suspects), survives })
    }

    /// Leaves the suspects, and nothing else.
    fn keep_suspects(&self, path: &Path) -> io::Result<()> {
        let suspects = locked(&self.suspects);
        if suspects.is_empty() { fs::remove_file(path) } else { write_notes(path, &suspects) }
    }

    /// Whether an image may be decoded in this process.
    fn may_be_decoded(&self, key: Key, bytes: &[u8]) -> bool {
        match locked(&self.suspects).get(&key) {
            None => return true,
            Some(Suspect::Killer) => return false,
            Some(Suspect::Untried) => {}
        }
        let survives = (self.survives)(bytes);
        let mut suspects = locked(&self.suspects);
        if survives {
            suspects.remove(&key);
        } else {
            suspects.insert(key, Suspect::Killer);
        }
        survives
    }
}

impl InFlight {
    /// Notes an image; `None` if it has killed a process.
    fn begin(&self, bytes: &[u8]) -> Option<u32> {
        let key = key(bytes);
        if !self.may_be_decoded(key, bytes) {
            return None;
        }
        let slot = locked(&self.free).pop().unwrap_or(NO_SLOT);
        if slot != NO_SLOT {
            // Without notes, a death costs what it costs today.
            let _ = write_at(&self.file, &key, u64::from(slot) * SLOT as u64);
        }
        abort_on_marked(bytes);
        Some(slot)
    }

    fn end(&self, slot: u32) {
        // The slot keeps its note until it is used again: an innocent image is tried in vain.
        if slot != NO_SLOT {
            locked(&self.free).push(slot);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(not(unix))]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    use std::io::{Seek, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

/// Writes a file of empty slots, followed by the suspects. A kill leaves the one before, or this
/// one.
fn write_notes(path: &Path, suspects: &HashMap<Key, Suspect>) -> io::Result<()> {
    let mut notes = vec![0; SLOTS as usize * SLOT];
    let mut keys: Vec<&Key> = suspects.keys().collect();
    keys.sort();
    keys.into_iter().for_each(|key| notes.extend(key));
    let new = path.with_extension("new");
    fs::write(&new, notes)?;
    fs::rename(&new, path)
}

/// Decodes an image in a process of its own; whether that lives.
fn survives_trial(bytes: &[u8]) -> bool {
    // A machine that cannot start processes does not tell anything about the image.
    try_alone(bytes).unwrap_or(true)
}

fn try_alone(bytes: &[u8]) -> io::Result<bool> {
    let mut command = children::command(TRIAL)?;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // It reads all of it first, unless it dies.
        let _ = stdin.write_all(bytes);
    }
    let end = Instant::now() + TRIAL_TIME;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(status.success()),
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(2)),
            None => {
                child.kill()?;
                child.wait()?;
                return Ok(false);
            }
        }
    }
}

/// If this process was started to decode one image: does that.
pub(crate) fn trial(argument: &OsStr) -> Option<u8> {
    if argument != TRIAL {
        return None;
    }
    let mut bytes = Vec::new();
    if io::stdin().read_to_end(&mut bytes).is_err() {
        return Some(1);
    }
    abort_on_marked(&bytes);
    // The process that asks has checked the header.
    let limits = Limits::none();
    // What is refused did not kill.
    let _ = decode_as(&bytes, &limits, ImageModes::White);
    let _ = decode_as(&bytes, &limits, ImageModes::OpenClip);
    Some(0)
}

pub(crate) fn abort_on_marked(bytes: &[u8]) {
    if cfg!(debug_assertions)
        && let Ok(mark) = std::env::var(ABORT_ON)
        && bytes.windows(mark.len().max(1)).any(|part| part == mark.as_bytes())
    {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn killer(bytes: &[u8]) -> bool {
        !bytes.starts_with(b"bad")
    }

    #[test]
    fn what_was_in_flight_is_tried_alone_and_then_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = || InFlight::open(dir.path(), killer).unwrap();
        let first = open();
        let (good, bad) = (first.begin(b"good").unwrap(), first.begin(b"bad").unwrap());
        assert_ne!(good, bad);
        first.end(good);
        // It dies.
        drop(first);
        let second = open();
        assert_eq!(locked(&second.suspects).len(), 2);
        assert!(second.begin(b"bad").is_none() && second.begin(b"good").is_some());
        assert!(second.begin(b"bad").is_none(), "it is not tried again");
        assert_eq!(locked(&second.suspects).len(), 1);
        // Interrupted before the row was committed as a reject.
        second.keep_suspects(&dir.path().join(FILE)).unwrap();
        let third = open();
        assert!(third.begin(b"bad").is_none());
        assert!(third.begin(b"good").is_some());
        let notes = Notes { folder: dir.path().into(), opened: OnceLock::from(Some(third)) };
        notes.stop(true);
        assert!(!dir.path().join(FILE).exists());
        assert!(open().begin(b"bad").is_some());
    }

    #[test]
    fn a_note_costs_microseconds() {
        let dir = tempfile::tempdir().unwrap();
        let notes = InFlight::open(dir.path(), killer).unwrap();
        let image = vec![7; 100_000];
        let started = Instant::now();
        for _ in 0..1000 {
            let slot = notes.begin(&image).unwrap();
            notes.end(slot);
        }
        let each = started.elapsed() / 1000;
        println!("{each:?} per image");
        assert!(each < Duration::from_millis(1), "{each:?}");
    }
}
