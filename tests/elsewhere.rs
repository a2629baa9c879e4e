//! Splits that are made elsewhere: every file and every line of a manifest is that of a run that
//! makes them all itself.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio_util::sync::CancellationToken;
use twinlens::pipeline::config::{self, InputSchemas, Overrides, Pipeline};
use twinlens::pipeline::files::Files;
use twinlens::pipeline::run::elsewhere::{Elsewhere, UnitWork};
use twinlens::pipeline::run::events::Silent;
use twinlens::pipeline::run::rebuild::Builder;
use twinlens::pipeline::run::recipe::UnitRecipe;
use twinlens::pipeline::run::retry;
use twinlens::pipeline::run::splits::{SplitDone, SplitTask};
use twinlens::pipeline::run::{self, Settings, session};
use twinlens::pipeline::{Clock, Registry, RunError};

use crate::support::Place;
use crate::support::shared::{PAIRS, all_files, url, write_pairs};

/// Processes elsewhere that are tasks of this one. All that they know of a unit is text.
struct Loopback {
    registry: Registry,
    settings: Settings,
    env: BTreeMap<String, String>,
}

impl fmt::Debug for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loopback")
    }
}

impl Loopback {
    /// Makes splits from the text of their tasks.
    async fn make(&self, recipe: &str, tasks: &[String]) -> Result<Vec<SplitDone>, RunError> {
        let recipe: UnitRecipe = serde_json::from_str(recipe).unwrap();
        let (settings, observer) = (&self.settings, Arc::new(Silent));
        let runtime = session::runtime(64 << 20, &settings.scratch).unwrap();
        let learn = |_: &_| {};
        let builder =
            Builder { registry: &self.registry, settings, env: &self.env, runtime, observer, learn };
        let prepared = builder.prepare(&recipe, &CancellationToken::new()).await?;
        let mut made = Vec::new();
        for task in tasks {
            let task: SplitTask = serde_json::from_str(task).unwrap();
            made.push(SplitDone { is_own: false, ..prepared.split(&task).await? });
        }
        Ok(made)
    }
}

#[async_trait]
impl Elsewhere for Loopback {
    async fn begin(&self, _: &Path, _: &CancellationToken) -> Result<(), RunError> {
        Ok(())
    }

    fn splits<'a>(&'a self, unit: UnitWork<'a>) -> BoxStream<'a, Result<SplitDone, RunError>> {
        let recipe = serde_json::to_string(unit.recipe).unwrap();
        let mut parts = vec![Vec::new(); 3];
        for (number, task) in unit.tasks.iter().enumerate() {
            parts[number % 3].push(serde_json::to_string(task).unwrap());
        }
        let make = move |part: Vec<String>| {
            let recipe = recipe.clone();
            async move { self.make(&recipe, &part).await }
        };
        let made = stream::iter(parts).map(make).buffer_unordered(3);
        let each = |made: Result<Vec<SplitDone>, RunError>| match made {
            // In the wrong order: the run records splits in that of their numbers.
            Ok(made) => stream::iter(made.into_iter().rev().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        };
        made.flat_map(each).boxed()
    }

    async fn end(&self) -> Result<(), RunError> {
        Ok(())
    }
}

/// The pipeline of a file, and the settings of a run of it into a store in `dir`.
fn open(place: &Place, registry: &Registry, dir: &str) -> (Pipeline, Settings) {
    let path = place.path("pipeline.toml");
    let scratch = place.path(&format!("scratch-{dir}"));
    fs::create_dir_all(&scratch).unwrap();
    let files = Files { scratch: scratch.clone(), ..Files::in_folder(place.folder()) };
    let overrides = Overrides { set: vec!["least=12".into()], env: environment() };
    let pipeline = config::load(&path, registry, &overrides, &InputSchemas::of(&files));
    let url = format!("file://{}", place.path(dir).display());
    let settings = Settings {
        dir: files.location(&url).unwrap(),
        scratch,
        clock: Clock::Fixed(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
        ..Settings::in_folder(place.folder())
    };
    (pipeline.unwrap_or_else(|error| panic!("{error}")), settings)
}

fn environment() -> BTreeMap<String, String> {
    [("WORD".to_string(), "secret".to_string())].into()
}

#[tokio::test(flavor = "multi_thread")]
async fn splits_made_elsewhere_are_those_of_a_local_run() {
    let place = Place::new();
    write_pairs(&place, 1500);
    place.write("pipeline.toml", PAIRS);
    let registry = twinlens::registry();
    let (pipeline, settings) = open(&place, &registry, "local");
    let cancel = CancellationToken::new;
    run::run(&pipeline, &registry, &settings, Arc::new(Silent), cancel()).await.unwrap();
    let local = settings;

    let (pipeline, settings) = open(&place, &registry, "shared");
    let elsewhere = |env| {
        let scratch = place.path("scratch-elsewhere");
        fs::create_dir_all(&scratch).unwrap();
        let files = Files { scratch: scratch.clone(), ..Files::in_folder(place.folder()) };
        let dir = files.location(&format!("file://{}", place.path("shared").display())).unwrap();
        let own = Settings { dir, scratch, ..Settings::in_folder(place.folder()) };
        let loopback = Loopback { registry: twinlens::registry(), settings: own, env };
        Settings { elsewhere: Some(Arc::new(loopback)), ..settings.clone() }
    };
    // A process with another environment is refused, and does not say what it should be.
    for (env, expected) in [
        (BTreeMap::new(), "the pipeline reads the environment variable WORD, which is not set here"),
        (
            [("WORD".to_string(), "guess".to_string())].into(),
            "the pipeline reads the environment variable WORD, which has another value here",
        ),
    ] {
        let error = run::run(&pipeline, &registry, &elsewhere(env), Arc::new(Silent), cancel()).await;
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
    let shared = elsewhere(environment());
    run::run(&pipeline, &registry, &shared, Arc::new(Silent), cancel()).await.unwrap();
    assert_same(&place);

    let attempts = || place.ask(&url(&place, "shared"), "select distinct attempts from matched.rejects");
    assert_eq!(attempts(), ["1"]);
    for settings in [&local, &shared] {
        let what = ("matched", "reject_code = 'no_query'");
        let retried = retry::retry(&pipeline, &registry, settings, Arc::new(Silent), cancel(), what);
        let retried = retried.await.unwrap();
        assert!(retried.picked > 0 && retried.before == retried.after, "{retried:?}");
    }
    assert_same(&place);
    assert_eq!(attempts(), ["2"]);
}

#[track_caller]
fn assert_same(place: &Place) {
    let (expected, found) = (all_files(&place.path("local")), all_files(&place.path("shared")));
    assert!(expected.len() > 30, "{:?}", expected.keys());
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}
