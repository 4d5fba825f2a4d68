"""Sizes that follow from images and device, and the training of all parts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import jaxspec
from jaxspec.cli import main
from jaxspec.data.dataset import ImageDataset
from jaxspec.errors import ConfigError
from jaxspec.train.experiment import find_experiment
from jaxspec.train.from_images import experiment_for, with_images

DATASET = ImageDataset("photos", 2700, 64, ("cat", "dog"), False, lambda side: None)
# Sizes at which a step takes milliseconds. The numbers of steps are reached in time.
SMALL = [
    "tokenizer.channels=8",
    "tokenizer.latent_channels=8",
    "tokenizer.codebook_size=32",
    "prior.vocab_size=32",
    "prior.layers=2",
    "prior.width=64",
    "prior.heads=2",
    "drafter.width=64",
    "drafter.heads=2",
    "drafter.layers=1",
    "drafter.feature_layers=(0, 1)",
    "train_tokenizer.steps=300",
    "train_prior.steps=250",
    "train_drafter.steps=60",
]


@pytest.mark.parametrize(
    ("platform", "side", "image", "grid"),
    [
        ("cpu", 20, 32, 8),
        ("cpu", 48, 32, 8),
        ("cpu", 64, 64, 8),
        ("cpu", 300, 64, 8),
        ("gpu", 200, 128, 16),
        ("gpu", 300, 256, 16),
        ("tpu", 64, 64, 8),
    ],
)
def test_sizes_follow_from_images_and_device(platform, side, image, grid):
    experiment = experiment_for(replace(DATASET, side=side), platform)
    assert experiment.tokenizer.image_size == image
    assert experiment.prior.grid == experiment.tokenizer.grid == grid
    assert experiment.prior.classes == 2
    dtype = "float32" if platform == "cpu" else "bfloat16"
    assert experiment.train_prior.compute_dtype == dtype


def test_sizes_of_later_parts_follow_settings_of_earlier_ones():
    settings = ["prior.layers=8", "prior.width=128", "tokenizer.codebook_size=64"]
    experiment = experiment_for(DATASET, "gpu", settings=settings)
    assert experiment.drafter.feature_layers == (1, 4, 7)
    assert experiment.drafter.width == 128 and experiment.prior.vocab_size == 64
    one = experiment_for(DATASET, "cpu", settings=["prior.layers=1"])
    assert one.drafter.feature_layers == (0,)
    with pytest.raises(ConfigError, match="prior.depth: no such field"):
        experiment_for(DATASET, "cpu", settings=["prior.depth=8"])


def test_a_preset_takes_other_images_of_its_kind():
    preset = find_experiment("fruits64_cpu")
    assert with_images(preset, DATASET).data.name == "photos"
    assert with_images(preset, DATASET).data.license == "unknown"
    with pytest.raises(ConfigError, match="for images with classes, and .* captioned"):
        with_images(preset, replace(DATASET, captioned=True))
    with pytest.raises(ConfigError, match="is for text"):
        with_images(find_experiment("shakespeare"), DATASET)


def write_shades(folder, count=60):
    """Two classes of images of 32x32: dark and light ones."""
    rng = np.random.default_rng(0)
    for i in range(count):
        file = folder / ("dark", "light")[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        shade = rng.integers(40, 60) + 150 * (i % 2)
        Image.fromarray(np.full((32, 32, 3), shade, np.uint8)).save(file)


@pytest.mark.slow
def test_one_command_leads_from_a_folder_to_images(tmp_path, capsys):
    """The prior learns the two classes, and the same command then changes nothing."""
    write_shades(tmp_path / "shades")
    out = tmp_path / "run"
    command = ["train", "all", "--images", str(tmp_path / "shades"), "--out", str(out)]
    command += [word for setting in SMALL for word in ("--set", setting)]
    assert main(command) == 0
    assert "54 to train on, 2 classes (dark, light)" in capsys.readouterr().err
    for part in ("tokenizer", "prior", "drafter"):
        assert (out / part / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((out / "prior" / "samples").glob("step_*.png"))
    last = json.loads((out / "drafter" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["tokens_per_call"] > 1
    pipe = jaxspec.load_pipeline(out)
    images = pipe(class_labels=["dark"] * 4 + ["light"] * 4, seed=0).images
    shades = np.array([np.asarray(image).mean() for image in images])
    assert shades[:4].mean() + 10 < shades[4:].mean()
    before = (out / "checkpoint" / "drafter" / "config.json").read_bytes()
    assert main(command) == 0
    assert (out / "checkpoint" / "drafter" / "config.json").read_bytes() == before


OPTIONS = {
    "nothing to train on": ["prior"],
    "--steps is for one part": ["all", "--images", "x", "--steps", "3"],
    "--steps and --minutes exclude": ["prior", "--images", "x", "--steps", "3"]
    + ["--minutes", "1"],
    "--minutes 0.0: must be positive": ["all", "--images", "x", "--minutes", "0"],
    "--start and --checkpoint are for one part": ["all", "--images", "x"]
    + ["--start", "y"],
    "--fsdp needs a mesh": ["prior", "--images", "x", "--fsdp"],
    "no folder of images at": ["all", "--images", "no/such/folder"],
}


@pytest.mark.parametrize("words", OPTIONS)
def test_options_that_do_not_go_together_are_refused(words, tmp_path, capsys):
    command = ["train", *OPTIONS[words], "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_more_classes_than_the_prior_has_are_refused_before_the_first_step(tmp_path):
    """The embedding after the last class is the unconditional one."""
    from jaxspec.data.dataset import open_dataset
    from jaxspec.train.sources import open_images
    from jaxspec.train.training_run import TrainingRun

    write_shades(tmp_path / "shades")
    images = open_dataset(tmp_path / "shades")
    experiment = experiment_for(images, "cpu")
    run = TrainingRun(tmp_path / "run", images=images)
    assert open_images(experiment, "prior", run) is not None
    narrow = replace(experiment, prior=replace(experiment.prior, classes=1))
    with pytest.raises(ConfigError, match="the data has 2 classes .* prior.classes=2"):
        open_images(narrow, "prior", run)


def write_captions(folder, count=60):
    """Dark and light images, whose captions name the shade in many words."""
    write_shades(folder / "all", count)
    rows = []
    for file in sorted((folder / "all").rglob("*.png")):
        text = f"a {file.parent.name} square, number {int(file.stem)}"
        rows.append({"file_name": f"all/{file.parent.name}/{file.name}", "text": text})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text)


@pytest.mark.slow
def test_captions_train_a_text_encoder_together_with_the_prior(tmp_path):
    """A caption that no training image has is understood."""
    write_captions(tmp_path / "shades")
    small = [*SMALL, "text_encoder.width=32"]
    bundle = jaxspec.train.train_all(
        tmp_path / "shades", tmp_path / "run", settings=small
    )
    pipe = jaxspec.load_pipeline(bundle)
    prompts = ["a dark square"] * 4 + ["a light square"] * 4
    out = pipe(prompts=prompts, seed=0)
    shades = np.array([np.asarray(image).mean() for image in out.images])
    assert shades[:4].mean() + 10 < shades[4:].mean()
    plain = pipe(prompts=prompts, seed=0, tree="root")
    np.testing.assert_array_equal(out.tokens, plain.tokens)
