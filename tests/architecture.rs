//! The direction of dependencies between the crates, read from their manifests, and between the
//! files of a crate, read from their imports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The workspace crates that each crate may depend on. Development dependencies may add the
/// testkit, and the image and gallery crates for fixtures.
const ALLOWED: [(&str, &[&str]); 16] = [
    ("twinlens-image", &[]),
    ("twinlens-text", &[]),
    ("twinlens-ranks", &[]),
    ("twinlens-mpi", &["twinlens-ranks"]),
    ("twinlens-model", &["twinlens-image", "twinlens-text"]),
    ("twinlens-dataset", &[]),
    ("twinlens-gallery", &[]),
    ("twinlens-testkit", &["twinlens-pipeline", "twinlens-dataset"]),
    ("twinlens-pipeline", &["twinlens-dataset", "twinlens-ranks"]),
    ("twinlens-crawl", &["twinlens-pipeline", "twinlens-dataset", "twinlens-image", "twinlens-text"]),
    ("twinlens-curate", &["twinlens-pipeline", "twinlens-dataset", "twinlens-image"]),
    (
        "twinlens-train",
        &["twinlens-pipeline", "twinlens-dataset", "twinlens-image", "twinlens-model", "twinlens-ranks"],
    ),
    ("twinlens-eval", &["twinlens-pipeline", "twinlens-dataset", "twinlens-image", "twinlens-model"]),
    ("twinlens-cluster", &["twinlens-pipeline", "twinlens-dataset"]),
    (
        "twinlens",
        &[
            "twinlens-cluster",
            "twinlens-crawl",
            "twinlens-curate",
            "twinlens-train",
            "twinlens-eval",
            "twinlens-pipeline",
            "twinlens-dataset",
            "twinlens-gallery",
            "twinlens-image",
            "twinlens-model",
            "twinlens-mpi",
            "twinlens-ranks",
        ],
    ),
    ("twinlens-python", &["twinlens"]),
];

/// Crates that must not depend on the query engine, so that their tests build quickly. (The
/// testkit's feature `stage` does.)
const WITHOUT_ENGINE: [&str; 7] = [
    "twinlens-image",
    "twinlens-text",
    "twinlens-model",
    "twinlens-gallery",
    "twinlens-testkit",
    "twinlens-ranks",
    "twinlens-mpi",
];

fn dependencies(name: &str) -> BTreeSet<String> {
    all_dependencies(name).into_iter().map(|(name, _)| name).collect()
}

/// The dependencies of a crate, and whether they are optional.
fn all_dependencies(name: &str) -> Vec<(String, bool)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let manifest: toml::Table = text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let table = manifest.get("dependencies").and_then(toml::Value::as_table);
    let optional = |value: &toml::Value| value.get("optional").and_then(toml::Value::as_bool) == Some(true);
    let all = table.into_iter().flatten().map(|(name, value)| (name.clone(), optional(value)));
    all.collect()
}

#[test]
fn dependencies_point_downwards() {
    for (name, allowed) in ALLOWED {
        for dependency in dependencies(name).iter().filter(|other| other.starts_with("twinlens")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn a_default_build_has_nothing_of_ballista() {
    for (dependency, optional) in all_dependencies("twinlens-cluster") {
        assert!(optional, "{dependency} would be built without the feature `ballista`");
    }
    let uses_cluster = all_dependencies("twinlens").into_iter().find(|(name, _)| name == "twinlens-cluster");
    assert_eq!(uses_cluster, Some(("twinlens-cluster".into(), true)));
    for (name, _) in ALLOWED.iter().filter(|(name, _)| *name != "twinlens-cluster") {
        for (dependency, _) in all_dependencies(name) {
            assert!(!dependency.starts_with("ballista"), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn every_crate_is_listed() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let found: BTreeSet<String> = fs::read_dir(crates)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let known: BTreeSet<String> = ALLOWED.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(found, known);
}

#[test]
fn base_crates_do_not_depend_on_the_engine() {
    for name in WITHOUT_ENGINE {
        for (dependency, optional) in all_dependencies(name) {
            let engine = ["datafusion", "arrow", "parquet"].contains(&dependency.as_str());
            assert!(!engine || optional, "{name} must not depend on {dependency}");
        }
    }
}

/// The files of a crate by module path (`storage::local`), each with its source.
type Modules = BTreeMap<Vec<String>, (String, String)>;

/// Reads the files below `folder`, which is `src` of a crate or a folder of it.
fn read_modules(folder: &Path, module: &[String], modules: &mut Modules) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let mut child = module.to_vec();
        if !matches!(name.as_str(), "lib" | "main" | "mod") {
            child.push(name);
        }
        if path.is_dir() {
            read_modules(&path, &child, modules);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).unwrap();
            modules.insert(child, (path.display().to_string(), source));
        }
    }
}

/// The source without comments and without test modules.
fn product_code(source: &str) -> String {
    let starts = ["", "pub(crate) "].map(|public| format!("#[cfg(test)]\n{public}mod tests {{"));
    let end = starts.iter().find_map(|start| source.find(start)).unwrap_or(source.len());
    let lines = source[..end].lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths that start at each `word::` of the source, with the groups of `use` expanded.
fn paths_from(source: &str, word: &str) -> Vec<Vec<String>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let pattern = format!("{word}::");
    let starts = source.match_indices(&pattern).filter_map(|(at, _)| {
        let before = source[..at].chars().next_back();
        (!before.is_some_and(|c| is_word(c) || c == ':' || c == '.')).then_some(at)
    });
    let mut paths = Vec::new();
    for at in starts {
        expand(&source[at..], &mut Vec::new(), &mut paths);
    }
    paths
}

/// Reads a path, or the tree of a `use`, from the start of `text`; returns its length.
fn expand(text: &str, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> usize {
    let depth = prefix.len();
    let mut at = 0;
    loop {
        let rest = text[at..].trim_start();
        at = text.len() - rest.len();
        if let Some(mut group) = rest.strip_prefix('{') {
            loop {
                group = group.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
                if group.is_empty() || group.starts_with('}') {
                    break;
                }
                let length = expand(group, prefix, paths).max(1);
                group = &group[length..];
                group = &group[group.find([',', '}', '{']).unwrap_or(group.len())..];
            }
            at = text.len() - group.len() + usize::from(!group.is_empty());
            break;
        }
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        prefix.push(rest[..length].to_string());
        at += length;
        if !text[at..].starts_with("::") {
            paths.push(prefix.clone());
            break;
        }
        at += 2;
    }
    prefix.truncate(depth);
    at
}

/// The module that a path names, seen from `module`: the longest prefix that is a file.
fn resolve(path: &[String], module: &[String], modules: &Modules) -> Option<Vec<String>> {
    let mut absolute = module.to_vec();
    for (index, part) in path.iter().enumerate() {
        match part.as_str() {
            "crate" => absolute.clear(),
            "self" if index + 1 < path.len() || index == 0 => {}
            "super" => {
                absolute.pop();
            }
            name => absolute.push(name.into()),
        }
    }
    while !modules.contains_key(&absolute) {
        absolute.pop()?;
    }
    Some(absolute)
}

/// A cycle of files that import each other, if there is one.
fn import_cycle(modules: &Modules) -> Option<Vec<String>> {
    let mut edges: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (module, (_, source)) in modules {
        let code = product_code(source);
        let children =
            modules.keys().filter(|other| other.len() == module.len() + 1 && other.starts_with(module));
        let mut words: Vec<&str> = vec!["crate", "self", "super"];
        words.extend(children.filter_map(|child| child.last()).map(String::as_str));
        let paths = words.iter().flat_map(|word| paths_from(&code, word));
        let targets = paths.filter_map(|path| resolve(&path, module, modules));
        edges.insert(module, targets.filter(|target| target != module).collect());
    }
    // Files without imports cannot be part of a cycle; removing them may leave others without.
    loop {
        let left: BTreeSet<Vec<String>> = edges.keys().map(|module| module.to_vec()).collect();
        edges.values_mut().for_each(|targets| targets.retain(|target| left.contains(target)));
        let before = edges.len();
        edges.retain(|_, targets| !targets.is_empty());
        if edges.is_empty() {
            return None;
        }
        if edges.len() == before {
            break;
        }
    }
    // Every file that is left imports another one of them.
    let mut walk: Vec<&Vec<String>> = vec![edges.keys().next()?];
    loop {
        let next = edges[walk[walk.len() - 1]].first()?;
        let (next, _) = edges.get_key_value(next)?;
        if let Some(start) = walk.iter().position(|module| module == next) {
            let names = walk[start..].iter().chain([next]).map(|module| modules[*module].0.clone());
            return Some(names.collect());
        }
        walk.push(next);
    }
}

#[test]
fn files_do_not_import_each_other_in_a_cycle() {
    for (name, _) in ALLOWED {
        let mut modules = Modules::new();
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        read_modules(&crates.join(name).join("src"), &[], &mut modules);
        assert!(modules.len() > 1, "{name} has no files");
        if let Some(cycle) = import_cycle(&modules) {
            panic!("{name}: files import each other: {}", cycle.join(" -> "));
        }
    }
}

#[test]
fn cycles_are_found_in_every_form_of_import() {
    /// A name, the files by module, and the cycle.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        ("none", &[("", "use a::x;"), ("a", "use crate::b::{C, D};"), ("b", "")], &[]),
        ("use", &[("a", "use crate::b::C;"), ("b", "use crate::a;")], &["a", "b", "a"]),
        (
            "group",
            &[("a", "use crate::{\n    c,\n    b::{D, e},\n};"), ("b", "fn f() { crate::a::g() }")],
            &["a", "b", "a"],
        ),
        ("parent", &[("a", "use b::C;\npub struct D;"), ("a::b", "use super::D;")], &["a", "a::b", "a"]),
        ("root", &[("", "pub use a::B;"), ("a", "use crate::MAIN;")], &["", "a", ""]),
        (
            "tests",
            &[
                ("a", "use crate::b;"),
                ("b", "// use crate::a;\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}"),
            ],
            &[],
        ),
    ];
    for (name, files, expected) in cases {
        let module =
            |path: &str| path.split("::").filter(|part| !part.is_empty()).map(String::from).collect();
        let modules: Modules = files
            .iter()
            .map(|(path, source)| (module(path), (path.to_string(), source.to_string())))
            .collect();
        assert_eq!(import_cycle(&modules).unwrap_or_default(), expected, "{name}");
    }
}
