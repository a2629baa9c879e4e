//! Declared evaluation sets: a TOML file describes the set, its origin and the layout of its files;
//! the data are in a directory.
//!
//! Whatever the layout, a set becomes a dataset of the same schema ([`write`]): images, labels
//! bound to class names by the data themselves, and rejects with their locations. Examples are
//! streamed in batches.

pub mod catalog;
mod columns;
mod declaration;
mod layout;
mod locate;
mod names;
pub mod read;
mod stage;
mod write;

pub use declaration::{Class, ClassList, Declaration, Task, declaration_schema};
pub(crate) use locate::unknown;
pub use locate::{data_paths, declared, find};
pub use names::{Bound, BoundClass, bind};
pub use stage::EvaluationSet;
pub use write::{CLASSES, Opened, Written, classes_schema, open, schema, write};
