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
use twinlens_pipeline::{ColumnName, ColumnType, Located, Ports, Required, RowsInput};

/// The filter of a published dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Preset {
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

/// The sizes that conditions ask for.
const SIZES: [&str; 2] = ["original_width", "original_height"];

/// The size to look at where a table has none of the original image.
fn stored(name: &str) -> &str {
    name.strip_prefix("original_").unwrap_or(name)
}

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
        let absent = SIZES.iter().filter(|name| schema.index_of(name).is_err());
        let adapted =
            |sql: &str| absent.clone().fold(sql.to_string(), |sql, name| sql.replace(name, stored(name)));
        self.definition().iter().map(|(code, sql)| (*code, adapted(sql))).collect()
    }

    /// Requires the columns that this preset looks at.
    pub(super) fn check(self, ports: &mut Ports<'_>, input: &RowsInput, span: Range<usize>) {
        let hint = "this preset needs captions and image sizes: put it after a `fetch` stage";
        let has = |name: &str| ports.schema(input).is_some_and(|schema| schema.field_with_name(name).is_ok());
        let sizes = SIZES.map(|name| if has(name) { name } else { stored(name) });
        ports.text(input, ColumnName::at("caption", span.clone()), Required::Hint(hint));
        for name in sizes {
            let column = ColumnName::at(name, span.clone());
            ports.column(input, column, ColumnType::Number, Required::Hint(hint));
        }
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
    use super::super::testing::*;
    use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
    use std::sync::Arc;

    fn images(rows: &[(&str, &str, i32, i32)], names: [&str; 2]) -> RecordBatch {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("uid", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0)))),
            ("caption", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1)))),
            (names[0], Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.2)))),
            (names[1], Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.3)))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    fn filter(preset: &str, rows: &RecordBatch) -> StageTest {
        let options = format!("input = \"images.parquet\"\npreset = \"{preset}\"");
        stage("filter", &options).table("images", rows)
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
                let made = filter(preset, &images(&rows, names)).run().await.unwrap();
                let found = made.rows(&["reject_code", "uid"]);
                let mut expected: Vec<String> =
                    rows.iter().zip(expected).map(|(row, code)| format!("{code}|{}", row.0)).collect();
                expected.sort();
                assert_eq!(found, expected, "{preset}");
            }
        }
        let large = images(&[("a", "a dog", 20_000, 20_000)], ["width", "height"]);
        let made = filter("laion", &large).run().await.unwrap();
        assert_eq!(made.rows(&["reject_code"]), ["large_image"]);
    }

    #[test]
    fn missing_columns_are_faults_and_conditions_are_listed() {
        let faults = filter("coyo", &pairs(&[])).faults();
        let hint = "this preset needs captions and image sizes: put it after a `fetch` stage";
        let missing = |name: &str| format!("\"coyo\": `images.parquet` has no column `{name}` ({hint})");
        assert_eq!(faults, ["width", "height"].map(missing));
        let filter = filter("coyo", &images(&[], ["width", "height"]));
        let pipeline = filter.check().unwrap();
        let (node, condition) = (&pipeline.nodes[0], "word_count(caption) >= 3");
        assert_eq!(node.options["preset"]["few_words"], condition);
        assert_eq!(node.plan.notes[0], format!("few_words: {condition}"));
    }
}
