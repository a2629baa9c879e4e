//! The direction of dependencies between the crates, read from their manifests: no arrow runs up or
//! sideways.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What each crate may stand on, among ours. Development dependencies may add the testkit, and the
/// image and gallery crates for fixtures.
const MAY_USE: [(&str, &[&str]); 12] = [
    ("twinlens-image", &[]),
    ("twinlens-text", &[]),
    ("twinlens-model", &["twinlens-text"]),
    ("twinlens-dataset", &[]),
    ("twinlens-gallery", &[]),
    ("twinlens-testkit", &[]),
    ("twinlens-pipeline", &["twinlens-dataset"]),
    ("twinlens-crawl", &["twinlens-pipeline", "twinlens-dataset", "twinlens-image", "twinlens-text"]),
    ("twinlens-curate", &["twinlens-pipeline", "twinlens-dataset", "twinlens-image"]),
    ("twinlens-train", &["twinlens-pipeline", "twinlens-dataset", "twinlens-image", "twinlens-model"]),
    ("twinlens-eval", &["twinlens-pipeline", "twinlens-dataset", "twinlens-image", "twinlens-model"]),
    (
        "twinlens",
        &[
            "twinlens-crawl",
            "twinlens-curate",
            "twinlens-train",
            "twinlens-eval",
            "twinlens-pipeline",
            "twinlens-dataset",
            "twinlens-gallery",
            "twinlens-image",
            "twinlens-model",
        ],
    ),
];

/// Crates that must not see the query engine: the matcher's and the model's tests need no
/// DataFusion.
const WITHOUT_ENGINE: [&str; 5] =
    ["twinlens-image", "twinlens-text", "twinlens-model", "twinlens-gallery", "twinlens-testkit"];

fn dependencies(name: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let manifest: toml::Table = text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let table = manifest.get("dependencies").and_then(toml::Value::as_table);
    table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

#[test]
fn no_arrow_runs_up_or_sideways() {
    for (name, allowed) in MAY_USE {
        for dependency in dependencies(name).iter().filter(|other| other.starts_with("twinlens")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn every_crate_is_in_the_table() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let found: BTreeSet<String> = fs::read_dir(crates)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let known: BTreeSet<String> = MAY_USE.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(found, known);
}

#[test]
fn the_ground_floor_does_not_see_the_engine() {
    for name in WITHOUT_ENGINE {
        for engine in ["datafusion", "arrow", "parquet"] {
            assert!(!dependencies(name).contains(engine), "{name} must not depend on {engine}");
        }
    }
}
