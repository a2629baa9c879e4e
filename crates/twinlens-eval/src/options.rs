//! Checks of options that several stages have.

use twinlens_image::Limits;
use twinlens_pipeline::{Fault, Located};

pub(crate) fn limits_or_default(limits: Option<&Located<Limits>>) -> Limits {
    limits.map(|limits| limits.value().clone()).unwrap_or_default()
}

pub(crate) fn check_limits(limits: Option<&Located<Limits>>) -> Option<Fault> {
    let limits = limits?;
    Some(Fault::at(limits.span(), limits.check().err()?.to_string()))
}

pub(crate) fn check_positive<T: Default + PartialEq>(name: &str, value: &Located<T>) -> Option<Fault> {
    value.is_default().then(|| Fault::at(value.span(), format!("`{name}` is 0")).label("expected at least 1"))
}
