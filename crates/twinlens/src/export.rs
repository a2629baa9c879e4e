//! `twinlens export`: a dataset in another format, with a card.

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
use twinlens_pipeline::RunError;
use twinlens_pipeline::run::events::{Event, Observer, Progress};
use twinlens_pipeline::run::provenance::provenance;
use twinlens_pipeline::run::{self, directory, session};

use crate::cli::{ExportArgs, ExportFormat};
use crate::errors::Failure;
use crate::progress::Watcher;
use crate::run::{location, quoted, supervised};
use crate::text::{bytes, counted, seconds};
use crate::{registry, runtime};

/// Memory in which the card's domains are counted; beyond it they spill to disk.
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

/// Exports, or goes on with it, and says what is there.
pub fn command(args: &ExportArgs) -> Result<(), Failure> {
    let source = Source::find(&args.source)?;
    let to = location(&args.dir)?;
    refuse_within(&args.dir)?;
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
    registry::all().install(&session);

    let watcher = Watcher::new(args.progress, args.log_format, [stage.as_str()].into_iter());
    let done = supervised(watcher, cores, async |watcher, cancel| {
        let started = Instant::now();
        let observe = observe(&stage, watcher.clone());
        let stop = || cancel.is_cancelled();
        let (dataset, written) = match export.run(&session, &to, observe, &stop).await? {
            Outcome::Written(dataset) => (dataset, true),
            Outcome::Unchanged(dataset) => (dataset, false),
            Outcome::Interrupted => return Err(RunError::Interrupted.into()),
        };
        let (rows, _) = counts(&dataset);
        watcher.event(&match written {
            true => Event::StageFinished {
                stage: stage.clone(),
                rows,
                rejects: 0,
                seconds: started.elapsed().as_secs_f64(),
            },
            false => Event::StageReused { stage: stage.clone(), rows },
        });
        Ok(dataset)
    })?;
    let (rows, left_out) = counts(&done.value);
    let files = done.value.state().files().count() as u64;
    let size: u64 = done.value.state().files().map(|file| file.bytes).sum();
    done.watcher.end(&json!({
        "event": "export_finished", "rows": rows, "left_out": left_out, "files": files, "bytes": size,
        "seconds": done.time.as_secs_f64(),
    }));
    let mut summary = format!(
        "{} in {}, {}, in {}",
        counted(rows, "row"),
        counted(files, "file"),
        bytes(size),
        seconds(done.time)
    );
    if left_out > 0 {
        summary += &format!("; {} left out by --where", counted(left_out, "row"));
    }
    summary += &format!("\nits card: {}", quoted(&to.join(CARD_FILE).to_string()));
    done.watcher.sum_up(&summary);
    Ok(())
}

/// Rows of an export, and those that its predicate left out.
fn counts(dataset: &Dataset) -> (u64, u64) {
    let state = dataset.state();
    let left_out = state.commits.values().map(|commit| commit.rejected()).sum();
    (state.rows_in().unwrap_or(0) - left_out, left_out)
}

/// The file extension of an encoded image.
fn image_extension(image: &[u8]) -> &'static str {
    twinlens_image::sniff(image).map_or("bin", twinlens_image::Format::extension)
}

/// Tells whoever watches how far it is, from when writing begins.
fn observe(stage: &str, watcher: Arc<dyn Observer>) -> ProgressFn {
    let (progress, begun) = (Progress::new(stage, watcher), AtomicBool::new(false));
    let stage = stage.to_string();
    Arc::new(move |done, total, bytes| {
        if !begun.swap(true, Ordering::Relaxed) {
            progress.total(total);
            let (stage, kind) = (stage.clone(), twinlens_dataset::export::KIND.to_string());
            progress.event(Event::StageStarted { stage, kind, fused: Vec::new(), splits_done: 0 });
        }
        progress.counters.done.store(done, Ordering::Relaxed);
        progress.counters.bytes.store(bytes, Ordering::Relaxed);
    })
}

/// What is exported.
struct Source {
    dataset: Dataset,
    /// The datasets of its run, itself among them; none when it lies in no run.
    run: Vec<Dataset>,
    pipeline: Option<String>,
}

impl Source {
    fn find(written: &str) -> Result<Self, Failure> {
        let place = location(written)?;
        if let Some(pipeline) = directory::identity(&place)? {
            let run = run::datasets(&place)?;
            return Ok(Self { dataset: with_images(&place, &run)?, run, pipeline: Some(pipeline) });
        }
        if manifest::exists(&place)? {
            let dataset = Dataset::open(place)?;
            let above = above(written).into_iter().next().map(|above| location(&above)).transpose()?;
            let pipeline = match &above {
                Some(above) => directory::identity(above)?,
                None => None,
            };
            let run = match &above {
                Some(above) if pipeline.is_some() => run::datasets(above)?,
                _ => Vec::new(),
            };
            // An export carries the name with it.
            let carried = dataset.state().begin.recipe.get("pipeline").and_then(|name| name.as_str());
            let pipeline = pipeline.or(carried.map(String::from));
            return Ok(Self { dataset, run, pipeline });
        }
        if place.exists()? {
            return Ok(Self { dataset: Dataset::from_parquet(place)?, run: Vec::new(), pipeline: None });
        }
        Err(Failure::user(format!("{written} is no dataset and no run directory"))
            .hint("a dataset is a folder of a run directory: runs/NAME/STAGE"))
    }
}

/// The one dataset of a run that has images.
fn with_images(place: &Location, run: &[Dataset]) -> Result<Dataset, Failure> {
    let images =
        run.iter().filter(|dataset| dataset.schema(MAIN).is_ok_and(|schema| contracts::has_images(&schema)));
    match &images.collect::<Vec<_>>()[..] {
        [one] => Ok(Dataset::clone(one)),
        [] => Err(Failure::user(format!("no dataset in {place} has images"))
            .hint("name one with its folder: runs/NAME/STAGE")),
        several => {
            let names: Vec<String> =
                several.iter().map(|dataset| quoted(&dataset.location().to_string())).collect();
            Err(Failure::user(format!("{} datasets in {place} have images", several.len()))
                .hint(format!("name one: {}", names.join(", "))))
        }
    }
}

/// The folders above a path or URL, nearest first.
fn above(written: &str) -> Vec<String> {
    if is_url(written) {
        let ends = written.trim_end_matches('/').rmatch_indices('/').map(|(at, _)| &written[..at]);
        return ends
            .take_while(|folder| !folder.ends_with('/') && !folder.ends_with(':'))
            .map(String::from)
            .collect();
    }
    let path = std::path::absolute(Path::new(written)).unwrap_or_else(|_| written.into());
    path.ancestors().skip(1).map(|folder| folder.to_string_lossy().into_owned()).collect()
}

/// Refuses a folder within a run directory or a dataset: a run would take it for its own, and
/// delete it.
fn refuse_within(written: &str) -> Result<(), Failure> {
    for folder in above(written) {
        let place = location(&folder)?;
        if directory::identity(&place)?.is_some() || manifest::exists(&place)? {
            return Err(Failure::user(format!(
                "{written} lies in {folder}, which holds datasets of its own"
            ))
            .hint("choose a folder outside of it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_above_are_found_in_paths_and_urls() {
        assert_eq!(
            above("s3://bucket/runs/quick/images/"),
            ["s3://bucket/runs/quick", "s3://bucket/runs", "s3://bucket"]
        );
        assert_eq!(above("/a/b"), ["/a", "/"]);
        assert!(above("out").len() > 1);
    }
}
