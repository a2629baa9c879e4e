//! Sessions of the query engine: DataFusion with bounded memory, a spill folder and the functions
//! of the registry.

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result as EngineResult;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::scalar::ScalarValue;
use twinlens_dataset::contracts;

use crate::context::Clock;
use crate::error::RunError;
use crate::registry::Registry;
use crate::sql::{RUN_TIME, limits};

/// The configuration of a session. Strings stay `Utf8`, so that plans have the schemas of the
/// contracts.
pub fn config(threads: usize, batch_rows: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(threads)
        .with_batch_size(batch_rows)
        .with_information_schema(true)
        // With statistics of whole files, the engine takes a column of one number and NaN for a
        // constant: they leave NaN out.
        .with_collect_statistics(false);
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

/// Bytes of the memory pool of a session that is not part of a run.
const PLAIN_MEMORY: usize = 1 << 30;

/// A session apart from a run, for `check`, `sql` and tests. It spills to the temporary folder of
/// the system.
pub fn plain(registry: &Registry, threads: usize) -> SessionContext {
    let pool = Arc::new(FairSpillPool::new(PLAIN_MEMORY));
    let runtime = Arc::new(RuntimeEnv { memory_pool: pool, ..RuntimeEnv::default() });
    open(registry, config(threads, 8192), runtime, Clock::System)
}

/// Functions of the engine that it has only in builds in which a dependency asks for them
/// (Ballista): a pipeline must mean the same in every build.
const OF_SOME_BUILDS: [&str; 6] = ["digest", "md5", "sha224", "sha256", "sha384", "sha512"];

/// A session with the functions that SQL may use. `clock` is that of the run.
pub(crate) fn open(
    registry: &Registry,
    config: SessionConfig,
    runtime: Arc<RuntimeEnv>,
    clock: Clock,
) -> SessionContext {
    let session = SessionContext::new_with_config_rt(config, runtime);
    for name in OF_SOME_BUILDS {
        session.deregister_udf(name);
    }
    limits::install(&session);
    session.register_udf(ScalarUDF::from(RunTime::at(clock.micros())));
    registry.install(&session);
    session
}

/// `run_time()`: when the run began. The same for all rows, and for equal runs whose clock is
/// pinned.
#[derive(Debug, PartialEq, Eq, Hash)]
struct RunTime {
    /// Microseconds since 1970, UTC.
    micros: i64,
    signature: Signature,
}

impl RunTime {
    fn at(micros: i64) -> Self {
        Self { micros, signature: Signature::nullary(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for RunTime {
    fn name(&self) -> &str {
        RUN_TIME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> EngineResult<DataType> {
        Ok(contracts::timestamp())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> EngineResult<ColumnarValue> {
        let zone = Some("UTC".into());
        Ok(ColumnarValue::Scalar(ScalarValue::TimestampMicrosecond(Some(self.micros), zone)))
    }
}
