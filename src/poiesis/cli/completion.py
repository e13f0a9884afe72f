"""`poiesis completion`: completion scripts for bash, zsh and fish, written from the sources.

A script holds the words as they are now: verbs, model names, each verb's options and each model's.
Files complete as usual where no word fits.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path

from poiesis import registry
from poiesis.cli import latent
from poiesis.cli.main import VERBS
from poiesis.cli.options import Option, options
from poiesis.errors import ConfigError, suggest

__all__ = ["SHELLS", "run"]

SHELLS = ("bash", "zsh", "fish")

_HELP = """usage: poiesis completion SHELL

Print a completion script for bash, zsh or fish.

Examples:
  eval "$(poiesis completion bash)"     (or put this line into ~/.bashrc)
  eval "$(poiesis completion zsh)"      (in ~/.zshrc, after compinit)
  poiesis completion fish > ~/.config/fish/completions/poiesis.fish"""

_ARGUMENTS = {
    "train": "DataAndTrain",
    "sample": "SampleArgs",
    "evaluate": "EvaluateArgs",
    "compare": "CompareArgs",
    "report": "ReportArgs",
    "data": "DataArgs",
    "inspect": "InspectArgs",
    "reduce": "ReduceArgs",
    "denoise": "DenoiseArgs",
    "detect": "DetectArgs",
    "edit": "EditArgs",
    "inpaint": "InpaintArgs",
    "translate": "TranslateArgs",
    "upscale": "UpscaleArgs",
    "compress": "CompressArgs",
    "import": "ImportArgs",
    "export": "ExportArgs",
    "decompress": "DecompressArgs",
    "reproduce": "ReproduceArgs",
    "doctor": "DoctorArgs",
}
"""Verb → the dataclass of its options."""


def run(args: list[str]) -> int:
    """Print the script of a shell."""
    if not args or "-h" in args or "--help" in args:
        print(_HELP)
        return 0 if args else 2
    if len(args) > 1 or args[0] not in SHELLS:
        word = args[0] if args[0] not in SHELLS else args[1]
        known = ", ".join(SHELLS)
        raise ConfigError(f"no completion for {word!r}{suggest(word, SHELLS)}; shells: {known}")
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[args[0]]())
    return 0


def _verb_words() -> dict[str, list[str]]:
    """Return verb → its options, help included."""
    words: dict[str, list[str]] = {"models": ["--json"], "completion": []}
    words["latent"] = _option_words(latent.all_options())
    for verb, name in _ARGUMENTS.items():
        module = importlib.import_module(f"poiesis.cli.{verb}")
        words[verb] = _option_words(options(getattr(module, name)))
        words[verb] += getattr(module, "ALIASES", {})
    # Read from the source: the module itself needs torch.
    words["evaluate"] += _source_options("poiesis.evaluation.protocol", "EvaluationConfig")
    return {verb: [*dict.fromkeys(words[verb]), "--help"] for verb in VERBS}


def _option_words(known: Sequence[Option]) -> list[str]:
    named = [o for o in known if not o.kind.startswith("positional")]
    return [o.name for o in named] + [alias for o in named for alias in o.aliases]


def _source(module: str) -> ast.Module:
    """Return the syntax tree of a module that is too heavy to import for its names."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    return ast.parse(Path(found.origin).read_text(encoding="utf-8"))


def _source_options(module: str, name: str) -> list[str]:
    body = _source(module).body
    node = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == name)
    fields = [i.target for i in node.body if isinstance(i, ast.AnnAssign)]
    return [_flag("", field.id) for field in fields if isinstance(field, ast.Name)]


def _flag(group: str, field: str) -> str:
    return f"--{group}{field.replace('_', '-')}"


def _model_words() -> dict[str, list[str]]:
    """Return model → its own options for train."""
    return {
        name: [_flag("model.", field) for field in registry.describe(name).options]
        for name in registry.names()
    }


def _sampling_words() -> list[str]:
    """Return the sampling options of all models: a run's model is not known while typing."""
    found = [f for name in registry.names() for f in registry.describe(name).sampling]
    return [_flag("sampling.", field) for field in dict.fromkeys(found)]


def _data_words() -> list[str]:
    tables = [n for n in _source("poiesis.data.sources").body if isinstance(n, ast.AnnAssign)]
    found = []
    for node in tables:
        if ast.unparse(node.target) in ("BUILT_IN", "NAMED") and isinstance(node.value, ast.Dict):
            found += [ast.literal_eval(key) for key in node.value.keys if key is not None]
    return found


def _cases(indent: str) -> str:
    """Return the case statements that bash and zsh share; they set `found`."""
    models = " ".join(registry.names())
    places = {"train": models, "models": models, "compare": models, "completion": " ".join(SHELLS)}
    places["latent"] = " ".join(latent.MODES)
    lines = ['case "$verb" in']
    for verb, words in _verb_words().items():
        extra = f" {' '.join(_sampling_words())}" if verb == "sample" else ""
        lines.append(f"  {verb}) found={shlex.quote(' '.join(words) + extra)}")
        lines.append(f"    names={shlex.quote(places.get(verb, ''))} ;;")
    lines += ["esac", 'case "$verb $model" in']
    for model, words in _model_words().items():
        lines.append(f'  "train {model}") found="$found "{shlex.quote(" ".join(words))} ;;')
    lines.append("esac")
    return "\n".join(indent + line for line in lines)


def _bash() -> str:
    verbs = " ".join(VERBS)
    data = " ".join(_data_words())
    return f"""# bash completion for poiesis
_poiesis() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  local verb="${{COMP_WORDS[1]}}" model="${{COMP_WORDS[2]}}" found="" names=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs} --help --version" -- "$current"))
    return
  fi
{_cases("  ")}
  case "$before" in
    --data|--data.source) names={shlex.quote(data)} ;;
    --*) [ "$verb" = compare ] || names="" ;;
  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$found" -- "$current")) ;;
    *) COMPREPLY=($(compgen -W "$names" -- "$current")) ;;
  esac
}}
complete -o default -F _poiesis poiesis"""


def _zsh() -> str:
    verbs = " ".join(shlex.quote(f"{verb}:{what}") for verb, what in VERBS.items())
    data = " ".join(_data_words())
    return f"""#compdef poiesis
# zsh completion for poiesis
_poiesis() {{
  local current="${{words[CURRENT]}}" before="${{words[CURRENT-1]}}"
  local verb="${{words[2]}}" model="${{words[3]}}" found="" names=""
  if (( CURRENT == 2 )); then
    local -a verbs=({verbs})
    _describe verb verbs
    return
  fi
{_cases("  ")}
  case "$before" in
    --data|--data.source) names={shlex.quote(data)} ;;
    --*) [[ "$verb" == compare ]] || names="" ;;
  esac
  case "$current" in
    -*) compadd -- ${{=found}} ;;
    *) compadd -- ${{=names}}; _files ;;
  esac
}}
compdef _poiesis poiesis"""


def _fish() -> str:
    lines = ["# fish completion for poiesis"]
    for verb, what in VERBS.items():
        text = shlex.quote(what)
        lines.append(f"complete -c poiesis -n __fish_use_subcommand -f -a {verb} -d {text}")
    after = "__fish_seen_subcommand_from"
    models = " ".join(registry.names())
    for verb in ("train", "models", "compare"):
        lines.append(f"complete -c poiesis -n '{after} {verb}' -a '{models}'")
    lines.append(f"complete -c poiesis -n '{after} completion' -f -a '{' '.join(SHELLS)}'")
    lines.append(f"complete -c poiesis -n '{after} latent' -a '{' '.join(latent.MODES)}'")
    for verb, words in _verb_words().items():
        words = words + (_sampling_words() if verb == "sample" else [])
        lines += [_fish_option(f"{after} {verb}", word) for word in words]
    for model, words in _model_words().items():
        condition = f"{after} train; and {after} {model}"
        lines += [_fish_option(condition, word) for word in words]
    return "\n".join(lines)


def _fish_option(condition: str, word: str) -> str:
    kind = "-l" if word.startswith("--") else "-s"
    values = f" -x -a '{' '.join(_data_words())}'" if word in ("--data", "--data.source") else ""
    return f"complete -c poiesis -n '{condition}' {kind} {word.lstrip('-')}{values}"
