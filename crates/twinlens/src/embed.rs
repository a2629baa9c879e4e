//! `twinlens embed`: the embeddings of the images of a directory or dataset, in one Parquet file.
//!
//! It builds a pipeline in memory that reads and embeds the images, and runs it like any other: the
//! same command resumes it.

use std::path::{Path, PathBuf};

use serde_json::json;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::{Registry, run};

use crate::cli::{EmbedArgs, RowFormat};
use crate::errors::Failure;
use crate::init::{Images, Source, images, pipeline_name, quoted};
use crate::output::OutputFile;
use crate::run::{check_rejected, run_watched, settings};
use crate::sql::rows::RowWriter;
use crate::text::{counted, seconds};

/// The stage of the embeddings.
const VECTORS: &str = "vectors";

pub(crate) fn execute(args: &EmbedArgs, registry: &Registry) -> Result<(), Failure> {
    let weights = if is_hub_name(&args.weights) {
        args.weights.clone()
    } else {
        format!("{}/", crate::eval::absolute_dir(&args.weights)?.display())
    };
    let source = Source::whole(registry, PathBuf::new(), &args.data)
        .with_columns(args.caption.as_deref(), args.image.as_deref());
    let Images { stages, last, has_captions } = images(&source)?;
    let captions = if has_captions { "captions = \"caption\"\n" } else { "" };
    let name = format!("embed-{}", pipeline_name(&args.data));
    let text = format!(
        "name = {}\n{stages}\n[stages.{VECTORS}]\nkind = \"embed\"\ninput = \"{last}\"\nmodel = {}\nbatch_size = {}\n{captions}",
        quoted(&name),
        quoted(&weights),
        args.batch_size
    );
    let pipeline = source.check(&text).map_err(Failure::user)?;
    let settings = settings(&args.engine, args.dir.as_deref(), &pipeline)?;
    let done = run_watched(&pipeline, &settings, &args.engine, async |settings, watcher, cancel| {
        Ok(run::run(&pipeline, registry, settings, watcher, cancel).await?)
    })?;
    done.watcher.end(&json!({ "event": "run_finished", "seconds": done.elapsed.as_secs_f64() }));
    check_rejected(&done.value)?;
    let vectors = Dataset::open(settings.dir.join(VECTORS))?;
    write(&vectors, &args.output)?;
    let rows = counted(vectors.rows(MAIN), "row");
    done.watcher.print_summary(&format!("{}: {rows} in {}", args.output.display(), seconds(done.elapsed)));
    Ok(())
}

/// Writes the rows of a dataset to a Parquet file, which appears when it is complete.
fn write(dataset: &Dataset, path: &Path) -> Result<(), Failure> {
    let (file, out) = OutputFile::create(path)?;
    let schema = dataset.schema(MAIN)?;
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut writer = RowWriter::new(RowFormat::Parquet, out, &schema)?;
    for batch in ShardReader::new(dataset, MAIN, &columns, 4096) {
        writer.write(&batch?)?;
    }
    writer.finish()?;
    file.publish()
}
