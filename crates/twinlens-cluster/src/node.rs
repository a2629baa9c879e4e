//! The plan node that makes a split, and how it travels.
//!
//! It stands on a table of one row, since Ballista cuts the partitions of known leaves only; that
//! row is never read. Its result is one row: the report.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::arrow::array::{Array, ArrayRef, BinaryArray, RecordBatch, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::{DataFusionError, Result as EngineResult};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
    ReplaceChildrenOptions, SendableRecordBatchStream,
};
use datafusion_proto::physical_plan::{
    AsExecutionPlan, PhysicalExtensionCodec, PhysicalProtoConverterExtension,
};
use datafusion_proto::protobuf::PhysicalPlanNode;

/// The first bytes of an encoded node.
const MAGIC: &[u8] = b"twinlens split\n";

/// Whoever makes splits on an executor.
#[async_trait]
pub(crate) trait SplitMaker: Send + Sync {
    /// Makes the split of a sealed request and gives a sealed report.
    async fn report(&self, request: &[u8]) -> Vec<u8>;
}

/// Makes one split.
pub(crate) struct SplitExec {
    /// A sealed request. Its content is not looked at before the node runs: a node of another build
    /// must be told what is wrong, and must not fail where it is decoded.
    request: Arc<[u8]>,
    input: Arc<dyn ExecutionPlan>,
    /// On an executor.
    maker: Option<Arc<dyn SplitMaker>>,
    properties: Arc<PlanProperties>,
}

impl SplitExec {
    /// A node for a sealed request.
    pub(crate) fn new(request: &[u8]) -> EngineResult<Self> {
        let schema = Arc::new(Schema::new(vec![Field::new("split", DataType::UInt64, false)]));
        let row: ArrayRef = Arc::new(UInt64Array::from(vec![0]));
        let row = RecordBatch::try_new(schema.clone(), vec![row])?;
        let input = MemorySourceConfig::try_new_exec(&[vec![row]], schema, None)?;
        Ok(Self::over(request.into(), input))
    }

    fn over(request: Arc<[u8]>, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { request, input, maker: None, properties: Arc::new(properties) }
    }

    /// The node where it can run.
    pub(crate) fn with_maker(&self, maker: Arc<dyn SplitMaker>) -> Self {
        let (request, input) = (self.request.clone(), self.input.clone());
        Self { request, input, maker: Some(maker), properties: self.properties.clone() }
    }

    /// The bytes of a plan that is this node.
    pub(crate) fn encode(self) -> EngineResult<Vec<u8>> {
        let plan = PhysicalPlanNode::try_from_physical_plan(Arc::new(self), &SplitCodec::default())?;
        let mut bytes = Vec::new();
        plan.try_encode(&mut bytes)?;
        Ok(bytes)
    }
}

/// The schema of the result.
fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("report", DataType::Binary, false)]))
}

/// The report in a result.
pub(crate) fn report_of(batch: &RecordBatch) -> Option<&[u8]> {
    let reports = batch.column(0).as_any().downcast_ref::<BinaryArray>()?;
    (!reports.is_empty()).then(|| reports.value(0))
}

impl fmt::Debug for SplitExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SplitExec")
    }
}

impl DisplayAs for SplitExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SplitExec")
    }
}

impl ExecutionPlan for SplitExec {
    fn name(&self) -> &str {
        "SplitExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> EngineResult<TreeNodeRecursion>,
    ) -> EngineResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        let input = children.pop().ok_or_else(|| internal("SplitExec without an input"))?;
        let mut node = Self::over(self.request.clone(), input);
        node.maker.clone_from(&self.maker);
        Ok(Arc::new(node))
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> EngineResult<SendableRecordBatchStream> {
        let maker = self.maker.clone().ok_or_else(|| internal("SplitExec outside of an executor"))?;
        let request = self.request.clone();
        let row = async move {
            let report = maker.report(&request).await;
            let report: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&report]));
            Ok(RecordBatch::try_new(schema(), vec![report])?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema(), futures::stream::once(row))))
    }
}

/// Encodes and decodes [`SplitExec`] beside Ballista's own nodes.
#[derive(Debug, Default)]
pub(crate) struct SplitCodec {
    ballista: BallistaPhysicalExtensionCodec,
}

impl PhysicalExtensionCodec for SplitCodec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        ctx: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> EngineResult<Arc<dyn ExecutionPlan>> {
        match (bytes.strip_prefix(MAGIC), inputs) {
            (Some(request), [input]) => Ok(Arc::new(SplitExec::over(request.into(), input.clone()))),
            (Some(_), _) => Err(internal("SplitExec without an input")),
            (None, _) => self.ballista.try_decode(bytes, inputs, ctx, converter),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> EngineResult<()> {
        let Some(split) = node.downcast_ref::<SplitExec>() else {
            return self.ballista.try_encode(node, bytes, converter);
        };
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&split.request);
        Ok(())
    }
}

fn internal(what: &str) -> DataFusionError {
    DataFusionError::Internal(what.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::prelude::SessionContext;
    use futures::StreamExt;

    struct Echo;

    #[async_trait]
    impl SplitMaker for Echo {
        async fn report(&self, request: &[u8]) -> Vec<u8> {
            [b"made ", request].concat()
        }
    }

    #[tokio::test]
    async fn a_node_travels_and_answers_with_one_row() {
        let bytes = SplitExec::new(b"split 7").unwrap().encode().unwrap();
        let ctx = SessionContext::new().task_ctx();
        let plan = PhysicalPlanNode::try_decode(&bytes).unwrap();
        let plan = plan.try_into_physical_plan(&ctx, &SplitCodec::default()).unwrap();
        // As in a scheduler, which decodes plans but does not run them.
        assert!(plan.execute(0, ctx.clone()).is_err());
        let node = plan.downcast_ref::<SplitExec>().unwrap().with_maker(Arc::new(Echo));
        let rows: Vec<_> = node.execute(0, ctx).unwrap().collect().await;
        assert_eq!(rows.len(), 1);
        assert_eq!(report_of(rows[0].as_ref().unwrap()), Some(&b"made split 7"[..]));
    }
}
