"""How the five datasets of arXiv 2504.03814 are cleaned, step by step.

Source: its section 3 and appendix A, and its released code. Where these disagree there is an option
that chooses; the defaults follow the code.
"""

import dataclasses
import difflib
import functools
import itertools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxloop.config.annotations import accepts, allowed
from jaxloop.data import sources
from jaxloop.data.batches import Columns, Shard, all_names, chosen, count_of, first, tables
from jaxloop.data.dialect import Dialect
from jaxloop.runtime.environment import how_to_install
from jaxloop.studies.recursive_loops.data import cleaning, sampling
from jaxloop.studies.recursive_loops.data.cleaning import Counter, Step
from jaxloop.studies.recursive_loops.data.language import english_by_langid
from jaxloop.studies.recursive_loops.data.token_counts import word_by_word
from jaxloop.studies.recursive_loops.data.words import has_punkt, nltk_words

LOW, HIGH = 20, 200
SUBREDDITS = tuple(
    "tifu explainlikeimfive WritingPrompts changemyview LifeProTips todayilearned science "
    "askscience ifyoulikeblank Foodforthought "
    "IWantToLearn bestof IAmA socialskills relationship_advice philosophy YouShouldKnow history "
    "books Showerthoughts personalfinance "
    "buildapc EatCheapAndHealthy boardgames malefashionadvice femalefashionadvice scifi Fantasy "
    "Games bodyweightfitness SkincareAddiction "
    "podcasts suggestmeabook AskHistorians gaming DIY mildlyinteresting sports space gadgets "
    "Documentaries GetMotivated UpliftingNews "
    "technology Fitness travel lifehacks Damnthatsinteresting gardening programming".split()
)
REMOVED = ("[deleted]", "[removed]")
# "tl;dr" as people write it: tl, tld, tll or "st l", then punctuation or space or nothing, then dr
# or sdr.
TLDR = r"(?:st l|tld|tll|tl)[\W_]{0,3}s?dr"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Where a dataset comes from and how it is cleaned.

    Attributes:
        steps: function(count_tokens, **options) that returns the cleaning steps.
        source: its id on the Hugging Face hub.
        splits: the splits that are read.
        columns: the columns that the steps read.
        instruction: the prompt that all its texts answer.
        optional: columns that are read where the source has them.
        dates: those of the columns that hold dates; the others hold text.
        files: names of the file that is read instead of the hub's dataset; () where that is read.
        download: the command that gets this file.
    """

    steps: Callable[..., tuple[Step, ...]]
    source: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    instruction: str
    optional: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    download: str = ""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the rows of a dataset are, and which of its columns are read.

    Attributes:
        source: files, or Hugging Face ids, with the recipe's columns; empty: the recipe's own.
        splits: of a Hugging Face dataset, read one after the other; empty: the recipe's own, of a
            given source "train".
        rename: {column of the source: column of the recipe}.
        name, revision, streaming: of a Hugging Face dataset.
        dialect: of csv and tsv files.
        keep_columns: columns that are read beside the recipe's, and kept.
    """

    source: Sequence[str | Path] = ()
    splits: Sequence[str] = ()
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str | None = None
    revision: str | None = None
    streaming: bool = True
    dialect: Dialect = Dialect()
    keep_columns: tuple[str, ...] = ()


def tweets_100m(
    count_tokens: Counter,
    *,
    trailing_hashtags: str = "deleted",
    presample: int | None = 4_000_000,
    marks: int | None = 3,
    until: str = "2020-06-01",
    is_english: Callable[[list[str]], Sequence[bool]] | None = None,
    seed: int = 0,
) -> tuple[Step, ...]:
    """Return the steps of 100M_tweets: columns tweet, date (and any others, which stay).

    Args:
        trailing_hashtags: "deleted" (code) or "kept" (paper).
        presample: how many rows to draw before the English filter (code: 4 million); None for all
            (paper).
        marks: keep texts with fewer than so many "#" and "@" (code: 3); None for no such rule
            (paper).
        until: keep rows before this day.
        is_english: which of a list of texts are English. The paper asks Llama-3.3-70B; by default
            py3langid answers.
    """
    _choice("trailing_hashtags", trailing_hashtags, ("deleted", "kept"))
    steps = [cleaning.texts_from("tweet"), cleaning.without(["tweet"]), cleaning.drop_links()]
    if trailing_hashtags == "deleted":
        steps.append(cleaning.strip_trailing_hashtags())
    steps += [cleaning.length(count_tokens, LOW, HIGH), cleaning.before(until)]
    if presample is not None:
        steps.append(sampling.sample(_positive("presample", presample), seed))
    steps.append(cleaning.keep_batches("not English", is_english or english_by_langid))
    if marks is not None:
        steps += [cleaning.fewer(mark, _positive("marks", marks)) for mark in "#@"]
    return tuple(steps)


def senator_tweets(
    count_tokens: Counter | None = None, *, count_words: Counter | None = None
) -> tuple[Step, ...]:
    """Return the steps of senator_tweets: column text.

    They keep texts of more than 10 NLTK words (`nltk_words`), and all columns but the embeddings.
    `count_tokens` is not used: only this dataset is filtered by words.
    """
    unit = "words"
    if count_words is None:
        unit += f" (NLTK, {'punkt' if has_punkt() else 'sentences by rule'})"
    return (
        cleaning.texts_from("text"),
        cleaning.without(["embeddings"]),
        cleaning.drop_links(),
        cleaning.length(count_words or nltk_words, 10, None, unit),
    )


def reddit_submissions(
    count_tokens: Counter,
    *,
    removed: str = "deleted",
    per_subreddit: int | None = 25_000,
    seed: int = 0,
) -> tuple[Step, ...]:
    """Return the steps of reddit_submissions: columns title, selftext, subreddit.

    Args:
        removed: what happens to "[deleted]" and "[removed]": these strings are "deleted" from the
            texts at the end, without a second filter on length (code), or posts that have one are
            "dropped" (paper).
        per_subreddit: at most so many posts of each subreddit, drawn uniformly from those of the
            right length, all in random order; None for all. (The code draws 60,000, then 100,000,
            then all until more than 25,000 have the right length: the same distribution.)
    """
    _choice("removed", removed, ("deleted", "dropped"))
    steps = [
        cleaning.texts_from("title", "selftext", strip=True),
        cleaning.without(["title", "selftext"]),
    ]
    if removed == "dropped":
        steps.append(cleaning.drop_containing(REMOVED))
    steps.append(cleaning.length(count_tokens, LOW, HIGH))
    if per_subreddit is not None:
        count = _positive("per_subreddit", per_subreddit)
        steps.append(sampling.sample(count, seed, "subreddit"))
    if removed == "deleted":
        steps.append(cleaning.delete(REMOVED))
    return tuple(steps)


def webis_reddit(
    count_tokens: Counter,
    *,
    unsafe_subreddits: Sequence[str] | set[str] | frozenset[str] = (),
    tldr: str = TLDR,
) -> tuple[Step, ...]:
    """Return the steps of webis_reddit: columns normalizedBody, subreddit, and title if present.

    Args:
        unsafe_subreddits: dropped; the authors' table of subreddits marked nsfw is not published. A
            subreddit not listed is safe.
        tldr: texts are cut before the first match of this pattern, so that no summary is left.
    """
    return (
        cleaning.not_in("subreddit", unsafe_subreddits, "unsafe subreddit"),
        cleaning.texts_from("title", "normalizedBody"),
        cleaning.without(["title", "normalizedBody", "body", "content", "summary"]),
        cleaning.cut_before(tldr, "cut at tl;dr"),
        cleaning.length(count_tokens, LOW, HIGH),
        cleaning.distinct(),
        cleaning.strip_right(),
    )


def wikipedia(count_tokens: Counter) -> tuple[Step, ...]:
    """Return the steps of wikipedia: column text.

    They keep the first paragraph of each article if it has the right length. (The authors' script
    is not published.)
    """
    return (
        cleaning.texts_from("text"),
        cleaning.first_paragraph(),
        cleaning.length(count_tokens, LOW, HIGH),
    )


_TWITTER, _REDDIT = "Generate a twitter post.", "Generate a reddit post."
# On the hub Webis-TLDR-17 is a loading script, which is remote code, beside a zip of JSON lines;
# its automatic conversion to parquet holds a third of the rows.
_TLDR_17 = ("corpus-webis-tldr-17.zip", "corpus-webis-tldr-17.json")
RECIPES: Mapping[str, Recipe] = {
    "100M_tweets": Recipe(
        tweets_100m,
        "enryu43/twitter100m_tweets",
        ("train",),
        ("tweet", "date"),
        _TWITTER,
        dates=("date",),
    ),
    "senator_tweets": Recipe(
        senator_tweets, "m-newhauser/senator-tweets", ("train", "test"), ("text",), _TWITTER
    ),
    "reddit_submissions": Recipe(
        reddit_submissions,
        "HuggingFaceGECLM/REDDIT_submissions",
        SUBREDDITS,
        ("title", "selftext", "subreddit"),
        _REDDIT,
    ),
    "webis_reddit": Recipe(
        webis_reddit,
        "webis/tldr-17",
        ("train",),
        ("normalizedBody", "subreddit"),
        _REDDIT,
        optional=("title",),
        files=_TLDR_17,
        download="hf download webis/tldr-17 data/corpus-webis-tldr-17.zip --repo-type dataset",
    ),
    "wikipedia": Recipe(
        wikipedia,
        "wikimedia/wikipedia",
        ("train",),
        ("text",),
        "Generate an opening wikipedia paragraph.",
    ),
}


def clean_dataset(
    dataset: str,
    report: cleaning.Report,
    *,
    count_tokens: Counter | None = None,
    origin: Origin | None = None,
    limit: int | None = None,
    **options: Any,
) -> Iterator[Columns]:
    """Yield the clean rows of one of `RECIPES`; memory does not grow with their number.

    Args:
        dataset: a key of `RECIPES`.
        report: filled as by `cleaning.clean`.
        count_tokens: as of `steps_of`.
        origin: where its rows are; the recipe's own place when None.
        limit: read no more than this many rows.
        options: of the recipe's function.

    Raises ValueError for an unknown dataset or option, a column that is missing or holds another
    kind of value, a source that cannot be read, a rule that drops all.
    """
    steps = steps_of(dataset, count_tokens, **options)
    shards = shards_of(dataset, origin or Origin())
    batches = itertools.chain.from_iterable(shard.read() for shard in shards)
    read = batches if limit is None else first(batches, limit)
    return cleaning.clean(tables(read), steps, report)


def recipe_of(dataset: str) -> Recipe:
    """Return a recipe by the name of its dataset. Raises ValueError for an unknown one."""
    if dataset not in RECIPES:
        close = difflib.get_close_matches(dataset, RECIPES, 1, 0.4)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"cleaning: {dataset!r} is not a known dataset{hint}; known are {', '.join(RECIPES)}."
        )
    return RECIPES[dataset]


def steps_of(dataset: str, count_tokens: Counter | None = None, **options: Any) -> tuple[Step, ...]:
    """Return the steps of one of `RECIPES`.

    Args:
        dataset: a key of `RECIPES`.
        count_tokens: tokens of each text of a list; `cl100k_counter()`, the paper's unit, when
            None.
        options: of the recipe's function. Raises ValueError for an unknown one, and for a value of
            another type.
    """
    recipe = recipe_of(dataset)
    needs_tokens = recipe.steps is not senator_tweets
    if count_tokens is None and needs_tokens:
        count_tokens = cl100k_counter()
    _check_options(dataset, list(recipe.steps.__kwdefaults__ or {}), options)
    hints = typing.get_type_hints(recipe.steps)
    for option, value in options.items():
        if not accepts(hints[option], value):
            raise ValueError(
                f"cleaning: {option} = {value!r} of {dataset!r} is not allowed: "
                f"{allowed(hints[option])}."
            )
    return recipe.steps(count_tokens, **options)


def shards_of(dataset: str, origin: Origin) -> Iterator[Shard]:
    """Yield the parts of a dataset, whose rows have the recipe's columns and no others.

    A bad value of one of these is refused with its column and its row.
    """
    recipe = recipe_of(dataset)
    places = origin.source or own_places(dataset)
    splits = origin.splits or (("train",) if origin.source else recipe.splits)
    name = origin.name
    if name is None and not origin.source and dataset == "wikipedia":
        name = "20231101.en"
    source_names = {of_recipe: of_source for of_source, of_recipe in origin.rename.items()}
    for place in places:
        for split in splits[:1] if sources.is_local(place) else splits:
            subreddit = split if "subreddit" in recipe.columns and split in SUBREDDITS else None
            required = (*recipe.columns, *origin.keep_columns)
            found = [c for c in required if c != "subreddit" or subreddit is None]
            optional = recipe.optional if subreddit is None else (*recipe.optional, "subreddit")
            for shard in sources.shards(
                place,
                columns=[source_names.get(column, column) for column in found],
                optional=[source_names.get(column, column) for column in optional],
                split=split,
                name=name,
                revision=origin.revision,
                streaming=origin.streaming,
                dialect=origin.dialect,
            ):
                wanted = _Wanted(dataset, recipe, required, source_names, subreddit)
                yield Shard(shard.name, functools.partial(_recipe_batches, shard, wanted))


def own_places(dataset: str) -> Sequence[str | Path]:
    """Return where a recipe's dataset is read: its id on the hub, or its file in this folder.

    Raises ValueError, with the command that downloads it, where the file is not here.
    """
    recipe = recipe_of(dataset)
    if not recipe.files:
        return (recipe.source,)
    here = [name for name in recipe.files if Path(name).is_file()]
    if not here:
        raise ValueError(
            f"cleaning: {dataset!r} is read from {recipe.files[0]}, which is not in this folder, "
            f"since the hub has a loading script, and remote code is never run; download it "
            f"({recipe.download}) and give its path as source, or a parquet conversion of it."
        )
    return here[:1]


class _Wanted(NamedTuple):
    """What is read of a shard.

    Attributes:
        dataset, recipe: whose columns are wanted.
        required: the columns that every shard has.
        source_names: {column of the recipe: column of the source}, where these differ.
        subreddit: of all rows, where a split holds one.
    """

    dataset: str
    recipe: Recipe
    required: tuple[str, ...]
    source_names: Mapping[str, str]
    subreddit: str | None


def _recipe_batches(shard: Shard, wanted: _Wanted) -> Iterator[Columns]:
    """The rows of a shard with every column that the recipe reads.

    Raises ValueError where the first rows lack a column, or a value is of another kind.
    """
    rows = 0
    for batch in shard.read():
        names = [*wanted.required, *wanted.recipe.optional]
        found = chosen(batch, [wanted.source_names.get(name, name) for name in names])
        columns = {
            name: found[wanted.source_names.get(name, name)]
            for name in names
            if wanted.source_names.get(name, name) in found
        }
        count = len(batch) if isinstance(batch, list) else count_of(batch)
        if wanted.subreddit is not None:
            columns.setdefault("subreddit", [wanted.subreddit] * count)
        missing = [name for name in wanted.required if name not in columns]
        if missing and rows == 0:
            there = all_names([batch] if isinstance(batch, dict) else batch)
            names_there = [_renamed(name, wanted) for name in there]
            close = difflib.get_close_matches(missing[0], names_there, 1, 0.5)
            hint = f"; is {close[0]!r} the same? then rename it" if close else ""
            raise ValueError(
                f"cleaning: {wanted.dataset!r} needs the column {missing[0]!r}; '{shard.name}' has "
                f"{', '.join(names_there)}{hint}."
            )
        columns |= {name: [None] * count for name in missing}
        yield _checked(columns, wanted, shard.name, rows)
        rows += count


def _renamed(name: str, wanted: _Wanted) -> str:
    return {old: new for new, old in wanted.source_names.items()}.get(name, str(name))


def _checked(columns: Columns, wanted: _Wanted, where: str, before: int) -> Columns:
    """The columns, dates as ISO text. before: how many rows of the shard there were before."""
    for name in (*wanted.recipe.columns, *wanted.recipe.optional):
        if name in columns and name not in wanted.recipe.dates:
            cleaning.check_texts(columns[name], name, where, before)
    for name in wanted.required:
        if name not in wanted.recipe.columns:
            columns[name] = cleaning.check_labels(columns[name], name, where, before)
    for name in wanted.recipe.dates:
        columns[name] = [cleaning.iso_date(value) for value in columns[name]]
        for number, day in enumerate(columns[name], before + 1):
            if day:
                cleaning.check_date(day, name, f" in row {number} of '{where}'")
    return columns


def _check_options(dataset: str, allowed: Sequence[str], options: Iterable[str]) -> None:
    for option in options:
        if option not in allowed:
            close = difflib.get_close_matches(option, allowed, 1, 0.4)
            hint = f"; it has {', '.join(allowed) or 'none'}"
            if close:
                hint = f"; did you mean {close[0]!r}"
            raise ValueError(f"cleaning: {option!r} is not an option of {dataset!r}{hint}.")


def cl100k_counter() -> Counter:
    """Return a function that counts tokens of tiktoken's cl100k_base, the paper's unit of length.

    Raises ValueError where tiktoken is not installed, or its encoding is not in its cache and
    cannot be downloaded.
    """
    advice = "give count_tokens, for example the tokenizer of a model (model.tokenizer.count)"
    try:
        # An optional package.
        import tiktoken

        encoding = tiktoken.get_encoding("cl100k_base")
    except ImportError:
        install = f"is not installed; {how_to_install('tiktoken')}, or {advice}"
        raise ValueError(
            f"count_tokens: tiktoken, which counts the paper's cl100k_base tokens, {install}."
        ) from None
    except Exception as error:
        raise ValueError(
            f"count_tokens: tiktoken's cl100k_base cannot be loaded ({type(error).__name__}); "
            f"{advice}."
        ) from error

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in encoding.encode_ordinary_batch(list(texts))]

    # It cuts texts as Llama 3 does.
    return word_by_word(count)


def _choice(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(
            f"cleaning: {option} = {value!r} is not one of {', '.join(map(repr, allowed))}."
        )


def _positive(option: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"cleaning: {option} = {value!r} must be a whole number from 1 up, or None for no "
            "such rule."
        )
    return value
