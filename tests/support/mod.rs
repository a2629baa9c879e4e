//! A temporary directory in which tests run the program.

pub mod docs;
pub mod page;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A directory that is deleted at the end of the test.
pub struct Place {
    folder: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A call of the program in the directory, with an empty environment and a fixed clock.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlens"));
        command.args(args).current_dir(self.folder()).env_clear().stdin(Stdio::null());
        command.env("SOURCE_DATE_EPOCH", "1700000000").env("HOME", self.folder());
        command
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// stdout and stderr of a successful call.
    #[track_caller]
    pub fn done(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "{args:?}\n{}", stderr(&output));
        stdout(&output) + &stderr(&output)
    }

    /// The rows of a query over a run, as CSV.
    #[track_caller]
    pub fn ask(&self, dir: &str, query: &str) -> Vec<String> {
        let output = self.output(&["sql", dir, "--format", "csv", query]);
        assert!(output.status.success(), "{query}\n{}", stderr(&output));
        stdout(&output).lines().skip(1).map(ToString::to_string).collect()
    }
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
