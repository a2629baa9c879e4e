//! AVIF files that cost as much as the format allows. Nearly any bytes are the data of an AV1 tile,
//! so that no encoder is needed.

use crate::bombs::{Bomb, Size};

pub const AVIF_BOMBS: &[Bomb] = &[
    ("avif, flat", |size| file(size, &[frame(size.side, COLOUR, Data::Zeros)])),
    ("avif, noise", |size| file(size, &[frame(size.side, COLOUR, Data::Noise(size.length))])),
    ("avif, alpha", |size| {
        let alpha = frame(size.side, ALPHA, Data::Noise(size.length / 2));
        file(size, &[frame(size.side, COLOUR, Data::Zeros), alpha])
    }),
    ("avif, tiles", |size| file(size, &[frame(size.side, Kind { tiles: true, ..COLOUR }, Data::Zeros)])),
    ("avif, many frames", |size| {
        let one = frame(size.side, COLOUR, Data::Zeros);
        file(size, &[one.repeat(size.length / one.len() + 1)])
    }),
    ("avif, empty units", |size| {
        let empty = [0x7a, 0].repeat(size.length / 2);
        with_properties(16, &[[frame(16, COLOUR, Data::Zeros), empty].concat()], &[])
    }),
    ("avif, empty boxes", |size| full_of(size, b"\0\0\0\x08free")),
    ("avif, properties", |size| {
        let properties = b"\0\0\0\x08what".repeat(size.length / 8);
        with_properties(16, &[frame(16, COLOUR, Data::Zeros)], &properties)
    }),
];

/// What a stream is of.
#[derive(Clone, Copy)]
struct Kind {
    grey: bool,
    /// As many tiles as may be.
    tiles: bool,
}

/// Twelve bits in three planes of full size, and film grain.
const COLOUR: Kind = Kind { grey: false, tiles: false };
const ALPHA: Kind = Kind { grey: true, tiles: false };

#[derive(Clone, Copy)]
enum Data {
    Zeros,
    /// Of a length in bytes.
    Noise(usize),
}

impl Data {
    /// Those of each tile of a frame.
    fn bytes(self, side: u32, tiles: usize) -> Vec<u8> {
        match self {
            // A decoder refuses a tile that ends before its blocks.
            Self::Zeros => vec![0; (side * side) as usize / 64 / tiles + 16],
            Self::Noise(length) => {
                let mut state = 1_u32;
                let mut next = || {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                };
                (0..(length / tiles).max(16)).map(|_| next()).collect()
            }
        }
    }
}

fn atom(kind: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [(8 + body.len() as u32).to_be_bytes().as_slice(), kind, &body].concat()
}

fn file(size: Size, streams: &[Vec<u8>]) -> Vec<u8> {
    with_properties(size.side, streams, &[])
}

/// Boxes before the one that counts.
fn full_of(size: Size, part: &[u8]) -> Vec<u8> {
    let whole = file(Size { side: 16, ..size }, &[frame(16, COLOUR, Data::Zeros)]);
    let filling = part.repeat(size.length / part.len());
    // Places are counted from the start of a box that moves with them.
    [&whole[..28], &filling, &whole[28..]].concat()
}

/// A colour stream and perhaps one of alpha. Their bytes lie within the box that describes them.
fn with_properties(side: u32, streams: &[Vec<u8>], more: &[u8]) -> Vec<u8> {
    let size = atom(b"ispe", &[&[0; 4], &side.to_be_bytes(), &side.to_be_bytes()]);
    let colour = atom(b"av1C", &[&[0x81, 0x40, 0x60, 0]]);
    let alpha = atom(b"av1C", &[&[0x81, 0x40, 0x7c, 0]]);
    let kind = atom(b"auxC", &[&[0; 4], b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"]);
    let (mut places, mut entries, mut start) = (Vec::new(), Vec::new(), 0_u32);
    for (index, stream) in streams.iter().enumerate() {
        let id = [0, index as u8 + 1];
        let length = stream.len() as u32;
        places.extend([&id[..], &[0, 1, 0, 0, 0, 1], &start.to_be_bytes(), &length.to_be_bytes()].concat());
        entries.extend(atom(b"infe", &[&[2, 0, 0, 0], &id, &[0, 0], b"av01\0"]));
        start += length;
    }
    let count = streams.len() as u8;
    let associations: &[u8] = &[0, 1, 2, 1, 2, 0, 2, 3, 1, 3, 4];
    let associations = &associations[..if count == 1 { 5 } else { 11 }];
    let reference = atom(b"auxl", &[&[0, 2, 0, 1, 0, 1]]);
    let meta = atom(
        b"meta",
        &[
            &[0; 4],
            &atom(b"pitm", &[&[0, 0, 0, 0, 0, 1]]),
            &atom(b"iloc", &[&[1, 0, 0, 0, 0x44, 0, 0, count], &places]),
            &atom(b"iinf", &[&[0, 0, 0, 0, 0, count], &entries]),
            &atom(b"iref", &[&[0; 4], if count > 1 { &reference } else { &[] }]),
            &atom(
                b"iprp",
                &[
                    &atom(b"ipco", &[&size, &colour, &alpha, &kind, more]),
                    &atom(b"ipma", &[&[0, 0, 0, 0, 0, 0, 0, count], associations]),
                ],
            ),
            &atom(b"idat", &[&streams.concat()]),
        ],
    );
    [atom(b"ftyp", &[b"avif\0\0\0\0avifmif1miaf"]).as_slice(), &meta].concat()
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: usize,
}

impl Bits {
    fn put(&mut self, width: u32, value: u32) {
        for bit in (0..width).rev() {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.len() - 1;
            self.bytes[last] |= ((value >> bit & 1) as u8) << (7 - self.count % 8);
            self.count += 1;
        }
    }

    fn put_all(&mut self, fields: &[(u32, u32)]) {
        fields.iter().for_each(|(width, value)| self.put(*width, *value));
    }
}

/// An open bitstream unit with its length.
fn unit(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut head = vec![kind << 3 | 2];
    let mut length = body.len();
    while length > 127 {
        head.push(length as u8 | 128);
        length >>= 7;
    }
    head.push(length as u8);
    [head.as_slice(), body].concat()
}

/// A stream of one square frame of twelve bits: the headers of sections 5.5 and 5.9 of the AV1
/// specification.
fn frame(side: u32, kind: Kind, data: Data) -> Vec<u8> {
    let mut sequence = Bits::default();
    sequence.put_all(&[(3, 2), (1, 1), (1, 1), (5, 31), (4, 15), (4, 15), (16, side - 1), (16, side - 1)]);
    // All filters; twelve bits; no description of colours, full range.
    sequence.put_all(&[(1, 0), (2, 3), (3, 3), (2, 3), (1, u32::from(kind.grey)), (1, 0), (1, 1)]);
    if !kind.grey {
        // Not subsampled.
        sequence.put_all(&[(1, 0), (1, 0)]);
    }
    sequence.put_all(&[(1, 1), (1, 1)]);

    let mut header = Bits::default();
    // No tools for screens, the size of the sequence.
    header.put_all(&[(1, 0), (1, 0), (1, 0)]);
    let (columns, rows) = tiles(&mut header, side, kind.tiles);
    header.put_all(&[(8, 100), (1, 0)]);
    if !kind.grey {
        header.put_all(&[(2, 0)]);
    }
    // No matrices, segments, other quantisers.
    header.put_all(&[(3, 0), (6, 32), (6, 32)]);
    if !kind.grey {
        header.put_all(&[(6, 32), (6, 32)]);
    }
    header.put_all(&[(3, 0), (1, 0)]);
    // One strength of the directional filter.
    header.put_all(&[(2, 3), (2, 0), (4, 15), (2, 3)]);
    if !kind.grey {
        header.put_all(&[(4, 15), (2, 3)]);
    }
    // Restoration of any kind.
    header.put(2, 1);
    if !kind.grey {
        header.put_all(&[(2, 1), (2, 1)]);
    }
    header.put_all(&[(1, 0), (1, 1), (1, 0)]);
    grain(&mut header, kind.grey);

    let mut body = header.bytes;
    let count = columns * rows;
    if count > 1 {
        // Whether some of the tiles follow: a bit in a byte of its own, or the last of the header.
        if header.count % 8 == 0 {
            body.push(0);
        }
    }
    for tile in 0..count {
        let bytes = data.bytes(side, count);
        if tile + 1 < count {
            body.extend((bytes.len() as u32 - 1).to_le_bytes());
        }
        body.extend(bytes);
    }
    [unit(1, &sequence.bytes), unit(6, &body)].concat()
}

/// Writes the fewest or the most tiles, and gives their columns and rows.
fn tiles(header: &mut Bits, side: u32, most: bool) -> (usize, usize) {
    let blocks = side.div_ceil(64);
    let log2 = |unit: u32, target: u32| (0..).find(|log2| unit << log2 >= target).unwrap_or(0);
    let (least_columns, most_columns) = (log2(64, blocks), log2(1, blocks.min(64)));
    let least = least_columns.max(log2(2304, blocks * blocks));
    header.put(1, 1);
    let mut choose = |from: u32, to: u32| {
        let chosen = if most { to } else { from };
        (from..chosen).for_each(|_| header.put(1, 1));
        if chosen < to {
            header.put(1, 0);
        }
        chosen
    };
    let columns = choose(least_columns, most_columns);
    let rows = choose(least.saturating_sub(columns), log2(1, blocks.min(64)));
    if columns + rows > 0 {
        header.put(columns + rows, 0);
        // Lengths of four bytes.
        header.put(2, 3);
    }
    let count = |log2: u32| blocks.div_ceil((blocks + (1 << log2) - 1) >> log2) as usize;
    (count(columns), count(rows))
}

fn grain(header: &mut Bits, grey: bool) {
    header.put_all(&[(1, 1), (16, 1234), (4, 1), (8, 128), (8, 96)]);
    if !grey {
        header.put_all(&[(1, 0), (4, 1), (8, 128), (8, 96), (4, 1), (8, 128), (8, 96)]);
    }
    header.put_all(&[(2, 2), (2, 3)]);
    (0..24 + if grey { 0 } else { 50 }).for_each(|_| header.put(8, 129));
    header.put_all(&[(2, 1), (2, 0)]);
    if !grey {
        header.put_all(&[(8, 128), (8, 192), (9, 256), (8, 128), (8, 192), (9, 256)]);
    }
    header.put_all(&[(1, 1), (1, 0)]);
}
