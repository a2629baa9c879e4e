//! How the server answers a request: correctly, or in one of many wrong ways.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::request::Request;

/// How the server answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A well-formed response.
    Plain {
        status: u16,
        /// Headers other than `content-length`.
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// A body without a length that never ends, sent as fast as the client reads.
    EndlessBody,
    /// A body of the announced length that trickles: `chunk` bytes, a pause, `chunk` bytes.
    SlowBody {
        chunk: usize,
        pause: Duration,
        /// Announced length, in bytes.
        length: usize,
    },
    /// The connection is accepted, but nothing is ever sent.
    StalledHeaders,
    /// Headers of many megabytes.
    HugeHeaders,
    /// The connection ends after `body`, which is shorter than the announced length.
    TruncatedBody {
        /// Announced length, in bytes.
        length: usize,
        body: Vec<u8>,
    },
    /// A chunked body that ends in the middle of a chunk.
    TruncatedChunks,
    /// The connection is reset instead of an answer.
    Reset,
    /// Bytes that are not HTTP.
    Garbage,
    /// These bytes, then the connection is closed: for responses that are not quite HTTP.
    Raw(Vec<u8>),
    /// A redirect to the same path with its number incremented: endless redirects without a loop.
    RedirectChain,
    /// Another answer after a delay.
    Delayed(Duration, Box<Answer>),
    /// A versioned file that honours `Range`, `If-Range` and `If-None-Match`.
    File { etag: String, body: Arc<Vec<u8>> },
}

impl Answer {
    /// A response with a status and no body.
    pub fn status(status: u16) -> Self {
        Self::Plain { status, headers: Vec::new(), body: Vec::new() }
    }

    /// 200 with a body of this content type.
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

    /// A response whose head is sent verbatim, for headers that no framework would send.
    pub fn head(head: &str, body: &[u8]) -> Self {
        Self::Raw([head.replace('\n', "\r\n").as_bytes(), b"\r\n\r\n", body].concat())
    }

    /// A versioned file. Quotes are added to the tag.
    pub fn file(etag: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::File { etag: format!("\"{etag}\""), body: Arc::new(body.into()) }
    }

    /// Resolves a file against the conditional headers of a request; other answers are unchanged.
    pub(super) fn resolve(self, request: &Request) -> Self {
        let Self::File { etag, body } = self else { return self };
        let answer = |status, body: &[u8]| {
            Self::Plain { status, headers: Vec::new(), body: body.into() }.header("etag", &etag)
        };
        if request.header("if-none-match") == Some(&etag) {
            return answer(304, b"");
        }
        let same = request.header("if-range").is_none_or(|version| version == etag);
        let range = request.header("range").filter(|_| same).and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
        });
        match range {
            None => answer(200, &body),
            Some((first, _)) if first >= body.len() => answer(416, b""),
            Some((first, last)) => {
                let last = last.min(body.len() - 1);
                let range = format!("bytes {first}-{last}/{}", body.len());
                answer(206, &body[first..=last]).header("content-range", &range)
            }
        }
    }

    /// Adds a header to a plain answer.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Plain { headers, .. } = &mut self {
            headers.push((name.into(), value.into()));
        }
        self
    }
}

/// A connection that can be reset.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send {
    /// Turns the close of the connection into a reset.
    fn reset(&self) -> io::Result<()>;
}

impl Connection for TcpStream {
    fn reset(&self) -> io::Result<()> {
        self.set_zero_linger()
    }
}

impl Connection for TlsStream<TcpStream> {
    fn reset(&self) -> io::Result<()> {
        self.get_ref().0.set_zero_linger()
    }
}

/// Sends an answer to the request for `path`. Returns whether the connection can be reused.
pub(super) async fn send(
    stream: &mut impl Connection,
    path: &str,
    answer: Answer,
    keep_alive: bool,
) -> io::Result<bool> {
    let mut answer = answer;
    while let Answer::Delayed(pause, inner) = answer {
        tokio::time::sleep(pause).await;
        answer = *inner;
    }
    match answer {
        Answer::Plain { status, headers, body } => {
            plain(stream, status, &headers, &body, keep_alive).await?;
            return Ok(keep_alive);
        }
        Answer::RedirectChain => {
            let number = path.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or(0_u64);
            let next = vec![("location".to_string(), (number + 1).to_string())];
            plain(stream, 302, &next, b"", keep_alive).await?;
            return Ok(keep_alive);
        }
        Answer::Raw(bytes) => {
            stream.write_all(&bytes).await?;
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
        Answer::StalledHeaders => {
            // Until the client gives up, so that thousands of them do not exhaust the server's
            // sockets.
            while stream.read(&mut [0; 512]).await? > 0 {}
            Ok(())
        }
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
        Answer::Reset => stream.reset(),
        Answer::Garbage => {
            stream.write_all(b"this is not the protocol you are looking for\r\n\r\n").await?;
            stream.shutdown().await
        }
        // Already resolved to other answers.
        Answer::Delayed(..) | Answer::File { .. } => Ok(()),
    }?;
    Ok(false)
}

async fn plain(
    stream: &mut impl Connection,
    status: u16,
    headers: &[(String, String)],
    body: &[u8],
    keep_alive: bool,
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    // A 204 has no length (RFC 9110, section 8.6).
    if status != 204 {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(if keep_alive { "\r\n" } else { "connection: close\r\n\r\n" });
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    if keep_alive { stream.flush().await } else { stream.shutdown().await }
}
