// The page's beginning: which views this server has, the key, and the one place where something wrong is said.

import { api, key, KeyNeeded, setKey } from "./server.js";
import { hearView } from "./hear.js";
import { speakView } from "./speak.js";
import { statusView } from "./status.js";
import { talkView } from "./talk.js";

const VIEWS = [
  { id: "hear", title: "Transcribe", types: ["Asr", "BatchedAsr", "PyBatchedAsr"], make: hearView },
  { id: "speak", title: "Speak", types: ["Py", "Tts", "PocketTts"], make: speakView },
  { id: "talk", title: "Talk", types: ["Lm"], make: talkView },
  { id: "status", title: "Status", types: null, make: statusView },
];

const element = (id) => document.getElementById(id);

/** Say what is wrong, or nothing with an empty text. A refused key also opens the dialog for one. */
function notice(problem) {
  const text = problem instanceof Error ? problem.message : String(problem);
  element("notice").textContent = text;
  element("notice").hidden = !text;
  if (problem instanceof KeyNeeded) askForKey();
}

function askForKey() {
  element("key").value = key();
  element("key-dialog").showModal();
}

element("key-button").onclick = askForKey;
element("key-dialog").onclose = () => {
  if (element("key-dialog").returnValue !== "save") return;
  setKey(element("key").value);
  notice("");
};

function show(chosen) {
  for (const view of VIEWS) {
    element(view.id).hidden = view.id !== chosen;
    element(`tab-${view.id}`)?.setAttribute("aria-current", String(view.id === chosen));
  }
}

async function start() {
  let status;
  try {
    status = await api("status");
  } catch (error) {
    notice(error);
    setTimeout(start, 3000);
    return;
  }
  notice("");
  element("key-button").hidden = !status.modules.some((module) => module.auth);
  let first = "";
  for (const view of VIEWS) {
    const module = view.types && status.modules.find((each) => view.types.includes(each.type));
    if (view.types && !module) continue;
    const tab = document.createElement("button");
    tab.type = "button";
    tab.id = `tab-${view.id}`;
    tab.textContent = view.title;
    tab.onclick = () => show(view.id);
    element("tabs").append(tab);
    view.make(module, notice);
    first ||= view.id;
  }
  show(first);
}

start();
