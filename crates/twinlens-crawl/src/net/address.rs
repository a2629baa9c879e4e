//! Which addresses may be connected to: those of the public internet, and those that the user or
//! the run allows.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use url::{Host, Url};

use super::error::{FetchError, FetchErrorKind};
use super::proxy::is_local_name;

/// IPv4 blocks outside the public internet (IANA special-purpose registry, RFC 6890), and a cloud
/// metadata address.
const V4: &[([u8; 4], u32, &str)] = &[
    ([0, 0, 0, 0], 8, "this network"),
    ([10, 0, 0, 0], 8, "private"),
    ([100, 64, 0, 0], 10, "carrier-grade NAT"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([168, 63, 129, 16], 32, "cloud metadata"),
    ([169, 254, 0, 0], 16, "link-local or cloud metadata"),
    ([172, 16, 0, 0], 12, "private"),
    ([192, 0, 0, 0], 24, "protocol assignments"),
    ([192, 0, 2, 0], 24, "documentation"),
    ([192, 88, 99, 0], 24, "6to4 relay"),
    ([192, 168, 0, 0], 16, "private"),
    ([198, 18, 0, 0], 15, "benchmarking"),
    ([198, 51, 100, 0], 24, "documentation"),
    ([203, 0, 113, 0], 24, "documentation"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "reserved"),
];

/// IPv6 blocks inside 2000::/3 but outside the public internet. Everything outside 2000::/3 is
/// refused anyway.
const V6: &[([u16; 4], u32, &str)] = &[
    ([0x2001, 0, 0, 0], 32, "Teredo"),
    ([0x2001, 2, 0, 0], 48, "benchmarking"),
    ([0x2001, 0x10, 0, 0], 28, "ORCHID"),
    ([0x2001, 0x20, 0, 0], 28, "ORCHID"),
    ([0x2001, 0xdb8, 0, 0], 32, "documentation"),
    ([0x3fff, 0, 0, 0], 20, "documentation"),
];

/// Ports of other protocols, to which a request could be a command (Fetch standard, "bad port").
const BAD_PORTS: &[u16] = &[
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103,
    104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514,
    515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723,
    2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

/// Why an address is not on the public internet; `None` if it is.
pub(super) fn non_public_reason(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => non_public_v4(ip),
        IpAddr::V6(ip) => non_public_v6(ip),
    }
}

fn non_public_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let block = V4.iter().find(|(base, bits, _)| same_prefix(&ip.octets(), base, *bits));
    block.map(|(_, _, why)| *why)
}

fn non_public_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        non_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // A v4-mapped address connects to the v4 address.
        [0, 0, 0, 0, 0, 0xffff, high, low] => embedded(high, low),
        // The address behind a gateway (NAT64, 6to4) must be public too.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("site-local"),
        [0xfc00..=0xfdff, ..] => Some("unique local"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        [0x2000..=0x3fff, ..] => {
            let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
            let head = bytes(&segments[..4]);
            V6.iter().find(|(base, bits, _)| same_prefix(&head, &bytes(base), *bits)).map(|(_, _, why)| *why)
        }
        _ => Some("not global unicast"),
    }
}

/// Whether two addresses (big-endian bytes) share their first `bits` bits.
fn same_prefix(left: &[u8], right: &[u8], bits: u32) -> bool {
    let mut remaining = bits;
    left.iter().zip(right).all(|(a, b)| {
        let here = remaining.min(8);
        remaining -= here;
        // `here` is at most 8, so shifting a u16 by it is defined.
        let mask = (0xff00u16 >> here) as u8;
        a & mask == b & mask
    })
}

/// One entry of `allow_private`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AllowEntry {
    Host(String),
    Block(Vec<u8>, u32),
}

impl AllowEntry {
    /// Parses a host name, an address, or a block (`10.1.0.0/16`).
    fn parse(text: &str) -> Result<Self, String> {
        let bytes = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        if let Some((base, bits)) = text.split_once('/') {
            let base = bytes(base.parse().map_err(|_| format!("`{text}` is not an address block"))?);
            let bits = bits.parse().ok().filter(|bits| *bits <= 8 * base.len() as u32);
            let bits =
                bits.ok_or_else(|| format!("the prefix length of `{text}` does not fit the address"))?;
            return Ok(Self::Block(base, bits));
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse() {
            let base = bytes(ip);
            let bits = 8 * base.len() as u32;
            return Ok(Self::Block(base, bits));
        }
        match Host::parse(text) {
            Ok(host) => Ok(Self::Host(host.to_string())),
            Err(_) => Err(format!("`{text}` is not a host, an address, or an address block")),
        }
    }

    fn covers(&self, host: &str, ip: IpAddr) -> bool {
        match (self, ip) {
            (Self::Host(allowed), _) => allowed == host,
            (Self::Block(base, bits), IpAddr::V4(ip)) => {
                base.len() == 4 && same_prefix(&ip.octets(), base, *bits)
            }
            (Self::Block(base, bits), IpAddr::V6(ip)) => {
                base.len() == 16 && same_prefix(&ip.octets(), base, *bits)
            }
        }
    }
}

/// Decides which addresses may be connected to.
#[derive(Debug, Clone, Default)]
pub(super) struct AddressPolicy {
    allowed: Vec<AllowEntry>,
    fixed: BTreeMap<String, SocketAddr>,
    /// Hosts of proxies, which may be at private addresses.
    proxies: Vec<String>,
}

impl AddressPolicy {
    /// `allow_private` is the option; `fixed` are the hosts with a fixed address.
    ///
    /// # Errors
    /// Names the entry that is not a host, address or block.
    pub(super) fn new(allow_private: &[String], fixed: BTreeMap<String, SocketAddr>) -> Result<Self, String> {
        let allowed = allow_private.iter().map(|text| AllowEntry::parse(text)).collect::<Result<_, _>>()?;
        let fixed = fixed.into_iter().map(|(host, addr)| (host.to_ascii_lowercase(), addr)).collect();
        Ok(Self { allowed, fixed, proxies: Vec::new() })
    }

    /// Allows connections to these hosts of proxies.
    pub(super) fn with_proxies(self, proxies: Vec<String>) -> Self {
        Self { proxies, ..self }
    }

    /// The hosts with a fixed address.
    pub(super) fn fixed_hosts(&self) -> impl Iterator<Item = &String> {
        self.fixed.keys()
    }

    pub(super) fn fixed_address(&self, host: &str) -> Option<SocketAddr> {
        self.fixed.get(without_root_dot(host)).copied()
    }

    /// Whether a connection for `host` may go to `ip`.
    pub(super) fn check(&self, host: &str, ip: IpAddr) -> Result<(), FetchError> {
        match non_public_reason(ip) {
            Some(_) if self.proxies.iter().any(|proxy| proxy == host) => Ok(()),
            Some(why) if !self.allowed.iter().any(|allowed| allowed.covers(without_root_dot(host), ip)) => {
                let detail = if host.trim_matches(['[', ']']) == ip.to_string() {
                    format!("{ip} is refused: {why}")
                } else {
                    format!("{host} is at {ip}, which is refused: {why}")
                };
                Err(FetchError::new(FetchErrorKind::PrivateAddress, detail))
            }
            _ => Ok(()),
        }
    }

    /// Checks a URL before its host is resolved. A literal address never reaches the resolver, so
    /// it is checked here.
    pub(super) fn check_url(&self, url: &Url) -> Result<(), FetchError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(FetchError::new(
                FetchErrorKind::Scheme,
                format!("{url}: the scheme `{}` is refused", url.scheme()),
            ));
        }
        match url.host() {
            None => Err(FetchError::new(FetchErrorKind::BadUrl, format!("{url}: no host"))),
            Some(Host::Ipv4(ip)) => self.check(&ip.to_string(), ip.into()).and_then(|()| check_port(url)),
            Some(Host::Ipv6(ip)) => self.check(&ip.to_string(), ip.into()).and_then(|()| check_port(url)),
            // A fixed address grants one port of this machine, not all of them.
            Some(Host::Domain(host)) => match (self.fixed_address(host), url.port()) {
                (Some(addr), Some(port)) if port != addr.port() => Err(FetchError::new(
                    FetchErrorKind::PrivateAddress,
                    format!("{host} is served at {addr} only, not at port {port}"),
                )),
                (Some(_), _) => Ok(()),
                (None, _) => check_port(url),
            },
        }
    }

    /// Checks the name in a URL that a proxy will resolve: the proxy's own machine is refused.
    pub(super) fn check_proxied(&self, url: &Url) -> Result<(), FetchError> {
        let host = url.host_str().unwrap_or_default();
        if !is_local_name(url) || self.allowed.contains(&AllowEntry::Host(without_root_dot(host).into())) {
            return Ok(());
        }
        let detail = format!("{host} is refused: it is the proxy's own machine");
        Err(FetchError::new(FetchErrorKind::PrivateAddress, detail))
    }
}

/// Refuses the ports of other protocols.
fn check_port(url: &Url) -> Result<(), FetchError> {
    match url.port() {
        Some(port) if BAD_PORTS.contains(&port) => {
            Err(FetchError::new(FetchErrorKind::BadPort, format!("port {port} is that of another protocol")))
        }
        _ => Ok(()),
    }
}

/// A host name without the final dot that marks it as absolute.
fn without_root_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_allowed() {
        let refused = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.9",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:2f::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ];
        for address in refused {
            assert!(non_public_reason(address.parse().unwrap()).is_some(), "{address} must be refused");
        }
        let public = [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "168.63.129.15",
            "169.253.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.0.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2001:4860:4860::8888",
            "2002:808:808::",
            "2606:4700::1111",
            "2a00::1",
        ];
        for address in public {
            assert_eq!(non_public_reason(address.parse().unwrap()), None, "{address} is public");
        }
    }

    #[test]
    fn urls_are_checked_before_resolving() {
        let fixed = BTreeMap::from([("Gallery.test".to_string(), "127.0.0.1:4000".parse().unwrap())]);
        let allow = ["10.1.0.0/16".to_string(), "192.168.7.7".to_string(), "[::1]".to_string()];
        let policy = AddressPolicy::new(&allow, fixed).unwrap();
        let cases = [
            ("http://example.org/a", None),
            ("https://1.1.1.1/", None),
            ("http://gallery.test/", None),
            ("http://GALLERY.test./", None),
            ("http://gallery.test:4000/", None),
            ("http://gallery.test:22/", Some(FetchErrorKind::PrivateAddress)),
            ("http://10.1.2.3/", None),
            ("http://10.2.2.3/", Some(FetchErrorKind::PrivateAddress)),
            ("http://192.168.7.7/", None),
            ("http://192.168.7.8/", Some(FetchErrorKind::PrivateAddress)),
            ("http://[::1]/", None),
            ("http://example.org:8080/", None),
            ("http://example.org:443/", None),
            ("http://example.org:25/", Some(FetchErrorKind::BadPort)),
            ("https://1.1.1.1:6000/", Some(FetchErrorKind::BadPort)),
            ("http://[::ffff:127.0.0.1]/", Some(FetchErrorKind::PrivateAddress)),
            ("http://2130706433/", Some(FetchErrorKind::PrivateAddress)),
            ("http://0x7f.1/", Some(FetchErrorKind::PrivateAddress)),
            ("http://017700000001/", Some(FetchErrorKind::PrivateAddress)),
            ("http://127.1/", Some(FetchErrorKind::PrivateAddress)),
            ("file:///etc/passwd", Some(FetchErrorKind::Scheme)),
            ("ftp://example.org/", Some(FetchErrorKind::Scheme)),
            ("data:image/png;base64,AA", Some(FetchErrorKind::Scheme)),
            ("gopher://example.org/", Some(FetchErrorKind::Scheme)),
        ];
        for (url, expected) in cases {
            let kind = policy.check_url(&Url::parse(url).unwrap()).err().map(|error| error.kind);
            assert_eq!(kind, expected, "{url}");
        }
    }

    #[test]
    fn allow_entries_are_validated_when_parsed() {
        for good in ["localhost", "10.0.0.0/8", "::1", "fd00::/8", "intern.example"] {
            assert!(AllowEntry::parse(good).is_ok(), "{good}");
        }
        for bad in ["10.0.0.0/33", "10.0.0/8", "fd00::/129", "10.0.0.0/x", "a b"] {
            assert!(AllowEntry::parse(bad).is_err(), "{bad}");
        }
    }
}
