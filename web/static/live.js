// The agent's page: what is being said, as it is said.

import { callState, disposition, speaker, stepName, stepStatus } from "./names.js";
import { follow, load, loadPatiently, showConnection } from "./stream.js";
import { clock, roughly, waited } from "./times.js";
import { draw, gapText, Words } from "./transcript.js";

const $ = (id) => document.getElementById(id);
const root = $("live");
const callId = root.dataset.call;
const apiUrl = `/api/calls/${encodeURIComponent(callId)}/`;
const ANNOUNCEMENTS_KEPT = 5;
/** Reason with which the legs and the call end when the caller refuses analysis. */
const REFUSED = "consent refused";
/** Words that come later than this after speech say how late the text is. */
const LATE_S = 3;
/** A reader within this distance of the end counts as being there. */
const AT_END_PX = 48;

let words = new Words();
let call = { state: root.dataset.state, started_at: root.dataset.started, duration: null };
/** What was told last of the delay; `since` is our clock when `lag_s` was true. */
let lag = null;
let wasBehind = false;
let latency = null;
let skewMs = 0;
let legs = [];
/** Legs without live text, as events told; the API tells of all once it is asked. */
let untold = new Set();
let isRefused = false;
let isFollowing = true;
let numNew = 0;
let drawPending = false;
let statusTimer = 0;
let connection = "connecting";

// ---- state from the API, then events

async function start() {
  const loaded = await loadPatiently(apiUrl, setConnection);
  const state = loaded.data;
  skewMs = loaded.skewMs;
  words = new Words();
  for (const segment of state.segments) words.final(segment);
  for (const partial of state.partials) words.partial(partial);
  lag = timed(state.lag) ?? lag;
  latency = state.segments.filter((each) => each.latency !== null).at(-1)?.latency ?? null;
  legs = state.legs;
  call = state;
  if (state.consent === "no") refuse();
  showCall();
  showAfter(state.recordings);
  drawSoon();
  follow(`/events/calls/${encodeURIComponent(callId)}`, state.last_event_id, {
    event: take,
    reset: start,
    state: setConnection,
  });
}

function take(event) {
  if (event.reason === REFUSED) refuse();
  if (isRefused && event.type.startsWith("transcript.")) return;
  switch (event.type) {
    case "transcript.partial":
      words.partial(event);
      drawSoon();
      break;
    case "transcript.final":
      if (words.final(event)) {
        latency = event.latency ?? latency;
        if (lag?.state === "behind" && latency > LATE_S) lag = timed({ ...lag, lag_s: latency });
        announce(event);
        if (!isFollowing) numNew += 1;
        showLag();
        drawSoon();
      }
      break;
    case "lag.updated":
      lag = timed(event) ?? lag;
      showLag();
      if (event.state === "recording") {
        untold.add(event.leg ?? "");
        showNoText();
        reloadSoon();
      }
      break;
    case "audio.lost":
      announce({ leg: event.leg, text: gapText(words.lost(event)) });
      drawSoon();
      break;
    case "leg.started":
    case "leg.ended":
      takeLeg(event);
      break;
    case "call.started":
      call = { ...call, state: "live", started_at: event.at };
      reloadSoon();
      break;
    case "call.ended":
      call = { ...call, state: "ended", duration: event.duration, reason: event.reason };
      words.dropPartials();
      showCall();
      drawSoon();
      reloadSoon();
      break;
    case "step.started":
    case "step.finished":
    case "step.failed":
    case "analysis.ready":
    case "analysis.failed":
      reloadSoon();
      break;
  }
}

function takeLeg(event) {
  if (event.type === "leg.ended") {
    words.dropPartials(event.leg);
    drawSoon();
  }
  reloadSoon();
}

/** Load legs, facts and the recording's steps again; the words come as events. */
function reloadSoon() {
  clearTimeout(statusTimer);
  statusTimer = setTimeout(async () => {
    try {
      const { data } = await load(apiUrl);
      legs = data.legs;
      call = data;
      if (data.consent === "no") refuse();
      showCall();
      showAfter(data.recordings);
      // Until its recording is there, nothing announces that waiting has ended.
      const isOpen = data.recordings.some((each) => ["queued", "processing"].includes(each.status));
      const isAwaited = data.state === "ended" && !data.recordings.length && !isRefused;
      if (isOpen || isAwaited) reloadLater();
    } catch {
      reloadLater();
    }
  }, 200);
}

/** A delay with seconds; that a leg has no live text is shown elsewhere. */
const timed = (given) => (given && given.state !== "recording" ? { ...given, since: Date.now() } : null);

/** The caller refuses analysis: nothing that was said stays in sight. */
function refuse() {
  if (isRefused) return;
  isRefused = true;
  words = new Words();
  latency = null;
  numNew = 0;
  draw($("transcript"), $("turn"), []); // now: a hidden tab gets no frames
  $("announcer").replaceChildren();
  $("who").textContent = callId;
  $("refused").hidden = false; // first: a status region that is hidden tells nobody what is put in
  $("refused").textContent =
    "The caller refused analysis. What was written here has been removed; neither text nor sound of this call is kept.";
  $("waiting").hidden = false;
  showCall();
}

function reloadLater() {
  clearTimeout(statusTimer);
  statusTimer = setTimeout(reloadSoon, 5000);
}

// ---- what the page shows

function setConnection(state) {
  connection = state;
  showConnection($("connection"), call.state === "live" || state !== "open" ? state : "closed");
  showLag();
}

function showCall() {
  const state = $("state");
  // The conversation may well go on: what has ended is that anything listens to it.
  state.dataset.state = isRefused ? "refused" : call.state;
  state.textContent = isRefused ? "Analysis refused" : callState(call.state);
  root.dataset.state = call.state;
  const show = (part, text) => {
    root.querySelector(`[data-part=${part}]`).hidden = !text;
    root.querySelector(`[data-field=${part}]`).textContent = text ?? "";
  };
  const isMissed = call.state === "missed";
  show("length", isMissed || isRefused || (call.duration ?? null) === null ? "" : clock(call.duration));
  show("reason", isRefused ? "" : call.reason);
  show("outcome", call.disposition === "answered" ? "" : disposition(call.disposition));
  show("wait", waited(call.wait_s));
  if (isRefused) show("caller", "withheld at the caller's wish");
  $("after").hidden = call.state === "live";
  if (isRefused) $("after-title").textContent = "Nothing listens any more";
  setConnection(connection);
  showTimer();
  showLegs();
  showNoText();
  showFollowing();
}

function showTimer() {
  const begun = Date.parse(call.started_at ?? "");
  const seconds = call.duration ?? (call.state === "live" ? (Date.now() + skewMs - begun) / 1000 : NaN);
  const text = Number.isNaN(seconds) || isRefused ? "" : clock(seconds);
  if ($("timer").textContent !== text) $("timer").textContent = text;
}

function showLag() {
  const element = $("lag");
  const isBehind = lag?.state === "behind";
  // Without a connection nobody knows whether the words are on time.
  element.hidden = call.state !== "live" || isRefused || !isHeard() || connection !== "open";
  element.dataset.lag = isBehind ? "behind" : "ok";
  // Only the change is told: until words come, each second makes them a second later.
  const text = isBehind
    ? `Words appear about ${roughly(lag.lag_s + (Date.now() - lag.since) / 1000)} late`
    : latency === null || latency > LATE_S ? "On time" : `On time, ${latency.toFixed(1)} s after speech`;
  if (element.textContent !== text) element.textContent = text;
  $("waiting").textContent = waiting();
  if (element.hidden || isBehind === wasBehind) return;
  wasBehind = isBehind;
  // Read out once, not with each second.
  $("lag-said").textContent = isBehind ? `${text}.` : "Words appear on time again.";
}

/** Whether the site writes no words during calls, as far as this page can see. */
const isOff = () =>
  root.dataset.recognition === "off" && ![...words.segments.values()].some((each) => !each.isGap);

/** Whether some leg has live text, or may still have. */
const isHeard = () => !isOff() && (!legs.length || legs.some((leg) => !leg.no_text));

/** A party within a sentence; what is not named is some leg. */
function party(leg) {
  if (!leg) return "one party";
  return leg === "mixed" ? "this call" : `the ${speaker(leg).toLowerCase()}`;
}

/** Say calmly which party's words come later: nobody can do anything about it now. */
function showNoText() {
  const silent = legs.filter((leg) => leg.no_text);
  for (const leg of silent) untold.delete(leg.leg);
  if (silent.length) untold.delete("");
  const names = new Map(); // by reason
  for (const { no_text: why, leg } of silent) names.set(why, [...names.get(why) ?? [], leg]);
  if (untold.size) names.set("", [...untold]);
  if (isOff()) names.clear();
  const text = isOff()
    ? "No live text: recognition during calls is switched off. The words come after the call, from the recording."
    : [...names].map(([why, some]) => noText(why, some)).join(" ");
  $("no-text").hidden = !text || isRefused;
  if ($("no-text").textContent !== text) $("no-text").textContent = text;
  // The sentence scrolls away; this stays beside the delay.
  const some = [...new Set([...names.values()].flat())];
  $("without").hidden = $("no-text").hidden || call.state !== "live";
  $("without").textContent = isHeard() ? `No live text for ${some.map(party).join(" and ")}` : "No live text";
}

/** A sentence on parties without live text; the daemon adds where their words come from. */
function noText(why, some) {
  const [reason, later] = why.split("; ");
  const sentence = `No live text for ${some.map(party).join(" and ")}${reason && `: ${reason}`}.`;
  return later ? `${sentence} ${isHeard() ? "Those" : "The"} words come after the call, from the recording.` : sentence;
}

function showLegs() {
  $("legs").replaceChildren(...legs.map((leg) => {
    const item = document.createElement("li");
    const name = document.createElement("span");
    const state = document.createElement("span");
    name.textContent = speaker(leg.leg);
    state.className = "muted";
    state.textContent = legState(leg);
    item.append(name, state);
    return item;
  }));
}

function legState(leg) {
  if (leg.state === "live") return leg.no_text ? "on the line, no live text" : "on the line";
  if (leg.state === "expected") return "expected";
  if (leg.state === "expired") return "never came";
  if (leg.reason === REFUSED) return "not listened to";
  return leg.reason ? `left: ${leg.reason}` : "left";
}

function showAfter(recordings) {
  const text = {
    queued: "Its recording is queued.",
    processing: "Its recording is being processed.",
    completed: "Its recording is analysed: the text and what was found in it are on the call page.",
    partial: "Some steps failed; the rest is on the call page.",
    failed: "Its recording could not be processed.",
  };
  const recording = isRefused ? null : recordings.at(-1);
  const none = call.state === "missed" ? "Nobody answered." : "Waiting for its recording.";
  $("after-text").textContent = recording
    ? text[recording.status] ?? recording.status
    : isRefused ? "Nothing of this call is analysed or kept." : none;
  $("steps").replaceChildren(...(recording?.steps ?? []).map((step) => {
    const item = $("step").content.firstElementChild.cloneNode(true);
    item.dataset.status = step.status;
    item.querySelector("[data-field=name]").textContent = stepName(step.name);
    item.querySelector("[data-field=status]").textContent =
      stepStatus(step.status) + (step.status === "done" && step.ms !== null ? ` in ${(step.ms / 1000).toFixed(1)} s` : "");
    const error = item.querySelector("[data-field=error]");
    error.textContent = step.error ?? "";
    error.hidden = !step.error;
    return item;
  }));
}

/** Finals only: partials would interrupt a screen reader twice a second. */
function announce(event) {
  const line = document.createElement("p");
  line.textContent = `${speaker(event.leg)}: ${event.text}`;
  $("announcer").append(line);
  while ($("announcer").childElementCount > ANNOUNCEMENTS_KEPT) $("announcer").firstElementChild.remove();
}

/** At most one drawing a frame, however many events came. */
function drawSoon() {
  if (drawPending) return;
  drawPending = true;
  // A hidden tab gets no frames, but must not fall behind for ever.
  const next = document.hidden ? (run) => setTimeout(run, 250) : requestAnimationFrame;
  next(() => {
    drawPending = false;
    const turns = words.turns();
    draw($("transcript"), $("turn"), turns);
    $("waiting").hidden = turns.length > 0;
    $("waiting").textContent = waiting();
    if (isFollowing) toEnd();
    showFollowing();
    if (root.dataset.recognition === "off") showNoText(); // words may have come all the same
  });
}

function waiting() {
  if (isRefused) return "No text of this call is kept.";
  if (!isHeard() && call.state === "live") return "Nothing is written here during this call, whoever speaks.";
  if (!isHeard()) return "There was no live text.";
  if (call.state === "missed") return "Nobody answered, so there is no conversation to show.";
  if (call.state !== "live") return "No words were recognised.";
  return lag?.state === "behind" ? "The first words are late. They will appear here." : "Waiting for the first words…";
}

// ---- following, and reading back

let lastY = 0;
const distanceToEnd = () => document.documentElement.scrollHeight - innerHeight - scrollY;

function toEnd() {
  scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  lastY = scrollY;
}

function setFollowing(value) {
  isFollowing = value;
  if (value) {
    numNew = 0;
    toEnd();
  }
  showFollowing();
}

function showFollowing() {
  // After the end there is nothing to follow; whoever has not read it all still can jump there.
  $("bar").hidden = call.state !== "live" && isFollowing;
  $("follow").setAttribute("aria-pressed", String(isFollowing));
  $("jump").hidden = isFollowing;
  $("new-count").textContent = numNew ? `(${numNew} new)` : "";
}

addEventListener("scroll", () => {
  const isUp = scrollY < lastY;
  lastY = scrollY;
  // The end itself moves up when a long partial becomes a short final: that is nobody's scrolling.
  if (isFollowing && isUp && distanceToEnd() > AT_END_PX) setFollowing(false);
}, { passive: true });
addEventListener("resize", () => isFollowing && call.state === "live" && toEnd()); // a phone was turned
$("follow").addEventListener("click", () => setFollowing(!isFollowing));
$("jump").addEventListener("click", () => {
  setFollowing(true);
  $("follow").focus();
});

// On a narrow screen the words come first.
if (matchMedia("(max-width: 60rem)").matches) $("about").open = false;

setInterval(() => {
  showTimer();
  showLag();
}, 1000);
start();
