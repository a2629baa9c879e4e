//! The values of arguments: formats, sizes, times.

use std::time::Duration;

use clap::ValueEnum;
use twinlens_model::Precision;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// If stderr is a terminal
    Auto,
    /// Never; finished stages are still reported
    Never,
    /// Nothing at all
    #[value(skip)]
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerifyMode {
    /// Each time
    Always,
    /// The first time that this process reads it
    First,
    /// Never
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RanksMode {
    /// Threads of this process, whatever started it
    Threads,
    /// Processes that meet by TCP at MASTER_ADDR:MASTER_PORT
    Tcp,
    /// Processes that meet by MPI (needs a build with `--features mpi`)
    Mpi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Human-readable text
    Text,
    /// One JSON object per event and line
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlanFormat {
    /// Text
    Table,
    /// A Mermaid flowchart
    Mermaid,
    /// A Graphviz digraph
    Dot,
    /// A JSON document
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// Tar files of images and texts, with Parquet metadata and statistics, as img2dataset writes
    /// them
    Webdataset,
    /// Parquet, as the Hugging Face Hub shows it; pipelines can read it
    Parquet,
    /// Arrow IPC files
    Arrow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModelFormat {
    /// transformers
    HuggingFace,
    /// open_clip
    OpenClip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RowFormat {
    /// Aligned columns; long values are truncated
    Table,
    /// Comma-separated values with a header
    Csv,
    /// One JSON object per line
    Json,
    /// One Parquet file
    Parquet,
}

/// A precision of matrix products.
pub(super) fn precision(name: &str) -> Result<Precision, String> {
    let all = [Precision::F32, Precision::Bf16, Precision::F16];
    let known = all.into_iter().find(|precision| precision.name() == name);
    known.ok_or_else(|| "expected f32, bf16 or f16".into())
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number".to_string())?;
    if number > 0.0 && number.is_finite() { Ok(number) } else { Err("expected a positive number".into()) }
}

/// A number of bytes: `512MiB`, `2GB`, `1.5g`, `4096`.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "k" | "kib" => (1u64 << 10) as f64,
        "m" | "mib" => (1u64 << 20) as f64,
        "g" | "gib" => (1u64 << 30) as f64,
        _ => return Err(format!("unknown unit `{unit}`: expected a size such as 512MiB or 2GB")),
    };
    let number: f64 = number.parse().map_err(|_| "expected a size such as 512MiB or 2GB".to_string())?;
    let bytes = number * scale;
    // With less, not even one batch can be sorted.
    if !(1e6..1e15).contains(&bytes) {
        return Err("expected a size of at least 1MB".into());
    }
    Ok(bytes as usize)
}

/// A time: `30s`, `10m`, `1.5h`, `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a time such as 30s, 10m or 2h".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(expected)?;
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    // A store answers in tens of milliseconds.
    match Duration::try_from_secs_f64(number * scale) {
        Ok(time) if (Duration::from_millis(500)..=Duration::from_secs(30 * 86_400)).contains(&time) => {
            Ok(time)
        }
        _ => Err("expected a time from 500ms to 720h".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let cases = [
            ("30s", Some(30_000)),
            ("1.5h", Some(5_400_000)),
            ("10m", Some(600_000)),
            ("500ms", Some(500)),
            ("10", None),
            ("1ms", None),
            ("-3s", None),
            ("3 days", None),
            ("99999999999999999999h", None),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text).ok(), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        let cases = [
            ("512MiB", Some(512 << 20)),
            ("2GB", Some(2_000_000_000)),
            ("1.5g", Some(3 << 29)),
            ("4000000", Some(4_000_000)),
            ("64 MiB", Some(64 << 20)),
            ("12", None),
            ("", None),
            ("1.2.3MB", None),
            ("5 parsecs", None),
            ("-5MB", None),
        ];
        for (text, expected) in cases {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }
}
