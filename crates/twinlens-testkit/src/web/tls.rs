//! TLS with valid and invalid certificates, and HTTP/2 over it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, date_time_ymd};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, version};
use tokio_rustls::server::TlsStream;

use super::answer::Answer;
use super::request::Request;

/// The host name of the valid certificates.
pub const HOST: &str = "localhost.test";

/// The certificate that the server presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    /// Valid for clients that trust the issuer.
    Good,
    SelfSigned,
    Expired,
    OtherHost,
}

/// Accepts TLS connections.
pub(super) struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// A connection by its negotiated protocol.
pub(super) enum Accepted {
    Http1(TlsStream<TcpStream>),
    Http2(TlsStream<TcpStream>),
}

impl Acceptor {
    /// Also returns the issuer's certificate (DER), for clients to trust.
    pub(super) fn new(certificate: Certificate) -> io::Result<(Self, Vec<u8>)> {
        let mut authority = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, key()?).map_err(io::Error::other)?;
        let host = if certificate == Certificate::OtherHost { "other.test" } else { HOST };
        let mut params = CertificateParams::new(vec![host.to_string()]).map_err(io::Error::other)?;
        if certificate == Certificate::Expired {
            (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
        }
        let key = key()?;
        let presented = match certificate {
            Certificate::SelfSigned => params.self_signed(&key),
            _ => params.signed_by(&key, &issuer),
        };
        let presented = presented.map_err(io::Error::other)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![presented.der().clone()], key);
        let mut config = config.map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok((Self(TlsAcceptor::from(Arc::new(config))), issuer.der().to_vec()))
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Accepted> {
        let stream = self.0.accept(stream).await?;
        Ok(match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Accepted::Http2(stream),
            _ => Accepted::Http1(stream),
        })
    }
}

fn key() -> io::Result<KeyPair> {
    KeyPair::generate().map_err(io::Error::other)
}

/// Serves HTTP/2. Answers other than [`Answer::Plain`] close the connection.
pub(super) async fn http2(
    stream: TlsStream<TcpStream>,
    answer: impl Fn(Request) -> Answer,
) -> io::Result<()> {
    let mut connection = h2::server::handshake(stream).await.map_err(io::Error::other)?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted.map_err(io::Error::other)?;
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let headers = request.headers().iter();
        let headers = headers
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        let Answer::Plain { status, headers, body } = answer(Request { path, headers: headers.collect() })
        else {
            return Ok(());
        };
        let mut response = http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(name, value);
        }
        let response = response.body(()).map_err(io::Error::other)?;
        let mut sent = respond.send_response(response, body.is_empty()).map_err(io::Error::other)?;
        if !body.is_empty() {
            sent.send_data(Bytes::from(body), true).map_err(io::Error::other)?;
        }
    }
    Ok(())
}
