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
mod undeclared;
mod write;

pub use declaration::{Class, ClassList, Declaration, Task, declaration_schema};
pub(crate) use locate::{DataFiles, needs_data, unknown};
pub use locate::{LocatedSet, declared, find, locate};
pub use names::{Bound, BoundClass, bind};
pub use stage::EvaluationSet;
pub(crate) use stage::without_data;
pub use undeclared::is_data;
pub(crate) use undeclared::set_name;
pub use write::{CLASSES, Opened, Written, classes_schema, open, schema, write};
