//! Pairs from Parquet: a column of captions, and one of images as the Hugging Face `Image` feature
//! (`struct<bytes, path>`) or as binary.

use crate::data::pair::{Captions, Columns, EncodedPair, holds_captions};
use crate::data::sampler::Block;
use crate::error::{Result, TrainError};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::{cast, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use std::sync::Arc;
use twinlens_dataset::image_column::NotImages;
use twinlens_dataset::row_groups::RowGroups;
use twinlens_dataset::storage::Location;
use twinlens_dataset::types::{self, holds_image_bytes};
use twinlens_dataset::{DatasetError, ImageColumn};
use twinlens_pipeline::suggest::{did_you_mean, list_names};

/// One Parquet file.
pub(crate) struct ParquetShard {
    name: String,
    groups: RowGroups,
    columns: Columns,
    /// Path of the column with the encoded images: `image.bytes`.
    image_path: String,
}

impl ParquetShard {
    /// Opens a file and checks its columns.
    pub(crate) fn open(shard: &Location, columns: &Columns) -> Result<Self> {
        let groups = RowGroups::open(shard)?;
        let (name, schema) = (shard.to_string(), groups.schema().clone());
        let columns = Columns { caption: columns.caption_in(&schema).into(), ..columns.clone() };
        check_caption(&name, &columns, column_type(&name, &schema, &columns.caption)?)?;
        let kind = column_type(&name, &schema, &columns.image)?;
        let image_path = ImageColumn::bytes_path(&columns.image, kind)
            .map_err(|error| not_images(&name, &columns.image, &error))?;
        Ok(Self { name, groups, columns, image_path })
    }

    /// Checks that it can be read in memory that its size explains.
    pub(crate) fn check(&self) -> Result<()> {
        Ok(self.groups.check()?)
    }

    /// Rows and bytes of each row group.
    pub(crate) fn sizes(&self) -> Vec<(u64, u64)> {
        self.groups.sizes().collect()
    }

    /// The captions of each row of a row group that may be used.
    pub(crate) fn captions(&self, group: usize, rows: usize) -> Result<Vec<Vec<String>>> {
        let batch = self.groups.read(group, 0, rows, &[&self.columns.caption])?;
        self.texts(&batch)
    }

    fn texts(&self, batch: &RecordBatch) -> Result<Vec<Vec<String>>> {
        let column = self.column(batch, &self.columns.caption)?;
        let texts =
            |column: &ArrayRef| cast(column, &DataType::LargeUtf8).map_err(|source| self.mismatch(source));
        if !is_list(column.data_type()) {
            let texts = texts(column)?;
            let rows = texts.as_string::<i64>().iter();
            return Ok(rows.map(|text| self.columns.usable(text.into_iter())).collect());
        }
        let lists =
            cast(column, &DataType::LargeList(Arc::new(Field::new("item", DataType::LargeUtf8, true))));
        let lists = lists.map_err(|source| self.mismatch(source))?;
        let lists = lists.as_list::<i64>();
        let texts = texts(lists.values())?;
        let texts = texts.as_string::<i64>();
        let row = |row: usize| {
            let offsets = &lists.value_offsets()[row..];
            let items = if lists.is_valid(row) { offsets[0] as usize..offsets[1] as usize } else { 0..0 };
            self.columns.usable(items.filter(|item| texts.is_valid(*item)).map(|item| texts.value(item)))
        };
        Ok((0..lists.len()).map(row).collect())
    }

    fn column<'a>(&self, batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
        let missing = || TrainError::Options(format!("{}: the column `{name}` is missing", self.name));
        batch.column_by_name(name).ok_or_else(missing)
    }

    fn mismatch(&self, source: datafusion::arrow::error::ArrowError) -> TrainError {
        DatasetError::Schema { table: self.name.clone(), source }.into()
    }

    /// The selected rows of a block, with their numbers within the input.
    pub(crate) fn read(
        &self,
        block: &Block,
        selected: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<(u64, EncodedPair)>> {
        let columns = [self.columns.caption.as_str(), &self.image_path];
        let batch =
            self.groups.read(block.group as usize, block.first as usize, block.rows as usize, &columns)?;
        let captions = self.texts(&batch)?;
        let images = ImageColumn::new(self.column(&batch, &self.columns.image)?)
            .map_err(|error| not_images(&self.name, &self.columns.image, &error))?;
        let rows = (block.start..).zip(captions).enumerate().filter(|(_, (row, _))| selected(*row));
        Ok(rows
            .map(|(place, (row, captions))| {
                let image = images.get(place).map(<[u8]>::to_vec).unwrap_or_default();
                (row, EncodedPair { captions, image })
            })
            .collect())
    }

    /// Rejected rows of a block for the ledger: their columns except images, and the reserved
    /// columns.
    pub(crate) fn ledger(
        &self,
        block: &Block,
        rows: &[u64],
        reserved: Vec<(&'static str, StringArray)>,
    ) -> Result<RecordBatch> {
        let schema = self.groups.schema();
        let kept = schema.fields().iter().filter(|field| {
            !holds_image_bytes(field.data_type()) && !reserved.iter().any(|(name, _)| name == field.name())
        });
        let names: Vec<&str> = kept.map(|field| field.name().as_str()).collect();
        let batch =
            self.groups.read(block.group as usize, block.first as usize, block.rows as usize, &names)?;
        let places = rows.iter().map(|row| (row - block.start) as u32);
        let places = datafusion::arrow::array::PrimitiveArray::<UInt32Type>::from_iter_values(places);
        let batch = take_record_batch(&batch, &places).map_err(|source| self.mismatch(source))?;
        let mut fields: Vec<Arc<Field>> = batch.schema().fields().iter().cloned().collect();
        let mut columns = batch.columns().to_vec();
        for (name, values) in reserved {
            fields.push(Arc::new(Field::new(name, DataType::Utf8, true)));
            columns.push(Arc::new(values));
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|source| self.mismatch(source))
    }
}

fn not_images(file: &str, column: &str, error: &NotImages) -> TrainError {
    TrainError::Options(format!("{file}: the image column `{column}` is {error}"))
}

fn is_list(kind: &DataType) -> bool {
    matches!(kind, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..))
}

fn check_caption(file: &str, columns: &Columns, kind: &DataType) -> Result<()> {
    if holds_captions(kind, columns.captions) {
        return Ok(());
    }
    let hint = if holds_captions(kind, Some(Captions::First)) {
        format!(": set {CAPTIONS_HINT}")
    } else {
        String::new()
    };
    Err(TrainError::Options(format!(
        "{file}: the caption column `{}` is of type {}; expected text{hint}",
        columns.caption,
        types::name(kind)
    )))
}

/// How lists of captions are used.
pub(crate) const CAPTIONS_HINT: &str = "`captions = \"random\"` or `captions = \"first\"`";

/// The type of a column, or an error that lists the columns.
fn column_type<'a>(file: &str, schema: &'a Schema, name: &str) -> Result<&'a DataType> {
    let names = || schema.fields().iter().map(|field| field.name().as_str());
    schema.field_with_name(name).map(Field::data_type).map_err(|_| {
        let meant = did_you_mean(name, names()).map_or(String::new(), |meant| format!("; {meant}"));
        TrainError::Options(format!(
            "{file}: no column `{name}`; the columns are {}{meant}",
            list_names(names())
        ))
    })
}
