"""The training loop: one optimiser over prior, generator and encoder, resumable bit for bit.

An update is a function of (parameters, optimiser state, seed, step): its batch and its noise are named by the
last two. All of it is in the checkpoint, so a run that was stopped and resumed equals one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from kaem.errors import ArtifactError, ConfigError, KaemError
from kaem_train.checkpoint import (
    Checkpoint,
    FinishedModel,
    read_checkpoint,
    require_same_class,
    require_same_data,
    write_checkpoint,
)
from kaem_train.config.preflight import CHECKPOINT_NAME
from kaem_train.config.settings import Config, begun_as, first_difference, lengthened
from kaem_train.data import Dataset, take_batch
from kaem_train.data.order import PixelsAhead
from kaem_train.devices import choose_device, set_tf32
from kaem_train.evaluation.likelihood import held_out_bound
from kaem_train.families.build import Model, build_model, build_objective
from kaem_train.families.diffusion import Diffusion
from kaem_train.families.kaem import Kaem
from kaem_train.fitting.judge_split import divide
from kaem_train.fitting.refit import infer_latents, refit_prior
from kaem_train.model.generators.module_images import decode_probes, draw_module_images
from kaem_train.model.prior.abstract_prior import AbstractPrior
from kaem_train.model.prior.factorised import weight_penalty
from kaem_train.posterior import Posterior
from kaem_train.rng import Purpose, noise_stream
from kaem_train.training.acceleration import accelerate, networks, plain
from kaem_train.training.averaging import WeightAverage
from kaem_train.training.events import Event, Listener, Progress, Refitted, RunningMeans, SamplesDrawn, Saved, Widened
from kaem_train.training.grid_refits import GridRefits
from kaem_train.training.interrupt import stop_request
from kaem_train.training.optimiser import FiniteGuard, build_optimiser, find_first_not_finite, set_rates
from kaem_train.training.requirements import check_trainable

_VARIANCE_MEMORY = 0.98
_LEAST_VARIANCE = 1e-3
_GRID_IMAGES = 64
_MOST_ENCODED = 8192
_KEPT, _KEPT_BY_GPU = 1e-4, 2e-2
"""How far images of a module may be from those of a new instance on the CPU: on it, or with a GPU's rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        checkpoint: The file that holds the model.
        step: Updates done.
        is_finished: False where a signal stopped the run early.
        bound: Held-out lower bound of log p(x), nats per image; None unless finished, and where a
            family has none.
    """

    checkpoint: Path
    step: int
    is_finished: bool
    bound: float | None


def train(
    config: Config,
    dataset: Dataset,
    folder: Path,
    *,
    resume: bool = False,
    listeners: Iterable[Listener] = (),
) -> RunOutcome:
    """Train a model and leave it in `folder`/ckpt.pt.

    Args:
        config: The whole configuration.
        dataset: Images; at least one batch of them.
        folder: Created where missing; an existing checkpoint there is replaced unless resumed.
        resume: Continue from the folder's checkpoint.
        listeners: Called with every event, in order.

    Raises:
        ConfigError: The checkpoint to resume was trained with another configuration, or the prior cannot be trained
            with this posterior.
        DataError: It was trained on other data, or there are fewer images than one batch or one image per expert needs.
        ArtifactError: There is no readable checkpoint to resume.
        RequestError: The checkpoint cannot be written.
        KaemError: The loss or its gradient is not finite; the last checkpoint is kept.
    """
    check_trainable(config, dataset)
    path = folder / CHECKPOINT_NAME
    if resume:
        checkpoint = read_checkpoint(path)
        trainer = Trainer(begun_as(config, checkpoint.config, checkpoint.step), dataset, listeners=tuple(listeners))
        trainer.restore(checkpoint)
        config = trainer.config
    else:
        trainer = Trainer(config, dataset, listeners=tuple(listeners))
        folder.mkdir(parents=True, exist_ok=True)
    with stop_request() as request, trainer.arithmetic():
        while trainer.step < config.training.updates and not request.is_made:
            trainer.update(path)
            if trainer.step % config.training.checkpoint_every == 0:
                trainer.save(path)
        # Still under the request: a signal that comes now must not cut the last save short.
        if trainer.step == config.training.updates:
            trainer.hold_latents()
        if trainer.step == config.training.updates and config.refit.kind != "none":
            trainer.save(path)  # the refit takes a while, and what was trained should not hang on it
            trainer.refit()
        trainer.save(path)
    if trainer.step < config.training.updates:
        return RunOutcome(checkpoint=path, step=trainer.step, is_finished=False, bound=None)
    return RunOutcome(checkpoint=path, step=trainer.step, is_finished=True, bound=trainer.held_out_bound())


class Trainer:
    """The state of a run: model, posterior, optimiser and the number of updates done.

    Args:
        config: The whole configuration.
        dataset: Images; those that judge the final refit are set aside (`judge_split.py`).
        listeners: Called with every event.
    """

    def __init__(self, config: Config, dataset: Dataset, *, listeners: tuple[Listener, ...] = ()) -> None:
        self.config = config
        division = divide(config, dataset)
        self.device = choose_device(config.training.device)
        self.dataset = division.dataset.serve_on(self.device)
        self._judges = None if division.judges is None else division.judges.serve_on(self.device)
        self.step = 0
        self.finished: FinishedModel | None = None
        self._has_checkpoint = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.model = build_model(config)
            self.posterior = build_objective(config, self.model)
        self.model.to(self.device)
        self.posterior.network.to(self.device)
        self.optimiser = build_optimiser(self.model, self.posterior.network, config)
        self._parameters = {
            **dict(self.model.named_parameters()),
            **{f"posterior.{name}": value for name, value in self.posterior.network.named_parameters()},
        }
        decay = config.training.ema_decay
        self._average = WeightAverage(self._parameters, decay) if decay else None
        self._guard = FiniteGuard(self.optimiser, None if self.device.type == "cpu" else self.device)
        self._pixels = None if self.device.type == "cpu" else self._read_ahead()
        self._networks = networks(self.model, self.posterior.network)
        accelerate(self._networks, config.training)
        self._grid_refits = GridRefits(config)
        self._listeners = listeners
        self._means = RunningMeans()

    def update(self, checkpoint: Path | None) -> None:
        """Do one optimiser step on the batch that (seed, step) names.

        Args:
            checkpoint: Named in the error message where the update fails.

        Raises:
            KaemError: A parameter, the loss or a gradient is not finite; no parameter was changed.
        """
        settings = self.config.training
        images = take_batch(
            self.dataset.train,
            settings.batch_size,
            seed=settings.seed,
            step=self.step,
            augment_flip=self.config.data.augment_flip,
            ahead=self._pixels,
        )
        self.posterior.prepare(self.model, self.dataset.train, self.step, self._open_noise("prior start"))
        train, noise = self.dataset.train, self._open_noise("grid refit")
        moved = self._grid_refits.move_due(self.model, self.posterior, train, self.step, noise)
        for parameter in moved:
            self.optimiser.state.pop(parameter, None)
        if self._average:
            self._average.restart_jumped()
        with self._keep_rule(is_checked=bool(moved) or self.step % settings.log_every == 0):
            terms = self.posterior.terms(self.model, images, self.step, self._open_noise("posterior"))
        loss = terms.loss
        if settings.weight_penalty and isinstance(self.model, Kaem):
            loss = loss + weight_penalty(self.model.prior, settings.weight_penalty)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters.values() if p.grad is not None])
        if not self._guard.admits(loss, norm, self.step):
            self._refuse(find_first_not_finite(self._parameters.items(), loss), checkpoint)
        nn.utils.clip_grads_with_norm_(self._parameters.values(), settings.gradient_clip, norm)
        set_rates(self.optimiser, self.config, self.step)
        self.optimiser.step()
        if self._average:
            self._average.follow()
        if settings.learn_sigma and terms.squared_error is not None:
            self._follow_sigma(terms.squared_error / images[0].numel())
        self.step += 1
        metrics = {"loss": loss.detach(), **terms.metrics, "gradient_norm": norm}
        if self.step % settings.log_every == 0 or self.step == settings.updates:
            self._require_finite(checkpoint)
            if terms.latents is not None:
                metrics["outside"] = self._widen(terms.latents)
        self._report(metrics, len(images))

    def hold_latents(self) -> None:
        """Let the domain of the model to use hold the encoded latents of its training images, of 8,192 at most.

        Raises:
            KaemError: They lie too far apart.
        """
        if not (isinstance(self.model, Kaem) and isinstance(self.posterior, Posterior) and self.model.prior.has_tails):
            return
        rng = noise_stream(self.config.training.seed, 0, "held latents")
        chosen = torch.randperm(len(self.dataset.train), generator=rng)[:_MOST_ENCODED]
        with self.in_use():
            self._widen(infer_latents(self.model, self.posterior, self.dataset.train, chosen, rng).to(self.device))

    def _widen(self, latents: Tensor) -> Tensor:
        """Let the prior's domain hold latents, say so, and return the share that it did not hold before, scalar."""
        assert isinstance(self.model, Kaem)  # noqa: S101
        prior = self.model.prior
        before = (prior.low, prior.high)
        outside = prior.is_outside(latents).double().mean()
        if prior.widen(latents):
            self._tell(Widened(step=self.step, outside=float(outside), before=before, after=(prior.low, prior.high)))
        return outside

    def refit(self) -> None:
        """Fit the finished model's prior anew and keep it if it is better (see `refit.py`); training state stays."""
        if not (isinstance(self.model, Kaem) and isinstance(self.posterior, Posterior)):
            return
        rng = noise_stream(self.config.training.seed, 0, "prior refit")
        with self.in_use():
            found = refit_prior(self.model, self.posterior, self.dataset.train, self.config.refit, rng, self._judges)
            if found.finished is not None:
                self.finished = replace(found.finished, posterior_state=self._copy_averaged_inference())
        self._tell(Refitted(step=self.step, refit=found))
        refitted = self._load_refitted()
        if self._listeners and refitted is not None:
            self._tell(
                self._draw_samples(refitted)
            )  # the last update's were drawn from the prior that this one replaces

    def _load_refitted(self) -> Kaem | None:
        """Return the model with the refitted prior, if that is the finished one."""
        if self.finished is None:
            return None
        with torch.random.fork_rng(devices=[]):
            model = Kaem(replace(self.config, prior=self.finished.prior))
        model.load_state_dict(self.finished.model_state)
        return model.to(self.device)

    def save(self, path: Path) -> None:
        """Write the whole state to `path`, atomically, and say so.

        Raises:
            KaemError: A parameter is not finite: the last good checkpoint stays.
        """
        self._require_finite(path)
        broken = find_first_not_finite(self._parameters.items())
        if broken:
            self._refuse(broken, path)
        self._require_kept_module()
        write_checkpoint(
            path,
            Checkpoint(
                config=self.config,
                model_state=self.model.state_dict(),
                posterior_state=self.posterior.network.state_dict(),
                optimiser_state=self.optimiser.state_dict(),
                step=self.step,
                data_fingerprint=self.dataset.fingerprint,
                average_state=None if self._average is None else self._average.state_dict(),
                finished=self.finished or self._copy_averaged_model(),
            ),
        )
        self._has_checkpoint = True
        self._tell(Saved(step=self.step, path=path))

    def _require_kept_module(self) -> None:
        """Refuse to save a module of the user's that a checkpoint would not keep, as its images tell.

        Raises:
            KaemError: It holds numbers that are not in its state, which have changed since it was tried.
        """
        name, device = self.config.generator.module, self.device
        if not name or isinstance(self.model, Diffusion):
            return
        num_latents, image_shape = self.config.prior.num_latents, self.config.data.image_shape
        with self.in_use():
            state = self.model.state_dict()
            kept = draw_module_images(name, num_latents, image_shape, state)
            trained = decode_probes(self.model.generator, num_latents, device).cpu()
        slack = _KEPT if device.type == "cpu" else _KEPT_BY_GPU
        if kept is not None and float((trained - kept).abs().max()) > slack:
            raise KaemError(
                f"generator.module = {name!r} makes other images than a new instance with its weights, at update "
                f"{self.step}: it holds numbers that are not in its state_dict, so no checkpoint can keep it",
                hint="register what changes as it computes, or leave it out of its forward",
            )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`.

        Raises:
            ConfigError: It was trained with another configuration (the data may have moved).
            DataError: It was trained on other data.
            ArtifactError: Its state does not fit its configuration, or the class of its generator was edited.
        """
        changed = first_difference(lengthened(checkpoint.config, self.config, checkpoint.step), self.config)
        if changed:
            raise ConfigError(
                f"the checkpoint was trained with another {changed}",
                hint="resume with the settings of the first run, or start anew in another folder with --out",
            )
        hint = "resume with the same files, or start anew in another folder with --out"
        require_same_data(checkpoint, self.dataset.fingerprint, hint)
        try:
            self.model.load_state_dict(checkpoint.model_state)
            self.posterior.network.load_state_dict(checkpoint.posterior_state)
            self.optimiser.load_state_dict(checkpoint.optimiser_state)
            if self._average:
                self._average.load_state_dict(checkpoint.average_state or {})
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(
                "the checkpoint's state does not fit its configuration", hint="the file is damaged: train again"
            ) from None
        require_same_class(checkpoint)
        self.step = checkpoint.step
        self._has_checkpoint = True

    def held_out_bound(self) -> float | None:
        """Return the finished model's bound of `likelihood.held_out_bound` on held-out images, from its own noise.

        None for a family that has none: its density is known up to a constant only, or not at all.
        """
        if not (isinstance(self.model, Kaem) and isinstance(self.posterior, Posterior)):
            return None
        rng = noise_stream(self.config.training.seed, 0, "held-out bound")
        num_samples = self.posterior.num_bound_samples
        with self.in_use():
            model = self._load_refitted() or self.model
            return held_out_bound(model, self.posterior, self.dataset.holdout, rng, num_samples=num_samples)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute with TF32 inside, or without it, as the run's precision says."""
        with set_tf32(self.config.training.precision == "tf32"):
            yield

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make `model` and the posterior's network the ones to use inside: averaged, in full precision."""
        with self._average.applied() if self._average else nullcontext(), plain(self._networks):
            yield

    def _copy_averaged_model(self) -> FinishedModel | None:
        """Return the model to use where it is not the one that training goes on with."""
        if self._average is None:
            return None
        with self._average.applied():
            state = {name: value.clone() for name, value in self.model.state_dict().items()}
            return FinishedModel(
                prior=self.config.prior, model_state=state, posterior_state=self._copy_averaged_inference()
            )

    def _copy_averaged_inference(self) -> dict[str, Tensor] | None:
        """Inside `in_use`: the state of the posterior's network where it is not the trained one."""
        if self._average is None:
            return None
        return {name: value.clone() for name, value in self.posterior.network.state_dict().items()}

    def _require_finite(self, checkpoint: Path | None) -> None:
        """Refuse to go on where an update was passed over on another device."""
        failed = self._guard.find_first_failure()
        if failed:
            self.step = failed - 1  # nothing has changed since
            self._refuse("the loss or a gradient became not finite", checkpoint)

    @contextmanager
    def _keep_rule(self, *, is_checked: bool) -> Iterator[None]:
        """On another device than the CPU, ask only now and then whether the prior's rule is still fine enough.

        Its fineness follows widths that move by about a learning rate an update, and leaves room for a factor sqrt 2.
        """
        prior = getattr(self.model, "prior", None)
        if self.device.type == "cpu" or not isinstance(prior, AbstractPrior):
            yield
            return
        with prior.hold_rule(is_checked=is_checked):
            yield

    def _read_ahead(self) -> PixelsAhead:
        settings = self.config.training
        return PixelsAhead(self.dataset.train, settings.batch_size, seed=settings.seed)

    def _refuse(self, broken: str, checkpoint: Path | None) -> NoReturn:
        # Without one of this run, the file may be that of a run that is being replaced.
        kept = f"the last good checkpoint is {checkpoint}" if self._has_checkpoint else "no checkpoint was written yet"
        raise KaemError(f"{broken} at update {self.step + 1}", hint=f"lower training.learning_rate; {kept}")

    def _open_noise(self, purpose: Purpose) -> torch.Generator:
        return noise_stream(self.config.training.seed, self.step, purpose)

    def _follow_sigma(self, pixel_variance: Tensor) -> None:
        assert self.model.sigma is not None  # noqa: S101
        variance = _VARIANCE_MEMORY * self.model.sigma**2 + (1.0 - _VARIANCE_MEMORY) * pixel_variance
        self.model.sigma.copy_(variance.clamp_min(_LEAST_VARIANCE).sqrt())

    def _report(self, metrics: dict[str, Tensor], num_images: int) -> None:
        settings = self.config.training
        self._means.add(metrics, num_images)
        if self.step % settings.log_every == 0 or self.step == settings.updates:
            means, speed = self._means.take()
            if self.model.sigma is not None:
                means["sigma"] = float(self.model.sigma)
            self._tell(Progress(step=self.step, updates=settings.updates, images_per_second=speed, metrics=means))
        if self._listeners and (self.step % settings.samples_every == 0 or self.step == settings.updates):
            with self.in_use():
                drawn = self._draw_samples(self.model)
            self._tell(drawn)

    def _draw_samples(self, model: Model) -> SamplesDrawn:
        # The same noise every time, so that a person sees the same latents become images.
        rng = noise_stream(self.config.training.seed, 0, "sample grid")
        return SamplesDrawn(step=self.step, images=model.sample(_GRID_IMAGES, rng).cpu())

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)
