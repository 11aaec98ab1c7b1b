// The call page: words and sound together, and news of the analysis.

import { follow } from "./stream.js";
import "./times.js";

const $ = (id) => document.getElementById(id);
const root = $("call");
const audio = $("audio");

// ---- player

if (audio) {
  const offset = Number(audio.dataset.offset);
  const transcript = $("transcript");
  const words = [...transcript.querySelectorAll(".word")].map((element) => ({
    element,
    turn: element.closest(".turn"),
    start: Number(element.dataset.s),
    end: Number(element.dataset.e),
  }));
  words.sort((a, b) => a.start - b.start);
  let current = null;
  let isFollowing = true;

  transcript.classList.add("can-seek");

  const seek = (callTime) => {
    audio.currentTime = Math.max(0, callTime - offset);
    mark();
  };

  transcript.addEventListener("click", (event) => {
    // With a modifier, or while text is being selected, a click is not for the player.
    if (event.ctrlKey || event.metaKey || event.shiftKey || String(getSelection())) return;
    const word = event.target.closest(".word");
    const button = event.target.closest("[data-seek]");
    if (word) seek(Number(word.dataset.s));
    else if (button) seek(Number(button.dataset.seek));
    else return;
    audio.play().catch(() => {});
  });

  /** The last word that has begun, unless it ended a while ago. */
  const wordAt = (callTime) => {
    let low = 0;
    let high = words.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (words[middle].start <= callTime) low = middle + 1;
      else high = middle;
    }
    const found = words[low - 1];
    return found && callTime < found.end + 0.5 ? found : null;
  };

  const mark = () => {
    const found = wordAt(audio.currentTime + offset + 0.02);
    if (found === current) return;
    current?.element.classList.remove("now");
    if (current && current.turn !== found?.turn) current.turn.classList.remove("now");
    current = found;
    if (!found) return;
    found.element.classList.add("now");
    found.turn.classList.add("now");
    if (isFollowing && !audio.paused) show(found.element);
  };

  const show = (element) => {
    const box = element.getBoundingClientRect();
    if (box.top > 80 && box.bottom < innerHeight - 140) return;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ block: "center", behavior: isCalm ? "instant" : "smooth" });
  };

  const tick = () => {
    mark();
    if (!audio.paused) requestAnimationFrame(tick);
  };
  audio.addEventListener("play", tick);
  audio.addEventListener("seeked", mark);
  audio.addEventListener("timeupdate", mark);

  $("speed").addEventListener("change", (event) => {
    audio.playbackRate = Number(event.target.value);
  });
  $("follow").addEventListener("click", () => {
    isFollowing = !isFollowing;
    $("follow").setAttribute("aria-pressed", String(isFollowing));
  });

  const asked = Number(new URLSearchParams(location.search).get("t"));
  // The player may have been quicker than this script.
  if (asked && audio.readyState >= HTMLMediaElement.HAVE_METADATA) seek(asked);
  else if (asked) audio.addEventListener("loadedmetadata", () => seek(asked), { once: true });
}

// On a narrow screen the words come first.
if (matchMedia("(max-width: 60rem)").matches) $("about").open = false;

// ---- news of the analysis

if (root.dataset.complete !== "yes") {
  const news = new Set([
    "call.ended", "step.started", "step.finished", "step.failed", "analysis.ready", "analysis.failed",
  ]);
  let timer = 0;
  const stop = follow(`/events/calls/${encodeURIComponent(root.dataset.call)}`, root.dataset.lastId || null, {
    event: (event) => {
      if (!news.has(event.type)) return;
      clearTimeout(timer);
      timer = setTimeout(renew, 500);
    },
    reset: () => renew(),
    state: () => {},
  });

  /** Show the page anew, but never under somebody's ears. */
  const renew = () => {
    stop();
    if (!audio || audio.paused) {
      location.reload();
      return;
    }
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Show it";
    button.addEventListener("click", () => location.reload());
    $("notice").replaceChildren("There is news about this call. ", button);
    $("notice").hidden = false;
  };
}
