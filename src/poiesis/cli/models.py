"""`poiesis models`: the list of models by family, or one explained. Reads sources, no torch."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from poiesis import registry
from poiesis.errors import ConfigError, suggest

__all__ = ["run"]

_HELP = """usage: poiesis models [NAME] [--json]

List the models by family, or explain one: what it is good at and not, cost, presets, paper,
and its options with their defaults.

Examples:
  poiesis models
  poiesis models ddpm
  poiesis models --json"""


def run(args: list[str]) -> int:
    """Print the list, or the explanation of one model."""
    if "-h" in args or "--help" in args:
        print(_HELP)
        return 0
    names = [a for a in args if not a.startswith("-")]
    unknown = [a for a in args if a.startswith("-") and a != "--json"]
    if unknown:
        hint = suggest(unknown[0], ["--json"]) or "; poiesis models --help shows its use"
        raise ConfigError(f"poiesis models has no option {unknown[0]!r}{hint}")
    if len(names) > 1:
        raise ConfigError(f"poiesis models explains one model at a time, not {len(names)}")
    if "--json" in args:
        value = _described(names[0]) if names else registry.list_models()
        print(json.dumps(value, indent=1, ensure_ascii=False))
    elif names:
        print(_explanation(names[0]))
    else:
        print(_listing())
    return 0


def _listing() -> str:
    entries = registry.list_models()
    width = max(len(e["name"]) for e in entries)
    lines: list[str] = []
    for family in dict.fromkeys(e["family"] for e in entries):
        lines.append(family)
        for e in entries:
            if e["family"] == family:
                data = ", ".join(e["accepts"])
                lines.append(f"  {e['name']:{width}}  {e['summary']} [{data}]")
    return "\n".join([*lines, "", "poiesis models NAME explains one."])


def _described(name: str) -> dict[str, Any]:
    entry, described = registry.entry(name), registry.describe(name)
    value = dataclasses.asdict(entry)
    value |= {"doc": described.doc, "presets": described.presets}
    for part in ("options", "sampling"):
        fields = getattr(described, part)
        value["set" if part == "options" else part] = value.get(part)
        value[part] = {k: {"default": d, "doc": doc} for k, (d, doc) in fields.items()}
    del value["target"]
    return value


def _explanation(name: str) -> str:
    entry, described = registry.entry(name), registry.describe(name)
    lines = [
        f"{name}: {entry.summary}",
        f"family {entry.family}; learns {', '.join(entry.accepts)}",
        "",
        described.doc,
        "",
        "Presets (--preset NAME):",
    ]
    for preset, doc in described.presets.items():
        marks = " (used unless you say otherwise)" if preset == entry.preset else ""
        lines += [f"  {preset}{marks}", *_indented(doc)]
    for title, flag, fields in (
        ("Options of training", "--model", described.options),
        ("Options of sampling", "--sampling", described.sampling),
    ):
        lines += ["", f"{title} (a preset may set other defaults):"]
        for field, (default, doc) in fields.items():
            lines.append(f"  {flag}.{field.replace('_', '-')}  (default: {default})")
            lines += _indented(doc)
    lines += ["", f"Try: poiesis train {name} --help"]
    return "\n".join(lines)


def _indented(doc: str) -> list[str]:
    return [f"      {line}".rstrip() for line in doc.splitlines()]
