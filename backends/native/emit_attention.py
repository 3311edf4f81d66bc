"""The C text of an attention kernel: two forms of one sum, whose products are generated for the size of a head.

    few rows (attention_split.h)                             many rows (attention_tile.h)
    for each split of keys: a task                           for each tile of rows: a task
        s[row][key] = sum over lanes of q[row] k[key]            for each tile of keys:
        weights, their maximum and sum                               s[key][lanes of rows] = k[key][d] q[d][lanes]
        o[row][lanes of values] = weight v[key]                      weights with the running maximum
    add up the splits, in their order                                o[d][lanes of rows] += v[key][d] weight[key][lanes]

The first reads keys and values once for all rows, as they lie in the cache. The second turns them into float32 once for
a tile of rows. Sums of products are named variables, so that a compiler keeps them in registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .attention_spec import AttentionSchedule, AttentionSpec
from .isa import C_FOLDER, Isa

FEW_ROWS = 8
"""Rows up to which lanes are values and keys: from here on vectors of rows are full enough."""
_SCORES = "const float *q, const element *k, const element *v, int ahead, int64_t by, long count, float *s"
_VALUES = "const float *s, const element *v, const element *next, int64_t by, long count, float *to"
_LOADS = {"f32": "load_f32(p)", "f16": "load_f16(p)", "i8": "to_floats(load_i8(p))"}
_ELEMENTS = {"f32": "float", "f16": "uint16_t", "i8": "int8_t"}
AHEAD = 16
"""Keys from one that is read to one that is asked for."""
BYTES = {"f32": 4, "f16": 2, "i8": 1}


@dataclass(frozen=True)
class AttentionText:
    """A generated kernel."""

    spec: AttentionSpec
    isa: Isa
    schedule: AttentionSchedule

    def text(self) -> str:
        """The whole C text."""
        lines = [f"/* {self.spec}, {self.isa.name}: {self.schedule} */", self.isa.text()]
        lines += [_header(f"attention_{self.isa.header}"), _header("softmax.h"), *self._constants()]
        lines += [_header("attention_job.h"), _header("attention.h")]
        for rows in self._row_counts:
            lines += self._whole_scores(rows) if self._whole else self._row_scores(rows)
            lines += self._row_values(rows)
        lines += [*self._by_rows(), _header("attention_split.h")]
        for vectors in range(1, self.schedule.vectors + 1):
            lines += [*self._tile_scores(vectors), *self._tile_values(vectors)]
        lines += [*self._by_vectors(), _header("attention_tile.h"), _header("attention_entry.h")]
        return "\n".join(lines) + "\n"

    @property
    def _wide(self) -> bool:
        return self.isa.header == "avx512.h"

    @property
    def _row_counts(self) -> tuple[int, ...]:
        """Rows that are multiplied with a key at once, most first."""
        return (4, 2, 1) if self._wide else (2, 1)

    @property
    def _whole(self) -> bool:
        """Whether few rows meet keys as whole numbers: a vector holds four bytes of each lane."""
        return self.spec.cache == "i8" and self.spec.size % 64 == 0 and self._wide

    def _constants(self) -> Iterator[str]:
        spec, s = self.spec, self.schedule
        values = {
            "SIZE": spec.size,
            "HEADS": spec.heads,
            "KV_HEADS": spec.kv_heads,
            "GROUP": spec.group,
            "CAUSAL": int(spec.causal),
            "WINDOW": spec.window or 0,
            "SCALE": f"{float(spec.factor).hex()}f",
            "SOFTCAPPED": int(spec.softcap is not None),
            "SOFTCAP": f"{float(spec.softcap or 1).hex()}f",
            "MASK": ("none", "bool", "f32").index(spec.mask),
            "MASK_BYTES": 1 if spec.mask == "bool" else 4,
            "HALF": int(spec.cache == "f16"),
            "CODES": int(spec.cache == "i8"),
            "WHOLE": int(self._whole),
            "FEW_ROWS": FEW_ROWS,
            "SPLIT": s.split,
            "LANES": 16 * s.vectors,
            "KEYS": s.keys,
            "KEY_ROWS": s.key_rows,
            "VALUE_ROWS": s.key_rows,
            "PITCH": -(-spec.size // 16) * 16 + 16,  # else rows of a power of two share few sets of the first cache
        }
        yield from (f"#define {name} {value}" for name, value in values.items())
        yield f"typedef {_ELEMENTS[spec.cache]} element;"
        yield f"#define load_cached(p) {_LOADS[spec.cache].replace('(p)', '((p))')}"

    # Few rows

    def _vector_loop(self, body: list[str]) -> Iterator[str]:
        """`body` for each vector of a head, where AT(row) is what a row of the cache has at `d`."""
        whole, rest = self.spec.size // 16 * 16, self.spec.size % 16
        if whole:
            yield f"        for (long d = 0; d < {whole}; d += 16) {{"
            yield from (f"            {line.replace('AT(', 'load_cached(d + ')}" for line in body)
            yield "        }"
        if rest:
            yield f"        {{ const long d = {whole};"
            yield from (f"            {line.replace('AT(', 'cached(d, ')}" for line in body)
            yield "        }"

    def _row_scores(self, rows: int) -> Iterator[str]:
        """`row_scores_R(...)`: R rows by all keys of a split, 16 / R at a time; asks for the values of the keys."""
        keys, at_once = 16 // rows, 4 if self._wide else 4 // rows
        yield f"static void row_scores_{rows}({_SCORES}) {{"
        yield f"    for (long j = 0; j < count; j += {keys}) {{"
        yield "        floats all[16];"
        for first in range(0, keys, at_once):
            yield "        {"
            for i in range(at_once):
                yield f"        const element *k{i} = k + (j + {first + i} < count ? j + {first + i} : count - 1) * by;"
            for r in range(rows):
                for i in range(at_once):
                    yield f"        floats a_{r}_{i} = zero_floats();"
            body = [f"const floats x{i} = AT(k{i});" for i in range(at_once)]
            for r in range(rows):
                body.append(f"const floats q{r} = load_f32(q + {r} * Q_ROW + d);")
                body += [f"a_{r}_{i} = fma_(x{i}, q{r}, a_{r}_{i});" for i in range(at_once)]
            yield from self._vector_loop([*body, *self._asked(at_once, first)])
            for r in range(rows):
                for i in range(at_once):
                    yield f"        all[{r * keys + first + i}] = a_{r}_{i};"
            yield "        }"
        yield from self._stored_scores(rows)

    def _stored_scores(self, rows: int) -> Iterator[str]:
        """The ends of `row_scores_R`: the sums of lanes, row by row."""
        keys = 16 // rows
        yield "        const floats sums = sums_of_16(all);"
        if rows == 1:
            yield "        store_floats(s + j, sums, 16);"
        else:
            yield "        float each[16];"
            yield "        store_floats(each, sums, 16);"
            yield from (f"        memcpy(s + {r} * SPLIT + j, each + {r * keys}, {4 * keys});" for r in range(rows))
        yield "    }"
        yield "}"

    def _whole_scores(self, rows: int) -> Iterator[str]:
        """The same in whole numbers: bytes of a key, 128 too high, by high and low bytes of q; exact in a lane."""
        keys, at_once = 16 // rows, 2 if rows == 4 else 4
        yield f"static void row_scores_{rows}({_SCORES}) {{"
        yield f"    for (long j = 0; j < count; j += {keys}) {{"
        yield "        floats all[16];"
        pairs = [(r, i) for r in range(rows) for i in range(at_once)]
        for first in range(0, keys, at_once):
            yield "        {"
            for i in range(at_once):
                yield f"        const element *k{i} = k + (j + {first + i} < count ? j + {first + i} : count - 1) * by;"
            for r, i in pairs:
                for part in "hl":
                    start = f"WHOLE_START(q + {r} * Q_ROW, {int(part == 'l')})"
                    yield f"        ints {part}_{r}_{i} = load_ints({start});"
            yield f"        for (long d = 0; d < {self.spec.size}; d += 64) {{"
            yield from (f"            const bytes64 x{i} = raised(load_bytes(k{i} + d));" for i in range(at_once))
            for r in range(rows):
                for part in "hl":
                    codes = f"WHOLE_CODES(q + {r} * Q_ROW, {int(part == 'l')}) + d"
                    yield f"            const ints {part}{r} = load_ints({codes});"
                    for i in range(at_once):
                        name = f"{part}_{r}_{i}"
                        yield f"            {name} = dot_wide({name}, x{i}, {part}{r});"
            for i in range(at_once):
                key = f"(j + {first + i}) * by + d"
                yield f"            if (v) prefetch_far(v + {key});"
                yield f"            if (ahead) prefetch_far(k + {AHEAD} * by + {key});"
            yield "        }"
            for r, i in pairs:
                whole = f"add_ints(mul_ints(h_{r}_{i}, set_ints(256)), l_{r}_{i})"
                yield f"        all[{r * keys + first + i}] = to_floats({whole});"
            yield "        }"
        yield from self._stored_scores(rows)

    def _asked(self, keys: int, first: int) -> Iterator[str]:
        """Asks for the values of some keys, and for later keys where nobody has.

        A few lines at a time, while scores are summed: a burst would wait for the misses that a core can have.
        """
        each = max(1, keys * BYTES[self.spec.cache] // 4)
        for i in range(each):
            key = f"{first} + d / 16 % {keys // each} * {each} + {i}"
            yield f"if (v) prefetch_far(v + (j + {key}) * by + d);"
            yield f"if (ahead) prefetch_far(k + (j + {AHEAD} + {key}) * by + d);"

    def _row_values(self, rows: int) -> Iterator[str]:
        """`row_values_R(...)`: R rows of weights by the values of a split; asks for the keys of the next one."""
        at_once = (16 if self._wide else 4) // rows
        vectors = -(-self.spec.size // 16)
        yield f"static void row_values_{rows}({_VALUES}) {{"
        for first in range(0, vectors, at_once):
            some = range(first, min(first + at_once, vectors))
            yield "    {"
            for r in range(rows):
                yield from (f"    floats o_{r}_{i} = zero_floats();" for i in some)
            yield "    for (long j = 0; j < count; j++) {"
            yield "        const element *x = v + j * by;"
            for i in some:
                load = f"load_cached(x + {16 * i})" if 16 * i + 16 <= self.spec.size else f"cached({16 * i}, x)"
                yield f"        const floats v{i} = {load};"
            for r in range(rows):
                yield f"        {{ const floats w = set_floats(s[{r} * SPLIT + j]);"
                yield from (f"          o_{r}_{i} = fma_(w, v{i}, o_{r}_{i});" for i in some)
                yield "        }"
            if lines := self._lines(16 * some.start, 16 * some.stop):
                asked = " ".join(f"prefetch_far((const char *)(next + j * by) + {line});" for line in lines)
                yield f"        if (next) {{ {asked} }}"
            yield "    }"
            for r in range(rows):
                yield from (f"    store_floats(to + {r} * PART + {16 * i}, o_{r}_{i}, 16);" for i in some)
            yield "    }"
        yield "}"

    def _lines(self, first: int, last: int) -> list[int]:
        """Bytes at which cache lines of values `first` to `last` of a head begin."""
        size = BYTES[self.spec.cache]
        return [at for at in range(0, self.spec.size * size, 64) if first * size <= at < last * size]

    def _by_rows(self) -> Iterator[str]:
        """`row_scores` and `row_values` of any number of rows; what is asked for is asked for once."""
        yield f"static void row_scores(int64_t rows, {_SCORES}) {{"
        yield from self._each("row_scores_{n}(q + r * Q_ROW, k, r ? 0 : v, r ? 0 : ahead, by, count, s + r * SPLIT);")
        yield "}"
        yield f"static void row_values(int64_t rows, {_VALUES}) {{"
        yield from self._each("row_values_{n}(s + r * SPLIT, v, r ? 0 : next, by, count, to + r * PART);")
        yield "}"

    def _each(self, call: str) -> Iterator[str]:
        yield "    int64_t r = 0;"
        for n in self._row_counts:
            yield f"    for (; r + {n} <= rows; r += {n}) {call.format(n=n)}"

    # Many rows

    def _tile_scores(self, vectors: int) -> Iterator[str]:
        """`tile_scores_V(...)`: V vectors of rows by KEY_ROWS keys."""
        yield from self._tile_head(f"tile_scores_{vectors}", vectors, "const float *q, const float *k, float *s")
        yield f"    for (long d = 0; d < SIZE; d++, q += {16 * vectors}) {{"
        yield from (f"        const floats x{c} = load_f32(q + {16 * c});" for c in range(vectors))
        yield from self._products(vectors, "k[{i} * PITCH + d]")
        yield "    }"
        for i in range(self.schedule.key_rows):
            yield from (f"    store_floats(s + {16 * (i * vectors + c)}, a_{i}_{c}, 16);" for c in range(vectors))
        yield "}"

    def _tile_values(self, vectors: int) -> Iterator[str]:
        """`tile_values_V(...)`: weights of V vectors of rows by VALUE_ROWS values of a head."""
        names = "const float *s, const float *v, float *o, const float *factor, long count"
        yield from self._tile_head(f"tile_values_{vectors}", vectors, names)
        yield f"    for (long j = 0; j < count; j++, s += {16 * vectors}, v += PITCH) {{"
        yield from (f"        const floats x{c} = load_f32(s + {16 * c});" for c in range(vectors))
        yield from self._products(vectors, "v[{i}]")
        yield "    }"
        yield from (f"    const floats f{c} = load_f32(factor + {16 * c});" for c in range(vectors))
        for i in range(self.schedule.key_rows):
            for c in range(vectors):
                at = f"o + {16 * (i * vectors + c)}"
                yield f"    store_floats({at}, fma_(load_f32({at}), f{c}, a_{i}_{c}), 16);"
        yield "}"

    def _tile_head(self, name: str, vectors: int, names: str) -> Iterator[str]:
        yield f"static void {name}({names}) {{"
        for i in range(self.schedule.key_rows):
            yield from (f"    floats a_{i}_{c} = zero_floats();" for c in range(vectors))

    def _products(self, vectors: int, number: str) -> Iterator[str]:
        for i in range(self.schedule.key_rows):
            yield f"        {{ const floats y = set_floats({number.format(i=i)});"
            yield from (f"          a_{i}_{c} = fma_(y, x{c}, a_{i}_{c});" for c in range(vectors))
            yield "        }"

    def _by_vectors(self) -> Iterator[str]:
        """`tile_scores` and `tile_values` of a number of vectors."""
        for name, names in (
            ("tile_scores", "const float *q, const float *k, float *s"),
            ("tile_values", "const float *s, const float *v, float *o, const float *factor, long count"),
        ):
            passed = ", ".join(part.split()[-1].lstrip("*") for part in names.split(","))
            yield f"static void {name}(long vectors, {names}) {{"
            for v in range(1, self.schedule.vectors + 1):
                yield f"    if (vectors == {v}) {name}_{v}({passed});"
            yield "}"


def _header(name: str) -> str:
    return (C_FOLDER / name).read_text()
