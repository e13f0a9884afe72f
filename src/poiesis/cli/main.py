"""The dispatcher: finds the verb, imports its module, turns errors into one line. No torch.

Exit codes: 0 done, 1 a check said no (reproduce, inspect, doctor, compare), 2 a mistake the user
can mend, 70 a bug of ours, 130 stopped by Ctrl-C, 141 the reader of a pipe went away.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from poiesis import __version__, processes
from poiesis.errors import ConfigError, PoiesisError, suggest

__all__ = ["VERBS", "main"]

VERBS: dict[str, str] = {
    "models": "list the models, or explain one",
    "train": "train a model on data",
    "sample": "generate new data from a trained model",
    "evaluate": "judge a trained model",
    "compare": "train and judge several models under one equal budget",
    "compress": "pack images by what a model learned of them, without loss or with",
    "decompress": "unpack a compressed file",
    "denoise": "clean data with a trained model",
    "detect": "find what is unlike the data a model was trained on",
    "edit": "make variants of pictures",
    "inpaint": "fill in a part of pictures, leaving the rest as it is",
    "translate": "make images of pictures: grey ones in colour, maps as photos",
    "upscale": "make pictures larger",
    "latent": "explore a model's latent space: interpolate, walk, direction, map, traverse",
    "reduce": "encode data to a model's codes, as a table",
    "report": "write a run's self-contained HTML report",
    "import": "make a run of a model in another toolkit's format",
    "export": "write a run's model for another toolkit",
    "data": "describe a data set, or list the named ones",
    "inspect": "show the recipe in a generated file, or what a run holds",
    "reproduce": "make a generated file again, byte for byte",
    "doctor": "check this machine and installation",
    "completion": "print shell completion for bash, zsh or fish",
}
"""Verb → what it does; its module is poiesis.cli.<verb>."""

_EXAMPLES = """Examples:
  poiesis train vae --data digits --train.budget 1m --out runs/first
  poiesis sample runs/first -n 64 -o new-digits
  poiesis report runs/first"""


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {what}" for name, what in VERBS.items())
    return (
        "usage: poiesis VERB [options]\n\n"
        "Generative models of every family: learn from your data, generate, judge, put to use.\n\n"
        f"Verbs (poiesis VERB --help explains one):\n{verbs}\n\n{_EXAMPLES}"
    )


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _out_of_memory(error: BaseException) -> bool:
    """Return whether it is torch's own error of a GPU's or the machine's memory."""
    text = str(error)
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else 2
    if args[0] in ("-V", "--version", "version"):
        print(f"poiesis {__version__}")
        return 0
    verb = args[0]
    if verb not in VERBS:
        hint = suggest(verb, VERBS) or f"; verbs: {', '.join(VERBS)}"
        raise ConfigError(f"no verb {verb!r}{hint}")
    return importlib.import_module(f"poiesis.cli.{verb}").run(args[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; user mistakes print one line, no traceback."""
    args = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        warnings.simplefilter("default", UserWarning)
        try:
            with _one_voice():
                code = _dispatch(args)
            sys.stdout.flush()
            return code
        except SystemExit as stop:  # after --help
            return stop.code if isinstance(stop.code, int) else 0
        except PoiesisError as error:
            if processes.local_rank() != 0:
                return 2  # the first process of this machine says it
            return _fail(" ".join(str(error).split()))
        except KeyboardInterrupt:
            print("poiesis: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # Python flushes stdout once more when it exits: let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return _fail(f"{error.filename or 'disk'}: {error.strerror}; free some space")
            if error.filename is None:
                return _bug(args)
            return _fail(f"{error.filename}: {error.strerror or error}; check the path")
        except MemoryError:
            return _fail(_MEMORY)
        except RuntimeError as error:
            if processes.lost(error):
                return _fail("another process stopped; its message says why")
            return _fail(_MEMORY) if _out_of_memory(error) else _bug(args)
        except Exception:
            return _bug(args)


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Of several processes (torchrun) let the main one speak; the others tell errors only."""
    if processes.main():
        yield
    else:
        warnings.simplefilter("ignore", UserWarning)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    processes.leave()


_MEMORY = (
    "out of memory: use a smaller batch (--train.batch-size, --train.accumulate, --batch-size) "
    "or model, or limit the data (--data.limit)"
)


def _fail(text: str) -> int:
    print(f"poiesis: {text}", file=sys.stderr)
    return 2


def _bug(args: Sequence[str]) -> int:
    command = " ".join(["poiesis", *args])
    print(f"poiesis: this is a bug in poiesis {__version__} ({command}):", file=sys.stderr)
    traceback.print_exc()
    return 70
