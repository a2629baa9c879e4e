//! Laws of reading delimited text: nothing is lost, and what Python reads is read equally.

use std::io::Read;

use proptest::prelude::*;
use twinlens_testkit::fuzz::Fuzz;

use super::delimited::Dialect;
use super::json;
use super::records::{Item, Layout, Position, Records};

const CSV: Dialect = Dialect { delimiter: b',', quote: Some(b'"'), escape: None };
const TSV: Dialect = Dialect { delimiter: b'\t', quote: None, escape: None };

/// What came of a piece of a file: fields, or the code of a refusal.
type Found = Result<Vec<String>, &'static str>;

/// Reads a few bytes at a time.
struct Trickle<'a>(&'a [u8], usize);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.1.min(buffer.len()).min(self.0.len());
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

/// The items of a text from a position on: each with its lines, and where the next one begins.
fn read(text: &str, layout: Layout, from: Position) -> Vec<(u64, Found, Position)> {
    let mut records = Records::new(Trickle(&text.as_bytes()[from.0 as usize..], 7), layout, from);
    let mut all = Vec::new();
    while let Some((line, item)) = records.next().unwrap() {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found = match item {
            Item::Fields(record) => Ok((0..record.len()).map(|field| text(record.field(field))).collect()),
            Item::Text(bytes) => Ok(vec![text(bytes)]),
            Item::Refused { refusal: (code, _), .. } => Err(code),
        };
        all.push((line, found, records.position()));
    }
    all
}

/// Delimited text and JSON, from any bytes.
#[test]
fn any_mutant_is_read() {
    let cases = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases/tables");
    let files = std::fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path());
    let texts = files.filter(|path| path.extension().is_some_and(|end| end != "parquet"));
    let seeds: Vec<Vec<u8>> = texts.map(|path| std::fs::read(path).unwrap()).collect();
    let words: [&[u8]; 9] =
        [b"\"", b"\"\"", b"\r\n", b",", b"\t", b"[{\"url\":", b"\\ud800", b"{\"a\":1e999}", b"\xef\xbb\xbf"];
    Fuzz::new("tables", seeds).words(&words).run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let csv = Layout::Delimited { dialect: CSV, columns: Some(2) };
        let tsv = Layout::Delimited { dialect: TSV, columns: None };
        let mut outcomes = std::collections::BTreeSet::new();
        for layout in [csv, tsv, Layout::Lines, Layout::Array] {
            for (_, found, _) in read(&text, layout, (0, 1)) {
                outcomes.insert(match found {
                    Ok(fields) if fields.len() == 1 => match json::parse(fields[0].as_bytes()) {
                        Ok(object) => format!("object {}", object.len().min(3)),
                        Err((code, why)) => format!("{code} {why}"),
                    },
                    Ok(fields) => format!("fields {}", fields.len().min(4)),
                    Err(code) => code.to_string(),
                });
            }
        }
        format!("{outcomes:?}")
    });
}

/// Python's `csv` module, state by state (Modules/_csv.c); empty lines are left out.
fn python(text: &str, Dialect { delimiter, quote, escape }: Dialect) -> Vec<Vec<String>> {
    #[derive(PartialEq)]
    enum State {
        StartRecord,
        StartField,
        InField,
        Escaped,
        Quoted,
        EscapedInQuotes,
        QuoteInQuotes,
    }
    use State::*;
    let (mut state, mut rows, mut row, mut field) = (StartRecord, Vec::new(), Vec::new(), String::new());
    let is = |c: char, byte: u8| c == char::from(byte);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let is_end = c == '\n' || c == '\r' && quote.is_some();
        let is_quote = quote.is_some_and(|quote| is(c, quote));
        let is_escape = escape.is_some_and(|escape| is(c, escape));
        if state == StartRecord && is_end {
            continue;
        }
        state = match state {
            StartRecord | StartField if is_quote => Quoted,
            StartRecord | StartField | InField if is_escape => Escaped,
            StartRecord | StartField | InField | QuoteInQuotes if is_end => {
                if c == '\r' && chars.peek() == Some(&'\n') {
                    chars.next();
                }
                row.push(std::mem::take(&mut field));
                rows.push(std::mem::take(&mut row));
                StartRecord
            }
            StartRecord | StartField | InField | QuoteInQuotes if is(c, delimiter) => {
                row.push(std::mem::take(&mut field));
                StartField
            }
            Quoted if is_escape => EscapedInQuotes,
            Quoted if is_quote => QuoteInQuotes,
            other => {
                field.push(c);
                match other {
                    Quoted | EscapedInQuotes => Quoted,
                    QuoteInQuotes if is_quote => Quoted,
                    _ => InField,
                }
            }
        };
    }
    if state != StartRecord {
        if state == Escaped {
            field.push('\\');
        }
        row.push(field);
        rows.push(row);
    }
    rows
}

/// Texts that are hard to read.
fn texts(delimiter: &str) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => Just("a".to_string()),
        2 => Just(delimiter.to_string()),
        2 => Just("\"".to_string()),
        2 => Just("\n".to_string()),
        1 => Just("\r\n".to_string()),
        1 => Just("\\".to_string()),
        1 => Just("é".to_string()),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// Checks that each line is a part of one item, or empty.
fn check_lines(text: &str, items: &[(u64, Found, Position)]) {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut next = 1;
    for (line, _, (_, after)) in items {
        assert!((next..*line).all(|n| lines[n as usize - 1].trim().is_empty()), "{text:?} {items:?}");
        next = *after;
    }
    let rest = lines.get(next as usize - 1..).unwrap_or_default();
    assert!(rest.iter().all(|line| line.trim().is_empty()), "{text:?} {items:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_python_reads_is_read_equally(text in texts(","), escape in any::<bool>()) {
        let dialect = Dialect { escape: escape.then_some(b'\\'), ..CSV };
        let items = read(&text, Layout::Delimited { dialect, columns: None }, (0, 1));
        check_lines(&text, &items);
        let rows: Result<Vec<Vec<String>>, _> = items.into_iter().map(|(_, found, _)| found).collect();
        // A field that never closes is refused here.
        if let Ok(rows) = rows {
            prop_assert_eq!(rows, python(&text, dialect));
        }
    }

    #[test]
    fn every_line_is_a_row_or_a_reject(text in texts(","), columns in 1_usize..4) {
        let layout = Layout::Delimited { dialect: CSV, columns: Some(columns) };
        let items = read(&text, layout, (0, 1));
        check_lines(&text, &items);
        for (_, found, _) in &items {
            prop_assert!(found.as_ref().map_or(true, |fields| fields.len() == columns));
        }
        // Reading can begin behind any item.
        for (index, (_, _, after)) in items.iter().enumerate() {
            prop_assert_eq!(&read(&text, layout, *after), &items[index + 1..]);
        }
    }

    #[test]
    fn without_quotes_lines_are_records(text in texts("\t")) {
        let items = read(&text, Layout::Delimited { dialect: TSV, columns: Some(2) }, (0, 1));
        let lines = text.lines().filter(|line| !line.is_empty());
        let expected: Vec<Found> = lines.map(|line| {
            let fields: Vec<String> = line.split('\t').map(String::from).collect();
            if fields.len() == 2 { Ok(fields) } else { Err("malformed_row") }
        }).collect();
        let found: Vec<Found> = items.into_iter().map(|(_, found, _)| found).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn what_is_written_is_read(rows in prop::collection::vec(prop::collection::vec("[a,\"\n\r é]{0,9}", 2..=2), 0..9)) {
        let field = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
        let line = |row: &Vec<String>| row.iter().map(field).collect::<Vec<_>>().join(",");
        let text: String = rows.iter().map(|row| line(row) + "\r\n").collect();
        let items = read(&text, Layout::Delimited { dialect: CSV, columns: Some(2) }, (0, 1));
        let found: Vec<Found> = items.into_iter().map(|(_, found, _)| found).collect();
        prop_assert_eq!(found, rows.into_iter().map(Ok).collect::<Vec<_>>());
    }
}

#[test]
fn reading_resumes_after_a_record_that_does_not_fit() {
    let layout = Layout::Delimited { dialect: CSV, columns: Some(2) };
    let codes = |text: &str| -> Vec<(u64, String)> {
        let of = |found: Found| found.map_or_else(String::from, |fields| fields.join("|"));
        read(text, layout, (0, 1)).into_iter().map(|(line, found, _)| (line, of(found))).collect()
    };
    let row = |line: u64, text: &str| (line, text.to_string());
    // The quote never closes: its line is lost, no other.
    let text = "u1,\"a\nu2,b\nu3,c\n";
    assert_eq!(codes(text), [row(1, "unclosed_quote"), row(2, "u2|b"), row(3, "u3|c")]);
    // It closes in a later line, by mistake.
    let text = "u1,\"a\nu2,b\nu3,said \"hi\" x,y\nu4,d\n";
    assert_eq!(
        codes(text),
        [row(1, "malformed_row"), row(2, "u2|b"), row(3, "malformed_row"), row(4, "u4|d")]
    );
    // A record of three lines that is one field too long: its lines are not rows.
    let text = "u1,\"a\nx,y\nb\",c\nu2,d\n";
    assert_eq!(codes(text), [row(1, "malformed_row"), row(4, "u2|d")]);
    // 3 MiB in quotes.
    let long = "long ".repeat(600_000);
    let text = format!("u1,\"a\nu2,{long}\nu3,c\n");
    assert_eq!(codes(&text), [row(1, "unclosed_quote"), row(2, "row_too_long"), row(3, "u3|c")]);
    let text = format!("u1,\"{long}\"\nu3,c\n");
    assert_eq!(codes(&text), [row(1, "row_too_long"), row(2, "u3|c")]);
    // Quotes that open in each line take linear time.
    let text = "a\",b,\"c\n".repeat(200_000);
    let started = std::time::Instant::now();
    read(&text, layout, (0, 1));
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}
