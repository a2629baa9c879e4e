//! `twinlens completions` and `twinlens man`: what shells and `man` know of the command.

use std::io::Write;

use clap::CommandFactory;
use twinlens_dataset::storage::local;

use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::errors::Failure;

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "twinlens", &mut script);
    let mut out = std::io::stdout().lock();
    out.write_all(&script)?;
    Ok(out.flush()?)
}

pub(crate) fn execute(args: &ManArgs) -> Result<(), Failure> {
    let Some(dir) = &args.write else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        let mut out = std::io::stdout().lock();
        out.write_all(&page)?;
        return Ok(out.flush()?);
    };
    local::create_dir(dir)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(|error| Failure::io(dir, error))
}
