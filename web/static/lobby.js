// Live calls: rows come, run and go by themselves.

import { follow, load, loadPatiently, showConnection } from "./stream.js";
import { clock, moment } from "./times.js";

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

/** Show how far live text is behind; `legs` as the API tells of them, where it was asked. */
function showLag(callId, lag, legs) {
  const row = rows.get(callId);
  if (!row || row.dataset.ended) return;
  if (legs) row.dataset.without = noText(legs);
  else if (lag?.state === "recording" && !row.dataset.without) row.dataset.without = "partly";
  if (!lag && !row.dataset.without) return;
  const isBehind = lag?.state === "behind";
  const late = { all: "After the call", partly: "Partly after the call" }[row.dataset.without];
  field(row, "lag").dataset.lag = isBehind ? "behind" : late ? "later" : "ok";
  field(row, "lag").textContent = isBehind ? `${lag.lag_s.toFixed(0)} s behind` : late ?? "On time";
}

/** Whether "all" legs, "partly" some or none ("") are without live text. */
function noText(legs) {
  const silent = legs.filter((leg) => leg.no_text).length;
  if (!silent) return "";
  return silent === legs.length ? "all" : "partly";
}

function showTimer(row) {
  if (row.dataset.ended) return;
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
