//! The failure of a split in another process, with all that the user of the run is to be told.

use std::error::Error;

use datafusion::error::DataFusionError;
use serde::{Deserialize, Serialize};
use twinlens_dataset::DatasetError;

use crate::error::RunError;
use crate::secrets::Secrets;

/// What a failure says of who can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The user, in the pipeline file or in the input: the same on every machine.
    User,
    /// This program.
    Internal,
    /// A disk or a store: another attempt may succeed, perhaps on another machine.
    Machine,
    /// The machine has no access to a store: the same until its user gives it.
    Access,
}

/// The failure of a split, as one process tells another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitFailure {
    /// Who can do something about it.
    pub blame: Blame,
    /// What is wrong, and where.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// The machine on which it happened.
    pub host: String,
}

impl SplitFailure {
    /// The failure that an error on this machine is.
    pub fn new(error: &RunError, host: &str) -> Self {
        let (blame, message, hint) = told(error);
        Self { blame, message, hint, host: host.into() }
    }

    /// The failure as others may read it.
    pub(super) fn hiding(self, secrets: &Secrets) -> Self {
        let hide = |text: String| secrets.hide(&text).into_owned();
        Self { message: hide(self.message), hint: self.hint.map(hide), ..self }
    }

    /// Whether another attempt would fail in the same way.
    pub fn is_final(&self) -> bool {
        self.blame != Blame::Machine
    }

    /// The error of the run that this failure ends, after `attempts`.
    pub fn into_error(self, split: &str, attempts: u32) -> RunError {
        let Self { blame, message, hint, host } = self;
        match blame {
            Blame::User => RunError::User { message, hint },
            Blame::Access => RunError::User { message: format!("on {host}: {message}"), hint },
            Blame::Internal => RunError::Internal(format!("{message} (on {host})")),
            Blame::Machine => {
                let message = format!("{split} failed {attempts} times, last on {host}: {message}");
                RunError::User { message, hint }
            }
        }
    }
}

/// Blame, message and hint of an error. Of an error that the engine wraps, the innermost of ours
/// counts.
fn told(error: &RunError) -> (Blame, String, Option<String>) {
    match error {
        RunError::User { message, hint } => (Blame::User, message.clone(), hint.clone()),
        RunError::Internal(what) => (Blame::Internal, what.clone(), None),
        RunError::Interrupted => (Blame::Machine, "it was interrupted".into(), None),
        RunError::Io { .. } => (Blame::Machine, error.to_string(), None),
        RunError::Dataset(error) => told_of_dataset(error),
        RunError::Engine(error) => told_of_engine(error),
    }
}

fn told_of_dataset(error: &DatasetError) -> (Blame, String, Option<String>) {
    let blame = match error {
        DatasetError::Engine(error) => return told_of_engine(error),
        _ if error.is_about_credentials() => Blame::Access,
        DatasetError::Io { .. } | DatasetError::Store { .. } => Blame::Machine,
        DatasetError::Protocol(_) | DatasetError::Schema { .. } | DatasetError::Panicked(_) => {
            Blame::Internal
        }
        _ => Blame::User,
    };
    (blame, error.to_string(), error.hint())
}

fn told_of_engine(error: &DataFusionError) -> (Blame, String, Option<String>) {
    let first: &(dyn Error + 'static) = error;
    for cause in std::iter::successors(Some(first), |&cause| cause.source()) {
        if let Some(error) = cause.downcast_ref::<RunError>() {
            return told(error);
        }
        if let Some(error) = cause.downcast_ref::<DatasetError>() {
            return told_of_dataset(error);
        }
    }
    let root = error.find_root();
    let message = root.strip_backtrace();
    match root {
        DataFusionError::ResourcesExhausted(_) => {
            let hint = "give the query engine more memory with --memory, or fewer threads with --threads";
            (Blame::User, message, Some(hint.into()))
        }
        DataFusionError::IoError(_) | DataFusionError::ObjectStore(_) => (Blame::Machine, message, None),
        DataFusionError::Internal(_) | DataFusionError::ExecutionJoin(_) => (Blame::Internal, message, None),
        _ => (Blame::User, message, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blame_message_and_hint_of_an_error_travel() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let cases = [
            (RunError::user_with_hint("bad", "mend it"), Blame::User, "bad", Some("mend it")),
            (
                RunError::Engine(
                    DataFusionError::from(RunError::user_with_hint("bad", "mend it")).context("x"),
                ),
                Blame::User,
                "bad",
                Some("mend it"),
            ),
            (RunError::Internal("lost".into()), Blame::Internal, "lost", None),
            (RunError::io("a", full()), Blame::Machine, "a: no storage space", None),
            (
                DatasetError::DamagedFile { path: "a".into(), why: "cut".into() }.into(),
                Blame::User,
                "a: damaged: cut",
                Some("restore a from a copy, or make it again (`twinlens repair` for a dataset of a run)"),
            ),
        ];
        for (error, blame, message, hint) in cases {
            let failure = SplitFailure::new(&error, "node7");
            let json = serde_json::to_string(&failure).unwrap();
            assert_eq!(serde_json::from_str::<SplitFailure>(&json).unwrap(), failure);
            assert_eq!(
                (failure.blame, failure.message.as_str(), failure.hint.as_deref()),
                (blame, message, hint)
            );
        }
        let failure = SplitFailure::new(&RunError::io("a", full()), "node7");
        let told = failure.into_error("split 3 (wit rows 0..9)", 4).to_string();
        assert_eq!(told, "split 3 (wit rows 0..9) failed 4 times, last on node7: a: no storage space");
    }
}
