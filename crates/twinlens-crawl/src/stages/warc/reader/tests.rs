use std::cell::Cell;
use std::io::{Cursor, SeekFrom, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use twinlens_testkit::fuzz::Fuzz;

use super::*;
use crate::html::{TextSource, TextSourceSet};
use crate::stages::warc::page::{self, ReadOptions};
use crate::stages::warc::wat;

fn record(number: usize, block: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/{number}\r\nContent-Length: {}\r\n\r\n",
        block.len()
    )
    .into_bytes();
    bytes.extend_from_slice(block);
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes
}

fn member(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One zstd frame, with a checksum.
fn frame(bytes: &[u8], dictionary: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::with_dictionary(Vec::new(), 3, dictionary).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read_with(bytes: &[u8], name: &str, buffer: usize, max_block: u64) -> Vec<Item> {
    let input = Input::new(Cursor::new(bytes), buffer).unwrap();
    let selection = Selection { max_block, is_wanted: |header| header.kind != "request" };
    let mut records = Records::new(input, name, selection).unwrap();
    std::iter::from_fn(|| records.next().unwrap()).collect()
}

/// A file that counts the bytes that are read.
#[derive(Debug)]
struct CountingFile<'a> {
    file: Cursor<&'a [u8]>,
    bytes: &'a Cell<u64>,
}

impl Read for CountingFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

impl Seek for CountingFile<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// The bytes that are looked at to read an archive, and the number of items.
fn work(archive: &[u8]) -> (u64, usize) {
    let bytes = Cell::new(0);
    let input = Input::new(CountingFile { file: Cursor::new(archive), bytes: &bytes }, 64 << 10).unwrap();
    let selection = Selection { max_block: 16 << 20, is_wanted: |header| header.kind == "response" };
    let mut records = Records::new(input, "a", selection).unwrap();
    let items = std::iter::from_fn(|| records.next().unwrap()).count();
    (bytes.get(), items)
}

/// Targets of records, and codes and offsets of damaged ones.
fn read(bytes: &[u8]) -> Vec<String> {
    let describe = |item: &Item| match item {
        Item::Record(record) => record.header.target().to_string(),
        Item::Damaged(DamagedRecord { code, place, .. }) => match place.within {
            None => format!("{code} at {}", place.offset),
            Some(within) => format!("{code} at {}+{within}", place.offset),
        },
    };
    read_with(bytes, "a.warc", 64, 1000).iter().map(describe).collect()
}

/// Archives, and the pages and links in them.
#[test]
fn any_mutant_is_read() {
    let cases = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cases/warc");
    let files = std::fs::read_dir(cases).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let arc = b"filedesc://a.arc 0.0.0.0 20010101000000 text/plain 9\n1 0 x\n\nhttp://a/ 1.1.1.1 20010101000000 text/html 64\n\
        HTTP/1.0 200 OK\nContent-Type: text/html\n\n<img src=a.png alt=text>     \n\n";
    let links = br#"{"Envelope":{"Payload-Metadata":{"HTTP-Response-Metadata":{"Response-Message":{"Status":"200"},"Headers":{},
        "HTML-Metadata":{"Head":{"Metas":[]},"Links":[{"path":"IMG@/src","url":"/a.png","alt":"words"}]}}}}}"#;
    let wat = String::from_utf8(record(5, links)).unwrap().replace("response", "metadata").into_bytes();
    let records =
        [record(0, b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nx"), record(1, b"two")].concat();
    let packed = [member(&records), frame(&records, &[]), arc.to_vec(), wat, records];
    let words: [&[u8]; 8] = [
        b"WARC/1.0\r\n",
        b"\r\n\r\n",
        b"Content-Length: ",
        b"WARC-Type: response\r\n",
        b"\x1f\x8b\x08",
        b"\x28\xb5\x2f\xfd",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Encoding: br\r\n",
    ];
    let captions = TextSourceSet::new(&[TextSource::Alt, TextSource::Title, TextSource::JsonLd]);
    let options = ReadOptions { captions, opt_outs: true, product: "twinlens".into(), max_bytes: 1 << 20 };
    Fuzz::new("warc", files.chain(packed)).words(&words).run(|bytes| {
        let mut outcomes = std::collections::BTreeSet::new();
        for item in read_with(bytes, "a.warc", 256, 1 << 20) {
            outcomes.insert(match item {
                Item::Damaged(damaged) => format!("{} {}", damaged.code, damaged.detail),
                Item::Record(record) => {
                    let links = wat::read(record.header.target(), &record.block, &options);
                    let page = page::read(&record, &options);
                    format!(
                        "{:?} {:?}",
                        links.map(|page| page.pairs.len().min(2)),
                        page.map(|page| page.pairs.len().min(2))
                    )
                }
            });
        }
        format!("{outcomes:?}")
    });
}

#[test]
fn records_are_read_plain_and_compressed() {
    let records: Vec<Vec<u8>> = (0..3).map(|n| record(n, format!("block {n}").as_bytes())).collect();
    let expected = ["http://a/0", "http://a/1", "http://a/2"];
    let single: Vec<u8> = records.iter().flat_map(|record| member(record)).collect();
    let frames: Vec<u8> = records.iter().flat_map(|record| frame(record, &[])).collect();
    for bytes in [records.concat(), member(&records.concat()), single, frame(&records.concat(), &[]), frames]
    {
        assert_eq!(read(&bytes), expected);
    }
    assert_eq!(read(b""), [] as [&str; 0]);
}

#[test]
fn unwanted_and_too_long_records_are_skipped() {
    let request = String::from_utf8(record(9, b"request")).unwrap().replace("response", "request");
    for pack in [|bytes: &[u8]| bytes.to_vec(), member] {
        let parts =
            [record(0, b"x"), request.clone().into_bytes(), record(1, &[b'y'; 2000]), record(2, b"z")];
        let packed: Vec<Vec<u8>> = parts.iter().map(|part| pack(part)).collect();
        let place = packed[0].len() + packed[1].len();
        assert_eq!(
            read(&packed.concat()),
            ["http://a/0", &format!("record_too_long at {place}"), "http://a/2"]
        );
    }
}

#[test]
fn damage_only_loses_its_record() {
    let parts = [record(0, b"one"), record(1, b"two"), record(2, b"three")];
    let plain = parts.concat();
    let start = parts[0].len();
    let damaged = |from: &str, to: &str| {
        let text = String::from_utf8(parts[1].clone()).unwrap().replacen(from, to, 1);
        [parts[0].clone(), text.into_bytes(), parts[2].clone()].concat()
    };
    let cases = [
        ("no beginning", damaged("WARC/1.0", "XARC/1.0"), "bad_record"),
        ("no length", damaged("Content-Length", "Content-Lxngth"), "bad_record"),
        ("too long a length", damaged(": 3\r\n", ": 9\r\n"), "bad_record"),
        ("beyond the file", damaged(": 3\r\n", ": 999\r\n"), "truncated"),
        ("too short a length", damaged(": 3\r\n", ": 1\r\n"), "bad_record"),
        ("a long one", damaged(": 3\r\n", ": 99999999999999\r\n"), "record_too_long"),
    ];
    for (name, bytes, code) in cases {
        assert_eq!(read(&bytes), ["http://a/0", &format!("{code} at {start}"), "http://a/2"], "{name}");
    }
    assert_eq!(read(&plain[..plain.len() - 8])[2], format!("truncated at {}", start + parts[1].len()));

    let members: Vec<Vec<u8>> = parts.iter().map(|part| member(part)).collect();
    let start = members[0].len();
    for at in 0..members[1].len() {
        // The time, system and extra flags in a member's header have no effect.
        if (4..10).contains(&at) {
            continue;
        }
        let mut bytes = members.concat();
        bytes[start + at] ^= 0x55;
        let items = read(&bytes);
        assert_eq!(
            (items[0].as_str(), items[2].as_str()),
            ("http://a/0", "http://a/2"),
            "byte {at}: {items:?}"
        );
        assert!(items[1].ends_with(&format!(" at {start}")), "byte {at}: {items:?}");
    }
    let cut = members.concat();
    assert_eq!(read(&cut[..cut.len() - 3])[2], format!("truncated at {}", start + members[1].len()));
    let trailing = [members.concat(), b"\0\0\0 trailing".to_vec()].concat();
    assert_eq!(read(&trailing)[3], format!("damaged_gzip at {}", cut.len()));
}

#[test]
fn the_name_decides_if_the_first_bytes_are_damaged() {
    let mut bytes = [member(&record(0, b"x")), member(&record(1, b"y"))].concat();
    bytes[0] = 0;
    let items = read_with(&bytes, "a.warc.gz", 16, 100);
    assert!(matches!(&items[..], [Item::Damaged(_), Item::Record(_)]), "{items:?}");
}

#[test]
fn damage_within_one_large_member_only_loses_its_record() {
    let parts = [record(0, b"one"), record(1, b"two"), record(2, b"three")];
    let start = parts[0].len();
    let damaged = |from: &str, to: &str| {
        let text = String::from_utf8(parts[1].clone()).unwrap().replacen(from, to, 1);
        [parts[0].clone(), text.into_bytes(), parts[2].clone()].concat()
    };
    let cases = [
        (damaged("WARC/1.0", "XARC/1.0"), "bad_record"),
        (damaged("Content-Length", "Content-Lxngth"), "bad_record"),
        (damaged(": 3\r\n", ": 9\r\n"), "bad_record"),
        (damaged(": 3\r\n", ": 1\r\n"), "bad_record"),
        (damaged(": 3\r\n", ": 999\r\n"), "truncated"),
        (damaged(": 3\r\n", ": 99999999999999\r\n"), "record_too_long"),
    ];
    for (bytes, code) in cases {
        for packed in [member(&bytes), frame(&bytes, &[])] {
            let expected = ["http://a/0", &format!("{code} at 0+{start}"), "http://a/2"];
            assert_eq!(read(&packed), expected, "{}", String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn a_frame_may_hold_the_dictionary_of_the_others() {
    let records: Vec<Vec<u8>> = (0..3).map(|n| record(n, "the same words ".repeat(20).as_bytes())).collect();
    let dictionary = records.concat();
    let skippable = |content: &[u8]| {
        [&[0x5d, 0x2a, 0x4d, 0x18][..], &(content.len() as u32).to_le_bytes(), content].concat()
    };
    let frames: Vec<u8> = records.iter().flat_map(|record| frame(record, &dictionary)).collect();
    for head in [skippable(&dictionary), skippable(&frame(&dictionary, &[]))] {
        let archive = [head, frames.clone()].concat();
        assert_eq!(read(&archive), ["http://a/0", "http://a/1", "http://a/2"]);
    }
    assert!(read(&frames).iter().all(|item| item.starts_with("damaged_zstd")));
}

#[test]
fn arc_files_are_read() {
    let record = |url: &str, more: &str, block: &str| {
        format!("{url} 1.2.3.4 20070101120000 text/html {more}{}\n{block}\n", block.len())
    };
    let head = record(
        "filedesc://a.arc",
        "",
        "1 0 Archive\nURL IP-address Archive-date Content-type Archive-length\n",
    );
    let parts = [
        head,
        record("dns:a", "", "20070101120000\na. IN A 1.2.3.4"),
        record("http://a/0", "", "HTTP/1.1 200 OK\r\n\r\n<p>\nhttp://a/x 1\n"),
        record("http://a/with space", "", "one"),
        record("https://a/2", "200 - - 5 a.arc ", "two"),
    ];
    let expected = ["http://a/0", "http://a/with space", "https://a/2"];
    let wanted = |items: Vec<String>| -> Vec<String> {
        items.into_iter().filter(|item| !item.starts_with("filedesc") && !item.starts_with("dns")).collect()
    };
    let members: Vec<u8> = parts.iter().flat_map(|part| member(part.as_bytes())).collect();
    for archive in [parts.concat().into_bytes(), members, member(parts.concat().as_bytes())] {
        assert_eq!(wanted(read(&archive)), expected);
    }
    let start = parts[..3].concat().len();
    let damaged = parts.concat().replacen("text/html 3\none", "text/html 2\none", 1);
    let expected = ["http://a/0", &format!("bad_record at {start}"), "https://a/2"];
    assert_eq!(wanted(read(damaged.as_bytes())), expected);
}

/// Records of which each says that it ends just before the end of the file.
fn nested_plain(count: usize, kind: &str) -> Vec<u8> {
    let record = |length: usize| {
        format!("WARC/1.0\r\nWARC-Type: {kind}\r\nContent-Length: {length:09}\r\n\r\nxxxxxxxxxx\r\n\r\n")
    };
    let size = record(0).len();
    (0..count)
        .flat_map(|number| record(((count - number - 1) * size).saturating_sub(20)).into_bytes())
        .collect()
}

/// Beginnings of headers that never end.
fn nested_headers(count: usize, _: &str) -> Vec<u8> {
    "WARC/1.0\r\nx: y\r\n".repeat(count).into_bytes()
}

/// Members of which each holds the beginnings of all that follow, in stored blocks that they share.
fn nested_members(count: usize, kind: &str) -> Vec<u8> {
    let text = format!("WARC/1.0\r\nWARC-Type: {kind}\r\nContent-Length: 900000000\r\n\r\n");
    let stored = |bytes: &[u8]| {
        let length = bytes.len() as u16;
        [&[0][..], &length.to_le_bytes(), &(!length).to_le_bytes(), bytes].concat()
    };
    let begin = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &stored(text.as_bytes())].concat();
    // The next member is the content of a stored block of the one before.
    let next = begin.len() as u16;
    let link = [&[0][..], &next.to_le_bytes(), &(!next).to_le_bytes()].concat();
    [begin, link].concat().repeat(count)
}

#[test]
fn the_work_is_linear_however_records_are_nested() {
    type Nested = fn(usize, &str) -> Vec<u8>;
    let shapes: [(&str, Nested); 3] =
        [("records", nested_plain), ("headers", nested_headers), ("members", nested_members)];
    for (name, make) in shapes {
        for kind in ["response", "metadata"] {
            let [small, large] = [20_000, 40_000].map(|count| {
                let archive = make(count, kind);
                let (bytes, items) = work(&archive);
                assert!(items > 0, "{name} {kind}");
                assert!(bytes < (80 << 20) + 12 * archive.len() as u64, "{name} {kind}: {bytes} bytes");
                bytes
            });
            assert!(large < 3 * small, "{name} {kind}: {small} bytes, then {large}");
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), buffer in 1usize..80, kind in 0usize..9) {
        let name = ["a.warc", "a.warc.gz", "a.warc.zst"][kind % 3];
        read_with(&bytes, name, buffer, 100);
        let mut begun = if kind < 3 { vec![0x1f, 0x8b, 8] } else if kind < 6 { vec![0x28, 0xb5, 0x2f, 0xfd] } else { b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 20\r\n\r\n".to_vec() };
        begun.extend_from_slice(&bytes);
        read_with(&begun, name, buffer, 100);
        read_with(&member(&begun), name, buffer, 100);
        read_with(&frame(&begun, &[]), name, buffer, 100);
    }

    #[test]
    fn damage_in_one_member_loses_one_record(
        blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 2..6),
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        buffer in 8usize..100,
        zstd: bool,
    ) {
        let pack = |record: &[u8]| if zstd { frame(record, &[]) } else { member(record) };
        let mut members: Vec<Vec<u8>> = blocks.iter().enumerate().map(|(n, block)| pack(&record(n, block))).collect();
        let which = which.index(members.len());
        let length = members[which].len();
        for (at, byte) in damage {
            members[which][at.index(length)] = byte;
        }
        let name = if zstd { "a.warc.zst" } else { "a.warc.gz" };
        let items = read_with(&members.concat(), name, buffer, 1000);
        let kept: Vec<(String, &[u8])> = items.iter().filter_map(|item| match item {
            Item::Record(record) => Some((record.header.target().to_string(), &record.block[..])),
            Item::Damaged(_) => None,
        }).collect();
        for (n, block) in blocks.iter().enumerate() {
            let whole = kept.contains(&(format!("http://a/{n}"), &block[..]));
            prop_assert!(whole || n == which, "record {n} is lost: {items:?}");
        }
        // The damaged one is reported, or nothing was damaged.
        prop_assert!(kept.len() == blocks.len() || items.len() > kept.len());
    }
}
