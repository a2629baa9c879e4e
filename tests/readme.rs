//! The pipelines in the README are valid.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn every_pipeline_of_the_readme_is_valid() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let blocks: Vec<&str> = readme
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```").map(|(block, _)| block))
        .collect();
    assert!(!blocks.is_empty(), "the README has no pipeline");
    for (number, block) in blocks.iter().enumerate() {
        let file = folder.path().join(format!("{number}.toml"));
        fs::write(&file, block).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_twinlens")).arg("check").arg(&file).output().unwrap();
        assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}
