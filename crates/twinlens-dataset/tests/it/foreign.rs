//! Arrow and Parquet files that claim more than they have, and damaged ones.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::Int32Type;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use twinlens_dataset::DatasetError;
use twinlens_dataset::foreign::{ArrowBatches, ParquetBatches, check_pages, open_parquet};

/// Names the file that the child process reads.
const FILE: &str = "TWINLENS_TEST_FILE";

fn texts(rows: i32) -> RecordBatch {
    let text = |name: &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{name} {}", row % 7))))
    };
    let columns = [("url", text("http://a")), ("caption", text("a caption"))];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn parquet(path: &Path, batch: &RecordBatch, properties: WriterPropertiesBuilder) {
    let zstd = properties.set_compression(Compression::ZSTD(Default::default())).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(zstd)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

/// The number of rows, or the error.
fn read_all(path: &Path) -> Result<usize, DatasetError> {
    let mut rows = 0;
    if path.extension().is_some_and(|extension| extension == "arrow") {
        for batch in ArrowBatches::open(path)? {
            rows += batch?.num_rows();
        }
        return Ok(rows);
    }
    let (file, metadata) = open_parquet(path)?;
    check_pages(path, &file, metadata.metadata())?;
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata).build();
    for batch in ParquetBatches::new(
        path,
        reader.map_err(|source| DatasetError::Parquet { path: path.into(), source })?,
    ) {
        rows += batch?.num_rows();
    }
    Ok(rows)
}

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn child() {
    // Run by the tests of this file, in a process of its own.
    let Ok(path) = std::env::var(FILE) else { return };
    let before = peak();
    let shown = match read_all(path.as_ref()) {
        Ok(rows) => format!("{rows} rows"),
        Err(error) => error.to_string(),
    };
    println!("peak {} shown {shown}", peak() - before);
}

/// What reading a file gives, and the growth of the peak of memory in KiB.
fn in_child(path: &Path) -> (String, u64) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "foreign::child", "--nocapture", "--test-threads=1"]);
    let output = command.env(FILE, path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("peak ").map(|(_, line)| line));
    let (peak, shown) = line.and_then(|line| line.split_once(" shown ")).unwrap_or_else(|| panic!("{text}"));
    (shown.into(), peak.parse().unwrap())
}

#[test]
fn lengths_are_held_against_the_bytes_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let one_value = |bytes: usize, rows: usize| {
        let values = StringArray::from(vec!["x".repeat(bytes)]);
        let column = DictionaryArray::<Int32Type>::new(Int32Array::from(vec![0; rows]), Arc::new(values));
        RecordBatch::try_from_iter([("caption", Arc::new(column) as ArrayRef)]).unwrap()
    };
    let plain = WriterProperties::builder().set_dictionary_enabled(false);
    let deltas = plain.clone().set_encoding(Encoding::DELTA_BYTE_ARRAY);
    fs::write(at("huge.arrow"), [b"\xff\xff\xff\xff\xff\xff\xff\x7f".as_slice(), &[b'x'; 100]].concat())
        .unwrap();
    let mut stream = StreamWriter::try_new(Vec::new(), &texts(1).schema()).unwrap();
    stream.write(&texts(9)).unwrap();
    let stream = stream.into_inner().unwrap();
    fs::write(at("cut.arrow"), &stream[..stream.len() - 20]).unwrap();
    // Before each compressed buffer is its length without compression.
    let lz4 = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
    let mut packed = FileWriter::try_new_with_options(Vec::new(), &texts(1).schema(), lz4).unwrap();
    packed.write(&texts(5000)).unwrap();
    let mut packed = packed.into_inner().unwrap();
    fs::write(at("lz4.arrow"), &packed).unwrap();
    let frame = packed.windows(4).position(|bytes| bytes == b"\x04\x22\x4d\x18").unwrap();
    packed[frame - 8..frame].copy_from_slice(&(1i64 << 40).to_le_bytes());
    fs::write(at("lz4_bomb.arrow"), &packed).unwrap();
    fs::write(at("text.arrow"), "url,caption\nhttp://a/b.jpg,x\n").unwrap();
    fs::write(at("lfs.parquet"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")
        .unwrap();
    fs::write(at("page.parquet"), "<!DOCTYPE html><html></html>").unwrap();
    // A list of 2^31 row groups in the metadata.
    let footer = b"\x15\x02\x19\x2c\x48\x01r\x15\x02\0\x15\x02\x25\x02\x18\x01c\0\x16\x02\x19\xfc\xff\xff\xff\xff\x07\0";
    let length = (footer.len() as u32).to_le_bytes();
    fs::write(at("groups.parquet"), [b"PAR1", footer.as_slice(), &length, b"PAR1"].concat()).unwrap();
    parquet(&at("dictionary.parquet"), &one_value(1_000_000, 20_000), WriterProperties::builder());
    parquet(&at("deltas.parquet"), &one_value(1_000_000, 1000), deltas.clone());
    parquet(&at("page_bomb.parquet"), &one_value(70 << 20, 1), plain.clone());
    parquet(&at("empty.parquet"), &texts(0), WriterProperties::builder());
    parquet(&at("honest.parquet"), &texts(50_000), WriterProperties::builder());
    parquet(&at("honest_deltas.parquet"), &texts(50_000), deltas);
    let images = BinaryArray::from_iter_values((0..3u8).map(|n| vec![n; 3 << 20]));
    let images = RecordBatch::try_from_iter([("image", Arc::new(images) as ArrayRef)]).unwrap();
    parquet(&at("images.parquet"), &images, plain);
    let cases = [
        ("huge.arrow", "damaged: it has 108 bytes, but a message claims 2147483647 at byte 8", 10),
        ("cut.arrow", "but a batch claims", 10),
        ("lz4.arrow", "5000 rows", 10),
        ("lz4_bomb.arrow", "and claims 1099511627776 without compression", 10),
        ("text.arrow", "is plain text, not an Arrow file", 10),
        ("lfs.parquet", "is a Git LFS pointer, not a Parquet file", 10),
        ("page.parquet", "is an HTML page, not a Parquet file", 10),
        ("groups.parquet", "damaged: its metadata are damaged", 10),
        ("dictionary.parquet", "repeat values of up to 1000000 bytes", 200),
        ("deltas.parquet", "repeat values of up to", 400),
        ("page_bomb.parquet", "and decompresses to 73400324", 10),
        ("empty.parquet", "0 rows", 10),
        ("honest.parquet", "50000 rows", 100),
        ("honest_deltas.parquet", "50000 rows", 200),
        ("images.parquet", "3 rows", 100),
    ];
    for (name, expected, mebibytes) in cases {
        let (shown, peak) = in_child(&at(name));
        assert!(shown.contains(expected), "{name}: {shown}");
        assert!(shown.ends_with("rows") || shown.contains(name), "the file is named: {shown}");
        assert!(peak < mebibytes << 10, "{name}: {peak} KiB");
    }
}

#[test]
fn damaged_files_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    parquet(&at("a.parquet"), &texts(40), WriterProperties::builder());
    let mut writer = FileWriter::try_new(File::create(at("a.arrow")).unwrap(), &texts(1).schema()).unwrap();
    writer.write(&texts(5)).unwrap();
    writer.finish().unwrap();
    for name in ["a.parquet", "a.arrow"] {
        let whole = fs::read(at(name)).unwrap();
        assert!(read_all(&at(name)).unwrap() > 0);
        // Each byte in turn becomes another, and each length is tried.
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            for value in [0, 0x7f, 0x80, 0xff] {
                bytes[place] = value;
                fs::write(at(&format!("damaged-{name}")), &bytes).unwrap();
                if let Err(error) = read_all(&at(&format!("damaged-{name}"))) {
                    assert!(error.to_string().contains(&format!("damaged-{name}")), "{error}");
                }
            }
            fs::write(at(&format!("cut-{name}")), &whole[..place]).unwrap();
            assert!(read_all(&at(&format!("cut-{name}"))).is_err(), "{name} cut at {place}");
        }
    }
}
