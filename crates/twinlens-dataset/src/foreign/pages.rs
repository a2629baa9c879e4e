//! The pages of a Parquet column chunk, by their headers. Readers allocate what a page header
//! claims, and repeat values of dictionaries: this is checked first.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use parquet::file::metadata::ColumnChunkMetaData;

use super::thrift::{ThriftError, Walker};

/// A page may decompress to this many times its bytes ...
pub(super) const MAX_RATIO: u64 = 200;
/// ... or to this many bytes, whichever is more.
pub(super) const FREE_BYTES: u64 = 64 << 20;
/// Rows that readers hold in memory at once, at most.
pub(super) const BATCH_ROWS: u64 = 8192;
/// Bytes that these rows may take in one column, unless the file has as many.
pub(super) const MAX_BATCH_BYTES: u64 = 512 << 20;
/// Bytes of a header that are read first; headers with long statistics are longer.
const HEADER: u64 = 1 << 10;
/// The longest header, in bytes.
const MAX_HEADER: u64 = 16 << 20;

/// A page, by its header.
#[derive(Debug, Default, Clone, Copy)]
struct Page {
    kind: i64,
    plain: u64,
    packed: u64,
    values: u64,
    encoding: i64,
}

/// Kinds of pages.
const DATA: i64 = 0;
const DICTIONARY: i64 = 2;
const DATA_V2: i64 = 3;
/// Encodings in which a short page may hold long values.
const PLAIN_DICTIONARY: i64 = 2;
const DELTA_BYTE_ARRAY: i64 = 7;
const RLE_DICTIONARY: i64 = 8;

/// What the pages of a chunk may become in memory.
#[derive(Debug, Default)]
pub(super) struct Expansion {
    /// Values that are repeated from a dictionary.
    pub(super) from_dictionary: u64,
    /// Values that repeat the beginning of the value before them, and the longest page of these.
    pub(super) from_deltas: u64,
    pub(super) delta_page: u64,
}

/// Checks that a chunk is within a file of `length` bytes.
pub(super) fn check_range(length: u64, chunk: &ColumnChunkMetaData) -> Result<(), String> {
    if chunk.num_values() == 0 && chunk.compressed_size() == 0 && start(chunk) >= 0 {
        // A column without pages, as empty row groups of pyarrow have it, is at byte 0.
        return Ok(());
    }
    let packed = u64::try_from(chunk.compressed_size()).unwrap_or(u64::MAX);
    let in_file = |at: i64| u64::try_from(at).is_ok_and(|at| at >= 4 && at < length);
    let start = start(chunk);
    // An empty column has no data page, and sometimes a dictionary.
    let all_in_file = in_file(start) && (chunk.num_values() == 0 || in_file(chunk.data_page_offset()));
    if !all_in_file || (start as u64).saturating_add(packed) > length {
        let claimed = chunk.compressed_size();
        return Err(format!("the file has {length} bytes, but {claimed} are claimed at byte {start}"));
    }
    Ok(())
}

/// Where readers begin: the dictionary comes first.
fn start(chunk: &ColumnChunkMetaData) -> i64 {
    chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset())
}

/// Checks the pages of a chunk whose [range](check_range) is right.
///
/// # Errors
/// I/O errors; the inner result says what is wrong.
pub(super) fn check(file: &File, chunk: &ColumnChunkMetaData) -> io::Result<Result<Expansion, String>> {
    let (mut at, mut pages) = (start(chunk).max(0) as u64, Vec::new());
    let end = at + chunk.compressed_size().max(0) as u64;
    while at < end {
        let (page, header) = match read_page(file, at, end)? {
            Ok(page) => page,
            Err(why) => return Ok(Err(format!("the page header at byte {at} {why}"))),
        };
        at += header;
        if page.packed > end - at {
            return Ok(Err(format!("the page at byte {at} claims {} bytes, past its end", page.packed)));
        }
        if page.plain > FREE_BYTES.max(page.packed * MAX_RATIO) {
            let Page { packed, plain, .. } = page;
            return Ok(Err(format!("the page at byte {at} has {packed} bytes and decompresses to {plain}")));
        }
        // A value in a dictionary takes a bit at least; readers reserve memory for all.
        if page.kind == DICTIONARY && page.values > page.plain.saturating_mul(8) {
            return Ok(Err(format!("the dictionary at byte {at} claims {} values", page.values)));
        }
        at += page.packed;
        pages.push(page);
    }
    let values: u64 = pages.iter().filter(|page| page.kind != DICTIONARY).map(|page| page.values).sum();
    if i64::try_from(values).is_ok_and(|values| values > chunk.num_values()) {
        let claimed = chunk.num_values();
        return Ok(Err(format!("its pages claim {values} values, but the metadata say {claimed}")));
    }
    Ok(check_window(&pages).map(|()| expansion(&pages)))
}

/// Checks how large a batch of rows becomes. (In nested columns a row has several values: then this
/// checks too few rows, but still whole pages.)
fn check_window(pages: &[Page]) -> Result<(), String> {
    let data: Vec<&Page> = pages.iter().filter(|page| page.kind != DICTIONARY).collect();
    let (mut first, mut rows, mut plain, mut packed) = (0, 0u64, 0u64, 0u64);
    for page in &data {
        rows += page.values;
        plain += page.plain;
        packed += page.packed;
        // Pages that a batch which ends in this one cannot reach.
        while rows - data[first].values - page.values.min(rows - data[first].values) >= BATCH_ROWS {
            rows -= data[first].values;
            plain -= data[first].plain;
            packed -= data[first].packed;
            first += 1;
        }
        if plain > MAX_BATCH_BYTES.max(packed * MAX_RATIO) {
            return Err(format!("{rows} rows have {packed} bytes and decompress to {plain}"));
        }
    }
    Ok(())
}

fn expansion(pages: &[Page]) -> Expansion {
    let mut expansion = Expansion::default();
    for page in pages.iter().filter(|page| page.kind != DICTIONARY) {
        match page.encoding {
            PLAIN_DICTIONARY | RLE_DICTIONARY => expansion.from_dictionary += page.values,
            DELTA_BYTE_ARRAY => {
                expansion.from_deltas += page.values;
                expansion.delta_page = expansion.delta_page.max(page.plain);
            }
            _ => {}
        }
    }
    expansion
}

/// Reads the header at `at`; returns the page and the header's length.
fn read_page(mut file: &File, at: u64, end: u64) -> io::Result<Result<(Page, u64), &'static str>> {
    let mut window = HEADER.min(end - at);
    loop {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(at))?;
        file.take(window).read_to_end(&mut bytes)?;
        match parse_page(&bytes) {
            Ok((page, length)) => {
                let known = matches!(page.kind, DATA | 1 | DICTIONARY | DATA_V2);
                return Ok(if known { Ok((page, length)) } else { Err("is of no known kind") });
            }
            // Statistics of images may be long.
            Err(ThriftError::Truncated) if window < MAX_HEADER.min(end - at) => {
                window = (window * 8).min(MAX_HEADER).min(end - at)
            }
            Err(_) => return Ok(Err("is damaged")),
        }
    }
}

fn parse_page(bytes: &[u8]) -> Result<(Page, u64), ThriftError> {
    let mut page = Page { kind: -1, ..Page::default() };
    let mut walker = Walker::new(bytes);
    walker.fields(&mut |walker, number| {
        match number {
            1 => page.kind = walker.integer()?,
            2 => page.plain = size(walker)?,
            3 => page.packed = size(walker)?,
            // The headers of data pages, dictionaries and data pages of version 2.
            5 | 7 | 8 => walker.fields(&mut |walker, field| {
                match (number, field) {
                    (_, 1) => page.values = size(walker)?,
                    (5 | 7, 2) | (8, 4) => page.encoding = walker.integer()?,
                    _ => return Ok(false),
                }
                Ok(true)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((page, walker.position() as u64))
}

fn size(walker: &mut Walker<'_>) -> Result<u64, ThriftError> {
    u64::try_from(walker.integer()?).map_err(|_| ThriftError::Malformed)
}
