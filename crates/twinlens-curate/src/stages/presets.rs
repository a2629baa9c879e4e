//! The conditions by which published data sets were filtered, as the SQL of `filter`.
//!
//! What no column holds is not among them: the similarity of a model, the size of the file before
//! it was resized. What is no condition on one row is a stage of its own: captions seen more than
//! ten times (`dedup` with `more_than = 10`), images that public sets have (`decontaminate`),
//! repeats (`dedup`).

use std::ops::Range;

use datafusion::arrow::datatypes::Schema;
use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use twinlens_pipeline::{Fault, Located};

use crate::columns::{column, is_text, require};

/// A published data set's filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// DataComp's basic filter: English, more than two words and five characters, sides of at least
    /// 200 pixels, at most 3 times as long as wide.
    DatacompBasic,
    /// LAION's: at least five characters, at most 89,478,484 pixels.
    Laion,
    /// COYO's: English, 3 to 256 words, 6 to 1,000 characters, sides of at least 200 pixels, at
    /// most 3 times as long as wide.
    Coyo,
}

/// Codes and conditions, in terms of `caption`, `original_width` and `original_height`.
type Rules = &'static [(&'static str, &'static str)];

const ENGLISH: (&str, &str) = ("not_english", "language(caption) = 'en'");
const SIDES: (&str, &str) = ("small_image", "least(original_width, original_height) >= 200");
const ASPECT: (&str, &str) = ("odd_aspect", "aspect_ratio(original_width, original_height) <= 3.0");

const DATACOMP_BASIC: Rules = &[
    ("few_words", "word_count(caption) > 2"),
    ("too_short", "char_length(caption) > 5"),
    SIDES,
    ASPECT,
    ENGLISH,
];
const LAION: Rules = &[
    ("too_short", "char_length(caption) >= 5"),
    ("large_image", "cast(original_width as bigint) * original_height <= 89478484"),
];
const COYO: Rules = &[
    ("few_words", "word_count(caption) >= 3"),
    ("many_words", "word_count(caption) <= 256"),
    ("too_short", "char_length(caption) > 5"),
    ("too_long", "char_length(caption) <= 1000"),
    SIDES,
    ASPECT,
    ENGLISH,
];

impl Preset {
    fn written(self) -> Rules {
        match self {
            Self::DatacompBasic => DATACOMP_BASIC,
            Self::Laion => LAION,
            Self::Coyo => COYO,
        }
    }

    /// Its conditions with their codes, in the order in which they apply.
    pub(super) fn conditions(self) -> Vec<String> {
        self.written().iter().map(|(code, sql)| format!("{code}: {sql}")).collect()
    }

    /// Codes and conditions for a table: a size is that of the original image, where the table
    /// knows it.
    pub(super) fn rules(self, schema: &Schema) -> Vec<(&'static str, String)> {
        let original = schema.field_with_name("original_width").is_ok();
        let adapted = |sql: &str| if original { sql.to_string() } else { sql.replace("original_", "") };
        self.written().iter().map(|(code, sql)| (*code, adapted(sql))).collect()
    }

    /// What a table lacks for this preset.
    pub(super) fn faults(self, schema: &Schema, span: Range<usize>) -> Vec<Fault> {
        let hint = "this preset looks at captions and at the sizes of images: put it after a `fetch` stage";
        let size = |name: &'static str| {
            let original = column(schema, name, span.clone()).is_ok();
            let name = if original { name } else { &name["original_".len()..] };
            require(schema, name, "a number", |kind| kind.is_numeric(), span.clone())
        };
        let caption = require(schema, "caption", "text", is_text, span.clone());
        let checks = [caption, size("original_width"), size("original_height")];
        checks.into_iter().filter_map(|check| check.map_err(|fault| fault.hint(hint)).err()).collect()
    }
}

/// In a recipe, a preset is what it stands for: a change of a condition makes the stage stale.
pub(super) fn listed<S: Serializer>(
    preset: &Option<Located<Preset>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let rules = preset.as_ref().map_or(&[][..], |preset| preset.value().written());
    let mut map = serializer.serialize_map(Some(rules.len()))?;
    for (code, sql) in rules {
        map.serialize_entry(code, sql)?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::super::Filter;
    use super::super::testing::*;
    use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
    use std::sync::Arc;
    use twinlens_dataset::contracts;
    use twinlens_pipeline::Stage;

    fn images(rows: &[(&str, &str, i32, i32)], names: [&str; 2]) -> RecordBatch {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("uid", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0)))),
            ("caption", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1)))),
            (names[0], Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.2)))),
            (names[1], Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.3)))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    #[tokio::test]
    async fn presets_are_their_conditions() {
        let long = "words ".repeat(300);
        let rows = [
            ("a", "a small brown dog in the snow", 640, 480),
            ("b", "a dog", 640, 480),
            ("c", "ein kleiner brauner Hund im Schnee", 640, 480),
            ("d", "a small brown dog in the snow", 199, 480),
            ("e", "a small brown dog in the snow", 1000, 300),
            ("f", long.as_str(), 640, 480),
            ("g", "dogs", 20_000, 20_000),
        ];
        for (preset, expected) in [
            (
                "datacomp-basic",
                ["", "few_words", "not_english", "small_image", "odd_aspect", "", "few_words"],
            ),
            (
                "coyo",
                ["", "few_words", "not_english", "small_image", "odd_aspect", "many_words", "few_words"],
            ),
            ("laion", ["", "", "", "", "", "", "too_short"]),
        ] {
            for names in [["original_width", "original_height"], ["width", "height"]] {
                let filter: Filter = parse(&format!("input = \"images\"\npreset = \"{preset}\""));
                let found = rows_of(&filter, &images(&rows, names), &[], &["reject_code", "uid"]).await;
                let mut expected: Vec<String> =
                    rows.iter().zip(expected).map(|(row, code)| format!("{code}|{}", row.0)).collect();
                expected.sort();
                assert_eq!(found, expected, "{preset}");
            }
        }
        let laion: Filter = parse("input = \"images\"\npreset = \"laion\"");
        let large = images(&[("a", "a dog", 20_000, 20_000)], ["width", "height"]);
        assert_eq!(rows_of(&laion, &large, &[], &["reject_code"]).await, ["large_image"]);
    }

    #[test]
    fn what_a_preset_needs_is_said_and_what_it_is_is_listed() {
        let filter: Filter = parse("input = \"pages\"\npreset = \"coyo\"");
        let faults = filter.tables(&check(), &[input("pages", contracts::pair_texts())]).unwrap_err();
        let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
        assert_eq!(messages, ["unknown column `width`", "unknown column `height`"]);
        assert!(filter.tables(&check(), &[input("images", contracts::pairs())]).is_ok());
        let listed = toml::to_string(&filter).unwrap();
        assert!(listed.contains("few_words = \"word_count(caption) >= 3\""), "{listed}");
    }
}
