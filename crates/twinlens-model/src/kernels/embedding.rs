//! Launches of the token embedding.

use super::launch::{Argument, Launch, Storage, blocks, int};
use candle_core::Result;

/// Rows of a piece of an id's sum.
const PIECE: usize = 64;

/// Rows of tokens: the table's row of each id, plus that of its position.
#[derive(Clone, Debug)]
pub struct Embed<B> {
    /// `[rows]`, u32.
    pub ids: B,
    /// `[vocabulary, width]`, f32.
    pub table: B,
    /// `[context, width]`, f32.
    pub positions: B,
    /// The result, `[rows, width]`.
    pub out: B,
    /// Rows and width.
    pub shape: (usize, usize),
    /// Tokens of a sequence.
    pub len: usize,
}

impl<B: Copy> Embed<B> {
    /// Its launch.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launch(&self, storage: Storage) -> Result<Launch<B>> {
        Ok(Launch {
            source: "embedding",
            kernel: format!("embed_{}", storage.suffix()),
            grid: [blocks(self.shape.0)?, 1, 1],
            shared: 0,
            arguments: vec![
                Argument::Buffer(self.ids),
                Argument::Buffer(self.table),
                Argument::Buffer(self.positions),
                Argument::Buffer(self.out),
                Argument::I32(int(self.len)?),
                Argument::I32(int(self.shape.1)?),
            ],
        })
    }
}

/// Which rows each id has, in pieces that are summed separately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPieces {
    /// The rows' numbers by id, those of an id in ascending order.
    pub order: Vec<u32>,
    /// The first place in `order` of each piece, and its length.
    pub starts: Vec<u32>,
    /// The ids that occur, ascending.
    pub ids: Vec<u32>,
    /// The first piece of each, and the number of pieces.
    pub firsts: Vec<u32>,
}

impl IdPieces {
    /// Sorts the rows of ids by counting.
    pub fn of(ids: &[u32]) -> Self {
        let top = ids.iter().max().map_or(0, |top| *top as usize + 1);
        let mut places = vec![0_u32; top + 1];
        for &id in ids {
            places[id as usize + 1] += 1;
        }
        for id in 0..top {
            places[id + 1] += places[id];
        }
        let mut pieces = Self { order: vec![0; ids.len()], starts: vec![], ids: vec![], firsts: vec![] };
        for (id, range) in places.windows(2).enumerate().filter(|(_, range)| range[0] < range[1]) {
            pieces.ids.push(id as u32);
            pieces.firsts.push(pieces.starts.len() as u32);
            pieces.starts.extend((range[0]..range[1]).step_by(PIECE));
        }
        pieces.firsts.push(pieces.starts.len() as u32);
        pieces.starts.push(ids.len() as u32);
        for (row, &id) in ids.iter().enumerate() {
            let place = &mut places[id as usize];
            pieces.order[*place as usize] = row as u32;
            *place += 1;
        }
        pieces
    }

    /// Pieces.
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }
}

/// The gradient of the embedding's table.
#[derive(Clone, Debug)]
pub struct EmbeddingGradient<B> {
    /// `[rows, width]`.
    pub d: B,
    /// The parts of [`IdPieces`], u32.
    pub order: B,
    /// As above.
    pub starts: B,
    /// As above.
    pub ids: B,
    /// As above.
    pub firsts: B,
    /// Scratch, `[pieces, width]`, f32.
    pub parts: B,
    /// `[vocabulary, width]`, f32, zeros before.
    pub d_table: B,
    /// Numbers in a row.
    pub width: usize,
}

impl<B: Copy> EmbeddingGradient<B> {
    /// Its launches, in order.
    ///
    /// # Errors
    /// If a size is too large.
    pub fn launches(&self, storage: Storage, pieces: &IdPieces) -> Result<[Launch<B>; 2]> {
        let width = Argument::I32(int(self.width)?);
        let sums = Launch {
            source: "embedding",
            kernel: format!("embedding_pieces_{}", storage.suffix()),
            grid: [blocks(pieces.count())?, 1, 1],
            shared: 0,
            arguments: vec![
                Argument::Buffer(self.d),
                Argument::Buffer(self.order),
                Argument::Buffer(self.starts),
                Argument::Buffer(self.parts),
                width.clone(),
            ],
        };
        let rows = Launch {
            source: "embedding",
            kernel: "embedding_rows".to_owned(),
            grid: [blocks(pieces.ids.len())?, 1, 1],
            shared: 0,
            arguments: vec![
                Argument::Buffer(self.parts),
                Argument::Buffer(self.ids),
                Argument::Buffer(self.firsts),
                Argument::Buffer(self.d_table),
                width,
            ],
        };
        Ok([sums, rows])
    }
}
