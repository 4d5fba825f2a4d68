"""First example of docs/converting.md: from LlamaGen's two files to images."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import jaxspec
from jaxspec.cli import main
from jaxspec.convert.imagenet import FILE, imagenet_classes
from jaxspec.models.transformer.presets import SIZES
from jaxspec.pipeline.bundle import resolve_classes
from jaxspec.pipeline.settings import resolve_config
from tests.convert.llamagen_files import decoder, tokenizer, write
from tests.markdown import blocks

PAGE = Path(__file__).parents[2] / "docs" / "converting.md"
VOCAB = 64


def commands():
    """Returns the arguments of `jaxspec` in the first block of the page."""
    text = blocks("sh", PAGE.read_text())[0].replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.strip().splitlines()]
    assert all(line[0] == "jaxspec" for line in lines)
    return [line[1:] for line in lines]


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """Writes tiny random files with the released names into the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SIZES, "tiny", (2, 4, 32))
    prior = decoder(32, 96, 2, vocab=VOCAB, classes=1000)
    write(tmp_path / "c2i_B_256.pt", prior)
    tensors = tokenizer(channels=32, latent=32, codes=VOCAB, used=8)
    write(tmp_path / "vq_ds16_c2i.pt", tensors)
    return tmp_path


def test_the_two_files_make_a_bundle(downloaded):
    *convert, generate = commands()
    assert [c[0] for c in convert] == ["convert", "convert"]
    for command in convert:
        assert main(command) == 0
    bundle = jaxspec.load_pipeline(generate[generate.index("--checkpoint") + 1]).bundle
    prior, vq = bundle.prior.config, bundle.tokenizer.config
    assert (prior.grid, prior.classes, prior.heads) == (16, 1000, 4)
    assert (vq.grid, vq.image_size) == (16, 256)
    assert vq.codebook_size == prior.vocab_size == VOCAB
    assert resolve_classes(bundle, ["golden retriever", "otter"]) == [207, 360]
    config = resolve_config(bundle, {})
    assert (config.cfg_scale, config.top_k) == (4.0, 2000)


def test_every_class_of_imagenet_has_a_name_of_its_own():
    names = imagenet_classes()
    assert len({name.lower() for name in names}) == len(names) == 1000
    assert not any("," in name for name in names)  # which divides --classes
    assert names[:2] + names[-1:] == ["tench", "goldfish", "toilet tissue"]
    lines = FILE.read_text("utf-8").splitlines()
    synsets = [line.split()[0] for line in lines if line.startswith("n")]
    assert synsets == sorted(synsets)  # the order of the numbers


@pytest.mark.slow
def test_all_commands_of_the_page_run(downloaded, capsys):
    for command in commands():
        assert main(command) == 0
    assert re.search(r"shown +golden retriever, otter\n", capsys.readouterr().out)
    image = Image.open(downloaded / "images.png")
    assert image.size[0] >= 2 * 256 and image.size[1] >= 256
