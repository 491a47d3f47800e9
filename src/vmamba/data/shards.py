"""WebDataset shards: samples streamed from tar files, for data that do not fit one machine.

Unlike the usual pipelines, a stream is a pure function of (seed, epoch), may start at any batch (what lies before is
read, but not decoded), and gives every sample once per epoch where the shards are of one size.
"""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, cycle, islice
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vmamba.data.image_tree import UNLABELLED
from vmamba.data.images import image_endings, read_image
from vmamba.data.loader import leave_signals_to_training, report_skipped
from vmamba.data.seeding import seeded
from vmamba.data.shard_files import Shards, reason_of
from vmamba.data.tar import StrictTarInfo
from vmamba.data.verify import read_all
from vmamba.errors import DataError, ImageError
from vmamba.terminal import printable

Batch = TypeVar("Batch")

#: Samples (not decoded) that a loader process holds to shuffle among them.
SHUFFLED = 4096


def read_shards(shards: Shards, num_classes: int, max_pixels: int | None = None) -> tuple[int, list[str]]:
    """Read every sample once.

    Args:
        shards: See `find_shards`.
        num_classes: Classes are numbers below it.
        max_pixels: See `vmamba.data.images.read_image`.

    Returns:
        Number of samples that can be used; what is wrong with each other one, and with each shard that is damaged.
    """

    def read(url: str) -> tuple[int, list[str]]:
        good, problems = 0, list[str]()
        try:
            for fields in _read([url]):
                try:
                    check_label(*_decode(fields, max_pixels)[1:], num_classes)
                    good += 1
                except ImageError as error:
                    problems.append(str(error))
        except DataError as error:
            problems.append(str(error))
        return good, problems

    results = read_all(shards.urls, len(shards.urls), read, "reading shards")
    return sum(good for good, _ in results), [problem for _, problems in results for problem in problems]


def check_label(label: int, name: str, num_classes: int) -> None:
    """Refuse a class number that no class has.

    Raises:
        ImageError: If it is one.
    """
    if not 0 <= label < num_classes:
        raise ImageError(f"{name}: its class is {label}, but num_classes is {num_classes}")


class ShardLoader(Generic[Batch]):
    """Batches of one process from shards of ``NAME.jpg`` (or another image) and ``NAME.cls`` (the class number).

    Every loader process of every training process reads shards of its own. A training process whose shards hold fewer
    samples than the others' reads some again, so that all have the same number of batches. In training an unreadable
    image is replaced by another one of its batch.

    Args:
        shards: See `find_shards`.
        sample: (image, class, name) → sample; draws at random what it likes.
        collate: Samples → batch.
        batch_size: Images per batch of this process.
        training: Shuffle, and leave incomplete batches out.
        seed: Of the order and of what samples draw.
        rank: Number of this process.
        world_size: Processes.
        workers: Loader processes; 0 to load in this one.
        strict: Raise at an unreadable image.
        max_pixels: See `vmamba.data.images.read_image`.
        labelled: Leave samples without a ``.cls`` out; otherwise they are of the class `UNLABELLED`.

    Raises:
        DataError: If there are fewer shards than loader processes, or too few images for one global batch.
    """

    def __init__(
        self,
        shards: Shards,
        sample: Callable[[Image.Image, int, str], Any],
        collate: Callable[[list[Any]], Batch],
        *,
        batch_size: int,
        training: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        strict: bool = False,
        max_pixels: int | None = None,
        labelled: bool = True,
    ) -> None:
        streams = world_size * max(workers, 1)
        if training and len(shards.urls) < streams:
            raise DataError(
                f"{len(shards.urls)} shards cannot feed {streams} loader processes; make more, or use fewer workers"
            )
        self.images, self.skipped, self.strict = shards.samples, list[str](), strict
        self._batches = shards.samples // (batch_size * world_size) if training else -(-shards.samples // batch_size)
        if not self._batches:
            raise DataError(f"{shards.samples} images are fewer than one batch of {batch_size * world_size}")
        self._stream: _Stream[Batch] = _Stream(
            shards.urls, sample, collate, batch_size, self._batches if training else None, seed, rank, world_size
        )
        self._stream.max_pixels, self._stream.labelled = max_pixels, labelled
        self._workers = workers

    def __len__(self) -> int:
        return self._batches

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on.

        Raises:
            ImageError: For an unreadable image where `strict`, or for many in one batch.
        """
        self._stream.epoch, self._stream.start = epoch, start
        loader: DataLoader[tuple[Batch | None, list[str]]] = DataLoader(
            self._stream, batch_size=None, num_workers=self._workers, worker_init_fn=leave_signals_to_training
        )
        yield from report_skipped(loader, self.skipped, self.strict)


class _Stream(IterableDataset[tuple[Any, list[str]]], Generic[Batch]):
    """The batches of one loader process; batch b comes from stream ``b mod workers`` of this training process."""

    def __init__(
        self,
        urls: tuple[str, ...],
        sample: Callable[[Image.Image, int, str], Any],
        collate: Callable[[list[Any]], Batch],
        batch_size: int,
        batches: int | None,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.urls, self.sample, self.collate = urls, sample, collate
        self.batch_size, self.batches, self.seed = batch_size, batches, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0
        self.max_pixels: int | None = None
        self.labelled = True

    def __iter__(self) -> Iterator[tuple[Any, list[str]]]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        stream = (self.start + worker) % workers  # the loader hands the first batch over from its process 0
        number = self.rank * workers + stream
        training = self.batches is not None
        order = np.arange(len(self.urls))
        if training:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.urls))
        mine = [self.urls[i] for i in order[number :: self.world_size * workers]]
        before = len(range(stream, self.start, workers))
        numbers: Iterable[int] = count(before)
        raw = _read(mine)
        if self.batches is not None:
            generator = random.Random(f"{self.seed}/{self.epoch}/{number}")
            raw = chain.from_iterable(_shuffled(_read(mine), generator) for _ in count())
            numbers = range(before, len(range(stream, self.batches, workers)))
        raw = islice(raw, before * self.batch_size, None)
        for i in numbers:
            taken = list(islice(raw, self.batch_size))
            if not taken:
                return
            with seeded(self.seed, self.epoch, number, i):
                samples, problems = self._decoded(taken)
            if training and samples:
                samples += list(islice(cycle(samples), len(taken) - len(samples)))
            yield (self.collate(samples) if samples else None), problems

    def _decoded(self, taken: list[dict[str, Any]]) -> tuple[list[Any], list[str]]:
        samples, problems = [], []
        for fields in taken:
            try:
                samples.append(self.sample(*_decode(fields, self.max_pixels, self.labelled)))
            except ImageError as error:
                problems.append(str(error))
        return samples, problems


def _read(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Undecoded samples: member extension → bytes."""
    from webdataset import gopen
    from webdataset.tariterators import group_by_keys

    for url in urls:
        try:
            with gopen(url) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as archive:
                yield from group_by_keys({**member, "__url__": url} for member in _members(archive))
        except Exception as error:  # tarfile and openers of addresses raise nearly anything
            raise DataError(f"{printable(url)}: cannot read the shard: {reason_of(error)}") from error


def _members(archive: tarfile.TarFile) -> Iterator[dict[str, Any]]:
    """Name and content of every file in an archive that is read from its start to its end."""
    while (member := archive.next()) is not None:
        content = archive.extractfile(member) if member.isreg() else None
        if content is not None and not member.name.startswith("__"):  # names of what describes the shard
            data = content.read()
            if len(data) < member.size:
                raise DataError("unexpected end of data")
            yield {"fname": member.name, "data": data}
        archive.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has read


def _shuffled(samples: Iterator[dict[str, Any]], generator: random.Random) -> Iterator[dict[str, Any]]:
    """Every sample once, in the order in which they leave a buffer at random."""
    buffer = list(islice(samples, SHUFFLED))
    for sample in samples:
        i = generator.randrange(len(buffer))
        buffer[i], leaving = sample, buffer[i]
        yield leaving
    generator.shuffle(buffer)
    yield from buffer


def _decode(fields: dict[str, Any], max_pixels: int | None, labelled: bool = True) -> tuple[Image.Image, int, str]:
    name = printable(f"{fields.get('__url__', '')}:{fields['__key__']}")
    endings = image_endings()
    extension = next((field for field in fields if f".{field.lower()}" in endings), None)
    if extension is None or ("cls" not in fields and labelled):
        needed = "a .cls and an image" if labelled else "an image"
        raise ImageError(f"cannot read the sample {name}: it needs {needed} (.jpg, .png …)")
    try:
        label = int(fields.get("cls", UNLABELLED))
    except ValueError:
        raise ImageError(f"cannot read the sample {name}: its .cls is not a number") from None
    return read_image(name, io.BytesIO(fields[extension]), max_pixels=max_pixels), label, name
