"""Pre-train an encoder on masked order book values: FP8 on NVIDIA GPUs, PyTorch elsewhere.

    python fp8_ddp_trainer.py                                  all GPUs of this machine, or its CPU
    python fp8_ddp_trainer.py --model_size=small_cell_transformer --epochs=4 --resume=True
    torchrun --nnodes=2 --nproc_per_node=8 ... fp8_ddp_trainer.py     across machines

Reads `balanced_samples/` and `book_states/`; leaves config.json, env.json, metrics.csv, TensorBoard
events and checkpoints in `runs/<model_name>/`. A name in use gets -2, -3, ...; `--resume=True` goes
on with the newest of them, bit for bit on a CPU.

What happens, in order: main starts one process per GPU (mp.spawn); each calls train, which builds
a Trainer. run_epochs takes one `step` after the other: some passes, each a `micro_step` (vary the
windows, hide values, forward pass under autocast, loss, backward pass); then gradients are summed
over the ranks, scaled to the mean, clipped, and the optimizer steps. end_epoch validates and saves.
"""

config = {
    # data
    "data_dir": "training_data",  # str: folder that holds book_states/ and balanced_samples/
    "pairs": None,  # list[str] | None: pairs to train on; None: all that were sampled
    "split_ratios": [0.7, 0.25, 0.05],  # list[float | str]: shares of the recorded time for
    #   training, validation and test, or the two UTC dates at which validation and test begin
    "temporal_dim": 256,  # int >= 4: states of a window
    "depth_dim": 96,  # int >= 2: levels of a state, as parsed
    "num_workers": 4,  # int >= 1: threads that copy windows if the states don't fit on the GPU
    # model
    "model_name": "pretrained_ddp",  # str: name of the run's folder
    "model_size": "cell_transformer",  # cell_transformer | small_cell_transformer |
    #   medium_cell_transformer | tiny_transformer | medium_transformer |
    #   deep_narrow_transformer | wide_transformer: preset
    "normalization": "book",  # book | minmax: log ticks from the mid and log sizes,
    #   or the published reference's scaling of each window
    "fill": "ladder",  # ladder | linear | none: stands in for a hidden value, and the network
    #   corrects it; ladder: the size seen before and after at its price; linear: in time
    "causal": False,  # bool: no state sees a later one; needed for a stream (docs/files.md)
    "context": [],  # list[clock | shuffled_clock | size | tick | flow] | []: lob/model/context.py
    "dropout": 0.1,  # >= 0 and < 1: share dropped in attention and after each block
    # task
    "mask_mode": "mix",  # mix | entry | level | span | span64 | patch | tail:
    #   what is hidden together, see lob/model/masking.py
    "mask_perc": 0.25,  # > 0 and < 1: share of the values that are hidden
    "mirror": True,  # bool: exchange bids and asks in half of the training windows
    "slow": 0.8,  # >= 0 and <= 1: share of training windows replayed 2 to 4 times slower
    "size_noise": 1.0,  # >= 0: sizes of half the windows times e^(+-this), one factor a price
    "outlook": 0.1,  # >= 0: weight of a second loss: the last state's vector must predict
    #   features of the book, its past moves and its next moves; 0: no second loss
    "loss": "mse",  # mse | mae | huber | smoothl1: what is minimised over hidden values
    # optimisation
    "epochs": None,  # int >= 1 | None: passes over the windows; None: until some 170,000 are seen
    "batch_size": 64,  # int >= 1: windows per GPU in a micro-step
    "accumulation_steps": 1,  # int >= 1: micro-steps per optimizer step
    "optimizer": "adamw",  # adamw | adam | sgd: of torch.optim
    "weight_decay": 0.05,  # >= 0: of adamw
    "lr": 1e-4,  # > 0 and < inf: learning rate without use_scheduler, at which the decay begins
    "use_scheduler": True,  # bool: one cycle up to max_lr and down; False: plateau decay of lr
    "max_lr": 1e-3,  # > 0 and < inf: learning rate at the peak of the cycle
    "lr_decay_factor": 0.5,  # > 0 and < 1: plateau decay multiplies lr by this
    "lr_decay_patience": 5,  # int >= 0: epochs without a better validation loss until lr decays
    "early_stopping_patience": 15,  # int >= 1: epochs without a better validation loss to stop
    "max_grad_norm": 1.5,  # > 0 and < inf: gradients are clipped to this norm
    "seed": 0,  # int >= 0: of weights, order and masks
    # precision and machines
    "precision": "auto",  # auto | fastest | fp8 | bf16 | fp32: auto: fp8 if the GPU has it,
    #   else bf16, on a CPU fp32; fastest: bf16 for networks too narrow to gain from fp8
    "fp8_recipe": "auto",  # auto | delayed | current | block | mxfp8 | nvfp4: see docs/running.md
    "backend": "nccl",  # nccl | gloo: how GPUs sum their gradients; CPUs always use gloo
    "compile": True,  # bool: on a GPU, compile layers and run each micro-step as one CUDA graph
    "max_gpus": None,  # int >= 1 | None: GPUs, or processes without a GPU; None: all, or one
    "azure": False,  # bool: keep data and runs on the cloud machine's data disk
    "azure_data_root": "/mnt/data",  # str: folder at which that disk is mounted
    # state
    "runs_dir": "runs",  # str: folder of all runs
    "resume": False,  # bool: go on with the newest run of this name
    "load_model": False,  # bool: begin with the weights of model_path
    "model_path": None,  # str | None: checkpoint, run or pretrained weights to begin with
    "keep_checkpoints": 3,  # int >= 1: checkpoints of steps that are kept, the newest
    "checkpoint_minutes": 30.0,  # >= 0: save after so many minutes too, not after epochs alone
    "validate_steps": 0,  # int >= 0: optimizer steps between validations; 0: after each epoch only
    "validation_windows": None,  # int >= 1 | None: of a validation, evenly spaced; None: all
    "log_steps": 20,  # int >= 1: optimizer steps between log entries
}

from lob.config import CheckFailed, InputError, check_rules, load_config, run

# Before the heavy imports: --help and a misspelt key are answered at once.
if __name__ == "__main__":
    config = load_config(config, __file__)

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from lob.model.checkpoint import BEST, Progress, find_checkpoint
from lob.model.encoder import EncoderConfig, encoder_config
from lob.model.inputs import build_inputs
from lob.model.masking import make_mask
from lob.model.window_store import WindowStore
from lob.process import requests_left_to_parent
from lob.storage import check_writable, find_disk
from lob.training import distributed, optimisation
from lob.training.augmentation import augment
from lob.training.distributed import Stopped, StopSignal, Team, is_asked
from lob.training.filled import Filled, fill_window
from lob.training.objective import masked_loss, outlook_loss
from lob.training.optimisation import FiniteCheck, NonFinite
from lob.training.passes import Passes, windows_a_pass
from lob.training.precision import build_encoder, check_dimensions, choose_precision
from lob.training.run_folder import choose_folder, refuse_running
from lob.training.run_log import RunLog, show_progress
from lob.training.samples import Dataset, Sampler, choose_epochs, open_dataset
from lob.training.saving import Saver, check_resumable, load_newest, load_weights, resume
from lob.training.scores import Judge, Predicted, Scores
from lob.windows.splits import SPLITS


def main(config: dict) -> int:
    config = check_rules(config, __file__)
    config = check_config(config)
    open_data(config).check(config["depth_dim"])
    folder = choose_folder(config["runs_dir"], config["model_name"], config, config["resume"])
    if config["resume"]:
        refuse_running(folder)
    if launched := distributed.find_launcher():  # by torchrun
        return train(*launched, None, config)
    ranks = distributed.count_ranks(config["max_gpus"])
    if ranks == 1:
        return train(0, 1, None, config)
    stop = StopSignal(speaks=True)
    with requests_left_to_parent():  # one process per GPU
        context = mp.spawn(
            train, (ranks, distributed.free_port(), config), nprocs=ranks, join=False
        )
    return distributed.wait_for_ranks(context, stop)


def check_config(config: dict) -> dict:
    """Return the config with Azure's folders put in. Raises InputError if it is impossible."""
    if config["load_model"] and config["model_path"] is None:
        raise InputError("load_model = True needs model_path: the checkpoint to begin with")
    encoder_config(config["model_size"], fill=config["fill"], context=config["context"])
    if config["azure"]:
        disk = find_disk(config["azure_data_root"])
        config = config | {key: str(disk / config[key]) for key in ("data_dir", "runs_dir")}
    check_writable(config["runs_dir"], "runs_dir")
    chosen = config["use_scheduler"], config["optimizer"], config["load_model"], config["resume"]
    print(optimisation.describe_unused(*chosen, config["model_path"]), flush=True)
    return config


def open_data(config: dict) -> Dataset:
    states, ratios = config["temporal_dim"], config["split_ratios"]
    return open_dataset(config["data_dir"], config["pairs"], states, ratios)


def train(rank: int, world: int, port: int | None, config: dict) -> int:
    """Train on one rank of `world`, from the beginning or from where the run to resume stands.

    Return the exit status: 0, or if a signal asked to stop, 128 and the signal's number.
    """
    config = check_rules(config, __file__)
    stop, status = StopSignal(speaks=port is None and rank == 0), 0
    run = config["runs_dir"], config["model_name"], config
    with distributed.join_team(rank, world, config["backend"], port) as team:
        folder = team.agree(choose_folder(*run, config["resume"]))
        trainer = Trainer(config, team, folder)
        pairs, data = [book.pair for book in trainer.data.books], trainer.data.describe()
        facts = {"precision": trainer.precision.name, "pairs": pairs, "data": data}
        settings = config | {"epochs": trainer.epochs}, rank == 0, config["resume"]
        log = RunLog(folder, *settings, trainer.saved, facts)
        with log as trainer.log:
            trainer.describe()
            try:
                trainer.run_epochs(stop)
            except Stopped as stopped:
                status = trainer.stop_here(stop, stopped.validating)
            except NonFinite as error:
                raise CheckFailed(f"{error}; {trainer.save_failure(*error.place)}") from None
    if port:  # a process of mp.spawn, which returns its status so
        raise SystemExit(status)
    return status


def apply_mask(
    price_ticks: Tensor,
    sizes: Tensor,
    keys: Tensor,
    mask_percentage: float,
    mask_mode: str,
    encoder: EncoderConfig,
    times_ns: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hide values of windows from the network. Edit this function to hide others.

    Hide about `mask_percentage` of the values, since the outlook's weight counts on that share.

    price_ticks, sizes: (B, T, L), T book states of L levels; keys: int64 (B,), a random number for
    each window that fixes its mask; times_ns: (B, T), of the states, never hidden. Returns

    - tokens: what the network sees; a hidden value is 0 there, and its mask bit is 1;
    - base: the first guess of each value (the fill); the network adds its corrections to it;
    - values: the normalised targets;
    - mask: bool, True where hidden. The last three are (B, T, L, F), F = 0 price, 1 size.

    Nothing in tokens or base depends on a hidden value: the normalisation is fitted to the visible
    values alone. Training, validation and test all call this function, so losses of different masks
    don't compare; inference_testing.py scores the masks of lob/model/masking.py. On a GPU the call
    becomes part of a CUDA graph: draw from `keys`, and let no branch depend on a tensor's values.
    """
    _, states, levels = price_ticks.shape
    mask = make_mask(keys, states, levels, mask_percentage, mask_mode)
    tokens, base, values, _ = build_inputs(price_ticks, sizes, mask, encoder, times_ns)
    return tokens, base, values, mask


class Trainer:
    """A model in training. Building one checks everything and writes nothing."""

    log: RunLog
    stop: StopSignal | None = None

    def __init__(self, config: dict, team: Team, folder: Path):
        self.config, self.team = config, team
        checkpoints = folder / "checkpoints"
        found, tensors, self.saved = load_newest(checkpoints, config["resume"])
        self.progress = Progress(**team.same(self.saved.get("progress", {}), str(checkpoints)))

        self.data = open_data(config)
        identity = team.same(self.data.identity(), f"the samples in {config['data_dir']}")
        check_resumable(found, self.saved, identity, config["data_dir"], team.world)
        windows = config["batch_size"] * config["accumulation_steps"] * team.world  # of a step
        windows = self.saved.get("windows_a_step", windows)
        self.sampler = Sampler(self.data, config["seed"], windows, config["validation_windows"])
        self.epochs = config["epochs"] or choose_epochs(self.sampler.windows_an_epoch)

        keys = ("temporal_dim", "causal", "dropout", "normalization", "fill", "context")
        choices = {key: config[key] for key in keys}
        choices |= {"depth": config["depth_dim"], "outlook": config["outlook"] > 0}
        self.encoder = encoder_config(config["model_size"], **choices)
        recipe = self.saved.get("fp8_recipe", config["fp8_recipe"])  # a resumed run keeps its own
        arithmetic = config["precision"], recipe, self.encoder.width
        self.precision = choose_precision(*arithmetic, team.device, config["temporal_dim"])
        # The config's batches fix what a step sees; how it is cut into passes is chosen here.
        share = windows // team.world
        size = windows_a_pass(self.encoder, share, config["batch_size"], team.device)
        self.passes_a_step = share // size
        check_dimensions(self.encoder, size, self.precision)

        torch.manual_seed(config["seed"])
        self.model = build_encoder(self.encoder, self.precision, team.device, config["compile"])
        before = self.saved
        if config["load_model"] and not before:
            file = find_checkpoint(config["runs_dir"], config["model_path"])
            before = team.same(load_weights(file, self.model), str(file))
        name, decay = config["optimizer"], config["weight_decay"]
        self.optimizer = optimisation.make_optimizer(name, self.model, config["lr"], decay)
        factor, patience = config["lr_decay_factor"], config["lr_decay_patience"]
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=factor, patience=patience, threshold=0
        )
        self.finite = FiniteCheck(self.optimizer, team.device)
        trained = self.model, self.optimizer, self.plateau
        sums, fp8_state = resume(found, tensors, self.saved, *trained)
        self.epoch_sums = sums.to(team.device)  # of the loss and of hidden values
        facts: dict = {"config": config, "encoder": asdict(self.encoder), "data": identity}
        recipe = self.precision.recipe or recipe  # 'auto' if no GPU has chosen one yet
        facts |= {"windows_a_step": windows, "fp8_recipe": recipe, "seen": self.data.seen(before)}
        saved = *trained, self.progress, config["keep_checkpoints"]
        self.saver = Saver(checkpoints, facts, *saved, team.rank == 0)

        # Values that a step hides on average. A pass divides its loss by it, so that gradients stay
        # in the range of low precision; `step` puts the true count in its place.
        states, threads = config["temporal_dim"], config["num_workers"]
        self.nominal = config["mask_perc"] * (2 * states * config["depth_dim"]) * windows
        store = WindowStore(self.data.books, states, team.device, threads)
        graph = config["compile"] and team.device.type == "cuda"
        modes = graph, self.passes_a_step == 1, self.precision.name == "fp8", fp8_state
        self.passes = Passes(self.micro_step, self.model, store, size, *modes)

    def describe(self) -> None:
        """Print what the run is made of, how long it will take and where it goes on."""
        epochs_left = self.progress.epochs_left(self.epochs, self.config["early_stopping_patience"])
        length = self.sampler.describe_length(self.epochs, self.config["epochs"] is None)
        parts = self.precision, self.sampler, self.passes, self.team, self.progress
        self.log.describe(self.config["model_size"], *parts, epochs_left, length)

    def predict(self, price_ticks: Tensor, sizes: Tensor, times: Tensor, keys: Tensor) -> Predicted:
        """Hide values of windows; return prediction, targets, mask and fill, (B, T, L, F) each."""
        task = self.config["mask_perc"], self.config["mask_mode"], self.encoder
        tokens, base, values, mask = apply_mask(price_ticks, sizes, keys, *task, times)
        with self.precision.autocast():
            # FP8 begins and ends here (and in outlook_loss): in this block, and in the backward
            # pass of what it computed, Transformer Engine's layers multiply in FP8. In other
            # precisions it is torch's bf16 autocast, or nothing.
            prediction = self.model(tokens, base)
        return prediction, values, mask, base

    def micro_step(
        self, price_ticks: Tensor, sizes: Tensor, times: Tensor, keys: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of one pass; return its summed loss and its count of hidden values.

        On a GPU this whole function is captured as one CUDA graph (lob/training/passes.py).
        """
        config = self.config
        variations = config["mirror"], config["slow"], config["size_noise"]
        windows = augment(price_ticks, sizes, times, keys, *variations)
        prediction, values, mask, _ = self.predict(*windows, keys)
        loss, hidden = masked_loss(prediction, values, mask, config["loss"])
        (loss / self.nominal).backward()
        if config["outlook"]:  # a second forward pass: no mask, and the last states cut off
            error, asked = outlook_loss(self.model, self.precision, *windows)
            share = asked / len(price_ticks)
            weight = config["outlook"] / (share * self.sampler.windows_a_step)
            (weight * error).backward()
        return loss.detach(), hidden

    def prepare_step(self) -> float:
        """Set learning rate and random state of a step by its number; return the rate."""
        if self.config["use_scheduler"]:
            steps = self.epochs * self.sampler.steps_an_epoch
            rate = optimisation.one_cycle(self.progress.step, steps, self.config["max_lr"])
            optimisation.set_rate(self.optimizer, rate)
        optimisation.seed_step(self.config["seed"], self.team.rank, self.progress.step)
        return self.optimizer.param_groups[0]["lr"]

    def step(
        self, windows: Iterator[tuple[Tensor, ...]], stop: bool = False
    ) -> tuple[Tensor, Tensor, bool]:
        """Take one optimizer step, on the mean loss over the hidden values of all ranks.

        `windows` yields what each pass takes. Return the loss, the gradient's norm before clipping,
        and whether a rank was asked to stop, which the host sees one step late on a GPU.
        """
        progress, team = self.progress, self.team
        sums = torch.zeros_like(self.epoch_sums)  # of the loss and of hidden values
        for _ in range(self.passes_a_step):
            sums += self.passes.run(*next(windows))  # micro_step: mask, forward, loss, backward

        # Not DistributedDataParallel: gradients are summed here, once a step, so that passes can be
        # CUDA graphs and the mean is over what was counted on all ranks.
        loss_sum, hidden, stopping = team.total(*sums, float(stop))
        gradients = [x.grad for x in self.model.parameters() if x.grad is not None]
        team.add_up(gradients)
        loss = loss_sum / hidden.clamp(min=1)
        to_mean = (self.nominal / hidden.clamp(min=1)).float()  # about 1; scales the outlook too
        norm = nn.utils.get_total_norm(gradients) * to_mean
        clip = (self.config["max_grad_norm"] / (norm + 1e-6)).clamp(max=1)
        optimisation.scale_gradients(self.optimizer, gradients, to_mean * clip)

        place = (progress.epoch, progress.step_in_epoch, progress.step + 1)
        # If a gradient is not finite, this raises NonFinite, or on a GPU makes step() do nothing.
        stopped = self.finite.watch(loss, norm, stopping, place)
        self.optimizer.step()
        self.passes.clear_gradients()

        self.epoch_sums += torch.stack([loss_sum, hidden])
        progress.step += 1
        progress.step_in_epoch += 1
        progress.windows_seen += self.sampler.windows_a_step
        return loss, norm, stopped

    def run_epochs(self, stop: StopSignal) -> None:
        """Train to the last epoch or early stopping, then test. Raises Stopped if asked to stop."""
        config, progress, sampler = self.config, self.progress, self.sampler
        team, log, self.stop = self.team, self.log, stop
        log.count_time(progress, training=False)
        validation_due = self.saved.get("validation_due", progress.step == 0)
        if validation_due and progress.step_in_epoch < sampler.steps_an_epoch:
            self.validate()
        patience = config["early_stopping_patience"]
        while progress.epochs_left(self.epochs, patience):
            place = progress.epoch, progress.step_in_epoch
            batches = sampler.training(*place, team.rank, team.world, self.passes_a_step)
            windows = self.passes.windows(batches)
            bar = log.bar(progress, sampler.steps_an_epoch, sampler.windows_a_step)
            while progress.step_in_epoch < sampler.steps_an_epoch:
                lr = self.prepare_step()
                loss, norm, stopped = self.step(windows, stop.received)
                bar.update(sampler.windows_a_step)
                if progress.step % config["log_steps"] == 0:
                    log.step(progress, float(loss), lr, float(norm), self.passes.store.wait_seconds)
                within_epoch = progress.step_in_epoch < sampler.steps_an_epoch
                every = config["validate_steps"]
                if every and progress.step % every == 0 and within_epoch:
                    self.validate()
                if stopped:
                    raise Stopped
                if self.saver.is_due(config["checkpoint_minutes"]):
                    self.save()
            bar.close()
            self.end_epoch()
        if progress.is_stale(patience):
            log.print(f"stopped early: no better validation loss for {patience} epochs")
        if not self.saver.is_saved():
            self.save()
        self.test()

    def end_epoch(self) -> None:
        """Validate, decay the learning rate, log and save."""
        progress, sampler, log = self.progress, self.sampler, self.log
        self.finite.check()
        loss_sum, hidden = self.epoch_sums.tolist()
        log.count_time(progress, training=True)
        seconds = progress.end_epoch()
        try:
            loss = self.validate()
        except Stopped:  # as if the epoch had not ended: a resumed run validates then
            progress.reopen_epoch(sampler.steps_an_epoch, seconds)
            raise
        lr = self.optimizer.param_groups[0]["lr"]
        if not self.config["use_scheduler"]:
            self.plateau.step(loss)
        rate = sampler.windows_an_epoch / seconds
        log.epoch(progress, seconds, loss_sum / max(hidden, 1), loss, lr, rate)
        log.picture(progress, *self.reconstruct())
        self.epoch_sums.zero_()
        log.count_time(progress, training=False)
        if self.saver.is_worth_its_time():
            self.save()

    @torch.inference_mode()
    def evaluate(self, split: int) -> Scores:
        """Score the network, the ladder and linear interpolation in time on a split's windows.

        Each rank takes its share of the windows; the scores are over all of them. Raises Stopped if
        a rank was asked to stop.
        """
        team, config = self.team, self.config
        batches = self.sampler.held_out(split, config["batch_size"], team.rank, team.world)
        if self.passes.fp8_state and batches:  # resumed, and no training pass yet
            self.reconstruct()  # a pass, in which FP8's scales get their tensors
            self.passes.load_scales()
        task = config["mask_perc"], config["mask_mode"], config["loss"]
        judge = Judge(self.encoder, *task, team.device)
        with self.passes.judging():
            loaded = self.passes.load(batches)
            for windows in show_progress(loaded, len(batches), SPLITS[split], team.rank == 0):
                if is_asked(self.stop):
                    break
                judge.add(windows, self.predict(*windows))
        if team.total(is_asked(self.stop)):
            raise Stopped(validating=True)
        return judge.scores(team.total)

    @torch.inference_mode()
    def reconstruct(self) -> tuple[Filled, float, str]:
        """Return a validation window as it is filled, the price of its tick, and its pair."""
        batch = self.sampler.first_validation(self.config["batch_size"])
        with self.passes.judging():
            (windows,) = self.passes.load([batch])
            predicted = self.predict(*windows)
        task = self.config["mask_perc"], self.config["mask_mode"]
        number, window = fill_window(windows, predicted, self.encoder, *task)
        book = self.data.books[batch.pair_index[number]]
        return window, book.tick_size, book.pair

    def validate(self) -> float:
        """Validate, log, and keep the weights if they are the best so far."""
        progress = self.progress
        with self.log.untrained(progress):
            scores = self.evaluate(1)
        self.log.validation(progress, scores, self.encoder.fill)
        if scores.loss() < progress.best_loss:
            progress.best_loss = scores.loss()
            progress.best_epoch = progress.epoch + (progress.step_in_epoch > 0)
            self.saver.keep_best(self.log.metrics_bytes())
        return scores.loss()

    def test(self) -> None:
        """Score the best weights on the test split and say where everything is."""
        best = self.saver.checkpoints / BEST
        meta = load_weights(best, self.model) if self.team.rank == 0 else {}
        self.team.share(self.model)
        scores = self.evaluate(2) if len(self.data.windows[2]) else None
        self.log.test(self.progress, scores, self.encoder.fill, best, meta)

    def save_failure(self, epoch: int, batch: int, step: int) -> str:
        """Keep the weights and the windows of a step that failed; say where they are."""
        windows = next(self.sampler.training(epoch, batch))  # of all ranks
        return self.saver.save_failure(step, windows, self.epoch_sums, self.log.metrics_bytes())

    def stop_here(self, stop: StopSignal, validating: bool) -> int:
        """Save what was trained so far, say how to go on, and return the exit status."""
        if not self.saver.is_saved():
            self.saver.facts["validation_due"] = validating
            self.save()
        self.log.stopped(self.progress, stop.describe())
        return stop.status

    def save(self) -> None:
        with self.log.untrained(self.progress):
            self.saver.save(self.epoch_sums, self.log.metrics_bytes())


if __name__ == "__main__":
    run(main, config)
