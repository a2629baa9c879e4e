//! The cache and the requests of the hub.

use super::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

#[test]
fn patterns_match_whole_names() {
    let cases = [("*.csv", "a.csv", true), ("a?.csv", "ab.csv", true), ("a?.csv", "a.csv", false)];
    let more = [("*", "", true), ("a*b*c", "aXbYbZc", true), ("a*b", "abc", false), ("**x", "x", true)];
    let literal = [("[a]*", "[a]b", true), ("[a]*", "ab", false), ("*.tar", "a/b.tar", true)];
    for (pattern, name, expected) in cases.into_iter().chain(more).chain(literal) {
        assert_eq!(file_pattern(pattern).matches(name), expected, "{pattern} {name}");
    }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub in memory: responses by URL, and the requests, each with whether it had the token.
#[derive(Debug, Default)]
struct FakeHub {
    responses: BTreeMap<String, HubResponse>,
    requests: Mutex<Vec<(String, bool)>>,
}

impl FakeHub {
    fn with(mut self, url: &str, status: u16, etag: &str, location: &str, body: &str) -> Self {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let response = HubResponse { status, etag: some(etag), location: some(location), body: body.into() };
        self.responses.insert(url.into(), response);
        self
    }
}

impl HubClient for FakeHub {
    fn get(&self, url: &str, token: Option<&str>, into: Option<&Path>) -> Result<HubResponse, String> {
        self.requests.lock().unwrap().push((url.into(), token.is_some()));
        let response = self.responses.get(url).cloned().ok_or("no route")?;
        if let (200, Some(path)) = (response.status, into) {
            fs::write(path, &response.body).unwrap();
        }
        Ok(response)
    }
}

fn hub(cache: &Path, client: Option<Arc<dyn HubClient>>) -> Hub {
    Hub { cache: Some(cache.into()), endpoint: "http://hub".into(), token: Some("t".into()), client }
}

const LAYOUTS: [Layout<'_>; 2] = [
    (&[&["open_clip_config.json"], &["open_clip_model.safetensors"]], &[]),
    (
        &[&["config.json"], &["model.safetensors", "pytorch_model.bin"]],
        &["processor_config.json", "preprocessor_config.json"],
    ),
];

#[test]
fn models_are_downloaded_once_into_the_cache_of_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let weights = hex::encode(Sha256::digest("weights"));
    let listing = format!(
        r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json"}}, {{"rfilename": "model.safetensors"}}, {{"rfilename": "preprocessor_config.json"}}, {{"rfilename": "open_clip_config.json"}}]}}"#
    );
    let at = format!("http://hub/org/name/resolve/{COMMIT}");
    let fake = FakeHub::default()
        .with("http://hub/api/models/org/name/revision/main", 200, "", "", &listing)
        .with(&format!("{at}/config.json"), 307, "\"blob1\"", "/moved/config.json", "")
        .with("http://hub/moved/config.json", 200, "\"other\"", "", "{}")
        .with(&format!("{at}/preprocessor_config.json"), 200, "\"blob2\"", "", "{}")
        .with(&format!("{at}/model.safetensors"), 302, &format!("\"{weights}\""), "http://cdn/w", "")
        .with("http://cdn/w", 200, "\"cdn\"", "", "weights");
    let fake = Arc::new(fake);
    let hub = hub(folder.path(), Some(fake.clone()));
    let model = hub.model("hf://org/name", &LAYOUTS).unwrap();
    assert_eq!(model, folder.path().join("models--org--name/snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(model.join("config.json")).unwrap(), "{}");
    let root = folder.path().join("models--org--name");
    let mut blobs = local::list(&root.join("blobs")).unwrap().files;
    blobs.sort();
    assert_eq!(blobs, [weights.clone(), "blob1".into(), "blob2".into()]);
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert_eq!(fs::read_link(model.join("config.json")).unwrap(), Path::new("../../blobs/blob1"));
    let requests = std::mem::take(&mut *fake.requests.lock().unwrap());
    assert_eq!(requests.len(), 6);
    let tokens_stay = |(url, token): &(String, bool)| *token == url.starts_with("http://hub/");
    assert!(requests.iter().all(tokens_stay), "{requests:?}");
    // Once cached, and offline, no request is sent.
    assert_eq!(hub.model("hf://org/name", &LAYOUTS).unwrap(), model);
    assert_eq!(self::hub(folder.path(), None).model("hf://org/name@main", &LAYOUTS).unwrap(), model);
    assert_eq!(
        self::hub(folder.path(), None).model(&format!("hf://org/name@{COMMIT}"), &LAYOUTS).unwrap(),
        model
    );
    assert!(fake.requests.lock().unwrap().is_empty());
}

#[test]
fn a_cached_model_is_used_only_if_all_that_matters_is_known() {
    let listing = |extra: &str| {
        format!(
            r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json"}}, {{"rfilename": "model.safetensors"}}{extra}]}}"#
        )
    };
    let extra = r#", {"rfilename": "preprocessor_config.json"}"#;
    // Files in the cache, files that are known to be absent, whether the model has another file
    // on the hub, requests online, and whether it can be used offline.
    type Case = (&'static [&'static str], &'static [&'static str], bool, usize, bool);
    let (files, both): (&[&str], &[&str]) =
        (&["config.json", "model.safetensors"], &["processor_config.json", "preprocessor_config.json"]);
    let cases: [Case; 5] = [
        (&["config.json", "model.safetensors", "preprocessor_config.json"], &[], true, 0, true),
        (files, both, false, 0, true),
        (files, &["processor_config.json"], true, 2, false),
        (files, &[], true, 2, false),
        (files, &[], false, 1, false),
    ];
    for (cached, absent, has_extra, requests, usable) in cases {
        let cache = tempfile::tempdir().unwrap();
        let root = cache.path().join("models--org--name");
        let (snapshot, no_exist) = (root.join("snapshots").join(COMMIT), root.join(".no_exist").join(COMMIT));
        for (folder, names) in [(&snapshot, cached), (&no_exist, absent), (&root.join("refs"), &["main"])] {
            fs::create_dir_all(folder).unwrap();
            names.iter().for_each(|name| fs::write(folder.join(name), COMMIT).unwrap());
        }
        let offline = hub(cache.path(), None).model("hf://org/name", &LAYOUTS);
        assert_eq!(offline.is_ok(), usable, "{cached:?} {absent:?}");
        let listing = listing(if has_extra { extra } else { "" });
        let at = format!("http://hub/org/name/resolve/{COMMIT}");
        let fake = Arc::new(
            FakeHub::default()
                .with("http://hub/api/models/org/name/revision/main", 200, "", "", &listing)
                .with(&format!("{at}/preprocessor_config.json"), 200, "\"blob\"", "", "{}"),
        );
        let online = hub(cache.path(), Some(fake.clone()));
        let model = online.model("hf://org/name", &LAYOUTS).unwrap();
        assert_eq!(model.join("preprocessor_config.json").exists(), has_extra);
        assert_eq!(fake.requests.lock().unwrap().len(), requests, "{cached:?} {absent:?}");
        // From now on, all is known.
        hub(cache.path(), None).model("hf://org/name", &LAYOUTS).unwrap();
    }
}

#[test]
fn the_files_of_a_dataset_are_found_by_pattern_online_and_offline() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["data/b.parquet", "data/a.parquet", "README.md", "x.tar"];
    let listed: Vec<String> = files.iter().map(|file| format!(r#"{{"rfilename": "{file}"}}"#)).collect();
    let listing = format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, listed.join(","));
    let mut fake =
        FakeHub::default().with("http://hub/api/datasets/org/set/revision/v1", 200, "", "", &listing);
    for file in files {
        fake = fake.with(&format!("http://hub/datasets/org/set/resolve/{COMMIT}/{file}"), 200, "", "", file);
    }
    let online = hub(folder.path(), Some(Arc::new(fake)));
    let names = |hub: &Hub, written: &str| -> Vec<String> {
        hub.files(written).unwrap().iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    };
    assert_eq!(names(&online, "hf://datasets/org/set@v1/data/b*"), ["data/b.parquet"]);
    assert_eq!(names(&online, "hf://datasets/org/set@v1"), ["data/a.parquet", "data/b.parquet"]);
    let offline = hub(folder.path(), None);
    assert_eq!(names(&offline, "hf://datasets/org/set@v1"), ["data/a.parquet", "data/b.parquet"]);
}

#[test]
fn errors_say_why_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let listing = format!(
        r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "config.json"}}, {{"rfilename": "model.safetensors"}}]}}"#
    );
    let wrong_hash = "f".repeat(64);
    let fake = FakeHub::default()
        .with("http://hub/api/models/org/gated/revision/main", 401, "", "", "")
        .with(
            "http://hub/api/models/org/odd/revision/main",
            200,
            "",
            "",
            r#"{"sha": "../x", "siblings": []}"#,
        )
        .with("http://hub/api/models/org/name/revision/main", 200, "", "", &listing)
        .with(&format!("http://hub/org/name/resolve/{COMMIT}/config.json"), 200, &wrong_hash, "", "{}");
    let online = hub(folder.path(), Some(Arc::new(fake)));
    let offline = hub(folder.path(), None);
    let cases: [(&Hub, &str, &str); 7] = [
        (&offline, "hf://org/name", "HF_HUB_OFFLINE is set"),
        (&online, "hf://org/gated", "set HF_TOKEN"),
        (&online, "hf://org/odd", "unsafe file names"),
        (&online, "hf://org/gone", "check the network"),
        (&online, "hf://org/name", "but the hub announced"),
        (&online, "hf://datasets/org/name", "is a dataset"),
        (&online, "hf://../name", "is not a Hugging Face Hub address"),
    ];
    for (hub, written, expected) in cases {
        let error = hub.model(written, &LAYOUTS).unwrap_err();
        let RunError::User { message, hint } = error else { panic!("{error}") };
        let text = format!("{message} | {}", hint.unwrap_or_default());
        assert!(text.contains(expected), "{written}: {text}");
    }
    let none = online.model("hf://org/name", &[(&[&["nothing.bin"]], &[])]).unwrap_err().to_string();
    assert!(none.contains("has none of nothing.bin"), "{none}");
    assert!(online.files("hf://org/name").unwrap_err().to_string().contains("is a model"));
}
