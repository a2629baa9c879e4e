//! A small web server on loopback that can misbehave in every way that a crawler meets.
//!
//! It speaks HTTP/1.1 over plain sockets, because the misbehaviour is below what a web framework
//! lets through: a body that ends early, headers that never end, a connection that is reset. One
//! request a connection, unless the [`Site`] says otherwise. The server stops when its handle is
//! dropped.

mod answer;
mod faults;
mod site;
mod tls;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

pub use answer::Answer;
use answer::{Connection, send};
pub use faults::{FAULTS, Fault, Faults};
pub use site::{Site, png};
pub use tls::{Certificate, HOST};

/// One request that the server got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// Headers in order; names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The first header of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Debug)]
struct Shared {
    site: Site,
    healed: AtomicBool,
    seen: Mutex<Seen>,
    tls: Option<tls::Server>,
}

/// What was asked for.
#[derive(Debug, Default)]
struct Seen {
    log: Vec<Request>,
    counts: HashMap<String, usize>,
    connections: usize,
}

/// A running server.
#[derive(Debug)]
pub struct Web {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

impl Web {
    /// Serves a site on 127.0.0.1, on a port that the system picks.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(site: Site) -> io::Result<Self> {
        Self::listen(site, None).await
    }

    /// Serves a site over TLS, HTTP/1.1 or 2 as the client likes, as the host `localhost.test`.
    /// Also returns the certificate (DER) that a client must trust for the server's to be valid, if
    /// it can be.
    ///
    /// # Errors
    /// When no port or no certificate can be had.
    pub async fn start_tls(site: Site, certificate: Certificate) -> io::Result<(Self, Vec<u8>)> {
        let (server, trusted) = tls::Server::new(certificate)?;
        Ok((Self::listen(site, Some(server)).await?, trusted))
    }

    async fn listen(site: Site, tls: Option<tls::Server>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (healed, seen) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { site, healed, seen, tls });
        let accepting = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Ok(Self { addr, shared, accepting })
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL of a path, by address.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All requests so far, in the order in which they came; those of a quiet site without their
    /// headers.
    pub fn requests(&self) -> Vec<Request> {
        self.seen().log.clone()
    }

    /// The paths of all requests so far.
    pub fn paths(&self) -> Vec<String> {
        self.seen().log.iter().map(|request| request.path.clone()).collect()
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.seen().counts.get(path).copied().unwrap_or_default()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.seen().connections
    }

    /// From now on nothing fails that [`Site::failing`] made fail.
    pub fn heal(&self) {
        self.shared.healed.store(true, Ordering::SeqCst);
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task: a stalled connection does not outlive the server.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // No socket is free now: a server that stopped here would look like one that is down.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let shared = shared.clone();
        connections.spawn(async move {
            // A client that goes away in the middle is what the tests are about.
            let _gone = serve(stream, &shared).await;
        });
    }
}

impl Shared {
    /// The answer to a request, which is counted.
    fn answer(&self, request: Request) -> Answer {
        let path = request.path.clone();
        let before = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let headers = if self.site.quiet { Vec::new() } else { request.headers.clone() };
            seen.log.push(Request { path: path.clone(), headers });
            let count = seen.counts.entry(path.clone()).or_default();
            *count += 1;
            *count - 1
        };
        let answer = self.site.answer(&path, before).to(&request);
        match self.site.faults.as_ref().and_then(|faults| faults.of(&path)) {
            Some(fault) if !self.healed.load(Ordering::SeqCst) => fault.instead_of(answer),
            _ => answer,
        }
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    shared.seen.lock().unwrap_or_else(PoisonError::into_inner).connections += 1;
    // Answers are written whole: to wait for more would only delay them.
    stream.set_nodelay(true)?;
    match &shared.tls {
        None => http1(stream, shared).await,
        Some(server) => match server.accept(stream).await? {
            tls::Accepted::Http1(stream) => http1(stream, shared).await,
            tls::Accepted::Http2(stream) => tls::http2(stream, |request| shared.answer(request)).await,
        },
    }
}

async fn http1(mut stream: impl Connection, shared: &Shared) -> io::Result<()> {
    while let Some(request) = read_request(&mut stream).await? {
        let path = request.path.clone();
        let answer = shared.answer(request);
        if !send(&mut stream, &path, answer, shared.site.keep_alive).await? {
            break;
        }
    }
    Ok(())
}

/// The request's head; `None` when the client closes first.
async fn read_request(stream: &mut impl Connection) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            read => head.extend_from_slice(&buffer[..read]),
        }
        if head.first() == Some(&TLS_HANDSHAKE) {
            // As web servers do that are spoken to in TLS on their plain port.
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await?;
            stream.shutdown().await?;
            return Ok(None);
        }
    }
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.split("\r\n").take_while(|line| !line.is_empty());
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or("").to_string();
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers =
        headers.map(|(name, value)| (name.trim().to_lowercase(), value.trim().to_string())).collect();
    Ok(Some(Request { path, headers }))
}
