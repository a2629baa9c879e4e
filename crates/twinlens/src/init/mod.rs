//! `twinlens init`: looks at the data of a person, and writes a pipeline that runs as it is.
//!
//! What is there is told from files and columns (`recognise`); the stages that read it are then run
//! on a few rows (`trial`), so that what they cannot read is an error here and not later.

mod classes;
mod folders;
mod found;
mod listing;
mod parquet;
mod pipeline;
mod recognise;
mod tables;
mod trial;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use twinlens_pipeline::Registry;

use crate::cli::InitArgs;
use crate::errors::Failure;
use crate::text::{one_line, shell_quote};
pub(crate) use found::{Images, Source, quoted};
pub(crate) use recognise::images;

pub(crate) fn execute(args: &InitArgs, registry: &Registry) -> Result<(), Failure> {
    let name = pipeline_name(&args.data);
    let file = args.output.clone().unwrap_or_else(|| format!("{name}.toml").into());
    let prints = file == Path::new("-");
    if !prints && file.exists() {
        return Err(exists(&file));
    }
    let base = if prints { PathBuf::new() } else { file.parent().unwrap_or(Path::new("")).into() };
    let source = Source::new(registry, base, &args.data);
    let source = source.with_columns(args.caption.as_deref(), args.image.as_deref());
    let found = recognise::recognise(&source)?;
    let text = pipeline::text(&found, &name, &args.data)?;
    source.check(&text).map_err(|why| Failure::internal(format!("{why}\n\n{text}")))?;
    if prints {
        std::io::stdout().lock().write_all(text.as_bytes())?;
        return Ok(());
    }
    let mut new = OpenOptions::new().write(true).create_new(true).open(&file).map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists { exists(&file) } else { Failure::io(&file, error) }
    })?;
    new.write_all(text.as_bytes()).map_err(|error| {
        // Half a pipeline would be in the way of the next try.
        let _ = std::fs::remove_file(&file);
        Failure::io(&file, error)
    })?;
    let mut shown = format!("{}: {}\n", one_line(&args.data), one_line(&found.what));
    found.notes.iter().for_each(|note| shown += &format!("  {}\n", one_line(note)));
    let path = file.display().to_string();
    shown += &format!("{} is written; run it with: twinlens run {}\n", one_line(&path), shell_quote(&path));
    Ok(std::io::stderr().lock().write_all(shown.as_bytes())?)
}

fn exists(file: &Path) -> Failure {
    Failure::user(format!("{} exists already", file.display())).hint("choose another file with `-o FILE`")
}

/// The name of the data, as a pipeline and its run directory are called.
pub(crate) fn pipeline_name(data: &str) -> String {
    let parts = data.trim_end_matches('/').split(['/', '\\']);
    let last = parts.rev().find(|part| !part.is_empty() && !part.contains(['*', '?']) && *part != "..");
    let stem = last.map_or("data", |last| last.split('.').find(|part| !part.is_empty()).unwrap_or("data"));
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    let name = stem.chars().map(allowed).collect::<String>().trim_matches('-').to_string();
    if name.is_empty() { "data".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelines_are_named_after_their_data() {
        let cases = [
            ("./My Photos/", "my-photos"),
            ("pairs.csv.gz", "pairs"),
            ("../", "data"),
            ("data/*.tar", "data"),
            ("hf://datasets/org/small-set", "small-set"),
            ("..", "data"),
        ];
        for (data, name) in cases {
            assert_eq!(pipeline_name(data), name, "{data}");
        }
    }
}
