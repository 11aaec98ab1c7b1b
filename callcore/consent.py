"""Who refused analysis: what is done with the call, and the hash by which a number is remembered.

A refused call stays on record as a call without words, sound and number. Its number is kept as
HMAC-SHA256, so that recordings of that caller's later calls are refused too; without the key
nobody can tell whose number a hash is, or try all numbers. It is the number of the person at the
other end: who calls, or who is called by us.

A number is what is left of it without spaces, dashes, dots, brackets and strokes, and without
``+`` or the ``00`` that stands for it: ``+44 20 7946 0000``, ``00442079460000`` and
``442079460000`` are one, and so is ``+44 (0)20 7946 0000``. Nothing national is guessed:
``020 7946 0000`` is another number.
"""

import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from callcore import settling
from callcore.bus import Rooms
from callcore.calls import CallFacts
from callcore.errors import ConfigError, NotFound, Refused
from callcore.log import frames
from callcore.settings import Settings
from callcore.storage import Storage, call_rows, consent_rows

logger = logging.getLogger(__name__)

#: Days for which folders of refused recordings are looked after: a step that ran when its caller
#: refused may have put a file there, and have died before it knew.
LATE_DAYS = 7.0
#: Name of the key's file in the state folder.
KEY_FILE = "consent.key"

#: Shortest key, in characters: 128 bits as hexadecimal digits.
_MIN_KEY = 32
#: What every key hashes, so that a key that was lost or is another machine's is noticed.
_KEY_CHECK = "callcore: this is no number"
#: How people write a number for callers from both inside and outside of the country.
_TRUNK_ZERO = re.compile(r"((?:\+|00)[^(]*)\(0\)")
_FORMATTING = re.compile(r"[\s\-./()\u2010-\u2015\u00a0]")
_SCHEME = re.compile(r"(?:tel|sips?):", re.IGNORECASE)
#: Two digits or more: extensions are people too. One digit is no extension of anybody's.
_NUMBER = re.compile(r"[0-9*#]{2,32}")
#: ``00`` stands for ``+`` where a whole international number follows, not in an extension.
_INTERNATIONAL = re.compile(r"(?:\+|00(?=[1-9][0-9]{6}))")
#: Anonymous, restricted and unavailable as typed on a telephone's keys: what some carriers send.
_NOBODY = frozenset({"266696687", "7378742833", "86282452253"})


def normalised(number: str | None) -> str | None:
    """Return a number in the one form that is hashed; None for what tells nobody.

    Withheld numbers come as nothing, a word or zeros; they belong to everybody who withholds, and
    so do names instead of numbers as far as anybody can tell.
    """
    text = _SCHEME.sub("", (number or "").strip(), count=1)
    text = _TRUNK_ZERO.sub(r"\1", text, count=1) if text[:1] in ("+", "0") else text
    text = _FORMATTING.sub("", re.split("[@;]", text, maxsplit=1)[0])
    text = _INTERNATIONAL.sub("", text, count=1) if text[:1] in ("+", "0") else text
    if not _NUMBER.fullmatch(text) or not text.strip("0*#") or text in _NOBODY:
        return None
    return text


class Consent:
    """Refuses calls and remembers numbers.

    Args:
        storage: The record.
        settings: ``consent_key``, or ``state_dir`` where the key's file is; ``audio_dir``.
        bus: Where live events are; None leaves them to whoever does ``forget_rooms``.
    """

    def __init__(self, storage: Storage, settings: Settings, bus: Rooms | None = None) -> None:
        self._storage = storage
        self._database = storage.database
        self._settings = settings
        self._bus = bus

    # ---- numbers

    def is_refused(self, number: str | None) -> bool:
        """Tell whether this number refused analysis.

        Raises:
            ConfigError: If numbers are remembered and their key is not here: nobody can tell.
        """
        plain = normalised(number)
        if plain is None:
            return False
        key = self._key()
        asked = [] if key is None else [_hash(key, plain), _hash(key, _KEY_CHECK)]
        known = consent_rows.known(self._database, asked) if asked else set()
        if not known and consent_rows.has_any(self._database):
            raise self._wrong_key("the one by which numbers are remembered")
        return bool(asked) and asked[0] in known

    def is_outsider_refused(self, facts: CallFacts) -> bool:
        """Tell whether the person at the other end of a call refused analysis.

        What the call knows beside these facts counts too: few reports tell the direction.

        Raises:
            ConfigError: As for ``is_refused``.
        """
        return self.is_refused(self.outsider(facts))

    def outsider(self, facts: CallFacts, ids: Iterable[str] = ()) -> str | None:
        """Return the number of the person at the other end, by these facts and those on record."""
        with self._database.connection():
            for each in (*call_rows.ids_of(facts), *ids):
                with contextlib.suppress(NotFound):
                    facts = facts.merged(call_rows.read(self._database, each).facts)
        return facts.outsider

    def allow(self, number: str | None) -> bool:
        """Forget that a number refused; tell whether it had. Calls that were refused stay so."""
        plain, key = normalised(number), self._key()
        if plain is None or key is None:
            return False
        with self._database.transaction():
            return consent_rows.forget(self._database, _hash(key, plain))

    # ---- calls

    def is_call_refused(self, facts: CallFacts, ids: Iterable[str] = ()) -> bool:
        """Tell whether the call of these ids was refused."""
        return consent_rows.refused_among(self._database, [*call_rows.ids_of(facts), *ids])

    def refuse(self, facts: CallFacts, ids: Iterable[str] = ()) -> str:
        """Refuse a call and remember the number at its other end; again changes nothing.

        Args:
            facts: At least one id of the call, the number and the direction if they are known.
            ids: Further ids.

        Returns:
            The call_id.

        Raises:
            Refused: ``bad-id`` if there is no id.
        """
        known_as = [*call_rows.ids_of(facts), *ids]
        if not known_as:
            raise Refused("bad-id", "expected an id of the call", "call_id")
        moment = self._storage.clock()
        with self._database.transaction():
            self._database.serialize(call_rows.CALLS)
            number = self.outsider(facts, known_as)
            call_id = call_rows.claim(self._database, known_as, facts, moment)
            consent_rows.refuse(self._database, call_id, moment)
            self._remember(number)
            self._database.after_commit(lambda: self._refused(call_id))
        return call_id

    def name(self, facts: CallFacts, ids: Iterable[str]) -> None:
        """Give a call that is known further ids: what comes under them is that call's."""
        known_as = [*call_rows.ids_of(facts), *ids]
        with self._database.transaction():
            call_rows.complete(self._database, known_as, facts, self._storage.clock())

    def clean_later(self, call_id: str) -> None:
        """Delete files of a refused call as soon as its refusal is on record."""
        self._database.after_commit(lambda: self.clean(call_id))

    def clean(self, call_id: str | None = None) -> int:
        """Delete files of refused calls that are still there; return how many.

        Args:
            call_id: Of this call; None: of every call, what a crash or a step that ran meanwhile
                has left.
        """
        database = self._database
        late = None if call_id else self._storage.clock() - timedelta(days=LATE_DAYS)
        with database.connection():
            paths, needed = consent_rows.files(database, call_id)
            recordings = consent_rows.recordings(database, call_id, late)
        gone = [path for path in paths if self._is_gone(path)]
        if gone or needed:
            with database.transaction():
                consent_rows.forget_files(database, [*gone, *needed])
        num_files = len(gone)
        for audio_id, created_at in recordings:
            folder = settling.folder_at(audio_id, created_at, self._settings.audio_dir)
            if folder.is_dir():
                num_files += sum(1 for _ in folder.iterdir())
                shutil.rmtree(folder, ignore_errors=True)
        if num_files:
            logger.info("files of refused calls deleted", extra={"files": num_files})
        return num_files

    def forget_rooms(self) -> int:
        """Forget live events of refused calls, until none can come any more; return of how many.

        Whoever has published them may have been told late, and so may the broker.
        """
        if self._bus is None:
            return 0
        database, moment = self._database, self._storage.clock()
        with database.connection():
            calls = consent_rows.rooms(database)
            ids = [known_as for each in calls for known_as in call_rows.all_ids(database, each)]
        if not calls:
            return 0
        try:
            self._bus.forget(ids)
        except Exception as error:
            logger.warning("live events not forgotten yet", extra={"error": frames(error)})
            with database.transaction():
                consent_rows.forget_later(database, moment)
            return 0
        with database.transaction():
            consent_rows.rooms_forgotten(database, calls, moment)
        return len(calls)

    def _is_gone(self, path: str) -> bool:
        """Delete a file of ours; tell whether nothing of it is left to be deleted."""
        if not settling.is_ours(path, self._settings.audio_dir):
            return True
        try:
            Path(path).unlink(missing_ok=True)
        except OSError as error:
            # It stays on record, so that the next sweep tries again.
            extra = {"reason": error.strerror}
            logger.error("a file of a refused call cannot be deleted", extra=extra)
            return False
        return True

    def _refused(self, call_id: str) -> None:
        logger.info("call refused by its caller", extra={"call_id": call_id})
        if self._bus is not None:
            try:
                self._bus.forget(call_rows.all_ids(self._database, call_id))
            except Exception as error:
                # The call is refused all the same, and whoever does ``forget_rooms`` tries again.
                logger.warning("live events not forgotten yet", extra={"error": frames(error)})
        self.clean(call_id)

    # ---- the key

    def _remember(self, number: str | None) -> None:
        plain = normalised(number)
        if plain is None:
            return
        database = self._database
        try:
            key = self._key() or self._made_key()
            check = _hash(key, _KEY_CHECK)
            if not consent_rows.known(database, [check]) and consent_rows.has_any(database):
                # Were it known from now on, nobody would notice that it does not tell of those
                # who refused before.
                raise self._wrong_key("the one by which numbers are remembered")
        except ConfigError as error:
            # The call is refused whatever becomes of the number.
            logger.error("a number cannot be remembered", extra={"reason": str(error)})
            return
        consent_rows.remember(database, (check, _hash(key, plain)), self._storage.clock())

    @property
    def _key_file(self) -> Path:
        return self._settings.state_dir / KEY_FILE

    def _key(self) -> bytes | None:
        """Return the key; None if there never was one here."""
        if self._settings.consent_key:
            return self._settings.consent_key.encode()
        try:
            key = self._key_file.read_text().strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._wrong_key(f"a file we may read ({error.strerror})") from error
        if len(key) < _MIN_KEY:
            raise self._wrong_key(f"at least {_MIN_KEY} characters in {KEY_FILE}")
        return key.encode()

    def _made_key(self) -> bytes:
        """Return the key of a new file, or of the one that another process has just made."""
        path = self._key_file
        own = path.with_name(f".{KEY_FILE}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_private(own, secrets.token_hex(32) + "\n")
                # The name appears with the whole key in it, and the first who gives it wins.
                with contextlib.suppress(FileExistsError):
                    os.link(own, path)
            finally:
                own.unlink(missing_ok=True)
            _sync(path.parent)
        except OSError as error:
            raise self._wrong_key(f"a folder we may write ({error.strerror})") from error
        key = self._key()
        assert key is not None
        return key

    def _wrong_key(self, expected: str) -> ConfigError:
        shown = "<hidden>" if self._settings.consent_key else str(self._key_file)
        lost = "if it is lost for good, so are the refusals: empty the table opt_outs"
        remedy = f"the secret, or {KEY_FILE} put back: {expected}; {lost}"
        return ConfigError("CALLCORE_CONSENT_KEY", shown, remedy)


def _hash(key: bytes, plain: str) -> str:
    return hmac.new(key, plain.encode(), hashlib.sha256).hexdigest()


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
