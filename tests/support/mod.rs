//! A temporary directory in which tests run the program.

pub(crate) mod docs;
pub(crate) mod page;
pub(crate) mod s3;
pub(crate) mod shared;
pub(crate) mod training;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// A directory that is deleted at the end of the test.
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A call of the program in the directory, with an empty environment and a fixed clock.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).current_dir(self.folder()).env_clear().stdin(Stdio::null());
        command.env("SOURCE_DATE_EPOCH", "1700000000").env("HOME", self.folder());
        command
    }

    pub(crate) fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// stdout and stderr of a successful call.
    #[track_caller]
    pub(crate) fn done(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "{args:?}\n{}", stderr(&output));
        stdout(&output) + &stderr(&output)
    }

    /// The rows of a query over a run, as CSV.
    #[track_caller]
    pub(crate) fn ask(&self, dir: &str, query: &str) -> Vec<String> {
        let output = self.output(&["sql", dir, "--format", "csv", query]);
        assert!(output.status.success(), "{query}\n{}", stderr(&output));
        stdout(&output).lines().skip(1).map(ToString::to_string).collect()
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A pipeline over `captions.csv`: the captions of more than 12 characters, and their number.
/// `options` are further options of the stage that reads it.
pub(crate) fn long_captions(name: &str, options: &str) -> String {
    format!(
        r#"
name = "{name}"

[stages.list]
kind = "table"
files = ["captions.csv"]
{options}

[stages.long]
kind = "filter"
input = "list"
where = "char_length(caption) > 12"

[stages.counts]
kind = "sql"
query = "select count(*) as rows from long"
"#
    )
}

/// Reproducible random times (splitmix64).
pub(crate) struct RandomTimes(pub(crate) u64);

impl RandomTimes {
    pub(crate) fn next(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        most.mul_f64(((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// The program under test; `TWINLENS_TEST_PROGRAM` may name another build of it.
pub(crate) fn program() -> PathBuf {
    let other = std::env::var_os("TWINLENS_TEST_PROGRAM");
    other.map_or_else(|| env!("CARGO_BIN_EXE_twinlens").into(), PathBuf::from)
}

/// How many processes a test kills: `TWINLENS_KILLS`, or else `default`.
pub(crate) fn kills(default: usize) -> usize {
    std::env::var("TWINLENS_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
