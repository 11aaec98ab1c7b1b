// Words for the codes of the API.

const CALL = { live: "Live", ended: "Ended", missed: "Missed" };
const DISPOSITIONS = {
  answered: "Answered",
  "no-answer": "No answer",
  busy: "Busy",
  abandoned: "Caller hung up",
  failed: "Could not be reached",
};
const STEP = { pending: "waiting", running: "running", done: "done", failed: "failed", skipped: "skipped" };
const STEPS = {
  settle: "Read the recording",
  transcribe: "Transcribe",
  translate: "Translate",
  summarize: "Summarise",
  ner: "Find names and numbers",
  classify: "Sort into categories",
  insights: "Measure",
  annotate: "Mark the transcript",
};

export function speaker(leg) {
  const [role, number] = leg.split("-");
  const name = role === "mixed" ? "Everyone" : role.charAt(0).toUpperCase() + role.slice(1);
  return number ? `${name} ${number}` : name;
}

export const callState = (state) => CALL[state] ?? state;
export const disposition = (code) => DISPOSITIONS[code] ?? code ?? "";
export const stepStatus = (status) => STEP[status] ?? status;
export const stepName = (name) => STEPS[name] ?? name.charAt(0).toUpperCase() + name.slice(1);
