//! Options of the allocator, mimalloc: a purge delay that depends on the work.
//!
//! glibc returns the large, short-lived buffers of a training step to the system each time; with
//! mimalloc a step takes two thirds of the time. mimalloc's default delay is one second, in which a
//! fetch decodes hundreds of megabytes of pixels, so that resident memory grows with the rows. With
//! 0.1 s it hardly grows (247 MB at 4,000 images of 1000 x 800, 264 MB at 20,000), at the same
//! speed. Training needs its pages again one step later: while a training runs, the delay is some
//! seconds, which saves 10 to 14 % of the time for 2 % more memory.

use std::collections::BTreeSet;
use std::ffi::{c_int, c_long};
use std::sync::{Mutex, PoisonError};

use twinlens_pipeline::Product;
use twinlens_pipeline::run::events::Event;

/// `mi_option_purge_delay` of mimalloc 3: milliseconds before free pages are returned to the
/// system. The binding has no name for it.
const PURGE_DELAY: c_int = 15;
const MILLISECONDS: c_long = 100;
const MILLISECONDS_IN_TRAINING: c_long = 5_000;
/// mimalloc's own environment variable, which takes precedence.
const VARIABLE: &str = "MIMALLOC_PURGE_DELAY";

/// Call this before a second thread exists.
pub(crate) fn init() {
    set_purge_delay(MILLISECONDS);
}

#[expect(unsafe_code, reason = "options can only be set through the C interface")]
fn set_purge_delay(milliseconds: c_long) {
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: the function checks the option's index and writes two words of a static table.
        // mimalloc reads them without a lock: another thread sees the old or the new number, and
        // either is a valid delay.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) };
    }
}

/// Raises the purge delay while a training runs.
#[derive(Debug, Default)]
pub(crate) struct PurgeDelay {
    trainings: Mutex<BTreeSet<String>>,
}

impl PurgeDelay {
    pub(crate) fn event(&self, event: &Event) {
        let mut trainings = self.trainings.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match event {
            Event::StageStarted { stage, product: Product::Model, .. } => trainings.insert(stage.clone()),
            Event::StageFinished { stage, .. } => trainings.remove(stage),
            _ => false,
        };
        if changed {
            set_purge_delay(if trainings.is_empty() { MILLISECONDS } else { MILLISECONDS_IN_TRAINING });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The index of an option may change with the library: its default value identifies it.
    #[test]
    #[expect(unsafe_code, reason = "options can only be read through the C interface")]
    fn the_delay_is_longer_while_a_training_runs() {
        // SAFETY: reads a number of a static table, which only this test writes.
        let value = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(value(), 1000);
        init();
        assert_eq!(value(), MILLISECONDS);
        let started = |stage: &str, product: Product| {
            let (stage, kind) = (stage.to_string(), "k".to_string());
            Event::StageStarted { stage, kind, product, unit: "row", fused: Vec::new(), splits_done: 0 }
        };
        let finished = |stage: &str| {
            let stage = stage.to_string();
            Event::StageFinished { stage, rows: 1, rejects: 0, seconds: 1.0, reasons: Vec::new() }
        };
        let purge_delay = PurgeDelay::default();
        for (event, expected) in [
            (started("images", Product::Table), MILLISECONDS),
            (started("small", Product::Model), MILLISECONDS_IN_TRAINING),
            (started("large", Product::Model), MILLISECONDS_IN_TRAINING),
            (finished("images"), MILLISECONDS_IN_TRAINING),
            (finished("small"), MILLISECONDS_IN_TRAINING),
            (finished("large"), MILLISECONDS),
        ] {
            purge_delay.event(&event);
            assert_eq!(value(), expected, "{event:?}");
        }
    }
}
