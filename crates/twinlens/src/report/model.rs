//! The content of a report, independent of its rendering.

/// A report of a run.
pub(super) struct Report {
    /// The name of the pipeline.
    pub title: String,
    pub summary: Vec<Fact>,
    pub sections: Vec<Section>,
}

/// A number at the head of the report.
pub(super) struct Fact {
    pub name: &'static str,
    pub value: String,
    pub explanation: String,
}

pub(super) struct Section {
    /// Anchor in the page.
    pub id: &'static str,
    pub title: &'static str,
    pub blocks: Vec<Block>,
}

pub(super) enum Block {
    /// A paragraph.
    Text(String),
    /// A table, which is initially closed if `folded`.
    Table { table: Table, folded: bool },
    /// A chart and its numbers.
    Chart { chart: Chart, numbers: Table },
    /// Small charts of one kind, and the numbers of all.
    Multiples { charts: Vec<Chart>, numbers: Table },
    /// Images; those with predictions can be filtered.
    Pictures(Vec<Picture>),
}

#[derive(Default)]
pub(super) struct Table {
    pub caption: String,
    /// Names of the columns, and whether their values are numbers.
    pub head: Vec<(&'static str, bool)>,
    pub rows: Vec<Vec<String>>,
    /// Number of omitted rows.
    pub more: usize,
}

pub(super) struct Chart {
    pub title: String,
    /// Text alternative.
    pub alt: String,
    pub plot: Plot,
}

pub(super) enum Plot {
    Bars(Bars),
    Lines(Lines),
}

/// Horizontal bars.
pub(super) struct Bars {
    pub unit: &'static str,
    pub bars: Vec<Bar>,
    /// Names of the marks on the bars.
    pub marks: Vec<&'static str>,
    /// The least end of the scale, so that several charts share it.
    pub scale: Option<f64>,
}

impl Bars {
    pub(super) fn new(unit: &'static str, bars: Vec<Bar>) -> Self {
        Self { unit, bars, marks: Vec::new(), scale: None }
    }
}

pub(super) struct Bar {
    /// A heading above the first of consecutive bars with the same group; none if empty.
    pub group: String,
    pub label: String,
    pub value: f64,
    pub interval: Option<(f64, f64)>,
    /// Other values on the same scale, in the order of [`Bars::marks`].
    pub marks: Vec<Option<f64>>,
    /// The formatted value.
    pub text: String,
}

impl Bar {
    /// A bar without interval, marks and group.
    pub(super) fn plain(label: impl Into<String>, value: f64, text: impl Into<String>) -> Self {
        Self {
            group: String::new(),
            label: label.into(),
            value,
            interval: None,
            marks: Vec::new(),
            text: text.into(),
        }
    }
}

pub(super) struct Axis {
    pub label: &'static str,
    pub is_log: bool,
}

/// Lines and points.
pub(super) struct Lines {
    pub x: Axis,
    pub y: Axis,
    /// Drawn in this order.
    pub series: Vec<Series>,
}

pub(super) struct Series {
    /// Name in the legend.
    pub name: String,
    pub shape: Shape,
}

pub(super) enum Shape {
    Line(Vec<(f64, f64)>),
    Points {
        points: Vec<Point>,
        hollow: bool,
    },
    /// The area between two lines: x, low, high.
    Band(Vec<(f64, f64, f64)>),
}

pub(super) struct Point {
    pub x: f64,
    pub y: f64,
    /// Interval of `y`.
    pub interval: Option<(f64, f64)>,
}

impl Point {
    pub(super) fn at(x: f64, y: f64) -> Self {
        Self { x, y, interval: None }
    }
}

/// An image of a dataset.
pub(super) struct Picture {
    pub jpeg: Vec<u8>,
    /// Text alternative.
    pub alt: String,
    /// Whether its class was predicted, if it has a prediction.
    pub is_correct: Option<bool>,
    /// Its caption, or its class and the predicted one.
    pub text: String,
}

impl Section {
    /// A section; none without blocks.
    pub(super) fn new(id: &'static str, title: &'static str, blocks: Vec<Block>) -> Option<Self> {
        (!blocks.is_empty()).then_some(Self { id, title, blocks })
    }
}

impl Table {
    pub(super) fn new(caption: impl Into<String>, head: &[(&'static str, bool)]) -> Self {
        Self { caption: caption.into(), head: head.to_vec(), ..Self::default() }
    }

    pub(super) fn at_most(mut self, rows: usize) -> Self {
        self.more = self.rows.len().saturating_sub(rows);
        self.rows.truncate(rows);
        self
    }

    pub(super) fn open(self) -> Block {
        Block::Table { table: self, folded: false }
    }

    pub(super) fn folded(self) -> Block {
        Block::Table { table: self, folded: true }
    }
}
