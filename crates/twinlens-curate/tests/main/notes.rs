//! The notes of a run.

use std::sync::Mutex;

use twinlens_pipeline::run::events::{Event, Observer};

/// Collects them.
#[derive(Default)]
pub(crate) struct Notes(pub(crate) Mutex<Vec<String>>);

impl Observer for Notes {
    fn event(&self, event: &Event) {
        if let Event::Note { message, .. } = event {
            self.0.lock().unwrap().push(message.clone());
        }
    }
}
