//! The configuration that selects one of the registered image towers.

use super::KINDS;
use super::image::ImageTower;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

/// An image tower and its sizes.
///
/// In a configuration, the key `kind` names the tower; it is left out for the vision transformer
/// and for the ResNet, which has the key `stages`.
#[derive(Clone, Debug)]
pub struct VisionConfig(Arc<dyn ImageTower>);

impl VisionConfig {
    /// Side of the square input, in pixels.
    pub fn image_size(&self) -> usize {
        self.0.image_size()
    }

    /// The settings, if the tower is a `T`.
    pub fn downcast_ref<T: 'static>(&self) -> Option<&T> {
        let tower: &dyn Any = &*self.0;
        tower.downcast_ref()
    }

    pub(crate) fn tower(&self) -> &dyn ImageTower {
        &*self.0
    }

    /// The settings in order, with the key `kind` unless they imply it.
    fn settings(&self) -> Vec<(&'static str, Value)> {
        let (kind, mut settings) = (self.0.kind(), self.0.settings());
        let map = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        if !kind.is_implied_by(&map) {
            settings.insert(0, ("kind", kind.name.into()));
        }
        settings
    }
}

impl<T: ImageTower> From<T> for VisionConfig {
    fn from(tower: T) -> Self {
        Self(Arc::new(tower))
    }
}

impl PartialEq for VisionConfig {
    fn eq(&self, other: &Self) -> bool {
        self.settings() == other.settings()
    }
}

impl Eq for VisionConfig {}

impl Serialize for VisionConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.settings())
    }
}

impl<'de> Deserialize<'de> for VisionConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut settings = Map::<String, Value>::deserialize(deserializer)?;
        let kind = match settings.remove("kind") {
            None => KINDS.iter().find(|kind| kind.is_implied_by(&settings)),
            Some(name) => KINDS.iter().find(|kind| name == kind.name),
        };
        let names = || KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        let kind = kind.ok_or_else(|| D::Error::custom(format!("`kind` must be one of: {}", names())))?;
        (kind.read)(settings).map(Self).map_err(D::Error::custom)
    }
}

impl JsonSchema for VisionConfig {
    fn schema_name() -> Cow<'static, str> {
        "VisionConfig".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let schemas: Vec<Schema> = KINDS.iter().map(|kind| (kind.schema)(kind, generator)).collect();
        json_schema!({ "description": "The shape of an image tower.", "anyOf": schemas })
    }
}
