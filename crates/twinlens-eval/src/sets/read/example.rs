//! What a reader passes on.

use std::fmt::Debug;

use twinlens_dataset::samples;
use twinlens_image::Limits;

use crate::error::EvalError;
use crate::images::Reject;

/// The file ends before it should.
pub const TRUNCATED: &str = samples::TRUNCATED;
/// A text cannot be parsed: a line of a CSV file, or a label that is not a number.
pub const MALFORMED: &str = "malformed_text";
/// Longer than the byte limit.
pub const TOO_MANY_BYTES: &str = samples::TOO_MANY_BYTES;

/// The ground truth of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Truth {
    /// A label id.
    Id(i64),
    /// The name of the class in the data.
    Name(String),
    /// Label ids of a multi-label set.
    Ids {
        present: Vec<i64>,
        /// Not annotated: the example does not count for these classes.
        ignored: Vec<i64>,
        /// The number of classes, if the data say it: the length of a vector of labels.
        of: Option<usize>,
    },
    Captions(Vec<String>),
}

/// One example, as stored in the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Its location, for messages: `test/0.tar/000123`.
    pub place: String,
    /// The path of the image.
    pub path: String,
    /// Encoded bytes.
    pub image: Result<Vec<u8>, Reject>,
    pub truth: Result<Truth, Reject>,
}

/// Receives the examples one by one.
pub type Take<'a> = &'a mut dyn FnMut(Example) -> Result<(), EvalError>;

/// The opened files of a set.
pub trait SetFiles: Debug + Send + Sync {
    /// The labels of the parts; each part is read and committed as one.
    fn parts(&self) -> Vec<String>;

    /// The names of the classes in the data, by label id.
    fn names(&self) -> Option<Vec<String>> {
        None
    }

    /// The prompt templates in the data.
    fn templates(&self) -> Option<Vec<String>> {
        None
    }

    /// Files in the directories of the data that no part reads, relative to them.
    fn unread(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reads the examples of one part.
    ///
    /// # Errors
    /// I/O, and the errors of `take`. A damaged example is passed on as a reject.
    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError>;
}
