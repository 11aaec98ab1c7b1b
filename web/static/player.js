// Words and sound together: a click plays, what plays is marked, evidence leads to its words.

const $ = (id) => document.getElementById(id);
let words = [];
let current = null;
let isFollowing = true;

/** Begin; call it again after the page's parts were replaced. */
export function startPlayer() {
  const audio = $("audio");
  words = [...document.querySelectorAll("#transcript .word")].map((element) => ({
    element,
    turn: element.closest(".turn"),
    start: Number(element.dataset.s),
    end: Number(element.dataset.e),
  }));
  words.sort((a, b) => a.start - b.start);
  current = null;
  if (!audio) return;
  $("transcript").classList.add("can-seek");
  $("timeline")?.classList.add("can-seek");
  if (!audio.dataset.ready) {
    audio.dataset.ready = "yes";
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
    $("follow").setAttribute("aria-pressed", String(isFollowing));
    const asked = Number(new URLSearchParams(location.search).get("t"));
    // The player may have been quicker than this script.
    if (asked && audio.readyState >= HTMLMediaElement.HAVE_METADATA) seek(asked);
    else if (asked) audio.addEventListener("loadedmetadata", () => seek(asked), { once: true });
  }
  mark();
}

function seek(callTime) {
  const audio = $("audio");
  if (!audio) return;
  audio.currentTime = Math.max(0, callTime - Number(audio.dataset.offset));
  mark();
}

function play(callTime) {
  seek(callTime);
  $("audio")?.play().catch(() => {});
}

document.addEventListener("click", (event) => {
  // With a modifier, or while text is being selected, a click is not for the player.
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  const evidence = event.target.closest(".evidence");
  if (evidence) {
    showEvidence(evidence);
    return;
  }
  const button = event.target.closest("[data-seek]");
  const lane = event.target.closest(".lane-seek");
  const word = event.target.closest("#transcript .word");
  if (button) play(Number(button.dataset.seek));
  else if (lane) play(timeAt(lane, event.clientX));
  else if (word && !String(getSelection())) play(Number(word.dataset.s));
});

/** Mark the words of a piece of evidence, bring them into view and play them. */
function showEvidence(link) {
  const { segment, start, end } = link.dataset;
  const [from, to] = [Number(start) - 0.01, Number(end) + 0.01];
  const inSegment = [...($(`s${segment}`)?.querySelectorAll(".word") ?? [])];
  const meant = inSegment.filter((each) => Number(each.dataset.s) >= from && Number(each.dataset.e) <= to);
  const found = meant.length ? meant : inSegment;
  for (const each of document.querySelectorAll(".word.found")) each.classList.remove("found");
  for (const each of found) each.classList.add("found");
  play(Number(start));
  // The link itself goes to the segment, so that Back returns; its words may be further down.
  if (found.length) setTimeout(() => show(found[0]), 50);
}

/** The second of the call that a place on the timeline stands for. */
function timeAt(lane, clientX) {
  const box = lane.getBoundingClientRect();
  const { start, end } = $("timeline").dataset;
  const share = Math.min(1, Math.max(0, (clientX - box.left) / box.width));
  return Number(start) + share * (Number(end) - Number(start));
}

/** The last word that has begun, unless it ended a while ago. */
function wordAt(callTime) {
  let low = 0;
  let high = words.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (words[middle].start <= callTime) low = middle + 1;
    else high = middle;
  }
  const found = words[low - 1];
  return found && callTime < found.end + 0.5 ? found : null;
}

function mark() {
  const audio = $("audio");
  const now = audio.currentTime + Number(audio.dataset.offset);
  movePlayhead(now);
  const found = wordAt(now + 0.02);
  if (found === current) return;
  current?.element.classList.remove("now");
  if (current && current.turn !== found?.turn) current.turn.classList.remove("now");
  current = found;
  if (!found) return;
  found.element.classList.add("now");
  found.turn.classList.add("now");
  if (isFollowing && !audio.paused) show(found.element);
}

function movePlayhead(now) {
  const timeline = $("timeline");
  if (!timeline) return;
  const { start, end } = timeline.dataset;
  const x = `${(100 * (now - start)) / (end - start)}%`;
  for (const line of timeline.querySelectorAll(".playhead")) {
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
  }
}

function show(element) {
  const box = element.getBoundingClientRect();
  if (box.top > 80 && box.bottom < innerHeight - 140) return;
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "center", behavior: isCalm ? "instant" : "smooth" });
}

function tick() {
  mark();
  if (!$("audio").paused) requestAnimationFrame(tick);
}
