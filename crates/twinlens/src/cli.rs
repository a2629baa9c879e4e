//! Command-line arguments and their help texts.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub(crate) use data::{InitArgs, ShowArgs};
pub(crate) use machines::{ClusterArgs, ExecutorArgs, LimitArgs, SchedulerArgs, SharingArgs, WorkArgs};
pub(crate) use reference::{CompletionsArgs, HelpArgs, ManArgs, SchemaArgs, SetsArgs, StagesArgs};
pub(crate) use training::{CostArgs, RanksArgs};
pub(crate) use values::{
    ExportFormat, LogFormat, ModelFormat, PlanFormat, ProgressMode, RanksMode, RowFormat, VerifyMode,
};
use values::{duration, size};

mod data;
mod machines;
mod reference;
mod training;
mod values;

/// From web pages to a SQL table of zero-shot accuracies.
///
/// A pipeline is a TOML file of named stages. Every stage writes a dataset to the run directory,
/// which can be queried with SQL. An interrupted run resumes where it stopped, and unchanged stages
/// are not rebuilt.
#[derive(Debug, Parser)]
#[command(name = "twinlens", version, propagate_version = true, max_term_width = 100, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Data go to stdout, everything else to stderr. Exit codes: 0 success; 1 user error, failed test, or failure of the machine \
(full disk); 2 a bug in twinlens; 3 more rows were rejected than the pipeline allows; 130 interrupted, \
committed work is kept.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(InitArgs),
    Run(RunArgs),
    Work(WorkArgs),
    Scheduler(SchedulerArgs),
    Executor(ExecutorArgs),
    Cluster(ClusterArgs),
    Check(CheckArgs),
    Plan(PlanArgs),
    Status(StatusArgs),
    Watch(WatchArgs),
    Prune(PruneArgs),
    Retry(RetryArgs),
    /// Makes splits again whose files are damaged, and resumes the run
    Repair(RunArgs),
    Sql(SqlArgs),
    Report(ReportArgs),
    Eval(EvalArgs),
    Embed(EmbedArgs),
    Search(SearchArgs),
    Show(ShowArgs),
    Export(ExportArgs),
    Stages(StagesArgs),
    Sets(SetsArgs),
    /// Named model configurations with their parameters and FLOPs, and models for other programs
    #[command(subcommand)]
    Model(ModelCommand),
    Schema(SchemaArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
    Help(HelpArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Lists the models with their parameters and the FLOPs of a forward pass (a multiply-add
    /// counts as two, texts have full length)
    List,
    /// Prints the configuration of a model, as used for `model = { ... }` in a `train` stage
    Show {
        /// Name of the model
        name: String,
    },
    Export(ModelExportArgs),
    Cost(CostArgs),
}

/// Writes a model so that another program loads it as it is
///
/// With weights, configuration, tokenizer and preprocessing. transformers reads the directory with
/// `CLIPModel.from_pretrained(OUT)` and `CLIPProcessor.from_pretrained(OUT)`, open_clip with
/// `create_model_from_pretrained("local-dir:OUT")` and `get_tokenizer("local-dir:OUT")`.
#[derive(Debug, Args)]
pub(crate) struct ModelExportArgs {
    /// The directory of a `train` stage (runs/NAME/STAGE) or of another model, or a model of the
    /// Hugging Face Hub (hf://openai/clip-vit-base-patch32)
    #[arg(value_name = "STAGE_OR_DIR")]
    pub model: String,
    /// The directory to write to: new, or empty
    pub out: PathBuf,
    /// The program that will read it
    #[arg(long, value_name = "FORMAT")]
    pub to: ModelFormat,
}

/// Embeds the images of a directory, table or dataset, without a pipeline file
///
/// Reads what `twinlens init` recognises, all of it. The rows of the Parquet file have their
/// columns and `embedding`; with captions also `clip_score`. It is a run like any other: the same
/// command resumes a killed one.
#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// A file, a directory, or a dataset of the Hugging Face Hub (hf://datasets/ORG/NAME)
    pub data: String,
    /// The directory of a twinlens, Hugging Face or open_clip model, or a model of the Hugging Face
    /// Hub (hf://openai/clip-vit-base-patch32)
    #[arg(long, value_name = "DIR")]
    pub weights: String,
    /// The Parquet file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// The column of captions, or their name in JSON files [default: the usual names]
    #[arg(long, value_name = "COLUMN")]
    pub caption: Option<String>,
    /// The column of images in Parquet files [default: the usual names]
    #[arg(long, value_name = "COLUMN")]
    pub image: Option<String>,
    /// The run directory, or its URL in an object store [default: runs/embed-<name of the data>]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    /// Images or texts per forward pass
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Runs a pipeline, or resumes it
///
/// Stages whose dataset is complete and up to date are reused. Ctrl-C finishes the splits in flight
/// (at most 10 seconds) and prints the command that resumes the run; a second Ctrl-C stops at once.
/// At the end, the tables of those `sql` stages that no other stage reads are printed.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// The run directory, or its URL in an object store [default: runs/<name of the pipeline>]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    /// Make every dataset again; those of before are kept until the new ones are complete
    #[arg(long)]
    pub fresh: bool,
    /// Delete, once they are replaced, datasets that took 10 minutes or more to make or have 10 GB;
    /// without it, a terminal is asked, and anything else is refused
    #[arg(long)]
    pub replace: bool,
    /// Continue this training with the options that the file has now: more steps, another rate or
    /// batch size. Its weights, moments, step, place in the data and log are taken over
    #[arg(long = "continue", value_name = "STAGE", conflicts_with = "fresh")]
    pub continued: Option<String>,
    /// Run only this stage and those that it depends on
    #[arg(long, value_name = "STAGE")]
    pub until: Option<String>,
    #[command(flatten)]
    pub set: SetArgs,
    /// Trial run: at most this many rows from each source and from each input
    #[arg(long, value_name = "N")]
    pub max_rows: Option<u64>,
    #[command(flatten)]
    pub sharing: SharingArgs,
    #[command(flatten)]
    pub ranks: RanksArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

impl EngineArgs {
    /// The defaults of `--memory` and `--bytes-in-flight`.
    pub(crate) const MEMORY: usize = 512 << 20;
    pub(crate) const BYTES_IN_FLIGHT: usize = 256 << 20;
}

#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// Threads [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Memory limit of the query engine, beyond which it spills to disk
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    pub memory: usize,
    /// Memory limit of fetching and decoding, in addition to --memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub bytes_in_flight: usize,
    /// When to compare what is read of the run's shards with their checksums; models always are
    #[arg(long, value_name = "WHEN", default_value = "always")]
    pub verify: VerifyMode,
    /// Decode images in processes that can do nothing else [default: as `isolate` in the file]
    #[arg(long)]
    pub isolate: bool,
    /// Progress lines on stderr
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub progress: ProgressMode,
    /// Format of messages on stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Serve Prometheus metrics of the run at this address (127.0.0.1:9090)
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<std::net::SocketAddr>,
    /// Write event files for TensorBoard to this directory, one folder per training
    #[arg(long, value_name = "DIR")]
    pub tensorboard: Option<PathBuf>,
}

/// Checks a pipeline file, or the files of a dataset
///
/// In a pipeline file it checks syntax, types, names and columns, without reading any input. All
/// errors are reported at once, with their position in the file. In a dataset or an export it
/// compares every file with the manifest, and the card (README.md) with the files.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The pipeline file, or the directory of a dataset or an export
    pub pipeline: PathBuf,
    #[command(flatten)]
    pub set: SetArgs,
}

/// Shows the stages of a pipeline, and what a run would do and why
///
/// Reads the pipeline file and the manifests of the run directory. Changes nothing.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// The run directory, or its URL in an object store [default: runs/<name of the pipeline>]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    #[command(flatten)]
    pub set: SetArgs,
    /// Plan for `run --continue`
    #[arg(long = "continue", value_name = "STAGE")]
    pub continued: Option<String>,
    /// Plan for `run --until`
    #[arg(long, value_name = "STAGE")]
    pub until: Option<String>,
    /// Plan for `run --max-rows`
    #[arg(long, value_name = "N")]
    pub max_rows: Option<u64>,
    /// Also show the columns of each stage, its inputs and side tables
    #[arg(long)]
    pub columns: bool,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: PlanFormat,
}

/// Retries rejected rows of a stage
///
/// The predicate may use every column of the stage's ledger (`twinlens sql DIR "select * from
/// rejects"`). The results replace the rejects in the stage's dataset. `twinlens run` then rebuilds
/// the stages that depend on it.
#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// The stage that rejected the rows
    pub stage: String,
    /// Which rejects to retry, as a SQL predicate: "reject_code like 'timeout%'"
    #[arg(long = "where", value_name = "SQL", default_value = "true")]
    pub predicate: String,
    /// The run directory, or its URL in an object store [default: runs/<name of the pipeline>]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    #[command(flatten)]
    pub set: SetArgs,
    #[command(flatten)]
    pub sharing: SharingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Shows the datasets of a run with their rows and rejects
///
/// Works while a run is in progress. The exit code is 2 if a row is not accounted for.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The run directory, or its URL in an object store
    pub dir: String,
}

/// Shows a run while it is in progress, from any terminal
///
/// Its stages with their progress, the loss of a training as a chart, and the most frequent
/// rejects, drawn anew every second until the run ends. Without a terminal it prints the view once.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The run directory
    pub dir: String,
}

/// Frees what a run directory holds and no run needs
///
/// Lists earlier generations of datasets (`clip@1`) and what killed runs left, with sizes and ages,
/// and asks before it deletes them. Current datasets, the newest complete generation of one that is
/// not complete, generations that a current dataset was made from, and folders with files that no
/// run wrote stay. Refused while a run is in progress.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// The run directory, or its URL in an object store
    pub dir: String,
    /// Delete without asking
    #[arg(long)]
    pub yes: bool,
}

/// Queries the datasets of a run with SQL
///
/// The dataset `wit` is the table `wit`, its rejects are `wit.rejects`. `funnel` has the row counts
/// of all stages, `rejects` the rejects of all stages; `leaderboard`, `class_support` and others
/// are views (see --views). Without QUERY, it reads queries from stdin, or opens a prompt if stdin
/// is a terminal. Works while a run is in progress.
#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    /// The run directory, or its URL in an object store
    pub dir: String,
    /// One or more queries, separated by `;`
    pub query: Option<String>,
    /// Another run, whose tables are NAME.table; `runs.leaderboard` and so on are views over all
    /// runs; may be repeated
    #[arg(long, value_name = "NAME=DIR", value_parser = crate::syntax::parse_named)]
    pub with: Vec<(String, String)>,
    /// List the views, their columns, and whether this run has them
    #[arg(long, conflicts_with_all = ["query", "format", "output"])]
    pub views: bool,
    /// Output format [default: by the extension of FILE, else table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<RowFormat>,
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE", requires = "query")]
    pub output: Option<PathBuf>,
    /// Print all rows on a terminal, too, which gets at most 1000 rows or 1 MiB of an answer
    #[arg(long)]
    pub all: bool,
    /// Give up after this time [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// Writes a report of a run as an HTML page
///
/// The page is a single HTML file without external resources: accuracies with confidence intervals
/// beside chance and published values, gain from prompts, random images with predictions,
/// confusions, the loss, a contact sheet, captions, hosts, rows and rejects per stage, settings and
/// hashes; of what the run has. With `--with`, two runs side by side.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The run directory, or its URL in an object store
    pub dir: String,
    /// The file to write, or `-` for stdout [default: report.html in the run directory]
    #[arg(short, long, value_name = "FILE", conflicts_with = "terminal")]
    pub output: Option<PathBuf>,
    /// Print the report to the terminal instead
    #[arg(long)]
    pub terminal: bool,
    /// Another run to compare with; NAME is `other` by default
    #[arg(long, value_name = "[NAME=]DIR", value_parser = crate::syntax::parse_other_run)]
    pub with: Option<(String, String)>,
}

/// Evaluates a model on evaluation sets, without a pipeline file
///
/// Reads each set, embeds its images, classifies them with prompts (or retrieves them by caption)
/// and prints the accuracies. It is a run like any other: the same command resumes a killed one,
/// and new prompts reuse the embeddings.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// The directory of a twinlens, Hugging Face or open_clip model, with tokenizer.json or CLIP's
    /// vocabulary; a training of a run, also one in progress (runs/mine/clip,
    /// runs/mine/clip@step-500, runs/mine/clip@1); or a model of the Hugging Face Hub
    /// (hf://openai/clip-vit-base-patch32)
    #[arg(long, value_name = "DIR")]
    pub weights: String,
    /// Comma-separated names (see `twinlens sets`), your own declarations (mine.toml), or your own
    /// data: a directory with a directory of images per class (./my-classes/), or a Parquet file;
    /// or `all`
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all")]
    pub sets: Vec<String>,
    /// The directory that holds the data of declared sets
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// A template (`a photo of a {}.`), the name of a template set, or @FILE with one template per
    /// line; may be repeated [default: those of a `zero-shot` stage]
    #[arg(long, value_name = "PROMPTS")]
    pub prompts: Vec<String>,
    /// The run directory, or its URL in an object store [default: runs/eval-<name of the model's
    /// directory>]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    /// Make every dataset again; those of before are kept until the new ones are complete
    #[arg(long)]
    pub fresh: bool,
    /// Images or prompts per forward pass
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: RowFormat,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Finds the images of a run that are nearest to a text or an image
///
/// Searches the embeddings of an `embed` stage exhaustively, in bounded memory. The embeddings and
/// their model are found through the manifests. Works while a run is in progress.
#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// The run directory, or a dataset with embeddings (runs/NAME/STAGE, a Parquet file)
    pub dir: String,
    /// The text to search for, such as "a red bicycle"
    #[arg(required_unless_present = "image")]
    pub text: Option<String>,
    /// Search for images like this one instead
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub image: Option<PathBuf>,
    /// The dataset to search, if several have embeddings
    #[arg(long, value_name = "STAGE")]
    pub dataset: Option<String>,
    /// The directory of the model of the embeddings, if the manifests do not lead to it
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// Number of results
    #[arg(short = 'k', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub top: u16,
    /// Comma-separated columns to show beside the cosine similarity [default: those of caption,
    /// class_name, label, url, page_url, uid that exist]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub columns: Option<Vec<String>>,
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: RowFormat,
}

/// Exports a dataset as Parquet, Arrow or tar shards, with a dataset card (README.md)
///
/// Images are copied unchanged. The same command resumes a killed export; files appear only when
/// complete, and manifest.jsonl has their hashes. Read the card before you publish it: it shows the
/// options of the stages as they are in the pipeline file.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A dataset (runs/NAME/STAGE, an earlier export, a Parquet file), or a run directory in which
    /// exactly one dataset has images
    pub source: String,
    /// The directory to write to, or its URL in an object store: new, empty, or an earlier export
    pub dir: String,
    /// Format of the shards
    #[arg(long, value_name = "FORMAT")]
    pub to: ExportFormat,
    /// Which rows to export, as a SQL predicate: "width >= 200 and caption is not null" [default:
    /// all]
    #[arg(long = "where", value_name = "SQL")]
    pub predicate: Option<String>,
    /// Size at which a shard is closed (tar shards also at 10,000 rows)
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub shard_size: usize,
    /// Delete an earlier export in the directory first
    #[arg(long)]
    pub fresh: bool,
    /// Progress lines on stderr
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub progress: ProgressMode,
    /// Format of messages on stderr
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// Set a variable in [vars] (`epochs=3`), an option of a stage (`clip.epochs=3`) or a top-level
    /// key (`seed=3`); may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub values: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// The defaults of the API are those of the command line.
    #[test]
    fn the_defaults_of_memory_are_constants() {
        let cli = Cli::try_parse_from(["twinlens", "run", "p.toml"]).unwrap();
        let Command::Run(RunArgs { engine, .. }) = cli.command else { panic!("{cli:?}") };
        let defaults = (EngineArgs::MEMORY, EngineArgs::BYTES_IN_FLIGHT);
        assert_eq!((engine.memory, engine.bytes_in_flight), defaults);
    }

    #[test]
    fn the_command_line_is_valid() {
        Cli::command().debug_assert();
    }
}
