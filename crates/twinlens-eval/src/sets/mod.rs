//! Evaluation sets as declarations: one TOML file says what a set is, where it comes from and how
//! its files lie; its data lie in a folder.
//!
//! Whatever the layout, a set becomes one kind of dataset ([`write`]): images, labels that are
//! bound to class names by what the data themselves say, and rejects with their places. Examples
//! stream, a batch at a time.

pub mod catalog;
mod columns;
mod declaration;
mod found;
mod names;
pub mod read;
mod stage;
mod write;

pub use declaration::{Class, ClassList, Declaration, Task};
pub(crate) use found::unknown;
pub use found::{Found, declared, find, looked_at};
pub use names::{Bound, BoundClass, bind};
pub use stage::EvaluationSet;
pub use write::{CLASSES, Opened, Written, classes_schema, open, schema, write};
