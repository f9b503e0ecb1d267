"""Joining the planner's options with the user's, so that argparse never refuses them.

argparse exits with code 2 on an unknown option, on a value outside the choices and on two
options of one exclusive group: ComfyUI would never start. So what cannot work is left out
and said loudly, and between the planner and the user the user wins.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.errors import ConfigError, ConfigProblem
from supervisor.hardware.facts import ComfyUIFacts
from supervisor.plan.gpu_policy import Flag

# In every ComfyUI since spring 2023; passed even when the parser could not be read.
UNIVERSAL = frozenset(
    {"--listen", "--port", "--cpu", "--output-directory", "--extra-model-paths-config"}
)

# Exclusive groups of comfy/cli_args.py (0.3.64 and autumn 2026), for parsers that were
# read from --help, which does not show groups. Options that do not exist do no harm.
KNOWN_EXCLUSIVE = (
    frozenset({"--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram", "--cpu"}),
    frozenset({"--cache-ram", "--cache-classic", "--cache-lru", "--cache-none", "--high-ram"}),
    frozenset(
        {
            "--use-split-cross-attention",
            "--use-quad-cross-attention",
            "--use-pytorch-cross-attention",
            "--use-sage-attention",
            "--use-flash-attention",
            "--use-ck-attention",
        }
    ),
    frozenset({"--cuda-malloc", "--disable-cuda-malloc"}),
)

# Not exclusive for argparse, but the user's choice makes the planner's senseless.
OPPOSED = (
    frozenset({"--enable-dynamic-vram", "--disable-dynamic-vram"}),
    frozenset({"--enable-dynamic-vram", "--novram"}),
    frozenset({"--enable-dynamic-vram", "--highvram"}),
)

# ComfyUI collects what every one of these names.
REPEATABLE = frozenset({"--extra-model-paths-config"})


@dataclass(frozen=True, slots=True)
class UserOption:
    """One option of ``COMFYUI_ARGS`` with the words that belong to it."""

    name: str  # as ComfyUI knows it: an unambiguous prefix is completed, as argparse does
    words: tuple[str, ...]  # what is passed on, the option first

    @property
    def values(self) -> tuple[str, ...]:
        """The values, without the option."""
        head, *rest = self.words
        _, joined, value = head.partition("=")
        return (value, *rest) if joined else tuple(rest)


@dataclass(frozen=True, slots=True)
class Arguments:
    """The words after ``main.py``, the planner's own options among them, and the story."""

    words: tuple[str, ...]
    planner_flags: tuple[str, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    user: tuple[UserOption, ...]

    def value(self, name: str) -> str | None:
        """The first value of the user's last ``name``; None when not given."""
        given = [option.values for option in self.user if option.name == name]
        return given[-1][0] if given and given[-1] else None

    def given(self, name: str) -> bool:
        """Whether the user gave ``name``."""
        return any(option.name == name for option in self.user)


def join_arguments(
    planned: Sequence[Flag], user_text: str, comfyui: ComfyUIFacts | None
) -> Arguments:
    """Put the accepted planner options and the user's together, the user's last.

    Raises:
        ConfigError: ``user_text`` has an unbalanced quote.
    """
    notes: list[str] = []
    user = _sane_options(_split(user_text, comfyui), comfyui, notes)
    taken = {option.name for option in user}
    groups = exclusive_groups(comfyui)
    words: list[str] = []
    names: list[str] = []
    reasons: list[str] = []
    for flag in planned:
        refusal = _refusal(flag, comfyui, taken, groups)
        if refusal is None:
            words += [flag.name, *flag.values]
            names.append(flag.name)
            reasons.append(f"{' '.join((flag.name, *flag.values))}: {flag.reason}")
        elif refusal:
            reasons.append(refusal)
    for option in user:
        words += option.words
        reasons.append(f"{' '.join(option.words)}: from COMFYUI_ARGS")
    return Arguments(tuple(words), tuple(names), tuple(reasons), tuple(notes), tuple(user))


def exclusive_groups(comfyui: ComfyUIFacts | None) -> tuple[frozenset[str], ...]:
    """Groups of which argparse takes one option only."""
    if comfyui is not None and comfyui.exclusive:
        return comfyui.exclusive
    return KNOWN_EXCLUSIVE


def _refusal(
    flag: Flag,
    comfyui: ComfyUIFacts | None,
    taken: set[str],
    groups: tuple[frozenset[str], ...],
) -> str | None:
    """Why a planned option is left out; None = keep it, "" = not worth a line."""
    if flag.name in taken - REPEATABLE:
        return f"{flag.name} of the plan is left out: COMFYUI_ARGS sets it"
    for group in (*groups, *OPPOSED):
        if flag.name in group and (rivals := taken & group):
            rival = min(rivals)
            return f"{flag.name} of the plan is left out: COMFYUI_ARGS has {rival}"
    if comfyui is None or comfyui.flags is None:
        return None if flag.name in UNIVERSAL else ""
    return None if comfyui.accepts(flag.name) else ""


def _split(text: str, comfyui: ComfyUIFacts | None) -> list[UserOption]:
    try:
        words = shlex.split(text)
    except ValueError as exc:
        problem = ConfigProblem(
            key="comfyui.args",
            value=text,
            reason=f"cannot be split into words: {str(exc).lower()}",
            hint='quote as in a shell: --output-directory "/my outputs"',
        )
        raise ConfigError("Cannot use comfyui.args", problems=(problem,)) from exc
    options: list[list[str]] = []
    for word in words:
        if word.startswith("-") and not _is_number(word):
            options.append([word])
        elif options:
            options[-1].append(word)
        else:
            options.append([word])
    return [UserOption(_complete(words[0], comfyui), tuple(words)) for words in options]


def _complete(word: str, comfyui: ComfyUIFacts | None) -> str:
    """The full name of an option that was shortened, as argparse's abbreviations work."""
    name = word.partition("=")[0]
    if comfyui is None or comfyui.flags is None or name in comfyui.flags:
        return name
    matches = [flag for flag in comfyui.flags if name.startswith("--") and flag.startswith(name)]
    return matches[0] if len(matches) == 1 else name


def _sane_options(
    options: list[UserOption], comfyui: ComfyUIFacts | None, notes: list[str]
) -> list[UserOption]:
    """Leave out what argparse would exit on."""
    if comfyui is None or comfyui.flags is None:
        return options
    kept: list[UserOption] = []
    for option in options:
        if fault := _fault(option, comfyui):
            notes.append(f"COMFYUI_ARGS: {fault}; left out, or ComfyUI would exit with code 2")
            continue
        for rival in [other for other in kept if _clash(option.name, other.name, comfyui)]:
            kept.remove(rival)
            notes.append(
                f"COMFYUI_ARGS: {rival.name} and {option.name} exclude each other; "
                f"{rival.name} is left out"
            )
        kept.append(option)
    return kept


def _fault(option: UserOption, comfyui: ComfyUIFacts) -> str | None:
    flags = comfyui.flags or {}
    if not option.name.startswith("-"):
        return f"{option.name!r} belongs to no option"
    if option.name not in flags:
        near = difflib.get_close_matches(option.name, flags, n=1)
        did_you_mean = f" (the nearest is {near[0]})" if near else ""
        version = f"ComfyUI {comfyui.version}" if comfyui.version else "the installed ComfyUI"
        return f"{version} does not know {option.name}{did_you_mean}"
    choices = flags[option.name]
    for value in option.values:
        if choices and value not in choices:
            return f"{option.name} takes {', '.join(choices)} and not {value!r}"
    return _wrong_count(option, comfyui.arity.get(option.name))


def _wrong_count(option: UserOption, arity: str | None) -> str | None:
    count = len(option.values)
    if arity == "0" and count:
        return f"{option.name} takes no value and got {' '.join(option.values)!r}"
    if arity is not None and arity.isdigit() and arity != "0" and count != int(arity):
        return f"{option.name} takes {arity} value{'s' * (arity != '1')} and got {count}"
    if arity == "+" and not count:
        return f"{option.name} needs a value"
    if arity == "?" and count > 1:
        return f"{option.name} takes one value at most and got {count}"
    return None


def _clash(one: str, other: str, comfyui: ComfyUIFacts) -> bool:
    return one != other and any(
        one in group and other in group for group in exclusive_groups(comfyui)
    )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
