//! Files and values at random.

use std::path::Path;

use proptest::prelude::*;

use super::toys::registry;
use super::{GOOD, checked, options, overrides};
use crate::config::{InputSchemas, check};

/// A valid file with random edits.
fn mutated() -> impl Strategy<Value = String> {
    let edit = (
        0..GOOD.len(),
        0..40_usize,
        prop_oneof![
            Just(""),
            Just("'"),
            Just("\""),
            Just("${"),
            Just("}"),
            Just("="),
            Just("\n["),
            Just("é"),
            Just("3"),
            Just("#")
        ],
    );
    proptest::collection::vec(edit, 1..4).prop_map(|edits| {
        let mut text: Vec<char> = GOOD.chars().collect();
        for (at, length, put) in edits {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            drop(text.splice(at..end, put.chars()));
        }
        text.into_iter().collect()
    })
}

fn assert_valid_positions(text: &str, set: &[&str]) {
    if let Err(report) = checked(text, set) {
        let end = text.len() + set.iter().map(|argument| argument.len() + 1).sum::<usize>();
        for fault in report.faults() {
            assert!(fault.span.start <= fault.span.end && fault.span.end <= end, "{fault:?}");
        }
        assert!(
            !report.faults().is_empty()
                && !report.render(false).is_empty()
                && !report.render(true).is_empty()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn no_text_causes_a_panic(text in "\\PC{0,200}", set in "\\PC{0,30}") {
        assert_valid_positions(&text, &[&set]);
    }

    #[test]
    fn no_broken_file_causes_a_panic(text in mutated(), set in "(clip|kept|seed|epochs|a)[.=]?(epochs|where|resize.size)?=?[\\[{'\"a-z0-9>= ]{0,12}") {
        assert_valid_positions(&text, &[&set]);
    }

    #[test]
    fn external_values_never_become_syntax(value in "[\\PC\n\"'\\[\\]=#${}]{0,40}") {
        let mut outside = overrides(&[]);
        outside.env.insert("TWIN_NOTE".into(), value.clone());
        let argument = format!("quoted={value}");
        outside.set.push(argument);
        let pipeline = check(Path::new("toy.toml"), GOOD, &registry(), &outside, &InputSchemas::none()).unwrap();
        let names: Vec<&str> = pipeline.nodes.iter().map(|node| node.name.as_str()).collect();
        prop_assert_eq!(names, ["pages", "kept", "outside", "clip", "top", "late"]);
        // A value of the environment is stored by its name.
        let revealed = |stage: &str, option: &str| {
            pipeline.secrets.reveal_stored(options(&pipeline, stage)[option].as_str().unwrap())
        };
        let (model, note) = (revealed("clip", "model"), revealed("kept", "note"));
        // Numbers and quoted strings are parsed; anything else is kept as is.
        let parsed = toml::de::DeValue::parse(&value).is_ok() || toml::de::DeValue::parse(value.trim()).is_ok();
        let kept = model.strip_suffix("-5") == Some(value.as_str()) && note == value.trim();
        prop_assert!(parsed || kept, "{} became {} and {}", value, model, note);
    }
}
