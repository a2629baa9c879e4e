//! The `twinlens` command as a library.
//!
//! A program with stages of its own registers them and calls [`main`], which is the whole command:
//!
//! ```ignore
//! fn main() -> std::process::ExitCode {
//!     twinlens::main(twinlens::registry().with::<MyStage>())
//! }
//! ```
//!
//! `examples/own_stage.rs` is such a program. The traits of stages and the registry are in
//! [`pipeline`], table contracts in [`dataset`], and the query engine in [`datafusion`]. Another
//! program may call what the commands do as functions over values: [`api`].
//! Training and fetching are faster with [`Allocator`] as the `#[global_allocator]` of the program.

mod allocator;
pub mod api;
mod check;
mod checkpoint;
mod children;
mod cli;
mod cluster;
mod config;
mod continued;
mod embed;
mod env;
mod errors;
mod eval;
mod export;
mod help;
mod hub;
mod in_flight;
mod init;
#[cfg(unix)]
mod isolation;
#[cfg(not(unix))]
#[path = "isolation/absent.rs"]
mod isolation;
mod location;
mod logging;
mod manual;
mod model;
mod model_cost;
mod models;
mod output;
mod plan;
mod progress;
mod prompt;
mod prune;
mod ranks;
mod repair;
mod report;
mod retry;
mod run;
mod runtime;
mod schema;
mod scratch;
mod search;
mod secrets;
mod sets;
mod show;
mod signals;
mod sites;
mod sql;
mod stages;
mod status;
mod syntax;
mod table;
mod text;
mod views;
mod watch;
mod work;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
/// The allocator of the `twinlens` binary.
pub use datafusion;
pub use mimalloc::MiMalloc as Allocator;
pub use twinlens_dataset as dataset;
pub use twinlens_pipeline as pipeline;
pub use twinlens_pipeline::Registry;

use cli::{
    Cli, Command, EmbedArgs, EvalArgs, ExecutorArgs, ExportArgs, LogFormat, RetryArgs, RunArgs,
    SchedulerArgs, WorkArgs,
};
use errors::{Exit, Failure};
use text::{Paint, printable_with_colours};

/// All built-in kinds of stages, SQL functions and web sites.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    twinlens_crawl::register(&mut registry);
    twinlens_curate::register(&mut registry);
    twinlens_train::register::<twinlens_eval::InTrainingEvaluation>(&mut registry);
    twinlens_eval::register(&mut registry);
    registry.add_site(sites::GALLERY);
    registry
}

/// Runs the command line of this process and returns its exit code.
///
/// Sets process-wide state: the panic hook, signal handlers, and options of the allocator. Call it
/// once, before other threads start, and return its result from `main`.
pub fn main(registry: Registry) -> ExitCode {
    if let Some(exit) = std::env::args_os().nth(1).and_then(|argument| serve_child(&argument)) {
        return ExitCode::from(exit);
    }
    if let Ok(program) = std::env::current_exe() {
        children::start_by(program, Vec::new());
    }
    allocator::init();
    ExitCode::from(command_line(registry, std::env::args_os().collect()))
}

/// Does what a process was started for, and gives its exit code; `None` if that is something else.
fn serve_child(argument: &OsStr) -> Option<u8> {
    isolation::decoder_process(argument).or_else(|| in_flight::trial(argument))
}

/// Runs a command line, whose first word is the name of the program, and returns its exit code: for
/// a process that began as another program. Sets the panic hook and signal handlers.
pub fn command_line(registry: Registry, words: Vec<OsString>) -> u8 {
    silence_panics();
    // A thread of its own gets the stack size that deep queries need; a panic there is an internal
    // error. Blocking threads that are still running at the end are not waited for.
    let thread = std::thread::Builder::new().name("command".into()).stack_size(runtime::STACK_BYTES);
    let exit = thread.spawn(move || run_command(&registry, words)).map(std::thread::JoinHandle::join);
    match exit {
        Ok(Ok(exit)) => exit,
        Ok(Err(_)) | Err(_) => Exit::Internal as u8,
    }
}

/// Panics of libraries that become errors print nothing.
fn silence_panics() {
    twinlens_image::silence_decoder_panics();
    twinlens_dataset::guard::silence_caught_panics();
}

fn run_command(registry: &Registry, words: Vec<OsString>) -> u8 {
    run::keep_words(&words);
    let command = match Cli::try_parse_from(words) {
        Ok(cli) => cli.command,
        Err(error) => {
            // Help goes to stdout, errors to stderr. If that fails, there is nowhere left to report
            // it.
            if !error.use_stderr() {
                let _ = error.print();
                return 0;
            }
            let text = error.render();
            let text = if Paint::stderr().is_on() { text.ansi().to_string() } else { text.to_string() };
            let _ = std::io::stderr().lock().write_all(printable_with_colours(&text).as_bytes());
            return Exit::User as u8;
        }
    };
    let format = match &command {
        Command::Run(RunArgs { engine, .. })
        | Command::Repair(RunArgs { engine, .. })
        | Command::Retry(RetryArgs { engine, .. })
        | Command::Embed(EmbedArgs { engine, .. })
        | Command::Eval(EvalArgs { engine, .. }) => engine.log_format,
        Command::Work(WorkArgs { limits, .. }) | Command::Executor(ExecutorArgs { limits, .. }) => {
            limits.log_format
        }
        Command::Export(ExportArgs { log_format, .. })
        | Command::Scheduler(SchedulerArgs { log_format, .. }) => *log_format,
        _ => LogFormat::Text,
    };
    match logging::init(format).and_then(|()| dispatch(&command, registry)) {
        Ok(()) => 0,
        Err(failure) => {
            failure.print(format);
            failure.exit as u8
        }
    }
}

fn dispatch(command: &Command, registry: &Registry) -> Result<(), Failure> {
    match command {
        Command::Init(args) => init::execute(args, registry),
        Command::Run(args) => run::execute(args, registry),
        Command::Work(args) => work::execute(args, registry),
        Command::Scheduler(args) => cluster::scheduler(args),
        Command::Executor(args) => cluster::executor(args, registry),
        Command::Cluster(args) => cluster::show(args),
        Command::Repair(args) => repair::execute(args, registry),
        Command::Check(args) => check::execute(args, registry),
        Command::Plan(args) => plan::execute(args, registry),
        Command::Status(args) => status::execute(args),
        Command::Watch(args) => watch::execute(args),
        Command::Prune(args) => prune::execute(args),
        Command::Retry(args) => retry::execute(args, registry),
        Command::Sql(args) => sql::execute(args, registry),
        Command::Report(args) => report::execute(args, registry),
        Command::Eval(args) => eval::execute(args, registry),
        Command::Embed(args) => embed::execute(args, registry),
        Command::Search(args) => search::execute(args),
        Command::Show(args) => show::execute(args, registry),
        Command::Export(args) => export::execute(args, registry),
        Command::Stages(args) => stages::execute(args, registry),
        Command::Sets(args) => sets::execute(args),
        Command::Model(command) => model::execute(command),
        Command::Schema(args) => schema::execute(args, registry),
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::execute(args),
        Command::Help(args) => help::execute(args),
    }
}
