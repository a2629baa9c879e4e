//! `twinlens retry`: processes rejected rows again.

use serde_json::json;
use twinlens_pipeline::Registry;
use twinlens_pipeline::run::retry::{Retried, retry};

use crate::cli::RetryArgs;
use crate::errors::Failure;
use crate::text::{count, counted};
use crate::{config, run};

pub(crate) fn execute(args: &RetryArgs, registry: &Registry) -> Result<(), Failure> {
    let pipeline = config::open(&args.pipeline, registry, &args.set.values)?;
    let settings = run::settings(&args.engine, args.dir.as_deref(), &pipeline)?;
    let settings = run::shared(settings, &args.sharing, &pipeline)?;
    let selection = (args.stage.as_str(), args.predicate.as_str());
    let done = run::run_watched(&pipeline, &settings, &args.engine, async |settings, watcher, cancel| {
        Ok(retry(&pipeline, registry, settings, watcher, cancel, selection).await?)
    })?;
    let Retried { dataset, picked, before, after } = done.value;
    done.watcher.end(&json!({
        "event": "retry_finished", "dataset": dataset, "picked": picked, "rows_before": before, "rows_after": after,
    }));
    let rows = format!("{dataset}: {} -> {} rows", count(before), count(after));
    done.watcher.print_summary(&match picked {
        0 => format!("no reject of `{}` matches {}", args.stage, args.predicate),
        picked => format!(
            "{} retried; {rows}\nrebuild the stages after it with: twinlens run",
            counted(picked, "reject")
        ),
    });
    Ok(())
}
