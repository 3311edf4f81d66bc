"""Samples: what is read from files is what the model takes, or the error names the file, the key and what was wrong."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qcc.frontend.images import ImageOptions
from qcc.frontend.samples import InputSpec, hash_samples, load_samples, random_samples
from qcc.ir.errors import BadInput, MissingExtra, NotSupported

Dim = int | str | None


def spec(name: str, *shape: Dim, dtype: Any = np.float32) -> InputSpec:
    return InputSpec(name, shape, np.dtype(dtype))


def ramp(*shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


class TestOneArchive:
    def test_an_open_batch_is_cut_into_rows(self, archive: Path) -> None:
        x = ramp(5, 3)
        np.savez(archive, x=x, labels=np.arange(5))
        samples = load_samples(archive, [spec("x", "n", 3)])
        assert [set(sample) for sample in samples] == [{"x"}] * 5
        assert np.array_equal(np.concatenate([sample["x"] for sample in samples]), x)
        assert samples[0]["x"].shape == (1, 3)
        assert samples[0]["x"].base is None, "a view would keep the whole file in memory"

    def test_a_fixed_batch_is_cut_into_runs(self, archive: Path) -> None:
        x = ramp(6, 3)
        np.savez_compressed(archive, x=x)
        samples = load_samples(archive, [spec("x", 2, 3)])
        assert [sample["x"].tolist() for sample in samples] == [x[0:2].tolist(), x[2:4].tolist(), x[4:6].tolist()]

    def test_an_axis_more_than_the_input_stacks_samples(self, archive: Path) -> None:
        np.savez(archive, x=ramp(4, 2, 3), s=ramp(4))
        samples = load_samples(archive, [spec("x", 2, 3), spec("s")])
        assert np.array_equal(samples[3]["x"], ramp(4, 2, 3)[3])
        assert samples[3]["s"].shape == ()
        assert samples[3]["s"] == 3
        assert len(samples) == 4

    def test_an_array_of_a_fixed_batch_is_given_to_every_sample(self, archive: Path) -> None:
        np.savez(archive, x=ramp(3, 2), table=ramp(4, 2), scale=np.float32(7))
        samples = load_samples(archive, [spec("x", None, 2), spec("table", 4, 2), spec("scale")])
        assert len(samples) == 3
        assert all(np.array_equal(sample["table"], ramp(4, 2)) and sample["scale"] == 7 for sample in samples)

    def test_the_limit_is_kept(self, archive: Path) -> None:
        np.savez(archive, x=ramp(200, 1))
        assert len(load_samples(archive, [spec("x", "n", 1)])) == 128
        assert [float(s["x"][0, 0]) for s in load_samples(archive, [spec("x", "n", 1)], limit=2)] == [0, 1]

    @pytest.mark.parametrize(
        ("given", "taken"),
        [
            (np.float64, np.float32),
            (np.float32, np.float16),
            (np.float32, ml_dtypes.bfloat16),
            (np.int32, np.int64),
            (np.int64, np.int32),
            (np.uint8, np.float32),
            (np.bool_, np.int64),
            (">f4", np.float32),
        ],
    )
    def test_values_that_survive_are_cast(self, archive: Path, given: Any, taken: Any) -> None:
        np.savez(archive, x=np.array([[0, 1]], given))
        (sample,) = load_samples(archive, [spec("x", "n", 2, dtype=taken)])
        assert sample["x"].dtype == np.dtype(taken)
        assert sample["x"].astype(np.float64).tolist() == [[0, 1]]

    def test_infinities_of_a_mask_are_kept(self, archive: Path) -> None:
        np.savez(archive, x=np.array([[0, -np.inf]]))
        assert load_samples(archive, [spec("x", 1, 2)])[0]["x"].tolist() == [[0, -np.inf]]


@pytest.mark.parametrize(
    ("arrays", "inputs", "said"),
    [
        ({"y": ramp(2, 3)}, [spec("x", "n", 3)], "no key 'x'; the file holds 'y'"),
        ({}, [spec("x", "n", 3)], "no key 'x'; the file holds no keys"),
        ({"x": ramp(3)}, [spec("x", "n", 3)], r"key 'x': expected 'x' float32\[n, 3\], got float32\[3\]"),
        ({"x": ramp(1, 1, 2, 3)}, [spec("x", "n", 3)], r"expected 'x' float32\[n, 3\], got float32\[1, 1, 2, 3\]"),
        ({"x": ramp(2, 4)}, [spec("x", None, 3)], r"expected 'x' float32\[\?, 3\], got float32\[1, 4\]"),
        ({"x": ramp(5, 2, 4)}, [spec("x", 2, 3)], r"expected 'x' float32\[2, 3\], got float32\[2, 4\]"),
        ({"x": ramp(5, 3)}, [spec("x", 2, 3)], "5 along the first axis do not fill batches of 2"),
        ({"x": ramp(0, 3)}, [spec("x", "n", 3)], r"key 'x' is empty: shape \(0, 3\)"),
        ({"x": ramp(2, 3, dtype=np.int64)}, [spec("x", "n", 3)], r"expected 'x' float32\[n, 3\], got int64\[1, 3\]"),
        ({"x": ramp(2, 3)}, [spec("x", "n", 3, dtype=np.int64)], r"expected 'x' int64\[n, 3\], got float32"),
        ({"x": ramp(2, 3).astype(str)}, [spec("x", "n", 3)], r"expected 'x' float32\[n, 3\], got str"),
        ({"x": ramp(2, 3) * 1j}, [spec("x", "n", 3)], "got complex"),
        ({"x": np.array([[2**40]])}, [spec("x", "n", 1, dtype=np.int32)], "values that int32 cannot: 1099511627776"),
        ({"x": np.array([[-1]])}, [spec("x", "n", 1, dtype=np.uint8)], "values that uint8 cannot: -1"),
        ({"x": np.array([[1e39]])}, [spec("x", "n", 1)], r"values that float32 cannot: 1e\+39"),
        ({"x": np.array([[1.0, np.nan]])}, [spec("x", "n", 2)], "key 'x' holds 1 NaN"),
        ({"x": ramp(3, 1), "y": ramp(2, 1)}, [spec("x", "n", 1), spec("y", "n", 1)], "key 'y' gives 2 samples .* 3"),
        ({"x": ramp(3, 1), "y": ramp(1, 1)}, [spec("x", "n", 1), spec("y", "n", 1)], "key 'y' gives 1 samples .* 3"),
        (
            {"x": ramp(1, 4), "y": ramp(1, 5)},
            [spec("x", "n", "seq"), spec("y", "n", "seq")],
            r"dimension 'seq' is 4 in input 'x' float32\[n, seq\] and 5 in input 'y'",
        ),
        ({"x": np.array([{"a": 1}])}, [spec("x", "n")], "key 'x' cannot be read: Object arrays"),
    ],
)
def test_what_does_not_fit_is_refused(
    archive: Path, arrays: dict[str, NDArray[Any]], inputs: list[InputSpec], said: str
) -> None:
    np.savez(archive, **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match=said) as error:
        load_samples(archive, inputs)
    assert str(archive) in str(error.value)


class TestBrokenArchives:
    def test_a_pickle_is_never_run(self, archive: Path) -> None:
        np.savez(archive, x=np.array([_Trap()], object))
        with pytest.raises(BadInput, match="allow_pickle=False"):
            load_samples(archive, [spec("x", "n")])
        assert not _Trap.sprung

    @pytest.mark.parametrize("keep", [0, 10, 100, -30])
    def test_a_truncated_file(self, archive: Path, keep: int) -> None:
        np.savez(archive, x=ramp(50, 3))
        archive.write_bytes(archive.read_bytes()[:keep])
        with pytest.raises(BadInput, match=r"data\.npz: empty, truncated or not an \.npz file"):
            load_samples(archive, [spec("x", "n", 3)])

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_any_damaged_byte_is_an_error_or_harmless(self, archive: Path, save: Any) -> None:
        save(archive, x=ramp(4, 3))
        whole = archive.read_bytes()
        refused = 0
        for position in range(len(whole)):
            archive.write_bytes(whole[:position] + bytes([whole[position] ^ 0x15]) + whole[position + 1 :])
            try:
                load_samples(archive, [spec("x", "n", 3)])
            except BadInput as error:
                refused += 1
                assert str(archive) in str(error)
        assert refused > len(whole) / 2

    def test_a_member_that_is_no_array(self, archive: Path) -> None:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("x.npy", "hello")
        with pytest.raises(BadInput, match="key 'x' is not an array"):
            load_samples(archive, [spec("x", "n")])

    def test_a_plain_npy(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", ramp(3))
        with pytest.raises(BadInput, match=r"x\.npy: empty, truncated or not an \.npz"):
            load_samples(tmp_path / "x.npy", [spec("x", "n")])

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"none\.npz: no such file or folder"):
            load_samples(tmp_path / "none.npz", [spec("x", "n")])


class _Trap:
    """Unpickling this is noticed."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (_Trap, "sprung", True))


def test_usage_that_cannot_be(archive: Path) -> None:
    np.savez(archive, x=ramp(2))
    with pytest.raises(BadInput, match="limit of 0"):
        load_samples(archive, [spec("x", "n")], limit=0)
    with pytest.raises(BadInput, match="no inputs"):
        load_samples(archive, [])
    with pytest.raises(NotSupported, match="takes strings"):
        load_samples(archive, [spec("x", "n", dtype=object)])


class TestFolderOfArchives:
    def test_each_file_is_one_sample_in_order_of_names(self, tmp_path: Path) -> None:
        for name, length in (("b", 2), ("a", 5), ("c", 1)):
            np.savez(tmp_path / f"{name}.npz", tokens=ramp(length, dtype=np.int64))
        (tmp_path / "README.txt").write_text("not data")
        (tmp_path / ".hidden.npz").write_text("not data")
        samples = load_samples(tmp_path, [spec("tokens", "length", dtype=np.int64)])
        assert [sample["tokens"].size for sample in samples] == [5, 2, 1]
        assert len(load_samples(tmp_path, [spec("tokens", "length", dtype=np.int64)], limit=2)) == 2

    def test_a_sample_is_not_cut(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=ramp(5, 3))
        with pytest.raises(BadInput, match=r"a\.npz: key 'x': expected 'x' float32\[2, 3\], got float32\[5, 3\]"):
            load_samples(tmp_path, [spec("x", 2, 3)])

    def test_each_file_must_agree_with_itself(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=ramp(5), y=ramp(5))
        np.savez(tmp_path / "b.npz", x=ramp(5), y=ramp(4))
        with pytest.raises(BadInput, match=r"b\.npz: dimension 'n' is 5"):
            load_samples(tmp_path, [spec("x", "n"), spec("y", "n")])

    def test_a_folder_without_data_or_with_two_kinds(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"holds neither \.npz files nor images"):
            load_samples(tmp_path, [spec("x", "n")])
        np.savez(tmp_path / "a.npz", x=ramp(5))
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
        with pytest.raises(BadInput, match=r"holds both \.npz files and images"):
            load_samples(tmp_path, [spec("x", "n")])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four images of one color each, one a format; red is 255, 204, 153, 102 in the order of names."""
    for index, suffix in enumerate(["bmp", "png", "jpg", "webp"]):
        image = Image.new("RGB", (8, 6), (255 - 51 * index, 51, 0))
        image.save(tmp_path / f"{index}.{suffix}", **({"quality": 100} if suffix != "webp" else {"lossless": True}))
    return tmp_path


class TestFolderOfImages:
    def test_pixels_are_scaled_and_channels_come_first(self, pictures: Path) -> None:
        samples = load_samples(pictures, [spec("image", "n", 3, 4, 5)])
        assert [sample["image"].shape for sample in samples] == [(1, 3, 4, 5)] * 4
        assert samples[0]["image"].dtype == np.float32
        reds = [float(sample["image"][0, 0].mean()) for sample in samples]
        assert reds == pytest.approx([1.0, 0.8, 0.6, 0.4], abs=0.01)
        assert samples[0]["image"][0, :, 3, 4].tolist() == pytest.approx([1.0, 0.2, 0.0])

    def test_mean_std_and_order_follow_the_channels_of_the_model(self, pictures: Path) -> None:
        options = ImageOptions(mean=(0.5, 0.0, 0.25), std=(0.5, 0.1, 0.25), order="bgr")
        (sample,) = load_samples(pictures, [spec("image", 1, 4, 5, 3)], limit=1, image=options)
        assert sample["image"][0, 2, 2].tolist() == pytest.approx([-1.0, 2.0, 3.0])

    def test_resizing_is_bilinear_in_the_right_order_of_axes(self, tmp_path: Path) -> None:
        pixels = np.tile(np.arange(8, dtype=np.uint8) * 20, (4, 1))
        Image.fromarray(pixels).save(tmp_path / "a.png")
        (sample,) = load_samples(tmp_path, [spec("image", 1, 1, 2, 4, dtype=np.uint8)])
        assert sample["image"].shape == (1, 1, 2, 4)
        assert np.abs(sample["image"][0, 0].astype(int) - [10, 50, 90, 130]).max() <= 5

    def test_one_channel_is_gray(self, pictures: Path) -> None:
        (sample,) = load_samples(pictures, [spec("image", None, 1, 2, 2)], limit=1)
        assert sample["image"].ravel().tolist() == pytest.approx([(0.299 * 255 + 0.587 * 51) / 255] * 4, abs=0.005)

    def test_alpha_and_palettes_are_read(self, tmp_path: Path) -> None:
        Image.new("RGBA", (2, 2), (255, 0, 0, 7)).save(tmp_path / "a.png")
        Image.new("RGB", (2, 2), (255, 0, 0)).convert("P").save(tmp_path / "b.png")
        for sample in load_samples(tmp_path, [spec("image", 1, 3, 1, 1)]):
            assert sample["image"].ravel().tolist() == [1, 0, 0]

    def test_a_fixed_batch_takes_as_many_images(self, pictures: Path) -> None:
        samples = load_samples(pictures, [spec("image", 2, 3, 4, 4)])
        assert [sample["image"].shape[0] for sample in samples] == [2, 2]
        assert samples[1]["image"][0, 0, 0, 0] == pytest.approx(0.6, abs=0.01)
        assert len(load_samples(pictures, [spec("image", 2, 3, 4, 4)], limit=1)) == 1
        with pytest.raises(BadInput, match="4 along the first axis do not fill batches of 3"):
            load_samples(pictures, [spec("image", 3, 3, 4, 4)])

    def test_open_sizes_come_from_the_options(self, pictures: Path) -> None:
        options = ImageOptions(height=3, width=7)
        (sample,) = load_samples(pictures, [spec("image", 1, 3, "h", None)], limit=1, image=options)
        assert sample["image"].shape == (1, 3, 3, 7)
        with pytest.raises(BadInput, match="leaves the width of images open"):
            load_samples(pictures, [spec("image", 1, 3, "h", None)], image=ImageOptions(height=3))
        with pytest.raises(BadInput, match=r"dimension 's' is 3 in input .* and 7 in input"):
            load_samples(pictures, [spec("image", 1, 3, "s", "s")], image=options)

    @pytest.mark.parametrize(
        ("inputs", "options", "said"),
        [
            ([spec("a", 1, 3, 4, 4), spec("b", 1)], ImageOptions(), r"one input, this has 'a' .*'b' float32\[1\]"),
            ([spec("a", 1, 12)], ImageOptions(), r"images cannot feed input 'a' float32\[1, 12\]"),
            ([spec("a", 1, 3, 4, 4, dtype=np.int64)], ImageOptions(), "images cannot feed input 'a' int64"),
            ([spec("a", 1, 4, 4, 4)], ImageOptions(), "neither 1 nor 3 channels"),
            ([spec("a", 1, None, 4, None)], ImageOptions(), "neither 1 nor 3 channels"),
            ([spec("a", 1, 3, 4, 4)], ImageOptions(height=5), "cannot take an image height of 5"),
            ([spec("a", 1, 3, "h", 4)], ImageOptions(height=0), "cannot take an image height of 0"),
            ([spec("a", 1, 3, 4, 4)], ImageOptions(mean=(0.5, 0.5)), "mean has 2 values for 3 channels"),
            ([spec("a", 1, 1, 4, 4)], ImageOptions(std=(1, 1, 1)), "std has 3 values for 1 channels"),
            ([spec("a", 1, 3, 4, 4)], ImageOptions(std=(0.2, 0, 0.2)), "std of 0"),
            ([spec("a", 1, 3, 4, 4)], ImageOptions(order="grb"), "order 'grb'"),  # pyright: ignore[reportArgumentType]
            ([spec("a", 1, 3, 4, 4, dtype=np.uint8)], ImageOptions(mean=(0.5,)), "takes raw pixels"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, pictures: Path, inputs: list[InputSpec], options: ImageOptions, said: str
    ) -> None:
        with pytest.raises(BadInput, match=said):
            load_samples(pictures, inputs, image=options)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
    @pytest.mark.parametrize("keep", [0, 5, 40])
    def test_an_unreadable_image_is_named(self, tmp_path: Path, suffix: str, keep: int) -> None:
        file = tmp_path / f"a.{suffix}"
        Image.fromarray(ramp(16, 16, dtype=np.uint8)).convert("RGB").save(file)
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(BadInput, match=rf"a\.{suffix}: the image cannot be read"):
            load_samples(tmp_path, [spec("image", 1, 3, 4, 4)])

    def test_another_format_under_the_name_of_an_image(self, tmp_path: Path) -> None:
        Image.new("RGB", (2, 2)).save(tmp_path / "a.png", format="TIFF")
        with pytest.raises(BadInput, match=r"a\.png: the image cannot be read"):
            load_samples(tmp_path, [spec("image", 1, 3, 4, 4)])

    def test_deep_images_are_refused_where_pillow_would_clip_them(self, tmp_path: Path) -> None:
        Image.fromarray(ramp(4, 4, dtype=np.uint16) * 4000).save(tmp_path / "a.png")
        with pytest.raises(BadInput, match=r"a\.png: more than 8 bits a channel \(mode I;16\)"):
            load_samples(tmp_path, [spec("image", 1, 1, 4, 4)])

    def test_an_image_too_large_to_be_honest(self, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(BadInput, match="the image cannot be read: Image size"):
            load_samples(pictures, [spec("image", 1, 3, 4, 4)])

    def test_without_pillow_the_extra_is_named(self, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(MissingExtra, match=r'pip install "qcc\[images\]"'):
            load_samples(pictures, [spec("image", 1, 3, 4, 4)])


class TestRandomSamples:
    def test_the_seed_decides(self) -> None:
        inputs = [spec("x", "n", 3), spec("ids", "n", "seq", dtype=np.int64)]
        one, same, other = (random_samples(inputs, count=3, seed=s, bounds={"ids": 1000}) for s in (1, 1, 2))
        assert hash_samples(one) == hash_samples(same) != hash_samples(other)
        assert len(one) == 3
        assert not np.array_equal(one[0]["x"], one[1]["x"])

    def test_values_by_dtype(self) -> None:
        inputs = [
            spec("x", 100, 100),
            spec("half", 9, dtype=ml_dtypes.bfloat16),
            spec("ids", 5000, dtype=np.int32),
            spec("mask", 2, 7, dtype=np.int64),
            spec("on", 3, dtype=np.bool_),
            spec("scalar"),
        ]
        (sample,) = random_samples(inputs, count=1, seed=0, bounds={"ids": 7})
        assert [sample[i.name].dtype for i in inputs] == [i.dtype for i in inputs]
        assert abs(float(sample["x"].mean())) < 0.05
        assert abs(float(sample["x"].std()) - 1) < 0.05
        assert np.unique(sample["ids"]).tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert sample["mask"].tolist() == [[1] * 7] * 2
        assert sample["on"].tolist() == [True] * 3
        assert sample["scalar"].shape == ()

    def test_open_dimensions_agree(self) -> None:
        inputs = [spec("x", "seq", "batch"), spec("y", "batch", 3), spec("z", None, None, "width", "seq")]
        (sample,) = random_samples(inputs, count=1, seed=0)
        assert [sample[i.name].shape for i in inputs] == [(1, 1), (1, 3), (1, 16, 16, 1)]
        (sample,) = random_samples(inputs, count=1, seed=0, sizes={"seq": 5, "width": 2})
        assert [sample[i.name].shape for i in inputs] == [(5, 1), (1, 3), (1, 16, 2, 5)]

    def test_what_cannot_be_is_refused(self) -> None:
        ids = spec("ids", 1, dtype=np.int8)
        with pytest.raises(BadInput, match="the count is 0"):
            random_samples([ids], count=0, seed=0)
        with pytest.raises(BadInput, match="bound of input 'ids' is 0"):
            random_samples([ids], count=1, seed=0, bounds={"ids": 0})
        with pytest.raises(BadInput, match="size of 'n' is -1"):
            random_samples([ids], count=1, seed=0, sizes={"n": -1})
        with pytest.raises(BadInput, match="cannot hold the bound 129"):
            random_samples([ids], count=1, seed=0, bounds={"ids": 129})
        assert random_samples([ids], count=1, seed=0, bounds={"ids": 128})[0]["ids"].dtype == np.int8
        with pytest.raises(NotSupported, match=r"'s' .* takes strings"):
            random_samples([spec("s", 1, dtype=object)], count=1, seed=0)
        with pytest.raises(NotSupported, match="'c' complex64"):
            random_samples([spec("c", 1, dtype=np.complex64)], count=1, seed=0)


class TestHash:
    def test_it_is_pinned(self) -> None:
        samples = [{"x": ramp(2, 3), "ids": ramp(4, dtype=np.int64)}]
        assert hash_samples(samples) == "2ff6c29f71f8dc8ac71980422ae6baffbfaf82b79b6faa8a6b6b91285a27fd43"

    def test_memory_order_and_input_order_do_not_count(self) -> None:
        x, y = ramp(4, 6), ramp(3, dtype=np.int64)
        spread = np.zeros((8, 12), np.float32)[::2, ::2]
        spread[:] = x
        assert len({hash_samples([s]) for s in ({"x": x, "y": y}, {"y": y, "x": np.asfortranarray(x)})}) == 1
        assert hash_samples([{"x": x}]) == hash_samples([{"x": spread}]) == hash_samples([{"x": x.astype(">f4")}])

    def test_everything_else_counts(self) -> None:
        x = ramp(2, 3)
        different: list[list[dict[str, NDArray[Any]]]] = [
            [],
            [{}],
            [{"x": x}],
            [{"y": x}],
            [{"x": x.T}],
            [{"x": x.reshape(3, 2)}],
            [{"x": x.view(np.int32)}],
            [{"x": x + 1}],
            [{"x": x}, {"x": x}],
            [{"x": x}, {"x": x + 1}],
            [{"x": x + 1}, {"x": x}],
            [{"x": x, "y": x}],
            [{"x": ramp(2, dtype=np.float16)}],
            [{"x": ramp(2, dtype=np.float16).view(ml_dtypes.bfloat16)}],
        ]
        assert len({hash_samples(samples) for samples in different}) == len(different)
