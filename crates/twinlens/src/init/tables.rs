//! Tables of URLs or paths, and captions.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reqwest::Url;
use twinlens_dataset::storage::is_url;

use super::found::{Count, Found, Material, Pairs, Source, quoted};
use super::listing::extension;
use super::trial::{Trial, lines};
use crate::errors::Failure;

/// Most images that are fetched from servers, and from files.
const MOST_FETCHED: u64 = 2000;
const MOST_READ: u64 = 20_000;

/// A table stage that reads the files.
struct Table<'a> {
    /// As the pipeline names the files.
    files: &'a str,
    caption: Option<&'a str>,
    /// Whether a row has several captions.
    each: bool,
    root: Option<String>,
}

impl Table<'_> {
    fn stage(&self) -> String {
        let mut text = format!("[stages.list]\nkind = \"table\"\nfiles = [{}]\n", quoted(self.files));
        if let Some(caption) = self.caption {
            text += &format!("columns = {{ caption = {} }}\n", quoted(caption));
        }
        if self.each {
            text += "captions = \"each\"                    # a row for each caption of a list\n";
        }
        if let Some(root) = &self.root {
            text += &format!("root = {}\n", quoted(root));
        }
        text
    }
}

pub(super) fn table(source: &Source<'_>, files: &str, paths: &[PathBuf]) -> Result<Found, Failure> {
    let mut table = Table { files, caption: source.caption, each: false, root: None };
    let trial = match source.try_stages(&table.stage(), "list") {
        Ok(trial) => trial,
        Err(failure) => {
            table.each = true;
            let again = source.try_stages(&table.stage(), "list");
            again.map_err(|_| match source.caption {
                Some(_) => failure,
                None => failure.hint("`--caption COLUMN` names the column of captions"),
            })?
        }
    };
    let urls: Vec<String> = trial.texts("url")?.into_iter().flatten().collect();
    let has_captions = trial.texts("caption")?.iter().any(Option::is_some);
    let Some(first) = urls.first() else {
        return Err(Failure::user(format!("{} has no rows", source.data)));
    };
    let count = count(&trial, paths)?;
    if is_url(first) {
        return Ok(remote(source, &table, &urls, Rows { count, has_captions }));
    }
    let folder = paths.first().and_then(|path| path.parent()).unwrap_or(Path::new(""));
    table.root = root_of(source, folder, first)?;
    Ok(local(source, &table, folder, Rows { count, has_captions }))
}

#[derive(Clone, Copy)]
struct Rows {
    count: Count,
    has_captions: bool,
}

impl Rows {
    /// What is used of them, if not all.
    fn share(self, source: &Source<'_>, most: u64) -> Option<f64> {
        let rows = self.count.rows;
        (!source.is_whole && rows > most + most / 4)
            .then(|| (most as f64 / rows as f64 * 1000.0).ceil() / 1000.0)
    }

    fn found(self, what: String, notes: Vec<String>, stages: String, share: Option<f64>) -> Found {
        let material = if self.has_captions {
            Material::Pairs(Pairs { stages, test: None, has_lists: false, share })
        } else {
            Material::Images(stages.replace("[stages.pairs]", "[stages.images]"))
        };
        Found { what, count: self.count, material, notes }
    }
}

fn count(trial: &Trial, paths: &[PathBuf]) -> Result<Count, Failure> {
    if trial.is_all() {
        return Ok(Count::exactly(trial.rows()));
    }
    let mut rows = 0;
    for path in paths {
        rows += match extension(&path.to_string_lossy()).as_str() {
            "parquet" => twinlens_dataset::Dataset::from_parquet(path)?.rows(twinlens_dataset::MAIN),
            // Without the line of names.
            "csv" | "tsv" => lines(path)?.rows.saturating_sub(1),
            _ => lines(path)?.rows,
        };
    }
    Ok(Count { rows: rows.max(trial.rows()), is_exact: false })
}

/// The stage that takes a sample, and the name of the stage to read then.
fn sample(share: Option<f64>) -> (String, &'static str) {
    let Some(_) = share else { return (String::new(), "list") };
    let text = "\n[stages.some]                        # a sample: raise `share` in [vars] for more\nkind = \"filter\"\ninput = \"list\"\n\
        where = \"hash_fraction(url, 'sample') < ${share}\"\nrejects = \"count\"\n";
    (text.into(), "some")
}

/// Images on servers.
fn remote(source: &Source<'_>, table: &Table<'_>, urls: &[String], rows: Rows) -> Found {
    let hosts: BTreeSet<String> = urls
        .iter()
        .filter_map(|url| {
            Url::parse(url).ok()?.host_str().map(|host| host.trim_matches(['[', ']']).to_string())
        })
        .collect();
    let is_private = |host: &&String| {
        **host == "localhost"
            || host.parse::<IpAddr>().is_ok_and(|address| match address {
                IpAddr::V4(v4) => v4.is_loopback() || v4.is_private(),
                IpAddr::V6(v6) => v6.is_loopback(),
            })
    };
    let private: Vec<String> = hosts.iter().filter(is_private).map(|host| quoted(host)).collect();
    let share = rows.share(source, MOST_FETCHED);
    let http = if private.is_empty() {
        "# Politely: 10 images a second from each host. `http = { delay = 0, per_host = 16 }` is for your own servers;\n\
         # tell others who you are: `http = { user_agent = \"my-name/1.0 (me@example.org)\" }`.\n"
            .to_string()
    } else {
        format!("http = {{ allow_private = [{}], delay = 0 }}   # your own servers\n", private.join(", "))
    };
    let stages = stages(table, source, share, "fetched", &http);
    let what = format!("a table of {} with image URLs{}", rows.count.of("row"), captions(rows));
    let mut notes = vec![format!("{} in the first {} rows", hosts_in_words(&hosts), urls.len())];
    if let Some(share) = share {
        notes.push(format!(
            "a share of {share} is fetched, about {MOST_FETCHED} images: see `share` in the file"
        ));
    }
    if private.is_empty() {
        let images = (rows.count.rows as f64 * share.unwrap_or(1.0)) as u64;
        let seconds = images / (10 * hosts.len().max(1) as u64);
        notes.push(format!("fetched politely, at 10 images a second from each host: at least {seconds} s"));
    }
    rows.found(what, notes, stages, share)
}

/// The stages from the table to the images; `obtained` is "fetched" or "read", `options` are lines
/// of the last stage.
fn stages(
    table: &Table<'_>,
    source: &Source<'_>,
    share: Option<f64>,
    obtained: &str,
    options: &str,
) -> String {
    let (sample, input) = sample(share);
    let (table, resize) = (table.stage(), source.resize());
    format!(
        "{table}{sample}\n[stages.pairs]                       # the images; what cannot be {obtained} is in `pairs.rejects`\n\
         kind = \"fetch\"\ninput = \"{input}\"\n{resize}{options}"
    )
}

fn hosts_in_words(hosts: &BTreeSet<String>) -> String {
    let shown: Vec<&str> = hosts.iter().take(3).map(String::as_str).collect();
    let more = if hosts.len() > shown.len() { ", ..." } else { "" };
    format!("{} host{} ({}{more})", hosts.len(), if hosts.len() == 1 { "" } else { "s" }, shown.join(", "))
}

fn captions(rows: Rows) -> &'static str {
    if rows.has_captions { " and captions" } else { ", without captions" }
}

/// Images in files.
fn local(source: &Source<'_>, table: &Table<'_>, folder: &Path, rows: Rows) -> Found {
    let share = rows.share(source, MOST_READ);
    let outside = if source.is_outside(folder) {
        let text = quoted(&source.written(folder));
        format!("local = [{text}]   # images may be read below these folders\n")
    } else {
        String::new()
    };
    let stages = stages(table, source, share, "read", &outside);
    let what = format!("a table of {} with paths of images{}", rows.count.of("row"), captions(rows));
    let mut notes = Vec::new();
    if let Some(root) = &table.root {
        notes.push(format!("the paths start in {root}"));
    }
    if let Some(share) = share {
        notes.push(format!("a share of {share} is read: see `share` in the file"));
    }
    rows.found(what, notes, stages, share)
}

/// The directory where the paths of a table start, unless that is its own: one below it.
///
/// # Errors
/// The first image is nowhere.
fn root_of(source: &Source<'_>, folder: &Path, first: &str) -> Result<Option<String>, Failure> {
    let first = first.strip_prefix("file://").unwrap_or(first);
    let path = source.files.base.join(first);
    if path.exists() {
        return Ok(None);
    }
    let absolute = |path: &Path| std::path::absolute(Path::new(".").join(path)).unwrap_or(path.into());
    let name = absolute(&path).strip_prefix(absolute(folder)).map(Path::to_path_buf).unwrap_or(first.into());
    let mut below: Vec<PathBuf> =
        match std::fs::read_dir(if folder == Path::new("") { Path::new(".") } else { folder }) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect(),
            Err(error) => return Err(Failure::io(folder, error)),
        };
    below.sort();
    match below.iter().find(|below| below.join(&name).exists()) {
        Some(root) => Ok(Some(source.written(root))),
        None => Err(Failure::user(format!("the image `{first}` of the first row does not exist")).hint(
            format!("paths start at the directory of the table ({}), or one below it", folder.display()),
        )),
    }
}
