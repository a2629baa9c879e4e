//! Serves the site on a loopback port until its handle is dropped.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::catalog::Catalog;
use crate::site::Site;

#[derive(Debug, thiserror::Error)]
pub enum GalleryError {
    /// The machine has no loopback interface or no free port.
    #[error("the gallery cannot listen on 127.0.0.1: {0}")]
    Listen(#[from] std::io::Error),
}

/// The running site. Dropping it stops the server after answering requests in progress.
#[derive(Debug)]
pub struct Gallery {
    addr: SocketAddr,
    shared: Arc<Shared>,
    /// Dropped with the handle, which stops the server.
    _stop: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    site: Site,
    requests: Mutex<BTreeMap<String, u64>>,
}

/// Unknown paths share two counters, so that the number of counters is bounded.
fn unknown_key(path: &str) -> &'static str {
    if path.starts_with("/private/") { "/private/(unknown)" } else { "(unknown)" }
}

impl Shared {
    /// Counts a request and returns the number of earlier ones.
    fn count(&self, path: &str) -> u64 {
        let key = if self.site.contains(path) { path } else { unknown_key(path) };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let count = requests.entry(key.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}

/// Serves the gallery on a free port of 127.0.0.1.
///
/// # Errors
/// [`GalleryError::Listen`] if no port is free.
pub async fn serve() -> Result<Gallery, GalleryError> {
    let shared = Arc::new(Shared { site: Site::build(), requests: Mutex::default() });
    let router = Router::new().fallback_service(get(answer).with_state(Arc::clone(&shared)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        // An error means that the handle was dropped.
        let _ = stopped.await;
    });
    tokio::spawn(server.into_future());
    Ok(Gallery { addr, shared, _stop: stop })
}

/// Answers GET; for HEAD, axum drops the body.
async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    let is_repeated = shared.count(uri.path()) > 0;
    let answer = shared.site.answer(uri.path(), is_repeated);
    if !answer.delay.is_zero() {
        tokio::time::sleep(answer.delay).await;
    }
    let mut response =
        Response::builder().status(answer.status).header(header::CONTENT_TYPE, answer.content_type);
    if let Some((name, value)) = answer.header {
        response = response.header(name, value);
    }
    // Cannot fail: a test requests all quirks, which are the source of statuses and headers.
    response
        .body(Body::from(answer.body))
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

impl Gallery {
    /// The address of [`crate::HOST`].
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn catalog(&self) -> &Catalog {
        self.shared.site.catalog()
    }

    /// Requests so far (GET and HEAD) for paths that begin with `prefix`.
    pub fn requests_under(&self, prefix: &str) -> u64 {
        let requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().filter(|(path, _)| path.starts_with(prefix)).map(|(_, count)| count).sum()
    }

    /// Requests so far for a path of the site.
    pub fn requests(&self, path: &str) -> u64 {
        let requests = self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.get(path).copied().unwrap_or(0)
    }
}
