//! Reads bodies within their limits.

use std::io::{self, Read};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::time::{Instant, timeout_at};
use twinlens_pipeline::budget::{ByteBudget, Reservation};

use super::error::{FetchError, FetchErrorKind};
use super::explain::classify_body_error;
use super::options::{HttpOptions, seconds};
use super::request::Request;
use crate::coding::Coding;

/// Bytes that are decoded before other tasks get a turn.
const DECODED_PIECE: u64 = 256 << 10;
/// First reservation for a body of unknown length, in bytes.
const UNKNOWN_LENGTH: u64 = 64 << 10;

/// Reads a body; its bytes are reserved before they are read.
pub(super) async fn read_body(
    http: reqwest::Response,
    request: &Request<'_>,
    options: &HttpOptions,
    budget: &ByteBudget,
) -> Result<(Vec<u8>, Reservation), FetchError> {
    let (length, max_bytes) = (http.content_length(), request.max_bytes);
    let too_long = || {
        FetchError::new(FetchErrorKind::TooManyBytes, format!("the body is longer than {max_bytes} bytes"))
    };
    if length.is_some_and(|length| length > max_bytes) && !request.truncate {
        return Err(too_long());
    }
    let expected = length.unwrap_or(UNKNOWN_LENGTH).min(max_bytes);
    let mut reservation = budget.reserve(expected).await;
    let mut body = Vec::new();
    let mut chunks = Chunks::new(http, options);
    while let Some(chunk) = chunks.next(body.len()).await? {
        if length.is_none() {
            let (waiting, needed) = (Instant::now(), (body.len() + chunk.len()) as u64);
            // Doubles, as buffers do.
            budget.grow(&mut reservation, needed.next_power_of_two().min(max_bytes)).await;
            chunks.extend_limits(waiting.elapsed());
        } else if body.capacity() == 0 {
            // Only now that bytes arrived: a large announced length alone must not cost memory.
            body.reserve_exact(expected as usize);
        }
        let room = (max_bytes as usize).saturating_sub(body.len());
        if chunk.len() > room && !request.truncate {
            return Err(too_long());
        }
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            break;
        }
    }
    reservation.shrink(body.len() as u64);
    Ok((body, reservation))
}

/// Undoes the codings of a body, the last first, within the limits. A truncated body is used as far
/// as it can be decoded, as browsers do.
pub(super) async fn decode_body(
    codings: &[Coding],
    body: (Vec<u8>, Reservation),
    request: &Request<'_>,
    budget: &ByteBudget,
) -> Result<(Vec<u8>, Reservation), FetchError> {
    let (mut body, mut reservation) = body;
    for coding in codings.iter().rev() {
        let mut decoded_reservation = Reservation::default();
        let Some(mut decoder) = coding.decoder(&body) else { continue };
        let mut decoded = Vec::new();
        loop {
            let room = (request.max_bytes + 1).saturating_sub(decoded.len() as u64).min(DECODED_PIECE);
            let needed = (decoded.len() as u64 + room).next_power_of_two() + coding.window_bytes();
            budget.grow(&mut decoded_reservation, needed).await;
            let before = decoded.len();
            let read = decoder.by_ref().take(room).read_to_end(&mut decoded);
            match read {
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof || decoded.is_empty() => {
                    let detail = format!("content coding `{}`: {error}", coding.name());
                    return Err(FetchError::new(FetchErrorKind::ContentEncoding, detail));
                }
                _ if decoded.len() as u64 > request.max_bytes => {
                    if !request.truncate {
                        let detail = format!("the decoded body is longer than {} bytes", request.max_bytes);
                        return Err(FetchError::new(FetchErrorKind::TooManyBytes, detail));
                    }
                    decoded.truncate(request.max_bytes as usize);
                    break;
                }
                Err(_) => break,
                Ok(_) if decoded.len() == before => break,
                Ok(_) => tokio::task::yield_now().await,
            }
        }
        drop(decoder);
        decoded_reservation.shrink(decoded.len() as u64);
        (body, reservation) = (decoded, decoded_reservation);
    }
    Ok((body, reservation))
}

/// The chunks of a body, within the time limit and above the minimum rate.
struct Chunks<'a> {
    http: reqwest::Response,
    /// The announced length.
    length: Option<u64>,
    options: &'a HttpOptions,
    end: Instant,
    /// When the minimum rate starts to apply.
    grace_end: Instant,
}

impl<'a> Chunks<'a> {
    fn new(http: reqwest::Response, options: &'a HttpOptions) -> Self {
        let start = Instant::now();
        Self {
            length: http.content_length(),
            http,
            options,
            end: start + seconds(options.body_timeout),
            grace_end: start + seconds(options.min_rate_after),
        }
    }

    /// The next chunk after `received` bytes.
    async fn next(&mut self, received: usize) -> Result<Option<Bytes>, FetchError> {
        // When the bytes so far fall below the minimum rate.
        let slow = match self.options.min_rate {
            0 => self.end,
            rate => self.grace_end + Duration::from_secs_f64(received as f64 / rate as f64),
        };
        // Neither message has the byte count: rejects would differ from run to run.
        let (kind, detail) = match timeout_at(self.end.min(slow), self.http.chunk()).await {
            Ok(chunk) => {
                return chunk.map_err(|error| classify_body_error(&error, received, self.length));
            }
            Err(_) if slow < self.end => {
                (FetchErrorKind::TooSlow, format!("slower than {} bytes per second", self.options.min_rate))
            }
            Err(_) => {
                let limit = self.options.body_timeout;
                (FetchErrorKind::TimeoutBody, format!("the body did not end within {limit} s"))
            }
        };
        Err(FetchError::new(kind, detail))
    }

    /// Waiting for our own budget is not the server's fault.
    fn extend_limits(&mut self, waited: Duration) {
        (self.end, self.grace_end) = (self.end + waited, self.grace_end + waited);
    }
}
