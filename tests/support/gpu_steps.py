"""Training steps of a recipe, in which torch refuses to let the host wait for the device: RECIPE [SETTINGS]."""

from __future__ import annotations

import sys

import torch

from cifar_dist import recipe
from cifar_dist.distributed.agreement import Agreement
from cifar_dist.distributed.start import start_engine
from cifar_dist.distributed.stop_requests import StopRequests
from cifar_dist.distributed.stop_signals import StopSignals
from cifar_dist.process_exit import exit_with
from cifar_dist.training.learner import Learner
from cifar_dist.training.measurements import StepLog
from cifar_dist.training.setup import build_setup

_STEPS, _FIRST = 6, 2  # of which so many create state, compile and choose algorithms


def main() -> int:
    config = recipe.load(sys.argv[1], sys.argv[2:])
    with start_engine(config) as engine:
        setup = build_setup(config, engine.ranks)
        learner = Learner(setup, engine)
        if scaler := learner.model.scaler_state():
            learner.model.load_scaler_state({**scaler, "scale": 1.0})  # with which no gradient overflows
        agreement, log = Agreement(engine.ranks, StopRequests(StopSignals())), StepLog(engine.ranks)
        on_gpu = engine.ranks.device.type == "cuda"
        for measured in learner.steps(0, _STEPS, setup.learning_rate):
            agreement.after_step(measured.step, measured.ids, measured.finite)
            log.add(measured)
            log.take(wait=False)
            if on_gpu:
                torch.cuda.set_sync_debug_mode("error" if _FIRST <= measured.step < _STEPS else "default")
        print(f"{_STEPS} steps on {engine.device_name} in {engine.arithmetic}")
    return 0


if __name__ == "__main__":
    exit_with(main)
