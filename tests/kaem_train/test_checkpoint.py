"""A checkpoint is whole or absent, runs no code when read, and a wrong file is a one-line error."""

import os
import pickle
from dataclasses import replace

import pytest
import torch

from kaem.config import to_mapping
from kaem.errors import ArtifactError, RequestError
from kaem_train.checkpoint import Checkpoint, FinishedModel, load_model, read_checkpoint, write_checkpoint
from kaem_train.families.kaem import Kaem


@pytest.fixture
def checkpoint(tiny):
    config = tiny()
    return Checkpoint(
        config=config,
        model_state=Kaem(config).state_dict(),
        posterior_state={},
        optimiser_state={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        step=3,
        data_fingerprint="sha256:0",
    )


def test_what_was_written_is_read_back(tmp_path, checkpoint):
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint)
    back = read_checkpoint(tmp_path / "ckpt.pt")
    assert (back.config, back.step, back.data_fingerprint) == (checkpoint.config, 3, "sha256:0")
    for name, value in checkpoint.model_state.items():
        assert torch.equal(back.model_state[name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_a_loaded_model_is_ready_to_use(tmp_path, checkpoint):
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint)
    config, model = load_model(tmp_path / "ckpt.pt")
    assert config == checkpoint.config
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, 8, 8)


def test_a_finished_model_is_the_one_that_is_loaded_and_training_keeps_its_own(tmp_path, checkpoint):
    prior = replace(checkpoint.config.prior, num_components=5)
    finished = FinishedModel(prior=prior, model_state=Kaem(replace(checkpoint.config, prior=prior)).state_dict())
    write_checkpoint(tmp_path / "ckpt.pt", replace(checkpoint, finished=finished))
    config, model = load_model(tmp_path / "ckpt.pt")
    assert config == replace(checkpoint.config, prior=prior)
    assert torch.equal(model.prior.bank.coefficients, finished.model_state["prior.bank.coefficients"])
    back = read_checkpoint(tmp_path / "ckpt.pt")
    assert back.config == checkpoint.config
    assert torch.equal(back.model_state["prior.bank.coefficients"], checkpoint.model_state["prior.bank.coefficients"])


def test_the_file_holds_plain_containers_and_documented_names(tmp_path, checkpoint):
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint)
    content = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert content["format_version"] == 3
    assert content["config"] == to_mapping(checkpoint.config)
    prior = {name for name in content["model_state"] if name.startswith("prior.")}
    bank = {"coefficients", "spline_weight", "log_tau", "centers"}
    assert prior == {"prior.logits", *(f"prior.bank.{name}" for name in bank)}


def test_a_domain_that_has_grown_is_a_format_that_older_versions_refuse_by_its_number(tmp_path, checkpoint):
    grown = {**checkpoint.model_state, "prior.domain": torch.tensor([-9.0, 9.0])}
    finished = FinishedModel(prior=checkpoint.config.prior, model_state=grown)
    for number, later in enumerate([replace(checkpoint, model_state=grown), replace(checkpoint, finished=finished)]):
        write_checkpoint(tmp_path / f"{number}.pt", later)
        assert torch.load(tmp_path / f"{number}.pt", weights_only=True)["format_version"] == 4
        assert load_model(tmp_path / f"{number}.pt")[1].prior.high == 9.0
    moving = replace(checkpoint.config, prior=replace(checkpoint.config.prior, refit_interval=5))
    write_checkpoint(tmp_path / "moving.pt", replace(checkpoint, config=moving, model_state=grown))
    assert torch.load(tmp_path / "moving.pt", weights_only=True)["format_version"] == 3


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, checkpoint, monkeypatch):
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint)
    before = (tmp_path / "ckpt.pt").read_bytes()

    def fail(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RequestError, match="No space left"):
        write_checkpoint(tmp_path / "ckpt.pt", checkpoint)
    assert (tmp_path / "ckpt.pt").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, checkpoint):
    write_checkpoint(tmp_path / "good", checkpoint)
    content = torch.load(tmp_path / "good", weights_only=True)
    whole = (tmp_path / "good").read_bytes()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "truncated").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickled").write_bytes(pickle.dumps(_Trap()))
    torch.save({"model": _Trap()}, tmp_path / "trap")
    torch.save([1, 2], tmp_path / "list")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign")
    torch.save({**content, "format_version": 99}, tmp_path / "newer")
    torch.save({key: value for key, value in content.items() if key != "step"}, tmp_path / "incomplete")
    torch.save({**content, "config": {"name": "x"}}, tmp_path / "config")
    for path in sorted(tmp_path.iterdir()):
        if path.name != "good":
            with pytest.raises(ArtifactError) as caught:
                read_checkpoint(path)
            assert str(path) in caught.value.message
            assert caught.value.hint
    with pytest.raises(ArtifactError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "absent")


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path, checkpoint):
    checkpoint.model_state.pop("sigma")
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint)
    with pytest.raises(ArtifactError, match="do not fit"):
        load_model(tmp_path / "ckpt.pt")


def test_a_checkpoint_of_the_first_format_is_still_read(tmp_path, checkpoint):
    path = tmp_path / "ckpt.pt"
    write_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    content |= {"format_version": 1, "rng_state": torch.Generator().get_state()}
    torch.save(content, path)
    assert read_checkpoint(path).step == checkpoint.step
