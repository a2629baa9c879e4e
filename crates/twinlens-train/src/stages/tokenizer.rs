//! The stage `tokenizer`: byte-level BPE learned from captions.

use super::errors::model_error;
use crate::data::{Captions, holds_captions};
use async_trait::async_trait;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int32Array, RecordBatch, StringArray, UInt64Array};
use datafusion::arrow::compute::{cast, take};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::ident;
use futures::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use twinlens_dataset::{MAIN, contracts};
use twinlens_model::{TOKENIZER_FILE, Tokenizer};
use twinlens_pipeline::{
    ColumnName, ColumnType, Fault, Input, Inputs, Job, Located, Output, Ports, Product, Required, RunContext,
    RunError, SortKey, StageKind, TableInput, Work, blocking,
};

/// Learns a byte-level BPE tokenizer from captions. Its table lists the tokens; its file is a
/// Hugging Face `tokenizer.json`.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizerOptions {
    /// The captions to learn from.
    input: Input,
    /// The column of captions. Of a list of texts, each is learned from.
    #[serde(default = "caption")]
    column: Located<String>,
    /// Maximum number of tokens, including all 256 bytes and the start and end tokens. There are
    /// fewer if the captions are too few.
    #[serde(default = "vocab_size")]
    vocab_size: Located<usize>,
}

fn caption() -> Located<String> {
    Located::without_span("caption".into())
}

fn vocab_size() -> Located<usize> {
    Located::without_span(4096)
}

/// `tokenizer` as it runs.
pub struct TokenizerStage {
    input: TableInput,
    column: String,
    vocab_size: usize,
}

impl StageKind for TokenizerStage {
    type Options = TokenizerOptions;
    const NAME: &'static str = "tokenizer";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r#"[stages.words]
kind = "tokenizer"
input = "images"
vocab_size = 8192
"#;
    const PRODUCT: Product = Product::Tokenizer;

    fn plan(options: TokenizerOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let TokenizerOptions { input, column, vocab_size } = options;
        let input = ports.table(&input);
        let texts =
            ColumnType::Other("text, or lists of texts", |kind| holds_captions(kind, Some(Captions::First)));
        let named = ColumnName::from(&column).of_option("column");
        ports.column(&input, named, texts, Required::Yes);
        if *vocab_size < 258 {
            let message = format!("a vocabulary of {} tokens is too small", *vocab_size);
            let fault = Fault::at(vocab_size.span(), message);
            ports.fault(fault.label("at least 258: all bytes, the start and the end token"));
        }
        ports.output(tokens_schema(), SortKey::AsGiven);
        ports.rejects(contracts::pair_texts());
        Some(Work::job(TokenizerStage { input, column: column.value().clone(), vocab_size: *vocab_size }))
    }
}

/// The items of all lists of a column; the column itself if it holds no lists.
fn list_items(column: &ArrayRef) -> ArrayRef {
    // Null lists may have items, which do not count.
    let rows =
        UInt64Array::from_iter_values((0..column.len() as u64).filter(|row| column.is_valid(*row as usize)));
    let Ok(column) = take(column, &rows, None) else { return column.slice(0, 0) };
    match column.data_type() {
        DataType::List(_) => {
            let lists = column.as_list::<i32>();
            let offsets = lists.value_offsets();
            lists.values().slice(offsets[0] as usize, (offsets[lists.len()] - offsets[0]) as usize)
        }
        DataType::LargeList(_) => {
            let lists = column.as_list::<i64>();
            let offsets = lists.value_offsets();
            lists.values().slice(offsets[0] as usize, (offsets[lists.len()] - offsets[0]) as usize)
        }
        DataType::FixedSizeList(..) => column.as_fixed_size_list().values().clone(),
        _ => column,
    }
}

fn tokens_schema() -> SchemaRef {
    let fields = [("id", DataType::Int32), ("token", DataType::Utf8)];
    Arc::new(Schema::new(fields.map(|(name, kind)| Field::new(name, kind, true)).to_vec()))
}

fn tokens(tokenizer: &Tokenizer) -> Result<RecordBatch, RunError> {
    let tokens = tokenizer.tokens();
    let ids: ArrayRef = Arc::new(Int32Array::from_iter_values(tokens.iter().map(|(id, _)| *id as i32)));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(tokens.iter().map(|(_, token)| token)));
    RecordBatch::try_new(tokens_schema(), vec![ids, texts]).map_err(|e| RunError::Internal(e.to_string()))
}

#[async_trait]
impl Job for TokenizerStage {
    async fn run(&self, cx: &RunContext, inputs: &Inputs, output: &mut Output) -> Result<(), RunError> {
        if output.is_done(0) {
            return Ok(());
        }
        let frame = inputs.get(&self.input).frame(&cx.session).await?.select(vec![ident(&self.column)])?;
        let mut stream = frame.execute_stream().await?;
        // The short channel bounds memory, which holds distinct words, not captions.
        let (send, mut receive) = tokio::sync::mpsc::channel::<RecordBatch>(2);
        let vocab_size = self.vocab_size;
        let training = blocking(move || {
            let batches = std::iter::from_fn(|| receive.blocking_recv());
            let captions = batches.flat_map(|batch| {
                let texts = list_items(batch.column(0));
                let texts = cast(&texts, &DataType::LargeUtf8);
                let texts = texts.iter().flat_map(|texts| texts.as_string::<i64>().iter().flatten());
                texts.map(str::to_owned).collect::<Vec<_>>()
            });
            Tokenizer::train(captions, vocab_size)
        });
        while let Some(batch) = stream.next().await {
            cx.check_cancelled()?;
            let batch = batch?;
            cx.progress.done(batch.num_rows() as u64);
            if send.send(batch).await.is_err() {
                break;
            }
        }
        drop(send);
        let tokenizer = training.await?.map_err(model_error)?;
        cx.check_cancelled()?;
        let mut split = output.split(0, "tokens");
        let write = move || -> Result<_, RunError> {
            split.write(MAIN, &tokens(&tokenizer)?)?;
            tokenizer.save(&split.artifact(TOKENIZER_FILE)).map_err(model_error)?;
            Ok(split)
        };
        let split = blocking(write).await??;
        output.commit(split).await
    }
}
