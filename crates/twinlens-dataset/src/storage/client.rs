//! The client of an object store, as a URL and the environment make it.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use object_store::path::Path as Key;
use object_store::{Error, ObjectStore};
use url::Url;

use crate::error::DatasetError;
use crate::secret_urls::without_secrets;

/// Supported schemes. `file` uses a local folder as a store.
const KNOWN: &[&str] = &["s3", "gs", "az", "abfs", "abfss", "file"];
/// How long a store may take to say whether it has credentials: a service of the machine may have
/// to be asked.
const CREDENTIALS_WAIT: Duration = Duration::from_secs(10);

/// An open client, the URL of its bucket, and the key of the rest of the URL.
pub(super) struct Client {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) root: Url,
    pub(super) key: Key,
    pub(super) credentials: Credentials,
}

impl Client {
    /// Opens the store of a URL; its settings (keys, region, endpoint) come from the environment,
    /// under the usual names.
    pub(super) fn open(written: &str) -> Result<Self, DatasetError> {
        let shown: PathBuf = without_secrets(written, &[]).into_owned().into();
        let invalid = |why: String| DatasetError::Location { path: shown.clone(), why };
        let url = Url::parse(written).map_err(|error| invalid(error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            let why = "the URL of an object store has no user, password or parameters";
            return Err(invalid(format!("{why}: its keys are environment variables (AWS_ACCESS_KEY_ID)")));
        }
        if let Some(feature) = missing_feature(url.scheme()) {
            return Err(invalid(format!(
                "this program was built without `{feature}`; build it with `--features {feature}`"
            )));
        }
        if !KNOWN.contains(&url.scheme()) {
            return Err(invalid(format!(
                "the URL of an object store starts with one of {}",
                KNOWN.join(", ")
            )));
        }
        let failed = |source| DatasetError::Store { path: shown.clone(), source };
        let settings = settings(std::env::vars_os());
        let (store, key) = object_store::parse_url_opts(&url, settings).map_err(failed)?;
        let credentials = Credentials::of(&url).map_err(failed)?;
        let mut root = url;
        root.set_path("");
        Ok(Self { store: store.into(), root, key, credentials })
    }
}

/// Says whether there are credentials for a store, which may mean to ask a service of the machine.
#[derive(Clone)]
pub(super) struct Credentials(Option<Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// A store that needs none.
    pub(super) fn not_needed() -> Self {
        Self(None)
    }

    /// Those of the store that a URL and the environment mean.
    fn of(url: &Url) -> Result<Self, Error> {
        Ok(match url.scheme() {
            #[cfg(feature = "s3")]
            "s3" => {
                let builder = object_store::aws::AmazonS3Builder::from_env().with_url(url.as_str());
                Self::from_provider(builder.build()?.credentials().clone())
            }
            #[cfg(feature = "gs")]
            "gs" => {
                let builder = object_store::gcp::GoogleCloudStorageBuilder::from_env().with_url(url.as_str());
                Self::from_provider(builder.build()?.credentials().clone())
            }
            #[cfg(feature = "az")]
            "az" | "abfs" | "abfss" => {
                let builder = object_store::azure::MicrosoftAzureBuilder::from_env().with_url(url.as_str());
                Self::from_provider(builder.build()?.credentials().clone())
            }
            _ => Self::not_needed(),
        })
    }

    #[cfg(any(feature = "s3", feature = "gs", feature = "az"))]
    fn from_provider<P: object_store::CredentialProvider + ?Sized + 'static>(provider: Arc<P>) -> Self {
        Self(Some(Arc::new(move || {
            let provider = provider.clone();
            Box::pin(async move { provider.get_credential().await.is_ok() })
        })))
    }

    /// Whether there are none, or none within a time that any service of the machine keeps.
    pub(super) async fn are_missing(&self) -> bool {
        let Some(ask) = &self.0 else { return false };
        tokio::time::timeout(CREDENTIALS_WAIT, ask()).await != Ok(true)
    }
}

/// The environment variables that configure stores. The library also accepts names without the
/// prefix of a store, but a variable called `TOKEN` or `REGION` may belong to another program.
fn settings(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let texts =
        variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let has_prefix = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
    texts.filter(|(name, _)| has_prefix(name)).collect()
}

fn missing_feature(scheme: &str) -> Option<&'static str> {
    match scheme {
        "s3" if cfg!(not(feature = "s3")) => Some("s3"),
        "gs" if cfg!(not(feature = "gs")) => Some("gs"),
        "az" | "abfs" | "abfss" if cfg!(not(feature = "az")) => Some("az"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_the_prefix_of_a_store() {
        let variables =
            [("AWS_REGION", "eu-west-1"), ("TOKEN", "somebody's"), ("AZURE_STORAGE_ACCOUNT_NAME", "me")];
        let settings = settings(variables.map(|(name, value)| (name.into(), value.into())).into_iter());
        let names: Vec<&str> = settings.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["AWS_REGION", "AZURE_STORAGE_ACCOUNT_NAME"]);
    }
}
