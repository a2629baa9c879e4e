//! Errors between ranks.

pub type Result<T, E = RankError> = std::result::Result<T, E>;

/// Why the ranks cannot work together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RankError {
    /// Another thread exited. The failing one reports the cause.
    #[error("another rank of the training exited (this is a defect unless that rank reports a cause)")]
    Exited,
    /// A process is gone without a word: it was killed, or its machine or the network failed.
    #[error("{who} was lost: {why}")]
    Lost {
        /// `rank 2 (node7)`.
        who: String,
        why: String,
    },
    /// A process ended and told the others.
    #[error("{who}: {message}")]
    Ended {
        who: String,
        /// Its exit code.
        code: u8,
        message: String,
    },
    /// The processes were started wrongly, or cannot meet.
    #[error("{message}")]
    Setup { message: String, hint: String },
    /// Two ranks are not in the same operation.
    #[error("the ranks are out of step (this is a defect, please report it): {0}")]
    OutOfStep(String),
}

impl RankError {
    pub fn setup(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Setup { message: message.into(), hint: hint.into() }
    }
}
