//! Options that several stages share: defaults and checks, none of which does I/O.

use arrow::datatypes::Schema;
use twinlens_image::{Encode, Limits, Resize};
use twinlens_pipeline::{Fault, Located, Ports, rejects};

use crate::net::HttpOptions;

/// The default of an option, which has no location in a file.
pub(super) fn default_option<T: Default>() -> Located<T> {
    Located::without_span(T::default())
}

/// Checks an `http` table.
pub(super) fn check_http(ports: &mut Ports<'_>, http: &Located<HttpOptions>) {
    if let Err(why) = http.check() {
        ports.fault(Fault::at(http.span(), why));
    }
}

/// Checks the image options.
pub(super) fn check_images(
    ports: &mut Ports<'_>,
    resize: &Located<Resize>,
    encode: &Located<Encode>,
    limits: &Located<Limits>,
) {
    let checks =
        [(resize.span(), resize.check()), (encode.span(), encode.check()), (limits.span(), limits.check())];
    for (span, check) in checks {
        if let Err(error) = check {
            ports.fault(Fault::at(span, error.to_string()));
        }
    }
}

/// Checks the columns to `keep` besides those of `schema`: no name may occur twice.
pub(super) fn check_keep(ports: &mut Ports<'_>, keep: &[Located<String>], schema: &Schema) {
    let mut names: Vec<&str> = rejects::RESERVED.to_vec();
    names.extend(schema.fields().iter().map(|field| field.name().as_str()));
    for name in keep {
        if names.contains(&name.as_str()) {
            let message = format!("there is already a column `{}`", name.value());
            ports.fault(Fault::at(name.span(), message));
        }
        names.push(name);
    }
}

/// The names of a list of columns.
pub(super) fn names(columns: &[Located<String>]) -> Vec<String> {
    columns.iter().map(|name| name.value().clone()).collect()
}
