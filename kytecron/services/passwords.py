"""Which passwords may be chosen: long enough, and not among the first that are guessed."""

from __future__ import annotations

import math
import unicodedata

from .common_passwords import words

MIN_LENGTH = 12
MAX_LENGTH = 1000
MIN_PARTS = 6
"""Fewer words, repetitions, rows of keys and other characters than these are soon tried by who guesses."""
LOOKED_AT = 64
"""Characters that parts are counted in: beyond these a password has parts enough, or is weak whatever follows."""
PRODUCT = "kytecron"
SHORTEST_NAME = 4
"""A shorter user name stands in many innocent words."""
LONGEST_WORD = 30
ELSEWHERE = frozenset({"contrasena", "motdepasse", "passwort", "senha", "футбол", "пароль"})
"""Words of other languages."""

ROWS = (
    *("qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "yxcvbnm", "azertyuiop", "qsdfghjklm", "wxcvbn"),
    *("abcdefghijklmnopqrstuvwxyz", "01234567890", "!@#$%^&*()_+", '!"§$%&/()=?'),
)
RUNS = frozenset(
    run[start:end]
    for row in ROWS
    for run in (row, row[::-1])
    for start in range(len(row))
    for end in range(start + 3, len(row) + 1)
)
"""Rows of keys and of the alphabet, both ways, from three characters on."""
# How people write letters so that a rule is met; a 1 stands for both i and l.
DISGUISES = [str.maketrans("@4301!$57+", "aaeoiisstt"), str.maketrans("@4301!$57+", "aaeollsstt")]


def problem(password: str, username: str) -> str | None:
    """What is wrong with a new password of `username`, as a sentence that begins with the field's name."""
    if len(password) < MIN_LENGTH:
        return f"password must have at least {MIN_LENGTH} characters; this one has {len(password)}"
    if len(password) > MAX_LENGTH:
        return f"password must have at most {MAX_LENGTH} characters"
    if not is_text(password):
        return "password must be valid text"
    for name in (PRODUCT, username):
        if len(name) >= SHORTEST_NAME and any(_plain(name) in one for one in _readings(password)):
            return f"password must not contain {name}: that is among the first things that are tried"
    if _parts(_once(password), username) < MIN_PARTS:
        return (
            "password is too easy to guess: it is little more than a common word, a repetition or a row of keys. "
            "Write four or more unrelated words, or let a password manager choose"
        )
    return None


def is_text(password: str) -> bool:
    """Whether it can be encoded: halves of characters cannot."""
    try:
        password.encode()
    except UnicodeEncodeError:
        return False
    return True


def _readings(password: str) -> list[str]:
    """The password in lower case, as it is and with its disguises taken off."""
    plain = _plain(password)
    return [plain, *(plain.translate(table) for table in DISGUISES)]


def _plain(password: str) -> str:
    """In lower case, without accents, wide letters and blanks between single letters."""
    text = unicodedata.normalize("NFKD", password)
    text = "".join(char for char in text if not unicodedata.combining(char)).lower()
    return "".join(text.split()) if all(len(word) == 1 for word in text.split()) else text


def _once(password: str) -> str:
    """What it repeats all through, if it does."""
    text = _plain(password)
    periods = range(1, len(text) // 2 + 1)
    return text[: next((one for one in periods if text[one:] == text[:-one]), len(text))]


def _parts(password: str, username: str) -> int:
    """Of how few guessable parts the password can be put together."""
    readings, known = _readings(password[:LOOKED_AT]), words() | ELSEWHERE | {_plain(username)}
    length = min(map(len, readings))
    fewest = [0] + [length] * length
    for end in range(1, length + 1):
        fewest[end] = min(
            fewest[start] + _cost(readings, known, start, end)
            for start in range(max(0, end - LONGEST_WORD), end)
        )
    return fewest[length]


def _cost(readings: list[str], known: frozenset[str], start: int, end: int) -> int:
    plain, size = readings[0][start:end], end - start
    if size == 1 or plain in RUNS or len(set(plain)) == 1:
        return 1
    if any(one[start:end] in known for one in readings):
        return 1
    if start >= size and readings[0][start - size : start] == plain:
        return 1  # once more what came before
    return math.ceil(size / 4) if plain.isdecimal() else size
