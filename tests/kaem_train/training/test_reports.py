"""People see progress on stderr, and TensorBoard gets scalars and an upright grid."""

import io

import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kaem_train.training.events import Progress, SamplesDrawn
from kaem_train.training.progress import ProgressReport
from kaem_train.training.tensorboard import TensorBoardLog, lay_out_images


def _progress(step, updates=100):
    metrics = {"loss": 1.5, "reconstruction": 1.0, "kl": 0.5, "sigma": 0.1, "gradient_norm": 9.0}
    return Progress(step=step, updates=updates, images_per_second=1234.0, metrics=metrics)


def test_plain_lines_are_few_and_the_last_update_is_told():
    stream = io.StringIO()
    with ProgressReport(Console(file=stream), updates=100) as report:
        for step in range(1, 101):
            report(_progress(step))
    lines = stream.getvalue().splitlines()
    assert 15 <= len(lines) <= 25
    assert lines[-1] == "update 100/100 loss 1.5 rec 1 kl 0.5 sigma 0.1 1234 images/s"


def test_a_terminal_shows_a_bar():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=160)
    with ProgressReport(console, updates=100) as report:
        report(_progress(50))
    assert "50/100" in stream.getvalue()
    assert "kl 0.5" in stream.getvalue()


def test_tensorboard_gets_every_metric_and_the_samples(tmp_path):
    with TensorBoardLog(tmp_path, step=0) as log:
        log(_progress(50))
        log(SamplesDrawn(step=50, images=torch.rand(64, 1, 8, 8)))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Scalars("train/kl")[0].value == 0.5
    assert events.Scalars("train/kl")[0].step == 50
    image = events.Images("samples")[0]
    assert (image.width, image.height) == (64, 64)


def test_a_grid_reads_row_by_row_and_is_not_transposed():
    images = torch.zeros(16, 1, 2, 3)
    images[9, 0, 0, 2] = 1.0  # second row, second column, top right pixel
    grid = lay_out_images(images)
    assert grid.shape == (1, 4, 24)
    assert grid.nonzero().tolist() == [[0, 2, 5]]
