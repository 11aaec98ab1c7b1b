// What has been said in a call, as turns; drawn with as few changes to the page as there are news.

import { clock } from "./times.js";
import { speaker } from "./names.js";

/** Pause up to which what one speaker says is one turn. */
const SAME_TURN_S = 1.0;

/** The segments of a call, by number; finals never change again. */
export class Words {
  constructor() {
    this.segments = new Map();
  }

  /** Take a final as the API or an event describes it; returns whether it is new. */
  final({ segment, leg, start, end, text, language }) {
    if (this.segments.get(segment)?.final) return false;
    this.segments.set(segment, { segment, leg, start, end, text, language, final: true });
    return true;
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

  /** Turns in the order of time: consecutive segments of one speaker with short pauses are one. */
  turns() {
    const ordered = [...this.segments.values()].sort(
      (a, b) => a.start - b.start || a.segment - b.segment,
    );
    const turns = [];
    for (const each of ordered) {
      const last = turns.at(-1);
      if (last && last.leg === each.leg && each.start - last.end < SAME_TURN_S) {
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
  const drawn = JSON.stringify(turn.segments.map((s) => [s.segment, s.text, s.stable, s.final]));
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
  if (segment.final) {
    element.className = "segment";
    element.textContent = segment.text;
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
