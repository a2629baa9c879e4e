//! How this program starts itself: to decode images in processes of their own.
//!
//! The command starts its own file. A program that has this one as a library, such as Python, says
//! how it is started ([`start_by`]), and calls [`crate::serve_child`] there.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// A program, and arguments that come before what it is started for.
static PROGRAM: OnceLock<(PathBuf, Vec<OsString>)> = OnceLock::new();

/// Says how this program is started. Only the first call counts.
pub(crate) fn start_by(program: PathBuf, arguments: Vec<OsString>) {
    let _ = PROGRAM.set((program, arguments));
}

/// Whether it is known how this program is started.
pub(crate) fn can_be_started() -> bool {
    PROGRAM.get().is_some()
}

/// A command that starts this program to do what `argument` says.
pub(crate) fn command(argument: &str) -> io::Result<Command> {
    let unknown = || io::Error::other("it is not known how this program is started");
    let (program, arguments) = PROGRAM.get().ok_or_else(unknown)?;
    let mut command = Command::new(program);
    command.args(arguments).arg(argument);
    Ok(command)
}
