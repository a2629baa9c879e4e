//! `token_count(text)` and `token_count(text, tokenizer)`: how many tokens a model reads of a text.
//!
//! A function of the session and not of stages, whose recipes do not know the file of a tokenizer.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{Array, AsArray, Int64Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::scalar::ScalarValue;
use twinlens_dataset::Dataset;
use twinlens_model::{TOKENIZER_FILE, Tokenizer};

use crate::models;

const NAME: &str = "token_count";
const NO_TOKENIZER: &str = "token_count: the run has no tokenizer; name one as the second argument: a stage, \
                            a tokenizer.json, the directory of a model, or hf://";

/// The function for a run: without a second argument it counts the tokens of its last tokenizer.
pub(crate) fn function(run: &[Dataset]) -> ScalarUDF {
    let has = |dataset: &&Dataset| {
        let state = dataset.state();
        state.complete && state.files().any(|file| file.table.is_none() && file.path == TOKENIZER_FILE)
    };
    let own: Vec<Dataset> = run.iter().filter(has).cloned().collect();
    TokenCount { signature: Signature::user_defined(Volatility::Immutable), own, read: Mutex::default() }
        .into()
}

/// The number of tokens of a text, with the start and the end token, however long it is: a model
/// truncates what exceeds its `context`. Null for null.
struct TokenCount {
    signature: Signature,
    /// The datasets of the run that have a tokenizer.
    own: Vec<Dataset>,
    /// Those that were read, by name.
    read: Mutex<HashMap<Option<String>, Arc<Tokenizer>>>,
}

impl TokenCount {
    /// A tokenizer by the name of a stage or of a model; without one, the run's last.
    fn tokenizer(&self, name: Option<String>) -> Result<Arc<Tokenizer>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = read.get(&name) {
            return Ok(known.clone());
        }
        let wrong = |error: &dyn fmt::Display| DataFusionError::Execution(format!("token_count: {error}"));
        let is_named =
            |dataset: &&Dataset| name.as_ref().is_none_or(|name| dataset.state().begin.stage == *name);
        let file = match (self.own.iter().rfind(is_named), &name) {
            (Some(own), _) => own.artifact(TOKENIZER_FILE).map_err(|error| wrong(&error))?,
            (None, Some(name)) => models::tokenizer_file(name).map_err(|error| wrong(&error.message))?,
            (None, None) => return plan_err!("{NO_TOKENIZER}"),
        };
        let tokenizer = Arc::new(Tokenizer::load(&file).map_err(|error| wrong(&error))?);
        read.insert(name, tokenizer.clone());
        Ok(tokenizer)
    }
}

impl fmt::Debug for TokenCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCount").field("own", &self.own).finish_non_exhaustive()
    }
}

impl PartialEq for TokenCount {
    fn eq(&self, other: &Self) -> bool {
        let names = |this: &Self| -> Vec<String> {
            this.own.iter().map(|dataset| dataset.location().to_string()).collect()
        };
        names(self) == names(other)
    }
}

impl Eq for TokenCount {}

impl Hash for TokenCount {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.own.iter().for_each(|dataset| dataset.location().to_string().hash(state));
    }
}

impl ScalarUDFImpl for TokenCount {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let is_text = |kind: &DataType| {
            matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null)
        };
        match types {
            [text] if is_text(text) => Ok(vec![DataType::Utf8]),
            [text, name] if is_text(text) && is_text(name) => Ok(vec![DataType::Utf8; 2]),
            _ => plan_err!("token_count takes a text and, if need be, the name of a tokenizer"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let name = match args.args.get(1) {
            None => None,
            Some(ColumnarValue::Scalar(ScalarValue::Utf8(Some(name)))) => Some(name.clone()),
            Some(_) => return exec_err!("token_count: the name of the tokenizer must be a constant"),
        };
        let tokenizer = self.tokenizer(name)?;
        let texts = cast(&args.args[0].to_array(args.number_rows)?, &DataType::Utf8)?;
        let texts = texts.as_string::<i32>();
        let count = |text: Option<&str>| text.map(|text| tokenizer.count(text) as i64);
        let counts: Int64Array = texts.iter().map(count).collect();
        Ok(match &args.args[0] {
            ColumnarValue::Scalar(_) if !counts.is_empty() => {
                ColumnarValue::Scalar(ScalarValue::Int64(counts.is_valid(0).then(|| counts.value(0))))
            }
            _ => ColumnarValue::Array(Arc::new(counts)),
        })
    }
}
