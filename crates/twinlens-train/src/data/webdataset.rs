//! Pairs from tar files as written by `webdataset` and img2dataset: an image and a text (or a JSON
//! that contains one) with the same key.

use crate::data::pair::{CAPTION_TYPE, Columns, EncodedPair, NO_CAPTION, NO_IMAGE, NOT_UTF8};
use crate::data::sampler::Block;
use crate::error::Result;
use serde_json::Value;
use std::path::PathBuf;
use twinlens_dataset::samples::{Entry, Index, Role, Span, TarSamples};
use twinlens_dataset::storage::Location;
use twinlens_image::Limits;

/// The positions of a sample's members: offset and length of the image, offset of the text, and the
/// length of the text shifted left by one, with the lowest bit set if it is JSON.
pub(crate) type Spans = [u64; 4];

/// One tar file.
pub(crate) struct TarShard {
    name: String,
    path: PathBuf,
    columns: Columns,
}

/// A sample: its captions or reject code, and the positions of its members.
pub(crate) struct Sample {
    pub(crate) captions: std::result::Result<Vec<String>, &'static str>,
    pub(crate) spans: Spans,
}

impl TarShard {
    /// Opens a file; a file in an object store is downloaded.
    pub(crate) fn open(shard: &Location, columns: &Columns) -> Result<Self> {
        Ok(Self { name: shard.name(), path: shard.local_copy()?, columns: columns.clone() })
    }

    fn file(&self) -> Result<TarSamples> {
        Ok(TarSamples::open(&self.path, None)?)
    }

    fn index(&self) -> Result<Index> {
        Ok(self.file()?.index(Limits::default().max_bytes, Role::PAIR)?)
    }

    /// All samples, followed by one rejected row per member that is not part of one, and per
    /// damaged place.
    pub(crate) fn samples(&self) -> Result<Vec<Sample>> {
        let index = self.index()?;
        let mut file = self.file()?;
        let mut samples = Vec::with_capacity(index.entries.len());
        for entry in &index.entries {
            samples.push(self.sample(entry, &mut file)?);
        }
        let unread = index.unread.iter();
        samples.extend(unread.map(|unread| Sample { captions: Err(unread.refusal.0), spans: [0; 4] }));
        Ok(samples)
    }

    fn sample(&self, entry: &Entry, file: &mut TarSamples) -> Result<Sample> {
        let reject =
            |code: &'static str| -> Result<Sample> { Ok(Sample { captions: Err(code), spans: [0; 4] }) };
        let member = |span: &Option<Span>| match span {
            None => Ok(None),
            Some(Ok(span)) => Ok(Some(*span)),
            Some(Err((code, _))) => Err(*code),
        };
        let (image, text, json) = match (member(&entry.image), member(&entry.text), member(&entry.json)) {
            (Err(code), ..) | (_, Err(code), _) | (_, _, Err(code)) => return reject(code),
            (Ok(None), ..) => return reject(NO_IMAGE),
            (Ok(Some(image)), Ok(text), Ok(json)) => (image, text, json),
        };
        // The text takes precedence, unless the option names a member of the JSON.
        let text = text.filter(|_| !self.columns.caption_is_explicit);
        for (span, is_json) in [(text, false), (json, true)] {
            let Some((at, length)) = span else { continue };
            let read = file.read(at, length)?;
            match self.captions(&read, is_json) {
                Ok(captions) if captions.is_empty() => {}
                Ok(captions) => {
                    let spans = [image.0, image.1, at, length << 1 | u64::from(is_json)];
                    return Ok(Sample { captions: Ok(captions), spans });
                }
                Err(code) => return reject(code),
            }
        }
        reject(NO_CAPTION)
    }

    /// The captions in a text or a JSON that may be used.
    fn captions(&self, bytes: &[u8], is_json: bool) -> std::result::Result<Vec<String>, &'static str> {
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        if !is_json {
            let text = std::str::from_utf8(bytes).map_err(|_| NOT_UTF8)?;
            return Ok(match self.columns.captions {
                None => self.columns.usable(std::iter::once(text.trim())),
                Some(_) => self.columns.usable(text.lines().map(str::trim)),
            });
        }
        let json: Value = serde_json::from_slice(bytes).map_err(|_| "malformed_json")?;
        match json.get(&self.columns.caption) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(self.columns.usable(std::iter::once(text.trim()))),
            Some(Value::Array(list)) if self.columns.captions.is_some() => {
                let texts = list.iter().filter(|item| !item.is_null());
                let texts: Option<Vec<&str>> = texts.map(Value::as_str).collect();
                let texts = texts.ok_or(CAPTION_TYPE)?;
                Ok(self.columns.usable(texts.into_iter().map(str::trim)))
            }
            Some(_) => Err(CAPTION_TYPE),
        }
    }

    /// The selected rows of a block, with their numbers within the input.
    pub(crate) fn read(
        &self,
        block: &Block,
        spans: &[Spans],
        selected: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<(u64, EncodedPair)>> {
        let mut file = self.file()?;
        let rows = (block.start..).zip(spans).filter(|(row, _)| selected(*row));
        rows.map(|(row, [image, length, text, text_length])| {
            let image = file.read(*image, *length)?;
            let text = file.read(*text, text_length >> 1)?;
            let captions = self.captions(&text, text_length & 1 == 1).unwrap_or_default();
            Ok((row, EncodedPair { captions, image }))
        })
        .collect()
    }

    /// Names of a block's rows for the ledger: `00000.tar/000000012`.
    pub(crate) fn places(&self, block: &Block, rows: &[u64]) -> Result<Vec<String>> {
        let index = self.index()?;
        let place = |row: &u64| {
            let sample = (row - block.start) as usize + block.first as usize;
            match (index.entries.get(sample), index.unread.get(sample.saturating_sub(index.entries.len()))) {
                (Some(entry), _) => format!("{}/{}", self.name, entry.key),
                (None, Some(unread)) => format!("{}{}: {}", self.name, unread.place, unread.refusal.1),
                (None, None) => self.name.clone(),
            }
        };
        Ok(rows.iter().map(place).collect())
    }
}
