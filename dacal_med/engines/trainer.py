# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The adaptation engine: host x pseudo-labeller x bi-level step, an Ignite engine derived from MONAI's ``Trainer``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.optim import Optimizer

from dacal_med.core.batch import in_parts, soft_cross_entropy
from dacal_med.core.precision import Precision
from dacal_med.core.pseudo_labels import HardLabels, LearnedTemperature, PseudoLabeller, PseudoLabels
from dacal_med.core.tensors import at_least_single, seed_draws
from dacal_med.data.paired import PairedLoader
from dacal_med.engines.description import describe_trainer
from dacal_med.engines.domains import DomainBatch, prepare_domains, sample_seeds
from dacal_med.engines.feedback import TemperatureFeedback
from dacal_med.engines.hosts import Host, LossTerm
from dacal_med.engines.labellers import temperature_statistics
from dacal_med.engines.meta import TemperatureLearner
from dacal_med.engines.parallel import average_gradients, broadcast_module
from dacal_med.engines.student import Loss, MicroBatch, StudentUpdate, predicted_logits
from dacal_med.engines.teacher import Teacher
from dacal_med.io.errors import InputError

COUNTERS = ("skipped", "meta_skipped", "overflows", "skipped_in_a_row", "meta_skipped_in_a_row")


class NonFiniteLossError(RuntimeError):
    """Losses, gradients or weights that are not numbers, beyond what is skipped; the last checkpoint is good."""


class AdaptationTrainer(Trainer):
    """Adapts a segmentation network from labelled source to unlabelled target images by self-training.

    One iteration: the teacher predicts the target, the pseudo-labeller turns its logits into labels, the temperature
    learner (if any, and if due) improves the labeller, the host builds supervised terms, the student takes one step on
    the sum of their losses, the teacher follows. Warming up and settling, the student learns from the source alone.

    Everything random inside an iteration is drawn from ``(seed, iteration, number of the sample)``, so that a resumed
    run continues exactly where the interrupted one would have been, and ranks and micro-batches draw what one large
    batch does (``docs/scaling.md``; what layers of the network draw, such as dropout, is their own).

    What an iteration did is in ``engine.state.output[0]`` (flat; a list of one, as MONAI's handlers expect), in
    ``engine.state.metrics``, and in ``engine.state``: ``losses``, ``temperature`` (mean, min, max, share at the
    bounds), ``quality``, ``meta`` (losses and gradient norm), and the numbers of steps that were ``skipped``,
    ``meta_skipped``, and skipped as ``overflows`` of float16.

    Args:
        device: where to train.
        max_epochs: number of epochs of ``epoch_length`` iterations.
        train_data_loader: the endless loader of source, target and held-out batches.
        network: the student; maps ``(B, channels, *spatial)`` to logits ``(B, num_classes, *spatial)``.
        optimizer: over the student's parameters.
        num_classes: number of classes, background included.
        host: what the student learns from.
        labeller: how teacher logits become pseudo-labels.
        meta: the temperature learner, or ``None`` for labellers that learn nothing.
        feedback: what moves the temperature as a whole after each epoch of self-training, ``None`` for nothing; without
            ``meta`` it does nothing.
        loss_function: loss of a term with pseudo-labels, from logits, soft targets and weights; cross-entropy by
            default.
        truth_loss_function: loss of a term with true labels only; ``None`` for the same.
        warmup_epochs: epochs on source alone, before adaptation.
        settle_epochs: epochs after that, still on source alone, before the first pseudo-labels: the adaptation's random
            appearance first, then a teacher that has learned from it. Pseudo-labels of a teacher that has only seen the
            source as it is are wrong in ways that self-training keeps.
        teacher_decay: decay of the teacher's moving average.
        ignore_index: label value without supervision.
        max_gradient_norm: clip the student's gradient to this norm; ``None`` does not clip.
        seed: base of all draws inside iterations.
        max_skipped: stop after so many steps in a row, of student or temperature network, with a loss or gradient that
            is not finite; fewer are skipped and counted.
        inferer: how the student sees a training batch.
        train_handlers: Ignite handlers.
        amp: mixed precision on CUDA, and on the CPU if ``amp_dtype`` is given.
        amp_dtype: ``torch.float16`` (with gradient scaling, default) or ``torch.bfloat16``.
        accumulate: micro-batches of an iteration: the batch passes the networks in so many equal parts, and one step is
            taken from all of them. Losses that need sums over the batch (``sums_over_batch``) cost a further forward
            pass.

    Raises:
        InputError: if host, labeller and temperature learner do not fit together, or a number is out of range.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: PairedLoader,
        network: nn.Module,
        optimizer: Optimizer,
        num_classes: int,
        host: Host,
        labeller: PseudoLabeller,
        meta: TemperatureLearner | None = None,
        feedback: TemperatureFeedback | None = None,
        loss_function: Loss = soft_cross_entropy,
        truth_loss_function: Loss | None = None,
        warmup_epochs: int = 0,
        settle_epochs: int = 0,
        teacher_decay: float = 0.99,
        ignore_index: int | None = 255,
        max_gradient_norm: float | None = None,
        seed: int = 0,
        max_skipped: int = 10,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] | None = None,
        amp: bool = False,
        amp_dtype: torch.dtype | None = None,
        accumulate: int = 1,
    ) -> None:
        if meta is not None and meta.labeller is not labeller:
            raise InputError("train#trainer: `meta` trains another labeller than the one given as `labeller`")
        meta = meta if host.uses_target else None
        if meta is not None and meta.needs_held_out and "held_out" not in train_data_loader.dataset.datasets:
            raise InputError(
                "the meta-step needs held-out source cases, but none were held out: set `held_out_share` above 0"
            )
        if meta is not None and feedback is not None and not feedback.cases:
            raise InputError(
                "feedback needs held-out source cases, but none were held out: set `held_out_share` above 0, or "
                "`feedback` to $None"
            )
        if accumulate < 1 or train_data_loader.batch_size % accumulate:
            raise InputError(
                f"accumulate: found {accumulate}, wanted a divisor of batch_size={train_data_loader.batch_size}"
            )
        if not 0 <= warmup_epochs <= max_epochs:
            raise InputError(f"warmup_epochs: found {warmup_epochs}, wanted 0 to max_epochs={max_epochs}")
        if not 0 <= settle_epochs <= max_epochs - warmup_epochs:
            raise InputError(
                f"settle_epochs: found {settle_epochs}, wanted 0 to {max_epochs - warmup_epochs}, "
                f"the epochs from the end of the warm-up to max_epochs"
            )
        self.network = network
        self.optimizer = optimizer
        self.num_classes = num_classes
        self.host = host
        self.labeller = labeller
        self.hard_labeller = HardLabels(**labeller.weight_options)
        self.meta = meta
        self.feedback = None if meta is None else feedback
        self.warmup_epochs = warmup_epochs
        self.settle_epochs = settle_epochs
        self.ignore_index = ignore_index
        self.seed = seed
        self.max_skipped = max_skipped
        self.inferer = SimpleInferer() if inferer is None else inferer
        broadcast_module(network)
        broadcast_module(labeller)
        self.teacher = Teacher(network, teacher_decay)
        self.accumulate = accumulate
        self.last_checkpoint: Path | None = None  # that this run wrote or continued from
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=len(train_data_loader),
            decollate=False,
        )
        kind = torch.device(device).type
        self.amp_asked = str(amp_dtype or "default") if amp else "off"
        # Not MONAI's `amp`, which is CUDA's alone and makes a new scaler at each start.
        amp = amp and (kind == "cuda" or amp_dtype is not None)
        self.precision = Precision((amp_dtype or torch.float16) if amp else None)
        self.student = StudentUpdate(
            network,
            optimizer,
            self.inferer,
            loss_function,
            loss_function if truth_loss_function is None else truth_loss_function,
            self.precision,
            torch.amp.GradScaler(kind) if self.precision.dtype == torch.float16 else None,
            max_gradient_norm,
        )
        if self.meta is not None:
            self.meta.step.precision = self.precision
        train_data_loader.load_only(self._needed)
        for counter in COUNTERS:
            setattr(self.state, counter, 0)
            self.state_dict_user_keys.append(counter)
        self.state.losses = {}
        self.state.temperature = {}
        self.state.quality = math.nan
        self.state.meta = {}
        self.state.feedback = {}
        # Not at the start: what resumes a run sets the iteration there.
        self.add_event_handler(Events.EPOCH_STARTED, self._continue_data)
        # Before the other handlers, so that checkpoints hold what it did.
        self.add_event_handler(Events.EPOCH_COMPLETED, self._adjust)
        if train_handlers is not None:
            self._register_handlers(train_handlers)

    @property
    def source_iterations(self) -> int:
        """Iterations on source alone: those of warm-up and settling."""
        return (self.warmup_epochs + self.settle_epochs) * int(self.state.epoch_length)

    @property
    def way_on(self) -> str:
        """What to do after what stops the run: from where it can be continued."""
        path = self.last_checkpoint
        return "start anew: no checkpoint was saved" if path is None else f"resume from the last good one, {path}"

    @property
    def self_training(self) -> bool:
        """Whether this iteration learns from pseudo-labels."""
        return self.host.uses_target and self.state.iteration > self.source_iterations

    def checkpoint_objects(self) -> dict[str, Any]:
        """Return everything a resumed run needs, by name; each has ``state_dict`` and ``load_state_dict``."""
        objects: dict[str, Any] = {
            "trainer": self,
            "network": self.network,
            "optimizer": self.optimizer,
            "teacher": self.teacher,
            "labeller": self.labeller,
        }
        if self.meta is not None:
            objects["meta_optimizer"] = self.meta.optimizer
        if self.student.scaler is not None:
            objects["scaler"] = self.student.scaler
        return objects

    def describe(self) -> dict[str, str]:
        """Return what makes two runs the same experiment, as text by place; checkpoints of others are refused.

        To be asked before the first iteration: random transforms keep what they drew last.
        """
        return describe_trainer(self)

    def _handle_exception(self, e: BaseException) -> None:
        # Ignite takes an error for handled as soon as anyone listens for it, and would go on with the next epoch.
        super()._handle_exception(e)
        raise e

    @property
    def skipped(self) -> int:
        """Steps of the student that were skipped because a loss or gradient was not finite."""
        return int(self.state.skipped)

    @property
    def loader(self) -> PairedLoader:
        """What draws the batches."""
        assert isinstance(self.data_loader, PairedLoader)
        return self.data_loader

    def _continue_data(self) -> None:
        self.loader.start_at(self.state.iteration)

    def _needed(self, iteration: int) -> tuple[str, ...]:
        """Return the domains that the iteration after ``iteration`` others uses."""
        if not self.host.uses_target or iteration < self.source_iterations:
            return ("source",)
        meta = self.meta
        held_out = meta is not None and meta.objective.needs_held_out and meta.due(iteration - self.source_iterations)
        return ("source", "target", "held_out") if held_out else ("source", "target")

    def _iteration(  # type: ignore[override]  # MONAI decollates afterwards
        self, engine: Any, batchdata: Mapping[str, Any]
    ) -> list[dict[str, float]]:
        first = self.loader.rank * self.loader.batch_size
        seeds = sample_seeds(self.seed, self.state.iteration, range(first, first + self.loader.batch_size))
        seed_draws(seeds[0])
        batch = prepare_domains(
            batchdata, self.state.device, self.num_classes, self.ignore_index, self.non_blocking, seeds
        )
        self.network.train()
        mask, pseudo, hard = None, None, None
        if self.self_training:
            mask, pseudo, hard = self._pseudo_labels(batch)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self._student_step(self._micro_batches(batch, mask, pseudo, hard))
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        output = self._output()
        self.state.metrics.update(output)
        return [output]

    def _pseudo_labels(self, batch: DomainBatch) -> tuple[Tensor, PseudoLabels, PseudoLabels]:
        """Predict the target with the teacher, improve the labeller where that is due, and label."""
        mask = batch.masks(self.host.mask_generator)
        logits = self._teacher_logits(batch.target_image)
        with torch.no_grad():
            hard = self.hard_labeller(logits, batch.target_image)
        self.state.meta = {}
        iteration = self.state.iteration - self.source_iterations - 1
        if self.meta is not None and self.meta.due(iteration):
            report = self.meta.update(batch, mask, logits, hard, self.accumulate)
            self._count("meta_skipped", report.finite, f"meta-gradient ({report})")
            self.state.meta = {
                "inner_loss": report.inner_loss,
                "outer_loss": report.outer_loss,
                "gradient_norm": report.gradient_norm,
            }
        with torch.no_grad():
            learned = self.meta is None or self.meta.started(iteration)
            pseudo = self.labeller(logits, batch.target_image) if learned else hard
        self.state.quality = float(pseudo.quality.mean())
        self.state.temperature = temperature_statistics(pseudo.temperature, self.labeller)
        return mask, pseudo, hard

    def _adjust(self) -> None:
        """Close the loop after an epoch of self-training."""
        if self.feedback is None or not self.self_training:
            return
        assert isinstance(self.labeller, LearnedTemperature)  # what a temperature learner trains
        with self.precision.autocast(self.state.device):
            gap = self.feedback.adjust(self.labeller, self.teacher.network, self.state.device, self.ignore_index)
        self.state.feedback = {"gap": gap, "centre": float(self.labeller.log_centre.exp())}

    def _teacher_logits(self, image: Tensor) -> Tensor:
        with torch.no_grad(), self.precision.autocast(self.state.device):
            parts = in_parts(image, self.accumulate)
            network, classes = self.teacher.network, self.num_classes
            return torch.cat([at_least_single(predicted_logits(network, self.inferer, x, classes)) for x in parts])

    def _micro_batches(
        self, batch: DomainBatch, mask: Tensor | None, pseudo: PseudoLabels | None, hard: PseudoLabels | None
    ) -> list[MicroBatch]:
        parts = self.accumulate
        masks = [None] * parts if mask is None else in_parts(mask, parts)
        labels = [None] * parts if pseudo is None else pseudo.in_parts(parts)
        hard_labels = [None] * parts if hard is None else hard.in_parts(parts)

        def terms(*piece: Any) -> Callable[[], Sequence[LossTerm]]:
            return lambda: self.host.terms(*piece)

        pieces = zip(batch.in_parts(parts), masks, labels, hard_labels, strict=True)
        return [MicroBatch(terms(*piece), piece[0].seeds[0]) for piece in pieces]

    def _student_step(self, parts: Sequence[MicroBatch]) -> None:
        self.state.losses = self.student.backward(parts)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        average_gradients(self.network.parameters())
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        outcome = self.student.step(self.state.losses)
        if outcome == "taken":
            self.teacher.update(self.network)
        if outcome == "overflow":
            self.state.overflows += 1
        else:
            self._count("skipped", outcome == "taken", f"loss or gradient (losses {self.state.losses})")

    def _count(self, counter: str, finite: bool, what: str) -> None:
        """Count a skipped step, and stop after too many in a row."""
        row = f"{counter}_in_a_row"
        if finite:
            setattr(self.state, row, 0)
            return
        for name in (counter, row):
            setattr(self.state, name, getattr(self.state, name) + 1)
        self.logger.warning(f"iteration {self.state.iteration}: non-finite {what}, step skipped")
        if getattr(self.state, row) >= self.max_skipped:
            raise NonFiniteLossError(
                f"{getattr(self.state, row)} iterations in a row gave a non-finite {what}, the last one iteration "
                f"{self.state.iteration}; lower the learning rate or set max_gradient_norm, then {self.way_on}"
            )

    def _output(self) -> dict[str, float]:
        output = {"loss": sum(self.state.losses.values())}
        output.update({f"loss_{name}": value for name, value in self.state.losses.items()})
        if self.state.temperature:
            output.update({f"temperature_{name}": value for name, value in self.state.temperature.items()})
        if self.self_training:
            output["quality"] = self.state.quality
        output.update({f"meta_{name}": value for name, value in self.state.meta.items()})
        output.update({f"feedback_{name}": value for name, value in self.state.feedback.items()})
        # Steps skipped so far, where there were any.
        counters = {name: float(getattr(self.state, name)) for name in COUNTERS[:3]}
        output.update({name: count for name, count in counters.items() if count})
        return output
