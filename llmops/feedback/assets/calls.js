// The rating page in the browser, part 2 of 3: what is asked of the server. An answer names the showing that is on the
// screen and carries a key of its own, so a late or repeated one never counts twice or for another item.
const NAME_KEY = "llmops.rater";
const SLOW_MS = 4000;
const AWAY = "The rating server cannot be reached. Nothing that was saved is lost; try again when it is back.";

function draw(reply) {
  complain(reply.error);
  if (reply.sign_in) return askName(reply.accounts);
  if (reply.about) drawAbout(reply.about);
  if (reply.rater) {
    now.rater = reply.rater;
    part("rater").textContent = reply.rater;
    element.querySelector("[data-do=leave]").textContent = now.accounts ? "Sign out" : "Not you?";
    if (!now.accounts) remember(reply.rater);
  }
  if (reply.standing) drawStanding(reply.standing);
  if (reply.item) drawItem(reply.item, reply.given, reply.undone);
  else if (reply.standing && !reply.error) drawNext(reply.standing);
  else if (now.rater) look(now.view === "name" ? "" : now.view);
  else askName(now.accounts);
}

// Nothing to rate: a campaign of typed prompts waits for the next one.
function drawNext(standing) {
  now.item = null;
  if (now.about.typed) openTab("ask", true);
  else drawDone(standing);
}

async function ask(call, lost) {
  if (now.busy) return null;
  now.busy = true;
  lock();
  const slow = setTimeout(() => say("Waiting for the server", "reload the page if this stays"), SLOW_MS);
  const reply = await Promise.resolve(call()).catch(() => null);
  clearTimeout(slow);
  now.busy = false;
  if (reply) return reply;
  say("");
  complain(lost);
  lock();
  return null;
}

async function next(rater) {
  const reply = await ask(() => server.next_item({ rater: rater || "" }), AWAY);
  if (reply) { say(""); draw(reply); lock(); }
  else look(now.view || (now.rater ? "" : "name"));
}

function answered(choice) {
  const { tags, scores, note, edit } = filled();
  const corrected = choice === "edited" ? edit : null;
  return { rater: now.rater, showing: now.item.showing, choice, tags, scores, note: note.trim(), edit: corrected };
}

// The same answer sent again has the same key; another answer has another.
function keyOf(said) {
  const told = JSON.stringify(said);
  if (!now.key || now.key.told !== told) {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    now.key = { told, key: [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("") };
  }
  return now.key.key;
}

async function rate(pressed) {
  if (now.view !== "item" || now.busy || !now.settled || !now.item) return;
  const choice = pressed === "edited" && part("correction").value === now.item.texts[0] ? "kept" : pressed;
  if (choice === "scored" && !allAsked()) return;
  const { typed } = now.item;
  const said = answered(choice === "scored" ? "rated" : choice);
  complain("");
  say("");
  const reply = await ask(
    () => server.rate_item({ ...said, key: keyOf(said), dwell_ms: dwelt() }),
    "The rating server did not confirm your answer. Give it again when the server is back; it counts once.",
  );
  if (!reply) return;
  if (reply.saved) {
    say(`saved #${reply.saved}`, WORDS[said.choice]);
    now.item = null; // what is on the screen is answered, whatever comes after it
    if (typed) part("own").value = "";
  }
  draw(reply.saved || !reply.error ? reply : { ...reply, error: `Not saved: ${reply.error}` });
  if (reply.saved && !reply.item && reply.error) look("");
  lock();
}

function allAsked() {
  const open = every("[data-question]").find((set) => {
    const asked = now.about.questions.find((q) => q.id === set.dataset.question);
    return asked.required && !set.querySelector(":checked[type=radio]");
  });
  if (!open) return true;
  say("Not saved yet:", "a question is not answered.");
  open.querySelector("input").focus();
  return false;
}

async function back() {
  if (!now.rater || now.view === "name" || now.busy) return;
  const before = now.item && now.item.given ? now.item.given.number : null;
  const reply = await ask(() => server.last_item({ rater: now.rater, before }), AWAY);
  if (!reply) return;
  say("");
  if (reply.item) draw(reply);
  else if (reply.error) complain(reply.error);
  else say("This is your first answer:", "there is none before it.");
  lock();
}

async function undo() {
  if (!now.rater || now.view === "name" || now.busy) return;
  const reply = await ask(
    () => server.undo_item({ rater: now.rater }),
    "The rating server did not confirm that. Go back (z) to see whether your last answer still counts.",
  );
  if (!reply) return;
  say("");
  if (reply.undone) { draw(reply); say(`undone #${reply.undone}`, "it no longer counts"); }
  else if (reply.error) complain(reply.error);
  else say("Nothing to undo:", "you have no answer that counts.");
  lock();
}

async function askBoth() {
  if (now.busy || !part("own").value.trim()) return;
  complain("");
  say("Both models are answering.", "You see both answers together.");
  const prompt = part("own").value;
  const reply = await ask(() => server.ask_both({ rater: now.rater, prompt }), AWAY);
  if (!reply) return;
  say("");
  if (reply.item) draw(reply);
  else complain(reply.error);
  lock();
}

async function numbers() {
  const reply = await ask(() => server.numbers({ rater: now.rater }), AWAY);
  if (!reply) return;
  complain(reply.error);
  if (reply.figures !== undefined) part("numbers").innerHTML = reply.figures; // made and escaped by the server alone
  lock();
}

// ------------------------------------------------------------ who rates

function remember(rater) {
  try { localStorage.setItem(NAME_KEY, rater); } catch { /* private mode: asked again after a reload */ }
}

function remembered() {
  try { return localStorage.getItem(NAME_KEY) || ""; } catch { return ""; }
}

function askName(accounts) {
  now.accounts = Boolean(accounts);
  now.rater = "";
  now.item = null;
  part("by-password").hidden = part("other").hidden = !now.accounts;
  part("by-name").hidden = false;
  part("by-key").hidden = true;
  part("other").textContent = "Sign in with a key";
  part("name-hint").textContent = now.accounts
    ? "With your ratings stands a number, never your name."
    : "With your ratings stands a number made from it. Use the same one every time.";
  look("name");
  part("name").focus();
}

async function enter() {
  const reply = await ask(() => server.enter({}), AWAY);
  if (!reply) return look("");
  now.accounts = reply.accounts;
  if (reply.about) drawAbout(reply.about);
  if (reply.accounts ? reply.signed_in : remembered()) await next(reply.accounts ? "" : remembered());
  else askName(reply.accounts);
}

async function signIn() {
  const key = part("by-key").hidden ? "" : part("key").value.trim();
  if (!now.accounts) return next(part("name").value);
  const said = key ? { key } : { name: part("name").value.trim(), password: part("password").value };
  const reply = await ask(() => session("POST", said), AWAY);
  part("password").value = part("key").value = "";
  if (!reply) return undefined;
  complain(reply.error);
  return reply.error ? part("name").focus() : next("");
}

async function leave() {
  if (now.busy) return;
  const { accounts, rater } = now;
  if (accounts) await ask(() => session("DELETE", {}), AWAY);
  say("");
  complain("");
  askName(accounts);
  part("name").value = accounts ? "" : rater;
  part("name").select();
}

async function session(method, said) {
  const reply = await fetch("session", {
    method, body: JSON.stringify(said), headers: { "content-type": "application/json" }, credentials: "same-origin",
  });
  return reply.json();
}
