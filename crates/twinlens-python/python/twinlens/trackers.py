"""What trackers of experiments show of a run: functions for ``on_event`` of :func:`twinlens.run`.

    import wandb
    with wandb.init(project="clip", mode="offline") as tracked:
        twinlens.run("p.toml", on_event=twinlens.trackers.wandb(tracked))
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
_STEP = ("loss", "lr", "samples_per_second", "logit_scale", "grad_norm")


def metrics(event: Event) -> tuple[dict[str, float], int] | None:
    """Names and values of an event with its step; ``None`` if it has none."""
    stage = event["stage"]
    if event["event"] == "train_step":
        return {f"{stage}/{name}": event[name] for name in _STEP}, event["step"]
    if event["event"] == "evaluated":
        name = f"{stage}/{event['set']}/{event['prompts']}/{event['metric']}"
        return {name: event["value"]}, event["step"]
    return None


def _logging(log: Callable[[dict[str, float], int], object]) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        found = metrics(event)
        if found is not None:
            log(*found)

    return on_event


def wandb(run: Any) -> Callable[[Event], None]:
    """For a run of Weights & Biases: ``wandb.init(...)``."""
    return _logging(lambda values, step: run.log(values, step=step))


def mlflow(client: Any = None) -> Callable[[Event], None]:
    """For the active run of MLflow: the module, or what has its ``log_metrics``."""
    if client is None:
        import mlflow as client

    # Names of metrics may have no other characters there, such as the braces of prompts.
    clean = lambda name: re.sub(r"[^\w\-. :/]", "_", name)  # noqa: E731
    return _logging(
        lambda values, step: client.log_metrics({clean(k): v for k, v in values.items()}, step=step)
    )


def trackio(module: Any = None) -> Callable[[Event], None]:
    """For trackio after its ``init``: the module, or what has its ``log``."""
    if module is None:
        import trackio as module
    return _logging(lambda values, step: module.log(values, step=step))
