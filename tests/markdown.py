"""Code blocks of Markdown."""

import re


def blocks(language, text):
    """Contents of all fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
