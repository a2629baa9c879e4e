//! Checks of the options of `train` before anything runs.

use super::options::TrainStageOptions;
use crate::stages::inputs::{Weighted, is_files};
use std::ops::Range;
use twinlens_pipeline::{Fault, Input, Ports};

/// Reports a fault unless a condition holds.
trait Expect {
    fn expect(&mut self, holds: bool, span: Range<usize>, what: &str, label: &str);
}

impl Expect for Ports<'_> {
    fn expect(&mut self, holds: bool, span: Range<usize>, what: &str, label: &str) {
        if !holds {
            self.fault(Fault::at(span, what.to_owned()).label(label));
        }
    }
}

impl<E> TrainStageOptions<E> {
    /// Checks the options for themselves; the model's shape aside.
    pub(super) fn check(&self, ports: &mut Ports<'_>) {
        self.check_length(ports);
        self.check_inputs(ports);
        self.check_rates(ports);
        self.check_batch(ports);
        for (name, is_missing) in [("model", self.model.is_none()), ("tokenizer", self.tokenizer.is_none())] {
            let message = format!("`{name}` is not set, and neither is `from`");
            let holds = !is_missing || self.from.is_some();
            ports.expect(holds, self.input_span(), &message, "set one of them");
        }
        if let (Some(parts), None) = (&self.from_parts, &self.from) {
            let fault = Fault::at(parts.span(), "`from_parts` needs `from`");
            ports.fault(fault.label("set `from`, or remove this"));
        }
        let whole = self.from.is_some() && self.from_parts.is_none();
        ports.expect(
            whole || !*self.optimizer,
            self.optimizer.span(),
            "`optimizer` needs `from`, and no `from_parts`",
            "a training is continued as a whole",
        );
        if let Err(error) = self.device.check(*self.precision) {
            let at = if self.device.is_default() { self.precision.span() } else { self.device.span() };
            ports.fault(Fault::at(at, error.to_string()));
        }
    }

    /// The length of the training.
    fn check_length(&self, ports: &mut Ports<'_>) {
        match (&self.epochs, &self.steps) {
            (None, None) => ports.expect(
                false,
                self.input_span(),
                "neither `epochs` nor `steps` is set",
                "set one of them",
            ),
            (Some(_), Some(steps)) => {
                ports.expect(false, steps.span(), "`epochs` and `steps` are both set", "remove one of them")
            }
            (Some(epochs), None) => {
                let holds = epochs.value().is_finite() && **epochs > 0.0;
                ports.expect(holds, epochs.span(), "`epochs` must be a positive number", "not positive");
            }
            (None, Some(steps)) => {
                ports.expect(**steps > 0, steps.span(), "`steps` must be at least 1", "this is 0")
            }
        }
    }

    /// The pairs.
    fn check_inputs(&self, ports: &mut Ports<'_>) {
        match (&self.input, &self.inputs[..]) {
            (None, []) => ports.expect(
                false,
                self.input_span(),
                "neither `input` nor `inputs` is set",
                "set one of them",
            ),
            (Some(input), [_, ..]) => {
                ports.expect(false, input.0.span(), "`input` and `inputs` are both set", "remove one of them")
            }
            _ => {}
        }
        for Weighted { weight, .. } in &self.inputs {
            let holds = weight.is_finite() && **weight > 0.0;
            ports.expect(
                holds,
                weight.span(),
                "`weight` must be a positive number",
                "1 shows each pair once per epoch",
            );
        }
        if *self.follow {
            let stage = self.input.as_ref().is_some_and(|input| input.stage().is_some() && !is_files(input));
            ports.expect(
                stage,
                self.follow.span(),
                "`follow` needs a single stage as `input`",
                "set `input` to a stage",
            );
            let label = "the number of pairs is unknown when training starts";
            ports.expect(self.steps.is_some(), self.follow.span(), "`follow` needs `steps`", label);
        }
    }

    /// Rates, and averages over steps.
    fn check_rates(&self, ports: &mut Ports<'_>) {
        let lr = *self.lr;
        for (name, value, holds, label) in [
            ("weight_decay", &self.weight_decay, *self.weight_decay >= 0.0, "expected 0 or more"),
            ("beta1", &self.beta1, (0.0..1.0).contains(self.beta1.value()), "expected 0 to below 1"),
            ("beta2", &self.beta2, (0.0..1.0).contains(self.beta2.value()), "expected 0 to below 1"),
            ("eps", &self.eps, *self.eps > 0.0, "expected a positive number"),
            ("clip_grad_norm", &self.clip_grad_norm, *self.clip_grad_norm >= 0.0, "expected 0 or more"),
        ] {
            let message = format!("`{name}` is {}", value.value());
            ports.expect(holds && value.is_finite(), value.span(), &message, label);
        }
        if let (Some(warmup), Some(steps)) = (&self.warmup, &self.steps) {
            let message = format!("`warmup` is {} steps, but the training has only {}", **warmup, **steps);
            ports.expect(**warmup <= **steps, warmup.span(), &message, "lower it");
        }
        let every = &self.checkpoint_every;
        ports.expect(**every > 0, every.span(), "`checkpoint_every` must be at least 1", "this is 0");
        ports.expect(
            lr > 0.0 && lr.is_finite(),
            self.lr.span(),
            "`lr` must be a positive number",
            "such as 1e-3",
        );
        for rate in self.image_lr.iter().chain(&self.text_lr) {
            let holds = **rate > 0.0 && rate.is_finite();
            ports.expect(
                holds,
                rate.span(),
                "the learning rate must be a positive number",
                "to freeze a tower, use `freeze`",
            );
        }
        if let Some(ema) = &self.ema {
            ports.expect(
                **ema > 0.0 && **ema < 1.0,
                ema.span(),
                "`ema` must be between 0 and 1",
                "such as 0.999",
            );
        }
        if let Some(every) = &self.keep_every {
            ports.expect(**every > 0, every.span(), "`keep_every` must be at least 1", "this is 0");
        }
    }

    /// Batches, and how their images are cut.
    fn check_batch(&self, ports: &mut Ports<'_>) {
        ports.expect(
            *self.batch_size >= 2,
            self.batch_size.span(),
            "`batch_size` must be at least 2: the loss needs negatives",
            "too small",
        );
        if let Some(count) = &self.micro_batch {
            ports.expect(**count > 0, count.span(), "this must be at least 1", "this is 0");
        }
        if let (Some(ranks), Some(count)) = (&self.ranks, self.rank_count()) {
            ports.expect(count > 0, ranks.span(), "this must be at least 1", "this is 0");
            let holds = count == 0 || self.batch_size.is_multiple_of(count);
            ports.expect(
                holds,
                ranks.span(),
                "`batch_size` must be a multiple of `ranks`",
                "not a divisor of `batch_size`",
            );
        }
        let crop = *self.random_crop;
        ports.expect(
            crop > 0.0 && crop <= 1.0,
            self.random_crop.span(),
            "`random_crop` must be more than 0 and at most 1",
            "a fraction of the area, such as 0.9",
        );
        if let Some(augment) = &self.augment
            && let Err(error) = augment.check()
        {
            ports.fault(Fault::at(augment.span(), error.to_string()));
        }
    }

    /// The span of the first input, for faults of the whole stage.
    fn input_span(&self) -> Range<usize> {
        let pairs = self.pairs();
        let named = pairs.first().map(|(input, _)| input).or(self.tokenizer.as_ref());
        named.map_or(0..0, Input::span)
    }
}
