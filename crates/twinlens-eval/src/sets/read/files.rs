//! Reading the files of a set, with errors that name them.

use std::io::Read;
use std::path::{Path, PathBuf};

use twinlens_dataset::samples;
use twinlens_image::Limits;
use twinlens_pipeline::RunError;

use crate::error::EvalError;
use crate::images::{NO_IMAGE, Reject};

/// Reads a whole file; a file beyond the byte limit is a reject.
pub(super) fn bytes_of(path: &Path, limits: &Limits) -> Result<Result<Vec<u8>, Reject>, EvalError> {
    Ok(match samples::read_part(path, limits.max_bytes)? {
        Some(bytes) => bytes.map_err(|(code, detail)| Reject { code, detail }),
        None => Err(Reject { code: NO_IMAGE, detail: "the file is not there".into() }),
    })
}

/// An I/O error with the path.
pub(super) fn io(path: &Path) -> impl Fn(std::io::Error) -> EvalError {
    let path: PathBuf = path.to_path_buf();
    move |error| RunError::io(&path, error).into()
}

/// Opens a file and reads it through its compression.
pub(super) fn unpacked(path: &Path) -> Result<Box<dyn Read>, EvalError> {
    Ok(Box::new(twinlens_dataset::unpack::open(path)?))
}

/// Fills the buffer; returns the number of bytes read, fewer at the end of the file or where a
/// compressed file is damaged.
pub(super) fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    filled
}

/// The lines of a text file that is optional, trimmed and without blank lines at the end; `None` if
/// it does not exist or is blank. Positions in it count, so a blank line between others is an
/// error.
pub(super) fn lines_of(path: &Path) -> Result<Option<Vec<String>>, EvalError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(path)(error)),
    };
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        line_error(path, line, "is not UTF-8", "save the file as UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<String> = text.trim_end().lines().map(|line| line.trim().to_string()).collect();
    match lines.iter().position(String::is_empty) {
        Some(line) => Err(line_error(path, line, "is blank", "remove the line, or fill it")),
        None => Ok(Some(lines).filter(|lines| !lines.is_empty())),
    }
}

/// An error about a line of a file of the set, counted from 0.
fn line_error(path: &Path, line: usize, problem: &str, hint: &str) -> EvalError {
    let message = format!("{}:{}: this line {problem}", path.display(), line + 1);
    RunError::user_with_hint(message, hint).into()
}

/// What is in a directory besides directories that are not hidden and the files `known`, sorted.
pub(super) fn files_beside(folder: &Path, known: &[&str]) -> Result<Vec<String>, EvalError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let entry = entry.map_err(io(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_directory = entry.path().is_dir() && !name.starts_with('.');
        if !is_directory && !known.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A path with `/` between its parts on every system.
pub(super) fn slashed(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "/")
}

/// The file name.
pub(super) fn short(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
