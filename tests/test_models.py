"""The networks in models/: their cards tell the truth."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

import dagnn

MODELS = Path(__file__).parents[1] / "models"
NETWORKS = sorted(MODELS.glob("*.h5"))


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_every_model_has_a_card_with_its_checksum_and_is_small(path):
    card = path.with_suffix(".md").read_text()
    found = re.search(r"[0-9a-f]{64}", card)
    assert found and found[0] == hashlib.sha256(path.read_bytes()).hexdigest()
    for what in ("made by", "data", "accuracy", "licence"):
        assert f"| {what} |" in card
    assert path.stat().st_size < 1_000_000


def test_digits_and_sum_reads_as_its_card_says():
    pytest.importorskip("sklearn")
    from dagnn import demo

    net = dagnn.load(MODELS / "digits-and-sum.h5")
    net.mode = "test"
    rng = np.random.default_rng(0)
    _, held_out = demo.load_digits(rng)
    assert demo.accuracies(net, held_out.pairs(1000, rng)) == pytest.approx(net.meta["accuracy"], abs=0.002)


def test_the_denoiser_cleans_photographs_as_its_card_says(tmp_path):
    photographs = pytest.importorskip("skimage.data")
    from dagnn import cli
    from dagnn.images import psnr, read_image, write_image

    clean = photographs.coffee()
    noisy = clean + 25 * np.random.default_rng(0).standard_normal(clean.shape)
    write_image(tmp_path / "noisy.png", noisy.clip(0, 255).round().astype(np.uint8))
    command = [
        "run",
        str(MODELS / "denoiser.h5"),
        str(tmp_path / "noisy.png"),
        "--save",
        str(tmp_path / "clean.png"),
    ]
    assert cli.main(command) == 0
    assert psnr(read_image(tmp_path / "noisy.png"), clean) < 21
    assert psnr(read_image(tmp_path / "clean.png"), clean) > 28
