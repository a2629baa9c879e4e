//! The address of a scheduler.

use std::fmt;
use std::net::{Ipv4Addr, UdpSocket};
use std::str::FromStr;

use twinlens_pipeline::run::recipe::host_name;

/// The port of a scheduler that does not say another.
pub const PORT: u16 = 50050;

/// The address of a scheduler: `df://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Address {
    /// Its URL for HTTP, which gRPC uses too.
    pub fn http(&self) -> String {
        format!("http://{}", self.authority())
    }

    /// `HOST:PORT`.
    pub fn authority(&self) -> String {
        format!("{}:{}", url_host(&self.host), self.port)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "df://{}", self.authority())
    }
}

/// A text that is not the address of a scheduler.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the address of a scheduler: df://HOST:PORT")]
pub struct MalformedAddress(String);

impl FromStr for Address {
    type Err = MalformedAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || MalformedAddress(text.into());
        let rest = match text.split_once("://") {
            Some(("df", rest)) => rest.trim_end_matches('/'),
            Some(_) => return Err(malformed()),
            None => text,
        };
        // An IPv6 address is in brackets.
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(malformed)?)),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if host.is_empty() || !host.chars().all(is_name) {
            return Err(malformed());
        }
        let port = port.map_or(Ok(PORT), str::parse).map_err(|_| malformed())?;
        Ok(Self { host: host.into(), port })
    }
}

/// A host as it stands in a URL: an IPv6 address in brackets.
pub(crate) fn url_host(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.into() }
}

/// The host by which others reach this machine, as far as its routes tell; without a route, its
/// name. Nothing is sent.
pub fn own_host() -> String {
    let route = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // A network for documentation: the default route leads there.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    };
    route().unwrap_or_else(host_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let cases = [
            ("df://sched:50050", Some("df://sched:50050")),
            ("df://sched", Some("df://sched:50050")),
            ("sched", Some("df://sched:50050")),
            ("10.0.0.1:7", Some("df://10.0.0.1:7")),
            ("df://[::1]:7/", Some("df://[::1]:7")),
            ("[::1]", Some("df://[::1]:50050")),
            ("http://sched:50050", None),
            ("df://", None),
            ("df://a b", None),
            ("sched:port", None),
            ("sched:70000", None),
            ("[::1]7", None),
        ];
        for (text, expected) in cases {
            let found = text.parse::<Address>();
            assert_eq!(found.as_ref().ok().map(ToString::to_string).as_deref(), expected, "{text}");
        }
    }
}
