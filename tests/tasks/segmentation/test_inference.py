"""Images of any size, whole and in windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vmamba.tasks.segmentation.heads import resize
from vmamba.tasks.segmentation.inference import Inference, resized_rows, segment
from vmamba.tasks.segmentation.mean_iou import MeanIoU


class Local(nn.Module):
    """Classes that depend on the colour of the pixel alone, so that windows change nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x.sum(dim=1, keepdim=True)], dim=1)


@pytest.mark.parametrize(("source", "target"), [((24, 32), (96, 128)), ((33, 21), (130, 85)), ((130, 85), (97, 301))])
def test_rows_are_those_of_resizing_at_once(source: tuple[int, int], target: tuple[int, int]) -> None:
    logits = torch.randn(1, 5, *source)
    torch.testing.assert_close(torch.cat(list(resized_rows(logits, target)), dim=2), resize(logits, target))


@pytest.mark.parametrize("size", [(32, 32), (97, 131), (250, 64), (33, 500)])
@pytest.mark.parametrize("options", [{}, {"window": 64}, {"window": 96, "stride": 40}, {"flip": True}])
def test_windows_and_mirrors_cover_every_pixel_once(size: tuple[int, int], options: Any) -> None:
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    inference = Inference(None, **options)
    runs = []
    found = segment(Local(), image, inference, on_window=lambda: runs.append(1))
    (x,) = inference.inputs(image)
    assert torch.equal(found, Local()(x).argmax(dim=1)[0].to(torch.uint8)) or "flip" in options
    assert len(runs) == inference.windows(size)
    if "flip" in options:  # ties apart
        assert (found == Local()(x).argmax(dim=1)[0]).float().mean() > 0.999


def test_windows_need_no_more_memory_for_a_taller_image() -> None:
    """The largest tensor is a band of windows, however tall the image; the result is a byte per pixel."""
    largest: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.ndim == 4 and out.shape[1] == 4:
                largest[-1] = max(largest[-1], out.numel())
            return out

    for height in (256, 1024):
        largest.append(0)
        image = torch.zeros(3, height, 128, dtype=torch.uint8)
        with Watch():
            assert segment(Local(), image, Inference(None, window=64, stride=32)).shape == (height, 128)
    assert largest[0] == largest[1]


def test_impossible_inference() -> None:
    for options, message in (
        ({"window": 16}, "at least 32 pixels"),
        ({"window": 64, "stride": 65}, "stride must be from 1 to the window"),
        ({"stride": 10}, "give the window, too"),
        ({"scales": ()}, "scales must be above 0"),
        ({"image_size": 8}, "image_size must be at least 32"),
    ):
        with pytest.raises(ValueError, match=message):
            Inference(**options)


def test_mean_iou_by_hand() -> None:
    score = MeanIoU(4)
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 255]])
    predicted = torch.tensor([[0, 1, 1, 1], [2, 0, 3, 0]])
    score.add(predicted.to(torch.uint8), truth)
    iou, recall = score.per_class()
    assert iou[:3].tolist() == pytest.approx([1 / 3, 2 / 3, 1 / 2])
    assert iou[3].isnan()  # does not occur, and is predicted only where nothing is known
    assert recall[:3].tolist() == pytest.approx([1 / 2, 1, 1 / 2])
    assert score.results() == pytest.approx({"miou": 50, "macc": 200 / 3, "aacc": 400 / 6})
    with pytest.raises(ValueError, match="no labelled pixel"):
        MeanIoU(3).results()
