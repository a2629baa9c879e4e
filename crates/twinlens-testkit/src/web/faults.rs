//! Faults that the server injects into some of its answers.

use std::time::Duration;

use super::answer::Answer;

/// A fault, and the reject code that an image fetcher should give it.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub name: &'static str,
    /// The expected reject code.
    pub code: &'static str,
    make: fn(Answer) -> Answer,
}

impl Fault {
    /// The faulty answer that replaces a good one.
    pub(super) fn replace(&self, good: Answer) -> Answer {
        (self.make)(good)
    }
}

/// Which requests fail: one path in `one_in`, chosen by a seed. A path always fails in the same
/// way. `/robots.txt` and `/.well-known/` never fail.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    pub one_in: u64,
    pub seed: u64,
}

impl Faults {
    /// The fault of a path, if it has one.
    pub fn for_path(&self, path: &str) -> Option<&'static Fault> {
        let drawn = mix(path.bytes().fold(self.seed, |state, byte| mix(state ^ u64::from(byte))));
        let exempt = path == "/robots.txt" || path.starts_with("/.well-known/");
        let fails = drawn.is_multiple_of(self.one_in.max(1)) && !exempt;
        fails.then(|| &FAULTS[(drawn / self.one_in.max(1)) as usize % FAULTS.len()])
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The body of a good answer.
fn body(good: Answer) -> Vec<u8> {
    match good {
        Answer::Plain { body, .. } => body,
        _ => Vec::new(),
    }
}

/// The first half of its body.
fn half(good: Answer) -> Vec<u8> {
    let mut body = body(good);
    body.truncate(body.len() / 2);
    body
}

/// All faults.
pub const FAULTS: &[Fault] = &[
    Fault { name: "400", code: "http_client_error", make: |_| Answer::status(400) },
    Fault { name: "403", code: "http_forbidden", make: |_| Answer::status(403) },
    Fault { name: "404", code: "http_not_found", make: |_| Answer::status(404) },
    Fault { name: "410", code: "http_gone", make: |_| Answer::status(410) },
    Fault { name: "204", code: "http_unexpected", make: |_| Answer::status(204) },
    Fault { name: "429", code: "http_too_many_requests", make: |_| Answer::status(429) },
    Fault {
        name: "429 for an hour",
        code: "http_too_many_requests",
        make: |_| Answer::status(429).header("retry-after", "3600"),
    },
    Fault { name: "500", code: "http_server_error", make: |_| Answer::status(500) },
    Fault { name: "503", code: "http_server_error", make: |_| Answer::status(503) },
    Fault { name: "reset", code: "reset", make: |_| Answer::Reset },
    Fault { name: "closed", code: "reset", make: |_| Answer::Raw(Vec::new()) },
    Fault { name: "no HTTP", code: "bad_response", make: |_| Answer::Garbage },
    Fault { name: "endless headers", code: "bad_response", make: |_| Answer::HugeHeaders },
    Fault { name: "no answer", code: "timeout_headers", make: |_| Answer::StalledHeaders },
    Fault {
        name: "a trickle",
        code: "timeout_body",
        make: |_| Answer::SlowBody { chunk: 16, pause: Duration::from_millis(50), length: 100_000 },
    },
    Fault { name: "endless body", code: "too_many_bytes", make: |_| Answer::EndlessBody },
    Fault {
        name: "body cut off",
        code: "truncated",
        make: |good| {
            let body = body(good);
            Answer::TruncatedBody { length: body.len() + 1, body }
        },
    },
    Fault { name: "chunks cut off", code: "truncated", make: |_| Answer::TruncatedChunks },
    Fault { name: "endless redirects", code: "too_many_redirects", make: |_| Answer::redirect("#") },
    Fault {
        name: "redirect to a private address",
        code: "private_address",
        make: |_| Answer::redirect("http://192.168.0.1/admin"),
    },
    Fault { name: "redirect to nowhere", code: "bad_redirect", make: |_| Answer::status(302) },
    Fault {
        name: "an unknown compression",
        code: "content_encoding",
        make: |good| Answer::body("image/png", body(good)).header("content-encoding", "compress"),
    },
    Fault {
        name: "opted out",
        code: "opted_out",
        make: |good| Answer::body("image/png", body(good)).header("x-robots-tag", "noai"),
    },
    Fault {
        name: "a page",
        code: "not_an_image",
        make: |_| Answer::body("image/png", "<!doctype html><p>Sorry"),
    },
    Fault { name: "nothing", code: "not_an_image", make: |_| Answer::body("image/png", "") },
    Fault { name: "half an image", code: "truncated", make: |good| Answer::body("image/png", half(good)) },
    Fault {
        name: "a damaged image",
        code: "decode_failed",
        make: |good| {
            let mut body = body(good);
            if let Some(byte) = body.get_mut(45) {
                *byte ^= 0xff;
            }
            Answer::body("image/png", body)
        },
    },
    Fault {
        name: "a bomb",
        code: "too_many_pixels",
        make: |good| {
            let mut body = body(good);
            if body.len() > 24 {
                body[16..24].copy_from_slice(&[0, 0, 0x75, 0x30, 0, 0, 0x75, 0x30]);
            }
            Answer::body("image/png", body)
        },
    },
];
