//! Token ids of captions, one JSON string a line, by a vocabulary file or `tokenizer.json`: what
//! `tests/tokenizer/check_tokenizer.py` compares with open_clip's.
//!
//!     cargo run -p twinlens-model --example tokenize -- VOCABULARY CAPTIONS IDS [COPY]
//!
//! With COPY, the tokenizer is also written as a `tokenizer.json` of that name.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use twinlens_model::Tokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [vocabulary, captions, ids, copy @ ..] = &args[..] else {
        return Err("usage: tokenize VOCABULARY CAPTIONS IDS [COPY]".into());
    };
    let tokenizer = Tokenizer::load(Path::new(vocabulary))?;
    let mut out = std::io::BufWriter::new(std::fs::File::create(ids)?);
    let started = std::time::Instant::now();
    let captions = std::fs::read_to_string(captions)?;
    for line in captions.lines() {
        let caption: String = serde_json::from_str(line)?;
        writeln!(out, "{}", serde_json::to_string(&tokenizer.encode(&caption, 77))?)?;
    }
    let rate = captions.lines().count() as f64 / started.elapsed().as_secs_f64();
    eprintln!("{rate:.0} captions a second");
    if let [copy] = copy {
        tokenizer.save(Path::new(copy))?;
    }
    Ok(out.flush()?)
}
