"""Prose paragraphs of a docstring: the text that is left when code, tables, signatures and mark-up
are taken away.
"""

import re

MIN_CHARS = 60
MAX_CHARS = 1500

# Sections (numpy style headings, Google style labels) whose body is not prose.
_DROPPED_SECTIONS = frozenset(
    "see "
    "also|references|reference|methods|signature|bibliography|source|inheritance|authors|author|history|changelog|license|copyright|contents|todo".split(
        "|"
    )
)
_KEPT_DIRECTIVES = frozenset(
    "note warning tip important caution hint admonition attention topic rubric sidebar".split()
)
_KEPT_FIELDS = frozenset(
    "param parameter arg argument return returns raises raise key keyword ivar cvar var attr".split()
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
    r"^\s*(?:\*{0,2}[\w`.\"'\[\]*,/-]+(?:\s*,\s*\*{0,2}[\w`.\"'*-]+)*)(?:\s*\([^()]*(?:\([^()]*\)[^()]*)*\))?\s*(?::|--|—|–)(?:\s+|$)"
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
    r"^(?:Notes?|NOTE|Warning|WARNING|Returns?|Raises|Yields|Args|[Oo]ptional|Default|Deprecated|bool|int|float|str)\s?:\s+"
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
    r"^(?:bool|boolean|int|integer|float|str|string|dict|list|tuple|callable|function|array|ndarray|array[-_]like|iterable|object)s?\b"
    r"(?:(?:,| "
    r"or|\s)+(?:bool|int|float|str|string|dict|list|tuple|callable|function|array|None|object|optional))*(?:\s*\([^()]*\))?[.,:;]*"
    r"\s+(?=[A-Z])"
)
# A citation that stands for a word: "see [1]_", "as in [2]_ and [3]_".
_CITATION_AS_NOUN = re.compile(
    r"(?:^|\b(?:see|in|by|from|of|and|with|to|for|or|than|also|on|the|is|are|that|following|per|after|but) "
    r""
    r""
    r""
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


def paragraphs(doc):
    """The prose paragraphs of one (dedented) docstring, each whitespace-joined, in order."""
    for block in _blocks(doc.expandtabs().splitlines()):
        text = clean(" ".join(block))
        if text is not None:
            yield text


def _indent(line):
    return len(line) - len(line.lstrip())


def _blocks(lines):
    """Lists of lines that belong together; code, tables, headings, directives and terms are left
    out.
    """
    i, n = 0, len(lines)
    dropped_section = literal_after = body_indent = None
    block_indent = 0
    block = []
    while i < n:
        line = lines[i]
        stripped = line.strip()
        indent = _indent(line)
        if not stripped:
            if block:
                if block[-1].endswith("::"):
                    literal_after = block_indent
                yield block
                block = []
            i += 1
            continue
        if literal_after is not None:
            if indent > literal_after:
                i += 1
                continue
            literal_after = None
        if stripped.startswith((">>>", "...", "In [", "$ ", "sage:", "@")):
            if block:
                yield block
                block = []
            while i < n and lines[i].strip():
                i += 1
            continue
        if stripped.startswith(("```", "~~~")):
            if block:
                yield block
                block = []
            i += 1
            while i < n and not lines[i].strip().startswith(stripped[:3]):
                i += 1
            i += 1
            continue
        if i + 1 < n and _UNDERLINE.match(lines[i + 1]) and not _UNDERLINE.match(line):
            if block:
                yield block
                block = []
            dropped_section = indent if stripped.lower().rstrip(":") in _DROPPED_SECTIONS else None
            i += 2
            continue
        if _UNDERLINE.match(line):
            i += 1
            continue
        if _DIRECTIVE.match(line):
            if block:
                yield block
                block = []
            name = _DIRECTIVE_NAME.match(line)
            i += 1
            if name and name.group(1).lower() in _KEPT_DIRECTIVES:
                if name.group(2).strip() and name.group(1).lower() != "rubric":
                    block, block_indent = [name.group(2).strip()], indent
                continue
            while i < n and (not lines[i].strip() or _indent(lines[i]) > indent):
                i += 1
            continue
        label = _LABEL.match(line)
        if label and i + 1 < n and (not lines[i + 1].strip() or _indent(lines[i + 1]) > indent):
            if block:
                yield block
                block = []
            dropped_section = indent if label.group(1).lower() in _DROPPED_SECTIONS else None
            if stripped.endswith("::"):
                literal_after = indent
            i += 1
            continue
        if dropped_section is not None:
            if indent >= dropped_section:
                i += 1
                continue
            dropped_section = None
        if _TABLE.search(line):
            block = []
            while i < n and lines[i].strip():
                i += 1
            continue
        field = _FIELD.match(line)
        if field:
            if block:
                yield block
            block, block_indent = [], indent
            if field.group(1).lower() in _KEPT_FIELDS:
                rest = line[field.end() :].strip()
                block = [rest] if rest else []
            else:
                while i + 1 < n and lines[i + 1].strip() and _indent(lines[i + 1]) > indent:
                    i += 1
            i += 1
            continue
        deeper = i + 1 < n and lines[i + 1].strip() and _indent(lines[i + 1]) > indent
        starts = not block or indent != body_indent
        if (
            _PARAMETER.match(line)
            and (deeper or not block)
            and not _SENTENCE_END.search(stripped[:-1])
        ):
            if block:
                yield block
            block = []
            i += 1
            continue
        term = _TERM.match(line)
        if term and (starts or deeper):
            if block:
                yield block
            rest = line[term.end() :].strip()
            block, block_indent, body_indent = ([rest] if rest else []), indent, None
            i += 1
            continue
        bullet = _BULLET.match(line)
        if bullet:
            if block:
                yield block
            block, block_indent, body_indent = [line[bullet.end() :].strip()], indent, None
            i += 1
            continue
        if block:
            if body_indent is None and indent > block_indent:
                body_indent = indent
            expected = body_indent if body_indent is not None else block_indent
            if indent != expected:
                yield block
                block = []
        if not block:
            block_indent = body_indent = indent
        block.append(stripped)
        i += 1
    if block:
        yield block


def clean(text):
    """The paragraph without inline mark-up, cut at its last full sentence; None when it does not
    read as English prose.
    """
    text = " ".join(text.split())
    if len(text) < MIN_CHARS or not _SENTENCE_END.search(text):
        return None
    if "`" in text:
        text = _ROLE.sub(
            lambda m: m.group(1).split(".")[-1] if "~" in m.group(0) else m.group(1), text
        )
        text = _LINK.sub(r"\1", text)
        text = _MARKDOWN_LINK.sub(r"\1", text)
        text = _BRACKET_NAME.sub(r"\1", text)
        text = _CODE.sub(lambda m: m.group(1) or m.group(2), text)
    text = _MARKDOWN_LINK.sub(r"\1", text)
    if _CITATION_AS_NOUN.search(text):
        return None
    text = _CITATION.sub("", text)
    text = _BOLD.sub(r"\2", text)
    text = _TAG.sub("", text)
    text = _TYPE.sub("", _NAME_MARK.sub("", _LEADING_LABEL.sub("", text)))
    text = _last_sentence(" ".join(_DEFAULT.sub("", text).split()))
    if text is None or not MIN_CHARS <= len(text) <= MAX_CHARS:
        return None
    first = text.split(" ", 1)[0]
    if first in _FRAGMENT_OPENINGS:
        return None
    if text[0].islower() and first.isalpha():
        text = text[0].upper() + text[1:]
    if not (text[0].isupper() or text[0] in "\"'“("):
        return None
    words = text.split(" ")
    function = sum(w.lower().strip("(),.;:\"'") in _FUNCTION_WORDS for w in words)
    if len(words) < 9 or function < 0.25 * len(words):
        return None
    if (
        sum(map(str.isalpha, text)) < 0.74 * len(text)
        or text.count("(") != text.count(")")
        or text.count('"') % 2
    ):
        return None
    if _BANNED.search(text) or _BANNED_ANY_CASE.search(text):
        return None
    if sum(_WORD.match(w) is not None for w in words) < 0.85 * len(words):
        return None
    return text


def _last_sentence(text):
    """The text up to its last sentence end; None without one."""
    end = None
    for match in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[: match.start() + 1]) or match.end() == len(text):
            end = match.end()
    return None if end is None else text[:end]
