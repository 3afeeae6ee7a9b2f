"""The command line: the package's words, one command each.

Nothing heavy is imported before a command is known to run, so that help is there at once. `main` turns what can go wrong into
one line and an exit status: 0 done, 1 a study whose checks failed, 2 bad input, 70 a fault of this package, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from emoprobe.cli import intervening, reading, studies, valuing, writing
from emoprobe.errors import InputError

__all__ = ["app", "main"]

BAD_INPUT, FAULT, INTERRUPTED = 2, 70, 130
RESUMED = ("study", "concepts", "claims", "stories", "fit", "learn")
"""Commands that go on where they were stopped."""
# Newer releases of typer carry click inside themselves, and older ones do not.
_BadUsage: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

_OPTIONS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^text (\d+)\b", lambda found: f"text {int(found[1]) + 1}"),  # people count from 1
    (r"\branges=\{'(.+?)': \(lowest, highest\)\}", r"--ranges \1=LOWEST:HIGHEST"),
    (r"\bleave one out, as in columns=\{'words': None\}", "remove one of them from the file"),
    (r"\bcolumns=\{'(.+?)': \.\.\.\}", r"--columns \1=COLUMN"),
    (r"\bfolder=", "--folder"),
    (r"give another out=$", "delete that folder, or give another --output"),
    (r"(?<!-)\b(emotions|estimator|folds|layers|objective|positions|strengths?)=", r"--\1 "),
    (r"\bmax_new_tokens=", "--max-new-tokens "),
    (r", a boolean mask or character spans", ""),
    (r"\bfit_probes\b", "`emoprobe fit`"),
    (r"(holds a probe set, not a valuation)$", r"\1: `emoprobe learn` makes one of it"),
    (
        r"\bmake it with learn_valuation, or set its strength",
        "`emoprobe learn` writes one that has",
    ),
)
"""What messages say of Python, as regular expressions, and what a command line has in its place."""


COMMANDS: tuple[tuple[Callable[..., None], str], ...] = (
    (studies.study, "emoprobe study gpt2 --corpus emobank --out runs/gpt2"),
    (studies.concepts, "emoprobe concepts gpt2 --corpus goemotions --out runs/gpt2-concepts"),
    (studies.claims, "emoprobe claims gpt2 --corpus emobank --out runs/gpt2-claims"),
    (
        reading.fit,
        "emoprobe fit gpt2 reviews.csv --columns text=review,valence=stars --ranges valence=1:5 -o v.safetensors",
    ),
    (reading.trace, 'emoprobe trace gpt2 vad.safetensors "I am so happy that you came!"'),
    (
        intervening.steer,
        'emoprobe steer gpt2 vad.safetensors valence "My flight leaves in ten minutes and" --strength 0.08',
    ),
    (
        intervening.inject,
        'emoprobe inject gpt2 vad.safetensors "The brilliantly terrible movie" --strength 0.5',
    ),
    (intervening.sweep, "emoprobe sweep gpt2 vad.safetensors valence --strengths=-0.1,-0.05,0,0.05,0.1"),
    (
        valuing.learn,
        "emoprobe learn gpt2 vad.safetensors emobank -o learned.safetensors --dimensions valence,arousal",
    ),
    (valuing.compare, "emoprobe compare gpt2 vad.safetensors learned.safetensors --corpus emobank"),
    (
        writing.stories,
        "emoprobe stories stories.jsonl --emotions afraid,calm,proud --model Qwen/Qwen3-0.6B --per-topic 2",
    ),
    (studies.report, "emoprobe report runs/bundled"),
    (reading.explore, "emoprobe explore gpt2 vad.safetensors"),
    (reading.info, "emoprobe info bundled"),
)
"""Every command, in the order of the help, with an example."""

app = typer.Typer(
    name="emoprobe",
    help="Find functional emotions in language models: probes with controls, valuation attention, steering, reports.",
    epilog="Exit status: 0 done, 1 a study whose checks failed, 2 bad input, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command, _example in COMMANDS:
    # A short help that is not given is cut where a line ends; \b keeps an example on one line, to be copied.
    _said = (_command.__doc__ or "").partition("\n")[0]
    app.command(short_help=_said, epilog=f"\b\nExample: {_example}")(_command)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from emoprobe import __version__

        typer.echo(f"emoprobe {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; what the user can mend is said in one line on stderr."""
    given = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    _quieten()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _run(given)
        except _BadUsage as error:
            where = getattr(getattr(error, "ctx", None), "command_path", "emoprobe")
            return _refuse(f"{error.format_message().rstrip('.')}; see {where} --help")
        except InputError as error:
            return _refuse(_in_options(str(error)))
        except BrokenPipeError:  # whoever reads our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            return _refuse(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        except Exception:
            traceback.print_exc()
            sys.stderr.write(
                "emoprobe: this is a fault of emoprobe, not yours; please report it with what stands above\n"
            )
            return FAULT


def _run(given: list[str]) -> int:
    try:
        status = typer.main.get_command(app).main(given, "emoprobe", standalone_mode=False, obj=given)
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    if status == INTERRUPTED:  # some releases of typer return it, others raise
        resumes = given[0] in RESUMED or (given[0] == "sweep" and {"-o", "--output"} & set(given))
        kept = "what is done is kept, and the same command resumes" if resumes else "nothing was written"
        sys.stderr.write(f"\nemoprobe: interrupted; {kept}\n")
    return status if isinstance(status, int) else 0


def _in_options(message: str) -> str:
    """Say what the package says of its Python arguments in the options of the command line."""
    for in_python, typed_in in _OPTIONS:
        message = re.sub(in_python, typed_in, message)
    return message


def _refuse(message: str) -> int:
    sys.stderr.write(f"emoprobe: {' '.join(message.split())}\n")
    return BAD_INPUT


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    if issubclass(category, UserWarning):
        sys.stderr.write(f"emoprobe: warning: {' '.join(str(message).split())}\n")


def _quieten() -> None:
    """Keep the bars and hints of the libraries below off the screen."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
