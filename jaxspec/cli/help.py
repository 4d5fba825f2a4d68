"""Parser of a command, and help that leaves rarely used options to `--help-all`."""

import argparse
import sys


class _Rare(str):
    """Help text of a rarely used option."""

    __slots__ = ()


def rare(text: str) -> str:
    """Marks the help text of an option that only `--help-all` shows.

    Args:
      text: text for `add_argument(help=...)`.
    """
    return _Rare(text)


class _HelpAll(argparse.Action):
    """`--help-all`: prints the help with all options, and exits."""

    def __init__(self, option_strings, dest, **keywords):
        super().__init__(option_strings, dest, nargs=0, **keywords)

    def __call__(self, parser, namespace, values, option_string=None):
        assert isinstance(parser, Parser)
        sys.stdout.write(parser.format_help(everything=True))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Argument parser that reports an error as one line, with exit status 2.

    An option whose help text is `rare` is shown by `--help-all` alone, which is shown
    where there is such an option.
    """

    def __init__(self, **keywords):
        super().__init__(**{"allow_abbrev": False, **keywords})
        self._help_all = self.add_argument(
            "--help-all",
            action=_HelpAll,
            default=argparse.SUPPRESS,
            help="show this help message with the rarely used options, and exit",
        )

    def error(self, message):
        """Prints the message and exits."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self, everything: bool = False) -> str:
        """Formats the help message.

        Args:
          everything: whether to show rarely used options.
        """
        hidden = [action for action in self._actions if isinstance(action.help, _Rare)]
        if not hidden:
            hidden = [self._help_all]
        elif everything:
            hidden = []
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            for action, text in zip(hidden, texts, strict=True):
                action.help = text
