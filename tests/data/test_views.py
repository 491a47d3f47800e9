"""Random views: where they lie, and the points that they have in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vmamba.data.views import RandomView, RandomViews, common_points

HEIGHT, WIDTH = 120, 200


@pytest.fixture
def coordinates() -> Image.Image:
    """A picture of which red is x and green is y, from 0 to 200 and to 240."""
    y, x = np.meshgrid(np.arange(HEIGHT) * 2, np.arange(WIDTH), indexing="ij")
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def view(size: int = 48, hflip: float = 0.5, scale: tuple[float, float] = (0.1, 1.0)) -> RandomView:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    return RandomView(size, scale=scale, ratio=(0.5, 2.0), interpolation="bilinear", hflip=hflip, **plain)


def shown(pixels: Tensor, places: Tensor) -> Tensor:
    """What views (N, 3, S, S) show at places (N, P, 2): x and y in pixels of the picture, (N, P, 2)."""
    sampled = F.grid_sample(pixels, places[:, :, None], align_corners=False, padding_mode="border")
    return sampled[:, :2, :, 0].transpose(1, 2) / torch.tensor([1.0, 2.0])


def test_boxes_say_what_views_show(coordinates: Image.Image) -> None:
    torch.manual_seed(0)
    flipped = 0
    for _ in range(40):
        pixels, box = view()(coordinates)
        left, top, right, bottom = (box * torch.tensor([WIDTH, HEIGHT] * 2)).tolist()
        flipped += left > right
        (corners,) = shown(pixels[None], torch.tensor([[[-0.5, -0.5], [0.5, 0.5]]]))
        expected = [
            [left + 0.25 * (right - left) - 0.5, top + 0.25 * (bottom - top) - 0.5],
            [left + 0.75 * (right - left) - 0.5, top + 0.75 * (bottom - top) - 0.5],
        ]
        torch.testing.assert_close(corners, torch.tensor(expected), atol=1.5, rtol=0)
        area = abs(right - left) * (bottom - top) / (WIDTH * HEIGHT)
        assert 0.09 < area <= 1
        assert 0.45 < abs(right - left) / (bottom - top) < 2.2
    assert 8 < flipped < 32


def test_a_view_shows_the_pixel_that_it_must(coordinates: Image.Image) -> None:
    torch.manual_seed(0)
    for x, y in [(0, 0), (WIDTH - 1, HEIGHT - 1), (0, HEIGHT - 1), (77, 31)]:
        for _ in range(10):
            _, box = view(scale=(0.02, 0.1))(coordinates, (x, y))
            (left, right), (top, bottom) = box[::2].sort().values * WIDTH, box[1::2] * HEIGHT
            assert -1e-3 < left <= x + 1e-3
            assert x + 1 - 1e-3 < right <= WIDTH + 1e-3
            assert -1e-3 < top <= y + 1e-3
            assert y + 1 - 1e-3 < bottom <= HEIGHT + 1e-3


def test_points_are_the_same_in_all_views(coordinates: Image.Image) -> None:
    """Of small views, too, which would seldom overlap by themselves; of several sizes."""
    torch.manual_seed(0)
    draw = RandomViews([(2, view(64)), (3, view(32, scale=(0.05, 0.3)))], overlapping=True)
    drawn = [draw(coordinates) for _ in range(8)]
    kinds = [torch.stack([views.kinds[k] for views in drawn], 1) for k in range(2)]
    boxes = [torch.stack([views.boxes[k] for views in drawn], 1) for k in range(2)]
    places = common_points(boxes, 5)
    assert [p.shape for p in places] == [(2, 8, 5, 2), (3, 8, 5, 2)]
    assert all(p.abs().max() <= 1 + 1e-4 for p in places)
    seen = torch.cat(
        [
            shown(pixels.flatten(0, 1), p.flatten(0, 1)).unflatten(0, p.shape[:2])
            for pixels, p in zip(kinds, places, strict=True)
        ]
    )
    # Within a pixel of the smallest view, which is as wide as four of the picture's, at its edges.
    assert (seen - seen[0]).abs().max() < 4
    assert (seen - seen[0]).abs().median() < 0.5
    assert seen[0].std(0).min() > 0.3  # not all of them at one place


@pytest.mark.parametrize(
    ("option", "value"), [("invert", 1.0), ("grayscale", 1.0), ("hue", 0.5), ("color_jitter", 0.5)]
)
def test_colours_change_and_places_do_not(option: str, value: float) -> None:
    image = Image.fromarray(np.full((40, 40, 3), (200, 40, 90), np.uint8))
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
    draw = RandomView(32, scale=(0.2, 0.9), ratio=(1, 1), **plain, **{option: value})
    same = RandomView(32, scale=(0.2, 0.9), ratio=(1, 1), **plain)
    seen = []
    for seed in range(6):
        torch.manual_seed(seed)
        pixels, box = draw(image)
        torch.manual_seed(seed)
        assert torch.equal(same(image).box, box)
        seen.append(pixels[:, 0, 0])
    red, green, _ = torch.stack(seen).T
    if option == "invert":
        assert (red + 200 - 255).abs().max() < 1
    if option == "grayscale":
        assert (red - green).abs().max() < 1
    if option in ("hue", "color_jitter"):
        assert torch.stack(seen).std(0).max() > 5
