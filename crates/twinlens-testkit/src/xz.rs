//! Builds xz files whose data are not compressed, with any size of the dictionary in the header.

/// Longest chunk that is not compressed.
const CHUNK: usize = 1 << 16;

fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// Pads to a multiple of four bytes and appends the checksum.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let sum = crc(&bytes);
    [bytes, sum.to_vec()].concat()
}

/// A number in groups of seven bits.
fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A stream of one block. `dictionary` is the code of its size: 16 for 1 MiB, 28 for 64 MiB, 40 for
/// 4 GiB.
pub fn stored(bytes: &[u8], dictionary: u8) -> Vec<u8> {
    let flags = [0, 1];
    let header = sealed(vec![2, 0, 0x21, 1, dictionary, 0, 0, 0]);
    let mut data = Vec::new();
    for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
        data.push(if number == 0 { 1 } else { 2 });
        data.extend(((chunk.len() - 1) as u16).to_be_bytes());
        data.extend(chunk);
    }
    data.push(0);
    let unpadded = header.len() + data.len() + 4;
    data.resize(data.len().next_multiple_of(4), 0);
    let index = sealed([vec![0], varint(1), varint(unpadded), varint(bytes.len())].concat());
    let footer = [((index.len() / 4 - 1) as u32).to_le_bytes().as_slice(), &flags].concat();
    [
        b"\xfd7zXZ\0",
        flags.as_slice(),
        &crc(&flags),
        &header,
        &data,
        &crc(bytes),
        &index,
        &crc(&footer),
        &footer,
        b"YZ",
    ]
    .concat()
}
