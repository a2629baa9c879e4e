//! Renders a report as text: bars, sparklines and tables, without images.

use std::io::Write;

use super::model::{Bars, Block, Chart, Lines, Plot, Report, Shape, Table};
use crate::errors::Failure;
use crate::table::TableWriter;
use crate::text::one_line;

/// Columns of a bar, a sparkline and a label.
const BAR: usize = 40;
const SPARKLINE: usize = 60;
const LABEL: usize = 44;
/// Longer tables are cut to this many rows.
const MAX_ROWS: usize = 15;

pub(super) fn print(report: &Report, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(out, "{}\n", one_line(&report.title))?;
    for fact in &report.summary {
        writeln!(out, "{:6} {}: {}", fact.name, one_line(&fact.value), one_line(&fact.explanation))?;
    }
    for section in &report.sections {
        writeln!(out, "\n{}\n{}", section.title, "-".repeat(section.title.len()))?;
        for block in &section.blocks {
            match block {
                Block::Text(text) => writeln!(out, "{}", one_line(text))?,
                Block::Table { table, .. } => self::table(table, out)?,
                Block::Chart { chart, numbers } => self::chart(chart, numbers, out)?,
                Block::Multiples { charts, .. } => {
                    for chart in charts {
                        self::chart(chart, &Table::default(), out)?;
                    }
                }
                Block::Pictures(pictures) => {
                    for picture in pictures {
                        let verdict = match picture.is_correct {
                            Some(true) => "correct: ",
                            Some(false) => "wrong: ",
                            None => "",
                        };
                        writeln!(out, "  {verdict}{}", one_line(&picture.text))?;
                    }
                }
            }
        }
    }
    Ok(out.flush()?)
}

fn chart(chart: &Chart, numbers: &Table, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(out, "{}", one_line(&chart.title))?;
    match &chart.plot {
        Plot::Bars(bars) => self::bars(bars, out),
        Plot::Lines(lines) if lines.series.iter().all(|series| matches!(series.shape, Shape::Line(_))) => {
            sparklines(lines, out)
        }
        // Scatter plots are unreadable in so few characters.
        Plot::Lines(_) => {
            writeln!(out, "{}", one_line(&chart.alt))?;
            table(numbers, out)
        }
    }
}

/// A bar with a resolution of an eighth of a character.
fn bar(share: f64) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (share.clamp(0.0, 1.0) * (BAR * 8) as f64).round() as usize;
    let mut text = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        text.push(EIGHTHS[eighths % 8]);
    }
    text
}

fn bars(chart: &Bars, out: &mut impl Write) -> Result<(), Failure> {
    let most = chart.bars.iter().map(|bar| bar.value.abs()).fold(0.0, f64::max);
    let short = |text: &str| one_line(text).chars().take(LABEL).collect::<String>();
    let width = chart.bars.iter().map(|bar| short(&bar.label).chars().count()).max().unwrap_or(0);
    let numbers = chart.bars.iter().map(|bar| bar.text.chars().count()).max().unwrap_or(0);
    let mut group = "";
    for row in &chart.bars {
        if row.group != group {
            group = &row.group;
            writeln!(out, " {}", one_line(group))?;
        }
        let share = if most > 0.0 { row.value.abs() / most } else { 0.0 };
        let sign = if row.value < 0.0 { "-" } else { " " };
        writeln!(out, "  {:width$}  {:>numbers$} {sign}{}", short(&row.label), row.text, bar(share))?;
    }
    Ok(())
}

/// A sparkline per series, all on the same scale.
fn sparklines(chart: &Lines, out: &mut impl Write) -> Result<(), Failure> {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let lines: Vec<(&str, Vec<f64>)> = (chart.series.iter())
        .filter_map(|series| match &series.shape {
            Shape::Line(points) => Some((series.name.as_str(), points.iter().map(|point| point.1).collect())),
            _ => None,
        })
        .collect();
    let all = || {
        lines.iter().flat_map(|(_, values)| values.iter().copied()).filter(|value: &f64| value.is_finite())
    };
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, values) in lines {
        let count = values.len().min(SPARKLINE);
        let level = |at: usize| {
            let value = values[at * values.len() / count.max(1)];
            let share = if high > low { (value - low) / (high - low) } else { 0.0 };
            LEVELS[((share.clamp(0.0, 1.0) * 7.0).round() as usize).min(7)]
        };
        writeln!(out, "  {name:width$}  {}", (0..count).map(level).collect::<String>())?;
    }
    if low.is_finite() {
        let (low, high) = (super::query::number(Some(low)), super::query::number(Some(high)));
        writeln!(out, "  {} from {low} to {high}, over {}", chart.y.label, chart.x.label)?;
    }
    Ok(())
}

fn table(table: &Table, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(out, "{}\n", one_line(&table.caption))?;
    let names: Vec<&str> = table.head.iter().map(|(name, _)| *name).collect();
    let right: Vec<bool> = table.head.iter().map(|(_, right)| *right).collect();
    let mut rows = TableWriter::with_columns(&mut *out, &names, &right);
    for row in table.rows.iter().take(MAX_ROWS) {
        rows.row(row.iter().map(|cell| one_line(cell)).collect())?;
    }
    rows.finish()?;
    let more = table.more + table.rows.len().saturating_sub(MAX_ROWS);
    if more > 0 {
        writeln!(out, "... and {more} more")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_eighths() {
        assert_eq!(
            (bar(0.0), bar(1.0).chars().count(), bar(0.5 + 1.0 / 320.0)),
            (String::new(), BAR, "█".repeat(20) + "▏")
        );
        assert_eq!((bar(7.0).chars().count(), bar(f64::NAN)), (BAR, String::new()));
    }
}
