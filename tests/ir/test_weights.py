"""The weight store: any tensor comes back from its file to the bit, and no damaged file gets past the header."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from qcc.ir.errors import BadInput
from qcc.ir.types import ELEMENTS, Element
from qcc.ir.weights import WeightStore, locate
from tests.ir.helpers import same_array

STORED = [row for row in ELEMENTS if row.schema != "string"]
NATIVE = [row for row in STORED if row.safetensors and row.numpy.isbuiltin == 1]


def sample(dtype: np.dtype[np.generic], shape: tuple[int, ...] = (3, 5)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, shape).astype(np.float32).astype(dtype)


def store_of(**arrays: np.ndarray) -> WeightStore:
    store = WeightStore()
    for name, array in arrays.items():
        store[name] = array
    return store


def saved(path: Path, **arrays: np.ndarray) -> Path:
    file = path / "weights.safetensors"
    store_of(**arrays).save(file)
    return file


def all_kinds() -> dict[str, np.ndarray]:
    return {row.schema: sample(row.numpy, (index % 3 + 1, 5)) for index, row in enumerate(STORED)}


def test_every_element_type_comes_back_mapped(tmp_path: Path) -> None:
    arrays = all_kinds()
    again = WeightStore.open(saved(tmp_path, **arrays))
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        assert same_array(again[name], array)
        assert isinstance(again[name], np.memmap)
        assert not again[name].flags.writeable


def test_narrow_codes_keep_their_values(tmp_path: Path) -> None:
    codes = np.arange(-8, 8, dtype=np.int8).astype(ml_dtypes.int4)
    again = WeightStore.open(saved(tmp_path, codes=codes))["codes"]
    np.testing.assert_array_equal(again.astype(np.int8), np.arange(-8, 8))


def test_the_safetensors_package_reads_the_same_file(tmp_path: Path) -> None:
    arrays = {row.schema: sample(row.numpy) for row in NATIVE}
    file = saved(tmp_path, **arrays)
    found = safetensors.numpy.load_file(file)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert same_array(found[name], array)


def test_the_safetensors_package_accepts_every_header(tmp_path: Path) -> None:
    file = saved(tmp_path, **all_kinds())
    with safetensors.safe_open(file, "np") as opened:
        assert set(opened.keys()) == {row.schema for row in STORED}
        assert list(opened.metadata()) == ["qcc.raw"]
        assert opened.get_slice("float8e4m3fn").get_dtype() == "F8_E4M3"


def test_a_file_of_the_safetensors_package_is_read(tmp_path: Path) -> None:
    arrays = {
        "a": sample(np.dtype(np.float32)),
        "b": sample(np.dtype(np.int8), (7,)),
        "c": sample(np.dtype(np.float64)),
    }
    file = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(arrays, file, metadata={"format": "pt"})
    store = WeightStore.open(file)
    for name, array in arrays.items():
        assert same_array(store[name], array)


def test_located_bytes_are_those_of_the_tensor(tmp_path: Path) -> None:
    arrays = all_kinds()
    file = saved(tmp_path, **arrays)
    extents = locate(file)
    content = file.read_bytes()
    assert set(extents) == set(arrays)
    for name, array in arrays.items():
        extent = extents[name]
        assert content[extent.offset : extent.offset + extent.length] == array.tobytes()
        assert extent.offset % array.dtype.itemsize == 0


@given(st.dictionaries(st.text(max_size=8).filter(lambda s: s != "__metadata__"), st.integers(0, 70), max_size=4))
def test_any_names_and_sizes_come_back(tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, int]) -> None:
    dtypes = [np.float64, np.float32, np.float16, np.int8]
    arrays = {name: np.arange(size).astype(dtypes[i % 4]) for i, (name, size) in enumerate(sizes.items())}
    file = tmp_path_factory.mktemp("store") / "weights.safetensors"
    store = WeightStore()
    for name, array in arrays.items():
        store[name] = array
    store.save(file)
    again = WeightStore.open(file)
    assert set(again) == set(arrays)
    assert all(same_array(again[name], array) for name, array in arrays.items())
    assert all(extent.offset % arrays[name].dtype.itemsize == 0 for name, extent in locate(file).items())


def test_shapes_without_elements_and_without_axes_come_back(tmp_path: Path) -> None:
    arrays = {"none": np.empty((0, 4), np.float32), "scalar": np.float32(3).reshape(())}
    again = WeightStore.open(saved(tmp_path, **arrays))
    assert again["none"].shape == (0, 4)
    assert same_array(again["scalar"], arrays["scalar"])


def test_strided_arrays_are_saved_in_order(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    again = WeightStore.open(saved(tmp_path, transposed=array.T, column=array[:, 1]))
    np.testing.assert_array_equal(again["transposed"], array.T)
    np.testing.assert_array_equal(again["column"], [1, 5, 9])


def test_store_of_nothing_comes_back(tmp_path: Path) -> None:
    assert len(WeightStore.open(saved(tmp_path))) == 0
    assert locate(tmp_path / "weights.safetensors") == {}


def test_a_file_saved_twice_is_the_same(tmp_path: Path) -> None:
    first = saved(tmp_path, b=sample(np.dtype(np.int8)), a=sample(np.dtype(np.int8))).read_bytes()
    assert saved(tmp_path, a=sample(np.dtype(np.int8)), b=sample(np.dtype(np.int8))).read_bytes() == first


def file_with(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = path / "bad.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "header",
    [
        entry(dtype="F99"),
        entry(dtype=None),
        entry(dtype=["F32"]),
        entry(shape=[3]),
        entry(shape=[-1, -2]),
        entry(shape=[2.0]),
        entry(shape="ab"),
        entry(shape=None),
        entry(offsets=[0, 9]),
        entry(offsets=[8, 0]),
        entry(offsets=[-8, 0]),
        entry(offsets=[4, 12]),
        entry(offsets=[0]),
        entry(offsets="08"),
        entry(offsets=[0.0, 8.0]),
        entry(offsets={}),
        {"t": {}},
        {"t": 3},
        {"t": None},
        {"__metadata__": 3},
        {"__metadata__": {"qcc.raw": "{"}},
        {"__metadata__": {"qcc.raw": "[]"}, **entry()},
        {"__metadata__": {"qcc.raw": '{"t": 1}'}, **entry()},
        {"__metadata__": {"qcc.raw": '{"t": ["int5", [8]]}'}, **entry()},
        {"__metadata__": {"qcc.raw": '{"t": ["int4", [9]]}'}, **entry()},
    ],
)
def test_header_that_does_not_fit_is_refused(tmp_path: Path, header: object) -> None:
    file = file_with(tmp_path, header, bytes(8))
    for read in (WeightStore.open, locate):
        with pytest.raises(BadInput, match=r"bad\.safetensors: tensor '.*' does not fit the file"):
            read(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        bytes(8),
        bytes(100),
        b"\xff" * 100,
        (50).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{x",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        b"PK\x03\x04" + bytes(60),
    ],
)
def test_file_that_is_no_store_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    for read in (WeightStore.open, locate):
        with pytest.raises(BadInput, match=r"bad\.safetensors: not a safetensors file"):
            read(file)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a safetensors file"):
        WeightStore.open(tmp_path / "none")


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, a=sample(np.dtype(np.float32)), b=sample(np.dtype(np.int8)))
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(BadInput):
            WeightStore.open(file)


def test_missing_name_is_named() -> None:
    with pytest.raises(BadInput, match="weight 'w' is not in the weight store"):
        WeightStore()["w"]


def test_taken_names_get_a_number() -> None:
    store, one = WeightStore(), np.ones(1)
    assert [store.add("w", one) for _ in range(3)] == ["w", "w.1", "w.2"]
    assert store.add("w.1", one) == "w.1.1"


def test_copy_is_another_store_of_the_same_arrays() -> None:
    store = store_of(a=np.ones(2), b=np.zeros(3))
    other = store.copy()
    other.keep({"a"})
    other["c"] = np.ones(1)
    assert (set(store), set(other)) == ({"a", "b"}, {"a", "c"})
    assert other["a"] is store["a"]
    del store["a"]
    assert ("a" in store, "a" in other) == (False, True)
    assert store.bytes == 24


MIB = 1 << 20


def spilling(folder: Path, limit: int) -> WeightStore:
    store = WeightStore()
    store.spill_to(folder, limit)
    return store


def is_mapped(array: np.ndarray) -> bool:
    return isinstance(array, np.memmap)


def test_what_does_not_fit_is_mapped_and_leaves_no_file(tmp_path: Path) -> None:
    store = spilling(tmp_path / "spill", 3 * MIB)
    arrays = {f"w{i}": np.random.default_rng(i).integers(-8, 8, (MIB,)).astype(np.int8) for i in range(5)}
    for name, array in arrays.items():
        store[name] = array
    assert [is_mapped(store[name]) for name in arrays] == [False, False, False, True, True]
    assert (store.bytes, store.bytes_in_memory) == (5 * MIB, 3 * MIB)
    assert list((tmp_path / "spill").iterdir()) == []
    for name, array in arrays.items():
        assert same_array(store[name], array)
    store.release_pages()
    assert same_array(store["w4"], arrays["w4"])
    with pytest.raises(ValueError, match="read-only"):
        store["w4"][0] = 1


@pytest.mark.parametrize("row", STORED, ids=lambda row: row.schema)
def test_every_element_type_spills(row: Element, tmp_path: Path) -> None:
    array = sample(row.numpy, (2 * MIB // row.numpy.itemsize, 1))[::2]
    store = spilling(tmp_path, 0)
    store["w"] = array
    assert is_mapped(store["w"])
    assert same_array(store["w"], array)


def test_small_tensors_and_mapped_ones_do_not_spill(tmp_path: Path) -> None:
    big = np.ones(MIB // 4, np.float32)
    mapped = WeightStore.open(saved(tmp_path, w=big))["w"]
    store = spilling(tmp_path, 0)
    store["small"] = np.ones(MIB - 1, np.int8)
    store["view"] = np.asarray(mapped)[10:]
    assert not is_mapped(store["small"])
    assert np.shares_memory(store["view"], mapped)
    store["sum"] = mapped + 1  # a memmap by its type, but in memory
    assert is_mapped(store["sum"])
    assert store.bytes_in_memory == MIB - 1


def test_forgotten_and_replaced_tensors_make_room(tmp_path: Path) -> None:
    one = np.ones(MIB, np.int8)
    store = spilling(tmp_path, 2 * MIB)
    store["a"], store["b"] = one, one + 1
    store["b"] = one + 2  # takes the place of what was there
    assert not is_mapped(store["b"])
    del store["a"]
    store["c"] = one + 3
    assert not is_mapped(store["c"])
    store["d"] = one + 4
    assert is_mapped(store["d"])
    store.keep({"d"})
    assert store.bytes_in_memory == 0
    assert [is_mapped(store[store.add("d", one + i)]) for i in range(3)] == [False, False, True]
    assert list(store) == ["d", "d.1", "d.2", "d.3"]


def test_copies_share_the_limit(tmp_path: Path) -> None:
    one = np.ones(MIB, np.int8)
    store = spilling(tmp_path, 2 * MIB)
    store["a"] = one
    other = store.copy()
    other["b"] = one + 1  # `a` counts once
    assert not is_mapped(other["b"])
    store["c"] = one + 2
    assert is_mapped(store["c"])
    del other
    store["d"] = one + 3
    assert not is_mapped(store["d"])


def test_what_a_store_holds_already_spills_too(tmp_path: Path) -> None:
    store = store_of(a=np.ones(MIB, np.int8), b=np.ones(3 * MIB, np.int8), c=np.ones(2 * MIB, np.int8))
    store.spill_to(tmp_path, 3 * MIB)
    assert list(store) == ["a", "b", "c"]
    assert [name for name in store if is_mapped(store[name])] == ["b"]
    assert store.bytes_in_memory == 3 * MIB


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = spilling(tmp_path / "file" / "spill", 0)
    store["w"] = np.ones(4, np.int8)
    with pytest.raises(BadInput, match=r"weight 'w': its 1048576 bytes cannot be written to .*spill"):
        store["w"] = np.ones(MIB, np.int8)
    assert store["w"].size == 4


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="needs madvise")
def test_changes_of_a_private_mapping_outlive_released_pages(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(MIB))
    private = np.memmap(tmp_path / "data", np.uint8, "c")
    private[0] = 7
    store = store_of(w=private)
    store.release_pages()
    assert store["w"][0] == 7
