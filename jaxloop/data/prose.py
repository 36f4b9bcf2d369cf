"""Extracts prose paragraphs from a docstring, without code, tables, signatures and mark-up."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

MIN_CHARS = 60
MAX_CHARS = 1500

# Sections (numpy style headings, Google style labels) whose body is not prose.
_DROPPED_SECTIONS = frozenset(
    (
        "see also|references|reference|methods|signature|bibliography|source|inheritance|authors|"
        "author|history|changelog|license|copyright|contents|todo"
    ).split("|")
)
_KEPT_DIRECTIVES = frozenset(
    "note warning tip important caution hint admonition attention topic rubric sidebar".split()
)
_KEPT_FIELDS = frozenset(
    (
        "param parameter arg argument return returns raises raise key keyword ivar cvar var attr"
    ).split()
)

_UNDERLINE = re.compile(r"^\s*([-=~^\"'+*#._])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"^\s*\.\.(\s|$)")
_DIRECTIVE_NAME = re.compile(r"^\s*\.\.\s+([\w:-]+?)::\s*(.*)$")
_LABEL = re.compile(r"^\s*([A-Z][A-Za-z /]{2,30})::?\s*$")
_FIELD = re.compile(r"^\s*[:@](\w+)(?:\s+[^:]*)?:\s*")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,2}[.)]|#\.|\[\d+\]|\(?[a-z]\))\s+")
# "name : type", "name (type): description", "``name``: description", "name -- description", "arg1,
# arg2 : type"
_TERM = re.compile(
    r"^\s*(?:\*{0,2}[\w`.\"'\[\]*,/-]+(?:\s*,\s*\*{0,2}[\w`.\"'*-]+)*)"
    r"(?:\s*\([^()]*(?:\([^()]*\)[^()]*)*\))?\s*(?::|--|—|–)(?:\s+|$)"
)
_PARAMETER = re.compile(r"^\s*\S[^.]{0,60}?\s:(?:\s|$)")
_TABLE = re.compile(r"^\s*(?:[+|]|={2,}\s+={2,}|-{2,}\s+-{2,})|\s\|\s|\S\s{4,}\S")

_ROLE = re.compile(r":[a-zA-Z][\w+.:-]*:`~?!?([^`<]*?)\s*(?:<[^`>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}")
_MARKDOWN_LINK = re.compile(r"\[`?~?([^\]`]+)`?\]\([^)\s]*\)")
_BRACKET_NAME = re.compile(r"\[`~?([^\]`]+)`\]")
_CITATION = re.compile(r"\s*\[#?[\w-]+\]_\b,?")
_CODE = re.compile(r"``(.+?)``|`([^`]+)`_{0,2}")
_BOLD = re.compile(r"(?<![\w*])(\*{1,2})(?=[^\s*])([^*]+?)(?<=[^\s*])\1(?![\w*])")
_TAG = re.compile(
    r"</?(?:[a-z]|br|em|tip|code|pre|strong|kbd|div|span|frozen|original)/?>", re.IGNORECASE
)
_LEADING_LABEL = re.compile(
    r"^(?:Notes?|NOTE|Warning|WARNING|Returns?|Raises|Yields|Args|[Oo]ptional|Default|Deprecated|"
    r"bool|int|float|str)\s?:\s+"
)
_DEFAULT = re.compile(r"\s*(?:\(|\b)[Dd]efaults?(?: value)?(?: is|:|=| to)?\s*:?\s*[^\s.]+\)?\.?$")
_BANNED = re.compile(
    r">>>|https?:|www\.|ftp:|\\|%\(|\{\{|\$|\|[^\s]|\bdef \w+\(|\bimport \w+|\breturn "
    r"\w+$|[=<>]{2}|->|=>|\w\(\w*\)\.\w|\bTODO\b|\bFIXME\b"
    r"|\bXXX\b|LICENSE|@\w+\.\w|\. "
    r"\.|::|\{[^}]*\}|\S+_\S+_\S+_\S+_|[\[\]]\S*[\[\]]\S*[\[\]]|\d\s+\d[\d.]*\s+\d"
    r"|#\s|\^|~~|\*\*|\w\.\w+/\w|<[\w-]+>|`|[^ -~\u00a1-\u024f\u2010-\u2026]"
)
_BANNED_ANY_CASE = re.compile(r"copyright|all rights reserved|licensed under", re.IGNORECASE)
_NAME_MARK = re.compile(r"(?<![\w/])~\.?(?=[A-Za-z])|(?<![\w.])\.(?=[A-Za-z_]\w*\.[A-Z]|[A-Z]\w+)")
_TYPE = re.compile(
    r"^(?:bool|boolean|int|integer|float|str|string|dict|list|tuple|callable|function|array|"
    r"ndarray|array[-_]like|iterable|object)s?\b"
    r"(?:(?:,| or|\s)+(?:bool|int|float|str|string|dict|list|tuple|callable|function|array|None|"
    r"object|optional))*(?:\s*\([^()]*\))?[.,:;]*\s+(?=[A-Z])"
)
# A citation that stands for a word: "see [1]_", "as in [2]_ and [3]_".
_CITATION_AS_NOUN = re.compile(
    r"(?:^|\b(?:see|in|by|from|of|and|with|to|for|or|than|also|on|the|is|are|that|following|per|"
    r"after|but) "
    r"|[.,] )\(?\[#?[\w-]+\]_\b",
    re.IGNORECASE,
)
_FRAGMENT_OPENINGS = frozenset(
    "and or where which with but so such as than for in to of is are".split()
)
_WORD = re.compile(r"^[(\"'“‘]*[A-Za-zÀ-ɏ]+(?:['’-][A-Za-zÀ-ɏ]+)*[)\"'”’.,;:!?]*$")
_FUNCTION_WORDS = frozenset(
    "a an the of to in on at by for with from as is are was were be been being it its this that "
    "these those and or but not if when which "
    "who will would can could may might must should has have had do does than then there their "
    "they them he she his her you your we our "
    "i no so into only also each any all both such where while other same more one two between "
    "over under after before because about how "
    "what".split()
)
_SENTENCE_END = re.compile(r"[.!?][)\"'”’]*(?=\s|$)")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|etc|Fig|Eq|Ref|resp|approx|al|No|Dr|St|Mr)|\b[A-Z])\.$"
)


def paragraphs(doc: str) -> Iterator[str]:
    """Yield the prose paragraphs of one (dedented) docstring, each joined to a line, in order."""
    for block in _blocks(doc.expandtabs().splitlines()):
        text = clean(" ".join(block))
        if text is not None:
            yield text


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


@dataclass
class _Reading:
    """The state of a reader that goes through the lines of a docstring.

    Attributes:
        at: number of the current line.
        blocks: lines that belong together, as far as they were read.
        block: the lines of the block that is being read.
        block_indent: indent of the line with which the block began.
        body_indent: indent of the lines behind it; None where none was read.
        dropped_indent: indent of the heading of a section that is left out.
        literal_indent: lines of a larger indent are a literal block, which is left out.
    """

    lines: list[str]
    at: int = 0
    blocks: list[list[str]] = field(default_factory=list)
    block: list[str] = field(default_factory=list)
    block_indent: int = 0
    body_indent: int | None = None
    dropped_indent: int | None = None
    literal_indent: int | None = None

    def end_block(self) -> None:
        if self.block:
            self.blocks.append(self.block)
        self.block = []

    def begin_block(self, text: str, indent: int) -> None:
        """End the block and begin one of `text`, the rest of a line, which may be empty."""
        self.end_block()
        self.block, self.block_indent = ([text] if text else []), indent

    def skip_to_blank_line(self) -> None:
        while self.at < len(self.lines) and self.lines[self.at].strip():
            self.at += 1

    def next_is_deeper(self, indent: int) -> bool:
        """Whether a line follows that is indented more."""
        if self.at + 1 >= len(self.lines):
            return False
        line = self.lines[self.at + 1]
        return bool(line.strip()) and _indent(line) > indent


def _blocks(lines: list[str]) -> list[list[str]]:
    """Lists of lines that belong together.

    Code, tables, headings, directives and terms are left out. Each line is read by the first
    function of `_STEPS` that recognises it, which also reads the lines that belong to it.
    """
    reading = _Reading(lines)
    while reading.at < len(lines):
        line = lines[reading.at]
        any(step(reading, line, _indent(line)) for step in _STEPS)
    reading.end_block()
    return reading.blocks


def _blank_line(reading: _Reading, line: str, indent: int) -> bool:
    if line.strip():
        return False
    if reading.block and reading.block[-1].endswith("::"):
        reading.literal_indent = reading.block_indent
    reading.end_block()
    reading.at += 1
    return True


def _literal_block(reading: _Reading, line: str, indent: int) -> bool:
    if reading.literal_indent is not None and indent > reading.literal_indent:
        reading.at += 1
        return True
    reading.literal_indent = None
    return False


def _interactive_code(reading: _Reading, line: str, indent: int) -> bool:
    if not line.strip().startswith((">>>", "...", "In [", "$ ", "sage:", "@")):
        return False
    reading.end_block()
    reading.skip_to_blank_line()
    return True


def _fenced_code(reading: _Reading, line: str, indent: int) -> bool:
    fence = line.strip()[:3]
    if fence not in ("```", "~~~"):
        return False
    reading.end_block()
    reading.at += 1
    while reading.at < len(reading.lines):
        reading.at += 1
        if reading.lines[reading.at - 1].strip().startswith(fence):
            break
    return True


def _heading(reading: _Reading, line: str, indent: int) -> bool:
    if _UNDERLINE.match(line):
        reading.at += 1
        return True
    if reading.at + 1 == len(reading.lines) or not _UNDERLINE.match(reading.lines[reading.at + 1]):
        return False
    reading.end_block()
    _begin_section(reading, line.strip().rstrip(":"), indent)
    reading.at += 2
    return True


def _begin_section(reading: _Reading, title: str, indent: int) -> None:
    reading.dropped_indent = indent if title.lower() in _DROPPED_SECTIONS else None


def _directive(reading: _Reading, line: str, indent: int) -> bool:
    if not _DIRECTIVE.match(line):
        return False
    reading.end_block()
    reading.at += 1
    directive = _DIRECTIVE_NAME.match(line)
    name = directive[1].lower() if directive else ""
    if directive and name in _KEPT_DIRECTIVES:
        if directive[2].strip() and name != "rubric":
            reading.begin_block(directive[2].strip(), indent)
        return True
    while reading.at < len(reading.lines):
        body = reading.lines[reading.at]
        if body.strip() and _indent(body) <= indent:
            break
        reading.at += 1
    return True


def _section_label(reading: _Reading, line: str, indent: int) -> bool:
    label = _LABEL.match(line)
    if not label or reading.at + 1 == len(reading.lines):
        return False
    if reading.lines[reading.at + 1].strip() and not reading.next_is_deeper(indent):
        return False
    reading.end_block()
    _begin_section(reading, label[1], indent)
    if line.strip().endswith("::"):
        reading.literal_indent = indent
    reading.at += 1
    return True


def _dropped_section(reading: _Reading, line: str, indent: int) -> bool:
    if reading.dropped_indent is not None and indent >= reading.dropped_indent:
        reading.at += 1
        return True
    reading.dropped_indent = None
    return False


def _table(reading: _Reading, line: str, indent: int) -> bool:
    if not _TABLE.search(line):
        return False
    reading.block = []
    reading.skip_to_blank_line()
    return True


def _field(reading: _Reading, line: str, indent: int) -> bool:
    """`:param name:` and the like, whose text is kept where it describes."""
    match = _FIELD.match(line)
    if not match:
        return False
    if match[1].lower() in _KEPT_FIELDS:
        reading.begin_block(line[match.end() :].strip(), indent)
    else:
        reading.begin_block("", indent)
        while reading.next_is_deeper(indent):
            reading.at += 1
    reading.at += 1
    return True


def _parameter(reading: _Reading, line: str, indent: int) -> bool:
    """`name : type`, above a description or at the beginning of a block."""
    heads = reading.next_is_deeper(indent) or not reading.block
    if not heads or not _PARAMETER.match(line) or _SENTENCE_END.search(line.strip()[:-1]):
        return False
    reading.end_block()
    reading.at += 1
    return True


def _term(reading: _Reading, line: str, indent: int) -> bool:
    """`name -- description` and the like, of which the description is kept."""
    match = _TERM.match(line)
    inside = reading.block and indent == reading.body_indent
    if not match or (inside and not reading.next_is_deeper(indent)):
        return False
    reading.begin_block(line[match.end() :].strip(), indent)
    reading.body_indent = None
    reading.at += 1
    return True


def _bullet(reading: _Reading, line: str, indent: int) -> bool:
    match = _BULLET.match(line)
    if not match:
        return False
    reading.end_block()
    reading.block, reading.block_indent = [line[match.end() :].strip()], indent
    reading.body_indent = None
    reading.at += 1
    return True


def _text(reading: _Reading, line: str, indent: int) -> bool:
    """A line of prose; it begins a new block if its indent differs from that of the block."""
    if reading.block:
        if reading.body_indent is None and indent > reading.block_indent:
            reading.body_indent = indent
        expected = reading.block_indent if reading.body_indent is None else reading.body_indent
        if indent != expected:
            reading.end_block()
    if not reading.block:
        reading.block_indent = reading.body_indent = indent
    reading.block.append(line.strip())
    reading.at += 1
    return True


_STEPS: tuple[Callable[[_Reading, str, int], bool], ...] = (
    _blank_line,
    _literal_block,
    _interactive_code,
    _fenced_code,
    _heading,
    _directive,
    _section_label,
    _dropped_section,
    _table,
    _field,
    _parameter,
    _term,
    _bullet,
    _text,
)


def clean(text: str) -> str | None:
    """Return the paragraph without inline mark-up, cut at its last full sentence.

    None when it does not read as English prose.
    """
    text = " ".join(text.split())
    if len(text) < MIN_CHARS or not _SENTENCE_END.search(text):
        return None
    text = _without_quotes_of_code(text)
    if _CITATION_AS_NOUN.search(text):
        return None
    cut = _last_sentence(_without_marks(text))
    if cut is None or not MIN_CHARS <= len(cut) <= MAX_CHARS:
        return None
    first = cut.split(" ", 1)[0]
    if first in _FRAGMENT_OPENINGS:
        return None
    if cut[0].islower() and first.isalpha():
        cut = cut[0].upper() + cut[1:]
    return cut if _is_prose(cut) else None


def _without_quotes_of_code(text: str) -> str:
    """The text with roles, links and quoted code replaced by the words that they show."""
    if "`" in text:
        text = _ROLE.sub(_role_text, text)
        text = _LINK.sub(r"\1", text)
        text = _MARKDOWN_LINK.sub(r"\1", text)
        text = _BRACKET_NAME.sub(r"\1", text)
        text = _CODE.sub(_code_text, text)
    return _MARKDOWN_LINK.sub(r"\1", text)


def _role_text(match: re.Match[str]) -> str:
    return match[1].split(".")[-1] if "~" in match[0] else match[1]


def _code_text(match: re.Match[str]) -> str:
    return match[1] or match[2]


def _without_marks(text: str) -> str:
    """The text without citations, emphasis, tags, leading labels and types, and defaults."""
    text = _CITATION.sub("", text)
    text = _BOLD.sub(r"\2", text)
    text = _TAG.sub("", text)
    text = _TYPE.sub("", _NAME_MARK.sub("", _LEADING_LABEL.sub("", text)))
    return " ".join(_DEFAULT.sub("", text).split())


def _is_prose(text: str) -> bool:
    """Whether a text reads as English sentences: words, many of them function words, no code."""
    if not (text[0].isupper() or text[0] in "\"'“("):
        return False
    words = text.split(" ")
    function = sum(w.lower().strip("(),.;:\"'") in _FUNCTION_WORDS for w in words)
    if len(words) < 9 or function < 0.25 * len(words):
        return False
    if sum(map(str.isalpha, text)) < 0.74 * len(text):
        return False
    if text.count("(") != text.count(")") or text.count('"') % 2:
        return False
    if _BANNED.search(text) or _BANNED_ANY_CASE.search(text):
        return False
    return sum(_WORD.match(w) is not None for w in words) >= 0.85 * len(words)


def _last_sentence(text: str) -> str | None:
    """The text up to its last sentence end; None without one."""
    end = None
    for match in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[: match.start() + 1]) or match.end() == len(text):
            end = match.end()
    return None if end is None else text[:end]
