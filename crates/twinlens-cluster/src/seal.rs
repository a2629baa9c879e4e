//! What a run and its executors tell each other carries an HMAC by a key that both have.
//!
//! A recipe may run programs (`command`), so an executor makes only what is sealed by its own key.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The environment variable of the key.
pub const VARIABLE: &str = "TWINLENS_CLUSTER_KEY";
/// Keys shorter than this can be guessed.
const SHORTEST: usize = 16;
/// Bytes of an HMAC.
const TAG: usize = 32;
const UNSEALED: u8 = 0;
const SEALED: u8 = 1;

/// What a message is. A message of one purpose is none of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A split to make.
    Request,
    /// What came of it.
    Report,
}

impl Purpose {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Request => b"twinlens request\n",
            Self::Report => b"twinlens report\n",
        }
    }
}

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is not sealed, but this process has a key.
    NotSealed,
    /// It is sealed, but this process has no key.
    NoKey,
    /// It is sealed by another key, or was changed.
    OtherKey,
}

/// The key that a run shares with its executors, if it has one.
#[derive(Clone, Default)]
pub struct Key(Option<Vec<u8>>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "a key" } else { "no key" })
    }
}

/// A key that could be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} is shorter than {SHORTEST} characters")]
pub struct ShortKey;

impl Key {
    /// The key that is the value of [`VARIABLE`]; without a value there is none.
    ///
    /// # Errors
    /// It is too short.
    pub fn new(value: Option<&str>) -> Result<Self, ShortKey> {
        match value.map(str::trim).filter(|value| !value.is_empty()) {
            None => Ok(Self(None)),
            Some(value) if value.len() < SHORTEST => Err(ShortKey),
            Some(value) => Ok(Self(Some(value.as_bytes().to_vec()))),
        }
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// A message with its seal.
    pub(crate) fn seal(&self, purpose: Purpose, body: &[u8]) -> Vec<u8> {
        let Some(mac) = self.mac(purpose, body) else { return [&[UNSEALED], body].concat() };
        [&[SEALED], mac.finalize().into_bytes().as_slice(), body].concat()
    }

    /// The message, if its seal is right.
    pub(crate) fn open<'a>(&self, purpose: Purpose, message: &'a [u8]) -> Result<&'a [u8], Refusal> {
        match (message.split_first(), self.is_set()) {
            (Some((&UNSEALED, body)), false) => Ok(body),
            (Some((&SEALED, _)), false) => Err(Refusal::NoKey),
            (Some((&SEALED, rest)), true) => {
                let (tag, body) = rest.split_at_checked(TAG).ok_or(Refusal::OtherKey)?;
                let mac = self.mac(purpose, body).ok_or(Refusal::NoKey)?;
                // Takes the same time wherever the first difference is.
                mac.verify_slice(tag).map_err(|_| Refusal::OtherKey)?;
                Ok(body)
            }
            (_, true) => Err(Refusal::NotSealed),
            (_, false) => Err(Refusal::OtherKey),
        }
    }

    fn mac(&self, purpose: Purpose, body: &[u8]) -> Option<Hmac<Sha256>> {
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_ref()?).ok()?;
        mac.update(purpose.prefix());
        mac.update(body);
        Some(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_sealed_by_the_same_key_is_opened() {
        let key = |value: &str| Key::new(Some(value)).unwrap();
        let (ours, other, none) = (key("0123456789abcdef"), key("fedcba9876543210"), Key::default());
        let sealed = ours.seal(Purpose::Request, b"split");
        assert_eq!(ours.open(Purpose::Request, &sealed), Ok(&b"split"[..]));
        assert_eq!(other.open(Purpose::Request, &sealed), Err(Refusal::OtherKey));
        assert_eq!(none.open(Purpose::Request, &sealed), Err(Refusal::NoKey));
        // A report cannot be sent as a request.
        assert_eq!(ours.open(Purpose::Report, &sealed), Err(Refusal::OtherKey));
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert!(ours.open(Purpose::Request, &changed).is_err(), "byte {place}");
        }
        for length in 0..sealed.len() {
            assert!(ours.open(Purpose::Request, &sealed[..length]).is_err(), "{length} bytes");
        }
        let open = none.seal(Purpose::Request, b"split");
        assert_eq!(none.open(Purpose::Request, &open), Ok(&b"split"[..]));
        assert_eq!(ours.open(Purpose::Request, &open), Err(Refusal::NotSealed));
        assert!(Key::new(Some("short")).is_err() && !Key::new(Some(" ")).unwrap().is_set());
    }
}
