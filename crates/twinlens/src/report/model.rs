//! What a report says, before it is a page or text in a terminal.

/// A report of a run.
pub struct Report {
    /// The pipeline's name.
    pub title: String,
    /// A few sentences: what was built, how good it is, where it fails.
    pub summary: Vec<Fact>,
    /// The rest, in order.
    pub sections: Vec<Section>,
}

/// A number at the head of the report.
pub struct Fact {
    /// What it is.
    pub name: &'static str,
    /// The number, or a few words.
    pub value: String,
    /// What it means.
    pub about: String,
}

/// One part of a report.
pub struct Section {
    /// Names it in the page.
    pub id: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// What it shows.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
pub enum Block {
    /// A paragraph.
    Text(String),
    /// A table; `folded` ones are opened by who wants them.
    Table { table: Table, folded: bool },
    /// A chart, and the numbers that it shows.
    Chart { chart: Chart, numbers: Table },
    /// Images with what the model says of them.
    Pictures(Vec<Picture>),
}

/// Rows for people.
#[derive(Default)]
pub struct Table {
    /// What they are.
    pub caption: String,
    /// Names of the columns, and whether their values are numbers.
    pub head: Vec<(&'static str, bool)>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
    /// Rows that are left out.
    pub more: usize,
}

/// A chart.
pub struct Chart {
    /// Its caption.
    pub title: String,
    /// What it shows, for those who do not see it.
    pub alt: String,
    /// The picture.
    pub plot: Plot,
}

/// The picture of a chart.
pub enum Plot {
    /// Horizontal bars, one below the other.
    Bars(Bars),
    /// Lines and points over two axes.
    Lines(Lines),
}

/// Horizontal bars.
pub struct Bars {
    /// What the lengths are.
    pub unit: &'static str,
    /// The bars.
    pub bars: Vec<Bar>,
    /// What the marks on the bars mean.
    pub marks: Vec<&'static str>,
}

/// One bar.
pub struct Bar {
    /// What it is of.
    pub label: String,
    /// Its length.
    pub value: f64,
    /// The interval of the value.
    pub interval: Option<(f64, f64)>,
    /// Other values on the same scale, by the order of [`Bars::marks`].
    pub marks: Vec<Option<f64>>,
    /// The value as it is written.
    pub text: String,
}

/// An axis.
pub struct Axis {
    /// What it is.
    pub label: &'static str,
    /// Whether equal steps are equal factors.
    pub log: bool,
}

/// Lines and points.
pub struct Lines {
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn, the first at the bottom.
    pub series: Vec<Series>,
}

/// What belongs together.
pub struct Series {
    /// Its name in the key.
    pub name: String,
    /// How it is drawn.
    pub shape: Shape,
}

/// How a series is drawn.
pub enum Shape {
    /// A line through points.
    Line(Vec<(f64, f64)>),
    /// Points with the ends of their intervals.
    Points { at: Vec<Point>, hollow: bool },
    /// What lies between two lines: x, low, high.
    Band(Vec<(f64, f64, f64)>),
}

/// A point and the interval of its height.
pub struct Point {
    /// Where.
    pub x: f64,
    /// How high.
    pub y: f64,
    /// From where to where it may be.
    pub interval: Option<(f64, f64)>,
}

impl Point {
    /// A point without interval.
    pub fn at(x: f64, y: f64) -> Self {
        Self { x, y, interval: None }
    }
}

/// An image and what the model says of it.
pub struct Picture {
    /// The image, as a PNG.
    pub png: Vec<u8>,
    /// What it is, for those who do not see it.
    pub alt: String,
    /// What it is.
    pub label: String,
    /// What the model says.
    pub predicted: String,
    /// Whether that is right.
    pub right: bool,
}

impl Section {
    /// A section without data: a sentence says so.
    pub fn without(id: &'static str, title: &'static str, why: &str) -> Self {
        Self { id, title, blocks: vec![Block::Text(why.into())] }
    }
}

impl Table {
    /// At most so many rows.
    pub fn at_most(mut self, rows: usize) -> Self {
        self.more = self.rows.len().saturating_sub(rows);
        self.rows.truncate(rows);
        self
    }

    /// As a block that is open.
    pub fn open(self) -> Block {
        Block::Table { table: self, folded: false }
    }

    /// As a block that is folded.
    pub fn folded(self) -> Block {
        Block::Table { table: self, folded: true }
    }
}
