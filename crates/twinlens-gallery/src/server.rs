//! The site on a loopback port, for as long as its handle lives.

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

use crate::Catalog;
use crate::site::Site;

/// The gallery could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum GalleryError {
    /// No loopback port could be had: the fault of the machine (no loopback interface, no free
    /// ports).
    #[error("the gallery cannot listen on 127.0.0.1: {0}")]
    Listen(#[from] std::io::Error),
}

/// The running site. Dropping it ends the server; answers under way are finished.
#[derive(Debug)]
pub struct Gallery {
    addr: SocketAddr,
    shared: Arc<Shared>,
    /// Dropped with the handle, which tells the server to end.
    _stop: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    site: Site,
    requests: Mutex<BTreeMap<String, u64>>,
}

/// All unknown paths are counted as two, so that the counters stay bounded.
fn unknown(path: &str) -> &'static str {
    if path.starts_with("/private/") { "/private/(unknown)" } else { "(unknown)" }
}

impl Shared {
    /// Counts a request; the number of requests before it.
    fn count(&self, path: &str) -> u64 {
        let key = if self.site.knows(path) { path } else { unknown(path) };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let count = requests.entry(key.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}

/// Opens the gallery on a free port of 127.0.0.1.
///
/// # Errors
/// [`GalleryError::Listen`] when there is no port to be had.
pub async fn serve() -> Result<Gallery, GalleryError> {
    let shared = Arc::new(Shared { site: Site::build(), requests: Mutex::default() });
    let router = Router::new().fallback_service(get(answer).with_state(Arc::clone(&shared)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async {
        // An error here is the sender's drop: the sign to end.
        let _ = stopped.await;
    });
    tokio::spawn(server.into_future());
    Ok(Gallery { addr, shared, _stop: stop })
}

/// Serves GET; axum makes HEAD of it by leaving the body out.
async fn answer(State(shared): State<Arc<Shared>>, uri: Uri) -> Response {
    let asked_before = shared.count(uri.path()) > 0;
    let answer = shared.site.answer(uri.path(), asked_before);
    if !answer.delay.is_zero() {
        tokio::time::sleep(answer.delay).await;
    }
    let mut response =
        Response::builder().status(answer.status).header(header::CONTENT_TYPE, answer.content_type);
    if let Some((name, value)) = answer.header {
        response = response.header(name, value);
    }
    // Not reached: statuses and headers come from the quirks' table, whose answers are all asked
    // for in a test.
    response
        .body(Body::from(answer.body))
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

impl Gallery {
    /// Where [`crate::HOST`] is to be found.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What is on show.
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
