// What has been said in a call, as turns; drawn with as few changes to the page as there are news.

import { clock } from "./times.js";
import { speaker } from "./names.js";

/** Pause up to which what one speaker says is one turn. */
const SAME_TURN_S = 1.0;

/** What is said where words are missing: nobody shall take it for silence. */
export function gapText({ start, end, reason }) {
  const span = `${clock(start)} to ${clock(end)}`;
  return reason.startsWith("disk")
    ? `The sound from ${span} could not be saved.`
    : `Words may be missing from ${span}.`;
}

/** The segments of a call, by number; finals never change again. */
export class Words {
  constructor() {
    this.segments = new Map();
  }

  /** Take a final as the API or an event describes it; returns whether it is new. */
  final({ segment, leg, start, end, text, language, revised }) {
    const shown = this.segments.get(segment);
    if (shown?.final) return false;
    // News only to whoever has read the word that changed.
    const isCorrected = Boolean(revised && shown?.stable);
    this.segments.set(segment, { segment, leg, start, end, text, language, isCorrected, final: true });
    return true;
  }

  /** Take a span that has no words, whatever was said in it; returns it. */
  lost({ leg, start, end, reason }) {
    const segment = `lost ${leg} ${start} ${reason}`;
    const gap = { segment, leg, start, end, reason, isGap: true, final: true };
    this.segments.set(segment, gap);
    return gap;
  }

  /** Take a partial: it replaces the last one of its segment; an empty one takes it back. */
  partial({ segment, leg, start, end, text, stable }) {
    if (this.segments.get(segment)?.final) return;
    if (text) this.segments.set(segment, { segment, leg, start, end, text, stable, final: false });
    else this.segments.delete(segment);
  }

  /** Drop what will not become final any more. */
  dropPartials(leg) {
    for (const [number, each] of this.segments) {
      if (!each.final && (!leg || each.leg === leg)) this.segments.delete(number);
    }
  }

  /** Turns in the order of time: consecutive segments of one speaker with short pauses are one, and
   *  so are consecutive gaps. */
  turns() {
    const ordered = [...this.segments.values()].sort(
      (a, b) => a.start - b.start || a.segment - b.segment || 0,
    );
    const turns = [];
    for (const each of ordered) {
      const last = turns.at(-1);
      const before = last?.segments.at(-1);
      if (each.isGap && before?.isGap && before.leg === each.leg && before.reason === each.reason) {
        last.end = Math.max(last.end, each.end);
        last.segments.splice(-1, 1, { ...before, end: last.end });
      } else if (last && last.leg === each.leg && each.start - last.end < SAME_TURN_S) {
        last.segments.push(each);
        last.end = Math.max(last.end, each.end);
      } else {
        turns.push({ leg: each.leg, start: each.start, end: each.end, segments: [each] });
      }
    }
    return turns;
  }
}

/** Make the list show the turns; only turns that changed are touched. */
export function draw(list, template, turns) {
  const existing = new Map([...list.children].map((item) => [item.dataset.key, item]));
  let previous = null;
  for (const turn of turns) {
    const key = String(turn.segments[0].segment);
    const item = existing.get(key) ?? template.content.firstElementChild.cloneNode(true);
    existing.delete(key);
    fill(item, key, turn);
    const place = previous ? previous.nextElementSibling : list.firstElementChild;
    if (place !== item) list.insertBefore(item, place);
    previous = item;
  }
  for (const item of existing.values()) item.remove();
}

function fill(item, key, turn) {
  const drawn = JSON.stringify(turn.segments.map((s) => [s.segment, s.text, s.stable, s.final, s.end]));
  if (item.drawn === drawn) return;
  item.drawn = drawn;
  item.dataset.key = key;
  item.dataset.leg = turn.leg;
  item.querySelector("[data-field=speaker]").textContent = speaker(turn.leg);
  item.querySelector("[data-field=time]").textContent = clock(turn.start);
  item.querySelector(".turn-text").replaceChildren(...turn.segments.flatMap(segmentNodes));
}

function segmentNodes(segment) {
  const element = document.createElement("span");
  element.dataset.segment = segment.segment;
  if (segment.language) element.lang = segment.language;
  if (segment.isGap) {
    element.className = "lost";
    element.textContent = gapText(segment);
  } else if (segment.final) {
    element.className = "segment";
    element.textContent = segment.text;
    if (segment.isCorrected) element.append(correctedMark());
  } else {
    const words = segment.text.split(" ");
    const stable = document.createElement("span");
    stable.className = "stable";
    stable.textContent = words.slice(0, segment.stable ?? 0).join(" ");
    const rest = words.slice(segment.stable ?? 0).join(" ");
    element.className = "partial";
    element.append(stable, stable.textContent && rest ? " " : "", rest);
  }
  return [element, document.createTextNode(" ")];
}

function correctedMark() {
  const mark = document.createElement("small");
  mark.className = "corrected";
  mark.textContent = "corrected";
  return mark;
}
