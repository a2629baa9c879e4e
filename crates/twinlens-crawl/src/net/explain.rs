//! What an error of the HTTP library means.

use std::io;

use url::Url;

use super::error::{FetchError, Why};

type AnyError = dyn std::error::Error + 'static;

/// An error and those below it. An I/O error that wraps another counts the wrapped one as below it,
/// which `source` leaves out.
fn chain(error: &AnyError) -> impl Iterator<Item = &AnyError> {
    std::iter::successors(Some(error), |error| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &AnyError),
            None => error.source(),
        }
    })
}

/// The chain as one line.
fn line<'a>(errors: impl Iterator<Item = &'a AnyError>) -> String {
    let mut parts: Vec<String> = errors.map(ToString::to_string).collect();
    parts.dedup();
    parts.join(": ")
}

/// An error and those below it, as one line.
pub(super) fn one_line(error: &AnyError) -> String {
    line(chain(error))
}

/// The first error of a type in the chain.
fn find<E: std::error::Error + 'static>(error: &AnyError) -> Option<&E> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// The kind of the innermost I/O error of the chain.
fn io_kind(error: &AnyError) -> Option<io::ErrorKind> {
    chain(error).filter_map(|error| error.downcast_ref()).last().map(io::Error::kind)
}

/// What an error before the body means.
pub(super) fn explain(url: &Url, error: &reqwest::Error) -> FetchError {
    use io::ErrorKind;
    if let Some(own) = find::<FetchError>(error) {
        return own.clone();
    }
    let why = if error.is_connect() {
        match io_kind(error) {
            _ if error.is_timeout() => Why::TimeoutConnect,
            // What rustls refuses comes as invalid data.
            Some(ErrorKind::InvalidData | ErrorKind::UnexpectedEof) if url.scheme() == "https" => Why::Tls,
            _ => Why::Connect,
        }
    } else {
        match find::<hyper::Error>(error) {
            Some(error) if error.is_parse() => Why::BadResponse,
            _ => Why::Reset,
        }
    };
    // Without the URL, which stands beside it in the ledger.
    let detail = line(chain(error).skip(1));
    FetchError::new(why, detail)
}

/// What an error within the body means.
pub(super) fn broken(error: &reqwest::Error, came: usize, length: Option<u64>) -> FetchError {
    use io::ErrorKind;
    let why = match io_kind(error) {
        Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted) => Why::Reset,
        _ => Why::Truncated,
    };
    let detail = match (why, length) {
        (Why::Reset, _) => "the connection broke within the body".into(),
        (_, Some(length)) => format!("the body ended after {came} of {length} bytes"),
        (_, None) => format!("the body ended in the middle, after {came} bytes"),
    };
    FetchError::new(why, detail)
}
