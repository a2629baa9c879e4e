//! `twinlens repair`: makes splits again whose files are damaged.

use twinlens_pipeline::Registry;
use twinlens_pipeline::run::repair;

use crate::cli::RunArgs;
use crate::errors::Failure;
use crate::text::{counted, one_line, printable};
use crate::{config, location, run};

pub(crate) fn execute(args: &RunArgs, registry: &Registry) -> Result<(), Failure> {
    let pipeline = config::load(&args.pipeline, registry, &args.set.values)?;
    let dir = location::run_dir(args.dir.as_deref(), &pipeline)?;
    let found = repair::take_back(&dir, &pipeline)?;
    if found.is_empty() {
        eprintln!("{}: every file is as its manifest records", one_line(&dir.to_string()));
    }
    for damage in &found {
        let splits = damage.splits.len() as u64;
        eprintln!("{}: {} to make again", one_line(&damage.dataset), counted(splits, "split"));
        damage.faults.iter().for_each(|fault| eprintln!("  {}", printable(&fault.to_string())));
    }
    run::execute(args, registry)
}
