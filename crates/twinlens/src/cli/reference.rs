//! The arguments of the commands that describe the program.

use std::path::PathBuf;

use clap::Args;

/// Lists the kinds of stages, or the options of one with an example
#[derive(Debug, Args)]
pub(crate) struct StagesArgs {
    /// The kind to describe
    pub kind: Option<String>,
}

/// Lists the evaluation sets, or describes one with its templates, classes and source
#[derive(Debug, Args)]
pub(crate) struct SetsArgs {
    /// The set to describe, or the path of a file that declares one (`*.toml`)
    pub name: Option<String>,
    /// Also show where the data of each set are in this directory
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Lists the contracts (table schemas), or prints one as JSON
///
/// `schema views` describes the SQL views over a run. `schema pipeline` prints the JSON Schema of
/// pipeline files, `schema evaluation-set` that of files that declare an evaluation set. Editors
/// complete and check them with it: put `#:schema PATH` in the first line of the file.
#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// Name of a contract, `pipeline`, `evaluation-set` or `views`
    #[arg(conflicts_with = "write")]
    pub name: Option<String>,
    /// Write all schemas to this directory
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}

/// Prints a script that completes commands and options in a shell
///
/// For bash: `twinlens completions bash > ~/.local/share/bash-completion/completions/twinlens`. For
/// zsh, write it to a file `_twinlens` in a directory of `$fpath`; for fish, to
/// `~/.config/fish/completions/twinlens.fish`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Prints the manual page, or writes those of all commands to a directory
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write `twinlens.1` and a page for each command to this directory
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}

/// Shows a page of the guide, or the help text of a command
///
/// Without NAME, it lists the subjects of the guide and the commands.
#[derive(Debug, Args)]
pub(crate) struct HelpArgs {
    /// A subject or a command
    #[arg(value_name = "NAME")]
    pub subject: Option<String>,
}
