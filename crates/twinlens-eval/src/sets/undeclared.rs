//! Sets that nobody declared: a directory with a directory of images per class, or Parquet files.
//! What they are called and which split is read follows from the names of files and directories.

use std::fs;
use std::path::Path;

use twinlens_dataset::manifest;
use twinlens_pipeline::RunError;
use twinlens_pipeline::suggest::list_names;

use super::declaration::{ClassList, Declaration, Task};
use super::read::{has_classes, has_tar_files, parquet_files, parquet_task};
use crate::error::EvalError;

/// Names of splits. The first that a directory has is evaluated.
const SPLITS: [&str; 8] = ["test", "testing", "validation", "valid", "val", "dev", "train", "training"];
/// The name of the split of data without any.
const ALL: &str = "all";
const PARQUET: &str = ".parquet";
/// The file extension of a user's own declaration.
pub(super) const TOML: &str = ".toml";

/// Whether an option names data instead of a declared set.
pub fn is_data(written: &str) -> bool {
    !written.ends_with(TOML) && (written.contains('/') || written.ends_with(PARQUET))
}

/// The name of a set in results: that of its file or directory, or of the directory above if that
/// is the name of a split.
pub(crate) fn set_name(written: &str) -> String {
    let parts = written.trim_end_matches(PARQUET).split('/');
    let mut names = parts.map(clean).filter(|name| !name.is_empty() && name != "data").rev();
    let first = names.next();
    let above = first.as_deref().and_then(split_of).and_then(|_| names.next());
    above.or(first).unwrap_or_else(|| "mine".into())
}

/// A name as declarations allow it.
fn clean(name: &str) -> String {
    let allowed =
        |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(allowed).collect::<String>().trim_matches(['-', '.']).to_string()
}

/// The split in a name: that of `Test`, `test-00000-of-00002.parquet` or `test_1.parquet`.
fn split_of(name: &str) -> Option<&'static str> {
    let first = name.split(['-', '_', '.']).next().unwrap_or_default();
    SPLITS.into_iter().find(|split| split.eq_ignore_ascii_case(first))
}

/// The declaration that data make by themselves. `asked` is the split to read; without it, the
/// first of the usual ones that exists.
///
/// # Errors
/// There is nothing at `root`, or nothing that can be a set; the split does not exist; the layout
/// is ambiguous.
pub(super) fn declaration(written: &str, root: &Path, asked: Option<&str>) -> Result<Declaration, RunError> {
    let (name, shown) = (set_name(written), root.display());
    if !root.exists() {
        let hint = "a value with a `/` is a path, relative to the folder of the pipeline file";
        return Err(RunError::user_with_hint(format!("{shown} does not exist"), hint));
    }
    let split =
        if root.is_file() { split_of_file(written, root, asked)? } else { split_of_directory(root, asked)? };
    let files = if root.is_file() { vec![root.to_path_buf()] } else { parquet_files(root, &split)? };
    let task = match files.first() {
        Some(file) => parquet_task(file)?,
        None => Task::Classification,
    };
    let metric = match task {
        Task::Classification => "top1",
        Task::MultiLabel => "map",
        Task::Retrieval => "recall@1",
    };
    Ok(Declaration {
        title: name.clone(),
        name,
        task,
        metric: metric.into(),
        chance: None,
        classes: ClassList::FromTheData,
        class_count: None,
        templates: Vec::new(),
        split,
        splits: Default::default(),
        names: Default::default(),
        aliases: Vec::new(),
        reader: None,
        licence: "not declared".into(),
        source: written.into(),
        how_to_get: format!("It is read from {shown}."),
        undeclared: true,
    })
}

fn split_of_file(written: &str, root: &Path, asked: Option<&str>) -> Result<String, RunError> {
    if root.extension().is_none_or(|ending| ending != "parquet") {
        let hint = "expected a directory with a directory of images per class, a Parquet file, or a declaration (`.toml`)";
        return Err(RunError::user_with_hint(format!("{}: not an evaluation set", root.display()), hint));
    }
    match asked {
        Some(asked) => {
            let message = format!("{}: a file has no split `{asked}`", root.display());
            Err(RunError::user_with_hint(message, "remove `split`, or name the directory of the file"))
        }
        None => {
            let file = written.rsplit('/').next().unwrap_or(written);
            Ok(split_of(file).unwrap_or(ALL).into())
        }
    }
}

/// The split to read of a directory, as it is spelled there.
fn split_of_directory(root: &Path, asked: Option<&str>) -> Result<String, RunError> {
    let shown = root.display();
    let (splits, others) = entries(root)?;
    let names = || list_names(splits.iter().map(String::as_str));
    if let Some(asked) = asked {
        return if splits.iter().any(|split| split == asked) {
            Ok(asked.into())
        } else if splits.is_empty() {
            Err(RunError::user_with_hint(format!("{shown} has no splits"), "remove `split`"))
        } else {
            Err(RunError::user_with_hint(
                format!("{shown} has no split `{asked}`"),
                format!("it has {}", names()),
            ))
        };
    }
    let is_class = has_classes(root);
    let best = SPLITS.iter().find_map(|usual| splits.iter().find(|split| split_of(split) == Some(usual)));
    match best {
        Some(_) if is_class => Err(RunError::user_with_hint(
            format!("{shown} has directories of splits ({}) and other directories of images", names()),
            format!(
                "name one of them, such as {}/, or move the others away",
                root.join(&splits[0]).display()
            ),
        )),
        Some(best) => Ok(best.clone()),
        None if manifest::exists(&root.into())? || !parquet_files(root, ALL)?.is_empty() => Ok(ALL.into()),
        None if is_class && others.iter().all(|name| split_of(name).is_some()) => {
            Err(RunError::user_with_hint(
                format!(
                    "{shown}: the directories {} have images, but no classes",
                    list_names(others.iter().map(String::as_str))
                ),
                "expected a directory per class in each of them: test/cat/1.jpg",
            ))
        }
        None if is_class => Ok(ALL.into()),
        None => Err(RunError::user_with_hint(
            format!("{shown} has neither directories of images, one per class, nor Parquet files"),
            format!("expected {shown}/CLASS/1.jpg, or {shown}/test/CLASS/1.jpg"),
        )),
    }
}

/// The splits that a directory has, and its other directories; both sorted.
fn entries(root: &Path) -> Result<(Vec<String>, Vec<String>), RunError> {
    let (mut splits, mut others) = (Vec::new(), Vec::new());
    for folder in [root.to_path_buf(), root.join("data")] {
        if !folder.is_dir() {
            continue;
        }
        let io = |error| RunError::io(&folder, error);
        for entry in fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && folder == root {
                let holds = has_classes(&path)
                    || has_tar_files(root, &name)
                    || !parquet_files(&path, ALL)?.is_empty();
                let is_split = SPLITS.iter().any(|split| split.eq_ignore_ascii_case(&name));
                let kind = if is_split && holds { &mut splits } else { &mut others };
                if !name.starts_with('.') {
                    kind.push(name);
                }
            } else if name.ends_with(PARQUET) {
                // Files are found by the start of their name.
                splits.extend(split_of(&name).map(|split| name[..split.len()].to_string()));
            }
        }
    }
    splits.sort();
    splits.dedup();
    others.sort();
    Ok((splits, others))
}

/// Checks that the names in the data are words that prompts can use.
///
/// # Errors
/// Some are ids of WordNet, as ImageNet's directories have them.
pub(super) fn check_names(set: &Declaration, names: &[String]) -> Result<(), EvalError> {
    let is_synset = |name: &&String| {
        name.len() == 9 && name.starts_with('n') && name[1..].bytes().all(|byte| byte.is_ascii_digit())
    };
    let Some(synset) = names.iter().find(is_synset) else { return Ok(()) };
    let why = format!("`{synset}` is an id of WordNet, not a name that a prompt can use");
    let hint = "write the names to `classnames.txt` beside these directories, one per line in the order of the sorted directories";
    Err(EvalError::set(&set.name, why, Some(hint.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_named_after_their_files() {
        let cases = [
            ("./my-classes/", "my-classes"),
            ("../My Pets/test/", "my-pets"),
            ("./pets.parquet", "pets"),
            ("pets/data/test-00000-of-00002.parquet", "pets"),
            ("./test/", "test"),
            ("../", "mine"),
        ];
        for (written, name) in cases {
            assert!(is_data(written), "{written}");
            assert_eq!(set_name(written), name, "{written}");
        }
        assert!(!is_data("cifar10") && !is_data("./mine.toml"));
    }

    #[test]
    fn the_split_follows_from_the_directories() {
        // Files, the split that is asked for, and the split that is read or a part of the error.
        let cases: [(&[&str], Option<&str>, &str); 14] = [
            (&["cat/1.jpg", "dog/2.jpg"], None, "all"),
            (&["cat/1.jpg", "train/2.jpg"], None, "all"),
            (&["cat/1.jpg"], Some("test"), "has no splits"),
            (&["train/cat/1.jpg", "test/cat/1.jpg"], None, "test"),
            (&["train/cat/1.jpg", "Val/cat/1.jpg"], None, "Val"),
            (&["train/cat/1.jpg", "val/cat/1.jpg"], Some("train"), "train"),
            (&["train/cat/1.jpg", "val/cat/1.jpg"], Some("test"), "it has `train`, `val`"),
            (&["train/cat/1.jpg"], None, "train"),
            (&["test/cat/1.jpg", "dog/1.jpg"], None, "directories of splits (`test`) and other"),
            (&["train/1.jpg", "test/2.jpg"], None, "have images, but no classes"),
            (&["readme.txt"], None, "neither directories of images"),
            (&["cat/dog/deep/1.jpg"], None, "neither directories of images"),
            (&["1.jpg"], None, "neither directories of images"),
            (&[], None, "neither directories of images"),
        ];
        for (files, asked, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                let path = folder.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            let found = match split_of_directory(folder.path(), asked) {
                Ok(split) => split,
                Err(RunError::User { message, hint }) => format!("{message} {}", hint.unwrap_or_default()),
                Err(other) => panic!("{other}"),
            };
            assert!(
                found == expected || expected.contains(' ') && found.contains(expected),
                "{files:?}: {found}"
            );
        }
    }
}
