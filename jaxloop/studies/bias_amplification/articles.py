"""Labelled articles and what is made of them: the prompts of a generation, and the training
examples of an article (bias_amplification.md, section 2).
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

    from jaxloop.studies.bias_amplification.run import Data

_LINK = re.compile(r"\s*https?://\S+")


class Articles(NamedTuple):
    """Articles of a study. chosen: those that every generation continues, one row each (id, title,
    body, label); rest: the others of the source, which no chain sees; labels: all classes of the
    source, in order; dropped: how many were too short.
    """

    chosen: "pd.DataFrame"
    rest: "pd.DataFrame"
    labels: tuple[str, ...]
    dropped: int
    fingerprint: str

    def text(self, row: int) -> str:
        """The whole article, as it is trained on."""
        return whole(self.chosen["title"].iloc[row], self.chosen["body"].iloc[row])


def whole(title: str, body: str) -> str:
    """`title: T`, a line end, `body: B`: the form of the released data."""
    return f"title: {title}\nbody: {body}"


def body_of(text: str) -> str:
    """The body of an article in the form of `whole`: what a generation wrote."""
    return text.partition("\nbody: ")[2]


def read(
    settings: "Data",
    encode: Callable[[Sequence[str]], list[list[int]]],
    decode: Callable[[Sequence[Sequence[int]]], list[str]],
    block: int,
) -> Articles:
    """The articles of a source, so many of each label, shuffled. encode, decode: texts to token ids
    without special ones, and back.

    Raises ValueError for a source of one class, a label that has too few articles, an article
    shorter than `block` tokens (where these are not to be dropped or kept), and whatever
    `load_texts` refuses.
    """
    import pandas as pd

    from jaxloop.data import load_texts
    from jaxloop.data.delimited import Dialect

    more = (
        [settings.title_column]
        if settings.author_column is None
        else [settings.author_column, settings.date_column]
    )
    columns = [settings.label_column, *(column for column in more if column is not None)]
    frame = load_texts(
        settings.source, text_column=settings.body_column, keep_columns=columns, name=settings.name, split=settings.split, revision=settings.revision,
        dialect=Dialect(settings.delimiter, settings.csv_options),
    )  # fmt: skip
    print_ = frame.attrs["fingerprint"]
    labels = frame[settings.label_column].map(lambda v: "" if v is None else str(v).strip())
    if settings.labels:
        if missing := [v for v in settings.labels if v not in set(labels)]:
            known = ", ".join(map(repr, sorted(set(labels))))
            raise ValueError(
                f"config.data.labels has {missing[0]!r}, which column '{settings.label_column}' "
                f"never holds; it holds {known}"
            )
        frame, labels = frame[labels.isin(settings.labels)], labels[labels.isin(settings.labels)]
    frame = frame.assign(label=labels)[lambda t: t["label"] != ""]
    if frame["label"].nunique() < 2:
        only = f"the one label {frame['label'].iloc[0]!r}" if len(frame) else "no label at all"
        raise ValueError(
            f"config.data.label_column = '{settings.label_column}': the {len(frame):,} articles "
            f"have {only}; at least two labels are needed"
        )
    table = _of_posts(frame, settings) if settings.author_column else _plain(frame, settings)
    table, dropped = _in_length(table, settings, encode, decode, block)
    wanted = [settings.only] if settings.only else sorted(table["label"].unique())
    parts = []
    for label in wanted:
        mine = table[table["label"] == label]
        count = len(mine) if settings.per_label is None else settings.per_label
        if len(mine) < max(count, 1):
            raise ValueError(
                f"config.data.per_label = {settings.per_label}: '{settings.source}' has only "
                f"{len(mine)} articles labelled {label!r}"
            )
        parts.append(mine.sample(n=count, random_state=settings.seed))
    chosen = pd.concat(parts).sample(frac=1, random_state=settings.seed)
    rest = table.drop(chosen.index)
    names = settings.labels or tuple(sorted(table["label"].unique()))
    return Articles(
        chosen.reset_index(drop=True), rest.reset_index(drop=True), tuple(names), dropped, print_
    )


def _plain(frame, settings):
    if settings.title_column is None:
        from jaxloop.data.stories import sentences

        parts = [sentences(text) for text in frame["text"]]
        titles, bodies = (
            [part[0] if part else "" for part in parts],
            [" ".join(part[1:]) for part in parts],
        )
        ids = [str(i) for i in frame.index]
        return frame.assign(id=ids, title=titles, body=bodies)[["id", "title", "body", "label"]]
    titles = frame[settings.title_column].map(
        lambda v: "" if v is None else " ".join(str(v).split())
    )
    return frame.assign(
        id=[str(i) for i in frame.index], title=titles, body=frame["text"].str.strip()
    )[["id", "title", "body", "label"]]


def _of_posts(frame, settings):
    """One article per author and calendar week: the first post is its title, the others are the
    lines of its body; links are left out.
    """
    import pandas as pd

    try:
        week = (
            pd.to_datetime(frame[settings.date_column], format="mixed")
            .dt.to_period("W")
            .dt.start_time.dt.strftime("%Y-%m-%d")
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"config.data.date_column = '{settings.date_column}': cannot be read as dates "
            f"({str(error).splitlines()[0]})"
        ) from None
    line = frame["text"].map(lambda text: " ".join(_LINK.sub("", text).split()))
    frame = frame.assign(line=line, week=week)[line.str.len() > 0]
    rows = []
    for (author, start), posts in frame.groupby([settings.author_column, "week"], sort=True):
        lines = posts.sort_values(settings.date_column, kind="stable")["line"].tolist()
        if len(lines) > 1:
            rows.append(
                (f"{author} {start}", lines[0], "\n".join(lines[1:]), posts["label"].iloc[0])
            )
    return pd.DataFrame(rows, columns=["id", "title", "body", "label"])


def _in_length(table, settings, encode, decode, block):
    """Bodies cut to `body_tokens`, titles to `title_tokens`; articles whose body is shorter than a
    block refused, dropped or kept.
    """
    for column, limit in (("body", settings.body_tokens), ("title", settings.title_tokens)):
        if limit is not None:
            ids = encode(table[column].tolist())
            cut = [i for i, tokens in enumerate(ids) if len(tokens) > limit]
            texts = table[column].tolist()
            for i, text in zip(cut, decode([ids[i][:limit] for i in cut]), strict=True):
                texts[i] = text.rstrip("\ufffd")
            table = table.assign(**{column: texts})
    short = [len(ids) < block for ids in encode(table["body"].tolist())]
    if settings.short == "refuse" and any(short):
        first = table[short].iloc[0]
        raise ValueError(
            f"config.data.short = 'refuse': article {first['id']} ({first['title'][:40]!r}) and "
                f"{sum(short) - 1} others are shorter than a block "
            f"of {block} tokens; take longer ones, a smaller chain.block, or 'drop' or 'keep'"
        )  # fmt: skip
    if settings.short != "drop":
        return table.reset_index(drop=True), 0
    kept = table[[not s for s in short]].reset_index(drop=True)
    if not len(kept):
        raise ValueError(
            f"config.data.short = 'drop': every article of '{settings.source}' is shorter than a "
            f"block of {block} tokens"
        )
    return kept, sum(short)


def blocks(
    title: Sequence[int], body: Sequence[int], size: int, start: Sequence[int] = ()
) -> list[tuple[int, ...]]:
    """The prompts of an article: its title as one block, its body in blocks of `size` tokens, the
    last one shorter; `start` (BOS) before each.
    """
    cut = [body[at : at + size] for at in range(0, len(body), size)]
    return [(*start, *part) for part in (title, *cut)]


def examples(
    text: str,
    reading: str,
    encode: Callable[[Sequence[str]], list[list[int]]],
    start: Sequence[int] = (),
    blank: int = 0,
) -> list[tuple[int, ...]]:
    """Token ids of the training examples of an article: "paper", the whole article; "released",
    every line, as the released code's loader makes it.

    There a blank line is an example without any token to learn (the token `blank`), and one
    separates articles: they lengthen an epoch.
    """
    lines = [text] if reading == "paper" else [*text.split("\n"), ""]
    found = iter(encode([line for line in lines if line.strip()]))
    return [(*start, *next(found)) if line.strip() else (blank,) for line in lines]
