// The call page: words and sound together, and news of the analysis.

import { showMarks } from "./marks.js";
import { startPlayer } from "./player.js";
import { fetchPage, renewParts } from "./renew.js";
import { follow } from "./stream.js";
import "./times.js";
import "./verdicts.js";

const $ = (id) => document.getElementById(id);
/** How often progress is asked for: while figures move, without a stream of events, and else. */
const POLL_MS = { moving: 2000, deaf: 5000, listening: 30_000 };
const NEWS = new Set([
  "call.ended", "step.started", "step.finished", "step.failed", "analysis.ready", "analysis.failed",
]);
const root = $("call");
const room = encodeURIComponent(root.dataset.call);
let stop = null;
let timer = 0;
let isAsking = false;
let isDeaf = false;

startPlayer();
showMarks();
document.addEventListener("renewed", () => {
  startPlayer();
  showMarks();
});
// On a narrow screen the words come first.
if (matchMedia("(max-width: 60rem)").matches) $("about").open = false;

// ---- news of the analysis

if ($("progress").dataset.complete !== "yes") watch();
document.addEventListener("rerun", () => {
  watch();
  look();
});

function watch() {
  if (stop) return;
  stop = follow(`/events/calls/${room}`, root.dataset.lastId || null, {
    event: (event) => {
      if (NEWS.has(event.type)) soon(300);
    },
    reset: () => {
      isDeaf = true; // the stream has ended; asking goes on
      soon(300);
    },
    state: () => {},
  });
  soon(pause());
}

function pause() {
  if (document.querySelector(".progress-card")) return POLL_MS.moving;
  return isDeaf ? POLL_MS.deaf : POLL_MS.listening;
}

function soon(ms) {
  clearTimeout(timer);
  timer = setTimeout(look, ms);
}

/** Show how far it is; and all there is when a step is over. */
async function look() {
  if (isAsking) return soon(pause());
  isAsking = true;
  try {
    const before = $("progress").dataset.stage;
    const piece = new DOMParser().parseFromString(await fetchPage(`/calls/${room}/progress`), "text/html");
    const fresh = document.adoptNode(piece.getElementById("progress"));
    if (fresh.dataset.stage !== before) await renewParts();
    if (fresh.innerHTML !== $("progress").innerHTML) $("progress").replaceWith(fresh);
    else Object.assign($("progress").dataset, fresh.dataset);
  } catch {
    // The server restarts, or the network is away: the next look will tell.
  } finally {
    isAsking = false;
  }
  if ($("progress").dataset.complete !== "yes") return soon(pause());
  stop?.();
  stop = null;
  $("notice").textContent = $("progress").dataset.over;
  $("notice").hidden = !$("progress").dataset.over;
}
