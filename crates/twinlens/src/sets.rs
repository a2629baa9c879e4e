//! `twinlens sets`: lists the evaluation sets, or describes one.

use std::io::Write;
use std::path::Path;

use twinlens_eval::sets::{Class, Declaration, Task, catalog, find};

use crate::cli::SetsArgs;
use crate::errors::Failure;
use crate::table::TableWriter;
use crate::text::printable;

pub(crate) fn execute(args: &SetsArgs) -> Result<(), Failure> {
    match &args.name {
        None => list(args.data.as_deref()),
        Some(name) => {
            let set = if name.ends_with(".toml") {
                load(Path::new(name))?
            } else {
                catalog::named(name).map_err(|(why, hint)| Failure::user(why).hint(hint))?
            };
            let mut out = std::io::stdout().lock();
            out.write_all(printable(&describe(&set, args.data.as_deref())).as_bytes())?;
            Ok(out.flush()?)
        }
    }
}

fn load(path: &Path) -> Result<Declaration, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::user(format!("{}: {error}", path.display())))?;
    Declaration::parse(&text).map_err(|why| Failure::user(format!("{}: {why}", path.display())))
}

fn list(data: Option<&Path>) -> Result<(), Failure> {
    let mut names = vec!["set", "title", "task", "classes", "metric", "chance", "images", "licence"];
    let mut right = vec![false, false, false, true, false, true, true, false];
    if data.is_some() {
        names.push("data");
        right.push(false);
    }
    let mut table = TableWriter::with_columns(std::io::stdout().lock(), &names, &right);
    for set in catalog::all().map_err(Failure::user)? {
        let mut row = vec![
            set.name.clone(),
            set.title.clone(),
            set.task.name().into(),
            set.class_count().map_or(String::new(), |count| count.to_string()),
            set.metric.clone(),
            chance(&set),
            set.splits.get(&set.split).map_or(String::new(), u64::to_string),
            set.licence.clone(),
        ];
        row.extend(data.map(|data| location(&set, data)));
        table.row(row)?;
    }
    drop(table.finish()?);
    Ok(())
}

fn chance(set: &Declaration) -> String {
    set.chance().map_or(String::new(), |chance| format!("{chance:.4}"))
}

/// The directory of a set, or `not found`.
fn location(set: &Declaration, data: &Path) -> String {
    find(set, data).map_or("not found".into(), |root| root.display().to_string())
}

fn describe(set: &Declaration, data: Option<&Path>) -> String {
    let mut text = format!("{}: {}\n\n", set.name, set.title);
    let mut line = |name: &str, value: &str| text += &format!("  {name:<10}  {value}\n");
    line("task", set.task.name());
    line("metric", &set.metric);
    match set.chance() {
        Some(_) => line("chance", &chance(set)),
        None => line("chance", "depends on the data; reported with the results"),
    }
    let splits: Vec<String> = set.splits.iter().map(|(name, images)| format!("{name} {images}")).collect();
    line("split", &format!("{} (published: {})", set.split, splits.join(", ")));
    line("licence", &set.licence);
    line("source", &set.source);
    line("download", &set.how_to_get);
    if let Some(data) = data {
        line("data", &location(set, data));
    }
    if !set.templates.is_empty() {
        text += "\ntemplates\n";
        set.templates.iter().for_each(|template| text += &format!("  {template}\n"));
    }
    match (set.listed(), set.task) {
        (Some(classes), _) => {
            text += "\nclasses, by label id\n";
            classes
                .iter()
                .enumerate()
                .for_each(|(id, class)| text += &format!("  {id:>4}  {}\n", class_line(class)));
        }
        (None, Task::Retrieval) => {}
        (None, _) => {
            let count = set.class_count().map_or(String::new(), |count| format!("{count} "));
            text += &format!("\nclasses\n  {count}classes, named by the data\n");
        }
    }
    text
}

fn class_line(class: &Class) -> String {
    let mut text = class.name.clone();
    if !class.synonyms.is_empty() {
        text += &format!(", {}", class.synonyms.join(", "));
    }
    if let Some(label) = class.label.as_ref().filter(|label| **label != class.name) {
        text += &format!("  ({label} in the data)");
    }
    text
}
