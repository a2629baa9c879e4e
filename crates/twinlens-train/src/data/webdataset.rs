//! Pairs out of tar files, as `webdataset` and img2dataset write them: an image and a text (or a
//! JSON with one) that share a key.

use crate::data::pairs::{CODES, Columns, Encoded};
use crate::data::plan::Block;
use crate::error::{Result, TrainError};
use serde_json::Value;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use twinlens_dataset::samples::{self, Entry, Span};
use twinlens_dataset::storage::Location;
use twinlens_image::Limits;

/// Where the parts of a sample are: offset and length of the image, then of the text; a bit says
/// whether the text is JSON.
pub(crate) type Spans = [u64; 4];

/// One file.
pub(crate) struct TarShard {
    name: String,
    path: PathBuf,
    columns: Columns,
}

/// A sample: why it is none, or its caption, and where its parts are.
pub(crate) struct Sample {
    pub(crate) caption: std::result::Result<String, &'static str>,
    pub(crate) spans: Spans,
}

impl TarShard {
    /// A file; one of an object store is copied.
    pub(crate) fn open(shard: &Location, columns: &Columns) -> Result<Self> {
        Ok(Self { name: shard.name(), path: shard.local_copy()?, columns: columns.clone() })
    }

    fn file(&self) -> Result<File> {
        File::open(&self.path).map_err(TrainError::io(&self.path))
    }

    fn index(&self) -> Result<samples::Index> {
        let file = self.file()?;
        let length = file.metadata().map_err(TrainError::io(&self.path))?.len();
        let index = samples::index(&mut BufReader::new(file), length, Limits::default().max_bytes);
        index.map_err(TrainError::io(&self.path))
    }

    /// Every sample, and after them a row for every place that is damaged.
    pub(crate) fn samples(&self) -> Result<Vec<Sample>> {
        let index = self.index()?;
        let mut file = self.file()?;
        let mut samples = Vec::with_capacity(index.entries.len());
        for entry in &index.entries {
            samples.push(self.sample(entry, &mut file)?);
        }
        let damage = index.damage.iter().map(|(_, (code, _))| Sample { caption: Err(*code), spans: [0; 4] });
        samples.extend(damage);
        Ok(samples)
    }

    fn sample(&self, entry: &Entry, file: &mut File) -> Result<Sample> {
        let none =
            |code: &'static str| -> Result<Sample> { Ok(Sample { caption: Err(code), spans: [0; 4] }) };
        let there = |span: &Option<Span>| match span {
            None => Ok(None),
            Some(Ok(span)) => Ok(Some(*span)),
            Some(Err((code, _))) => Err(*code),
        };
        let (image, text, json) = match (there(&entry.image), there(&entry.text), there(&entry.json)) {
            (Err(code), ..) | (_, Err(code), _) | (_, _, Err(code)) => return none(code),
            (Ok(None), ..) => return none("no_image"),
            (Ok(Some(image)), Ok(text), Ok(json)) => (image, text, json),
        };
        // The text comes first, unless a member of the JSON was asked for by name.
        let text = text.filter(|_| !self.columns.named);
        for (span, is_json) in [(text, false), (json, true)] {
            let Some((at, length)) = span else { continue };
            let read = self.read_at(file, at, length)?;
            match self.caption(&read, is_json) {
                Ok(Some(caption)) => {
                    let spans = [image.0, image.1, at, length << 1 | u64::from(is_json)];
                    return Ok(Sample { caption: Ok(caption), spans });
                }
                Ok(None) => {}
                Err(code) => return none(code),
            }
        }
        none("no_caption")
    }

    fn caption(&self, bytes: &[u8], is_json: bool) -> std::result::Result<Option<String>, &'static str> {
        let text = match is_json {
            false => String::from_utf8_lossy(bytes).into_owned(),
            true => {
                let json: Value = serde_json::from_slice(bytes).map_err(|_| "malformed_json")?;
                let text = json.get(&self.columns.caption).and_then(Value::as_str);
                text.unwrap_or_default().to_owned()
            }
        };
        Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
    }

    fn read_at(&self, file: &mut File, at: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(TrainError::io(&self.path))?;
        Ok(bytes)
    }

    /// The wanted rows of a block, with their numbers within the input.
    pub(crate) fn read(
        &self,
        block: &Block,
        spans: &[Spans],
        wanted: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<(u64, Encoded)>> {
        let mut file = self.file()?;
        let rows = (block.start..).zip(spans).filter(|(row, _)| wanted(*row));
        rows.map(|(row, [image, length, text, text_length])| {
            let image = self.read_at(&mut file, *image, *length)?;
            let text = self.read_at(&mut file, *text, text_length >> 1)?;
            let caption = self.caption(&text, text_length & 1 == 1).ok().flatten().unwrap_or_default();
            Ok((row, Encoded { caption, image }))
        })
        .collect()
    }

    /// What rows of a block are, for the ledger: `00000.tar/000000012`.
    pub(crate) fn places(&self, block: &Block, rows: &[u64]) -> Result<Vec<String>> {
        let index = self.index()?;
        let place = |row: &u64| {
            let sample = (row - block.start) as usize + block.first as usize;
            match (index.entries.get(sample), index.damage.get(sample.saturating_sub(index.entries.len()))) {
                (Some(entry), _) => format!("{}/{}", self.name, entry.key),
                (None, Some((at, (_, why)))) => format!("{} byte {at}: {why}", self.name),
                (None, None) => self.name.clone(),
            }
        };
        Ok(rows.iter().map(place).collect())
    }
}

/// The place of a code in the list of codes.
pub(crate) fn code_number(code: &str) -> u64 {
    CODES.iter().position(|known| *known == code).unwrap_or(0) as u64
}
