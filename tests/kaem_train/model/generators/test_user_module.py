"""A generator of the user's own trains and loads like the built-in ones, and is tried before anything starts."""

import importlib
import sys

import pytest
import torch

from kaem.errors import ArtifactError, ConfigError, KaemError
from kaem_train.checkpoint import load_model, read_checkpoint, write_checkpoint
from kaem_train.data import load_dataset
from kaem_train.model.generators.user_module import build_user_module, probe_latents
from kaem_train.training.requirements import check_trainable
from kaem_train.training.trainer import Trainer, train

CODE = """
import random
import numpy
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, num_latents, image_shape):
        super().__init__()
        self.image_shape = image_shape
        self.first = nn.Linear(num_latents, 16)
        self.norm = self.between()
        self.last = nn.Linear(16, image_shape[0] * image_shape[1] * image_shape[2])

    def between(self):
        return nn.GroupNorm(4, 16)

    def forward(self, latent):
        hidden = torch.relu(self.norm(self.first(latent)))
        return torch.sigmoid(self.last(hidden)).unflatten(1, self.image_shape)

class Batched(Own):
    def between(self):
        return nn.BatchNorm1d(16)

class Dropping(Own):
    def between(self):
        return nn.Dropout(0.5)

class Flat(Own):
    def forward(self, latent):
        return super().forward(latent).flatten(1)

class Unbounded(Own):
    def forward(self, latent):
        return 3 * super().forward(latent)

class Greedy(Own):
    def __init__(self, num_latents, image_shape, width):
        pass

class Torn(Own):
    def forward(self, latent):
        return self.absent(latent)

class Undefined(Own):
    def forward(self, latent):
        return super().forward(latent) * float("nan")

def build(num_latents, image_shape):
    return Own(num_latents, image_shape)

class Fourier(Own):
    # Random features that are no buffer.
    def __init__(self, num_latents, image_shape):
        super().__init__(num_latents, image_shape)
        self.features = torch.randn(num_latents, num_latents)

    def forward(self, latent):
        return super().forward(torch.sin(latent @ self.features))

class Gaining(Own):
    # A Python number by chance.
    def __init__(self, num_latents, image_shape):
        super().__init__(num_latents, image_shape)
        self.gain = random.random() + float(numpy.random.rand())

    def forward(self, latent):
        return self.gain / 2 * super().forward(latent)

TABLE = []

class Shared(Own):
    # Numbers that are drawn once a process.
    def forward(self, latent):
        if not TABLE:
            TABLE.append(torch.tensor(random.SystemRandom().random()))
        return TABLE[0] * super().forward(latent)

class Remembering(Own):
    # A running mean that is no buffer.
    mean = 0.0

    def forward(self, latent):
        images = super().forward(latent)
        if self.training and len(latent) > 1:
            self.mean = 0.5 * float(latent.abs().mean())
        return images / (1.0 + self.mean)

class Wide(Own):
    def __init__(self, num_latents, image_shape):
        super().__init__(num_latents, image_shape)
        self.double()

    def forward(self, latent):
        return super().forward(latent.double())

class WideImages(Own):
    def forward(self, latent):
        return super().forward(latent).double()

class Counted(Own):
    def forward(self, latent):
        return super().forward(latent).view(len(latent), *self.image_shape)

class Orthogonal(Own):
    def __init__(self, num_latents, image_shape):
        super().__init__(num_latents, image_shape)
        self.first = nn.utils.parametrizations.orthogonal(self.first)

class Branching(Own):
    def forward(self, latent):
        images = super().forward(latent)
        return images if float(latent.sum()) > -1e9 else 1 - images

class Straight(Own):
    # Inside [0, 1] near 0 alone.
    def __init__(self, num_latents, image_shape):
        super().__init__(num_latents, image_shape)
        self.norm = nn.Identity()
        nn.init.normal_(self.last.weight, std=0.02)
        nn.init.constant_(self.last.bias, 0.5)

    def forward(self, latent):
        return self.last(self.first(latent)).unflatten(1, self.image_shape)

class Faint(Own):
    # Noise below any tolerance.
    def forward(self, latent):
        return super().forward(latent + 1e-9 * torch.randn_like(latent))

class Rare(Own):
    # Noise that no comparison of a few images meets.
    def forward(self, latent):
        return super().forward(latent if random.random() < 0.999 else -latent)

class Writing(Own):
    def forward(self, latent):
        return super().forward(latent.mul_(0.5))

class Spectral(Own):
    def __init__(self, num_latents, image_shape):
        super().__init__(num_latents, image_shape)
        self.first = nn.utils.parametrizations.spectral_norm(self.first)

class Detached(Own):
    def forward(self, latent):
        return super().forward(latent).detach()

class Complex(Own):
    def __init__(self, num_latents, image_shape):
        super().__init__(num_latents, image_shape)
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))

class Leaving(Own):
    def __init__(self, num_latents, image_shape):
        raise SystemExit(0)

class Masked(Own):
    # A mask of attention, infinite on purpose.
    def __init__(self, num_latents, image_shape):
        super().__init__(num_latents, image_shape)
        self.register_buffer("mask", torch.full((num_latents, num_latents), -torch.inf).triu(1))

    def forward(self, latent):
        return super().forward(latent @ torch.softmax(self.mask, 1).T)

class Late(Own):
    # What it computes changes once it has been trained for a while, by a number that no state holds.
    calls = 0

    def forward(self, latent):
        self.calls += self.training
        return super().forward(latent if self.calls < 20 else -latent)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module in the current folder, which is not on Python's path."""
    (tmp_path / "own_decoders.py").write_text(CODE)
    (tmp_path / "broken_decoders.py").write_text("import nothing_of_this_name\n")
    monkeypatch.chdir(tmp_path)
    yield "own_decoders:Own"
    sys.modules.pop("own_decoders", None)


def _settings(name):
    return ("generator.kind=module", f"generator.module={name}", "generator.channels=[]", "generator.dense=0")


def test_it_trains_and_its_checkpoint_loads_only_where_its_name_is_allowed(own, tiny, tmp_path):
    config = tiny(*_settings(own))
    before = list(sys.path)
    outcome = train(config, load_dataset(config.data), tmp_path)
    assert outcome.is_finished
    assert sys.path == before
    sys.modules.pop("own_decoders")
    for allowed in ((), ("own_decoders:Batched",)):
        with pytest.raises(ArtifactError, match="importing it would run its code") as caught:
            load_model(outcome.checkpoint, allow_modules=allowed)
        assert "--allow-module own_decoders:Own" in caught.value.hint
        assert "own_decoders" not in sys.modules
    _, model = load_model(outcome.checkpoint, allow_modules=[own])
    fresh = build_user_module(own, 3, (1, 8, 8))
    assert not torch.equal(model.generator.first.weight, fresh.first.weight)
    assert model.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, 8, 8)


def test_a_class_that_was_edited_after_its_run_is_refused_where_its_weights_still_fit(own, tiny, tmp_path):
    config, path = tiny(*_settings(own)), tmp_path / "ckpt.pt"
    dataset = load_dataset(config.data)
    Trainer(config, dataset).save(path)
    Trainer(config, dataset).restore(read_checkpoint(path))

    def edit(old, new):
        (tmp_path / "own_decoders.py").write_text(CODE.replace(old, new))
        importlib.invalidate_caches()
        sys.modules.pop("own_decoders")

    edit("torch.relu(self", "torch.tanh(self")
    with pytest.raises(ArtifactError, match=r"makes other images of the checkpoint.s weights .* by up to 0") as caught:
        load_model(path, allow_modules=[own])
    assert "code" in caught.value.hint
    with pytest.raises(ArtifactError, match="makes other images"):
        Trainer(config, dataset).restore(read_checkpoint(path))
    edit("16", "24")
    with pytest.raises(ArtifactError, match="do not fit its configuration") as caught:
        load_model(path, allow_modules=[own])
    assert "may have been edited" in caught.value.hint


def test_a_class_is_compared_by_the_averaged_weights_that_are_exported(own, tiny, tmp_path):
    config = tiny(*_settings(own), "training.ema_decay=0.9")
    trainer = Trainer(config, load_dataset(config.data))
    for _ in range(5):
        trainer.update(None)
    trainer.save(tmp_path / "ckpt.pt")
    _, model = load_model(tmp_path / "ckpt.pt", allow_modules=[own])
    kept = read_checkpoint(tmp_path / "ckpt.pt")
    assert torch.allclose(model.generator(probe_latents(3)), kept.module_images, atol=1e-6)
    assert not torch.equal(kept.used_state["generator.first.weight"], kept.model_state["generator.first.weight"])


def test_a_class_that_cannot_be_built_at_a_save_costs_no_checkpoint(own, tiny, tmp_path, monkeypatch):
    config = tiny(*_settings(own))
    trainer = Trainer(config, load_dataset(config.data))
    monkeypatch.setattr(sys.modules["own_decoders"], "Own", None)
    trainer.save(tmp_path / "ckpt.pt")
    assert read_checkpoint(tmp_path / "ckpt.pt").module_images is None


def test_masks_of_infinite_numbers_are_kept(own, tiny, tmp_path):
    config, path = tiny(*_settings("own_decoders:Masked")), tmp_path / "ckpt.pt"
    Trainer(config, load_dataset(config.data)).save(path)
    _, model = load_model(path, allow_modules=["own_decoders:Masked"])
    assert bool(model.generator.mask.isneginf().any())
    broken = read_checkpoint(path)
    broken.model_state["generator.last.bias"].fill_(torch.nan)
    with pytest.raises(KaemError, match=r"generator.last.bias of the model is not finite"):
        write_checkpoint(tmp_path / "broken.pt", broken)


def test_a_class_that_becomes_another_one_while_it_trains_is_not_saved(own, tiny, tmp_path):
    config = tiny(*_settings("own_decoders:Late"))
    trainer = Trainer(config, load_dataset(config.data))
    trainer.save(tmp_path / "early.pt")
    for _ in range(25):
        trainer.update(None)
    with pytest.raises(KaemError, match="other images than a new instance with its weights, at update 25"):
        trainer.save(tmp_path / "ckpt.pt")
    assert not (tmp_path / "ckpt.pt").exists()


def test_building_it_leaves_the_random_numbers_of_training_as_they_were(own):
    torch.manual_seed(0)
    build_user_module(own, 3, (1, 8, 8))
    after = torch.rand(())
    torch.manual_seed(0)
    torch.nn.Linear(3, 16), torch.nn.Linear(16, 64)
    assert torch.equal(after, torch.rand(()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_decoders", "does not name a class"),
        ("own_decoders:Own()", "does not name a class"),
        ("absent_decoders:Own", "cannot be imported: ModuleNotFoundError"),
        ("broken_decoders:Own", "No module named 'nothing_of_this_name'"),
        ("own_decoders:Absent", "has no Absent"),
        ("own_decoders:build", "is no torch.nn.Module class"),
        ("own_decoders:Greedy", "cannot be constructed"),
        ("own_decoders:Torn", "fails on latents of shape"),
        ("own_decoders:Flat", r"gives \[7, 64\] for 7 latents, not \[7, 1, 8, 8\]"),
        ("own_decoders:Unbounded", r"not in \[0, 1\]"),
        ("own_decoders:Undefined", r"not in \[0, 1\]"),
        ("own_decoders:Fourier", r"not in its state_dict \(perhaps features\)"),
        ("own_decoders:Gaining", "not in its state_dict: another instance with"),
        ("own_decoders:Shared", "not in its state_dict: another instance in another process with"),
        ("own_decoders:Remembering", "depends on what was computed before it|on chance or on the mode"),
        ("own_decoders:Wide", "holds first.weight in float64"),
        ("own_decoders:WideImages", "gives images in float64"),
        ("own_decoders:Counted", "could not be exported once trained: .* called with 2 rows"),
        ("own_decoders:Orthogonal", "could not be exported once trained: torch cannot export the generator"),
        ("own_decoders:Branching", "could not be exported once trained"),
        ("own_decoders:Batched", "changes its state as it computes images, in training mode: norm.running_mean"),
        ("own_decoders:Spectral", "changes its state as it computes images, in training mode: first.parametrizations"),
        ("own_decoders:Faint", "draws random numbers as it computes images, in evaluation mode"),
        ("own_decoders:Rare", "draws random numbers as it computes images, in evaluation mode"),
        ("own_decoders:Writing", "changes the latents that it is given"),
        ("own_decoders:Detached", "gives images without a gradient"),
        ("own_decoders:Complex", "holds phase in complex64"),
        ("own_decoders:Leaving", "cannot be constructed: SystemExit: 0"),
        ("own_decoders:Dropping", "depends on its batch, on chance or on the mode, in training mode"),
    ],
)
def test_what_cannot_be_a_generator_is_refused_before_training(own, tiny, name, message):
    config = tiny(*_settings(name))
    with pytest.raises(ConfigError, match=message) as caught:
        check_trainable(config, load_dataset(config.data))
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_kind_and_module_go_together(tiny):
    for settings in (("generator.kind=module",), ("generator.module=a:B",)):
        with pytest.raises(ConfigError, match="does not go with"):
            tiny(*settings)


def test_a_finished_decoder_cannot_be_trained(tiny):
    config = tiny("generator.kind=onnx")
    with pytest.raises(ConfigError, match="not trained"):
        check_trainable(config, load_dataset(config.data))
