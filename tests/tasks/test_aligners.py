"""Labels for public pictures: every aligner's promise, and what the one that is there without downloads is worth."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from veilmesh.core import BadInput, generator
from veilmesh.tasks.aligners.base import ALIGNERS
from veilmesh.tasks.data.digits import Digits

__all__: list[str] = []

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = Digits().load()
    return data.public_x, data.public_y


@pytest.mark.parametrize("name", [n for n in ALIGNERS.names() if n != "clip"])
def test_labels_are_classes_and_confidence_is_a_share(name: str, digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    x.setflags(write=False)
    first, second = (ALIGNERS.build(name).align(x, y, 10) for _ in range(2))
    assert first.labels.shape == y.shape
    assert first.labels.dtype == np.int64
    assert set(first.labels) <= set(range(10))
    assert ((first.confidence >= 0) & (first.confidence <= 1)).all()
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.confidence, second.confidence)


def test_the_given_labels_are_certain_also_those_of_pixels() -> None:
    y = np.zeros((3, 8, 8), np.int64)
    aligned = ALIGNERS.build("given").align(np.zeros((3, 1, 8, 8), np.float32), y, 2)
    assert aligned.labels is y
    assert (aligned.confidence == 1).all()


def test_class_means_name_most_digits_and_know_which(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    aligned = ALIGNERS.build("class-means").align(x, y, 10)
    told = aligned.confidence == 1
    assert 0.2 < told.mean() < 0.35
    right, sure = aligned.labels == y, aligned.confidence >= 0.8
    assert right[told].all()
    assert right[~told].mean() > 0.8
    assert right[~told & sure].mean() > right[~told].mean()


def test_class_means_use_no_more_labels_than_they_say(digits: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = digits
    before = ALIGNERS.build("class-means").align(x, y, 10)
    told = np.flatnonzero(before.confidence == 1)
    last = [np.flatnonzero(y == c)[-1] for c in (3, 4)]  # of every class the first ones have labels
    assert not set(last) & set(told)
    swapped = y.copy()
    swapped[last] = [4, 3]  # as many of each class as before
    after = ALIGNERS.build("class-means").align(x, swapped, 10)
    assert set(np.flatnonzero(after.confidence == 1)) == set(told)
    np.testing.assert_array_equal(before.labels, after.labels)


def test_a_class_without_a_labelled_picture_is_never_named() -> None:
    x = generator(1, "x").random((12, 1, 8, 8), np.float32)
    aligned = ALIGNERS.build("class-means").align(x, np.array([0, 2] * 6), 4)
    assert set(aligned.labels) <= {0, 2}


def test_labels_of_pixels_are_refused_where_pictures_are_labelled() -> None:
    with pytest.raises(BadInput, match="given"):
        ALIGNERS.build("class-means").align(np.zeros((3, 1, 8, 8), np.float32), np.zeros((3, 8, 8), np.int64), 2)


def clip(path: Path) -> Any:
    return ALIGNERS.build("clip", {"path": path, "names": ["zero", "one"]})


def test_clip_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.zeros((3, 1, 8, 8), np.float32), np.zeros(3, np.int64)
    with pytest.raises(BadInput, match="2 names for 3 classes"):
        clip(tmp_path).align(x, y, 3)
    with pytest.raises(BadInput, match="no folder"):
        clip(tmp_path / "nowhere").align(x, y, 2)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match="pip install transformers"):
        clip(tmp_path).align(x, y, 2)


class FakeModel:
    """What stands at the far side, where CLIP's weights would: it finds bright pictures to be of the second class."""

    def eval(self) -> "FakeModel":
        return self

    def __call__(self, text: list[str], images: torch.Tensor) -> Any:
        assert text == ["a photo of a zero", "a photo of a one"]
        bright = images.double().mean(dim=(1, 2, 3)) / 255
        return SimpleNamespace(logits_per_image=torch.stack([1 - bright, bright], dim=1) * 10)


def test_clip_is_asked_for_the_names_and_its_softmax_is_the_confidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process(text: list[str], images: list[np.ndarray], return_tensors: str, padding: bool) -> dict[str, Any]:
        assert (return_tensors, padding) == ("pt", True)
        assert all(image.shape == (8, 8, 3) and image.dtype == np.uint8 for image in images)
        return {"text": text, "images": torch.from_numpy(np.stack(images))}

    def loads(made: Any) -> Any:
        def from_pretrained(path: Path, local_files_only: bool, use_safetensors: bool = True) -> Any:
            assert path == tmp_path
            assert local_files_only
            assert use_safetensors
            return made

        return SimpleNamespace(from_pretrained=from_pretrained)

    far = SimpleNamespace(CLIPModel=loads(FakeModel()), CLIPProcessor=loads(process))
    monkeypatch.setitem(sys.modules, "transformers", far)
    x = np.stack([np.full((1, 8, 8), level, np.float32) for level in (0.0, 1.0, 0.5)] * 30)
    aligned = clip(tmp_path).align(x, np.zeros(90, np.int64), 2)
    np.testing.assert_array_equal(aligned.labels[:2], [0, 1])
    np.testing.assert_allclose(aligned.confidence[:3], [1, 1, 0.5], atol=0.02)
