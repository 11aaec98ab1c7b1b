"""Numbers as they are said: ``twenty-two``, ``oh seven double two``, ``5,000``."""

import re
from dataclasses import dataclass

from callcore.entity_rules.lexicon import Lexicon

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")
#: What may stand between the digits of one number.
_BETWEEN = re.compile(r"[\s,()+\u2013-]*")


@dataclass(frozen=True, slots=True)
class Token:
    """A word or a written number; hyphens part words."""

    text: str
    """In small letters."""
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its place in the text."""

    start: int
    end: int
    value: float
    next: int
    """Index of the token after it."""


@dataclass(frozen=True, slots=True)
class Digits:
    """Digits said or written one after the other."""

    start: int
    end: int
    digits: str
    num_tokens: int


def tokens(text: str) -> list[Token]:
    """Return the words and written numbers of a text."""
    return [Token(m[0].lower(), m.start(), m.end()) for m in _TOKEN.finditer(text)]


def number_at(text: str, found: list[Token], index: int, lexicon: Lexicon | None) -> Number | None:
    """Return the number that begins with a token, None where there is none.

    ``two thousand five hundred``, ``2,500``, ``5 million``; without a lexicon only written ones.
    """
    if index >= len(found):
        return None
    total, current, last, used = 0.0, 0.0, index, False
    step = index
    while step < len(found):
        token = found[step]
        if used and not _adjoining(text, found[last], token):
            break
        if token.text[0].isdecimal():
            if used:
                break
            current, used = _written(token.text), True
        elif lexicon is None:
            break
        elif token.text in lexicon.numbers:
            value = lexicon.numbers[token.text]
            if used and not (current == 0 < total) and not _may_follow(current, value):
                break
            current, used = current + value, True
        elif token.text in lexicon.scales and (used or _before(found, index, "a")):
            scale = lexicon.scales[token.text]
            if scale == 100:
                current = (current or 1.0) * scale
            else:
                total, current = total + (current or 1.0) * scale, 0.0
            used = True
        elif token.text == "and" and used and current % 100 == 0 and step > last:
            step += 1
            continue
        else:
            break
        last = step
        step += 1
    if not used:
        return None
    return Number(found[index].start, found[last].end, total + current, last + 1)


def _adjoining(text: str, before: Token, after: Token) -> bool:
    between = text[before.end : after.start].lower()
    return not between.replace("and", "").strip(" -\n")


def _before(found: list[Token], index: int, word: str) -> bool:
    return index > 0 and found[index - 1].text == word


def _may_follow(current: float, value: int) -> bool:
    """Whether a number word may be added: ``twenty`` + ``two``, ``two hundred`` + ``five``."""
    if current == 0:
        return False
    if current % 100 == 0:
        return True
    return current % 10 == 0 and current % 100 >= 20 and 0 < value < 10


def _written(text: str) -> float:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return float(text.replace(",", ""))
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        return float(text)
    return float(re.sub(r"\D", "", text))


def digit_runs(text: str, lexicon: Lexicon | None) -> list[Digits]:
    """Return the runs of digits, said and written: ``oh seven two two, 1 2 3`` is ``0722123``."""
    found = tokens(text)
    runs: list[Digits] = []
    index = 0
    while index < len(found):
        first, last, digits = index, index, ""
        while index < len(found):
            if digits and not _BETWEEN.fullmatch(text, found[last].end, found[index].start):
                break
            more, used = _digits_at(found, index, lexicon)
            if not more:
                break
            digits += more
            last = index + used - 1
            index += used
        if digits:
            start = found[first].start
            plus = text.startswith("+", start - 1) and start > 0
            runs.append(
                Digits(start - plus, found[last].end, "+" * plus + digits, last - first + 1)
            )
        else:
            index += 1
    return runs


def _digits_at(found: list[Token], index: int, lexicon: Lexicon | None) -> tuple[str, int]:
    """Return the digits that a token stands for, and how many tokens they take."""
    text = found[index].text
    if text[0].isdecimal():
        # The last full stop of a text is no part of a number: the token pattern leaves it out.
        return "".join(str(int(each)) for each in text if each.isdecimal()), 1
    if lexicon is None:
        return "", 0
    if text in lexicon.zeros:
        # "oh" is a digit only among digits.
        following = index + 1 < len(found) and found[index + 1].text
        preceding = index > 0 and found[index - 1].text
        near = [word for word in (following, preceding) if word]
        among = any(
            word in lexicon.numbers
            or word[0].isdecimal()
            or word in lexicon.repeats
            or word in lexicon.zeros
            for word in near
        )
        return ("0", 1) if among else ("", 0)
    if text in lexicon.repeats and index + 1 < len(found):
        more, used = _digits_at(found, index + 1, lexicon)
        return (more * lexicon.repeats[text], used + 1) if len(more) == 1 else ("", 0)
    value = lexicon.numbers.get(text)
    if value is None:
        return "", 0
    if value >= 20 and index + 1 < len(found):
        unit = lexicon.numbers.get(found[index + 1].text, 0)
        if 0 < unit < 10:
            return str(value + unit), 2
    return str(value), 1
