"""The cleaning of the five datasets of "Recursive Training Loops in LLMs" (arXiv 2504.03814,
section 3 and appendix A), step by step.

Where the paper and its code disagree, the option of that name says which is followed; the defaults
follow the code.
"""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from jaxloop.data import sources
from jaxloop.data.delimited import Dialect
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
    """Where a dataset comes from, and its steps.

    steps: function(count_tokens, **options) -> steps; source, splits: on the Hugging Face hub;
    columns: those that the steps read; instruction: the one prompt of its domain.
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
    """100M_tweets: columns tweet, date (and any others, which are kept).

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
    steps += [cleaning.strip_trailing_hashtags()] if trailing_hashtags == "deleted" else []
    steps += [cleaning.length(count_tokens, LOW, HIGH), cleaning.before(until)]
    steps += (
        [cleaning.sample(_positive("presample", presample), seed)] if presample is not None else []
    )
    steps += [cleaning.keep_batches("not English", is_english or english_by_langid)]
    steps += (
        [cleaning.fewer(mark, _positive("marks", marks)) for mark in "#@"]
        if marks is not None
        else []
    )
    return tuple(steps)


def senator_tweets(
    count_tokens: Counter | None = None, *, count_words: Counter | None = None
) -> tuple[Step, ...]:
    """senator_tweets: column text; keeps more than 10 NLTK words (`nltk_words`), and all columns
    but the embeddings.

    `count_tokens` is not used: this dataset alone is filtered by words.
    """
    unit = (
        "words"
        if count_words is not None
        else f"words ({'NLTK, punkt' if _punkt() else 'NLTK, sentences by rule'})"
    )
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
    """reddit_submissions: columns title, selftext, subreddit.

    Args:
      removed: what happens to "[deleted]" and "[removed]": these strings are "deleted" from the
      texts at the end, without a second filter
        on length (code), or posts that have one are "dropped" (paper).
      per_subreddit: at most so many posts of each subreddit, drawn uniformly from those of the
      right length, all in random order; None
        for all. (The code draws 60,000, then 100,000, then all until more than 25,000 have the
        right length: the same sample in law.)
    """
    _choice("removed", removed, ("deleted", "dropped"))
    steps = [
        cleaning.texts_from("title", "selftext", strip=True),
        cleaning.without(["title", "selftext"]),
    ]
    steps += [cleaning.drop_containing(REMOVED)] if removed == "dropped" else []
    steps += [cleaning.length(count_tokens, LOW, HIGH)]
    steps += (
        [cleaning.sample(_positive("per_subreddit", per_subreddit), seed, "subreddit")]
        if per_subreddit is not None
        else []
    )
    steps += [cleaning.delete(REMOVED)] if removed == "deleted" else []
    return tuple(steps)


def webis_reddit(
    count_tokens: Counter, *, unsafe_subreddits: Collection[str] = (), tldr: str = TLDR
) -> tuple[Step, ...]:
    """webis_reddit: columns normalizedBody, subreddit, and title where there is one.

    Args:
      unsafe_subreddits: dropped; the authors' table of subreddits marked nsfw is not published. A
      subreddit not listed is safe. tldr: texts are cut before the first match of this pattern, so
      that no summary is left.
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
    """wikipedia: column text; the first paragraph of each article, if it has the right length. (The
    authors' script is not published.)
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
    **options,
) -> Iterator[Row]:
    """The clean rows of one of `RECIPES`, in a stream of bounded memory.

    Args:
      dataset: a key of `RECIPES`.
      report: filled as by `cleaning.clean`.
      count_tokens: tokens of each text of a list; `cl100k_counter()`, the paper's unit, when None.
      source: a file, several files, or a Hugging Face id with the same columns; the recipe's own
      when None.
      splits: of a Hugging Face dataset, read one after the other; the recipe's own when None (a
      given source: "train").
      rename: {column of the source: column of the recipe}.
      name, revision, streaming: of a Hugging Face dataset.
      limit: read no more than this many rows.
      dialect: of csv and tsv files.
      options: of the recipe's function.

    Raises: ValueError for an unknown dataset or option, a column that is missing, a source that
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
    allowed = [option for option in (recipe.steps.__kwdefaults__ or {})]
    for option in options:
        if option not in allowed:
            close = difflib.get_close_matches(option, allowed, 1, 0.4)
            hint = (
                f"; did you mean {close[0]!r}"
                if close
                else f"; it has {', '.join(allowed) or 'none'}"
            )
            raise ValueError(f"cleaning: {option!r} is not an option of {dataset!r}{hint}.")
    steps = recipe.steps(count_tokens, **options)
    if name is None and source is None and dataset == "wikipedia":
        name = "20231101.en"
    if source is None:
        found = [recipe.source]
        splits = recipe.splits if splits is None else splits
    else:
        found = [source] if isinstance(source, str | Path) else list(source)
        splits = ("train",) if splits is None else splits
    stream = _rows(found, splits, name, revision, streaming, rename or {}, recipe, dataset, dialect)
    return cleaning.clean(itertools.islice(stream, limit), steps, report)


def _rows(found, splits, name, revision, streaming, rename, recipe, dataset, dialect):
    for source in found:
        for split in splits[:1] if sources.is_local(source) else splits:
            stream = sources.rows(
                source,
                split=split,
                name=name,
                revision=revision,
                streaming=streaming,
                dialect=dialect,
            )
            for number, row in enumerate(stream):
                row = {rename.get(column, column): value for column, value in row.items()}
                if "subreddit" in recipe.columns and split in SUBREDDITS:
                    row.setdefault("subreddit", split)
                missing = [column for column in recipe.columns if column not in row]
                if missing and number == 0:
                    close = difflib.get_close_matches(missing[0], row, 1, 0.5)
                    hint = f"; is {close[0]!r} the same? then rename it" if close else ""
                    raise ValueError(
                        f"cleaning: {dataset!r} needs the column {missing[0]!r}; '{source}' has "
                        f"{', '.join(map(str, row))}{hint}."
                    )
                yield {**dict.fromkeys(missing), **row}


def cl100k_counter() -> Counter:
    """Counts tokens of tiktoken's cl100k_base, the paper's unit of length.

    Raises ValueError where tiktoken is not installed, or the encoding neither in its cache nor to
    be downloaded.
    """
    advice = "give count_tokens, for example the tokenizer of a model (model.tokenizer.count)"
    try:
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
    return lambda texts: [len(ids) for ids in encoding.encode_ordinary_batch(list(texts))]


def english_by_langid(texts: list[str]) -> list[bool]:
    """Which texts py3langid takes for English: an offline stand-in for the paper's Llama-3.3-70B,
    good on 20 words or more.
    """
    import py3langid

    return [
        py3langid.classify(text.encode("utf-8", "replace").decode())[0] == "en" for text in texts
    ]


_SENTENCE_BREAK = re.compile(r"(?<=[.!?])(?:[\"'”’)]*)\s+(?=[\"'“‘(@#]*[A-Z0-9])")


def _punkt():
    import nltk

    try:
        return bool(nltk.data.find("tokenizers/punkt_tab"))
    except (LookupError, OSError):
        return False


def nltk_words(texts: list[str]) -> list[int]:
    """How many tokens NLTK's `word_tokenize` cuts each text into.

    Its sentence model (punkt) has to be downloaded. Where it is not installed, sentences end where
    a capital letter or a digit follows ., ! or ? and white space; the words are those of NLTK
    either way.
    """
    from nltk.tokenize import word_tokenize

    if _punkt():
        return [len(word_tokenize(text)) for text in texts]
    return [
        sum(len(word_tokenize(part, preserve_line=True)) for part in _SENTENCE_BREAK.split(text))
        for text in texts
    ]


def _choice(option, value, allowed):
    if value not in allowed:
        raise ValueError(
            f"cleaning: {option} = {value!r} is not one of {', '.join(map(repr, allowed))}."
        )


def _positive(option, value):
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"cleaning: {option} = {value!r} must be a whole number from 1 up, or None for no "
            "such rule."
        )
    return value
