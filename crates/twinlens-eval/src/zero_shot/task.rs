//! A set as it is evaluated.

use crate::set::SetOptions;
use crate::trust::Warning;

/// A set to evaluate.
pub(super) struct SetTask {
    pub split: u64,
    pub options: SetOptions,
    /// It was converted for this evaluation: the rejects of the conversion belong to the results.
    pub declared: bool,
    /// From the conversion.
    pub warnings: Vec<Warning>,
}
