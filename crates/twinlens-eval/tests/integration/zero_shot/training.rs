//! Evaluation during training, compared with the stage on the same model.

use super::*;
use std::cell::RefCell;
use twinlens_eval::InTrainingEvaluation;
use twinlens_pipeline::evaluation::{Evaluation, PlannedEvaluation};
use twinlens_pipeline::ports::Plan;
use twinlens_pipeline::{Fault, Inputs, Job, Output, Ports, SortKey, Work};

#[tokio::test]
async fn in_training_evaluation_matches_the_stage() {
    let bench = Bench::new();
    let dataset = bench.evaluate("out", TWO_SETS).await.unwrap();
    let query = "select value, chance, ci_low, n, set || prompts || metric as what from accuracy";
    let stage = sql(&dataset, query).await;
    let options = TWO_SETS.replace("model = \"./model\"", "every = 5");
    let (plan, planned) = plan_evaluation(&options).unwrap();
    assert_eq!((planned.every(), plan.inputs.len()), (5, 1));
    let cx = bench.cx();
    let input = input(&cx, "./test.parquet");
    let tokenizer = bench.path("model").join(TOKENIZER_FILE);
    let mut evaluator = planned.open(&cx, &Inputs::new(vec![input]), &tokenizer).unwrap();
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
    let wrong = "every = 0\nsets = [{ name = \"a\", input = \"./test.parquet\", label = \"class\" }]\nprompts = [\"photo\"]";
    let faults: Vec<String> =
        plan_evaluation(wrong).err().unwrap().into_iter().map(|fault| fault.message).collect();
    assert!(faults.len() == 2 && faults.iter().any(|fault| fault.contains("`every` is 0")), "{faults:?}");
}

type Planned = Box<dyn PlannedEvaluation<Clip>>;

/// Plans an evaluation as the stage that trains does.
fn plan_evaluation(options: &str) -> Result<(Plan, Planned), Vec<Fault>> {
    thread_local!(static PLANNED: RefCell<Option<Planned>> = const { RefCell::new(None) });
    struct Training;
    impl StageKind for Training {
        type Options = InTrainingEvaluation;
        const NAME: &'static str = "training";
        const VERSION: u32 = 1;
        const EXAMPLE: &'static str = "";

        fn plan(options: InTrainingEvaluation, ports: &mut Ports<'_>) -> Option<Work> {
            ports.output(twinlens_dataset::contracts::accuracy(), SortKey::AsGiven);
            let planned = options.plan(ports)?;
            PLANNED.with(|cell| cell.replace(Some(planned)));
            Some(Work::job(Nothing))
        }
    }
    struct Nothing;
    #[async_trait::async_trait]
    impl Job for Nothing {
        async fn run(&self, _: &RunContext, _: &Inputs, _: &mut Output) -> Result<(), RunError> {
            Ok(())
        }
    }
    let (plan, _) = support::plan::<Training>(options, |_| support::table(None))?;
    Ok((plan, PLANNED.with(|cell| cell.take()).unwrap()))
}
