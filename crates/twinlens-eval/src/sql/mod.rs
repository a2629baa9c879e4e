//! SQL functions: `wilson_low(correct, n)`, `wilson_high(correct, n)`, `cosine(a, b)`, and the
//! aggregate `paired_bootstrap(correct_a, correct_b)`.

mod cosine;
mod paired_bootstrap;
mod wilson;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

/// Every scalar SQL function of this crate.
pub(crate) fn functions() -> [ScalarUDF; 3] {
    let [low, high] = wilson::functions();
    [low, high, cosine::function()]
}

/// Every aggregate SQL function of this crate.
pub(crate) fn aggregates() -> [AggregateUDF; 1] {
    [paired_bootstrap::function()]
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use datafusion::error::DataFusionError;
    use datafusion::prelude::{SessionConfig, SessionContext};

    /// A session with the functions of this crate.
    pub(super) fn session(partitions: usize) -> SessionContext {
        let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(64);
        let session = SessionContext::new_with_config(config);
        super::functions().into_iter().for_each(|function| session.register_udf(function));
        super::aggregates().into_iter().for_each(|function| session.register_udaf(function));
        session
    }

    /// The result of a query, as a table in text.
    pub(super) async fn run(sql: &str) -> Result<String, DataFusionError> {
        let batches = session(2).sql(sql).await?.collect().await?;
        Ok(pretty_format_batches(&batches)?.to_string())
    }
}
