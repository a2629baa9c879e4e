//! Draws charts as SVG. The style sheet of the page replaces the colours.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::model::{Axis, Bar, Bars, Lines, Plot, Point, Shape};
use super::query::number;
use crate::errors::Failure;
use crate::text::one_line;

const INK: RGBColor = RGBColor(0x11, 0x11, 0x11);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
const CARD: RGBColor = RGBColor(0xf5, 0xf5, 0xf7);
/// Series colours, distinguishable with colour blindness.
const SERIES: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xa8, 0x42, 0x7f),
    RGBColor(0xb0, 0x7a, 0x00),
    RGBColor(0x3a, 0x8f, 0xc4),
    RGBColor(0x88, 0x22, 0x55),
    RGBColor(0x66, 0x66, 0x66),
];
/// Height of a bar, of a label above it and of a heading, each with its margin.
const ROW: i32 = 24;
const LABEL_ROW: i32 = 20;
const GROUP_ROW: i32 = 28;

/// The proportions of a drawing, in pixels of its view box: text has the same size in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// For pages of usual width: the labels of bars are left of them.
    Wide,
    /// For narrow pages and small charts: the labels of bars are above them.
    Narrow,
}

impl Format {
    fn width(self) -> u32 {
        match self {
            Self::Wide => 860,
            Self::Narrow => 400,
        }
    }

    /// The height of a chart with two axes.
    fn height(self) -> u32 {
        match self {
            Self::Wide => 380,
            Self::Narrow => 320,
        }
    }

    /// The width of the labels left of the bars, and of the numbers right of them.
    fn margins(self) -> (i32, i32) {
        match self {
            Self::Wide => (330, 100),
            Self::Narrow => (12, 90),
        }
    }

    /// Longer labels are truncated to this many characters.
    fn max_label(self) -> usize {
        match self {
            Self::Wide => 48,
            Self::Narrow => 52,
        }
    }

    /// The height of a bar with what belongs to it.
    fn bar_height(self) -> i32 {
        match self {
            Self::Wide => ROW,
            Self::Narrow => ROW + LABEL_ROW,
        }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The content of an `<svg>` element.
pub(super) struct Drawing {
    /// Width and height of the view box.
    pub width: u32,
    pub height: u32,
    pub content: String,
}

pub(super) fn draw(plot: &Plot, format: Format) -> Result<Drawing, Failure> {
    let height = match plot {
        Plot::Bars(bars) => bars_height(bars, format),
        Plot::Lines(_) => format.height(),
    };
    let width = format.width();
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
        let drawn = match plot {
            Plot::Bars(bars) => self::bars(&area, bars, format),
            Plot::Lines(lines) => self::lines(&area, lines, format),
        };
        drawn
            .and_then(|()| Ok(area.present()?))
            .map_err(|error| Failure::internal(format!("cannot draw a chart: {error}")))?;
    }
    // The page adds an element with a text alternative.
    let content = text.split_once('>').map_or("", |(_, rest)| rest).trim_start();
    let content = content.trim_end().trim_end_matches("</svg>").to_string();
    Ok(Drawing { width, height, content })
}

impl Drawing {
    /// The drawing as a file of its own.
    pub(super) fn file(&self) -> String {
        let Self { width, height, content } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\"><rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{content}</svg>\n"
        )
    }
}

/// Whether a heading is drawn above the bar.
fn starts_group(bars: &[Bar], index: usize) -> bool {
    !bars[index].group.is_empty() && (index == 0 || bars[index - 1].group != bars[index].group)
}

/// The height of all bars and headings.
fn plot_height(chart: &Bars, format: Format) -> u32 {
    let groups = (0..chart.bars.len()).filter(|index| starts_group(&chart.bars, *index)).count();
    chart.bars.len() as u32 * format.bar_height() as u32 + groups as u32 * GROUP_ROW as u32
}

fn bars_height(chart: &Bars, format: Format) -> u32 {
    plot_height(chart, format)
        + 50
        + if chart.marks.is_empty() { 0 } else { 24 }
        + if chart.unit.is_empty() { 0 } else { 20 }
}

type DrawResult = Result<(), Box<dyn std::error::Error>>;

fn style<'a>(size: i32, anchor: HPos) -> TextStyle<'a> {
    let pos = Pos::new(anchor, VPos::Center);
    ("sans-serif", size).into_font().color(&INK).pos(pos)
}

/// About five round values of a range.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 5.0;
    if raw <= 0.0 || !raw.is_finite() {
        return vec![low];
    }
    let ten = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|by| by * ten).into_iter().find(|step| *step >= raw).unwrap_or(raw);
    let first = ((low / step).ceil() as i64).clamp(-(1 << 53), 1 << 53);
    // At most eleven: for huge numbers, adding a step may not change the number.
    (0..=10).map(|at| (first + at) as f64 * step).take_while(|at| *at <= high + step * 1e-9).collect()
}

/// A number without trailing zeros after the decimal point.
fn tick_label(value: f64) -> String {
    let text = number(Some(value));
    if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.').into()
    } else {
        text
    }
}

fn truncate(text: &str, most: usize) -> String {
    let text = one_line(text);
    if text.chars().count() > most { text.chars().take(most - 1).chain(['…']).collect() } else { text }
}

fn bars(area: &Area<'_>, chart: &Bars, format: Format) -> DrawResult {
    let all = chart.bars.iter().flat_map(|bar: &Bar| {
        let ends = bar.interval.map_or([bar.value; 2], |(low, high)| [low, high]);
        bar.marks.iter().flatten().copied().chain(ends).chain([bar.value])
    });
    let all = all.chain(chart.scale).filter(|value| value.is_finite());
    let (low, high) = all.fold((0f64, 0f64), |(low, high), value| (low.min(value), high.max(value)));
    let high = if high <= low { low + 1.0 } else { high };
    let (left, right) = (format.margins().0, format.width() as i32 - format.margins().1);
    let scale = Scale { low, high, left, right };
    let top = 10;
    let bottom = top + plot_height(chart, format) as i32;
    for tick in ticks(low, high) {
        let line = [(scale.x(tick), top), (scale.x(tick), bottom)];
        area.draw(&PathElement::new(line, GRID.stroke_width(1)))?;
        area.draw(&Text::new(tick_label(tick), (scale.x(tick), bottom + 12), style(14, HPos::Center)))?;
    }
    let mut y = bottom + 34;
    if !chart.unit.is_empty() {
        area.draw(&Text::new(chart.unit, ((left + right) / 2, y), style(15, HPos::Center)))?;
        y += 22;
    }
    let mut at = left;
    for (mark, name) in chart.marks.iter().enumerate() {
        area.draw(&PathElement::new([(at, y - 7), (at, y + 7)], SERIES[1 + mark % 7].stroke_width(3)))?;
        area.draw(&Text::new((*name).to_string(), (at + 8, y), style(14, HPos::Left)))?;
        at += 120;
    }
    let mut y = top;
    for (index, bar) in chart.bars.iter().enumerate() {
        if starts_group(&chart.bars, index) {
            let heading = truncate(&bar.group, format.max_label());
            let bold = ("sans-serif", 15).into_font().style(FontStyle::Bold).color(&INK);
            let bold = bold.pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(heading, (12, y + GROUP_ROW / 2 + 2), bold))?;
            y += GROUP_ROW;
        }
        let label = truncate(&bar.label, format.max_label());
        match format {
            Format::Wide => {
                area.draw(&Text::new(label, (left - 8, y + ROW / 2), style(15, HPos::Right)))?;
            }
            Format::Narrow => {
                area.draw(&Text::new(label, (left, y + LABEL_ROW / 2 + 3), style(14, HPos::Left)))?;
                y += LABEL_ROW;
            }
        }
        draw_bar(area, bar, y, &scale)?;
        y += ROW;
    }
    Ok(())
}

/// From values to pixels.
struct Scale {
    low: f64,
    high: f64,
    left: i32,
    right: i32,
}

impl Scale {
    fn x(&self, value: f64) -> i32 {
        // Infinite values end at the edge.
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.left + (share * f64::from(self.right - self.left)).round() as i32
    }
}

/// A bar whose upper end is at `y`, with its interval, marks and value.
fn draw_bar(area: &Area<'_>, bar: &Bar, y: i32, scale: &Scale) -> DrawResult {
    let centre = y + ROW / 2;
    let zero = scale.x(0f64.max(scale.low));
    let (from, to) = (zero.min(scale.x(bar.value)), zero.max(scale.x(bar.value)));
    area.draw(&Rectangle::new([(from, y + 4), (to.max(from + 1), y + ROW - 4)], SERIES[0].filled()))?;
    if let Some((low, high)) = bar.interval {
        let ink = INK.stroke_width(2);
        area.draw(&PathElement::new([(scale.x(low), centre), (scale.x(high), centre)], ink))?;
        for end in [low, high] {
            area.draw(&PathElement::new([(scale.x(end), centre - 4), (scale.x(end), centre + 4)], ink))?;
        }
    }
    for (mark, value) in bar.marks.iter().enumerate().filter_map(|(mark, value)| Some((mark, (*value)?))) {
        let line = [(scale.x(value), y + 1), (scale.x(value), y + ROW - 1)];
        area.draw(&PathElement::new(line, SERIES[1 + mark % 7].stroke_width(3)))?;
    }
    area.draw(&Text::new(bar.text.clone(), (scale.right + 8, centre), style(15, HPos::Left)))?;
    Ok(())
}

/// The position of a value on an axis: its logarithm on a logarithmic one. `None` if it has none.
fn position(axis: &Axis, value: f64) -> Option<f64> {
    let position = if axis.is_log { value.log10() } else { value };
    position.is_finite().then_some(position)
}

/// The labelled positions of an axis: round values, or round values of each power of ten on a
/// logarithmic axis.
fn axis_ticks(axis: &Axis, low: f64, high: f64) -> Vec<f64> {
    // Powers of ten, with 2 and 5 times them on short axes.
    let factors: &[f64] = if high - low < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    if !axis.is_log || high - low > 9.0 {
        return ticks(low, high);
    }
    let powers = low.floor() as i32..=high.ceil() as i32;
    let round = powers.flat_map(|power| factors.iter().map(move |factor| f64::from(power) + factor.log10()));
    let round: Vec<f64> = round.filter(|mark| (low..=high).contains(mark)).collect();
    if round.len() > 1 { round } else { ticks(low, high) }
}

/// A range with given ticks.
struct TickedRange {
    range: RangedCoordf64,
    ticks: Vec<f64>,
}

impl Ranged for TickedRange {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.range.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.range()
    }
}

fn axis_range(values: impl Iterator<Item = f64>, is_log: bool) -> (f64, f64) {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if !low.is_finite() {
        return (0.0, 1.0);
    }
    let margin = if high > low { (high - low) * 0.05 } else { 0.5 };
    // Axes of non-negative values start at 0.
    let low_end = if !is_log && low >= 0.0 { 0.0 } else { low - margin };
    (low_end, high + margin)
}

/// All points of a shape, including the ends of intervals.
fn extent(shape: &Shape) -> Vec<(f64, f64)> {
    match shape {
        Shape::Line(points) => points.clone(),
        Shape::Band(points) => points.iter().flat_map(|(x, low, high)| [(*x, *low), (*x, *high)]).collect(),
        Shape::Points { points, .. } => {
            let ends = |point: &Point| match point.interval {
                Some((low, high)) => vec![(point.x, low), (point.x, point.y), (point.x, high)],
                None => vec![(point.x, point.y)],
            };
            points.iter().flat_map(ends).collect()
        }
    }
}

fn lines(area: &Area<'_>, chart: &Lines, format: Format) -> DrawResult {
    let (x, y) = (&chart.x, &chart.y);
    let all: Vec<(f64, f64)> = chart.series.iter().flat_map(|series| extent(&series.shape)).collect();
    let (left, right) = axis_range(all.iter().filter_map(|point| position(x, point.0)), x.is_log);
    let (low, high) = axis_range(all.iter().filter_map(|point| position(y, point.1)), y.is_log);
    let labels = if format == Format::Wide { 72 } else { 58 };
    let mut picture = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(labels)
        .build_cartesian_2d(
            TickedRange { range: (left..right).into(), ticks: axis_ticks(x, left, right) },
            TickedRange { range: (low..high).into(), ticks: axis_ticks(y, low, high) },
        )?;
    let shown = |axis: &Axis, value: f64| tick_label(if axis.is_log { 10f64.powf(value) } else { value });
    picture
        .configure_mesh()
        .x_desc(x.label)
        .y_desc(y.label)
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(style(14, HPos::Center))
        .axis_desc_style(style(15, HPos::Center))
        .x_label_formatter(&|value| shown(x, *value))
        .y_label_formatter(&|value| shown(y, *value))
        .draw()?;
    let at = |point: (f64, f64)| Some((position(x, point.0)?, position(y, point.1)?));
    for (index, series) in chart.series.iter().enumerate() {
        let colour = SERIES[index % SERIES.len()];
        let drawn = match &series.shape {
            Shape::Line(points) => {
                let points: Vec<(f64, f64)> = points.iter().copied().filter_map(at).collect();
                picture.draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            }
            Shape::Band(points) => {
                let lows = points.iter().filter_map(|(x, low, _)| at((*x, *low)));
                let highs = points.iter().rev().filter_map(|(x, _, high)| at((*x, *high)));
                let around: Vec<(f64, f64)> = lows.chain(highs).collect();
                picture.draw_series([Polygon::new(around, colour.mix(0.18))])?
            }
            Shape::Points { points, hollow } => {
                let ends = points.iter().filter_map(|point| {
                    let (low, high) = point.interval?;
                    Some(PathElement::new(
                        [at((point.x, low))?, at((point.x, high))?],
                        colour.stroke_width(1),
                    ))
                });
                picture.draw_series(ends)?;
                let fill = if *hollow { CARD.filled() } else { colour.mix(0.75).filled() };
                let centres: Vec<(f64, f64)> =
                    points.iter().filter_map(|point| at((point.x, point.y))).collect();
                picture.draw_series(centres.iter().map(|centre| Circle::new(*centre, 4, fill)))?;
                picture.draw_series(centres.iter().map(|centre| {
                    Circle::new(*centre, 4, colour.stroke_width(if *hollow { 2 } else { 1 }))
                }))?
            }
        };
        let key = colour.mix(if matches!(series.shape, Shape::Band(_)) { 0.4 } else { 1.0 });
        drawn
            .label(one_line(&series.name))
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 14, y + 4)], key.filled()));
    }
    if chart.series.len() > 1 {
        picture
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(CARD.mix(0.85))
            .border_style(GRID)
            .label_font(("sans-serif", 14).into_font().color(&INK))
            .draw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::model::Series;

    #[test]
    fn ticks_are_round() {
        for (low, high, expected) in [
            (0.0, 1.0, vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (-3.0, 7.0, vec![-2.0, 0.0, 2.0, 4.0, 6.0]),
            (0.0, 14_606.0, vec![0.0, 5000.0, 10_000.0]),
            (2.0, 2.0, vec![2.0]),
        ] {
            let found = ticks(low, high);
            assert!(
                found.len() == expected.len()
                    && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9),
                "{found:?}"
            );
        }
    }

    /// Extreme and non-finite numbers must not panic.
    #[test]
    fn extreme_numbers_are_drawn() {
        let extreme = [0.0, -1.0, 1e-300, 1e300, f64::NAN, f64::INFINITY, 5.0];
        for is_log in [false, true] {
            let axis = || Axis { label: "a", is_log };
            let series = vec![
                Series {
                    name: "<line>".into(),
                    shape: Shape::Line(extreme.iter().map(|x| (*x, *x)).collect()),
                },
                Series {
                    name: "band".into(),
                    shape: Shape::Band(extreme.iter().map(|x| (*x, *x, *x)).collect()),
                },
                Series {
                    name: "points".into(),
                    shape: Shape::Points {
                        points: extreme
                            .iter()
                            .map(|x| Point { x: *x, y: 1.0, interval: Some((0.0, *x)) })
                            .collect(),
                        hollow: true,
                    },
                },
            ];
            let drawn = draw(&Plot::Lines(Lines { x: axis(), y: axis(), series }), Format::Narrow).unwrap();
            assert!(
                drawn.content.contains("&lt;line&gt;") && !drawn.content.contains("<svg"),
                "{}",
                drawn.content
            );
        }
        let empty = Lines {
            x: Axis { label: "", is_log: true },
            y: Axis { label: "", is_log: false },
            series: vec![],
        };
        draw(&Plot::Lines(empty), Format::Wide).unwrap();
        let bars = extreme.map(|value| Bar { interval: Some((value, 1.0)), ..Bar::plain("a", value, "b") });
        for format in [Format::Wide, Format::Narrow] {
            draw(&Plot::Bars(Bars { marks: vec!["x"], ..Bars::new("", vec![]) }), format).unwrap();
            draw(&Plot::Bars(Bars::new("u", bars.iter().map(copy).collect())), format).unwrap();
        }
    }

    fn copy(bar: &Bar) -> Bar {
        Bar { interval: bar.interval, ..Bar::plain(&*bar.label, bar.value, &*bar.text) }
    }
}
