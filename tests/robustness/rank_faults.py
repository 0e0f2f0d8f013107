"""Callbacks that make one process of a training fail or stand still; named by tests in a YAML."""

import time

from pytorch_lightning import Callback

from ldm.errors import DataError

STEP = 3  # after the first save of the tests
ERRORS = {
    "known": DataError("DATA-IO", "the fault fires", "Phantom_0001"),
    "unknown": KeyError("the fault fires"),
}


class Fault(Callback):
    """Acts in one process, once, when a batch of training begins."""

    def __init__(self, rank: int, act: str) -> None:
        self.rank, self.act = rank, act

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == STEP and trainer.global_rank == self.rank:
            if self.act != "hang":
                raise ERRORS[self.act]
            print("the fault fires", flush=True)
            time.sleep(10_000)
