"""Every source keeps the promises of `Dataset`; what is missing, damaged or unfit is one sentence."""

import contextlib
import gzip
import io
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from veilmesh.core import BadInput, LocalError
from veilmesh.tasks import SOURCES, Dataset
from veilmesh.tasks.data.crops import by_area, cut
from veilmesh.tasks.data.mnist import read_idx

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside this repository")


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def colour(rng: np.random.Generator, height: int = 32, width: int = 32) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture_table(count: int, image: str = "image", label: str = "label", seed: int = 0, **more: object) -> pa.Table:
    rng = np.random.default_rng(seed)
    cells = [{"bytes": encoded(colour(rng)), "path": f"{i}.png"} for i in range(count)]
    return pa.table({image: cells, label: [i % 10 for i in range(count)], **more})


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", side) for side in array.shape)
    return header + array.astype(np.uint8).tobytes()


def make_mnist(
    folder: Path, parts: tuple[str, ...] = ("train", "t10k"), pack: Callable[[bytes], bytes] = bytes
) -> Path:
    rng = np.random.default_rng(0)
    end = "" if pack is bytes else ".gz"
    for part in parts:
        images = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte{end}").write_bytes(pack(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{end}").write_bytes(pack(idx(np.arange(60) % 10)))
    return folder


def make_cifar10(folder: Path) -> Path:
    pq.write_table(picture_table(100, image="img"), folder / "train-00000-of-00001.parquet")
    pq.write_table(picture_table(30, image="img", seed=1), folder / "test-00000-of-00001.parquet")
    return folder


def make_camvid(folder: Path, count: int = 10) -> Path:
    rng = np.random.default_rng(0)
    pictures = [{"bytes": encoded(colour(rng, 12, 16), "JPEG"), "path": None} for _ in range(count)]
    masks = [{"bytes": encoded(rng.integers(0, 5, (12, 16), dtype=np.uint8)), "path": None} for _ in range(count)]
    pq.write_table(pa.table({"image": pictures, "mask": masks}), folder / "street.parquet")
    return folder / "street.parquet"


def make_folder(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / kind).mkdir()
        for number in range(10):
            (folder / kind / f"{number}.png").write_bytes(encoded(colour(rng, 9, 7)))
    return folder


def make_parquet(folder: Path) -> Path:
    pq.write_table(picture_table(50), folder / "things.parquet")
    return folder / "things.parquet"


# For every source that reads files: how to write tiny ones, and the option that takes their place.
MADE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "mnist": (make_mnist, "path"),
    "cifar10": (make_cifar10, "path"),
    "camvid": (make_camvid, "path"),
    "parquet": (make_parquet, "path"),
    "image-folder": (make_folder, "path"),
}
BUILT_IN = {"depth", "digits", "faces", "photos"}
ELSEWHERE = {"hub"}  # needs the network


def load(name: str, tmp_path: Path, **options: object) -> Dataset:
    if name in BUILT_IN:
        return SOURCES.build(name, options).load()
    make, option = MADE[name]
    return SOURCES.build(name, {option: make(tmp_path), **options}).load()


def test_every_source_is_covered_here() -> None:
    assert set(SOURCES.names()) == BUILT_IN | set(MADE) | ELSEWHERE


@pytest.mark.parametrize("name", sorted(BUILT_IN | set(MADE)))
class TestContract:
    def test_pictures_and_labels(self, name: str, tmp_path: Path) -> None:
        data = load(name, tmp_path)
        for x, y in [(data.train_x, data.train_y), (data.test_x, data.test_y), (data.public_x, data.public_y)]:
            assert x.dtype == np.float32
            assert x.shape[1:] == data.shape
            assert 0 <= x.min() < x.max() <= 1
            assert y.dtype == np.int64
            assert len(y) == len(x) > 0
            assert 0 <= y.min() <= y.max() < data.classes
            assert data.per_pixel == (y.shape == (len(x), *data.shape[1:]))

    def test_parts_are_disjoint(self, name: str, tmp_path: Path) -> None:
        data = load(name, tmp_path)
        train, test, public = ({p.tobytes() for p in x} for x in (data.train_x, data.test_x, data.public_x))
        assert not public & (train | test)
        assert not train & test

    def test_the_same_every_time(self, name: str, tmp_path: Path) -> None:
        one = load(name, tmp_path)
        options = (
            {} if name in BUILT_IN else {MADE[name][1]: tmp_path if name != "camvid" else tmp_path / "street.parquet"}
        )
        two = SOURCES.build(name, options).load()
        for field in ("train_x", "train_y", "test_x", "test_y", "public_x", "public_y"):
            assert np.array_equal(getattr(one, field), getattr(two, field))

    def test_limit_keeps_the_first_training_pictures(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        whole, some = load(name, tmp_path / "a"), load(name, tmp_path / "b", limit=5)
        assert np.array_equal(some.train_x, whole.train_x[:5])
        assert np.array_equal(some.test_x, whole.test_x)
        assert some.classes == whole.classes

    def test_does_not_touch_the_global_generator(self, name: str, tmp_path: Path) -> None:
        before = np.random.get_state()[1].copy()  # type: ignore[index]  # legacy state is a tuple
        load(name, tmp_path)
        assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]  # as above


@pytest.mark.parametrize("name", sorted(MADE))
def test_missing_place_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere"):
        SOURCES.build(name, {MADE[name][1]: tmp_path / "nowhere"}).load()


@pytest.mark.parametrize("name", sorted(MADE))
def test_empty_folder_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    with pytest.raises(BadInput, match="hollow"):
        SOURCES.build(name, {MADE[name][1]: tmp_path / "hollow"}).load()


def test_limit_must_be_positive() -> None:
    with pytest.raises(BadInput, match="limit"):
        SOURCES.build("digits", {"limit": 0})


def test_faces_are_half_faces_everywhere() -> None:
    data = SOURCES.build("faces").load()
    assert [len(y) for y in (data.train_y, data.test_y, data.public_y)] == [120, 40, 40]
    assert [int(y.sum()) for y in (data.train_y, data.test_y, data.public_y)] == [60, 20, 20]


def test_a_public_copy_of_a_private_picture_is_dropped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = [{"bytes": encoded(colour(rng)), "path": None} for _ in range(20)] * 2
    pq.write_table(pa.table({"image": cells, "label": [0, 1] * 20}), tmp_path / "twice.parquet")
    data = SOURCES.build("parquet", {"path": tmp_path / "twice.parquet"}).load()
    known = {p.tobytes() for p in (*data.train_x, *data.test_x)}
    assert not known & {p.tobytes() for p in data.public_x}


def test_a_dataset_that_breaks_its_promise_is_our_bug() -> None:
    x, y = np.full((1, 1, 2, 2), 2, dtype=np.float32), np.zeros(1, dtype=np.int64)
    with pytest.raises(LocalError, match="outside"):
        Dataset("wrong", x, y, x, y, x, y, 2)


def loaded_or_refused(source: str, path: Path, names: str) -> Dataset | None:
    """The dataset, or None where it was refused in a sentence that names the file; any other error passes through."""
    try:
        return SOURCES.build(source, {"path": path}).load()
    except BadInput as error:
        if names not in str(error):
            raise
        return None


# mnist


@pytest.mark.parametrize("parts", [("train",), ("t10k",), ("train", "t10k")])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_mnist_takes_either_pair_or_both(
    tmp_path: Path, parts: tuple[str, ...], pack: Callable[[bytes], bytes]
) -> None:
    make_mnist(tmp_path, parts, pack)
    data = SOURCES.build("mnist", {"path": tmp_path}).load()
    assert len(data.test_x) == (60 if len(parts) == 2 else 10)


def test_mnist_half_a_pair_or_unequal_counts(tmp_path: Path) -> None:
    make_mnist(tmp_path, ("train",))
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(59)))
    with pytest.raises(BadInput, match="59 labels"):
        SOURCES.build("mnist", {"path": tmp_path}).load()
    labels.unlink()
    with pytest.raises(BadInput, match="images only"):
        SOURCES.build("mnist", {"path": tmp_path}).load()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_cut_anywhere_is_bad_input(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    whole = pack(idx(np.random.default_rng(0).integers(0, 256, (3, 4, 4))))
    file = tmp_path / "cut"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="cut"):
            read_idx(file, 3)
    file.write_bytes(whole)
    assert read_idx(file, 3).shape == (3, 4, 4)


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(raw=st.binary(max_size=64) | st.binary(max_size=40).map(lambda tail: b"\0\0\x08\x03" + tail))
def test_idx_of_any_bytes_is_an_array_or_bad_input(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "any").write_bytes(raw)
    with contextlib.suppress(BadInput):
        assert read_idx(tmp_path / "any", 3).ndim == 3


def test_idx_header_that_claims_too_much(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)
    with pytest.raises(BadInput, match="cannot be used"):
        read_idx(tmp_path / "big", 3)


# parquet


def test_parquet_cut_anywhere_is_bad_input(tmp_path: Path) -> None:
    whole = make_parquet(tmp_path).read_bytes()
    file = tmp_path / "cut.parquet"
    for length in [*range(0, 64), *range(64, len(whole), 997), *range(len(whole) - 200, len(whole))]:
        file.write_bytes(whole[:length])
        with pytest.raises(BadInput, match="cut.parquet"):
            SOURCES.build("parquet", {"path": file}).load()


def test_parquet_with_a_broken_picture_names_its_row(tmp_path: Path) -> None:
    table = picture_table(10)
    cells = table["image"].to_pylist()
    cells[7]["bytes"] = cells[7]["bytes"][:200]
    pq.write_table(table.set_column(0, "image", pa.array(cells)), tmp_path / "one.parquet")
    with pytest.raises(BadInput, match=r"row 7 of .*one\.parquet"):
        SOURCES.build("parquet", {"path": tmp_path / "one.parquet"}).load()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_a_picture_cut_anywhere_is_refused_or_whole(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(5):
            (tmp_path / kind / f"{number}.png").write_bytes(encoded(colour(rng, 6, 6), form))
    file = tmp_path / "a" / "0.png"
    whole = file.read_bytes()
    data = SOURCES.build("image-folder", {"path": tmp_path}).load()
    kept = 0
    for length in range(0, len(whole), 1 + len(whole) // 150):
        file.write_bytes(whole[:length])
        again = loaded_or_refused("image-folder", tmp_path, names=str(file))
        if again is not None:  # only bytes after the last pixel were missing
            kept += 1
            assert np.array_equal(again.train_x, data.train_x)
            assert np.array_equal(again.test_x, data.test_x)
            assert np.array_equal(again.public_x, data.public_x)
    assert kept < 40


@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_parquet_with_a_changed_byte_loads_or_is_bad_input(tmp_path: Path, place: float, byte: int) -> None:
    file = tmp_path / "things.parquet"
    raw = bytearray((file if file.exists() else make_parquet(tmp_path)).read_bytes())
    raw[int(place * len(raw))] = byte
    (tmp_path / "changed.parquet").write_bytes(raw)
    loaded_or_refused("parquet", tmp_path / "changed.parquet", names="changed.parquet")


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        (picture_table(10, fine=list(range(10)), label="coarse"), {}, "not clear which column"),
        (picture_table(10), {"label_column": "lable"}, "no column 'lable'"),
        (picture_table(10), {"label_column": "image"}, "does not hold labels"),
        (picture_table(10), {"image_column": "label"}, "does not hold pictures"),
        (pa.table({"label": [1, 2]}), {}, "not clear which column .* holds the pictures"),
        (pa.table({"image": [{"bytes": None, "path": "x"}], "label": [0]}), {}, "holds no picture"),
        (pa.table({"image": [{"bytes": b"no", "path": "x"}], "label": [0]}), {}, "broken"),
        (pa.table({"image": [{"bytes": b"no", "path": "x"}], "label": [-1]}), {}, "label -1"),
        (pa.table({"image": [{"bytes": b"no", "path": "x"}], "label": [1 << 40]}), {}, "label 1099511627776"),
        (picture_table(10).slice(0, 0), {}, "holds no picture"),
        (picture_table(3), {}, "too few"),
        (picture_table(10), {"size": [8, 0]}, "size"),
    ],
)
def test_parquet_says_what_is_wrong(tmp_path: Path, table: pa.Table, options: dict[str, object], says: str) -> None:
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(BadInput, match=says):
        SOURCES.build("parquet", {"path": tmp_path / "t.parquet", **options}).load()


def test_parquet_takes_text_labels_and_ambiguity_is_settled_by_name(tmp_path: Path) -> None:
    table = picture_table(50, label="number", kind=["cat", "dog"] * 25)
    pq.write_table(table, tmp_path / "t.parquet")
    data = SOURCES.build("parquet", {"path": tmp_path / "t.parquet", "label_column": "kind"}).load()
    assert data.classes == 2
    assert set(data.train_y.tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["parquet", "image-folder"])
def test_size_and_gray(name: str, tmp_path: Path) -> None:
    assert load(name, tmp_path, size=[5, 4], gray=True).shape == (1, 5, 4)


def test_pictures_of_different_sizes_ask_for_a_size(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "cat" / "3.png").write_bytes(encoded(colour(np.random.default_rng(1), 5, 5)))
    with pytest.raises(BadInput, match="give a size"):
        SOURCES.build("image-folder", {"path": tmp_path}).load()
    assert SOURCES.build("image-folder", {"path": tmp_path, "size": 6}).load().shape == (3, 6, 6)


def test_sixteen_bit_pictures_are_refused(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "cat" / "3.png").write_bytes(encoded(np.full((9, 7), 40000, dtype=np.uint16)))
    with pytest.raises(BadInput, match="8 bits"):
        SOURCES.build("image-folder", {"path": tmp_path}).load()


# image-folder and camvid


def test_image_folder_with_train_and_test(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        make_folder(tmp_path / part)
    # The two parts hold the same pictures: every public one is also a test picture, so nothing public is left.
    with pytest.raises(BadInput, match="too few different"):
        SOURCES.build("image-folder", {"path": tmp_path}).load()
    for number, file in enumerate(sorted((tmp_path / "test").rglob("*.png"))):
        file.write_bytes(encoded(colour(np.random.default_rng(100 + number), 9, 7)))
    data = SOURCES.build("image-folder", {"path": tmp_path}).load()
    assert (len(data.train_x), len(data.test_x), len(data.public_x), data.classes) == (16, 20, 4, 2)


def test_image_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    with pytest.raises(BadInput, match="at least two"):
        SOURCES.build("image-folder", {"path": tmp_path}).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no picture"):
        SOURCES.build("image-folder", {"path": tmp_path}).load()


def test_camvid_resizes_masks_without_mixing_classes(tmp_path: Path) -> None:
    data = SOURCES.build("camvid", {"path": make_camvid(tmp_path), "size": [6, 8]}).load()
    assert data.shape == (3, 6, 8)
    assert set(np.unique(data.train_y)) <= set(range(5))
    assert data.per_pixel


def test_camvid_with_one_label_a_picture_has_that_of_most_of_its_pixels(tmp_path: Path) -> None:
    path = make_camvid(tmp_path)
    masks = SOURCES.build("camvid", {"path": path}).load()
    data = SOURCES.build("camvid", {"path": path, "label": "picture"}).load()
    assert not data.per_pixel
    np.testing.assert_array_equal(data.train_x, masks.train_x)
    np.testing.assert_array_equal(data.train_y, [np.bincount(mask.ravel()).argmax() for mask in masks.train_y])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": 3}, "not one of 3"),
        ({"mask_column": "label"}, "no column"),
        ({"mask_column": "image"}, "not one class number"),
    ],
)
def test_camvid_refuses_what_is_no_mask(tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        SOURCES.build("camvid", {"path": make_camvid(tmp_path), **options}).load()


# what comes with scikit-image


def test_crops_of_photographs_do_not_overlap_and_are_not_flat() -> None:
    data = SOURCES.build("photos").load()
    assert (data.shape, data.classes) == ((3, 32, 32), 8)
    parts = (data.train_x, data.test_x, data.public_x)
    assert [len(x) for x in parts] == [344, 114, 114]
    assert min(x.reshape(len(x), -1).std(axis=1).min() for x in parts) >= 0.04
    assert np.unique(data.train_y).tolist() == list(range(8))
    assert len(SOURCES.build("photos", {"side": 512}).load().train_x) > 2 * 344


def test_a_photograph_is_brought_to_size_by_area() -> None:
    picture = np.arange(8 * 13 * 3).reshape(8, 13, 3).astype(np.uint8)
    small = by_area(picture, 4)
    assert small.shape == (4, 6, 3)
    np.testing.assert_allclose(small[1, 2], picture[2:4, 4:6].mean(axis=(0, 1)) / 255, rtol=1e-6)
    squares = cut(picture, 4)
    assert squares.shape == (6, 4, 4, 3)
    np.testing.assert_array_equal(squares[4], picture[4:8, 4:8])


def test_depth_has_the_same_pictures_with_either_label() -> None:
    masks, pictures = SOURCES.build("depth").load(), SOURCES.build("depth", {"label": "picture"}).load()
    assert masks.per_pixel
    assert not pictures.per_pixel
    for part in ("train", "test", "public"):
        x, mask, label = getattr(masks, f"{part}_x"), getattr(masks, f"{part}_y"), getattr(pictures, f"{part}_y")
        np.testing.assert_array_equal(x, getattr(pictures, f"{part}_x"))
        near = mask.mean(axis=(1, 2))
        assert 1 / 16 <= near.min() <= near.max() <= 15 / 16
        np.testing.assert_array_equal(near > 0.5, label)


# hub, and the real files


def test_hub_without_its_package_or_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # what an import sees where the package is not installed
    with pytest.raises(BadInput, match=r"pip install 'veilmesh\[hub\]'"):
        SOURCES.build("hub", {"dataset": "ylecun/mnist"}).load()


def test_hub_reads_what_datasets_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = SOURCES.build("hub", {"dataset": str(make_cifar10(tmp_path)), "size": 8}).load()
    assert (data.shape, data.classes, len(data.test_x)) == ((3, 8, 8), 10, 30)
    with pytest.raises(BadInput, match="cannot be fetched"):
        SOURCES.build("hub", {"dataset": str(tmp_path / "nowhere")}).load()


@needs_shared
def test_the_real_files_load() -> None:
    mnist = SOURCES.build("mnist", {"path": SHARED / "mnist10k"}).load()
    assert (mnist.shape, mnist.classes, len(mnist.train_x)) == ((1, 28, 28), 10, 6000)
    cifar = SOURCES.build("cifar10", {"path": SHARED, "limit": 100}).load()
    assert (cifar.shape, cifar.classes, len(cifar.train_x), len(cifar.test_x)) == ((3, 32, 32), 10, 100, 1000)
    camvid = SOURCES.build("camvid", {"path": SHARED, "size": [45, 60]}).load()
    assert (camvid.shape, camvid.classes, len(camvid.test_x)) == ((3, 45, 60), 12, 60)


def test_importing_the_room_is_light() -> None:
    code = (
        "import sys, veilmesh.tasks; print([m for m in ('torch', 'sklearn', 'skimage', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
