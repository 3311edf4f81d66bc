"""Linear operations that read the same activations as one C function of a compiled network: one pass over all weights.

    qcc_linear_<hash>(x, w..., bias..., y..., int64 m, float alpha..., float scale, int32 zero)

Activations are rounded once for all members that round them alike, and threads share the blocks of all weights as if
they were one: queries, keys and values, or both halves of a gated layer, take the time of one larger operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .calls import Function, function_of, object_of
from .emit_linear import LinearText
from .isa import C_FOLDER, Isa


@dataclass(frozen=True)
class Member:
    """A linear operation of a group: its kernel, and whether it has a bias."""

    text: LinearText
    bias: bool = False

    @property
    def form(self) -> tuple[object, ...]:
        """What its prepared activations depend on: those of equal forms are the same bytes."""
        text, activation = self.text, self.text.spec.activation
        offset = 1 if text.spec.zero_points else text.spec.offset
        lookup = text.schedule.unpack == "lookup"
        return (text.spec.k, activation, offset, text.storage.group, text.workspace, lookup and text.storage)


def group_function(members: Sequence[Member], isa: Isa) -> tuple[Function, list[Function]]:
    """The function of some linear operations of one K and one kind of activations, and the kernels that it calls."""
    kernels = [object_of(member.text.text(), isa) for member in members]
    text = "\n".join(_text(members, [kernel.symbol for kernel in kernels]))
    return function_of("linear", text, "\n".join(_entry(members)), isa), kernels


def _text(members: Sequence[Member], tags: Sequence[str]) -> Iterator[str]:
    kind = "uint16_t" if members[0].text.spec.activation.dtype == "bf16" else "float"
    yield f"#include <stddef.h>\n#include <stdint.h>\ntypedef {kind} input;"
    yield f"enum {{ MEMBERS = {len(members)}, PANEL = {max(member.text.panel_bytes for member in members)} }};"
    for tag in dict.fromkeys(tags):
        yield f"void qcc_prepare_own_{tag}(const input *x, long m, uint8_t *rows, float scale, int zero);"
        yield f"void qcc_blocks_own_{tag}(const uint8_t *x, const uint8_t *w, const float *bias, float *y, long m,"
        yield "    float alpha, uint8_t *panel, long first, long last);"
    forms = list(dict.fromkeys(member.form for member in members))
    firsts = [next(i for i, member in enumerate(members) if member.form == form) for form in forms]
    yield "typedef void (*prepare_fn)(const input *, long, uint8_t *, float, int);"
    yield "typedef void (*blocks_fn)("
    yield "    const uint8_t *, const uint8_t *, const float *, float *, long, float, uint8_t *, long, long);"
    yield "static const struct { prepare_fn prepare; size_t bytes; } FORMS[] = {"
    yield from (f"    {{qcc_prepare_own_{tags[i]}, {members[i].text.workspace.bytes}}}," for i in firsts)
    yield "};"
    yield "static const struct { blocks_fn blocks; long count, streams; int form; size_t inputs; } KERNELS[] = {"
    for member, tag in zip(members, tags, strict=True):
        text = member.text
        numbers = [text.storage.blocks, text.schedule.streams, forms.index(member.form), text.spec.k]
        yield f"    {{qcc_blocks_own_{tag}, {', '.join(map(str, numbers))}}},"
    yield "};"
    yield (C_FOLDER / "linear_group.h").read_text()


def _entry(members: Sequence[Member]) -> Iterator[str]:
    """The function, with the braces of C doubled."""
    counted, biased = range(len(members)), [i for i, member in enumerate(members) if member.bias]
    arguments = ["const input *x", *(f"const uint8_t *w{i}" for i in counted), *(f"const float *b{i}" for i in biased)]
    arguments += [*(f"float *y{i}" for i in counted), "int64_t m", *(f"float a{i}" for i in counted)]
    yield f"void {{symbol}}({', '.join([*arguments, 'float scale', 'int32_t zero'])}) {{{{"
    yield "    const member members[MEMBERS] = {{"
    yield from (f"        {{{{w{i}, {f'b{i}' if i in biased else '0'}, y{i}, a{i}}}}}," for i in counted)
    yield "    }};"
    yield "    multiply_group(x, members, m, scale, zero);"
    yield "}}"
