"""The trainer's loader without a network: how fast it hands out windows from this disk.

    python -m benchmarks.bench_loader --data_dir=training_data

Opens the balanced sample as fp8_ddp_trainer.py does and takes the first steps of an epoch, which
threads read from files: first as fast as they come, then one every `step_ms`, as a GPU would.
Prints a table and one JSON line.
"""

config = {
    "data_dir": "training_data",  # str: folder that holds book_states/ and balanced_samples/
    "pairs": None,  # list[str] | None: pairs to load; None: all that were sampled
    "split_ratios": [0.7, 0.25, 0.05],  # list[float | str]: as they were sampled
    "temporal_dim": 256,  # int >= 4: states of a window
    "batch_size": 64,  # int >= 1: windows of a step
    "steps": 200,  # int >= 1: most steps, of each kind
    "step_ms": 37.0,  # >= 0: of training, as the default recipe takes on an H200
    "num_workers": 4,  # int >= 1: threads that copy windows
}

from lob.config import load_config, run

if __name__ == "__main__":
    config = load_config(config, __file__)

import itertools
import time

import torch

from benchmarks.report import report
from lob.model.window_store import WindowStore
from lob.results import make_row
from lob.training.samples import Sampler, open_dataset


def main(config: dict) -> None:
    began = time.perf_counter()
    states, windows = config["temporal_dim"], config["batch_size"]
    data = open_dataset(config["data_dir"], config["pairs"], states, config["split_ratios"])
    data.identity()
    sampler = Sampler(data, 0, windows)
    sampler.held_out(1, windows)
    store = WindowStore(data.books, states, torch.device("cpu"), config["num_workers"])
    batches = sampler.training(0, 0)
    starts = (store.start_rows(batch.pair_index, batch.end_rows) for batch in batches)
    loaded = store.batches(starts)
    next(loaded)
    opened = time.perf_counter() - began
    steps = min(config["steps"], (sampler.steps_an_epoch - 1) // 2)

    began = time.perf_counter()
    for _ in itertools.islice(loaded, steps):
        pass
    seconds = time.perf_counter() - began

    waited = store.wait_seconds
    for _ in itertools.islice(loaded, steps):
        time.sleep(config["step_ms"] / 1000)
    waited = store.wait_seconds - waited
    share = waited / (waited + steps * config["step_ms"] / 1000)
    note = f"{steps} steps of {windows} windows"
    paced = f"{note}, one every {config['step_ms']:g} ms"
    rows = [
        make_row("loader", "first_batch_seconds", opened, "s", "sample opened, epoch drawn"),
        make_row("loader", "windows_per_second", steps * windows / seconds, "1/s", note),
        make_row("loader", "data_wait_share", share, "", paced),
    ]
    report("loader", rows, write=False)


if __name__ == "__main__":
    run(main, config)
