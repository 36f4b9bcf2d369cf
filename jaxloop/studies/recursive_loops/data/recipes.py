"""How the five datasets of arXiv 2504.03814 are cleaned, step by step.

Source: its section 3 and appendix A, and its released code. Where these disagree there is an option
that chooses; the defaults follow the code.
"""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxloop.data import sources
from jaxloop.data.dialect import Dialect
from jaxloop.runtime.environment import how_to_install
from jaxloop.studies.recursive_loops.data import cleaning
from jaxloop.studies.recursive_loops.data.cleaning import Counter, Row, Step

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
    """

    steps: Callable[..., tuple[Step, ...]]
    source: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    instruction: str


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
        steps.append(cleaning.sample(_positive("presample", presample), seed))
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
        unit += f" (NLTK, {'punkt' if _punkt() else 'sentences by rule'})"
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
        steps.append(cleaning.sample(count, seed, "subreddit"))
    if removed == "deleted":
        steps.append(cleaning.delete(REMOVED))
    return tuple(steps)


def webis_reddit(
    count_tokens: Counter, *, unsafe_subreddits: Collection[str] = (), tldr: str = TLDR
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
RECIPES: Mapping[str, Recipe] = {
    "100M_tweets": Recipe(
        tweets_100m, "enryu43/twitter100m_tweets", ("train",), ("tweet", "date"), _TWITTER
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
        webis_reddit, "webis/tldr-17", ("train",), ("normalizedBody", "subreddit"), _REDDIT
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
    report: dict,
    *,
    count_tokens: Counter | None = None,
    source: str | Path | Sequence[str | Path] | None = None,
    splits: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = True,
    limit: int | None = None,
    dialect: Dialect = Dialect(),
    **options: Any,
) -> Iterator[Row]:
    """Yield the clean rows of one of `RECIPES`; memory does not grow with their number.

    Args:
        dataset: a key of `RECIPES`.
        report: filled as by `cleaning.clean`.
        count_tokens: tokens of each text of a list; `cl100k_counter()`, the paper's unit, when
            None.
        source: a file, several files, or a Hugging Face id with the same columns; the recipe's own
            when None.
        splits: of a Hugging Face dataset, read one after the other; the recipe's own when None (a
            given source: "train").
        rename: {column of the source: column of the recipe}.
        name, revision, streaming: of a Hugging Face dataset.
        limit: read no more than this many rows.
        dialect: of csv and tsv files.
        options: of the recipe's function.

    Raises ValueError for an unknown dataset or option, a column that is missing, a source that
    cannot be read, a rule that drops all.
    """
    if dataset not in RECIPES:
        close = difflib.get_close_matches(dataset, RECIPES, 1, 0.4)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(
            f"cleaning: {dataset!r} is not a known dataset{hint}; known are {', '.join(RECIPES)}."
        )
    recipe = RECIPES[dataset]
    needs_tokens = recipe.steps is not senator_tweets
    if count_tokens is None and needs_tokens:
        count_tokens = cl100k_counter()
    _check_options(dataset, list(recipe.steps.__kwdefaults__ or {}), options)
    steps = recipe.steps(count_tokens, **options)
    places: Sequence[str | Path]
    if source is None:
        places, default_splits = [recipe.source], recipe.splits
        if name is None and dataset == "wikipedia":
            name = "20231101.en"
    else:
        places = [source] if isinstance(source, str | Path) else source
        default_splits = ("train",)
    splits = default_splits if splits is None else splits

    def rows() -> Iterator[Row]:
        for place in places:
            for split in splits[:1] if sources.is_local(place) else splits:
                stream = sources.rows(
                    place,
                    split=split,
                    name=name,
                    revision=revision,
                    streaming=streaming,
                    dialect=dialect,
                )
                subreddit = split if split in SUBREDDITS else None
                yield from _recipe_rows(stream, dataset, place, rename or {}, subreddit)

    return cleaning.clean(itertools.islice(rows(), limit), steps, report)


def _check_options(dataset: str, allowed: Sequence[str], options: Iterable[str]) -> None:
    for option in options:
        if option not in allowed:
            close = difflib.get_close_matches(option, allowed, 1, 0.4)
            hint = f"; it has {', '.join(allowed) or 'none'}"
            if close:
                hint = f"; did you mean {close[0]!r}"
            raise ValueError(f"cleaning: {option!r} is not an option of {dataset!r}{hint}.")


def _recipe_rows(
    stream: Iterable[Row],
    dataset: str,
    place: str | Path,
    rename: Mapping[str, str],
    subreddit: str | None,
) -> Iterator[Row]:
    """Rows of one source with every column that the recipe reads.

    subreddit: of all rows, where a split holds one. Raises ValueError where the first row lacks a
    column.
    """
    columns = RECIPES[dataset].columns
    for number, row in enumerate(stream):
        row = {rename.get(column, column): value for column, value in row.items()}
        if "subreddit" in columns and subreddit is not None:
            row.setdefault("subreddit", subreddit)
        missing = [column for column in columns if column not in row]
        if missing and number == 0:
            close = difflib.get_close_matches(missing[0], row, 1, 0.5)
            hint = f"; is {close[0]!r} the same? then rename it" if close else ""
            raise ValueError(
                f"cleaning: {dataset!r} needs the column {missing[0]!r}; '{place}' has "
                f"{', '.join(map(str, row))}{hint}."
            )
        yield {**dict.fromkeys(missing), **row}


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

    return count


def english_by_langid(texts: list[str]) -> list[bool]:
    """Return for each text whether py3langid takes it for English.

    It replaces the paper's Llama-3.3-70B without a network, and is reliable from 20 words on.
    """
    # It loads its model, which few recipes need.
    import py3langid

    return [
        py3langid.classify(text.encode("utf-8", "replace").decode())[0] == "en" for text in texts
    ]


_SENTENCE_BREAK = re.compile(r"(?<=[.!?])(?:[\"'”’)]*)\s+(?=[\"'“‘(@#]*[A-Z0-9])")


def _punkt() -> bool:
    # NLTK takes a second to load, which one recipe needs.
    import nltk

    try:
        return bool(nltk.data.find("tokenizers/punkt_tab"))
    except (LookupError, OSError):
        return False


def nltk_words(texts: list[str]) -> list[int]:
    """Return how many tokens NLTK's `word_tokenize` splits each text into.

    Its sentence model (punkt) has to be downloaded. Where it is not installed, sentences end where
    a capital letter or a digit follows ., ! or ? and white space; the words are those of NLTK
    either way.
    """
    # NLTK takes a second to load, which one recipe needs.
    from nltk.tokenize import word_tokenize

    if _punkt():
        return [len(word_tokenize(text)) for text in texts]
    return [
        sum(len(word_tokenize(part, preserve_line=True)) for part in _SENTENCE_BREAK.split(text))
        for text in texts
    ]


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
