// Parts of a page, fetched anew and put in place: what the server renders is the one truth.

import { localise } from "./times.js";

/**
 * Fetch this page and replace the parts marked data-renew that changed.
 *
 * What plays goes on: the player stays unless it plays something else. Open details stay open, and
 * the focus stays where it was as far as its element is still there.
 */
export async function renewParts() {
  const page = new DOMParser().parseFromString(await fetchPage(location.href), "text/html");
  for (const part of document.querySelectorAll("[data-renew]")) {
    const fresh = page.getElementById(part.id);
    if (!fresh || last.get(part.id) === fresh.innerHTML || playsTheSame(part, fresh)) continue;
    last.set(part.id, fresh.innerHTML);
    replace(part, fresh);
  }
  document.dispatchEvent(new Event("renewed"));
}

/** GET a page or a piece of one; an expired session goes to the log-in page. */
export async function fetchPage(url) {
  const answer = await fetch(url, { headers: { Accept: "text/html" } });
  if (answer.redirected && new URL(answer.url).pathname === "/login") location.reload();
  if (!answer.ok || answer.redirected) throw new Error(`the server answered ${answer.status}`);
  return answer.text();
}

const last = new Map();

function playsTheSame(part, fresh) {
  const playing = part.querySelector("audio");
  return playing !== null && playing.getAttribute("src") === fresh.querySelector("audio")?.getAttribute("src");
}

function replace(part, fresh) {
  const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
  const open = [...part.querySelectorAll("details[id][open]")].map((each) => each.id);
  part.replaceChildren(...document.adoptNode(fresh).childNodes);
  for (const time of part.querySelectorAll("time[data-local]")) localise(time);
  for (const id of open) document.getElementById(id).open = true;
  if (focused) document.getElementById(focused)?.focus();
}
