//! Prints rows as aligned columns.
//!
//! The first rows set the widths and later ones stream, so that memory does not grow with the
//! result. Long values are truncated, bytes are shown as their size, and control characters are
//! escaped.

use std::io::{self, Write};

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Float32Type, Float64Type, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::UnicodeWidthStr;

use crate::text::{bytes, one_line, truncated};

/// The first rows, which set the widths of the columns.
const ROWS_FOR_WIDTHS: usize = 1000;
/// In columns of the terminal; longer values are truncated.
const MAX_WIDTH: usize = 60;

pub(crate) struct TableWriter<W> {
    out: W,
    names: Vec<String>,
    align_right: Vec<bool>,
    /// Columns of floats: all values of one get the same number of decimals.
    floats: Vec<bool>,
    pending: Vec<Vec<String>>,
    layout: Option<Layout>,
}

struct Layout {
    widths: Vec<usize>,
    decimals: Vec<usize>,
}

impl<W: Write> TableWriter<W> {
    /// A table with the columns of `schema`.
    pub(crate) fn new(out: W, schema: &Schema) -> Self {
        let fields = schema.fields();
        Self {
            out,
            names: fields.iter().map(|field| truncated(&one_line(field.name()), MAX_WIDTH)).collect(),
            align_right: fields.iter().map(|field| field.data_type().is_numeric()).collect(),
            floats: fields.iter().map(|field| field.data_type().is_floating()).collect(),
            pending: Vec::new(),
            layout: None,
        }
    }

    /// A table of text cells.
    pub(crate) fn with_columns(out: W, names: &[&str], align_right: &[bool]) -> Self {
        Self {
            out,
            names: names.iter().map(ToString::to_string).collect(),
            align_right: align_right.into(),
            floats: vec![false; names.len()],
            pending: Vec::new(),
            layout: None,
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) -> io::Result<()> {
        let cells: Vec<String> = cells.iter().map(|cell| one_line(cell)).collect();
        if let Some(layout) = &self.layout {
            return write_row(&mut self.out, &layout.pad_decimals(cells), &layout.widths, &self.align_right);
        }
        self.pending.push(cells);
        if self.pending.len() >= ROWS_FOR_WIDTHS { self.write_pending() } else { Ok(()) }
    }

    pub(crate) fn batch(&mut self, batch: &RecordBatch) -> io::Result<()> {
        for row in 0..batch.num_rows() {
            let cells = batch.columns().iter().map(|column| match cell(column, row) {
                Ok(text) => truncated(&one_line(&text), MAX_WIDTH),
                Err(error) => truncated(&one_line(&format!("({error})")), MAX_WIDTH),
            });
            self.row(cells.collect())?;
        }
        Ok(())
    }

    /// Writes pending rows.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        if self.layout.is_none() {
            self.write_pending()?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn write_pending(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let decimals = self.floats.iter().enumerate().map(|(column, is_float)| {
            let cells = pending.iter().filter(|_| *is_float).filter_map(|row| decimals(&row[column]));
            cells.max().unwrap_or(0)
        });
        let mut layout = Layout { widths: Vec::new(), decimals: decimals.collect() };
        let rows: Vec<Vec<String>> = pending.into_iter().map(|row| layout.pad_decimals(row)).collect();
        for (column, name) in self.names.iter().enumerate() {
            let widest = rows.iter().map(|row| row[column].width()).max();
            layout.widths.push(name.width().max(widest.unwrap_or(0)));
        }
        write_row(&mut self.out, &self.names, &layout.widths, &self.align_right)?;
        let rule: Vec<String> = layout.widths.iter().map(|width| "-".repeat(*width)).collect();
        write_row(&mut self.out, &rule, &layout.widths, &self.align_right)?;
        for row in rows {
            write_row(&mut self.out, &row, &layout.widths, &self.align_right)?;
        }
        self.layout = Some(layout);
        Ok(())
    }
}

impl Layout {
    /// Gives all numbers of a column the same number of decimals.
    fn pad_decimals(&self, mut row: Vec<String>) -> Vec<String> {
        for (cell, &target) in row.iter_mut().zip(&self.decimals).filter(|(_, target)| **target > 0) {
            if let Some(digits) = decimals(cell) {
                *cell += if digits == 0 { "." } else { "" };
                *cell += &"0".repeat(target.saturating_sub(digits));
            }
        }
        row
    }
}

/// Digits after the decimal point; `None` for `null`, `NaN` and numbers with an exponent.
fn decimals(cell: &str) -> Option<usize> {
    let digits = cell.strip_prefix('-').unwrap_or(cell);
    if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return None;
    }
    Some(digits.split_once('.').map_or(0, |(_, after)| after.len()))
}

fn write_row(
    out: &mut impl Write,
    cells: &[String],
    widths: &[usize],
    align_right: &[bool],
) -> io::Result<()> {
    let mut line = String::new();
    for ((cell, width), right) in cells.iter().zip(widths).zip(align_right) {
        let space = " ".repeat(width.saturating_sub(cell.width()));
        if !line.is_empty() {
            line += "  ";
        }
        if *right {
            line += &space;
            line += cell;
        } else {
            line += cell;
            line += &space;
        }
    }
    writeln!(out, "{}", line.trim_end())
}

fn cell(column: &dyn Array, row: usize) -> Result<String, ArrowError> {
    if column.is_null(row) {
        return Ok("null".into());
    }
    Ok(match column.data_type() {
        DataType::Float32 => float(column.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => float(column.as_primitive::<Float64Type>().value(row)),
        DataType::Binary => size(column.as_binary::<i32>().value(row)),
        DataType::LargeBinary => size(column.as_binary::<i64>().value(row)),
        DataType::BinaryView => size(column.as_binary_view().value(row)),
        DataType::Struct(fields) => {
            let parts = column.as_struct().columns().iter().zip(fields);
            let parts: Result<Vec<String>, ArrowError> =
                parts.map(|(part, field)| Ok(format!("{}: {}", field.name(), cell(part, row)?))).collect();
            format!("{{{}}}", parts?.join(", "))
        }
        _ => {
            let options = FormatOptions::new().with_null("null");
            ArrayFormatter::try_new(column, &options)?.value(row).to_string()
        }
    })
}

/// At most four decimals, or an exponent for very small and very large numbers.
fn float(value: f64) -> String {
    let size = value.abs();
    let plain = match size {
        _ if !value.is_finite() => return value.to_string(),
        0.0 => "0".into(),
        0.001..1e3 => format!("{value:.4}"),
        1e3..1e9 => format!("{value:.1}"),
        _ => return format!("{value:.3e}"),
    };
    if plain.contains('.') { plain.trim_end_matches('0').trim_end_matches('.').into() } else { plain }
}

fn size(value: &[u8]) -> String {
    format!("<{}>", bytes(value.len() as u64))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use datafusion::arrow::array::{
        ArrayRef, Float32Array, Int32Array, LargeBinaryArray, StringArray, StructArray,
    };
    use datafusion::arrow::datatypes::Field;

    fn shown(columns: Vec<(&str, ArrayRef)>) -> String {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut table = TableWriter::new(Vec::new(), &batch.schema());
        table.batch(&batch).unwrap();
        String::from_utf8(table.finish().unwrap()).unwrap()
    }

    #[test]
    fn values_are_aligned_truncated_and_escaped() {
        let pixels: ArrayRef =
            Arc::new(LargeBinaryArray::from_opt_vec(vec![Some(&[0; 2048]), None, Some(b"x")]));
        let image =
            StructArray::from(vec![(Arc::new(Field::new("bytes", DataType::LargeBinary, true)), pixels)]);
        let table = shown(vec![
            ("caption", Arc::new(StringArray::from(vec!["猫\x1b[2J", "a\nb", &"long ".repeat(20)]))),
            ("n", Arc::new(Int32Array::from(vec![Some(5), None, Some(12345)]))),
            ("accuracy", Arc::new(Float32Array::from(vec![0.25, 1e-7, f32::NAN]))),
            ("percent", Arc::new(Float32Array::from(vec![12.5, -3.0, 0.123_456]))),
            ("whole", Arc::new(Float32Array::from(vec![12.0, 0.0, 20_000.0]))),
            ("image", Arc::new(image)),
        ]);
        insta::assert_snapshot!(table);
    }

    #[test]
    fn later_rows_stream_with_the_widths_of_the_first() {
        let mut table = TableWriter::with_columns(Vec::new(), &["n", "x"], &[true, false]);
        for row in 0..ROWS_FOR_WIDTHS {
            table.row(vec![row.to_string(), "-".into()]).unwrap();
        }
        table.row(vec!["123456".into(), "wider than before".into()]).unwrap();
        let text = String::from_utf8(table.finish().unwrap()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), ROWS_FOR_WIDTHS + 3);
        assert_eq!((lines[0], lines[1], lines[2]), ("  n  x", "---  -", "  0  -"));
        assert_eq!(lines[lines.len() - 1], "123456  wider than before");
    }
}
