//! Event files for TensorBoard: one folder for each training.
//!
//! A file is a sequence of records (length, its checksum, bytes, their checksum: TensorFlow's
//! TFRecord with masked CRC-32C), each an `Event` message of TensorFlow's `event.proto`. Only
//! scalars are written, so the few fields are encoded here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use twinlens_pipeline::run::events::Event;

/// Writes the steps and evaluations of trainings.
pub(crate) struct TensorBoard {
    folder: PathBuf,
    files: Mutex<BTreeMap<String, BufWriter<File>>>,
}

impl TensorBoard {
    /// Writes below `folder`, which is created.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub(crate) fn new(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, files: Mutex::default() })
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, BufWriter<File>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Errors are ignored: a training does not fail because its curves cannot be drawn.
    pub(super) fn event(&self, event: &Event) {
        match event {
            Event::TrainStep {
                stage, step, loss, lr, samples_per_second, logit_scale, grad_norm, ..
            } => {
                let scalars = [
                    ("train/loss", *loss),
                    ("train/learning_rate", *lr),
                    ("train/logit_scale", *logit_scale),
                    ("train/gradient_norm", *grad_norm),
                    ("train/pairs_per_second", *samples_per_second),
                ];
                let _ = self.write(stage, *step, &scalars.map(|(tag, value)| (tag.to_string(), value)));
            }
            Event::Evaluated { stage, step, set, prompts, metric, value, .. } => {
                let tag = format!("evaluation/{set}/{prompts}/{metric}");
                let _ = self.write(stage, *step, &[(tag, *value as f32)]);
            }
            Event::StageFinished { stage, .. } => {
                // Dropping it writes the rest.
                self.files().remove(stage);
            }
            _ => {}
        }
    }

    /// Writes everything that is buffered.
    pub(super) fn flush(&self) {
        for file in self.files().values_mut() {
            let _ = file.flush();
        }
    }

    fn write(&self, stage: &str, step: u64, scalars: &[(String, f32)]) -> io::Result<()> {
        let mut files = self.files();
        if !files.contains_key(stage) {
            files.insert(stage.into(), self.open(stage)?);
        }
        let Some(file) = files.get_mut(stage) else { return Ok(()) };
        record(file, &event(step, Some(scalars)))?;
        // Whoever looks sees a step within seconds, whatever its size.
        if step.is_multiple_of(20) || scalars.len() == 1 { file.flush() } else { Ok(()) }
    }

    fn open(&self, stage: &str) -> io::Result<BufWriter<File>> {
        let folder = self.folder.join(stage);
        fs::create_dir_all(&folder)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // A resumed training adds a file; TensorBoard reads them in the order of their names.
        let name = format!("events.out.tfevents.{:010}.{}.twinlens", now.as_secs(), now.subsec_millis());
        let mut file = BufWriter::new(File::create(folder.join(name))?);
        record(&mut file, &event(0, None))?;
        Ok(file)
    }
}

/// An `Event`: `wall_time` (1), `step` (2), and `file_version` (3) or `summary` (5), a list
/// of `Value`s (1) of `tag` (1) and `simple_value` (2).
fn event(step: u64, scalars: Option<&[(String, f32)]>) -> Vec<u8> {
    let mut event = Vec::new();
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    event.push(1 << 3 | 1);
    event.extend(time.to_le_bytes());
    event.push(2 << 3);
    varint(&mut event, step);
    match scalars {
        None => bytes(&mut event, 3, b"brain.Event:2"),
        Some(scalars) => {
            let mut summary = Vec::new();
            for (tag, number) in scalars {
                let mut value = Vec::new();
                bytes(&mut value, 1, tag.as_bytes());
                value.push(2 << 3 | 5);
                value.extend(number.to_le_bytes());
                bytes(&mut summary, 1, &value);
            }
            bytes(&mut event, 5, &summary);
        }
    }
    event
}

fn bytes(to: &mut Vec<u8>, field: u8, content: &[u8]) {
    to.push(field << 3 | 2);
    varint(to, content.len() as u64);
    to.extend(content);
}

fn varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn record(to: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    to.write_all(&length)?;
    to.write_all(&masked_crc(&length).to_le_bytes())?;
    to.write_all(data)?;
    to.write_all(&masked_crc(data).to_le_bytes())
}

/// The checksum of a TFRecord: CRC-32C, rotated and shifted.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli) bit by bit: records have some hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !data.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn varints_are_those_of_protocol_buffers() {
        for (number, expected) in [(1, vec![1]), (150, vec![0x96, 1]), (300, vec![0xac, 2])] {
            let mut to = Vec::new();
            varint(&mut to, number);
            assert_eq!(to, expected);
        }
    }
}
