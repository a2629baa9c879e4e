//! The twinlens command: verbs, progress, output. It registers every kind of stage; nothing else
//! knows all of them.

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
mod table;
mod text;
mod views;

use clap::Parser;

use cli::{Cli, Command, EvalArgs, ExportArgs, LogFormat, RetryArgs, RunArgs};
use errors::{Exit, Failure};

fn main() {
    allocator::set_up();
    twinlens_image::silence_decoder_panics();
    // On a thread with a stack of our own size; and a panic there, after its message, is our fault
    // and no mistake of the user's.
    let command =
        std::thread::Builder::new().name("command".into()).stack_size(runtime::STACK_BYTES).spawn(command);
    let exit = match command.map(std::thread::JoinHandle::join) {
        Ok(Ok(exit)) => exit,
        Ok(Err(_)) | Err(_) => Exit::Ours as i32,
    };
    // Work that was left behind on blocking threads is not waited for.
    std::process::exit(exit)
}

/// Does what the command line asks for; its exit code.
fn command() -> i32 {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // Help goes to stdout, mistakes to stderr; whoever does not listen misses it.
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
            failure.tell(format);
            failure.exit as i32
        }
    }
}

fn dispatch(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::command(args),
        Command::Check(args) => check::command(args),
        Command::Plan(args) => plan::command(args),
        Command::Status(args) => status::command(args),
        Command::Retry(args) => retry::command(args),
        Command::Sql(args) => sql::command(args),
        Command::Report(args) => report::command(args),
        Command::Eval(args) => eval::command(args),
        Command::Search(args) => search::command(args),
        Command::Export(args) => export::command(args),
        Command::Stages(args) => stages::command(args),
        Command::Sets(args) => sets::command(args),
        Command::Model(command) => model::command(command),
        Command::Schema(args) => schema::command(args),
    }
}
