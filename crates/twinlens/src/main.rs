//! The `twinlens` command: subcommands, progress and output. Only this crate registers every kind
//! of stage.

mod allocator;
mod check;
mod cli;
mod config;
mod env;
mod errors;
mod eval;
mod export;
mod hub;
mod model;
mod plan;
mod progress;
mod registry;
mod report;
mod retry;
mod run;
mod runtime;
mod schema;
mod search;
mod sets;
mod signals;
mod sites;
mod sql;
mod stages;
mod status;
mod syntax;
mod table;
mod text;
mod views;

use clap::Parser;

use cli::{Cli, Command, EvalArgs, ExportArgs, LogFormat, RetryArgs, RunArgs};
use errors::{Exit, Failure};

fn main() {
    allocator::init();
    twinlens_image::silence_decoder_panics();
    // A thread of its own gets the stack size that deep queries need; a panic there is an internal
    // error.
    let thread = std::thread::Builder::new().name("command".into()).stack_size(runtime::STACK_BYTES);
    let exit = match thread.spawn(run_command).map(std::thread::JoinHandle::join) {
        Ok(Ok(exit)) => exit,
        Ok(Err(_)) | Err(_) => Exit::Internal as i32,
    };
    // Do not wait for blocking threads.
    std::process::exit(exit)
}

/// Runs the command line and returns the exit code.
fn run_command() -> i32 {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // Help goes to stdout, errors to stderr. If that fails, there is nowhere left to report it.
            let _ = error.print();
            return if error.use_stderr() { Exit::User as i32 } else { 0 };
        }
    };
    let format = match &command {
        Command::Run(RunArgs { engine, .. })
        | Command::Retry(RetryArgs { engine, .. })
        | Command::Eval(EvalArgs { engine, .. }) => engine.log_format,
        Command::Export(ExportArgs { log_format, .. }) => *log_format,
        _ => LogFormat::Text,
    };
    match dispatch(&command) {
        Ok(()) => 0,
        Err(failure) => {
            failure.print(format);
            failure.exit as i32
        }
    }
}

fn dispatch(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::execute(args),
        Command::Check(args) => check::execute(args),
        Command::Plan(args) => plan::execute(args),
        Command::Status(args) => status::execute(args),
        Command::Retry(args) => retry::execute(args),
        Command::Sql(args) => sql::execute(args),
        Command::Report(args) => report::execute(args),
        Command::Eval(args) => eval::execute(args),
        Command::Search(args) => search::execute(args),
        Command::Export(args) => export::execute(args),
        Command::Stages(args) => stages::execute(args),
        Command::Sets(args) => sets::execute(args),
        Command::Model(command) => model::execute(command),
        Command::Schema(args) => schema::execute(args),
    }
}
