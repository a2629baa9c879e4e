//! What a dataset cost: how long it took to make, and how large it is.
//!
//! The time is in a file beside the manifest, since it is not part of the dataset. It is the sum
//! over all runs that worked on it. Nothing depends on it but words and a question, so errors while
//! reading or writing it are ignored.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use twinlens_dataset::blocking;
use twinlens_dataset::protocol::{State, TOOK, WORK};
use twinlens_dataset::storage::Location;

use crate::error::RunError;
use crate::units;

/// Less is not recorded.
const LEAST: Duration = Duration::from_secs(60);
/// How often the time of a running stage is saved: a kill loses at most as much.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// What a dataset cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Bytes of its files and of its checkpoints.
    pub bytes: u64,
    /// How long it took to make; `None` for less than a minute.
    pub time: Option<Duration>,
}

impl Cost {
    /// What is beyond this is not deleted without a question.
    const HIGH: Cost = Cost { bytes: 10_000_000_000, time: Some(Duration::from_secs(600)) };

    /// The cost of a dataset.
    pub(super) fn of(dataset: &Location, state: &State) -> Result<Self, RunError> {
        let work: u64 = dataset.join(WORK).files("")?.values().sum();
        let recorded: u64 = state.files().map(|file| file.bytes).sum();
        Ok(Self { bytes: recorded + work, time: read(dataset) })
    }

    /// Whether it is not deleted without a question.
    pub fn is_high(&self) -> bool {
        self.bytes >= Self::HIGH.bytes || self.time >= Self::HIGH.time
    }
}

impl Display for Cost {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let time = self.time.map_or("less than a minute".into(), units::seconds);
        write!(f, "{}, made in {time}", units::bytes(self.bytes))
    }
}

/// The recorded time of a dataset.
fn read(dataset: &Location) -> Option<Duration> {
    let text = String::from_utf8(dataset.join(TOOK).read().ok()??).ok()?;
    Duration::try_from_secs_f64(text.trim().parse().ok()?).ok()
}

/// Measures the time of a stage and adds it to that of its dataset.
pub(super) struct Stopwatch {
    dataset: Location,
    before: Duration,
    started: Instant,
}

impl Stopwatch {
    /// Starts. `dataset` is open for writing.
    pub(super) fn start(dataset: Location) -> Self {
        let before = read(&dataset).unwrap_or_default();
        Self { dataset, before, started: Instant::now() }
    }

    /// Does work and records how long it took, however it ends.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    self.save().await;
                    return done;
                }
                () = tokio::time::sleep(SAVE_EVERY) => self.save().await,
            }
        }
    }

    async fn save(&self) {
        let total = self.before + self.started.elapsed();
        if total < LEAST {
            return;
        }
        let (file, text) = (self.dataset.join(TOOK), format!("{:.0}\n", total.as_secs_f64()));
        let _ = blocking(move || file.write(text.as_bytes())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn time_adds_up_over_runs() {
        let folder = tempfile::tempdir().unwrap();
        let dataset = Location::from(folder.path());
        let watch = Stopwatch { before: Duration::from_secs(59), ..Stopwatch::start(dataset.clone()) };
        watch.during(async {}).await;
        assert_eq!(read(&dataset), None, "less than a minute is not recorded");
        dataset.join(TOOK).write(b"7200\n").unwrap();
        Stopwatch::start(dataset.clone()).during(async {}).await;
        let cost = Cost { bytes: 3 << 30, time: read(&dataset) };
        assert_eq!(cost.to_string(), "3.0 GiB, made in 2h 00m");
        assert!(cost.is_high() && !Cost { bytes: 5, time: None }.is_high());
        dataset.join(TOOK).write(b"damaged").unwrap();
        assert_eq!(read(&dataset), None);
    }
}
