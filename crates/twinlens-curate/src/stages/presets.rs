//! The filters of published datasets, as SQL for `filter`.
//!
//! Conditions on data that no column holds are left out: model similarity, the file size before
//! resizing. Conditions on more than one row are stages of their own: captions seen more than ten
//! times (`dedup` with `more_than = 10`), images of public sets (`decontaminate`), duplicates
//! (`dedup`).

use std::ops::Range;

use datafusion::arrow::datatypes::Schema;
use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use twinlens_pipeline::{Fault, Located};

use crate::columns::{column, is_text, require};

/// The filter of a published dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// DataComp's basic filter: English, more than two words and five characters, sides of at least
    /// 200 pixels, aspect ratio at most 3.
    DatacompBasic,
    /// LAION's: at least five characters, at most 89,478,484 pixels.
    Laion,
    /// COYO's: English, 3 to 256 words, 6 to 1,000 characters, sides of at least 200 pixels, aspect
    /// ratio at most 3.
    Coyo,
}

/// Reject codes and conditions over `caption`, `original_width` and `original_height`.
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
    fn definition(self) -> Rules {
        match self {
            Self::DatacompBasic => DATACOMP_BASIC,
            Self::Laion => LAION,
            Self::Coyo => COYO,
        }
    }

    /// The conditions with their codes, in the order of application.
    pub(super) fn conditions(self) -> Vec<String> {
        self.definition().iter().map(|(code, sql)| format!("{code}: {sql}")).collect()
    }

    /// Codes and conditions for a table: sizes are those of the original image if the table has
    /// them.
    pub(super) fn rules(self, schema: &Schema) -> Vec<(&'static str, String)> {
        let original = schema.field_with_name("original_width").is_ok();
        let adapted = |sql: &str| if original { sql.to_string() } else { sql.replace("original_", "") };
        self.definition().iter().map(|(code, sql)| (*code, adapted(sql))).collect()
    }

    /// Faults for the columns that a table lacks.
    pub(super) fn faults(self, schema: &Schema, span: Range<usize>) -> Vec<Fault> {
        let hint = "this preset needs captions and image sizes: put it after a `fetch` stage";
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

/// A recipe holds the conditions of a preset, so that changing a condition makes the stage stale.
pub(super) fn listed<S: Serializer>(
    preset: &Option<Located<Preset>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let rules = preset.as_ref().map_or(&[][..], |preset| preset.value().definition());
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
    async fn presets_apply_their_conditions() {
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
    fn missing_columns_are_faults_and_conditions_are_listed() {
        let filter: Filter = parse("input = \"pages\"\npreset = \"coyo\"");
        let faults = filter.tables(&check(), &[input("pages", contracts::pair_texts())]).unwrap_err();
        let messages: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
        assert_eq!(messages, ["unknown column `width`", "unknown column `height`"]);
        assert!(filter.tables(&check(), &[input("images", contracts::pairs())]).is_ok());
        let listed = toml::to_string(&filter).unwrap();
        assert!(listed.contains("few_words = \"word_count(caption) >= 3\""), "{listed}");
    }
}
