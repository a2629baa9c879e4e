use std::io::{Cursor, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

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

fn read_with(bytes: &[u8], named_gz: bool, buffer: usize, max: u64) -> Vec<Item> {
    let input = BufReader::with_capacity(buffer, Cursor::new(bytes));
    let mut records = Records::new(input, named_gz, max, |header| header.kind != "request").unwrap();
    std::iter::from_fn(|| records.next().unwrap()).collect()
}

/// Targets of records, and codes and offsets of damaged ones.
fn read(bytes: &[u8]) -> Vec<String> {
    let describe = |item: &Item| match item {
        Item::Record(record) => record.header.target().to_string(),
        Item::Damaged(damage) => format!("{} at {}", damage.code, damage.offset),
    };
    read_with(bytes, false, 64, 1000).iter().map(describe).collect()
}

#[test]
fn records_are_read_plain_and_compressed() {
    let records: Vec<Vec<u8>> = (0..3).map(|n| record(n, format!("block {n}").as_bytes())).collect();
    let expected = ["http://a/0", "http://a/1", "http://a/2"];
    let single: Vec<u8> = records.iter().flat_map(|record| member(record)).collect();
    for bytes in [records.concat(), member(&records.concat()), single] {
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
    let items = read_with(&bytes, true, 16, 100);
    assert!(matches!(&items[..], [Item::Damaged(_), Item::Record(_)]), "{items:?}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), buffer in 1usize..80, gz: bool) {
        read_with(&bytes, gz, buffer, 100);
        let mut begun = if gz { GZIP.to_vec() } else { b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 20\r\n\r\n".to_vec() };
        begun.extend_from_slice(&bytes);
        read_with(&begun, gz, buffer, 100);
        read_with(&member(&begun), gz, buffer, 100);
    }

    #[test]
    fn damage_in_one_member_loses_one_record(
        blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 2..6),
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        buffer in 8usize..100,
    ) {
        let mut members: Vec<Vec<u8>> = blocks.iter().enumerate().map(|(n, block)| member(&record(n, block))).collect();
        let which = which.index(members.len());
        let length = members[which].len();
        for (at, byte) in damage {
            members[which][at.index(length)] = byte;
        }
        let items = read_with(&members.concat(), true, buffer, 1000);
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
