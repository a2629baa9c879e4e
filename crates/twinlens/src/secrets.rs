//! What no line of this process tells: the secrets of the pipeline that it works on.
//!
//! Log messages come from any thread and any library, so this is process-wide, as the log is.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};

use twinlens_pipeline::Secrets;

static KNOWN: RwLock<Vec<Arc<Secrets>>> = RwLock::new(Vec::new());

/// Hides these secrets, too, from now on.
pub(crate) fn learn(secrets: &Arc<Secrets>) {
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    if !known.contains(secrets) {
        known.push(secrets.clone());
    }
}

/// A text for people, without secrets.
pub(crate) fn hide(text: &str) -> Cow<'_, str> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    if known.is_empty() {
        return Secrets::default().hide(text).into_owned().into();
    }
    known.iter().fold(Cow::Borrowed(text), |text, secrets| Cow::Owned(secrets.hide(&text).into_owned()))
}
