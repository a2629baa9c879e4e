//! Sessions of the query engine: DataFusion with bounded memory, a spill folder and the functions
//! of the registry.

use std::path::Path;
use std::sync::Arc;

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::error::RunError;
use crate::registry::Registry;

/// The configuration of a session. Strings stay `Utf8`, so that plans have the schemas of the
/// contracts.
pub fn config(threads: usize, batch_rows: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(threads)
        .with_batch_size(batch_rows)
        .with_information_schema(true);
    let options = config.options_mut();
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    config
}

/// The memory pool and spill folder that all sessions of a run share.
pub fn runtime(memory_bytes: usize, spill: &Path) -> Result<Arc<RuntimeEnv>, RunError> {
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![spill.into()]));
    Ok(RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(memory_bytes)))
        .with_disk_manager_builder(disk)
        .build_arc()?)
}

/// A session with unbounded memory, for `check`, `sql` and tests.
pub fn plain(registry: &Registry, threads: usize) -> SessionContext {
    let session = SessionContext::new_with_config(config(threads, 8192));
    registry.install(&session);
    session
}
