//! How a pipeline is run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use twinlens_dataset::storage::Location;

use crate::context::Clock;
use crate::hub::Hub;
use crate::ranks::Ranks;
use crate::run::consent::Replace;
use crate::run::elsewhere::Elsewhere;

/// How a pipeline is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The run directory.
    pub dir: Location,
    /// A local folder for copies of remote files, and for files to be uploaded to an object store.
    pub scratch: PathBuf,
    /// Where `hf://` names are found.
    pub hub: Hub,
    /// Make every dataset again. Those of before are kept until the new ones are complete.
    pub fresh: bool,
    /// Whether datasets that were expensive to make may be deleted.
    pub replace: Replace,
    /// Stop after this stage.
    pub until: Option<String>,
    /// The most rows that each plan of row stages reads, and that a source (files, a crawl) makes.
    pub max_rows: Option<u64>,
    /// Threads of the engine.
    pub threads: usize,
    /// Bytes of the engine's memory pool; beyond it plans spill to disk.
    pub memory_bytes: usize,
    /// Bytes that fetching and decoding may hold in flight.
    pub bytes_in_flight: usize,
    /// How long splits in flight may take after an interrupt.
    pub grace: Duration,
    /// The time of day.
    pub clock: Clock,
    /// Hosts that are served on loopback for this run.
    pub hosts: Arc<BTreeMap<String, SocketAddr>>,
    /// Processes elsewhere that make splits, too.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
    /// The processes that do jobs together, of which this is rank 0.
    pub ranks: Option<Arc<Ranks>>,
    /// How many processes share what must not be asked too often: a limit for a host is divided by
    /// it.
    pub sharers: Arc<AtomicUsize>,
}

impl Settings {
    /// A whole run in `folder` with two threads and little memory. Change it by a struct update.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            dir: folder.join("run").into(),
            scratch: folder.join("scratch"),
            hub: Hub::default(),
            fresh: false,
            replace: Replace::Yes,
            until: None,
            max_rows: None,
            threads: 2,
            memory_bytes: 256 << 20,
            bytes_in_flight: 64 << 20,
            grace: Duration::from_secs(5),
            clock: Clock::System,
            hosts: Arc::default(),
            elsewhere: None,
            ranks: None,
            sharers: Arc::new(AtomicUsize::new(1)),
        }
    }
}
