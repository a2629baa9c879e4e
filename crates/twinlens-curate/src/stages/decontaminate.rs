//! `decontaminate`: rejects the images of evaluation sets, so that models are not trained on what
//! they are tested on.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use datafusion::arrow::datatypes::{DataType, Int64Type, Schema};
use datafusion::common::HashMap;
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result as EngineResult};
use datafusion::logical_expr::{Expr, ident, lit};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use futures::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use twinlens_dataset::ImageColumn;
use twinlens_dataset::contracts::ROW_ORDER;
use twinlens_image::{Limits, decode, phash, sha256_hex};
use twinlens_pipeline::rejects::reject_where;
use twinlens_pipeline::{
    ColumnType, Fault, Input, InputData, Inputs, Located, Port, Ports, Required, Rows, RunContext, RunError,
    SortKey, StageKind, TableInput, Work,
};

use crate::functions::{call, strings};
use crate::near::{MAX_DISTANCE, NearIndex};

/// The code of rows whose image is in an evaluation set.
const CONTAMINATED: &str = "in_evaluation_set";
const SHA256: &str = "sha256";
const PHASH: &str = "phash";
const IMAGE: &str = "image";

/// Rejects rows whose image is, or nearly is, in an evaluation set; the rejects name the set.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecontaminateOptions {
    /// Rows with `sha256`, `phash` or both, as `fetch` writes them.
    input: Input,
    /// The evaluation sets: stages, Parquet files or datasets with `sha256` and `phash`, or with
    /// images in the Hugging Face layout (`image`), whose hashes are then computed.
    against: Vec<Input>,
    /// Images count as the same if at most this many bits of their perceptual hashes differ (0 to
    /// 12).
    #[serde(default = "four")]
    distance: Located<u32>,
}

/// `decontaminate` as it runs.
pub struct Decontaminate {
    against: Vec<TableInput>,
    distance: u32,
    /// The hashes of the sets and the identity of these sets: read once, not for every split.
    hashes: Mutex<Option<(String, Arc<SetHashes>)>>,
}

fn four() -> Located<u32> {
    Located::without_span(4)
}

/// The hashes of all images of the evaluation sets.
#[derive(Debug)]
struct SetHashes {
    sets: Vec<String>,
    files: HashMap<String, usize>,
    images: NearIndex,
    /// The set of each perceptual hash: the first that has it.
    of_image: HashMap<u64, usize>,
}

impl SetHashes {
    fn add(&mut self, set: usize, file: Option<&str>, image: Option<i64>) {
        if let Some(file) = file {
            self.files.entry(file.to_ascii_lowercase()).or_insert(set);
        }
        if let Some(image) = image.map(|image| image as u64)
            && self.of_image.insert(image, set).is_none()
        {
            self.images.insert(image);
        }
    }

    /// The set that has an image, and how it was recognised.
    fn find(&self, file: Option<&str>, image: Option<i64>) -> Option<String> {
        if let Some(set) = file.and_then(|file| self.files.get(file)) {
            return Some(format!("{}: the same file", self.sets[*set]));
        }
        let (nearest, bits) = self.images.nearest(image? as u64)?;
        let set = self.of_image.get(&nearest)?;
        Some(format!("{}: {bits} bits from {:016x}", self.sets[*set], nearest))
    }
}

/// Which of the columns by which images are compared a table has.
fn hashes_of(schema: &Schema) -> (bool, bool) {
    let has = |name: &str| schema.index_of(name).is_ok();
    (has(SHA256), has(PHASH))
}

/// As [`hashes_of`], with the types checked; `None` if the columns are not known.
fn hashes(ports: &mut Ports<'_>, input: &impl Port) -> Option<(bool, bool)> {
    ports.text(input, SHA256, Required::No);
    ports.column(input, PHASH, ColumnType::Int64, Required::No);
    Some(hashes_of(&*ports.schema(input)?))
}

impl StageKind for Decontaminate {
    type Options = DecontaminateOptions;
    const NAME: &'static str = "decontaminate";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r#"[stages.clean]
kind = "decontaminate"
input = "images"
against = ["sets/fashion-mnist.parquet", "sets/iso-flags.parquet"]
distance = 4
"#;

    fn plan(options: DecontaminateOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        let schema = ports.schema(&input);
        if hashes(ports, &input) == Some((false, false)) {
            let message = "the rows have neither `sha256` nor `phash`";
            ports.fault(options.input.fault(message).hint("put a `fetch` stage before this one"));
        }
        ports.output(schema, SortKey::columns(ROW_ORDER));
        if options.against.is_empty() {
            let fault = options.input.fault("no evaluation set is given");
            ports.fault(fault.hint("add `against = [\"sets/test.parquet\"]`"));
        }
        if *options.distance.value() > MAX_DISTANCE {
            let message = format!("a distance of {} bits is too large", options.distance.value());
            let fault = Fault::at(options.distance.span(), message);
            ports.fault(fault.label(format!("expected 0 to {MAX_DISTANCE}")));
        }
        let mut against = Vec::new();
        for set in &options.against {
            let set = ports.table(set);
            if hashes(ports, &set).is_some_and(|has| has != (true, true)) {
                let hint = "a set needs `sha256` and `phash`, or images";
                ports.column(&set, IMAGE, ColumnType::EncodedImage, Required::Hint(hint));
            }
            against.push(set);
        }
        let distance = *options.distance.value();
        Some(Work::rows(Decontaminate { against, distance, hashes: Mutex::default() }))
    }
}

#[async_trait]
impl Rows for Decontaminate {
    async fn transform(
        &self,
        cx: &RunContext,
        rows: DataFrame,
        inputs: &Inputs,
    ) -> Result<DataFrame, RunError> {
        let known = self.set_hashes(cx, inputs).await?;
        let (by_file, by_image) = hashes_of(rows.schema().as_arrow());
        let column = |there: bool, name: &str, kind| {
            if there { Ok(ident(name)) } else { ScalarValue::try_new_null(&kind).map(lit) }
        };
        let arguments =
            vec![column(by_file, SHA256, DataType::Utf8)?, column(by_image, PHASH, DataType::Int64)?];
        let found = call("evaluation_set", arguments, DataType::Utf8, move |columns| {
            let (files, images) = (strings(&columns[0])?, columns[1].as_primitive::<Int64Type>());
            let found = files.iter().zip(images).map(|(file, image)| known.find(file, image));
            Ok(Arc::new(found.collect::<StringArray>()))
        });
        let frame = rows.with_column(FOUND, found)?;
        let refused = ident(FOUND).is_not_null();
        Ok(reject_where(frame, &cx.stage, refused, CONTAMINATED, ident(FOUND))?.drop_columns(&[FOUND])?)
    }
}

/// An internal column of the plan.
const FOUND: &str = "__twinlens_evaluation_set";

impl Decontaminate {
    async fn set_hashes(&self, cx: &RunContext, inputs: &Inputs) -> Result<Arc<SetHashes>, RunError> {
        let sets: Vec<&InputData> = self.against.iter().map(|set| inputs.get(set)).collect();
        let shards = |set: &&InputData| {
            let shards = set.dataset.shards(&set.table).map(|s| format!("{} {}", s.path, s.bytes));
            let shards = shards.collect::<Vec<_>>().join(" ");
            format!("{} {} {shards}", set.dataset.dir().display(), set.dataset.state().begin.fingerprint)
        };
        let identity: Vec<String> = sets.iter().map(shards).collect();
        let identity = identity.join("\n");
        // Locked until they are read: one split reads them while the others wait.
        let mut kept = self.hashes.lock().await;
        if let Some((of, known)) = kept.as_ref()
            && *of == identity
        {
            return Ok(known.clone());
        }
        let mut known = SetHashes {
            sets: sets.iter().map(|set| set.name.clone()).collect(),
            files: HashMap::new(),
            images: NearIndex::new(self.distance),
            of_image: HashMap::new(),
        };
        for (number, set) in sets.iter().enumerate() {
            let (mut rows, mut unknown) = (0, 0);
            let mut stream = set_rows(cx, set).await?.execute_stream().await?;
            while let Some(batch) = stream.next().await {
                let batch = batch?;
                let (files, images) =
                    (strings(batch.column(0))?, batch.column(1).as_primitive::<Int64Type>());
                for (file, image) in files.iter().zip(images) {
                    known.add(number, file, image);
                    (rows, unknown) = (rows + 1, unknown + u64::from(file.is_none() && image.is_none()));
                }
            }
            if unknown > 0 {
                let message = format!("{}: {unknown} of {rows} images have no bytes to compare", set.name);
                if unknown == rows {
                    return Err(RunError::user_with_hint(message, "fetch them first, or take the set out"));
                }
                cx.progress.note(message);
            }
        }
        let known = Arc::new(known);
        *kept = Some((identity, known.clone()));
        Ok(known)
    }
}

/// `sha256` and `phash` of every row of a set, from its columns or computed from its images.
async fn set_rows(cx: &RunContext, set: &InputData) -> Result<DataFrame, RunError> {
    // Images are large: few to a batch.
    let config = cx.session.copied_config().with_batch_size(64);
    let session = SessionContext::new_with_config_rt(config, cx.session.runtime_env());
    let frame = set.frame(&session).await?;
    let (by_file, by_image) = hashes_of(frame.schema().as_arrow());
    let file = if by_file { ident(SHA256) } else { file_hash() };
    let image = if by_image { ident(PHASH) } else { image_hash() };
    Ok(frame.select(vec![file.alias(SHA256), image.alias(PHASH)])?)
}

/// The images of a column, whose type `plan` has checked.
fn images(column: &ArrayRef) -> EngineResult<ImageColumn> {
    let refuse = |error| DataFusionError::Execution(format!("the column `{IMAGE}` is {error}"));
    ImageColumn::new(column).map_err(refuse)
}

fn file_hash() -> Expr {
    call("image_sha256", vec![ident(IMAGE)], DataType::Utf8, |columns| {
        let images = images(&columns[0])?;
        Ok(Arc::new(images.bytes().iter().map(|image| image.map(sha256_hex)).collect::<StringArray>()))
    })
}

/// Images that cannot be decoded have no perceptual hash; their files are still compared.
fn image_hash() -> Expr {
    call("image_phash", vec![ident(IMAGE)], DataType::Int64, |columns| {
        let images = images(&columns[0])?;
        let limits = Limits::default();
        let hash = |image: &[u8]| phash(&decode(image, &limits).ok()?.rgb).ok();
        Ok(Arc::new(images.bytes().iter().map(|image| hash(image?)).collect::<Int64Array>()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use datafusion::arrow::array::{LargeBinaryArray, RecordBatch};
    use twinlens_dataset::image_column::image_array;
    use twinlens_image::{Format, Rgb, encode};

    fn picture(seed: u32, scale: u32) -> Vec<u8> {
        let (width, height) = (40 * scale, 30 * scale);
        let pixels = (0..width * height).flat_map(|at| {
            let (x, y) = (at % width / scale, at / width / scale);
            [x * 6, y * 8, (x * y * seed) % 256].map(|value| value as u8)
        });
        let rgb = Rgb::new(width, height, pixels.collect()).unwrap();
        encode(&rgb, Format::Png, None).unwrap()
    }

    fn set(images: &[Vec<u8>]) -> RecordBatch {
        let (bytes, paths) =
            (LargeBinaryArray::from_iter_values(images), StringArray::new_null(images.len()));
        let images: ArrayRef = Arc::new(image_array(bytes, paths).unwrap());
        RecordBatch::try_from_iter([(IMAGE, images)]).unwrap()
    }

    fn rows(images: &[(&str, Vec<u8>)]) -> RecordBatch {
        let hash = |image: &[u8]| phash(&decode(image, &Limits::default()).ok()?.rgb).ok();
        let uids: ArrayRef = Arc::new(StringArray::from_iter_values(images.iter().map(|(uid, _)| uid)));
        let files = images.iter().map(|(_, image)| sha256_hex(image));
        let files: ArrayRef = Arc::new(StringArray::from_iter_values(files));
        let hashes: ArrayRef = Arc::new(images.iter().map(|(_, image)| hash(image)).collect::<Int64Array>());
        RecordBatch::try_from_iter([("uid", uids), (SHA256, files), (PHASH, hashes)]).unwrap()
    }

    #[tokio::test]
    async fn rejects_name_the_evaluation_set() {
        let broken = b"not an image".to_vec();
        let (flags, digits) = (set(&[picture(3, 1)]), set(&[picture(7, 1), broken.clone()]));
        let given =
            rows(&[("a", picture(3, 1)), ("b", picture(7, 2)), ("c", broken), ("d", picture(900, 1))]);
        let options =
            "input = \"images.parquet\"\nagainst = [\"flags.parquet\", \"digits.parquet\"]\ndistance = 3";
        let stage = stage("decontaminate", options).table("images", &given);
        let made = stage.table("flags", &flags).table("digits", &digits).run().await.unwrap();
        let found = made.rows(&["uid", "reject_code", "reject_detail"]);
        assert_eq!(found[0], "a|in_evaluation_set|flags.parquet: the same file");
        assert!(
            found[1].starts_with("b|in_evaluation_set|digits.parquet: ") && found[1].contains(" bits from "),
            "{found:?}"
        );
        assert_eq!(found[2..], ["c|in_evaluation_set|digits.parquet: the same file", "d||"]);
    }

    #[tokio::test]
    async fn sets_may_have_hashes_instead_of_images() {
        let options = "input = \"images.parquet\"\nagainst = [\"flags.parquet\"]\ndistance = 0";
        let given = hashed(&[
            ("a", phash(&decode(&picture(3, 1), &Limits::default()).unwrap().rgb).ok()),
            ("b", None),
        ]);
        let stage = stage("decontaminate", options).table("images", &given);
        let made = stage.table("flags", &rows(&[("x", picture(3, 1))])).run().await.unwrap();
        assert_eq!(made.rows(&["uid", "reject_code"]), ["a|in_evaluation_set", "b|"]);
    }

    #[test]
    fn inputs_are_checked() {
        let faults = |options: &str| {
            let stage = stage("decontaminate", &format!("input = \"pages.parquet\"\n{options}"));
            stage.table("pages", &pairs(&[])).faults()
        };
        let found = faults("against = [\"./pages.parquet\"]\ndistance = 20");
        assert!(found[0].contains("neither `sha256`") && found[2].contains("too large"), "{found:?}");
        assert!(found[1].contains("`./pages.parquet` has no column `image`"), "{found:?}");
        assert!(faults("against = []").iter().any(|fault| fault.contains("no evaluation set")));
    }
}
