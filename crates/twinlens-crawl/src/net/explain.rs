//! From errors of the HTTP library to [`FetchError`]s.

use std::io;

use url::Url;

use super::error::{FetchError, FetchErrorKind};

type AnyError = dyn std::error::Error + 'static;

/// An error and its causes. The error that an I/O error wraps counts as its cause; `source` skips
/// it.
fn chain(error: &AnyError) -> impl Iterator<Item = &AnyError> {
    std::iter::successors(Some(error), |error| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &AnyError),
            None => error.source(),
        }
    })
}

fn join_messages<'a>(errors: impl Iterator<Item = &'a AnyError>) -> String {
    let mut parts: Vec<String> = errors.map(ToString::to_string).collect();
    parts.dedup();
    parts.join(": ")
}

/// An error and its causes on one line.
pub(super) fn error_chain(error: &AnyError) -> String {
    join_messages(chain(error))
}

/// The first error of a type in the chain.
fn find<E: std::error::Error + 'static>(error: &AnyError) -> Option<&E> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// The kind of the innermost I/O error of the chain.
fn io_kind(error: &AnyError) -> Option<io::ErrorKind> {
    chain(error).filter_map(|error| error.downcast_ref()).last().map(io::Error::kind)
}

/// Classifies an error that came before the body.
pub(super) fn classify_send_error(url: &Url, error: &reqwest::Error) -> FetchError {
    use io::ErrorKind;
    if let Some(own) = find::<FetchError>(error) {
        return own.clone();
    }
    let kind = if error.is_connect() {
        match io_kind(error) {
            _ if error.is_timeout() => FetchErrorKind::TimeoutConnect,
            // rustls reports what it refuses as invalid data.
            Some(ErrorKind::InvalidData | ErrorKind::UnexpectedEof) if url.scheme() == "https" => {
                FetchErrorKind::Tls
            }
            _ => FetchErrorKind::Connect,
        }
    } else {
        match find::<hyper::Error>(error) {
            Some(error) if error.is_parse() => FetchErrorKind::BadResponse,
            _ => FetchErrorKind::Reset,
        }
    };
    // The first message is about the URL, which the reject has in a column of its own.
    let detail = join_messages(chain(error).skip(1));
    FetchError::new(kind, detail)
}

/// Classifies an error within the body, of which `received` bytes arrived.
pub(super) fn classify_body_error(
    error: &reqwest::Error,
    received: usize,
    length: Option<u64>,
) -> FetchError {
    use io::ErrorKind;
    let kind = match io_kind(error) {
        Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted) => {
            FetchErrorKind::Reset
        }
        _ => FetchErrorKind::Truncated,
    };
    let detail = match (kind, length) {
        (FetchErrorKind::Reset, _) => "the connection broke within the body".into(),
        (_, Some(length)) => format!("the body ended after {received} of {length} bytes"),
        (_, None) => format!("the body ended in the middle, after {received} bytes"),
    };
    FetchError::new(kind, detail)
}
