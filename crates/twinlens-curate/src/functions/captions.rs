//! SQL functions over captions: language, words, boilerplate, masking.

use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};
use regex::{Regex, RegexSet};

use super::column::{function, strings};
use crate::matcher::{Matcher, Scratch};
use crate::text::Normalizer;

/// The functions of this module.
pub(super) fn all() -> Vec<ScalarUDF> {
    vec![
        tokens(),
        word_count(),
        language(),
        alphanumeric_ratio(),
        aspect_ratio(),
        is_boilerplate(),
        contains_words(),
    ]
}

/// A function of one text column.
fn text_function(
    name: &'static str,
    returns: DataType,
    body: impl Fn(&StringArray) -> ArrayRef + Send + Sync + 'static,
) -> ScalarUDF {
    let signature = Signature::string(1, Volatility::Immutable);
    function(name, signature, returns, move |columns| Ok(body(&strings(&columns[0])?)))
}

/// `tokens(text)`: the text as the matcher sees it: lower case, one space between words and
/// punctuation marks.
fn tokens() -> ScalarUDF {
    text_function("tokens", DataType::Utf8, |texts| {
        let mut tokens = String::new();
        let mut of = |text: &str| {
            Normalizer::default().tokens_into(text, &mut tokens);
            tokens.trim().to_owned()
        };
        Arc::new(texts.iter().map(|text| text.map(&mut of)).collect::<StringArray>())
    })
}

/// `word_count(text)`: the number of words, as the matcher splits them: punctuation does not count;
/// in scripts without spaces each character does.
fn word_count() -> ScalarUDF {
    text_function("word_count", DataType::Int64, |texts| {
        let (normalizer, mut tokens) = (Normalizer { fold_case: false }, String::new());
        let mut count = |text: &str| {
            normalizer.tokens_into(text, &mut tokens);
            tokens.split_ascii_whitespace().filter(|token| token.contains(char::is_alphanumeric)).count()
                as i64
        };
        Arc::new(texts.iter().map(|text| text.map(&mut count)).collect::<Int64Array>())
    })
}

/// `language(text)`: the ISO 639 code of the most likely language (two letters where one exists);
/// null for a text without letters. Text in Latin script is classified as one of de, en, es, fr,
/// it, nl, pt, sv, tr, vi, which is right for most captions of four words; other languages in that
/// script get the nearest of these.
fn language() -> ScalarUDF {
    text_function("language", DataType::Utf8, |texts| {
        Arc::new(texts.iter().map(|text| text.and_then(language_of)).collect::<StringArray>())
    })
}

fn language_of(text: &str) -> Option<&'static str> {
    let code = match whatlang::detect_script(text)? {
        whatlang::Script::Latin => whichlang::detect_language(text).three_letter_code(),
        _ => whatlang::detect_lang(text)?.code(),
    };
    let short = LANGUAGES.iter().find(|(long, _)| *long == code);
    Some(short.map_or(code, |(_, short)| short))
}

/// Codes of ISO 639-3 and 639-1, by frequency on the web.
const LANGUAGES: [(&str, &str); 44] = [
    ("eng", "en"),
    ("deu", "de"),
    ("rus", "ru"),
    ("jpn", "ja"),
    ("spa", "es"),
    ("fra", "fr"),
    ("cmn", "zh"),
    ("ita", "it"),
    ("por", "pt"),
    ("nld", "nl"),
    ("tur", "tr"),
    ("vie", "vi"),
    ("swe", "sv"),
    ("kor", "ko"),
    ("ara", "ar"),
    ("pes", "fa"),
    ("heb", "he"),
    ("yid", "yi"),
    ("hin", "hi"),
    ("mar", "mr"),
    ("nep", "ne"),
    ("ben", "bn"),
    ("urd", "ur"),
    ("tha", "th"),
    ("ell", "el"),
    ("ukr", "uk"),
    ("bel", "be"),
    ("bul", "bg"),
    ("srp", "sr"),
    ("mkd", "mk"),
    ("kat", "ka"),
    ("hye", "hy"),
    ("amh", "am"),
    ("guj", "gu"),
    ("pan", "pa"),
    ("tel", "te"),
    ("kan", "kn"),
    ("tam", "ta"),
    ("mal", "ml"),
    ("ori", "or"),
    ("mya", "my"),
    ("sin", "si"),
    ("khm", "km"),
    ("tuk", "tk"),
];

/// `alphanumeric_ratio(text)`: the share of letters and digits among all characters but white
/// space; null if there are none.
fn alphanumeric_ratio() -> ScalarUDF {
    let ratio = |text: &str| {
        let (mut all, mut of_words) = (0u32, 0u32);
        for c in text.chars().filter(|c| !c.is_whitespace()) {
            all += 1;
            of_words += u32::from(c.is_alphanumeric());
        }
        (all > 0).then(|| f64::from(of_words) / f64::from(all))
    };
    text_function("alphanumeric_ratio", DataType::Float64, move |texts| {
        Arc::new(texts.iter().map(|text| text.and_then(ratio)).collect::<Float64Array>())
    })
}

/// `aspect_ratio(width, height)`: the longer side divided by the shorter; null if a side is null or
/// not positive.
fn aspect_ratio() -> ScalarUDF {
    let signature = Signature::numeric(2, Volatility::Immutable);
    function("aspect_ratio", signature, DataType::Float64, |columns| {
        let sides = |column: &ArrayRef| Ok::<_, DataFusionError>(cast(column, &DataType::Float64)?);
        let (widths, heights) = (sides(&columns[0])?, sides(&columns[1])?);
        let (widths, heights) = (widths.as_primitive::<Float64Type>(), heights.as_primitive::<Float64Type>());
        let ratio = |(width, height): (Option<f64>, Option<f64>)| {
            let (width, height) = (width?, height?);
            (width > 0.0 && height > 0.0).then(|| (width / height).max(height / width))
        };
        Ok(Arc::new(widths.iter().zip(heights).map(ratio).collect::<Float64Array>()))
    })
}

/// Captions that say nothing about the image. They match the whole text, ignoring case and
/// surrounding white space.
const BOILERPLATE: [&str; 6] = [
    // No letter at all.
    r"^\P{L}*$",
    // A file name, a URL, an identifier.
    r"^\S+\.(jpe?g|png|gif|webp|bmp|svg|tiff?|heic|avif|ico)$",
    r"^(https?://|www\.)\S+$",
    r"^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$",
    // Default names of cameras, scanners and editors, and page elements.
    r"^(img|dsc[fn]?|dcim|pxl|mvi|p|pict?|image|images|photo|foto|picture|screen ?shot|scan|untitled|unnamed|figure|fig|slide|thumb|thumbnail|banner|logo|icon|avatar|button|spacer|placeholder|default|blank|background|bullet|arrow|header|footer|main|product|gallery|alt|null|none|undefined|n/?a)([ _.#-]*\(?[0-9_-]*\)?)$",
    // Captions that pages put beside every image.
    r"^(click (here|to|for|image|on)\b.*|read more|see more|learn more|view (larger|full|all|more)\b.*|enlarge( image)?|(no )?(image|photo|picture|preview|file)( is| was)?( not| un)? ?(available|found|missing|loading)|loading\W*|advertisement|share (on|via|to)\b.*|follow us\b.*|image may contain\b.*|(no )?alt(ernative)? text\b.*|no description( available)?|(image|photo|picture)( credits?)?( by)?:?|home( ?page)?|menu|search|close|next|prev(ious)?|play( video)?|zoom( in| out)?)$",
];

/// `is_boilerplate(text)`: whether a text is a file name, a URL, a number, or what a camera or page
/// puts on any image ("IMG_2041", "click to enlarge", "logo").
fn is_boilerplate() -> ScalarUDF {
    let rules = rules();
    text_function("is_boilerplate", DataType::Boolean, move |texts| {
        Arc::new(texts.iter().map(|text| Some(rules.is_match(text?.trim()))).collect::<BooleanArray>())
    })
}

#[expect(clippy::expect_used, reason = "the patterns are constants, and a test compiles them")]
fn rules() -> RegexSet {
    RegexSet::new(BOILERPLATE.map(|rule| format!("(?is){rule}"))).expect("the patterns are valid")
}

/// `contains_words(text, 'nude,top secret')`: whether any of the comma-separated words or phrases
/// occurs in the text as whole words, ignoring case.
fn contains_words() -> ScalarUDF {
    let signature = Signature::string(2, Volatility::Immutable);
    function("contains_words", signature, DataType::Boolean, |columns| {
        let (texts, lists) = (strings(&columns[0])?, strings(&columns[1])?);
        let mut last: Option<(&str, Matcher)> = None;
        let (mut scratch, mut ids) = (Scratch::default(), Vec::new());
        let mut found = Vec::with_capacity(columns[0].len());
        for (text, list) in texts.iter().zip(&lists) {
            let (Some(text), Some(list)) = (text, list) else {
                found.push(None);
                continue;
            };
            let matcher = match &mut last {
                Some((of, matcher)) if *of == list => matcher,
                other => &mut other.insert((list, words(list)?)).1,
            };
            matcher.matches_into(text, &mut scratch, &mut ids);
            found.push(Some(!ids.is_empty()));
        }
        Ok(Arc::new(BooleanArray::from(found)))
    })
}

fn words(list: &str) -> Result<Matcher> {
    Matcher::build(list.split(',').map(|word| (0, word)), Normalizer::default())
        .map_err(|error| DataFusionError::External(error.into()))
}

/// Replaces the matches of a regular expression.
pub(super) struct Mask {
    pattern: Regex,
    with: &'static str,
    /// Rejects false matches.
    accepts: fn(&str) -> bool,
}

impl Mask {
    #[expect(clippy::expect_used, reason = "the patterns are constants, and a test compiles them")]
    fn new(pattern: &str, with: &'static str, accepts: fn(&str) -> bool) -> Self {
        Self { pattern: Regex::new(pattern).expect("the pattern is valid"), with, accepts }
    }

    fn apply(&self, text: &str) -> String {
        let masked = |found: &regex::Captures<'_>| {
            let found = found.get(0).map_or("", |found| found.as_str());
            if (self.accepts)(found) { self.with.to_string() } else { found.to_string() }
        };
        self.pattern.replace_all(text, masked).into_owned()
    }

    fn function(self, name: &'static str) -> ScalarUDF {
        text_function(name, DataType::Utf8, move |texts| {
            Arc::new(texts.iter().map(|text| text.map(|text| self.apply(text))).collect::<StringArray>())
        })
    }
}

/// `mask_emails(text)` replaces every e-mail address by `<email>`; `mask_phones(text)` replaces
/// telephone numbers by `<phone>`: seven to fifteen digits after a `+` or with an area code in
/// brackets, or nine to fifteen digits in at least three groups. Dates, years and long plain
/// numbers stay.
pub(super) fn masks() -> Vec<ScalarUDF> {
    let email = r"(?i)\b[a-z0-9][a-z0-9._%+-]*@[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}\b";
    let phone = r"(\+|\b|\()\d+(\)?[ \u{a0}./-]{0,2}\(?\d+)*\b";
    vec![
        Mask::new(email, "<email>", |_| true).function("mask_emails"),
        Mask::new(phone, "<phone>", is_phone).function("mask_phones"),
    ]
}

fn is_phone(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let groups = text.split(|c: char| !c.is_ascii_digit()).filter(|group| !group.is_empty()).count();
    let marked = text.starts_with('+') || text.starts_with('(');
    if marked { (7..=15).contains(&digits) } else { (9..=15).contains(&digits) && groups >= 3 }
}
