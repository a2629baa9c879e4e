//! A small web server on loopback that can misbehave in every way that a crawler meets.
//!
//! It speaks HTTP/1.1 over plain sockets, because no web framework can send a body that ends early,
//! headers that never end, or a reset. It serves one request per connection unless the [`Site`]
//! keeps connections alive. The server stops when its handle is dropped.

mod answer;
mod faults;
mod request;
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
pub use request::Request;
pub use site::{Site, png};
pub use tls::{Certificate, HOST};

/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Debug)]
struct Shared {
    site: Site,
    faults_disabled: AtomicBool,
    record: Mutex<Record>,
    tls: Option<tls::Acceptor>,
}

/// The requests so far.
#[derive(Debug, Default)]
struct Record {
    log: Vec<Request>,
    counts: HashMap<String, usize>,
    connections: usize,
}

/// A running server.
#[derive(Debug)]
pub struct WebServer {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

impl WebServer {
    /// Serves a site on 127.0.0.1, on a port that the system picks.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(site: Site) -> io::Result<Self> {
        Self::listen(site, None).await
    }

    /// Serves a site over TLS as the host `localhost.test`; the client chooses HTTP/1.1 or HTTP/2.
    /// Also returns the issuer's certificate (DER), which a client must trust.
    ///
    /// # Errors
    /// When no port is free or the certificate cannot be made.
    pub async fn start_tls(site: Site, certificate: Certificate) -> io::Result<(Self, Vec<u8>)> {
        let (acceptor, trusted) = tls::Acceptor::new(certificate)?;
        Ok((Self::listen(site, Some(acceptor)).await?, trusted))
    }

    async fn listen(site: Site, tls: Option<tls::Acceptor>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (faults_disabled, record) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { site, faults_disabled, record, tls });
        let accepting = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Ok(Self { addr, shared, accepting })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL of a path, with the address as host.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.shared.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All requests so far in order of arrival, without headers if the site was made
    /// [`without_headers`](Site::without_headers).
    pub fn requests(&self) -> Vec<Request> {
        self.record().log.clone()
    }

    /// The paths of all requests so far.
    pub fn paths(&self) -> Vec<String> {
        self.record().log.iter().map(|request| request.path.clone()).collect()
    }

    /// The number of requests for a path.
    pub fn count(&self, path: &str) -> usize {
        self.record().counts.get(path).copied().unwrap_or_default()
    }

    /// The number of connections made.
    pub fn connections(&self) -> usize {
        self.record().connections
    }

    /// From now on the faults of [`Site::with_faults`] no longer occur.
    pub fn disable_faults(&self) {
        self.shared.faults_disabled.store(true, Ordering::SeqCst);
    }
}

impl Drop for WebServer {
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
            // Out of sockets for now. If the server stopped here, it would look down.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let shared = shared.clone();
        connections.spawn(async move {
            // Tests disconnect in the middle on purpose.
            let _disconnected = serve(stream, &shared).await;
        });
    }
}

impl Shared {
    /// Records a request and returns its answer.
    fn answer(&self, request: Request) -> Answer {
        let path = request.path.clone();
        let before = {
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            let headers = if self.site.omit_headers { Vec::new() } else { request.headers.clone() };
            record.log.push(Request { path: path.clone(), headers });
            let count = record.counts.entry(path.clone()).or_default();
            *count += 1;
            *count - 1
        };
        let answer = self.site.answer(&path, before).resolve(&request);
        match self.site.faults.as_ref().and_then(|faults| faults.for_path(&path)) {
            Some(fault) if !self.faults_disabled.load(Ordering::SeqCst) => fault.replace(answer),
            _ => answer,
        }
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    shared.record.lock().unwrap_or_else(PoisonError::into_inner).connections += 1;
    // Answers are written in one piece: Nagle's algorithm would only delay them.
    stream.set_nodelay(true)?;
    match &shared.tls {
        None => http1(stream, shared).await,
        Some(acceptor) => match acceptor.accept(stream).await? {
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

/// Reads the request's head. `None` when the client closes first.
async fn read_request(stream: &mut impl Connection) -> io::Result<Option<Request>> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            read => head.extend_from_slice(&buffer[..read]),
        }
        if head.first() == Some(&TLS_HANDSHAKE) {
            // A TLS handshake on a plain port: answer as common web servers do.
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
