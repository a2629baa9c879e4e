//! A small web server on loopback that can misbehave in every way that a crawler meets.
//!
//! It speaks HTTP/1.1 over plain sockets, one request a connection, because the misbehaviour is below what a web framework
//! lets through: a body that ends early, headers that never end, a connection that is reset. The server stops
//! when its handle is dropped.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

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

/// How the server answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A well-formed response.
    Plain {
        /// The status.
        status: u16,
        /// Headers beside `content-length`.
        headers: Vec<(String, String)>,
        /// The body.
        body: Vec<u8>,
    },
    /// A body without a length that never ends, as fast as the client reads.
    EndlessBody,
    /// A body of the announced length that trickles: some bytes, a pause, some bytes.
    SlowBody {
        /// Bytes at a time.
        chunk: usize,
        /// The pause.
        pause: Duration,
        /// Announced length, in bytes.
        length: usize,
    },
    /// The connection is accepted and nothing is ever sent.
    StalledHeaders,
    /// Headers of many megabytes.
    HugeHeaders,
    /// The announced length is longer than the body, which is all that comes.
    TruncatedBody {
        /// Announced length, in bytes.
        length: usize,
        /// What comes.
        body: Vec<u8>,
    },
    /// A chunked body that ends in the middle of a chunk.
    TruncatedChunks,
    /// The connection is reset instead of an answer.
    Reset,
    /// Bytes that are not HTTP.
    Garbage,
    /// Another answer, late.
    Late(Duration, Box<Answer>),
}

impl Answer {
    /// A response with a status and no body.
    pub fn status(status: u16) -> Self {
        Self::Plain { status, headers: Vec::new(), body: Vec::new() }
    }

    /// 200 with a body of a content type.
    pub fn body(content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::Plain { status: 200, headers: Vec::new(), body: body.into() }
            .header("content-type", content_type)
    }

    /// An HTML page.
    pub fn page(html: &str) -> Self {
        Self::body("text/html; charset=utf-8", html)
    }

    /// A redirect (302).
    pub fn redirect(to: &str) -> Self {
        Self::status(302).header("location", to)
    }

    /// With one more header; only a plain answer has any.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Plain { headers, .. } = &mut self {
            headers.push((name.into(), value.into()));
        }
        self
    }
}

/// What is where. A path may have several answers: one a request, the last one for all further requests.
#[derive(Debug, Clone, Default)]
pub struct Site {
    answers: BTreeMap<String, Vec<Answer>>,
}

impl Site {
    /// A site where everything is 404.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an answer for a path (with its query).
    pub fn at(mut self, path: &str, answer: Answer) -> Self {
        self.answers.entry(path.into()).or_default().push(answer);
        self
    }

    /// Adds an HTML page.
    pub fn page(self, path: &str, html: &str) -> Self {
        self.at(path, Answer::page(html))
    }

    /// Adds a PNG image.
    pub fn image(self, path: &str, width: u32, height: u32) -> Self {
        self.at(path, Answer::body("image/png", png(width, height)))
    }
}

/// A PNG of a colour gradient; its size is part of the pattern, so that two sizes are two images.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, ((width + 3 * height) % 256) as u8])
    });
    let mut bytes = io::Cursor::new(Vec::new());
    // Encoding a plain RGB image into memory does not fail; if it does, the test that uses it will.
    let written = pixels.write_to(&mut bytes, image::ImageFormat::Png);
    debug_assert!(written.is_ok(), "{written:?}");
    bytes.into_inner()
}

/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Debug)]
struct Shared {
    site: Site,
    log: Mutex<Vec<Request>>,
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
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared { site, log: Mutex::default() });
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

    /// All requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The paths of all requests so far.
    pub fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.paths().iter().filter(|asked| *asked == path).count()
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
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let shared = shared.clone();
        connections.spawn(async move {
            // A client that goes away in the middle is what the tests are about.
            let _gone = serve(stream, &shared).await;
        });
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let Some(request) = read_request(&mut stream).await? else { return Ok(()) };
    let answer = {
        let mut log = shared.log.lock().unwrap_or_else(PoisonError::into_inner);
        let before = log.iter().filter(|earlier| earlier.path == request.path).count();
        let answers = shared.site.answers.get(&request.path).map(Vec::as_slice).unwrap_or_default();
        let answer = answers.get(before).or(answers.last()).cloned();
        log.push(request);
        answer.unwrap_or_else(|| Answer::status(404))
    };
    send(&mut stream, answer).await
}

/// The request's head; `None` when the client closes first.
async fn read_request(stream: &mut TcpStream) -> io::Result<Option<Request>> {
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

async fn send(stream: &mut TcpStream, answer: Answer) -> io::Result<()> {
    let mut answer = answer;
    while let Answer::Late(pause, inner) = answer {
        tokio::time::sleep(pause).await;
        answer = *inner;
    }
    match answer {
        Answer::Plain { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} Status\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(b"connection: close\r\n\r\n").await?;
            stream.write_all(&body).await?;
            stream.shutdown().await
        }
        Answer::EndlessBody => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\nconnection: close\r\n\r\n")
                .await?;
            loop {
                stream.write_all(&[b'x'; 16 << 10]).await?;
            }
        }
        Answer::SlowBody { chunk, pause, length } => {
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            let mut left = length;
            while left > 0 {
                let now = chunk.min(left);
                stream.write_all(&vec![b'x'; now]).await?;
                left -= now;
                tokio::time::sleep(pause).await;
            }
            stream.shutdown().await
        }
        Answer::StalledHeaders => std::future::pending().await,
        Answer::HugeHeaders => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            let line = format!("x-padding: {}\r\n", "y".repeat(8 << 10));
            for _ in 0..4096 {
                stream.write_all(line.as_bytes()).await?;
            }
            stream.write_all(b"\r\n").await
        }
        Answer::TruncatedBody { length, body } => {
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
            stream.shutdown().await
        }
        Answer::TruncatedChunks => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\nxxxx").await?;
            stream.shutdown().await
        }
        Answer::Reset => stream.set_zero_linger(),
        Answer::Garbage => {
            stream.write_all(b"this is not the protocol you are looking for\r\n\r\n").await?;
            stream.shutdown().await
        }
        Answer::Late(..) => Ok(()),
    }
}
