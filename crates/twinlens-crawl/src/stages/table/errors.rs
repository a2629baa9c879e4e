//! Errors of files.

use std::fmt::Display;
use std::path::Path;

use twinlens_dataset::sniff::FileKind;
use twinlens_pipeline::RunError;

use super::columns::Complaint;
use super::format::Format;

/// The error of a file that is not of the format that it is read as.
pub(super) fn not_of_format(path: &Path, format: Format, kind: FileKind) -> RunError {
    let message = format!("{} is {kind}, not {format}", path.display());
    let format = match kind {
        FileKind::Parquet => Some("parquet"),
        FileKind::ArrowFile | FileKind::ArrowStream => Some("arrow"),
        _ => None,
    };
    let hint = match (kind.hint(), format) {
        (Some(hint), _) => hint.to_string(),
        (None, Some(format)) => format!("set `format = \"{format}\"`"),
        (None, None) => "remove it from `files`, or set `format`".into(),
    };
    RunError::user_with_hint(message, hint)
}

/// The error of a damaged file, which `error` names.
pub(super) fn damaged(error: &dyn Display) -> RunError {
    let hint = "restore the file, remove it from `files`, or set `on_bad_file = \"reject\"`";
    RunError::user_with_hint(error.to_string(), hint)
}

/// An error of a file.
pub(super) fn complain(path: &Path, (message, hint): Complaint) -> RunError {
    RunError::user_with_hint(format!("{}: {message}", path.display()), hint)
}
