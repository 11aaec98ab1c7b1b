// POST JSON to our own API.

/** Returns null, or why it did not work, in words. */
export async function post(url, body) {
  try {
    const answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json" },
      body: JSON.stringify(body),
    });
    return answer.ok ? null : reasonOf(await answer.text(), answer.status);
  } catch {
    return "The server does not answer.";
  }
}

/** What an error answer of the API says, as a sentence. */
export function reasonOf(text, status) {
  let message = `the server answered ${status}`;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    // A proxy answered, not we.
  }
  return `${message.charAt(0).toUpperCase()}${message.slice(1).replace(/\.$/, "")}.`;
}
