//! The command line: what may be written, and its help. What it means is done elsewhere.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// From web pages to a SQL table of zero-shot accuracies.
///
/// A pipeline is a TOML file of named stages. Every stage leaves a dataset in the run directory,
/// which SQL can read; a run that was interrupted goes on where it stopped, and what has not
/// changed is not made again.
#[derive(Debug, Parser)]
#[command(name = "twinlens", version, propagate_version = true, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Data go to stdout, everything else to stderr. Exit codes: 0 done; 1 a mistake in what was asked for, a failed test, or a \
fault of the machine (a full disk); 2 a fault of twinlens; 3 done, but more rows were rejected than the pipeline allows; \
130 interrupted, with everything committed kept.";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    Run(RunArgs),
    Check(CheckArgs),
    Plan(PlanArgs),
    Status(StatusArgs),
    Retry(RetryArgs),
    Sql(SqlArgs),
    Report(ReportArgs),
    Eval(EvalArgs),
    Search(SearchArgs),
    Export(ExportArgs),
    Stages(StagesArgs),
    Sets(SetsArgs),
    /// The models that have a name: their shapes and what they cost
    #[command(subcommand)]
    Model(ModelCommand),
    Schema(SchemaArgs),
}

/// What to tell of models.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Lists them with parameters and forward arithmetic (a multiplication and an addition are two
    /// operations; a whole context)
    List,
    /// Prints the shape of one, as `model = { ... }` of a `train` stage takes it
    Show {
        /// A model's name
        name: String,
    },
}

/// Runs a pipeline, or goes on with it
///
/// Stages whose dataset is complete and current are reused. Ctrl-C finishes the splits in flight
/// (at most 10 seconds) and prints the command that goes on; a second Ctrl-C stops at once. At the
/// end the tables of the `sql` stages that no other stage reads are printed.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// The run directory, or its URL in an object store [default: runs/<name of the pipeline>]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    /// Delete every dataset of the run directory first
    #[arg(long)]
    pub fresh: bool,
    /// Stop after this stage; only what it needs is made
    #[arg(long, value_name = "STAGE")]
    pub until: Option<String>,
    #[command(flatten)]
    pub set: SetArgs,
    /// Make at most this many rows of each source, and read at most so many of the input of each
    /// plan (a trial run)
    #[arg(long, value_name = "N")]
    pub max_rows: Option<u64>,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What a run may use, and what it tells.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// Threads [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Memory of the query engine; beyond it plans spill to disk
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size)]
    pub memory: usize,
    /// Memory that fetching and decoding may hold besides
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub bytes_in_flight: usize,
    /// Live progress on stderr, where stderr is a terminal
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub progress: ProgressMode,
    /// What stderr gets: sentences, or one JSON object a line for each event
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Checks a pipeline file: syntax, types, names, columns; reads nothing else
///
/// All errors are reported at once, each with its place in the file and what was expected. Of a
/// dataset or an export it reads every file, and says which are not those that its manifest
/// records, and what its card claims of them that is not so.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The pipeline file; or the folder of a dataset or an export
    pub pipeline: PathBuf,
    #[command(flatten)]
    pub set: SetArgs,
}

/// Shows the stages of a pipeline and what a run would do, and why
///
/// Reads the pipeline file and the manifests of the run directory; changes nothing.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// The run directory, or its URL in an object store [default: runs/<name of the pipeline>]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    #[command(flatten)]
    pub set: SetArgs,
    /// The plan of a run that stops after this stage
    #[arg(long, value_name = "STAGE")]
    pub until: Option<String>,
    /// The plan of a run with this limit
    #[arg(long, value_name = "N")]
    pub max_rows: Option<u64>,
    /// A table, a graph for Mermaid or Graphviz, or JSON
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: PlanFormat,
}

/// Tries rejected rows of a stage again: those that a predicate picks, and no others
///
/// The predicate may name every column of the stage's ledger (`twinlens sql DIR "select * from
/// rejects"`). What comes of the rows replaces them in the stage's dataset; `twinlens run` then
/// makes again what depends on it.
#[derive(Debug, Args)]
pub struct RetryArgs {
    /// The pipeline file
    pub pipeline: PathBuf,
    /// The stage that rejected the rows
    pub stage: String,
    /// Which of its rejects: a SQL predicate, such as "reject_code like 'timeout%'"
    #[arg(long = "where", value_name = "SQL", default_value = "true")]
    pub predicate: String,
    /// The run directory, or its URL in an object store [default: runs/<name of the pipeline>]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    #[command(flatten)]
    pub set: SetArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Shows what a run directory holds: datasets, rows, rejects, and whether every row is accounted
/// for
///
/// May be used while a run is going on. Exit code 2 when a sum does not hold.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The run directory, or its URL in an object store
    pub dir: String,
}

/// Queries a run: every dataset is a table
///
/// A dataset `wit` is the table `wit`, its rejects `wit.rejects`; `funnel` counts the rows of all
/// stages and `rejects` is the ledger of all stages; `leaderboard`, `class_support` and others are
/// views over what the run has. Without QUERY: a prompt, or the queries on stdin when that is no
/// terminal. May be used while a run is going on.
#[derive(Debug, Args)]
pub struct SqlArgs {
    /// The run directory, or its URL in an object store
    pub dir: String,
    /// One or more queries, separated by `;`
    pub query: Option<String>,
    /// Another run beside it, whose tables are NAME.table; `runs.leaderboard` and the like are
    /// views over all of them; may be repeated
    #[arg(long, value_name = "NAME=DIR", value_parser = crate::sql::runs::named)]
    pub with: Vec<(String, String)>,
    /// List the views, their columns, and which of them this run has
    #[arg(long, conflicts_with_all = ["query", "format", "output"])]
    pub views: bool,
    /// How rows are written [default: by the ending of FILE, else table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<RowFormat>,
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE", requires = "query")]
    pub output: Option<PathBuf>,
}

/// Writes a run as one page: what was built, how good it is, where it fails
///
/// The page is one HTML file that needs no network: accuracies with intervals beside chance and
/// published values, what prompts gain, images with predictions, mistakes, what training saw of
/// each class, the loss, where the rows went, a scaling fit, settings and hashes. What the run has
/// no data for is left out with a sentence.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The run directory, or its URL in an object store
    pub dir: String,
    /// The file to write, or `-` for stdout [default: report.html in the run directory]
    #[arg(short, long, value_name = "FILE", conflicts_with = "terminal")]
    pub output: Option<PathBuf>,
    /// Print the same figures here, where they fit, and write no page
    #[arg(long)]
    pub terminal: bool,
}

/// Evaluates a model on evaluation sets, without a pipeline file
///
/// Reads each set, embeds its images, classifies them by prompts (or finds them by captions), and
/// prints the accuracies. It is a run like any other: the same command goes on where a killed one
/// stopped, and after a change of prompts no image is read again.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The folder of the model: this program's, Hugging Face's or open_clip's, with tokenizer.json
    /// or CLIP's vocabulary; or a model of the Hugging Face hub (hf://openai/clip-vit-base-patch32)
    #[arg(long, value_name = "DIR")]
    pub weights: String,
    /// The sets: `all`, or names (`twinlens sets` lists them) and files of your own (mine.toml),
    /// with commas between
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "all")]
    pub sets: Vec<String>,
    /// The folder with the data of the sets
    #[arg(long, value_name = "DIR")]
    pub data: String,
    /// A template (`a photo of a {}.`), the name of a template set, or @FILE with the templates of
    /// one, a line each; may be repeated [default: those of a `zero-shot` stage]
    #[arg(long, value_name = "PROMPTS")]
    pub prompts: Vec<String>,
    /// The run directory, or its URL in an object store [default: runs/eval-<name of the model's
    /// folder>]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<String>,
    /// Delete what an earlier evaluation left in the run directory first
    #[arg(long)]
    pub fresh: bool,
    /// Images, or prompts, in one forward pass
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    /// How the table is written
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: RowFormat,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Lists the images of a run that are nearest to a text, or to another image
///
/// Searches the embeddings that an `embed` stage made, exactly, and in little memory. Which they
/// are, and which model made them, is read in the manifests. May be used while a run is going on.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// The run directory, or a dataset with embeddings (runs/NAME/STAGE, a Parquet file)
    pub dir: String,
    /// What is looked for, such as "a red bicycle"
    #[arg(required_unless_present = "image")]
    pub text: Option<String>,
    /// Look for images like this one instead
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub image: Option<PathBuf>,
    /// The dataset to search, where several have embeddings
    #[arg(long, value_name = "STAGE")]
    pub dataset: Option<String>,
    /// The folder of the model that made the embeddings, where the manifests do not lead to it
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// How many are listed
    #[arg(short = 'k', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub top: u16,
    /// The columns that are shown beside the cosine [default: caption, class_name, label, url,
    /// page_url, uid, where they are]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub columns: Option<Vec<String>>,
    /// How rows are written
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: RowFormat,
}

/// Writes a dataset as Parquet, Arrow or tar files in shards of a size, with a card (README.md)
///
/// Images are copied as they are. The same command goes on where a killed one stopped; every file
/// appears whole, and manifest.jsonl has its hash. Look at the card before you publish it: it shows
/// the options of the stages as the pipeline file has them.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A dataset (runs/NAME/STAGE, an earlier export, a Parquet file); or a run directory in which
    /// one dataset alone has images
    pub source: String,
    /// The folder to write to, or its URL in an object store: new, empty, or an export
    pub dir: String,
    /// What the shards are
    #[arg(long, value_name = "FORMAT")]
    pub to: ExportFormat,
    /// Which rows: a SQL predicate, such as "width >= 200 and caption is not null" [default: all]
    #[arg(long = "where", value_name = "SQL")]
    pub predicate: Option<String>,
    /// Close a shard when it has this many bytes (or, of tar files, 10,000 rows)
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub shard_size: usize,
    /// Delete what an earlier export left in the folder first
    #[arg(long)]
    pub fresh: bool,
    /// Live progress on stderr, where stderr is a terminal
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub progress: ProgressMode,
    /// What stderr gets: sentences, or one JSON object a line for each event
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// What an export's shards are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Tar files of images and texts, with Parquet and statistics beside, as img2dataset writes
    /// them
    Webdataset,
    /// Parquet, as the Hugging Face hub shows it; also an input of pipelines
    Parquet,
    /// Arrow IPC files
    Arrow,
}

/// Lists the kinds of stages; with KIND, its options and an example
#[derive(Debug, Args)]
pub struct StagesArgs {
    /// The kind to explain
    pub kind: Option<String>,
}

/// Lists the evaluation sets that are declared; with NAME, what one is, its templates and classes,
/// and how to have it
#[derive(Debug, Args)]
pub struct SetsArgs {
    /// The set to tell of, or the path of a file that declares one (it ends in `.toml`)
    pub name: Option<String>,
    /// Say besides where in this folder the data of each set are
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Lists the contracts (the schemas of tables); with NAME, prints one as JSON
///
/// `schema views` explains the views that `sql` has over a run. `schema pipeline` prints the JSON
/// Schema of pipeline files, by which editors complete and check them: put `#:schema PATH` in the
/// first line of the file.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// A contract, `pipeline` or `views`
    #[arg(conflicts_with = "write")]
    pub name: Option<String>,
    /// Write all of them into this folder
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}

/// Values given on the command line.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Give a variable of the file's [vars] (`epochs=3`), an option of a stage (`clip.epochs=3`) or
    /// a key of the file (`seed=3`) another value; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub values: Vec<String>,
}

/// When to draw progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// When stderr is a terminal
    Auto,
    /// Never; finished stages are still reported
    Never,
}

/// How events are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// How a plan is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// Text
    Table,
    /// A Mermaid flowchart
    Mermaid,
    /// A Graphviz digraph
    Dot,
    /// A JSON document
    Json,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowFormat {
    /// Aligned columns for people; long values are cut
    Table,
    /// Comma-separated values with a header
    Csv,
    /// One JSON object a line
    Json,
    /// One Parquet file
    Parquet,
}

/// A number of bytes: `512MiB`, `2GB`, `1.5g`, `4096`.
fn size(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "k" | "kib" => (1u64 << 10) as f64,
        "m" | "mib" => (1u64 << 20) as f64,
        "g" | "gib" => (1u64 << 30) as f64,
        _ => return Err(format!("unknown unit `{unit}`: expected a size such as 512MiB or 2GB")),
    };
    let number: f64 = number.parse().map_err(|_| "expected a size such as 512MiB or 2GB".to_string())?;
    let bytes = number * scale;
    // Below this not even one batch can be sorted.
    if !(1e6..1e15).contains(&bytes) {
        return Err("expected a size from 1MB".into());
    }
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        let cases = [
            ("512MiB", Some(512 << 20)),
            ("2GB", Some(2_000_000_000)),
            ("1.5g", Some(3 << 29)),
            ("4000000", Some(4_000_000)),
            ("64 MiB", Some(64 << 20)),
            ("12", None),
            ("", None),
            ("1.2.3MB", None),
            ("5 parsecs", None),
            ("-5MB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }
}
