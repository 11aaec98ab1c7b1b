// Live calls: rows come, run and go by themselves.

import { follow, load, loadPatiently, showConnection } from "./stream.js";
import { speaker } from "./names.js";
import { clock, moment, roughly } from "./times.js";

const $ = (id) => document.getElementById(id);
/** How long an ended call stays in sight. */
const ENDED_MS = 60_000;
const rows = new Map([...$("rows").children].map((row) => [row.dataset.call, row]));
let skewMs = 0;
let reloadTimer = 0;

async function start() {
  const { data, skewMs: skew } = await loadPatiently("/api/calls/", setConnection);
  skewMs = skew;
  const present = new Set(data.calls.map((call) => call.call_id));
  for (const callId of rows.keys()) if (!present.has(callId)) remove(callId);
  for (const call of [...data.calls].reverse()) add(call);
  for (const call of data.calls) showLag(call.call_id, call.lag, call.legs);
  showCount();
  follow("/events/calls", data.last_event_id, { event: take, reset: start, state: setConnection });
}

function take(event) {
  if (event.type === "call.started") add({ ...event, started_at: event.at });
  if (event.type === "call.ended") end(event);
  if (event.type === "lag.updated") takeLag(event);
  showCount();
}

function takeLag(event) {
  showLag(event.call_id, event);
  if (event.state !== "recording") return;
  // The call's other leg may well have live text: the API knows each leg.
  clearTimeout(reloadTimer);
  reloadTimer = setTimeout(async () => {
    const { data } = await load("/api/calls/").catch(() => ({ data: { calls: [] } }));
    for (const call of data.calls) showLag(call.call_id, call.lag, call.legs);
  }, 300);
}

function add(call) {
  let row = rows.get(call.call_id);
  if (!row) {
    row = $("row").content.firstElementChild.cloneNode(true);
    rows.set(call.call_id, row);
    $("rows").prepend(row);
  }
  delete row.dataset.ended;
  if ($("calls").dataset.recognition === "off") row.dataset.without = "After the call";
  row.dataset.call = call.call_id;
  row.dataset.started = call.started_at;
  const link = field(row, "link");
  link.href = `/calls/${encodeURIComponent(call.call_id)}/live`;
  field(row, "call_id").textContent = call.call_id;
  field(row, "caller").textContent = call.caller ?? "–";
  field(row, "agent").textContent = call.agent ?? call.callee ?? "–";
  field(row, "started").replaceChildren(moment(call.started_at, "time"));
  showTimer(row);
}

function end(event) {
  const row = rows.get(event.call_id);
  if (!row) return;
  const isRefused = event.reason === "consent refused";
  row.dataset.ended = "yes";
  field(row, "timer").textContent = clock(event.duration ?? 0);
  field(row, "lag").dataset.lag = "none";
  field(row, "lag").textContent = isRefused ? "Analysis refused" : "Call ended";
  if (isRefused) field(row, "caller").textContent = "withheld";
  field(row, "link").href = `/calls/${encodeURIComponent(event.call_id)}`;
  setTimeout(() => {
    if (row.dataset.ended) remove(event.call_id);
    showCount();
  }, ENDED_MS);
}

function remove(callId) {
  rows.get(callId).remove();
  rows.delete(callId);
}

/** Take how late live text is; `legs` as the API tells of them, where it was asked. */
function showLag(callId, lag, legs) {
  const row = rows.get(callId);
  if (!row) return;
  if (legs && $("calls").dataset.recognition !== "off") row.dataset.without = noText(legs);
  else if (lag?.state === "recording") row.dataset.without ||= "Partly after the call";
  // That a leg has no live text says nothing about the others.
  if (lag && lag.state !== "recording") row.lag = { ...lag, since: Date.now() };
  showText(row);
}

/** Show it: until words come, each second makes them a second later. */
function showText(row) {
  if (row.dataset.ended) return;
  const isBehind = row.lag?.state === "behind";
  const late = isBehind && `About ${roughly(row.lag.lag_s + (Date.now() - row.lag.since) / 1000)} late`;
  const without = row.dataset.without;
  const text = [late, without].filter(Boolean).join(". ") || "On time";
  field(row, "lag").dataset.lag = isBehind ? "behind" : without ? "later" : "ok";
  if (field(row, "lag").textContent !== text) field(row, "lag").textContent = text;
}

/** Who has no live text; nothing where everybody has some. */
function noText(legs) {
  const silent = legs.filter((leg) => leg.no_text);
  if (!silent.length) return "";
  // The daemon adds where words come from, if it keeps the sound.
  const isLater = silent.every((leg) => leg.no_text.includes("; "));
  if (silent.length === legs.length) return isLater ? "After the call" : "No live text";
  return `${silent.map((leg) => speaker(leg.leg)).join(", ")}: ${isLater ? "after the call" : "no live text"}`;
}

function showTimer(row) {
  if (row.dataset.ended) return;
  showText(row);
  field(row, "timer").textContent = clock((Date.now() + skewMs - Date.parse(row.dataset.started)) / 1000);
}

function showCount() {
  const running = [...rows.values()].filter((row) => !row.dataset.ended).length;
  $("count").textContent = running;
  $("calls").hidden = rows.size === 0;
  $("empty").hidden = rows.size > 0;
}

const field = (row, name) => row.querySelector(`[data-field=${name}]`);
const setConnection = (state) => showConnection($("connection"), state);

setInterval(() => rows.forEach(showTimer), 1000);
rows.forEach(showTimer);
start();
