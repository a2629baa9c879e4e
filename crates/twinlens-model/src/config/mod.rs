//! Configurations: shapes of models, named ones, and their cost.

mod presets;
mod profile;
mod shape;

pub use presets::{CatalogEntry, catalog};
pub use profile::Profile;
pub use shape::ClipConfig;
