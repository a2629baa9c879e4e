//! Prompts: class names in templates, encoded, and averaged as embeddings or as probabilities.
//!
//! The hash of the prompt set is part of every result row, since accuracies with different
//! templates are not comparable.

mod cache;
mod classifier;
mod options;
pub mod templates;

pub use cache::TextCache;
pub use classifier::{Classifier, TextEncoder, build_classifier};
pub use options::{
    DEFAULT, ENSEMBLE, IMAGENET_80, OWN, PromptOptions, PromptSet, Selection, Space, TemplateSet,
    check_templates, fill, has_placeholder, list_hash,
};
