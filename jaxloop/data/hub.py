"""Datasets of the Hugging Face hub, and folders that `datasets` reads or has written."""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxloop.data import folders, reading
from jaxloop.data.batches import Batch, Row, Shard, grouped, needed
from jaxloop.data.dialect import Dialect

_OFFLINE = ("OfflineModeIsEnabled", "LocalEntryNotFoundError")


class Dataset(NamedTuple):
    """Which dataset or folder to read, and which part of it; `name` is its configuration."""

    source: str
    split: str
    name: str | None
    revision: str | None
    streaming: bool

    @property
    def is_folder(self) -> bool:
        """Whether the source is a folder."""
        return os.path.isdir(self.source)

    @property
    def is_written(self) -> bool:
        """Whether `datasets` wrote the folder."""
        return self.is_folder and folders.is_saved(self.source)


def folder_shards(
    dataset: Dataset,
    columns: Sequence[str] | None,
    optional: Sequence[str],
    dialect: Dialect,
) -> Iterator[Shard]:
    """Yield the files of a folder that `datasets` wrote, or whose files it sorts into splits.

    The files themselves are read as any other file is.
    """
    if dataset.is_written:
        yield from dataset_shards(dataset, columns, optional)
        return
    names = folders.data_files(dataset.source)
    files = _files_of_splits(dataset)
    if files is None or dataset.split not in files:
        yield from dataset_shards(dataset, columns, optional)
        return
    folders.check_read(dataset.source, names, files)
    seen: set[str] = set()

    def read(file: str) -> Iterator[Batch]:
        for batch in reading.read_batches(
            file, columns=columns, optional=optional, dialect=dialect
        ):
            if isinstance(batch, dict):
                _check_columns(file, columns or (), seen, batch)
                seen.update(batch)
            yield batch

    for file in files[dataset.split]:
        yield Shard(file, functools.partial(read, file))


def _check_columns(
    file: str, columns: Sequence[str], seen: set[str], batch: dict[str, list[Any]]
) -> None:
    lacking = [column for column in columns if column in seen and column not in batch]
    if lacking:
        raise ValueError(
            f"data.source = '{file}': has no column {lacking[0]!r}, which other files of its "
            "folder have."
        )


def _files_of_splits(dataset: Dataset) -> dict[str, Sequence[str]] | None:
    """{split: files} of a folder; None where `datasets` does not read them as they are."""
    # A slow import, which local files do without.
    import datasets

    try:
        config = datasets.load_dataset_builder(dataset.source, dataset.name).config
        files = dict(config.data_files or {})
        readable = all(reading.extension(file) for part in files.values() for file in part)
        return files if readable and not getattr(config, "features", None) else None
    except Exception as error:
        raise _refusal(error, dataset) from error


def dataset_shards(
    dataset: Dataset, columns: Sequence[str] | None, optional: Sequence[str] = ()
) -> Iterator[Shard]:
    """Yield the files of a dataset on the hub, or of a folder that `datasets` reads or has written.

    A dataset that is not streamed is one part, since all of it is here when its rows are read.

    Raises:
        ValueError: in one sentence, whatever `datasets` raises.
    """
    # A slow import, which local files do without.
    import datasets

    try:
        data = _open(dataset)
        names = data.column_names or ()
        if columns and set(columns) <= set(names):
            data = data.select_columns(needed(names, columns, optional))
        count = data.num_shards if isinstance(data, datasets.IterableDataset) else 1
    except Exception as error:
        raise _refusal(error, dataset) from error
    for index in range(count):
        part = data if count == 1 else data.shard(count, index)
        name = f"{dataset.source}:{dataset.split}:{index}"
        yield Shard(name, functools.partial(_batches, part, dataset))


def _batches(data: Any, dataset: Dataset) -> Iterator[Batch]:
    return grouped(_rows(data, dataset))


def _rows(data: Any, dataset: Dataset) -> Iterator[Row]:
    """Yield the rows of a dataset that is open; class labels are named."""
    # A slow import, which local files do without.
    import datasets

    try:
        labels = {
            column: feature.names
            for column, feature in (data.features or {}).items()
            if isinstance(feature, datasets.ClassLabel)
        }
        for row in data:
            named = {column: reading.named([row[column]], labels[column])[0] for column in labels}
            yield row | named if labels else row
    except GeneratorExit:
        raise
    except Exception as error:
        raise _refusal(error, dataset) from error


def _refusal(error: Exception, dataset: Dataset) -> ValueError:
    return ValueError(f"data.source = '{dataset.source}': {_problem(error, dataset)}.")


def _open(dataset: Dataset) -> Any:
    # A slow import, which local files do without.
    import datasets

    if not dataset.is_written:
        load = functools.partial(
            datasets.load_dataset,
            dataset.source,
            dataset.name,
            split=dataset.split,
            revision=dataset.revision,
        )
        if not dataset.streaming:
            return load()
        try:
            return load(streaming=True)
        except Exception as error:
            if not _is_network(error, str(error)):
                raise
            # What was downloaded before is read from the cache, which is not streamed.
            return load()
    data = datasets.load_from_disk(dataset.source)
    if not isinstance(data, datasets.DatasetDict):
        return data
    if dataset.split not in data:
        raise ValueError(f"Unknown split {dataset.split!r}. Should be one of {list(data)}.")
    return data[dataset.split]


def _problem(error: Exception, dataset: Dataset) -> str:
    """What is wrong, in half a sentence."""
    message = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    kind = type(error).__name__
    if "gated" in message.lower():
        return (
            "it is gated on the Hugging Face hub: ask for access on its page, then set HF_TOKEN to "
            "a token of the account that has it"
        )
    if kind == "DatasetNotFoundError":
        return _not_found(message, dataset)
    if kind == "EmptyDatasetError":
        return "this folder has no data file"
    if "Unknown split" in message or "split" in message and "not found" in message:
        return f"data.split = '{dataset.split}' is not one of its splits ({message})"
    if "BuilderConfig" in message or "Config name is missing" in message:
        return f"data.name = {dataset.name!r} is not one of its configurations ({message})"
    if "script" in message.lower() and "support" in message.lower():
        return "it is a loading script, and remote code is never run; use a dataset of data files"
    if _is_network(error, message):
        return (
            "the Hugging Face hub cannot be reached and the dataset is not in the local cache; "
            "download it first, or give a local file"
        )
    if isinstance(error, UnicodeDecodeError) or "utf-8" in message.lower() or "UTF8" in message:
        return f"not UTF-8 ({message})"
    return f"`datasets` cannot read it ({kind}: {message[:200]})"


def _not_found(message: str, dataset: Dataset) -> str:
    if dataset.is_folder:
        return f"the folder cannot be read ({message})"
    at = f" at revision {dataset.revision!r}" if dataset.revision else ""
    return f"the Hugging Face hub has no such dataset{at}, or it needs a login"


def _is_network(error: Exception, message: str) -> bool:
    if isinstance(error, ConnectionError | TimeoutError) or "reach" in message:
        return True
    return type(error).__name__ in _OFFLINE
