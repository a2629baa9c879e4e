//! The cryptography of TLS: one implementation for all clients of a process.
//!
//! It is ring, which object_store builds in any case. reqwest's own choice (aws-lc) would be a
//! second one, of which most is C. Invariant: [`provide`] is called before a client is built.

/// Provides it to the clients that are built from now on, unless the program that embeds this
/// library has provided another.
pub fn provide() {
    // An error says that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
