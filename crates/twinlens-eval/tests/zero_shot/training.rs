//! Evaluation during training, compared with the stage on the same model.

use super::*;
use twinlens_eval::InTrainingEvaluation;
use twinlens_pipeline::evaluation::Evaluation;

#[tokio::test]
async fn in_training_evaluation_matches_the_stage() {
    let bench = Bench::new();
    let dataset = bench.evaluate("out", TWO_SETS).await.unwrap();
    let query = "select value, chance, ci_low, n, set || prompts || metric as what from accuracy";
    let stage = sql(&dataset, query).await;
    let options = TWO_SETS.replace("model = \"./model\"", "every = 5");
    let options: InTrainingEvaluation = toml::from_str(&options).unwrap();
    assert_eq!((options.every(), options.inputs().len()), (5, 1));
    assert!(options.faults(&[]).is_empty());
    let cx = bench.cx();
    let input = input(&cx, "./test.parquet");
    let tokenizer = bench.path("model").join(TOKENIZER_FILE);
    let mut evaluator = options.open(&cx, &[input], &tokenizer).unwrap();
    let clip = Clip::load(&bench.path("model")).unwrap();
    let measured = evaluator.evaluate(&clip, 5).unwrap();
    assert_eq!(measured, evaluator.evaluate(&clip, 5).unwrap(), "deterministic in model and step");
    assert_eq!((measured[0].set.as_str(), measured[0].metric.as_str()), ("things", "mean_per_class"));

    assert_eq!(measured.len(), stage.num_rows());
    let names = stage.column(4).as_string::<i32>();
    for m in &measured {
        let what = format!("{}{}{}", m.set, m.prompts, m.metric);
        let row = names.iter().position(|name| name == Some(what.as_str())).unwrap();
        assert_eq!((m.value, m.chance), (floats(&stage, 0)[row], floats(&stage, 1)[row]), "{what}");
        assert_eq!(m.n as i64, stage.column(3).as_primitive::<Int64Type>().value(row), "{what}");
        // Bootstrapped from another stream.
        assert!((m.ci_low - floats(&stage, 2)[row]).abs() < 0.05, "{what}");
    }

    cx.cancel.cancel();
    assert!(matches!(evaluator.evaluate(&clip, 5), Err(RunError::Interrupted)));
    let wrong: InTrainingEvaluation = toml::from_str(
        "every = 0\nsets = [{ name = \"a\", input = \"./test.parquet\", label = \"class\" }]\nprompts = [\"photo\"]",
    )
    .unwrap();
    let faults: Vec<String> = wrong.faults(&[]).into_iter().map(|fault| fault.message).collect();
    assert!(faults.len() == 2 && faults.iter().any(|fault| fault.contains("`every` is 0")), "{faults:?}");
}
