//! Options that several stages share: defaults and checks, none of which does I/O.

use arrow::datatypes::Schema;
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::{Fault, Located, Tables, rejects};

use crate::net::HttpOptions;

/// The default of an option, which has no location in a file.
pub(super) fn default_option<T: Default>() -> Located<T> {
    Located::without_span(T::default())
}

/// Faults of an `http` table.
pub(super) fn http_faults(http: &Located<HttpOptions>) -> Vec<Fault> {
    http.check().err().map(|why| Fault::at(http.span(), why)).into_iter().collect()
}

/// Faults of the image options.
pub(super) fn image_faults(
    resize: &Located<Resize>,
    encode: &Located<Encode>,
    limits: &Located<Limits>,
) -> Vec<Fault> {
    let checks =
        [(resize.span(), resize.check()), (encode.span(), encode.check()), (limits.span(), limits.check())];
    let fault = |(span, check): (_, Result<(), _>)| {
        check.err().map(|error: twinlens_image::ImageError| Fault::at(span, error.to_string()))
    };
    checks.into_iter().filter_map(fault).collect()
}

/// Faults of the columns to `keep` besides those of `schema`: no name may occur twice.
pub(super) fn keep_faults(keep: &[Located<String>], schema: &Schema) -> Vec<Fault> {
    let mut names: Vec<&str> = rejects::RESERVED.to_vec();
    names.extend(schema.fields().iter().map(|field| field.name().as_str()));
    let mut faults = Vec::new();
    for name in keep {
        if names.contains(&name.as_str()) {
            let message = format!("there is already a column `{}`", name.value());
            faults.push(Fault::at(name.span(), message));
        }
        names.push(name);
    }
    faults
}

/// The tables of a stage, unless there are faults.
pub(super) fn tables_or_faults(
    faults: Vec<Fault>,
    tables: impl FnOnce() -> Tables,
) -> Result<Tables, Vec<Fault>> {
    if faults.is_empty() { Ok(tables()) } else { Err(faults) }
}
