//! The allocator of the program: mimalloc, with one of its options changed: how long pages that are
//! free are kept.
//!
//! glibc gives the large, short-lived buffers of a training step back to the system each time; with
//! pages that are kept, a step takes two thirds of the time. mimalloc keeps them for a second, in
//! which a fetch goes through hundreds of megabytes of pixels: then what it holds grows with the
//! rows. With a tenth of a second it hardly does (247 MB at 4,000 images of 1000 x 800, 264 MB at
//! 20,000), at the same speed. A training needs its pages again a step later: while one runs, they
//! are kept for some seconds, which takes a tenth to a seventh off its time and adds a fiftieth to
//! its memory.

use std::collections::BTreeSet;
use std::ffi::{c_int, c_long};
use std::sync::{Mutex, PoisonError};

use twinlens_pipeline::run::events::Event;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3: how long pages that are free are kept, in milliseconds.
/// The binding has no name for it.
const PURGE_DELAY: c_int = 15;
const MILLISECONDS: c_long = 100;
const MILLISECONDS_IN_TRAINING: c_long = 5_000;
/// What goes before this module's numbers.
const VARIABLE: &str = "MIMALLOC_PURGE_DELAY";

/// To be called before there is a second thread.
pub fn set_up() {
    keep(MILLISECONDS);
}

#[expect(unsafe_code, reason = "options are set through the C interface alone")]
fn keep(milliseconds: c_long) {
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: the function writes two words of a static table if the option, which is checked
        // there, is in it. mimalloc reads them without a lock: another thread sees the number from
        // before or this one, and either is a delay.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) };
    }
}

/// Knows which trainings run, and has pages kept meanwhile.
#[derive(Debug, Default)]
pub struct Pages {
    trainings: Mutex<BTreeSet<String>>,
}

impl Pages {
    /// Is told of each event of a run.
    pub fn event(&self, event: &Event) {
        let mut trainings = self.trainings.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match event {
            Event::StageStarted { stage, kind, .. } if kind == "train" => trainings.insert(stage.clone()),
            Event::StageFinished { stage, .. } => trainings.remove(stage),
            _ => false,
        };
        if changed {
            keep(if trainings.is_empty() { MILLISECONDS } else { MILLISECONDS_IN_TRAINING });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of an option may change with the library: its default says which one it is.
    #[test]
    #[expect(unsafe_code, reason = "options are read through the C interface alone")]
    fn pages_are_kept_while_a_training_runs() {
        // SAFETY: reads a number of a static table, which nothing in this test binary writes but
        // `keep`, below.
        let value = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(value(), 1000);
        set_up();
        assert_eq!(value(), MILLISECONDS);
        let started = |stage: &str, kind: &str| {
            let (stage, kind) = (stage.to_string(), kind.to_string());
            Event::StageStarted { stage, kind, fused: Vec::new(), splits_done: 0 }
        };
        let finished = |stage: &str| {
            let stage = stage.to_string();
            Event::StageFinished { stage, rows: 1, rejects: 0, seconds: 1.0 }
        };
        let pages = Pages::default();
        for (event, expected) in [
            (started("images", "fetch"), MILLISECONDS),
            (started("small", "train"), MILLISECONDS_IN_TRAINING),
            (started("large", "train"), MILLISECONDS_IN_TRAINING),
            (finished("images"), MILLISECONDS_IN_TRAINING),
            (finished("small"), MILLISECONDS_IN_TRAINING),
            (finished("large"), MILLISECONDS),
        ] {
            pages.event(&event);
            assert_eq!(value(), expected, "{event:?}");
        }
    }
}
