//! The bytes of an image before they are looked at, and why there are none.

use tokio::sync::OwnedSemaphorePermit;

use crate::net::{Reservation, Response};

/// The bytes of a response or file.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    /// Their place in the budget.
    pub(super) reservation: Reservation,
    /// Held until they are processed, so that no more come than can be processed.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl From<Response> for Body {
    fn from(Response { body, reservation, permit, .. }: Response) -> Self {
        Self { bytes: body, reservation, permit }
    }
}

/// Why an image is missing: reject code and details.
#[derive(Debug)]
pub(super) struct Rejection {
    pub(super) code: &'static str,
    pub(super) detail: String,
}
