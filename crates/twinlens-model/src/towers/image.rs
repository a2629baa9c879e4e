//! What an image tower is: the trait that each one implements, and what it computes with.

use super::blocks::Kept;
use crate::ops::activation::Activation;
use crate::ops::device::DeviceOptions;
use crate::ops::reference::{Norms, Tensors};
use crate::ops::transformer::Pool;
use crate::ops::trunk::Buffers;
use crate::variables::{Declarations, Variables};
use candle_core::{Result, Tensor};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// The purpose of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Evaluation: no graph; batch norms use running statistics.
    Evaluate,
    /// The values of a training pass, without a graph: batch norms use the batch's statistics and
    /// leave the running ones unchanged. For gradients that are computed in two passes.
    Preview,
    /// Training: with a graph for one backward pass; batch norms use the batch's statistics, which
    /// update the running ones.
    Train,
}

impl Pass {
    /// Whether a graph is built.
    pub fn trains(self) -> bool {
        self == Self::Train
    }
}

/// Memory that an image tower reuses from step to step.
#[derive(Default)]
pub struct Memory {
    pub pool: Pool,
    pub buffers: Buffers,
}

/// What a tower computes with, in fused operations on the CPU.
pub struct TowerContext<'a> {
    pub activation: Activation,
    /// The variables, attached to the graph if they are trained.
    pub tensors: &'a Tensors,
    /// Running statistics of batch norms.
    pub running: &'a Variables,
    pub memory: &'a Memory,
    pub pass: Pass,
}

/// What a tower computes with on a GPU, and in half precision.
pub struct DeviceContext<'a> {
    pub activation: Activation,
    /// The variables, attached to the graph if they are trained.
    pub tensors: &'a Tensors,
    pub options: DeviceOptions,
}

/// An image tower with its sizes: pixels to features of any length.
///
/// The names of all its variables begin with `visual.`.
pub trait ImageTower: Any + Debug + Send + Sync {
    /// How configurations name and describe this kind of tower.
    fn kind(&self) -> &'static TowerKind;

    /// The settings in a configuration, in order. Numbers must be positive.
    fn settings(&self) -> Vec<(&'static str, Value)>;

    /// Sizes that must be multiples of another: name, size, name of the divisor, divisor.
    fn multiples(&self) -> Vec<(&'static str, usize, &'static str, usize)>;

    /// Side of the square input, in pixels.
    fn image_size(&self) -> usize;

    /// Declares the variables of a tower with features of `embed` numbers.
    fn declare(&self, variables: &mut Declarations, embed: usize);

    /// Name and length of the running statistics of batch norms.
    fn running(&self) -> Vec<(String, usize)> {
        Vec::new()
    }

    /// Operations (additions and multiplications) for one image.
    fn flops(&self, embed: usize) -> usize;

    /// Numbers of one image's forward pass that the backward pass needs.
    fn kept(&self) -> Kept;

    /// Features `[batch, embed]` of `pixels` (`[batch, 3, size, size]`) in fused operations.
    fn features(&self, cx: &TowerContext<'_>, pixels: &Tensor) -> Result<Tensor>;

    /// The same in candle's basic operations and in the type of `pixels`.
    fn reference_features(
        &self,
        tensors: &Tensors,
        activation: Activation,
        pixels: &Tensor,
        norms: Norms<'_>,
    ) -> Result<Tensor>;

    /// The same on a GPU, or in half precision, in operations that take fewer launches; `None` if
    /// the tower has none.
    fn device_features(&self, _cx: &DeviceContext<'_>, _pixels: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Updates the running statistics with those that [`Norms::Batch`] collected over `batch`
    /// images.
    fn update_running(&self, _running: &Variables, _statistics: &[[Tensor; 2]], _batch: usize) -> Result<()> {
        Ok(())
    }

    /// open_clip's `vision_cfg`, if open_clip has such a tower.
    fn to_open_clip(&self) -> Option<Value> {
        None
    }
}

type Recognise = fn(&Map<String, Value>) -> bool;
type ReadTower = fn(Map<String, Value>) -> std::result::Result<Arc<dyn ImageTower>, serde_json::Error>;

/// A kind of image tower as configurations name it.
pub struct TowerKind {
    /// The value of the key `kind`.
    pub name: &'static str,
    /// One line for the schema.
    pub summary: &'static str,
    /// Recognises a configuration that leaves `kind` out, by its keys.
    pub is_implied_by: Option<Recognise>,
    pub read: ReadTower,
    pub schema: fn(&TowerKind, &mut SchemaGenerator) -> Schema,
}

impl TowerKind {
    /// The kind whose settings are a `T`.
    pub const fn new<T: ImageTower + DeserializeOwned + JsonSchema>(
        name: &'static str,
        summary: &'static str,
        is_implied_by: Option<Recognise>,
    ) -> Self {
        Self {
            name,
            summary,
            is_implied_by,
            read: |settings| Ok(Arc::new(serde_json::from_value::<T>(Value::Object(settings))?)),
            schema: schema::<T>,
        }
    }

    pub fn is_implied_by(&self, settings: &Map<String, Value>) -> bool {
        self.is_implied_by.is_some_and(|is_implied_by| is_implied_by(settings))
    }
}

fn schema<T: JsonSchema>(kind: &TowerKind, generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<T>();
    if kind.is_implied_by.is_none() {
        schema = T::json_schema(generator);
        if let Some(Value::Object(properties)) = schema.get_mut("properties") {
            properties.insert("kind".into(), json!({ "const": kind.name }));
        }
    }
    schema.insert("description".into(), kind.summary.into());
    schema
}
