//! `twinlens export`: writes a dataset in another format, with a card.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use datafusion::prelude::SessionContext;
use serde_json::json;
use twinlens_dataset::MAIN;
use twinlens_dataset::export::{CARD_FILE, Export, Format, Outcome, ProgressFn};
use twinlens_dataset::storage::{Location, is_url};
use twinlens_dataset::{Dataset, contracts, manifest};
use twinlens_pipeline::run::events::{Event, Observer, Progress};
use twinlens_pipeline::run::provenance::provenance;
use twinlens_pipeline::run::{self, directory, session};
use twinlens_pipeline::{Product, Registry, RunError};

use crate::cli::{ExportArgs, ExportFormat};
use crate::errors::Failure;
use crate::location::parse_location;
use crate::progress::Watcher;
use crate::run::run_supervised;
use crate::runtime;
use crate::sql::token_count;
use crate::text::{bytes, counted, seconds, shell_quote};

/// Memory limit for counting the card's domains, beyond which DataFusion spills to disk.
const MEMORY: usize = 512 << 20;

impl From<ExportFormat> for Format {
    fn from(format: ExportFormat) -> Self {
        match format {
            ExportFormat::Webdataset => Self::WebDataset,
            ExportFormat::Parquet => Self::Parquet,
            ExportFormat::Arrow => Self::Arrow,
        }
    }
}

pub(crate) fn execute(args: &ExportArgs, registry: &Registry) -> Result<(), Failure> {
    let source = Source::find(&args.source)?;
    let to = parse_location(&args.dir)?;
    refuse_inside_dataset(&args.dir)?;
    let stage = source.dataset.state().begin.stage.clone();
    let export = Export {
        dataset: &source.dataset,
        made_by: provenance(&source.run, &source.dataset),
        pipeline: source.pipeline.clone(),
        format: args.to.into(),
        predicate: args.predicate.as_deref(),
        shard_bytes: args.shard_size as u64,
        fresh: args.fresh,
        image_extension,
    };
    let cores = runtime::cores();
    let runtime = session::runtime(MEMORY, &std::env::temp_dir())?;
    let session = SessionContext::new_with_config_rt(session::config(cores, 8192), runtime);
    registry.install(&session);
    session.register_udf(token_count::function(&source.run));

    let watcher = Watcher::new(args.progress, args.log_format, [stage.as_str()].into_iter());
    let done = run_supervised(watcher, cores, async |watcher, cancel| {
        let started = Instant::now();
        let observe = observe(&stage, watcher.clone());
        let stop = || cancel.is_cancelled();
        let (dataset, written) = match export.run(&session, &to, observe, &stop).await? {
            Outcome::Written(dataset) => (dataset, true),
            Outcome::Unchanged(dataset) => (dataset, false),
            Outcome::Interrupted => return Err(RunError::Interrupted.into()),
        };
        let (rows, _) = counts(&dataset);
        let (stage, seconds) = (stage.clone(), started.elapsed().as_secs_f64());
        watcher.event(&if written {
            Event::StageFinished { stage, rows, rejects: 0, seconds, reasons: Vec::new() }
        } else {
            Event::StageReused { stage, rows }
        });
        Ok(dataset)
    })?;
    let (rows, excluded) = counts(&done.value);
    let files = done.value.state().files().count() as u64;
    let size: u64 = done.value.state().files().map(|file| file.bytes).sum();
    done.watcher.end(&json!({
        "event": "export_finished", "rows": rows, "left_out": excluded, "files": files, "bytes": size,
        "seconds": done.elapsed.as_secs_f64(),
    }));
    let mut summary = format!(
        "{} in {}, {}, in {}",
        counted(rows, "row"),
        counted(files, "file"),
        bytes(size),
        seconds(done.elapsed)
    );
    if excluded > 0 {
        summary += &format!("; {} excluded by --where", counted(excluded, "row"));
    }
    summary += &format!("\ndataset card: {}", shell_quote(&to.join(CARD_FILE).to_string()));
    done.watcher.print_summary(&summary);
    Ok(())
}

/// Rows of an export, and rows that the predicate excluded.
fn counts(dataset: &Dataset) -> (u64, u64) {
    let state = dataset.state();
    let excluded = state.commits.values().map(|commit| commit.rejected()).sum();
    (state.rows_in().unwrap_or(0) - excluded, excluded)
}

/// The extension of an image's file name.
fn image_extension(image: &[u8]) -> &'static str {
    twinlens_image::sniff(image).map_or("bin", twinlens_image::Format::extension)
}

/// Reports progress to the watcher, from the first write on.
fn observe(stage: &str, watcher: Arc<dyn Observer>) -> ProgressFn {
    let (progress, started) = (Progress::new(stage, watcher), AtomicBool::new(false));
    let stage = stage.to_string();
    Arc::new(move |done, total, bytes| {
        if !started.swap(true, Ordering::Relaxed) {
            progress.total(total);
            let (stage, kind) = (stage.clone(), twinlens_dataset::export::KIND.to_string());
            let product = Product::Table;
            progress.event(Event::StageStarted {
                stage,
                kind,
                product,
                unit: "row",
                fused: Vec::new(),
                splits_done: 0,
            });
        }
        progress.counters.done.store(done, Ordering::Relaxed);
        progress.counters.bytes.store(bytes, Ordering::Relaxed);
    })
}

/// The dataset to export.
struct Source {
    dataset: Dataset,
    /// All datasets of its run, if it is in one.
    run: Vec<Dataset>,
    pipeline: Option<String>,
}

impl Source {
    fn find(text: &str) -> Result<Self, Failure> {
        let location = parse_location(text)?;
        if let Some(pipeline) = directory::identity(&location)? {
            let run = run::datasets(&location)?;
            return Ok(Self { dataset: with_images(&location, &run)?, run, pipeline: Some(pipeline) });
        }
        if manifest::exists(&location)? {
            let dataset = Dataset::open(location)?;
            let parent = parents(text).first().map(|parent| parse_location(parent)).transpose()?;
            let pipeline = match &parent {
                Some(parent) => directory::identity(parent)?,
                None => None,
            };
            let run = match &parent {
                Some(parent) if pipeline.is_some() => run::datasets(parent)?,
                _ => Vec::new(),
            };
            // An export records the name of its pipeline.
            let recorded = dataset.state().begin.recipe.get("pipeline").and_then(|name| name.as_str());
            let pipeline = pipeline.or(recorded.map(String::from));
            return Ok(Self { dataset, run, pipeline });
        }
        if location.exists()? {
            return Ok(Self { dataset: Dataset::from_parquet(location)?, run: Vec::new(), pipeline: None });
        }
        Err(Failure::user(format!("{text} is neither a dataset nor a run directory"))
            .hint("a dataset is a subdirectory of a run directory: runs/NAME/STAGE"))
    }
}

/// The only dataset of a run that has images.
fn with_images(dir: &Location, run: &[Dataset]) -> Result<Dataset, Failure> {
    let images =
        run.iter().filter(|dataset| dataset.schema(MAIN).is_ok_and(|schema| contracts::has_images(&schema)));
    match &images.collect::<Vec<_>>()[..] {
        [one] => Ok(Dataset::clone(one)),
        [] => {
            Err(Failure::user(format!("no dataset in {dir} has images"))
                .hint("name a dataset: runs/NAME/STAGE"))
        }
        several => {
            let names: Vec<String> =
                several.iter().map(|dataset| shell_quote(&dataset.location().to_string())).collect();
            Err(Failure::user(format!("{} datasets in {dir} have images", several.len()))
                .hint(format!("name one: {}", names.join(", "))))
        }
    }
}

/// The parents of a path or URL, nearest first.
fn parents(text: &str) -> Vec<String> {
    if is_url(text) {
        let parents = text.trim_end_matches('/').rmatch_indices('/').map(|(at, _)| &text[..at]);
        return parents
            .take_while(|parent| !parent.ends_with('/') && !parent.ends_with(':'))
            .map(String::from)
            .collect();
    }
    let path = std::path::absolute(Path::new(text)).unwrap_or_else(|_| text.into());
    path.ancestors().skip(1).map(|parent| parent.to_string_lossy().into_owned()).collect()
}

/// Refuses a directory inside a run directory or a dataset: a run would delete it.
fn refuse_inside_dataset(text: &str) -> Result<(), Failure> {
    for parent in parents(text) {
        let location = parse_location(&parent)?;
        if directory::identity(&location)?.is_some() || manifest::exists(&location)? {
            return Err(Failure::user(format!("{text} is inside {parent}, which holds other datasets"))
                .hint("choose a directory outside of it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_have_parents() {
        assert_eq!(
            parents("s3://bucket/runs/quick/images/"),
            ["s3://bucket/runs/quick", "s3://bucket/runs", "s3://bucket"]
        );
        assert_eq!(parents("/a/b"), ["/a", "/"]);
        assert!(parents("out").len() > 1);
    }
}
