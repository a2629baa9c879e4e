//! Builds the rows of a set's dataset, example by example.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Builder, LargeBinaryBuilder, ListBuilder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use twinlens_dataset::contracts;
use twinlens_dataset::image_column::image_array;

use crate::images::Reject;

/// The columns of every set: `uid`, `image`, `label` and `class_name` (classification), `labels`
/// and `ignored_labels` (multi-label: ids of the present classes, and of those that were not
/// annotated), `captions` (retrieval), `place` (where the example was read from).
pub fn schema() -> SchemaRef {
    let texts = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    let field = |name: &str, kind: DataType| Field::new(name, kind, true);
    Arc::new(Schema::new(vec![
        field("uid", DataType::Utf8),
        field("image", contracts::image()),
        field("label", DataType::Int32),
        field("class_name", DataType::Utf8),
        field("labels", contracts::int_list()),
        field("ignored_labels", contracts::int_list()),
        field("captions", texts),
        field("place", DataType::Utf8),
    ]))
}

/// The ground truth of a good row.
#[derive(Debug, Default)]
pub(super) struct Known<'a> {
    /// Label id and class name.
    pub class: Option<(i32, &'a str)>,
    pub labels: Option<(Vec<i32>, Vec<i32>)>,
    pub captions: Option<Vec<String>>,
}

/// Builds batches of [`schema`] plus the reserved columns of rejects.
pub(super) struct Rows {
    schema: SchemaRef,
    stage: String,
    pub rows: usize,
    pub bytes: usize,
    uid: StringBuilder,
    data: LargeBinaryBuilder,
    path: StringBuilder,
    label: Int32Builder,
    class_name: StringBuilder,
    labels: [ListBuilder<Int32Builder>; 2],
    captions: ListBuilder<StringBuilder>,
    place: StringBuilder,
    reject: [StringBuilder; 3],
}

impl Rows {
    /// An empty builder; its rejects are attributed to `stage`.
    pub(super) fn new(stage: &str) -> Self {
        Self {
            schema: twinlens_pipeline::rejects::schema_with_reserved(&schema()),
            stage: stage.into(),
            rows: 0,
            bytes: 0,
            uid: StringBuilder::new(),
            data: LargeBinaryBuilder::new(),
            path: StringBuilder::new(),
            label: Int32Builder::new(),
            class_name: StringBuilder::new(),
            labels: [(); 2].map(|()| ListBuilder::new(Int32Builder::new())),
            captions: ListBuilder::new(StringBuilder::new()),
            place: StringBuilder::new(),
            reject: [(); 3].map(|()| StringBuilder::new()),
        }
    }

    /// Adds a row: a good one with its image, or a reject.
    pub(super) fn push(
        &mut self,
        uid: &str,
        place: &str,
        path: &str,
        row: Result<(&[u8], Known<'_>), Reject>,
    ) {
        self.uid.append_value(uid);
        self.place.append_value(place);
        let (image, known, refusal) = match row {
            Ok((image, known)) => (Some(image), known, None),
            Err(refusal) => (None, Known::default(), Some(refusal)),
        };
        self.data.append_option(image);
        self.path.append_option(image.map(|_| path));
        self.bytes += image.map_or(0, <[u8]>::len);
        self.label.append_option(known.class.map(|class| class.0));
        self.class_name.append_option(known.class.map(|class| class.1));
        let ids = |ids: Vec<i32>| ids.into_iter().map(Some).collect::<Vec<_>>();
        let (present, ignored) = known.labels.map_or((None, None), |(a, b)| (Some(ids(a)), Some(ids(b))));
        self.labels.iter_mut().zip([present, ignored]).for_each(|(column, ids)| column.append_option(ids));
        let captions = known.captions.map(|texts| texts.into_iter().map(Some).collect::<Vec<_>>());
        self.captions.append_option(captions);
        let values = refusal.map(|refusal| {
            let detail = format!("{place}: {}", refusal.detail);
            [self.stage.clone(), refusal.code.to_string(), detail]
        });
        let values = values.map_or([None, None, None], |values| values.map(Some));
        self.reject.iter_mut().zip(values).for_each(|(column, value)| column.append_option(value));
        self.rows += 1;
    }

    /// Returns the rows so far and empties the builder.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        (self.rows, self.bytes) = (0, 0);
        let [labels, ignored] = &mut self.labels;
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.uid.finish()),
            Arc::new(image_array(self.data.finish(), self.path.finish())?),
            Arc::new(self.label.finish()),
            Arc::new(self.class_name.finish()),
            Arc::new(labels.finish()),
            Arc::new(ignored.finish()),
            Arc::new(self.captions.finish()),
            Arc::new(self.place.finish()),
        ];
        columns.extend(self.reject.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef));
        RecordBatch::try_new(self.schema.clone(), columns)
    }
}
