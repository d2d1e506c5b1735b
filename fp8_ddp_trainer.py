"""Pre-train an encoder on masked order book values: Transformer Engine and FP8 on NVIDIA GPUs, plain PyTorch elsewhere.

    python fp8_ddp_trainer.py                                  all GPUs of this machine, or its CPU
    python fp8_ddp_trainer.py --model_size=tiny_transformer --epochs=4 --resume=True
    torchrun --nnodes=2 --nproc_per_node=8 ... fp8_ddp_trainer.py     across machines

Reads `training_data/balanced_samples/` and `book_states/`; leaves `runs/<model_name>/`: config.json, env.json,
metrics.csv, TensorBoard events and checkpoints (checkpoints/best.safetensors and the last `keep_checkpoints` steps).
A name in use gets -2, -3, ...; `--resume=True` goes on with the newest of them, bit for bit on a CPU.
"""

config = {
    # data
    "data_dir": "training_data",  # folder that holds book_states/ and balanced_samples/
    "pairs": None,  # list of pairs; None: all sampled
    "split_ratios": [0.7, 0.25, 0.05],  # train, validation, test: shares of the recorded time
    "temporal_dim": 256,  # states a window
    "depth_dim": 96,  # levels of a state, as parsed
    "num_workers": 4,  # threads that copy windows where the states don't fit on the GPU
    # model
    "model_name": "pretrained_ddp",  # name of the run's folder
    "model_size": "cell_transformer",  # cell, tiny, medium, deep_narrow or wide _transformer
    "normalization": "book",  # book (log ticks from the mid, log size) or minmax (the reference's, per window)
    "fill": "ladder",  # what stands in for hidden values and is corrected by the head: linear (in time), ladder or none
    "causal": False,  # attend to earlier states only
    "dropout": 0.1,  # in attention and after each block
    # task
    "mask_mode": "mix",  # entry, level, span, span64, patch, tail, or mix (see lob/model/masking.py)
    "mask_perc": 0.25,  # share of the values that are hidden
    "mirror": True,  # exchange bids and asks in half the training windows
    "slow": 0.8,  # share of the training windows that are replayed 2 to 4 times slower
    "size_noise": 1.0,  # sizes of half the training windows are multiplied by e^(+-this), alike at a price; 0: none
    "outlook": 0.1,  # weight of telling book, past and next moves from the last state's vector; 0: not asked
    "loss": "mse",  # mse, mae, huber or smoothl1, over hidden values
    # optimisation
    "epochs": 9,  # passes over the training windows
    "batch_size": 64,  # windows a GPU and micro-step
    "accumulation_steps": 1,  # micro-steps an optimizer step
    "optimizer": "adamw",  # adamw, adam or sgd
    "weight_decay": 0.05,  # of adamw
    "lr": 1e-4,  # without a schedule's peak: where plateau decay begins
    "use_scheduler": True,  # OneCycle up to max_lr; False: plateau decay of lr
    "max_lr": 1e-3,  # OneCycle's peak
    "lr_decay_factor": 0.5,  # plateau decay: factor
    "lr_decay_patience": 5,  # plateau decay: epochs without a better validation loss
    "early_stopping_patience": 15,  # epochs without a better validation loss
    "max_grad_norm": 1.5,  # gradients are clipped to this norm
    "seed": 0,  # of weights, order and masks
    # precision and machines
    "precision": "auto",  # auto (fp8 where the GPU has it, else bf16, else fp32), fastest, fp8, bf16 or fp32
    "fp8_recipe": "delayed",  # delayed, current or block scaling
    "backend": "nccl",  # by which GPUs sum their gradients; CPUs use gloo
    "compile": True,  # torch.compile the plain layers, and run each micro-step as one CUDA graph, on a GPU
    "max_gpus": None,  # at most this many; None: all of the machine. Without a GPU: as many processes; None: one
    "azure": False,  # True: data and runs on the cloud machine's data disk
    "azure_data_root": "/mnt/data",  # that disk
    # state
    "runs_dir": "runs",  # folder of all runs
    "resume": False,  # go on with the newest run of this name
    "load_model": False,  # begin with the weights of model_path
    "model_path": None,  # a checkpoint
    "keep_checkpoints": 3,  # step checkpoints that are kept
    "checkpoint_minutes": 30.0,  # save at least this often, besides after epochs (seldomer where it takes long)
    "validate_steps": 0,  # validate every so many optimizer steps too; 0: at the end of each epoch
    "log_steps": 20,  # optimizer steps between two log entries
    "histogram_steps": 0,  # optimizer steps between two sets of gradient histograms; 0: none
}

from lob.config import CheckFailed, InputError, load_config, run

if __name__ == "__main__":
    config = load_config(
        config, __file__, optional={"pairs": list, "max_gpus": int, "model_path": str},
        choices={
            "loss": ("mse", "mae", "huber", "smoothl1"), "optimizer": ("adamw", "adam", "sgd"),
            "precision": ("auto", "fastest", "fp8", "bf16", "fp32"), "fp8_recipe": ("delayed", "current", "block"),
            "mask_mode": ("entry", "level", "span", "span64", "patch", "tail", "mix"),
            "normalization": ("book", "minmax"), "fill": ("none", "linear", "ladder"), "backend": ("nccl", "gloo"),
        },
        bounds={
            "temporal_dim": ">= 4", "num_workers": ">= 1", "dropout": ">= 0 and < 1", "mask_perc": "> 0 and < 1",
            "slow": ">= 0 and <= 1", "size_noise": ">= 0", "outlook": ">= 0", "epochs": ">= 1", "batch_size": ">= 1",
            "accumulation_steps": ">= 1", "weight_decay": ">= 0", "lr": "> 0 and < inf", "max_lr": "> 0 and < inf",
            "lr_decay_factor": "> 0 and < 1", "lr_decay_patience": ">= 0", "early_stopping_patience": ">= 1",
            "max_grad_norm": "> 0 and < inf", "seed": ">= 0", "max_gpus": ">= 1", "keep_checkpoints": ">= 1",
            "checkpoint_minutes": ">= 0", "validate_steps": ">= 0", "log_steps": ">= 1", "histogram_steps": ">= 0",
        },
    )  # fmt: skip

import fcntl
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lob.model.checkpoint import METADATA, Progress, check_weights, load_checkpoint, save_checkpoint
from lob.model.encoder import count_parameters, encoder_config, flops_per_window
from lob.model.masking import make_mask
from lob.model.window_store import WindowStore
from lob.storage import check_writable
from lob.training.distributed import StopSignal, Team, join_team, launch
from lob.training.optimisation import FiniteCheck, NonFinite, make_optimizer, one_cycle, scale_gradients
from lob.training.passes import MicroStep, Passes, Task, windows_a_pass
from lob.training.precision import WHOLE_STATES, build_encoder, check_dimensions, choose_precision
from lob.training.run_folder import claim_run, find_run, new_run
from lob.training.run_log import RunLog
from lob.training.samples import Dataset, Sampler, open_dataset
from lob.training.saving import load_training_state, load_weights, training_state

STEPS = "step_*.safetensors"  # checkpoints that a run can go on from
SAVE_SPACING = 9  # seconds of training for each that the last save took, so that a slow disk costs a tenth of the time


def main(config: dict) -> int:
    config = check_config(config)
    check_data(config, open_dataset(config))
    folder = (find_run if config["resume"] else new_run)(config)  # refuses a name or config before any work
    if config["resume"]:
        claim_run(folder, fcntl.LOCK_SH).close()  # several ranks may ask at once
    if "RANK" in os.environ:  # started by torchrun
        train(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), None, config)
        return 0
    gpus = torch.cuda.device_count()
    ranks = min(gpus, config["max_gpus"] or gpus) if gpus else config["max_gpus"] or 1
    if ranks == 1:
        train(0, 1, None, config)
    else:
        launch(train, ranks, config)
    return 0


def check_config(config: dict) -> dict:
    """Refuse impossible settings before any work; return the config with azure's folders in place."""
    if config["load_model"] and config["model_path"] is None:
        raise InputError("load_model = True needs model_path: the checkpoint to begin with")
    encoder_config(config["model_size"], fill=config["fill"])
    if config["azure"]:
        root = Path(config["azure_data_root"])
        if not root.is_dir():
            raise InputError(f"azure_data_root = {root} is no folder: mount the data disk or set another one")
        config = config | {"data_dir": str(root / config["data_dir"]), "runs_dir": str(root / config["runs_dir"])}
    check_writable(config["runs_dir"], "runs_dir")
    return config


def check_data(config: dict, data: Dataset) -> None:
    if data.books[0].depth != config["depth_dim"]:
        depth = data.books[0].depth
        raise InputError(f"depth_dim = {config['depth_dim']}, but {data.books[0].path} holds {depth} levels: "
                         f"set --depth_dim={depth} or parse again")  # fmt: skip
    if data.shared_states:
        raise CheckFailed(f"{data.shared_states} states are shared by two splits: the samples are not to be used")
    if not len(data.end_rows[0]) or not len(data.end_rows[1]):
        raise InputError(f"no windows to train or validate on ({data.describe()}): sample more, or change split_ratios")


def apply_mask(
    inputs: Tensor, mask_percentage: float = 0.15, mask_value: float = 0.0, device: str = "cuda", *,
    mode: str = "entry", keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Hide a share of the values of windows (B, T, L, 2); return them with `mask_value` there, and the mask (bool).

    'cuda' means the inputs' device where there is no CUDA. `mode`: see lob/model/masking.py; `keys`: int64 (B,), one a
    window, which fix the mask; without them it is drawn from torch's random state.
    """
    inputs = inputs.to(inputs.device if device == "cuda" and not torch.cuda.is_available() else device)
    if keys is None:
        keys = torch.randint(-(2**62), 2**62, (len(inputs),), device=inputs.device)
    mask = make_mask(keys.to(inputs.device), inputs.shape[1], inputs.shape[2], mask_percentage, mode)
    return inputs.masked_fill(mask, mask_value), mask


def train(rank: int, world: int, port: int | None, config: dict) -> None:
    """Train on one rank, from the beginning or from where the run to resume stands."""
    stop = StopSignal()
    with join_team(rank, world, config["backend"], port) as team:
        folder = team.agree(find_run(config) if config["resume"] else new_run(config))
        session = Session(config, team, folder)
        facts = {"precision": session.precision.name, "pairs": [book.pair for book in session.data.books]}
        with RunLog(folder, config, rank == 0, session.saved, facts) as session.log:
            session.log.print(session.describe())
            try:
                session.train(stop)
            except NonFinite as error:
                raise CheckFailed(f"{error}; {session.save_failure(*error.place)}") from None


class Session:
    """A model in training: what its steps share, and the steps. Building one checks everything and writes nothing."""

    log: RunLog

    def __init__(self, config: dict, team: Team, folder: Path):
        self.config, self.team, self.checkpoints = config, team, folder / "checkpoints"
        found = max(self.checkpoints.glob(STEPS), default=None) if config["resume"] else None
        tensors, self.saved = load_checkpoint(found) if found else ({}, {})
        self.data = open_dataset(config)
        self.identity = self.data.identity()
        if self.saved and self.saved["data"] != self.identity:
            raise InputError(f"{found} was trained on other samples than those now in {config['data_dir']}: "
                             "make them again as they were, or start without --resume")  # fmt: skip
        self.encoder = encoder_config(
            config["model_size"], depth=config["depth_dim"], outlook=config["outlook"] > 0,
            **{key: config[key] for key in ("temporal_dim", "causal", "dropout", "normalization", "fill")},
        )  # fmt: skip
        windows = self.saved.get("windows_a_step", config["batch_size"] * config["accumulation_steps"] * team.world)
        if windows % team.world:
            raise InputError(f"the run's {windows} windows a step can't be divided among {team.world} ranks: "
                             "set --max_gpus")  # fmt: skip
        self.sampler = Sampler(self.data, config["seed"], windows)
        precision = choose_precision(config["precision"], config["fp8_recipe"], self.encoder.width, team.device)
        self.precision = replace(precision, cudnn=config["temporal_dim"] % WHOLE_STATES == 0)
        size = windows_a_pass(self.encoder, windows // team.world, config["batch_size"], team.device)
        self.passes_a_step = windows // team.world // size
        check_dimensions(self.encoder, size, self.precision)
        torch.manual_seed(config["seed"])
        self.model = build_encoder(self.encoder, self.precision, team.device, config["compile"])
        if config["load_model"] and not self.saved:
            load_weights(config["model_path"], self.model)
        self.optimizer = make_optimizer(config["optimizer"], self.model, config["lr"], config["weight_decay"])
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=config["lr_decay_factor"], patience=config["lr_decay_patience"], threshold=0
        )
        self.finite = FiniteCheck(self.optimizer, team.device)
        self.best: tuple[dict[str, Tensor], dict[str, Any]] | None = None  # not yet written
        self.saved_at, self.save_seconds = time.perf_counter(), 0.0
        self.progress = Progress(**self.saved.get("progress", {}))
        self.saved_place = (self.progress.epoch, self.progress.step)
        self.epoch_sums = tensors.pop("epoch_sums", torch.zeros(2, dtype=torch.float64)).to(team.device)
        fp8_state: dict[str, Tensor] = {}
        if found:
            check_weights(found, {"epoch_sums": self.epoch_sums}, {"epoch_sums": torch.zeros(2)})
            fp8_state = load_training_state(found, self.model, self.optimizer, tensors, self.saved["lr"])
            self.plateau.load_state_dict({key: self.saved["plateau"][key] for key in METADATA["plateau"]})
        task = Task(config["loss"], config["mask_mode"], config["mask_perc"])
        varied = replace(task, **{key: config[key] for key in ("mirror", "slow", "size_noise", "outlook")})
        store = WindowStore(self.data.books, config["temporal_dim"], team.device, config["num_workers"])
        values = 2 * config["temporal_dim"] * config["depth_dim"]
        self.nominal = config["mask_perc"] * values * windows  # hidden values of a step, expected
        graph = config["compile"] and team.device.type == "cuda"
        training, plain = (MicroStep(self.model, self.encoder, self.precision, of) for of in (varied, task))
        self.passes = Passes(training, plain, store, size, self.nominal, graph, self.passes_a_step == 1, fp8_state)

    def describe(self) -> str:
        config, sampler, progress, team = self.config, self.sampler, self.progress, self.team
        lines = [
            f"run        {self.checkpoints.parent}",
            f"data       {self.data.describe()}",
            f"model      {config['model_size']}: {count_parameters(self.encoder):,} parameters, "
            f"{flops_per_window(self.encoder) / 1e9:.2f} GFLOPs a window",
            f"precision  {self.precision.name} ({self.precision.reason})",
            f"step       {sampler.windows_a_step} windows in {self.passes_a_step} pass(es) on each of {team.world} "
            f"rank(s) on {team.device.type}; {sampler.steps_an_epoch:,} steps an epoch; states "
            f"{'on the GPU' if self.passes.store.resident else 'in files'}",
        ]
        done = progress.epoch >= config["epochs"] or self.is_stale()
        if team.device.type == "cpu" and not done:
            batch = sampler.batch(0, np.arange(min(self.passes.size, len(self.data.end_rows[0]))), 0, 0)
            rate = team.world * self.passes.measure_rate(batch)
            windows = sampler.steps_an_epoch * sampler.windows_a_step + len(self.data.end_rows[1]) / 3  # forward only
            minutes = windows * (config["epochs"] - progress.epoch) / rate / 60
            estimate = f"{minutes / 60:,.1f} hours" if minutes > 90 else f"{minutes:.1f} minutes"
            lines.append(f"time       about {estimate} at {rate:,.1f} windows/s, measured on this CPU just now")
        if config["resume"]:
            rest = "nothing is left to train; testing the best weights again" if done else f"epoch {progress.epoch + 1}"
            lines.append(f"resumed    after step {progress.step:,}: {rest}")
        return "\n".join(lines)

    def train(self, stop: StopSignal) -> None:
        """Train to the last epoch, to early stopping or to SIGTERM; test unless it was the latter."""
        config, progress, sampler, team, log = self.config, self.progress, self.sampler, self.team, self.log
        log.count_time(progress, training=False)
        if progress.step == 0:
            self.validate()
        while progress.epoch < config["epochs"] and not self.is_stale():
            batches = sampler.training(
                progress.epoch, progress.step_in_epoch, team.rank, team.world, self.passes_a_step
            )
            passes = self.passes.run(batches)
            bar = tqdm(total=sampler.steps_an_epoch * sampler.windows_a_step, unit="window", leave=False,
                       initial=progress.step_in_epoch * sampler.windows_a_step, desc=f"epoch {progress.epoch + 1}",
                       disable=None if log.active else True)  # fmt: skip
            while progress.step_in_epoch < sampler.steps_an_epoch:
                lr = self.begin_step()
                loss, norm, stopped = self.take_step(passes, stop.received)
                bar.update(sampler.windows_a_step)
                if progress.step % config["log_steps"] == 0:
                    log.step(progress, float(loss), lr, float(norm), self.passes.store.wait_seconds)
                epoch_ends = progress.step_in_epoch == sampler.steps_an_epoch
                if config["validate_steps"] and progress.step % config["validate_steps"] == 0 and not epoch_ends:
                    self.validate()
                if stopped or self.unsaved_seconds() > config["checkpoint_minutes"] * 60:
                    self.save()
                if stopped:
                    log.print(f"stopped by SIGTERM at step {progress.step:,}; go on with --resume=True")
                    return
            bar.close()
            self.end_epoch()
        if self.is_stale():
            log.print(f"stopped early: no better validation loss for {config['early_stopping_patience']} epochs")
        if self.saved_place != (progress.epoch, progress.step):
            self.save()
        self.test()

    def is_stale(self) -> bool:
        return self.progress.epoch - self.progress.best_epoch >= self.config["early_stopping_patience"]

    def begin_step(self) -> float:
        """Set the learning rate and the random state of a step; both follow from its number. Return the rate."""
        if self.config["use_scheduler"]:
            steps = self.config["epochs"] * self.sampler.steps_an_epoch
            for group in self.optimizer.param_groups:
                group["lr"] = one_cycle(self.progress.step, steps, self.config["max_lr"])
        entropy = [self.config["seed"], self.team.rank, self.progress.step]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        return self.optimizer.param_groups[0]["lr"]

    def take_step(self, passes: Iterator[Tensor], stop: bool = False) -> tuple[Tensor, Tensor, bool]:
        """Run a step's passes, make the gradients those of the mean over all ranks' hidden values, clip and update.

        Return the loss, the gradient's norm before clipping, and whether a rank was asked to stop (on a GPU: a step
        ago). The host waits for nothing of this step.
        """
        progress, team = self.progress, self.team
        sums = torch.zeros(2, dtype=torch.float64, device=team.device)  # of loss and of hidden values
        for _ in range(self.passes_a_step):
            sums += next(passes)
        loss_sum, count, stopping = team.total(*sums, float(stop))
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        team.add_up(gradients)
        to_mean = (self.nominal / count.clamp(min=1)).float()
        norm = nn.utils.get_total_norm(gradients) * to_mean
        clip = (self.config["max_grad_norm"] / (norm + 1e-6)).clamp(max=1)
        scale_gradients(self.optimizer, gradients, to_mean * clip)
        loss = loss_sum / count.clamp(min=1)
        place = (progress.epoch, progress.step_in_epoch, progress.step + 1)
        stopped = self.finite.watch(loss, norm, stopping, place)
        self.optimizer.step()
        if self.config["histogram_steps"] and (progress.step + 1) % self.config["histogram_steps"] == 0:
            self.log.histograms(self.model, progress.step + 1)
        self.passes.clear_gradients()
        self.epoch_sums += torch.stack([loss_sum, count])
        progress.step += 1
        progress.step_in_epoch += 1
        progress.windows_seen += self.sampler.windows_a_step
        return loss, norm, stopped

    def evaluate(self, split: int) -> tuple[float, float]:
        """Loss over the hidden values of a split's windows, and that of linear interpolation in time; on all ranks."""
        batches = self.sampler.held_out(split, self.config["batch_size"], self.team.rank, self.team.world)
        ours, linear, count = self.team.total(*self.passes.evaluate(batches)).tolist()
        return ours / max(count, 1), linear / max(count, 1)

    def validate(self) -> float:
        """Validate, log, and keep the weights where they are the best so far."""
        progress = self.progress
        self.log.count_time(progress, training=True)
        loss, progress.linear_loss = self.evaluate(1)
        self.log.count_time(progress, training=False)
        self.log.validation(progress, loss)
        if loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = loss, progress.epoch + (progress.step_in_epoch > 0)
            if self.team.rank == 0:
                weights = {name: x.to("cpu", copy=True) for name, x in training_state(self.model).items()}
                self.best = weights, self.meta()
        return loss

    def end_epoch(self) -> None:
        """Validate, decay the learning rate, log and save."""
        progress, sampler = self.progress, self.sampler
        self.finite.check()
        loss_sum, count = self.epoch_sums.tolist()
        self.log.count_time(self.progress, training=True)
        seconds, progress.epoch_began = progress.step_seconds - progress.epoch_began, progress.step_seconds
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
        loss = self.validate()
        lr = self.optimizer.param_groups[0]["lr"]
        if not self.config["use_scheduler"]:
            self.plateau.step(loss)
        rate = sampler.steps_an_epoch * sampler.windows_a_step / seconds
        self.log.epoch(progress, seconds, loss_sum / max(count, 1), loss, lr, rate)
        self.log.picture(progress, *self.passes.reconstruct(sampler.first_held_out(1)))
        self.epoch_sums.zero_()
        self.log.count_time(self.progress, training=False)
        if self.unsaved_seconds() > SAVE_SPACING * self.save_seconds:
            self.save()

    def unsaved_seconds(self) -> float:
        return time.perf_counter() - self.saved_at

    def save(self) -> None:
        """Write the best weights, where they are new, and a checkpoint with all that a resumed run needs."""
        self.log.count_time(self.progress, training=True)
        began = time.perf_counter()
        if self.team.rank == 0:
            self.write(f"step_{self.progress.step:08d}.safetensors", {})
            old = sorted(self.checkpoints.glob(STEPS))[: -self.config["keep_checkpoints"]]
            for file in [*old, *self.checkpoints.glob(".*.partial")]:  # of a process that was killed while it saved
                file.unlink()
        self.saved_at, self.saved_place = time.perf_counter(), (self.progress.epoch, self.progress.step)
        self.save_seconds = self.saved_at - began
        self.log.count_time(self.progress, training=False)

    def write(self, name: str, more: dict[str, Tensor]) -> None:
        if self.best:
            save_checkpoint(self.checkpoints / "best.safetensors", *self.best)
            self.best = None
        tensors = training_state(self.model, self.optimizer) | {"epoch_sums": self.epoch_sums} | more
        save_checkpoint(self.checkpoints / name, tensors, self.meta())

    def meta(self) -> dict[str, Any]:
        """What a checkpoint says of itself, beside its tensors."""
        return {"encoder": asdict(self.encoder), "config": self.config, "progress": asdict(self.progress),
                "lr": self.optimizer.param_groups[0]["lr"], "plateau": self.plateau.state_dict(),
                "windows_a_step": self.sampler.windows_a_step, "data": self.identity,
                "metrics_bytes": self.log.metrics_bytes()}  # fmt: skip

    def save_failure(self, epoch: int, batch: int, step: int) -> str:
        """Keep the weights that a failed step met and the windows of all ranks in it; say where."""
        windows = next(self.sampler.training(epoch, batch))
        name = f"nonfinite_step_{step:08d}.safetensors"
        if self.team.rank == 0:
            self.write(name, {"batch.pair_index": torch.from_numpy(windows.pair_index), "batch.keys": windows.keys,
                                  "batch.end_rows": torch.from_numpy(windows.end_rows)})  # fmt: skip
        return f"the weights before it and its windows are in {self.checkpoints / name}"

    def test(self) -> None:
        """Score the best weights on the test split and say where everything is."""
        best = self.checkpoints / "best.safetensors"
        meta: dict[str, Any] = {}
        if self.team.rank == 0:
            meta = load_weights(best, self.model)
        self.team.share(self.model)
        self.log.test(self.progress, *(self.evaluate(2) if len(self.data.end_rows[2]) else (math.nan, math.nan)))
        self.log.end(best, meta)


if __name__ == "__main__":
    run(main, config)
