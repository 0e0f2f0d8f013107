"""The conditional GAN by YAML: resumes bit by bit with both players, samples in one call."""

import csv

import pytest

from ldm import Synthesiser
from ldm.cli.main import main

STEPS = "lightning.trainer.max_steps={}"


@pytest.mark.parametrize("further", [[], ["data.params.image_size=[8,32,32]"]])
def test_a_conditional_gan_resumes_to_the_same_weights(tmp_path, train, weights, further):
    more = [*further, "data.params.augmentation_config=null"] if further else []
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, "configs/gan.yaml", *more, STEPS.format(2)) == 0
    assert train(parts, "configs/gan.yaml", *more, STEPS.format(1)) == 0
    assert main(["train", "--resume", str(parts), STEPS.format(2)]) == 0
    assert weights(parts) == weights(whole)
    with (whole / "metrics.csv").open() as file:
        curves = {line["metric"] for line in csv.DictReader(file)}
    assert {"train/fit", "train/generator", "train/discriminator"} <= curves
    assert Synthesiser.load(whole).calls == 1
