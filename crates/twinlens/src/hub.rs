//! HTTP client of the Hugging Face Hub, for `hf://` addresses.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, ETAG, HeaderMap, LOCATION};
use reqwest::redirect::Policy;
use twinlens_pipeline::hub::{Hub, HubClient, HubResponse};

use crate::env;

/// For connecting and between two reads.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest response that is kept in memory, in bytes: a list of some hundred thousand files.
const MAX_BODY: usize = 64 << 20;

/// The Hub as configured by the environment. Sends no request.
pub(crate) fn open() -> Hub {
    let client: Option<Arc<dyn HubClient>> = if env::hub_offline() { None } else { Some(Arc::new(Http)) };
    Hub { cache: env::hub_cache(), endpoint: env::hub_endpoint(), token: env::hub_token(), client }
}

/// Creates a client per request: requests are few, and most runs send none.
#[derive(Debug)]
struct Http;

impl HubClient for Http {
    fn get(&self, url: &str, token: Option<&str>, into: Option<&Path>) -> Result<HubResponse, String> {
        let (url, token) = (url.to_owned(), token.map(String::from));
        let into = into.map(PathBuf::from);
        // A new thread, because a Tokio runtime cannot be entered from another one.
        let work = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(get(&url, token.as_deref(), into.as_deref()))
        });
        work.join().map_err(|_| "the client panicked (this is a bug, please report it)".to_owned())?
    }
}

async fn get(url: &str, token: Option<&str>, into: Option<&Path>) -> Result<HubResponse, String> {
    twinlens_dataset::tls::provide();
    let client = reqwest::Client::builder()
        .redirect(Policy::none())
        .connect_timeout(TIMEOUT)
        .read_timeout(TIMEOUT)
        .user_agent(concat!("twinlens/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(with_sources)?;
    let request = client.get(url).header(ACCEPT_ENCODING, "identity");
    let request = token.into_iter().fold(request, |request, token| request.bearer_auth(token));
    let mut response = request.send().await.map_err(with_sources)?;
    let text = |headers: &HeaderMap, name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let headers = response.headers();
    let mut answer = HubResponse {
        status: response.status().as_u16(),
        etag: text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str())),
        location: text(headers, LOCATION.as_str()),
        body: Vec::new(),
    };
    let mut file = match into.filter(|_| answer.status == 200) {
        Some(path) => Some(File::create(path).map_err(|error| format!("{}: {error}", path.display()))?),
        None => None,
    };
    while let Some(piece) = response.chunk().await.map_err(with_sources)? {
        match &mut file {
            Some(file) => file.write_all(&piece).map_err(|error| error.to_string())?,
            None if answer.body.len() + piece.len() > MAX_BODY => {
                return Err("the response is too long".into());
            }
            None => answer.body.extend_from_slice(&piece),
        }
    }
    file.map_or(Ok(()), |file| file.sync_all()).map_err(|error| error.to_string())?;
    Ok(answer)
}

/// An error with its sources.
fn with_sources(error: reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A Hub on loopback that answers a number of requests and returns their paths, marked where
    /// they bore the token.
    fn serve(requests: usize) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let answer = |path: &str| match path {
            "/api/models/org/name/revision/main" => {
                let body = format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json"}}]}}"#);
                ("200 OK", String::new(), body)
            }
            "/cdn/config" => ("200 OK", "ETag: \"of-the-cdn\"\r\n".into(), "{\"model\": 1}".into()),
            path if path.ends_with("/config.json") => {
                ("302 Found", "X-Linked-Etag: \"blob\"\r\nLocation: /cdn/config\r\n".into(), "moved".into())
            }
            _ => ("404 Not Found", String::new(), "no".into()),
        };
        let served = std::thread::spawn(move || {
            let mut requested = Vec::new();
            for stream in listener.incoming().take(requests) {
                let mut stream = stream.unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let path = head[0].split(' ').nth(1).unwrap().to_owned();
                let token = head.iter().any(|line| line.eq_ignore_ascii_case("authorization: bearer secret"));
                let (status, headers, body) = answer(&path);
                let length = body.len();
                write!(
                    stream,
                    "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                )
                .unwrap();
                requested.push(format!("{path}{}", if token { " with the token" } else { "" }));
            }
            requested
        });
        (endpoint, served)
    }

    #[test]
    fn models_are_downloaded_through_a_redirect() {
        let cache = tempfile::tempdir().unwrap();
        let (endpoint, served) = serve(4);
        let client: Arc<dyn HubClient> = Arc::new(Http);
        let (cached, token) = (Some(cache.path().into()), Some("secret".into()));
        let hub = Hub { cache: cached, endpoint, token, client: Some(client) };
        let model = hub.model("hf://org/name", &[(&[&["config.json"]], &[])]).unwrap();
        assert_eq!(std::fs::read_to_string(model.join("config.json")).unwrap(), "{\"model\": 1}");
        assert!(cache.path().join("models--org--name/blobs/blob").exists());
        let missing = hub.model("hf://org/other", &[(&[&["config.json"]], &[])]).unwrap_err().to_string();
        assert!(missing.contains("returned status 404"), "{missing}");
        let file = format!("/org/name/resolve/{COMMIT}/config.json with the token");
        let expected = [
            "/api/models/org/name/revision/main with the token",
            &file,
            "/cdn/config with the token",
            "/api/models/org/other/revision/main with the token",
        ];
        assert_eq!(served.join().unwrap(), expected);
        let gone = hub.model("hf://org/other", &[(&[&["config.json"]], &[])]).unwrap_err().to_string();
        assert!(gone.contains("/api/models/org/other"), "{gone}");
    }
}
