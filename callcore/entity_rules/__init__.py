"""Names, places, numbers and people in transcripts, found by rules and what a model saw.

``find(segments, recognized)`` is the pure core: it takes transcript segments in their stored form
and what an entity recognizer found in them, and returns mentions; it works on one segment as on a
whole call. ``merge`` makes entities of mentions, ``people`` says who they are. The words that the
rules look for are data: ``callcore/data/entities/<language>.yaml``.
"""

from callcore.entity_rules.lexicon import Lexicon, lexicon
from callcore.entity_rules.matching import find
from callcore.entity_rules.mentions import LABELS, Mention
from callcore.entity_rules.merging import Entity, merge
from callcore.entity_rules.people import Person, people
from callcore.entity_rules.texts import cased

#: Version of all rules, for evidence; raised whenever they find something else.
VERSION = "1"

__all__ = [
    "LABELS",
    "VERSION",
    "Entity",
    "Lexicon",
    "Mention",
    "Person",
    "cased",
    "find",
    "lexicon",
    "merge",
    "people",
]
