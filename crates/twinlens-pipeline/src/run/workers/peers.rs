//! Which of the processes that make splits are alive.
//!
//! Each writes its file again and again. Others see that its version changes, and take the process
//! for dead when it has not changed for the length of a lease, measured by their own clock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::debug;
use twinlens_dataset::DatasetError;
use twinlens_dataset::storage::Location;

use crate::error::RunError;

/// Signs of life in the time of a lease: two may be late.
const BEATS_PER_LEASE: u32 = 4;

/// How often a process shows that it is alive.
pub(super) fn beat(lease: Duration) -> Duration {
    lease / BEATS_PER_LEASE
}

/// A thread that does something at once and then again and again, until it is dropped: unlike a
/// task, it does not wait for busy threads of the runtime.
#[derive(Debug)]
pub(super) struct Repeating {
    /// Dropped to end the thread; a message makes it act at once.
    act: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Repeating {
    pub(super) fn start(every: Duration, mut act: impl FnMut() + Send + 'static) -> Result<Self, RunError> {
        let (sender, asked) = mpsc::channel::<()>();
        let work = move || {
            loop {
                act();
                if asked.recv_timeout(every) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("signs-of-life".into()).spawn(work);
        let thread = thread.map_err(|error| RunError::user(format!("cannot start a thread: {error}")))?;
        Ok(Self { act: Some(sender), thread: Some(thread) })
    }

    /// Acts soon instead of at the next time.
    pub(super) fn act_now(&self) {
        if let Some(act) = &self.act {
            // The thread ends only when this is dropped.
            let _ = act.send(());
        }
    }
}

impl Drop for Repeating {
    fn drop(&mut self) {
        drop(self.act.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there.
            let _ = thread.join();
        }
    }
}

/// What was seen of a process.
#[derive(Debug)]
struct Seen {
    version: Option<String>,
    /// When its version was last seen to change; for one without a file, when it was first missed.
    changed: Instant,
}

/// The processes that make splits of a run, this one among them.
#[derive(Debug)]
pub(super) struct Peers {
    alive: Location,
    name: String,
    lease: Duration,
    seen: Mutex<BTreeMap<String, Seen>>,
    /// How many are alive.
    count: Arc<AtomicUsize>,
}

impl Peers {
    /// Observes the files in `alive`; `count` is kept up to date.
    pub(super) fn new(alive: Location, name: String, lease: Duration, count: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self { alive, name, lease, seen: Mutex::default(), count })
    }

    /// The name of this process.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn lease(&self) -> Duration {
        self.lease
    }

    /// Shows that this process is alive until the result is dropped, and observes the others.
    pub(super) fn show(self: &Arc<Self>) -> Result<Repeating, RunError> {
        let (peers, mut beats) = (self.clone(), 0u64);
        Repeating::start(beat(self.lease), move || {
            beats += 1;
            let shown = peers.file().write(beats.to_string().as_bytes()).and_then(|()| peers.observe());
            if let Err(error) = shown {
                // The store may be back next time; others take this process for dead until then.
                debug!(%error, "no sign of life");
            }
        })
    }

    /// Observes the others without being one of them, until the result is dropped.
    pub(super) fn watch(self: &Arc<Self>) -> Result<Repeating, RunError> {
        let peers = self.clone();
        Repeating::start(beat(self.lease), move || {
            if let Err(error) = peers.observe() {
                debug!(%error, "the signs of life cannot be read");
            }
        })
    }

    fn file(&self) -> Location {
        self.alive.join(&format!("{}.json", self.name))
    }

    /// Withdraws the sign of life: what this process has claimed is free at once.
    pub(super) fn leave(&self) -> Result<(), DatasetError> {
        self.file().delete()
    }

    fn observe(&self) -> Result<(), DatasetError> {
        let versions = self.alive.stats()?;
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (file, version) in
            versions.iter().filter_map(|(file, version)| Some((file.strip_suffix(".json")?, &version.1)))
        {
            match seen.get_mut(file) {
                Some(known) if known.version.as_ref() == Some(version) => {}
                Some(known) => *known = Seen { version: Some(version.clone()), changed: now },
                None => {
                    seen.insert(file.into(), Seen { version: Some(version.clone()), changed: now });
                }
            }
        }
        // A process that has ended deletes its file.
        for (name, known) in seen.iter_mut() {
            if known.version.is_some() && !versions.contains_key(&format!("{name}.json")) {
                known.version = None;
                known.changed = now.checked_sub(self.lease).unwrap_or(now);
            }
        }
        let is_alive = |known: &&Seen| known.version.is_some() && known.changed.elapsed() <= self.lease;
        self.count.store(seen.values().filter(is_alive).count().max(1), Ordering::Relaxed);
        Ok(())
    }

    /// Whether a process has shown no sign of life for a lease, during which this one looked.
    pub(super) fn is_lost(&self, name: &str) -> bool {
        if name == self.name {
            return false;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            seen.entry(name.into()).or_insert_with(|| Seen { version: None, changed: Instant::now() });
        known.changed.elapsed() >= self.lease
    }

    /// How many other processes are alive.
    pub(super) fn others(&self) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_alive = |(name, known): &(&String, &Seen)| {
            **name != self.name && known.version.is_some() && known.changed.elapsed() <= self.lease
        };
        seen.iter().filter(is_alive).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_lost_when_its_sign_of_life_stops_and_at_once_when_it_is_withdrawn() {
        let folder = tempfile::tempdir().unwrap();
        let lease = Duration::from_millis(1500);
        let alive = || Location::from(folder.path());
        let count = Arc::new(AtomicUsize::new(1));
        let us = Peers::new(alive(), "us".into(), lease, count.clone());
        let them = Peers::new(alive(), "them".into(), lease, Arc::default());
        let _shown = us.show().unwrap();
        let shown = them.show().unwrap();
        let wait = |what: &str, done: &dyn Fn() -> bool| {
            let started = Instant::now();
            while !done() {
                assert!(started.elapsed() < Duration::from_secs(20), "{what}");
                std::thread::sleep(Duration::from_millis(5));
            }
            started.elapsed()
        };
        wait("both are seen", &|| count.load(Ordering::Relaxed) == 2 && us.others() == 1);
        assert!(!us.is_lost("them") && !us.is_lost("us"));
        // Killed: without a word. Of the last sign, at most two beats are gone.
        drop(shown);
        let noticed = wait("it is lost", &|| us.is_lost("them"));
        assert!(noticed >= lease / 4, "{noticed:?}");
        assert_eq!(us.others(), 0);
        let shown = them.show().unwrap();
        wait("it is back", &|| !us.is_lost("them"));
        drop(shown);
        them.leave().unwrap();
        let noticed = wait("it left", &|| us.is_lost("them"));
        assert!(noticed < lease, "{noticed:?}");
        // One that never was seen has a lease to show itself.
        assert!(!us.is_lost("nobody"));
        wait("nobody is lost", &|| us.is_lost("nobody"));
    }
}
