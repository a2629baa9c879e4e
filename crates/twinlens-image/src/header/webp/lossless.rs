//! How many groups of codes a lossless WebP image has (RFC 9649, section 3).
//!
//! The image that chooses among them comes after those of the transformations, so all of these are
//! decoded: together less than a fifth of the pixels. Tables for the codes cost time and memory,
//! whether or not a pixel uses them.

use std::iter::repeat_n;

/// Symbols of the five codes of a group, without those of a colour cache: green and lengths, red,
/// blue, alpha, distances.
const SYMBOLS: [usize; 5] = [256 + 24, 256, 256, 256, 40];
const LONGEST_CODE: usize = 15;
/// The order of the lengths of the code of code lengths.
const LENGTHS: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// The groups of codes of an image whose size is known. `None` if the data are damaged before.
pub(super) fn code_groups(data: &[u8], width: u32, height: u32) -> Option<u64> {
    let mut reader = Reader { data, at: 0 };
    let width = reader.transformed_width(width, height)?;
    reader.cache_bits()?;
    if reader.bits(1)? == 0 {
        return Some(1);
    }
    let block = reader.bits(3)? + 2;
    let image = reader.image(width.div_ceil(1 << block), height.div_ceil(1 << block))?;
    // Red and green are the number of a group.
    image.iter().map(|pixel| u64::from(pixel >> 8 & 0xffff) + 1).max()
}

/// Reads bits, the lowest first.
struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

/// A code: for each of the next bits its symbol and length.
struct Code {
    width: usize,
    table: Vec<(u16, u8)>,
}

impl Reader<'_> {
    /// The next 32 bits; zeros after the end.
    fn peek(&self) -> u32 {
        let byte = |index: usize| u64::from(self.data.get(self.at / 8 + index).copied().unwrap_or(0));
        let bits = (0..5).fold(0, |bits, index| bits | byte(index) << (8 * index));
        (bits >> (self.at % 8)) as u32
    }

    /// The next bits, at most 24.
    fn bits(&mut self, count: u32) -> Option<u32> {
        let value = self.peek() & ((1 << count) - 1);
        self.at += count as usize;
        (self.at <= 8 * self.data.len()).then_some(value)
    }

    fn symbol(&mut self, code: &Code) -> Option<usize> {
        let (symbol, length) = code.table[self.peek() as usize & ((1 << code.width) - 1)];
        self.bits(u32::from(length))?;
        Some(usize::from(symbol))
    }

    /// Reads the transformations, and gives the width of the image that they are applied to.
    fn transformed_width(&mut self, mut width: u32, height: u32) -> Option<u32> {
        let mut seen = [false; 4];
        while self.bits(1)? == 1 {
            let kind = self.bits(2)? as usize;
            if std::mem::replace(&mut seen[kind], true) {
                return None;
            }
            match kind {
                0 | 1 => {
                    let block = self.bits(3)? + 2;
                    self.image(width.div_ceil(1 << block), height.div_ceil(1 << block))?;
                }
                2 => {}
                _ => {
                    let colours = self.bits(8)? + 1;
                    self.image(colours, 1)?;
                    let bits = [(2, 3), (4, 2), (16, 1)].into_iter().find(|(most, _)| colours <= *most);
                    width = width.div_ceil(1 << bits.map_or(0, |(_, bits)| bits));
                }
            }
        }
        Some(width)
    }

    fn cache_bits(&mut self) -> Option<u32> {
        if self.bits(1)? == 0 {
            return Some(0);
        }
        self.bits(4).filter(|bits| (1..=11).contains(bits))
    }

    /// Reads an image of one group of codes: alpha, red, green and blue of each pixel.
    fn image(&mut self, width: u32, height: u32) -> Option<Vec<u32>> {
        let cache_bits = self.cache_bits()?;
        let mut cache = vec![0; if cache_bits > 0 { 1 << cache_bits } else { 0 }];
        let mut codes = Vec::with_capacity(SYMBOLS.len());
        for (index, symbols) in SYMBOLS.into_iter().enumerate() {
            codes.push(self.code(symbols + if index == 0 { cache.len() } else { 0 })?);
        }
        let count = width as usize * height as usize;
        let mut pixels: Vec<u32> = Vec::with_capacity(count);
        while pixels.len() < count {
            let from = pixels.len();
            match self.symbol(&codes[0])? {
                green @ ..256 => {
                    let rest = [&codes[1], &codes[2], &codes[3]].map(|code| self.symbol(code));
                    let [red, blue, alpha] = [rest[0]?, rest[1]?, rest[2]?];
                    pixels.push((alpha << 24 | red << 16 | green << 8 | blue) as u32);
                }
                length @ 256..280 => {
                    let length = self.length(length - 256)?;
                    let symbol = self.symbol(&codes[4])?;
                    let distance = distance(self.length(symbol)?, width as usize);
                    if from < distance || count - from < length {
                        return None;
                    }
                    (0..length).for_each(|index| pixels.push(pixels[from + index - distance]));
                }
                cached => {
                    pixels.push(*cache.get(cached - 280)?);
                    continue;
                }
            }
            if cache_bits > 0 {
                for pixel in &pixels[from..] {
                    cache[(0x1e35_a7bd_u32.wrapping_mul(*pixel) >> (32 - cache_bits)) as usize] = *pixel;
                }
            }
        }
        Some(pixels)
    }

    /// A length or distance whose class was read.
    fn length(&mut self, class: usize) -> Option<usize> {
        if class < 4 {
            return Some(class + 1);
        }
        let extra = (class - 2) >> 1;
        Some(((2 + (class & 1)) << extra) + self.bits(extra as u32)? as usize + 1)
    }

    fn code(&mut self, symbols: usize) -> Option<Code> {
        if self.bits(1)? == 1 {
            let (count, long) = (self.bits(1)? + 1, self.bits(1)?);
            let first = self.bits(1 + 7 * long)? as usize;
            let table = if count == 1 {
                vec![(first as u16, 0)]
            } else {
                // The first symbol has the code 0, even if it is the larger one.
                vec![(first as u16, 1), (self.bits(8)? as u16, 1)]
            };
            let is_known = table.iter().all(|(symbol, _)| usize::from(*symbol) < symbols);
            return is_known.then_some(Code { width: table.len() - 1, table });
        }
        let mut lengths = [0; LENGTHS.len()];
        let count = 4 + self.bits(4)? as usize;
        for place in LENGTHS.into_iter().take(count) {
            lengths[place] = self.bits(3)? as u8;
        }
        let of_lengths = Code::new(&lengths)?;
        let mut most = symbols;
        if self.bits(1)? == 1 {
            let bits = 2 + 2 * self.bits(3)?;
            most = 2 + self.bits(bits)? as usize;
            if most > symbols {
                return None;
            }
        }
        let (mut lengths, mut last) = (Vec::with_capacity(symbols), 8);
        while lengths.len() < symbols && most > 0 {
            most -= 1;
            match self.symbol(&of_lengths)? {
                length @ ..16 => {
                    lengths.push(length as u8);
                    last = if length > 0 { length as u8 } else { last };
                }
                16 => lengths.extend(repeat_n(last, self.bits(2)? as usize + 3)),
                17 => lengths.extend(repeat_n(0, self.bits(3)? as usize + 3)),
                _ => lengths.extend(repeat_n(0, self.bits(7)? as usize + 11)),
            }
        }
        if lengths.len() > symbols {
            return None;
        }
        Code::new(&lengths)
    }
}

impl Code {
    /// The canonical code of the lengths of all symbols. A single symbol takes no bits.
    fn new(lengths: &[u8]) -> Option<Self> {
        let mut used = lengths.iter().enumerate().filter(|(_, length)| **length > 0);
        let first = used.next()?;
        if used.next().is_none() {
            return Some(Self { width: 0, table: vec![(first.0 as u16, 0)] });
        }
        let width = usize::from(lengths.iter().copied().max()?);
        let (mut table, mut code) = (vec![(0, 0); 1 << width], 0_usize);
        for length in 1..=width.min(LONGEST_CODE) {
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, own)| usize::from(**own) == length) {
                if code >= 1 << length {
                    return None;
                }
                // The bits of a code come with the highest first.
                let start = (code << (usize::BITS as usize - length)).reverse_bits();
                for place in (start..1 << width).step_by(1 << length) {
                    table[place] = (symbol as u16, length as u8);
                }
                code += 1;
            }
            code <<= 1;
        }
        (code == 2 << width).then_some(Self { width, table })
    }
}

/// How far back a copy begins, in pixels: small distances are places around the pixel.
fn distance(code: usize, width: usize) -> usize {
    let Some((across, up)) = code.checked_sub(1).and_then(|index| NEIGHBOURS.get(index)) else {
        return code - NEIGHBOURS.len();
    };
    let distance = *across as isize + *up as isize * width as isize;
    usize::try_from(distance).unwrap_or(0).max(1)
}

#[rustfmt::skip]
const NEIGHBOURS: [(i8, i8); 120] = [
    (0, 1),  (1, 0),  (1, 1),  (-1, 1), (0, 2),  (2, 0),  (1, 2),  (-1, 2),
    (2, 1),  (-2, 1), (2, 2),  (-2, 2), (0, 3),  (3, 0),  (1, 3),  (-1, 3),
    (3, 1),  (-3, 1), (2, 3),  (-2, 3), (3, 2),  (-3, 2), (0, 4),  (4, 0),
    (1, 4),  (-1, 4), (4, 1),  (-4, 1), (3, 3),  (-3, 3), (2, 4),  (-2, 4),
    (4, 2),  (-4, 2), (0, 5),  (3, 4),  (-3, 4), (4, 3),  (-4, 3), (5, 0),
    (1, 5),  (-1, 5), (5, 1),  (-5, 1), (2, 5),  (-2, 5), (5, 2),  (-5, 2),
    (4, 4),  (-4, 4), (3, 5),  (-3, 5), (5, 3),  (-5, 3), (0, 6),  (6, 0),
    (1, 6),  (-1, 6), (6, 1),  (-6, 1), (2, 6),  (-2, 6), (6, 2),  (-6, 2),
    (4, 5),  (-4, 5), (5, 4),  (-5, 4), (3, 6),  (-3, 6), (6, 3),  (-6, 3),
    (0, 7),  (7, 0),  (1, 7),  (-1, 7), (5, 5),  (-5, 5), (7, 1),  (-7, 1),
    (4, 6),  (-4, 6), (6, 4),  (-6, 4), (2, 7),  (-2, 7), (7, 2),  (-7, 2),
    (3, 7),  (-3, 7), (7, 3),  (-7, 3), (5, 6),  (-5, 6), (6, 5),  (-6, 5),
    (8, 0),  (4, 7),  (-4, 7), (7, 4),  (-7, 4), (8, 1),  (8, 2),  (6, 6),
    (-6, 6), (8, 3),  (5, 7),  (-5, 7), (7, 5),  (-7, 5), (8, 4),  (6, 7),
    (-6, 7), (7, 6),  (-7, 6), (8, 5),  (7, 7),  (-7, 7), (8, 6),  (8, 7),
];
