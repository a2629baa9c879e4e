//! How an executor runs a task: only splits, and dropped at once when it is cancelled.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use ballista_core::JobId;
use ballista_core::serde::protobuf::ShuffleWritePartition;
use ballista_executor::execution_engine::{DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor};
use datafusion::error::{DataFusionError, Result as EngineResult};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::prelude::SessionConfig;
use tokio_util::sync::CancellationToken;

use crate::node::{SplitExec, SplitMaker};
use crate::units::Units;

/// Runs splits and refuses all other plans, which could read whatever the machine has.
pub(crate) struct SplitEngine {
    pub(crate) units: Arc<Units>,
}

impl ExecutionEngine for SplitEngine {
    fn create_query_stage_exec(
        &self,
        job_id: JobId,
        stage_id: usize,
        task_id: usize,
        global_output_partition_ids: Vec<usize>,
        plan: Arc<dyn ExecutionPlan>,
        work_dir: &str,
        config: &SessionConfig,
    ) -> EngineResult<Arc<dyn QueryStageExecutor>> {
        let children: Vec<Arc<dyn ExecutionPlan>> = plan.children().into_iter().cloned().collect();
        let split = match &children[..] {
            [child] => child.downcast_ref::<SplitExec>(),
            _ => None,
        };
        let split = split.ok_or_else(|| {
            DataFusionError::Plan("this executor makes splits of twinlens, and runs no other plans".into())
        })?;
        let cancel = CancellationToken::new();
        let maker = Cancellable { units: self.units.clone(), cancel: cancel.clone() };
        let split = Arc::new(split.with_maker(Arc::new(maker)));
        let plan = datafusion::physical_plan::replace_children_if_necessary(plan, vec![split])?;
        let stage = DefaultExecutionEngine::new().create_query_stage_exec(
            job_id,
            stage_id,
            task_id,
            global_output_partition_ids,
            plan,
            work_dir,
            config,
        )?;
        Ok(Arc::new(CancellableStage { stage, cancel }))
    }
}

/// Ballista drops a cancelled task, but what it had spawned would run to its end: dropping this
/// stage fires the token.
#[derive(Debug)]
struct CancellableStage {
    stage: Arc<dyn QueryStageExecutor>,
    cancel: CancellationToken,
}

impl fmt::Display for CancellableStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stage.fmt(f)
    }
}

#[async_trait]
impl QueryStageExecutor for CancellableStage {
    async fn execute_query_stage(
        &self,
        task_id: usize,
        context: Arc<TaskContext>,
    ) -> EngineResult<Vec<ShuffleWritePartition>> {
        let _dropped = self.cancel.clone().drop_guard();
        self.stage.execute_query_stage(task_id, context).await
    }

    fn collect_plan_metrics(&self) -> Vec<MetricsSet> {
        self.stage.collect_plan_metrics()
    }
}

/// Makes a split until the token fires.
struct Cancellable {
    units: Arc<Units>,
    cancel: CancellationToken,
}

#[async_trait]
impl SplitMaker for Cancellable {
    async fn report(&self, request: &[u8]) -> Vec<u8> {
        tokio::select! {
            report = self.units.report(request) => report,
            // Nobody reads it.
            () = self.cancel.cancelled() => Vec::new(),
        }
    }
}
