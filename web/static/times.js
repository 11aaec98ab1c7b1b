// Times of day in the reader's own zone; lengths as m:ss.

const FORMATS = {
  full: new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" }),
  time: new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" }),
};

/** Seconds as m:ss or h:mm:ss. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const pad = (n) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

/** How long somebody waited: 12 s, 2:05 min; nothing below a second, as `waited` in names.py. */
export function waited(seconds) {
  if (!(seconds >= 1)) return "";
  return seconds < 60 ? `${seconds.toFixed(0)} s` : `${clock(seconds)} min`;
}

/** A delay as people say it: 12 s, 45 s, 2 min. */
export function roughly(seconds) {
  if (seconds >= 90) return `${Math.round(seconds / 60)} min`;
  return `${seconds < 20 ? Math.max(1, Math.round(seconds)) : Math.round(seconds / 5) * 5} s`;
}

/** Show a <time> in the reader's zone; the exact instant stays as its title. */
export function localise(element) {
  const moment = new Date(element.dateTime);
  if (Number.isNaN(moment.getTime())) return;
  element.textContent = FORMATS[element.dataset.local ?? "full"].format(moment);
  element.title = element.dateTime;
}

/** A <time> element of an ISO instant. */
export function moment(iso, what = "full") {
  const element = document.createElement("time");
  element.dateTime = iso;
  element.dataset.local = what;
  localise(element);
  return element;
}

for (const element of document.querySelectorAll("time[data-local]")) localise(element);
