"""The training loop: one optimiser over prior, generator and encoder, resumable bit for bit.

An update is a function of (parameters, optimiser state, seed, step): its batch and its noise are named by the
last two. All of it is in the checkpoint, so a run that was stopped and resumed equals one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kaem.errors import ArtifactError, ConfigError, DataError, KaemError
from kaem_train.checkpoint import FILE_NAME, Checkpoint, FinishedModel, read_checkpoint, write_checkpoint
from kaem_train.data import Dataset, training_batch
from kaem_train.evaluate import held_out_bound
from kaem_train.events import Event, Listener, Progress, Samples, Saved
from kaem_train.interrupt import stop_request
from kaem_train.model.generator import KanGenerator, refit_steps
from kaem_train.model.kaem import Kaem
from kaem_train.posterior import build_posterior
from kaem_train.settings import Config
from kaem_train.streams import Purpose, noise_stream

_BETAS = (0.9, 0.99)
_VARIANCE_MEMORY = 0.98
_LEAST_VARIANCE = 1e-3
_GRID_IMAGES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        checkpoint: The file that holds the model.
        step: Updates done.
        is_finished: False where a signal stopped the run early.
        bound: Held-out lower bound of log p(x), nats per image; None unless finished.
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
) -> Outcome:
    """Train a model and leave it in `folder`/ckpt.pt.

    Args:
        config: The whole configuration.
        dataset: Images; at least one batch of them.
        folder: Created where missing; an existing checkpoint there is replaced unless resumed.
        resume: Continue from the folder's checkpoint.
        listeners: Called with every event, in order.

    Raises:
        ConfigError: The checkpoint to resume was trained with another configuration.
        DataError: It was trained on other data, or there are fewer images than one batch or one image per expert needs.
        ArtifactError: There is no readable checkpoint to resume.
        RequestError: The checkpoint cannot be written.
        KaemError: The loss or its gradient is not finite; the last checkpoint is kept.
    """
    check_trainable(config, dataset)
    path = folder / FILE_NAME
    trainer = Trainer(config, dataset, listeners=tuple(listeners))
    if resume:
        trainer.restore(read_checkpoint(path))
    else:
        folder.mkdir(parents=True, exist_ok=True)
    with stop_request() as request:
        while trainer.step < config.training.updates and not request.is_made:
            trainer.update(path)
            if trainer.step % config.training.checkpoint_every == 0:
                trainer.save(path)
        # Still under the request: a signal that comes now must not cut the last save short.
        trainer.save(path)
    if trainer.step < config.training.updates:
        return Outcome(checkpoint=path, step=trainer.step, is_finished=False, bound=None)
    return Outcome(checkpoint=path, step=trainer.step, is_finished=True, bound=trainer.held_out_bound())


def check_trainable(config: Config, dataset: Dataset) -> None:
    """Check that there are images enough for a configuration, before anything is made or replaced.

    Raises:
        DataError: Fewer images than one batch, or than the experts that start from them.
    """
    if len(dataset.train) < config.training.batch_size:
        raise DataError(
            f"{len(dataset.train)} training images do not fill one batch of {config.training.batch_size}",
            hint="lower training.batch_size",
        )
    is_started = config.prior.variant == "experts" and config.posterior.has_encoder
    if is_started and len(dataset.train) < config.prior.num_components:
        raise DataError(
            f"{len(dataset.train)} training images cannot start {config.prior.num_components} experts",
            hint="lower prior.num_components",
        )


class Trainer:
    """The state of a run: model, posterior, optimiser and the number of updates done.

    Args:
        config: The whole configuration.
        dataset: Images.
        listeners: Called with every event.
    """

    def __init__(self, config: Config, dataset: Dataset, *, listeners: tuple[Listener, ...] = ()) -> None:
        self.config = config
        self.dataset = dataset
        self.step = 0
        self.finished: FinishedModel | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.model = Kaem(config)
            self.posterior = build_posterior(config, self.model.prior.latent_shape)
        prior = self.model.prior
        frame = [] if prior.frame is None else list(prior.frame.parameters())
        energies = [value for name, value in prior.named_parameters() if not name.startswith("frame.")]
        # The frame is a linear layer: it learns at the rate of the networks that it stands between.
        network = [*self.model.generator.parameters(), *self.posterior.network.parameters(), *frame]
        self._rates = (config.training.learning_rate, config.training.prior_learning_rate)
        self.optimiser = torch.optim.Adam(
            [{"params": network}, {"params": energies}],
            lr=config.training.learning_rate,
            betas=_BETAS,
        )
        generator = config.generator
        self._refits = refit_steps(generator.refit_interval, generator.refit_decay, config.training.updates)
        self._prior_refits: tuple[int, ...] = ()
        if config.prior.refit_interval:
            self._prior_refits = refit_steps(
                config.prior.refit_interval, config.prior.refit_decay, config.training.updates
            )
        self._listeners = listeners
        self._window = _Window()

    def update(self, checkpoint: Path) -> None:
        """Do one optimiser step on the batch that (seed, step) names.

        Args:
            checkpoint: Named in the error message where the update fails.

        Raises:
            KaemError: The loss or its gradient is not finite; no parameter was changed.
        """
        settings = self.config.training
        images = training_batch(
            self.dataset.train,
            settings.batch_size,
            seed=settings.seed,
            step=self.step,
            augment_flip=self.config.data.augment_flip,
        )
        self.posterior.prepare(self.model, self.dataset.train, self.step, self._noise("prior start"))
        self._refit_grids()
        terms = self.posterior.terms(self.model, images, self.step, self._noise("posterior"))
        self.optimiser.zero_grad()
        terms.loss.backward()  # type: ignore[no-untyped-call]
        parameters = [value for group in self.optimiser.param_groups for value in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
        if not bool(torch.isfinite(terms.loss) & torch.isfinite(norm)):
            raise KaemError(
                f"the loss became {float(terms.loss.detach()):g} at update {self.step + 1}, "
                f"its gradient {float(norm):g}",
                hint=f"lower training.learning_rate; the last good checkpoint, if any, is {checkpoint}",
            )
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._decay()
        self.optimiser.step()
        if settings.learn_sigma:
            self._follow_sigma(terms.squared_error / images[0].numel())
        self.step += 1
        self._report({"loss": terms.loss.detach(), **terms.metrics, "gradient_norm": norm}, len(images))

    def save(self, path: Path) -> None:
        """Write the whole state to `path`, atomically, and say so."""
        write_checkpoint(
            path,
            Checkpoint(
                config=self.config,
                model_state=self.model.state_dict(),
                posterior_state=self.posterior.network.state_dict(),
                optimiser_state=self.optimiser.state_dict(),
                step=self.step,
                data_fingerprint=self.dataset.fingerprint,
                finished=self.finished,
            ),
        )
        self._tell(Saved(step=self.step, path=path))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`.

        Raises:
            ConfigError: It was trained with another configuration (the data may have moved).
            DataError: It was trained on other data.
            ArtifactError: Its state does not fit its configuration.
        """
        changed = _difference(checkpoint.config, self.config)
        if changed:
            raise ConfigError(
                f"the checkpoint was trained with another {changed}",
                hint="resume with the settings of the first run, or start anew in another folder with --out",
            )
        if checkpoint.data_fingerprint != self.dataset.fingerprint:
            raise DataError(
                f"the data has fingerprint {self.dataset.fingerprint[:19]}, the checkpoint was trained on "
                f"{checkpoint.data_fingerprint[:19]}",
                hint="resume with the same files, or start anew in another folder with --out",
            )
        try:
            self.model.load_state_dict(checkpoint.model_state)
            self.posterior.network.load_state_dict(checkpoint.posterior_state)
            self.optimiser.load_state_dict(checkpoint.optimiser_state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            raise ArtifactError(
                "the checkpoint's state does not fit its configuration", hint="the file is damaged: train again"
            ) from None
        self.step = checkpoint.step

    def held_out_bound(self) -> float:
        """Return the bound of `evaluate.held_out_bound` on the held-out images, from its own noise."""
        rng = noise_stream(self.config.training.seed, 0, "held-out bound")
        num_samples = self.posterior.num_bound_samples
        return held_out_bound(self.model, self.posterior, self.dataset.holdout, rng, num_samples=num_samples)

    def _noise(self, purpose: Purpose) -> torch.Generator:
        return noise_stream(self.config.training.seed, self.step, purpose)

    def _decay(self) -> float:
        """Return the factor of both rates: 1, then linearly towards 0 at the last update."""
        left = 1.0 - self.step / self.config.training.updates
        return min(1.0, left / max(1.0 - self.config.training.decay_from, 1e-9))

    def _follow_sigma(self, pixel_variance: Tensor) -> None:
        variance = _VARIANCE_MEMORY * self.model.sigma**2 + (1.0 - _VARIANCE_MEMORY) * pixel_variance
        self.model.sigma.copy_(variance.clamp_min(_LEAST_VARIANCE).sqrt())

    def _refit_grids(self) -> None:
        generator, prior = self.model.generator, self.model.prior
        is_prior_due = self.step + 1 in self._prior_refits
        is_generator_due = isinstance(generator, KanGenerator) and self.step + 1 in self._refits
        if not (is_prior_due or is_generator_due):
            return
        latents = self.posterior.latents(self.model, self.dataset.train[:1024], self._noise("grid refit"))
        changed = prior.refit_grid(latents) if is_prior_due else []
        if isinstance(generator, KanGenerator) and is_generator_due:
            changed += generator.refit_grids(prior.generator_input(latents))
        for parameter in changed:
            self.optimiser.state.pop(parameter, None)

    def _report(self, metrics: dict[str, Tensor], num_images: int) -> None:
        settings = self.config.training
        self._window.add(metrics, num_images)
        if self.step % settings.log_every == 0 or self.step == settings.updates:
            means, speed = self._window.take()
            means["sigma"] = float(self.model.sigma)
            self._tell(Progress(step=self.step, updates=settings.updates, images_per_second=speed, metrics=means))
        if self._listeners and (self.step % settings.samples_every == 0 or self.step == settings.updates):
            # The same noise every time, so that a person sees the same latents become images.
            rng = noise_stream(settings.seed, 0, "sample grid")
            self._tell(Samples(step=self.step, images=self.model.sample(_GRID_IMAGES, rng)))

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)


class _Window:
    """Means of metrics over the updates that had them, and the speed, since the last report."""

    def __init__(self) -> None:
        self._reset()

    def add(self, metrics: dict[str, Tensor], num_images: int) -> None:
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + float(value), count + 1)
        self._images += num_images

    def take(self) -> tuple[dict[str, float], float]:
        means = {name: total / count for name, (total, count) in self._sums.items()}
        speed = self._images / max(time.perf_counter() - self._start, 1e-9)
        self._reset()
        return means, speed

    def _reset(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._images = 0
        self._start = time.perf_counter()


def _difference(old: Config, new: Config) -> str:
    """Name the first setting that differs and matters, or return ""; where the data lies does not matter."""
    if replace(old, data=replace(old.data, path=new.data.path)) == new:
        return ""
    for section in ("data", "prior", "generator", "posterior", "training"):
        before, after = getattr(old, section), getattr(new, section)
        for name in before.__dataclass_fields__:
            values = getattr(before, name), getattr(after, name)
            if values[0] != values[1] and (section, name) != ("data", "path"):
                return f"{section}.{name}: {values[0]}, now {values[1]}"
    return f"name: {old.name}, now {new.name}"
