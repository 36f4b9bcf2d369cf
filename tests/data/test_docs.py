"""The embedded dataset: what the extractor keeps of a docstring, that nothing is said twice, and
that its cache cannot lie.
"""

import os
import re
import subprocess
import sys
import textwrap
import time

import pandas as pd
import pytest

from jaxloop.data import docs, docs_extraction, prose
from jaxloop.data.digest import fingerprint

WORDS = re.compile(r"[a-z]+")


def paragraphs(doc):
    return list(prose.paragraphs(textwrap.dedent(doc).strip("\n")))


def test_numpy_docstring_leaves_its_sentences():
    doc = """
    Compute the weighted average of the samples along the axis that is asked for.

    The weights need not sum to one, because they are
    divided by their sum before use.

    Parameters
    ----------
    a : array_like, shape (n, 3)
        Array that contains the data to be averaged, of any shape at all.
    axis : None or int, optional
        Axis.

    Returns
    -------
    average : ndarray
        The average along the axis that was asked for, in the type of the weights. Default is None.

    See Also
    --------
    mean : The average without weights, which is faster when there are none to use.

    Examples
    --------
    >>> np.average([1, 2, 3])
    2.0

    In the next example the weights are given by the position of each sample.

    >>> np.average([1, 2, 3], weights=[3, 2, 1])
    1.6666

    ====  ====
    this  is a
    table of the numbers
    ====  ====

    .. versionadded:: 1.4
       This is a note about the version in which the function was added to the library.

    .. math::

        x = \\sum_i w_i x_i is the formula that is used by the function here.
    """
    assert paragraphs(doc) == [
        "Compute the weighted average of the samples along the axis that is asked for.",
        "The weights need not sum to one, because they are divided by their sum before use.",
        "Array that contains the data to be averaged, of any shape at all.",
        "The average along the axis that was asked for, in the type of the weights.",
        "In the next example the weights are given by the position of each sample.",
    ]


def test_google_and_sphinx_docstrings_leave_their_sentences():
    doc = """
    Opens the connection to the server and waits until it is ready to be used::

        connection = open("this is code and not a sentence of the text, so it must go.")

    Args:
      name (str, optional): The name of the server to which the connection is to be opened.
      timeout: How many seconds to wait for the server before the attempt is given up.

    :param port: The port on which the server listens, as it was given to its command line.
    :type port: int
    :returns: A :class:`~package.Connection` that is closed again when the ``with`` \
block is left [1]_.

    - The first of the points in the list, which has enough words to be a paragraph.

    ```python
    this is fenced code that has many words in it and would pass as a sentence of English.
    ```
    Read https://example.org/page to learn about the things that are done by this function.
    """
    assert paragraphs(doc) == [
        "The name of the server to which the connection is to be opened.",
        "How many seconds to wait for the server before the attempt is given up.",
        "The port on which the server listens, as it was given to its command line.",
        "A Connection that is closed again when the with block is left.",
        "The first of the points in the list, which has enough words to be a paragraph.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Too short to keep.",
        "This is a sentence that has words enough to be kept but it never comes to an end",
        "x_1 y_2 z_3 = f(a_1, b_2) + g(c_3, d_4) * h(e_5) - the_end_of_it(a_1) / k(b_2).",
        "Die Funktion berechnet den Mittelwert aller Werte und gibt ihn danach sofort wieder "
        "zurück.",
        "The matrix is \\frac{1}{2} of the other one, as is shown in the paper by the same "
        "authors.",
        "Copyright of this file is held by the authors of the package and by those who have "
        "helped.",
        "Use the list [1, 2], [3, 4] and the other [5] so that the shape of it is as it has to be.",
    ],
)
def test_what_is_not_english_prose_is_dropped(text):
    assert prose.clean(text) is None


def test_near_duplicates_are_dropped_whatever_their_library():
    base = (
        "The number of jobs to run in parallel when the trees of the forest are grown from the "
        "samples."
    )
    records = [
        (base, "a"),
        (base.upper().replace(".", " !"), "b"),
        (
            "The number of jobs to run in parallel, which is another way to go on after eight "
            "equal words.",
            "b",
        ),
        (
            "Here is the number of jobs to run in parallel when the trees of the forest are "
            "grown from data.",
            "b",
        ),
        (
            "A sentence about the weather in the mountains, which shares no five words with the "
            "others here.",
            "b",
        ),
    ]
    assert [r[1] for r in docs_extraction.deduplicate(records)] == ["a", "b"]


@pytest.fixture(scope="module")
def corpus():
    """The whole dataset, from the user's cache: extracting it takes some twenty-five seconds."""
    return docs.load()


def test_the_dataset_is_large_prose_and_split_for_pretraining(corpus):
    held_out = corpus[corpus["domain"].isin(docs.HELD_OUT)]
    pretrain = corpus[corpus["domain"].isin(docs.PRETRAIN)]
    assert len(corpus) == len(held_out) + len(pretrain)
    assert len(held_out) >= 12_000 and held_out["domain"].nunique() >= 3
    assert len(pretrain) >= 20_000
    assert corpus["text"].str.len().between(prose.MIN_CHARS, prose.MAX_CHARS).all()
    assert not corpus["text"].str.contains(r">>>|https?:|\n|  |`|\\").any()
    assert corpus["text"].str.contains(r"[.!?][)\"'”’]*$").all()
    assert corpus["id"].is_unique


def test_held_out_libraries_share_next_to_nothing_with_the_pretraining_ones(corpus):
    """Counted in another way than the extractor does: sequences of eight words, as a language model
    could memorise them.
    """

    def sequences(text):
        words = WORDS.findall(text.lower())
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    seen = set()
    for text in corpus.loc[corpus["domain"].isin(docs.PRETRAIN), "text"]:
        seen |= sequences(text)
    held_out = corpus.loc[corpus["domain"].isin(docs.HELD_OUT), "text"]
    own = [sequences(text) for text in held_out]
    assert sum(len(s & seen) for s in own) < 0.01 * sum(map(len, own))
    assert max(len(s & seen) / max(len(s), 1) for s in own) < 0.5


def test_libraries_are_chosen_by_name_and_a_wrong_name_is_refused(corpus):
    two = docs.load(("scipy", "nltk"))
    expected = corpus[corpus["domain"].isin(["scipy", "nltk"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(two, expected)
    with pytest.raises(
        ValueError, match="'skipy' is not one of its libraries .did you mean 'scipy'"
    ):
        docs.load(["skipy"])


def small(monkeypatch):
    """Make the dataset small: one library."""
    monkeypatch.setattr(docs, "LIBRARIES", ("jinja2",))


def test_the_cache_is_verified_and_rebuilt(monkeypatch, tmp_path):
    small(monkeypatch)
    first = docs.load_installed(cache=tmp_path)
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    pd.testing.assert_frame_equal(docs.load_installed(cache=tmp_path), first)
    assert file.stat().st_mtime_ns == before
    for position in (len(file.read_bytes()) // 2, 100, -20):
        damaged = bytearray(file.read_bytes())
        damaged[position] ^= 4
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged"):
            pd.testing.assert_frame_equal(docs.load_installed(cache=tmp_path), first)
    file.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        assert fingerprint(docs.load_installed(cache=tmp_path)) == fingerprint(first)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_another_version_of_a_library_is_another_cache_file(monkeypatch, tmp_path):
    small(monkeypatch)
    docs.load_installed(cache=tmp_path)
    versions = docs.versions()
    monkeypatch.setattr(
        docs, "versions", lambda: {name: version + ".1" for name, version in versions.items()}
    )
    docs.load_installed(cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_costs_only_the_cache(monkeypatch, tmp_path):
    small(monkeypatch)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(UserWarning, match="no cache at"):
        assert len(docs.load_installed(cache=blocked)) > 100
    assert fingerprint(docs.load_installed(cache=False)) == fingerprint(
        docs_extraction.build(["jinja2"])
    )


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXLOOP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert docs.cache_folder() == tmp_path / "xdg" / "jaxloop"
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "own"))
    assert docs.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("JAXLOOP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert docs.cache_folder() == tmp_path / ".cache" / "jaxloop"


def test_fingerprint_sees_texts_and_their_order_alone():
    frame = pd.DataFrame({"text": ["ab", "c"], "domain": ["x", "y"]})
    same = fingerprint(frame.assign(domain="z"))
    assert fingerprint(frame) == same and len(same) == 64
    assert fingerprint(frame[::-1]) != same
    assert fingerprint(pd.DataFrame({"text": ["a", "bc"]})) != same
    assert fingerprint(pd.DataFrame({"text": pd.Series(["\ud800"], dtype=object)})) != fingerprint(
        pd.DataFrame({"text": ["?"]})
    )


def test_extraction_imports_none_of_the_libraries():
    code = (
        "import sys; from jaxloop.data import docs_extraction as ex; list(ex.extract('umap')); "
        "print(*sorted({'umap', 'numba', 'torch'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert out.stdout.strip() == ""


@pytest.mark.slow
def test_extraction_is_deterministic_and_takes_seconds(corpus):
    start = time.process_time()
    again = docs.load_installed(cache=False)
    assert time.process_time() - start < 60
    pd.testing.assert_frame_equal(again, corpus)
