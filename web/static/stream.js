// A stream of events that survives what networks and restarts do to it.
//
// EventSource resumes by itself with Last-Event-ID while the server merely goes away. It gives up
// after an answer that is not a stream (a proxy's 502, an expired session): then this opens a new
// one from the last id. "reset" means that the events in between are gone: the page loads anew.

const TYPES = [
  "call.started", "call.ended", "leg.started", "leg.ended", "transcript.partial", "transcript.final",
  "lag.updated", "audio.lost", "dtmf", "step.started", "step.finished", "step.failed",
  "analysis.ready", "analysis.failed",
];
const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15000;

/**
 * Follow a stream.
 *
 * @param {string} url e.g. /events/calls
 * @param {string|null} lastId the newest id that the page already shows; null: the stream was empty
 * @param {{event: function(object), reset: function(), state: function(string)}} to
 *   state is told "open", "connecting" or "waiting" (the broker is away)
 * @returns {function()} ends it
 */
export function follow(url, lastId, to) {
  let after = lastId ?? "0-0";
  let pause = FIRST_PAUSE_MS;
  let source = null;
  let timer = 0;

  function open() {
    source = new EventSource(`${url}?after=${encodeURIComponent(after)}`);
    source.onopen = () => {
      pause = FIRST_PAUSE_MS;
      to.state("open");
    };
    source.onerror = () => {
      to.state("connecting");
      if (source.readyState === EventSource.CLOSED) later();
    };
    for (const type of TYPES) source.addEventListener(type, take);
    source.addEventListener("broker", (message) => {
      to.state(JSON.parse(message.data).state === "away" ? "waiting" : "open");
    });
    source.addEventListener("reset", () => {
      stop();
      to.reset();
    });
  }

  function take(message) {
    if (message.lastEventId) after = message.lastEventId;
    to.event(JSON.parse(message.data));
  }

  function later() {
    clearTimeout(timer);
    timer = setTimeout(open, pause);
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  }

  function stop() {
    clearTimeout(timer);
    source.close();
  }

  open();
  return stop;
}

/** GET JSON; an expired session goes to the log-in page. `skewMs` is the server's clock minus ours. */
export async function load(url) {
  const answer = await fetch(url, { headers: { Accept: "application/json" } });
  if (answer.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
    throw new Error("the session has expired");
  }
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  const date = Date.parse(answer.headers.get("Date") ?? "");
  const skewMs = Number.isNaN(date) || Math.abs(date - Date.now()) < 2000 ? 0 : date - Date.now();
  return { data: await answer.json(), skewMs };
}

/** Load until it works: a page that is opened while the server restarts waits for it. */
export async function loadPatiently(url, state) {
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(pause * 2, LONGEST_PAUSE_MS)) {
    try {
      return await load(url);
    } catch {
      state("connecting");
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

/** Show the state of the stream in words. */
export function showConnection(element, state) {
  const words = {
    open: "Connected",
    connecting: "Connecting again; new text will follow",
    waiting: "New text is held up; it will follow",
    closed: "Not live any more",
  };
  if (element.dataset.state === state && element.textContent === words[state]) return;
  element.dataset.state = state;
  element.textContent = words[state];
}
