"""chrF of both ways to translate: an Argos package, and Whisper's own task.

    python bench/translate.py --data DIR --models DIR [--whisper base]

DIR holds ``prompts/`` (Spanish telephone prompts with their script) and ``argos/`` (the test
package, which was trained on these very texts: its score shows that the path is whole, not how well
Argos translates). The English texts are the same prompts of the Asterisk core sounds, English
edition (Allison Smith / Digium, CC-BY-SA-3.0). chrF as in sacreBLEU: characters without spaces,
n-grams of 1 to 6, beta 2, over the whole corpus; case and punctuation are removed on both sides.
"""

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from callcore import argos_packages, audio, model_store
from callcore.engines.argos import Argos
from callcore.engines.batch_whisper import BatchWhisper

ENGLISH = {
    "confbridge-unlocked": "The conference is now unlocked.",
    "conf-locked": "This conference is locked!",
    "vm-msgsaved": "Your message has been saved.",
    "confbridge-remove-last-in": (
        "To remove the participant who most recently joined the conference..."
    ),
    "conf-now-muted": "The conference is now muted.",
    "confbridge-lock-extended": (
        "...to lock, or unlock the conference. When a conference is locked only conference "
        "administrators can join."
    ),
    "tt-weasels": "Weasels have eaten our phone system",
    "vm-rec-temp": "After the tone, say your temporary message, and then press the pound key.",
    "conf-waitforleader": "The conference will begin when the leader arrives.",
    "followme_no-recording": "you have an incoming call",
    "dictate_enter_filename": (
        "Enter a numeric dictation filename followed by # or just # to exit"
    ),
    "conf-onlyperson": "You are currently the only person in this conference.",
}
ORDER, BETA = 6, 2


def normalised(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s#]", " ", text.lower()).split())


def chrf(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return the corpus chrF2, 0 to 100."""
    scores = []
    for n in range(1, ORDER + 1):
        same = of_texts = of_references = 0
        for text, reference in zip(texts, references, strict=True):
            ours, theirs = (_grams(each, n) for each in (text, reference))
            same += sum((ours & theirs).values())
            of_texts += sum(ours.values())
            of_references += sum(theirs.values())
        precision = same / of_texts if of_texts else 0.0
        recall = same / of_references if of_references else 0.0
        weighed = BETA**2 * precision + recall
        scores.append((1 + BETA**2) * precision * recall / weighed if weighed else 0.0)
    return 100 * sum(scores) / len(scores)


def _grams(text: str, n: int) -> Counter[str]:
    plain = normalised(text).replace(" ", "")
    return Counter(plain[at : at + n] for at in range(len(plain) - n + 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--whisper", default="base")
    arguments = parser.parse_args()
    manifest = json.loads((arguments.data / "prompts" / "manifest.json").read_text("utf-8"))
    prompts = [each for each in manifest if each["language"] == "es"]
    references = [ENGLISH[Path(each["file"]).stem] for each in prompts]

    with tempfile.TemporaryDirectory() as folder:
        package = arguments.data / "argos" / "translate-es_en-prompts.argosmodel"
        argos_packages.pull(Path(folder), [str(package)])
        argos = Argos(str(argos_packages.folder_of(Path(folder))))
        argos.translate(["hola"], "es", "en")  # it is loaded
        began = time.process_time()
        texts = argos.translate([each["text"] for each in prompts], "es", "en")
        report("argos test package, from the script", texts, references, began, prompts)

    whisper = BatchWhisper(str(model_store.find(arguments.models, arguments.whisper)))
    began = time.process_time()
    texts = []
    for each in prompts:
        blocks = [
            block.mean(axis=1)
            for block in audio.decode(str(arguments.data / "prompts" / each["file"]), 16_000)
        ]
        samples = np.concatenate(blocks).astype(np.float32)
        texts.append(" ".join(said.text for said in whisper.translate(samples, "es")))
    report(f"whisper {arguments.whisper}, from the audio", texts, references, began, prompts)


def report(
    name: str,
    texts: Sequence[str],
    references: Sequence[str],
    began: float,
    prompts: Sequence[dict[str, float]],
) -> None:
    seconds = time.process_time() - began
    exact = sum(normalised(a) == normalised(b) for a, b in zip(texts, references, strict=True))
    audio_s = sum(each["seconds"] for each in prompts)
    print(
        f"{name}: chrF {chrf(texts, references):.1f}, {exact} of {len(texts)} exact, "
        f"{seconds:.2f} s of CPU for {audio_s:.0f} s of audio"
    )


if __name__ == "__main__":
    main()
