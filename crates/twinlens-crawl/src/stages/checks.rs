//! Checks of options that several kinds have. None does any I/O.

use arrow::datatypes::Schema;
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::{Fault, Located, Tables, rejects};

use crate::net::HttpOptions;

/// What is wrong with an `http` table.
pub(super) fn http(http: &Located<HttpOptions>) -> Vec<Fault> {
    http.check().err().map(|why| Fault::at(http.span(), why)).into_iter().collect()
}

/// What is wrong with what is to become of images.
pub(super) fn images(
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

/// What is wrong with the columns to `keep` beside those of a `schema`: no name may stand twice.
pub(super) fn kept(keep: &[Located<String>], schema: &Schema) -> Vec<Fault> {
    let mut names: Vec<&str> = rejects::RESERVED.to_vec();
    names.extend(schema.fields().iter().map(|field| field.name().as_str()));
    let mut faults = Vec::new();
    for name in keep {
        if names.contains(&name.as_str()) {
            let message = format!("the table has a column `{}` already", name.value());
            faults.push(Fault::at(name.span(), message));
        }
        names.push(name);
    }
    faults
}

/// The tables of a stage, if nothing is wrong with it.
pub(super) fn tables(faults: Vec<Fault>, tables: impl FnOnce() -> Tables) -> Result<Tables, Vec<Fault>> {
    if faults.is_empty() { Ok(tables()) } else { Err(faults) }
}
