"""Phone numbers, money, accounts, ages, dates and times in one text."""

import re
from collections.abc import Iterator

from callcore.entity_rules.lexicon import Lexicon
from callcore.entity_rules.mentions import Found
from callcore.entity_rules.spoken import Token, digit_runs, number_at, tokens

#: Fewest and most digits of a telephone number (E.164 has at most 15).
PHONE_DIGITS = (7, 15)
#: Fewest digits of an account, card or case number.
ACCOUNT_DIGITS = 3
_SENTENCES_BEFORE = re.compile(r"^.*[.!]\s", re.S)
#: Characters before digits in which a word says what they are.
_NEAR = 60
_SIGNS = {"$": "USD", "€": "EUR", "£": "GBP", "₦": "NGN", "₹": "INR", "¥": "JPY"}
_CODES = {
    "ksh": "KES", "kes": "KES", "kshs": "KES", "tsh": "TZS", "tshs": "TZS", "tzs": "TZS",
    "ush": "UGX", "ugx": "UGX", "usd": "USD", "eur": "EUR", "gbp": "GBP", "zar": "ZAR",
    "ngn": "NGN", "rwf": "RWF", "etb": "ETB", "ghs": "GHS", "inr": "INR",
}  # fmt: skip
#: Most digits of an amount: a float still holds them all.
_MOST_DIGITS = 15
#: Possessive, and never begun inside a number: a long one is read once.
_AMOUNT = r"(?<!\d)(?<!\d[.,])(\d++(?:[.,]\d++)*+)"
_SIGN_MONEY = re.compile(
    rf"(?:([$€£₦₹¥])\s?|\b({'|'.join(_CODES)})\b\.?\s?){_AMOUNT}(?:\s(hundred|thousand|million))?"
    rf"|{_AMOUNT}\s?(?:([$€£₦₹¥])|({'|'.join(_CODES)})\b)",
    re.I,
)
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_ISO_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_SLASHED = re.compile(r"\b(\d{1,2})[/.](\d{1,2})[/.](\d{4}|\d{2})\b")
_YEAR = re.compile(r"\b(?:in|since|year|of|from|until) ((?:19|20)\d\d)\b(?![,.]?\d)", re.I)
_CLOCK = re.compile(
    r"\b([01]?\d|2[0-3])(?:[:.]([0-5]\d))\s?(?:([ap])\.?\s?m\b\.?)?|"
    r"\b(1[0-2]|0?[1-9])\s?([ap])\.?\s?m\b\.?",
    re.I,
)
#: What follows a number that is no age: "I'm 5 minutes away", "she is 12 kilometres from here".
_NO_AGE_UNIT = re.compile(
    r"[\s-]*(?:minutes?|hours?|days?|weeks?|seconds?|times?|per ?cent|%|dollars?|shillings?|"
    r"kilo\w*|km|met(?:er|re)s?|miles?|o'?clock|[ap]\.?m\b|of\b|th\b|st\b|nd\b|rd\b|people|"
    r"children|kids|thousand|hundred|:\d|/\d|years? (?!old|and|now|of age|girl|boy)\w)",
    re.I,
)
_AGE_BEFORE = re.compile(
    r"(?:\b(?:i'?m|i am|he'?s|she'?s|(?:he|she|who|daughter|son|child|boy|girl|niece|nephew|"
    r"brother|sister) (?:is|was)|is|aged?|age is|age of|age was|turn(?:ed|ing|s)?|"
    r"just turned)\s+(?:only |just |now |about |around |almost |nearly |already |currently )*)$",
    re.I,
)
_AGE_SURE_BEFORE = re.compile(
    r"\b(?:aged?|age is|age of|turn(?:ed|ing|s)?)\s+(?:only |just )*$", re.I
)
_YEARS_OLD = re.compile(r"[\s-]*(?:years?|yrs?)[\s-]*(?:old|of age)\b", re.I)
_YEARS = re.compile(r"[\s-]*(?:years?|yrs?)\b", re.I)
_MONTHS_OLD = re.compile(r"[\s-]*(months?|weeks?)[\s-]*(?:old|of age)\b", re.I)
#: What ends the clause of "I'm 16": then the number is an age.
_CLAUSE_END = re.compile(
    r"\s*(?:$|[.,;!?]|and\b|but\b|now\b|from\b|in\b|living\b|right\b|so\b|with\b|at\b|"
    r"years?\b|yrs?\b)",
    re.I,
)


def values(text: str, lexicon: Lexicon | None, asked: str | None = None) -> list[Found]:
    """Return what a text holds of numbers, in its order, without overlap.

    Args:
        text: A segment's text.
        lexicon: The words of its language; None: only what needs no words is found.
        asked: Label that the question before it asked for, e.g. ``PHONE``.
    """
    found: list[Found] = []
    for rule in (_dates, _money, _ages, _times, _digits):
        for each in rule(text, lexicon, asked):
            if not any(each.start < other.end and other.start < each.end for other in found):
                found.append(each)
    return sorted(found, key=lambda each: each.start)


def _digits(text: str, lexicon: Lexicon | None, asked: str | None) -> Iterator[Found]:
    """Yield telephone numbers, accounts and what is like them."""
    for run in digit_runs(text, lexicon):
        digits = run.digits.lstrip("+")
        label = _meaning(text, run.start, run.end, len(digits), lexicon, asked)
        spoken = run.num_tokens > 1 or text[run.start : run.end].strip("+").isdecimal()
        if label == "ACCOUNT" and len(digits) >= ACCOUNT_DIGITS:
            yield Found(run.start, run.end, "ACCOUNT", digits, "account")
        elif (
            label == "PHONE"
            and PHONE_DIGITS[0] <= len(digits) <= PHONE_DIGITS[1]
            and (spoken or "-" in text[run.start : run.end] or "." in text[run.start : run.end])
        ):
            yield Found(run.start, run.end, "PHONE", run.digits, "phone")


def _meaning(
    text: str, start: int, end: int, length: int, lexicon: Lexicon | None, asked: str | None
) -> str | None:
    """Return what digits are: what the nearest word before them says, else the question."""
    if lexicon is not None and not text.startswith("+", start):
        # What another sentence said before does not count; a question does, its answer follows.
        before = _SENTENCES_BEFORE.sub("", text[max(0, start - _NEAR) : start])
        account = _last(lexicon.account_words, before)
        phone = _last(lexicon.phone_words, before)
        if account > phone or (account == phone and asked == "ACCOUNT"):
            return "ACCOUNT"
        if phone < 0 and asked == "ACCOUNT":
            return "ACCOUNT"
    return "PHONE" if length >= PHONE_DIGITS[0] else None


def _last(pattern: re.Pattern[str], text: str) -> int:
    """Return where the last match ends, -1 without one."""
    ends = [match.end() for match in pattern.finditer(text)]
    return ends[-1] if ends else -1


def _money(text: str, lexicon: Lexicon | None, asked: str | None) -> Iterator[Found]:
    for match in _SIGN_MONEY.finditer(text):
        sign, code, amount, scale, amount_after, sign_after, code_after = match.groups()
        currency = _SIGNS.get(sign or sign_after or "") or _CODES[(code or code_after).lower()]
        value = _amount(amount or amount_after)
        if value is None:
            continue
        value *= _SCALES.get((scale or "").lower(), 1)
        yield Found(match.start(), match.end(), "MONEY", _money_text(value, currency), "money")
    if lexicon is None:
        return
    found = tokens(text)
    index = 0
    while index < len(found):
        number = number_at(text, found, index, lexicon)
        if number is None:
            index += 1
            continue
        unit = _currency(text, found, number.next, lexicon)
        if unit is None:
            index = number.next
            continue
        currency, index = unit
        value, end = number.value, found[index - 1].end
        cents = _cents(text, found, index, lexicon)
        if cents:
            value, index = value + cents[0] / 100, cents[1]
            end = found[index - 1].end
        start = number.start
        if value >= 10**_MOST_DIGITS:
            continue
        if value >= 100 and text[max(0, start - 2) : start].lower() == "a ":
            start -= 2  # "a hundred dollars"
        yield Found(start, end, "MONEY", _money_text(value, currency), "money")


def _currency(
    text: str, found: list[Token], index: int, lexicon: Lexicon
) -> tuple[str, int] | None:
    """Return the currency that a token names, and the index after it."""
    for length in (2, 1):
        run = found[index : index + length]
        name = " ".join(token.text for token in run)
        if len(run) == length and name in lexicon.currencies:
            before = found[index - 1].end
            if not text[before : run[0].start].strip(" -"):
                return lexicon.currencies[name], index + length
    return None


def _cents(text: str, found: list[Token], index: int, lexicon: Lexicon) -> tuple[float, int] | None:
    """Return the cents after an amount, and the index after them."""
    if index < len(found) and found[index].text == "and":
        index += 1
    number = number_at(text, found, index, lexicon)
    if number and number.next < len(found) and found[number.next].text in lexicon.cents:
        return number.value, number.next + 1
    return None


def _amount(text: str) -> float | None:
    """Return what an amount is, None where it is no number or too long for one."""
    if sum(each.isdecimal() for each in text) > _MOST_DIGITS:
        return None
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return float(text.replace(",", ""))
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", text):
        return float(text.replace(".", "").replace(",", "."))
    if text.count(".") > 1:
        return float(re.sub(r"\D", "", text))
    plain = re.sub(r",(?=\d{1,2}$)", ".", text).replace(",", "")
    return float(plain) if plain.count(".") <= 1 else None


def _money_text(value: float, currency: str) -> str:
    return f"{value:.0f} {currency}" if value == int(value) else f"{value:.2f} {currency}"


def _ages(text: str, lexicon: Lexicon | None, asked: str | None) -> Iterator[Found]:
    if lexicon is None:
        return
    found = tokens(text)
    index = 0
    while index < len(found):
        number = number_at(text, found, index, lexicon)
        if number is None:
            index += 1
            continue
        value, after = number.value, text[number.end : number.end + _NEAR]
        before = text[max(0, number.start - _NEAR) : number.start]
        months = _MONTHS_OLD.match(after)
        if months and value < 40:
            unit = months[1].lower().rstrip("s") + ("" if value == 1 else "s")
            yield Found(number.start, number.end, "AGE", f"{value:.0f} {unit}", "age")
        elif _is_age(value, before, after, index, asked):
            yield Found(number.start, number.end, "AGE", f"{value:.0f}", "age")
        index = number.next


def _is_age(value: float, before: str, after: str, index: int, asked: str | None) -> bool:
    if not 0 < value <= 120 or value != int(value):
        return False
    if _YEARS_OLD.match(after):
        return True
    if _NO_AGE_UNIT.match(after):
        return False
    if _AGE_SURE_BEFORE.search(before):
        return True
    if _AGE_BEFORE.search(before):
        return bool(_CLAUSE_END.match(after))
    return asked == "AGE" and index < 6 and bool(_CLAUSE_END.match(after) or _YEARS.match(after))


def _times(text: str, lexicon: Lexicon | None, asked: str | None) -> Iterator[Found]:
    for match in _CLOCK.finditer(text):
        hour, minute, half, bare, bare_half = match.groups()
        if "." in match[0][:3] and not (half or bare_half):
            continue  # 3.50 is a price
        normal = _clock(int(hour or bare), int(minute or 0), (half or bare_half or "").lower())
        yield Found(match.start(), match.end(), "TIME", normal, "time")
    if lexicon is None:
        return
    yield from _spoken_times(text, lexicon)
    for match in lexicon.relative_times.finditer(text):
        normal = {"noon": "12:00", "midnight": "00:00"}.get(match[0].lower().split()[-1])
        yield Found(match.start(), match.end(), "TIME", normal, "time")


_PART = re.compile(r"\s+(?:([ap])\.?\s?m\b\.?|in the (morning|afternoon|evening)|at (night))", re.I)
_OCLOCK = re.compile(r"\s+o['\u2019 ]?clock\b", re.I)
_PAST_TO = re.compile(r"\s+(past|to)\s+$", re.I)


def _spoken_times(text: str, lexicon: Lexicon) -> Iterator[Found]:
    """Yield ``half past two``, ``two o'clock``, ``seven thirty p.m.``, ``five in the morning``."""
    found = tokens(text)
    halves = {"half": 30, "quarter": 15}
    for index, token in enumerate(found):
        if token.text in halves or token.text in lexicon.numbers:
            minutes = halves.get(token.text, lexicon.numbers.get(token.text, 0))
            hour = lexicon.numbers.get(found[index + 2].text) if index + 2 < len(found) else None
            if (
                hour
                and 1 <= hour <= 12
                and _PAST_TO.match(text[token.end : found[index + 2].start])
                and (found[index + 1].text == "past" or token.text in halves)
            ):
                past = found[index + 1].text == "past"
                clock = (hour, minutes) if past else ((hour - 2) % 12 + 1, 60 - minutes)
                end, part = _part_of_day(text, found[index + 2].end)
                yield Found(token.start, end, "TIME", _clock(*clock, part), "time")
        hour = lexicon.numbers.get(token.text)
        if hour is None and token.text.isdecimal() and len(token.text) <= 2:
            hour = int(token.text)
        if hour is None or not 1 <= hour <= 12:
            continue
        minute, end = 0, token.end
        oclock = _OCLOCK.match(text, end)
        if oclock:
            end = oclock.end()
        else:
            number = number_at(text, found, index + 1, lexicon)
            if number and 10 <= number.value < 60 and not text[end : number.start].strip():
                minute, end = int(number.value), number.end
        with_part, part = _part_of_day(text, end)
        if oclock or part:
            yield Found(token.start, with_part, "TIME", _clock(hour, minute, part), "time")


def _part_of_day(text: str, end: int) -> tuple[int, str]:
    """Return where a time ends with its part of the day, and ``a``, ``p`` or nothing."""
    match = _PART.match(text, end)
    if not match:
        return end, ""
    half, part, night = match.groups()
    if half:
        return match.end(), half.lower()
    return match.end(), "a" if part and part.lower() == "morning" else "n" if night else "p"


def _clock(hour: int, minute: int, part: str) -> str | None:
    """Return ``15:30``; None where nobody said which half of the day."""
    if part == "n":  # nine at night, two at night
        part = "a" if hour == 12 or hour < 5 else "p"
    if hour > 12 or hour == 0:
        return f"{hour:02}:{minute:02}"
    if part:
        return f"{hour % 12 + (12 if part == 'p' else 0):02}:{minute:02}"
    return None


def _dates(text: str, lexicon: Lexicon | None, asked: str | None) -> Iterator[Found]:
    for match in _ISO_DATE.finditer(text):
        yield Found(match.start(), match.end(), "DATE", match[0], "date")
    for match in _SLASHED.finditer(text):
        # Day or month first: the writer's country decides, so it stays as it is.
        if int(match[1]) <= 31 and int(match[2]) <= 31:
            yield Found(match.start(), match.end(), "DATE", None, "date")
    if lexicon is None:
        return
    yield from _named_dates(text, lexicon)
    for match in _YEAR.finditer(text):
        yield Found(match.start(1), match.end(1), "DATE", match[1], "date")
    weekdays = "|".join(lexicon.weekdays)
    for match in re.finditer(rf"\b(?:(?:last|next|this|on) )?(?:{weekdays})s?\b", text, re.I):
        begin = match.start() + (3 if match[0].lower().startswith("on ") else 0)
        yield Found(begin, match.end(), "DATE", None, "date")
    for match in lexicon.relative_dates.finditer(text):
        yield Found(match.start(), match.end(), "DATE", None, "date")
    found = tokens(text)
    for index in range(len(found)):
        number = number_at(text, found, index, lexicon)
        if number:
            ago = re.match(
                r"\s+(?:days?|weeks?|months?|years?) ago\b",
                text[number.end : number.end + _NEAR],
                re.I,
            )
            if ago:
                end = number.end + ago.end()
                yield Found(number.start, end, "DATE", None, "date")


def _named_dates(text: str, lexicon: Lexicon) -> Iterator[Found]:
    """Yield ``May 5th, 2020``, ``the fifth of May``, ``12 March``."""
    months = "|".join(sorted(lexicon.months, key=len, reverse=True))
    ordinals = "|".join(lexicon.ordinals)
    tens = "twenty[- ]|thirty[- ]"
    day = rf"(?:(\d{{1,2}})(?:st|nd|rd|th)?|((?:{tens})?(?:{ordinals})))"
    year = r"(?:,?\s+((?:19|20)\d\d))?"
    first = re.compile(rf"\b(?:the )?{day}(?: of)? ({months})\b\.?{year}", re.I)
    second = re.compile(rf"\b({months})\b\.? (?:the )?{day}\b{year}", re.I)
    for match in first.finditer(text):
        digits, word, month, of_year = match.groups()
        yield _date(match, digits, word, month, of_year, lexicon)
    for match in second.finditer(text):
        month, digits, word, of_year = match.groups()
        yield _date(match, digits, word, month, of_year, lexicon)


def _date(
    match: re.Match[str],
    digits: str | None,
    word: str | None,
    month: str,
    year: str | None,
    lexicon: Lexicon,
) -> Found:
    if digits:
        number = int(digits)
    else:
        parts = re.split(r"[- ]", (word or "").lower())
        number = sum(lexicon.ordinals.get(part, lexicon.numbers.get(part, 0)) for part in parts)
    normal = None
    if 1 <= number <= 31:
        normal = f"{year or '-'}-{lexicon.months[month.lower()]:02}-{number:02}"
    return Found(match.start(), match.end(), "DATE", normal, "date")
