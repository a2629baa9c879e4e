//! `twinlens prune`: frees what a run directory holds and no run needs.

use std::io::Write;

use twinlens_pipeline::run::prune::{Leftover, Leftovers};

use crate::cli::PruneArgs;
use crate::errors::Failure;
use crate::table::TableWriter;
use crate::text::{bytes, one_line, seconds};
use crate::{prompt, status};

pub(crate) fn execute(args: &PruneArgs) -> Result<(), Failure> {
    let dir = crate::location::parse_location(&args.dir)?;
    status::pipeline_of(&dir)?;
    let leftovers = Leftovers::find(&dir)?;
    let total: u64 = leftovers.found.iter().map(|leftover| leftover.bytes).sum();
    let mut out = std::io::stdout().lock();
    print(&mut out, &leftovers)?;
    if leftovers.found.is_empty() {
        writeln!(out, "nothing to free in {}", one_line(&dir.to_string()))?;
        return Ok(out.flush()?);
    }
    writeln!(out, "{} to free", bytes(total))?;
    out.flush()?;
    if args.yes || (prompt::is_possible() && prompt::confirm(&format!("this deletes {}", bytes(total)))) {
        leftovers.delete()?;
        eprintln!("freed {}", bytes(total));
    } else {
        eprintln!("nothing was deleted; --yes deletes it");
    }
    Ok(())
}

fn print(mut out: &mut impl Write, leftovers: &Leftovers) -> Result<(), Failure> {
    if !leftovers.found.is_empty() {
        let names = ["folder", "what", "size", "age"];
        let mut table = TableWriter::with_columns(&mut out, &names, &[false, false, true, true]);
        for Leftover { folder, kind, bytes: size, age } in &leftovers.found {
            let age = age.map_or("-".into(), seconds);
            table.row(vec![folder.clone(), kind.to_string(), bytes(*size), age])?;
        }
        table.finish()?;
        writeln!(out)?;
    }
    for (folder, why) in &leftovers.kept {
        writeln!(out, "{} stays: {}", one_line(folder), one_line(why))?;
    }
    Ok(())
}
