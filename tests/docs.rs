//! The snippets of the README and the guide are valid.
//!
//! A block marked `toml` is a whole pipeline, and in a block marked `sh` every `twinlens` command
//! and option exists. Queries are checked by the test of the quickstart. `toml ignore` and the like
//! are not checked.

use crate::support::Place;
use crate::support::docs::{pages, snippets};

#[test]
fn pipelines_are_valid() {
    let place = Place::new();
    let mut checked = 0;
    for (name, page) in pages() {
        for snippet in snippets(&page, "toml") {
            place.write("snippet.toml", &snippet);
            let output = place.output(&["check", "snippet.toml"]);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}:\n{snippet}\n{errors}");
            checked += 1;
        }
    }
    assert!(checked > 0, "there are no pipelines");
}

#[test]
fn commands_and_their_options_exist() {
    let place = Place::new();
    for (name, page) in pages() {
        for snippet in snippets(&page, "sh") {
            for line in snippet.lines() {
                let mut words = line.split_whitespace().skip_while(|word| word.contains('='));
                if words.next() != Some("twinlens") {
                    continue;
                }
                let verb = words.next().unwrap_or_else(|| panic!("{name}: {line}"));
                // `model` has commands of its own.
                let help = match words.clone().next().filter(|_| verb == "model") {
                    Some(inner) => place.done(&[verb, inner, "--help"]),
                    None => place.done(&[verb, "--help"]),
                };
                for option in words.filter(|word| word.len() > 1 && word.starts_with('-')) {
                    let option = option.split('=').next().unwrap();
                    assert!(help.contains(option), "{name}: {line}: there is no {option}");
                }
            }
        }
    }
}

#[test]
fn the_python_helper_is_in_the_guide() {
    let helper = include_str!("../pipelines/command/twinlens_command.py").trim_end();
    let stages = pages().into_iter().find(|(name, _)| name == "stages.md").unwrap().1;
    assert!(snippets(&stages, "python").iter().any(|snippet| snippet == helper));
}

#[test]
fn the_guide_is_shown() {
    let place = Place::new();
    let page = place.output(&["help", "pipelines"]).stdout;
    let text = pages().into_iter().find(|(name, _)| name == "pipelines.md").unwrap().1;
    assert_eq!(String::from_utf8(page).unwrap(), text);
    let list = place.done(&["help"]);
    for (name, _) in pages().iter().filter(|(name, _)| name != "README.md") {
        let subject = name.trim_end_matches(".md");
        assert!(list.contains(&format!("\n  {subject} ")), "{subject} is not in:\n{list}");
    }
    assert!(place.done(&["help", "status"]).contains("Usage: twinlens status <DIR>"));
    let unknown = place.output(&["help", "trainig"]);
    let errors = String::from_utf8_lossy(&unknown.stderr);
    assert!(unknown.status.code() == Some(1) && errors.contains("did you mean `training`?"), "{errors}");
}
