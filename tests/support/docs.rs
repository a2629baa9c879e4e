//! The README and the pages of the guide, and the snippets in them.

use std::fs;
use std::path::Path;

/// Name and text of each page.
pub(crate) fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let guide = guide.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let all = guide.chain([root.join("../../README.md")]);
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    all.map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

/// The code blocks of a language. A block with another word after the language is none.
pub(crate) fn snippets(page: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(marker) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
        if marker == language {
            found.push(block.join("\n"));
        }
    }
    found
}
