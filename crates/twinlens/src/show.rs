//! `twinlens show`: the first images of a dataset as a page, or its rows as a table.

use std::io::{BufWriter, Write};
use std::path::Path;

use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{Expr, ident};
use twinlens_dataset::storage::Location;
use twinlens_dataset::types::holds_image_bytes;
use twinlens_dataset::{Dataset, MAIN, contracts, manifest};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::run::session;
use twinlens_pipeline::suggest::{did_you_mean, list_names};
use twinlens_pipeline::{ColumnType, Registry, run};

use crate::cli::ShowArgs;
use crate::errors::Failure;
use crate::eval::current_dir;
use crate::report::pictures_page;
use crate::sql::rows::RowWriter;
use crate::text::{bytes, counted, one_line};
use crate::{env, hub, output, runtime, status};

/// The columns below an image, of which the first that has a value is shown.
const TEXTS: [&str; 7] = ["caption", "class_name", "label", "text", "title", "url", "uid"];

pub(crate) fn execute(args: &ShowArgs, registry: &Registry) -> Result<(), Failure> {
    let dataset = open(args)?;
    runtime::block_on(None, async {
        // One partition: the rows in their order.
        let session = session::plain(registry, 1);
        let frame = dataset.frame(&session, MAIN).await?;
        let frame = match &args.predicate {
            Some(sql) => {
                let predicate = frame.parse_sql_expr(sql)?;
                frame.filter(predicate)?
            }
            None => frame,
        };
        let frame = frame.limit(0, Some(args.rows.into()))?;
        match &args.output {
            Some(path) => page(frame, args, path).await,
            None => table(frame, args).await,
        }
    })
}

/// The dataset, or the last one with images of a run.
fn open(args: &ShowArgs) -> Result<Dataset, Failure> {
    let written = args.dataset.as_str();
    let files = Files { base: current_dir()?, scratch: env::cache_dir(), hub: hub::open() };
    if is_hub_name(written) || written.contains(['*', '?']) {
        return Ok(files.dataset(written)?);
    }
    let location: Location = crate::location::parse_location(written)?;
    if location.as_local().is_some_and(Path::is_file) || manifest::exists(&location)? {
        return Ok(files.dataset(written)?);
    }
    status::pipeline_of(&location)?;
    let all = run::datasets(&location)?;
    let has_images =
        |dataset: &&Dataset| dataset.schema(MAIN).is_ok_and(|schema| contracts::has_images(&schema));
    all.iter().rfind(has_images).cloned().ok_or_else(|| {
        let names = all.iter().map(|dataset| dataset.state().begin.stage.as_str());
        Failure::user(format!("no dataset of {written} has images"))
            .hint(format!("its datasets are {}", list_names(names)))
    })
}

async fn table(frame: DataFrame, args: &ShowArgs) -> Result<(), Failure> {
    let columns: Vec<Expr> = frame
        .schema()
        .fields()
        .iter()
        .filter(|field| !holds_image_bytes(field.data_type()))
        .map(|field| ident(field.name()))
        .collect();
    let frame = frame.select(columns)?;
    let schema = frame.schema().inner().clone();
    let mut writer = RowWriter::new(args.format, Box::new(BufWriter::new(std::io::stdout())), &schema)?;
    for batch in frame.collect().await? {
        writer.write(&batch)?;
    }
    writer.finish()
}

async fn page(frame: DataFrame, args: &ShowArgs, path: &Path) -> Result<(), Failure> {
    let schema = frame.schema().inner().clone();
    let names = || schema.fields().iter().map(|field| field.name().as_str());
    let images: Vec<&str> = (schema.fields().iter())
        .filter(|field| ColumnType::EncodedImage.accepts(field.data_type()))
        .map(|field| field.name().as_str())
        .collect();
    let image = match &args.image {
        Some(name) if images.contains(&name.as_str()) => name.as_str(),
        Some(name) => {
            let hint = did_you_mean(name, names())
                .unwrap_or_else(|| format!("the columns are {}", list_names(names())));
            return Err(
                Failure::user(format!("{} has no column `{name}` of images", args.dataset)).hint(hint)
            );
        }
        None => {
            images.iter().find(|name| **name == "image").or(images.first()).copied().ok_or_else(|| {
                let failure = Failure::user(format!("{} has no images", args.dataset));
                failure
                    .hint(format!("its columns are {}; without `-o` its rows are shown", list_names(names())))
            })?
        }
    };
    let texts = TEXTS.iter().filter(|name| names().any(|column| column == **name)).copied();
    let mut columns = vec![ident(image)];
    columns.extend(texts.filter(|name| *name != image).map(ident));
    let (mut pictures, mut rows) = (Vec::new(), 0);
    for batch in frame.select(columns)?.collect().await? {
        rows += batch.num_rows();
        pictures.extend(crate::report::pictures_of(&batch));
    }
    let shown = format!(
        "The first {} of {} with an image that can be decoded.",
        counted(pictures.len() as u64, "row"),
        args.dataset
    );
    let page = pictures_page(&args.dataset, shown, pictures)?;
    output::write(path, page.as_bytes())?;
    let line = format!(
        "{} ({}, {})\n",
        one_line(&path.display().to_string()),
        counted(rows as u64, "row"),
        bytes(page.len() as u64)
    );
    // A failure to print this is not a failure of the command.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
    Ok(())
}
