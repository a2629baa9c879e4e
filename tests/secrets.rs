//! No secret is told: canaries in environment variables, URLs, headers and addresses of stores are
//! in no file that a run leaves and in no line that any command prints.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use twinlens_testkit::web::png;
use twinlens_testkit::{Answer, Site, WebServer};

use crate::support::{Place, stderr, stdout};

/// All canaries have this in them.
const CANARY: &str = "canary";

/// What the environment holds, by the names that the pipeline lists.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("TOKEN", "env-canary-one"),
    ("LOGIN", "me:env-canary-two"),
    ("WORD", "env \"canary\" three"),
    ("THIRD", "env-canary-six"),
];

/// A list behind a signed URL with credentials, a header from the environment and one that is
/// written out, a predicate, a program that prints what it was given, and images.
fn pipeline(server: &WebServer) -> String {
    let addr = server.addr();
    format!(
        r#"name = "kept"
env = ["TOKEN", "LOGIN", "WORD"]
secret_parameters = ["my_pass"]

[stages.list]
kind = "table"
files = ["http://${{LOGIN}}@web.test/list.csv?X-Amz-Signature=canary-signed&my_pass=canary-own"]
http = {{ resolve = {{ "web.test" = "{addr}" }}, robots = false }}

[stages.few]
kind = "filter"
input = "list"
rules = [{{ code = "word", where = "caption <> '${{WORD}}'" }}]

[stages.told]
kind = "command"
input = "few"
command = ["/bin/sh", "-c", "echo using $0, $SECOND, $THIRD >&2; cat", "${{TOKEN}}"]
send = []
env = {{ SECOND = "env-canary-five", SECOND_TOKEN = "env-canary-five" }}
pass_env = ["THIRD"]

[stages.images]
kind = "fetch"
input = "told"

[stages.images.http]
headers = {{ Authorization = "Bearer ${{TOKEN}}", Cookie = "session=canary-cookie", "X-Key" = "canary-key" }}
resolve = {{ "web.test" = "{addr}", "gone.test" = "127.0.0.1:1" }}
robots = false
max_unreachable = 1.0

[stages.by_host]
kind = "sql"
query = "select count(*) as n from images"
"#
    )
}

/// Rows with a signature, with credentials, of a host that is gone, and of a redirect.
const LIST: &str = "url,caption\n\
    http://web.test/a.png,a plain one\n\
    http://web.test/a.png?sig=canary-row-signature&w=3,a signed one\n\
    http://me:canary-row-password@web.test/a.png,one with a password\n\
    http://gone.test/b.png?token=canary-row-token,one of a dead host\n\
    http://web.test/away,one elsewhere\n";

async fn server() -> WebServer {
    let image = png(32, 32);
    let site = Site::new().fallback(move |path| match path.split('?').next().unwrap_or_default() {
        "/list.csv" => Answer::file("1", LIST),
        "/a.png" => Answer::body("image/png", image.clone()),
        "/away" => Answer::redirect("http://x:canary-redirect@127.0.0.1:1/?sig=canary-redirect"),
        _ => Answer::status(404),
    });
    WebServer::start(site).await.unwrap()
}

fn with_secrets(mut command: Command) -> Output {
    command.envs(ENVIRONMENT.iter().copied()).env("TWINLENS_LOG", "debug").output().unwrap()
}

/// The outputs of commands, and what each must not tell.
#[track_caller]
fn tells_nothing(what: &str, output: &Output) {
    for text in [stdout(output), stderr(output)] {
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(CANARY)).collect();
        assert!(lines.is_empty(), "{what}: {lines:#?}");
    }
}

/// The files below a folder that hold a canary.
fn files_that_tell(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        if path.is_dir() {
            files_that_tell(&path, found);
        } else if name.contains(CANARY)
            || fs::read(&path).unwrap().windows(CANARY.len()).any(|part| part == CANARY.as_bytes())
        {
            found.push(name);
        }
    }
}

#[track_caller]
fn no_file_tells(place: &Place) {
    let mut found = Vec::new();
    files_that_tell(place.folder(), &mut found);
    // The URLs of rows are whole until they are fetched.
    found.retain(|name| !name.ends_with(".toml") && !name.contains("/list/data/"));
    assert!(found.is_empty(), "{found:#?}");
}

#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_tells_a_secret() {
    let (place, web) = (Place::new(), server().await);
    place.write("kept.toml", &pipeline(&web));
    let call = |args: &[&str]| {
        let output = with_secrets(place.command(args));
        tells_nothing(&args.join(" "), &output);
        output
    };
    call(&["check", "kept.toml"]);
    call(&["plan", "kept.toml", "--columns"]);
    let run = call(&["run", "kept.toml", "--dir", "run"]);
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(stderr(&run).contains("using ${TOKEN}, ${redacted}, ${THIRD}"), "{}", stderr(&run));
    #[cfg(unix)]
    assert_eq!(mode(&place.path("run")), 0o700);
    let json = call(&["run", "kept.toml", "--dir", "run", "--fresh", "--log-format", "json"]);
    assert!(json.status.success(), "{}", stderr(&json));
    no_file_tells(&place);
    // They were used all the same.
    let request = |path: &str| web.requests().into_iter().rfind(|request| request.path == path).unwrap();
    assert_eq!(
        request("/list.csv?X-Amz-Signature=canary-signed&my_pass=canary-own").header("authorization"),
        Some("Basic bWU6ZW52LWNhbmFyeS10d28=")
    );
    let signed = request("/a.png?sig=canary-row-signature&w=3");
    assert_eq!(signed.header("authorization"), Some("Bearer env-canary-one"));
    assert_eq!(
        (signed.header("x-key"), signed.header("cookie")),
        (Some("canary-key"), Some("session=canary-cookie"))
    );

    for table in ["images", "images.rejects", "list.rejects", "rejects", "funnel", "by_host"] {
        let query = format!("select * from {table}");
        let rows = call(&["sql", "run", &query, "--format", "json"]);
        assert!(rows.status.success(), "{}", stderr(&rows));
    }
    let urls = place.ask("run", "select url from images order by url");
    assert_eq!(urls.len(), 2, "{urls:?}");
    assert!(
        urls[1].starts_with("http://web.test/a.png?sig=redacted-") && urls[1].ends_with("&w=3"),
        "{urls:?}"
    );
    let codes = place.ask("run", "select reject_code, reject_stage from rejects order by 1");
    assert_eq!(codes, ["connect,images", "credentials_in_url,list", "private_address,images"]);
    for args in [
        &["plan", "kept.toml", "--dir", "run"][..],
        &["plan", "kept.toml", "--dir", "run", "--format", "json"],
        &["status", "run"],
        &["report", "run"],
        &["check", "run"],
        &["export", "run/images", "out", "--to", "webdataset"],
        &["retry", "kept.toml", "images", "--dir", "run", "--where", "true"],
    ] {
        let output = call(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    }
    no_file_tells(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_is_noticed_without_being_told() {
    let (place, web) = (Place::new(), server().await);
    place.write("kept.toml", &pipeline(&web));
    let run = with_secrets(place.command(&["run", "kept.toml", "--dir", "run"]));
    assert!(run.status.success(), "{}", stderr(&run));
    let plan = |token: &str| {
        let mut command = place.command(&["plan", "kept.toml", "--dir", "run"]);
        command.envs(ENVIRONMENT.iter().copied()).env("TOKEN", token);
        let output = command.output().unwrap();
        tells_nothing("plan", &output);
        stdout(&output)
    };
    assert!(plan("env-canary-one").contains("0 to build"), "{}", plan("env-canary-one"));
    let changed = plan("env-canary-1");
    assert!(changed.contains("${TOKEN:") && !changed.contains("0 to build"), "{changed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_tells_a_secret() {
    let (place, web) = (Place::new(), server().await);
    let good = pipeline(&web);
    let cases = [
        // The line of the file is shown.
        ("a wrong option", good.replace("[stages.by_host]", "[stages.by_host]\nwhat = 1")),
        ("a wrong header", good.replace("\"X-Key\" = \"canary-key\"", "\"X Key\" = \"canary-key\"")),
        ("a mistyped value", good.replace("kind = \"fetch\"", "kind = \"fetch\"\nsplit_rows = \"${TOKEN}\"")),
        (
            "a syntax error",
            good.replace("Cookie = \"session=canary-cookie\",", "Cookie = \"session=canary-cookie\" ?"),
        ),
        ("SQL", good.replace("caption <>", "captoin <>")),
        (
            "a dead host",
            good.replace("@web.test/", "@gone.test/")
                .replace("robots = false }", "robots = false, retries = 0 }"),
        ),
        ("a missing file", good.replace("/list.csv", "/gone.csv")),
        ("a failing program", good.replace("; cat\"", "; exit 3\"")),
        ("a store", good.replace("http://${LOGIN}@web.test/list.csv", "s3://${LOGIN}@bucket/list.csv")),
        ("a seed", good.replace("kind = \"table\"\nfiles", "kind = \"crawl\"\nseeds")),
        (
            "a sweep",
            good.replace(
                "[stages.by_host]",
                "[stages.few.sweep]\nwhere = [\"caption <> '${WORD}'\"]\n\n[stages.by_host]",
            ),
        ),
    ];
    for (number, (what, text)) in cases.into_iter().enumerate() {
        assert_ne!(text, good, "{what}");
        place.write("bad.toml", &text);
        let dir = format!("run-{number}");
        let args = ["run", "bad.toml", "--dir", &dir, "--set", "TOKEN=set-canary-four"];
        let output = with_secrets(place.command(&args));
        assert!(!output.status.success(), "{what}: {}", stderr(&output));
        tells_nothing(what, &output);
        no_file_tells(&place);
    }
    for args in [
        &["sql", "s3://key:canary-store@bucket/run", "select 1"][..],
        &["status", "s3://bucket/run?sig=canary-store"],
        &["run", "bad.toml", "--dir", "s3://key:canary-store@bucket/run"],
    ] {
        let output = with_secrets(place.command(args));
        assert!(!output.status.success());
        tells_nothing(&args.join(" "), &output);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_told_no_secret() {
    let (place, web) = (Place::new(), server().await);
    let literal = pipeline(&web);
    place.write("literal.toml", &literal);
    let dir = format!("file://{}", place.path("shared").display());
    let refused = with_secrets(place.command(&["run", "literal.toml", "--dir", &dir, "--workers"]));
    tells_nothing("a run whose file has secrets", &refused);
    assert!(
        !refused.status.success() && stderr(&refused).contains("environment variable"),
        "{}",
        stderr(&refused)
    );
    let kept = literal
        .replace("X-Amz-Signature=canary-signed&my_pass=canary-own", "sig=${TOKEN}")
        .replace("env = { SECOND = \"env-canary-five\", SECOND_TOKEN = \"env-canary-five\" }\n", "")
        .replace(
            "Cookie = \"session=canary-cookie\", \"X-Key\" = \"canary-key\"",
            "\"X-Key\" = \"${TOKEN}\"",
        );
    assert!(!kept.contains(CANARY), "{kept}");
    place.write("kept.toml", &kept);
    let start = |args: &[&str]| {
        let mut command = place.command(args);
        command.envs(ENVIRONMENT.iter().copied()).env("TWINLENS_LOG", "debug");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let worker = start(&["work", &dir, "--idle", "30s", "--log-format", "json"]);
    let run = start(&["run", "kept.toml", "--dir", &dir, "--workers-only"]);
    let run = run.wait_with_output().unwrap();
    tells_nothing("a run with workers", &run);
    assert!(run.status.success(), "{}", stderr(&run));
    #[cfg(unix)]
    assert_eq!(mode(&place.path("shared")), 0o700);
    let worker = worker.wait_with_output().unwrap();
    tells_nothing("a worker", &worker);
    assert!(worker.status.success() && stderr(&worker).contains("split_made"), "{}", stderr(&worker));
    no_file_tells(&place);
}
