"""The converting page's example: LlamaGen's two files for classes, to images."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import jaxspec
from jaxspec.cli import main
from jaxspec.models.presets import SIZES
from tests.convert.llamagen_files import decoder, tokenizer, write
from tests.test_readme import blocks

PAGE = Path(__file__).parents[2] / "docs" / "converting.md"
CODES = 64


def commands():
    """The page's first block, as arguments of `jaxspec`."""
    text = blocks("sh", PAGE.read_text())[0].replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.strip().splitlines()]
    assert all(line[0] == "jaxspec" for line in lines)
    return [line[1:] for line in lines]


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """Random files of the true layout and names at a tiny size, where the user is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SIZES, "tiny", (2, 4, 32))
    prior = decoder(32, 96, 2, codes=CODES, classes=1000)
    write(tmp_path / "c2i_B_256.pt", prior)
    images = tokenizer(channels=32, latent=32, codes=CODES, used=8)
    write(tmp_path / "vq_ds16_c2i.pt", images)
    return tmp_path


def test_the_two_files_make_a_bundle(downloaded):
    *convert, generate = commands()
    assert [c[0] for c in convert] == ["convert", "convert"]
    for command in convert:
        assert main(command) == 0
    bundle = jaxspec.load_bundle(generate[generate.index("--checkpoint") + 1])
    prior, images = bundle.prior.config, bundle.tokenizer.config
    assert (prior.grid, prior.classes, prior.heads) == (16, 1000, 4)
    assert (images.grid, images.image_size) == (16, 256)
    assert images.codebook_size == prior.vocab_size == CODES


@pytest.mark.slow
def test_all_commands_of_the_page_run(downloaded, capsys):
    for command in commands():
        assert main(command) == 0
    assert re.search(r"identical +yes, every token", capsys.readouterr().out)
    image = Image.open(downloaded / "images.png")
    assert image.size[0] >= 2 * 256 and image.size[1] >= 256
