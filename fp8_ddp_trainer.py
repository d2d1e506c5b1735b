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
    "model_size": "deep_narrow_transformer",  # tiny, medium, deep_narrow or wide _transformer
    "normalization": "book",  # book (log ticks from the mid, log size) or minmax (the reference's, per window)
    "fill": "linear",  # what stands in for hidden values and is corrected by the head: linear in time, or none
    "causal": False,  # attend to earlier states only
    "dropout": 0.0,  # in attention and after each block
    # task
    "mask_mode": "entry",  # entry, level, span, span64, patch, tail, or mix of the last three
    "mask_perc": 0.25,  # share of the values that are hidden
    "loss": "mse",  # mse, mae, huber or smoothl1, over hidden values
    # optimisation
    "epochs": 10,  # passes over the training windows
    "batch_size": 48,  # windows a GPU and micro-step
    "accumulation_steps": 4,  # micro-steps an optimizer step
    "optimizer": "adamw",  # adamw, adam or sgd
    "lr": 1e-4,  # without a schedule's peak: where plateau decay begins
    "use_scheduler": True,  # OneCycle up to max_lr; False: plateau decay of lr
    "max_lr": 2.5e-4,  # OneCycle's peak
    "lr_decay_factor": 0.5,  # plateau decay: factor
    "lr_decay_patience": 5,  # plateau decay: epochs without a better validation loss
    "early_stopping_patience": 15,  # epochs without a better validation loss
    "max_grad_norm": 1.5,  # gradients are clipped to this norm
    "seed": 0,  # of weights, order and masks
    # precision and machines
    "precision": "auto",  # auto (fp8 where the GPU has it, else bf16, else fp32), fastest, fp8, bf16 or fp32
    "fp8_recipe": "delayed",  # delayed, current or block scaling
    "backend": "nccl",  # of DDP on GPUs; CPUs use gloo
    "compile": True,  # torch.compile the plain layers, and run each micro-step as one CUDA graph, on a GPU
    "max_gpus": None,  # at most this many; None: all of the machine
    "azure": False,  # True: data and runs on the cloud machine's data disk
    "azure_data_root": "/mnt/data",  # that disk
    # state
    "runs_dir": "runs",  # folder of all runs
    "resume": False,  # go on with the newest run of this name
    "load_model": False,  # begin with the weights of model_path
    "model_path": None,  # a checkpoint
    "keep_checkpoints": 3,  # step checkpoints that are kept
    "checkpoint_minutes": 30.0,  # save at least this often, besides every epoch
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
            "normalization": ("book", "minmax"), "fill": ("none", "linear"),
        },
    )  # fmt: skip

import contextlib
import math
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from lob.checkpoints import load_checkpoint, load_training_state, save_checkpoint, training_state
from lob.dataset import Dataset, open_dataset
from lob.encoder import BookEncoder, EncoderConfig, count_parameters, encoder_config, flops_per_window
from lob.masking import make_mask, window_keys
from lob.normalisation import interpolate_time
from lob.precision import Precision, check_dimensions, choose_precision
from lob.run_log import RunLog, find_run, new_run
from lob.step import WARM_UP_PASSES, FiniteCheck, GraphedStep, MicroStep, NonFinite, masked_loss, merge_factor
from lob.te_encoder import build_encoder, load_fp8_state, load_plain_state
from lob.window_store import WindowStore

VALIDATION_EPOCH = -1  # validation and test masks depend on the seed and the window alone


def main(config: dict) -> int:
    config = check_config(config)
    data = open_dataset(config)
    check_data(config, data)
    folder = find_run(config) if config["resume"] else new_run(config)
    if "RANK" in os.environ:
        return train(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), config, folder, None)
    gpus = torch.cuda.device_count()
    ranks = max(1, min(gpus, config["max_gpus"] or gpus))
    if ranks == 1:
        return train(0, 1, config, folder, None)
    torch.multiprocessing.spawn(train, (ranks, config, folder, free_port()), nprocs=ranks)
    return 0


def check_config(config: dict) -> dict:
    """Refuse impossible settings before any work; return the config with azure's folders in place."""
    least = {"epochs": 1, "batch_size": 1, "accumulation_steps": 1, "temporal_dim": 2, "log_steps": 1,
             "keep_checkpoints": 1, "validate_steps": 0, "histogram_steps": 0}  # fmt: skip
    for key, value in least.items():
        if config[key] < value:
            raise InputError(f"{key} = {config[key]} must be at least {value}")
    for key in ("mask_perc", "lr_decay_factor"):
        if not 0 < config[key] < 1:
            raise InputError(f"{key} = {config[key]} must lie between 0 and 1")
    for key in ("lr", "max_lr", "max_grad_norm"):
        if not config[key] > 0:
            raise InputError(f"{key} = {config[key]} must be positive")
    if config["load_model"] and config["model_path"] is None:
        raise InputError("load_model = True needs model_path: the checkpoint to begin with")
    if config["max_gpus"] is not None and config["max_gpus"] < 1:
        raise InputError(f"max_gpus = {config['max_gpus']} must be at least 1, or None for all")
    encoder_config(config["model_size"])
    if not config["azure"]:
        return config
    root = Path(config["azure_data_root"])
    if not root.is_dir():
        raise InputError(f"azure = True, but there is no folder {root}: mount the data disk or set --azure_data_root")
    return config | {"data_dir": str(root / config["data_dir"]), "runs_dir": str(root / config["runs_dir"])}


def check_data(config: dict, data: Dataset) -> None:
    if data.books[0].depth != config["depth_dim"]:
        depth = data.books[0].depth
        raise InputError(f"depth_dim = {config['depth_dim']}, but {data.books[0].path} holds {depth} levels: "
                         f"set --depth_dim={depth} or parse again")  # fmt: skip
    if data.shared_states:
        raise CheckFailed(f"{data.shared_states} states are shared by two splits: the samples are not to be used")
    if not len(data.end_rows[0]) or not len(data.end_rows[1]):
        raise InputError(f"no windows to train or validate on ({data.describe()}): sample more, or change split_ratios")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def apply_mask(
    inputs: Tensor, mask_percentage: float = 0.15, mask_value: float = 0.0, device: str = "cuda", *,
    mode: str = "entry", keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Hide a share of the values of windows (B, T, L, F); return them with `mask_value` there, and the mask (bool).

    'cuda' means the inputs' device where there is no CUDA. `mode`: see lob/masking.py; `keys`: int64 (B,), one a
    window, which fix the mask; without them it is drawn from torch's random state.
    """
    inputs = inputs.to(inputs.device if device == "cuda" and not torch.cuda.is_available() else device)
    if keys is None:
        keys = torch.randint(-(2**62), 2**62, (len(inputs),), device=inputs.device)
    mask = make_mask(keys, inputs.shape[1], inputs.shape[2], mask_percentage, mode)
    return inputs.masked_fill(mask, mask_value), mask


@dataclass
class Progress:
    """How far a run is: all that a resumed one needs besides weights and optimizer."""

    epoch: int = 0  # the epoch under way, from 0
    step_in_epoch: int = 0  # optimizer steps done in it
    step: int = 0  # optimizer steps done in all
    windows_seen: int = 0
    best_loss: float = math.inf
    epochs_without_gain: int = 0
    seconds: float = 0.0  # of training, over all sessions
    linear_loss: float = math.nan  # validation loss of linear interpolation in time, on the same masks


@dataclass
class Team:
    """This process among those that train together."""

    rank: int
    world: int
    device: torch.device

    def total(self, *values: float | Tensor) -> Tensor:
        """Sum each value over all ranks, float64 (n,) on the device."""
        sums = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values])
        if self.world > 1:
            dist.all_reduce(sums)
        return sums


@contextlib.contextmanager
def join_team(rank: int, world: int, config: dict, port: int | None) -> Iterator[Team]:
    """Pick this rank's device and join the others; leave them in the end, also after an error."""
    local = int(os.environ.get("LOCAL_RANK", rank))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        backend = config["backend"] if device.type == "cuda" else "gloo"
        address = f"tcp://127.0.0.1:{port}" if port else "env://"
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=world)
    try:
        yield Team(rank, world, device)
    finally:
        if world > 1:
            dist.destroy_process_group()


def train(rank: int, world: int, config: dict, folder: Path, port: int | None) -> int:
    """Train on one rank: build or resume, then epochs of steps, validation, log and checkpoint."""
    stop = StopSignal()
    with join_team(rank, world, config, port) as team, RunLog(folder, config, rank) as log:
        data = open_dataset(config)
        encoder = encoder_config(
            config["model_size"], depth=config["depth_dim"],
            **{key: config[key] for key in ("temporal_dim", "causal", "dropout", "normalization", "fill")},
        )  # fmt: skip
        precision = choose_precision(config["precision"], config["fp8_recipe"], encoder.width, team.device)
        check_dimensions(encoder, config["batch_size"], precision)
        torch.manual_seed(config["seed"])
        model = build_encoder(encoder, precision, team.device, config["compile"])
        if config["load_model"]:
            load_plain_state(model, load_checkpoint(config["model_path"], "model.")[0])
        session = Session(config, team, data, encoder, precision, model, log)
        if config["resume"]:
            session.resume(folder)
        log.print(session.describe())
        try:
            session.train(stop)
        except NonFinite:
            session.save(f"nonfinite_step_{session.progress.step:08d}.safetensors")
            raise
    return 0


class StopSignal:
    """Remembers SIGTERM, so that the step under way can be finished and saved."""

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self.note)

    def note(self, *_: object) -> None:
        self.received = True


def make_optimizer(name: str, parameters: Iterator[nn.Parameter], lr: float, cuda: bool) -> torch.optim.Optimizer:
    makers = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    return makers[name](parameters, lr=lr, fused=cuda, **momentum)


class Session:
    """A model in training: what the steps share, and the steps."""

    def __init__(self, config: dict, team: Team, data: Dataset, encoder: EncoderConfig, precision: Precision,
                 model: BookEncoder, log: RunLog):  # fmt: skip
        self.config, self.team, self.data, self.encoder = config, team, data, encoder
        self.precision, self.model, self.log = precision, model, log
        self.store = WindowStore(data.books, config["temporal_dim"], team.device, config["num_workers"])
        self.progress = Progress()
        self.lr = config["lr"]  # of the last step
        self.ddp: Any = model if team.world == 1 else nn.parallel.DistributedDataParallel(model)
        cuda = team.device.type == "cuda"
        self.optimizer = make_optimizer(config["optimizer"], model.parameters(), config["lr"], cuda)
        merged = merge_factor(encoder, config["batch_size"], config["accumulation_steps"], team.device)
        self.passes_a_step = config["accumulation_steps"] // merged
        self.windows_a_pass = config["batch_size"] * merged
        self.step = MicroStep(self.ddp, encoder, precision, config["loss"], config["mask_mode"], config["mask_perc"])
        self.graphed: GraphedStep | None = None
        self.warm, self.saved_fp8 = False, dict[str, Tensor]()
        self.finite = FiniteCheck(self.optimizer, team.device)
        self.windows_a_step = config["batch_size"] * config["accumulation_steps"] * team.world
        windows = int(data.weights[0].sum())
        self.steps_an_epoch = windows // self.windows_a_step
        if self.steps_an_epoch == 0:
            raise InputError(f"{windows} training windows an epoch are fewer than a step of {self.windows_a_step}: "
                             "lower batch_size or accumulation_steps, or sample more")  # fmt: skip
        if config["use_scheduler"]:
            steps = config["epochs"] * self.steps_an_epoch
            self.scheduler: Any = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, config["max_lr"], steps,
                                                                      cycle_momentum=False)  # fmt: skip
        else:
            self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self.optimizer, factor=config["lr_decay_factor"], patience=config["lr_decay_patience"]
            )

    def train(self, stop: StopSignal) -> None:
        """Train to the last epoch, to early stopping or to SIGTERM, and test unless stopped from outside."""
        if self.progress.step == 0:
            self.validate()
        while self.progress.epoch < self.config["epochs"]:
            if self.train_epoch(stop):
                self.save()
                self.log.print(f"stopped by SIGTERM at step {self.progress.step:,}; go on with --resume=True")
                return
            if self.progress.epochs_without_gain >= self.config["early_stopping_patience"]:
                patience = self.config["early_stopping_patience"]
                self.log.print(f"stopped early: no better validation loss for {patience} epochs")
                break
        self.test()

    def describe(self) -> str:
        ranks = f"{self.team.world} rank(s) on {self.team.device.type}"
        lines = [
            f"run        {self.log.folder}",
            f"data       {self.data.describe()}",
            f"model      {self.config['model_size']}: {count_parameters(self.encoder):,} parameters, "
            f"{flops_per_window(self.encoder) / 1e9:.2f} GFLOPs a window",
            f"precision  {self.precision.name} ({self.precision.reason})",
            f"step       {self.windows_a_step} windows in {self.passes_a_step} pass(es) on each of {ranks}; "
            f"{self.steps_an_epoch:,} steps an epoch; states {'on the GPU' if self.store.resident else 'in files'}",
        ]
        if self.progress.step:
            lines.append(f"resumed    at epoch {self.progress.epoch + 1}, step {self.progress.step:,}")
        return "\n".join(lines)

    def draw_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The windows of an epoch in order, and how often each was drawn before: from seed and epoch alone.

        A window of weight w is drawn floor(w) times, and once more with the remaining probability.
        """
        rng = np.random.default_rng([self.config["seed"], epoch])
        weights = self.data.weights[0]
        times = (np.floor(weights) + (rng.random(len(weights)) < weights % 1)).astype(np.int64)
        windows = np.repeat(np.arange(len(weights)), times)
        repeat = np.arange(len(windows)) - np.repeat(np.cumsum(times) - times, times)
        order = rng.permutation(len(windows))
        return windows[order], repeat[order]

    def keys(self, split: int, windows: np.ndarray, repeats: np.ndarray | int, epoch: int) -> Tensor:
        """The key of each window's mask, int64 (B,): a function of seed, epoch, window and repeat, not of the rank."""
        samples = torch.from_numpy(windows * 64 + repeats + split * 2**56)
        return window_keys(self.config["seed"], epoch, samples.to(self.team.device, non_blocking=True))

    def start_rows(self, split: int, windows: np.ndarray) -> np.ndarray:
        return self.store.start_rows(self.data.pair_index[split][windows], self.data.end_rows[split][windows])

    def run_passes(self, nominal: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield summed loss and count of each pass of the rest of the epoch, its gradient added, when asked for it."""
        order, repeats = self.draw_order(self.progress.epoch)
        passes, world = self.passes_a_step, self.team.world
        blocks = np.arange(self.steps_an_epoch * passes * world * self.windows_a_pass)
        mine = blocks.reshape(-1, passes, world, self.windows_a_pass)[self.progress.step_in_epoch :, :, self.team.rank]
        mine = mine.reshape(-1, self.windows_a_pass)
        keys = (self.keys(0, order[block], repeats[block], self.progress.epoch) for block in mine)
        starts = (self.start_rows(0, order[block]) for block in mine)
        if self.store.resident and world == 1 and self.config["compile"]:
            if self.graphed is None:
                parameters = list(self.model.parameters())
                self.graphed = GraphedStep(self.step, self.store.gather, self.windows_a_pass, nominal, parameters)
                self.restore_fp8()
            for rows, key in zip(starts, keys, strict=True):
                yield self.graphed(torch.from_numpy(rows), key)
        else:
            if self.precision.name == "fp8" and not self.warm:
                self.warm_up(order[: self.windows_a_pass], nominal)
            for (price_ticks, sizes), key in zip(self.store.batches(starts), keys, strict=True):
                yield self.step(price_ticks, sizes, key, nominal)

    def warm_up(self, windows: np.ndarray, nominal: float) -> None:
        """Give delayed scaling its first scales, as GraphedStep does: a few passes whose gradients are dropped."""
        keys = self.keys(0, windows, 0, self.progress.epoch)
        for price_ticks, sizes in self.store.batches([self.start_rows(0, windows)] * WARM_UP_PASSES):
            self.step(price_ticks, sizes, keys, nominal)
        self.optimizer.zero_grad()
        self.warm = True
        self.restore_fp8()

    def restore_fp8(self) -> None:
        """Put back the scales of a resumed run; Transformer Engine makes their tensors in its first pass."""
        load_fp8_state(self.model, self.saved_fp8)
        self.saved_fp8 = {}

    def train_epoch(self, stop: StopSignal) -> bool:
        """Go through the rest of the epoch under way; True where SIGTERM ended it."""
        config, progress, team = self.config, self.progress, self.team
        nominal = (
            config["mask_perc"] * self.windows_a_step / team.world * config["temporal_dim"] * config["depth_dim"] * 2
        )
        sums = torch.zeros(2, dtype=torch.float64, device=team.device)  # loss and count, of the epoch
        began = logged = saved = time.perf_counter()
        self.ddp.train()
        passes = self.run_passes(nominal)
        bar = tqdm(total=self.steps_an_epoch * self.windows_a_step, unit="window", desc=f"epoch {progress.epoch + 1}",
                   disable=None if team.rank == 0 else True, leave=False)  # fmt: skip
        while progress.step_in_epoch < self.steps_an_epoch:
            step_sums = torch.zeros(2, dtype=torch.float64, device=team.device)
            for number in range(self.passes_a_step):
                last = number == self.passes_a_step - 1 or team.world == 1
                with contextlib.nullcontext() if last else self.ddp.no_sync():
                    step_sums += torch.stack([part.double() for part in next(passes)])
            loss, count, stopping = team.total(*step_sums, float(stop.received))
            norm = self.update(nominal * team.world / count, loss / count)
            sums += torch.stack([loss, count])
            bar.update(self.windows_a_step)
            now = time.perf_counter()
            if progress.step % config["log_steps"] == 0:
                rate = config["log_steps"] * self.windows_a_step / (now - logged)
                wait = self.store.wait_seconds / (now - began)
                self.log.step(progress, float(loss / count), self.lr, float(norm), rate, wait)
                logged = now
            if config["validate_steps"] and progress.step % config["validate_steps"] == 0:
                self.validate()
            stopped = bool(stopping) if team.world > 1 else stop.received
            if stopped or now - saved > config["checkpoint_minutes"] * 60:
                progress.seconds += time.perf_counter() - began
                began = saved = time.perf_counter()
                if stopped:
                    return True
                self.save()
        bar.close()
        self.finite.check()
        train_loss = float(sums[0] / sums[1])
        seconds = time.perf_counter() - began
        progress.seconds += seconds
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
        self.end_epoch(train_loss, seconds)
        return False

    def update(self, scale: Tensor, loss: Tensor) -> Tensor:
        """Turn summed gradients into those of the mean over all hidden values, clip, and take an optimizer step."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(scale)
        norm = nn.utils.clip_grad_norm_(parameters, self.config["max_grad_norm"])
        where = f"step {self.progress.step + 1} (epoch {self.progress.epoch + 1}, batch {self.progress.step_in_epoch})"
        self.finite.watch(loss, norm, where)
        if self.config["histogram_steps"] and (self.progress.step + 1) % self.config["histogram_steps"] == 0:
            self.log.histograms(self.model, self.progress.step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.graphed is None)
        self.progress.step += 1
        self.progress.step_in_epoch += 1
        self.progress.windows_seen += self.windows_a_step
        self.lr = self.optimizer.param_groups[0]["lr"]
        if self.config["use_scheduler"] and self.progress.step < self.scheduler.total_steps:
            self.scheduler.step()
        return norm

    @torch.inference_mode()
    def evaluate(self, split: int) -> tuple[float, float]:
        """Loss over the hidden values of a split's windows, and that of linear interpolation in time; on all ranks."""
        self.ddp.eval()
        mine = np.arange(self.team.rank, len(self.data.end_rows[split]), self.team.world)
        size = self.config["batch_size"]
        windows = [mine[i : i + size] for i in range(0, len(mine), size)]
        sums = torch.zeros(3, dtype=torch.float64, device=self.team.device)
        step = MicroStep(
            self.model, self.encoder, self.precision, self.step.loss, self.step.mask_mode, self.step.mask_perc
        )
        for chosen, (price_ticks, sizes) in zip(windows, self.store.batches(self.start_rows(split, w) for w in windows),
                                                strict=True):  # fmt: skip
            prediction, values, mask = step.predict(price_ticks, sizes, self.keys(split, chosen, 0, VALIDATION_EPOCH))
            loss, count = masked_loss(prediction, values, mask, self.config["loss"])
            linear, _ = masked_loss(interpolate_time(values, ~mask), values, mask, self.config["loss"])
            sums += torch.stack([loss.double(), linear.double(), count.double()])
        self.ddp.train()
        ours, linear, count = self.team.total(*sums).tolist()
        return ours / count, linear / count

    def validate(self) -> float:
        """Validate, log, and keep the weights where they are the best so far."""
        loss, self.progress.linear_loss = self.evaluate(1)
        self.log.validation(self.progress, loss)
        if loss < self.progress.best_loss:
            self.progress.best_loss = loss
            self.save("best.safetensors")
        return loss

    def end_epoch(self, train_loss: float, seconds: float) -> None:
        best = self.progress.best_loss
        loss = self.validate()
        self.progress.epochs_without_gain = 0 if loss < best else self.progress.epochs_without_gain + 1
        if not self.config["use_scheduler"]:
            self.scheduler.step(loss)
        rate = self.steps_an_epoch * self.windows_a_step / seconds
        self.log.epoch(self.progress, seconds, train_loss, loss, self.lr, rate)
        self.log.picture(self.progress, *self.reconstruct_one())
        self.save()

    @torch.inference_mode()
    def reconstruct_one(self) -> tuple[Tensor, Tensor, Tensor]:
        """Values, mask and prediction (T, L, F) of the first validation window."""
        first = np.zeros(1, dtype=np.int64)
        (price_ticks, sizes), *_ = self.store.batches([self.start_rows(1, first)])
        prediction, values, mask = self.step.predict(price_ticks, sizes, self.keys(1, first, 0, VALIDATION_EPOCH))
        return values[0].cpu(), mask[0].cpu(), prediction[0].float().cpu()

    def save(self, name: str | None = None) -> None:
        """Write a checkpoint: of this step with all that a resumed run needs, or `name` with the weights alone."""
        if self.team.rank == 0:
            tensors, state = training_state(self.model, self.optimizer, full=name is None)
            meta = {"encoder": asdict(self.encoder), "config": self.config, "progress": asdict(self.progress), **state,
                    "scheduler": self.scheduler.state_dict() if name is None else {},
                    "cuts_ns": self.data.cuts_ns.tolist()}  # fmt: skip
            checkpoints = self.log.folder / "checkpoints"
            save_checkpoint(checkpoints / (name or f"step_{self.progress.step:08d}.safetensors"), tensors, meta)
            for old in sorted(checkpoints.glob("step_*.safetensors"))[: -self.config["keep_checkpoints"]]:
                old.unlink()

    def resume(self, folder: Path) -> None:
        """Go on where the newest step checkpoint of `folder` stands."""
        found = sorted((folder / "checkpoints").glob("step_*.safetensors"))
        if not found:
            raise InputError(f"{folder} holds no step checkpoint to resume from: start it again without --resume")
        tensors, meta = load_checkpoint(found[-1])
        self.saved_fp8 = load_training_state(self.model, self.optimizer, tensors, meta)
        self.scheduler.load_state_dict(meta["scheduler"])
        self.progress = Progress(**meta["progress"])
        self.log.rewind(self.progress.step)

    def test(self) -> None:
        """Score the best weights on the test split and say where everything is."""
        best = self.log.folder / "checkpoints" / "best.safetensors"
        load_plain_state(self.model, load_checkpoint(best, "model.")[0])
        if len(self.data.end_rows[2]):
            self.log.test(self.progress, *self.evaluate(2))
        self.log.print(f"best checkpoint {best}\ncurves          tensorboard --logdir {self.config['runs_dir']}")


if __name__ == "__main__":
    run(main, config)
