//! SQL functions that pipelines may use.

mod captions;
mod column;

use std::sync::Arc;

use datafusion::arrow::array::{Float64Array, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::plan_datafusion_err;
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use twinlens_dataset::{ImageColumn, contracts};
use twinlens_image::sha256_hex;
use twox_hash::XxHash64;

use column::function;
pub(crate) use column::{call, int_lists, strings};

/// `hash_fraction(text, salt)`: a uniform number in [0, 1) that depends only on the two texts.
/// `hash_fraction(concept, 'held-out') < 0.2` splits by concept; another salt gives an independent
/// split.
fn hash_fraction() -> ScalarUDF {
    let signature = Signature::string(2, Volatility::Immutable);
    function("hash_fraction", signature, DataType::Float64, |columns| {
        let (texts, salts) = (strings(&columns[0])?, strings(&columns[1])?);
        let fractions = texts.iter().zip(salts.iter()).map(|(text, salt)| Some(fraction(text?, salt?)));
        Ok(Arc::new(fractions.collect::<Float64Array>()))
    })
}

fn fraction(text: &str, salt: &str) -> f64 {
    let hash = XxHash64::oneshot(XxHash64::oneshot(0, salt.as_bytes()), text.as_bytes());
    // A double holds 53 bits exactly, so the largest hash stays below 1.
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// `pair_uid(url, caption)`: the uid that a source gives a pair.
fn pair_uid() -> ScalarUDF {
    let signature = Signature::string(2, Volatility::Immutable);
    function("pair_uid", signature, DataType::Utf8, |columns| {
        let (urls, captions) = (strings(&columns[0])?, strings(&columns[1])?);
        let uids = urls.iter().zip(captions.iter());
        let uid = |(url, caption): (Option<&str>, Option<&str>)| {
            contracts::pair_uid(url.unwrap_or_default(), caption.unwrap_or_default())
        };
        Ok(Arc::new(StringArray::from_iter_values(uids.map(uid))))
    })
}

/// `image_sha256(image)`: the SHA-256 of the bytes of an encoded image (`struct<bytes, path>`, or
/// binary), in hexadecimal.
fn image_sha256() -> ScalarUDF {
    let signature = Signature::any(1, Volatility::Immutable);
    function("image_sha256", signature, DataType::Utf8, |columns| {
        let images = ImageColumn::new(&columns[0])
            .map_err(|error| plan_datafusion_err!("image_sha256: the argument is {error}"))?;
        Ok(Arc::new(images.bytes().iter().map(|image| image.map(sha256_hex)).collect::<StringArray>()))
    })
}

/// The functions that pipelines may use in SQL.
pub(crate) fn public() -> Vec<ScalarUDF> {
    [hash_fraction(), pair_uid(), image_sha256()]
        .into_iter()
        .chain(captions::all())
        .chain(captions::masks())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::AsArray;
    use datafusion::common::ScalarValue;
    use datafusion::prelude::SessionContext;

    async fn value(expression: &str) -> ScalarValue {
        let session = SessionContext::new();
        public().into_iter().for_each(|f| session.register_udf(f));
        let batches = session.sql(&format!("select {expression}")).await.unwrap().collect().await.unwrap();
        ScalarValue::try_from_array(batches[0].column(0), 0).unwrap()
    }

    #[tokio::test]
    async fn words_are_counted_without_punctuation() {
        assert_eq!(value("word_count('A (small) dog, in St. Louis!')").await, ScalarValue::Int64(Some(6)));
        assert_eq!(value("word_count(' -- ')").await, ScalarValue::Int64(Some(0)));
        assert_eq!(value("word_count(cast(null as varchar))").await, ScalarValue::Int64(None));
    }

    #[tokio::test]
    async fn caption_functions() {
        for (expression, expected) in [
            ("language('a small brown dog in the snow')", "en"),
            ("language('ein kleiner brauner Hund im Schnee')", "de"),
            ("language('маленькая собака на снегу, которая играет')", "ru"),
            ("language('μια ωραία γάτα')", "el"),
            ("language('ภาพแมว')", "th"),
            ("language('柴犬の写真です')", "ja"),
            ("language('12 - 34')", ""),
            ("pair_uid('http://example.org/a.png', 'a cat')", "532e932821cfbcbc922137df4fb4b08d"),
            ("pair_uid('http://example.org/a.png', null) = pair_uid('http://example.org/a.png', '')", "true"),
            (
                "image_sha256(arrow_cast('abc', 'Binary'))",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            ("image_sha256(cast(null as bytea))", ""),
            ("tokens(' The “St.  Louis” Arch')", "the \" st . louis \" arch"),
            ("alphanumeric_ratio('ab - 1')", "0.75"),
            ("alphanumeric_ratio(' ')", ""),
            ("aspect_ratio(100, 300)", "3"),
            ("aspect_ratio(300, cast(100 as int))", "3"),
            ("aspect_ratio(0, 300)", ""),
            ("is_boilerplate(cast(null as varchar))", ""),
            ("contains_words('The Top  Secret!', 'nude, top secret')", "true"),
            ("contains_words('topless', 'top,nude')", "false"),
            ("contains_words('nothing', '')", "false"),
            ("mask_emails('Write to Jane.Doe+x@mail.example.org, now')", "Write to <email>, now"),
            ("mask_emails('me @ home, a@b')", "me @ home, a@b"),
            ("mask_phones('call +49 (0)30 123-4567 or (555) 123-4567.')", "call <phone> or <phone>."),
            ("mask_phones('030 123 45 67 89')", "<phone>"),
            (
                "mask_phones('1999-2003, 2020-01-02, 10.000.000, 1920 x 1080, 1234567890')",
                "1999-2003, 2020-01-02, 10.000.000, 1920 x 1080, 1234567890",
            ),
        ] {
            assert_eq!(value(expression).await.to_string().replace("NULL", ""), expected, "{expression}");
        }
    }

    #[tokio::test]
    async fn boilerplate_is_recognised() {
        let boilerplate = [
            "IMG_2041.JPG",
            "img-2041",
            "DSC00012",
            " Image 3 ",
            "photo (2)",
            "---",
            "2019-03-04",
            "https://x.example/a",
            "click to enlarge",
            "Loading...",
            "logo",
            "untitled",
            "Screenshot 2020-01-01",
            "No image available",
            "image not found",
            "123e4567-e89b-12d3-a456-426614174000",
            "n/a",
            "",
        ];
        let captions = [
            "logo of the city of Bonn",
            "a photo of 3 dogs",
            "Dog",
            "default settings of a camera",
            "犬",
            "next to a river",
        ];
        for (texts, expected) in [(&boilerplate[..], true), (&captions[..], false)] {
            for text in texts {
                assert_eq!(
                    value(&format!("is_boilerplate('{text}')")).await,
                    ScalarValue::Boolean(Some(expected)),
                    "{text}"
                );
            }
        }
    }

    #[tokio::test]
    async fn hash_fractions_are_uniform_and_salts_independent() {
        let sql = "select count(*) filter (where hash_fraction(v, 'a') < 0.2), \
                   count(*) filter (where hash_fraction(v, 'a') < 0.5 and hash_fraction(v, 'b') < 0.5), \
                   count(*) filter (where hash_fraction(v, 'a') not between 0 and 1) \
                   from (select arrow_cast(value, 'Utf8') as v from generate_series(1, 10000) as t(value))";
        let session = SessionContext::new();
        public().into_iter().for_each(|f| session.register_udf(f));
        let batches = session.sql(sql).await.unwrap().collect().await.unwrap();
        let counts: Vec<i64> = batches[0]
            .columns()
            .iter()
            .map(|c| c.as_primitive::<datafusion::arrow::datatypes::Int64Type>().value(0))
            .collect();
        // Standard deviations: 40 and 43.
        assert!((1840..2160).contains(&counts[0]) && (2330..2670).contains(&counts[1]), "{counts:?}");
        assert_eq!(counts[2], 0);
        // Published splits must not change.
        assert_eq!(fraction("dog", "held-out"), 0.29725159629663644);
    }
}
