"""Names of ImageNet's 1000 classes, for models that number them without names."""

from pathlib import Path

from jaxspec.io.text_files import read_text, split_lines

FILE = Path(__file__).with_name("imagenet_classes.txt")


def imagenet_classes() -> list[str]:
    """Names of the classes of ILSVRC 2012, by number.

    The first words of their synsets in WordNet 3.0; the file has its license.
    """
    lines = split_lines(read_text(FILE))
    return [line.split(" ", 1)[1] for line in lines if not line.startswith("#")]
